"""Convolutions by oneDNN: XLA's values, on any threads, and a clean way back where it is missing."""

import concurrent.futures
import functools
import platform
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxlite as jl
from convolutions import lives_in_transforms, products, random_convolution
from jaxlite.cpu.kernels import choose, direct, match, onednn, onednn_c
from lacking import WITHOUT_EXTRA

LAYOUTS = (('NHWC', 'HWIO', 'NHWC'), ('NCHW', 'OIHW', 'NCHW'))
HERE = platform.system() == 'Linux' and platform.machine() == 'x86_64'


def installed():
  """The extra is a wheel for Linux on x86-64: there its absence is a mistake, not a reason to skip."""
  if not HERE:
    pytest.skip('the extra has no wheel for this platform')
  assert onednn.missing() == ''


def check(seed, count):
  rng, kinds = np.random.default_rng(seed), set()
  for _ in range(count):
    conv, arrays = random_convolution(rng)
    for eqn, operands, xla in products(conv, *arrays):
      for form in choose.forms(eqn).values():
        kind, _ = match.recognized(eqn)
        kinds.add(kind)
        found = np.asarray(form(*operands))
        scale = max(float(jnp.abs(xla).max()), 1e-6)
        np.testing.assert_allclose(found, xla, rtol=0, atol=1e-5 * scale, err_msg=str((kind, eqn.params)))
        np.testing.assert_array_equal(np.asarray(form(*operands)), found)
  return kinds


def test_values_and_gradients_are_those_of_xla():
  installed()
  assert check(0, 6) == {'forward', 'weight', 'input'}


@pytest.mark.slow
def test_values_and_gradients_are_those_of_xla_in_500_cases():
  installed()
  check(1, 500)


def test_where_channels_lie_apart_our_own_kernels_are_taken():
  installed()
  if direct.missing():
    pytest.skip(direct.missing())
  for layout, name in zip(LAYOUTS, ('onednn', 'direct'), strict=True):
    sizes, weights = {'N': 2, 'H': 9, 'W': 9, 'C': 5}, {'H': 3, 'W': 3, 'I': 5, 'O': 7}
    x = jnp.ones([sizes[axis] for axis in layout[0]])
    w = jnp.ones([weights[axis] for axis in layout[1]])
    conv = functools.partial(lax.conv_general_dilated, window_strides=(1, 1), padding='SAME', dimension_numbers=layout)
    for eqn, _, _ in products(conv, x, w, conv(x, w)):
      assert [*choose.forms(eqn)] == [f'{name}{choose.CHUNKS}']
      assert {*choose.forms(eqn)} <= {*choose.names()}


@pytest.mark.parametrize('side,kernel,stride', [(1, 3, 1), (2, 3, 1), (3, 5, 1), (5, 5, 2), (4, 7, 1), (6, 3, 2)])
def test_depthwise_gradients_have_a_kernel_however_small_the_picture(side, kernel, stride):
  """XLA takes a hundred times as long for them."""
  installed()
  rng = np.random.default_rng(0)
  x, w = rng.normal(size=(2, side, side, 16)), rng.normal(size=(kernel, kernel, 1, 16))
  conv = functools.partial(
    lax.conv_general_dilated,
    window_strides=(stride, stride),
    padding='SAME',
    dimension_numbers=LAYOUTS[0],
    feature_group_count=16,
  )
  x, w = x.astype(np.float32), w.astype(np.float32)
  found = {}
  for eqn, operands, xla in products(conv, x, w, np.asarray(conv(x, w))):
    (name,) = choose.forms(eqn)
    kind = match.recognized(eqn)[0]
    found.setdefault(kind, name.rstrip('0123456789'))
    np.testing.assert_allclose(choose.forms(eqn)[name](*operands), xla, rtol=1e-4, atol=1e-4)
  wide = 'direct' if kernel > 3 and not direct.missing() else 'onednn'
  assert found == {'forward': 'onednn', 'weight': wide, **({'input': 'onednn'} if stride > 1 else {})}


