"""A held value: the same bits and derivatives, written out on CPU and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.cpu.fusion import held
from jaxlite.models import max_pool

MARK = 'jaxlite_cpu_held'


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', 'int32', 'uint8', 'bool'])
def test_every_bit_stays(dtype):
  entries = [-0.0, 0.0, np.nan, np.inf, -np.inf, 1e-40, 3.5] if 'float' in dtype else [0, 1, 5]
  x = jnp.asarray(entries, dtype)
  for run in (held, jax.jit(held), jax.vmap(held), lambda x: jax.jit(jax.vmap(held))(x[None])[0]):
    assert np.asarray(run(x)).tobytes() == np.asarray(x).tobytes()


def test_derivatives_pass_through_of_any_order_and_direction():
  x = jnp.linspace(-2, 2, 5)
  cube = lambda x: (held(x) ** 3).sum()  # noqa: E731
  np.testing.assert_array_equal(jax.grad(cube)(x), 3 * x**2)
  np.testing.assert_array_equal(jnp.diag(jax.hessian(cube)(x)), 6 * x)
  np.testing.assert_array_equal(jax.grad(jax.checkpoint(cube))(x), 3 * x**2)
  np.testing.assert_array_equal(jax.jvp(held, (x,), (2 * x,))[1], 2 * x)


def test_the_program_for_cpu_computes_it_once_and_others_hold_nothing():
  fn = jax.jit(lambda x: jnp.sin(held(jnp.exp(x))[:, None] * jnp.arange(3.0)))
  x = jnp.ones(50)
  program = fn.lower(x).compile().as_text()
  assert program.count('exponential(') == 1
  assert MARK in program
  for platform in ('cuda', 'tpu'):
    assert MARK not in jax.export.export(fn, platforms=[platform])(x).mlir_module()


def test_a_pool_holds_its_winners_and_its_value():
  fn = jax.jit(jax.grad(lambda x: (max_pool(x) ** 2).sum()))
  x = jnp.ones((2, 4, 4, 3))
  assert fn.lower(x).as_text().count(f'call @{MARK}') >= 2
  for platform in ('cuda', 'tpu'):
    assert MARK not in jax.export.export(fn, platforms=[platform])(x).mlir_module()
