"""Through control flow of every kind the rewritten function is the one written out by hand, gradients too.

Each program takes the product to use for `x @ w` (and for a depthwise convolution): the float one, which is
rewritten, or a quantized one written out here, which is the reference.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxlite.quantization._quantize import coverage, observe, quantize
from simulated import sound_on

pytestmark = pytest.mark.unoptimized

D = 6


@jax.custom_jvp
def with_gradient_of(value, carrier):
  return value


@with_gradient_of.defjvp
def _(primals, tangents):
  return primals[0], tangents[1]


def by_hand(contract, axes):
  """Jacob et al.'s arithmetic for one product, its gradient that of the product of the dequantized."""

  def product(x, w):
    w_scale = jnp.max(jnp.abs(w), axis=axes, keepdims=True) * np.float32(1 / 127)
    w_scale = jnp.where(w_scale > 0, w_scale, 1)
    low, high = jnp.minimum(x.min(), 0), jnp.maximum(x.max(), 0)
    x_scale = (high * 0.5 - low * 0.5) * np.float32(2 / 255)
    x_scale = jnp.where(x_scale > 0, x_scale, 1)
    zero = jnp.clip(-128 + jnp.round(-low * (1 / x_scale)), -128, 127)
    x_steps = jnp.clip(jnp.round(x * (1 / x_scale)) + zero, -128, 127) - zero
    w_steps = jnp.round(w * (1 / w_scale))
    x_steps, x_scale, w_steps, w_scale = map(lax.stop_gradient, (x_steps, x_scale, w_steps, w_scale))
    value = contract(x_steps, w_steps) * (x_scale * w_scale.reshape(-1))
    through = contract(with_gradient_of(x_steps * x_scale, x), with_gradient_of(w_steps * w_scale, w))
    return with_gradient_of(value, through)

  return product


def dot(x, w):
  return x @ w


def depthwise(x, w):  # [B, D] as D channels at one point of time, kernel [3, 1, D]
  numbers = ('NWC', 'WIO', 'NWC')
  return lax.conv_general_dilated(
    x[:, None, :], w, (1,), 'SAME', dimension_numbers=numbers, feature_group_count=D
  ).reshape(x.shape)


FLOAT = (dot, depthwise)
BY_HAND = (by_hand(dot, 0), by_hand(depthwise, (0, 1)))


@jax.custom_vjp
def own_rule(x, w):
  return x @ w


own_rule.defvjp(lambda x, w: (x @ w, (x, w)), lambda res, g: (2 * g @ res[1].T, res[0].T @ g))


def layers(dot, p, x):
  return lax.scan(lambda c, q: (jnp.tanh(dot(c, q['w']) + q['b']), c.sum()), x, {'w': p['stack'], 'b': p['biases']})[0]


def unrolled(dot, p, x):
  for w, b in zip(p['stack'], p['biases'], strict=True):
    x = jnp.tanh(dot(x, w) + b)
  return x


