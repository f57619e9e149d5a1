"""A pruning part that is not the last of its chain, in a loop of one's own: seen, and said."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl

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
