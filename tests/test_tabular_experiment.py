"""The table of fewer features runs from end to end on data that need no download."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_one_data_set_in_its_short_form(tmp_path):
  command = [sys.executable, str(ROOT / 'experiments' / 'tabular.py'), '--smoke', '--only=wine']
  done = subprocess.run([*command, f'--workdir={tmp_path}'], capture_output=True, text=True, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  rows = [line for line in (tmp_path / 'smoke' / 'tabular.md').read_text().splitlines() if line.startswith('| ')]
  assert len(rows) == 7
  assert 'wine (178 x 13): accuracy, %' in rows[1]
  assert '| 4 |' in rows[2]
