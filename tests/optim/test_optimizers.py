"""Magnitude pruning, RigL, SET and straight-through are right on every Optax configuration that people use."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import trees
from jaxlite.pruning._mask_state import PruneState
from jaxlite.pruning._rigl import rigl, set_
from jaxlite.pruning._straight_through import straight_through

pytestmark = pytest.mark.unoptimized

KERNEL = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
X = np.random.default_rng(2).normal(size=(5, 6)).astype(np.float32)
LABELS = {'kernel': 'sparse', 'bias': 'sparse'}
STEPS = 4

# Each takes what stands around an optimizer (`wrap`: prune after it, or RigL and SET with it inside).
PLAIN = {
  'adabelief': lambda: optax.adabelief(0.01),
  'adadelta': lambda: optax.adadelta(0.1),
  'adafactor': lambda: optax.adafactor(0.01, min_dim_size_to_factor=4),
  'adagrad': lambda: optax.adagrad(0.01),
  'adam': lambda: optax.adam(0.01),
  'adamax': lambda: optax.adamax(0.01),
  'adamw': lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01)),
  'adan': lambda: optax.adan(0.01),
  'amsgrad': lambda: optax.amsgrad(0.01),
  'lamb': lambda: optax.lamb(0.01),
  'lars': lambda: optax.lars(0.01),
  'lion': lambda: optax.lion(0.01),
  'muon': lambda: optax.contrib.muon(0.01),
  'nadam': lambda: optax.nadam(0.01),
  'noisy_sgd': lambda: optax.noisy_sgd(0.01, key=0),
  'novograd': lambda: optax.novograd(0.01),
  'prodigy': lambda: optax.contrib.prodigy(),
  'radam': lambda: optax.radam(0.01),
  'rmsprop': lambda: optax.rmsprop(0.01),
  'rprop': lambda: optax.rprop(0.01),
  'schedule_free': lambda: optax.contrib.schedule_free(optax.sgd(0.01), 0.01, b1=0.9),
  'sgd': lambda: optax.sgd(0.01, momentum=0.9),
  'sm3': lambda: optax.sm3(0.01),
  'yogi': lambda: optax.yogi(0.01),
  'inject_hyperparams': lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=optax.constant_schedule(0.01)),
  'apply_if_finite': lambda: optax.apply_if_finite(optax.adam(0.01), 3),
}
AROUND = {
  'MultiSteps': lambda sparse: optax.MultiSteps(sparse, 2),
  'partition': lambda sparse: optax.partition({'sparse': sparse}, LABELS),
  'masked': lambda sparse: optax.masked(sparse, {'kernel': True, 'bias': True}),
  'chain': lambda sparse: optax.chain(optax.clip_by_global_norm(1.0), sparse),
}
INSIDE = {name: (make, lambda sparse: sparse) for name, make in PLAIN.items()}
INSIDE.update({name: (lambda: optax.adam(0.01), around) for name, around in AROUND.items()})

METHODS = {
  'magnitude': lambda inner: optax.chain(inner, jl.prune(0.5, begin=1, end=3, every=1)),
  'rigl': lambda inner: rigl(inner, 0.5, end=9, every=2),
  'set': lambda inner: set_(inner, 0.5, end=9, every=2),
}
GRAD = jax.jit(jax.grad(lambda p: jnp.mean((jnp.tanh(X @ p['kernel'] + p['bias']) - 1) ** 2)))


def some(names):
  """In the slow suite every optimizer meets every method; in the normal one a ninth of the pairs."""
  for place, name in enumerate(names):
    for turn, method in enumerate(METHODS):
      marks = [] if (place + 3 * turn) % 9 == 0 else [pytest.mark.slow]
      yield pytest.param(name, method, marks=marks, id=f'{name}-{method}')


@pytest.mark.sampled(4)
@pytest.mark.parametrize('name, method', list(some(INSIDE)))
def test_masked_weights_are_zero_and_living_ones_learn(name, method):
  make, around = INSIDE[name]
  tx = around(METHODS[method](make()))
  params = {'kernel': jnp.array(KERNEL), 'bias': jnp.zeros(8)}
  state, update = tx.init(params), jax.jit(tx.update)
  for _ in range(STEPS * (2 if name == 'MultiSteps' else 1)):
    updates, state = update(GRAD(params), state, params)
    params = optax.apply_updates(params, updates)
  (pruned,) = trees.find(state, PruneState)
  kernel, mask = np.asarray(params['kernel']), np.asarray(pruned.masks['kernel'])
  assert int(pruned.count) == STEPS
  assert int(pruned.broken) == 0
  assert pruned.masks['bias'] is None
  assert mask.sum() == KERNEL.size // 2
  np.testing.assert_array_equal(kernel != 0, mask)
  assert np.isfinite(kernel).all()
  assert (kernel[mask] != KERNEL[mask]).mean() > 0.9
  assert (np.asarray(params['bias']) != 0).any()


@pytest.mark.parametrize(
  'name', [n if i % 12 == 0 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(PLAIN)]
)
def test_straight_through_masks_what_any_optimizer_learns(name):
  """The view's gradient is dense, so every optimizer moves dead weights as well, and what is exported is sparse."""
  model = jl.from_function(lambda p, x: x @ p['kernel'] + p['bias'], {'kernel': KERNEL, 'bias': np.zeros(8)})
  recipe = jl.chain(straight_through(0.5), PLAIN[name]())
  train = jl.train_step(model, lambda outputs, batch: jnp.mean((outputs - 1) ** 2, axis=1), recipe)
  batch = {'inputs': jnp.array(X)}
  state = train.init(jax.random.key(0), batch)
  for _ in range(3):
    state, _ = train.step(state, batch)
  params, _ = train.model.export(state.params, state.model_state)
  dense = np.asarray(state.params['kernel'])
  order = np.argsort(-np.abs(dense), axis=None, kind='stable')[: KERNEL.size // 2]
  expected = np.zeros(KERNEL.size, bool)
  expected[order] = True
  np.testing.assert_array_equal(params['kernel'], np.where(expected.reshape(KERNEL.shape), dense, 0))
  first = np.abs(KERNEL) < np.median(np.abs(KERNEL))
  assert (dense[first] != KERNEL[first]).all()
