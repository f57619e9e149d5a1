"""Laws of a run, as a notebook calls it: ten lines, resumed exactly, refused in one line, used in a fresh process."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxlite as jl
from jaxlite import checkpoint, flags, logs, loop, preempt
from jaxlite.data import from_arrays

ROOT = pathlib.Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)


def linear(classes=3):
  """A fresh model each time: (function, start values)."""
  params = {'w': np.zeros((6, classes), np.float32), 'b': np.zeros(classes, np.float32)}
  return lambda p, x: x @ p['w'] + p['b'], params


def adam(config, total):
  return jl.chain(optax.adam(0.05))


def config_of(recipe=adam, *, steps=12, **fields):
  """A quick config; fields by path, dots as double underscores."""
  config = jl.Config(name='x', recipe=recipe, train=jl.Duration(steps=steps))
  config.log.every = config.eval.every = jl.Duration(steps=2)
  config.checkpoint.every, config.data.batch_size, config.eval.batch_size = jl.Duration(steps=4), 16, 20
  config.log.tensorboard = config.log.progress = False
  for path, value in fields.items():
    group, _, name = path.rpartition('__')
    setattr(getattr(config, group) if group else config, name, value)
  return config


def run(folder, recipe=adam, *, model=None, data=(X, Y), say=lambda line: None, **fields):
  return jl.train(config_of(recipe, **fields), folder, model=model or linear(), data=data, say=say)


def points(folder):
  return [
    {name: value for name, value in point.items() if name not in logs.CLOCK} for point in logs.read_records(folder)
  ]


def leaves(folder):
  names = ('step', 'key', 'params', 'model_state', 'opt_state', 'const')
  return checkpoint.fingerprint(checkpoint.load_arrays(folder / 'checkpoints', names, which='latest').state)


def evidence(folder):
  result = json.loads((folder / 'result.json').read_text())
  best = np.asarray(jl.load(folder).predict(X)).tobytes()
  return leaves(folder), points(folder), result['metrics'], result['confusion'], best


# --- a person's own model and arrays ------------------------------------------------------------------------------


class Eqx(eqx.Module):
  layer: eqx.nn.Linear

  def __init__(self, key):
    self.layer = eqx.nn.Linear(6, 3, key=key)

  def __call__(self, x):
    return self.layer(x)


class Nnx(nnx.Module):
  def __init__(self, rngs):
    self.layer = nnx.Linear(6, 3, rngs=rngs)

  def __call__(self, x):
    return self.layer(x)


OWN = {'equinox': lambda: Eqx(jax.random.key(0)), 'nnx': lambda: Nnx(nnx.Rngs(0)), 'function': linear}


@pytest.mark.parametrize('framework', list(OWN))
def test_ten_lines_train_a_persons_own_model_and_give_it_back(framework, tmp_path):
  config = jl.Config(
    name='mine', train=jl.Duration(epochs=40), recipe=lambda config, total: jl.chain(optax.adam(config.optim.lr))
  )
  config.optim.lr, config.data.batch_size, config.log.tensorboard = 0.05, 30, False
  config.eval.every, config.eval.metric = jl.Duration(epochs=5), 'loss'
  result = jl.train(config, tmp_path / 'run', model=OWN[framework](), data=(X, Y), say=lambda line: None)
  network = jl.load(tmp_path / 'run')
  accuracy = np.mean(np.argmax(network.predict(X), axis=1) == Y)
  assert accuracy > 0.8
  assert 0 < result.metrics['accuracy'] <= 1
  for name in ('report.md', 'config.json', 'metrics.jsonl', 'result.json'):
    assert (tmp_path / 'run' / name).stat().st_size > 0


FRESH = """
import sys, numpy as np, jaxlite as jl
inputs = np.load(sys.argv[1] + '/inputs.npy')
for which in ('best', 'latest'):
  network = jl.load(sys.argv[1] + '/run', which=which)
  for size in (0, 1, 7, 90):
    np.save(f'{sys.argv[1]}/{which}{size}.npy', network.predict(inputs[:size]))
