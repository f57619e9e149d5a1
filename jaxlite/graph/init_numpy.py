"""First values without a compiler: what initializers draw, computed by NumPy from the program that draws it.

XLA compiles the drawing of a network's first weights longer than its train step, and each shape of zeros is a program
too. So the function is traced, everything that does not reach its results (the forward pass) is dropped, and the
rest, a few dozen kinds of equations, is computed here: random bits bit for bit, floats up to rounding. A program with
any other equation runs as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from jaxlite.graph import error_function, threefry, walk
from jaxlite.host.gc_pause import paused
from jaxlite.host.release import free, lent

LIMIT = 1 << 25  # random numbers; beyond, the device draws them sooner in spite of the compiler

Values = list[Any]


def on_host(fn: Callable[..., Any], *, unread: tuple[int, ...] = ()) -> Callable[..., Any]:
  """Returns the same function, which compiles nothing where its results can be computed by NumPy.

  Called inside a trace, with arrays that lie on several devices, or in one of several processes, it is `fn`. So it is
  where the program holds an equation that is unknown here (an orthogonal draw, a forward pass), keys of another
  generator than threefry, or calculates with other floats than float32.

  Args:
    fn: a pure function of pytrees of arrays. It is traced once for each set of shapes.
    unread: arguments by position on whose values no result may hang; where one does, it is `fn`.

  Returns:
    A function of the same arguments. Random bits and integers are those of `fn`, floats equal up to rounding; what
    `fn` computes are new arrays, never weakly typed, on the device where those of `fn` would be.

  >>> import jax.numpy as jnp
  >>> draw = lambda key: 2 * jax.random.normal(key, (3,))
  >>> bool(jnp.allclose(on_host(draw)(jax.random.key(0)), draw(jax.random.key(0)), rtol=1e-6))
  True
  """
  traced = jax.jit(fn)

  @functools.wraps(fn)
  def run(*args: Any) -> Any:
    probe = jax.device_put(np.zeros(()))  # inside a trace even a constant is put as a tracer
    if isinstance(probe, jax.core.Tracer) or _any_traced(jax.tree.leaves(args)):
      return traced(*args)  # what has been traced once is not traced again
    if jax.process_count() > 1 or jax.config.jax_disable_jit:
      return fn(*args)
    try:
      return _run(traced, args, unread, probe)
    except Exception:  # Unknown; or an error of fn's, which comes again, untouched by a trace
      return fn(*args)

  return run


def copied(leaf: Any) -> jax.Array:
  """Returns a new array of the same values, never weakly typed, and compiles nothing to make it."""
  array = jnp.asarray(leaf)
  if isinstance(array, jax.core.Tracer) or getattr(array, 'weak_type', False):
    extended = jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended)
    return jnp.copy(array) if extended else jnp.array(array, array.dtype, copy=True)
  return jax.device_put(array, may_alias=False)


class Unknown(Exception):  # noqa: N818 - not an error: the function runs as it is
  """A program cannot be computed here."""


@paused()
def _run(traced: Callable[..., Any], args: Any, unread: tuple[int, ...], probe: jax.Array) -> Any:
  leaves = jax.tree.leaves(args)
  committed = {leaf.sharding for leaf in leaves if isinstance(leaf, jax.Array) and leaf.committed}
  if len(committed) > 1:
    raise Unknown('arguments on several devices')
  where = next(iter(committed), None)
  closed, shapes = jax.make_jaxpr(traced, return_shape=True)(*args)
  bare, consts = walk.opened(closed)
  slim, used = partial_eval.dce_jaxpr(bare, [True] * len(bare.outvars))
  hands_off = [index in unread for index, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
  if any(use and hands for use, hands in zip(used, hands_off, strict=True)):
    raise Unknown('results that depend on data')
  if _drawn(slim) > LIMIT:
    raise Unknown('many random numbers')
  operands = [leaf for leaf, keep in zip(leaves, used, strict=True) if keep]
  target = (probe.sharding if where is None else where).device_set
  held = [one for one in (*operands, *consts, *_constants(slim)) if isinstance(one, jax.Array)]
  if _any_traced(held) or any(one.devices() != target for one in held):
    raise Unknown('arrays elsewhere')
  results = _evaluate(slim, consts, operands)
  out: list[jax.Array] = []
  given = set(map(id, (*operands, *consts, *_constants(slim))))  # somebody else's, who keeps them
  sources = lent(value for value in results if isinstance(value, np.ndarray) and id(value) not in given)
  for atom in slim.outvars[::-1]:  # from the end, so that each goes as soon as it is copied
    out.append(_array(results.pop(), atom.aval, where))
  free(sources, out)
  return jax.tree.unflatten(jax.tree.structure(shapes), out[::-1])


def _any_traced(leaves: Sequence[Any]) -> bool:
  return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def _constants(jaxpr: Any) -> Iterator[Any]:
  """Every array that a program holds, at any depth."""
  for eqn in jaxpr.eqns:
    yield from (atom.val for atom in eqn.invars if hasattr(atom, 'val'))
    for body in walk.bodies(eqn):
      bare, consts = walk.opened(body)
      yield from consts
      yield from _constants(bare)


def _array(value: Any, aval: Any, where: Any) -> jax.Array:
  """`may_alias`: the array is to own its memory, since a step may take it over."""
  if isinstance(value, jax.Array):
    return value
  if _is_key(aval):
    return jax.random.wrap_key_data(jax.device_put(threefry.data_of(value), where, may_alias=False), impl=threefry.IMPL)
  return jax.device_put(np.ascontiguousarray(value).reshape(aval.shape), where, may_alias=False)


def _is_key(aval: Any) -> bool:
  return jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key)


def _drawn(jaxpr: Any) -> float:
  """How many random numbers a program draws; infinite where an equation is unknown."""
  total = 0.0
  for eqn in walk.opened(jaxpr)[0].eqns:
    name = eqn.primitive.name
    if name in walk.CALLS and name != 'shard_map':
      total += _drawn(eqn.params[walk.CALLS[name]])
    elif name == 'scan':
      total += eqn.params['length'] * _drawn(eqn.params['jaxpr'])
    elif not _is_known(eqn):
      return float('inf')
    elif name == 'random_bits':
      total += eqn.outvars[0].aval.size
  return total


def _is_known(eqn: Any) -> bool:
  name = eqn.primitive.name
  if name not in RULES or eqn.effects or not all(map(_plain, (*eqn.invars, *eqn.outvars))):
    return False
  if name == 'erf':
    return eqn.outvars[0].aval.size <= 64  # it is computed one number at a time
  if name == 'device_put':
    return all(device is None for device in eqn.params['devices'])
  return name not in _CALCULATES or not any(_rounds_otherwise(var.aval) for var in eqn.invars)


def _plain(atom: Any) -> bool:
  """Whether a value is an array that NumPy can hold, or keys that are known here."""
  dtype = getattr(atom.aval, 'dtype', None)
  if dtype is None or not hasattr(atom.aval, 'shape'):
    return False
  if _is_key(atom.aval):
    return threefry.is_known(dtype)
  return not jax.dtypes.issubdtype(dtype, jax.dtypes.extended)


def _rounds_otherwise(aval: Any) -> bool:
  """Narrow floats: XLA may keep more digits between two operations than NumPy does, and wide ones have other series."""
  return jnp.issubdtype(aval.dtype, np.inexact) and aval.dtype != np.float32


def _evaluate(jaxpr: Any, consts: Sequence[Any], operands: Sequence[Any]) -> Values:
  env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
  env.update(zip(jaxpr.invars, operands, strict=True))

  def read(atom: Any) -> Any:
    return atom.val if hasattr(atom, 'val') else env[atom]

  last = {atom: index for index, eqn in enumerate(jaxpr.eqns) for atom in eqn.invars if not hasattr(atom, 'val')}
  wanted = {atom for atom in jaxpr.outvars if not hasattr(atom, 'val')}
  for index, eqn in enumerate(jaxpr.eqns):
    env.update(zip(eqn.outvars, _results(eqn, [read(atom) for atom in eqn.invars]), strict=True))
    for atom in {atom for atom in eqn.invars if not hasattr(atom, 'val')} - wanted:
      if last[atom] == index:  # what nobody reads again is let go
        del env[atom]
  return [read(atom) for atom in jaxpr.outvars]


def _results(eqn: Any, operands: Values) -> Values:
  name = eqn.primitive.name
  if name in walk.CALLS:
    bare, consts = walk.opened(eqn.params[walk.CALLS[name]])
    return _evaluate(bare, consts, operands)
  if name == 'scan':
    return _scan(eqn, [_value(one) for one in operands])
  if name in _PASSES:
    return operands
  if name in _COPIES:  # an array of the caller's does not leave its device
    return [copied(one) if isinstance(one, jax.Array) else one for one in operands]
  if name == 'unstack':
    return list(np.moveaxis(_value(operands[0]), eqn.params['axis'], 0))
  (out,) = eqn.outvars
  with np.errstate(all='ignore'):  # as XLA: infinities and NaNs are values
    found = RULES[name](eqn, *map(_value, operands))
  return [found if _is_key(out.aval) else np.asarray(found, out.aval.dtype)]


def _value(operand: Any) -> np.ndarray:
  """An operand as NumPy holds it; a key is one uint64, so that what moves arrays moves keys."""
  if isinstance(operand, jax.Array) and _is_key(operand):
    return threefry.keys_of(np.asarray(jax.random.key_data(operand)))
  return np.asarray(operand)


def _scan(eqn: Any, operands: Values) -> Values:
  consts, carries = walk.scan_layout(eqn)
  bare, own = walk.opened(eqn.params['jaxpr'])
  carry, slices = operands[consts : consts + carries], operands[consts + carries :]
  order = range(eqn.params['length'])
  rows = {}
  for i in reversed(order) if eqn.params['reverse'] else order:
    found = _evaluate(bare, own, [*operands[:consts], *carry, *(one[i] for one in slices)])
    carry, rows[i] = found[:carries], [_value(one) for one in found[carries:]]
  stacked = [np.stack([rows[i][out] for i in order]) for out in range(len(eqn.outvars) - carries)]
  return [*carry, *stacked]


def _broadcast(eqn: Any, x: np.ndarray) -> np.ndarray:
  shape, at = eqn.params['shape'], eqn.params['broadcast_dimensions']
  sizes = dict(zip(at, x.shape, strict=True))
  return np.broadcast_to(x.reshape([sizes.get(axis, 1) for axis in range(len(shape))]), shape)


def _slice(eqn: Any, x: np.ndarray) -> np.ndarray:
  params = eqn.params
  steps = params['strides'] or (1,) * x.ndim
  return x[tuple(map(slice, params['start_indices'], params['limit_indices'], steps))]


def _iota(eqn: Any) -> np.ndarray:
  shape, axis = eqn.params['shape'], eqn.params['dimension']
  sizes = [size if index == axis else 1 for index, size in enumerate(shape)]
  return np.broadcast_to(np.arange(shape[axis]).reshape(sizes), shape)


def _shifted(shift: Callable[..., Any]) -> Callable[..., Any]:
  def run(eqn: Any, x: np.ndarray, by: np.ndarray) -> np.ndarray:
    bits = x.dtype.itemsize * 8
    return np.where(by < bits, shift(x, np.minimum(by, bits - 1)), 0)

  return run


def _cast(eqn: Any, x: np.ndarray) -> np.ndarray:
  return x.astype(eqn.params['new_dtype'])


def _bits(eqn: Any, x: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(x).view(eqn.params['new_dtype']).reshape(eqn.outvars[0].aval.shape)


def _of_floats(fn: Callable[..., Any]) -> Callable[..., Any]:
  def run(eqn: Any, *operands: np.ndarray) -> np.ndarray:
    if any(operand.dtype.kind != 'f' for operand in operands):
      raise Unknown(f'{eqn.primitive.name} of integers')
    return fn(*operands)

  return run


def _seed(eqn: Any, seed: np.ndarray) -> np.ndarray:
  if eqn.params['impl'].name != threefry.IMPL:
    raise Unknown('another generator')
  words = seed.astype(f'uint{8 * seed.dtype.itemsize}').astype(np.uint64)
  return words << np.uint64(32) | words >> np.uint64(32)  # the high word comes first


def _plainly(fn: Callable[..., Any]) -> Callable[..., Any]:
  return lambda eqn, *operands: fn(*operands)


def _over_axes(fn: Callable[..., Any]) -> Callable[..., Any]:
  return lambda eqn, x: fn(x, axis=tuple(eqn.params['axes']))


# What is only moved or compared keeps every dtype; what is calculated is known for float32.
_MOVES: dict[str, Callable[..., Any]] = {
  'broadcast_in_dim': _broadcast,
  'reshape': lambda eqn, x: x.reshape(eqn.params['new_sizes']),
  'squeeze': lambda eqn, x: x.reshape(eqn.outvars[0].aval.shape),
  'expand_dims': lambda eqn, x: x.reshape(eqn.outvars[0].aval.shape),
  'transpose': lambda eqn, x: x.transpose(eqn.params['permutation']),
  'slice': _slice,
  'concatenate': lambda eqn, *xs: np.concatenate(xs, eqn.params['dimension']),
  'stack': lambda eqn, *xs: np.stack(xs, eqn.params['axis']),
  'rev': lambda eqn, x: np.flip(x, eqn.params['dimensions']),
  'iota': _iota,
  'select_n': lambda eqn, which, *cases: np.choose(which, cases) if which.ndim else cases[int(which)],
  'random_seed': _seed,
  'random_fold_in': _plainly(threefry.fold_in),
  'random_split': lambda eqn, keys: threefry.split(keys, eqn.params['shape']),
  'random_wrap': _plainly(threefry.keys_of),
  'random_unwrap': _plainly(threefry.data_of),
  'random_bits': lambda eqn, keys: threefry.bits(keys, eqn.params['shape'], eqn.params['bit_width']),
}
_PASSES = frozenset({'stop_gradient', 'random_clone'})
_COPIES = frozenset({'copy', 'copy_p', 'device_put'})
_CALCULATIONS: dict[str, Callable[..., Any]] = {
  'convert_element_type': _cast,
  'bitcast_convert_type': _bits,
  'add': _plainly(np.add),
  'add_any': _plainly(np.add),
  'sub': _plainly(np.subtract),
  'mul': _plainly(np.multiply),
  'div': _of_floats(np.divide),
  'max': _plainly(np.maximum),
  'min': _plainly(np.minimum),
  'clamp': lambda eqn, low, x, high: np.minimum(np.maximum(x, low), high),
  'neg': _plainly(np.negative),
  'abs': _plainly(np.abs),
  'sign': _plainly(np.sign),
  'square': _plainly(np.square),
  'sqrt': _plainly(np.sqrt),
  'rsqrt': _of_floats(lambda x: 1 / np.sqrt(x)),
  'integer_pow': lambda eqn, x: x ** x.dtype.type(eqn.params['y']),
  'exp': _plainly(np.exp),
  'log': _plainly(np.log),
  'log1p': _plainly(np.log1p),
  'log2': _plainly(np.log2),
  'erf': _plainly(error_function.erf),
  'erf_inv': _plainly(error_function.erf_inv),
  'nextafter': _plainly(np.nextafter),
  'is_finite': _plainly(np.isfinite),
  'eq': _plainly(np.equal),
  'ne': _plainly(np.not_equal),
  'lt': _plainly(np.less),
  'le': _plainly(np.less_equal),
  'gt': _plainly(np.greater),
  'ge': _plainly(np.greater_equal),
  'and': _plainly(np.bitwise_and),
  'or': _plainly(np.bitwise_or),
  'xor': _plainly(np.bitwise_xor),
  'not': _plainly(np.invert),
  'shift_right_logical': _shifted(np.right_shift),
  'shift_left': _shifted(np.left_shift),
  'reduce_sum': _over_axes(np.sum),
  'reduce_max': _over_axes(np.max),
  'reduce_min': _over_axes(np.min),
}
RULES = {**_MOVES, **_CALCULATIONS, **dict.fromkeys(_PASSES | _COPIES | {'unstack'})}
_CALCULATES = frozenset(_CALCULATIONS) - {'convert_element_type', 'bitcast_convert_type'}
