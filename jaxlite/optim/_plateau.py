"""A learning rate that falls when validation stops improving."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlite import trees
from jaxlite.contract import Account
from jaxlite.errors import counted, number, whole
from jaxlite.optim._penalties import where_fractions


class PlateauState(NamedTuple):
  """State of `plateau`: scalars on the device, its arguments among them, so that `observe_score` needs no more.

  Attributes:
    scale: float32[], what updates are multiplied by now.
    best: float32[], the best score seen; -inf before the first.
    wait: int32[], scores since that were no better.
    cooldown: int32[], scores that are still ignored after a fall.
    observed: int32[], scores seen in all.
    rule: factor, patience, cooldown, min_delta and floor, as given.
  """

  scale: jax.Array
  best: jax.Array
  wait: jax.Array
  cooldown: jax.Array
  observed: jax.Array
  rule: dict[str, jax.Array]

  def account(self, params: Any) -> Account:
    """Tells how many scores were heard, and the scale that came of them."""
    seen, scale = int(np.max(self.observed)), float(np.mean(self.scale))
    left = '' if seen else 'it heard no score, so it never lowered the rate: validate, or leave it out'
    return Account(f'{counted(seen, "score")} seen', f'updates are multiplied by {scale:g} at the end', left)

  def hear(self, score: Any) -> PlateauState:
    """Returns the state after one more score, larger is better; of a vmapped state one for all, or one each."""
    if np.shape(score) not in ((), np.shape(self.scale)):
      raise ValueError(f'plateau hears one score, a number; got {list(np.shape(score))}: give its mean')
    if isinstance(score, str) or score is None:
      raise TypeError(f'plateau hears one score, a number; got {score!r}')
    return _observe(self, score)


def plateau(
  factor: float = 0.1, patience: int = 10, *, cooldown: int = 0, min_delta: float = 0.0, floor: float = 0.0
) -> optax.GradientTransformationExtraArgs:
  """Multiplies updates by a scale that falls by `factor` once more than `patience` validations brought nothing.

  Stands after the optimizer, before `prune`. Updates do not move the scale: `observe_score` does, after each
  validation; `jaxlite.train` calls it with its validation metric. In a loop of your own:
  `state._replace(opt_state=observe_score(state.opt_state, score))`.

  Args:
    factor: what the scale is multiplied by at a fall, in (0, 1).
    patience: validations without improvement that are borne; the next one makes it fall.
    cooldown: validations after a fall in which waiting does not begin.
    min_delta: what a score must exceed the best by to be an improvement, in its own units, at least 0.
    floor: the least scale, in [0, 1).

  Returns:
    An Optax transformation.

  Raises:
    ValueError: an argument out of its range.

  References:
    The rule is that of `torch.optim.lr_scheduler.ReduceLROnPlateau` (mode 'max', an absolute threshold),
    https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ReduceLROnPlateau.html

  >>> tx = optax.chain(optax.sgd(1.0), plateau(0.5, patience=0))
  >>> state = tx.init({'w': jnp.zeros(1)})
  >>> for accuracy in (0.6, 0.7, 0.7):
  ...   state = observe_score(state, accuracy)
  >>> tx.update({'w': jnp.ones(1)}, state)[0]['w'].tolist()
  [-0.5]
  """
  factor = number(factor, 'plateau: factor')
  min_delta = number(min_delta, 'plateau: min_delta')
  floor = number(floor, 'plateau: floor')
  if not 0 < factor < 1:
    raise ValueError(f'plateau: factor is what the scale is multiplied by at a fall, in (0, 1); got {factor}')
  patience = whole(patience, 'plateau: patience', least=0)
  cooldown = whole(cooldown, 'plateau: cooldown', least=0)
  if not (min_delta >= 0 and math.isfinite(min_delta)):
    raise ValueError(f'plateau: min_delta is at least 0, in the units of the metric; got {min_delta}')
  if not 0 <= floor < 1:
    raise ValueError(f'plateau: floor is the least scale, in [0, 1); got {floor}')

  def init(params: Any) -> PlateauState:
    del params
    rule = {'factor': factor, 'min_delta': min_delta, 'floor': floor}
    counts = {'patience': patience, 'cooldown': cooldown}
    return PlateauState(
      scale=jnp.ones((), jnp.float32),
      best=jnp.full((), -jnp.inf, jnp.float32),
      wait=jnp.zeros((), jnp.int32),
      cooldown=jnp.zeros((), jnp.int32),
      observed=jnp.zeros((), jnp.int32),
      rule={**{k: jnp.float32(v) for k, v in rule.items()}, **{k: jnp.int32(v) for k, v in counts.items()}},
    )

  def update(updates: Any, state: PlateauState, params: Any = None, **_: Any) -> tuple[Any, PlateauState]:
    del params
    return where_fractions(lambda leaf, _: leaf * state.scale.astype(leaf.dtype), updates, updates), state

  return optax.GradientTransformationExtraArgs(init, update)


def observe_score(tree: Any, score: Any) -> Any:
  """Tells one validation score, larger is better, to every state in a tree that has a method `hear`: a `plateau`'s.

  Args:
    tree: any pytree, e.g. `TrainState.opt_state`; where nothing hears it comes back as it is.
    score: float[]; give the negative of a loss. NaN is no improvement.

  Returns:
    The tree, of the same structure, shapes and dtypes.

  >>> state = observe_score(plateau(0.5, 1).init({}), 0.3)
  >>> float(state.scale), round(float(state.best), 2), int(state.wait)
  (1.0, 0.3, 0)
  """

  def hears(node: Any) -> bool:
    return callable(getattr(type(node), 'hear', None))

  def inside(node: Any) -> bool:
    return node is not tree and hears(node)

  # What stands inside a state that hears is told first, so that the outer one knows it as it is now.
  told = jax.tree.map(lambda node: observe_score(node, score) if inside(node) else node, tree, is_leaf=inside)
  if not hears(told):
    return told
  # NNX's Optimizer keeps each array in a box; the boxes come back.
  heard = jax.tree.map(lambda box: jax.tree.leaves(box)[0], told, is_leaf=trees.is_variable).hear(score)
  return jax.tree.unflatten(jax.tree.structure(told), jax.tree.leaves(heard))


@jax.jit
def _observe(state: PlateauState, score: Any) -> PlateauState:
  rule, score = state.rule, jnp.asarray(score, jnp.float32)
  better = score > state.best + rule['min_delta']
  cooling = state.cooldown > 0
  wait = jnp.where(better | cooling, 0, state.wait + 1)
  falls = wait > rule['patience']
  return PlateauState(
    scale=jnp.where(falls, jnp.maximum(state.scale * rule['factor'], rule['floor']), state.scale),
    best=jnp.where(better, score, state.best),
    wait=jnp.where(falls, 0, wait),
    cooldown=jnp.where(falls, rule['cooldown'], jnp.maximum(state.cooldown - 1, 0)),
    observed=state.observed + 1,
    rule=rule,
  )
