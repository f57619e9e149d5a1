"""What an equation of a jaxpr is to a list of operations: which kinds there are, and which of their forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite.deployment.operations import edges, own_tables, ranks


def _names(text: str) -> frozenset[str]:
  return frozenset(text.split())


UNARY = _names("""
  neg abs sign exp exp2 log log1p expm1 sqrt rsqrt cbrt tanh logistic erf erfc erf_inv floor ceil round sin cos tan asin
  acos atan sinh cosh square integer_pow not is_finite convert_element_type
""")
BINARY = _names("""
  add sub mul div max min pow rem eq ne lt le gt ge and or xor atan2 add_any select_n clamp
""")
OTHERS = _names("""
  reshape transpose concatenate slice pad rev reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax
  argmin cumsum cumprod cummax cummin dot_general conv_general_dilated reduce_window_max reduce_window_sum
  broadcast_in_dim gather squeeze dynamic_slice sort
""")
# What a list has where it is computed of params alone, once their values are there.
OF_PARAMS = _names('bitcast_convert_type shift_left shift_right_logical shift_right_arithmetic nextafter')
# Calls that quantization makes of scales alone: of known ones the whole is computed at once, not each of its steps.
AT_ONCE = _names('quotient share times leaving')
# What leaves its operand as it is when nothing trains.
NOTHING = _names('copy copy_p stop_gradient optimization_barrier name sharding_constraint pvary pcast reshard')
# Of an equation's parameters, those that say nothing about the result.
IDLE = _names("""
  sharding out_sharding weak_type indices_are_sorted unique_indices precision accuracy preferred_element_type fill_value
