"""Laws of deployment: a file counts once its own runtime, in another process, answers as the network does; else it is
gone. Each framework and each task goes through one call, and mistakes are told before anything is written."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.deployment import formats, trial
from jaxlite.deployment.deploy import PAGE, REPORT
from jaxlite.host.safetensors_file import read_safetensors
from loops import X, Y, config_of, run
from networks import FRAMEWORKS, dense

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
QUICK = {'batches': (1, 4), 'seconds': 0.01, 'say': lambda line: None}
EVERY = ('onnx', 'stablehlo', 'safetensors')


def floats(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def but_slow(names, quick):
  """Cases of which one is quick enough for the suite."""
  return [one if one == quick else pytest.param(one, marks=pytest.mark.slow) for one in names]


WEIGHTS = [floats(6, 8), floats(8), floats(8, 3), floats(3)]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('deploy') / 'run'
  return folder, run(folder, steps=6)


def test_each_format_answers_in_another_process_as_the_run_does_with_its_score(finished, tmp_path):
  folder, _ = finished
  report = jl.deploy(
    folder, EVERY, out=tmp_path / 'out', examples=(X, Y), deadline=1e4, budget={'bytes': 10**5}, **QUICK
  )
  assert [one.format for one in report.written] == list(EVERY)
  share = float(np.mean(np.asarray(jl.load(folder).predict(X)).argmax(1) == Y))
  assert report.metric == 'accuracy'
  assert report.score == pytest.approx(share)
  for one in report.written:
    assert not one.why
    assert one.bytes == os.path.getsize(one.path)
    if one.format == 'safetensors':
      continue
    assert one.score == pytest.approx(share)
    assert one.met
    assert one.same == 1
    assert one.apart < 1e-5
    assert {*one.latency} == {1, 4}
    assert all(0 < p50 <= p99 for p50, p99 in one.latency.values())
    assert one.memory > 10**7
  assert report.costs.parameters == 21
  assert report.costs.macs == 18
  assert str(report).count('\n') >= 5
  assert 'onnx, stablehlo: p99 with one example is within the deadline of 10000 ms' in str(report)
  assert {path.name for path in (tmp_path / 'out').iterdir()} == {
    *(formats.FORMATS[name].file for name in EVERY),
    PAGE,
    REPORT,
  }
  assert json.loads((tmp_path / 'out' / REPORT).read_text())['score'] == pytest.approx(share)
  page = (tmp_path / 'out' / PAGE).read_text()
  assert all(formats.FORMATS[name].snippet in page for name in EVERY)


@pytest.mark.slow
def test_the_snippets_load_what_lies_beside_them(finished, tmp_path):
  """As a person would: the text of the page, run without jaxlite, gives the run's outputs."""
  folder, _ = finished
  jl.deploy(folder, ('onnx', 'stablehlo'), out=tmp_path, examples=X, **QUICK)
  np.save(tmp_path / 'x.npy', X)
  codes = {
    'onnx': formats.FORMATS['onnx'].snippet.replace(': ... for', ': np.load("x.npy") for'),
    'stablehlo': 'import numpy as np\ninputs = np.load("x.npy")\n' + formats.FORMATS['stablehlo'].snippet,
  }
  for name, code in codes.items():
    last = f'\nimport sys\nassert "jaxlite" not in sys.modules\nnp.save("{name}.npy", outputs)'
    done = subprocess.run(
      [sys.executable, '-c', code + last], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / f'{name}.npy'), jl.load(folder).predict(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  'framework', [one if one == 'nnx' else pytest.param(one, marks=pytest.mark.slow) for one in FRAMEWORKS]
)
def test_every_framework_goes_through_it_and_its_values_have_its_own_names(framework, tmp_path):
  model, names, _ = dense(framework, WEIGHTS)
  run(tmp_path / 'run', model=model, steps=2)
  report = jl.deploy(tmp_path / 'run', ('onnx', 'safetensors'), examples=(X, Y), **QUICK)
  assert not any(one.why for one in report.written), report
  arrays, about = read_safetensors(tmp_path / 'run' / 'deployed' / 'network.safetensors')
  assert {f'params.{name.replace("/", ".")}' for name in names} <= set(arrays)
  assert set(arrays) - {f'params.{name.replace("/", ".")}' for name in names} <= {'normalize.mean', 'normalize.std'}
  assert about['task'] == 'classification'


@pytest.mark.slow
def test_flax_takes_the_values_by_the_snippet(tmp_path):
  from flax.traverse_util import unflatten_dict
  from safetensors.flax import load_file

  module = jl.models.MLP((4,), classes=3)
  run(tmp_path, model=module, steps=2)
  jl.deploy(tmp_path, 'safetensors', examples=X, **QUICK)
  variables = unflatten_dict(load_file(tmp_path / 'deployed' / 'network.safetensors'), sep='.')
  normalize = variables.pop('normalize')
  found = module.apply(variables, (X - normalize['mean']) / normalize['std'])
  np.testing.assert_allclose(found, jl.load(tmp_path).predict(X), rtol=1e-5, atol=1e-5)


