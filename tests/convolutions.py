"""A convolution's three products as equations, for tests of what stands in for them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def products(conv, x, w, dy):
  """The three convolution equations of a forward pass with both gradients, with their operands and results."""

  def all_three(x, w, dy):
    y, back = jax.vjp(conv, x, w)
    return y, *back(dy)

  jaxpr = jax.make_jaxpr(all_three)(x, w, dy).jaxpr
  env = dict(zip(jaxpr.invars, (x, w, dy), strict=True))
  for eqn in jaxpr.eqns:
    operands = [env[atom] for atom in eqn.invars]
    out = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    env.update(zip(eqn.outvars, out if eqn.primitive.multiple_results else [out], strict=True))
    if eqn.primitive.name == 'conv_general_dilated':
      yield eqn, operands, out


def lives_in_transforms(conv, form, x, w):
  """Checks that a form of a convolution works under jit, scan, vmap, remat and grad."""
  want = np.asarray(conv(x, w))

  def again(carry, w):
    return carry, form(x, w)

  _, many = jax.jit(lambda w: lax.scan(again, 0, jnp.stack([w, 2 * w])))(w)
  np.testing.assert_allclose(many[1], 2 * want, rtol=1e-5, atol=1e-4)
  np.testing.assert_allclose(jax.vmap(form, (None, 0))(x, jnp.stack([w, w]))[1], want, rtol=1e-5, atol=1e-5)
  slope = jax.grad(lambda w: (jax.checkpoint(form)(x, w) ** 2).sum())(w)
  np.testing.assert_allclose(slope, jax.grad(lambda w: (conv(x, w) ** 2).sum())(w), rtol=1e-4, atol=1e-3)