def example():
  x = np.random.default_rng(0).normal(size=(8, 6, 6, 4)).astype(np.float32)
  w = np.random.default_rng(1).normal(size=(3, 3, 4, 5)).astype(np.float32)
  conv = functools.partial(
    lax.conv_general_dilated, window_strides=(1, 1), padding='SAME', dimension_numbers=LAYOUTS[0]
  )
  (eqn,) = jax.make_jaxpr(conv)(x, w).jaxpr.eqns
  return conv, next(iter(choose.forms(eqn).values())), x, w


def test_it_lives_in_scans_and_under_jit_vmap_and_remat():
  installed()
  lives_in_transforms(*example())


def test_many_threads_at_once_get_the_bits_of_one():
  installed()
  _, form, x, w = example()
  run = jax.jit(form)
  want = np.asarray(run(x, w)).tobytes()
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert set(pool.map(lambda _: np.asarray(run(x, w)).tobytes(), range(100))) == {want}


def test_openmp_keeps_the_number_of_threads_of_the_caller():
  installed()
  _, form, x, w = example()
  before = onednn_c.openmp().omp_get_max_threads()
  jax.block_until_ready(form(x, w))
  assert onednn_c.openmp().omp_get_max_threads() == before


def test_without_the_extra_there_is_nothing_to_call_and_a_line_says_why():
  program = (
    WITHOUT_EXTRA
    + """
import jax, jax.numpy as jnp
from jaxlite.cpu.kernels import choose, onednn
x, w = jnp.ones((1, 1, 4, 4)), jnp.ones((1, 1, 2, 2))
eqn = jax.make_jaxpr(lambda x, w: jax.lax.conv(x, w, (1, 1), 'SAME'))(x, w).eqns[0]
assert not any(name.startswith('onednn') for name in choose.forms(eqn))
print(onednn.missing())
"""
  )
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  assert 'onednn' in done.stdout
  assert 'pip install' in done.stdout


def test_what_it_cannot_do_is_left_alone():
  ones = jnp.ones
  for x, w in (
    (ones((1, 2, 3, 3, 3, 3)), ones((2, 2, 2, 2, 2, 2))),
    (ones((1, 1, 4, 4), jnp.float16), ones((1, 1, 2, 2), jnp.float16)),
  ):
    (eqn,) = jax.make_jaxpr(lambda x, w: lax.conv(x, w, (1,) * (x.ndim - 2), 'SAME'))(x, w).jaxpr.eqns
    assert choose.forms(eqn) == {}


def test_a_teacher_keeps_the_bits_of_xla_and_evaluation_does_not_wait_for_one_core():
  installed()
  rng = np.random.default_rng(0)

  def network(features):
    weights = {'w': rng.normal(size=(3, 3, 6, features)).astype(np.float32), 'd': np.ones((features, 4), np.float32)}

    def apply(params, x):
      y = lax.conv_general_dilated(x, params['w'], (1, 1), 'SAME', dimension_numbers=LAYOUTS[0])
      return y.mean((1, 2)) @ params['d']

    return jl.from_function(apply, weights)

  batch = {'inputs': rng.normal(size=(4, 8, 8, 6)).astype(np.float32), 'labels': np.arange(4)}
  teacher = jl.Network(network(24), *network(24).init(jax.random.key(0), batch['inputs']))
  nested = jl.distill(jax.jit(lambda x: teacher.predict(x)), name='nested')  # a scope does not reach into its jit
  student = network(32)
  train = jl.train_step(student, jl.cross_entropy, jl.chain(jl.distill(teacher), nested, optax.sgd(0.1)))
  state = train.init(jax.random.key(0), batch)
  text = jax.jit(train.step).lower(state, batch).as_text()
  assert re.search(r'onednn_2_forward_\d+_4_6_32_', text)  # the network that learns: 6 channels to 32
  assert '_4_6_24_' not in text
  assert re.search(r'onednn_2_forward_\d+_4_6_32_', jax.jit(train.eval).lower(state, batch).as_text())
  plain = jl.train_step(student, jl.cross_entropy, jl.chain(optax.sgd(0.1)), rewrites=False)
  outputs, _ = plain.eval(plain.init(jax.random.key(0), batch), batch)
  np.testing.assert_allclose(train.eval(state, batch)[0], outputs, rtol=1e-5, atol=1e-5)