BLOCKS = {
  'dense': lambda dot, conv, p, x: dot(x, p['w']) + p['b'],
  'masked': lambda dot, conv, p, x: dot(x, p['w'] * p['mask']),
  'transposed': lambda dot, conv, p, x: dot(x, p['v'].T),
  'reshaped': lambda dot, conv, p, x: dot(x, p['flat'].reshape(D, D)),
  'weight norm': lambda dot, conv, p, x: dot(x, p['v'] / jnp.linalg.norm(p['v'], axis=0) * p['g']),
  'low rank': lambda dot, conv, p, x: dot(x, p['w'] + p['down'] @ p['up']),
  'depthwise': lambda dot, conv, p, x: conv(x, p['kernel']),
  'relu': lambda dot, conv, p, x: jax.nn.relu(dot(x, p['w'])),
  'scaled': lambda dot, conv, p, x: dot(jnp.tanh(x * p['g']), p['v']),
  'residual': lambda dot, conv, p, x: x + dot(jax.nn.relu(x), p['w']),
  'attention': lambda dot, conv, p, x: jax.nn.softmax(dot(x, p['w']) @ dot(x, p['v']).T) @ x,
  'layers': lambda dot, conv, p, x: layers(dot, p, x),
  'layers backwards': lambda dot, conv, p, x: lax.scan(
    lambda c, w: (jnp.tanh(dot(c, w)), None), x, p['stack'], reverse=True
  )[0],
  'indexed layers': lambda dot, conv, p, x: lax.fori_loop(0, 3, lambda i, c: jnp.tanh(dot(c, p['stack'][i])), x),
  'recurrence': lambda dot, conv, p, x: lax.scan(lambda c, _: (jnp.tanh(dot(c, p['w'])), None), x, None, 3)[0],
  'cond': lambda dot, conv, p, x: lax.cond(
    x.sum() > 0, lambda x: dot(x, p['w']), lambda x: jnp.tanh(dot(x, p['v'])) + p['b'], x
  ),
  'branch without': lambda dot, conv, p, x: lax.cond(x.max() > 0, lambda x: dot(x, p['w']), lambda x: -x, x),
  'switch': lambda dot, conv, p, x: lax.switch(
    jnp.int32(jnp.abs(x[0, 0]) * 5) % 3, [lambda x: dot(x, p['w']), lambda x: dot(x, p['v']), jnp.tanh], x
  ),
  'remat': lambda dot, conv, p, x: jax.checkpoint(lambda x, w: jnp.tanh(dot(x, w)))(x, p['w']),
  'remat in scan': lambda dot, conv, p, x: lax.scan(
    jax.checkpoint(lambda c, w: (jnp.tanh(dot(c, w)), None)), x, p['stack']
  )[0],
  'jit': lambda dot, conv, p, x: jax.jit(lambda x, w: jax.jit(dot)(x, w) + 1)(x, p['w']),
  'cond in scan': lambda dot, conv, p, x: lax.scan(
    lambda c, w: (lax.cond(c[0, 0] > 0, lambda c: dot(c, w), lambda c: dot(-c, p['w']), c), None), x, p['stack']
  )[0],
  'scan in cond': lambda dot, conv, p, x: lax.cond(
    x.sum() > 0, lambda x: layers(dot, p, x), lambda x: dot(x, p['w']), x
  ),
  'scan in scan': lambda dot, conv, p, x: lax.scan(
    lambda c, w: lax.scan(lambda d, _: (jnp.tanh(dot(dot(d, w), p['w'])), None), c, None, 2), x, p['stack']
  )[0],
}
LOOPS = {  # reverse mode ends at a while
  'while': lambda dot, conv, p, x: lax.while_loop(
    lambda c: c[0] < 1 + jnp.int32(jnp.abs(x[0, 0]) * 10) % 4, lambda c: (c[0] + 1, jnp.tanh(dot(c[1], p['w']))), (0, x)
  )[1],
}


def parameters(rng):
  shapes = {
    'w': (D, D), 'v': (D, D), 'mask': (D, D), 'flat': (D * D,), 'b': (D,), 'g': (D,), 'down': (D, 2), 'up': (2, D),
    'kernel': (3, 1, D), 'stack': (3, D, D), 'biases': (3, D),
  }  # fmt: skip
  params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
  return {**params, 'mask': (params['mask'] > 0).astype(jnp.float32)}


def program(names, blocks):
  def fn(products, p, x):
    for name in names:
      x = blocks[name](*products, p, x)
    return x

  return fn


def check(fn, seed, gradients=True):
  rng = np.random.default_rng(seed)
  p, x = parameters(rng), rng.normal(size=(4, D)).astype(np.float32)
  ct = rng.normal(size=(4, D)).astype(np.float32)

  def value_and_gradients(fn):
    def both(p, x):
      if not gradients:
        return fn(p, x), None
      out, pull = jax.vjp(fn, p, x)
      return out, pull(ct)

    # What is tested is the rewriting: most of the compiler's time would go into optimizing.
    return jax.jit(both, compiler_options={'xla_backend_optimization_level': 0})(p, x)

  got = value_and_gradients(quantize(lambda p, x: fn(FLOAT, p, x)))
  want = value_and_gradients(lambda p, x: fn(BY_HAND, p, x))
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5 * max(1, np.abs(other).max()))


def test_a_while_loop_is_what_it_is_by_hand():
  check(program(['while'], LOOPS), 0, gradients=False)