assert not {'flax', 'tensorflow_datasets', 'matplotlib'} & set(sys.modules)
"""


def test_a_fresh_process_predicts_bit_for_bit_what_training_evaluated(tmp_path):
  raw = RNG.integers(0, 256, size=(90, 4, 4, 1)).astype(np.uint8)  # raw inputs: the preprocessing is in the program
  labels = raw[:, 0, 0, 0] // 128
  model = jl.from_function(
    lambda p, x: jax.nn.relu(x.reshape(len(x), -1) @ p[0]) @ p[1],
    [jax.random.normal(jax.random.key(0), (16, 8)), jax.random.normal(jax.random.key(1), (8, 2))],
  )

  def recipe(config, total):
    def rate(count):  # it learns, then unlearns: best is not latest
      return jnp.where(count < 6, 0.02, -0.8)

    return jl.chain(jl.fake_quant(), jl.average(0.5), optax.sgd(rate), jl.prune(0.5, begin=0))

  config = config_of(recipe)
  jl.train(config, tmp_path / 'run', model=model, data=(raw, labels), say=lambda line: None)
  np.save(tmp_path / 'inputs.npy', raw)
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  subprocess.run([sys.executable, '-c', FRESH, str(tmp_path)], check=True, cwd=tmp_path, env=environment)

  setup = loop.prepare(config, tmp_path / 'run', model, (raw, labels))
  seen = {}
  for which in ('best', 'latest'):
    with checkpoint.Checkpoints(tmp_path / 'run' / 'checkpoints') as saves:
      found = saves.restore(setup.abstract, which=which)
    for size in (1, 7, 90):
      batch = {'inputs': jnp.asarray(raw[:size]), 'labels': jnp.asarray(labels[:size], jnp.int32)}
      seen[which, size] = np.load(tmp_path / f'{which}{size}.npy')
      np.testing.assert_array_equal(seen[which, size], setup.train.eval(found.state, batch)[0])
    assert np.load(tmp_path / f'{which}0.npy').shape == (0, 2)
    assert found.step == 12 if which == 'latest' else found.step <= 6
  assert (seen['best', 90] != seen['latest', 90]).any()

  network = jl.load(tmp_path / 'run')
  for wrong, words in ((raw[:2, :3], r'uint8\[B, 4, 4, 1\]'), (raw[:2] / 255.0, 'raw uint8 inputs')):
    with pytest.raises(ValueError, match=words):
      network.predict(wrong)
  with pytest.raises(checkpoint.CheckpointError, match='no checkpoint of step 5'):
    jl.load(tmp_path / 'run', which=5)
  with pytest.raises(FileNotFoundError, match='holds several runs: load one of them, run'):
    jl.load(tmp_path)
  with pytest.raises(FileNotFoundError, match='holds no checkpoints'):
    jl.load(tmp_path / 'nowhere')


# --- what is kept, and when it ends -------------------------------------------------------------------------------


def up_and_down(config, total):
  """Learns for six steps, then unlearns."""
  return jl.chain(optax.sgd(lambda count: jnp.where(count < 6, 0.5, -2.0)))


def test_the_test_is_of_the_best_by_validation(tmp_path):
  result = run(tmp_path, up_and_down)
  accuracies = {point['step']: point['accuracy'] for point in points(tmp_path) if point['kind'] == 'validation'}
  best = max(accuracies, key=accuracies.get)
  assert best <= 6
  assert accuracies[12] < accuracies[best]
  data = from_arrays((X, Y), validation=0.1, seed=0)
  right = lambda which: np.mean(np.argmax(jl.load(tmp_path, which).predict(data.test.inputs), 1) == data.test.labels)  # noqa: E731
  assert result.metrics['accuracy'] == pytest.approx(right('best'))
  assert right('best') == right(best)
  assert right('latest') < right('best')


def test_patience_stops_a_run_that_stands_still_and_a_rerun_keeps_it_stopped(tmp_path):
  def still(config, total):
    return jl.chain(optax.sgd(0.0))

  run(tmp_path, still, steps=40, eval__patience=3)
  steps = [point['step'] for point in points(tmp_path) if point['kind'] == 'validation']
  assert steps == [2, 4, 6, 8]
  (tmp_path / 'result.json').unlink()  # as if killed before the test was over
  run(tmp_path, still, steps=40, eval__patience=3)
  assert [point['step'] for point in points(tmp_path) if point['kind'] == 'validation'] == steps


def test_without_validation_the_last_model_counts(tmp_path):
  result = run(tmp_path, up_and_down, data__validation=0.0)
  assert {point['kind'] for point in points(tmp_path)} == {'train'}
  data = from_arrays((X, Y), validation=0)
  assert len(data.train.labels) == 81
  predicted = np.argmax(jl.load(tmp_path).predict(data.test.inputs), 1)
  assert result.metrics['accuracy'] == pytest.approx(np.mean(predicted == data.test.labels))
  np.testing.assert_array_equal(jl.load(tmp_path).predict(X), jl.load(tmp_path, 'latest').predict(X))


@pytest.mark.parametrize(
  'length, steps',
  [
    (jl.Duration(steps=7), 7),
    (jl.Duration(epochs=1.5), 8),  # 73 to train on, 16 a batch: 5 steps an epoch
    (jl.Duration(examples=100), 7),
  ],
  ids=str,
)
def test_a_run_is_as_long_as_its_duration_in_any_unit(length, steps, tmp_path):
  run(tmp_path, train=length, eval__every=jl.Duration(percent=50), log__every=jl.Duration(examples=16))
  assert [point['step'] for point in points(tmp_path) if point['kind'] == 'train'] == list(range(1, steps + 1))
  half = -(-steps // 2)
  wanted = sorted({*range(half, steps, half), steps})
  assert [point['step'] for point in points(tmp_path) if point['kind'] == 'validation'] == wanted


# --- resumed as if nothing had happened ---------------------------------------------------------------------------


def crash_at(step, monkeypatch):
  """Ends the process's run as a fault would, before the batch of a step."""
  real = loop.datasets.batch_at

  def batch_at(split, size, seed, at):
    if at == step:
      raise MemoryError('the machine is gone')
    return real(split, size, seed, at)

  with monkeypatch.context() as patch:
    patch.setattr(loop.datasets, 'batch_at', batch_at, raising=False)
    yield


