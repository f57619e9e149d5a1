"""Products of bfloat16: summed in float32 and rounded once, by whichever kernel is here."""

import concurrent.futures
import functools
import platform

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxlite as jl
from contractions import product_of, random_contraction
from convolutions import products, random_convolution
from jaxlite.cpu.kernels import choose, compiler, direct, match, onednn
from jaxlite.models import SmallCNN

HALF = jnp.bfloat16
pytestmark = pytest.mark.unoptimized

WAYS = ('units', 'float32', 'direct')


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
  """The processor's units; a processor without them; a machine without oneDNN."""
  if compiler.compiler() is None:
    pytest.skip('this machine has no C compiler')
  if request.param != 'direct':
    if not (platform.system() == 'Linux' and platform.machine() == 'x86_64'):
      pytest.skip('the extra has no wheel for this platform')
    assert onednn.missing() == ''  # there its absence is a mistake
    if request.param == 'units' and onednn.missing('bfloat16'):
      pytest.skip(f'this processor multiplies no bfloat16: {onednn.missing("bfloat16")}')
  if request.param == 'float32':
    monkeypatch.setattr(onednn, 'missing', lambda dtype='float32': 'taken away' if dtype == 'bfloat16' else '')
  if request.param == 'direct':
    assert direct.missing() == ''
    monkeypatch.setattr(onednn, 'missing', lambda dtype='float32': 'taken away')
  return request.param


def check(found, want):
  """Within half a step of bfloat16, and what sums in another order differ by."""
  want = np.asarray(want, np.float64)
  near = 2**-8 * np.abs(want) + 2e-5 * max(float(np.abs(want).max()), 1e-6)
  assert (np.abs(np.asarray(found, np.float64) - want) <= near).all()


def convolutions(seed, count):
  rng, kinds = np.random.default_rng(seed), set()
  for _ in range(count):
    conv, arrays = random_convolution(rng)
    halves = [jnp.asarray(array, HALF) for array in arrays]
    for eqn, operands, _ in products(conv, *halves):
      for form in choose.forms(eqn).values():
        found = form(*operands)
        assert found.dtype == HALF
        want = eqn.primitive.bind(
          *(lax.convert_element_type(one, jnp.float32) for one in operands),
          **{**eqn.primitive.get_bind_params(eqn.params), 'preferred_element_type': jnp.float32},
        )
        check(found, want)
        np.testing.assert_array_equal(np.asarray(form(*operands)), np.asarray(found))
        kinds.add(match.recognized(eqn)[0])
  return kinds


def test_a_convolution_and_its_gradients_are_those_of_float32_rounded_once(way):
  assert convolutions(0, 4) == {'forward', 'weight', 'input'}


@pytest.mark.slow
def test_200_convolutions_and_their_gradients(way):
  convolutions(1, 200)


@pytest.mark.parametrize('made', [None, jnp.float32])
def test_a_matrix_product_is_that_of_float32_rounded_once_or_not_at_all(way, made):
  rng, taken = np.random.default_rng(0), 0
  for _ in range(20):
    fn, arrays, _ = random_contraction(rng)
    halves = [jnp.asarray(array, HALF) for array in arrays]
    product = product_of(fn, *halves)
    whole = functools.partial(product.primitive.bind, **product.primitive.get_bind_params(product.params))
    asked = product_of(
      lambda x, y, whole=whole: whole(x, y, **({} if made is None else {'preferred_element_type': made})), *halves
    )
    want = whole(*(one.astype(jnp.float32) for one in halves), preferred_element_type=jnp.float32)
    for form in choose.forms(asked).values():
      found = form(*halves)
      assert found.dtype == (made or HALF)
      check(found, want)
      if made is not None:
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * max(float(jnp.abs(want).max()), 1e-6))
      taken += 1
  assert taken > 5 if way != 'direct' else taken == 0  # our own kernels are of convolutions


def test_many_threads_at_once_get_the_bits_of_one(way):
  x = jax.random.normal(jax.random.key(0), (8, 6, 6, 4)).astype(HALF)
  w = jax.random.normal(jax.random.key(1), (3, 3, 4, 5)).astype(HALF)
  conv = functools.partial(
    lax.conv_general_dilated, window_strides=(1, 1), padding='SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  (eqn,) = jax.make_jaxpr(conv)(x, w).jaxpr.eqns
  run = jax.jit(next(iter(choose.forms(eqn).values())))
  want = np.asarray(run(x, w)).tobytes()
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert set(pool.map(lambda _: np.asarray(run(x, w)).tobytes(), range(50))) == {want}


def test_a_network_in_bfloat16_learns_as_it_does_in_float32(way):
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 4, 64)
  inputs = rng.normal(size=(64, 8, 8, 1)).astype(np.float32) + (labels - 1.5)[:, None, None, None]
  batch = {'inputs': jnp.asarray(inputs), 'labels': jnp.asarray(labels)}
  losses = {}
  for dtype in (jnp.float32, HALF):
    model = SmallCNN(features=(8, 16), hidden=256, classes=4, dtype=dtype)
    train = jl.train_step(jl.from_linen(model), jl.cross_entropy, jl.chain(optax.adam(3e-3)))
    state = train.init(jax.random.key(0), batch)
    for _ in range(15):
      state, metrics = train.step(state, batch)
    losses[dtype] = float(metrics['loss'])
  assert losses[jnp.float32] < 0.7
  assert abs(losses[HALF] - losses[jnp.float32]) < 0.05


def test_a_run_in_bfloat16_times_its_products_and_trains(way, tmp_path, monkeypatch):
  """From an empty cache: what a train step of its own never asks for."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  rng = np.random.default_rng(0)
  config = jl.Config(name='half', train=jl.Duration(steps=3))
  config.data.batch_size, config.log.progress = 512, False
  model = jl.models.MLP((1024, 256), classes=3, dtype=HALF)
  said = []
  jl.train(
    config,
    tmp_path / 'run',
    model=model,
    data=(rng.random((1024, 64), np.float32), np.arange(1024) % 3),
    say=said.append,
  )
  assert any('timed now' in line for line in said if line.startswith('rewrites for CPU')) == (way != 'direct')