def random_program(seed, longest):
  """Starts with each construct in turn; goes on at random."""
  rng = np.random.default_rng(1000 + seed)
  more = rng.choice(list(BLOCKS), size=rng.integers(0, longest))
  return [list(BLOCKS)[seed % len(BLOCKS)], *map(str, more)]


# Two constructs a program, so that each stands in one; a program costs seconds to trace and compile, twice.
PAIRS = np.random.default_rng(0).permutation(list(BLOCKS)).reshape(-1, 2).tolist()


@pytest.mark.sampled(5)
@pytest.mark.parametrize('pair', PAIRS, ids=', '.join)
def test_every_construct_is_what_it_is_by_hand(pair):
  check(program(pair, BLOCKS), len(pair[0]))


@pytest.mark.parametrize('seed', range(3))
def test_random_programs_are_what_they_are_by_hand(seed):
  check(program(random_program(seed, longest=4), BLOCKS), seed)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(100, 400))
def test_many_random_programs_are_what_they_are_by_hand(seed):
  check(program(random_program(seed, longest=6), BLOCKS), seed)


def inputs(seed=0):
  rng = np.random.default_rng(seed)
  return parameters(rng), rng.normal(size=(4, D)).astype(np.float32)


def test_a_scan_over_layers_is_the_unrolled_loop_with_a_range_for_each_layer():
  p, x = inputs()
  scanned, ranges = observe(lambda p, x: layers(dot, p, x))(p, x)
  looped, each = observe(lambda ws, x: unrolled(dot, {**p, 'stack': ws}, x))(list(p['stack']), x)
  assert ranges['stack'][0].shape == (3,)
  np.testing.assert_allclose(scanned, looped, atol=1e-6)
  np.testing.assert_allclose(ranges['stack'], np.stack([each[str(i)] for i in range(3)], axis=1), atol=1e-6)
  np.testing.assert_allclose(
    quantize(lambda p, x: layers(dot, p, x), ranges=ranges)(p, x),
    quantize(lambda ws, x: unrolled(dot, {**p, 'stack': ws}, x), ranges=each)(list(p['stack']), x),
    atol=1e-5,
  )


def test_a_weight_shared_by_all_iterations_has_the_range_of_all():
  p, x = inputs()
  values = [x]
  for _ in range(2):
    values.append(np.asarray(jnp.tanh(values[-1] @ p['w'])))
  for block in (BLOCKS['recurrence'], lambda dot, conv, p, x: lax.while_loop(
    lambda c: c[0] < x.shape[0] - 1, lambda c: (c[0] + 1, jnp.tanh(dot(c[1], p['w']))), (0, x))[1]):  # fmt: skip
    _, ranges = observe(lambda p, x, block=block: block(*FLOAT, p, x))(p, x)
    np.testing.assert_allclose(ranges['w'], (np.min(values), np.max(values)), atol=1e-6)


def test_a_branch_not_taken_is_not_seen():
  p, x = inputs()
  x = np.abs(x)
  _, ranges = observe(lambda p, x: BLOCKS['cond'](*FLOAT, p, x))(p, x)
  assert [float(end) for end in ranges['w']] == [x.min(), x.max()]
  assert [float(end) for end in ranges['v']] == [np.inf, -np.inf]


def test_a_custom_rule_keeps_its_gradient_and_gets_the_quantized_value():
  p, x = inputs()
  fn = lambda p, x: own_rule(x, p['w']).sum()  # noqa: E731
  value, gradient = jax.jit(jax.value_and_grad(quantize(fn)))(p, x)
  np.testing.assert_allclose(value, BY_HAND[0](x, p['w']).sum(), rtol=1e-5)
  np.testing.assert_array_equal(gradient['w'], jax.jit(jax.grad(fn))(p, x)['w'])
  (row,) = coverage(fn)(p, x)
  assert row.quantized
  assert 'own derivative rule' in row.why


