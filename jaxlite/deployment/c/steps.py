"""A graph as steps of C: functions over buffers, before it is decided where in memory each buffer lies.

A value is a view of a buffer: an offset and a stride for each axis. So what only turns, cuts, repeats or reshapes costs
nothing; whoever needs its entries side by side has them copied, once. Operations entry by entry, each read by the next
alone, are one loop.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.c import scalars as c_scalars
from jaxlite.deployment.c.text import number, type_of
from jaxlite.deployment.operations import Batch, Graph, Operation, readers, sized

_LONGEST = 48  # operations of one loop
_DECIDES = ('round', 'floor', 'ceil', 'sign')  # a rounding of their operand may become a whole step


class View(NamedTuple):
  """Where the entries of a value lie in a buffer."""

  buffer: str
  offset: int
  strides: tuple[int, ...]
  shape: tuple[int, ...]

  @property
  def contiguous(self) -> bool:
    want = whole_strides(self.shape)
    return all(a == b or size <= 1 for a, b, size in zip(self.strides, want, self.shape, strict=True))


class Step(NamedTuple):
  """A call of a C function.

  Attributes:
    body: its statements, over the parameters a0, a1, ... (read), out (written) and s0, s1, ... (memory meanwhile).
    inputs: buffers and offsets of a0, a1, ...
    output: the buffer that it fills.
    scratch: buffers of s0, s1, ...
    note: what it computes, for a comment.
    value: the value that it makes; '' where that has no name in the graph.
    over: those of `inputs` that are read entry by entry as out is written, and so may be the same memory.
  """

  body: str
  inputs: tuple[tuple[str, int], ...]
  output: str
  scratch: tuple[str, ...] = ()
  note: str = ''
  value: str = ''
  over: tuple[int, ...] = ()


class Buffer(NamedTuple):
  """A stretch of memory: `size` entries of a dtype."""

  dtype: np.dtype[Any]
  size: int


class Node(NamedTuple):
  """An expression of one entry: a template over others, or (text '') what a view has there, or a number."""

  text: str
  children: tuple[Any, ...]
  dtype: np.dtype[Any]
  exact: bool
  count: int
  view: View | None = None
  notes: tuple[str, ...] = ()  # the operations in it


class Builder(NamedTuple):
  """Steps, growing."""

  graph: Graph
  views: dict[str, View]
  buffers: dict[str, Buffer]
  constants: dict[str, np.ndarray]
  steps: list[Step]
  pending: dict[str, Node]
  held: dict[tuple[Any, ...], str]
  uses: Mapping[str, int]
  made: dict[str, Operation]  # what is written only if somebody needs it as floats
  reader: Mapping[str, Operation]

  def shape(self, name: str) -> tuple[int, ...]:
    """The shape of a value for one example."""
    return sized(self.graph.values[name].shape, 1)

  def dtype(self, name: str) -> np.dtype[Any]:
    return np.dtype(self.graph.values[name].dtype)

  def buffer(self, near: str, dtype: Any, size: int) -> str:
    name = near
    while name in self.buffers:
      name += "'"
    self.buffers[name] = Buffer(np.dtype(dtype), size)
    return name

  def constant(self, array: np.ndarray) -> str:
    """A constant buffer; equal ones are one."""
    array = np.ascontiguousarray(array)
    key = (array.dtype.str, array.size, array.tobytes())
    if key not in self.held:
      self.held[key] = self.buffer(f'constant {len(self.constants)}', array.dtype, array.size)
      self.constants[self.held[key]] = array.reshape(-1)
    return self.held[key]

  def begin(self, name: str) -> None:
    """Computes what was put off until somebody needs it."""
    if name in self.made and name not in self.views and name not in self.pending:
      each(self, self.made[name])

  def view(self, name: str) -> View:
    """Where a value lies; a constant becomes an array of the file when it is first read."""
    self.begin(name)
    if name in self.pending:
      write(self, name, self.pending.pop(name))
    if name not in self.views:
      array, shape = self.graph.constants[name], self.shape(name)
      lead = (1,) * (len(shape) - array.ndim)
      strides = whole_strides(array.shape)
      strides = tuple(0 if size == 1 else one for one, size in zip(strides, array.shape, strict=True))
      self.views[name] = View(self.constant(array), 0, (0,) * len(lead) + strides, shape)
    return self.views[name]

  def side_by_side(self, name: str) -> tuple[str, int]:
    """The buffer and offset where the entries of a value lie one after the other; copied there if need be."""
    view = self.view(name)
    if not view.contiguous:
      view = self.views[name] = copied(self, view, f'{name} side by side')
    return view.buffer, view.offset

  def fresh(self, name: str) -> str:
    """A buffer that holds a value whole."""
    shape = self.shape(name)
    buffer = self.buffer(name, self.dtype(name), math.prod(shape))
    self.views[name] = View(buffer, 0, whole_strides(shape), shape)
    return buffer

  def put(self, one: Operation, body: str, inputs: Sequence[tuple[str, int]], **rest: Any) -> None:
    """Writes the step that computes an operation's one result."""
    output = one.outputs[0]
    self.steps.append(Step(body, tuple(inputs), self.fresh(output), note=str(one), value=output, **rest))

  def scalar(self, name: str) -> Any:
    """The value of a constant that is one number wherever it stands; None for another."""
    array = self.graph.constants.get(name)
    return None if array is None or array.size != 1 else array.reshape(-1)[0]


