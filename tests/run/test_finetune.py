"""Fine-tuning as a run: it resumes, loads and predicts with the backbone inside, and never ends worse than it began."""

import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
from loops import crash_at, leaves, points
from simulated import sound_on

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)
Y = np.arange(120) % 3
X = (RNG.normal(size=(3, 4))[Y] + 0.7 * RNG.normal(size=(120, 4))).astype(np.float32)


def network():
  params = {'a': jnp.asarray(RNG.normal(size=(4, 8)), jnp.float32), 'b': jnp.zeros((8, 2))}
  return (lambda p, x: jnp.tanh((x - 1) @ p['a']) @ p['b'], params)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  """A run at a rate that harms, and what it said."""
  folder, net, said = tmp_path_factory.mktemp('runs'), network(), []
  optim = jl.FineTune(name='x').optim
  optim.lr = 3.0
  options = {'method': 'full', 'optim': optim, 'features': str(folder / 'features'), 'train': jl.Duration(steps=8)}
  result = jl.finetune(net, (X, Y), folder / 'run', say=said.append, **options)
  return folder, net, options, result, said


def test_it_says_what_it_does(done):
  said = done[-1]
  assert any("the head, 'b' [8, 2], is taken off: 8 features" in line for line in said)
  assert any(line.startswith('method: full') for line in said)
  assert not [line for line in said if line.startswith('warning')]


def test_it_never_ends_worse_than_it_began(done):
  folder, net, _, result, _ = done
  assert result.best_step == 0  # the rate harms
  assert result.metrics['accuracy'] > 0.6
  loaded = jl.load(folder / 'run')
  kernel = np.asarray(loaded.params['head']['kernel'])
  features = np.tanh((X - 1) @ np.asarray(net[1]['a']))
  logits = features @ kernel + np.asarray(loaded.params['head']['bias'])
  np.testing.assert_allclose(loaded.predict(X), logits, atol=1e-4)


@pytest.mark.slow
def test_the_same_call_again_reports_the_finished_run(done):
  folder, net, options, result, _ = done
  said = []
  again = jl.finetune(net, (X, Y), folder / 'run', say=said.append, **options)
  assert again.metrics == result.metrics


@pytest.mark.parametrize(
  'fields,told',
  [
    ({'methd': 'probe'}, 'nearest: method'),
    ({'method': 'prob'}, 'method is one of'),
    ({'lr': 0.1}, 'a field of config.optim'),
  ],
)
def test_a_field_that_is_none_is_told(fields, told, tmp_path):
  with pytest.raises(ValueError, match=told):
    jl.finetune(network(), (X, Y), tmp_path / 'run', features=str(tmp_path), **fields)
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize('method', ['full', 'gradual', 'last', 'probe', 'lora'])
def test_killed_and_resumed_it_ends_with_the_same_bits(method, tmp_path):
  if method == 'lora' and not hasattr(jl.optim, 'lora'):
    pytest.skip('no jl.optim.lora')
  script = textwrap.dedent(f"""
    import sys, numpy as np, jax.numpy as jnp, jaxlite as jl
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = (rng.normal(size=(3, 4))[y] + 0.7 * rng.normal(size=(120, 4))).astype(np.float32)
    a, c = (jnp.asarray(rng.normal(size=(rows, 8)), jnp.float32) for rows in (4, 8))
    params = {{'a': a, 'c': c, 'b': jnp.zeros((8, 2))}}
    net = (lambda p, x: jnp.tanh(jnp.tanh(x @ p['a']) @ p['c']) @ p['b'], params)
    fields = {{}} if '{method}' == 'probe' else {{'train': jl.Duration(steps=40)}}
    result = jl.finetune(net, (x, y), sys.argv[1], method='{method}', features=sys.argv[2], rank=2, **fields)
    print('done', result.metrics['loss'])
  """)

  def command(name):
    return [sys.executable, '-u', '-c', script, str(tmp_path / name), str(tmp_path / 'features')]

  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  whole = subprocess.run(command('whole'), capture_output=True, text=True, env=environment, check=True).stdout
  process = subprocess.Popen(command('killed'), stdout=subprocess.PIPE, text=True, env=environment)
  for line in process.stdout:
    if line.startswith(('step 10/', 'step 1/1')):
      process.send_signal(signal.SIGKILL)
      break
  process.communicate()
  again = subprocess.run(command('killed'), capture_output=True, text=True, env=environment, check=True).stdout
  assert again.splitlines()[-1] == whole.splitlines()[-1]
  one, other = (
    jl.checkpoint.load_arrays(tmp_path / name / 'checkpoints', which='latest') for name in ('whole', 'killed')
  )
  for leaf, same in zip(jax.tree.leaves(one.state['params']), jax.tree.leaves(other.state['params']), strict=True):
    np.testing.assert_array_equal(leaf, same)


def test_a_crash_in_the_middle_changes_no_bit(done, tmp_path, monkeypatch):
  folder, net, options, result, _ = done
  for _ in crash_at(4, monkeypatch):
    with pytest.raises(MemoryError, match='the machine is gone'):
      jl.finetune(net, (X, Y), tmp_path, say=lambda line: None, **options)
  again = jl.finetune(net, (X, Y), tmp_path, say=lambda line: None, **options)
  assert again.metrics == result.metrics
  assert leaves(tmp_path) == leaves(folder / 'run')
  assert points(tmp_path) == points(folder / 'run')


