"""The list of operations in a run's folder, as it is read: without values, open, or with those of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlite.deployment.held import Held
from jaxlite.deployment.operations import Graph, listed
from jaxlite.deployment.operations.folding import folded
from jaxlite.host.sealed import Damaged, read_sealed

FILE = 'list.json'  # in a run's folder


class NoList(Damaged):
  """The run wrote down why its network cannot be said as a list."""


def saved(folder: Path, run: str) -> tuple[Graph, dict[str, str]]:
  """Returns the list of a run without values, and the paths of its params in a checkpoint by their names in it.

  Raises:
    ValueError: there is none; the message says why.
  """
  found = read_list(folder / FILE, run)
  if 'why' in found:
    raise NoList(found['why'])
  return found['list'], found['known']


def open_list(held: Held) -> tuple[Graph, dict[str, str]]:
  """Returns the list of a run with its weights left open, and their paths in the checkpoint by their names in it.

  What is one number is put in, so that a choice which it makes is made.

  Args:
    held: what was read of the run.

  Raises:
    ValueError: there is none; the message says why.
  """
  graph, paths = saved(held.folder, held.run)
  known = {name: path for name, path in paths.items() if path in held.values}
  arrays = {name: np.asarray(held.values[path]) for name, path in known.items() if np.size(held.values[path]) == 1}
  graph = folded(graph, arrays, partly=True)
  read = {name for one in graph.operations for name in one.inputs} | {*graph.outputs}
  return graph, {name: path for name, path in known.items() if name in read and name not in graph.constants}


def filled(held: Held) -> Graph:
  """Returns the list of a run with the values of a checkpoint in it.

  Raises:
    Damaged: there is none, or it does not fit; NoList where the run says why there is none.
  """
  found = read_list(held.folder / FILE, held.run)
  if 'why' in found:
    raise NoList(found['why'])
  graph = found['list']
  if lost := [path for path in found['known'].values() if path not in held.values]:
    raise Damaged(f'it reads {lost[0][:80]!r}, which the checkpoint does not hold')
  values = {name: np.asarray(held.values[path]) for name, path in found['known'].items()}
  try:
    return folded(graph, values)
  except (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, MemoryError) as error:
    told = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise Damaged(told[:500]) from None


def read_list(path: Path, run: str) -> Mapping[str, Any]:
  """What a file says: 'why', or 'list' as a Graph and 'known'."""
  if not path.exists():
    raise Damaged(f'{path.name} is missing')
  found = read_sealed(path, run)
  if 'why' in found:
    if not isinstance(found['why'], str):
      raise Damaged('its reason is no text')
    return found
  known = found.get('known')
  if not isinstance(known, dict) or not all(isinstance(one, str) for one in known.values()):
    raise Damaged('it does not name its params')
  return {'list': listed.of_json(found.get('list'), known), 'known': known}