def whole_strides(shape: Sequence[int]) -> tuple[int, ...]:
  """Returns the strides of entries side by side.

  >>> whole_strides((2, 3, 4))
  (12, 4, 1)
  """
  found, step = [], 1
  for size in reversed(shape):
    found.append(step)
    step *= size
  return tuple(reversed(found))


def builder(graph: Graph) -> Builder:
  """Returns a Builder that knows the inputs of a graph."""
  reader = {name: one for one in graph.operations for name in one.inputs}
  built = Builder(graph, {}, {}, {}, [], {}, {}, readers(graph.operations, graph.outputs), {}, reader)
  for name in graph.inputs:
    built.fresh(name)
  return built


# --- loops ------------------------------------------------------------------------------------------------------------


def nest(
  shape: Sequence[int],
  strides: Sequence[Sequence[int]],
  body: Callable[[list[str]], Sequence[str]],
  letter: str = 'i',
  first: Sequence[str] | None = None,
) -> list[str]:
  """Returns loops over every entry of a shape, axes joined where all operands allow it.

  Args:
    shape: as many loops as axes longer than 1.
    strides: of each operand.
    body: what stands inside, given where each operand is read.
    letter: of the loops' variables.
    first: where each operand begins, as an expression.
  """
  begin = list(first or ['0'] * len(strides))
  if 0 in shape:
    return []
  axes: list[tuple[int, tuple[int, ...]]] = []
  for axis, size in enumerate(shape):
    if size == 1:
      continue
    steps = tuple(one[axis] for one in strides)
    if axes and all(outer == inner * size for outer, inner in zip(axes[-1][1], steps, strict=True)):
      axes[-1] = (axes[-1][0] * size, steps)
    else:
      axes.append((size, steps))
  lines, where = [], begin
  for depth, (size, steps) in enumerate(axes):
    name, pad = f'{letter}{depth}', '  ' * depth
    lines.append(f'{pad}for (long {name} = 0; {name} < {size}; ++{name}) {{')
    where = [added(one, name, step) for one, step in zip(where, steps, strict=True)]
  lines += ['  ' * len(axes) + line for line in body(where)]
  return lines + ['  ' * depth + '}' for depth in reversed(range(len(axes)))]


def added(where: str, name: str, step: int) -> str:
  """An index and a multiple of a variable.

  >>> added('0', 'i0', 4), added('i0 * 4', 'i1', 1), added('i0', 'i1', 0), added('i0', 'i1', -2)
  ('i0 * 4', 'i0 * 4 + i1', 'i0', 'i0 - i1 * 2')
  """
  if step == 0:
    return where
  part = name if abs(step) == 1 else f'{name} * {abs(step)}'
  if where == '0':
    return part if step > 0 else f'-{part}'
  return f'{where} {"+" if step > 0 else "-"} {part}'


def copied(b: Builder, view: View, note: str, near: str = 'copy') -> View:
  """A view's entries side by side, in a buffer of their own."""
  dtype = b.buffers[view.buffer].dtype
  buffer = b.buffer(near, dtype, math.prod(view.shape))
  target = whole_strides(view.shape)
  lines = nest(view.shape, (target, view.strides), lambda at: [f'out[{at[0]}] = a0[{at[1]}];'])
  b.steps.append(Step('\n'.join(lines), ((view.buffer, view.offset),), buffer, note=note))
  return View(buffer, 0, target, view.shape)


# --- entry by entry ---------------------------------------------------------------------------------------------------


def each(b: Builder, one: Operation) -> None:
  """An operation entry by entry: kept for the one loop of those that follow it, or written."""
  (output,), shape = one.outputs, b.shape(one.outputs[0])
  inputs = [_operand(b, name, shape, _lane(b, one, index)) for index, name in enumerate(one.inputs)]
  dtypes = [node.dtype for node in inputs]
  found = c_scalars.RULES[one.kind](dtypes, b.dtype(output), one.attributes)
  if one.kind in _DECIDES or not c_scalars.floating(b.dtype(output)):  # by values that are there to be looked at
    inputs = [node if node.exact else _seen(b, name, node) for name, node in zip(one.inputs, inputs, strict=True)]
  node = Node(
    found.text,
    tuple(inputs),
    b.dtype(output),
    found.exact and all(node.exact for node in inputs),
    1 + sum(node.count for node in inputs),
    notes=(*(note for node in inputs for note in node.notes), str(one)),
  )
  if _waits(b, output, node):
    b.pending[output] = node
  else:
    write(b, output, node)