def event_steps(folder):
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  events = EventAccumulator(str(folder / 'tensorboard'), size_guidance={'scalars': 0})
  events.Reload()
  return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()['scalars']}


@pytest.mark.filterwarnings('default')  # tensorboard's own imports
def test_no_point_is_torn_doubled_or_lost_by_a_crash(tmp_path, monkeypatch):
  run(tmp_path / 'straight', log__tensorboard=True)
  for _ in crash_at(7, monkeypatch):
    with pytest.raises(MemoryError):
      run(tmp_path / 'crashed', log__tensorboard=True)
  with open(tmp_path / 'crashed' / 'metrics.jsonl', 'a') as file:
    file.write('{"kind": "train", "st')  # and a line that was half written
  said = []
  run(tmp_path / 'crashed', log__tensorboard=True, say=said.append)
  assert any(line.startswith('resumed at step') for line in said)
  assert evidence(tmp_path / 'crashed') == evidence(tmp_path / 'straight')
  for folder in (tmp_path / 'straight', tmp_path / 'crashed'):
    seen = event_steps(folder)
    for kind, name in (('train', 'loss'), ('validation', 'accuracy')):
      wanted = [(point['step'], np.float32(point[name])) for point in points(folder) if point['kind'] == kind]
      assert seen[f'{kind}/{name}'] == wanted
      assert len(wanted) == 6


@pytest.mark.parametrize('evaluation', [2, 6])  # the best until then; the one after the last step
def test_a_signal_while_the_best_is_found_loses_nothing(evaluation, tmp_path, monkeypatch):
  run(tmp_path / 'straight', up_and_down)
  real, count = loop.evaluate, iter(range(1, 99))

  def evaluate(*words):
    found = real(*words)
    if next(count) == evaluation:
      signal.raise_signal(signal.SIGTERM)
    return found

  with monkeypatch.context() as patch:
    patch.setattr(loop, 'evaluate', evaluate)
    with pytest.raises(loop.Preempted, match=r'stopped by a signal at step \d+ of 12; saved'):
      run(tmp_path / 'stopped', up_and_down)
  run(tmp_path / 'stopped', up_and_down)
  assert evidence(tmp_path / 'stopped') == evidence(tmp_path / 'straight')


def test_a_finished_run_is_reported_again_and_not_trained(tmp_path):
  first = run(tmp_path)
  before = leaves(tmp_path)
  again = run(tmp_path, log__every=jl.Duration(steps=5), eval__batch_size=7)
  assert again == first
  assert leaves(tmp_path) == before


def test_a_longer_run_goes_on_as_if_it_had_been_long_from_the_start(tmp_path):
  run(tmp_path / 'straight', steps=20)
  said = []
  run(tmp_path / 'longer', steps=12)
  run(tmp_path / 'longer', steps=20, say=said.append)
  assert 'resumed at step 12 of 20' in said
  assert any(line.startswith('config: train: saved 12 steps, now 20 steps') for line in said)
  assert evidence(tmp_path / 'longer') == evidence(tmp_path / 'straight')
  with pytest.raises(ValueError, match='train: saved 20 steps, now 12 steps'):
    run(tmp_path / 'longer', steps=12)


