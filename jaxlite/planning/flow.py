"""A program as the arrays that it really writes: calls opened, equal equations merged, cheap ones fused into readers.

What XLA:CPU does to a jaxpr before it hands out memory, as far as it decides what is held: calls are inlined, a choice
between platforms is made, what is computed twice is computed once (a `jax.checkpoint` that is not in a loop too, so it
saves nothing there), what nobody reads is dropped, and a cheap equation all of whose readers can take it in is never
written out.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite.graph import walk

# Equations that give an array as it lies, under another shape or type.
_SAME = frozenset(
  'reshape squeeze expand_dims stop_gradient copy copy_p optimization_barrier sharding_constraint mesh_cast pvary name '
  'bitcast_convert_type random_wrap random_unwrap reduce_precision_same'.split()
)
# Equations that a loop over entries can hold, as producer or reader.
_CHEAP = frozenset(
  'add sub mul max min neg abs sign floor ceil round is_finite not and or xor eq ne lt le gt ge select_n clamp '
  'convert_element_type broadcast_in_dim iota slice pad concatenate transpose rev square integer_pow real imag '
  'shift_left shift_right_logical shift_right_arithmetic add_any copysign nextafter population_count clz dynamic_slice '
  'gather dynamic_update_slice split rem reduce_precision complex conj'.split()
)
_DEAR = frozenset(
  'exp exp2 log log1p expm1 tanh logistic sqrt rsqrt cbrt pow sin cos tan asin acos atan atan2 sinh cosh asinh acosh '
  'atanh erf erfc erf_inv div lgamma digamma'.split()
)
_REDUCE = frozenset(
  'reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin'.split()
)
_CALLS = ('jaxlite_cpu_held', 'jaxlite_cpu_alone')  # calls that XLA may not open
_LOOPS = ('while', 'scan')


class Value(NamedTuple):
  """An array of the program.

  Attributes:
    bytes: that it takes.
    shape, dtype: of it.
  """

  bytes: int
  shape: tuple[int, ...]
  dtype: str


class Op(NamedTuple):
  """One equation.

  Attributes:
    name: of its primitive, or of the call.
    reads: ids of values.
    writes: ids of values.
    eqn: the equation, for its bodies and parameters.
  """

  name: str
  reads: tuple[int, ...]
  writes: tuple[int, ...]
  eqn: Any


class Flow(NamedTuple):
  """A program, opened.

  Attributes:
    values: by id.
    ops: in the program's order.
    inputs: ids of its arguments.
    outputs: ids of its results; a literal's is -1.
    equations: how many there are in all bodies, as the compiler sees them.
  """

  values: list[Value]
  ops: list[Op]
  inputs: list[int]
  outputs: list[int]
  equations: int


def size_of(aval: Any) -> int:
  """Bytes of an array of this abstract value; keys by their data.

  >>> size_of(jax.ShapeDtypeStruct((2, 3), 'float32'))
  24
  """
  shape, dtype = getattr(aval, 'shape', ()), getattr(aval, 'dtype', None)
  if dtype is None:
    return 0
  if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
    aval = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype))
    shape, dtype = aval.shape, aval.dtype
  return math.prod(shape) * max(1, np.dtype(dtype).itemsize)


class _Opening:
  """Collects the values and equations of a program while it is walked."""

  def __init__(self, platform: str) -> None:
    self.platform = platform
    self.values: list[Value] = []
    self.ops: list[Op] = []
    self.seen: dict[Any, tuple[int, ...]] = {}
    self.equations = 0

  def value(self, aval: Any) -> int:
    self.values.append(Value(size_of(aval), tuple(getattr(aval, 'shape', ())), str(getattr(aval, 'dtype', ''))))
    return len(self.values) - 1

  def body(self, jaxpr: Any, consts: Any, inputs: list[int]) -> list[int]:
    """Walks a body whose arguments are these values; returns those of its results."""
    names: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))
    for var in jaxpr.constvars:
      names[var] = self.value(var.aval)

    def read(atom: Any) -> int:
      if hasattr(atom, 'val'):
        return -1
      return names[atom]

    for eqn in jaxpr.eqns:
      self.equations += 1
      reads = [read(atom) for atom in eqn.invars]
      for var, value in zip(eqn.outvars, self.equation(eqn, reads), strict=True):
        names[var] = value
    return [read(atom) for atom in jaxpr.outvars]

  def equation(self, eqn: Any, reads: list[int]) -> list[int]:
    name = eqn.primitive.name
    if name == 'cond' and eqn.params.get('branches_platforms') is not None:
      inner = self.chosen(eqn)
      return self.open(inner, reads[1:])
    if name == 'platform_index':
      return [-1]
    if name in walk.CALLS and eqn.params.get('name') not in _CALLS:
      bodies = walk.bodies(eqn)
      body = eqn.params[walk.CALLS[name]] if walk.CALLS[name] in eqn.params else bodies[0]
      return self.open(body, reads)
    if name in _SAME and len(eqn.outvars) == len(eqn.invars):
      same = [
        read if read >= 0 and self.values[read].bytes == size_of(var.aval) else self.value(var.aval)
        for var, read in zip(eqn.outvars, reads, strict=True)
      ]
      return same
    label = eqn.params.get('name') if name in walk.CALLS else name
    key = self.key(eqn, label, reads)
    if key is not None and key in self.seen:
      return list(self.seen[key])
    writes = tuple(self.value(var.aval) for var in eqn.outvars)
    self.ops.append(Op(str(label), tuple(reads), writes, eqn))
    if key is not None:
      self.seen[key] = writes
    for body in walk.bodies(eqn) if name in _LOOPS or name == 'cond' else ():
      self.equations += sum(1 for _ in walk.equations(body))
    return list(writes)

  def open(self, body: Any, reads: list[int]) -> list[int]:
    jaxpr, consts = walk.opened(body)
    return self.body(jaxpr, consts, reads)

  def chosen(self, eqn: Any) -> Any:
    """The branch that is lowered for the platform."""
    for platforms, branch in zip(eqn.params['branches_platforms'], eqn.params['branches'], strict=True):
      if platforms is None or self.platform in platforms:
        return branch
    return eqn.params['branches'][-1]

  def key(self, eqn: Any, label: Any, reads: list[int]) -> Any:
    """What two equations that give the same have in common; None where that cannot be told in a few words."""
    if walk.bodies(eqn) or eqn.effects or any(hasattr(atom, 'val') and np.size(atom.val) > 1 for atom in eqn.invars):
      return None
    literals = tuple(
      (np.asarray(atom.val).tobytes() if not isinstance(atom.val, int | float | bool) else repr(atom.val))
      for atom in eqn.invars
      if hasattr(atom, 'val')
    )
    try:
      parameters = tuple(sorted((name, str(value)) for name, value in eqn.params.items() if name != 'sharding'))
    except Exception:  # a parameter that cannot be written
      return None
    avals = tuple(str(var.aval) for var in eqn.outvars)
    return (label, tuple(reads), literals, parameters, avals)


def opened(jaxpr: Any, platform: str = 'cpu') -> Flow:
  """Opens the calls of a program and drops what nobody reads.

  Args:
    jaxpr: closed or open.
    platform: for which choices between platforms are made.

  >>> flow = opened(jax.make_jaxpr(lambda x: (x + 1, x * 2)[0])(jax.numpy.ones(3)))
  >>> [op.name for op in flow.ops], flow.values[flow.outputs[0]].bytes
  (['add'], 12)
  """
  bare, consts = walk.opened(jaxpr)
  walker = _Opening(platform)
  inputs = [walker.value(var.aval) for var in bare.invars]
  outputs = walker.body(bare, consts, inputs)
  needed = {value for value in outputs if value >= 0}
  kept = []
  for op in reversed(walker.ops):
    if op.eqn.effects or any(value in needed for value in op.writes):
      needed.update(value for value in op.reads if value >= 0)
      kept.append(op)
  return Flow(walker.values, kept[::-1], inputs, outputs, walker.equations)


class Written(NamedTuple):
  """One array that is really written, or several by one equation.

  Attributes:
    op: that gives it.
    reads: ids of the arrays that it is computed from, through what is fused into it.
    entrywise: of these the ones that it reads entry by entry, so that it may take their place.
  """

  op: Op
  reads: frozenset[int]
  entrywise: frozenset[int]


def kind(op: Op) -> str:
  """'cheap', 'dear', 'reduce' or 'apart', as XLA:CPU fuses an equation."""
  if op.name in _CHEAP:
    return 'cheap'
  if op.name in _DEAR:
    return 'dear'
  return 'reduce' if op.name in _REDUCE else 'apart'


def written(flow: Flow) -> list[Written]:
  """Returns what a program writes out, in its order.

  Args:
    flow: of `opened`.

  >>> flow = opened(jax.make_jaxpr(lambda x, w: jax.numpy.tanh(x + 1) @ w)(jax.numpy.ones((2, 3)), jax.numpy.ones((3, 4))))
  >>> [one.op.name for one in written(flow)]
  ['tanh', 'dot_general']
  """
  makers = {value: op for op in flow.ops for value in op.writes}
  kinds = {id(op): kind(op) for op in flow.ops}
  apart, fusing = _readers(flow, makers, kinds)
  outputs = set(flow.outputs)
  roots: dict[int, tuple[frozenset[int], frozenset[int]]] = {}

  def of(value: int) -> tuple[frozenset[int], frozenset[int]]:
    if value < 0:
      return _NONE, _NONE
    return roots.get(value, (frozenset((value,)), frozenset((value,))))

  result = []
  for op in flow.ops:
    cheap, dear = kinds[id(op)] == 'cheap', kinds[id(op)] == 'dear'
    reads = entrywise = _NONE
    for value in op.reads:
      direct = not (cheap or dear or _sums(op, kinds))
      pair = (frozenset((value,)) - {-1},) * 2 if direct else of(value)
      reads |= pair[0]
      if op.name in _LOOPS or ((cheap or dear) and op.name not in _MOVES):  # a carry stays where it is
        entrywise |= pair[1]
    if not (cheap or dear) or len(op.writes) != 1:
      result.append(Written(op, reads, entrywise))
      continue
    value = op.writes[0]
    needed = value in outputs or value in apart
    if needed or (dear and fusing.get(value, 0) > 1):
      result.append(Written(op, reads, entrywise))
      if dear or not _unary(op, flow):
        continue  # whoever reads it reads what was written
    roots[value] = (reads, entrywise)
  return result


_NONE: frozenset[int] = frozenset()


def _sums(op: Op, kinds: Any) -> bool:
  return kinds[id(op)] == 'reduce'


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
      flat = maker is None or maker.name in ('iota',) or (maker.name == 'broadcast_in_dim' and max(maker.reads) < 0)
      if op.name == 'transpose' and value in dots:
        fusing[value] = fusing.get(value, 0) + 1
      elif kinds[id(op)] in ('cheap', 'dear'):
        fusing[value] = fusing.get(value, 0) + 1
      elif flat:
        continue  # a constant is filled in where it is needed
      elif op.name == 'dot_general' and value in transposed:
        fusing[value] = fusing.get(value, 0) + 1  # a product is read in either orientation
      elif kinds[id(op)] == 'reduce' and maker is not None and maker.name in ('mul', 'square', 'integer_pow'):
        fusing[value] = fusing.get(value, 0) + 1
        apart.update(one for one in maker.reads if one >= 0)
      else:
        apart.add(value)
  return apart, fusing


def _unary(op: Op, flow: Flow) -> bool:
  """Whether an equation reads one array of its own size at most: XLA computes it again rather than read it."""
  size = flow.values[op.writes[0]].bytes
  return sum(read >= 0 and flow.values[read].bytes >= size for read in set(op.reads)) <= 1


# Cheap equations whose entries come from other places than their own.
_MOVES = frozenset('broadcast_in_dim slice pad concatenate transpose rev dynamic_slice gather split iota'.split())
