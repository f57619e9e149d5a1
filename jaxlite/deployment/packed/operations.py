"""A network's operations as words and back, in a few bytes each.

What has been said is not said again: an operation is the number of its signature (kind, counts, names of attributes),
its inputs are counted backwards, a constant that is new is the next one, and results are as guessed unless told. Names
inside are given anew when it is read, unless they are to be kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.operations import Batch, Graph, Operation, Shape, Value, reference
from jaxlite.deployment.packed.shapes import DTYPES, dtype_named, guessed
from jaxlite.deployment.packed.values import Place
from jaxlite.deployment.packed.words import Reader, Unreadable, Writer

_LARGEST = 1 << 40  # a size
_WEIGHTS = {'dense': 1, 'quantized_dense': 1, 'conv': 0, 'quantized_conv': 0}  # the axis of their outputs
_FAR = 40  # operations that are looked back over for the layer before


class Plan(NamedTuple):
  """A graph whose constants are still to be read.

  Attributes:
    graph: without constants.
    arrays: (name, dtype, shape) of each, in the order in which they are stored.
  """

  graph: Graph
  arrays: list[tuple[str, np.dtype[Any], tuple[int, ...]]]


def dtype_code(dtype: np.dtype[Any]) -> int:
  """Raises ValueError where no packed array is of it."""
  if dtype.name not in DTYPES:
    raise ValueError(f'a packed array is of numbers; got one of {dtype}')
  return DTYPES.index(dtype.name)


def _dtype(words: Reader) -> np.dtype[Any]:
  return dtype_named(DTYPES[words.number(len(DTYPES) - 1)])


def write_graph(words: Writer, graph: Graph, names: bool) -> list[str]:
  """Writes a graph but for the values of its constants.

  Args:
    words: grow.
    graph: any.
    names: keep those of values and constants inside, too.

  Returns:
    The names of its constants in the order in which they are stored.

  Raises:
    ValueError: an operation that `reference.RULES` lacks, or a graph that is none.
  """
  used = [name for one in graph.operations for name in one.inputs if name in graph.constants]
  order = list(dict.fromkeys([*used, *graph.constants]))
  words.number(int(names))
  _write_constants(words, graph, order)
  words.number(len(graph.inputs))
  known: dict[str, int] = {}
  constants: dict[str, int] = {}
  for name in graph.inputs:
    known[name] = len(known)
    words.text(name)
    _write_value(words, graph.values[name])
  if len(known) != len(graph.inputs) or any(name in graph.constants for name in known):
    raise ValueError(f'inputs have a name each, which is no constant; got {", ".join(graph.inputs)}')
  signatures: dict[Any, int] = {}
  words.number(len(graph.operations))
  for one in graph.operations:
    if one.kind not in reference.RULES:
      raise ValueError(f'a packed graph is made of operations that its list knows; {one.kind} is none')
    signature = (one.kind, len(one.inputs), len(one.outputs), tuple(one.attributes))
    words.number(signatures.get(signature, len(signatures)))
    if signature not in signatures:
      signatures[signature] = len(signatures)
      _write_signature(words, signature)
    for name in one.inputs:
      _write_input(words, name, graph, known, constants)
    for value in one.attributes.values():
      words.value(value)
    guess = guessed(one, [graph.values[name] for name in one.inputs])
    for name in one.outputs:
      if name in known or name in graph.constants:
        raise ValueError(f'each value of a graph is made once; {name} is made again by {one.kind}')
      known[name] = len(known)
      words.number(int(guess != graph.values[name]))
      if guess != graph.values[name]:
        _write_value(words, graph.values[name])
  words.number(len(graph.outputs))
  for name in graph.outputs:
    if name not in known and name not in graph.constants:
      raise ValueError(f'a result of a graph is one of its values; {name} is none')
    words.number(2 * (len(known) - 1 - known[name]) if name in known else 2 * order.index(name) + 1)
    words.text(name)
  if names:
    for name in (*list(known)[len(graph.inputs) :], *order):
      words.text(name)
  return order


def _write_signature(words: Writer, signature: tuple[str, int, int, tuple[str, ...]]) -> None:
  kind, inputs, outputs, attributes = signature
  words.text(kind)
  for count in (inputs, outputs, len(attributes)):
    words.number(count)
  for name in attributes:
    words.text(name)


def _write_input(words: Writer, name: str, graph: Graph, known: dict[str, int], constants: dict[str, int]) -> None:
  """0 is the next constant, odd numbers count values back, even ones constants."""
  if name in known:
    words.number(2 * (len(known) - known[name]) - 1)
  elif name in constants:
    words.number(2 * (len(constants) - constants[name]))
  elif name in graph.constants:
    constants[name] = len(constants)
    words.number(0)
  else:
    raise ValueError(f'an operation reads what was made before it; {name} was not')


def _write_value(words: Writer, value: Value) -> None:
  words.number(dtype_code(value.dtype))
  _write_shape(words, value.shape)


def _write_shape(words: Writer, shape: Shape) -> None:
  words.number(len(shape))
  for size in shape:
    words.number(0 if isinstance(size, Batch) else size + 1)
    if isinstance(size, Batch):
      words.number(size.times)


def _write_constants(words: Writer, graph: Graph, names: list[str]) -> None:
  words.number(len(names))
  for name in names:
    array, value = graph.constants[name], graph.values[name]
    if array.dtype.name != value.dtype.name:
      raise ValueError(f'a constant is of the dtype that its graph says; {name} is {array.dtype}, not {value.dtype}')
    words.number(2 * dtype_code(array.dtype) + int(value.shape != array.shape))
    words.number(array.ndim)
    for size in array.shape:
      words.number(size)
    if value.shape != array.shape:
      _write_shape(words, value.shape)


# --- reading --------------------------------------------------------------------------------------------------------


def read_graph(words: Reader) -> Plan:
  """Reads what `write_graph` wrote.

  Raises:
    Unreadable: it is none.
  """
  named = bool(words.number(1))
  arrays, constants = _read_constants(words)
  inputs, values = [], []
  for _ in range(words.count()):
    inputs.append(words.text())
    values.append(_read_value(words))
  signatures: list[tuple[str, int, int, list[str]]] = []
  made: list[tuple[str, list[int], list[int], dict[str, Any]]] = []  # values from 0, constants from -1 down
  next_one = 0
  for _ in range(words.count()):
    index = words.number(len(signatures))
    if index == len(signatures):
      signatures.append(_read_signature(words))
    kind, reads, makes, attributes = signatures[index]
    places = []
    for _ in range(reads):
      code = words.number()
      next_one += code == 0
      place = (
        -1 - (next_one - 1 if code == 0 else next_one - code // 2) if code % 2 == 0 else len(values) - code // 2 - 1
      )
      if (code % 2 == 0 and not 0 <= -1 - place < next_one <= len(arrays)) or (code % 2 and place < 0):
        raise Unreadable('an operation in it reads what was not made before it')
      places.append(place)
    told = {name: words.value() for name in attributes}
    guess = guessed(Operation(kind, ('',) * reads, (), told), [_of(place, values, constants) for place in places])
    first = len(values)
    for _ in range(makes):
      if words.number(1):
        values.append(_read_value(words))
      elif guess is None:
        raise Unreadable('an operation in it has results of an unknown shape')
      else:
        values.append(guess)
    made.append((kind, places, list(range(first, len(values))), told))
  outputs = []
  for _ in range(words.count()):
    code = words.number()
    place = -1 - code // 2 if code % 2 else len(values) - 1 - code // 2
    if place < -len(arrays) or (code % 2 == 0 and place < 0):
      raise Unreadable('a result in it was never made')
    outputs.append((place, words.text()))
  names = _names(words, named, inputs, outputs, len(values), len(arrays))

  def name_of(place: int) -> str:
    return names[place if place >= 0 else len(values) - 1 - place]

  operations = tuple(
    Operation(kind, tuple(map(name_of, places)), tuple(map(name_of, results)), told)
    for kind, places, results, told in made
  )
  every = dict(zip(names, [*values, *constants], strict=True))
  graph = Graph(tuple(inputs), tuple(name_of(place) for place, _ in outputs), operations, every, {})
  return Plan(graph, [(names[len(values) + index], *array) for index, array in enumerate(arrays)])


def _of(place: int, values: list[Value], constants: list[Value]) -> Value:
  return values[place] if place >= 0 else constants[-1 - place]


def _read_signature(words: Reader) -> tuple[str, int, int, list[str]]:
  kind = words.text()
  if kind not in reference.RULES:
    raise Unreadable(f'it has an operation {kind[:40]!r}, which no jaxlite of this version knows')
  reads, makes, attributes = words.count(), words.count(), [words.text() for _ in range(words.count())]
  if not makes or len(set(attributes)) != len(attributes):
    raise Unreadable('an operation in it makes nothing, or has an attribute twice')
  return kind, reads, makes, attributes


def _read_value(words: Reader) -> Value:
  dtype = _dtype(words)
  return Value(_read_shape(words), dtype)


def _read_shape(words: Reader) -> Shape:
  shape: list[int | Batch] = []
  for _ in range(words.count()):
    size = words.number(_LARGEST)
    shape.append(size - 1 if size else Batch(max(1, words.number(_LARGEST))))
  return _short(tuple(shape))


def _short(shape: Any) -> Any:
  if len(shape) > 32:
    raise Unreadable(f'an array in it has {len(shape)} axes')
  return shape


def _read_constants(words: Reader) -> tuple[list[tuple[np.dtype[Any], tuple[int, ...]]], list[Value]]:
  arrays, values = [], []
  for _ in range(words.count()):
    code = words.number(2 * len(DTYPES) - 1)
    dtype = dtype_named(DTYPES[code // 2])
    shape = _short(tuple(words.number(_LARGEST) for _ in range(words.count())))
    arrays.append((dtype, shape))
    whole = _read_shape(words) if code % 2 else shape
    if len(whole) != len(shape) or any(one not in (1, other) for one, other in zip(shape, whole, strict=True)):
      raise Unreadable('a constant in it cannot be as large as it says')
    values.append(Value(whole, dtype))
  return arrays, values


def _names(
  words: Reader, named: bool, inputs: list[str], outputs: list[tuple[int, str]], values: int, arrays: int
) -> list[str]:
  """A name for each value and constant: those that are kept, and v0, c0 and so on."""
  given: dict[int, str] = dict(enumerate(inputs))
  given |= {place if place >= 0 else values - 1 - place: name for place, name in outputs}
  if named:
    given |= {place: words.text() for place in range(len(inputs), values + arrays)}
  taken = set(given.values())
  if len(taken) != len(given):
    raise Unreadable('two values in it have one name')
  found = []
  for place in range(values + arrays):
    name = given.get(place, f'v{place}' if place < values else f'c{place - values}')
    while place not in given and name in taken:
      name += '_'
    taken.add(name)
    found.append(name)
  return found


# --- what is known of a constant from where it stands -----------------------------------------------------------------


class Neighbor(NamedTuple):
  """Of a constant: the axis of its outputs, and the weight of the layer before, where there is one."""

  axis: int = -1
  before: str | None = None


def neighbors(graph: Graph) -> dict[str, Neighbor]:
  """Returns what is known of each weight; the same of a graph that was written and of what is read of it."""
  makers = {name: one for one in graph.operations for name in one.outputs}
  found: dict[str, Neighbor] = {}
  for one in graph.operations:
    if one.kind not in _WEIGHTS or len(one.inputs) < 2 or one.inputs[1] in makers or one.inputs[1] in graph.inputs:
      continue
    name, weight = one.inputs[0], None
    for _ in range(_FAR):
      maker = makers.get(name)
      if maker is None or not maker.inputs:
        break
      if maker.kind in _WEIGHTS:
        weight = maker.inputs[1] if len(maker.inputs) > 1 else None
        break
      name = next((each for each in maker.inputs if each in makers), maker.inputs[0])
    if len(graph.values[one.inputs[1]].shape) > _WEIGHTS[one.kind]:
      found.setdefault(one.inputs[1], Neighbor(_WEIGHTS[one.kind], weight))
  return found


def place_of(name: str, near: dict[str, Neighbor], kept: dict[str, np.ndarray]) -> Place:
  """Returns what its coding may know of a constant.

  Args:
    name: of the constant.
    near: of `neighbors`.
    kept: of the constants that are stored before it, how many inputs each output keeps.
  """
  one = near.get(name, Neighbor())
  return Place(one.axis, None if one.before is None else kept.get(one.before))
