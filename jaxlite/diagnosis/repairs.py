"""What `config.repair` does to a run: to its data, its network, its recipe and its first weights.

Each is one answer to one finding, off unless the config says otherwise, and works on any framework and recipe.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlite import trees
from jaxlite.contract import Last, Model, Recipe, chain, join_const
from jaxlite.data.dataset import Dataset, Split
from jaxlite.data.standardize import standardization
from jaxlite.diagnosis import label_noise, program, reference, twins, watch
from jaxlite.errors import ConfigError, counted
from jaxlite.step.state import TrainState
from jaxlite.step.train_step import Train

_MOST_WEIGHT = 20.0  # of an example of a rare class


def of_data(repair: Any, data: Dataset) -> Dataset:
  """Returns the data as `config.repair` has them, with a note on each thing that was done.

  Args:
    repair: the group of the config.
    data: of the run.

  Raises:
    ConfigError: a repair that these data cannot have.
  """
  if repair.scale:
    mean, std, _ = standardization(_whole(data, 'repair.scale').inputs, True)
    data = data._replace(mean=mean, std=std, notes=(*data.notes, 'repair.scale: inputs are standardized'))
  if repair.leaks:
    train = _whole(data, 'repair.leaks')
    held = [split.inputs for split in (data.validation, data.test) if len(split.labels)]
    rows = twins.twins(train.inputs, held).rows
    data = _weighed(data, rows, 0.0, f'repair.leaks: {counted(len(rows), "training example")} that a held-out split '
                    'has too are left out')  # fmt: skip
  if repair.labels:
    train = _whole(data, 'repair.labels')
    empty = (jax.tree.map(lambda leaf: leaf[:0], train.inputs), train.labels[:0])
    if len(train.labels) > reference.MOST * 4:
      raise ConfigError(
        f'repair.labels looks at {reference.MOST * 4:,} examples at most; there are {len(train.labels):,}'
      )
    quick = reference.reference(data.task.name, data.facts, (train.inputs, train.labels), empty)
    if quick is None or quick.kind == 'tokens':
      raise ConfigError(f'repair.labels has no yardstick for the task {data.task.name} on these inputs: leave it out')
    if quick.kind == 'labels':
      return of_data(dataclasses.replace(repair, scale=False, leaks=False, labels=False), _turned(data, quick))
    rows = label_noise.doubtful(quick)
    data = _weighed(data, rows, 0.0, f'repair.labels: {counted(len(rows), "training example")} whose label fits '
                    'without them contradict are left out')  # fmt: skip
  if repair.balance:
    labels = np.asarray(_whole(data, 'repair.balance').labels)
    if labels.dtype.kind in 'iub' and labels.ndim == 1:
      count = np.bincount(labels)
      each = np.sqrt(len(labels) / np.maximum(count, 1))[labels]
    elif data.task.name == 'multi_label' and labels.ndim == 2:
      has = labels > 0.5
      rarity = np.sqrt(np.maximum(1, (1 - has.mean(0)) / np.maximum(has.mean(0), 1 / len(has))))
      each = np.maximum(1, np.max(has * rarity, axis=1))
    else:
      raise ConfigError(f'repair.balance weighs examples by class; the task {data.task.name} has no class an example')
    each = np.minimum(each / each.mean(), _MOST_WEIGHT)  # the root: in full, what is rare is called too often
    data = _weighed(data, np.arange(len(labels)), each, 'repair.balance: training examples count by how rare their '
                    'class is')  # fmt: skip
  return data


def _turned(data: Dataset, quick: reference.Reference) -> Dataset:
  """The data with those of several labels turned that are contradicted: the others of an example may be right."""
  labels = np.asarray(data.train.labels)
  wrong = label_noise.doubtful_entries(quick).reshape(labels.shape)
  note = f'repair.labels: {counted(int(wrong.sum()), "label")} that fits without them contradict are turned'
  turned = np.where(wrong, 1 - labels, labels).astype(labels.dtype)
  return data._replace(train=data.train._replace(labels=turned), notes=(*data.notes, note))


def _whole(data: Dataset, field: str) -> Split:
  if not isinstance(data.train, Split):
    raise ConfigError(f'{field} looks at every training example; these come from a {type(data.train).__name__}')
  return data.train


def _weighed(data: Dataset, rows: np.ndarray, weight: Any, note: str) -> Dataset:
  own = data.train.weight
  new = np.ones(len(data.train.labels), np.float32) if own is None else np.array(own, np.float32)
  new[rows] *= np.asarray(weight, np.float32)
  if not (new > 0).any():
    raise ConfigError(f'{note}, which leaves none')
  return data._replace(train=data.train._replace(weight=new), notes=(*data.notes, note))


def of_network(repair: Any, network: Model) -> Model:
  """Returns the network as `config.repair` has it: without a last activation where 'logits' says so."""
  if not repair.logits:
    return network

  def apply(params: Any, state: Any, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    call = lambda params, state, inputs, key, step: network.apply(  # noqa: E731
      params, state, inputs, train=train, key=key, step=step)  # fmt: skip
    return program.without_output_activation(call, params, state, inputs, key, step)

  return network._replace(apply=apply)


def of_recipe(repair: Any, recipe: Recipe) -> Recipe:
  """Returns the recipe with what `config.repair` adds: gradients clipped first, updates scaled last.

  Raises:
    ConfigError: no update could be scaled before the parts that come last.
  """
  parts = list(recipe.parts)
  if repair.rate != 1.0:
    at = next((place for place, part in enumerate(parts) if isinstance(part, Last)), len(parts))
    if not any(isinstance(part, optax.GradientTransformation) for part in parts[:at]):
      raise ConfigError('repair.rate scales updates before the parts that come last; here the first of these owns its '
                        'optimizer: change the rate there')  # fmt: skip
    parts.insert(at, optax.scale(repair.rate))
  if repair.clip:
    parts.insert(0, optax.clip_by_global_norm(repair.clip))
  return chain(*parts) if len(parts) != len(recipe.parts) else recipe


def started(train: Train, state: TrainState, batch: Any) -> TrainState:
  """Returns a first state whose layers each answer the first batch with mean 0 and deviation 1.

  Layer by layer, in the order of the program, weights are scaled, and a bias beside them is set against the mean.

  Args:
    train: of the run.
    state: at its start.
    batch: the first.

  Raises:
    ConfigError: a part of the recipe has made values of its own out of the weights.

  References:
    Mishkin and Matas, All you need is a good init, 2016, https://arxiv.org/abs/1511.06422
  """
  if any(trees.is_extra(name) for name in state.params):
    raise ConfigError('repair.start scales the first weights, and parts of the recipe have made values out of them: '
                      'leave it out, or those parts')  # fmt: skip

  def forward(params: Any, full: Any, key: Any, step: Any, inputs: Any) -> Any:
    return train.model.apply(params, full, inputs, train=True, key=key, step=step)[0]

  full = join_const(state.model_state, state.const)
  rest = (full, state.key, state.step, batch['inputs'])
  found = watch.watched(forward, state.params, *rest)
  run = jax.jit(lambda params: found.run(params, *rest)[1])
  params = state.params
  layers = [place for place, site in enumerate(found.sites) if site.kind == 'layer' and ' and ' not in site.name]
  flat = trees.by_path(params)
  done: set[str] = set()
  for place in layers:
    name = found.sites[place].name
    if name in done:
      continue
    done.add(name)
    stats = run(params)[place]
    spread = float(stats['spread'])
    if not np.isfinite(spread) or spread <= 1e-20:
      continue
    scale = 1 / spread
    mean = np.asarray(stats['mean']) * scale
    beside = [path for path in flat if path.rpartition('/')[0] == name.rpartition('/')[0] and path != name]
    bias = next((path for path in beside if flat[path].ndim == 1 and flat[path].size == mean.size), None)

    def changed(
      path: str, leaf: Any, *, name: str = name, scale: float = scale, bias: Any = bias, mean: Any = mean
    ) -> Any:
      if path == name:
        return (leaf * scale).astype(leaf.dtype)
      return jnp.asarray(-mean, leaf.dtype) if path == bias else leaf

    params = trees.map_with_path(changed, params)
  return state._replace(params=params)
