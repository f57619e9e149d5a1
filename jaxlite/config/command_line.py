"""The command line of `launch.py`: config fields as flags, the experiment file, errors in one line.

Nothing here imports JAX before the experiment file does: `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import flags as absl_flags

from jaxlite import errors
from jaxlite.config import fields
from jaxlite.config import schema as configs
from jaxlite.config.duration import UNITS, Duration
from jaxlite.host import streams

Pairs = list[tuple[str, str | None]]


def parse(argv: Sequence[str], flag_values: absl_flags.FlagValues, doc: str, owner: str) -> Pairs:
  """Parses a command line: absl keeps its flags, config fields are handed back.

  Leaves the process on --help (exit code 0) and on a mistake (one line, exit code 2).

  Args:
    argv: the whole command line, program first.
    flag_values: absl's flags, defined by the program.
    doc: what --help says first.
    owner: the module that defines the program's flags.

  Returns:
    The config fields, as `split` gives them.
  """
  known = [flag.name for flag in flag_values.get_key_flags_for_module(owner)]
  if any(word in ('-h', '-help', '--help') for word in argv[1:]):
    own = flag_values.module_help(owner)
    streams.show(f'{doc}\n{own}\n\nconfig fields (an experiment may add its own):\n{config_help()}')
    sys.exit(0)
  try:
    rest, pairs = split(flag_values.read_flags_from_files(list(argv[1:])))
    extra = flag_values([argv[0], *rest])[1:]
  except absl_flags.UnrecognizedFlagError as error:
    near = fields.nearest(f'--{error.flagname}', [f'--{name}' for name in known])
    fail(f'unknown flag --{error.flagname}; nearest: {near}')
  except absl_flags.Error as error:
    fail(' '.join(str(error).split()))
  if extra:
    fail(f'every argument is a flag; got {extra[0]!r}: an experiment file is given as --config={extra[0]}')
  return pairs


def fail(message: str) -> NoReturn:
  """Leaves with the exit code of a mistake that a person can mend."""
  with streams.listening(sys.stderr):
    print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


def split(argv: Sequence[str]) -> tuple[list[str], Pairs]:
  """Takes the config fields out of a command line, wherever they stand.

  Args:
    argv: the arguments, without the program.

  Returns:
    (what is left, [(path, text)]). A field without a value, at the end or before another flag, has text None.

  >>> split(['--config.optim.lr', '0.1', '--smoke', '--config.log.progress'])
  (['--smoke'], [('optim.lr', '0.1'), ('log.progress', None)])
  """
  rest: list[str] = []
  pairs: Pairs = []
  waiting = list(reversed(argv))
  while waiting:
    word = waiting.pop()
    if not (found := re.fullmatch(r'--?config\.([^=]*)(=(.*))?', word, re.DOTALL)):
      rest.append(word)
    elif found[2] or not waiting or re.match(r'--?[a-zA-Z]', waiting[-1]):  # -1e-3 is a value
      pairs.append((found[1], found[3]))
    else:
      pairs.append((found[1], waiting.pop()))
  return rest, pairs


def load(path: str, pairs: Pairs, root: pathlib.Path) -> configs.Config:
  """Reads an experiment file, asks it for its config, sets the fields and checks the result.

  Args:
    path: the experiment file, from here or from `root`.
    pairs: fields to set, as `split` gives them.
    root: the folder of the launcher, whose own experiments are found from anywhere.

  Returns:
    The config.

  Raises:
    ConfigError: no such file, no `get_config`, an error inside it, or a field that cannot be.
  """
  here = pathlib.Path(path)
  file = _found(path, root)
  if file.is_dir():
    raise errors.ConfigError(f'an experiment file is a file of Python, and {path!r} is a folder: name the file in it')
  if not file.is_file():
    near = [*here.parent.glob('*.py'), *(one.relative_to(root) for one in (root / 'experiments').glob('*.py'))]
    raise errors.ConfigError(f'no experiment file {path!r}; nearest: {fields.nearest(path, map(str, near))}')
  file = file.resolve()
  try:
    module = _module(file)
    if not hasattr(module, 'get_config'):
      raise errors.ConfigError(f'{path} has no get_config(): an experiment file defines one')
    config = module.get_config()
  except errors.ConfigError:
    raise
  except Exception as error:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    where = f'{path}, line {lines[-1]},' if lines else path
    detail = ' '.join(str(error).split())
    raise errors.ConfigError(f'{where} raises {type(error).__name__}: {detail} (--traceback shows where)') from error
  if not isinstance(config, configs.Config):
    raise errors.ConfigError(f'get_config() of {path} returns a jaxlite.Config; got {type(config).__name__}')
  config = fields.apply_overrides(config, pairs)
  configs.validate(config)
  return config


def declared(path: str, name: str, root: pathlib.Path) -> Any:
  """Returns what an experiment file that `load` has read declares by a name, called where it is a function.

  Args:
    path: the experiment file.
    name: such as 'SPACE'.
    root: the folder of the launcher.

  Returns:
    It; None where the file has no such name.
  """
  value = getattr(sys.modules.get(_name_of(_found(path, root).resolve())), name, None)
  return value() if callable(value) else value


def _found(path: str, root: pathlib.Path) -> pathlib.Path:
  here = pathlib.Path(path)
  return here if here.is_file() else root / here


def _name_of(file: pathlib.Path) -> str:
  # Saved configs name functions by module: the name must not depend on where the command was typed.
  name = f'{file.parent.name}.{file.stem}'
  return f'experiment.{name}' if _is_taken(file) else name


def _is_taken(file: pathlib.Path) -> bool:
  """Tells whether the name is that of a module of a package: an experiment of the name random, in a folder of the name
  numpy, would be in the place of NumPy's own."""
  folder = file.parent.name
  try:
    spec = importlib.util.find_spec(folder) if folder.isidentifier() else None  # of a top-level name: imports nothing
  except (ImportError, ValueError):  # one that is half loaded
    return f'{folder}.{file.stem}' in sys.modules
  if spec is None or spec.origin is None:  # a folder without __init__.py: the name is free, whatever lies there
    return False
  places = [pathlib.Path(one) for one in spec.submodule_search_locations or ()]
  elsewhere = [one for one in places if one.resolve() != file.parent]
  names = (file.stem, *(f'{file.stem}{end}' for end in importlib.machinery.all_suffixes()))
  return any((one / name).exists() for one in elsewhere for name in names)


def _module(file: pathlib.Path) -> Any:
  name = _name_of(file)
  loader = importlib.machinery.SourceFileLoader(name, str(file))  # whatever the file's name ends in
  spec = importlib.machinery.ModuleSpec(name, loader, origin=str(file))
  spec.has_location = True
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # annotations of its dataclasses are looked up there
  if str(file.parent) not in sys.path:
    sys.path.append(str(file.parent))  # an experiment may import a file that lies beside it
  loader.exec_module(module)
  return module


def config_help() -> str:
  """Returns the fields that every config has, with what they hold and where they start."""
  config = configs.Config(name='')
  kinds, lines = fields.settable(config), []
  for path, _, _, value in fields.fields(config):
    if isinstance(value, Duration):
      lines.append(f'  --config.{path}.{{{",".join(UNITS)}}} (default: {value})')
    elif path in kinds:
      lines.append(f'  --config.{path}: {kinds[path]}' + (f' (default: {value!r})' if value != '' else ''))
  return '\n'.join([*lines, '  --config.runs.<run>.<field>: for one of several runs only'])
