"""Floats entry by entry: operations that follow one another become one chain, which kernels run block by block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jaxlite.cpu.kernels import integers
from jaxlite.deployment.operations import Graph, Operation
from jaxlite.deployment.running.kernel_plan import SIGN, Maker, Unknown, of_example

_ONE, _TWO = (
  frozenset({'neg', 'square', 'sqrt', 'rsqrt', 'exp', 'tanh', 'logistic', 'abs'}),
  frozenset({'add', 'sub', 'mul', 'div', 'max', 'min'}),
)
_MADE_OF = {'relu', 'clip', 'integer_pow', 'quantize', 'dequantize'}
KINDS = _ONE | _TWO | _MADE_OF
_POWERS = (1, 2, 3, 4, -1, -2)
_OUT = ('store', 'grid')
_LONGEST = 24  # operations of a chain: each takes a few instructions


class Chain(NamedTuple):
  """Operations that kernels run as one."""

  operations: tuple[Operation, ...]


def belongs(graph: Graph, one: Operation) -> bool:
  """Tells whether an operation is one of floats, entry by entry: a clip of int8, say, is none."""
  return one.kind in KINDS and (one.kind == 'quantize' or graph.values[one.outputs[0]].dtype == np.float32)


def grouped(graph: Graph) -> Iterator[Operation | Chain]:
  """Yields the operations of a piece in order, those that can be one chain together."""
  waiting: list[Operation] = []
  last = 0

  def flushed() -> Iterator[Chain]:
    if waiting:
      yield Chain(tuple(waiting))
      waiting.clear()

  for one in graph.operations:
    if not belongs(graph, one):
      yield from flushed()
      yield one
      continue
    count = math.prod(of_example(graph.values[one.outputs[0]].shape))
    together = count == last and len(_inner(graph, [*waiting, one])) < 2 and len(waiting) < _LONGEST
    if not together:
      yield from flushed()
    waiting.append(one)
    last = count
  yield from flushed()


def _inner(graph: Graph, operations: Iterable[Operation]) -> tuple[int, ...]:
  """Lengths of the rows along which operands are repeated: a chain has one."""
  found = {}
  for one in operations:
    for name in one.inputs:
      if name not in graph.constants and (inner := _row(graph, one, name)) > 1:
        found[inner] = None
  return tuple(found)


def _row(graph: Graph, one: Operation, name: str) -> int:
  """How many entries of the result one entry of an operand serves: 1 where they are as many; 0 where it is no row."""
  shape, out = of_example(graph.values[name].shape), of_example(graph.values[one.outputs[0]].shape)
  if shape == out or math.prod(shape) == math.prod(out):
    return 1
  if len(shape) != len(out):
    return 0
  last = len(shape)
  while last and shape[last - 1] == 1:
    last -= 1
  return math.prod(out[last:]) if shape[:last] == out[:last] else 0


def check(graph: Graph, one: Operation) -> None:
  """Raises Unknown where an operation can be in no chain."""
  out = graph.values[one.outputs[0]]
  wanted = np.int8 if one.kind == 'quantize' else np.float32
  if out.dtype != wanted or (one.kind == 'integer_pow' and one.attributes['y'] not in _POWERS):
    raise Unknown(f'{one.kind} of {out.dtype}')
  for name in one.inputs:
    value = graph.values[name]
    if value.dtype != (np.int8 if one.kind == 'dequantize' else np.float32):
      raise Unknown(f'{one.kind} of {value.dtype}')
    if name in graph.constants:
      if one.kind not in _TWO or len(value.shape) not in (0, len(out.shape)):
        raise Unknown('an operand that is known')
      if graph.constants[name].ndim and len(graph.constants[name]) != 1:
        raise Unknown('examples that are known')
    elif not _row(graph, one, name):
      raise Unknown('an operand that is repeated along other axes')


def _key(one: Operation, name: str) -> str:
  """What a register holds: of bytes, their distance from the zero that an operation says."""
  return f'{name} from {one.attributes["zero_point"]}' if one.kind == 'dequantize' else name


class _Writer(NamedTuple):
  maker: Maker
  code: list[tuple[int, int, int, int]]
  registers: dict[str, int]  # by `_key`
  free: list[int]
  touched: dict[int, None]
  reads: dict[str, int]  # by `_key`: how often it is still read within
  inner: int

  def do(self, what: str, to: int, a: int = 0, b: int = 0) -> None:
    self.code.append((integers.INSTRUCTIONS.index(what), to, a, b))

  def register(self) -> int:
    if not self.free:
      raise Unknown('more values at once than there are registers')
    return self.free.pop()

  def read(self, one: Operation, name: str) -> int:
    """The register of an operand, which is loaded where it is in none."""
    graph = self.maker.graph
    key = _key(one, name)
    if key in self.registers:
      return self.registers[key]
    to = self.register()
    if name not in graph.constants:
      number = self.maker.buffer(name)
      self.touched[number] = None
      if one.kind == 'dequantize':
        self.do('bytes', to, number, one.attributes['zero_point'] + SIGN)
      else:
        self.do('rows' if _row(graph, one, name) > 1 else 'load', to, number)
    else:
      self.known(one, name, to)
    self.registers[key] = to
    return to

  def known(self, one: Operation, name: str, to: int) -> None:
    array = self.maker.graph.constants[name].astype(np.float32)
    if array.size == 1:
      self.do('constant', to, integers.bits(array.reshape(())))
      return
    shape = of_example(self.maker.graph.values[one.outputs[0]].shape)
    array = np.broadcast_to(array, (1, *array.shape[1:]))[0]
    last = 0
    while last < array.ndim and array.shape[last] == 1:
      last += 1
    tail = array.reshape(array.shape[last:])
    if tail.shape != shape[len(shape) - tail.ndim :]:
      tail = np.broadcast_to(array, shape[len(shape) - array.ndim :])
    self.do('periodic', to, self.maker.put(np.ascontiguousarray(tail)), tail.size)

  def release(self, key: str) -> None:
    self.reads[key] = self.reads.get(key, 1) - 1
    if self.reads[key] <= 0 and key in self.registers:
      self.free.append(self.registers.pop(key))

  def number(self, real: float) -> int:
    to = self.register()
    self.do('constant', to, integers.bits(real))
    return to


def write(maker: Maker, chain: Chain) -> None:
  """Puts a chain into a plan: one step, or two halves where it needs more registers than there are."""
  try:
    _write(maker, chain.operations)
  except Unknown:
    if len(chain.operations) < 2:
      raise
    half = len(chain.operations) // 2
    write(maker, Chain(chain.operations[:half]))
    write(maker, Chain(chain.operations[half:]))


def _write(maker: Maker, operations: tuple[Operation, ...]) -> None:
  graph = maker.graph
  reads: dict[str, int] = {}
  for one in operations:
    for key in {_key(one, name) for name in one.inputs}:
      reads[key] = reads.get(key, 0) + 1
  outside = {name for one in graph.operations if one not in operations for name in one.inputs} | {*graph.outputs}
  inner = (*_inner(graph, operations), 1)[0]
  writer = _Writer(maker, [], {}, [*range(integers.REGISTERS)], {}, reads, inner)
  for one in operations:
    output = one.outputs[0]
    operands = [writer.read(one, name) for name in one.inputs]
    to = writer.register()
    _instructions(writer, one, operands, to)
    for key in {_key(one, name) for name in one.inputs}:
      writer.release(key)
    if one.kind == 'quantize':
      writer.free.append(to)
      continue
    writer.registers[output] = to
    if output in outside:
      number = maker.buffer(output)
      writer.touched[number] = None
      writer.do('store', 0, to, number)
    if not reads.get(output):
      writer.release(output)
  named = [integers.INSTRUCTIONS[what] for what, *_ in writer.code]
  moves = sum(what in (*_OUT, 'load', 'rows', 'bytes') for what in named)
  if len(writer.code) > integers.LONGEST or moves > integers.MOST_READ or len(operations) > _LONGEST:
    raise Unknown('a chain that is too long')
  at = maker.put(np.array(writer.code, np.int32))
  count = maker.count(operations[-1].outputs[0])
  written = [
    b if what == 'store' else to for what, (_, to, _, b) in zip(named, writer.code, strict=True) if what in _OUT
  ]
  if written:  # else nobody reads what it makes
    maker.step('chain', written[-1], written[-1], [count, len(writer.code), at, inner], more=[*writer.touched])


def _instructions(writer: _Writer, one: Operation, operands: list[int], to: int) -> None:
  told = one.attributes
  if one.kind in _ONE or one.kind in _TWO:
    writer.do(one.kind, to, *operands)
  elif one.kind == 'relu':
    zero = writer.number(0.0)
    writer.do('max', to, operands[0], zero)
    writer.free.append(zero)
  elif one.kind == 'clip':
    for kind, end in (('max', told['low']), ('min', told['high'])):
      number = writer.number(end)
      writer.do(kind, to, operands[0] if kind == 'max' else to, number)
      writer.free.append(number)
  elif one.kind == 'dequantize':
    number = writer.number(told['scale'])
    writer.do('mul', to, operands[0], number)
    writer.free.append(number)
  elif one.kind == 'quantize':
    number = writer.number(float(np.float32(1) / np.float32(told['scale'])))
    writer.do('mul', to, operands[0], number)
    writer.free.append(number)
    zero = told['zero_point']
    ends = (told['low'] - zero + 256) << 8 | (told['high'] - zero + 256) << 17
    output = writer.maker.buffer(one.outputs[0])
    writer.touched[output] = None
    writer.do('grid', output, to, zero + SIGN | ends)
  else:
    _power(writer, operands[0], to, told['y'])


def _power(writer: _Writer, x: int, to: int, power: int) -> None:
  if abs(power) == 1:
    writer.do('max', to, x, x)
  else:
    writer.do('square', to, x)
  if power == 3:
    writer.do('mul', to, to, x)
  elif power == 4:
    writer.do('square', to, to)
  if power < 0:
    one = writer.number(1.0)
    writer.do('div', to, one, to)
    writer.free.append(one)
