"""Weights in PyTorch's convention fill a network of every framework, square kernels too: the outputs are the same."""

import os

os.environ['KERAS_BACKEND'] = 'jax'  # before anybody imports it

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx

import jaxlite as jl
from jaxlite import trees
from jaxlite.finetuning import WeightsError, load_weights, read
from jaxlite.host.safetensors_file import write_safetensors

pytestmark = pytest.mark.unoptimized
INPUTS = np.random.default_rng(3).normal(size=(2, 6, 6, 4)).astype(np.float32)


def torch_arrays(seed=0, classes=3):
  """A state dict as PyTorch keeps it: every kernel [out, in, ...]."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  return {
    'conv.weight': draw(4, 4, 3, 3),
    'conv.bias': draw(4),
    'depth.weight': draw(4, 1, 3, 3),
    'norm.weight': draw(4),
    'norm.bias': draw(4),
    'norm.running_mean': draw(4),
    'norm.running_var': draw(4) ** 2 + 0.5,
    'norm.num_batches_tracked': np.array(7),
    'square.weight': draw(4, 4),
    'square.bias': draw(4),
    'head.weight': draw(classes, 4),
    'head.bias': draw(classes),
  }


def expected(arrays, x):
  """The network in NumPy, from PyTorch's own definitions."""

  def convolved(x, w, groups):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((x.shape[0], x.shape[1] - 2, x.shape[2] - 2, w.shape[0]), np.float64)
    for o in range(w.shape[0]):
      for i in range(w.shape[1]):
        channel = i + o // (w.shape[0] // groups) * w.shape[1]
        for dy in range(3):
          for dx in range(3):
            out[..., o] += w[o, i, dy, dx] * x[:, dy : dy + out.shape[1], dx : dx + out.shape[2], channel]
    return out

  a = arrays
  h = convolved(x, a['conv.weight'], 1) + a['conv.bias']
  h = np.maximum(convolved(h, a['depth.weight'], 4), 0)
  h = (h - a['norm.running_mean']) / np.sqrt(a['norm.running_var'] + 1e-5) * a['norm.weight'] + a['norm.bias']
  h = np.maximum(h.mean((1, 2)) @ a['square.weight'].T + a['square.bias'], 0)
  return h @ a['head.weight'].T + a['head.bias']


class Linen(nn.Module):
  classes: int = 3

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(4, (3, 3), name='conv')(x)
    x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=4, use_bias=False, name='depth')(x))
    x = nn.BatchNorm(use_running_average=not train, name='norm')(x)
    x = nn.relu(nn.Dense(4, name='square')(x.mean((1, 2))))
    return nn.Dense(self.classes, name='head')(x)


