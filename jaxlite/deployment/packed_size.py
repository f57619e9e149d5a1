"""How many bytes a run's network has as a packed file, for its report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlite.deployment.integers.conversion import quantized
from jaxlite.deployment.metadata import packed_about
from jaxlite.deployment.operations import Graph, saved_list
from jaxlite.deployment.operations.folding import folded
from jaxlite.deployment.operations.patterns import recognized
from jaxlite.deployment.packed.file import pack

MOST = 500_000  # values: half a second of packing where there is a C compiler
_EACH = 1_500  # values that an array takes as long as, beside its own


def packed_size(folder: Path, run: str, values: Mapping[str, Any], about: Mapping[str, str]) -> int:
  """Returns the bytes of the file that `jl.deploy(..., 'pack')` writes of these values.

  Args:
    folder: of the run, with its list of operations.
    run: its id.
    values: the arrays of a checkpoint by path, 'params/...' and 'model_state/...'.
    about: what the file says of itself.

  Returns:
    The bytes; 0 where there is no list, where it cannot be packed, or where that would take long.
  """
  try:
    graph, known = saved_list.saved(folder, run)
    arrays = {name: np.asarray(values[path]) for name, path in known.items()}
    if sum(array.size + _EACH for array in arrays.values()) > MOST:
      return 0
    return len(pack(in_few_bits(folded(graph, arrays)), packed_about(about)))
  except (ValueError, LookupError, TypeError, OSError):  # a report that is whole but for this
    return 0


def in_few_bits(graph: Graph) -> Graph:
  """A list as its files are written from it: in integers where it trained in few bits and they can be had."""
  if not any(one.kind == 'round' for one in graph.operations):
    return recognized(graph)
  try:
    return quantized(graph)
  except ValueError:
    return recognized(graph)
