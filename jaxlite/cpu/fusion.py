"""A value that XLA:CPU computes once.

XLA fuses a cheap producer into every reader and computes it again there, for every entry that is read. Where each entry
is read several times, or the producer has taken in a convolution, that costs more than a pass over memory; and an
`optimization_barrier` is gone before fusion. A call that may not be inlined stays.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata


@jax.custom_jvp
def held(x: jax.Array) -> jax.Array:
  """Returns the same array; in programs for CPU it is written out once, and its readers read it.

  Args:
    x: integers or floats, any shape.

  >>> held(jnp.arange(3)).tolist()
  [0, 1, 2]
  """
  return lax.platform_dependent(x, cpu=_call, default=lambda x: x)


@held.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
  return held(*primals), *tangents


@jax.jit
def jaxlite_cpu_held(x: jax.Array) -> jax.Array:
  """Every bit as it was, by something to do: a call of nothing would be left out."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return x | jnp.zeros((), x.dtype)
  bits = lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}')
  return lax.bitcast_convert_type(bits | jnp.zeros((), bits.dtype), x.dtype)


def alone(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Returns the same function as a call of its own, for what stands in programs for CPU alone: it reads its operands as
  arrays, each computed once, and writes its result out once.

  Args:
    fn: of arrays.

  >>> alone(jnp.negative)(jnp.arange(3)).tolist()
  [0, -1, -2]
  """

  def jaxlite_cpu_alone(*operands: jax.Array) -> jax.Array:
    return fn(*operands)

  called = jax.jit(jaxlite_cpu_alone)

  def run(*operands: jax.Array) -> jax.Array:
    with set_xla_metadata(inlineable='false'):
      return called(*operands)

  return run


def _call(x: jax.Array) -> jax.Array:
  with set_xla_metadata(inlineable='false'):
    return jaxlite_cpu_held(x)
