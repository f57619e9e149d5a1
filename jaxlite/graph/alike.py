"""Arrays of one kind, taken together, so that a pass over the leaves of a deep network is compiled sooner.

What XLA compiles it compiles for each leaf, but for a code that several operations share. So equal leaves are stacked,
where that happens rarely: a stack is a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MOST = 1 << 20  # entries of a stack: what is larger stays apart, its own work outweighs its compilation
_LONGEST = 256


def groups(leaves: Sequence[Any]) -> list[list[int]]:
  """Groups the positions of arrays of one shape, type and sharding.

  Args:
    leaves: arrays.

  Returns:
    Positions, in groups that cover them all, each in order.

  >>> groups([np.ones(3), np.ones((2, 2)), np.ones(3)])
  [[0, 2], [1]]
  """
  found: dict[Any, list[list[int]]] = {}
  for position, leaf in enumerate(leaves):
    most = max(min(_MOST // max(np.size(leaf), 1), _LONGEST), 1)
    own = found.setdefault(_kind(leaf), [[]])
    if len(own[-1]) >= most:
      own.append([])
    own[-1].append(position)
  return [group for own in found.values() for group in own]


def each(fn: Callable[[jax.Array], jax.Array], leaves: Sequence[jax.Array]) -> jax.Array:
  """Returns `fn` of every array, stacked in their order.

  Args:
    fn: of an array, to an array of one shape and type.
    leaves: at least one.

  >>> each(jnp.sum, [jnp.ones(3), jnp.ones((2, 2)), jnp.zeros(3)]).tolist()
  [3.0, 4.0, 0.0]
  """
  found, order = _mapped(fn, leaves)
  return found if order == sorted(order) else found[np.argsort(order)]


def first(fn: Callable[[jax.Array], jax.Array], leaves: Sequence[jax.Array]) -> jax.Array:
  """Returns the position of the first array of which `fn` is True, int32[]; of none, how many there are.

  >>> first(jnp.any, [jnp.zeros(3), jnp.zeros((2, 2)), jnp.ones(3)]).tolist()
  2
  """
  found, order = _mapped(fn, leaves)
  return jnp.min(jnp.where(found, np.array(order, np.int32), np.int32(len(leaves))))


def unstacked(stack: jax.Array, always: jax.Array) -> list[jax.Array]:
  """Returns the slices of a stack, all cut by one code.

  XLA compiles a slice for each place that it begins at. Here places are values that it cannot foresee: they come out of
  a loop of one turn.

  Args:
    stack: [n, ...].
    always: bool[], which is True, though a compiler does not know it.

  >>> [one.tolist() for one in unstacked(jnp.array([[1, 2], [3, 4]]), jnp.array(True))]
  [[1, 2], [3, 4]]
  """
  places = [np.int32(place) for place in range(len(stack))]
  start = (always, [*places[1:], places[0]])
  turn = lambda carry: (jnp.zeros_like(carry[0]), [carry[1][-1], *carry[1][:-1]])  # noqa: E731
  _, places = jax.lax.while_loop(lambda carry: carry[0], turn, start)
  return [jax.lax.dynamic_index_in_dim(stack, place, keepdims=False) for place in places]


def _mapped(fn: Callable[[jax.Array], jax.Array], leaves: Sequence[jax.Array]) -> tuple[jax.Array, list[int]]:
  """What `fn` gives, stacked, and of which positions."""
  found, order = [], []
  for group in groups(leaves):
    stack = jnp.stack([leaves[i] for i in group]) if len(group) > 1 else leaves[group[0]][None]
    found.append(jax.vmap(fn)(stack))
    order += group
  return jnp.concatenate(found), order


def _kind(leaf: Any) -> Any:
  aval = jax.typeof(leaf)
  return aval.shape, aval.dtype, str(getattr(aval, 'sharding', '')), str(getattr(aval, 'manual_axis_type', ''))