class Nnx(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
    self.depth = nnx.Conv(4, 4, (3, 3), feature_group_count=4, use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(4, rngs=rngs)
    self.square, self.head = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

  def __call__(self, x):
    x = self.norm(nnx.relu(self.depth(self.conv(x))))
    return self.head(nnx.relu(self.square(x.mean((1, 2)))))


class Equinox(eqx.Module):
  conv: eqx.nn.Conv2d
  depth: eqx.nn.Conv2d
  norm: dict
  square: eqx.nn.Linear
  head: eqx.nn.Linear

  def __init__(self, key):
    self.conv = eqx.nn.Conv2d(4, 4, 3, padding=1, key=key)
    self.depth = eqx.nn.Conv2d(4, 4, 3, padding=1, groups=4, use_bias=False, key=key)
    self.norm = {name: jnp.ones(4) for name in ('weight', 'bias', 'running_mean', 'running_var')}
    self.square, self.head = eqx.nn.Linear(4, 4, key=key), eqx.nn.Linear(4, 3, key=key)

  def __call__(self, x):  # [H, W, C], one example
    h = jax.nn.relu(self.depth(self.conv(x.transpose(2, 0, 1))))
    n = {name: one[:, None, None] for name, one in self.norm.items()}
    h = (h - n['running_mean']) * jax.lax.rsqrt(n['running_var'] + 1e-5) * n['weight'] + n['bias']
    return self.head(jax.nn.relu(self.square(h.mean((1, 2)))))


def haiku_net(x):
  x = hk.Conv2D(4, 3, name='conv')(x)
  x = jax.nn.relu(hk.DepthwiseConv2D(1, 3, with_bias=False, name='depth')(x))
  mean, var = (hk.get_parameter(f'norm_{name}', [4], init=jnp.ones) for name in ('mean', 'var'))
  scale, bias = (hk.get_parameter(f'norm_{name}', [4], init=jnp.ones) for name in ('scale', 'bias'))
  x = (x - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias
  x = jax.nn.relu(hk.Linear(4, name='square')(x.mean((1, 2))))
  return hk.Linear(3, name='head')(x)


def keras_net():
  layers = keras.layers
  return keras.Sequential(
    [
      keras.Input((6, 6, 4)),
      layers.Conv2D(4, 3, padding='same', name='conv'),
      layers.DepthwiseConv2D(3, padding='same', use_bias=False, activation='relu', name='depth'),
      layers.BatchNormalization(epsilon=1e-5, name='norm'),
      layers.GlobalAveragePooling2D(name='pool'),
      layers.Dense(4, activation='relu', name='square'),
      layers.Dense(3, name='head'),
    ],
    name='net',
  )


def plain(p, x):  # a function whose square matrix is [out, in], and whose head is [in, out]
  x = jax.lax.conv_general_dilated(x, p['conv']['w'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'OIHW', 'NHWC'))
  x = x + p['conv']['b']
  x = jax.lax.conv_general_dilated(
    x, p['depth']['w'], (1, 1), 'SAME', feature_group_count=4, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  n = p['norm']
  x = (jax.nn.relu(x) - n['mean']) * jax.lax.rsqrt(n['var'] + 1e-5) * n['w'] + n['b']
  x = jax.nn.relu(x.mean((1, 2)) @ p['square']['w'].T + p['square']['b'])
  return x @ p['head']['w'] + p['head']['b']


def plain_params():
  shapes = {'conv': (4, 4, 3, 3), 'depth': (3, 3, 1, 4), 'square': (4, 4), 'head': (4, 3)}
  params = {name: {'w': jnp.zeros(shape), 'b': jnp.zeros(shape[-1])} for name, shape in shapes.items()}
  del params['depth']['b']
  params['conv']['b'] = jnp.zeros(4)
  params['norm'] = {name: jnp.zeros(4) for name in ('w', 'b', 'mean', 'var')}
  return params


RULES_OF_HAIKU = {r'^norm\.weight$': '~/norm_scale', r'^norm\.running_': '~/norm_', r'^norm\.bias$': '~/norm_bias'}
MODELS = {
  'linen': (Linen, None),
  'nnx': (lambda: Nnx(nnx.Rngs(0)), None),
  'equinox': (lambda: Equinox(jax.random.key(0)), None),
  'haiku': (lambda: hk.transform(haiku_net), RULES_OF_HAIKU),
  'keras': (keras_net, None),
  'function': (lambda: (plain, plain_params()), None),
}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'model.safetensors'
  write_safetensors(path, torch_arrays(), {'format': 'pt'})
  return path


@pytest.mark.parametrize('name', MODELS)
def test_a_network_of_any_framework_computes_what_the_file_says(name, saved):
  make, rules = MODELS[name]
  module, wanted = make(), expected(torch_arrays(), INPUTS)
  loaded = load_weights(module, saved, INPUTS, rules=rules)
  np.testing.assert_allclose(loaded.network.predict(INPUTS), wanted, rtol=2e-4, atol=2e-4)
  assert len(loaded.report.matched) == 11
  assert not loaded.report.new
  assert loaded.report.left_out == ('norm.num_batches_tracked',)
  turned = [path for path in loaded.report.transposed if 'square' in path]
  assert bool(turned) == (name not in ('equinox', 'function')), 'a square kernel is turned where its program says so'
  values, before, _ = loaded.give_back()  # the framework's own object
  if name == 'nnx':
    nnx.update(module, values)
    module.eval()
  own = {
    'nnx': lambda x: module(x),
    'equinox': lambda x: jax.vmap(values)(x),
    'linen': lambda x: module.apply(values, x),
    'keras': lambda x: values(x, training=False),
    'haiku': lambda x: module.apply(values, None, x),
    'function': lambda x: plain(values, x),
  }[name]
  np.testing.assert_allclose(jax.jit(own)(before(INPUTS)), wanted, rtol=2e-4, atol=2e-4)


def test_a_head_of_other_classes_is_refused_by_name_and_new_on_request(saved):
  module = Linen(classes=7)
  with pytest.raises(WeightsError, match=r"head/kernel \[4, 7\] \(in the file \[3, 4\]\).*head='new'"):
    load_weights(module, saved, INPUTS)
  loaded = load_weights(module, saved, INPUTS, head='new')
  assert loaded.report.left_out[:2] == ('head.bias', 'head.weight')
  assert loaded.report.new == ('head/bias', 'head/kernel')
  born = module.init(jax.random.key(0), INPUTS)['params']['head']['kernel']
  assert loaded.network.params['head']['kernel'].shape == born.shape
  assert np.abs(loaded.network.params['head']['kernel']).sum() > 0
  np.testing.assert_array_equal(loaded.network.params['square']['kernel'], torch_arrays()['square.weight'].T)


def test_weights_of_another_architecture_are_refused_with_what_to_write(saved):
  class Other(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(nn.Dense(8)(x.reshape(len(x), -1)))

  with pytest.raises(WeightsError, match=r'4 missing: Dense_0/bias.*11 left over: conv\.bias') as error:
    load_weights(Other(), saved, INPUTS)
  assert '\n' not in str(error.value)


def test_a_rule_that_matches_nothing_and_a_missing_array_are_errors(saved, tmp_path):
  with pytest.raises(ValueError, match=r"rules: '\^hed' matches nothing.*nearest: head"):
    load_weights(Linen(), saved, INPUTS, rules={'^hed': None})
  arrays = torch_arrays()
  del arrays['square.bias']
  write_safetensors(tmp_path / 'less.safetensors', arrays, {'format': 'pt'})
  with pytest.raises(WeightsError, match='1 missing: square/bias'):
    load_weights(Linen(), tmp_path / 'less.safetensors', INPUTS)
  loaded = load_weights(Linen(), tmp_path / 'less.safetensors', INPUTS, new='square/bias$')
  assert loaded.report.new == ('square/bias',)


def test_nothing_says_which_way_round_square_kernels_lie_so_nothing_is_guessed(tmp_path):
  class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
      a = self.param('a', nn.initializers.ones, (4, 4))
      return x @ a @ self.param('b', nn.initializers.ones, (4, 4))

  path = tmp_path / 'w.npz'
  np.savez(path, **{'net.a': np.eye(4, dtype=np.float32), 'net.b': np.eye(4, dtype=np.float32)})
  with pytest.raises(WeightsError, match=r'2 that cannot be told: a \(nobody says.*layout='):
    load_weights(Two(), path, np.ones((1, 4)), rules={'^net.': 'x.'})
  matrix = np.arange(16, dtype=np.float32).reshape(4, 4)
  np.savez(path, **{'net.a': matrix, 'net.b': matrix})
  loaded = load_weights(Two(), path, np.ones((1, 4)), layout='torch')
  np.testing.assert_array_equal(loaded.network.params['a'], matrix.T)
  assert loaded.report.transposed == ('a', 'b')


def test_by_order_pairs_what_no_name_does_in_the_programs_own_order(tmp_path):
  class Deep(nn.Module):
    @nn.compact
    def __call__(self, x):
      for _ in range(11):  # Dense_10 comes before Dense_2 in the alphabet
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))
      return x

  rng = np.random.default_rng(0)
  arrays = {}
  for layer in range(11):
    arrays[f'stack.{layer}.fc.weight'] = rng.normal(size=(3, 3)).astype(np.float32)
    arrays[f'stack.{layer}.fc.bias'] = rng.normal(size=3).astype(np.float32)
    for role in ('weight', 'bias', 'running_mean', 'running_var'):
      arrays[f'stack.{layer}.bn.{role}'] = rng.normal(size=3).astype(np.float32)
    arrays[f'stack.{layer}.bn.num_batches_tracked'] = np.array(1)
  path, x = tmp_path / 'w.npz', np.ones((1, 3), np.float32)
  np.savez(path, **arrays)
  with pytest.raises(WeightsError, match="match='order'"):
    load_weights(Deep(), path, x)
  loaded = load_weights(Deep(), path, x, match='order')
  for layer in range(11):
    dense, norm = (loaded.network.params[f'{kind}_{layer}'] for kind in ('Dense', 'BatchNorm'))
    mean = loaded.network.model_state['batch_stats'][f'BatchNorm_{layer}']['mean']
    np.testing.assert_array_equal(dense['kernel'], arrays[f'stack.{layer}.fc.weight'].T)
    np.testing.assert_array_equal(norm['scale'], arrays[f'stack.{layer}.bn.weight'])
    np.testing.assert_array_equal(mean, arrays[f'stack.{layer}.bn.running_mean'])


def test_what_is_saved_of_a_model_fills_it_again_whatever_its_kernels_are(tmp_path):
  params = {'mix': np.arange(9, dtype=np.float32).reshape(3, 3)}
  write_safetensors(tmp_path / 'own.safetensors', params)
  for function in (lambda p, x: x @ p['mix'], lambda p, x: x @ p['mix'].T):
    loaded = load_weights((function, {'mix': jnp.zeros((3, 3))}), tmp_path / 'own.safetensors', np.ones((1, 3)))
    np.testing.assert_array_equal(loaded.network.params['mix'], params['mix'])


def test_dtypes_are_the_models_or_kept_and_what_cannot_be_held_is_refused(tmp_path):
  module, x = nn.Dense(2), np.ones((1, 3), np.float32)
  arrays = {'kernel': np.full((3, 2), 1e5), 'bias': np.zeros(2, np.float16)}
  np.savez(tmp_path / 'w.npz', **arrays)
  loaded = load_weights(module, tmp_path / 'w.npz', x)
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded.network.params)} == {jnp.dtype('float32')}
  assert loaded.report.cast == ('bias', 'kernel')
  assert load_weights(module, tmp_path / 'w.npz', x, dtype='stored').network.params['bias'].dtype == jnp.float16
  with pytest.raises(WeightsError, match="'kernel' has 6 entries that float16 cannot hold"):
    load_weights(module, tmp_path / 'w.npz', x, dtype=jnp.float16)


def test_heads_of_attention_are_split_as_torch_lays_them_out(tmp_path):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.MultiHeadDotProductAttention(2, name='attn')(x)

  rng = np.random.default_rng(1)
  arrays = {}
  for name in ('query', 'key', 'value', 'out'):
    arrays[f'attn.{name}.weight'] = rng.normal(size=(6, 6)).astype(np.float32)
    arrays[f'attn.{name}.bias'] = rng.normal(size=6).astype(np.float32)
  write_safetensors(tmp_path / 'a.safetensors', arrays, {'format': 'pt'})
  x = rng.normal(size=(1, 5, 6)).astype(np.float32)
  loaded = load_weights(Net(), tmp_path / 'a.safetensors', x)
  q, k, v = (x[0] @ arrays[f'attn.{n}.weight'].T + arrays[f'attn.{n}.bias'] for n in ('query', 'key', 'value'))
  heads = []
  for h in range(2):
    part = slice(3 * h, 3 * h + 3)
    scores = q[:, part] @ k[:, part].T / np.sqrt(3)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, part])
  wanted = np.concatenate(heads, -1) @ arrays['attn.out.weight'].T + arrays['attn.out.bias']
  np.testing.assert_allclose(loaded.network.predict(x)[0], wanted, rtol=1e-4, atol=1e-4)


