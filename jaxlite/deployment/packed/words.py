"""Plain values as bytes and back: the words that a packed file is told in.

A reader believes nothing: every length is held against what is left, depth has a bound, and what makes no sense is an
`Unreadable` in one line.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from jaxlite.deployment.operations import Batch

# Since version 1, in this order for ever: a new name goes to the end. What is none of these is spelled out.
_TEXT_OF_WORDS = """
  neg abs sign exp exp2 log log1p expm1 sqrt rsqrt cbrt tanh logistic erf erfc erf_inv floor ceil round sin cos tan
  asin acos atan sinh cosh square integer_pow not is_finite convert_element_type add sub mul div max min pow rem eq
  ne lt le gt ge and or xor atan2 select_n clamp reshape squeeze transpose broadcast_in_dim concatenate slice
  dynamic_slice pad rev reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin cumsum
  cumprod cummax cummin dot_general conv_general_dilated reduce_window_max reduce_window_sum gather sort dense conv
  relu clip mean softmax take max_pool quantize dequantize requantize quantized_dense quantized_conv quantized_dot
  quantized_add quantized_mean rounding_method y new_dtype new_sizes dimensions permutation shape
  broadcast_dimensions dimension start_indices limit_indices strides slice_sizes padding_config axes axis reverse
  index_dtype dimension_numbers window_strides padding lhs_dilation rhs_dilation feature_group_count
  batch_group_count window_dimensions base_dilation window_dilation mode is_stable num_keys dilation input_dilation
  groups low high window scale zero_point scales x_scale x_zero_point y_scale y_zero_point a_scale a_zero_point
  b_scale b_zero_point input output float32 float64 float16 bfloat16 int8 int16 int32 int64 uint8 uint16 uint32
  uint64 bool fill_or_drop promise_in_bounds one_hot class_names shift preprocessing task version
