"""Errors in one line: what is wrong, the nearest names, the package that is missing. Standard library only."""

from __future__ import annotations

import difflib
import errno
import importlib.util
import operator
import os
import pathlib
import re
import traceback
from collections.abc import Iterable
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT)

# What pip installs, where its name is not that of the module.
_PIP = {
  'ai_edge_litert': "'jaxlite[litert]'",
  'equinox': "'jaxlite[equinox]'",
  'haiku': "'jaxlite[haiku]'",
  'huggingface_hub': "'jaxlite[hub]'",
  'keras': "'jaxlite[keras]'",
  'litert_converter': "'jaxlite[litert]'",
  'cmaes': "'jaxlite[tune]'",
  'optuna': "'jaxlite[tune]'",
  'orbax.checkpoint': 'orbax-checkpoint',
  'psycopg': "'jaxlite[postgresql]'",
  'sklearn': 'scikit-learn',
  'tensorflow_datasets': 'tensorflow-datasets',
  'tokenizers': "'jaxlite[tokenizers]'",
}


def need(asker: str, *modules: str) -> None:
  """Makes sure that packages are installed, and imports none.

  Args:
    asker: who needs them, for the message.
    *modules: what will be imported.

  Raises:
    ImportError: one line with everything that is missing.

  >>> need('this example', 'json', 'no_such_package')
  Traceback (most recent call last):
    ...
  ImportError: this example needs no_such_package: pip install no_such_package
  """
  missing = [module for module in modules if not _is_there(module)]
  if missing:
    names = ' '.join(dict.fromkeys(_PIP.get(module, module) for module in missing))
    raise ImportError(f'{asker} needs {", ".join(missing)}: pip install {names}')


