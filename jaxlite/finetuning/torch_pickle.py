"""An unpickler for tensors alone: a pickle is a program, and this machine has only the instructions that describe data.

It imports nothing and calls nothing that a file names. A global is a word on a list; a call of one either describes a
tensor (`Tensor`, checked later against its storage) or makes plain data; everything else is refused by name. Time and
memory are bounded by the size of the pickle and by fixed limits: instructions, containers, entries of the memo, depth.

References:
  CPython, pickletools, the opcodes, https://github.com/python/cpython/blob/main/Lib/pickletools.py
  PyTorch, how a tensor is rebuilt, https://github.com/pytorch/pytorch/blob/main/torch/_utils.py
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from jaxlite.finetuning.torch_names import (
  ALIASES,
  CONTAINERS,
  DTYPES,
  INERT,
  STORAGES,
  Global,
  Inert,
  Storage,
  Tensor,
  known,
)
from jaxlite.finetuning.weights import Asker, _cut

MOST_BYTES = 64 << 20  # of a pickle: 500,000 tensors
_MOST_STEPS = 4_000_000
_MOST_CONTAINERS = 1_000_000
_MOST_MEMO = 2_000_000
_MOST_LINE = 512
_PICKLED_MODULE = (
  'only tensors are read and nothing in a file is run: load it where it was made and save its state_dict()'
)


_MARK = object()


class Unpickler:
  """One pickle after another in the same bytes.

  Attributes:
    at: where the next byte lies.
  """

  def __init__(self, data: memoryview, asker: Asker) -> None:
    self.data, self.asker, self.at = data, asker, 0
    self.steps = self.made = 0

  def load(self) -> Any:
    """Returns the next pickled value: dicts, lists, tuples, texts, numbers, Tensors.

    Raises:
      WeightsError: an instruction, a name or a size that no weights need.
    """
    self.stack: list[Any] = []
    self.memo: dict[int, Any] = {}
    begun = self.at
    while True:
      self.steps += 1
      if self.steps > _MOST_STEPS or self.at - begun > MOST_BYTES:
        raise self.asker.refuse('its pickle is longer than a table of tensors is', 'save its state_dict() alone')
      code = self._take(1)[0]
      if code == 0x2E:  # STOP
        if len(self.stack) != 1:
          raise self.asker.refuse('its pickle ends amid a value')
        return self._plain(self.stack.pop())
      action = _ACTIONS.get(code)
      if action is None:
        raise self.asker.refuse(f'its pickle has the instruction {_cut(bytes([code]))}', _PICKLED_MODULE)
      action(self)

  def _take(self, size: int) -> memoryview:
    if size < 0 or self.at + size > len(self.data):
      raise self.asker.refuse('its pickle is cut off')
    part = self.data[self.at : self.at + size]
    self.at += size
    return part

  def _number(self, form: str) -> Any:
    return struct.unpack(form, self._take(struct.calcsize(form)))[0]

  def _line(self) -> bytes:
    found = bytes(self.data[self.at : self.at + _MOST_LINE]).find(b'\n')
    if found < 0:
      raise self.asker.refuse('its pickle has a line that does not end')
    return bytes(self._take(found + 1))[:-1]

  def push(self, value: Any) -> None:
    """Puts a value on the stack."""
    self.stack.append(value)

  def pop(self) -> Any:
    """Takes the value on top."""
    if not self.stack or self.stack[-1] is _MARK:
      raise self.asker.refuse('its pickle takes more than there is')
    return self.stack.pop()

  def since_mark(self) -> list[Any]:
    """Takes every value down to the last mark, which goes too."""
    at = len(self.stack) - 1
    while at >= 0 and self.stack[at] is not _MARK:
      at -= 1
    if at < 0:
      raise self.asker.refuse('its pickle takes more than there is')
    found = self.stack[at + 1 :]
    del self.stack[at:]
    return found

  def contain(self, value: Any) -> None:
    """Puts a new container on the stack."""
    self.made += 1
    if self.made > _MOST_CONTAINERS:
      raise self.asker.refuse(f'its pickle makes over {_MOST_CONTAINERS:,} containers', 'save its state_dict() alone')
    self.stack.append(value)

  def text(self, size: int) -> str:
    """Reads UTF-8."""
    try:
      return str(self._take(size), 'utf-8', 'strict')
    except UnicodeDecodeError:
      raise self.asker.refuse('its pickle has a text that is no UTF-8') from None

  def remember(self, place: int) -> None:
    """Puts the value on top into the memo."""
    if place < 0 or len(self.memo) >= _MOST_MEMO:
      raise self.asker.refuse('its pickle remembers more than a table of tensors does')
    value = self.pop()
    self.stack.append(value)
    self.memo[place] = value

  def recall(self, place: int) -> None:
    """Puts a value of the memo on the stack."""
    if place not in self.memo:
      raise self.asker.refuse('its pickle recalls what it never had')
    self.stack.append(self.memo[place])

  def name(self, module: Any, name: Any) -> None:
    """Puts a global on the stack where it is on the list."""
    if not isinstance(module, str) or not isinstance(name, str) or not known(module, name):
      raise self.asker.refuse(f'its pickle names {_cut(f"{module}.{name}")}', _PICKLED_MODULE)
    self.stack.append(Global(module, name))

  def append(self, values: list[Any]) -> None:
    """Appends to the list on top."""
    into = self.pop()
    if type(into) is not list:
      raise self.asker.refuse(f'its pickle appends to {type(into).__name__}')
    into.extend(map(self._plain, values))
    self.stack.append(into)

  def set_items(self, values: list[Any]) -> None:
    """Sets entries of the dict on top; a key twice is refused."""
    into = self.pop()
    if isinstance(into, Inert):
      self.stack.append(into)
      return
    if type(into) is not dict or len(values) % 2:
      raise self.asker.refuse(f'its pickle sets entries of {type(into).__name__}')
    for key, value in zip(values[::2], values[1::2], strict=True):
      if not isinstance(key, str | int | float | bytes | None):
        raise self.asker.refuse(f'its pickle has a key of type {type(key).__name__}')
      if key in into:
        raise self.asker.refuse(f'its pickle has the key {_cut(key)} twice')
      into[key] = self._plain(value)
    self.stack.append(into)

  def _plain(self, value: Any) -> Any:
    if value is _MARK:
      raise self.asker.refuse('its pickle ends amid a value')
    return value

  def reduce(self) -> None:
    """Calls of the few functions that describe data."""
    given, function = self.pop(), self.pop()
    if not isinstance(function, Global) or type(given) is not tuple:
      raise self.asker.refuse(f'its pickle calls {type(function).__name__}', _PICKLED_MODULE)
    kind = (function.module, function.name)
    if kind in INERT:
      self.contain(Inert())
    elif kind in CONTAINERS:
      self.contain(self._container(function.name, given))
    elif function.module == 'torch._utils':
      self.contain(self._tensor(function.name, given))
    else:
      raise self.asker.refuse(f'its pickle calls {function.module}.{function.name}', _PICKLED_MODULE)

  def _container(self, name: str, given: tuple[Any, ...]) -> Any:
    if name == 'Size':
      return tuple(given[0]) if len(given) == 1 and type(given[0]) in (list, tuple) else ()
    if name in ('set', 'list'):
      return [*given[0]] if given and type(given[0]) in (list, tuple) else []
    if name in ('dict', 'OrderedDict') and len(given) == 1 and type(given[0]) is list:  # how Python 2 wrote it
      pairs = [one for one in given[0] if type(one) in (list, tuple) and len(one) == 2]
      if len(pairs) != len(given[0]):
        raise self.asker.refuse('its pickle makes a dict of no pairs')
      self.stack.append({})
      self.set_items([part for pair in pairs for part in pair])
      return self.pop()
    return {}

  def _tensor(self, name: str, given: tuple[Any, ...]) -> Any:
    if name.startswith('_rebuild_parameter'):
      if given and isinstance(given[0], Tensor):
        return given[0]
    elif len(given) >= 4 and isinstance(given[0], Storage):
      kind = None
      if name == '_rebuild_tensor_v3':
        dtype = given[6] if len(given) > 6 else None
        if not isinstance(dtype, Global) or dtype.name not in DTYPES:
          raise self.asker.refuse('its pickle describes a tensor without a dtype')
        kind = ALIASES.get(dtype.name, dtype.name)
      self._refuse_flags(given[7:8] if name == '_rebuild_tensor_v3' else given[6:7])
      return Tensor(given[0], given[1], given[2], given[3], kind)
    raise self.asker.refuse('its pickle describes a tensor without a storage')

  def _refuse_flags(self, about: tuple[Any, ...]) -> None:
    """Refuses a tensor that torch reads with another sign than its storage has: `x.conj()` and its parts."""
    set_ = sorted(str(key) for key, on in about[0].items() if on) if about and type(about[0]) is dict else []
    if set_:
      raise self.asker.refuse(
        f'its pickle describes a tensor as what is stored under {_cut(", ".join(set_))}',
        'save .resolve_conj().resolve_neg() of it',
      )

  def build(self) -> None:
    """State set on an object: attributes of an OrderedDict (`_metadata`) and of what is inert are left out."""
    self.pop()
    value = self.pop()
    if not isinstance(value, Inert | dict):
      raise self.asker.refuse(f'its pickle sets the state of {type(value).__name__}', _PICKLED_MODULE)
    self.stack.append(value)

  def new(self) -> None:
    """An object without arguments: of inert classes alone."""
    given, kind = self.pop(), self.pop()
    if not isinstance(kind, Global) or (kind.module, kind.name) not in INERT | CONTAINERS or type(given) is not tuple:
      raise self.asker.refuse('its pickle makes an object', _PICKLED_MODULE)
    known = (kind.module, kind.name) in CONTAINERS
    self.contain(self._container(kind.name, given) if known else Inert())

  def persistent(self) -> None:
    """A storage: ('storage', kind, key, location, entries[, view])."""
    found = self.pop()
    if type(found) is not tuple or len(found) not in (5, 6) or found[0] != 'storage':
      raise self.asker.refuse('its pickle refers to something that is no storage')
    _, kind, key, _, size, *view = found
    if view and view[0] is not None:
      raise self.asker.refuse('it shares storages as torch did before 0.4', 'load it with torch and save it anew')
    if not isinstance(kind, Global) or kind.name not in {*STORAGES, '_UntypedStorage'}:
      raise self.asker.refuse('its pickle has a storage of a kind that is not read')
    if not isinstance(key, str) or type(size) is not int or not 0 <= size < 1 << 48:
      raise self.asker.refuse('its pickle has a storage without a key or a size')
    self.contain(Storage(STORAGES.get(kind.name, ''), key, size))

  def small_text(self, line: bytes) -> int:
    """A whole number in decimal."""
    try:
      if len(line) > 24:
        raise ValueError
      return int(line.rstrip(b'L'))
    except ValueError:
      raise self.asker.refuse(f'its pickle has {_cut(line)} for a number') from None

  def whole(self, size: int) -> int:
    """A whole number of some bytes."""
    if not 0 <= size <= 32:
      raise self.asker.refuse('its pickle has a number of more than 256 bits')
    return int.from_bytes(bytes(self._take(size)), 'little', signed=True)

  def floating(self) -> float:
    """A floating number in decimal."""
    line = self._line()
    try:
      return float(line)
    except ValueError:
      raise self.asker.refuse(f'its pickle has {_cut(line)} for a number') from None

  def integer(self) -> Any:
    """An old int, or a truth value."""
    line = self._line()
    return {b'00': False, b'01': True}[line] if line in (b'00', b'01') else self.small_text(line)

  def named(self) -> None:
    """GLOBAL: two lines of ASCII."""
    module, name = (str(self._line(), 'utf-8', 'replace') for _ in range(2))
    self.name(module, name)

  def stack_named(self) -> None:
    """STACK_GLOBAL: two texts."""
    name, module = self.pop(), self.pop()
    self.name(module, name)

  def tuple_of(self, count: int) -> None:
    """A tuple of the last values."""
    values = [self.pop() for _ in range(count)]
    self.contain(tuple(values[::-1]))

  def dict_of(self, values: list[Any]) -> None:
    """A dict of the values since the mark."""
    self.contain({})
    self.set_items(values)

  def latin(self, size: int) -> Any:
    """A text of Python 2."""
    return str(self._take(size), 'utf-8', 'replace')


def _pushing(make: Callable[[Unpickler], Any]) -> Callable[[Unpickler], None]:
  return lambda self: self.push(make(self))


_ACTIONS: dict[int, Callable[[Unpickler], Any]] = {
  0x80: lambda self: _version(self, self._number('<B')),
  0x95: lambda self: self._number('<Q'),  # FRAME: bytes that follow, which are read one by one
  ord('('): lambda self: self.push(_MARK),
  ord('0'): lambda self: self.stack.pop() if self.stack else self.pop(),
  ord('1'): lambda self: self.since_mark(),
  ord('N'): _pushing(lambda self: None),
  0x88: _pushing(lambda self: True),
  0x89: _pushing(lambda self: False),
  ord('I'): _pushing(lambda self: self.integer()),
  ord('L'): _pushing(lambda self: self.small_text(self._line())),
  ord('F'): _pushing(lambda self: self.floating()),
  ord('J'): _pushing(lambda self: self._number('<i')),
  ord('K'): _pushing(lambda self: self._number('<B')),
  ord('M'): _pushing(lambda self: self._number('<H')),
  0x8A: _pushing(lambda self: self.whole(self._number('<B'))),
  0x8B: _pushing(lambda self: self.whole(self._number('<i'))),
  ord('G'): _pushing(lambda self: self._number('>d')),
  ord('T'): _pushing(lambda self: self.latin(self._number('<i'))),
  ord('U'): _pushing(lambda self: self.latin(self._number('<B'))),
  ord('X'): _pushing(lambda self: self.text(self._number('<I'))),
  0x8C: _pushing(lambda self: self.text(self._number('<B'))),
  0x8D: _pushing(lambda self: self.text(self._number('<Q'))),
  ord('B'): _pushing(lambda self: bytes(self._take(self._number('<I')))),
  ord('C'): _pushing(lambda self: bytes(self._take(self._number('<B')))),
  0x8E: _pushing(lambda self: bytes(self._take(self._number('<Q')))),
  ord(')'): lambda self: self.contain(()),
  ord('t'): lambda self: self.contain(tuple(self.since_mark())),
  0x85: lambda self: self.tuple_of(1),
  0x86: lambda self: self.tuple_of(2),
  0x87: lambda self: self.tuple_of(3),
  ord(']'): lambda self: self.contain([]),
  ord('l'): lambda self: self.contain(self.since_mark()),
  ord('a'): lambda self: self.append([self.pop()]),
  ord('e'): lambda self: self.append(self.since_mark()),
  ord('}'): lambda self: self.contain({}),
  ord('d'): lambda self: self.dict_of(self.since_mark()),
  ord('s'): lambda self: self.set_items([self.pop(), self.pop()][::-1]),
  ord('u'): lambda self: self.set_items(self.since_mark()),
  0x8F: lambda self: self.contain([]),  # EMPTY_SET
  0x90: lambda self: self.append(self.since_mark()),
  0x91: lambda self: self.contain(self.since_mark()),
  ord('c'): lambda self: self.named(),
  0x93: lambda self: self.stack_named(),
  ord('R'): lambda self: self.reduce(),
  ord('b'): lambda self: self.build(),
  0x81: lambda self: self.new(),
  ord('Q'): lambda self: self.persistent(),
  ord('p'): lambda self: self.remember(self.small_text(self._line())),
  ord('q'): lambda self: self.remember(self._number('<B')),
  ord('r'): lambda self: self.remember(self._number('<I')),
  0x94: lambda self: self.remember(len(self.memo)),
  ord('g'): lambda self: self.recall(self.small_text(self._line())),
  ord('h'): lambda self: self.recall(self._number('<B')),
  ord('j'): lambda self: self.recall(self._number('<I')),
}


def _version(self: Unpickler, version: int) -> None:
  if version > 5:
    raise self.asker.refuse(f'its pickle is of protocol {version}', 'save it anew')
