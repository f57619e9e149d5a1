"""Batch norm: Flax's numbers, statistics and derivatives, in both modes of differentiation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.models.norm import BatchNorm

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def pair(x, **options):
  mine, flax = BatchNorm(use_running_average=False, **options), nn.BatchNorm(use_running_average=False, **options)
  variables = flax.init(KEY, x)
  assert jax.tree.structure(variables) == jax.tree.structure(mine.init(KEY, x))
  width = x.shape[-1]
  params = {'scale': jnp.linspace(-1, 2, width), 'bias': jnp.linspace(0, 1, width)}
  return mine, flax, {**variables, 'params': params}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
  'shape, momentum, epsilon',
  [((6, 5, 4, 3), 0.9, 1e-5), ((7, 2), 0.5, 1e-2), ((1, 9, 1), 0.9, 1e-2), ((2, 3, 2, 2, 5), 0.5, 1e-5)],
  ids=str,
)
def test_values_statistics_and_gradients_are_those_of_flax(shape, momentum, epsilon):
  x = jnp.asarray(RNG.normal(0.5, 2, size=shape), jnp.float32)
  mine, flax, variables = pair(x, momentum=momentum, epsilon=epsilon)
  up = jnp.asarray(RNG.normal(size=shape), jnp.float32)

  def loss(module):
    def run(params, x):
      y, new = module.apply({**variables, 'params': params}, x, mutable='batch_stats')
      return (y * up).sum(), (y, new)

    return jax.grad(run, (0, 1), has_aux=True)(variables['params'], x)

  for one, other in zip(jax.tree.leaves(loss(mine)), jax.tree.leaves(loss(flax)), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=3e-5)


def test_forward_mode_agrees_with_flax_and_second_derivatives_exist():
  x = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)
  mine, flax, variables = pair(x)
  dx = jnp.asarray(RNG.normal(size=x.shape), jnp.float32)

  def run(module):
    return lambda x: module.apply(variables, x, mutable='batch_stats')[0]

  np.testing.assert_allclose(*(jax.jvp(run(one), (x,), (dx,))[1] for one in (mine, flax)), rtol=1e-4, atol=1e-5)

  def twice(module):
    return jax.jvp(jax.grad(lambda x: (run(module)(x) ** 3).sum()), (x,), (dx,))[1]

  np.testing.assert_allclose(twice(mine), twice(flax), rtol=1e-3, atol=1e-3)


def test_the_running_statistics_serve_in_evaluation_and_half_precision_is_summed_in_single():
  x = jnp.asarray(RNG.normal(3, 1, size=(64, 4)), jnp.bfloat16)
  mine, flax, variables = pair(x, momentum=0.9, dtype=jnp.bfloat16)
  found = [one.apply(variables, x, mutable='batch_stats') for one in (mine, flax)]
  assert found[0][0].dtype == jnp.bfloat16
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), found[0][1], found[1][1])
  still = [kind(use_running_average=True).apply({**variables, **found[1][1]}, x) for kind in (BatchNorm, nn.BatchNorm)]
  np.testing.assert_allclose(still[0].astype(np.float32), still[1].astype(np.float32), rtol=2e-2, atol=1e-2)
