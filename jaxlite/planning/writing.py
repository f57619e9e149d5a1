"""Which arrays of a program are written out: what XLA:CPU fuses into readers never is."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any, NamedTuple

from jaxlite.planning.flow import LOOPS, Flow, Op, words

# Equations that a loop over entries can hold, as producer or reader; those that are dear are computed once.
_CHEAP = words(
  'add sub mul max min neg abs sign floor ceil round is_finite not and or xor eq ne lt le gt ge select_n clamp '
  'convert_element_type broadcast_in_dim iota slice pad concatenate transpose rev square integer_pow real imag '
  'shift_left shift_right_logical shift_right_arithmetic add_any copysign nextafter population_count clz '
  'dynamic_slice gather dynamic_update_slice split tile rem reduce_precision complex conj'
)
_DEAR = words(
  'exp exp2 log log1p expm1 tanh logistic sqrt rsqrt cbrt pow sin cos tan asin acos atan atan2 sinh cosh asinh '
  'acosh atanh erf erfc erf_inv div lgamma digamma'
)
_REDUCE = words('reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin')
# Cheap equations whose entries come from other places than their own: none is on the way from a row into its sum.
_MOVES = words('broadcast_in_dim slice pad concatenate transpose rev dynamic_slice gather split tile iota')
# Kernels of LAPACK and BLAS whose results lie in columns, and the place of the operand in whose place they write.
IN_COLUMNS = {'lu': 0, 'cholesky': 0, 'eigh': 0, 'triangular_solve': 1, 'svd': None}
_PRODUCTS = ('mul', 'square', 'integer_pow')
_DEEP = 3  # equations between what is spread and a sum that takes it in
_REPEATS = 15  # how often XLA:CPU computes an entry anew in one loop before it writes the array instead
_WIDE = 128  # entries from which on it puts rows side by side by copies of their own, and fuses nothing
_ONCE = ('pad', 'concatenate', 'dynamic_update_slice')  # what it computes anew nowhere
_NONE: frozenset[int] = frozenset()


class Written(NamedTuple):
  """One array that is really written, or several by one equation.

  Attributes:
    op: that gives it.
    reads: ids of the arrays that it is computed from, through what is fused into it.
    carried: of these the ones that a loop, a sort, a scatter or LAPACK changes where they lie.
  """

  op: Op
  reads: frozenset[int]
  carried: frozenset[int]


def kind(op: Op) -> str:
  """'cheap', 'dear', 'reduce' or 'apart', as XLA:CPU fuses an equation."""
  if op.name == 'concatenate':
    shape = op.eqn.outvars[0].aval.shape
    if op.eqn.params['dimension'] == len(shape) - 1 and shape[-1] >= _WIDE:
      return 'apart'
  if op.name in _CHEAP:
    return 'cheap'
  if op.name in _DEAR:
    return 'dear'
  return 'reduce' if op.name in _REDUCE else 'apart'


def written(flow: Flow) -> list[Written]:
  """Returns what a program writes out, in its order.

  Args:
    flow: of `opened`.

  >>> import jax
  >>> from jaxlite.planning.flow import opened
  >>> x, w = jax.numpy.ones((2, 3)), jax.numpy.ones((3, 4))
  >>> flow = opened(jax.make_jaxpr(lambda x, w: jax.numpy.tanh(x + 1) @ w)(x, w))
  >>> [one.op.name for one in written(flow)]
  ['tanh', 'dot_general']
  """
  makers = {value: op for op in flow.ops for value in op.writes}
  kinds = {id(op): kind(op) for op in flow.ops}
  apart, fusing = _readers(flow, makers, kinds)
  spread = _spread(flow, kinds)
  apart |= spread
  outputs = set(flow.outputs)
  repeated = _repeated(flow, kinds, apart | outputs)
  apart |= repeated
  spread |= repeated
  roots: dict[int, frozenset[int]] = {}

  def of(value: int) -> frozenset[int]:
    return _NONE if value < 0 else roots.get(value, frozenset((value,)))

  result = []
  for op in flow.ops:
    cheap, dear = kinds[id(op)] == 'cheap', kinds[id(op)] == 'dear'
    reads = carried = _NONE
    place = 0 if op.name.startswith('scatter') else IN_COLUMNS.get(op.name)
    for value in _taken(op, makers, kinds):
      array = value in apart and not (cheap or dear)
      found = frozenset((value,)) if array else of(value)
      reads |= found
      if op.name in LOOPS or op.name == 'sort' or (place is not None and value == op.reads[place]):
        carried |= found
    if not (cheap or dear) or len(op.writes) != 1:
      result.append(Written(op, reads, carried))
      continue
    value = op.writes[0]
    needed = value in outputs or value in apart
    if needed or (dear and fusing.get(value, 0) > 1):
      result.append(Written(op, reads, carried))
      if dear or value in spread or not _unary(op, flow):
        continue  # whoever reads it reads what was written
    roots[value] = reads
  return result


def _sums(op: Op, kinds: Any) -> bool:
  return kinds[id(op)] == 'reduce'


def _taken(op: Op, makers: Any, kinds: Any) -> tuple[int, ...]:
  """What an equation reads; of a sum of products, their factors."""
  if not _sums(op, kinds):
    return op.reads
  made = [makers.get(value) for value in op.reads]
  products = [one.reads if one is not None and one.name in _PRODUCTS else () for one in made]
  return tuple(read for value, some in zip(op.reads, products, strict=True) for read in some or (value,))


def _readers(flow: Flow, makers: Any, kinds: Any) -> tuple[set[int], dict[int, int]]:
  """The values that some reader needs as arrays, and how many readers could compute each of them anew.

  A sum takes in the product that it sums up, whose factors it needs as arrays, and nothing else.
  """
  apart: set[int] = set()
  fusing: dict[int, int] = {}
  dots = {value for op in flow.ops if op.name == 'dot_general' for value in op.writes}
  transposed = {op.writes[0] for op in flow.ops if op.name == 'transpose'}
  for op in flow.ops:
    for value in dict.fromkeys(op.reads):
      if value < 0:
        continue
      maker = makers.get(value)
      flat = maker is None or is_filled(maker)
      if (op.name == 'transpose' and value in dots) or kinds[id(op)] in ('cheap', 'dear'):
        fusing[value] = fusing.get(value, 0) + 1
      elif flat:
        continue  # a constant is filled in where it is needed
      elif op.name == 'dot_general' and value in transposed:
        fusing[value] = fusing.get(value, 0) + 1  # a product is read in either orientation
      elif kinds[id(op)] == 'reduce' and maker is not None and maker.name in _PRODUCTS:
        fusing[value] = fusing.get(value, 0) + 1
        apart.update(one for one in maker.reads if one >= 0 and not is_filled(makers.get(one)))
      else:
        apart.add(value)
  return apart, fusing


def is_filled(maker: Op | None) -> bool:
  """Whether an array is a constant that is filled in where it is needed."""
  return maker is not None and (
    maker.name == 'iota' or (maker.name == 'broadcast_in_dim' and max(maker.reads, default=-1) < 0)
  )


def _spread(flow: Flow, kinds: Any) -> set[int]:
  """Rows or columns spread over a whole array on their way into a sum, as norms do: a sum's kernel takes arrays."""
  readers: dict[int, list[Op]] = {}
  for op in flow.ops:
    for value in set(op.reads):
      readers.setdefault(value, []).append(op)

  @functools.cache  # many rows meet further on
  def summed(value: int, depth: int) -> bool:
    for op in readers.get(value, ()):
      if kinds[id(op)] == 'reduce':
        return True
      if depth and kinds[id(op)] == 'cheap' and op.name not in _MOVES and summed(op.writes[0], depth - 1):
        return True
    return False

  found = set()
  for op in flow.ops:
    if op.name == 'broadcast_in_dim' and op.reads[0] >= 0 and flow.values[op.writes[0]].dtype == 'float32':
      small, large = flow.values[op.reads[0]].bytes, flow.values[op.writes[0]].bytes
      if 4 < small < large and summed(op.writes[0], _DEEP):
        found.add(op.writes[0])
  return found


