"""The task table's command runs from end to end on data that need no download; its own metrics are held to the grades.

`experiments/tasks.py` raises where jaxlite's metrics are not scikit-learn's of the same predictions.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import unoptimized

ROOT = Path(__file__).parents[1]


def test_two_rows_in_their_short_form(tmp_path):
  command = [sys.executable, str(ROOT / 'experiments' / 'tasks.py'), '--smoke', '--only=diabetes,mosaics']
  done = subprocess.run(
    [*command, f'--workdir={tmp_path}'],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env={**os.environ, **unoptimized.environment()},
  )
  assert done.returncode == 0, done.stderr
  rows = [line for line in done.stdout.splitlines() if line.startswith('| ')]
  assert [re.split(r' *\| *', row)[1] for row in rows[1:]] == [
    'regression: diabetes (442)',
    'segmentation: mosaics of digits (2,200)',
  ]
  assert 'MLPRegressor: ' in rows[1]
  assert 'PyTorch: not run' in rows[2]
  assert (tmp_path / 'smoke' / 'tasks.md').read_text() == done.stdout
  (found,) = tmp_path.glob('smoke/mosaics-ours-*.json')
  assert set(json.loads(found.read_text())['grades']) == {'mean_iou', 'accuracy'}
