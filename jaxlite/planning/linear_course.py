"""The course of a loss where a linearized network is trained: the recipe's own optimizer, step by step, no network.

The optimizer is the very transformation that the run will have, on a tree whose leaves hold the coordinates that were
kept. Whatever treats each entry by itself (SGD with momentum, Adam, decay, schedules, rates by path) does there what it
does in the run. A leaf that is not kept whole has one entry more, as large as all that is left out, so that norms are
those of the whole. Whether an optimizer may be judged so is seen by comparing, on the parameters themselves
(`apart`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.planning.linearized import Coordinates, Linearized
from jaxlite.planning.outputs import UnpredictableError

_CHECKED = 3  # updates


class Course(NamedTuple):
  """The loss of all examples in the course of training.

  Attributes:
    steps: int[n], after so many.
    losses: float[n].
    moved: float32[S], where the coordinates were in the end, beyond their start.
  """

  steps: np.ndarray
  losses: np.ndarray
  moved: np.ndarray

  def reached(self, target: float) -> float:
    """Returns the step at which the loss first is no more than a target, between two points where it is; inf: never."""
    below = np.flatnonzero(self.losses <= target)
    if not below.size:
      return float('inf')
    at = int(below[0])
    if at == 0 or self.steps[at] - self.steps[at - 1] == 1:
      return float(self.steps[at])
    before, after = self.losses[at - 1], self.losses[at]
    share = (before - target) / max(before - after, 1e-30)
    return float(self.steps[at - 1] + share * (self.steps[at] - self.steps[at - 1]))


def course(
  found: Linearized,
  tx: Any,
  weights: Any,
  loss: Callable[[jax.Array, Any], jax.Array],
  batch: Any,
  rows: np.ndarray,
  shares: np.ndarray,
  *,
  every: int = 1,
  target: float = -np.inf,
) -> Course:
  """Trains a linearized network.

  Args:
    found: the network.
    tx: the optimizer, as a recipe has it.
    weights: what its `init` is told of weights; None for nothing.
    loss: (outputs [B, ...], batch) -> what is minimized.
    batch: the examples, [N, ...]; a 'weight' is each one's own.
    rows: int[T, B], which examples stand in each step's batch.
    shares: float32[T, B], the weight of each beside its own; 0 is padding.
    every: steps between points of the course.
    target: training ends where the loss has come below.
  """
  build = _builder(found.coordinates)
  own = jnp.asarray(batch['weight']) if batch.get('weight') is not None else jnp.ones(len(found.outputs), jnp.float32)
  # Arguments of the programs: as constants of them they would be folded, at length.
  fixed = {
    **{name: jnp.asarray(getattr(found, name)) for name in ('gradients', 'outputs', 'columns', 'start')},
    'counts': jnp.asarray(found.coordinates.counts),
    'batch': {**jax.tree.map(jnp.asarray, dict(batch)), 'weight': own},
  }

  def of(values: jax.Array, given: Any) -> jax.Array:
    return loss(values.reshape(len(values), *found.shape), given)

  def placed(fixed: Any, move: jax.Array, gradients: jax.Array, outputs: jax.Array, columns: jax.Array) -> jax.Array:
    change = jnp.einsum('bks,s->bk', gradients, move * fixed['counts'])
    return outputs + jnp.zeros_like(outputs).at[jnp.arange(len(outputs))[:, None], columns].add(change)

  @jax.jit
  def step(fixed: Any, move: Any, opt_state: Any, rows: Any, share: Any) -> Any:
    gradients, outputs, columns = (fixed[name][rows] for name in ('gradients', 'outputs', 'columns'))
    given = jax.tree.map(lambda leaf: leaf[rows], fixed['batch'])
    given['weight'] = given['weight'] * share
    value, by_output = jax.value_and_grad(of)(placed(fixed, move, gradients, outputs, columns), given)
    chosen = jnp.take_along_axis(by_output, columns, axis=1)
    grads = build(jnp.einsum('bks,bk->s', gradients, chosen), fixed['counts'])
    params = build(fixed['start'] + move, fixed['counts'])
    updates, opt_state = tx.update(grads, opt_state, params, value=value, grad=grads, value_fn=_no_value)
    return move + _flat(found.coordinates, updates), opt_state

  @jax.jit
  def total(fixed: Any, move: Any) -> Any:
    return of(placed(fixed, move, fixed['gradients'], fixed['outputs'], fixed['columns']), fixed['batch'])

  params = build(fixed['start'], fixed['counts'])
  opt_state = tx.init(params) if weights is None else tx.init(params, weights)
  move = jnp.zeros_like(fixed['start'])
  steps, losses = [0], [float(total(fixed, move))]
  for number, (some, share) in enumerate(zip(rows, shares, strict=True), 1):
    move, opt_state = step(fixed, move, opt_state, jnp.asarray(some), jnp.asarray(share))
    if number % every == 0 or number == len(rows):
      steps.append(number)
      losses.append(float(total(fixed, move)))
      if not np.isfinite(losses[-1]) or losses[-1] <= target:
        break
  return Course(np.array(steps), np.array(losses), np.asarray(move))


def _no_value(*_: Any) -> Any:
  raise UnpredictableError('the optimizer asks for losses at other weights, which a linearized network has not')


def _builder(coordinates: Coordinates) -> Callable[[jax.Array, jax.Array], Any]:
  """(float32[S], counts) -> a tree like the parameters: leaves that are kept whole as they are, of others what is kept,
  and one entry as large as all that is not."""

  def build(flat: jax.Array, counts: jax.Array) -> Any:
    leaves, at = [], 0
    for index, shape, size in zip(coordinates.index, coordinates.shapes, coordinates.sizes, strict=True):
      part = flat[at : at + size]
      if index is None:
        leaves.append(part.reshape(shape))
      else:
        left_out = jnp.sqrt(jnp.sum(jnp.square(part) * (counts[at : at + size] - 1)))
        leaves.append(jnp.concatenate([part, left_out[None]]).reshape(-1, *(1,) * (len(shape) - 1)))
      at += size
    return jax.tree.unflatten(coordinates.treedef, leaves)

  return build


def _flat(coordinates: Coordinates, tree: Any) -> jax.Array:
  leaves = zip(jax.tree.leaves(tree), coordinates.sizes, strict=True)
  return jnp.concatenate([leaf.reshape(-1)[:size] for leaf, size in leaves]).astype(jnp.float32)


def apart(coordinates: Coordinates, tx: Any, weights: Any, params: Any, gradients: list[Any]) -> float:
  """Tells how far an optimizer's updates of the coordinates that are kept are from those of the whole parameters.

  Args:
    coordinates: which are kept.
    tx, weights: as `course` takes them.
    params: the whole parameters.
    gradients: trees like them, at least one: they are given one after the other.

  Returns:
    The root of the mean square difference by that of the updates, of the worst of some updates; 0 where all is kept.
  """
  if coordinates.whole:
    return 0.0
  try:
    return _apart(coordinates, tx, weights, params, gradients)
  except UnpredictableError:
    raise
  except Exception as error:  # of whoever wrote the optimizer: it was not made for a sample of weights
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    raise UnpredictableError(f'the optimizer does not run on a sample of the weights ({said})') from error


def _apart(coordinates: Coordinates, tx: Any, weights: Any, params: Any, gradients: list[Any]) -> float:
  build, counts = _builder(coordinates), jnp.asarray(coordinates.counts)
  few = build(jnp.asarray(coordinates.of(params)), counts)
  begin = lambda tree: tx.init(tree) if weights is None else tx.init(tree, weights)  # noqa: E731
  states = begin(params), begin(few)
  worst = 0.0
  for turn in range(_CHECKED):
    grads = gradients[turn % len(gradients)]
    given = (grads, params), (build(jnp.asarray(coordinates.of(grads)), counts), few)
    both = [
      jax.jit(lambda g, s, p: tx.update(g, s, p, value=jnp.float32(1), grad=g, value_fn=_no_value))(g, s, p)
      for (g, p), s in zip(given, states, strict=True)
    ]
    states = both[0][1], both[1][1]
    whole, kept = coordinates.of(both[0][0]), np.asarray(_flat(coordinates, both[1][0]))
    size = float(np.sqrt(np.mean(whole**2)))
    worst = max(worst, float(np.sqrt(np.mean((whole - kept) ** 2))) / max(size, 1e-30)) if size else worst
  return worst
