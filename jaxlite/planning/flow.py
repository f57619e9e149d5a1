"""A program as the arrays that it really writes: calls opened, equal equations merged, cheap ones fused into readers.

What XLA:CPU does to a jaxpr before it hands out memory, as far as it decides what is held: calls are inlined, a choice
between platforms is made, what is computed twice is computed once (a `jax.checkpoint` that is not in a loop too, so it
saves nothing there), what nobody reads is dropped, and a cheap equation all of whose readers can take it in is never
written out.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite.graph import sharding, walk


def words(text: str) -> frozenset[str]:
  """Returns the words of a text."""
  return frozenset(text.split())


# Equations that give an array as it lies, under another shape or type.
_SAME = words(
  'reshape squeeze expand_dims stop_gradient copy copy_p optimization_barrier sharding_constraint mesh_cast pvary '
  'name bitcast_convert_type random_wrap random_unwrap reduce_precision_same'
)
_CALLS = (
  'jaxlite_cpu_held',
  'jaxlite_cpu_alone',
  'jaxlite_cpu_after',
  'jaxlite_cpu_late',
)  # calls that XLA may not open
LOOPS = ('while', 'scan')


class Value(NamedTuple):
  """An array of the program.

  Attributes:
    bytes: that it takes; where devices have one each, all of these.
    shape, dtype: of it, on one of them.
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
  dtype = getattr(aval, 'dtype', None)
  return 0 if dtype is None else math.prod(getattr(aval, 'shape', ())) * _width(dtype)


@functools.cache
def _width(dtype: Any) -> int:
  """Bytes of one entry; of a key those of its words."""
  if not jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
    return max(1, np.dtype(dtype).itemsize)
  try:
    words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype))
  except TypeError:  # a type of somebody's own
    return 8
  return math.prod(words.shape) * words.dtype.itemsize


class _Opening:
  """Collects the values and equations of a program while it is walked."""

  def __init__(self, platform: str) -> None:
    self.platform = platform
    self.values: list[Value] = []
    self.kinds: dict[Any, Value] = {}  # by abstract value: a program has few
    self.ops: list[Op] = []
    self.seen: dict[Any, tuple[int, ...]] = {}
    self.equations = 0
    self.copies = 1  # of what is walked now, one on each of so many devices

  def size(self, aval: Any) -> int:
    return self.copies * size_of(aval)

  def value(self, aval: Any) -> int:
    found = self.kinds.get((aval, self.copies))
    if found is None:
      found = Value(self.size(aval), tuple(getattr(aval, 'shape', ())), str(getattr(aval, 'dtype', '')))
      self.kinds[aval, self.copies] = found
    self.values.append(found)
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
      return self.open(walk.lowered(eqn, self.platform), reads[1:])
    if name == 'platform_index':
      return [-1]
    if name in walk.CALLS and eqn.params.get('name') not in _CALLS:
      bodies = walk.bodies(eqn)
      body = eqn.params[walk.CALLS[name]] if walk.CALLS[name] in eqn.params else bodies[0]
      copies, self.copies = self.copies, self.copies * (sharding.devices(eqn) if name == 'shard_map' else 1)
      found = self.open(body, reads)
      self.copies = copies
      return found
    if name == 'custom_linear_solve':  # of its four programs this one runs
      lengths, solve = eqn.params['const_lengths'], eqn.params['jaxprs'].solve
      before = lengths.matvec + lengths.vecmat
      return self.open(solve, reads[before : before + lengths.solve] + reads[sum(lengths) :])
    if name in _SAME and len(eqn.outvars) == len(eqn.invars):
      same = [
        read if read >= 0 and self.values[read].bytes == self.size(var.aval) else self.value(var.aval)
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
    for body in walk.bodies(eqn) if name in LOOPS or name == 'cond' else ():
      self.equations += sum(1 for _ in walk.equations(body))
    return list(writes)

  def open(self, body: Any, reads: list[int]) -> list[int]:
    jaxpr, consts = walk.opened(body)
    return self.body(jaxpr, consts, reads)

  def key(self, eqn: Any, label: Any, reads: list[int]) -> Any:
    """What two equations that give the same have in common; None where that cannot be told in a few words."""
    if walk.bodies(eqn) or eqn.effects or any(hasattr(atom, 'val') and np.size(atom.val) > 1 for atom in eqn.invars):
      return None
    literals = tuple(
      (np.asarray(atom.val).tobytes() if not isinstance(atom.val, int | float | bool) else repr(atom.val))
      for atom in eqn.invars
      if hasattr(atom, 'val')
    )
    parameters = []
    for name, value in sorted(eqn.params.items()):
      if name == 'sharding':
        continue
      try:
        hash(value)
        parameters.append((name, type(value), value))
      except TypeError:
        parameters.append((name, str, str(value)))
      except Exception:  # a parameter that can neither be hashed nor written
        return None
    avals = tuple(walk.form(var.aval) for var in eqn.outvars)
    return (label, tuple(reads), literals, tuple(parameters), avals, self.copies)


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
