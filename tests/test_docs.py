"""The site: its reference holds what is public, docstrings become what Sphinx reads, and a build has no warning.

The guides' own Python runs in `test_readme.py`; here a page that compares jaxlite with a peer runs whole, the peer's
half too, where that is installed.
"""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxlite
from test_surface import ROOMS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / '.github' / 'docs'
PAGES = sorted(DOCS.glob('coming_from/*.md'))
PACKAGES = {'lightning': ('lightning', 'torch'), 'torchao': ('torchao', 'torch'), 'jaxpruner': ('jaxpruner',)}


@pytest.fixture(scope='module')
def conf():
  spec = importlib.util.spec_from_file_location('site_conf', DOCS / 'conf.py')
  module, path = importlib.util.module_from_spec(spec), list(sys.path)
  spec.loader.exec_module(module)
  sys.path[:] = path
  return module


def wanted():
  """Every public name, by the page that it belongs on."""
  rooms = {room: importlib.import_module(f'jaxlite.{room}') for room in ROOMS}
  names = {'jaxlite': {f'jaxlite.{name}' for name in jaxlite._MODULE}}
  for room, module in rooms.items():
    names[room] = set()
    for name in module.__all__:
      value = getattr(module, name)
      family = [one for one in vars(value).values() if inspect.isroutine(one)] if inspect.ismodule(value) else None
      if family is None:
        names[room].add(f'{module.__name__}.{name}')
      else:
        own = [one for one in family if one.__module__ == value.__name__ and not one.__name__.startswith('_')]
        names[room] |= {f'{value.__name__}.{one.__name__}' for one in own}
  return names


def shown(text):
  return re.findall(r'^\.\. auto(?:function|class|data):: (\S+)$', text, re.MULTILINE)


def test_the_reference_holds_every_public_name_once(conf):
  pages = conf.reference()
  for page, names in wanted().items():
    listed = shown(pages[page])
    assert len(listed) == len(set(listed)), page
    missing, extra = names - set(listed), set(listed) - names
    assert not missing, (page, missing)
    families = [name for name in extra if name.rpartition('.')[0] != f'jaxlite.{page}']  # classes of a family
    assert extra == set(families), (page, extra)
  assert {'Hook', 'Model', 'chain', 'stream'} <= {name.rpartition('.')[2] for name in shown(pages['contract'])}
  assert set(pages) == {*wanted(), 'contract'}


def test_every_page_is_in_the_contents(conf):
  listed = re.findall(
    r'^(?:.* <)?((?:made|coming_from|trackers|what_)[^\s>]*)>?$', (DOCS / 'index.md').read_text(), re.MULTILINE
  )
  made = {f'made/reference/{page}' for page in conf.reference()} | {f'made/{name}' for name in conf.GUIDES.values()}
  written = {
    str(path.relative_to(DOCS).with_suffix('')) for path in DOCS.rglob('*.md') if conf.MADE not in path.parents
  }
  assert sorted(listed) == sorted(made | written - {'index'})


@pytest.mark.parametrize(
  ('page', 'text', 'expected'),
  [
    ('README.md', '[a](CHANGELOG.md) `[b](c)`', '[a](changelog.md) `[b](c)`'),
    ('README.md', '[a](experiments/README.md#x) [b](https://c.d)', '[a](experiments.md#x) [b](https://c.d)'),
    ('experiments/README.md', '![a](bench/b.png)', '![a](../../../experiments/bench/b.png)'),
    (
      'README.md',
      '[a](#here)\n```python\nf[0](CHANGELOG.md)\n```\n',
      '[a](#here)\n```python\nf[0](CHANGELOG.md)\n```\n',
    ),
  ],
)
def test_links_lead_to_pages_of_the_site(conf, page, text, expected):
  assert conf.linked(text, page, conf.MADE) == expected


DOCSTRING = """A sentence with `code`, `jl.train(x)`, 2*3 and a|b, and set_ too.

Args:
  a, b: of `Config`s, `in two
    lines`.

Returns:
  The Result: its table.

References:
  One et al., A, 2019,
  https://a.b/c
  (a note)
  Two, B, 2020, https://d.e/f

>>> 1 * 2  # `as it is`
2"""


def test_a_docstring_becomes_what_sphinx_reads(conf):
  made = conf.as_rest(DOCSTRING.splitlines(), {'jl.train': 'jaxlite.train'})
  assert made == [
    'A sentence with ``code``, :py:obj:`jl.train(x) <jaxlite.train>`, 2\\*3 and a\\|b, and set\\_ too.',
    '',
    'Args:',
    '  a, b: of ``Config``\\s, ``in two lines``.',
    '',
    ':returns:',
    '      The Result: its table.',
    '',
    '.. rubric:: References',
    '',
    '- One et al., A, 2019,',
    '  https://a.b/c',
    '  (a note)',
    '- Two, B, 2020, https://d.e/f',
    '',
    '>>> 1 * 2  # `as it is`',
    '2',
  ]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
  for package in ('sphinx', 'myst_parser', 'furo'):
    pytest.importorskip(package, reason="the extra 'docs' is not installed")
  command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-d', str(tmp_path / 'trees'), str(DOCS)]
  done = subprocess.run([*command, str(tmp_path / 'html')], capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr[-3000:]
  from sphinx.util.inventory import InventoryFile

  with open(tmp_path / 'html' / 'objects.inv', 'rb') as file:
    objects = {name for kind in InventoryFile.load(file, '', os.path.join).values() for name in kind}
  twice = {'jaxlite.config.Config', 'jaxlite.config.Duration'}  # their entries are those of jl.Config and jl.Duration
  assert set().union(*wanted().values()) - objects <= twice
  for page in (tmp_path / 'html').rglob('*.html'):  # nothing is fetched from anywhere
    asked = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?:https?:)?//', page.read_text())
    assert not asked, page


@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.stem)
def test_both_halves_of_a_page_run_and_agree(page, tmp_path):
  for package in PACKAGES.get(page.stem, (page.stem,)):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f'{package} is not installed')
  whole(page.read_text(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('tracker', ['wandb', 'mlflow', 'aim'])
def test_a_tracker_runs_as_its_guide_says(tracker, tmp_path):
  if importlib.util.find_spec(tracker) is None:
    pytest.skip(f'{tracker} is not installed')
  text = (DOCS / 'trackers.md').read_text()
  whole(re.sub(rf'```py\n(?!# {tracker})', '```text\n', text), tmp_path)


def whole(text, folder):
  """Runs all of a page's Python in a process of its own, for what the package brings along."""
  blocks = re.findall(r'```(?:python|py)\n(.*?)```', text, re.DOTALL)
  (folder / 'page.py').write_text('\n'.join(blocks))
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
  command = [sys.executable, str(folder / 'page.py')]
  done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder, env=environment)
  assert done.returncode == 0, done.stderr[-3000:]
  print(done.stdout)


@pytest.mark.parametrize('page', [*PAGES, DOCS / 'trackers.md'], ids=lambda path: path.stem)
def test_a_block_says_whose_it_is(page):
  names = {'keras': 'Keras', 'lightning': 'Lightning', 'jaxpruner': 'JaxPruner', 'qwix': 'Qwix'}
  peer = names.get(page.stem, page.stem if page.stem != 'trackers' else '(wandb|mlflow|aim)')
  for block in re.findall(r'```py\n(.*?)\n', page.read_text()):
    assert re.fullmatch(rf'# {peer}( and jaxlite)?', block), block
