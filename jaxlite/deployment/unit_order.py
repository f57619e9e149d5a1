"""Units of a network put in order: it computes the same, and `packed` takes fewer bytes.

Which neuron of a layer is the first means nothing to a network, and so costs bytes for nothing. In order of how many
weights they keep, each is like the one before it, and the coder need not learn each anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.contract import Model, Network, Params, State
from jaxlite.graph import removable
from jaxlite.graph.coupled import Family
from jaxlite.graph.removable import Given
from jaxlite.graph.traces import shapes_of
from jaxlite.trees import Rule

_NEAR = 1e-4  # of the largest output: sums in another order differ by less
_DRAWS = 4  # of weights and inputs: one may leave every unit at zero


def sort_units(
  model: Model,
  params: Params,
  model_state: State | None,
  inputs: Any,
  *,
  rule: Rule = None,
  key: Any = None,
) -> Network:
  """Puts neurons, channels and heads in order of how many of their weights are not zero, the fullest first.

  Which units hang together is read off the program, as `shrink` does. Whether their order means anything (channels in
  groups, say) is tried on weights and inputs drawn at random: where the network would compute something else, units
  stay as they are. Sums are taken in another order, so outputs may differ in their last bits.

  Args:
    model: any Model; its code stays as it is.
    params: its trained parameters.
    model_state: its other arrays; None or {} where it has none.
    inputs: one batch, arrays or shapes [B, ...].
    rule: picks groups by the paths of their members; None takes all.
    key: the root key, where the model draws random numbers in training.

  Returns:
    The network with its arrays in another order.

  >>> def mlp(p, x):
  ...   return jax.nn.relu(x @ p['a']) @ p['b']
  >>> params = {'a': jnp.array([[0.0, 1.0], [0.0, 2.0]]), 'b': jnp.array([[1.0], [-1.0]])}
  >>> model = Model(lambda key, x: (params, {}), lambda p, s, x, **_: (mlp(p, x), s))
  >>> found = sort_units(model, params, None, jnp.ones((1, 2)))
  >>> found.params['a'].tolist(), found.params['b'].tolist()
  ([[1.0, 0.0], [2.0, 0.0]], [[-1.0], [1.0]])
  """
  state = model_state or {}
  given = removable.read(model, params, state, inputs, key, what='sort_units')
  leaves = [np.asarray(leaf) for leaf in given.leaves]
  shapes = shapes_of(inputs)

  @jax.jit
  def forward(leaves: Sequence[Any], inputs: Any) -> Any:
    params, state = given.traces.unflatten(leaves)
    return model.apply(params, state, inputs, train=False, key=None)[0]

  means_nothing = _means_nothing(forward, leaves, shapes)
  for family, chosen in zip(
    given.coupled.families, removable.picked(given, rule, what='sort_units: rule'), strict=True
  ):
    if not chosen or any(len({len(unit[at]) for unit in family.units}) > 1 for at in range(len(family.members))):
      continue
    order = np.argsort(-_kept(given, leaves, family), kind='stable')
    if (order != np.arange(len(order))).any() and means_nothing(family, order):
      leaves = _moved(leaves, family, order)
  found = [
    jnp.asarray(leaf) if isinstance(was, jax.Array) else leaf for leaf, was in zip(leaves, given.leaves, strict=True)
  ]
  return Network(model, *given.traces.unflatten(found))


def _kept(given: Given, leaves: Sequence[np.ndarray], family: Family) -> np.ndarray:
  """How many weights of each unit are not zero."""
  total = np.zeros(len(family.units), np.int64)
  for at, (leaf, axis) in enumerate(family.members):
    if given.is_weight(leaf):
      there = np.count_nonzero(np.moveaxis(leaves[leaf], axis, 0).reshape(leaves[leaf].shape[axis], -1), axis=1)
      total += there[np.array([unit[at] for unit in family.units])].sum(1)
  return total


def _moved(leaves: Sequence[np.ndarray], family: Family, order: np.ndarray) -> list[np.ndarray]:
  """Leaves in which the units of a family stand in another order."""
  out = list(leaves)
  for at, (leaf, axis) in enumerate(family.members):
    entries = np.array([unit[at] for unit in family.units])
    places = np.arange(out[leaf].shape[axis])
    places[entries.reshape(-1)] = entries[order].reshape(-1)
    out[leaf] = np.take(out[leaf], places, axis)
  return out


def _means_nothing(forward: Callable[..., Any], leaves: Sequence[np.ndarray], inputs: Any) -> Callable[..., bool]:
  """Whether a network computes the same with the units of a family in another order: tried on generic numbers."""
  rng = np.random.default_rng(0)

  def outputs(leaves: Sequence[np.ndarray], inputs: Any) -> list[np.ndarray]:
    return [np.asarray(one) for one in jax.tree.leaves(forward(leaves, inputs))]

  def drawn(shape: Sequence[int], dtype: Any, like: np.ndarray | None) -> Any:
    if not jnp.issubdtype(dtype, jnp.floating):
      return rng.integers(0, 2, shape).astype(dtype) if like is None else like
    if like is None or (len(shape) > 1 and (np.asarray(like, np.float32) < 0).any()):
      size = 1.0 if like is None else np.prod(shape[:-1]) ** -0.5
      return (size * rng.normal(size=shape)).astype(dtype)
    return rng.uniform(0.5, 1.5, shape).astype(dtype)  # what never is negative, a variance say, may not be

  draws = [
    (
      [drawn(leaf.shape, leaf.dtype, leaf) for leaf in leaves],
      jax.tree.map(lambda one: drawn(one.shape, one.dtype, None), inputs),
    )
    for _ in range(_DRAWS)
  ]
  expected = [outputs(*draw) for draw in draws]
  tells = any((one != first).any() for each in expected for one, first in zip(each, expected[0], strict=True))

  def same(family: Family, order: np.ndarray) -> bool:
    found = [outputs(_moved(values, family, order), examples) for values, examples in draws]
    return tells and all(all(map(_close, *pair)) for pair in zip(expected, found, strict=True))

  return same


def _close(one: Any, other: Any) -> bool:
  """Whether two results are the same but for the order of sums."""
  exact = not jnp.issubdtype(one.dtype, jnp.inexact)
  near = 0 if exact else max(_NEAR, 4 * float(jnp.finfo(one.dtype).eps))
  one, other = (np.asarray(each, np.float64) for each in (one, other))
  return bool(np.abs(one - other).max(initial=0) <= near * np.abs(one).max(initial=0))