""")


def left_out(eqn: Any) -> str:
  """What a known kind may do that the list has no form for, in a few words; '' for the rest."""
  kind, params = eqn.primitive.name, eqn.params
  if kind == 'conv_general_dilated' and params['batch_group_count'] != 1:
    return 'a convolution whose batch is in groups'
  if kind == 'gather' and params['dimension_numbers'].operand_batching_dims:
    return 'a gather from a table for each example'
  if kind == 'sort' and len(eqn.invars) != 1:
    return f'more than {ranks.MOST} entries sorted by another array, or by several,'
  if kind in ('reduce_and', 'reduce_or') and eqn.outvars[0].aval.dtype != np.bool_:
    return 'whole numbers joined bit by bit'
  return ''


def by_others(eqn: Any) -> Any:
  """Returns an equation whose form the list lacks as a program of equations that it has; None where it needs none.

  A gather that puts a number of its own where there is nothing chooses between that and the nearest entry; a product
  whose result is wider than its operands is one of operands that were made as wide; what is tiled is repeated along
  axes of their own; what is put in order by another array is counted; what is looked up in each example's own table is
  compared with each place; inverse hyperbolic functions are made of logarithms.

  Args:
    eqn: any.

  Returns:
    A closed jaxpr that takes its operands and gives its results.
  """
  kind, params = eqn.primitive.name, eqn.params
  avals = [jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in eqn.invars]
  if kind == 'gather' and params['dimension_numbers'].operand_batching_dims:
    if not own_tables.is_simple(params, avals[0].shape):
      return None
    return jax.make_jaxpr(lambda table, ids: own_tables.picked(params, table, ids))(*avals)
  if kind == 'gather' and 'FILL' in str(params['mode']) and not _usual(params['fill_value'], avals[0].dtype):
    return jax.make_jaxpr(lambda table, ids: _filled(params, table, ids))(*avals)
  if kind in ('top_k', 'sort'):
    return _ordered(kind, params, avals)
  if kind in _BY_LOGARITHMS and avals[0].dtype in (np.float32, np.float64):
    return jax.make_jaxpr(_BY_LOGARITHMS[kind])(*avals)
  if kind == 'tile':
    return jax.make_jaxpr(lambda x: _tiled(x, params['reps']))(*avals)
  out = eqn.outvars[0].aval.dtype if eqn.outvars else None
  if kind in ('dot_general', 'conv_general_dilated') and any(a.dtype != out and widens(a.dtype, out) for a in avals):
    rest = {**params, 'preferred_element_type': out}
    return jax.make_jaxpr(lambda x, y: eqn.primitive.bind(x.astype(out), y.astype(out), **rest))(*avals)
  return None


def _ordered(kind: str, params: Any, avals: Sequence[Any]) -> Any:
  axis = params['dimension'] if kind == 'sort' else params.get('axis', -1)
  if avals[0].shape[axis] > ranks.MOST or (kind == 'sort' and (len(avals) == 1 or params['num_keys'] != 1)):
    return None
  if kind == 'sort':
    return jax.make_jaxpr(lambda x, *rest: ranks.sorted_by(x, rest, axis))(*avals)
  return jax.make_jaxpr(lambda x: ranks.top_k(x, params['k'], axis))(*avals)


def _tiled(x: jax.Array, reps: Sequence[int]) -> jax.Array:
  pairs = [size for each in zip(reps, x.shape, strict=True) for size in each]
  wide = lax.broadcast_in_dim(x, pairs, range(1, len(pairs), 2))
  return lax.reshape(wide, [times * size for times, size in zip(reps, x.shape, strict=True)])


_FAR = 1e18  # beyond it 1 + x * x is x * x, which soon is no float32


def _asinh(x: jax.Array) -> jax.Array:
  size = jnp.abs(x)
  near = jnp.minimum(size, _FAR)
  near = jnp.log1p(near + near * near / (1 + jnp.sqrt(1 + near * near)))
  return jnp.sign(x) * jnp.where(size > _FAR, jnp.log(size) + math.log(2), near)


def _acosh(x: jax.Array) -> jax.Array:
  more = jnp.minimum(x, _FAR) - 1
  near = jnp.log1p(more + jnp.sqrt(more * (more + 2)))
  return jnp.where(x < 1, jnp.nan, jnp.where(x > _FAR, jnp.log(x) + math.log(2), near))


def _atanh(x: jax.Array) -> jax.Array:
  return (jnp.log1p(x) - jnp.log1p(-x)) / 2


_BY_LOGARITHMS = {'asinh': _asinh, 'acosh': _acosh, 'atanh': _atanh}


def _usual(filling: Any, dtype: Any) -> bool:
  if filling is None:
    return True
  nothing = edges.nothing_of(np.dtype(dtype))
  return bool(np.isnan(filling) if jnp.issubdtype(dtype, jnp.inexact) else filling == nothing)


def _filled(params: Any, table: jax.Array, ids: jax.Array) -> jax.Array:
  numbers, sizes = params['dimension_numbers'], params['slice_sizes']
  most = np.array([table.shape[axis] - sizes[axis] for axis in numbers.start_index_map]).astype(ids.dtype)
  there = jnp.all((ids >= 0) & (ids <= most), -1)
  found = lax.gather(table, jnp.clip(ids, 0, most), numbers, sizes, mode='clip')
  lead = [axis for axis in range(found.ndim) if axis not in numbers.offset_dims]
  return jnp.where(
    lax.broadcast_in_dim(there, found.shape, lead), found, jnp.asarray(params['fill_value'], found.dtype)
  )


def keeps(eqn: Any) -> bool:
  """Whether a reduction of precision changes nothing of float32."""
  return eqn.params['exponent_bits'] >= 8 and eqn.params['mantissa_bits'] >= 23


def is_empty(aval: Any) -> bool:
  """Whether a value holds nothing, so that there is nothing to compute."""
  return 0 in aval.shape and not jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended)


def moved_by_numpy(array: Any) -> Any:
  """An array that NumPy moves about, so that nothing is compiled for it; keys of random numbers stay as they are."""
  return array if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended) else np.asarray(array)


def widens(one: Any, other: Any) -> bool:
  """Whether a conversion loses nothing: then NumPy's is XLA's."""
  return not jax.dtypes.issubdtype(one, jax.dtypes.extended) and bool(np.can_cast(one, other))


def plain(value: Any, name: str) -> Any:
  """Parameters as ints, floats, strings and tuples."""
  if isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, np.integer):
    return int(value)
  if name in ('new_dtype', 'dtype', 'index_dtype') or isinstance(value, np.dtype | type):
    return str(np.dtype(value))
  if hasattr(value, '_fields') or hasattr(value, '__dataclass_fields__'):
    fields = getattr(value, '_fields', None) or value.__dataclass_fields__
    return tuple(plain(getattr(value, field), field) for field in fields)
  if isinstance(value, Sequence):
    return tuple(plain(one, name) for one in value)
  return str(value)


def where(eqn: Any) -> str:
  """The scope of an equation, or what it is."""
  return f"'{eqn.source_info.name_stack}'" if str(eqn.source_info.name_stack) else f'an equation {eqn.primitive.name}'
