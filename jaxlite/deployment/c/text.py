"""Words of a C99 file: names, numbers, comments, strings and arrays, whatever they are made from."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

TYPES = {
  'bool': 'uint8_t',  # 0 or 1
  'int8': 'int8_t',
  'uint8': 'uint8_t',
  'int16': 'int16_t',
  'uint16': 'uint16_t',
  'int32': 'int32_t',
  'uint32': 'uint32_t',
  'int64': 'int64_t',
  'uint64': 'uint64_t',
  'float32': 'float',
  'float64': 'double',
}
_WIDTH = 120
_AT_ONCE = 1 << 16  # numbers that are spelled at once
_LONGEST = 2000  # bytes of a string literal; C99 promises 4095


def type_of(dtype: Any, where: str) -> str:
  """Returns the C type of a dtype.

  Args:
    dtype: of NumPy.
    where: what has it, for the message.

  Raises:
    ValueError: C99 has no such type.

  >>> type_of(np.dtype('int8'), 'v1')
  'int8_t'
  """
  found = TYPES.get(np.dtype(dtype).name)
  if found is None:
    raise ValueError(f'a C99 file holds {", ".join(TYPES)}; {where} is {np.dtype(dtype).name}: compute it in float32')
  return found


def name_of(text: str) -> str:
  """Returns a name that C takes, made of any text.

  >>> name_of('run 7/my-net'), name_of('5 layers'), name_of('')
  ('run_7_my_net', 'net_5_layers', 'network')
  """
  name = re.sub(r'_+', '_', re.sub(r'[^a-zA-Z0-9]', '_', text)).strip('_') or 'network'
  return f'net_{name}' if name[0].isdigit() else name


def number(value: Any, dtype: Any) -> str:
  """Returns a number as C writes it, to the bit.

  >>> number(0.1, 'float32'), number(-np.inf, 'float32'), number(3, 'float32'), number(-(2**31), 'int32')
  ('0.1f', '-INFINITY', '3.0f', '(-2147483647 - 1)')
  """
  kind = np.dtype(dtype)
  if kind == np.bool_:
    return str(int(bool(value)))
  if np.issubdtype(kind, np.integer):
    whole = int(value)
    if kind.itemsize == 8:
      ending = 'ull' if kind.kind == 'u' else 'll'
      return f'(-{2**63 - 1}{ending} - 1)' if whole == -(2**63) else f'{whole}{ending}'
    if whole == -(2**31):
      return '(-2147483647 - 1)'
    return f'{whole}u' if kind == np.uint32 else str(whole)
  real = kind.type(value)
  if np.isnan(real):
    return 'NAN'
  if np.isinf(real):
    return 'INFINITY' if real > 0 else '-INFINITY'
  return str(real) + ('f' if kind == np.float32 else '')


def numbers(array: np.ndarray) -> str:
  """Returns the entries of an array as an initializer's lines, in the order of memory.

  >>> print(numbers(np.array([[1, -2]], np.int8)))
  1, -2
  """
  flat = array.reshape(-1)
  if flat.dtype.itemsize < 4:
    words: Iterable[str] = map(str, flat.astype(np.int32).tolist())
  elif flat.dtype == np.float32 and np.isfinite(flat).all():  # as `number`, and faster
    parts = (flat[start : start + _AT_ONCE] for start in range(0, flat.size, _AT_ONCE))  # text is 32 times as large
    words = (f'{one}f' for part in parts for one in part.astype(str).tolist())
  else:
    words = (number(one, flat.dtype) for one in flat)
  return '\n'.join(_lines(words))


def _lines(words: Iterable[str]) -> Iterable[str]:
  line, length = [], 0
  for word in words:
    if length + len(word) + 2 > _WIDTH:
      yield ', '.join(line) + ','
      line, length = [], 0
    line.append(word)
    length += len(word) + 2
  yield ', '.join(line)


def comment(text: str, indent: str = '') -> str:
  """Returns any text as a comment that ends where it should.

  >>> comment('classes */ int x; /*')
  '/* classes * / int x; / * */'
  """
  safe = text.encode('ascii', 'backslashreplace').decode()
  safe = re.sub(r'[\x00-\x09\x0b-\x1f\x7f]', ' ', safe).replace('*/', '* /').replace('/*', '/ *')
  while '??' in safe:  # a trigraph
    safe = safe.replace('??', '? ?')
  lines: list[str] = []
  for line in safe.split('\n'):
    lines += textwrap.wrap(line, _WIDTH - len(indent) - 6, subsequent_indent='  ') or ['']
  lines = [line + '.' if line.endswith('\\') else line for line in lines]  # no line runs on into the next
  return '/* ' + f'\n{indent}   '.join(lines).replace('   \n', '\n') + ' */'


def string(text: str) -> str:
  """Returns any text as a string literal of UTF-8 bytes.

  >>> print(string('T-shirt "é"?'))
  "T-shirt \\"\\303\\251\\"\\?"
  """
  found = []
  for byte in text.encode('utf-8', 'surrogateescape'):
    plain = 32 <= byte < 127
    found.append(f'\\{chr(byte)}' if byte in b'"\\?' else chr(byte) if plain else f'\\{byte:03o}')
  return '"' + ''.join(found) + '"'


def text_constant(name: str, value: str | Sequence[str]) -> tuple[str, str]:
  """Returns the declaration and the definition of a text or several, which every file of a program may read.

  >>> print(*text_constant('net_classes', ['a', 'b']), sep='|')
  extern const char *const net_classes[2];|const char *const net_classes[2] = {"a", "b"};
  """
  if isinstance(value, str):
    data = value.encode('utf-8', 'surrogateescape').split(b'\0')[0]
    head = f'const char {name}[{len(data) + 1}]'
    if len(data) <= _LONGEST:
      return f'extern {head};', f'{head} = {string(data.decode("utf-8", "surrogateescape"))};'
    return f'extern {head};', f'{head} = {{\n{numbers(np.frombuffer(data + bytes(1), np.int8))}\n}};'
  head = f'const char *const {name}[{max(1, len(value))}]'
  inner = ', '.join(string(one[:_LONGEST]) for one in value) or '""'
  return f'extern {head};', f'{head} = {{{inner}}};'
