"""Laws of training for bits: what is exported are whole numbers times a scale, what is counted is what coding costs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.deployment.packed import file as pack
from jaxlite.deployment.packed.scales import scaled
from jaxlite.quantization import few_bits
from jaxlite.quantization._bits import _fitted, bits_of, on_grid

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)


def floats(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def apply(params, x):
  return jax.nn.relu(x @ params['first'] + params['bias']) @ params['last']


def start():
  return {'first': floats(20, 30) / 4, 'bias': np.zeros(30, np.float32), 'last': floats(30, 4) / 5}


@pytest.fixture(scope='module')
def run():
  """A run whose bits are worth much: its step, its state before and after, the cost of its weights after each step."""
  hook = few_bits(5e-3, ramp=20, every=10, step=0.5)
  train = jl.train_step(jl.from_function(apply, start()), jl.cross_entropy, jl.chain(hook, optax.adam(0.05)))
  x = floats(64, 20)
  batch = {'inputs': x, 'labels': (x @ floats(20, 4)).argmax(-1)}
  before = state = train.init(jax.random.key(0), batch)
  before, costs = jax.tree.map(np.asarray, (before.params, before.model_state)), []
  for _ in range(60):
    state, metrics = train.step(state, batch)
    costs.append(float(state.model_state['jl.few_bits'].bits))
  assert {'task', 'bits', 'loss'} <= {*metrics}
  return train, before, state, costs, x


def test_exported_weights_are_whole_numbers_times_a_scale_and_the_network_is_the_one_that_trained(run):
  train, _, state, _, x = run
  params, _ = train.model.export(state.params, state.model_state)
  assert {*params} == {'first', 'bias', 'last'}
  for path in ('first', 'last'):
    found = scaled(np.asarray(params[path]))
    assert found is not None
    assert len(found.scales) == 1
    assert np.abs(found.numbers).max() < 40
  assert len(np.unique(params['bias'])) > 20  # as it was
  seen = train.model.apply(state.params, state.model_state, x, train=False, key=None)[0]
  np.testing.assert_allclose(apply(params, x), seen, rtol=1e-5, atol=1e-5)


def test_where_bits_are_worth_much_few_are_left(run):
  train, before, state, costs, _ = run
  exported = [train.model.export(*values)[0] for values in (before, (state.params, state.model_state))]
  sizes = [pack.packed_bytes({**params, 'bias': None}) for params in exported]
  assert sizes[1] < 0.7 * sizes[0]
  assert state.model_state['jl.few_bits'].alive < 0.5 * before[1]['jl.few_bits'].alive
  assert costs[-1] < 0.5 * costs[0]


def test_priors_are_fitted_when_they_are_due(run):
  _, _, state, costs, _ = run
  assert [len({*costs[at : at + 10]}) for at in range(9, 49, 10)] == [1] * 4
  assert len({*costs[:9]}) == 1
  assert len({*costs}) == 7  # the first, and six that were due
  told = state.model_state['jl.few_bits'].account(state.params)
  assert '720 weights are not zero' in told.touched


def test_the_gradient_is_that_of_what_is_seen_through_a_count_of_steps():
  w, slope = floats(6, 5), floats(6, 5)
  grid = {'step': jnp.log(jnp.float32(0.7)), 'offset': jnp.float32(0.2)}
  d_w, d_grid = jax.grad(lambda w, grid: jnp.sum(slope * on_grid(w, grid)), argnums=(0, 1))(w, grid)
  s = float(jnp.exp(grid['step']))
  np.testing.assert_allclose(d_w, s * slope, rtol=1e-6)
  whole = np.rint(w)
  seen = s * (whole + 0.2 * np.sign(whole))
  np.testing.assert_allclose(on_grid(w, grid), seen, rtol=1e-6)
  np.testing.assert_allclose(d_grid['step'], np.sum(slope * seen), rtol=1e-4)  # of the step's logarithm
  np.testing.assert_allclose(d_grid['offset'], np.sum(slope * s * np.sign(whole)), rtol=1e-4)


def test_arrays_of_any_scale_begin_as_they_were_and_learn_alike():
  """A network whose weights are a thousand times larger, and inputs as much smaller, takes the same steps."""
  x, labels, first, last = floats(32, 20), RNG.integers(4, size=32), floats(20, 30), floats(30, 4)
  found = []
  for by in (1, 1024):
    params = {'first': first * by, 'last': last}
    model = jl.from_function(lambda p, x: jax.nn.relu(x @ p['first']) @ p['last'], params)
    train = jl.train_step(model, jl.cross_entropy, jl.chain(few_bits(1e-4, step=0.5), optax.adam(0.05)))
    batch = {'inputs': x / by, 'labels': labels}
    state = train.init(jax.random.key(0), batch)
    seen = train.model.export(state.params, state.model_state)[0]
    for name, leaf in params.items():
      step = np.exp(state.params['jl.few_bits'][name]['step'])
      assert np.abs(seen[name] - leaf).max() <= 0.5001 * step
    before = np.asarray(state.params['first'])
    for _ in range(10):
      state, metrics = train.step(state, batch)
    found.append((before, np.asarray(state.params['first']), float(metrics['task'])))
  (before, one, loss), (again, other, by_other) = found
  np.testing.assert_allclose(before, again, rtol=1e-5, atol=1e-5)
  # What lies between two whole numbers may be rounded either way.
  assert np.abs(one - other).mean() < 0.1 * np.abs(one - before).mean()
  assert abs(loss - by_other) < 0.05 * loss


def test_layers_that_one_array_stacks_have_a_step_each():
  def deep(params, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params['w'])[0]

  w = floats(3, 8, 8) * np.float32([1, 10, 100])[:, None, None]
  model = few_bits(1e-6, step=0.5).model(jl.from_function(deep, {'w': w}))
  params, state = model.init(jax.random.key(0), floats(2, 8))
  step = np.exp(params['jl.few_bits']['w']['step'])
  np.testing.assert_allclose(step, 0.5 * w.std((1, 2), keepdims=True), rtol=1e-5)
  exported = np.asarray(model.export(params, state)[0]['w'])
  np.testing.assert_allclose(exported, step * np.rint(w / step), rtol=1e-6)
  assert all(scaled(layer) is not None for layer in exported)


def alive_weights():
  """As training for bits leaves them: some rows and columns alive."""
  alive = RNG.gamma(0.5, size=(300, 1)) * RNG.gamma(0.5, size=(1, 80))
  return np.where(RNG.random((300, 80)) < np.minimum(1, 0.1 * alive / alive.mean()), 2 * floats(300, 80), 0)


def test_bits_are_counted_as_in_float64_and_as_the_coder_takes_them():
  w = alive_weights().astype(np.float32)
  state = _fitted({'w': w})
  q = np.abs(np.rint(w)).astype(np.float64)
  there = q > 0
  count, share = there.sum(), (there.sum() + 1) / (there.size + 2)
  logit = lambda p: np.log(p / (1 - p))  # noqa: E731
  rows, columns = ((there.sum(axis) + 2 * share) / (there.shape[axis] + 2) for axis in (1, 0))
  logits = logit(rows)[:, None] + logit(columns) - logit(share)
  chance = np.clip(1 / (1 + np.exp(-logits)), 0.002, 0.9)
  more = (q.sum() - count + 1) / (count + 2)
  wanted = -np.log2(np.where(there, chance, 1 - chance)).sum() + count
  wanted += count * np.log2(1 + more) + np.clip(np.log2(1 + 1 / more), 0.3, 3) * (q.sum() - count)
  np.testing.assert_allclose(state.bits, wanted, rtol=1e-4)
  assert int(state.alive) == count
  coded = pack.packed_bytes({'w': np.rint(w).astype(np.int8)})
  assert 0.85 < coded / (wanted / 8) < 1.15  # the coder has to learn what the prior knows
  # What the loss sees, of whole numbers, is the cost beyond that of all zeros.
  none = -np.log2(1 - chance).sum()
  assert abs(float(bits_of(np.rint(w), state.priors['w'])) - (wanted - none)) < 0.03 * wanted


def test_what_is_wrong_is_said():
  for wrong in ({'worth': -1.0}, {'worth': 4}, {'ramp': -1}, {'every': 0}, {'step': 0.0}):
    with pytest.raises(ValueError, match=rf'few_bits: {next(iter(wrong))} is'):
      few_bits(**{'worth': 1e-6, **wrong})
  model = few_bits(1e-6, select='nothing').model(jl.from_function(apply, start()))
  with pytest.raises(ValueError, match='nothing'):
    model.init(jax.random.key(0), floats(2, 20))


@pytest.mark.parametrize('value', [0.3, -1e-3, 1e6])
def test_weights_that_are_all_alike_begin_as_they_were_one_step_each(value):
  """Their deviation is rounding alone: in steps of that they would cost millions of bits."""
  model = few_bits(1e-4).model(jl.from_function(lambda p, x: x @ p['w'], {'w': np.full((9, 7), value, np.float32)}))
  params, state = model.init(jax.random.key(0), floats(2, 9))
  np.testing.assert_allclose(np.abs(params['w']), 1, rtol=1e-5)
  np.testing.assert_allclose(model.export(params, state)[0]['w'], value, rtol=1e-5)


def test_two_of_them_on_their_own_layers_cost_what_one_on_both_does():
  batch, weights = {'inputs': floats(8, 20), 'labels': np.arange(8) % 4}, start()
  parts = few_bits(1e-3), jl.chain(*(few_bits(1e-3, select=f'^{name}$', name=name) for name in ('first', 'last')))
  found = []
  for hooks in parts:
    loop = jl.step.wrap(jl.from_function(apply, weights), jl.cross_entropy, hooks)
    params, state = loop.init(jax.random.key(0), batch)
    found.append(jax.jit(loop.gradient)(params, state, batch, jax.random.key(0), 0)[2])
  assert {*found[1]} == {'task', 'bits', 'first/bits'}
  np.testing.assert_allclose(found[1]['bits'] + found[1]['first/bits'], found[0]['bits'], rtol=1e-5)


def test_several_models_side_by_side_have_steps_of_their_own():
  """Moments of a learned step lie under its name, and are no counts."""
  train = jl.train_step(jl.from_function(apply, start()), jl.cross_entropy, jl.chain(few_bits(1e-4), optax.adam(0.01)))
  batch, keys = {'inputs': floats(8, 20), 'labels': np.arange(8) % 4}, jax.random.split(jax.random.key(0), 2)
  axes = jl.step.ensemble_axes(jax.eval_shape(train.init, keys[0], batch))
  states = jax.vmap(train.init, (0, None), axes)(keys, batch)
  states, _ = jax.vmap(train.step, (axes, None), (axes, 0))(states, batch)
  alone, _ = train.step(train.init(keys[1], batch), batch)
  assert states.opt_state[0][0].count.shape == ()
  for path in ('first', 'last'):
    ours, theirs = states.params['jl.few_bits'][path]['step'][1], alone.params['jl.few_bits'][path]['step']
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
