"""What the tests of lists of operations share."""

import jax
import numpy as np

from networks import first_values

RNG = np.random.default_rng(0)


def floats(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def program(model, inputs, values=None):
  """The forward of a Model and its constants, with batch statistics that are not the first ones."""
  params, state = first_values(model, inputs[:1]) if values is None else values
  if values is None:
    moved = lambda leaf: leaf + RNG.uniform(-0.2, 0.3, leaf.shape).astype(leaf.dtype)  # noqa: E731
    state = jax.tree.map(moved, state)
  return lambda known, x: model.apply(*known, x, train=False, key=None)[0], (params, state)


def agree(found, wanted, rounding=1e-5):
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert one.shape == other.shape
    np.testing.assert_allclose(one, other, rtol=rounding, atol=rounding * (1 + np.abs(other).max(initial=0)))
