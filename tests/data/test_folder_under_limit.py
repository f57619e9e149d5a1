"""A folder larger than the memory limit trains, and a run that is killed three times ends with the same bits."""

import pathlib
import subprocess
import sys

import pytest

BENCH = pathlib.Path(__file__).resolve().parents[2] / 'experiments' / 'bench' / 'picture_folder.py'


@pytest.mark.slow
@pytest.mark.parametrize('keep', ['folder', 'pixels'])
def test_a_folder_beyond_the_limit_trains_through_kills(tmp_path, keep):
  pytest.importorskip('skimage')
  flags = ['--count=6000', '--megabytes=980', '--steps=120', '--kills=3', f'--keep={keep}', f'--folder={tmp_path}']
  done = subprocess.run([sys.executable, str(BENCH), *flags], capture_output=True, text=True, timeout=3000)
  assert done.returncode == 0, done.stdout + done.stderr
  assert '1,180 MB decoded' in done.stdout
  assert 'killed 3 times' in done.stdout
  assert 'the same bits' in done.stdout
