"""Which fields of a config are read while a run is built: what was set and nobody reads does nothing, and is said.

A recipe, a model and data of one's own are given the config and take from it what they like. `watched` hands them
one that is the config in every respect, its values and its type, and that notes which fields are asked for.
Standard library only.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from jaxlite.config.duration import Duration
from jaxlite.config.fields import fields, is_group
from jaxlite.config.serialize import changed

# What the loop and its surroundings read themselves, whatever recipe and model do.
_LOOP = ('name', 'seed', 'train', 'eval', 'log', 'checkpoint', 'machine', 'repair', 'runs', 'data.batch_size')

_WHY = {
  'model': 'a model was given beside it',
  'data.load': 'data were given beside it',
  'data.source': 'data were given or are loaded by data.load',
  'data.directory': 'data were given or are loaded by data.load',
  'data.validation': 'the data come with splits of their own',
  'optim': 'the recipe has values of its own',
  'teacher': 'the recipe learns from no teacher',
}


class Reads:
  """The paths of the fields that were read."""

  def __init__(self) -> None:
    self.paths: set[str] = set()


def watched(config: Any, reads: Reads, prefix: str = '', *, copies: bool = True) -> Any:
  """Returns a config that notes in `reads` which of its fields are read.

  It shares its fields with the config, so that assigning to one assigns to both, and it is an instance of its class.
  What is copied out of it is plain; a copy of everything (`copy.deepcopy`, pickling, `vars`) reads everything.

  Args:
    config: a dataclass instance.
    reads: is added to.
    prefix: of the fields' paths.
    copies: whether `dataclasses.replace` reads what it copies: it does where the copy is not itself watched later.

  >>> @dataclasses.dataclass
  ... class Net:
  ...   width: int = 3
  ...   depth: int = 2
  >>> reads = Reads()
  >>> watched(Net(), reads).width, sorted(reads.paths)
  (3, ['width'])
  """
  kind: Any = type(config)
  everything = [f'{prefix}{path}' for path, *_ in fields(config)]
  if any('__slots__' in vars(one) for one in kind.__mro__ if one is not object):  # it has no dict to share
    reads.paths.update(everything)
    return config
  names = {field.name for field in dataclasses.fields(config)}

  def get(self: Any, name: str) -> Any:
    if name == '__class__':
      return kind
    value = kind.__getattribute__(self, name)
    if name == '__dict__':
      reads.paths.update(everything)
    if name not in names or (not copies and sys._getframe(1).f_globals.get('__name__') == 'dataclasses'):
      return value
    if is_group(value) and not isinstance(value, Duration):
      return watched(value, reads, f'{prefix}{name}.', copies=copies)
    reads.paths.add(f'{prefix}{name}')
    return value

  def reduced(self: Any, protocol: Any) -> Any:
    reads.paths.update(everything)
    return config.__reduce_ex__(protocol)

  body = {'__getattribute__': get, '__reduce_ex__': reduced, '__module__': kind.__module__, '_watched': config}
  made: Any = type(kind)
  try:
    proxy = object.__new__(made(kind.__name__, (kind,), body))
    object.__setattr__(proxy, '__dict__', object.__getattribute__(config, '__dict__'))
  except (TypeError, AttributeError):  # a class that is not to be derived from
    reads.paths.update(everything)
    return config
  return proxy


def plain(config: Any) -> Any:
  """Returns the config behind a watched one, and any other as it is."""
  return vars(type(config)).get('_watched', config)


def unread(config: Any, paths: set[str]) -> list[str]:
  """Returns a line for each field that was set and that nobody read.

  Args:
    config: what was to be run.
    paths: of the fields that were read.

  >>> from jaxlite.config import Config
  >>> config = Config(name='x')
  >>> config.optim.lr = 500.0
  >>> unread(config, set())
  ['optim.lr is set to 500.0, and nothing reads it: the recipe has values of its own']
  """
  lines = []
  for path, value in changed(config).items():
    if path in paths or path in _LOOP or path.split('.')[0] in _LOOP:
      continue
    why = _WHY.get(path, _WHY.get(path.split('.')[0], 'neither the recipe nor the model nor the data'))
    lines.append(f'{path} is set to {value}, and nothing reads it: {why}')
  return lines
