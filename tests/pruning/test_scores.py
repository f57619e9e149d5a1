"""Scores are their published formulas, in float64, and SynFlow's conservation law."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
from jaxlite.pruning._allocate import global_
from jaxlite.pruning.scores import gradient_flow, grasp, magnitude, synflow

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)


def layers(*widths):
  return {f'{i}': RNG.normal(size=pair).astype(np.float32) for i, pair in enumerate(itertools.pairwise(widths))}


def forward(p, x):
  for name in sorted(p):
    x = x @ p[name] if name == '0' else jax.nn.relu(x) @ p[name]
  return x


def test_synflow_is_its_formula_and_each_layer_passes_the_same_flow():
  params = layers(5, 7, 6, 3)
  found = synflow(forward, np.zeros((9, 5), np.float32))(params, None)
  a, b, c = (np.abs(np.asarray(params[name], np.float64)) for name in '012')
  ones = np.ones(5)
  np.testing.assert_allclose(found['0'], a * np.outer(ones, b @ c @ np.ones(3)), rtol=1e-5)
  np.testing.assert_allclose(found['1'], b * np.outer(ones @ a, c @ np.ones(3)), rtol=1e-5)
  np.testing.assert_allclose(found['2'], c * np.outer(ones @ a @ b, np.ones(3)), rtol=1e-5)
  np.testing.assert_allclose([leaf.sum() for leaf in found.values()], ones @ a @ b @ c @ np.ones(3), rtol=1e-5)


def test_synflow_in_small_steps_keeps_every_layer_alive_where_magnitude_does_not():
  params = layers(20, 60, 60, 10)
  params['1'] = params['1'] / 100  # small weights, as many as all others
  alive = {}
  for name, score in {'synflow': synflow(forward, np.zeros((1, 20))), 'magnitude': magnitude}.items():
    tx = jl.prune(0.97, end=40, every=1, score=score, allocate=global_(normalize=False))
    update, weights = jax.jit(tx.update), jax.tree.map(jnp.array, params)
    state = tx.init(weights)
    for _ in range(41):
      updates, state = update(jax.tree.map(jnp.zeros_like, weights), state, weights)
      weights = jax.tree.map(jnp.add, weights, updates)
    alive[name] = [int(np.count_nonzero(leaf)) for leaf in weights.values()]
    assert sum(alive[name]) == 5400 - round(5400 * 0.97)
  assert min(alive['magnitude']) == 0
  assert min(alive['synflow']) > 0
  assert not np.any(forward(jax.tree.map(jnp.abs, weights), jnp.ones((1, 20))))  # magnitude's network is dead


def test_synflow_takes_a_model_and_its_state():
  def apply(p, s, x, *, train, key, step=None):
    return x @ p['w'] * s['scale'], s

  model = jl.Model(lambda key, x: ({}, {}), apply)
  params = {'w': jnp.array([[1.0], [-2.0]])}
  found = synflow(model, jnp.zeros((4, 2)))(params, {'scale': jnp.float32(3.0)})
  assert found['w'].tolist() == [[3.0], [6.0]]
  with pytest.raises(TypeError, match='a Model or a function'):
    synflow('net', jnp.zeros((1, 2)))


def test_grasp_orders_weights_as_the_published_score():
  """On a quadratic, g = A w and H = A, so the score is w * (A A w)."""
  root = RNG.normal(size=(12, 12))
  a, w = root @ root.T / 12, RNG.normal(size=12)

  def objective(p):
    whole = jnp.concatenate([p['u'].reshape(-1), p['v']])
    return whole @ jnp.asarray(a, jnp.float32) @ whole / 2

  params = {'u': jnp.asarray(w[:8].reshape(2, 4), jnp.float32), 'v': jnp.asarray(w[8:], jnp.float32)}
  found = grasp(params, gradient_flow(objective, params))
  got = np.concatenate([np.asarray(found['u']).reshape(-1), found['v']])
  want = w * (a @ a @ w)
  np.testing.assert_allclose(got, want - min(want.min(), 0), atol=1e-4 * np.abs(want).max())
  assert got.min() == 0
  _, masks = jl.pruning.sparsify(params, 0.5, score=grasp, context=gradient_flow(objective, params), select='.',
                         allocate=global_(normalize=False))  # fmt: skip
  live = np.concatenate([np.asarray(masks['u']).reshape(-1), masks['v']])
  assert set(np.flatnonzero(live)) == set(np.argsort(want)[-6:])
  with pytest.raises(ValueError, match='a tree like params'):
    grasp(params, None)
