"""Convolutions by our own kernels: XLA's values in every layout, the same bits on any threads, and a clean way back."""

import concurrent.futures
import ctypes
import functools
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from convolutions import lives_in_transforms, products
from jaxlite.cpu.kernels import choose, compiler, direct, match, onednn
from jaxlite.cpu.replace import for_cpu

# By the number of axes; of the last axes, D H W, as many as there are.
LAYOUTS = {
  1: (('NWC', 'WIO', 'NWC'), ('NCW', 'OIW', 'NCW')),
  2: (('NHWC', 'HWIO', 'NHWC'), ('NCHW', 'OIHW', 'NCHW'), ('NHWC', 'OHWI', 'NHWC'), ('NCHW', 'HWIO', 'NHWC')),
  3: (('NDHWC', 'DHWIO', 'NDHWC'), ('NCDHW', 'OIDHW', 'NCDHW')),
}


@pytest.fixture(autouse=True)
def without_onednn(monkeypatch):
  if compiler.compiler() is None:
    pytest.skip('this machine has no C compiler')
  monkeypatch.setattr(onednn, 'missing', lambda dtype='float32': 'taken away')
  assert direct.missing() == ''


def case(rng):
  """A random convolution, its operands and the gradient of its result."""
  axes = int(rng.choice([1, 2, 2, 3]))
  layout = LAYOUTS[axes][rng.integers(len(LAYOUTS[axes]))]

  def each(low, high):
    return dict(zip('DHW'[-axes:], map(int, rng.integers(low, high, axes)), strict=True))

  # Channels of a group on both sides of a vector's length and of a block's.
  groups = int(rng.choice([1, 1, 1, 2, 3]))
  channels, features = (
    groups * int(rng.choice(some))
    for some in ([1, 2, 3, 5, 8, 16, 17, 32, 33], [1, 2, 7, 8, 15, 16, 17, 40, 48, 64, 70, 100])
  )
  if rng.random() < 0.2:  # depthwise
    groups = channels = features = int(rng.choice([2, 15, 16, 40, 64]))
  sizes = {'N': int(rng.integers(1, 6)), 'C': channels, **each(1, 30 if axes < 3 else 9)}
  weights = {'I': channels // groups, 'O': features, **each(1, 6 if axes < 3 else 4)}
  conv = functools.partial(
    lax.conv_general_dilated,
    window_strides=tuple(map(int, rng.choice([1, 1, 2, 3], axes))),
    padding=['SAME', 'VALID', [tuple(map(int, rng.integers(0, 4, 2))) for _ in range(axes)]][rng.integers(3)],
    rhs_dilation=tuple(map(int, rng.choice([1, 1, 2, 3], axes))),
    dimension_numbers=layout,
    feature_group_count=groups,
  )
  x = rng.normal(size=[sizes[axis] for axis in layout[0]]).astype(np.float32)
  w = rng.normal(size=[weights[axis] for axis in layout[1]]).astype(np.float32)
  return conv, (x, w, rng.normal(size=jax.eval_shape(conv, x, w).shape).astype(np.float32))


def check(seed, count):
  rng, kinds = np.random.default_rng(seed), []
  for _ in range(count):
    conv, arrays = case(rng)
    if 0 in arrays[2].shape:
      continue
    for eqn, operands, xla in products(conv, *arrays):
      for name, form in choose.forms(eqn).items():
        assert name.startswith('direct')
        kinds.append(match.recognized(eqn)[0])
        found = np.asarray(form(*operands))
        scale = max(float(jnp.abs(xla).max()), 1e-6)
        np.testing.assert_allclose(found, xla, rtol=0, atol=1e-5 * scale, err_msg=str((kinds[-1], eqn.params)))
        np.testing.assert_array_equal(np.asarray(form(*operands)), found)
  return kinds


def test_values_and_gradients_are_those_of_xla():
  assert set(check(0, 12)) == {'forward', 'weight', 'input'}


@pytest.mark.slow
def test_values_and_gradients_are_those_of_xla_in_500_cases():
  kinds = check(1, 500)
  assert min(map(kinds.count, direct.KINDS)) > 150


def example(batch=8):
  x = np.random.default_rng(0).normal(size=(batch, 6, 6, 4)).astype(np.float32)
  w = np.random.default_rng(1).normal(size=(3, 3, 4, 24)).astype(np.float32)
  conv = functools.partial(
    lax.conv_general_dilated, window_strides=(1, 1), padding='SAME', dimension_numbers=LAYOUTS[2][0]
  )
  (eqn,) = jax.make_jaxpr(conv)(x, w).jaxpr.eqns
  return conv, next(iter(choose.forms(eqn).values())), x, w


def test_it_lives_in_scans_and_under_jit_vmap_and_remat():
  lives_in_transforms(*example())


def test_many_threads_at_once_get_the_bits_of_one():
  _, form, x, w = example()
  run = jax.jit(form)
  want = np.asarray(run(x, w)).tobytes()
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert set(pool.map(lambda _: np.asarray(run(x, w)).tobytes(), range(100))) == {want}


def test_a_picture_alone_has_the_bits_that_it_has_in_a_batch():
  _, _, x, w = example()
  _, one, _, _ = example(1)
  _, all_of_them, _, _ = example()
  np.testing.assert_array_equal(np.asarray(all_of_them(x, w))[3:4], one(x[3:4], w))


def test_infinities_and_nan_stay_where_they_are():
  conv, form, x, w = example()
  x[1, 2, 3, 0], x[2, 0, 0, 1] = np.nan, np.inf
  found, want = np.asarray(form(x, w)), np.asarray(conv(x, w))
  np.testing.assert_array_equal(np.isfinite(found), np.isfinite(want))


PROGRAM = """
import os
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{cores}])
import hashlib, jax, numpy as np
import jaxlite as jl
from jaxlite.cpu.kernels import choose, onednn
onednn.missing, choose.CHUNKS = lambda dtype='float32': 'taken away', 2
conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
rng = np.random.default_rng(0)
x, w = rng.normal(size=(8, 9, 9, 5)).astype('f'), rng.normal(size=(3, 3, 5, 20)).astype('f')
slope = jax.jit(jl.for_cpu(jax.grad(lambda x, w: (conv(x, w) ** 2).sum(), (0, 1))))
text = slope.lower(x, w).as_text()
assert text.count('custom_call @jaxlite_cpu_direct') == 3, text
print(hashlib.sha256(b''.join(np.asarray(leaf).tobytes() for leaf in slope(x, w))).hexdigest())
"""


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='cores are taken away by a call of Linux')
def test_one_core_gives_the_bits_of_two():
  bits = {
    subprocess.run(
      [sys.executable, '-c', PROGRAM.format(cores=cores)], capture_output=True, text=True, check=True
    ).stdout
    for cores in (1, min(2, os.cpu_count()))
  }
  assert len(bits) == 1


