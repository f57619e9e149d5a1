"""Which leaves of a program are weights and how their axes lie, on networks as strangers write them."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import sparse

import jaxlite as jl
from jaxlite import trees
from jaxlite.graph.layouts import LeafLayout, parameter_layouts
from jaxlite.graph.model import weights_of

pytestmark = pytest.mark.unoptimized

X = jnp.ones((2, 6))
CHOICE = jnp.array([0, 1])
IN_OUT, OUT_IN, LAYERS = LeafLayout((0,), (1,)), LeafLayout((1,), (0,)), LeafLayout((1,), (2,))
CONV = LeafLayout((0, 1, 2), (3,))


def conv(w, x, groups=1):
  return lax.conv_general_dilated(
    x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups
  )


def normed(p, x):
  return x @ (p['v'] * p['g'] / jnp.linalg.norm(p['v'], axis=0))


def group_scales(p, x):
  return x @ (p['w'] * jnp.repeat(jnp.repeat(p['s'], 2, 0), 5, 1))


def in_a_scan(p, x):
  return lax.scan(lambda c, q: (c @ (q['w'] * q['a']), None), x, p)[0]


def switched(p, x):
  one = lambda x, i: x @ lax.cond(i > 0, lambda: p['w'][1], lambda: p['w'][0])  # noqa: E731
  return jax.vmap(one)(x, CHOICE)


def halves(p, x):
  a, b = jnp.split(p['w'], [12], 1)
  return jnp.tanh(x @ a)[:, :6] @ b


CASES = {
  # name: (function, shapes, {weight: layout})
  # What scales or shifts is no weight.
  'weight norm': (normed, {'v': (6, 3), 'g': (3,)}, {'v': IN_OUT}),
  'learned scalar': (lambda p, x: x @ (p['s'] * p['v']), {'v': (6, 3), 's': ()}, {'v': IN_OUT}),
  'scalar times constant': (lambda p, x: x @ (p['s'] * jnp.eye(6)), {'s': ()}, {}),
  'gain and shift': (lambda p, x: x @ (p['v'] * p['g'] + p['b']), {'v': (6, 3), 'g': (6, 1), 'b': (3,)}, {'v': IN_OUT}),
  'gains in two pieces': (
    lambda p, x: x @ (p['v'] * jnp.concatenate([p['g'], p['h']])),
    {'v': (6, 5), 'g': (2,), 'h': (3,)},
    {'v': IN_OUT},
  ),
  'scale of each block': (group_scales, {'w': (6, 5), 's': (3, 1)}, {'w': IN_OUT}),
  'scalar of each layer': (in_a_scan, {'w': (3, 6, 6), 'a': (3,)}, {'w': LAYERS}),
  'angle': (
    lambda p, x: x[:, :2] @ jnp.stack([jnp.stack([jnp.cos(p['t']), jnp.sin(p['t'])]), jnp.ones(2)]),
    {'t': ()},
    {},
  ),
  'scaled low rank': (
    lambda p, x: x @ (p['w'] + p['s'] * (p['a'] @ p['b'])),
    {'w': (6, 4), 'a': (6, 2), 'b': (2, 4), 's': ()},
    {'w': IN_OUT, 'a': IN_OUT, 'b': IN_OUT},
  ),
  # A factor that meets the inputs passes on what it sums, the next one sums that.
  'two factors, turned': (
    lambda p, x: x @ (p['a'].T @ p['b'].T),
    {'a': (2, 6), 'b': (4, 2)},
    {'a': OUT_IN, 'b': OUT_IN},
  ),
  'three factors': (
    lambda p, x: x @ (p['a'] @ (p['c'] @ p['b'])),
    {'a': (6, 3), 'c': (3, 2), 'b': (2, 4)},
    dict.fromkeys('acb', IN_OUT),
  ),
  'singular values': (
    lambda p, x: x @ ((p['u'] * p['s']) @ p['v']),
    {'u': (6, 3), 's': (3,), 'v': (3, 4)},
    {'u': IN_OUT, 'v': IN_OUT},
  ),
  'factors of each layer': (
    lambda p, x: lax.scan(lambda c, q: (c @ (q['a'] @ q['b']), None), x, p)[0],
    {'a': (3, 6, 2), 'b': (3, 2, 6)},
    {'a': LAYERS, 'b': LAYERS},
  ),
  # Each factor spans axes that the other does not: neither is the other's gain, whichever is longer.
  'Kronecker product': (
    lambda p, x: x @ jnp.kron(p['a'], p['b']),
    {'a': (2, 2), 'b': (3, 2)},
    {'a': IN_OUT, 'b': IN_OUT},
  ),
  'Kronecker product beside the weight': (
    lambda p, x: x @ (p['w'] + p['s'] * jnp.kron(p['a'], p['b'])),
    {'w': (6, 4), 'a': (3, 2), 'b': (2, 2), 's': ()},
    {'w': IN_OUT, 'a': IN_OUT, 'b': IN_OUT},
  ),
  'gain of each head': (
    lambda p, x: x @ (p['v'][:, None] * p['g'][:, None]).reshape(6, 10),
    {'v': (6, 5), 'g': (2,)},
    {'v': IN_OUT},
  ),
  # What is neither an entry of the leaf nor a mixture of its layers has no axes that can be told.
  'running sums': (lambda p, x: x @ jnp.cumsum(p['w'], 0), {'w': (6, 4)}, {'w': None}),
  'a cosine transform of it': (lambda p, x: x @ jax.scipy.fft.dct(p['w'], axis=0), {'w': (6, 4)}, {'w': None}),
  'resized kernel': (
    lambda p, x: conv(jax.image.resize(p['w'], (3, 3, 2, 5), 'linear'), x[0, 0] * jnp.ones((2, 5, 5, 2))),
    {'w': (2, 2, 2, 5)},
    {'w': None},
  ),
  'resized by what is learned': (
    lambda p, x: jnp.einsum('bri,rio->bo', x.reshape(-1, 3, 2), jnp.einsum('rh,hio->rio', p['m'], p['w'])),
    {'m': (3, 2), 'w': (2, 2, 4)},
    {'m': IN_OUT, 'w': LeafLayout((1, 0), (2,))},
  ),
  # Written into an empty matrix, one by one or by indices.
  'an ensemble of kernels, written': (
    lambda p, x: jax.vmap(lambda w, x: x @ lax.dynamic_update_slice(jnp.zeros((6, 4)), w, (0, 0)))(
      p['w'], jnp.stack([x] * 3)
    ),
    {'w': (3, 6, 4)},
    {'w': LAYERS},
  ),
  'rows at their places': (lambda p, x: x @ jnp.zeros((6, 4)).at[:3].set(p['w']), {'w': (3, 4)}, {'w': IN_OUT}),
  'columns at their places': (
    lambda p, x: x @ jnp.zeros((6, 4)).at[:, jnp.array([3, 0])].set(p['w'].T),
    {'w': (2, 6)},
    {'w': OUT_IN},
  ),
  'a triangle of a vector': (
    lambda p, x: x @ jnp.zeros((6, 6)).at[jnp.tril_indices(6)].set(p['w']),
    {'w': (21,)},
    {'w': None},
  ),
  'low rank in a part of it': (
    lambda p, x: x @ p['w'].at[:, :4].add(p['a'] @ p['b']),
    {'w': (6, 12), 'a': (6, 2), 'b': (2, 4)},
    {'w': IN_OUT, 'a': IN_OUT, 'b': IN_OUT},
  ),
  # A contraction written out is one.
  'summed by hand': (lambda p, x: (x[:, :, None] * p['w']).sum(1), {'w': (6, 4)}, {'w': IN_OUT}),
  'summed by hand, turned': (
    lambda p, x: jax.vmap(lambda x: (p['w'] * x).astype(jnp.bfloat16).sum(-1))(x),
    {'w': (4, 6)},
    {'w': OUT_IN},
  ),
  'summed by hand in an ensemble': (
    lambda p, x: jax.vmap(lambda w, x: (x[:, :, None] * (w / 2)).sum(1))(p['w'], jnp.stack([x] * 3)),
    {'w': (3, 6, 4)},
    {'w': LAYERS},
  ),
  'a scale, then a mean': (lambda p, x: (x * p['s']).mean(-1), {'s': (6,)}, {}),
  'a decay of each channel': (
    lambda p, x: (jnp.stack([x] * 4, 1) * p['a']).sum(1),
    {'a': (4, 6)},
    {},
  ),
  'a fixed transform before it': (lambda p, x: x @ (jnp.ones((6, 4)) @ p['w']), {'w': (4, 5)}, {'w': IN_OUT}),
  'a weight times itself': (lambda p, x: x @ (p['w'] @ p['w'].T), {'w': (6, 4)}, {'w': None}),
  # What cannot be told is listed, not chosen.
  'diagonal': (lambda p, x: x @ jnp.diag(p['v']), {'v': (6,)}, {}),
  'outer product': (lambda p, x: x @ (p['u'][:, None] * p['v']), {'u': (6,), 'v': (3,)}, {}),
  'no sum': (lambda p, x: jnp.einsum('bd,d->bd', x, p['v']), {'v': (6,)}, {}),
  # Axes through slices, splits, concatenations.
  'unrolled': (lambda p, x: x @ p['w'][0] @ p['w'][1].T, {'w': (2, 6, 6)}, {'w': None}),
  'unrolled alike': (lambda p, x: x @ p['w'][0] @ p['w'][1], {'w': (2, 6, 6)}, {'w': LAYERS}),
  'unrolled by a loop': (
    lambda p, x: lax.fori_loop(0, 2, lambda i, c: c @ p['w'][i], x),
    {'w': (2, 6, 6)},
    {'w': LAYERS},
  ),
  'fused qkv': (lambda p, x: [x @ one for one in jnp.split(p['w'], 3, 1)], {'w': (6, 12)}, {'w': IN_OUT}),
  'fused qkv, (out, in)': (lambda p, x: [x @ p['w'][i : i + 4].T for i in (0, 4)], {'w': (8, 6)}, {'w': OUT_IN}),
  'concatenated': (
    lambda p, x: x @ jnp.concatenate([p['a'], p['b']], 1),
    {'a': (6, 3), 'b': (6, 5)},
    {'a': IN_OUT, 'b': IN_OUT},
  ),
  'a bias as one more row': (
    lambda p, x: jnp.c_[x, jnp.ones(2)] @ jnp.concatenate([p['w'], p['b'][None]]),
    {'w': (6, 4), 'b': (4,)},
    {'w': IN_OUT},
  ),
  'a bias as one more column, turned': (
    lambda p, x: (jnp.c_[p['w'], p['b']] @ jnp.c_[x, jnp.ones(2)].T).T,
    {'w': (4, 6), 'b': (4,)},
    {'w': OUT_IN},
  ),
  'biases of members as rows': (
    lambda p, x: jax.vmap(lambda w, b, x: jnp.c_[x, jnp.ones(2)] @ jnp.concatenate([w, b[None]]))(
      p['w'], p['b'], jnp.stack([x] * 3)
    ),
    {'w': (3, 6, 4), 'b': (3, 4)},
    {'w': LAYERS},
  ),
  'one more input, one more output': (
    lambda p, x: jnp.c_[x, x[:, :1]] @ jnp.c_[jnp.concatenate([p['w'], p['row']]), p['column']],
    {'w': (6, 4), 'row': (1, 4), 'column': (7,)},
    {'w': IN_OUT, 'row': IN_OUT, 'column': LeafLayout((0,), ())},
  ),
  'padded': (lambda p, x: x @ jnp.pad(p['w'], [(0, 2), (0, 0)]), {'w': (4, 5)}, {'w': IN_OUT}),
  'two parts': (halves, {'w': (6, 18)}, {'w': IN_OUT}),
  'symmetric': (lambda p, x: x @ (p['w'] + p['w'].T), {'w': (6, 6)}, {'w': None}),
  # A convolution under vmap.
  'ensemble of convolutions': (
    lambda p, x: jax.vmap(conv)(p['w'], x[0, 0] * jnp.ones((4, 2, 5, 5, 2))),
    {'w': (4, 3, 3, 2, 5)},
    {'w': LeafLayout((1, 2, 3), (4,))},
  ),
  'ensemble of depthwise convolutions': (
    lambda p, x: jax.vmap(lambda w, x: conv(w, x, 4))(p['w'], x[0, 0] * jnp.ones((4, 2, 5, 5, 4))),
    {'w': (4, 3, 3, 1, 4)},
    {'w': LeafLayout((1, 2, 3), (4,))},
  ),
  'depthwise': (lambda p, x: conv(p['w'], x[0, 0] * jnp.ones((2, 5, 5, 4)), 4), {'w': (3, 3, 1, 4)}, {'w': CONV}),
  'a list of layers, stacked': (
    lambda p, x: lax.scan(lambda c, w: (c @ w, None), x, jnp.stack([p['a'], p['b']]))[0],
    {'a': (6, 6), 'b': (6, 6)},
    {'a': IN_OUT, 'b': IN_OUT},
  ),
  'unstacked': (lambda p, x: [x @ w for w in jnp.unstack(p['w'])], {'w': (3, 6, 4)}, {'w': LAYERS}),
  'tiled gain': (lambda p, x: x @ (p['w'] * jnp.tile(p['g'], (6, 1))), {'w': (6, 4), 'g': (4,)}, {'w': IN_OUT}),
  'rows in another order': (lambda p, x: x @ p['w'][jnp.array([1, 0, 2, 3, 5, 4])], {'w': (6, 4)}, {'w': IN_OUT}),
  'circulant': (lambda p, x: x @ p['c'][(jnp.arange(6)[:, None] - jnp.arange(6)) % 6], {'c': (6,)}, {'c': None}),
  'mixture of kernels': (
    lambda p, x: x @ jnp.einsum('k,kio->io', jax.nn.softmax(p['m']), p['w']),
    {'w': (3, 6, 2), 'm': (3,)},
    {'w': LAYERS},
  ),
  # Whole matrices that data pick are weights, rows are not.
  'experts by index': (
    lambda p, x: jax.vmap(lambda x, i: x @ p['w'][i])(x, CHOICE + (x[:, 0] > 0)),
    {'w': (3, 6, 5)},
    {'w': LAYERS},
  ),
  'experts of an ensemble': (
    lambda p, x: jax.vmap(jax.vmap(lambda w, x: x @ w[(x[0] > 0).astype(int)], (None, 0)))(p['w'], jnp.stack([x, x])),
    {'w': (2, 3, 6, 5)},
    {'w': LeafLayout((2,), (3,))},
  ),
  'experts of tokens': (
    lambda p, x: jnp.einsum('btd,btdo->bto', x[None], p['w'][(x[None, :, 0] > 0).astype(int)]),
    {'w': (3, 6, 5)},
    {'w': LAYERS},
  ),
  'experts by cond': (switched, {'w': (2, 6, 5)}, {'w': LAYERS}),
  'ragged': (lambda p, x: lax.ragged_dot(x, p['w'], jnp.array([1, 1, 0])), {'w': (3, 6, 5)}, {'w': LAYERS}),
  'embedding': (
    lambda p, x: (p['e'][x.astype(int)] + p['pos']) @ p['w'],
    {'e': (3, 6), 'pos': (6, 6), 'w': (6, 4)},
    {'w': IN_OUT},
  ),
  'embeddings multiplied': (
    lambda p, x: jnp.einsum('bd,bd->b', p['e'][x[:, 0].astype(int)], p['e'][x[:, 1].astype(int)]),
    {'e': (3, 6)},
    {},
  ),
  'complex': (lambda p, x: x @ lax.complex(p['r'], p['i']), {'r': (6, 5), 'i': (6, 5)}, {'r': IN_OUT, 'i': IN_OUT}),
}


@pytest.mark.parametrize('name', CASES)
def test_weights_and_their_axes(name):
  fn, shapes, expected = CASES[name]
  params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
  x = jax.ShapeDtypeStruct(X.shape, jnp.float32)
  assert parameter_layouts(fn, params, x) == expected


@pytest.mark.parametrize(
  'view',
  [
    lambda p: jnp.arange(5.0)[jnp.clip(p['w'], 0, 4).astype(int)],
    lambda p: jnp.arange(7.0)[jnp.searchsorted(jnp.arange(6.0), p['w'])],
    lambda p: jnp.take_along_axis(p['w'], jnp.argsort(p['w'], 0), 0),
    lambda p: jnp.eye(6)[:, :4][p['w'][:, 0].astype(int)] * p['w'],
  ],
  ids=['a table', 'steps', 'sorted', 'rows of a constant'],
)
def test_a_leaf_may_pick(view):
  found = weights_of(jl.from_function(lambda p, x: x @ view(p), {'w': jnp.ones((6, 4))}), jax.random.key(0), X)
  assert set(found) == {'w'}


def test_a_dense_weight_meets_a_sparse_input():
  x = sparse.BCOO.fromdense(jnp.eye(6))
  forward = lambda p, data: sparse.BCOO((data, x.indices), shape=(6, 6)) @ p['w']  # noqa: E731
  assert parameter_layouts(forward, {'w': jnp.ones((6, 4))}, x.data) == {'w': IN_OUT}


class LinenNormed(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.WeightNorm(nn.Dense(3))(nn.relu(nn.WeightNorm(nn.Dense(8))(x)))


class EqxNormed(eqx.Module):
  layer: eqx.nn.WeightNorm

  def __call__(self, x):
    return self.layer(x)


def haiku_gru(x):
  core = hk.GRU(8)
  return hk.dynamic_unroll(core, x, core.initial_state(2), time_major=False)[0]


FRAMEWORKS = {
  'Linen WeightNorm': (
    lambda: jl.from_linen(LinenNormed()),
    np.ones((2, 6), np.float32),
    {'Dense_0/kernel': IN_OUT, 'Dense_1/kernel': IN_OUT},
  ),
  'Equinox WeightNorm': (
    lambda: jl.from_equinox(EqxNormed(eqx.nn.WeightNorm(eqx.nn.Linear(6, 8, key=jax.random.key(0))))),
    np.ones((2, 6), np.float32),
    {'layer/layer/weight': OUT_IN},
  ),
  'Haiku GRU': (
    lambda: jl.from_haiku(haiku_gru),
    np.ones((2, 5, 6), np.float32),
    {'gru/w_h': IN_OUT, 'gru/w_i': IN_OUT},
  ),
}


@pytest.mark.parametrize('name', FRAMEWORKS)
def test_a_framework_s_own_layers(name):
  make, x, expected = FRAMEWORKS[name]
  assert weights_of(make(), jax.random.key(0), x) == expected


BESIDE = [
  'ln1/weight',
  'blocks/ln_f/w',
  'attn_norm_1/weight',
  'norm2/weight',
  'bn1/weight',
  'gru/bias_n',
  'cell/bias_ih',
]
BESIDE += ['pos_embedding', 'wpe/embedding', 'position_embeddings/weight', 'positional_encoding', 'rms/gain']
KERNELS = ['dense/kernel', 'w', 'weight_ih', 'posterior/kernel', 'compose/w', 'lnet/w', 'position_net/kernel', 'plan/w']


def test_a_foreign_loop_goes_by_names_that_people_give():
  leaf = np.zeros((4, 8), np.float32)
  assert [path for path in BESIDE if trees.looks_like_weight(path, leaf)] == []
  assert [path for path in KERNELS if not trees.looks_like_weight(path, leaf)] == []
