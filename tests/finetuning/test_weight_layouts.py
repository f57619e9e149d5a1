"""Which way round an array lies is known from its file and from the program, or it is refused: nothing is guessed."""

import os

os.environ['KERAS_BACKEND'] = 'jax'  # before anybody imports it

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite import trees
from jaxlite.finetuning import WeightsError, load_weights
from jaxlite.host.safetensors_file import write_safetensors
from one_network import INPUTS

pytestmark = pytest.mark.unoptimized


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


class Chain(nn.Module):
  names: tuple[str | None, ...]

  @nn.compact
  def __call__(self, x):
    for name in self.names:
      x = nn.Dense(3, use_bias=False, name=name)(x)
    return x


@pytest.mark.parametrize(
  'theirs, ours',
  [
    (('fc1', 'fc2', 'fc3'), ('fc0', 'fc1', 'fc2')),
    (('1', '3', '5'), (None, None, None)),
    (('features.0', 'features.2', 'last.0', 'last.2'), ('Conv_0', 'Conv_1', 'Dense_0', 'Dense_1')),
    (('head', 'fc1', 'fc2'), ('fc3', 'fc1', 'fc2')),
  ],
)
def test_by_order_goes_before_names_whose_numbers_begin_elsewhere(theirs, ours):
  x, wanted = np.ones((1, 3), np.float32), list(range(len(theirs)))
  arrays = {f'{name}.weight': np.full((3, 3), place, np.float32) for place, name in zip(wanted, theirs, strict=True)}
  params = load_weights(Chain(ours), arrays, x, match='order').network.params
  names = [name or f'Dense_{place}' for place, name in enumerate(ours)]
  assert [int(params[name]['kernel'][0, 0]) for name in names] == wanted


def test_names_and_order_that_contradict_each_other_are_told():
  theirs = ('fc1', 'layer1.0.fc1', 'layer1.0.fc2', 'layer2.0.fc1')
  arrays = {f'{name}.weight': np.ones((3, 3), np.float32) for name in theirs}
  told = "by name 'fc1/kernel' is 'fc1.weight' and by order 'layer1.0.fc1.weight': say which by rules="
  with pytest.raises(WeightsError, match=told):
    load_weights(Chain(('fc0', 'fc1', 'fc2', 'fc3')), arrays, np.ones((1, 3), np.float32), match='order')


def test_by_order_is_that_of_numbers_where_a_file_sorts_its_names(tmp_path):
  """A file of safetensors has layer 10 before layer 2: of one shape, they would be exchanged in silence."""

  class Deep(nn.Module):
    @nn.compact
    def __call__(self, x):
      for _ in range(11):
        x = nn.Dense(3, use_bias=False)(x)
      return x

  x = np.ones((1, 3), np.float32)
  arrays = {f'stack.{layer}.fc.weight': np.full((3, 3), layer, np.float32) for layer in range(11)}
  write_safetensors(tmp_path / 'w', arrays, {'format': 'pt'})
  loaded = load_weights(Deep(), tmp_path / 'w', x, match='order')
  assert [int(loaded.network.params[f'Dense_{layer}']['kernel'][0, 0]) for layer in range(11)] == list(range(11))
  words = [f'{chr(97 + layer)}.fc.weight' for layer in reversed(range(11))]
  write_safetensors(tmp_path / 'w', dict(zip(words, arrays.values(), strict=True)), {'format': 'pt'})
  with pytest.raises(WeightsError, match='differ in more than numbers'):
    load_weights(Deep(), tmp_path / 'w', x, match='order')


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
  with pytest.raises(
    WeightsError,
    match=r"more/w \[3, 5\] \(in the file \[3, 5\], read as \[out, in\]\): give layout='jax', by which more",
  ):
    load_weights(both, tmp_path / 'b.safetensors', x)
  assert not load_weights(both, tmp_path / 'b.safetensors', x, layout='jax').report.transposed
