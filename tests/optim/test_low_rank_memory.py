"""QLoRA trains under a memory limit that float32 LoRA exceeds: real processes, a real limit."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / 'experiments' / 'bench' / 'lora_memory.py'
SIZES = {'width': 576, 'layers': 30, 'heads': 9, 'hidden': 1536, 'vocabulary': 49152}


def run(*arguments):
  command = [sys.executable, str(BENCH), *arguments]
  return subprocess.run(command, capture_output=True, text=True, timeout=3000, check=False)


@pytest.mark.slow
def test_four_bits_train_where_float32_does_not(tmp_path):
  del tmp_path
  if resource.getrlimit(resource.RLIMIT_DATA)[1] != resource.RLIM_INFINITY:
    pytest.skip('this process is limited already')
  peaks = {}
  for way in ('lora', 'nf4'):
    peaks[way] = json.loads(run('worker', way, '--steps=3', f'--sizes={json.dumps(SIZES)}').stdout)
  assert peaks['nf4']['peak MiB'] < peaks['lora']['peak MiB']
  assert peaks['nf4']['learns %'] <= 1
