"""Rates by depth and thawing: what learns how fast and from when on, in any optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlite.finetuning import rates_by_depth, thaw
from jaxlite.finetuning.rates import depths

ORDER = ['block1/conv/kernel', 'block1/dense/kernel', 'block2/conv/kernel', 'block2/dense/kernel']
PARAMS = {
  'embed': {'table': jnp.ones(2)},
  'block1': {
    'conv': {'kernel': jnp.ones(2), 'bias': jnp.ones(2)},
    'dense': {'kernel': jnp.ones(2)},
    'norm': jnp.ones(2),
  },
  'block2': {'conv': {'kernel': jnp.ones(2)}, 'dense': {'kernel': jnp.ones(2, jnp.bfloat16)}},
  'head': {'kernel': jnp.ones(2)},
}


def test_depth_follows_the_program():
  found = depths(ORDER, [*ORDER, 'block1/conv/bias', 'block2/norm/scale', 'embed/table', 'head/kernel', 'jl.lora/a'])
  assert [found[path] for path in ORDER] == [0, 0.25, 0.5, 0.75]
  assert (found['block1/conv/bias'], found['block2/norm/scale'], found['embed/table']) == (0, 0.5, 0)
  assert found['head/kernel'] == found['jl.lora/a'] == 1


def test_updates_are_those_of_the_optimizer_scaled():
  grads = jax.tree.map(jnp.ones_like, PARAMS)
  tx = optax.chain(optax.sgd(1.0), rates_by_depth(ORDER, 0.0625))
  updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
  got = [updates['block1']['conv']['kernel'], updates['block1']['dense']['kernel'], updates['block2']['conv']['kernel']]
  np.testing.assert_allclose([float(one[0]) for one in got], [-0.0625, -0.125, -0.25], rtol=1e-6)
  assert updates['head']['kernel'].tolist() == [-1, -1]
  assert updates['block2']['dense']['kernel'].dtype == jnp.bfloat16


def test_what_is_not_thawed_does_not_move_by_a_bit():
  tx = optax.chain(optax.adam(0.1), optax.add_decayed_weights(-0.1), thaw(ORDER, 3, 2))
  params, state = PARAMS, tx.init(PARAMS)
  moved = []
  for _ in range(5):
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    params = optax.apply_updates(params, updates)
    moved.append(
      [
        bool(jnp.any(params[name] != PARAMS[name]))
        if name == 'embed/table'
        else any(
          bool(jnp.any(a != b))
          for a, b in zip(jax.tree.leaves(params[name]), jax.tree.leaves(PARAMS[name]), strict=True)
        )
        for name in ('head', 'block2', 'block1')
      ]
    )
  assert moved == [[True, False, False]] * 2 + [[True, True, False]] * 2 + [[True, True, True]]


@pytest.mark.parametrize(
  'make',
  [lambda: rates_by_depth(ORDER, 0.0), lambda: rates_by_depth(['nobody'], 0.5).init(PARAMS), lambda: thaw(ORDER, 1, 2)],
)
def test_what_would_do_nothing_is_told(make):
  with pytest.raises(ValueError, match=r'ratio|none is a parameter|phases'):
    make()
