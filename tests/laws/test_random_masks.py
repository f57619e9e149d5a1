"""Straight-through masks, one threshold for all and int8 arithmetic on random networks: see `test_random_models`."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
import random_models
from jaxlite import trees
from jaxlite.pruning import global_
from random_case import KEY, Case
from random_expected import SPARSITY, erk_shares, expected_element, float64, in_leaf, rms

pytestmark = pytest.mark.unoptimized


def check_straight(case):
  if not case.says(lambda: jl.prune(SPARSITY).init(case.params, case.weights)):
    return
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', '.*not masked: a zero')
    check_masked(case)


def check_masked(case):
  """`straight_through` and one threshold for all: which weights live, what the forward sees, what the gradient is."""
  model = jl.pruning.straight_through(SPARSITY).model(case.model)
  part = jl.prune(SPARSITY, allocate=global_())
  project = lambda outputs: jnp.sum(jnp.sin(jnp.asarray(outputs, jnp.float32)))  # noqa: E731

  @jax.jit
  def everything(params, inputs):
    own, state = model.init(KEY, inputs)
    out = lambda own: model.apply(own, state, inputs, train=True, key=KEY, step=0)[0]  # noqa: E731
    masked, _ = model.export(own, state)
    plain = lambda params: case.model.apply(params, case.model.init(KEY, inputs)[1], inputs, train=True, key=KEY)[0]  # noqa: E731
    return (
      *(masked, out(own), jax.grad(lambda own: project(out(own)))(own)),
      jax.grad(lambda masked: project(plain(masked)))(masked),
      part.update(params, part.init(params, case.weights), params)[0],
    )

  masked, out, slope, expected_slope, threshold = everything(case.params, case.net.inputs)
  shares, live = erk_shares({path: case.leaves[path] for path in case.masked}, case.masked), {}
  for path, leaf in trees.by_path(masked).items():
    whole = float64(trees.by_path(case.params)[path])
    if path in case.masked:
      keep = in_leaf(expected_element(case.leaves[path], case.facts[path], shares[path]), whole, case.facts[path])
      whole = np.where(keep, whole, 0)
    np.testing.assert_array_equal(float64(leaf), whole, err_msg=path)
  expected = random_models.run(case.net, random_models.exact, masked)
  assert rms(float64(out) - expected) < (0.05 if case.low else 1e-4) * max(rms(expected), 1e-2)
  for path, leaf in trees.by_path(slope).items():
    wanted = float64(trees.by_path(expected_slope)[path])
    np.testing.assert_allclose(
      float64(leaf), wanted, rtol=1e-2 if case.low else 1e-4, atol=(1e-2 if case.low else 1e-4) * (rms(wanted) + 1e-3)
    )
  for path, leaf in trees.by_path(optax.apply_updates(case.params, threshold)).items():
    if path in case.masked:
      live[path] = float64(leaf).ravel() != 0
  sizes = {path: np.abs(case.leaves[path]).ravel() for path in live}
  lives, size = np.concatenate([*live.values()]), np.concatenate([sizes[path] for path in live])
  assert lives.sum() == lives.size - round(lives.size * SPARSITY)
  assert size[lives].min() >= size[~lives].max()


def check_real(case):
  """int8 operands into int32, in place of float32 that holds integers: the same bits."""

  @jax.jit
  def both(params, inputs):
    return [jl.quantize(case.net.apply, real=real)(params, inputs) for real in (False, True)]

  fake, real = both(case.params, case.net.inputs)
  np.testing.assert_array_equal(float64(fake), float64(real))


@pytest.mark.parametrize('seed', [2, 203, 212])
def test_random_models(seed):
  case = Case(seed)
  check_straight(case)
  check_real(case)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(0, 240, 2))
def test_120_random_models(seed):
  case = Case(seed)
  check_straight(case)
  check_real(case)
