"""Floats between integers by kernels: chains, sums over axes and products give what JAX gives, and NaN stays NaN."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.cpu.kernels import integers
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from jaxlite.deployment.running import kernels as engine
from jaxlite.deployment.running.kernel_forms import formed
from jaxlite.deployment.running.runner import runner

pytestmark = pytest.mark.skipif(bool(integers.missing()), reason='needs a C compiler')

W = np.random.default_rng(7).normal(size=(6, 20)).astype(np.float32)


def _norm(x):
  centered = x - x.mean(-1, keepdims=True)
  return centered / jnp.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * W[0] + W[1]


def _attention(x):
  q, k, v = (jnp.swapaxes((x * W[i]).reshape(-1, 6, 4, 5), 1, 2) for i in range(3))
  return jnp.swapaxes(jax.nn.softmax(q @ jnp.swapaxes(k, 2, 3)) @ v, 1, 2)


def _fused(x):
  qkv = jnp.stack([x * W[i] for i in range(3)], 2).reshape(-1, 6, 3, 4, 5).transpose(2, 0, 1, 3, 4)
  return jnp.einsum('bqhd,bkhd->bhqk', qkv[0], qkv[1]) + jnp.einsum('bqhd,bkhd->bhqk', qkv[1], qkv[2])


def _mixed(x):
  q, k, v = ((x * W[i]).reshape(-1, 6, 4, 5) for i in range(3))
  shares = jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k))
  return jnp.einsum('bhqk,bkhd->bqhd', shares, v)


CASES = {
  'gelu': lambda x: jax.nn.gelu(x * W),
  'every function': lambda x: (
    jnp.tanh(x) + jnp.exp(-jnp.abs(x)) - jax.nn.sigmoid(x) / (jnp.sqrt(x**2) + jax.lax.rsqrt(x**2 + 1))
  ),
  'powers': lambda x: x**3 - x**4 + 1 / (x**2 + 1) + (x**2 + 1) ** -2,
  'extremes': lambda x: jnp.clip(jnp.maximum(x, W) - jnp.minimum(x, 0.5), -1, 1.5),
  'a norm': _norm,
  'softmax': lambda x: jax.nn.softmax(3 * x),
  'sums': lambda x: jnp.concatenate([x.sum(1), x.max(1), x.mean(1)], -1) + x.max((1, 2), keepdims=True)[:, 0],
  'attention': _attention,
  'attention over axes as they lie': _mixed,
  'a fused projection': _fused,
}


def _run(fn, x):
  graph = formed(recognized(lower(lambda p, x: fn(x), {}, x)))
  pieces = engine.parted(graph)
  assert [piece.by_kernels for piece in pieces] == [True]
  return np.asarray(jax.jit(engine.network(pieces[0].graph))(x)[0])


@pytest.mark.sampled(6)
@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('batch', [1, 7])
def test_floats_are_those_of_jax_up_to_rounding(name, batch):
  x = np.random.default_rng(batch).normal(0, 2, (batch, 6, 20)).astype(np.float32)
  want = np.asarray(CASES[name](jnp.asarray(x)))
  np.testing.assert_allclose(_run(CASES[name], x), want, rtol=3e-6, atol=3e-6 * np.abs(want).max())


def test_functions_are_right_to_a_few_units_over_all_floats():
  x = np.concatenate([np.linspace(-100, 100, 60_001), np.geomspace(1e-30, 1, 59_999)]).astype(np.float32)
  x = np.stack([x, -x]).reshape(2, 6, 20_000)
  for fn in (jnp.exp, jnp.tanh, jax.nn.sigmoid):
    want = np.asarray(fn(x.astype(np.float64)), np.float64)
    got = _run(fn, x)
    normal = np.abs(want) > 1e-37  # below, all or nothing
    np.testing.assert_allclose(got[normal], want[normal], rtol=1e-6)
    assert (np.abs(got[~normal]) <= 2e-37).all()


def test_what_is_not_finite_stays_so():
  x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0] * 4, np.float32).reshape(1, 1, 20)
  for fn in (jnp.exp, jnp.tanh, jax.nn.sigmoid, jnp.square, lambda x: jnp.maximum(x, 0.0), lambda x: 1 / x, jnp.sqrt):
    np.testing.assert_array_equal(_run(fn, x), np.asarray(fn(jnp.asarray(x))))


def test_long_chains_and_many_operands_are_cut():
  def fn(x):
    parts = [jnp.tanh(x + index) * W[index % 6] for index in range(30)]
    return sum(part * other for part, other in zip(parts, parts[::-1], strict=True))

  x = np.random.default_rng(0).normal(size=(3, 6, 20)).astype(np.float32)
  np.testing.assert_allclose(_run(fn, x), fn(jnp.asarray(x)), rtol=1e-5, atol=1e-5)


def test_a_network_with_what_kernels_lack_runs_by_both():
  fn = lambda p, x: jax.nn.softmax(jnp.cumsum(jnp.tanh(x) @ W[:, :6], 1))  # noqa: E731
  x = np.random.default_rng(0).normal(size=(5, 3, 6)).astype(np.float32)
  graph = recognized(lower(fn, {}, x))
  np.testing.assert_allclose(jax.jit(runner(graph))(x), fn({}, x), rtol=1e-5, atol=1e-6)


def test_damaged_plans_of_floats_are_refused_or_harmless():
  graph = engine.parted(formed(recognized(lower(lambda p, x: _attention(_norm(x)), {}, np.zeros((1, 6, 20))))))[0].graph
  plan, weights = engine.planned(graph)
  lib = integers.compiler.load('integers', tuned=True)
  x, found = np.zeros((2, 6, 20), np.float32), [np.zeros(1 << 20, np.int8)]
  assert integers.run(lib, plan, weights, [x], found) == 0
  rng, refused = np.random.default_rng(0), 0
  numbers = [-1, 0, 1, 2, 7, 255, 1 << 20, 1 << 31, 1 << 62, -(1 << 62)]
  for _ in range(2_000):
    other, changed = plan.copy(), weights.copy()
    other[rng.integers(8 + 3 * plan[6], len(plan))] = rng.choice(numbers)  # steps
    at = rng.integers(0, len(weights) // 4)
    changed.view(np.int32)[at] = rng.choice([-1, 0, 3, 5, 21, 99, 1 << 30, -(1 << 31)])  # instructions among them
    refused += integers.run(lib, other, changed, [x], found) == 1
  assert refused > 300
