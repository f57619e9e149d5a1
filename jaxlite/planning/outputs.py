"""What is asked of a network before it is linearized: its outputs for some examples, and whether each is its own.

What the forecast of a loss cannot be made of is refused here, by looking at what the network gives, not at its parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.data.dataset import Split

_AT_ONCE = 32  # examples in a forward pass
_EQUAL = 1e-3  # of the size of outputs
_MOST_OUTPUTS = 4096  # of an example


class UnpredictableError(ValueError):
  """What trains is not what a linearized network tells of; the message says why."""


class Subject(NamedTuple):
  """What is trained, as the forecast sees it.

  Attributes:
    apply: (params, model_state, inputs, *, train, key, step) -> (outputs, model_state), with all hooks.
    params: at the start.
    model_state: likewise, constants among it.
    tx: the optimizer.
    weights: what its `init` is told of weights; None for nothing.
    loss: (outputs, batch) -> what is minimized.
    train: the training examples.
    batch_size: of a step.
    total: steps of the run.
    seed: of the run.
  """

  apply: Callable[..., Any]
  params: Any
  model_state: Any
  tx: Any
  weights: Any
  loss: Callable[[jax.Array, Any], jax.Array]
  train: Split
  batch_size: int
  total: int
  seed: int


class Outputs:
  """Passes forward over some examples, and what they show of a network."""

  def __init__(self, subject: Subject):
    self.subject, self.train = subject, subject.train
    count = len(self.train.labels)
    self.size = min(_AT_ONCE, count)
    inputs = self._inputs(np.arange(1))
    found = jax.eval_shape(lambda x: self.evaluated(subject.params, subject.model_state, x), inputs)
    if not hasattr(found, 'shape') or not found.shape or found.shape[0] != 1:
      raise UnpredictableError('each example has one row of outputs, float[B, ...]; this network gives something else')
    if not jnp.issubdtype(found.dtype, jnp.floating) or math.prod(found.shape) > _MOST_OUTPUTS:
      raise UnpredictableError(
        f'each example has few real outputs; this network gives {found.dtype}{list(found.shape[1:])} for one'
      )
    if any(not jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(subject.params)):
      raise UnpredictableError('weights are real numbers; some of these are not')
    self.shape = tuple(found.shape[1:])
    self.run = jax.jit(lambda params, inputs: self.evaluated(params, subject.model_state, inputs))

  def evaluated(self, params: Any, state: Any, inputs: Any) -> Any:
    return self.subject.apply(params, state, inputs, train=False, key=None, step=None)[0]

  def _inputs(self, rows: np.ndarray) -> Any:
    return self.train.take(rows)['inputs']

  def values(self, rows: np.ndarray, params: Any = None) -> np.ndarray:
    """float32[n, C] of some examples."""
    params, found = self.subject.params if params is None else params, []
    for first in range(0, len(rows), self.size):
      some = rows[first : first + self.size]
      filled = np.concatenate([some, np.repeat(rows[:1], self.size - len(some))])
      values = np.asarray(self.run(params, self._inputs(filled)), np.float32)
      found.append(values.reshape(self.size, -1)[: len(some)])
    return np.concatenate(found)

  def _batch(self, rows: np.ndarray) -> Any:
    return {**self.train.take(rows), 'weight': np.ones(len(rows), np.float32)}

  def losses(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The loss of each of some examples, float64[n], of what the network gives for them."""

    @jax.jit
    @jax.vmap
    def one(out: jax.Array, batch: Any) -> jax.Array:
      return self.subject.loss(out.reshape(1, *self.shape), jax.tree.map(lambda leaf: leaf[None], batch))

    return np.asarray(one(values, self._batch(rows)), np.float64)

  def by_output(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """float32[n, C], the gradient of these examples' loss by what the network gives for them."""
    of = lambda out: self.subject.loss(out.reshape(len(out), *self.shape), self._batch(rows))  # noqa: E731
    return np.asarray(jax.grad(of)(jnp.asarray(values)))

  def doubts(self, pool: np.ndarray) -> list[str]:
    """What is not known of a network that trains otherwise than it is evaluated.

    Raises:
      UnpredictableError: an example's outputs depend on the others of its batch.
    """
    subject, key = self.subject, jax.random.key(self.subject.seed)
    rows = np.resize(pool, 6)
    one, other = rows[[0, 1, 2, 3]], rows[[0, 1, 4, 5]]
    if len(pool) < 6:
      other = rows[[0, 1, 0, 0]]

    @jax.jit
    def trained(params: Any, state: Any, inputs: Any, key: Any) -> Any:
      return subject.apply(params, state, inputs, train=True, key=key, step=jnp.int32(0))[0]

    def run(rows: np.ndarray, key: Any) -> np.ndarray:
      found = trained(subject.params, subject.model_state, self._inputs(rows), key)
      return np.asarray(found, np.float32).reshape(len(rows), -1)[:2]

    first, again = run(one, key), run(other, key)
    size = float(np.abs(first).max()) + 1e-6
    if np.abs(first - again).max() > _EQUAL * size:
      raise UnpredictableError(
        'what the network gives for an example depends on the others of its batch (batch norm that trains): of '
        "jl.finetune norm='keep' keeps its statistics"
      )
    if np.abs(first - run(one, jax.random.fold_in(key, 1))).max() > _EQUAL * size:
      return ['what is drawn in training (dropout) is left out: with it the loss falls more slowly']
    if np.abs(first - self.values(one)[:2]).max() > _EQUAL * size:
      return ['the network gives something else in training than in evaluation: the latter is what was looked at']
    return []


def columns(pulls: np.ndarray, wide: int) -> tuple[np.ndarray, float]:
  """Returns the outputs of each example that its loss pulls most, int32[n, wide], and the share of the pull on others.

  Args:
    pulls: float32[n, C], gradients of losses by outputs.
    wide: how many of each.

  >>> columns(np.array([[3.0, 0.0, -1.0]]), 2)
  (array([[0, 2]], dtype=int32), 0.0)
  """
  sizes = np.abs(pulls)
  chosen = np.sort(np.argsort(-sizes, axis=1, kind='stable')[:, :wide], axis=1).astype(np.int32)
  kept = float(np.take_along_axis(sizes, chosen, axis=1).sum())
  return chosen, 1 - kept / max(float(sizes.sum()), 1e-30)