@pytest.mark.skipif(platform.machine() != 'x86_64', reason='these are the widths of this platform')
@pytest.mark.parametrize('flags', [('-mavx2', '-mfma', '-mno-avx512f'), ('-mavx', '-mno-avx2'), ('-msse2',)])
def test_narrower_vectors_give_the_same_numbers(flags, tmp_path):
  path = tmp_path / 'direct.so'
  source = Path(compiler.__file__).with_name('direct.c')
  include = f'-I{jax.ffi.include_dir()}'
  subprocess.run([compiler.compiler(), *compiler._FLAGS, *flags, include, str(source), '-o', str(path)], check=True)
  narrow = ctypes.CDLL(str(path)).jaxlite_product
  wide = compiler.load('direct', tuned=True).jaxlite_product
  rng = np.random.default_rng(0)
  for _ in range(8):
    conv, arrays = case(rng)
    if 0 in arrays[2].shape:
      continue
    for eqn, (one, other), xla in products(conv, *arrays):
      if not choose.forms(eqn):
        continue
      kind, geometry = match.recognized(eqn)
      if kind == 'input':  # as `kernels` turns the weights back
        other = lax.rev(other, eqn.params['dimension_numbers'].rhs_spec[2:])
      spec = direct.spec(kind, geometry, 1)
      results = []
      for product in (narrow, wide):
        held = [spec, np.asarray(one), np.asarray(other), np.full(xla.shape, np.nan, np.float32)]
        assert product(*(ctypes.c_void_p(array.ctypes.data) for array in held), None) == 0
        results.append(held[-1])
      scale = max(float(np.abs(results[1]).max()), 1e-6)
      np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-5 * scale)


def test_programs_for_other_platforms_hold_none():
  conv, _, x, w = example()
  slope = for_cpu(jax.grad(lambda x, w: (conv(x, w) ** 2).sum(), (0, 1)))
  assert 'jaxlite_cpu_direct' in jax.jit(slope).lower(x, w).as_text()
  for platform_of in ('cuda', 'tpu'):
    text = jax.export.export(jax.jit(slope), platforms=[platform_of])(x, w).mlir_module()
    assert 'jaxlite_cpu' not in text
    assert text.count('stablehlo.convolution') == 3


def test_groups_of_few_channels_and_other_dtypes_are_left_alone():
  ones = jnp.ones
  for x, w, groups in (
    (ones((1, 4, 4, 4)), ones((2, 2, 2, 4)), 2),
    (ones((1, 4, 4, 4), jnp.float16), ones((2, 2, 4, 6), jnp.float16), 1),
  ):
    conv = functools.partial(
      lax.conv_general_dilated,
      window_strides=(1, 1),
      padding='SAME',
      dimension_numbers=LAYOUTS[2][0],
      feature_group_count=groups,
    )
    (eqn,) = jax.make_jaxpr(conv)(x, w).jaxpr.eqns
    assert choose.forms(eqn) == {}


def test_a_program_of_another_version_is_refused_and_not_misread():
  shape = jax.ShapeDtypeStruct((1, 4, 4, 4), np.float32)
  call = jax.ffi.ffi_call(direct.TARGET, shape)
  x = np.ones((1, 4, 4, 4), np.float32)
  with pytest.raises(jax.errors.JaxRuntimeError, match='another version'):
    jax.block_until_ready(jax.jit(lambda x: call(x, x, spec=np.arange(3)))(x))
