"""A config's JSON form, and which fields may differ between a run and its resume. Standard library only."""

from __future__ import annotations

import dataclasses
import enum
import functools
import numbers
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jaxlite.config.duration import UNITS, Duration
from jaxlite.config.fields import annotation, conforms, is_group
from jaxlite.errors import ConfigError

FORMAT = 1  # of what a run says of itself: config.json, task.json


def to_dict(config: Any) -> dict[str, Any]:
  """Returns a config as JSON takes it; a function becomes 'module:qualname', a tuple a list.

  Raises:
    ConfigError: a field holds something else than plain values and functions.

  >>> from collections.abc import Callable
  >>> @dataclasses.dataclass
  ... class Net:
  ...   widths: tuple[int, ...] = (300, 100)
  ...   start: Callable[..., float] = max
  >>> to_dict(Net())
  {'widths': [300, 100], 'start': 'builtins:max'}
  """
  return {field.name: plain(getattr(config, field.name), field.name) for field in dataclasses.fields(config)}


def plain(value: Any, path: str) -> Any:
  """Returns a value as JSON takes it, as `to_dict` writes it.

  Args:
    value: of a field.
    path: the field's, for the error.

  Raises:
    ConfigError: it holds something else than plain values and functions.

  >>> plain((1, max), 'x')
  [1, 'builtins:max']
  """
  if value is None or isinstance(value, bool | str):
    return value
  if isinstance(value, numbers.Integral):
    return int(value)
  if isinstance(value, numbers.Real):
    return float(value)
  if is_group(value):
    return {
      field.name: plain(getattr(value, field.name), f'{path}.{field.name}') for field in dataclasses.fields(value)
    }
  if isinstance(value, Mapping):
    return {str(key): plain(one, f'{path}.{key}') for key, one in value.items()}
  if isinstance(value, tuple | list):
    return [plain(one, f'{path}.{index}') for index, one in enumerate(value)]
  if isinstance(value, enum.Enum):
    return value.name
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if isinstance(value, functools.partial):
    given = [plain(value.args, path), plain(value.keywords, path)]
    return f'{plain(value.func, path)} with {given[0]} {given[1]}'
  if callable(value):
    named = value if hasattr(value, '__qualname__') else type(value)
    return f'{named.__module__}:{named.__qualname__}'
  raise ConfigError(f'a config holds plain values and functions; {path} is {type(value).__name__}: build it in model=')


class Differences(NamedTuple):
  """How a config differs from a saved one, a line for each field.

  Attributes:
    refused: these make it another run.
    allowed: these may change between a run and its resume.
  """

  refused: list[str]
  allowed: list[str]


def compare(saved: Mapping[str, Any], config: Any) -> Differences:
  """Sorts the fields that differ from a saved config by whether a resume may change them.

  Args:
    saved: what `to_dict` gave when the run began, through JSON or not.
    config: the config of now.

  Returns:
    The differing fields. A field that the saved config lacks and that stands at its default is none. That a function
    now stands in another file is allowed.

  >>> from jaxlite.config import Config
  >>> config = Config(name='x')
  >>> saved = to_dict(config)
  >>> config.optim.lr, config.log.progress = 0.01, False
  >>> compare(saved, config)
  Differences(refused=['optim.lr: saved 0.001, now 0.01'], allowed=['log.progress: saved True, now False'])
  """
  before, after = _flat(saved), _flat(to_dict(config))
  functions = set(_functions(config))
  defaults = _flat(_defaults(config))
  refused, allowed = [], []
  for path in [*after, *(path for path in before if path not in after)]:
    old, new = before.get(path, _ABSENT), after.get(path, _ABSENT)
    if old == new or (old is _ABSENT and new == defaults.get(path)) or (old != old and new != new):
      continue
    line = f'{path}: saved {_shown(old)}, now {_shown(new)}'
    if may_change(path) or (path in functions and _is_moved(old, new)):
      allowed.append(line)
    elif path == 'train' and _longer(old, new):
      allowed.append(f'{line}; schedules that span the run follow its new length')
    else:
      refused.append(line)
  return Differences(refused, allowed)


def diff(saved: Mapping[str, Any], config: Any) -> list[str]:
  """Returns a line for each field that differs from a saved config, refused ones first."""
  refused, allowed = compare(saved, config)
  return refused + allowed


def may_change(path: str) -> bool:
  """Tells whether a field may differ, in any way, between a run and its resume.

  A longer `train` may too; that takes both values, see `compare`.

  Where the data lie and how they are read may change; that they are the same is what their fingerprint guards. What
  picks the best model may not: each checkpoint bears its value, and those of two metrics cannot be compared.

  >>> may_change('log.every'), may_change('data.directory'), may_change('optim.lr'), may_change('train')
  (True, True, False, False)
  >>> may_change('eval.patience'), may_change('eval.metric')
  (True, False)
  """
  return (path.split('.')[0] in ('log', 'eval', 'checkpoint', 'machine') and path != 'eval.metric') or path in _WHERE


_WHERE = ('data.directory', 'data.keep', 'data.threads')


