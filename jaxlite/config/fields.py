"""Fields of nested dataclasses by their path ('optim.lr'): what they may hold, and setting them from text.

Knows nothing of any particular config, so an experiment's own dataclasses are set and checked like ours.
Standard library only.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import math
import numbers
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jaxlite.config.duration import UNITS, Duration
from jaxlite.errors import ConfigError, nearest

_NONE = ('none', 'null')
_BOOLS = {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}


def is_group(value: Any) -> bool:
  """Tells whether a value is a dataclass instance: a field that holds fields."""
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def settable(config: Any) -> dict[str, str]:
  """Returns every path that `override` can set, with what the field may hold, as a person would write it.

  >>> settable(Duration(steps=3))['epochs']
  'float | None'
  """
  return {path: describe(note) for path, note in _settable(config)}


def fields(config: Any, prefix: str = '') -> Iterator[tuple[str, Any, str, Any]]:
  """Yields (path, owner, field name, value) of every field that is no group, and of every Duration.

  >>> [path for path, *_ in fields(Duration(steps=3))][:2]
  ['steps', 'epochs']
  """
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if is_group(value) and not isinstance(value, Duration):
      yield from fields(value, f'{prefix}{field.name}.')
    else:
      yield f'{prefix}{field.name}', config, field.name, value


def annotation(owner: type, name: str) -> Any:
  """Returns what a field of a dataclass may hold; Any where the annotation cannot be resolved.

  One annotation at a time: `typing.get_type_hints` fails on the whole class for one name that is imported
  for type checkers only.

  >>> annotation(Duration, 'steps')
  int | None
  """
  for kind in owner.__mro__:
    note = inspect.get_annotations(kind).get(name)
    if isinstance(note, str):
      try:
        return eval(note, vars(sys.modules[kind.__module__]))
      except (NameError, AttributeError, KeyError, TypeError, SyntaxError):
        return Any
    if note is not None:
      return note
  return Any


def conforms(value: Any, note: Any) -> bool:
  """Tells whether a value is what an annotation says; True where it says nothing that can be checked.

  >>> conforms(1, float), conforms(True, int), conforms((1, 2), tuple[int, ...]), conforms('a', int | None)
  (True, False, True, False)
  """
  origin, args = typing.get_origin(note), typing.get_args(note)
  if note is None or note is types.NoneType:
    return value is None
  if origin in (typing.Union, types.UnionType):
    return any(conforms(value, arg) for arg in args)
  if origin is typing.Literal:
    return value in args
  if note in (int, float):
    wanted = numbers.Integral if note is int else numbers.Real
    return isinstance(value, wanted) and not isinstance(value, bool)
  if origin is tuple and args and args[-1] is not Ellipsis:
    return isinstance(value, tuple) and len(value) == len(args) and all(map(conforms, value, args))
  if origin in (tuple, list):
    return isinstance(value, origin) and all(conforms(one, args[0]) for one in value)
  if origin is dict:
    return isinstance(value, dict) and all(
      conforms(key, args[0]) and conforms(one, args[1]) for key, one in value.items()
    )
  if origin is Callable:
    return callable(value)
  kind = origin or note
  try:
    return isinstance(value, kind)
  except TypeError:  # Any, a type variable, a protocol: nothing that an instance could show
    return True


def describe(note: Any) -> str:
  """Writes an annotation as a person would: 'int', 'float | None', 'tuple[int, ...]', 'a function'."""
  origin, args = typing.get_origin(note), typing.get_args(note)
  if origin is Callable:
    return 'a function'
  if origin in (typing.Union, types.UnionType):
    return ' | '.join(map(describe, args))
  if origin is dict:
    return f'dict[{describe(args[0])}, {describe(args[1])}]'
  if note is types.NoneType:
    return 'None'
  return note.__name__ if isinstance(note, type) and not origin else str(note).replace('typing.', '')


def override(config: Any, path: str, text: str | None) -> Any:
  """Returns a copy with one field set from text, read as the field's annotation says.

  Args:
    config: a dataclass instance; it stays as it is.
    path: the field, dots between groups: 'optim.lr'.
    text: the value as typed; None is a flag without a value, which means true where a bool is expected.

  Returns:
    The new config. Setting one unit of a Duration clears the others.

  Raises:
    ConfigError: no such field, a group, a function, or text that is not of the field's type.

  >>> @dataclasses.dataclass
  ... class Run:
  ...   train: Duration
  >>> str(override(Run(Duration(epochs=3)), 'train.steps', '10').train)
  '10 steps'
  """
  return apply_overrides(config, [(path, text)])


def apply_overrides(config: Any, pairs: Iterable[tuple[str, str | None]]) -> Any:
  """Returns a copy with several fields set from text, in whatever order they come.

  An override also reaches what the functions in `runs` return: what a person typed is stronger than what an
  experiment's variation sets. 'runs.student.optim.lr' sets the field for that run only, and is stronger still.

  Args:
    config: a dataclass instance; it stays as it is.
    pairs: (path, text) as for `override`.

  Returns:
    The new config.

  Raises:
    ConfigError: as `override`; also two values for one field or two units for one Duration.
  """
  runs = getattr(config, 'runs', None)
  runs = runs if isinstance(runs, dict) else {}
  common: list[tuple[str, str | None]] = []
  own: dict[str, list[tuple[str, str | None]]] = {name: [] for name in runs}
  for path, text in pairs:
    group, _, inner = path.partition('.')
    # A run's name may hold dots: of several that the path begins with, the longest is meant.
    name = max((run for run in runs if inner.startswith(f'{run}.')), key=len, default='')
    field = inner.removeprefix(f'{name}.') if name else inner.partition('.')[2]
    if group == 'runs' and field and name in own:
      own[name].append((field, text))
    elif group == 'runs' and field:
      raise ConfigError(f'unknown field {path!r}; the runs are {", ".join(runs) or "none"}')
    else:
      common.append((path, text))
  new = _set_all(config, common)
  for mine in own.values():
    _set_all(new, mine)  # a mistake in it is told now, not when the run's turn comes
  if runs:
    new = dataclasses.replace(new, runs={name: _then(vary, common, own[name]) for name, vary in runs.items()})
  return new


def _set_all(config: Any, pairs: list[tuple[str, str | None]]) -> Any:
  new = copy.deepcopy(config)
  known = [path for path, _ in _settable(config)]
  given: dict[str, tuple[str, Any]] = {}
  for path, text in pairs:
    new, value = _set(new, path, path.split('.'), text, known)
    # Two units of one Duration are as much a contradiction as two values of one field.
    group, _, unit = path.rpartition('.')
    field = group if unit in UNITS and isinstance(_get(new, group), Duration) else path
    if given.setdefault(field, (path, value)) != (path, value):
      first, other = given[field]
      raise ConfigError(f'a field is given once; got {first}={other!r} and {path}={value!r}')
    whole = [first for first, _ in given.values() if path.startswith(f'{first}.') or first.startswith(f'{path}.')]
    if whole:
      raise ConfigError(f'a field is given once; got {whole[0]} and {path}, and one is a part of the other')
  return new


def _then(vary: Callable[[Any], Any], *groups: list[tuple[str, str | None]]) -> Callable[[Any], Any]:
  @functools.wraps(vary)  # keeps the name that is saved: the override itself shows in the fields
  def varied(config: Any) -> Any:
    config = vary(config)
    for pairs in groups:
      config = _set_all(config, pairs)
    return config

  return varied


def _get(config: Any, path: str) -> Any:
  for name in filter(None, path.split('.')):
    config = getattr(config, name)
  return config


def _settable(config: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Every path that text can set, with what the field may hold."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name, None)  # of a class, where the group itself is None, the default
    note = annotation(config if isinstance(config, type) else type(config), field.name)
    group = value if is_group(value) else group_in(note)
    if group is not None:
      yield from _settable(group, f'{prefix}{field.name}.')
    elif field.init and _readable(note):
      yield f'{prefix}{field.name}', note


def group_in(note: Any) -> Any:
  """Returns the dataclass in an annotation like `Duration | None`, None where there is none.

  Its fields can be set though the value is None.

  >>> group_in(Duration | None).__name__
  'Duration'
  """
  for kind in typing.get_args(note) if typing.get_origin(note) in (typing.Union, types.UnionType) else (note,):
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
      return kind
  return None


def _readable(note: Any) -> bool:
  origin, args = typing.get_origin(note), typing.get_args(note)
  if origin in (typing.Union, types.UnionType):
    return any(_readable(arg) for arg in args if arg is not types.NoneType)
  if origin in (tuple, list):
    return all(_readable(arg) for arg in args if arg is not Ellipsis)
  return note in (int, float, bool, str) or origin is typing.Literal


def _set(node: Any, path: str, names: list[str], text: str | None, known: list[str]) -> tuple[Any, Any]:
  name, *rest = names
  declared = {field.name: field for field in dataclasses.fields(node)}
  if name not in declared:
    raise _unknown(path, known)
  value, note = getattr(node, name), annotation(type(node), name)
  kind = type(value) if is_group(value) else group_in(note)
  new: Any
  parsed: Any
  if rest:
    if kind is None:
      raise _unknown(path, known)
    if issubclass(kind, Duration):
      if rest[0] not in UNITS or len(rest) > 1:
        raise _unknown(path, known)
      new, parsed = _duration(kind, path, rest[0], text)
    else:
      new, parsed = _set(value if is_group(value) else kind(), path, rest, text, known)
  elif kind is not None and not (types.NoneType in typing.get_args(note) and (text or '').lower() in _NONE):
    inner = ', '.join(f'{path}.{field.name}' for field in dataclasses.fields(kind))
    raise ConfigError(f'{path} is a group; set one of its fields: {inner}')
  elif types.NoneType in typing.get_args(note) and (text or '').lower() in _NONE and declared[name].init:
    new = parsed = None  # of a function too: the default that its field tells of
  elif not declared[name].init or not (_readable(note) or kind):
    raise ConfigError(f'{path} cannot be set from text: it is {describe(note)}; set it in the experiment file')
  else:
    new = parsed = _parse(path, text, note)
  # Rebuilt, not assigned: a frozen dataclass works too, and its own checks run.
  return dataclasses.replace(node, **{name: new}), parsed


def _unknown(path: str, known: list[str]) -> ConfigError:
  return ConfigError(f'unknown field {path!r}; nearest: {nearest(path, known)}')


def _duration(kind: type[Duration], path: str, unit: str, text: str | None) -> tuple[Duration, Any]:
  amount = _parse(path, text, int if unit in ('steps', 'examples') else float)
  try:
    return kind(**{unit: amount}), amount
  except ConfigError as error:
    raise ConfigError(f'{path}: {error}') from None


def _parse(path: str, text: str | None, note: Any) -> Any:
  if text is None and _is_bool(note):
    return True
  if text is None:
    raise ConfigError(f'{path} needs a value: --config.{path}=...')
  try:
    return _read(text, note)
  except ValueError:
    raise ConfigError(f'{path} is {describe(note)}; got {text!r}') from None


def _is_bool(note: Any) -> bool:
  return note is bool or bool in typing.get_args(note)


def _read(text: str, note: Any) -> Any:
  """Reads text as an annotation says; ValueError where it is nothing of the kind."""
  origin, args = typing.get_origin(note), typing.get_args(note)
  bare = text.strip()
  if origin in (typing.Union, types.UnionType):
    if types.NoneType in args and bare.lower() in _NONE:
      return None
    for arg in sorted((arg for arg in args if _readable(arg)), key=lambda arg: arg is str):  # str takes any text
      with contextlib.suppress(ValueError):
        return _read(text, arg)
    raise ValueError(text)
  if origin in (tuple, list):
    return origin(_read_items(bare, origin, args))
  if note is str:
    return text
  if note is int:
    return int(bare)
  if note is float:
    number = float(bare)
    if math.isnan(number):
      raise ValueError(text)
    return number
  words = _BOOLS if note is bool else {str(arg): arg for arg in args}
  if bare not in words and bare.lower() not in words:
    raise ValueError(text)
  return words[bare] if bare in words else words[bare.lower()]


def _read_items(text: str, origin: type, args: tuple[Any, ...]) -> list[Any]:
  inside = text[1:-1] if text[:1] + text[-1:] in ('()', '[]') else text
  items = [item.strip() for item in inside.split(',')]
  if items[-1] == '':  # '(1,)', '1,' and ''
    items.pop()
  kinds = [args[0]] * len(items) if origin is list or args[-1] is Ellipsis else args
  if len(kinds) != len(items):
    raise ValueError(text)
  return [_read(item, kind) for item, kind in zip(items, kinds, strict=True)]
