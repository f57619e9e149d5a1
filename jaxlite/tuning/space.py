"""A search space as data: which fields of a config may take which values, declared beside the experiment.

A space is a dict from names to kinds. A name is a field of the config by its path ('optim.lr', 'train.epochs') or an
argument of a function that the config names ('recipe.sparsity', 'model.width'). What belongs here: checking a space
against a config, setting values on it, and reading one from text.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlite.config.duration import UNITS, Duration
from jaxlite.config.fields import annotation, fields, group_in, is_group, override, settable
from jaxlite.config.schema import Config, validate
from jaxlite.errors import ConfigError, nearest
from jaxlite.tuning.kinds import Choice, Kind, Range, Space, choice, given, integer, log_uniform, middle, uniform


def assigned(config: Config, space: Space, stored: Mapping[str, Any]) -> Config:
  """Returns a config with a point of a space set on it.

  Args:
    config: stays as it is.
    space: that the point is of.
    stored: its values by name, as they are stored.

  >>> config = assigned(Config(name='x'), {'optim.lr': uniform(0, 1)}, {'optim.lr': 0.5})
  >>> config.optim.lr
  0.5
  """
  for name, value in stored.items():
    config = _set(config, name.split('.'), given(space[name], value))
  return config


def _set(node: Any, names: Sequence[str], value: Any) -> Any:
  name, *rest = names
  new = value
  if rest:
    now = getattr(node, name)
    group = group_in(annotation(type(node), name)) if now is None else None
    now = group() if group is not None and not issubclass(group, Duration) else now
    if isinstance(now, Duration) or (group is not None and issubclass(group, Duration)):
      new = Duration(**{rest[0]: value})
    elif is_group(now):
      new = _set(now, rest, value)
    else:
      new = functools.partial(now, **{rest[0]: value})
  return dataclasses.replace(node, **{name: new})


def names_of(config: Config) -> list[str]:
  """Returns every name that a space over a config may have: fields, units of durations, arguments of functions."""
  found = []
  for path, _, _, value in fields(config):
    if isinstance(value, Duration):
      found += [path, *(f'{path}.{unit}' for unit in UNITS)]
    elif callable(value):
      found += [path, *(f'{path}.{argument}' for argument in _arguments(path, value)[0])]
    elif path not in ('name', 'runs'):
      found.append(path)
  return [*found, *(path for path in settable(config) if path not in found and path != 'name')]


# How many arguments the run itself gives.
_OWN = {'recipe': 2, 'model': 1, 'data.load': 1, 'loss': 2, 'task': 0}


def _arguments(path: str, function: Any) -> tuple[list[str], bool]:
  """The names of a function's further arguments, and whether it takes any other name too."""
  try:
    parameters = list(inspect.signature(function).parameters.values())
  except (TypeError, ValueError):
    return [], True
  free = parameters[_OWN.get(path, 0) :]
  named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
  anything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
  return [one.name for one in free if one.kind in named], anything


def check(space: Any, config: Config) -> dict[str, Kind]:
  """Returns a space as a dict, after making sure that a config can take all of it.

  Args:
    space: names to kinds; a list or tuple stands for `choice`.
    config: what it is over.

  Raises:
    ConfigError: it is empty, names an unknown field (with the near misses), a kind is none, two names set one field, or
      a value at its ends is one that the field refuses.

  >>> check({'optim.lrr': uniform(0, 1)}, Config(name='x'))
  Traceback (most recent call last):
    ...
  jaxlite.errors.ConfigError: the search space names 'optim.lrr', which the config does not have; nearest: optim.lr, ...
  """
  if not isinstance(space, Mapping) or not space:
    got = 'an empty one' if isinstance(space, Mapping) else f'{type(space).__name__}'
    raise ConfigError(
      "a search space is a dict of fields and kinds, such as {'optim.lr': jl.tuning.log_uniform(1e-4, 1e-1)}; got "
      f'{got}'
    )
  known, made = names_of(config), {}
  for name, kind in space.items():
    if name not in known and not _takes(config, str(name)):
      near = nearest(str(name), known)
      raise ConfigError(f'the search space names {name!r}, which the config does not have; nearest: {near}')
    if isinstance(kind, list) or type(kind) is tuple:
      kind = choice(*kind)
    if not isinstance(kind, Choice | Range):
      raise ConfigError(
        f'{name} of the search space is jl.tuning.choice, uniform, log_uniform or integer; got {kind!r}'
      )
    made[name] = kind
  for one, other in itertools.permutations(made, 2):
    same = _duration_of(config, one) is not None and _duration_of(config, one) == _duration_of(config, other)
    if other.startswith(f'{one}.') or same:
      raise ConfigError(f'the search space sets one field twice: {one} and {other}')
  _check_ends(made, config)
  return made


