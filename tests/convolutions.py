"""A convolution's three products as equations, for tests of what stands in for them."""

import functools

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


def random_convolution(rng):
  """A random convolution over one to three axes, its operands and the gradient of its result."""
  axes, groups = int(rng.choice([1, 2, 2, 3])), int(rng.choice([1, 1, 1, 2, 4]))
  channels, features = groups * int(rng.integers(1, 5)), groups * int(rng.integers(1, 6))
  batch, size, kernel = int(rng.integers(1, 7)), rng.integers(5, 12, axes), rng.integers(1, 4, axes)
  strides, dilation = (tuple(int(n) for n in rng.integers(1, top, axes)) for top in (4, 3))
  padding = ['SAME', 'VALID', [(1, 0), (0, 2), (1, 1)][:axes]][rng.integers(3)]
  first = rng.random() < 0.3  # channels before the other axes
  space = 'DHW'[-axes:]
  layout = (f'NC{space}', f'OI{space}', f'NC{space}') if first else (f'N{space}C', f'{space}IO', f'N{space}C')
  x, w = rng.normal(size=(batch, *size, channels)), rng.normal(size=(*kernel, channels // groups, features))
  if first:
    x, w = np.moveaxis(x, -1, 1), np.moveaxis(w, (-1, -2), (0, 1))
  conv = functools.partial(
    lax.conv_general_dilated,
    window_strides=strides,
    padding=padding,
    rhs_dilation=dilation,
    dimension_numbers=layout,
    feature_group_count=groups,
  )
  x, w = x.astype(np.float32), w.astype(np.float32)
  shape = jax.eval_shape(conv, x, w).shape
  return conv, (x, w, rng.normal(size=shape).astype(np.float32))
