"""Whatever a stranger's file holds: one clear error, nothing run, memory bounded (`weight_damages.py` makes them)."""

import os
import subprocess
import sys
import textwrap

import pytest

import weight_damages
from jaxlite.finetuning import WeightsError, read

pytest.importorskip('h5py')
MOST = 16 << 20  # bytes that a file which cannot be told from a sound one may give


def judge(number, folder):
  """Reads one file to the end; returns what was wrong with how it was refused, '' where nothing was."""
  canary = folder / 'canary'
  case = weight_damages.make(number, canary)
  path = folder / f'case{case.suffix}'
  path.write_bytes(case.data)
  told = ''
  try:
    held = read(path)
    if held.nbytes > MOST:
      told = f'{held.nbytes} bytes would be read'
    else:
      for name in held:
        held[name].tobytes()
      told = f'was read as {held}' if case.sure else ''
  except WeightsError as error:
    if '\n' in str(error) or len(str(error)) > 600 or not str(error).isprintable():
      told = f'an unclear error: {str(error)[:600]!r}'
  except Exception as error:
    told = f'{type(error).__name__}: {error}'
  if canary.exists():
    canary.unlink()
    told = 'CODE OF THE FILE WAS RUN'
  return told and f'{number} ({case.name}): {told}'


def test_damaged_and_hostile_files_are_refused_in_one_line(tmp_path):
  wrong = [told for number in range(240) if (told := judge(number, tmp_path))]
  assert not wrong, '\n'.join(wrong[:10])


CODE = """
import pathlib, resource, sys, time
sys.path[:0] = [{tests!r}, {here!r}]
from test_hostile import judge
folder = pathlib.Path(sys.argv[1])
judge(0, folder)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
wrong, slowest = [], 0.0
for number in range(2000):
  start = time.perf_counter()
  told = judge(number, folder)
  slowest = max(slowest, time.perf_counter() - start)
  wrong += [told] if told else []
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
print(f'{{len(wrong)}} wrong, {{grown}} MiB more, slowest {{slowest:.2f}} s', *wrong[:20], sep='\\n')
sys.exit(1 if wrong or grown > 512 or slowest > 60 else 0)
"""


@pytest.mark.slow
def test_two_thousand_files_within_half_a_gigabyte(tmp_path):
  here = os.path.dirname(__file__)
  code = textwrap.dedent(CODE).format(tests=os.path.dirname(here), here=here)
  done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True)
  print(done.stdout)
  assert done.returncode == 0, done.stdout + done.stderr