def test_another_config_or_other_data_are_refused_and_nothing_is_changed(tmp_path):
  run(tmp_path)

  def everything():
    return {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file() and path.name != '.lock'}

  before = everything()
  for fields, words in (
    ({'optim__lr': 0.5}, r'optim\.lr: saved 0\.001, now 0\.5'),
    ({'seed': 1}, 'seed: saved 0, now 1'),
    ({'data__batch_size': 8}, 'data.batch_size: saved 16, now 8'),
  ):
    with pytest.raises(ValueError, match=f'^[^\n]*{words}[^\n]*--workdir[^\n]*--fresh[^\n]*$'):
      run(tmp_path, **fields)
  with pytest.raises(ValueError, match='the data differ'):
    run(tmp_path, steps=14, data=(X + 1, Y))
  assert everything() == before


@pytest.mark.parametrize('text', ['', '{', '[]', '{"format": 1}', '\x00\x01'])
def test_a_damaged_config_is_told_in_one_line(text, tmp_path):
  folder = SHARED.get('damaged')
  if folder is None:
    folder = SHARED['damaged'] = tmp_path / 'run'
    run(folder, steps=2)
  (folder / 'config.json').write_text(text)
  with pytest.raises(ValueError, match=r'^[^\n]*config\.json is missing or damaged: restore it[^\n]*$'):
    run(folder, steps=2)
  assert jl.load(folder).predict(X[:2]).shape == (2, 3)  # what was trained is still there


SHARED = {}


# --- numbers that are not finite ----------------------------------------------------------------------------------


def test_nan_in_training_stops_with_its_step_and_leaf_and_keeps_the_last_good_checkpoint(tmp_path):
  def bursts(config, total):
    return jl.chain(optax.sgd(lambda count: jnp.where(count == 9, jnp.inf, 0.1)))

  with pytest.raises(
    ValueError, match=r'^[^\n]*not finite at step 10, first in b: [^\n]*checkpoint of step 8 is good$'
  ):
    run(tmp_path, bursts)
  assert np.isfinite(jl.load(tmp_path, 'latest').predict(X)).all()
  losses = {point['step']: point['loss'] for point in points(tmp_path) if point['kind'] == 'train'}
  assert list(losses) == [2, 4, 6, 8, 10]
  assert np.isfinite(list(losses.values())).all()


def test_what_a_finite_loss_with_an_infinite_gradient_wrote_is_never_saved(tmp_path):
  def root(params, inputs):  # at b = 0 its value is 0 and its slope infinite
    return inputs @ params['w'] + jnp.sqrt(jnp.abs(params['b']))

  with pytest.raises(ValueError, match=r'not finite at step 1, first in b: .*no checkpoint was written yet'):
    run(tmp_path, model=(root, linear()[1]), steps=1, log__every=jl.Duration(steps=1))
  assert not list((tmp_path / 'checkpoints').glob('0*'))


# --- what cannot be right is refused before training, in one line, and the folder stays good ---------------------


def wide(classes):
  params = {'w': jnp.zeros((6, classes))}
  return jl.Network(jl.from_function(lambda p, x: x @ p['w'], params), params, {})


def with_parts(*parts):
  return lambda config, total: jl.chain(*parts[:-1], optax.adam(0.05), *parts[-1:])


def late(make):
  """A recipe whose part is made when it is called, as in an experiment file."""
  return lambda config, total: jl.chain(optax.adam(0.05), make(config))


