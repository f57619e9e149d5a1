"""Laws of the folder that is deployed to: nothing is left of what failed or was killed, and one writes at a time."""

import errno
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxlite as jl
from jaxlite.deployment import formats, place, subject, trial
from jaxlite.deployment.deploy import PAGE, REPORT
from jaxlite.deployment.packed.file import read_pack
from jaxlite.deployment.trying import score_of
from loops import X, Y, run

pytestmark = pytest.mark.unoptimized

QUICK = {'batches': (1,), 'seconds': 0.01, 'say': lambda line: None}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('places') / 'a run with spaces, ünïcode'
  run(folder, steps=2)
  return folder


@pytest.mark.parametrize('options', [{'examples': X[:0]}, {'budget': {'parameters': 1}}, {'which': 99}])
def test_a_mistake_leaves_no_folder(options, finished, tmp_path):
  with pytest.raises((ValueError, jl.checkpoint.CheckpointError)):
    jl.deploy(finished, 'safetensors', out=tmp_path / 'a' / 'b', **{'examples': X, **QUICK, **options})
  assert not list(tmp_path.iterdir())
  several = tmp_path / 'several'
  several.mkdir()
  with pytest.raises(FileNotFoundError):
    jl.deploy(several, 'safetensors', examples=X, **QUICK)
  assert not list(several.iterdir())


def test_one_deployment_writes_at_a_time_and_what_a_killed_one_left_goes(finished, tmp_path):
  (tmp_path / PAGE).write_text('of another network')
  with place.alone(tmp_path):
    with pytest.raises(ValueError, match=r'another deployment writes to .*: wait for it'):
      jl.deploy(finished, 'safetensors', out=tmp_path, examples=X, **QUICK)
    assert (tmp_path / PAGE).exists()
  left = tmp_path / f'{place.ASIDE}abc'
  left.mkdir()
  (left / 'network.onnx').write_text('half')
  (tmp_path / 'network.onnx').write_text('of another network')
  report = jl.deploy(finished, 'safetensors', out=tmp_path, examples=(X, Y), **QUICK)
  assert {path.name for path in tmp_path.iterdir()} == {'network.onnx', 'network.safetensors', PAGE, REPORT}
  assert report.notes == ('of an earlier deployment, and not tried now: network.onnx',)
  assert json.loads((tmp_path / REPORT).read_text())['notes'] == list(report.notes)


# One deployment after another, each killed at the next of its steps that a file system can see.
KILLED = """
import os, signal, sys
from pathlib import Path
from jaxlite.deployment import place

folder, old, new = Path(sys.argv[1]), {'a': 'old', 'b': 'old', 'page': 'old'}, {'a': 'new', 'c': 'new', 'page': 'new'}
names = ('a', 'b', 'c', 'page')
events = ('open', 'os.rename', 'os.remove', 'os.rmdir', 'os.mkdir', 'os.scandir', 'os.listdir')
assert 'jax' not in sys.modules  # it forks


def held():
  return {path.name: path.read_text() for path in folder.iterdir() if not path.is_dir()}


def deploy(least):
  left = [least]

  def count(event, told):
    if event in events:
      left[0] -= 1
      if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(count)
  with place.alone(folder), place.replacing(folder, names) as aside:
    for name, text in new.items():
      (aside / name).write_text(text)


kept = {**old, 'notes': 'of the user'}
for least in range(1, 999):
  for path in folder.iterdir():
    path.unlink()
  for name, text in kept.items():
    (folder / name).write_text(text)
  child = os.fork()
  if not child:
    deploy(least)
    os._exit(0)
  killed = os.waitpid(child, 0)[1]
  moved = list(folder.glob(place.READY + '*'))
  first = held()
  with place.alone(folder):
    pass
  whole = {**new, 'notes': 'of the user'}
  assert held() == (whole if moved or first == whole else kept), (least, first, held())
  assert moved or first in (kept, whole), (least, first)
  assert not [path for path in folder.iterdir() if path.is_dir()]
  print('finished' if not killed else 'new' if held() == whole else 'old')
  if not killed:
    break
"""


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork here')
def test_a_kill_at_any_moment_leaves_the_old_deployment_or_the_new_one(tmp_path):
  told = subprocess.run([sys.executable, '-c', KILLED, str(tmp_path)], capture_output=True, text=True, timeout=120)
  assert not told.returncode, told.stderr
  ends = told.stdout.split()
  assert ends == sorted(ends, key=['old', 'new', 'finished'].index)  # from one moment on it is the new one
  assert ends.count('old') > 5
  assert ends.count('new') > 5
  assert ends.count('finished') == 1