def _lane(b: Builder, one: Operation, index: int) -> int | None:
  """Along which axis the second operand of `dequantize` lies."""
  return one.attributes.get('axis', 0) if one.kind == 'dequantize' and index == 1 else None


def _operand(b: Builder, name: str, shape: Sequence[int], lane: int | None) -> Node:
  b.begin(name)
  if name in b.pending:
    return b.pending.pop(name)
  dtype, value = b.dtype(name), b.scalar(name)
  if value is not None:
    text = number(value, dtype)
    text = f'({text})' if text.startswith('-') else text
    return Node(text, (), dtype, True, 0)
  view = b.view(name)
  if lane is not None:
    strides = tuple(view.strides[0] if axis == lane else 0 for axis in range(len(shape)))
    return Node('', (), dtype, True, 0, View(view.buffer, view.offset, strides, tuple(shape)))
  return Node('', (), dtype, True, 0, broadcast(view, shape))


def broadcast(view: View, shape: Sequence[int]) -> View:
  """A view of a shape that it is repeated to, as NumPy does it."""
  lead = len(shape) - len(view.shape)
  strides = [0] * lead
  for stride, size in zip(view.strides, view.shape, strict=True):
    strides.append(0 if size == 1 else stride)
  return View(view.buffer, view.offset, tuple(strides), tuple(shape))


def _seen(b: Builder, name: str, node: Node) -> Node:
  write(b, name, node)
  view = b.views[name]
  return Node('', (), node.dtype, True, 0, view)


def _waits(b: Builder, output: str, node: Node) -> bool:
  """Whether a result is read by one operation entry by entry and of the same shape alone."""
  reader = b.reader.get(output)
  if b.uses.get(output, 0) != 1 or reader is None or reader.kind not in c_scalars.RULES or node.count > _LONGEST:
    return False
  if reader.kind == 'dequantize' or node.dtype == np.int8:  # every stored integer is there to be looked at
    return False
  return b.shape(reader.outputs[0]) == b.shape(output) and output not in b.graph.outputs


def write(b: Builder, output: str, node: Node) -> None:
  """Writes the loop of an expression."""
  shape = b.shape(output)
  loads: list[tuple[View, np.dtype[Any]]] = []
  lines: list[str] = []
  names: dict[int, str] = {}

  def local(one: Node) -> str:
    if one.view is None and not one.children:
      return one.text
    if id(one) in names:
      return names[id(one)]
    if one.view is not None:
      if (one.view, one.dtype) not in loads:
        loads.append((one.view, one.dtype))
      text = f'<{loads.index((one.view, one.dtype))}>'
    else:
      needed = [local(child) if f'{{{index}}}' in one.text else '' for index, child in enumerate(one.children)]
      text = one.text.format(*needed)
      text = text[1:-1] if re.fullmatch(r'\([^()]*\)', text) else text
    name = names[id(one)] = f't{len(lines)}'
    lines.append(f'const {type_of(one.dtype, output)} {name} = {text};')
    return name

  result = local(node)
  places: list[tuple[str, int]] = []
  for view, _ in loads:
    if (view.buffer, view.offset) not in places:
      places.append((view.buffer, view.offset))

  def body(at: list[str]) -> list[str]:
    found = [_filled(line, at, loads, places) for line in lines]
    return [*found, f'out[{at[0]}] = {result};']

  target = whole_strides(shape)
  text = '\n'.join(nest(shape, [target, *(view.strides for view, _ in loads)], body))
  over = []
  for index, place in enumerate(places):
    mine = [(view, dtype) for view, dtype in loads if (view.buffer, view.offset) == place]
    same = all(view.contiguous and view.shape == tuple(shape) for view, _ in mine)
    if same and place[1] == 0 and b.buffers[place[0]] == Buffer(b.dtype(output), math.prod(shape)):
      over.append(index)
  b.steps.append(Step(text, tuple(places), b.fresh(output), note='\n'.join(node.notes), value=output, over=tuple(over)))


def _filled(line: str, at: Sequence[str], loads: Sequence[tuple[View, Any]], places: Sequence[tuple[str, int]]) -> str:
  def place(match: re.Match[str]) -> str:
    index = int(match[1])
    view = loads[index][0]
    return f'a{places.index((view.buffer, view.offset))}[{at[1 + index]}]'

  return re.sub(r'<(\d+)>', place, line)


def told_at_one(one: Operation) -> Operation:
  """An operation with its attributes for one example."""
  return one._replace(attributes={name: _at_one(value) for name, value in one.attributes.items()})


def _at_one(value: Any) -> Any:
  if isinstance(value, Batch):
    return value.times
  return tuple(map(_at_one, value)) if isinstance(value, tuple) else value
