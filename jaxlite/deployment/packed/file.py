"""A trained network in one small file, and back: its operations, its constants to the last bit, and what they mean.

The file (version 2): 'JLP' and a byte for the version; three numbers (bytes of the words as they are and as they are
stored, bytes of the stream); the words, which are the operations (`operations.py`), how each constant is stored
(`arrays.py`) and `about`; the stream of everything that is predicted (`entropy.py`); bytes as they are; CRC32.

Reading needs NumPy and no JAX. It believes nothing and runs nothing: what is damaged, cut short or larger than the
limit is an `Unreadable`, a ValueError, in one line.
"""

from __future__ import annotations

import functools
import lzma
import math
import os
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.operations import Graph, Value, reference
from jaxlite.deployment.packed import arrays as packed_arrays
from jaxlite.deployment.packed import entropy
from jaxlite.deployment.packed import operations as packed_graph
from jaxlite.deployment.packed.labels import labels_of
from jaxlite.deployment.packed.primer import PRIMER
from jaxlite.deployment.packed.values import Models
from jaxlite.deployment.packed.words import Reader, Unreadable, Writer
from jaxlite.host.files import expanded, whole_file

VERSION = entropy.VERSION
LIMIT = 1 << 30  # bytes of memory that reading may take, if nothing else is said
_MAGIC = b'JLP'
_LONGEST = 1 << 16  # bytes of words that are predicted one by one; more go through LZMA
_EACH_WORD = 256  # bytes of memory that a byte of words takes at most, once it is operations
_FILTERS = ({'id': lzma.FILTER_LZMA2, 'preset': 9 | lzma.PRESET_EXTREME, 'dict_size': 1 << 20},)
_EACH = 40  # bytes of memory that an entry takes at most while its array is read


# What computing a list of operations ends in that fits nothing: someone else wrote it.
_NO_PROGRAM = (
  *(TypeError, LookupError, AttributeError, AssertionError, ArithmeticError),
  *(MemoryError, SyntaxError, RuntimeError),
)


class Unpacked(NamedTuple):
  """What a packed file holds; `graph, about = unpack(data)` takes it apart.

  Attributes:
    graph: the network.
    about: what was said of it.
  """

  graph: Graph
  about: dict[str, Any]

  def predict(self, inputs: Any) -> Any:
    """Computes the network in NumPy.

    Args:
      inputs: the array of its one input [B, ...], or arrays by name.

    Returns:
      Its result, a tuple of them where there are several.

    Raises:
      ValueError: inputs of another shape than the network's; a network that cannot be computed.
    """
    try:
      return reference.run_in_parts(self.graph, inputs)
    except _NO_PROGRAM as error:
      raise Unreadable(f'this network cannot be computed ({type(error).__name__}: {str(error)[:200]})') from None

  def predict_labels(self, inputs: Any) -> Any:
    """Returns what its task answers for each example: the name of a class, or its number where it has no name.

    Raises:
      ValueError: as `predict`; outputs whose meaning the file does not say.
    """
    return labels_of(self.predict(inputs), self.about)


def pack(graph: Graph, about: Mapping[str, Any] | None = None, *, names: bool = False) -> bytes:
  """Writes a network into as few bytes as give it back exactly.

  Args:
    graph: any; constants are kept bit for bit.
    about: what else the file says: class names, the version of the data, anything made of None, numbers, text, bytes
      and tuples, lists and dicts of them.
    names: keep the names of all values and constants; otherwise those of inputs and results are kept and the rest are
      v0, c0 and so on.

  Returns:
    The bytes of the file.

  Raises:
    ValueError: an operation that `reference.RULES` lacks, an array of no numbers, or what `about` cannot hold.

  >>> import numpy as np
  >>> from jaxlite.deployment.operations import Batch, Graph, Operation, Value
  >>> x, w = Value((Batch(), 3), np.dtype('float32')), np.float32([[0, 0.5], [-1, 0], [0, 0]])
  >>> dense = Operation('dense', ('x', 'w'), ('y',), {})
  >>> values = {'x': x, 'w': Value(w.shape, w.dtype), 'y': Value((Batch(), 2), w.dtype)}
  >>> data = pack(Graph(('x',), ('y',), (dense,), values, {'w': w}), {'class_names': ['cat', 'dog']})
  >>> len(data) < 80, unpack(data).predict_labels([[0.0, -1.0, 0.0]]).tolist()
  (True, ['cat'])
  """
  words = Writer()
  graph = graph._replace(constants={name: _little(array) for name, array in graph.constants.items()})
  order = packed_graph.write_graph(words, graph, names)
  out = packed_arrays.Output(words, entropy.encoder(0), bytearray(), Models())
  near, kept = packed_graph.neighbors(graph), {}
  for name in order:
    kept[name] = packed_arrays.write(out, graph.constants[name], packed_graph.place_of(name, near, kept))
  words.value(dict(about or {}))
  stream, spelled = entropy.finish(out.stream), bytes(words.data)
  told = _packed_words(spelled)
  head = Writer()
  for number in (len(spelled), len(told), len(stream)):
    head.number(number)
  body = b''.join((_MAGIC, bytes([VERSION]), head.data, told, stream, out.plain))
  return body + zlib.crc32(body).to_bytes(4, 'little')


