"""The site: settings of Sphinx, and the pages that are made of what stands elsewhere.

Guides are the READMEs; the reference is the docstrings of all that is public. Both are written into `made/` when a
build begins, so nothing is told twice. Docstrings are plain text with `code` in single backticks, as an editor shows
them; `as_rest` makes of them what Sphinx reads. All but `setup` needs no Sphinx: the tests look at it without.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT, MADE = HERE.parents[1], HERE / 'made'
sys.path.insert(0, str(ROOT))

import jaxlite  # noqa: E402

project, author, copyright = 'jaxlite', 'the authors of jaxlite', 'the authors of jaxlite, Apache-2.0'
version = release = jaxlite.__version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.autosummary', 'sphinx.ext.napoleon']
exclude_patterns = ['html']
myst_heading_anchors = 4
# A section may begin two levels down; `Model` in a signature is jl.Model and jl.contract.Model, which are one.
suppress_warnings = ['myst.header', 'ref.python']
highlight_language = 'text'
autosummary_generate = add_module_names = False
autodoc_preserve_defaults = True  # as they are written, not as Python shows a function
autodoc_typehints_format = 'short'
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_param = False  # 'fresh, command, say' is one entry of a list
napoleon_custom_sections = [('Attributes', 'params_style')]
toc_object_entries_show_parents = 'hide'
html_theme, html_title = 'furo', f'jaxlite {version}'
html_static_path, html_css_files = ['static'], ['site.css']
html_show_sphinx = html_copy_source = False

GUIDES = {
  'README.md': 'tour',
  'experiments/README.md': 'experiments',
  'experiments/bench/against_pytorch.md': 'against_pytorch',
  '.github/CONTRIBUTING.md': 'contributing',
  '.github/SECURITY.md': 'security',
  'CHANGELOG.md': 'changelog',
}
ROOMS = (*jaxlite._ROOMS, 'config')
_LINK = re.compile(r'(?<=\]\()[^)\s:]+(?=\))')  # to a file, not to an address
_CODES = re.compile(r'(^```.*?^```|`[^`\n]+`)', re.MULTILINE | re.DOTALL)
_DOCTEST = re.compile(r'\s*>>> ')
_CODE = re.compile(r'(`[^`]+`)')


def linked(text: str, page: str, folder: Path) -> str:
  """Returns the text of a file of the checkout as it is read in another folder: its links go to pages of the site."""

  def moved(found: re.Match[str]) -> str:
    file, mark, heading = found.group().partition('#')
    if not file:
      return found.group()
    target = os.path.normpath(os.path.join(os.path.dirname(page), file))
    place = MADE / f'{GUIDES[target]}.md' if target in GUIDES else ROOT / target
    return os.path.relpath(place, folder) + mark + heading

  parts = _CODES.split(text)  # every second one is code
  return ''.join(part if index % 2 else _LINK.sub(moved, part) for index, part in enumerate(parts))


def public(module: types.ModuleType) -> list[str]:
  """Returns the public names of a module: those that it lists, or else what it defines and tells of."""
  listed = getattr(module, '__all__', None)
  if listed is not None:
    return [name for name in listed if not name.startswith('_') and name not in ROOMS]
  own = [name for name, value in vars(module).items() if getattr(value, '__module__', '') == module.__name__]
  return sorted(name for name in own if not name.startswith('_') and inspect.getdoc(getattr(module, name)))


def reference() -> dict[str, str]:
  """Returns the pages of the reference: of the names at the top, and of each room."""
  pages = {'jaxlite': _page('jl', jaxlite)}
  for room in ROOMS:
    title = f'jl.{room}' if room in jaxlite._ROOMS else f'jaxlite.{room}'
    pages[room] = _page(title, importlib.import_module(f'jaxlite.{room}'))
  return pages


def _page(title: str, module: types.ModuleType) -> str:
  parts = [f'# `{title}`', _directive('automodule', module.__name__, no_index=module.__name__ == 'jaxlite')]
  names = sorted(public(module), key=str.lower)
  families = [name for name in names if isinstance(getattr(module, name), types.ModuleType)]
  parts += list(_names(module, [name for name in names if name not in families]))
  for family in families:
    inside = getattr(module, family)
    parts += [f'## `{title}.{family}`', _directive('automodule', inside.__name__), *_names(inside, public(inside))]
  return '\n\n'.join(parts) + '\n'


def _names(module: types.ModuleType, names: list[str]) -> Iterator[str]:
  yield '```{eval-rst}\n.. autosummary::\n   :nosignatures:\n\n' + '\n'.join(f'   {name}' for name in names) + '\n```'
  for name in names:
    value = getattr(module, name)
    is_class, alias = inspect.isclass(value), typing.get_origin(value) is not None
    kind = 'autoclass' if is_class else 'autofunction' if callable(value) and not alias else 'autodata'
    # A class that is public in two places, neither its own, has one entry in the index.
    twice = is_class and module is not jaxlite and value.__module__ != module.__name__ and name in jaxlite._MODULE
    yield _directive(kind, f'{module.__name__}.{name}', members=is_class, no_index=twice)


def _directive(kind: str, name: str, **options: bool) -> str:
  told = ''.join(f'\n   :{option.replace("_", "-")}:' for option, given in options.items() if given)
  return f'```{{eval-rst}}\n.. {kind}:: {name}{told}\n```'


def as_rest(lines: list[str], names: dict[str, str]) -> list[str]:
  """Returns a docstring as reStructuredText.

  Args:
    lines: as Python cleans them.
    names: how code may call what has a place in the reference -> its full name.
  """
  made: list[str] = []
  section, example, ended = '', False, False
  rest = list(lines)
  while rest:
    line = rest.pop(0)
    while not example and not _DOCTEST.match(line) and line.count('`') % 2 and rest:  # code that goes on below
      line += f' {rest.pop(0).strip()}'
    stripped = line.strip()
    if example or _DOCTEST.match(line):
      if not example and made and made[-1].strip():
        made.append('')
      example = bool(stripped)
      section = ''
      made.append(line)
      continue
    if line and not line[0].isspace():
      section = stripped if stripped in ('Returns:', 'Yields:', 'References:') else ''
      ended = True
      if section == 'References:':
        made += ['.. rubric:: References', '']
        continue
      if section:
        made.append(f':{section.lower()}')
        continue
    if stripped.startswith('- ') and made and made[-1].strip() and not made[-1].strip().startswith('- '):
      made.append('')
    text = _told(line, names)
    if section == 'References:' and stripped:
      note = stripped.startswith('(')
      text = f'{"- " if ended and not note else "  "}{text.strip()}'
      ended = 'https://' in stripped or 'http://' in stripped or (ended and note)
    elif section and stripped:
      text = '    ' + text
    made.append(text)
  return made


def _told(line: str, names: dict[str, str]) -> str:
  """One line: code in single backticks becomes code, with a link where the reference has it; all else is plain."""
  parts = _CODE.split(line)
  for index, part in enumerate(parts):
    if index % 2:
      code = part[1:-1]
      known = names.get(re.sub(r'\(.*', '', code))
      parts[index] = f':py:obj:`{code} <{known}>`' if known else f'``{code}``'
      if index + 1 < len(parts) and parts[index + 1][:1].isalnum():  # a word goes on: 's' of a plural
        parts[index] += '\\'
    else:
      parts[index] = re.sub(r'([*|\\])|(?<=\w)(_)(?!\w)', r'\\\1\2', part)
  return ''.join(parts)


def fields_of(kind: type) -> str:
  """Returns the signature of a dataclass, with what a factory makes where that is short."""
  told = []
  for field in dataclasses.fields(kind):
    default = ''
    if field.default is not dataclasses.MISSING:
      default = f' = {field.default!r}'
    elif field.default_factory is not dataclasses.MISSING:
      made = field.default_factory()
      short = repr(made) if len(repr(made)) < 40 else f'{type(made).__name__}()'
      default = f' = {short}'
    told.append(f'{field.name}: {field.type}{default}')
  return f'({", ".join(told)})'


def _names_in_code() -> dict[str, str]:
  """How code may call what has a place in the reference -> its full name."""
  names = {}
  for room in ('', *ROOMS):
    module = importlib.import_module(f'jaxlite.{room}'.rstrip('.'))
    names[f'jl.{room}'] = module.__name__
    for name in public(module):
      for short in (f'jl.{room}.{name}', f'jaxlite.{room}.{name}', f'{room}.{name}'):
        names[short.replace('..', '.').removeprefix('.')] = f'{module.__name__}.{name}'
  return names


def _write(path: Path, text: str) -> None:
  """Only where it is new, so that Sphinx makes again what changed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if not path.exists() or path.read_text(encoding='utf-8') != text:
    path.write_text(text, encoding='utf-8')


