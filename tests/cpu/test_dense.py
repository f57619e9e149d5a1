"""Matrix products by oneDNN: NumPy's values whatever the axes, the gradient of a dense layer the right way round."""

import platform
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxlite as jl
from contractions import product_of, random_contraction
from jaxlite.cpu import dense
from jaxlite.cpu.kernels import choose, onednn
from jaxlite.cpu.replace import for_cpu
from jaxlite.cpu.site import Where

HERE = platform.system() == 'Linux' and platform.machine() == 'x86_64'


def installed():
  """The extra is a wheel for Linux on x86-64: there its absence is a mistake, not a reason to skip."""
  if not HERE:
    pytest.skip('the extra has no wheel for this platform')
  assert onednn.missing() == ''


def check(seed, count):
  rng, taken = np.random.default_rng(seed), 0
  for _ in range(count):
    fn, arrays, want = random_contraction(rng)
    for form in choose.forms(product_of(fn, *arrays)).values():
      found = np.asarray(form(*arrays))
      scale = max(float(np.abs(want).max()), 1e-6)
      np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * scale)
      np.testing.assert_array_equal(np.asarray(form(*arrays)), found)
      taken += 1
  return taken


def test_values_are_those_of_numpy_whatever_the_axes():
  installed()
  assert check(0, 60) > 20


@pytest.mark.slow
def test_values_are_those_of_numpy_in_500_cases():
  installed()
  assert check(1, 500) > 200


@pytest.mark.parametrize(
  'spec, shapes',
  [('bti,bto->io', [(4, 128, 96), (4, 128, 160)]), ('bqhd,bkhd->bhqk', [(8, 64, 4, 32)] * 2)],
  ids=['weights', 'attention'],
)
def test_large_ones_too(spec, shapes):
  installed()
  rng = np.random.default_rng(0)
  arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
  eqn = product_of(lambda x, y: lax.dot_general(x, y, numbers(spec)), *arrays)
  (form,) = choose.forms(eqn).values()
  want = np.einsum(spec, *(x.astype(np.float64) for x in arrays))
  np.testing.assert_allclose(form(*arrays), want, rtol=0, atol=1e-5 * np.abs(want).max())


def numbers(spec):
  names, out = spec.split('->')[0].split(','), spec.split('->')[1]
  shared = [letter for letter in names[0] if letter in names[1] and letter in out]
  summed = [letter for letter in names[0] if letter in names[1] and letter not in out]
  return tuple(tuple([name.index(letter) for letter in group] for name in names) for group in (summed, shared))


def network(width=1024):
  params = {'w': np.random.default_rng(0).normal(size=(width, 256)).astype(np.float32) / 32, 'b': np.zeros(256)}
  return params, lambda p, x: jnp.tanh(x @ p['w'] + p['b'])


def test_a_dense_layer_trains_alike_and_its_gradient_is_not_turned_round():
  installed()
  params, apply = network()
  x = np.random.default_rng(1).normal(size=(8, 16, 1024)).astype(np.float32)
  slope = jax.grad(lambda p, x: (apply(p, x) ** 2).sum())
  run = jax.jit(for_cpu(slope))
  program = run.lower(params, x).compile().as_text()
  assert len(set(re.findall(r'jaxlite_cpu_onednn_\d+_turned', program))) == 1
  assert not re.search(r'f32\[(1024,256|256,1024)\][^=]* transpose\(', program)
  assert not re.search(r'f32\[(1024,256|256,1024)\]\S* fusion', program)
  for one, other in zip(jax.tree.leaves(run(params, x)), jax.tree.leaves(jax.jit(slope)(params, x)), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(jnp.abs(other).max()))