def test_reading_knows_shapes_before_it_reads(saved):
  held = read(saved)
  assert held.shape('conv.weight') == (4, 4, 3, 3)
  assert held['conv.weight'].base is not None  # a view of the file
  assert not held['conv.weight'].flags.writeable


@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')  # Keras's own, of its variables
def test_keras_files_fill_keras_and_others(tmp_path):
  net = keras_net()
  rng = np.random.default_rng(5)
  net.set_weights([rng.random(size=one.shape).astype(np.float32) + 0.1 for one in net.weights])
  net.save_weights(tmp_path / 'a.weights.h5')
  net.save(tmp_path / 'a.keras')
  wanted = np.asarray(net(INPUTS, training=False))
  for name in ('a.weights.h5', 'a.keras'):
    held = read(tmp_path / name)
    assert set(held.about['names'].values()) == {'conv', 'depth', 'norm', 'square', 'head'}
    for module in (keras_net(), Linen()):
      loaded = load_weights(module, held, INPUTS)
      np.testing.assert_allclose(loaded.network.predict(INPUTS), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_own_runs_fill_the_same_model_and_a_model_with_another_head(tmp_path):
  config = jl.Config(name='x', recipe=lambda config, total: jl.chain(optax.adam(1e-2)), train=jl.Duration(steps=2))
  config.eval.every = config.checkpoint.every = jl.Duration(steps=2)
  config.data.batch_size = 8
  data = (np.random.default_rng(0).normal(size=(40, 6, 6, 4)).astype(np.float32), np.arange(40) % 3)
  jl.train(config, tmp_path / 'run', model=Linen(), data=data)
  held = read(tmp_path / 'run')
  assert held.form == 'run'
  trained = jl.load(tmp_path / 'run', model=Linen())
  loaded = load_weights(Linen(), held, INPUTS)
  np.testing.assert_array_equal(loaded.network.params['head']['kernel'], trained.params['head']['kernel'])
  assert loaded.report.matched
  assert not loaded.report.transposed
  other = load_weights(Linen(classes=9), held, INPUTS, head='new')
  assert other.network.predict(INPUTS).shape == (2, 9)


def test_a_network_is_filled_and_what_is_new_keeps_its_own_values(saved):
  first = load_weights(Linen(), saved, INPUTS).network
  start = first._replace(params=jax.tree.map(lambda leaf: leaf + 1, first.params))
  loaded = load_weights(start, saved, INPUTS, new='^square/')
  np.testing.assert_array_equal(loaded.network.params['square']['bias'], start.params['square']['bias'])
  np.testing.assert_array_equal(loaded.network.params['conv']['bias'], first.params['conv']['bias'])


def test_leaves_that_are_stacked_or_transposed_in_ways_nobody_agrees_on_are_refused(tmp_path):
  class Up(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.ConvTranspose(4, (3, 3), strides=(2, 2), use_bias=False, name='up')(x)

  write_safetensors(tmp_path / 'a.safetensors', {'up.weight': np.ones((4, 4, 3, 3), np.float32)}, {'format': 'pt'})
  with pytest.raises(WeightsError, match=r'up/kernel \(a transposed convolution.*transforms='):
    load_weights(Up(), tmp_path / 'a.safetensors', INPUTS)
  turned = {'up/kernel': lambda w: w[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)}
  assert load_weights(Up(), tmp_path / 'a.safetensors', INPUTS, transforms=turned).report.matched == ('up/kernel',)

  def scanned(p, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p['w'])[0]

  np.savez(tmp_path / 'b.npz', **{'net.w': np.ones((2, 3, 3), np.float32)})
  with pytest.raises(WeightsError, match=r'w \(it stacks several layers\)'):
    load_weights((scanned, {'w': jnp.zeros((2, 3, 3))}), tmp_path / 'b.npz', np.ones((1, 3)), layout='torch')


def test_the_report_is_read_by_people(saved):
  told = str(load_weights(Linen(classes=9), saved, INPUTS, head='new').report)
  assert '9 matched, 3 transposed, 2 new, 3 left out' in told
  assert "new: head='new' (2 arrays)" in told
  assert 'square.weight [4, 4] -> square/kernel' in told


def test_kernels_behind_a_flattened_picture_take_their_inputs_in_the_programs_order(tmp_path):
  class Flat(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.max_pool(nn.relu(nn.Conv(5, (3, 3), name='conv')(x)), (2, 2), (2, 2))
      return nn.Dense(2, name='head')(x.reshape(len(x), -1))

  class First(eqx.Module):
    conv: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __call__(self, x):
      h = eqx.nn.MaxPool2d(2, 2)(jax.nn.relu(self.conv(x.transpose(2, 0, 1))))
      return self.head(h.reshape(-1))

  rng = np.random.default_rng(2)
  arrays = {'conv.weight': rng.normal(size=(5, 4, 3, 3)), 'conv.bias': rng.normal(size=5)}
  arrays |= {'head.weight': rng.normal(size=(2, 45)), 'head.bias': rng.normal(size=2)}
  arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
  write_safetensors(tmp_path / 'a.safetensors', arrays, {'format': 'pt'})
  key = jax.random.key(0)
  first = First(eqx.nn.Conv2d(4, 5, 3, padding=1, key=key), eqx.nn.Linear(45, 2, key=key))
  one = load_weights(first, tmp_path / 'a.safetensors', INPUTS)  # channels first, as PyTorch: nothing moves
  np.testing.assert_array_equal(trees.by_path(one.network.params)['head/weight'], arrays['head.weight'])
  other = load_weights(Flat(), tmp_path / 'a.safetensors', INPUTS)
  np.testing.assert_allclose(other.network.predict(INPUTS), one.network.predict(INPUTS), rtol=1e-4, atol=1e-4)
  values = trees.by_path(other.network.params)
  np.savez(tmp_path / 'b.npz', **values)
  back = load_weights(first, tmp_path / 'b.npz', INPUTS)  # and the other way
  np.testing.assert_allclose(back.network.predict(INPUTS), one.network.predict(INPUTS), rtol=1e-4, atol=1e-4)

  class Pixels(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(2, name='head')(x.reshape(len(x), -1))

  class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(2, (3, 3), use_bias=False, name='conv')(x)
      return nn.LayerNorm(use_bias=False, name='norm')(x.reshape(len(x), -1))

  arrays = {'conv.weight': np.ones((2, 4, 3, 3), np.float32), 'norm.weight': np.ones(72, np.float32)}
  write_safetensors(tmp_path / 'd.safetensors', arrays, {'format': 'pt'})
  with pytest.raises(WeightsError, match=r'norm/scale \(it lies along a flattened picture'):
    load_weights(Normed(), tmp_path / 'd.safetensors', INPUTS)
  write_safetensors(tmp_path / 'c.safetensors', {'head.weight': np.ones((2, 144), np.float32)}, {'format': 'pt'})
  with pytest.raises(WeightsError, match=r'head/kernel \(its inputs are a flattened picture'):
    load_weights(Pixels(), tmp_path / 'c.safetensors', INPUTS, new='bias')


def test_files_whose_conventions_are_others_are_not_taken_for_torch(tmp_path):
  square = {'kernel.weight': np.arange(9, dtype=np.float32).reshape(3, 3)}
  write_safetensors(tmp_path / 'a.safetensors', square, {'format': 'mlx'})
  model, x = (lambda p, x: x @ p['kernel']['w'], {'kernel': {'w': jnp.zeros((3, 3))}}), np.ones((1, 3), np.float32)
  with pytest.raises(WeightsError, match='nobody says whether kernels are'):
    load_weights(model, tmp_path / 'a.safetensors', x)
  # GPT-2 on the hub is PyTorch and keeps [in, out]: seen by the kernels that are not square
  arrays = {**square, 'more.weight': np.ones((3, 5), np.float32)}
  write_safetensors(tmp_path / 'b.safetensors', arrays, {'format': 'pt'})
  both = (lambda p, x: x @ p['kernel']['w'] @ p['more']['w'], {**model[1], 'more': {'w': jnp.zeros((3, 5))}})
  with pytest.raises(WeightsError, match=r"more/w \[3, 5\] \(in the file \[3, 5\]\): give layout='jax', by which more"):
    load_weights(both, tmp_path / 'b.safetensors', x)
  assert not load_weights(both, tmp_path / 'b.safetensors', x, layout='jax').report.transposed


def test_what_is_asked_wrongly_is_told(saved):
  with pytest.raises(TypeError, match='inputs is one batch of arrays'):
    load_weights(Linen(), saved, (2, 6, 6, 4))
  with pytest.raises(ValueError, match='rules are expressions'):
    load_weights(Linen(), saved, INPUTS, rules={'^a': 5})
  with pytest.raises(ValueError, match="match is 'names' or 'order'"):
    load_weights(Linen(), saved, INPUTS, match='shape')
  with pytest.raises(ValueError, match=r"transforms 'hed' matches no parameter; nearest paths: head"):
    load_weights(Linen(), saved, INPUTS, transforms={'hed': (1, 0)})
  with pytest.raises(TypeError, match='a model is a Model, a Linen'):
    load_weights({'w': np.ones(3)}, saved, INPUTS)


def test_entries_that_are_not_finite_are_told(tmp_path):
  np.savez(tmp_path / 'w.npz', kernel=np.full((3, 2), np.nan, np.float32), bias=np.zeros(2, np.float32))
  report = load_weights(nn.Dense(2), tmp_path / 'w.npz', np.ones((1, 3), np.float32)).report
  assert [row.path for row in report.rows if 'not finite' in row.how] == ['kernel']


def test_frozen_variables_of_keras_are_filled_and_given_back(saved):
  net = keras_net()
  net.get_layer('conv').trainable = False
  loaded = load_weights(net, saved, INPUTS)
  wanted = expected(torch_arrays(), INPUTS)
  np.testing.assert_allclose(loaded.network.predict(INPUTS), wanted, rtol=2e-4, atol=2e-4)
  loaded.give_back()
  np.testing.assert_allclose(jax.jit(lambda x: net(x, training=False))(INPUTS), wanted, rtol=2e-4, atol=2e-4)