@pytest.mark.slow
@pytest.mark.parametrize('method', ['last', 'gradual', 'probe'])
def test_nor_does_it_where_something_is_frozen(method, tmp_path, monkeypatch):
  net = (lambda p, x: jnp.tanh(jnp.tanh(x @ p['a']) @ p['c']) @ p['b'], {**network()[1], 'c': jnp.eye(8)})
  last = 1 if method == 'probe' else 9
  options = {'method': method, 'features': str(tmp_path / 'features'), 'say': lambda line: None}
  options |= {} if method == 'probe' else {'train': jl.Duration(steps=last)}
  whole = jl.finetune(net, (X, Y), tmp_path / 'whole', **options)
  for _ in crash_at(last // 2, monkeypatch):
    with pytest.raises(MemoryError, match='the machine is gone'):
      jl.finetune(net, (X, Y), tmp_path / 'torn', **options)
  again = jl.finetune(net, (X, Y), tmp_path / 'torn', **options)
  assert again.metrics == whole.metrics
  assert leaves(tmp_path / 'torn') == leaves(tmp_path / 'whole')
  assert points(tmp_path / 'torn') == points(tmp_path / 'whole')


@pytest.mark.slow
@pytest.mark.parametrize('method', ['probe', 'full', 'gradual', 'last', 'lora'])
def test_a_keras_model_is_tuned(method, tmp_path):
  keras = pytest.importorskip('keras')
  keras.utils.set_random_seed(0)
  rows = (RNG.normal(size=(3, 8, 8, 1))[Y] + 0.5 * RNG.normal(size=(120, 8, 8, 1))).astype(np.float32)
  inputs = keras.Input((8, 8, 1))
  hidden = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, use_bias=False)(inputs))
  hidden = keras.layers.Dropout(0.1)(keras.layers.Flatten()(keras.layers.ReLU()(hidden)))
  model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Dense(8, activation='relu')(hidden)))
  steps = {} if method == 'probe' else {'train': jl.Duration(steps=12)}
  options = {'method': method, 'features': str(tmp_path / 'f'), 'rank': 2, 'say': lambda line: None, **steps}
  result = jl.finetune(model, (rows, Y), tmp_path / 'run', **options)
  assert result.metrics['accuracy'] > 0.6
  test = jl.data.from_arrays((rows, Y)).test
  assert (np.asarray(jl.load(tmp_path / 'run').predict(test.inputs)).argmax(1) == test.labels).mean() == (
    result.metrics['accuracy']
  )


@pytest.mark.slow
def test_on_two_devices_it_ends_as_on_one():
  sound_on(
    2,
    """
    import tempfile
    import numpy as np, jax, jax.numpy as jnp, jaxlite as jl
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    mesh = Mesh(np.array(jax.devices()), ('d',))
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = (rng.normal(size=(3, 4))[y] + 0.7 * rng.normal(size=(120, 4))).astype(np.float32)
    values = {'a': rng.normal(size=(4, 8)), 'c': rng.normal(size=(8, 8)), 'b': np.zeros((8, 2))}
    values = {name: value.astype(np.float32) for name, value in values.items()}
    sides = {'a': P(None, 'd'), 'c': P('d', None), 'b': P()}
    spread = {name: jax.device_put(value, NamedSharding(mesh, sides[name])) for name, value in values.items()}
    apply = lambda p, x: jnp.tanh(jnp.tanh(x @ p['a']) @ p['c']) @ p['b']
    for method in ('probe', 'gradual', 'lora'):
      steps = {} if method == 'probe' else {'train': jl.Duration(steps=6)}
      losses = []
      for params in (jax.tree.map(jnp.asarray, values), spread):
        with tempfile.TemporaryDirectory() as d:
          options = {'features': d + '/f', 'rank': 2, 'say': lambda line: None, **steps}
          losses.append(jl.finetune((apply, params), (x, y), d + '/run', method=method, **options).metrics['loss'])
      assert abs(losses[0] - losses[1]) < 1e-4, (method, losses)
    print('sound', jax.device_count())
    """,
  )


def test_what_is_too_little_to_judge_by_is_told(tmp_path):
  said = []
  few = np.concatenate([np.flatnonzero(kind == Y)[:3] for kind in range(3)])
  options = {'method': 'auto', 'features': str(tmp_path / 'features')}
  jl.finetune(network(), (X[few], Y[few]), tmp_path / 'run', say=said.append, **options)
  assert any(line.startswith('method: probe (2 examples a class are too few') for line in said)
  assert any(line.startswith('note: 1 example for validation and 1 example for test: such scores say') for line in said)


@pytest.mark.slow
def test_ranks_are_lowered_to_the_smaller_side_of_a_matrix(tmp_path):
  jl.finetune(network(), (X, Y), tmp_path / 'run', method='lora', features=str(tmp_path / 'features'))
  assert jl.load(tmp_path / 'run').predict(X).shape == (120, 3)
