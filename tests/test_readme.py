"""The READMEs and guides are true: their Python runs, their commands exist, their links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import unoptimized

ROOT = Path(__file__).parents[1]
PEERS = ('keras', 'lightning', 'torchao', 'jaxpruner', 'qwix')
GUIDES = tuple(f'.github/docs/{path}.md' for path in ('trackers', *(f'coming_from/{peer}' for peer in PEERS)))
RUN = ('README.md', 'experiments/README.md', '.github/CONTRIBUTING.md', *GUIDES)
PAGES = (*RUN, '.github/docs/index.md', '.github/docs/what_a_run_leaves.md', '.github/SECURITY.md', 'CHANGELOG.md')
TEXT = {page: (ROOT / page).read_text() for page in PAGES}


def blocks(page, language):
  return re.findall(rf'```{language}\n(.*?)```', TEXT[page], re.DOTALL)


@pytest.mark.unoptimized
@pytest.mark.parametrize(  # what Lightning's page does, that of Keras does too
  'page', [pytest.param(page, marks=[pytest.mark.slow] * page.endswith('lightning.md')) for page in RUN]
)
def test_the_python_blocks_run_in_order(page):
  namespace = {'__name__': 'readme'}
  for block in blocks(page, 'python'):
    exec(compile(block, page, 'exec'), namespace)


def test_the_commands_name_what_exists():
  text = '\n'.join(block for page in PAGES for block in blocks(page, 'bash'))
  for file in re.findall(r'[\w/]+\.py', text):
    assert (ROOT / file).exists(), file
  extras = (ROOT / 'pyproject.toml').read_text()
  for extra in re.findall(r"-e '\.\[(\w+)\]'", '\n'.join(TEXT.values())):
    assert f'\n{extra} = [' in extras
  first = '\n'.join(blocks('README.md', 'bash'))
  assert 'pip install -e . && python launch.py' in first
  assert "pip install -e '.[test]' && pytest" in first


@pytest.mark.parametrize('page', PAGES)
def test_the_links_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)\s]+)\)', TEXT[page]):
    if '://' in target:
      continue
    file, _, heading = target.partition('#')
    path = (ROOT / page).parent / file if file else ROOT / page
    assert path.exists(), target
    if heading:
      titles = re.findall(r'^#+ (.*)$', path.read_text(), re.MULTILINE)
      assert heading in {re.sub(r'[^\w -]', '', title).lower().replace(' ', '-') for title in titles}, target


def test_the_first_page_is_short():
  assert len(TEXT['README.md'].splitlines()) <= 200


BENCHES = re.compile(r'`python (experiments/(?:bench/)?\w+\.py)([^`]*)`')


def test_every_flag_of_the_readmes_is_a_flag():
  text = TEXT['README.md'] + TEXT['experiments/README.md']
  for file, words in BENCHES.findall(text):
    for flag in re.findall(r'--([\w.]+)', words):
      read = (ROOT / file).read_text()  # by absl, or by argparse
      assert f"'{flag.removeprefix('no')}'" in read or f"'--{flag}'" in read, (file, flag)
  shown = subprocess.run([sys.executable, str(ROOT / 'launch.py'), '--help'], capture_output=True, text=True).stdout
  for flag in set(re.findall(r'--([\w.]+)', BENCHES.sub('', text))) - {'config.optim.lr'}:
    assert re.search(rf'--(\[no\])?{re.escape(flag.split(".")[0])}', shown), flag
  assert 'optim.lr' in shown


@pytest.mark.slow
def test_the_main_job_as_a_stranger_types_it(tmp_path):
  command = [sys.executable, str(ROOT / 'launch.py'), f'--workdir={tmp_path / "digits"}']
  first = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout
  again = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout
  table = first[first.index('  teacher') :]
  assert table in again


def test_the_main_job_in_its_short_form(tmp_path):
  command = [sys.executable, str(ROOT / 'launch.py'), '--smoke', f'--workdir={tmp_path / "digits"}']
  environment = {**os.environ, **unoptimized.environment()}
  out = subprocess.run(
    command, capture_output=True, text=True, timeout=300, check=True, cwd=tmp_path, env=environment
  ).stdout
  assert re.search(r'teacher +student +alone', out)
  assert (tmp_path / 'digits-smoke' / 'report.md').exists()
