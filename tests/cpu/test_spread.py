"""Weight gradients of transposed convolutions: XLA's values in every form, and a form wherever one is due."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxlite.cpu import spread
from jaxlite.cpu.replace import for_cpu, sites
from jaxlite.cpu.site import XLA_FORM
from jaxlite.graph.walk import equations

LAYOUTS = {
  1: (('NWC', 'WIO', 'NWC'), ('NCW', 'OIW', 'NCW')),
  2: (('NHWC', 'HWIO', 'NHWC'), ('NCHW', 'OIHW', 'NCHW'), ('NCHW', 'HWIO', 'NHWC')),
  3: (('NDHWC', 'DHWIO', 'NDHWC'),),
}


def case(rng):
  """A random transposed convolution and its operands."""
  axes = int(rng.choice([1, 2, 2, 3]))
  layout = LAYOUTS[axes][rng.integers(len(LAYOUTS[axes]))]

  def each(low, high):
    return dict(zip('DHW'[-axes:], map(int, rng.integers(low, high, axes)), strict=True))

  sizes = {'N': int(rng.integers(1, 10)), 'C': int(rng.choice([1, 3, 16, 17])), **each(1, 12 if axes < 3 else 6)}
  weights = {'I': sizes['C'], 'O': int(rng.choice([1, 3, 8, 33])), **each(1, 5 if axes < 3 else 4)}
  steps = tuple(map(int, rng.integers(1, 4, axes)))
  apart = tuple(map(int, rng.choice([1, 1, 2], axes)))
  room = ['SAME', 'VALID', [tuple(map(int, rng.integers(0, 4, 2))) for _ in range(axes)]][rng.integers(3)]

  def conv(x, w):
    return lax.conv_transpose(x, w, steps, room, rhs_dilation=apart, dimension_numbers=layout)

  x, w = (rng.normal(size=[known[axis] for axis in spec]) for known, spec in ((sizes, layout[0]), (weights, layout[1])))
  return conv, x.astype(np.float32), w.astype(np.float32)


def gradient(conv):
  def run(x, w):
    out, back = jax.vjp(lambda w: conv(x, w), w)
    return back(jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))[0]

  return run


def convolutions_of(fn, *args):
  program = jax.make_jaxpr(fn)(*args).jaxpr
  return [eqn for eqn in equations(program) if eqn.primitive.name == 'conv_general_dilated']


@pytest.mark.parametrize('seed', [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))])
def test_every_form_gives_what_xla_gives(seed):
  rng, met = np.random.default_rng(seed), 0
  for _ in range(20):
    conv, x, w = case(rng)
    if 0 in jax.eval_shape(conv, x, w).shape:
      continue
    of = gradient(conv)
    for eqn in convolutions_of(of, x, w):
      turned = spread.exchanged(eqn)
      if turned is None:
        continue
      met += 1
      operands = [jnp.asarray(rng.normal(size=atom.aval.shape), atom.aval.dtype) for atom in eqn.invars]
      wanted = eqn.primitive.bind(*operands, **eqn.params)
      found = spread.restored(eqn, lambda *given: turned.primitive.bind(*given, **turned.params))(*operands)  # noqa: B023
      np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * float(jnp.abs(wanted).max()))
    program = jax.make_jaxpr(of)(x, w)
    wanted = jax.jit(of)(x, w)
    for site in sites(program).values():
      for name in site.forms:
        found = for_cpu(of, {site.key: name})(x, w)
        top = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * top, err_msg=f'{name} {site.key}')
  assert met > 5


@pytest.mark.parametrize(
  ('channels', 'dtype'), [*itertools.product([(1, 8), (16, 3), (32, 32)], ['float32', 'bfloat16'])]
)
@pytest.mark.parametrize('looped', [False, True])
def test_a_gradient_of_some_size_has_a_form_in_a_loop_and_outside(channels, dtype, looped):
  x, w = jnp.ones((16, 14, 14, channels[0]), dtype), jnp.ones((3, 3, *channels), dtype)
  of = gradient(lambda x, w: lax.conv_transpose(x, w, (2, 2), 'SAME'))
  many = lambda x, w: lax.scan(lambda _, x: (None, of(x, w)), None, jnp.stack([x, x]))[1]  # noqa: E731
  found = [one for one in sites(jax.make_jaxpr(many if looped else of)(x, w)).values() if 'gradient' in one.kind]
  assert len(found) == 1 or dtype == 'bfloat16'  # which has none without a kernel
  assert all(one.default != XLA_FORM and one.looped == looped for one in found)


def test_what_is_no_such_gradient_is_left_as_it_is():
  x, w = jnp.ones((4, 8, 8, 6)), jnp.ones((3, 3, 6, 8))
  grouped = gradient(
    lambda x, w: lax.conv_general_dilated(
      x, w, (1, 1), [(1, 1), (1, 1)], (2, 2), dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=2
    )
  )
  strided = gradient(
    lambda x, w: lax.conv_general_dilated(x, w, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  )
  both = gradient(
    lambda x, w: lax.conv_general_dilated(
      x, w, (3, 3), [(1, 1), (1, 1)], (2, 2), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
  )
  for of, shape in ((grouped, (3, 3, 3, 8)), (strided, w.shape), (both, w.shape)):
    found = convolutions_of(of, x, jnp.ones(shape))
    assert found
    assert all(spread.exchanged(eqn) is None for eqn in found)


def test_dtypes_without_forms_and_open_batches_keep_their_own():
  of = gradient(lambda x, w: lax.conv_transpose(x, w, (2, 2), 'SAME'))
  x, w = jnp.ones((8, 9, 9, 16)), jnp.ones((3, 3, 16, 24))
  half = jax.make_jaxpr(of)(x.astype('float16'), w.astype('float16'))
  assert [one for one in sites(half).values() if 'gradient' in one.kind] == []
  shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape('b,9,9,16'), x.dtype)
  exported = jax.export.export(jax.jit(for_cpu(of)))(shape, jax.ShapeDtypeStruct(w.shape, w.dtype))
  wanted = of(x, w)
  np.testing.assert_allclose(exported.call(x, w), wanted, rtol=0, atol=1e-5 * float(jnp.abs(wanted).max()))
