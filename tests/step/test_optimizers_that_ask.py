"""Update parts that want more than a gradient, read elsewhere than they train, or leave a step out: against Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.contract import CONST
from jaxlite.step.state import went_nan

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 5)).astype(np.float32), RNG.integers(0, 3, 8)
BATCH = {'inputs': jnp.asarray(X), 'labels': jnp.asarray(Y)}
START = {'w': jnp.asarray(RNG.normal(size=(5, 3)).astype(np.float32)), 'b': jnp.zeros(3)}


def logits(params, x):
  return x @ params['w'] + params['b']


MODEL = jl.from_function(logits, START)


def objective(params):
  return optax.softmax_cross_entropy_with_integer_labels(logits(params, X), jnp.asarray(Y)).mean()


def reference(tx, steps):
  """The loop of Optax's own documentation."""
  params, state = START, tx.init(START)
  for _ in range(steps):
    value, grad = jax.value_and_grad(objective)(params)
    updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=objective)
    params = optax.apply_updates(params, updates)
  return params, state


def ours(*parts, steps, batch=BATCH):
  train = jl.train_step(MODEL, jl.cross_entropy, jl.chain(*parts))
  state = train.init(jax.random.key(0), batch)
  for _ in range(steps):
    state, metrics = train.step(state, batch)
  return train, state, metrics


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ('tx', 'hooks'),
  [
    pytest.param(optax.lbfgs(), [jl.accumulate(2)], marks=pytest.mark.slow),  # its own search is long to compile
    (optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(15)), [jl.accumulate(2)]),
    (optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)), []),
  ],
  ids=['lbfgs of micro-batches', 'lbfgs that backtracks', 'backtracking'],
)
def test_line_searches_get_their_value_and_gradient(tx, hooks):
  _, state, metrics = ours(*hooks, tx, steps=4)
  wanted, _ = reference(tx, 4)
  for name in wanted:
    np.testing.assert_allclose(state.params[name], wanted[name], rtol=2e-3, atol=2e-4)
  assert float(metrics['loss']) < float(objective(START))


def private():
  """What `optax.contrib.dpsgd` is made of; its own arguments are of several versions."""
  return optax.chain(optax.contrib.differentially_private_aggregate(1.0, 0.1, key=jax.random.key(0)), optax.sgd(0.1))


@pytest.mark.parametrize(
  ('tx', 'words'),
  [
    (optax.chain(optax.clip(1.0), optax.lookahead(optax.sgd(0.1), 5, 0.5)), r'lookahead.*with jl\.average\(\)'),
    (optax.contrib.sophia(0.1), r'sophia asks for obj_fn.*use optax\.adamw'),
    (optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05)), r'use its optimizer alone, with jl\.optim\.sam'),
    (optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True), r'with jl\.optim\.sam'),
    (private(), r'gradient of each example.*jax\.vmap'),
  ],
  ids=['lookahead', 'sophia', 'sam', 'opaque', 'dpsgd'],
)
def test_what_no_step_can_serve_is_refused_in_a_line_that_says_what_to_use(tx, words):
  with pytest.raises(ValueError, match=words) as told:
    ours(tx, steps=1)
  assert '\n' not in str(told.value)


@pytest.mark.parametrize('name', ['schedule_free_sgd', 'schedule_free_adamw'])
def test_a_schedule_free_model_is_read_at_its_own_point(name):
  tx = getattr(optax.contrib, name)(0.1)
  train, state, _ = ours(tx, steps=6)
  params, own = reference(tx, 6)
  wanted = optax.contrib.schedule_free_eval_params(own, params)
  np.testing.assert_allclose(train.eval(state, BATCH)[0], logits(wanted, X), rtol=1e-4, atol=1e-5)
  assert np.abs(logits(wanted, X) - logits(params, X)).max() > 1e-3
  full = {**state.model_state, CONST: state.const}
  np.testing.assert_allclose(train.model.export(state.params, full)[0]['w'], wanted['w'], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(state.params['w'], params['w'], rtol=1e-4, atol=1e-5)  # and it trains where it did


def test_what_is_pruned_is_zero_where_a_schedule_free_model_is_read():
  tx = optax.contrib.schedule_free_sgd(0.3)
  train, state, _ = ours(tx, jl.prune(0.6, begin=3), steps=3)
  read = np.asarray(state.model_state['jl.point']['w'])
  for _ in range(4):
    state, _ = train.step(state, BATCH)
    point = train.model.export(state.params, {**state.model_state, CONST: state.const})[0]['w']
    np.testing.assert_array_equal(np.asarray(point) == 0, np.asarray(state.params['w']) == 0)
    assert (np.asarray(point) == 0).sum() == 9
  order = np.sort(np.abs(read).ravel())  # masks are drawn where it is read
  np.testing.assert_array_equal(np.asarray(point) == 0, np.abs(read) < order[9])


def test_a_part_of_the_params_may_be_schedule_free():
  parts = {'free': optax.contrib.schedule_free_sgd(0.3), 'plain': optax.sgd(0.3)}
  tx = optax.partition(parts, {'w': 'free', 'b': 'plain'})
  _, state, _ = ours(tx, steps=3)
  params, own = reference(tx, 3)
  inner = own.inner_states['free'].inner_state
  wanted = (params['w'] - (1 - inner.b1) * inner.z['w']) / inner.b1
  np.testing.assert_allclose(state.model_state['jl.point']['w'], wanted, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(state.model_state['jl.point']['b'], params['b'], rtol=1e-4, atol=1e-5)


def stateful(params, state, inputs, *, train, key, step=None):
  x = inputs @ params['w'] + params['b']
  return x, {**state, 'stats': {'mean': 0.5 * (state['stats']['mean'] + x.mean(0))}} if train else state


def test_a_rejected_step_keeps_the_state_of_the_model():
  model = jl.Model(lambda key, x: (START, {'stats': {'mean': jnp.zeros(3)}}), stateful)
  recipe = jl.chain(jl.average(0.5), optax.apply_if_finite(optax.adam(0.1), 3))
  train = jl.train_step(model, jl.cross_entropy, recipe)
  state = train.init(jax.random.key(0), BATCH)
  state, _ = train.step(state, BATCH)
  bad = {**BATCH, 'inputs': BATCH['inputs'].at[0, 0].set(jnp.nan)}
  kept = jax.tree.map(np.asarray, (state.params, state.model_state))
  for _ in range(3):
    state, metrics = train.step(state, bad)
    assert np.isnan(metrics['loss'])
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.model_state), kept)
    assert went_nan(state) is None
  good, _ = train.step(jax.tree.map(jnp.copy, state), BATCH)
  assert went_nan(good) is None
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((good.params, good.model_state)))
  state, _ = train.step(state, bad)  # the fourth in a row is taken, as Optax says, and seen
  assert went_nan(state) is not None
