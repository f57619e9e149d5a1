"""A value that XLA:CPU computes once.

XLA fuses a cheap producer into every reader and computes it again there, for every entry that is read. Where each entry
is read several times, or the producer has taken in a convolution, that costs more than a pass over memory; and an
`optimization_barrier` is gone before fusion. A call that may not be inlined stays.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata


def held(x: jax.Array) -> jax.Array:
  """Returns the same array; in programs for CPU it is written out once, and its readers read it.

  Args:
    x: integers, any shape.

  >>> held(jnp.arange(3)).tolist()
  [0, 1, 2]
  """
  return lax.platform_dependent(x, cpu=_call, default=lambda x: x)


@jax.jit
def _kept(x: jax.Array) -> jax.Array:
  return x | jnp.zeros((), x.dtype)  # a call of nothing would be left out


def _call(x: jax.Array) -> jax.Array:
  with set_xla_metadata(inlineable='false'):
    return _kept(x)