TALL = np.zeros((20, 4, 4, 1), np.uint8)
MISTAKES = {
  'nan in data': ({'data': (np.where(X > 2, np.nan, X), Y)}, r'inputs are finite; train has nan at \[\d+, \d\]: drop'),
  'labels below zero': ({'data': (X, Y - 1)}, 'labels are 0 .. classes - 1; train has -1 at'),
  'labels of another length': ({'data': (X, Y[:-1])}, '90 inputs and 89 labels'),
  'labels as floats': ({'data': (X, Y + 0.5)}, 'labels are integers'),
  'no examples': ({'data': (X[:0], Y[:0])}, 'train is empty: carve it'),
  'images of other shapes': ({'data': ([TALL[0], TALL[0, :2]], [0, 1])}, 'examples have one shape; .*: resize or pad'),
  'not a pair': ({'data': X}, r'pass \(inputs, labels\)'),
  'a batch above the data': ({'data__batch_size': 600}, 'batch_size 600: lower it'),
  'a sparsity of one': ({'recipe': late(lambda c: jl.prune(1.0))}, r'in \[0, 1\); got 1\.0'),
  'end before begin': ({'recipe': late(lambda c: jl.prune(0.5, begin=9, end=3))}, 'end=3 lies before begin=9'),
  'a rule for nothing': (
    {'recipe': late(lambda c: jl.freeze('kernel'))},
    "'kernel' matches no parameter; nearest paths",
  ),
  'a teacher of other classes': ({'recipe': late(lambda c: jl.distill(wide(5)))}, 'need the same classes'),
  'no such teacher': (
    {'recipe': late(lambda c: jl.distill(jl.load(c.teacher))), 'teacher': '../nobody'},
    'nobody holds no checkpoints: give the folder of a run',
  ),
  'no such metric': ({'eval__metric': 'acuracy'}, "'acuracy'; nearest: accuracy"),
  'a model of other classes': ({'model': linear(2)}, r'outputs are float\[B, 3\]'),
  'a recipe that is none': ({'recipe': lambda config, total: optax.adam(0.1)}, r'recipe from jl\.chain'),
  'a recipe without optimizer': ({'recipe': lambda config, total: jl.chain(jl.fake_quant())}, 'holds no optimizer'),
  'an optimizer after prune': (
    {'recipe': lambda config, total: jl.chain(jl.prune(0.5), optax.adam(0.1))},
    'move part 0 to the end',
  ),
  'a length in percent': ({'train': jl.Duration(percent=5)}, 'train is in steps, epochs or examples'),
  'a model of nothing': ({'model': 'cnn'}, 'a model is a Model'),
}


@pytest.mark.parametrize('mistake', list(MISTAKES))
def test_a_mistake_is_told_in_one_line_before_anything_is_trained(mistake, tmp_path):
  fields, words = MISTAKES[mistake]
  with pytest.raises((ValueError, TypeError, FileNotFoundError)) as caught:
    run(tmp_path, **{'recipe': adam, **fields})
  assert re.search(words, str(caught.value))
  assert '\n' not in str(caught.value)
  assert flags.one_line(caught.value) == str(caught.value)  # so the launcher shows it as it is
  assert not list(tmp_path.glob('checkpoints/*'))


def test_after_every_mistake_the_same_folder_still_trains(tmp_path):
  for fields, _ in MISTAKES.values():
    with pytest.raises((ValueError, TypeError, FileNotFoundError)):
      run(tmp_path / 'mended', **{'recipe': adam, **fields})
  assert run(tmp_path / 'mended').metrics['accuracy'] > 0
  assert [point['step'] for point in points(tmp_path / 'mended') if point['kind'] == 'train'] == [2, 4, 6, 8, 10, 12]


def test_a_class_without_examples_is_a_note(tmp_path):
  said = []
  result = run(tmp_path, model=linear(4), data=from_arrays((X, Y), classes=4), say=said.append)
  assert any('train has no example of 3' in line for line in said)
  assert any('train has no example of 3' in note for note in result.notes)
  assert 0 <= result.metrics['f1_macro'] <= 1


@pytest.mark.parametrize('classes', [2, 9])
def test_the_names_of_the_metrics_are_those_it_computes(classes):
  metric = jl.classification(classes)
  batch = {'labels': jnp.zeros(1, int)}
  values = metric.compute(metric.update(metric.init(), jnp.zeros((1, classes)), batch, jnp.zeros(1)))
  assert list(metric.names) == [name for name in values if name != 'confusion']


def test_a_notebooks_guard_leaves_the_handlers_as_they_were(tmp_path):
  before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  run(tmp_path, steps=2)
  assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
  assert preempt.EXIT_PREEMPTED == 75


def test_a_model_that_cannot_be_written_trains_all_the_same_and_says_so(tmp_path):
  def calls_python(params, inputs):
    outputs = inputs @ params['w'] + params['b']
    seen = jax.lax.stop_gradient(outputs)
    return outputs + jax.pure_callback(np.zeros_like, jax.ShapeDtypeStruct(seen.shape, seen.dtype), seen)

  said = []
  run(tmp_path, model=(calls_python, linear()[1]), steps=2, say=said.append)
  assert [line for line in said if line.startswith('warning: jaxlite.load will not be able to predict; ')]
  with pytest.raises(FileNotFoundError, match='could not be written'):
    jl.load(tmp_path)
