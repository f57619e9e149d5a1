"""The law of convolutions on CPU: every form gives plain JAX's numbers, and the same bits again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.cpu.kernels import choose
from jaxlite.cpu.replace import MARK, for_cpu, sites


@pytest.fixture(autouse=True)
def without_onednn(monkeypatch):
  """What holds without the extra; with it, test_onednn.py."""
  monkeypatch.setattr(choose, 'forms', lambda *_: {})


LAYOUTS = {'NHWC': ('NHWC', 'HWIO', 'NHWC'), 'NCHW': ('NCHW', 'OIHW', 'NCHW'), 'mixed': ('NHWC', 'OIHW', 'NCHW')}


def convolution(strides=(1, 1), padding='SAME', dilation=(1, 1), groups=1, layout='NHWC', spread=(1, 1)):
  def run(x, w):
    return jax.lax.conv_general_dilated(
      x,
      w,
      strides,
      padding,
      lhs_dilation=spread,
      rhs_dilation=dilation,
      dimension_numbers=LAYOUTS[layout],
      feature_group_count=groups,
    )

  return run


def operands(rng, batch, size, channels, kernel, features, groups=1, layout='NHWC'):
  x = rng.standard_normal((batch, *size, channels)).astype(np.float32)
  w = rng.standard_normal((*kernel, channels // groups, features)).astype(np.float32)
  x = x.transpose(0, 3, 1, 2) if layout == 'NCHW' else x
  w = w if layout == 'NHWC' else w.transpose(3, 2, 0, 1)
  return jnp.asarray(x), jnp.asarray(w)


def all_of(conv, x, w):
  """Value and both gradients under one cotangent, outside a loop and inside one."""
  shape = jax.eval_shape(conv, x, w)
  cotangent = jax.random.normal(jax.random.key(0), shape.shape, shape.dtype)

  def outside(x, w):
    y, back = jax.vjp(conv, x, w)
    return y, *back(cotangent)

  def inside(x, w):
    return jax.lax.scan(lambda _, x: (None, outside(x, w)), None, jnp.stack([x, x]))[1]

  return outside, inside


def check(conv, x, w, *, say=''):
  outside, inside = all_of(conv, x, w)
  wanted = jax.jit(outside)(x, w)
  program, looped = jax.make_jaxpr(outside)(x, w), jax.make_jaxpr(inside)(x, w)
  found = {**sites(program), **sites(looped)}
  forward = sites(jax.make_jaxpr(conv)(x, w))
  for form in sorted({name for site in found.values() for name in site.forms}):
    choices = {key: form for key, site in found.items() if form in site.forms}
    for fn, jaxpr, lead in ((outside, program, ()), (inside, looped, (0,))):
      if not set(sites(jaxpr)) & set(choices):
        continue
      # What has no such form would else take the one that its shape asks for.
      choices |= {key: 'xla' for key, site in found.items() if not site.looped and form not in site.forms}
      ours = for_cpu(fn, choices)
      got, again = ours(x, w), ours(x, w)
      for one, other, twice in zip(wanted, got, again, strict=True):
        np.testing.assert_array_equal(other, twice)
        top = float(jnp.abs(one).max())
        np.testing.assert_allclose(other[lead], one, rtol=0, atol=1e-5 * top, err_msg=f'{form} {lead} {say}')
      if not lead and not any(form in site.forms for site in forward.values()):
        np.testing.assert_array_equal(got[0], wanted[0])  # XLA's own bits
  return found


def default_of(found, which):
  return next(site.default for key, site in found.items() if key.startswith(which) and 'loop' not in key)


CASES = {
  'few channels': (
    {},
    {'batch': 17, 'size': (6, 7), 'channels': 1, 'kernel': (3, 3), 'features': 16},
    'channels_first',
  ),
  'chunks': ({}, {'batch': 17, 'size': (6, 5), 'channels': 32, 'kernel': (3, 2), 'features': 3}, 'chunks'),
  'one by one, strided': (
    {'strides': (2, 2), 'padding': 'VALID'},
    {'batch': 9, 'size': (12, 14), 'channels': 8, 'kernel': (1, 1), 'features': 32},
    'gemm',
  ),
  'grouped': (
    {'groups': 2, 'strides': (2, 1)},
    {'batch': 16, 'size': (12, 10), 'channels': 6, 'kernel': (3, 3), 'features': 4},
    'groups',
  ),
  'depthwise, two features each': (
    {'groups': 3, 'strides': (2, 2)},
    {'batch': 32, 'size': (14, 12), 'channels': 3, 'kernel': (3, 3), 'features': 6},
    'examples',
  ),
  'depthwise, few examples': (
    {'groups': 3, 'strides': (2, 2)},
    {'batch': 7, 'size': (40, 36), 'channels': 3, 'kernel': (3, 3), 'features': 6},
    'gemm',
  ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize('name', CASES)
def test_every_form_gives_plain_numbers_and_the_same_bits_again(name):
  given, sizes, default = CASES[name]
  x, w = operands(np.random.default_rng(0), groups=given.get('groups', 1), **sizes)
  found = check(convolution(**given), x, w)
  assert default_of(found, 'weight gradient') == default


def random_case(seed):
  rng = np.random.default_rng(seed)
  layout = str(rng.choice(list(LAYOUTS)))
  groups = int(rng.choice([1, 1, 1, 2, 3]))
  channels = groups * int(rng.integers(1, 4)) if groups > 1 else int(rng.choice([1, 2, 3, 33]))
  kernel, dilation = rng.integers(1, 4, 2), rng.integers(1, 3, 2)
  size = (kernel - 1) * dilation + 1 + rng.integers(0, 6, 2)
  pads = [tuple(map(int, rng.integers(0, 3, 2))) for _ in range(2)]
  padding = ['SAME', 'VALID', pads][int(rng.integers(3))]
  spread = tuple(map(int, rng.integers(1, 3, 2))) if padding == pads else (1, 1)
  given = {
    'strides': tuple(map(int, rng.integers(1, 4, 2))),
    'padding': padding,
    'dilation': tuple(map(int, dilation)),
    'groups': groups,
    'layout': layout,
    'spread': spread,
  }
  x, w = operands(
    rng,
    int(rng.choice([1, 2, 5, 16, 19])),
    tuple(map(int, size)),
    channels,
    tuple(map(int, kernel)),
    groups * int(rng.integers(1, 4)),
    groups,
    layout,
  )
  return given, x, w


def check_random(seeds):
  for seed in seeds:
    given, x, w = random_case(seed)
    check(convolution(**given), x, w, say=f'seed {seed}: {given} {x.shape} {w.shape}')


def test_random_convolutions():
  check_random(range(1))


@pytest.mark.slow
def test_five_hundred_random_convolutions():
  check_random(range(500))


def test_what_is_tiny_keeps_its_native_bits_in_a_loop_too():
  x, w = operands(np.random.default_rng(0), 2, (4, 4), 3, (3, 3), 4)
  for fn in all_of(convolution(), x, w):
    assert {site.default for site in sites(jax.make_jaxpr(fn)(x, w)).values()} == {'xla'}


def test_a_loop_keeps_no_native_convolution_and_an_empty_batch_keeps_all():
  x, w = operands(np.random.default_rng(0), 8, (6, 6), 3, (3, 3), 16)
  _, inside = all_of(convolution(), x, w)
  before = jax.make_jaxpr(inside)(x, w)
  assert len(sites(before)) == 3
  assert jax.jit(for_cpu(inside)).lower(x, w).as_text().count('stablehlo.convolution') == 0
  empty = jnp.zeros((0, *x.shape[1:]))
  outside, _ = all_of(convolution(), empty, w)
  assert not sites(jax.make_jaxpr(outside)(empty, w))
  assert not np.any(for_cpu(outside)(empty, w)[2])


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision_stays_native(dtype):
  x, w = operands(np.random.default_rng(0), 16, (5, 5), 32, (3, 3), 4)
  outside, inside = all_of(convolution(), x.astype(dtype), w.astype(dtype))
  for fn in (outside, inside):
    assert not sites(jax.make_jaxpr(fn)(x.astype(dtype), w.astype(dtype)))


@pytest.mark.parametrize(
  ('numbers', 'x', 'w'),
  [
    (('NWC', 'WIO', 'NWC'), (3, 9, 2), (3, 2, 4)),
    pytest.param(('NDHWC', 'DHWIO', 'NDHWC'), (2, 3, 4, 3, 2), (2, 2, 3, 2, 3), marks=pytest.mark.slow),
  ],
)
def test_one_and_three_dimensions(numbers, x, w):
  rng = np.random.default_rng(0)
  x, w = (rng.normal(size=shape).astype(np.float32) for shape in (x, w))

  def conv(x, w):
    return jax.lax.conv_general_dilated(x, w, (1,) * (x.ndim - 2), 'SAME', dimension_numbers=numbers)

  _, inside = all_of(conv, x, w)
  forms = {key: next(iter(site.forms)) for key, site in sites(jax.make_jaxpr(inside)(x, w)).items()}
  assert len(forms) == 3
  ours = for_cpu(inside, forms)(x, w)
  for one, other in zip(jax.jit(inside)(x, w), ours, strict=True):
    np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * float(jnp.abs(one).max()))


def test_the_memory_of_patches_is_bounded():
  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 64, 64, 16), (5, 5, 16, 16))]

  def inside(x, w):
    return jax.lax.scan(lambda _, x: (None, jax.grad(lambda w: convolution()(x, w).sum())(w)), None, jnp.stack([x, x]))[
      1
    ]

  for site in sites(jax.make_jaxpr(inside)(*shapes)).values():
    assert set(site.forms) == {'gemm'}


def test_only_the_program_for_cpu_is_marked():
  x, w = operands(np.random.default_rng(0), 16, (5, 5), 32, (3, 3), 4)
  outside, _ = all_of(convolution(), x, w)
  for platform in ('cpu', 'cuda', 'tpu'):
    text = jax.export.export(jax.jit(for_cpu(outside)), platforms=[platform])(x, w).mlir_module()
    assert (MARK in text) == (platform == 'cpu')