@pytest.mark.slow
def test_a_deployment_that_is_killed_leaves_the_old_one_and_the_next_one_cleans(finished, tmp_path):
  code = (
    'import sys, numpy as np, jaxlite as jl\n'
    'jl.deploy(sys.argv[1], ("safetensors", "stablehlo"), out=sys.argv[2], examples=np.ones((9, 6), "float32"))'
  )
  jl.deploy(finished, ('safetensors', 'pack'), out=tmp_path, examples=X, **QUICK)
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  child = subprocess.Popen([sys.executable, '-c', code, str(finished), str(tmp_path)], stdout=subprocess.DEVNULL)
  end = time.monotonic() + 120
  while not list(tmp_path.glob(f'{place.ASIDE}*/**/network.stablehlo')) and time.monotonic() < end:
    time.sleep(0.01)
  os.kill(child.pid, signal.SIGKILL)
  child.wait()
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if not path.is_dir()} == before
  assert list(tmp_path.glob(f'{place.ASIDE}*'))
  report = jl.deploy(finished, 'safetensors', out=tmp_path, examples=X, **QUICK)
  assert {path.name for path in tmp_path.iterdir()} == {'network.safetensors', 'network.jlp', PAGE, REPORT}
  assert report.notes == ('of an earlier deployment, and not tried now: network.jlp',)


def test_names_that_a_stranger_left_in_a_folder_lead_nowhere_else(tmp_path):
  (tmp_path / 'kept').write_text('kept')
  folder = tmp_path / 'out'
  left = folder / f'{place.READY}x'
  left.mkdir(parents=True)
  for text in (json.dumps(['../kept', '..', '', str(tmp_path / 'kept'), 3, None]), '{', json.dumps({'../kept': 1})):
    left.mkdir(exist_ok=True)
    (left / 'gone.json').write_text(text)
    with place.alone(folder):
      pass
    assert not list(folder.iterdir())
  assert (tmp_path / 'kept').read_text() == 'kept'


def test_a_folder_in_the_place_of_a_file_is_told_and_stays(finished, tmp_path):
  (tmp_path / 'network.safetensors').mkdir()
  (tmp_path / 'network.safetensors' / 'mine').write_text('mine')
  with pytest.raises(
    ValueError, match=r'network.safetensors is a folder where a file is written: move it, or give anot'
  ):
    jl.deploy(finished, 'safetensors', out=tmp_path, examples=X, **QUICK)
  assert [path.name for path in tmp_path.rglob('*')] == ['network.safetensors', 'mine']


def test_a_deployment_of_which_no_file_is_right_leaves_the_one_before(finished, tmp_path):
  jl.deploy(finished, ('safetensors', 'pack'), out=tmp_path, examples=X, **QUICK)
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

  def no(*given):
    raise ValueError('it cannot be said')

  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(formats.FORMATS, 'pack', formats.FORMATS['pack']._replace(write=no))
    for out in (tmp_path, tmp_path / 'a' / 'b'):
      with pytest.raises(ValueError, match='no file was written: pack: it cannot be said'):
        jl.deploy(finished, 'pack', out=out, examples=X[:7], **QUICK)
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_a_compiler_c_is_told_and_the_others_are_written(finished, tmp_path, monkeypatch):
  monkeypatch.setenv('CC', '/nonexistent')
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(ImportError, match=r'the format c needs a C compiler to be tried: install gcc'):
    jl.deploy(finished, 'c', out=tmp_path / 'out', examples=X, **QUICK)
  report = jl.deploy(finished, out=tmp_path / 'out', examples=X, **QUICK)  # all that are here
  assert 'c' not in {one.format for one in report.written}
  assert 'note: c: not written: the format c needs a C compiler' in str(report)


