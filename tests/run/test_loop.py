"""Laws of a run, as a notebook calls it: ten lines, kept and ended as its config says, used in a fresh process."""

import os
import pathlib
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
from jaxlite import checkpoint
from jaxlite.data import from_arrays
from jaxlite.host import preempt
from jaxlite.models import SmallCNN
from jaxlite.run import loop
from loops import X, Y, config_of, linear, points, run, up_and_down

pytestmark = pytest.mark.unoptimized

ROOT = pathlib.Path(__file__).resolve().parents[2]


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


@pytest.mark.sampled(2)
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


def test_what_a_convolution_predicts_later_is_what_training_evaluated_but_for_last_bits(tmp_path):
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(90, 8, 8, 1)).astype(np.float32)
  labels = (inputs.mean((1, 2, 3)) > 0).astype(int)
  model = SmallCNN((8, 16), hidden=16, classes=2)  # above what is left to XLA's own convolutions
  config = config_of(lambda config, total: jl.chain(jl.fake_quant(), optax.adam(1e-2)))
  result = jl.train(config, tmp_path / 'run', model=model, data=(inputs, labels), say=lambda line: None)
  assert result.bits == '8'  # as read off the program that it runs
  setup = loop.prepare(config, tmp_path / 'run', model, (inputs, labels))
  with checkpoint.Checkpoints(tmp_path / 'run' / 'checkpoints') as saves:
    found = saves.restore(setup.abstract, which='best')
  evaluated, _ = setup.train.eval(found.state, {'inputs': inputs, 'labels': labels})
  np.testing.assert_allclose(jl.load(tmp_path / 'run').predict(inputs), evaluated, rtol=1e-5, atol=1e-5)


FRESH = """
import sys, numpy as np, jaxlite as jl
inputs = np.load(sys.argv[1] + '/inputs.npy')
for which in ('best', 'latest'):
  network = jl.load(sys.argv[1] + '/run', which=which)
  for size in (0, 1, 7, 90):
    np.save(f'{sys.argv[1]}/{which}{size}.npy', network.predict(inputs[:size]))
assert not {'flax', 'tensorflow_datasets', 'matplotlib'} & set(sys.modules)
"""


@pytest.mark.unoptimized(False)  # bits are judged
def test_a_fresh_process_predicts_bit_for_bit_what_training_evaluated(tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 128, size=(90, 4, 4, 1)) + 128 * rng.integers(0, 2, size=(90, 1, 1, 1))  # dark or bright
  raw = images.astype(np.uint8)  # raw inputs: the preprocessing is in the program
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
  for wrong, words in ((raw[:2, :3], r'uint8\[B, 4, 4, 1\]'), (raw[:2] / 255.0, 'uint8, raw as in training')):
    with pytest.raises(ValueError, match=words):
      network.predict(wrong)
  with pytest.raises(checkpoint.CheckpointError, match='no checkpoint of step 5'):
    jl.load(tmp_path / 'run', which=5)
  with pytest.raises(FileNotFoundError, match='holds several runs: load one of them, run'):
    jl.load(tmp_path)
  with pytest.raises(FileNotFoundError, match='holds no checkpoints'):
    jl.load(tmp_path / 'nowhere')


# --- what is kept, and when it ends -------------------------------------------------------------------------------


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


# --- what a run says, and what it leaves alone --------------------------------------------------------------------


def test_a_class_without_examples_is_a_note(tmp_path):
  said = []
  result = run(tmp_path, model=linear(4), data=from_arrays((X, Y), classes=4), say=said.append)
  assert any('train has no example of 3' in line for line in said)
  assert any('train has no example of 3' in note for note in result.notes)
  assert 0 <= result.metrics['f1_macro'] <= 1


@pytest.mark.parametrize('classes', [2, 9])
def test_the_names_of_the_metrics_are_those_it_computes(classes):
  metric = jl.tasks.classification_metrics(classes)
  batch = {'labels': jnp.zeros(1, int)}
  values = metric.compute(jax.jit(metric.update)(metric.init(), jnp.zeros((1, classes)), batch, jnp.zeros(1)))
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