def unpack(data: bytes | str | os.PathLike[str], *, limit: int = LIMIT) -> Unpacked:
  """Reads what `pack` wrote.

  Args:
    data: its bytes, or the path of a file.
    limit: bytes of memory that reading may take, beside 64 MB for what reads.

  Returns:
    (graph, about), ready to predict.

  Raises:
    Unreadable: it is damaged, cut short, of another version or too large; a ValueError.
  """
  if isinstance(data, str | os.PathLike):
    return read_pack(data, limit=limit)
  try:
    return _unpacked(bytes(data), limit)
  except Unreadable as error:
    raise Unreadable(f'this is no packed network that can be read: {error}') from None


def write_pack(graph: Graph, path: str | os.PathLike[str], about: Mapping[str, Any] | None = None) -> int:
  """Writes a network into a file, whole or not at all.

  Args:
    graph: as in `pack`.
    path: of the file.
    about: as in `pack`.

  Returns:
    The bytes of the file.

  Raises:
    ValueError: as `pack`; or what was written does not give the network back.
  """
  data = pack(graph, about)
  if _told(unpack(data, limit=1 << 62).graph) != _told(graph):
    raise ValueError('what was packed does not give the network back: please report it')
  with whole_file(expanded(path)) as aside:
    aside.write_bytes(data)
  return len(data)


def _told(graph: Graph) -> Any:
  """All of a graph but the names inside it, in a form that can be compared."""

  def value(name: str) -> Any:
    return tuple(graph.values[name].shape), graph.values[name].dtype.name

  made = [
    (one.kind, [value(name) for name in (*one.inputs, *one.outputs)], repr(sorted(one.attributes)))
    for one in graph.operations
  ]
  held = sorted(_little(array).tobytes() for array in graph.constants.values())
  return made, held, [(name, value(name)) for name in (*graph.inputs, *graph.outputs)]


def read_pack(path: str | os.PathLike[str], *, limit: int = LIMIT) -> Unpacked:
  """Reads a file of `write_pack`; as `unpack`.

  Raises:
    FileNotFoundError: there is none.
    Unreadable: as `unpack`; the text names the file.
  """
  found = expanded(path)
  if found.stat().st_size > limit:
    raise Unreadable(f'{found} has {found.stat().st_size} bytes, more than limit={limit}')
  try:
    return _unpacked(found.read_bytes(), limit)
  except Unreadable as error:
    raise Unreadable(f'{found} is no packed network that can be read: {error}') from None


def packed_bytes(network: Any, about: Mapping[str, Any] | None = None) -> int:
  """Returns the size of the file that `write_pack` would write, in bytes.

  Args:
    network: a graph; or parameters alone: dicts, lists and tuples of arrays, at any depth.
    about: as in `pack`.

  >>> import numpy as np
  >>> packed_bytes({'dense': {'kernel': np.zeros((784, 300), np.float32)}}) < 50
  True
  """
  if isinstance(network, Graph):
    return len(pack(network, about))
  arrays: dict[str, np.ndarray] = {}
  _gather(network, '', arrays)
  values = {name: Value(array.shape, array.dtype) for name, array in arrays.items()}
  return len(pack(Graph((), (), (), values, arrays), about))