def test_it_lives_in_scans_and_under_jit_vmap_remat_and_a_second_derivative():
  installed()
  params, apply = network()
  x = np.random.default_rng(1).normal(size=(3, 128, 1024)).astype(np.float32)

  def loss(p, x):
    return (jax.checkpoint(apply)(p, x) ** 2).mean()

  def along(p, xs):
    return lax.scan(lambda p, x: (jax.tree.map(lambda a, b: a - b, p, jax.grad(loss)(p, x)), loss(p, x)), p, xs)

  def curved(p, xs):
    return jax.jvp(lambda p: jax.grad(loss)(p, xs[0]), (p,), (p,))[1]

  def many(p, xs):
    return jax.vmap(jax.grad(loss), (None, 0))(p, xs)

  for fn in (along, curved, many):
    found, want = jax.jit(for_cpu(fn))(params, x), jax.jit(fn)(params, x)
    assert 'onednn' in jax.jit(for_cpu(fn)).lower(params, x).as_text()
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
      np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * float(jnp.abs(other).max()))
  slope = jax.grad(lambda p: for_cpu(lambda p: jax.grad(loss)(p, x[0])['w'].sum())(p))
  want = jax.grad(lambda p: jax.grad(loss)(p, x[0])['w'].sum())(params)['w']
  np.testing.assert_allclose(slope(params)['w'], want, rtol=0, atol=2e-5 * float(jnp.abs(want).max()))


def test_what_it_cannot_do_or_would_not_gain_is_left_alone():
  ones = jnp.ones
  for fn, operands in (
    (jnp.matmul, (ones((64, 1024), jnp.float16), ones((1024, 512), jnp.float16))),
    (jnp.matmul, (ones((64, 1024), jnp.int8), ones((1024, 512), jnp.int8))),
    (jnp.matmul, (ones((0, 1024)), ones((1024, 512)))),
    (lambda x, y: jnp.matmul(x, y, precision='BF16_BF16_F32'), (ones((64, 1024)), ones((1024, 512)))),
    (lambda x, y: lax.dot_general(x, y, (((0, 2), (1, 0)), ((), ()))), (ones((4, 5, 6)), ones((6, 4, 7)))),
  ):
    assert choose.forms(product_of(fn, *operands)) == {}
  small = product_of(jnp.matmul, ones((8, 8)), ones((8, 8)))
  assert dense.site(small, Where()) is None
  large = product_of(jnp.matmul, ones((64, 1024)), ones((1024, 512)))
  assert dense.site(large, Where(apart=True)) is None
  assert not HERE or dense.site(large, Where()) is not None


def test_only_a_product_that_is_read_turned_round_and_nothing_else_is_made_so():
  x, y = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
  for fn, count in (
    (lambda x, y: lax.transpose(x @ y, (2, 0, 1)), 1),
    (lambda x, y: lax.transpose(x @ y, (1, 0, 2)), 0),
    (lambda x, y: lax.transpose(x @ y, (2, 1, 0)), 0),
    (lambda x, y: (lambda z: (lax.transpose(z, (2, 0, 1)), z.sum()))(x @ y), 0),
    (lambda x, y: (lambda z: (lax.transpose(z, (2, 0, 1)), z))(x @ y), 0),
    (lambda x, y: lax.transpose(jnp.einsum('abc,abd->acd', x, x), (1, 2, 0)), 0),
  ):
    assert len(dense.turned(jax.make_jaxpr(fn)(x, y).jaxpr)) == count


def test_a_teacher_keeps_the_bits_of_xla_and_evaluation_does_not():
  installed()
  rng = np.random.default_rng(0)

  def wide(features):
    weights = {'w': rng.normal(size=(1024, features)).astype(np.float32), 'd': np.ones((features, 4), np.float32)}
    return jl.from_function(lambda p, x: jnp.tanh(x @ p['w']) @ p['d'], weights)

  batch = {'inputs': rng.normal(size=(64, 1024)).astype(np.float32), 'labels': np.arange(64) % 4}
  teacher = jl.Network(wide(768), *wide(768).init(jax.random.key(0), batch['inputs']))
  train = jl.train_step(wide(512), jl.cross_entropy, jl.chain(jl.distill(teacher), optax.sgd(0.1)))
  state = train.init(jax.random.key(0), batch)
  text = jax.jit(train.step).lower(state, batch).as_text()
  assert re.search(r'onednn_\d+_matmul_\d+__64_1024_512_', text)
  assert '_768_' not in text
  assert re.search(r'onednn_\d+_matmul_\d+__64_1024_512_', jax.jit(train.eval).lower(state, batch).as_text())


def test_a_step_for_other_platforms_holds_none():
  installed()
  params, apply = network()
  x = np.ones((128, 1024), np.float32)
  slope = for_cpu(jax.grad(lambda p, x: apply(p, x).sum()))
  for platforms in (['cuda'], ['tpu']):
    text = jax.export.export(jax.jit(slope), platforms=platforms)(params, x).mlir_module()
    assert 'onednn' not in text
    assert 'dot_general' in text
