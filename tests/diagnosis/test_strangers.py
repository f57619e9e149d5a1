"""Runs as strangers bring them, with nothing wrong: of every framework, task and part of a recipe. None is called
broken, whatever is unusual about its weights, units or first values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from networks import FRAMEWORKS, dense

pytestmark = pytest.mark.unoptimized
FEATURES, CLASSES, SIZE = 6, 3, 500


def mute(line):
  del line


def inputs():
  return np.random.default_rng(0).normal(size=(SIZE, FEATURES)).astype(np.float32)


def classes(x):
  return (x[:, 0] > 0.2).astype(np.int32) + (x[:, 1] + x[:, 2] > 0)


def adam(config, total):
  return jl.chain(optax.adam(optax.cosine_decay_schedule(0.02, total)))


def config_of(recipe=adam, steps=120, **fields):
  config = jl.Config(name='x', recipe=recipe, train=jl.Duration(steps=steps), **fields)
  config.log.every, config.eval.every, config.checkpoint.every = (jl.Duration(steps=n) for n in (6, 20, 60))
  config.log.progress = config.log.tensorboard = False
  config.machine.rewrites, config.machine.steps_per_dispatch = False, 1
  config.data.batch_size, config.data.validation = 32, 0.2
  return config


def weights(outputs=CLASSES, hidden=24, seed=0):
  rng = np.random.default_rng(seed)
  one = rng.normal(size=(FEATURES, hidden)) * np.sqrt(2 / FEATURES)
  two = rng.normal(size=(hidden, outputs)) / np.sqrt(hidden)
  return [w.astype(np.float32) for w in (one, np.zeros(hidden), two, np.zeros(outputs))]


def mlp(end=lambda x: x, shape=lambda x: x, outputs=CLASSES):
  params = dict(zip(('w1', 'b1', 'w2', 'b2'), weights(outputs), strict=True))
  return lambda p, x: shape(end(jax.nn.relu(x @ p['w1'] + p['b1']) @ p['w2'] + p['b2'])), params


def judged(folder, config, model, data):
  jl.train(config, folder, model=model(), data=data, say=mute)
  return jl.diagnose(folder, config, model=model(), data=data, say=mute)


def x_y(task=classes):
  x = inputs()
  return x, task(x)


# Each: (config, () -> model, data); what is unusual stands in the name.
def of_framework(framework):
  return config_of(), lambda: dense(framework, weights())[0], x_y()


def linear_from_zero():
  start = {'w': np.zeros((FEATURES, CLASSES), np.float32), 'b': np.zeros(CLASSES, np.float32)}
  return config_of(), lambda: ((lambda p, x: x @ p['w'] + p['b']), start), x_y(lambda x: (x @ SPLIT).argmax(1))


SPLIT = np.random.default_rng(3).normal(size=(FEATURES, CLASSES))


def short_from_zero():
  _, model, data = linear_from_zero()
  return config_of(lambda config, total: jl.chain(optax.adam(0.1)), steps=40), model, data


def tiny_first_values():
  def model():
    fn, params = mlp()
    return fn, jax.tree.map(lambda leaf: 0.02 * leaf, params)

  return config_of(), model, x_y()


def large_first_logits():
  def model():
    fn, params = mlp()
    return fn, {**params, 'w2': 12 * params['w2']}

  return config_of(steps=300), model, x_y()


def frozen():
  return config_of(lambda c, total: jl.chain(jl.freeze('w1'), optax.adam(0.02)), steps=240), mlp, x_y()


def low_rank():
  return config_of(lambda c, total: jl.chain(jl.optim.lora(3), optax.adam(0.02)), steps=300), mlp, x_y()


def few_bits():
  return config_of(lambda c, total: jl.chain(jl.fake_quant(bits=8), optax.adam(0.01)), steps=200), mlp, x_y()


def pruned():
  def recipe(config, total):
    return jl.chain(optax.adam(0.02), jl.pruning.prune_groups(0.6, begin=20, end=total // 2, every=10, multiple=1))

  return config_of(recipe, steps=240), mlp, x_y()


def unstructured():
  return (
    config_of(
      lambda c, total: jl.chain(optax.adam(0.02), jl.prune(sparsity=0.8, begin=20, end=100, every=10)), steps=240
    ),
    mlp,
    x_y(),
  )


def raw_pictures():
  """Bytes that the network scales itself."""
  rng = np.random.default_rng(0)
  y = rng.integers(0, 3, SIZE).astype(np.int32)
  x = rng.integers(0, 60, (SIZE, 6, 6, 1))
  for c in range(3):
    x[y == c, 2 * c : 2 * c + 2] += 140
  config = config_of()
  config.data.standardize = False
  params = {'w': 0.1 * rng.normal(size=(36, 3)).astype(np.float32)}
  return (
    config,
    lambda: ((lambda p, x: (x / 255.0 - 0.4).reshape(len(x), -1) @ p['w']), params),
    (x.astype(np.uint8), y),
  )


def regression():
  config = config_of(task=jl.tasks.regression, steps=300)
  return config, lambda: mlp(outputs=1), x_y(lambda x: (1000 + 50 * (x[:, 0] + 0.5 * x[:, 1])).astype(np.float32))


def long_tailed_regression():
  noise = np.random.default_rng(5).normal(size=SIZE)
  config = config_of(task=jl.tasks.regression, steps=200)
  return config, lambda: mlp(outputs=1), x_y(lambda x: np.exp(1.2 * x[:, 0] + 0.3 * noise).astype(np.float32))


def several_labels():
  config = config_of(task=jl.tasks.multi_label, steps=200)
  return config, mlp, x_y(lambda x: (x[:, :3] > 0).astype(np.int32))


def binary_overlap():
  """What happens depends on chance too, as whether somebody pays does."""
  draw = np.random.default_rng(7).random(SIZE)
  config = config_of(task=jl.tasks.binary, steps=60)
  model = lambda: ((lambda p, x: (x @ p['w'])[:, 0]), {'w': np.zeros((FEATURES, 1), np.float32)})  # noqa: E731
  return config, model, x_y(lambda x: (draw < 1 / (1 + np.exp(-2.5 * x[:, 0]))).astype(np.int32))


def texts():
  rng = np.random.default_rng(0)
  tokens = np.zeros((200, 13), np.int32)
  for at in range(1, 13):
    tokens[:, at] = np.where(rng.random(200) < 0.8, (tokens[:, at - 1] * 3 + 1) % 8, rng.integers(0, 8, 200))
  config = config_of(task=lambda: jl.tasks.language(8), steps=200)
  params = {'embed': rng.normal(size=(8, 8)).astype(np.float32), 'out': rng.normal(size=(8, 8)).astype(np.float32) / 3}
  return config, lambda: ((lambda p, x: p['embed'][x] @ p['out']), params), (tokens[:, :-1], tokens[:, 1:])


def segmented():
  x = np.random.default_rng(0).normal(size=(200, 5, 5, 2)).astype(np.float32)
  y = (x[..., 0] > 0).astype(np.int32)
  params = {'w': np.random.default_rng(1).normal(size=(2, 2)).astype(np.float32)}
  return config_of(task=jl.tasks.segmentation), lambda: ((lambda p, x: x @ p['w']), params), (x, y)


def own_task():
  def error(outputs, batch):
    return jnp.abs(outputs[:, 0] - batch['labels'])

  task = jl.tasks.Task(
    'own', loss=lambda facts: error, metrics=lambda facts: jl.tasks.means(mae=error), score='mae', falls=('mae',)
  )
  return config_of(task=lambda: task), lambda: mlp(outputs=1), x_y(lambda x: x[:, 0])


def inputs_of_two_kinds():
  """A tree of inputs: numbers, and whole numbers that are looked up."""
  x = inputs()
  kind = np.random.default_rng(2).integers(0, 4, SIZE).astype(np.int32)
  y = classes(x) ^ (kind == 0)
  params = {**mlp()[1], 'table': np.random.default_rng(4).normal(size=(4, FEATURES)).astype(np.float32)}

  def fn(p, x):
    return jax.nn.relu((x['x'] + p['table'][x['kind'][:, 0]]) @ p['w1'] + p['b1']) @ p['w2'] + p['b2']

  return (
    config_of(steps=300),
    lambda: (fn, {**params, 'w2': weights(4)[2], 'b2': weights(4)[3]}),
    ({'x': x, 'kind': kind[:, None]}, y),
  )


STRANGERS = {
  **{made.__name__.replace('_', ' '): made for made in (
    short_from_zero, linear_from_zero, tiny_first_values, large_first_logits, low_rank, few_bits, pruned, unstructured,
    raw_pictures, regression, long_tailed_regression, several_labels, binary_overlap, texts, segmented, own_task,
    inputs_of_two_kinds)},
  **{f'of {framework}': (lambda framework=framework: of_framework(framework)) for framework in FRAMEWORKS},
  'frozen': frozen,
}  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize('name', STRANGERS)
def test_what_is_unusual_and_well_is_not_called_broken(name, tmp_path):
  config, model, data = STRANGERS[name]()
  found = judged(tmp_path / 'run', config, model, data)
  assert found.verdict in ('healthy', 'unknown'), str(found)
  assert found.verdict == 'healthy' or name in ('segmented', 'own task'), str(found)