def _repeated(flow: Flow, kinds: Any, arrays: set[int]) -> set[int]:
  """Arrays that are written because a loop that took them in would compute each entry too often: readers that take
  entries from other places each add one, and they multiply, as in the levels of an associative scan.

  Args:
    flow: the program.
    kinds: of its equations.
    arrays: values that are written anyway.
  """
  # Of each value that is not written, for each loop that takes it in: who reads it at places of their own, how often.
  uses: dict[int, dict[int, dict[int, int]]] = {}
  found: set[int] = set()
  for op in reversed(flow.ops):
    if kinds[id(op)] not in ('cheap', 'dear') or len(op.writes) != 1:
      continue
    value = op.writes[0]
    loops = uses.pop(value, {})
    often = {loop: sum(readers.values()) for loop, readers in loops.items()}
    if value not in arrays and _too_often(op, kinds[id(op)], often.values()):
      found.add(value)
    if value in arrays or value in found:
      loops, often = {value: {value: 1}}, {value: 1}
    if op.name in _MOVES:
      loops = {loop: {value: count} for loop, count in often.items()}
    for read in set(op.reads):
      if read >= 0:
        mine = uses.setdefault(read, {})
        for loop, readers in loops.items():
          mine[loop] = {**mine.get(loop, {}), **readers}
  return found


def _too_often(op: Op, sort: str, often: Collection[int]) -> bool:
  """Whether XLA:CPU writes an array for how often each of the loops that it could be taken into needs its entries."""
  if op.name in _ONCE:
    return sum(often) > 1
  if sort == 'dear' and len(often) > 1:
    return True
  return op.name != 'broadcast_in_dim' and max(often, default=0) > _REPEATS


def _unary(op: Op, flow: Flow) -> bool:
  """Whether an equation reads one array of its own size at most: XLA computes it again rather than read it."""
  size = flow.values[op.writes[0]].bytes
  return sum(read >= 0 and flow.values[read].bytes >= size for read in set(op.reads)) <= 1
