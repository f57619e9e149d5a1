"""The benches answer --help without JAX, and a worker whose framework is missing is left out, not run into."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

BENCH = pathlib.Path(__file__).resolve().parent.parent / 'experiments' / 'bench'


@pytest.mark.parametrize('script', ['against_pytorch', 'startup', 'race', 'pipelines'])
def test_a_bench_tells_its_flags_and_command_before_it_imports_jax(script):
  look = (
    'import runpy, sys\n'
    f'sys.path.insert(0, {str(BENCH)!r})\n'
    f'sys.argv = [{script!r}, "--short" if {script!r} != "race" else "--seeds=2"]\n'
    f'globals_of = runpy.run_path({str(BENCH / script) + ".py"!r})\n'
    'globals_of["FLAGS"](sys.argv)\n'
    'print("jax" in sys.modules, globals_of["__doc__"])\n'
  )
  done = subprocess.run([sys.executable, '-c', look], capture_output=True, text=True, check=True)
  imported, text = done.stdout.split(' ', 1)
  assert imported == 'False'
  assert f'python experiments/bench/{script}.py' in text


def test_an_interpreter_without_the_framework_is_known_before_a_worker_starts(monkeypatch):
  monkeypatch.syspath_prepend(str(BENCH))
  import serving

  assert serving.missing(sys.executable, 'no_such_framework')
  assert serving.missing('/no/such/python', 'torch')
  assert not serving.missing(sys.executable, 'numpy')


def test_a_worker_answers_and_one_that_dies_is_told(monkeypatch, tmp_path):
  monkeypatch.syspath_prepend(str(BENCH))
  import serving

  worker = tmp_path / 'worker.py'
  worker.write_text(
    f'import sys; sys.path.insert(0, {str(BENCH)!r})\n'
    'import serving\n'
    'build = lambda form: serving.Running(lambda index: [index + 0.5], list)\n'
    'serving.serve_steps(build)\n'
  )
  started = serving.start(sys.executable, str(worker), {})
  assert serving.ask(started, 'first', 'x') == 0.5
  assert serving.ask(started, 'losses', 'x', 3) == [0.5, 1.5, 2.5]
  assert serving.ask(started, 'time', 'x', 4)['steps'] == 4
  with pytest.raises(RuntimeError, match='died'):
    serving.ask(started, 'no such question')
  serving.stop(started)