def test_vmap_outside_gives_each_example_its_own_range_and_inside_one_to_all():
  p, x = inputs()
  outside = jax.jit(jax.vmap(quantize(lambda p, row: jax.jit(dot)(row, p['w'])), in_axes=(None, 0)))(p, x)
  np.testing.assert_allclose(outside, np.stack([BY_HAND[0](row[None], p['w'])[0] for row in x]), atol=1e-5)
  inside = jax.jit(quantize(lambda p, x: jax.vmap(lambda row: dot(row, p['w']))(x)))(p, x)
  np.testing.assert_allclose(inside, BY_HAND[0](x, p['w']), atol=1e-5)


def test_remat_and_scan_outside_change_nothing():
  p, x = inputs()
  fn = quantize(lambda p, x: layers(dot, p, x).sum())
  plain = jax.jit(jax.grad(fn))(p, x)
  again = jax.checkpoint(fn)
  scanned = jax.jit(lambda p, x: lax.scan(lambda c, _: (c, jax.grad(again)(p, x)), 0, None, length=2)[1])(p, x)
  for name in ('stack', 'biases'):
    np.testing.assert_allclose(plain[name], scanned[name][1], atol=1e-5)


def test_remat_stays_in_the_program():
  p, x = inputs()
  text = str(jax.make_jaxpr(quantize(lambda p, x: BLOCKS['remat'](*FLOAT, p, x)))(p, x))
  assert 'remat' in text or 'checkpoint' in text


def test_names_of_layers_stay_in_the_program():
  def fn(p, x):
    with jax.named_scope('the_layer'):
      return dot(x, p['w'])

  p, x = inputs()
  assert 'the_layer' in jax.jit(quantize(fn)).lower(p, x).as_text(debug_info=True)


def test_what_is_printed_is_still_printed(capfd):
  def fn(p, x):
    jax.debug.print('seen {}', x.shape[0])
    return dot(x, p['w'])

  p, x = inputs()
  jax.block_until_ready(jax.jit(quantize(fn))(p, x))
  jax.effects_barrier()
  assert capfd.readouterr().out == 'seen 4\n'


def test_a_platform_is_still_chosen_at_lowering():
  p, x = inputs()
  fn = quantize(lambda p, x: lax.platform_dependent(x, p['w'], cpu=dot, default=lambda x, w: jnp.sin(x @ w)))
  np.testing.assert_allclose(fn(p, x), BY_HAND[0](x, p['w']), atol=1e-5)
  assert 'sine' not in jax.jit(fn).lower(p, x).as_text()


def test_shards_share_one_range_and_control_flow_inside_them_works():
  source = """
    import jax, jax.numpy as jnp, numpy as np
    from jax import lax
    from jax.sharding import Mesh, PartitionSpec as P
    from jaxlite.quantization._quantize import quantize, observe

    mesh = Mesh(np.array(jax.devices()), ('d',))
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(4, 4)).astype('f'), rng.normal(size=(6, 4)).astype('f')
    plain = {
      'dense': lambda w, x: jnp.tanh(x @ w),
      'scan': lambda w, x: lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, 3)[0],
    }
    varied = {
      'while': lambda w, x: lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)), (0, x))[1],
      'cond': lambda w, x: lax.cond(x.sum() > 0, lambda x: x @ w, lambda x: -x, x),
    }
    for name, fn in {**plain, **varied}.items():
      for check in (True, False) if name == 'scan' else (True,):
        spread = jax.shard_map(fn, mesh=mesh, in_specs=(P(), P('d')), out_specs=P('d'), check_vma=check)
        got = jax.jit(quantize(spread))(w, x)
        _, ranges = jax.jit(observe(spread))(w, x)
        assert all(end.shape == () for end in ranges['arg0']), name
        if name in plain:
          np.testing.assert_allclose(got, quantize(fn)(w, x), atol=1e-5, err_msg=name)
          np.testing.assert_allclose(ranges['arg0'], observe(fn)(w, x)[1]['arg0'], atol=1e-6)
          if name == 'scan':
            gradients = [jax.jit(jax.grad(lambda w: quantize(f)(w, x).sum()))(w) for f in (spread, fn)]
            np.testing.assert_allclose(*gradients, atol=1e-4)
        else:
          np.testing.assert_allclose(got, fn(w, x) if name == 'while' else spread(w, x), atol=0.1, err_msg=name)
    print('sound', jax.device_count())
  """
  sound_on(2, source)
