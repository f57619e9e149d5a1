"""A weight is what depends on parameters only, wherever it meets an activation."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxlite.contract import Model
from jaxlite.graph import provenance
from jaxlite.graph.model import model_weights
from jaxlite.graph.provenance import contraction_weights

X = jax.ShapeDtypeStruct((2, 3), jnp.float32)


def p(**shapes):
  return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


SQUARE = {'w': (3, 3)}
CASES = {
  # name: (function, parameter shapes, the weights among them)
  'dense with bias': (lambda p, x: x @ p['w'] + p['b'], {**SQUARE, 'b': (3,)}, 'w'),
  'norm scale': (lambda p, x: (x * p['g']) @ p['w'], {**SQUARE, 'g': (3,)}, 'w'),
  'mask': (lambda p, x: x @ (p['w'] * p['m']), {**SQUARE, 'm': (3, 3)}, 'wm'),
  'transpose': (lambda p, x: x @ p['w'].T, SQUARE, 'w'),
  'reshape': (lambda p, x: x @ p['w'].reshape(3, 3), {'w': (9,)}, 'w'),
  'weight norm': (
    lambda p, x: x @ (p['v'] * p['g'] / jnp.linalg.norm(p['v'], axis=0)),
    {'v': (3, 3), 'g': (3,)},
    'v',
  ),
  'low rank': (lambda p, x: x @ (p['w'] + p['a'] @ p['b']), {**SQUARE, 'a': (3, 1), 'b': (1, 3)}, 'wab'),
  'constant mask': (lambda p, x: x @ (p['w'] * jnp.eye(3)), SQUARE, 'w'),
  'weight first': (lambda p, x: p['w'] @ x.T, SQUARE, 'w'),
  'einsum': (lambda p, x: jnp.einsum('bi,ohi->bho', x, p['w']), {'w': (4, 2, 3)}, 'w'),
  'embedding': (lambda p, x: p['e'][x.astype(int)[:, 0]] @ p['w'], {**SQUARE, 'e': (9, 3)}, 'w'),
  'chosen by data': (lambda p, x: x @ p['w'][x[0, 0].astype(int)], {'w': (2, 3, 3)}, 'w'),
  'no activation': (lambda p, x: p['a'] @ p['w'] + x, {**SQUARE, 'a': (2, 3)}, ''),
  'jit': (lambda p, x: jax.jit(jnp.dot)(x, p['w']), SQUARE, 'w'),
  'remat': (lambda p, x: jax.checkpoint(jnp.dot)(x, p['w']), SQUARE, 'w'),
  'vmap': (lambda p, x: jax.vmap(lambda row: row @ p['w'])(x), SQUARE, 'w'),
  'scan over layers': (
    lambda p, x: lax.scan(lambda c, q: (jnp.tanh(c @ q['w'] + q['b']), None), x, p)[0],
    {'w': (4, 3, 3), 'b': (4, 3)},
    'w',
  ),
  'recurrence': (
    lambda p, x: lax.scan(lambda c, _: (c @ p['w'] + p['b'], None), x, None, 3)[0],
    {**SQUARE, 'b': (3,)},
    'w',
  ),
  'learned first state': (
    lambda p, x: lax.scan(lambda c, row: (jnp.tanh(c @ p['w'] + row), None), p['h'], x)[0],
    {**SQUARE, 'h': (3,)},
    'w',
  ),
  'indexed layers': (lambda p, x: lax.fori_loop(0, 4, lambda i, c: c @ p['w'][i], x), {'w': (4, 3, 3)}, 'w'),
  'while': (
    lambda p, x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ p['w'] + p['b'], x),
    {**SQUARE, 'b': (3,)},
    'w',
  ),
  'weight changed for as long as data say': (
    lambda p, x: x @ lax.while_loop(lambda c: c[0].sum() < x.sum(), lambda c: (c[0] * 2, c[1]), (p['w'], p['w']))[0],
    SQUARE,
    '',
  ),
  'weight carried through such a loop': (
    lambda p, x: x @ lax.while_loop(lambda c: c[0].sum() < x.sum(), lambda c: (c[0] * 2, c[1]), (p['a'], p['w']))[1],
    {**SQUARE, 'a': (3,)},
    'w',
  ),
  'cond': (
    lambda p, x: lax.cond(x.sum() > 0, lambda: x @ p['w'], lambda: x @ p['v']),
    {**SQUARE, 'v': (3, 3)},
    'wv',
  ),
  'weights chosen by data': (lambda p, x: x @ lax.cond(x.sum() > 0, lambda: p['w'], lambda: -p['w']), SQUARE, 'w'),
  'platform': (lambda p, x: lax.platform_dependent(x, p['w'], cpu=jnp.dot, default=lambda x, w: -x @ w), SQUARE, 'w'),
}


@pytest.mark.parametrize('name', CASES)
def test_weights_are_found(name):
  fn, shapes, expected = CASES[name]
  assert contraction_weights(fn, p(**shapes), X) == frozenset(expected)


def test_convolution_kernels_are_weights_and_biases_are_not():
  def fn(p, x):
    out = lax.conv_general_dilated(x, p['conv']['kernel'], (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC'))
    return out + p['conv']['bias']

  params = {'conv': p(kernel=(3, 2, 4), bias=(4,))}
  assert contraction_weights(fn, params, jax.ShapeDtypeStruct((2, 5, 2), jnp.float32)) == {'conv/kernel'}


def sites(fn, shapes):
  params = p(**shapes)
  closed = jax.make_jaxpr(fn)(params, X)
  tags = [provenance.weight(name) for name in sorted(params)] + [provenance.DATA]
  return provenance.read(closed, tags).all_sites()


def test_a_second_use_has_a_name_of_its_own_and_branches_share_theirs():
  twice = sites(lambda p, x: x @ p['w'] @ p['w'], SQUARE)
  assert [site.name for site in twice] == ['w', 'w#2']
  either = sites(lambda p, x: lax.cond(x.sum() > 0, lambda: x @ p['w'], lambda: -x @ p['w']) @ p['w'], SQUARE)
  assert [site.name for site in either] == ['w', 'w#2']


def test_names_do_not_depend_on_what_a_hook_adds():
  shapes = {'w': (3, 3), 'jl.lora': (3, 3)}
  assert [site.name for site in sites(lambda p, x: x @ (p['w'] + p['jl.lora']), shapes)] == ['w']


def test_a_stack_of_layers_is_told_from_a_shared_weight():
  def fn(p, x):
    def layer(c, w):
      return lax.scan(lambda d, _: (d @ w @ p['v'], None), c, None, 5)[0], None

    return lax.scan(layer, x, p['w'])[0]

  found = {site.name: site for site in sites(fn, {'w': (4, 3, 3), 'v': (3, 3)})}
  assert found['w'].lengths == (4,)
  assert found['v'].lengths == ()
  assert found['w'].flops == 4 * 5 * 2 * (2 * 3 * 3)


def test_flops_of_a_grouped_convolution_count_each_group_once():
  def fn(p, x):
    image = x.reshape(1, 1, 6)
    return lax.conv_general_dilated(
      image, p['w'], (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC'), feature_group_count=3
    )

  (site,) = sites(fn, {'w': (1, 2, 3)})
  assert site.flops == 2 * 3 * 2


def test_what_cannot_be_reached_is_told():
  def fn(p, x):
    return lax.custom_linear_solve(lambda v: p['w'] @ v, x[0], lambda mv, b: mv(b))

  reasons = [site.why_not for site in sites(fn, SQUARE)]
  assert reasons
  assert all('custom_linear_solve' in reason for reason in reasons)


def test_a_models_weights_survive_masks_in_its_state_and_schedules_of_the_step():
  def apply(params, state, x, *, train, key, step=None):
    soft = jnp.where(step > 5, params['a']['kernel'] * state['jl.ste']['a']['kernel'], params['a']['kernel'])
    hidden = (x - state['batch_stats']['mean']) @ soft
    noise = params['c']['kernel'] * jax.random.normal(key, (3, 3))
    return hidden @ state['jl.const']['freeze']['b']['kernel'] @ noise, state

  params = {'a': p(kernel=(3, 3)), 'c': p(kernel=(3, 3))}
  state = {
    'jl.ste': {'a': p(kernel=(3, 3))},
    'jl.const': {'freeze': {'b': p(kernel=(3, 3))}},
    'batch_stats': p(mean=(3,)),
  }
  # Noise is no weight, so what it multiplies is none either; a frozen leaf is no parameter to train.
  assert model_weights(Model(None, apply), params, state, X, jax.random.key(0)) == {'a/kernel'}


def test_a_kernel_that_meets_raw_pixels_is_a_weight():
  # Weights are read off a bare model: its data may still be integers that a hook makes floats of.
  params = {'w': jnp.ones((4, 3)), 'v': jnp.ones((3, 2)), 'b': jnp.zeros(3)}
  found = provenance.contraction_weights(
    lambda p, x: jax.nn.relu(x @ p['w'] + p['b']) @ p['v'], params, jnp.ones((2, 4), jnp.uint8)
  )
  assert found == {'w', 'v'}