def as_saved(saved: Mapping[str, Any], config: Any, prefix: str = '') -> Any:
  """Returns a config with all that may change between a run and its resume as it was saved, its length too.

  Args:
    saved: what `to_dict` gave when the run began.
    config: the config of now; its functions, and what the saved one lacks, stay.
    prefix: of the fields' paths.

  >>> from jaxlite.config import Config
  >>> config = Config(name='x')
  >>> saved = to_dict(config)
  >>> config.train, config.optim.lr = Duration(steps=9), 0.5
  >>> back = as_saved(saved, config)
  >>> str(back.train), back.optim.lr
  ('10 epochs', 0.5)
  """
  changes: dict[str, Any] = {}
  for field in dataclasses.fields(config):
    path, value, old = f'{prefix}{field.name}', getattr(config, field.name), saved.get(field.name, _ABSENT)
    if old is _ABSENT or not field.init:
      continue
    if isinstance(value, Duration):
      if _is_duration(old) and (may_change(path) or path == 'train'):
        changes[field.name] = Duration(**old)
    elif is_group(value) and isinstance(old, Mapping):
      changes[field.name] = as_saved(old, value, f'{path}.')
    elif may_change(path) and old != plain(value, path) and not callable(value):
      changes[field.name] = tuple(old) if isinstance(value, tuple) else old
  return dataclasses.replace(config, **changes)


def changed(config: Any) -> dict[str, str]:
  """Returns the fields of a config that do not stand at their default, and what they hold, as a person reads it.

  >>> from jaxlite.config import Config
  >>> config = Config(name='x')
  >>> config.optim.lr = 0.5
  >>> changed(config)
  {'name': "'x'", 'optim.lr': '0.5'}
  """
  defaults = _flat(_defaults(config))
  held = _flat(to_dict(config))
  return {path: _shown(value) for path, value in held.items() if path not in defaults or defaults[path] != value}


def as_trained(saved: Mapping[str, Any], config: Any, prefix: str = '') -> Any:
  """Returns a config with every plain value that makes a run what it is as it was saved.

  What may change between a run and its resume (where the data lie, say) stays as it is now, and so do functions.

  Args:
    saved: what `to_dict` gave when the run began.
    config: the config of now.
    prefix: of the fields' paths.

  >>> from jaxlite.config import Config
  >>> config = Config(name='x')
  >>> saved = to_dict(config)
  >>> config.optim.lr, config.data.directory, config.recipe = 0.5, 'there', max
  >>> back = as_trained(saved, config)
  >>> back.optim.lr, back.data.directory, back.recipe
  (0.001, 'there', <built-in function max>)
  """
  changes: dict[str, Any] = {}
  for field in dataclasses.fields(config):
    path, value, old = f'{prefix}{field.name}', getattr(config, field.name), saved.get(field.name, _ABSENT)
    if old is _ABSENT or not field.init or may_change(path):
      continue
    if isinstance(value, Duration):
      if _is_duration(old):
        changes[field.name] = Duration(**old)
    elif is_group(value):
      if isinstance(old, Mapping):
        changes[field.name] = as_trained(old, value, f'{path}.')
    elif not callable(value) and old != plain(value, path):
      note = annotation(type(config), field.name)
      takes = [one for one in (old, _tuples(old)) if conforms(one, note)]
      changes |= {field.name: takes[-1]} if takes else {}
  return dataclasses.replace(config, **changes)


def _tuples(value: Any) -> Any:
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _functions(config: Any, prefix: str = '') -> Iterator[str]:
  """The paths of fields that hold a function."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if callable(value):
      yield f'{prefix}{field.name}'
    elif is_group(value):
      yield from _functions(value, f'{prefix}{field.name}.')


def _is_moved(old: Any, new: Any) -> bool:
  """Tells whether a function only stands in another module: its file or the folder of it was moved or renamed, as on
  the way to another machine. What it makes is traced and compared, and the data by their fingerprint.

  >>> _is_moved('mine.exp:recipe', 'content.exp:recipe'), _is_moved('mine.exp:recipe', 'mine.exp:other')
  (True, False)
  """
  names = [one.partition(':') for one in (old, new) if isinstance(one, str)]
  return len(names) == 2 and all(name[1] for name in names) and names[0][2] == names[1][2]


class _Absent:
  def __repr__(self) -> str:
    return 'nothing'


_ABSENT = _Absent()


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for name, value in tree.items():
    if isinstance(value, Mapping) and not _is_duration(value):
      flat.update(_flat(value, f'{prefix}{name}.'))
    else:
      flat[f'{prefix}{name}'] = value
  return flat


def _is_duration(value: Any) -> bool:
  return isinstance(value, Mapping) and set(value) == set(UNITS)


def _shown(value: Any) -> str:
  return str(Duration(**value)) if _is_duration(value) else repr(value)


def _longer(old: Any, new: Any) -> bool:
  """In one unit only: how 3 epochs compare with 500 steps depends on the data."""
  if not (_is_duration(old) and _is_duration(new)):
    return False
  return any(old[unit] is not None and new[unit] is not None and new[unit] > old[unit] for unit in UNITS)


def _defaults(config: Any) -> dict[str, Any]:
  """The JSON form of every default of a config's classes, where there is one."""
  found: dict[str, Any] = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if is_group(value) and not isinstance(value, Duration):
      found[field.name] = _defaults(value)
    elif field.default is not dataclasses.MISSING:
      found[field.name] = plain(field.default, field.name)
    elif field.default_factory is not dataclasses.MISSING:
      found[field.name] = plain(field.default_factory(), field.name)
  return found
