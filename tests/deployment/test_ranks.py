"""Laws of order in a list of operations, and of loops whose length is known: each file answers as JAX does."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from jax import lax

from jaxlite.cpu.kernels.compiler import compiler
from jaxlite.deployment.c import check as c_check
from jaxlite.deployment.c.source import c_source
from jaxlite.deployment.onnx.file import onnx_bytes
from jaxlite.deployment.operations import ranks, reference
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from lists import agree, floats

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)


def everywhere(fn, params, x):
  """What every form of a list answers, by what."""
  graph = recognized(lower(fn, params, x[:1]))
  session = onnxruntime.InferenceSession(onnx_bytes(graph), providers=['CPUExecutionProvider'])
  ran = c_check.run(c_source(graph), graph, {'input': x}, [compiler(), '-std=c99', '-O1'])
  return {'numpy': reference.run(graph, x), 'onnx': session.run(None, {'input': x}), 'c': ran.results}


def tied(*shape):
  """Few different values, infinities, both zeros and what is no number among them."""
  return RNG.choice(np.float32([-np.inf, -1, -0.0, 0.0, 2, 2.5, np.inf, np.nan]), size=shape)


@pytest.mark.parametrize('dtype', ['float32', 'int32'])
def test_ranks_are_the_order_that_jax_gives(dtype):
  for size in (1, 2, 9):
    with np.errstate(all='ignore'):
      x = tied(40, size, 3) if dtype == 'float32' else RNG.integers(-3, 3, (40, size, 3)).astype(dtype)
    for k in {1, size}:
      for got, want in zip(ranks.top_k(x, k, 1), lax.top_k(x, k, axis=1), strict=True):
        np.testing.assert_array_equal(got, want)
    others = [jnp.broadcast_to(jnp.arange(size)[:, None], x.shape), x > 0]
    wanted = lax.sort((x, *others), dimension=1, num_keys=1)
    for got, want in zip(ranks.sorted_by(x, others, 1), wanted, strict=True):
      np.testing.assert_array_equal(got, want)
      assert got.dtype == want.dtype


def test_experts_that_are_chosen_by_their_scores_are_written():
  """The largest few of each example, of which a mask may leave too few."""

  def fn(p, x):
    scores = jnp.where(x @ p['gate'] > 0, x @ p['gate'], -jnp.inf)
    values, which = lax.top_k(scores, 2)
    mixed = (jax.nn.one_hot(which, 4) * jax.nn.softmax(jnp.maximum(values, -1e9))[..., None]).sum(-2)
    return jnp.einsum('be,bd,edo->bo', mixed, x, p['experts']), which, jnp.argsort(-x)

  params = {'gate': floats(6, 4), 'experts': floats(4, 6, 3)}
  x = floats(50, 6)
  for what, found in everywhere(fn, params, x).items():
    wanted = fn(params, x)
    agree(found[0], wanted[0])
    for got, want in zip(found[1:], wanted[1:], strict=True):
      np.testing.assert_array_equal(got, want, err_msg=what)


def test_a_long_order_is_refused_by_its_name():
  with pytest.raises(ValueError, match='top_k at an equation top_k is none'):
    lower(lambda p, x: lax.top_k(x, 2)[0], {}, floats(2, ranks.MOST + 1))
  with pytest.raises(ValueError, match=f'more than {ranks.MOST} entries sorted by another array'):
    lower(lambda p, x: jnp.argsort(x), {}, floats(2, ranks.MOST + 1))


def test_a_loop_whose_length_constants_say_is_written_out():
  w = floats(3, 3)

  def fn(p, x):
    def more(c):
      return (c[0] < 5) & (c[1] < 100.0)

    def once(c):
      return c[0] + 1, c[1] * 3, jnp.tanh(c[2] @ p)

    count, _, y = lax.while_loop(more, once, (0, 1.0, x))
    return y, x + count

  x = floats(7, 3)
  for found in everywhere(fn, w, x).values():
    for got, want in zip(found, fn(w, x), strict=True):
      agree(got, want)
  with pytest.raises(ValueError, match='up to 256 iterations; one of more at an equation while'):
    lower(lambda p, x: lax.while_loop(lambda c: c[0] < 999, lambda c: (c[0] + 1, c[1] * 0.5), (0, x))[1], {}, x)


WHOLE = {
  'quotients': lambda p, x: (lax.div(x[:, :4], x[:, 4:]), lax.rem(x[:, :4], x[:, 4:])),
  'python': lambda p, x: (x[:, :4] // x[:, 4:], x[:, :4] % x[:, 4:]),
  'known': lambda p, x: (x // 3, x % 3, x // -1, lax.div(x, jnp.zeros_like(x))),
}


@pytest.mark.parametrize('name', WHOLE)
def test_whole_numbers_are_divided_as_jax_divides_them(name):
  """By 0 and by -1 too, where a processor ends the program."""
  info = np.iinfo(np.int32)
  sides = np.array([0, 1, -1, 2, -3, 7, info.min, info.max], np.int32)
  x = np.stack([RNG.choice(sides, 8) for _ in range(60)])
  wanted = jax.jit(WHOLE[name])({}, x)
  for what, found in everywhere(WHOLE[name], {}, x).items():
    for got, want in zip(found, wanted, strict=True):
      np.testing.assert_array_equal(got, want, err_msg=what)


def test_what_is_small_stays_exact():
  """log(1 + x) and exp(x) - 1 of numbers that 1 + x loses; ONNX has no word for either."""
  sides = [np.logspace(-30, 1, 60), -np.logspace(-30, -0.1, 60), [0, np.inf, np.nan, -1]]
  x = np.concatenate(sides).astype(np.float32)[:, None]

  def fn(p, x):
    return jnp.log1p(x), jnp.expm1(x), jnp.log(jax.nn.softplus(-jnp.abs(x) * 4))

  for what, found in everywhere(fn, {}, x).items():
    for got, want in zip(found, fn({}, x), strict=True):
      np.testing.assert_allclose(got, want, rtol=3e-6, err_msg=what)


def test_a_sum_over_no_axis_is_what_it_sums():
  """Which ONNX takes for all axes."""
  for fn in (lambda p, x: jnp.sum(x, axis=()) * 2, lambda p, x: jnp.max(x, axis=()) + 1):
    x = floats(3, 4, 5)
    for found in everywhere(fn, {}, x).values():
      agree(found[0] if isinstance(found, (tuple, list)) else found, fn({}, x))


OWN = {
  'the last that is there': lambda p, d: jnp.take_along_axis(d['x'], d['n'][:, :1, None], 1)[:, 0],
  'one by one': lambda p, d: jnp.take_along_axis(d['x'][..., 0], d['n'], 1),
  'of each channel': lambda p, d: jnp.take_along_axis(d['x'], jnp.stack([d['n']] * 3, -1), 1),
  'along the last axis': lambda p, d: (
    jnp.take_along_axis(d['x'], d['n'][:, :, None] % 3, -1)
    if d['x'].shape[1] == d['n'].shape[1]
    else jnp.take_along_axis(d['x'][:, :2], d['n'][:, :, None] % 3, -1)
  ),
  'mapped': lambda p, d: jax.vmap(lambda row, n: row[n])(d['x'], d['n'][:, 0]),
  'truth values': lambda p, d: jnp.take_along_axis(d['x'][..., 0] > 0, d['n'], 1),
  'clipped': lambda p, d: jnp.take_along_axis(d['x'][..., 0], d['n'], 1, mode='clip'),
}


@pytest.mark.parametrize('name', OWN)
def test_each_example_may_look_up_in_its_own_table(name):
  d = {'n': RNG.integers(-9, 9, (40, 2)).astype(np.int32), 'x': floats(40, 5, 3)}
  d['n'][::3] %= 5
  d['x'][1, 0] = np.nan
  fn = OWN[name]
  graph = recognized(lower(fn, {}, jax.tree.map(lambda leaf: leaf[:1], d)))
  named = {f'input/{key}': value for key, value in d.items()}
  session = onnxruntime.InferenceSession(onnx_bytes(graph), providers=['CPUExecutionProvider'])
  ran = c_check.run(c_source(graph), graph, named, [compiler(), '-std=c99', '-O1'])
  for found in (reference.run(graph, named), session.run(None, named)[0], ran.results[0]):
    np.testing.assert_array_equal(found, fn({}, d))


def test_what_is_put_between_entries_is_put_there_everywhere():
  """As `associative_scan` does, and with edges that are cut."""
  x = floats(3, 4, 5)
  config = ((0, 0, 0), (1, -2, 2), (-1, 2, 1))
  fns = [
    lambda p, x: lax.pad(x, jnp.float32(7), config),
    lambda p, x: lax.associative_scan(lambda a, b: a * 0.5 + b, x, axis=1),
  ]
  for fn in fns:
    for found in everywhere(fn, {}, x).values():
      agree(found[0] if isinstance(found, (tuple, list)) else found, fn({}, x))