def _gather(tree: Any, path: str, arrays: dict[str, np.ndarray]) -> None:
  if isinstance(tree, Mapping | list | tuple):
    for name, one in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
      _gather(one, f'{path}/{name}', arrays)
  elif tree is not None:
    arrays[path] = np.asarray(tree)


def _little(array: np.ndarray) -> np.ndarray:
  array = np.asarray(array)
  packed_graph.dtype_code(array.dtype)
  return array if array.dtype.isnative and np.little_endian else array.astype(array.dtype.newbyteorder('<'))


def _packed_words(spelled: bytes) -> bytes:
  if len(spelled) > _LONGEST:
    return lzma.compress(spelled, lzma.FORMAT_RAW, filters=_FILTERS)
  c = entropy.encoder(2 * len(spelled) + 64)
  _letters(c, np.frombuffer(spelled, np.uint8).astype(np.int64), _primer().copy())
  return entropy.finish(c)


@functools.cache
def _primer() -> entropy.Model:
  """A model that has seen words before."""
  model = entropy.symbols_model()
  words = np.frombuffer(PRIMER, np.uint8).astype(np.int64)
  _letters(entropy.encoder(2 * len(words)), words, model)
  return model


def _letters(c: entropy.Coder, values: np.ndarray, model: entropy.Model) -> None:
  """Each byte after the two before it."""
  places = np.arange(len(values))
  before = np.stack([places - 1, np.where(places > 1, places - 2, -1)])
  nothing = np.zeros((2, len(values)), np.int64)
  entropy.symbols(c, values, model, 1, entropy.BYTES, nothing, nothing, before)


def _unpacked(data: bytes, limit: int) -> Unpacked:
  if data[:3] != _MAGIC:
    raise Unreadable(f'it does not begin as one does ({data[:3]!r})')
  if len(data) < 12:
    raise Unreadable('it is cut short')
  if not 1 <= data[3] <= VERSION:
    raise Unreadable(f'it is of version {data[3]}, and this jaxlite reads versions up to {VERSION}')
  if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], 'little'):
    raise Unreadable('it is damaged or cut short (its checksum is another)')
  head = Reader(data[4:-4])
  spelled, told, stream = head.number(), head.number(len(data)), head.number(len(data))
  _check_need(spelled * _EACH_WORD, limit)
  words = Reader(_spelled(head.take(told), spelled))
  coder, plain = entropy.decoder(head.take(stream)), Reader(head.take(len(head.data) - head.at))
  plan = packed_graph.read_graph(words)
  all_told = [packed_arrays.read_told(words, dtype, shape) for _, dtype, shape in plan.arrays]
  about = words.value()
  if not isinstance(about, dict) or words.at != len(words.data):
    raise Unreadable('its words do not end where they should')
  sizes = [math.prod(max(size, 1) for size in one.shape) for one in all_told]  # of what is empty, its widths
  bytes_ = sum(size * one.dtype.itemsize for size, one in zip(sizes, all_told, strict=True))
  need = bytes_ + _EACH * max(sizes, default=0)
  _check_need(need, limit)
  source = packed_arrays.Input(coder, plain, Models(data[3]))
  near, kept, constants = packed_graph.neighbors(plan.graph), {}, {}
  for (name, _, _), one in zip(plan.arrays, all_told, strict=True):
    place = packed_graph.place_of(name, near, kept)
    constants[name] = packed_arrays.read(source, one, place)
    kept[name] = packed_arrays.kept(packed_arrays.bits_of(constants[name]), place)
  if plain.at != len(plain.data):
    raise Unreadable('it goes on where it should end')
  return Unpacked(plan.graph._replace(constants=constants), about)


def _check_need(need: int, limit: int) -> None:
  if need > limit:
    raise Unreadable(f'reading it may take {min(need, 1 << 62)} bytes of memory, more than limit={limit}')


def _spelled(told: bytes, size: int) -> bytes:
  if size > _LONGEST:
    try:
      found = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS).decompress(told, max_length=size)
    except lzma.LZMAError:
      raise Unreadable('its words are damaged') from None
    if len(found) != size:
      raise Unreadable('its words are damaged')
    return found
  values = np.zeros(size, np.int64)
  try:
    _letters(entropy.decoder(told), values, _primer().copy())
  except entropy.Spent:
    raise Unreadable('its words are damaged') from None
  return values.astype(np.uint8).tobytes()