def _is_there(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # not even the package around it
    return False


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
  """Returns the known names nearest to a mistaken one, for an error message.

  Args:
    name: a field, a path or a regular expression on paths.
    names: what is known.
    count: how many to give.

  >>> nearest('optim.lrr', ['optim.lr', 'seed', 'data.source'], count=1)
  'optim.lr'
  >>> nearest('^kernal$', ['dense/bias', 'dense/kernel'], count=1)
  'dense/kernel'
  """
  wanted = re.sub(r'[^\w./-]', '', name).lower()

  def likeness(candidate: str) -> float:
    pairs = [(wanted, candidate.lower()), (_last_part(wanted), _last_part(candidate.lower()))]
    return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

  return ', '.join(sorted(dict.fromkeys(names), key=likeness, reverse=True)[:count]) or 'none'


def _last_part(name: str) -> str:
  return re.split(r'[./]', name)[-1]


def counted(number: int, what: str) -> str:
  """Returns a number of things in words.

  >>> counted(1, 'step'), counted(2000, 'step')
  ('1 step', '2,000 steps')
  """
  return f'{number:,} {what}' + ('' if number == 1 else 's')


def arrays(paths: Iterable[str], most: int = 4) -> str:
  """Returns how many arrays there are, and the paths of the first `most`.

  >>> arrays(['a/w', 'b/w', 'c/w'], most=2)
  '3 arrays: a/w, b/w and 1 more'
  """
  paths = list(paths)
  shown = ', '.join(paths[:most]) + (f' and {len(paths) - most} more' if len(paths) > most else '')
  return counted(len(paths), 'array') + (f': {shown}' if paths and most else '')


def misplaced(thing: Any) -> str:
  """Tells what stands where something else is wanted, and what was probably meant.

  >>> misplaced([1]), misplaced(counted), misplaced(None)
  ('a list: unpack it, *(...)', 'the function counted: call it, counted(...)', 'NoneType')
  """
  if isinstance(thing, list | tuple):
    return f'a {type(thing).__name__}: unpack it, *(...)'
  if callable(thing) and hasattr(thing, '__name__'):
    return f'the {type(thing).__name__} {thing.__name__}: call it, {thing.__name__}(...)'
  return type(thing).__name__


class ConfigError(ValueError):
  """A config or a command line that cannot run. Its message is one line: the rule, what was got, the fix."""


def whole(value: Any, what: str, *, least: int) -> int:
  """Returns a whole number of any integer type as int, or raises naming `what` it is.

  >>> import numpy as np
  >>> whole(np.int32(3), 'batch_size', least=1)
  3
  """
  _refuse_tracer(value, what)
  try:
    plain = -1 if isinstance(value, bool) else operator.index(value)
  except TypeError:  # also of an array of floats, which has the method
    plain = -1
  if plain < least:
    raise ValueError(f'{what} is a whole number, at least {least}; got {value!r}')
  return plain


def number(value: Any, what: str) -> Any:
  """Returns a number of any kind, NumPy's or an array without axes, as Python's own, or raises naming `what` it is.

  A part decides by its options what it computes, so they are known before a program is compiled. As NumPy's they would
  also widen what they meet: a bfloat16 weight times `np.float32(0.9)` is a float32.

  Raises:
    TypeError: a traced value, or what is no real number.

  >>> import numpy as np
  >>> number(np.float64(0.5), 'sparsity'), number(np.array(3), 'every'), number(0.1, 'rate')
  (0.5, 3, 0.1)
  >>> number('0.5', 'sparsity')
  Traceback (most recent call last):
    ...
  TypeError: sparsity is a number; got '0.5'
  """
  _refuse_tracer(value, what)
  plain = value.item() if getattr(value, 'shape', None) == () and hasattr(value, 'item') else value
  if isinstance(plain, bool) or not isinstance(plain, int | float):
    raise TypeError(f'{what} is a number; got {value!r}')
  return plain


def _refuse_tracer(value: Any, what: str) -> None:
  """Told by name: nothing here imports jax."""
  if any(one.__name__ == 'Tracer' for one in type(value).__mro__):
    raise TypeError(
      f'{what} is known before a program is compiled, so it is a plain number; got a traced value: build the part '
      'outside of jit, grad and vmap, once for each value'
    )


def one_line(error: Exception) -> str | None:
  """Returns the message for an error that a person can mend; None for one that needs its traceback.

  Ours are raised on purpose, with one line that says what to do; so are the system's (a full disk, a folder
  that cannot be written). Whatever else comes is a fault in the code, and hiding where would not help.

  >>> one_line(ConfigError('seed is at least 0; got -1'))
  'seed is at least 0; got -1'
  >>> one_line(ZeroDivisionError('division by zero')) is None
  True
  """
  message = str(error)
  if isinstance(error, OSError) and error.errno in _FULL:
    where = f' for {error.filename}' if error.filename else ''
    return f'no room is left{where} ({error.strerror}): make room, then run the same command again'
  if isinstance(error, OSError) and error.errno == errno.EFBIG and error.strerror == os.strerror(errno.EFBIG):
    where = f' for {error.filename}' if error.filename else ''
    return (
      f'a file may not become as large as is needed{where} ({error.strerror}): raise the limit of this process '
      '(ulimit -f) or take another disk, then run the same command again'
    )
  if isinstance(error, OSError | ConfigError):
    return None if not message or '\n' in message else message
  frames = traceback.extract_tb(error.__traceback__)
  if frames and frames[-1].name == 'backends' and pathlib.Path(frames[-1].filename).name == 'xla_bridge.py':
    named = os.environ.get('JAX_PLATFORMS')
    asked = f'of JAX_PLATFORMS={named}' if named else 'that it was told to use'
    why = ' '.join(message.partition(" (set JAX_PLATFORMS=''")[0].split()) or 'no package for it is installed'
    return f'JAX finds no device {asked} here ({why}): unset it to take what there is, or install what it needs'
  ours = bool(frames) and pathlib.Path(frames[-1].filename).is_relative_to(pathlib.Path(__file__).parent)
  on_purpose = ours and (frames[-1].line or '').startswith('raise ')
  if isinstance(error, MemoryError) and not on_purpose:
    told = ' '.join(message.split()) or 'MemoryError'
    return f'not enough memory ({told}): --mode=plan tells what a run needs (--traceback shows where)'
  mendable = on_purpose and isinstance(error, ValueError | TypeError | RuntimeError | ImportError | MemoryError)
  return message or None if mendable else None


def as_flags(message: str) -> str:
  """Returns a message of the library in the words of the command line.

  >>> as_flags('give another workdir, or move the run aside with fresh=True')
  'give another --workdir, or move the run aside with --fresh'
  """
  words = {'another workdir': 'another --workdir', 'fresh=True': '--fresh', "which='latest'": '--which=latest'}
  words |= {'machine.force=True': '--force'}
  for ours, flag in {**words, 'by out=': 'by --out='}.items():
    message = message.replace(ours, flag)
  return message


def check_dict(params: Any, name: str) -> None:
  """Raises TypeError where a hook's entry could not be added to a model's params: they are no dict.

  >>> check_dict({'w': 1.0}, 'lsq')
  """
  if not isinstance(params, dict):
    raise TypeError(f'{name} needs params to be a dict, got {type(params).__name__}: build the Model with an adapter')