def _takes(config: Config, name: str) -> bool:
  """Whether a name is an argument of a function that takes any."""
  path, _, argument = name.rpartition('.')
  value = _at(config, path)
  return bool(path) and argument.isidentifier() and callable(value) and _arguments(path, value)[1]


def _duration_of(config: Config, name: str) -> str | None:
  """The path of the Duration that a name is a unit of; None where it is no unit."""
  path, _, unit = name.rpartition('.')
  return path if unit in UNITS and (isinstance(_at(config, path), Duration) or _at(config, path) is None) else None


def _at(config: Config, path: str) -> Any:
  node: Any = config
  for name in path.split('.') if path else ():
    node = getattr(node, name, None)
  return node


def _check_ends(space: Space, config: Config) -> None:
  base = {name: middle(kind) for name, kind in space.items()}
  for name, kind in space.items():
    for end in range(len(kind.values)) if isinstance(kind, Choice) else (kind.low, kind.high):
      try:
        validate(assigned(config, space, {**base, name: end}))
      except ConfigError as error:
        reals = isinstance(kind, Range) and not kind.step and isinstance(_at(config, name), int)
        fix = ': integer is the kind of whole numbers, int(8,64) on the command line' if reals else ''
        if isinstance(kind, Choice) and len(kind.values) == 1 and isinstance(kind.values[0], list | tuple):
          fix = ': choice takes values one by one, choice(0.01, 0.1)'
        raise ConfigError(f'{name} of the search space: {error}{fix}') from None


_WORDS = {'choice': choice, 'uniform': uniform, 'log': log_uniform, 'log_uniform': log_uniform, 'int': integer}
_WORDS |= {'integer': integer}


def parsed(text: str, config: Config) -> dict[str, Kind]:
  """Reads a space as a person types it: 'optim.lr=log(1e-4,1e-1); data.batch_size=choice(32,64)'.

  Args:
    text: names and kinds, semicolons between them.
    config: its fields' types say how a choice is read.

  Raises:
    ConfigError: it cannot be read.

  >>> parsed('optim.lr=log(1e-4, 1e-1)', Config(name='x'))['optim.lr'].low
  0.0001
  """
  found: dict[str, Kind] = {}
  form = "a space is typed as field=kind(...), such as 'optim.lr=log(1e-4,1e-1); data.batch_size=choice(32,64)'"
  for part in filter(None, (one.strip() for one in text.split(';'))):
    match = re.fullmatch(r'([\w.]+)\s*[=:]\s*(\w+)\s*\((.*)\)', part, re.DOTALL)
    if match is None or match[2] not in _WORDS:
      raise ConfigError(f'{form}, with the kinds choice, uniform, log and int; got {part!r}')
    name, word, inside = match[1], match[2], match[3]
    if name in found:
      raise ConfigError(f'{form}, each field once; got {name} twice')
    items = [one.strip() for one in re.split(r',(?![^(\[]*[)\]])', inside) if one.strip()]
    try:
      if word == 'choice':
        found[name] = choice(*(_typed(config, name, item) for item in items))
      else:
        found[name] = _WORDS[word](*map(ast.literal_eval, items))
    except ConfigError as error:
      raise ConfigError(f'{name} of the search space: {error}') from None
    except (ValueError, SyntaxError, TypeError):
      raise ConfigError(f'{form}; {word} takes two numbers, got {inside!r} for {name}') from None
  return found


def _typed(config: Config, name: str, text: str) -> Any:
  """A value as the field's type reads it; of an argument as Python would."""
  try:
    return _at(override(config, name, text), name)
  except ConfigError:
    try:
      return ast.literal_eval(text)
    except (ValueError, SyntaxError):
      return text
