"""The list of operations in a run's folder, so that exports need no model code: list.json, beside program.bin.

It is written where the run begins, without values: those of a checkpoint are put in when it is read. Where a network
cannot be said as a list, the file holds the reason.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlite.contract import Model, Network, Recipe
from jaxlite.deployment import stablehlo
from jaxlite.deployment.load import Held, load, read_run
from jaxlite.deployment.operations import Graph, listed
from jaxlite.deployment.operations.folding import folded, surely_unknown
from jaxlite.deployment.operations.lowering import lower, lower_open
from jaxlite.host.sealed import RUN, Damaged, read_sealed, write_sealed
from jaxlite.tasks.task import Task

FILE = 'list.json'  # in a run's folder
_MOST_CAPTURED = 1 << 26  # bytes of arrays that a model captures instead of taking them as parameters


class _NoList(Damaged):
  """The run wrote down why its network cannot be said as a list."""


def save_list(workdir: Path, model: Model, recipe: Recipe, values: Network, inputs: Any, *, run: str = '') -> str:
  """Writes list.json.

  Args:
    workdir: where.
    model: the Model wrapped in its hooks.
    recipe: its Recipe; what only serves training is left out.
    values: params and model_state, constants among it; shapes are enough.
    inputs: one batch of raw inputs, [B, ...]; shapes are enough.
    run: the id of the run that writes it.

  Returns:
    Why there is no list, in one line, which the file says too; '' where there is one.
  """
  served = stablehlo.served_values(values, recipe)

  def forward(served: dict[str, Any], inputs: Any) -> Any:
    return model.apply(served['params'], served['model_state'], inputs, train=False, key=None)[0]

  told: dict[str, Any] = {}
  try:
    graph, known = lower_open(forward, served, inputs)
    if why := surely_unknown(graph, known):
      raise ValueError(why)
    captured = sum(array.nbytes for array in graph.constants.values())
    if captured > _MOST_CAPTURED:
      raise ValueError(f'the model captures {captured:,} bytes of arrays: make them parameters or state')
    told = {'list': listed.to_json(graph), 'known': known}
  except Exception as error:  # a model that trains must not fail for this
    reason = str(error).strip().splitlines()
    told = {'why': f'{reason[0] if reason else type(error).__name__}'[:500]}
  write_sealed(workdir / FILE, {RUN: run, **told}, indent=None)
  return told.get('why', '')


def list_damage(workdir: Path, run: str) -> str:
  """Returns what is wrong with a run's list.json, in a few words; '' where it is as written."""
  try:
    _read(workdir / FILE, run)
  except Damaged as error:
    return str(error)
  return ''


def graph_of(
  workdir: str | os.PathLike[str],
  which: str | int = 'best',
  *,
  model: Any = None,
  recipe: Recipe | None = None,
  task: Task | None = None,
) -> Graph:
  """Returns the network of a run as a list of operations, the values of a checkpoint in it, preprocessing inside.

  Args:
    workdir: the run's folder.
    which: 'best' by validation, 'latest', or a step that is kept.
    model: what was trained, where the folder holds no list: a run of an older version, or one that was damaged.
    recipe: beside the model, as for `jl.load`.
    task: the run's own, where it is none of jaxlite's.

  Returns:
    The Graph, as `lowering.lower` gives it; its inputs are raw, as in training.

  Raises:
    FileNotFoundError: no run, or no checkpoint, is there.
    ValueError: there is no list and no model, or the network cannot be said as one; the message says why.
  """
  if model is not None:
    held = read_run(workdir, which)
    return network_graph(load(workdir, which, model=model, recipe=recipe, task=task), _inputs(held))
  return graph_of_held(read_run(workdir, which), which, task=task)


def graph_of_held(held: Held, which: str | int = 'best', *, task: Task | None = None) -> Graph:
  """Returns what `graph_of` does without a model, of what was read of a run."""
  fix = 'give model=, and recipe= where it computes in few bits, as for jl.load'
  try:
    return _filled(held)
  except _NoList as error:  # the model would not help
    why, fix = str(error), 'the formats that need no list are stablehlo and safetensors'
  except Damaged as error:
    why = str(error)
  network = load(held.folder, held.step, task=task)
  if getattr(network.model.apply, 'sealed', False):
    raise ValueError(f'the network in {held.folder} is not there as a list of operations ({why}): {fix}')
  return network_graph(network, _inputs(held))


def network_graph(network: Network, inputs: Any) -> Graph:
  """Returns a Network as a list of operations.

  Args:
    network: of `jl.load` with its model, or of a model and values.
    inputs: an example of its raw inputs, arrays or shapes [B, ...].
  """

  def forward(values: Any, inputs: Any) -> Any:
    return network.model.apply(*values, inputs, train=False, key=None)[0]

  return lower(forward, (network.params, network.model_state), inputs)


def saved(folder: Path, run: str) -> tuple[Graph, dict[str, str]]:
  """Returns the list of a run without values, and the paths of its params in a checkpoint by their names in it.

  Raises:
    ValueError: there is none; the message says why.
  """
  found = _read(folder / FILE, run)
  if 'why' in found:
    raise _NoList(found['why'])
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


def _inputs(held: Held) -> Any:
  return jax.tree.unflatten(held.stored.input_tree(), held.stored.inputs())


def _filled(held: Held) -> Graph:
  found = _read(held.folder / FILE, held.run)
  if 'why' in found:
    raise _NoList(found['why'])
  graph = found['list']
  if lost := [path for path in found['known'].values() if path not in held.values]:
    raise Damaged(f'it reads {lost[0][:80]!r}, which the checkpoint does not hold')
  values = {name: np.asarray(held.values[path]) for name, path in found['known'].items()}
  try:
    return folded(graph, values)
  except (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, MemoryError) as error:
    told = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise Damaged(told[:500]) from None


def _read(path: Path, run: str) -> Mapping[str, Any]:
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
