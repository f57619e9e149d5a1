"""A frozen weight, and what is learned beside it: how the two make one weight, and how inputs meet them apart.

    merged = (weight + scale * a @ b) * magnitude / norm        of each matrix of the leaf; the last two with DoRA
    x @ merged = (x @ weight + scale * (x @ a) @ b) * magnitude / norm

The second form never makes a gradient of the weight, nor keeps it for the backward pass in more bits than it has: a
derivative rule of its own holds what is stored, and takes values from it anew when its gradient has come.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite.graph import routes
from jaxlite.graph.contractions import axes_of
from jaxlite.graph.pieces import made_late
from jaxlite.graph.provenance import Site
from jaxlite.graph.routes import Matrix, Moves
from jaxlite.optim._stored import Form, is_stored, restore

HIGHEST = lax.Precision.HIGHEST  # a factor is thin: full precision costs nothing beside the product with the weight


class Adapted(NamedTuple):
  """What is learned beside one leaf; hashable.

  Attributes:
    matrix: the axes of the leaf.
    rank: of the product.
    scale: what the product is multiplied by.
    magnitude: whether the length of each output's weights is learned apart (DoRA).
  """

  matrix: Matrix
  rank: int
  scale: float
  magnitude: bool


def begin(adapted: Adapted, leaf: jax.Array, key: jax.Array, dtype: Any) -> dict[str, jax.Array]:
  """Returns the first values beside a leaf: a product of zero.

  Returns:
    {'a': float[*stack, rows, rank], 'b': float[*stack, rank, columns]}, and with a magnitude {'m': float[*stack,
    columns]}, the norms of the leaf.
  """
  stack, rows, columns = adapted.matrix.sizes
  bound = rows**-0.5
  own = {
    'a': jax.random.uniform(key, (*stack, rows, adapted.rank), dtype, -bound, bound),
    'b': jnp.zeros((*stack, adapted.rank, columns), dtype),
  }
  if adapted.magnitude:
    own['m'] = norms(adapted, leaf, own).astype(dtype)
  return own


def product(adapted: Adapted, own: Mapping[str, jax.Array]) -> jax.Array:
  """Returns scale * a @ b: float[*stack, rows, columns]."""
  return adapted.scale * jnp.matmul(own['a'], own['b'], precision=HIGHEST)


def norms(adapted: Adapted, leaf: jax.Array, own: Mapping[str, jax.Array]) -> jax.Array:
  """Returns the norm of each output's weights with the product added: float[*stack, columns]. One matrix at a time."""
  stack, _, columns = adapted.matrix.sizes

  def one(given: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    matrix, a, b = given
    whole = matrix + product(adapted, {'a': a, 'b': b})
    return lax.sqrt(lax.reduce(whole * whole, np.zeros((), whole.dtype), lax.add, (0,)))

  matrices = adapted.matrix.matrices(leaf).astype(own['a'].dtype)
  if not stack:
    return one((matrices, own['a'], own['b']))
  flat = [value.reshape((-1, *value.shape[len(stack) :])) for value in (matrices, own['a'], own['b'])]
  return lax.map(one, tuple(flat)).reshape((*stack, columns))


def stretch(adapted: Adapted, leaf: jax.Array, own: Mapping[str, jax.Array]) -> jax.Array | None:
  """Returns what each output is multiplied by, float[*stack, columns]; the norm takes no gradient, as in DoRA."""
  if not adapted.magnitude:
    return None
  size = lax.stop_gradient(norms(adapted, leaf, own))
  return own['m'] / lax.select(size == 0, lax.full_like(size, 1), size)


def merged(adapted: Adapted, leaf: jax.Array, own: Mapping[str, jax.Array]) -> jax.Array:
  """Returns the leaf with what was learned in it, in the leaf's dtype."""
  small = leaf.dtype.itemsize < 2  # floats of eight bits and fewer: no rule promotes them
  wide = own['a'].dtype if small else jnp.promote_types(leaf.dtype, own['a'].dtype)
  whole = adapted.matrix.matrices(leaf).astype(wide) + product(adapted, own).astype(wide)
  factor = stretch(adapted, leaf, own)
  if factor is not None:
    whole = whole * factor[..., None, :].astype(wide)
  return adapted.matrix.leaf(whole).astype(leaf.dtype)


# --- at a contraction ---------------------------------------------------------------------------------------


class Here(NamedTuple):
  """A contraction of a leaf that is only moved on its way; hashable.

  Attributes:
    primitive, params: of the equation, params as sorted items.
    side: which operand is the weight.
    dtype: of the result.
    batch, summed, free: the axes of the weight's operand.
    depth: how many scans cut the leaf.
    moves: from the slice to the operand.
    form: how the leaf is kept; None as it is.
    adapted: what is learned beside it; None where nothing is.
  """

  primitive: Any
  params: tuple[Any, ...]
  side: int
  dtype: Any
  batch: tuple[int, ...]
  summed: tuple[int, ...]
  free: tuple[int, ...]
  depth: int
  moves: Moves
  form: Form | None
  adapted: Adapted | None

  @classmethod
  def at(cls, site: Site, eqn: Any, route: routes.Route, form: Form | None, adapted: Adapted | None) -> Here | None:
    """Returns it, None where the two products cannot be taken apart."""
    side = site.side
    if side is None:
      return None
    ndim = eqn.invars[side].aval.ndim
    summed, batch = axes_of(eqn, side)
    if eqn.params.get('feature_group_count', 1) > 1 or eqn.params.get('batch_group_count', 1) > 1:
      return None if adapted is not None else cls._of(site, eqn, route, (), (), (), form, adapted)
    free = tuple(axis for axis in range(ndim) if axis not in (*summed, *batch))
    here = cls._of(site, eqn, route, batch, summed, free, form, adapted)
    return here if adapted is None or here.factored() is not None else None

  @classmethod
  def _of(cls, site: Site, eqn: Any, route: routes.Route, batch: Any, summed: Any, free: Any, form: Any, adapted: Any):  # type: ignore[no-untyped-def]
    params, dtype = tuple(sorted(eqn.params.items())), eqn.outvars[0].aval.dtype
    assert site.side is not None  # `at` asked
    axes = (tuple(batch), tuple(summed), tuple(free))
    return cls(eqn.primitive, params, site.side, dtype, *axes, route.depth, route.moves, form, adapted)

  def factored(self) -> routes.Factored | None:
    """Tells where the operand holds rows and columns; None where it mixes them."""
    inside = None if self.adapted is None else self.adapted.matrix.inside(self.depth)
    return None if inside is None else routes.factored(inside, self.moves, self.batch, self.summed, self.free)

  def bind(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns the contraction of an activation with a weight."""
    operands = (x, w) if self.side == 1 else (w, x)
    return self.primitive.bind(*operands, **self.primitive.get_bind_params(dict(self.params)))

  def weight(self, stored: Any) -> jax.Array:
    """Returns the weight's operand."""
    leaf = stored if self.form is None else restore(self.form, stored, self.depth)
    return routes.moved(leaf, self.moves)

  def added(self, x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns (x @ a) @ b, laid out as the contraction's result."""
    params = dict(self.params)
    found, sizes = self.factored(), self._operand_sizes()
    assert found is not None
    assert self.adapted is not None
    _, rows, columns = self.adapted.matrix.inside(self.depth).sizes  # type: ignore[union-attr]
    a = routes.rows_of(found, a.reshape((-1, rows, self.adapted.rank)))
    b = routes.columns_of(found, b.reshape((-1, self.adapted.rank, columns)))
    x = x.astype(jnp.promote_types(x.dtype, a.dtype))
    if self.primitive.name == 'conv_general_dilated':
      numbers = params['dimension_numbers']
      features = numbers.rhs_spec[0]
      a = a.reshape((*(sizes[axis] for axis in self.summed), self.adapted.rank))
      params |= {'preferred_element_type': None, 'precision': HIGHEST}
      u = self.primitive.bind(x, jnp.moveaxis(a, -1, features).astype(x.dtype), **params)
      v = jnp.tensordot(u, b[0].astype(x.dtype), axes=((numbers.out_spec[1],), (0,)), precision=HIGHEST)
      return jnp.moveaxis(v, -1, numbers.out_spec[1])
    shared = tuple(sizes[axis] for axis in self.batch)
    a = a.reshape((*shared, *(sizes[axis] for axis in self.summed), self.adapted.rank)).astype(x.dtype)
    b = b.reshape((*shared, self.adapted.rank, *(sizes[axis] for axis in self.free))).astype(x.dtype)
    contracted, batches = params['dimension_numbers']
    other, count = 1 - self.side, len(shared)
    met = dict(zip(contracted[self.side], contracted[other], strict=True))
    lined = dict(zip(batches[self.side], batches[other], strict=True))
    batch = tuple(range(count))
    of_x = tuple(met[axis] for axis in self.summed), tuple(lined[axis] for axis in self.batch)
    inner = (of_x[0], tuple(range(count, count + len(self.summed)))), (of_x[1], batch)
    u = lax.dot_general(x, a, inner, precision=HIGHEST)
    v = lax.dot_general(u, b, (((u.ndim - 1,), (count,)), (batch, batch)), precision=HIGHEST)
    wide = x.ndim - len(self.summed) - count
    return v if self.side == 1 else jnp.moveaxis(v, range(count, count + wide), range(v.ndim - wide, v.ndim))

  def spread(self, factor: jax.Array, ndim: int) -> jax.Array:
    """Returns what each output is multiplied by, [*stack, columns], as it meets the contraction's result."""
    found, sizes = self.factored(), self._operand_sizes()
    assert found is not None
    columns = factor.shape[-1]
    flat = routes.columns_of(found, factor.reshape((-1, 1, columns)))[:, 0]
    if self.primitive.name == 'conv_general_dilated':
      shape = [1] * ndim
      shape[dict(self.params)['dimension_numbers'].out_spec[1]] = flat.shape[-1]
      return flat[0].reshape(shape)
    shared, free = (tuple(sizes[axis] for axis in axes) for axes in (self.batch, self.free))
    ones = (1,) * (ndim - len(shared) - len(free))
    return flat.reshape((*shared, *ones, *free) if self.side == 1 else (*shared, *free, *ones))

  def _operand_sizes(self) -> tuple[int, ...]:
    matrix = self.form.matrix if self.form is not None else self.adapted.matrix  # type: ignore[union-attr]
    inside = matrix.inside(self.depth)
    assert inside is not None
    return _moved_shape(inside.shape, self.moves)

  @property
  def changes(self) -> bool:
    """Whether the operand takes more bytes than what is stored, so that it is made again in the backward pass."""
    return self.form is not None or any(move[0] == 'convert' for move in self.moves)


@functools.lru_cache(maxsize=1024)
def _moved_shape(shape: tuple[int, ...], moves: Moves) -> tuple[int, ...]:
  return jax.eval_shape(lambda leaf: routes.moved(leaf, moves), jax.ShapeDtypeStruct(shape, jnp.float32)).shape


@functools.lru_cache(maxsize=1024)
def contraction(here: Here) -> Any:
  """Returns (x, stored, own, factor) -> the result; equal sites share one function, traced once.

  `own` holds 'a' and 'b' of what is learned, {} where nothing is; `factor` is what `stretch` gave for it, or None.
  Gradients go to x, own and factor; what is stored has none.
  """
  scale = 1.0 if here.adapted is None else here.adapted.scale

  def together(x: jax.Array, w: jax.Array, own: Mapping[str, jax.Array], factor: Any) -> tuple[jax.Array, Any]:
    out, before = here.bind(x, w), None
    if own:
      added = scale * here.added(x, own['a'], own['b'])
      out = out.astype(jnp.promote_types(out.dtype, added.dtype)) + added
    if factor is not None:
      before, out = out, out * here.spread(factor, out.ndim)
    return out.astype(here.dtype), before

  def weight(stored: Any, known: jax.Array) -> jax.Array:
    if not here.changes:
      return here.weight(stored)
    leaves, tree = jax.tree.flatten(stored)
    return made_late(lambda leaves: here.weight(jax.tree.unflatten(tree, leaves)))(leaves, [known])

  @jax.custom_vjp
  def contract(x: jax.Array, stored: Any, own: Any, factor: Any) -> jax.Array:
    return together(x, weight(stored, x), own, factor)[0]

  def forward(x: jax.Array, stored: Any, own: Any, factor: Any) -> Any:
    out, before = together(x, weight(stored, x), own, factor)
    return out, (x, stored, own, factor, before)

  def backward(kept: Any, gradient: jax.Array) -> Any:
    x, stored, own, factor, before = kept
    w, of_factor = weight(stored, gradient), None
    wide = gradient
    if factor is not None:
      wide = gradient.astype(before.dtype)
      _, pull = jax.vjp(lambda factor: here.spread(factor, before.ndim), factor)
      by_output = wide * before
      spread = here.spread(factor, before.ndim)
      axes = tuple(axis for axis, size in enumerate(spread.shape) if size == 1 and by_output.shape[axis] > 1)
      (of_factor,) = pull(jnp.sum(by_output, axes, keepdims=True).astype(spread.dtype))
      wide = wide * spread
    (of_x,) = jax.vjp(lambda x: here.bind(x, w), x)[1](wide.astype(here.dtype))
    of_own: Any = own
    if own:
      added, pull = jax.vjp(lambda x, a, b: here.added(x, a, b), x, own['a'], own['b'])
      of_x2, of_a, of_b = pull((scale * wide).astype(added.dtype))
      of_x, of_own = of_x + of_x2.astype(of_x.dtype), {**own, 'a': of_a, 'b': of_b}
    return of_x, None, of_own, of_factor

  contract.defvjp(forward, backward)
  return jax.jit(contract)


def values(form: Form | None, stored: Any) -> jax.Array:
  """Returns a leaf's values, however it is kept."""
  return restore(form, stored) if form is not None and is_stored(stored) else stored
