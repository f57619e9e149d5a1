"""Arrays of one kind, taken together, so that a pass over the leaves of a deep network is compiled sooner.

What XLA compiles it compiles for each leaf, but for a code that several operations share. So equal leaves are stacked,
where that happens rarely: a stack is a copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MOST = 1 << 20  # entries that are put together: what is larger stays apart, its work outweighs its compilation
_LONGEST = 256  # arrays that are put together, by code that grows with them


def groups(leaves: Sequence[Any]) -> list[list[int]]:
  """Groups the positions of arrays of one shape and type; what is sharded stays apart.

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
    own = found.setdefault(_kind(leaf) if _is_whole(leaf) else position, [[]])
    if len(own[-1]) >= most:
      own.append([])
    own[-1].append(position)
  return [group for own in found.values() for group in own]


def first(says: Callable[[jax.Array], jax.Array], leaves: Sequence[jax.Array]) -> jax.Array:
  """Returns the position of the first array that has an entry of which `says` is True, int32[]; how many there are, if
  none has.

  Args:
    says: float[...] -> bool[...], entry by entry.
    leaves: arrays; they are joined, which is a copy, so that one reduction serves many.

  >>> first(jnp.isnan, [jnp.zeros(3), jnp.zeros((2, 2)), jnp.full(3, jnp.nan)]).tolist()
  2
  """
  none, found = np.int32(len(leaves)), []
  for chunk in _chunks(leaves):
    joined = _joined([leaves[i] for i in chunk])
    if len(chunk) == 1:
      found.append(jnp.where(jnp.any(says(joined)), np.int32(chunk[0]), none))
      continue
    said, nowhere = says(joined), np.int32(joined.size)
    place, some = _reduced(
      (jnp.where(said, jax.lax.iota(jnp.int32, joined.size), nowhere), said.astype(jnp.int32)),
      (nowhere, np.int32(0)),
      (jnp.minimum, jnp.maximum),
    )
    ends = np.cumsum([leaves[i].size for i in chunk], dtype=np.int32)
    own = jax.lax.dynamic_index_in_dim(np.array(chunk, np.int32), jnp.argmax(place < ends), keepdims=False)
    found.append(jnp.where(some > 0, own, none))
  return functools.reduce(jnp.minimum, found, jnp.int32(none))


def count(says: Callable[..., jax.Array], *columns: Sequence[jax.Array]) -> jax.Array:
  """Returns of how many entries `says` is True, int32[], over all arrays.

  Args:
    says: entry by entry, of an array of each column.
    *columns: arrays, equally many in each and of equal shapes.

  >>> count(lambda a, b: a > b, [jnp.ones(3), jnp.ones((2, 2))], [jnp.zeros(3), jnp.ones((2, 2))]).tolist()
  3
  """
  total = jnp.zeros((), jnp.int32)
  for chunk in _chunks(*columns):
    said = says(*(_joined([column[i] for i in chunk]) for column in columns)).astype(jnp.int32)
    if not _is_whole(said):
      total += jnp.sum(said)
      continue
    number, some = _reduced((said, said), (np.int32(0), np.int32(0)), (jnp.add, jnp.maximum))
    total += jnp.where(some > 0, number, 0)
  return total


def _joined(leaves: Sequence[jax.Array]) -> jax.Array:
  return jnp.concatenate([leaf.reshape(-1) for leaf in leaves]) if len(leaves) > 1 else leaves[0]


def _reduced(columns: tuple[Any, ...], starts: tuple[Any, ...], fns: tuple[Any, ...]) -> list[Any]:
  """Several reductions of whole arrays in one, each of which is to be read.

  XLA:CPU compiles such a one together with what makes its operands, and a single one in several pieces of code.
  """
  merge = lambda one, other: tuple(fn(a, b) for fn, a, b in zip(fns, one, other, strict=True))  # noqa: E731
  return jax.lax.reduce(columns, starts, merge, tuple(range(columns[0].ndim)))


def _chunks(*columns: Sequence[jax.Array]) -> list[list[int]]:
  """Positions of arrays of one type that are not sharded, in order, a few entries and arrays; of others, each alone."""
  found: dict[Any, list[list[int]]] = {}
  sizes: dict[Any, int] = {}
  for position, row in enumerate(zip(*columns, strict=True)):
    kind = tuple(_kind(leaf)[1:] for leaf in row) if all(map(_is_whole, row)) else position
    sizes[kind] = sizes.get(kind, 0) + row[0].size
    if kind not in found or sizes[kind] > _MOST or len(found[kind][-1]) >= _LONGEST:
      found.setdefault(kind, []).append([])
      sizes[kind] = row[0].size
    found[kind][-1].append(position)
  return [chunk for own in found.values() for chunk in own]


def once(when: Any, fn: Callable[[Any], Any], carry: Any) -> tuple[jax.Array, Any]:
  """Returns `fn(carry)` where `when` is True, else `carry`: a conditional, written as a loop of at most one turn.

  What a loop carries XLA keeps in place, and what it reads it leaves where it is; what passes through a conditional it
  copies, on either side and at every step, and takes longer to compile with each array that does.

  Args:
    when: bool[].
    fn: carry -> carry, of the same types.
    carry: pytree of arrays.

  Returns:
    (False by now, though a compiler does not know it, for `following`; the carry).

  >>> [once(when, lambda x: x + 1, jnp.int32(1))[1].item() for when in (True, False)]
  [2, 1]
  """

  def turn(state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
    # A constant: so XLA sees that no second turn comes, and does not make ahead of the loop what is the same in each.
    return jnp.zeros_like(state[0]), fn(state[1])

  return jax.lax.while_loop(lambda state: state[0], turn, (jnp.asarray(when), carry))


def following(running: jax.Array, tree: Any) -> Any:
  """Returns the same arrays, made after a loop of `once` has ended.

  What the loop reads may then be written over in place, by what is computed from these. Without an order between the
  two XLA copies it at every step, whether the loop runs or not.

  Args:
    running: bool[], of `once`.
    tree: pytree of arrays.

  >>> following(once(True, lambda x: -x, jnp.ones(()))[0], jnp.array([1.0, -0.0])).tolist()
  [1.0, -0.0]
  """
  return jax.tree.map(lambda leaf: jax.lax.select(running, jax.lax.neg(leaf), leaf), tree)


def _is_whole(leaf: Any) -> bool:
  return not any(getattr(getattr(jax.typeof(leaf), 'sharding', None), 'spec', None) or ())


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
  cut = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False, allow_negative_indices=False)
  return [cut(stack, place) for place in places]


def _kind(leaf: Any) -> Any:
  aval = jax.typeof(leaf)
  return aval.shape, aval.dtype, str(getattr(aval, 'manual_axis_type', ''))
