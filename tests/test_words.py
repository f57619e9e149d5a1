"""Laws of what docstrings, comments and pages name: it is there. What was renamed must not live on in words."""

import ast
import importlib
import io
import pathlib
import re
import subprocess
import tokenize

import pytest

import jaxlite as jl

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = [ROOT, *(ROOT / name for name in ('jaxlite', 'tests', 'experiments'))]
ROOMS = {path.stem for path in (ROOT / 'jaxlite').iterdir()} | {'jl', 'jaxlite'}
# Not of this repository, or made by a run.
ELSEWHERE = {'FILE.py', 'a.py', 'report.md', 'malloc.h', 'sysexits.h', 'xla/ffi/api/c_api.h', 'a.c'}
OBJECTS = {'jl.const', 'jl.taps', 'jl.health', 'data.train'}  # entries of a state, a field of a value


def tracked():
  """Every file of the tree; of a checkout without git, what lies in the folders of the code."""
  found = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
  if found.returncode == 0:
    return [ROOT / name for name in found.stdout.splitlines() if (ROOT / name).is_file()]
  return [path for folder in FOLDERS[1:] for path in folder.rglob('*.*')] + list(ROOT.glob('*.*'))


FILES = tracked()
NAMES = {path.name for path in FILES}


def prose(path):
  """The comments and docstrings of a Python file; the text of a page, without its blocks of code."""
  text = path.read_text(encoding='utf-8')
  if path.suffix == '.md':
    return re.sub(r'```.*?```', '', text, flags=re.DOTALL)
  if path.suffix != '.py':
    return '\n'.join(re.findall(r'/\*.*?\*/|//[^\n]*', text, flags=re.DOTALL))
  found = [
    token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT
  ]
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
      found.append(ast.get_docstring(node, clean=False) or '')
  return '\n'.join(found)


def files_in(text):
  """What a text names that looks like a file of code or a page, and paths into the folders of the code."""
  named = re.findall(r'(?<![\w/:.*{<>-])((?:\.\.?/)?[\w.-]+(?:/[\w.-]+)*\.(?:py|md|c|h))\b(?![\w(/])', text)
  inside = re.findall(r'(?<![\w`/.])((?:jaxlite|tests|experiments)/[\w/.-]+)', text)
  return {name.rstrip('.') for name in (*named, *inside)} - ELSEWHERE


def is_there(name, beside):
  if '/' not in name:
    return name in NAMES
  return any((folder / name).exists() for folder in (beside, *FOLDERS))


def attributes_in(text):
  """Dotted names in backticks that begin with a room of the package: `graph.canonical`, `jl.pruning.erk(...)`."""
  named = re.findall(r'`([a-z_]+(?:\.\w+)+)(?:\([^`]*\))?`', text)
  files = r'\.(py|md|html|json|jsonl|txt|bin|c|h)$'
  return {name for name in named if name.split('.')[0] in ROOMS and not re.search(files, name)} - OBJECTS


def resolves(name):
  """Whether it is something of the package, or a field of a config."""
  first, *rest = ('jaxlite' if part == 'jl' else part for part in name.split('.'))
  parts = [first, *rest] if first == 'jaxlite' else ['jaxlite', first, *rest]
  return _reached(parts) or _field(rest if first == 'config' else [first, *rest])


def _reached(parts):
  found, path = jl, parts[0]
  for part in parts[1:]:
    path = f'{path}.{part}'
    if not hasattr(found, part):
      try:
        importlib.import_module(path)
      except ImportError:
        return False
    found = getattr(found, part)
  return True


def _field(parts):
  found = jl.Config(name='x')
  for part in parts:
    if not hasattr(found, part):
      return False
    found = getattr(found, part)
  return True


READ = [path for path in FILES if path.suffix in ('.py', '.md', '.c', '.h') and path.name != 'CHANGELOG.md']


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # an old name would resolve: it is told by the next test
def test_every_file_and_every_name_that_words_speak_of_is_there():
  missing = []
  for path in READ:
    text = prose(path)
    where = path.relative_to(ROOT)
    missing += [f'{where}: {name}' for name in files_in(text) if not is_there(name, path.parent)]
    missing += [f'{where}: `{name}`' for name in attributes_in(text) if not resolves(name)]
  assert not missing
  assert len(READ) > 300 or not (ROOT / '.git').exists()


def test_this_test_finds_what_is_stale():
  text = 'see `quant_program.py`, jaxlite/transforms/prune.py, `contract.task` and `jl.pruning.erk(1)`, or loop.py.'
  assert {name for name in files_in(text) if not is_there(name, ROOT)} == {
    'quant_program.py',
    'jaxlite/transforms/prune.py',
  }
  assert {name for name in attributes_in(text) if not resolves(name)} == {'contract.task'}


def percentages(text):
  return re.findall(r'\d+\.\d+ %', text)


def test_experiments_state_the_results_of_the_pages():
  """A docstring's figures are those of the table that stands beside the command."""
  table = (ROOT / 'README.md').read_text()
  (row,) = re.findall(r'\| test accuracy .*\|', table)
  digits = importlib.import_module('jaxlite.experiments.digits')
  assert percentages(digits.__doc__) == percentages(row)
  (seconds,) = re.findall(r'in (\d+ s) from a cold start', table)
  assert seconds in digits.__doc__
  fashion = ast.get_docstring(ast.parse((ROOT / 'experiments' / 'fashion_mnist.py').read_text()))
  page = (ROOT / 'experiments' / 'README.md').read_text()
  stated = re.findall(r'\d+\.\d+ % \([^)]*\)', fashion)
  assert len(stated) == 2
  assert all(one in page for one in stated)
