"""A pruning part that is not the last of its chain, in a loop of one's own: seen, and said."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl

pytestmark = pytest.mark.unoptimized

PARAMS = {'w': jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))}
MASKS = {'w': jnp.asarray(np.random.default_rng(1).random((6, 4)) < 0.5)}
PARTS = {
  'prune': lambda: jl.prune(0.75),
  'hold': lambda: jl.hold(MASKS),
  'set_': lambda: jl.pruning.set_(optax.sgd(0.1), 0.5, every=2, end=40),
}


def trained(tx, steps=20):
  @jax.jit
  def step(params, state):
    grads = jax.grad(lambda params: jnp.sum((params['w'] - 1) ** 2))(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  params, state = PARAMS, tx.init(PARAMS)
  for _ in range(steps):
    params, state = step(params, state)
  return params, state


@pytest.mark.parametrize('part', list(PARTS))
def test_what_follows_a_mask_and_breaks_it_is_told_in_a_line(part):
  params, state = trained(optax.chain(PARTS[part](), optax.adam(0.1)))
  with pytest.raises(ValueError, match=r'wrote to \d+ values that a mask holds at zero: make .* the last of its chain'):
    jl.pruning.check(state)
  params, state = trained(optax.chain(optax.adam(0.1), PARTS[part]()))
  jl.pruning.check({'opt': state})
  assert (np.asarray(params['w']) == 0).sum() >= 10


def test_a_state_without_masks_is_told():
  with pytest.raises(ValueError, match='no part that holds masks'):
    jl.pruning.check(optax.adam(0.1).init(PARAMS))


def test_the_first_line_of_what_has_to_be_last_says_so():
  assert 'last' in jl.prune.__doc__.splitlines()[0]


def test_recorded_gradients_count_every_example_alike_whatever_the_batches():
  rng = np.random.default_rng(2)
  x, y = rng.normal(size=(5, 6)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
  loss = lambda outputs, batch: ((outputs - batch['labels']) ** 2).sum(1)  # noqa: E731
  parts = [{'inputs': x[:3], 'labels': y[:3]}, {'inputs': x[2:], 'labels': y[2:], 'weight': np.float32([0, 1, 1])}]
  half = {'w': PARAMS['w'].astype(jnp.bfloat16)}
  for params, rtol in ((PARAMS, 1e-4), (half, 2e-2)):
    found = jl.pruning.gather_statistics(lambda p, x: x @ p['w'], params, batches=parts, loss=loss).gradients['w']
    w = np.float64(params['w'].astype(jnp.float32))
    np.testing.assert_allclose(found, 2 * x.T @ (x @ w - y) / 5, rtol=rtol, atol=10 * rtol)
    assert found.dtype == jnp.float32
  mean = lambda outputs, batch: loss(outputs, batch).mean()  # noqa: E731
  with pytest.raises(ValueError, match='got a scalar: leave its mean out'):
    jl.pruning.gather_statistics(lambda p, x: x @ p['w'], PARAMS, batches=parts, loss=mean)
