"""Gradual unfreezing: training in phases, each with more leaves that learn.

What is frozen decides the shapes of params, gradients and moments, so a phase is a recipe and a `train_step` of
its own. `next_phase` carries everything from one to the next:

    for rule, steps in zip(unfreezing(['^conv1', '^conv2', '^dense']), (100, 100, 300)):
      train = jl.train_step(model, jl.cross_entropy, jl.chain(*([jl.freeze(rule)] if rule else []), optax.adam(1e-3)))
      state = train.init(key, batch) if state is None else next_phase(state, train, batch)
      for _ in range(steps):
        state, metrics = train.step(state, next(batches))

A run of `jaxlite.train` is one phase: give the weights that it ends with to the next run's model, as start values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite import trees
from jaxlite.contract import Batch
from jaxlite.optim._swa import SwaState
from jaxlite.picking import owned
from jaxlite.tasks import running


def unfreezing(groups: Sequence[str]) -> list[list[str]]:
  """Returns what to freeze in each phase, the last group of layers learning first.

  Args:
    groups: rules on paths, from the input to the output, e.g. ['^conv1', '^conv2', '^dense'].

  Returns:
    A list of rules for `freeze`, one a phase; the last is empty: nothing is frozen, leave `freeze` out.

  Raises:
    ValueError: fewer than two groups: there would be nothing to do gradually.

  References:
    Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, 2018,
    https://arxiv.org/abs/1801.06146

  >>> unfreezing(['^conv1', '^conv2', '^dense'])
  [['^conv1', '^conv2'], ['^conv1'], []]
  """
  if isinstance(groups, str) or len(groups) < 2:
    raise ValueError(f'unfreezing takes two groups of layers or more, from input to output; got {groups!r}')
  return [list(groups[:count]) for count in range(len(groups) - 1, -1, -1)]


def next_phase(before: Any, train: Any, batch: Batch, *, freeze: str = 'freeze') -> Any:
  """Carries a run into a phase that freezes other leaves.

  Every weight keeps its value, whether it was learning or frozen and whichever it is now. Step, key, batch
  statistics, what hooks keep and the optimizer's state of leaves that were learning go on; a leaf that learns
  from now on begins with the first values of each. Counts go on too, and schedules with them.

  Args:
    before: the TrainState that a phase ended with; it stays usable.
    train: the Train of the next phase: the same model, and the same update parts.
    batch: any batch, as for `train.init`.
    freeze: the name of the freezing hook in both recipes.

  Returns:
    The TrainState that the next phase begins with.

  Raises:
    ValueError: the optimizer's state of a leaf that goes on learning does not fit the new recipe.
  """
  own = {name: value for name, value in before.params.items() if not trees.is_extra(name)}
  weights = jax.tree.map(jnp.copy, trees.merge(own, before.const.get(freeze, {})))
  statistics = {name: value for name, value in before.model_state.items() if not trees.is_extra(name)}
  fresh = train.init(before.key, batch, weights, statistics)
  kept = _carried(before.model_state, fresh.model_state)
  return fresh._replace(
    step=jnp.copy(before.step),
    params=_carried(before.params, fresh.params),
    model_state={name: _stood_still(value, before.model_state.get(name), fresh.params) for name, value in kept.items()},
    opt_state=_optimizer(before, fresh),
    const={owner: _whole(before.const.get(owner), value) for owner, value in fresh.const.items()},
  )


def _optimizer(before: Any, fresh: Any) -> Any:
  learned, learns = set(trees.paths(before.params)), trees.paths(fresh.params)
  old = trees.by_path(before.opt_state)
  owners = owned(trees.paths(fresh.opt_state), frozenset(learns))

  def leaf(path: str, own: Any) -> Any:
    if _fits(old, path, own):
      return jnp.copy(old[path])
    owner = owners.get(path)
    if owner is None or owner in learned:
      what = f'had shape {jnp.shape(old[path])}, now {jnp.shape(own)}' if path in old else 'is new'
      raise ValueError(
        f'next_phase: the optimizer goes on, but its {path!r} {what}: keep the update parts as they were'
      )
    return own

  return trees.map_with_path(leaf, fresh.opt_state)


def _carried(before: Any, fresh: Any) -> Any:
  """The old value of every leaf that was there already: an average has more leaves once more of them learn."""
  old = trees.by_path(before)
  return trees.map_with_path(lambda path, own: jnp.copy(old[path]) if _fits(old, path, own) else own, fresh)


def _stood_still(kept: Any, before: Any, params: Any) -> Any:
  """A mean over steps goes on with its count: of a leaf that was frozen in all of them it is that leaf."""
  if not isinstance(kept, SwaState) or not isinstance(before, SwaState):
    return kept
  old, weights = trees.by_path(before.mean), trees.by_path(params)

  def leaf(path: str, mean: Any) -> Any:
    return mean if _fits(old, path, mean) or path not in weights else jnp.copy(running.widened(weights[path]))

  return kept._replace(mean=trees.map_with_path(leaf, kept.mean))


def _whole(old: Any, own: Any) -> Any:
  """Constants of one owner: a teacher goes on as it was; what is frozen now was not all frozen before."""
  alike = jax.tree.structure(old) == jax.tree.structure(own)
  return jax.tree.map(jnp.copy, old) if alike else own


def _fits(old: dict[str, Any], path: str, own: Any) -> bool:
  return path in old and jnp.shape(old[path]) == jnp.shape(own) and old[path].dtype == own.dtype
