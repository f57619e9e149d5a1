"""Every experiment file gives configs that may run; the one of a small package runs from end to end."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlite.config import command_line, schema

ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / 'experiments').glob('*.py') if 'def get_config' in path.read_text())


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_each_of_its_runs_is_a_config_that_may_run(path, monkeypatch):
  monkeypatch.setattr(sys, 'path', [str(ROOT / 'experiments'), *sys.path])
  config = command_line.load(str(path), [], ROOT)
  for name, varied in config.runs.items():
    one = dataclasses.replace(varied(config), name=name, runs={})
    schema.validate(one)
    schema.validate(schema.smoke(one))
    if one.teacher:
      teacher = one.teacher.removeprefix('../')
      assert list(config.runs).index(teacher) < list(config.runs).index(name), 'a teacher runs before its students'


@pytest.mark.slow
def test_signals_in_their_short_form(tmp_path):
  pytest.importorskip('mnist1d')
  command = [sys.executable, str(ROOT / 'launch.py'), f'--config={ROOT / "experiments" / "signals.py"}', '--smoke']
  command += ['--run=alone0,teacher,student0', f'--workdir={tmp_path / "run"}']
  done = subprocess.run(
    command, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  rows = {line[:24].strip(): line[24:].split() for line in done.stdout.splitlines()}
  assert rows['parameters'] == ['1,146', '88,394', '1,146']
  assert rows['bits per weight'] == ['32', '32', '8']
  layers = json.loads((tmp_path / 'run-smoke' / 'student0' / 'result.json').read_text())['layers']
  assert [layer['nonzero'] < layer['size'] for layer in layers if layer['path'].startswith('conv')] == [
    False,
    True,
    True,
  ]