def few_bits(config, total):
  return jl.chain(jl.fake_quant(), optax.adam(0.05))


PIXELS = RNG.integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)
TOKENS = RNG.integers(1, 20, (40, 6)).astype(np.int32)


def scaled(outputs):
  params = {'w': np.ones(outputs, np.float32), 'b': np.zeros(outputs, np.float32)}
  return jl.from_function(lambda p, x: x * p['w'] + p['b'], params)


def looked_up():
  params = {'table': floats(20, 4), 'out': floats(4, 20)}
  return jl.from_function(lambda p, x: p['table'][x] @ p['out'], params)


TWO = np.stack([X[:, 0] > 0, X[:, 1] > 0], 1).astype(int)
TASKS = {
  'regression': (jl.tasks.regression, X, X[:, 0] * 3 + 5, lambda: jl.models.MLP((4,), classes=1)),
  'binary': (jl.tasks.binary, X, (X[:, 0] > 0).astype(int), lambda: jl.models.MLP((4,), classes=1)),
  'multi-label': (jl.tasks.multi_label, X, TWO, lambda: jl.models.MLP((4,), classes=2)),
  'segmentation': (lambda: jl.tasks.segmentation(2), PIXELS, (PIXELS[..., 0] > 90).astype(int), lambda: scaled(2)),
  'language': (lambda: jl.tasks.language(20), TOKENS, np.roll(TOKENS, -1, 1), looked_up),
}


@pytest.mark.parametrize(
  'name', [one if one == 'regression' else pytest.param(one, marks=pytest.mark.slow) for one in TASKS]
)
def test_every_task_keeps_its_score(name, tmp_path):
  task, inputs, labels, make = TASKS[name]
  result = run(tmp_path, model=make(), data=(inputs, labels), task=task, steps=4)
  data = jl.data.from_arrays((inputs, labels), validation=0.1, seed=0, task=task())
  report = jl.deploy(tmp_path, ('onnx', 'stablehlo'), examples=data, **QUICK)
  assert not any(one.why for one in report.written), report
  assert report.metric == data.task.score
  assert report.score == pytest.approx(result.metrics[report.metric], rel=1e-5)  # of the same test split
  assert all(one.score == pytest.approx(report.score, rel=1e-4) for one in report.written)


def test_inputs_that_are_a_tree_and_a_network_without_a_run(tmp_path):
  inputs = {'image': floats(20, 4), 'side': {'age': floats(20, 1)}}
  params = {'a': floats(4, 2), 'b': floats(1, 2)}
  model = jl.from_function(lambda p, x: x['image'] @ p['a'] + x['side']['age'] @ p['b'], params)
  network = jl.Network(model, *model.init(jax.random.key(0), inputs))
  report = jl.deploy(network, EVERY, out=tmp_path, examples=inputs, **QUICK)
  assert not any(one.why for one in report.written), report
  assert report.score is None
  with pytest.raises(ValueError, match=r'give examples=inputs'):
    jl.deploy(network, EVERY, out=tmp_path, **QUICK)
  with pytest.raises(ValueError, match=r'give out='):
    jl.deploy(network, EVERY, examples=inputs, **QUICK)


@pytest.mark.slow
def test_few_bits_are_the_same_in_floats(tmp_path):
  run(tmp_path, few_bits, model=jl.models.MLP((8,), classes=3), steps=6)
  report = jl.deploy(tmp_path, ('onnx', 'stablehlo'), examples=(X, Y), **QUICK)
  assert not any(one.why for one in report.written), report
  assert all(one.same > 0.99 for one in report.written)
  assert [one.arithmetic for one in report.written] == ['int8', 'float32']


def test_a_file_that_answers_otherwise_is_deleted_and_told(finished, tmp_path, monkeypatch):
  real = trial.ask

  def wrong(kind, path, inputs, **options):
    found = real(kind, path, inputs, **options)
    return found._replace(outputs={name: array + 1 for name, array in found.outputs.items()})

  monkeypatch.setattr(trial, 'ask', wrong)
  for name in ('onnx', 'safetensors'):
    with pytest.raises(ValueError, match=rf'no file was written: {name}: its r'):
      jl.deploy(finished[0], [name], out=tmp_path, examples=X, **QUICK)
    assert not list(tmp_path.iterdir())  # nothing half done either


def test_a_file_that_its_runtime_cannot_run_is_deleted_and_told(finished, tmp_path, monkeypatch):
  broken = formats.FORMATS['onnx']._replace(write=lambda one, integers, path: path.write_bytes(b'no model'))
  monkeypatch.setitem(formats.FORMATS, 'onnx', broken)
  report = jl.deploy(finished[0], ('onnx', 'safetensors'), out=tmp_path, examples=X, **QUICK)
  assert 'its runtime cannot run it' in report.written[0].why
  assert not report.written[1].why
  assert not (tmp_path / 'network.onnx').exists()
  assert 'onnx: not written: its runtime cannot run it' in str(report)