def test_a_program_is_no_file_of_values_where_nothing_was_timed(finished, tmp_path):
  report = jl.deploy(finished, 'onnx', out=tmp_path, examples=X, **{**QUICK, 'batches': ()})
  assert 'none: every bit' not in str(report)
  assert '100.00%' in str(report)


def test_values_that_numpy_has_no_word_for_go_to_the_process_and_back(tmp_path, monkeypatch):
  (tmp_path / 'echoes.py').write_text('def opened(path):\n  return lambda inputs: list(inputs.values())\n')
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  for kind in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
    x = X.astype(kind)
    found = trial.ask('module:echoes:opened', tmp_path, {'input': x}, batches=())
    np.testing.assert_array_equal(found.outputs['0'], x.astype(np.float32))


def test_weights_and_outputs_in_bfloat16_go_through(tmp_path):
  params = {'w': jnp.asarray(X[:6, :3], jnp.bfloat16), 'b': jnp.zeros(3, jnp.bfloat16)}
  model = jl.from_function(lambda p, x: x.astype(jnp.bfloat16) @ p['w'] + p['b'], params)
  network = jl.Network(model, params, {})
  report = jl.deploy(network, ('pack', 'safetensors'), out=tmp_path, examples=X, **QUICK)
  assert not any(one.why for one in report.written), report


def test_the_difference_that_is_told_is_from_the_network(tmp_path):
  """Of integers too, whose rules are the measure of whether a file is right."""
  draw = np.random.default_rng(1).normal
  params = {'a': draw(size=(6, 8)), 'b': draw(size=8), 'c': draw(size=(8, 3))}
  params = {name: value.astype(np.float32) for name, value in params.items()}
  model = jl.from_function(lambda p, x: jax.nn.relu(x @ p['a'] + p['b']) @ p['c'], params)
  network = jl.ptq(jl.Network(model, params, {}), [X])
  row = jl.deploy(network, 'pack', out=tmp_path / 'out', examples=X, **QUICK).written[0]
  found = read_pack(row.path).predict(X)
  assert row.arithmetic == 'int8'
  assert row.apart > 0  # as a tie before a grid falls the other way
  assert row.apart == pytest.approx(np.abs(found - network.predict(X)).max(), rel=1e-3)


def test_a_full_disk_is_told_as_one_and_leaves_nothing_half_done(finished, tmp_path):
  """Where the process answers, too, of which the file is not at fault."""
  opened = 'import os\ndef opened(path):\n  raise OSError(28, os.strerror(28))\n'
  (tmp_path / 'full.py').write_text(opened)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('PYTHONPATH', str(tmp_path))
    with pytest.raises(OSError, match='No space left on device') as caught:
      trial.ask('module:full:opened', tmp_path, {'input': X}, batches=())
  assert caught.value.errno == errno.ENOSPC
  if os.path.exists('/dev/full'):
    out = tmp_path / 'out'
    full = formats.FORMATS['safetensors']._replace(write=lambda *given: pathlib.Path('/dev/full').write_text('x'))
    with pytest.MonkeyPatch.context() as patch:
      patch.setitem(formats.FORMATS, 'safetensors', full)
      with pytest.raises(OSError, match='No space left on device'):
        jl.deploy(finished, 'safetensors', out=out, examples=X, **QUICK)
    assert not out.exists()


