"""What each part of a recipe adds to a step, by hand."""

import jax.numpy as jnp
import optax
import pytest

import jaxlite as jl
from jaxlite.planning.parts import added

pytestmark = pytest.mark.unoptimized


def network():
  params = {'one': jnp.full((6, 5), 0.1), 'two': jnp.full((5, 4), 0.1)}
  return jl.from_function(lambda p, x: jnp.tanh(x @ p['one']) @ p['two'], params)


BATCH = {'inputs': jnp.ones((8, 6)), 'labels': jnp.zeros(8, int)}
WEIGHTS = 6 * 5 + 5 * 4


def told(*parts):
  return {one.part.lower(): one for one in added(network(), jl.cross_entropy, jl.chain(*parts), BATCH)}


def test_an_optimizer_adds_its_state_and_its_arithmetic():
  found = told(optax.adam(1e-3))
  (adam,) = (one for name, one in found.items() if 'adam' in name)
  assert adam.state == pytest.approx(2 * 4 * WEIGHTS, abs=16)  # two moments, and a counter
  assert 8 * WEIGHTS < adam.flops < 20 * WEIGHTS
  plain = told(optax.sgd(1e-3))
  assert sum(one.state for one in plain.values()) == plain['the model'].state


def test_a_teacher_adds_its_forward_pass():
  weights = {'a': jnp.ones((6, 50)), 'b': jnp.ones((50, 4))}
  teacher = jl.Network(jl.from_function(lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], weights), weights, {})
  found = told(jl.distill(teacher), optax.sgd(0.1))
  products = 2 * 8 * (6 * 50 + 50 * 4)
  assert products < found['distill'].flops < 1.5 * products
  assert found['distill'].state == pytest.approx(4 * (6 * 50 + 50 * 4), abs=64)


def test_fake_quantization_adds_work_and_pruning_its_masks():
  found = told(jl.fake_quant(bits=8), optax.sgd(0.1), jl.prune(sparsity=0.5, begin=0, end=4, every=2))
  assert found['fake_quant'].flops > 2 * WEIGHTS
  assert found['prune'].flops > 0
  assert found['prune'].state >= WEIGHTS / 8
  assert all(not one.why_not for one in found.values())


def test_frozen_weights_save_their_gradient():
  found = told(jl.freeze('one'), optax.sgd(0.1))
  assert found['freeze'].flops < 0


def test_the_model_is_what_is_left():
  found = told(optax.sgd(0.1))
  products = 2 * 8 * 6 * 5 * 2 + 2 * 8 * 5 * 4 * 3
  assert products < found['the model'].flops < 1.6 * products
  assert found['the model'].state == pytest.approx(4 * WEIGHTS, abs=64)
