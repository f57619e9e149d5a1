"""A shrunk network is the whole one with zeros in place of what was removed, in every framework, or it is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
import networks
import shrinking
import shrinking_kits
from jaxlite.contract import Model
from shrinking import agree, close, groups, ones

pytestmark = pytest.mark.unoptimized
X = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)


def shrunk_at_random(network, rng, **options):
  model, params, state, inputs = network
  scores = shrinking.random_scores(params, rng)
  keep = float(rng.uniform(0.3, 0.9))
  return jl.shrink(model, params, state, inputs, keep=keep, multiple=1, scores=scores, key=jax.random.key(3), **options)


@pytest.mark.parametrize('name', ['vit', 'function', pytest.param('resnet8', marks=pytest.mark.slow)])
def test_what_is_left_computes_what_the_masked_network_does(name):
  network = shrinking.network(name)
  small = shrunk_at_random(network, np.random.default_rng(1))
  assert any(group.kept < group.units for group in small.groups)
  assert not any(group.why for group in small.groups)
  agree(small, *network, modes=(False,))


@pytest.mark.sampled(2)
@pytest.mark.parametrize('framework', networks.FRAMEWORKS)
def test_dense_layers_of_every_framework_lose_neurons(framework):
  rng = np.random.default_rng(0)
  weights = [rng.normal(size=shape).astype(np.float32) for shape in ((6, 16), (16,), (16, 3), (3,))]
  model = networks.dense(framework, weights)[0]
  params, state = networks.first_values(model, X)
  small = jl.shrink(model, params, state, X, keep=0.5, key=jax.random.key(0))
  w1, b1, w2, b2 = weights
  worth = np.abs(w1).sum(0) + np.abs(b1) + np.abs(w2).sum(1)
  left = np.sort(np.argsort(-worth)[:8])
  wanted = np.maximum(X @ w1[:, left] + b1[left], 0) @ w2[left] + b2
  np.testing.assert_allclose(small.network.predict(X), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name', [*shrinking.LINEN, *shrinking.FRAMEWORKS])
def test_training_goes_on_as_the_masked_network_would(name):
  network = shrinking.network(name)
  model, params, state, inputs = network
  small = shrunk_at_random(network, np.random.default_rng(1))
  agree(small, *network)
  key = jax.random.key(5)

  def slopes(model, params, state):
    def loss(params):
      return (model.apply(params, state, inputs, train=True, key=key, step=jnp.int32(3))[0] ** 2).mean()

    return jax.jit(jax.grad(loss))(params)

  close(
    slopes(small.model, small.params, small.model_state),
    small.cut(slopes(model, *shrinking.masked(small, params, state))),
  )


def compare(network, seed, count):
  """Returns how many choices are refused; the others compute what the masked network does."""
  refused = []
  for index, small in enumerate(shrinking.choices(network, seed, count)):
    if isinstance(small, str):
      refused.append(small)
    else:
      agree(small, *network, modes=(False, True) if index < 2 else (False,))
  assert len(refused) < count, refused[0]
  return refused


@pytest.mark.slow
@pytest.mark.parametrize('part', range(4))
@pytest.mark.parametrize('name', [*shrinking.LINEN, 'resnet20', *shrinking.FRAMEWORKS])
def test_two_hundred_choices_compute_what_the_masked_network_does(name, part):
  refused = compare(shrinking.network(name), part, 50)
  assert not refused, refused[0]


@pytest.mark.slow
@pytest.mark.parametrize('name', shrinking_kits.NAMES)
def test_every_architecture_in_every_framework_computes_what_the_masked_network_does(name):
  refused = compare(shrinking.network(name), 0, 20)
  assert not refused, refused[0]


# --- groups, by hand -----------------------------------------------------------------------------------------------


def check(fn, params, inputs, wanted, **options):
  small, found = groups(fn, params, inputs, **options)
  assert found == {frozenset(members.split()): counts for members, counts in wanted.items()}
  whole = shrinking.masked(small, params, {})[0]
  got = small.model.apply(small.params, {}, inputs, train=False, key=None)[0]
  np.testing.assert_allclose(got, fn(whole, inputs), rtol=1e-5, atol=1e-5)


def test_a_residual_sum_ties_its_branches():
  def fn(p, x):
    h = x @ p['a']
    return (h + jax.nn.relu(h @ p['b']) @ p['c']) @ p['d']

  check(fn, ones(a=(6, 8), b=(8, 4), c=(4, 8), d=(8, 2)), X, {
    'a[1] b[0] c[1] d[0]': (8, 4), 'b[1] c[0]': (4, 2),
  })  # fmt: skip


def test_what_is_concatenated_and_split_again_keeps_its_parts_apart():
  def fn(p, x):
    a, b = jnp.split(jnp.concatenate([x @ p['a'], jnp.tanh(x @ p['b'])], -1) * p['s'], [4], axis=-1)
    return a @ p['c'] + jnp.flip(b, -1) @ p['d']

  check(fn, ones(a=(6, 4), b=(6, 8), s=(12,), c=(4, 2), d=(8, 2)), X, {
    'a[1] s[0] c[0]': (4, 2), 'b[1] s[0] d[0]': (8, 4),
  })  # fmt: skip


def test_zeros_beside_channels_are_rows_of_their_own():
  def fn(p, x):
    h = jnp.pad(jax.nn.relu(x @ p['a']), ((0, 0), (0, 4)))
    return jax.nn.standardize(h) @ p['b']

  check(fn, ones(a=(6, 8), b=(12, 2)), X, {'a[1] b[0]': (8, 4), 'b[0]': (4, 2)})


def test_a_flattened_image_loses_whole_channels():
  def fn(p, x):
    h = jax.lax.conv_general_dilated(x, p['k'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return jax.nn.relu(h + p['b']).reshape(x.shape[0], -1) @ p['w']

  image = np.random.default_rng(0).normal(size=(2, 3, 3, 2)).astype(np.float32)
  check(fn, ones(k=(3, 3, 2, 4), b=(4,), w=(36, 5)), image, {'k[3] b[0] w[0]': (4, 2)})


def test_a_product_of_each_with_each_sums_twice_over_one_axis():
  def fn(p, x):
    h = x @ p['a']
    return jnp.einsum('bi,ci->bc', h, h) @ p['b']

  check(fn, ones(a=(6, 8), b=(3, 2)), X, {'a[1]': (8, 4)})


def test_a_loop_over_layers_and_a_recurrence():
  def fn(p, x):
    def layer(h, w):
      return jnp.tanh(h @ w['a'] + w['b']), jnp.sum(h * h)

    h, norms = jax.lax.scan(layer, x @ p['in'], p['layers'])
    carry = jax.lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c @ p['r'] + h), jnp.zeros((x.shape[0], 8)))
    return carry @ p['out'], norms

  params = {
    **ones(**{'in': (6, 8), 'r': (8, 8), 'out': (8, 2)}),
    'layers': ones(a=(5, 8, 8), b=(5, 8)),
  }
  small = jl.shrink(fn, params, None, X, keep=0.5, multiple=1)
  whole = shrinking.masked(small, params, {})[0]
  got = small.model.apply(small.params, {}, X, train=False, key=None)[0]
  close(got, fn(whole, X))
  assert small.params['layers']['a'].shape == (5, 4, 4)
  assert small.params['r'].shape == (4, 4)


def test_branches_and_rematerialized_bodies():
  def fn(p, x):
    h = jax.checkpoint(lambda h: jnp.sin(h @ p['a']))(x)
    h = jax.lax.cond(x.sum() > 0, lambda h: h * p['s'], lambda h: jnp.ones_like(h), h)
    return h @ p['b']

  check(fn, ones(a=(6, 8), s=(8,), b=(8, 2)), X, {'a[1] s[0] b[0]': (8, 4)})


@pytest.mark.sampled(3)
@pytest.mark.parametrize('kind', ['two passes', 'one pass', 'root mean square', 'softmax', 'largest', 'logsumexp'])
def test_statistics_over_what_is_cut_count_what_is_gone(kind):
  def fn(p, x):
    h = jax.nn.relu(x @ p['a'] + p['b'])
    if kind == 'two passes':
      h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)
    if kind == 'one pass':
      h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(
        (h * h).mean(-1, keepdims=True) - h.mean(-1, keepdims=True) ** 2 + 1e-5
      )
    if kind == 'root mean square':
      h = h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-6)
    if kind == 'softmax':
      h = jax.nn.softmax(h)
    if kind == 'largest':
      h = h / jnp.max(jnp.cos(h), -1, keepdims=True)
    if kind == 'logsumexp':
      h = h - jax.nn.logsumexp(h, -1, keepdims=True)
    return (h * p['s'] + p['t']) @ p['c']

  check(fn, ones(a=(6, 8), b=(8,), s=(8,), t=(8,), c=(8, 2)), X, {'a[1] b[0] s[0] t[0] c[0]': (8, 4)})


def test_dropout_draws_what_the_whole_network_would():
  def apply(p, s, x, *, train, key, step=None):
    h = x @ p['a']
    return (h * jax.random.bernoulli(key, 0.5, h.shape) if train else h) @ p['b'], s

  model, params = (
    Model(lambda key, x: (ones(a=(6, 8), b=(8, 2)), {}), apply),
    ones(a=(6, 8), b=(8, 2)),
  )
  small = jl.shrink(model, params, {}, X, keep=0.5, multiple=1, key=jax.random.key(0))
  agree(small, model, params, {}, X)


def test_derivatives_that_somebody_wrote_stay_theirs():
  @jax.custom_vjp
  def doubled(x, scale):
    return x * scale

  doubled.defvjp(lambda x, scale: (x * scale, (x, scale)), lambda kept, g: (2 * g * kept[1], 3 * g * kept[0]))

  @jax.custom_jvp
  def normalized(x):
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)

  @normalized.defjvp
  def _(primals, tangents):
    (x,), (change,) = primals, tangents
    return normalized(x), 5 * change * (x * x).mean(-1, keepdims=True)

  def fn(p, x):
    return jax.nn.relu(doubled(normalized(x @ p['a']), p['s'])) @ p['b']

  params = ones(a=(6, 8), b=(8, 2))
  params['s'] = jnp.ones((3, 8))
  small = jl.shrink(fn, params, None, X, keep=0.5, multiple=1)
  whole = shrinking.masked(small, params, {})[0]
  wanted = jax.grad(lambda p: (fn(p, X) ** 2).sum())(whole)
  got = jax.grad(lambda p: (small.model.apply(p, {}, X, train=True, key=None)[0] ** 2).sum())(small.params)
  assert {name: leaf.shape for name, leaf in got.items()} == {'a': (6, 4), 's': (3, 4), 'b': (4, 2)}
  close(got, small.cut(wanted))


def test_a_norm_over_groups_loses_whole_groups():
  def fn(p, x):
    h = (x @ p['a']).reshape(3, 4, 2)
    h = (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True) + 1e-3)
    return (h.reshape(3, 8) * p['s']) @ p['b']

  small, found = groups(fn, ones(a=(6, 8), s=(8,), b=(8, 2)), X)
  assert found == {frozenset({'a[1]', 's[0]', 'b[0]'}): (4, 2)}
  assert small.params['a'].shape == (6, 4)


def test_narrow_floats_and_shared_weights():
  def fn(p, x):
    h = jnp.tanh(x.astype(jnp.bfloat16) @ p['a'])
    return (h @ p['w'] + h @ p['w'].T) @ p['b']

  params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), ones(a=(6, 8), w=(8, 8), b=(8, 2)))
  small = jl.shrink(fn, params, None, X, keep=0.5, multiple=1)
  assert small.params['w'].shape == (4, 4)
  got = small.model.apply(small.params, {}, X, train=False, key=None)[0]
  wanted = fn(shrinking.masked(small, params, {})[0], X)
  np.testing.assert_allclose(np.float32(got), np.float32(wanted), rtol=0.05, atol=0.2)


def test_rows_that_this_length_does_not_read_stay():
  def fn(p, tokens):
    return (p['table'][tokens] + p['places'][: tokens.shape[1]]) @ p['out']

  params, tokens = ones(table=(9, 8), places=(16, 8), out=(8, 3)), np.arange(8).reshape(2, 4)
  small = jl.shrink(fn, params, None, tokens, keep=0.5, multiple=1)
  assert small.params['places'].shape == (16, 4)
  assert small.network.predict(np.arange(9)[None]).shape == (1, 9, 3)


def test_widths_that_are_cut_stay_multiples_of_eight_and_a_head_is_as_wide_as_what_is_in_it():
  def fn(p, x):
    q, k, v = (jnp.einsum('btc,chd->bthd', x, p[name]) for name in ('q', 'k', 'v'))
    shares = jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k))
    return jax.nn.relu(jnp.einsum('bhqk,bkhd,hdc->bqc', shares, v, p['o']) @ p['u']) @ p['w']

  params = ones(q=(6, 4, 8), k=(6, 4, 8), v=(6, 4, 8), o=(4, 8, 5), u=(5, 44), w=(44, 6))
  small = jl.shrink(fn, params, None, np.ones((2, 3, 6), np.float32), keep=0.4)
  assert small.params['q'].shape == (6, 2, 4)  # heads of 8, then 8 in each of 4: a pair of them is a multiple
  assert small.params['u'].shape == (5, 16)
