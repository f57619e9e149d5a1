"""README is true: its Python runs, its commands are those that exist, its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text()


def blocks(language):
  return re.findall(rf'```{language}\n(.*?)```', TEXT, re.DOTALL)


def test_the_python_blocks_run_in_order():
  namespace = {}
  for block in blocks('python'):
    exec(compile(block, 'README.md', 'exec'), namespace)


def test_the_commands_name_what_exists():
  text = '\n'.join(blocks('bash'))
  for file in re.findall(r'[\w/]+\.py', text):
    assert (ROOT / file).exists(), file
  extras = (ROOT / 'pyproject.toml').read_text()
  for extra in re.findall(r"-e '\.\[(\w+)\]'", text):
    assert f'\n{extra} = [' in extras
  assert 'pip install -e . && python launch.py' in text
  assert "pip install -e '.[test]' && pytest" in text


BENCHES = re.compile(r'`python (experiments/bench/\w+\.py)([^`]*)`')


def test_every_flag_of_the_readme_is_a_flag():
  for file, words in BENCHES.findall(TEXT):
    for flag in re.findall(r'--([\w.]+)', words):
      assert f"'{flag.removeprefix('no')}'" in (ROOT / file).read_text(), (file, flag)
  shown = subprocess.run([sys.executable, str(ROOT / 'launch.py'), '--help'], capture_output=True, text=True).stdout
  for flag in set(re.findall(r'--([\w.]+)', BENCHES.sub('', TEXT))) - {'config.optim.lr'}:
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
  out = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, cwd=tmp_path).stdout
  assert re.search(r'teacher +student +alone', out)
  assert (tmp_path / 'digits-smoke' / 'report.md').exists()