"""
VOCABULARY = tuple(_TEXT_OF_WORDS.split())
_WORDS = {word: index for index, word in enumerate(VOCABULARY)}
_DEEPEST = 32
_RECENT = 64  # different floats that are remembered
_NONE, _FALSE, _TRUE, _INT, _FLOAT32, _FLOAT64, _TEXT, _TUPLE, _LIST, _DICT, _BATCH, _BYTES, _AGAIN = range(13)
_FIRST, _LOWEST = 16, -48  # the first tag that is itself a number, and which


class Unreadable(ValueError):  # noqa: N818  (what the file is)
  """A packed file that is damaged, cut short, of another version or too big; the text says which."""


class Writer:
  """Bytes, growing."""

  def __init__(self) -> None:
    self.data = bytearray()
    self.floats: list[bytes] = []  # each once, as it came

  def number(self, value: int) -> None:
    """A whole number from 0, seven bits a byte."""
    while value > 127:
      self.data.append(value & 127 | 128)
      value >>= 7
    self.data.append(value)

  def text(self, value: str) -> None:
    """A word of the vocabulary, or one that is spelled out."""
    if value in _WORDS:
      self.number(_WORDS[value] + 1)
    else:
      spelled = value.encode('utf-8', 'surrogatepass')
      self.number(0)
      self.number(len(spelled))
      self.data += spelled

  def value(self, value: Any, depth: int = 0) -> None:
    """None, numbers, text, bytes, `Batch`, and tuples, lists and dicts of them.

    Raises:
      ValueError: anything else.
    """
    if depth > _DEEPEST:
      raise ValueError(f'a packed value is at most {_DEEPEST} deep; this one is deeper')
    if isinstance(value, np.generic) and type(value) is not np.float64:
      value = value.item()
    data = self.data
    if value is None:
      data.append(_NONE)
    elif isinstance(value, bool):
      data.append(_TRUE if value else _FALSE)
    elif isinstance(value, int):
      self._int(value)
    elif isinstance(value, float):
      self._float(float(value))
    elif isinstance(value, str):
      data.append(_TEXT)
      self.text(value)
    elif isinstance(value, Batch):
      data.append(_BATCH)
      self._int(value.times)
    elif isinstance(value, bytes):
      data.append(_BYTES)
      self.number(len(value))
      data += value
    elif isinstance(value, tuple | list):
      data.append(_TUPLE if isinstance(value, tuple) else _LIST)
      self.number(len(value))
      for one in value:
        self.value(one, depth + 1)
    elif isinstance(value, dict):
      data.append(_DICT)
      self.number(len(value))
      for name, one in value.items():
        if not isinstance(name, str):
          raise ValueError(f'the names in a packed dict are text; got {name!r}')
        self.text(name)
        self.value(one, depth + 1)
    else:
      raise ValueError(
        f'a packed value is None, a number, text, bytes, or a tuple, list or dict of them; got a {type(value).__name__}'
      )

  def _int(self, value: int) -> None:
    if 0 <= value - _LOWEST + _FIRST <= 255 and value >= _LOWEST:
      self.data.append(value - _LOWEST + _FIRST)
    else:
      if value.bit_length() > 2000:
        raise ValueError(f'a packed number has at most 2000 bits; got one of {value.bit_length()}')
      self.data.append(_INT)
      self.number(value << 1 if value >= 0 else ~value << 1 | 1)

  def _float(self, value: float) -> None:
    wide = struct.pack('<d', value)
    if wide in self.floats[-_RECENT:]:
      self.data.append(_AGAIN)
      self.number(self.floats[::-1].index(wide))
      return
    self.floats.append(wide)
    with np.errstate(all='ignore'):
      short = np.float32(value)
    if struct.pack('<d', float(short)) == wide:
      self.data.append(_FLOAT32)
      self.data += short.tobytes()
    else:
      self.data.append(_FLOAT64)
      self.data += wide


class Reader:
  """What a Writer wrote, piece by piece; each method raises Unreadable where it is not that."""

  def __init__(self, data: bytes) -> None:
    self.data, self.at = data, 0
    self.floats: list[float] = []

  def take(self, size: int) -> bytes:
    if size > len(self.data) - self.at:
      raise Unreadable(f'it ends {size - len(self.data) + self.at} bytes too early')
    self.at += size
    return self.data[self.at - size : self.at]

  def number(self, most: int | None = None) -> int:
    """A whole number from 0, at most `most`."""
    value, shift = 0, 0
    while True:
      byte = self.take(1)[0]
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        break
      if shift > 2100:
        raise Unreadable('a number in it does not end')
    if most is not None and value > most:
      raise Unreadable(f'it says {value if value < 1 << 64 else "a huge number"} where at most {most} makes sense')
    return value

  def count(self) -> int:
    """How many things follow, of at least a byte each."""
    return self.number(len(self.data) - self.at)

  def text(self) -> str:
    index = self.number(len(VOCABULARY))
    if index:
      return VOCABULARY[index - 1]
    try:
      return self.take(self.count()).decode('utf-8', 'surrogatepass')
    except UnicodeDecodeError:
      raise Unreadable('a name in it is no text') from None

  def value(self, depth: int = 0) -> Any:
    if depth > _DEEPEST:
      raise Unreadable(f'a value in it is more than {_DEEPEST} deep')
    tag = self.take(1)[0]
    if tag >= _FIRST:
      return tag - _FIRST + _LOWEST
    if tag in (_NONE, _FALSE, _TRUE):
      return (None, False, True)[tag]
    if tag == _INT:
      coded = self.number()
      return ~(coded >> 1) if coded & 1 else coded >> 1
    if tag in (_FLOAT32, _FLOAT64):
      number = float(np.frombuffer(self.take(4), '<f4')[0]) if tag == _FLOAT32 else struct.unpack('<d', self.take(8))[0]
      self.floats.append(number)
      return number
    if tag == _AGAIN:
      back = self.number(_RECENT)
      if back >= len(self.floats):
        raise Unreadable('a number in it is said to have been there, and was not')
      return self.floats[-1 - back]
    if tag == _TEXT:
      return self.text()
    if tag == _BATCH:
      times = self.value(_DEEPEST)
      if type(times) is not int or not 0 < times < 1 << 40:
        raise Unreadable('a size in it grows by no whole number with the batch')
      return Batch(times)
    if tag == _BYTES:
      return self.take(self.count())
    if tag in (_TUPLE, _LIST):
      found = [self.value(depth + 1) for _ in range(self.count())]
      return found if tag == _LIST else tuple(found)
    if tag == _DICT:
      pairs = [(self.text(), self.value(depth + 1)) for _ in range(self.count())]
      if len({name for name, _ in pairs}) != len(pairs):
        raise Unreadable('a dict in it has a name twice')
      return dict(pairs)
    raise Unreadable(f'a value in it is of no known kind ({tag})')
