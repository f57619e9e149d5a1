"""A network as one C99 file without dependencies: for microcontrollers, other languages and the web."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxlite.deployment.c.source import c_source
from jaxlite.deployment.operations import Graph
from jaxlite.host.files import write_text


class CFile(NamedTuple):
  """What was written.

  Attributes:
    path: of the file.
    name: what every name in it begins with: `NAME_predict` answers for one example.
    memory: bytes of static memory that it needs beside its constants.
    constants: bytes of weights and other constants.
    verified: whether it was compiled, run and compared.
    largest: difference of a result from the reference, in units of the outputs; NaN where it was not verified.
  """

  path: Path
  name: str
  memory: int
  constants: int
  verified: bool
  largest: float


def write_c(
  graph: Graph,
  path: str | os.PathLike[str],
  examples: Mapping[str, np.ndarray],
  *,
  about: Mapping[str, str | Sequence[str]] | None = None,
  header: bool = False,
  verify: bool = True,
) -> CFile:
  """Writes a C99 file, compiles it, lets it answer in a process of its own, and keeps it only where it is right.

  `void NAME_predict(const T *input, float *output)` computes one example, `NAME_predict_many` a loop of them. Memory is
  static, its size stands in the file (`NAME_MEMORY`), and nothing is allocated.

  Args:
    graph: of `patterns.recognized`, of floats or of integers.
    path: the file; its name without the end is NAME, where C takes it.
    examples: real inputs by name, [N, ...].
    about: texts, or several, that stand in the file by key, as comments and as constants: class names, units, versions.
    header: write a header beside it, too.
    verify: compile and compare. Without, the result says that nothing was.

  Returns:
    What was written.

  Raises:
    ImportError: there is no C compiler to verify with.
    ValueError: an operation without a rule, sums that may leave int32, or answers that are not those of the network:
      integers that differ, floats that differ by more than rounding. Then no file is there.

  >>> import tempfile
  >>> from jaxlite.deployment.operations.lowering import lower
  >>> from jaxlite.deployment.operations.patterns import recognized
  >>> graph = recognized(lower(lambda p, x: x @ p, np.eye(3, dtype='float32'), np.ones((1, 3), 'float32')))
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   written = write_c(graph, Path(folder, 'net.' + 'c'), {}, about={'classes': ['a', 'b', 'c']}, verify=False)
  >>> written.name, written.memory, written.constants, written.verified
  ('net', 0, 36, False)
  """
  path = Path(path)
  source = c_source(graph, path.stem, about=about)
  largest = float('nan')
  if verify:
    from jaxlite.cpu.kernels.compiler import compiler
    from jaxlite.deployment.c import check as c_check

    found = compiler()
    if found is None:
      raise ImportError(
        'a C file is compiled and compared before it is written, and no C compiler was found: install gcc or clang, '
        'name one in $CC, or give verify=False'
      )
    if not all(len(examples.get(name, ())) for name in graph.inputs):
      raise ValueError(f'a C file is compared on real inputs: give examples of {", ".join(graph.inputs)}, at least one')
    largest = c_check.verify(source, graph, examples, [found, *c_check.FLAGS])
  write_text(path, source.text)
  if header:
    write_text(path.with_suffix('.h'), source.header)
  return CFile(path, source.name, source.memory, source.constants, verify, largest)