def test_what_the_list_cannot_say_leaves_the_other_formats(tmp_path):
  def apply(p, x):
    return x @ p['w'] + jnp.fft.rfft(x)[:, :3].real

  run(tmp_path, model=(apply, {'w': np.ones((6, 3), np.float32)}), steps=2)
  report = jl.deploy(tmp_path, EVERY, examples=(X, Y), **QUICK)
  assert 'there is no list of operations' in report.written[0].why
  assert not report.written[1].why
  assert report.costs is None


MISTAKES = {
  'an unknown format': ({'formats': ('onx',)}, ValueError, r"'onx', nearest: onnx"),
  'no format': ({'formats': ()}, ValueError, 'at least one of'),
  'an unknown budget': ({'budget': {'byte': 3}}, ValueError, r"'byte', nearest: bytes"),
  'a budget that is no text of one': ({'budget': 'bytes=3'}, ValueError, r"name:number.*got 'bytes=3'"),
  'a latency of nothing': ({'budget': {'latency': 0}}, ValueError, 'above 0; got 0'),
  'a budget of nothing': ({'budget': {'bytes': 0}}, ValueError, 'at least 1; got 0'),
  'a deadline before now': ({'deadline': -1.0}, ValueError, 'milliseconds above 0'),
  'parameters over budget': (
    {'budget': {'parameters': 20}},
    ValueError,
    r'parameters 21 of 20.*nothing can be removed.*it has none',
  ),
  'multiplications over budget': ({'budget': {'macs': 17}}, ValueError, r'macs 18 of 17.*nothing can be removed'),
  'bytes that nothing meets': ({'budget': {'bytes': 30}}, ValueError, r'bytes \d+ of 30.*nothing can be removed'),
  'no examples': ({'examples': None}, ValueError, r'not known here: give examples='),
  'empty examples': ({'examples': X[:0]}, ValueError, 'at least one'),
  'labels of another length': ({'examples': (X, Y[:5])}, ValueError, '90 inputs and 5 labels'),
  'examples of another shape': ({'examples': X[:, :4]}, ValueError, r'takes float32\[B, 6\]'),
  'labels that are no classes': ({'examples': (X, Y + 7)}, ValueError, 'labels'),
  'labels of another kind': ({'examples': (X, X)}, ValueError, 'labels'),
  'a step that is not kept': ({'which': 99}, jl.checkpoint.CheckpointError, 'step 99'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_is_told_in_a_line(name, finished, tmp_path):
  options, kind, match = MISTAKES[name]
  with pytest.raises(kind, match=match) as caught:
    jl.deploy(finished[0], **{'formats': ('onnx',), 'out': tmp_path, 'examples': X, **QUICK, **options})
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'network.onnx').exists()


def test_folders_that_are_none_or_cannot_be_written(finished, tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no run'):
    jl.deploy(tmp_path / 'nothing', examples=X, **QUICK)
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='cannot be written'):
    jl.deploy(finished[0], 'onnx', out=tmp_path / 'file' / 'out', examples=X, **QUICK)


def test_a_missing_runtime_is_named_with_what_installs_it(finished, tmp_path, monkeypatch):
  needs = formats.FORMATS['onnx']._replace(needs=('no_such_runtime',))
  monkeypatch.setitem(formats.FORMATS, 'onnx', needs)
  with pytest.raises(ImportError, match='format onnx needs no_such_runtime: pip install'):
    jl.deploy(finished[0], 'onnx', out=tmp_path, examples=X, **QUICK)
  report = jl.deploy(finished[0], out=tmp_path, examples=X, **QUICK)  # all that are here
  assert 'onnx' not in [one.format for one in report.written]


def test_an_unfinished_run_is_refused_but_for_a_checkpoint_that_is_named(tmp_path):
  run(tmp_path, steps=2)
  (tmp_path / 'result.json').unlink()
  with pytest.raises(ValueError, match='is none: run its command again'):
    jl.deploy(tmp_path, 'safetensors', examples=X, **QUICK)
  assert jl.deploy(tmp_path, 'safetensors', which='latest', examples=X, **QUICK).written[0].bytes


def test_a_sealed_network_is_deployed_from_its_folder(finished, tmp_path):
  with pytest.raises(ValueError, match='deploy the folder of its run'):
    jl.deploy(jl.load(finished[0]), 'onnx', out=tmp_path, examples=X, **QUICK)


def test_a_missed_deadline_is_told(finished, tmp_path):
  report = jl.deploy(finished[0], 'onnx', out=tmp_path, examples=X, deadline=1e-6, **QUICK)
  assert report.written[0].met is False
  assert 'onnx: misses the deadline of 1e-06 ms' in str(report)


def test_the_command_deploys_with_the_data_of_the_config(tmp_path):
  from jaxlite.run.deploying import deploy_run

  config = config_of(steps=2)
  run(tmp_path, steps=2)
  report = deploy_run(config, tmp_path, data=(X, Y), formats='safetensors', **QUICK)
  assert report.written[0].bytes
  with pytest.raises(ValueError, match='data differ'):
    deploy_run(config, tmp_path, data=(X + 1, Y), formats='safetensors', **QUICK)
  with pytest.raises(ValueError, match='no run to deploy'):
    deploy_run(config, tmp_path / 'none', data=(X, Y), **QUICK)