def test_a_network_that_gives_no_numbers_is_told_and_labels_that_nobody_reads(tmp_path):
  params = {'w': np.where(np.eye(6, 3) > 0, np.nan, 1).astype(np.float32)}
  network = jl.Network(jl.from_function(lambda p, x: x @ p['w'], params), params, {})
  report = jl.deploy(network, 'onnx', out=tmp_path, examples=(X, Y), **QUICK)
  assert report.notes == (
    'no file is scored, since nobody says what the labels mean: give task=',
    'the network itself answers 90 of the examples with values that are not finite',
  )
  assert report.written[0].same == 1


KINDS = {
  'formats': (5, (None,)),
  'deadline': ('5', True),
  'batches': (4,),
  'budget': (['bytes'],),
  'seconds': ('a', -1.0),
  'out': (3, ''),
  'source': (None, 7),
}


@pytest.mark.parametrize('name', KINDS)
def test_what_is_of_another_kind_is_told_in_a_line(name, finished, tmp_path):
  for value in KINDS[name]:
    given = {'source': finished, 'formats': ('safetensors',), 'out': tmp_path, 'examples': X, **QUICK, name: value}
    with pytest.raises(TypeError, match=rf'; got {re.escape(repr(value)[:9])}') as caught:
      jl.deploy(**given)
    assert '\n' not in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_examples_of_a_network_have_the_dtypes_that_it_computes_in():
  network = jl.Network(jl.from_function(lambda p, x: x @ p['w'], {'w': X[:6, :3]}), {'w': X[:6, :3]}, {})
  assert subject.of_network(network, examples=X.astype(np.float64)).inputs.dtype == np.float32
  with pytest.raises(ValueError, match='arrays of numbers, as the network takes them; got <U1'):
    subject.of_network(network, examples=np.array(['a', 'b']))


TASKS = {
  'classification': (jl.tasks.classification, 3, Y),
  'named classes': (lambda: jl.tasks.classification(3), 3, Y),
  'regression': (jl.tasks.regression, 1, X[:, 0]),
  'binary': (jl.tasks.binary, 1, (X[:, 0] > 0).astype(int)),
  'multi-label': (jl.tasks.multi_label, 2, (X[:, :2] > 0).astype(int)),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize('name', TASKS)
def test_a_network_without_a_run_is_scored_by_its_task(name):
  """What is to be known of the task is read off the labels, or the Dataset says it."""
  task, outputs, labels = TASKS[name]
  params = {'w': X[:6, :outputs]}
  network = jl.Network(jl.from_function(lambda p, x: x @ p['w'], params), params, {})
  one = subject.of_network(network, task=task(), examples=(X, labels))
  found = score_of(one, network.predict(X))
  assert np.isfinite(found)
  data = jl.data.from_arrays((X, labels), test=(X, labels), task=task())
  two = subject.of_network(network, examples=data)
  assert two.task.name == one.task.name
  assert score_of(two, network.predict(X)) == pytest.approx(found)


def test_a_deployment_that_fails_leaves_the_one_before_as_it_was(finished, tmp_path):
  jl.deploy(finished, ('safetensors', 'pack'), out=tmp_path, examples=X, **QUICK)
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  assert set(before) == {'network.safetensors', 'network.jlp', PAGE, REPORT}

  def full(*given):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(formats.FORMATS, 'stablehlo', formats.FORMATS['stablehlo']._replace(write=full))
    with pytest.raises(OSError, match='No space left on device'):  # when one was written anew already
      jl.deploy(finished, ('safetensors', 'stablehlo'), out=tmp_path, examples=X[:7], **QUICK)
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_name_that_no_folder_can_have_is_told(finished):
  with pytest.raises(ValueError, match=r'the folder .*a\\x00b cannot be written \(embedded null byte\): give another'):
    jl.deploy(finished, 'safetensors', out='a\0b', examples=X, **QUICK)
