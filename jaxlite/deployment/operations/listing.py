"""The list of operations in a run's folder, so that exports need no model code: list.json, beside program.bin.

It is written where the run begins, without values: those of a checkpoint are put in when it is read. Where a network
cannot be said as a list, the file holds the reason.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from jaxlite.contract import Model, Network, Recipe
from jaxlite.deployment import stablehlo
from jaxlite.deployment.held import Held, read_run
from jaxlite.deployment.load import load
from jaxlite.deployment.operations import Graph, listed
from jaxlite.deployment.operations.folding import surely_unknown
from jaxlite.deployment.operations.lowering import lower, lower_open
from jaxlite.deployment.operations.saved_list import FILE, NoList, filled, read_list
from jaxlite.host.sealed import RUN, Damaged, write_sealed
from jaxlite.tasks.task import Task

_MOST_CAPTURED = 1 << 26  # bytes of arrays that a model captures instead of taking them as parameters


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
    read_list(workdir / FILE, run)
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
    return filled(held)
  except NoList as error:  # the model would not help
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


def _inputs(held: Held) -> Any:
  return jax.tree.unflatten(held.stored.input_tree(), held.stored.inputs())
