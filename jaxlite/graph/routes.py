"""How a leaf reaches the contractions that multiply it, where it is only moved on its way.

A contraction whose operand is a leaf, cut, turned and reshaped and nothing else, can be taken in another form: from
what the leaf is stored as, or as two thin products where a product of factors is added to the leaf (low rank). Here a
program is read for such leaves, and the axes of an operand are told in terms of the leaf's own. Whatever else happens
to a leaf (it is masked, rounded, looked up, returned) is told with the reason.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite.graph import provenance, walk
from jaxlite.graph.contractions import CONTRACTIONS
from jaxlite.graph.layouts import LeafLayout

Moves = tuple[tuple[Any, ...], ...]  # hashable: what is done, and its numbers


class Route(NamedTuple):
  """How a leaf reaches an operand.

  Attributes:
    path: of the leaf.
    depth: how many scans cut a slice off its leading axes, one after another.
    moves: what is done to that slice.
  """

  path: str
  depth: int = 0
  moves: Moves = ()

  def then(self, *move: Any) -> Route:
    """Returns the route with one more move."""
    return self._replace(moves=(*self.moves, move))


class Routes(NamedTuple):
  """What a program does with some leaves.

  Attributes:
    sites: by the name of a contraction that multiplies such a leaf by an activation, the way there.
    others: by path of the leaf, what else the program does with it, in a few words.
  """

  sites: dict[str, Route]
  others: dict[str, str]

  def whole(self) -> frozenset[str]:
    """Returns the leaves that are only moved and multiplied, at one site at least."""
    return frozenset(route.path for route in self.sites.values()) - self.others.keys()


def read(jaxpr: Any, plan: provenance.Plan, leaves: Sequence[str | None]) -> Routes:
  """Follows leaves through a program.

  Args:
    jaxpr: closed or open.
    plan: what `provenance.read` gave for it.
    leaves: for each of its inputs the path of a leaf to follow, or None.

  >>> import jax.numpy as jnp
  >>> closed = jax.make_jaxpr(lambda w, x: x @ w.T)(jnp.ones((5, 3)), jnp.ones((2, 3)))
  >>> plan = provenance.read(closed, [provenance.weight('w'), provenance.DATA])
  >>> read(closed, plan, ['w', None]).sites
  {'w': Route(path='w', depth=0, moves=(('transpose', (1, 0)),))}
  """
  found = Routes({}, {})
  given = [None if path is None else Route(path) for path in leaves]
  for route in _follow(jaxpr, plan, given, found):
    if route is not None:
      found.others.setdefault(route.path, 'the program returns it')
  return found


def _follow(jaxpr: Any, plan: provenance.Plan, given: Sequence[Route | None], found: Routes) -> list[Route | None]:
  bare, _ = walk.opened(jaxpr)
  env: dict[Any, Route] = {var: route for var, route in zip(bare.invars, given, strict=True) if route is not None}

  def route_of(atom: Any) -> Route | None:
    return None if hasattr(atom, 'val') else env.get(atom)

  for index, eqn in enumerate(bare.eqns):
    operands = [route_of(atom) for atom in eqn.invars]
    if not any(operands):
      continue
    site, inner, name = plan.sites.get(index), plan.inner.get(index, ()), eqn.primitive.name
    out: list[Route | None] = [None] * len(eqn.outvars)
    if site is not None:
      _at_site(site, operands, found)
    elif name == 'scan' and inner:
      _into_scan(eqn, inner[0], operands, found)
    elif name == 'cond' and inner:
      ways = zip(eqn.params['branches'], inner, strict=True)
      branches = [_follow(branch, own, operands[1:], found) for branch, own in ways]
      out = _agreed(branches, found)
    elif name in walk.CALLS and inner and name != 'shard_map' and not name.startswith('custom_'):
      out = _follow(eqn.params[walk.CALLS[name]], inner[0], operands, found)
    elif name == 'optimization_barrier':
      out = operands
    elif len(eqn.invars) == 1 and operands[0] is not None and (moved := _moved(eqn, operands[0])) is not None:
      out = [moved]
    else:
      _lose(operands, f'{name}', found)
    env.update({var: route for var, route in zip(eqn.outvars, out, strict=True) if route is not None})
  return [route_of(atom) for atom in bare.outvars]


def _at_site(site: provenance.Site, operands: Sequence[Route | None], found: Routes) -> None:
  route = operands[site.side] if site.side is not None and len(operands) == 2 else None
  clear = route is not None and operands[1 - site.side] is None  # type: ignore[operator]
  if not clear or route is None or site.why_not or site.custom or site.kind not in CONTRACTIONS:
    _lose(operands, site.why_not or f'{site.kind} in a form of its own', found)
  elif route.depth != len(site.lengths) or found.sites.setdefault(site.name, route) != route:
    _lose(operands, 'branches or loops that take it in different ways', found)


def _into_scan(eqn: Any, plan: provenance.Plan, operands: Sequence[Route | None], found: Routes) -> None:
  num_consts, num_carry = walk.scan_layout(eqn)
  split = num_consts + num_carry
  _lose(operands[num_consts:split], 'a loop carries it', found)
  into: list[Route | None] = [*operands[:num_consts], *[None] * num_carry]
  for route in operands[split:]:
    if route is not None and all(move[0] == 'convert' for move in route.moves):
      into.append(route._replace(depth=route.depth + 1))
    else:
      _lose([route], 'a loop over what it was turned into', found)
      into.append(None)
  _lose(_follow(eqn.params['jaxpr'], plan, into, found), 'a loop returns it', found)


def _agreed(branches: Sequence[Sequence[Route | None]], found: Routes) -> list[Route | None]:
  out: list[Route | None] = []
  for several in zip(*branches, strict=True):
    same = all(one == several[0] for one in several)
    if not same:
      _lose(several, 'a branch returns it', found)
    out.append(several[0] if same else None)
  return out


def _lose(routes: Sequence[Route | None], why: str, found: Routes) -> None:
  for route in routes:
    if route is not None:
      found.others.setdefault(route.path, why)


def _moved(eqn: Any, route: Route) -> Route | None:
  """The way on through an equation that only moves; None where it does more."""
  name, params = eqn.primitive.name, eqn.params
  own, shape = eqn.invars[0].aval.shape, getattr(eqn.outvars[0].aval, 'shape', ())
  if name in ('copy', 'copy_p', 'name', 'sharding_constraint'):
    return route
  if name == 'transpose':
    return route.then('transpose', tuple(params['permutation']))
  if name == 'squeeze' or (name == 'reshape' and params.get('dimensions') is None):
    return route.then('reshape', tuple(shape))
  if name == 'broadcast_in_dim' and math.prod(own) == math.prod(shape) and len(eqn.invars) == 1:
    return route.then('reshape', tuple(shape))  # axes of length 1 alone are new, and none changes places
  if name == 'slice':
    numbers = (params['start_indices'], params['limit_indices'], params['strides'] or (1,) * len(own))
    return route.then('slice', *(tuple(one) for one in numbers))
  if name == 'rev':
    return route.then('rev', tuple(params['dimensions']))
  if name == 'convert_element_type' and jnp.issubdtype(params['new_dtype'], jnp.floating):
    return route.then('convert', str(jnp.dtype(params['new_dtype'])))
  return None


def moved(leaf: Any, moves: Moves) -> Any:
  """Returns an array after moves; `convert` does nothing to integers, such as indices.

  >>> moved(np.arange(6).reshape(2, 3), (('transpose', (1, 0)), ('slice', (1, 0), (3, 1), (1, 1)))).tolist()
  [[1], [2]]
  """
  numpy = isinstance(leaf, np.ndarray)
  for kind, *numbers in moves:
    if kind == 'transpose':
      leaf = leaf.transpose(numbers[0])
    elif kind == 'reshape':
      leaf = leaf.reshape(numbers[0])
    elif kind == 'slice' and numpy:
      leaf = leaf[tuple(map(slice, *numbers))]
    elif kind == 'slice':
      leaf = lax.slice(leaf, *numbers)
    elif kind == 'rev':
      leaf = np.flip(leaf, numbers[0]) if numpy else lax.rev(leaf, numbers[0])
    elif jnp.issubdtype(leaf.dtype, jnp.floating):
      leaf = leaf.astype(numbers[0])
  return leaf


# --- a leaf as matrices: [*stack, summed, outputs] -------------------------------------------------


class Matrix(NamedTuple):
  """How the axes of a leaf make matrices that are multiplied from the left by inputs.

  Attributes:
    shape: of the leaf.
    summed: its axes that a contraction sums over, in the order in which they make rows.
    outputs: its axes that become outputs, in the order in which they make columns.
  """

  shape: tuple[int, ...]
  summed: tuple[int, ...]
  outputs: tuple[int, ...]

  @classmethod
  def of(cls, shape: Sequence[int], layout: LeafLayout) -> Matrix:
    """Returns that of a leaf with a layout."""
    return cls(tuple(shape), tuple(layout.summed), tuple(sorted(layout.outputs)))

  @property
  def stack(self) -> tuple[int, ...]:
    """The axes along which matrices are stacked."""
    return tuple(axis for axis in range(len(self.shape)) if axis not in self.summed + self.outputs)

  @property
  def sizes(self) -> tuple[tuple[int, ...], int, int]:
    """(sizes of the stacked axes, rows, columns)."""
    stack, summed, outputs = (tuple(self.shape[a] for a in axes) for axes in (self.stack, self.summed, self.outputs))
    return stack, math.prod(summed), math.prod(outputs)

  def inside(self, depth: int) -> Matrix | None:
    """Returns that of a slice along the first `depth` axes; None where they are no stack."""
    if not set(range(depth)) <= set(self.stack):
      return None
    return Matrix(self.shape[depth:], *(tuple(a - depth for a in axes) for axes in (self.summed, self.outputs)))

  def matrices(self, leaf: Any) -> Any:
    """Returns a leaf as [*stack, rows, columns].

    >>> Matrix((2, 3, 4), (2,), (0, 1)).matrices(np.zeros((2, 3, 4))).shape
    (4, 6)
    """
    stack, rows, columns = self.sizes
    return leaf.transpose((*self.stack, *self.summed, *self.outputs)).reshape((*stack, rows, columns))

  def leaf(self, matrices: Any) -> Any:
    """Returns the leaf of matrices [*stack, rows, columns]: the inverse of `matrices`."""
    order = (*self.stack, *self.summed, *self.outputs)
    return matrices.reshape(tuple(self.shape[axis] for axis in order)).transpose(np.argsort(order))


class Factored(NamedTuple):
  """What rows and columns of matrices an operand [shared, summed, others] holds: all of them where None.

  Attributes:
    stack: int[shared], which matrix.
    rows: int[shared, summed].
    columns: int[shared, others].
  """

  stack: np.ndarray | None
  rows: np.ndarray | None
  columns: np.ndarray | None


@functools.lru_cache(maxsize=512)
def factored(
  matrix: Matrix, moves: Moves, batch: tuple[int, ...], summed: tuple[int, ...], free: tuple[int, ...]
) -> Factored | None:
  """Tells how the factors of a leaf make the factors of an operand.

  Args:
    matrix: of the leaf, or of what a scan cuts off it.
    moves: that lead to the operand.
    batch: axes of the operand that both operands share.
    summed: those that are summed over.
    free: the others.

  Returns:
    None where an entry of the operand does not lie at one row of its summed axes and one column of the others.
  """
  stack, rows, columns = matrix.sizes
  count = math.prod(stack)
  indices = matrix.leaf(
    np.arange(count * rows * columns, dtype=np.int64 if count * rows * columns >= 2**31 else np.int32)
  )
  operand = moved(indices, moves)
  sizes = [math.prod(operand.shape[axis] for axis in axes) for axes in (batch, summed, free)]
  operand = operand.transpose((*batch, *summed, *free)).reshape(sizes)
  if not operand.size:
    return None
  of_stack, of_rows = operand[:, 0, 0] // (rows * columns), operand[:, :, 0] // columns % rows
  of_columns = operand[:, 0, :] % columns
  first = (of_stack * (rows * columns))[:, None, None] + (of_rows * columns)[:, :, None]
  if not np.array_equal(operand, first + of_columns[:, None, :]):
    return None
  all_of = lambda found, size: found.shape[-1] == size and bool((found == np.arange(size)).all())  # noqa: E731
  return Factored(
    None if all_of(of_stack, count) else of_stack,
    None if all_of(of_rows, rows) else of_rows,
    None if all_of(of_columns, columns) else of_columns,
  )


def rows_of(found: Factored, factor: jax.Array) -> jax.Array:
  """Returns the first factor [stack, rows, rank] as the operand has it, [shared, summed, rank]."""
  factor = factor if found.stack is None else factor[found.stack]
  return factor if found.rows is None else jnp.take_along_axis(factor, jnp.asarray(found.rows)[:, :, None], axis=1)


def columns_of(found: Factored, factor: jax.Array) -> jax.Array:
  """Returns the second factor [stack, rank, columns] as the operand has it, [shared, rank, others]."""
  factor = factor if found.stack is None else factor[found.stack]
  if found.columns is None:
    return factor
  return jnp.take_along_axis(factor, jnp.asarray(found.columns)[:, None, :], axis=2)