def setup(app: Any) -> None:
  """Writes the pages, and has Sphinx read docstrings as they are written."""
  names = _names_in_code()
  pages = {MADE / f'{name}.md': linked((ROOT / page).read_text('utf-8'), page, MADE) for page, name in GUIDES.items()}
  pages |= {MADE / 'reference' / f'{name}.md': text for name, text in reference().items()}
  for old in set(MADE.rglob('*.md')) - set(pages):
    old.unlink()
  for path, text in pages.items():
    _write(path, text)

  def source(app: Any, name: str, text: list[str]) -> None:
    path = HERE / f'{name}.md'
    if MADE not in path.parents:
      text[0] = linked(text[0], os.path.relpath(path, ROOT), path.parent)

  def docstring(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    alias = typing.get_origin(value) is not None
    own = not alias and inspect.getdoc(value) != inspect.getdoc(type(value))  # and not dict's
    room = '.'.join(name.split('.')[1:2])
    beside = {short.removeprefix(f'{room}.'): full for short, full in names.items() if short.startswith(f'{room}.')}
    lines[:] = as_rest(lines, names | beside) if own else []

  def signature(app: Any, what: str, name: str, value: Any, options: Any, told: str, returned: str) -> Any:
    return (fields_of(value), None) if what == 'class' and dataclasses.is_dataclass(value) else None

  def skipped(app: Any, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    return True if type(value).__name__ == '_tuplegetter' else None  # a field: the class tells of it

  app.connect('source-read', source)
  app.connect('autodoc-process-docstring', docstring, priority=400)  # before napoleon
  app.connect('autodoc-process-signature', signature)
  app.connect('autodoc-skip-member', skipped)
