"""Published weights: every tensor used or named, every array filled, and the numbers of those who published them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite import trees
from jaxlite.models import (
  MLP,
  DeepResNet,
  EfficientNetLite,
  EfficientNetLite0,
  EfficientNetLite1,
  MobileNetV2,
  ResNet18,
  ResNet50,
  ViT,
  published,
)
from jaxlite.models.weight_names import forms_of

pytestmark = pytest.mark.unoptimized

SMALL_VIT = ViT(16, 64, 2, 1, 96, classes=5, class_token=True, exact_gelu=True)


def published_shapes(module, form, size):
  """Shapes by name of what is published, from the network's own: as torch lays them."""
  images = jax.ShapeDtypeStruct((1, size, size, 3), 'float32')
  variables = jax.eval_shape(lambda key, x: module.init(key, x), jax.random.key(0), images)
  own, found = trees.by_path(variables), {}
  for path, source in form.table(module).items():
    shape = own[path].shape
    if len(source.names) > 1:
      shape = (*shape[:-1], shape[-1] // len(source.names))
    told = {
      'same': shape,
      'conv': (*shape[3:1:-1], *shape[:2]) if len(shape) == 4 else shape,
      'dense': shape[::-1],
      'patch': (shape[-1], 3, getattr(module, 'patch', 0), getattr(module, 'patch', 0)),
      'token': (1, 1, *shape),
      'positions': (1, *shape),
    }[source.form]
    found |= dict.fromkeys(source.names, told)
  return found


def random_tensors(module, form, size=32, seed=0):
  rng = np.random.default_rng(seed)

  def one(name, shape):
    if name.endswith('running_var'):
      return rng.uniform(0.5, 2.0, shape)
    if name.endswith(('running_mean', 'bias')):
      return rng.normal(0, 0.2, shape)
    if len(shape) == 1:
      return rng.uniform(0.7, 1.3, shape)
    return rng.normal(0, 1 / max(np.prod(shape[1:]), 1) ** 0.5, shape)

  return {name: one(name, shape).astype(np.float32) for name, shape in published_shapes(module, form, size).items()}


CASES = [
  (module, form)
  for module in (
    MobileNetV2(0.35, classes=5),
    EfficientNetLite(0.35, 0.5, classes=5),
    DeepResNet((1, 2), classes=5),
    DeepResNet((1, 2), bottleneck=True, classes=5),
    SMALL_VIT,
  )
  for form in forms_of(module)
  if form.name != 'transformers'  # these are compared with the same weights under timm's names
]
CASE = pytest.mark.parametrize('module, form', CASES, ids=[f'{type(one).__name__}-{form.name}' for one, form in CASES])
FEW = pytest.mark.parametrize(
  'module, form',
  [(one, forms_of(one)[0]) for one in (DeepResNet((1, 2), classes=5), SMALL_VIT)],
  ids=['resnet', 'vit'],
)


# The published networks once more, by torch's conventions: NCHW, kernels OIHW, in float64.


def conv(x, tensors, name, stride=1, same=False, bias=False):
  kernel = tensors[f'{name}.weight'].astype(np.float64)
  size, (high, wide) = kernel.shape[2], x.shape[2:]
  total = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in (high, wide)]
  pads = [(one // 2, one - one // 2) for one in total] if same else [(size // 2, size // 2)] * 2
  x = np.pad(x, ((0, 0), (0, 0), *pads))
  windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))[:, :, ::stride, ::stride]
  if kernel.shape[1] == 1 and x.shape[1] == kernel.shape[0]:
    found = np.einsum('bchwij,cij->bchw', windows, kernel[:, 0])
  else:
    found = np.einsum('bchwij,ocij->bohw', windows, kernel, optimize=True)
  return found + tensors[f'{name}.bias'][:, None, None] if bias else found


def norm(x, tensors, name, epsilon=1e-5):
  mean, var, scale, bias = (
    tensors[f'{name}.{one}'].astype(np.float64)[:, None, None]
    for one in ('running_mean', 'running_var', 'weight', 'bias')
  )
  return (x - mean) / np.sqrt(var + epsilon) * scale + bias


def linear(x, tensors, name):
  return x @ tensors[f'{name}.weight'].astype(np.float64).T + tensors[f'{name}.bias']


def relu(x):
  return np.maximum(x, 0)


def relu6(x):
  return np.clip(x, 0, 6)


def inverted(x, tensors, names, stages, same, epsilon):
  def normed(x, pair, stride=1):
    return norm(conv(x, tensors, pair[0], stride, same), tensors, pair[1], epsilon)

  x, index = relu6(normed(x, names['stem'], 2)), 0
  for stage, (expand, _, blocks, first, _) in enumerate(stages):
    for block in range(blocks):
      layers, y = names['block'](index, stage, block), x
      if expand != 1:
        y = relu6(normed(y, layers[-3]))
      y = normed(relu6(normed(y, layers[-2], first if block == 0 else 1)), layers[-1])
      x, index = (x + y if x.shape == y.shape else y), index + 1
  return linear(relu6(normed(x, names['last'])).mean((2, 3)), tensors, names['head'])


def torchvision_mobilenet(x, tensors, module):
  def block(index, stage, _):
    base, at = f'features.{index + 1}.conv', int(stage > 0)
    narrow = [(f'{base}.0.0', f'{base}.0.1')] if at else []
    return [*narrow, (f'{base}.{at}.0', f'{base}.{at}.1'), (f'{base}.{at + 1}', f'{base}.{at + 2}')]

  names = {'stem': ('features.0.0', 'features.0.1'), 'block': block, 'head': 'classifier.1'}
  names['last'] = ('features.18.0', 'features.18.1')
  return inverted(x, tensors, names, module.stages(), False, 1e-5)


def timm_inverted(x, tensors, module):
  def block(_, stage, place):
    base = f'blocks.{stage}.{place}'
    if stage == 0:
      return [(f'{base}.conv_dw', f'{base}.bn1'), (f'{base}.conv_pw', f'{base}.bn2')]
    return [(f'{base}.conv_{one}', f'{base}.bn{at}') for at, one in enumerate(('pw', 'dw', 'pwl'), 1)]

  names = {'stem': ('conv_stem', 'bn1'), 'last': ('conv_head', 'bn2'), 'block': block, 'head': 'classifier'}
  lite = isinstance(module, EfficientNetLite)
  return inverted(x, tensors, names, module.stages(), lite, 1e-3 if lite else 1e-5)


def pytorch_efficientnet(x, tensors, module):
  def block(index, stage, _):
    base = f'_blocks.{index}'
    kinds = [('depthwise', 1), ('project', 2)] if stage == 0 else [('expand', 0), ('depthwise', 1), ('project', 2)]
    return [(f'{base}._{one}_conv', f'{base}._bn{at}') for one, at in kinds]

  names = {'stem': ('_conv_stem', '_bn0'), 'last': ('_conv_head', '_bn1'), 'block': block, 'head': '_fc'}
  return inverted(x, tensors, names, module.stages(), True, 1e-3)


def torchvision_resnet(x, tensors, module):
  x = relu(norm(conv(x, tensors, 'conv1', 2), tensors, 'bn1'))
  padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
  x = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2].max((-1, -2))
  for stage, count in enumerate(module.blocks, 1):
    for block in range(count):
      base, stride, y = f'layer{stage}.{block}', 2 if stage > 1 and block == 0 else 1, x
      for layer in (1, 2, 3) if module.bottleneck else (1, 2):
        strided = layer == (2 if module.bottleneck else 1)
        y = norm(
          conv(relu(y) if layer > 1 else y, tensors, f'{base}.conv{layer}', stride if strided else 1),
          tensors,
          f'{base}.bn{layer}',
        )
      if f'{base}.downsample.0.weight' in tensors:
        x = norm(conv(x, tensors, f'{base}.downsample.0', stride), tensors, f'{base}.downsample.1')
      x = relu(x + y)
  return linear(x.mean((2, 3)), tensors, 'fc')


def timm_vit(x, tensors, module):
  from scipy.special import erf

  def layer_norm(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * tensors[f'{name}.weight'] + tensors[f'{name}.bias']

  p, d = module.patch, module.width
  rows = x.reshape(len(x), 3, x.shape[2] // p, p, x.shape[3] // p, p).transpose(0, 2, 4, 1, 3, 5)
  kernel = tensors['patch_embed.proj.weight'].astype(np.float64).reshape(d, -1)
  x = rows.reshape(len(x), -1, 3 * p * p) @ kernel.T + tensors['patch_embed.proj.bias']
  x = np.concatenate([np.broadcast_to(tensors['cls_token'], (len(x), 1, d)), x], 1) + tensors['pos_embed']
  for index in range(module.layers):
    base = f'blocks.{index}'
    y = linear(layer_norm(x, f'{base}.norm1'), tensors, f'{base}.attn.qkv')
    q, k, v = y.reshape(*x.shape[:2], 3, module.heads, -1).transpose(2, 0, 3, 1, 4)
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (shares / shares.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(x.shape)
    x = x + linear(mixed, tensors, f'{base}.attn.proj')
    y = linear(layer_norm(x, f'{base}.norm2'), tensors, f'{base}.mlp.fc1')
    x = x + linear(y * (1 + erf(y / np.sqrt(2))) / 2, tensors, f'{base}.mlp.fc2')
  return linear(layer_norm(x, 'norm')[:, 0], tensors, 'head')


ORACLES = {
  ('MobileNetV2', 'torchvision'): torchvision_mobilenet,
  ('MobileNetV2', 'timm'): timm_inverted,
  ('EfficientNetLite', 'timm'): timm_inverted,
  ('EfficientNetLite', 'efficientnet-pytorch'): pytorch_efficientnet,
  ('DeepResNet', 'torchvision'): torchvision_resnet,
  ('ViT', 'timm'): timm_vit,
}


@pytest.mark.sampled(4)
@CASE
def test_published_weights_give_the_logits_of_their_own_network(module, form):
  size = 48
  tensors = random_tensors(module, form, size)
  told = published(module, {**tensors, 'bn1.num_batches_tracked': np.int64(3)})
  assert told.form == form.name
  assert told.dropped == ('bn1.num_batches_tracked',)
  assert not told.fresh
  x = np.random.default_rng(1).normal(size=(1, size, size, 3)).astype(np.float32)
  found, pooled = jax.jit(lambda given, x: (module.apply(given, x), module.apply(given, x, method='features')))(
    told.variables, x
  )
  wanted = ORACLES[type(module).__name__, form.name](x.transpose(0, 3, 1, 2).astype(np.float64), tensors, module)
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
  head = told.variables['params'][module.classifier]
  np.testing.assert_allclose(pooled @ head['kernel'] + head['bias'], found, rtol=0, atol=1e-5 * np.abs(wanted).max())


@FEW
def test_what_does_not_fit_is_refused_by_name(module, form):
  tensors = random_tensors(module, form)
  one = sorted(tensors)[len(tensors) // 2]
  less = {name: array for name, array in tensors.items() if name != one}
  with pytest.raises(ValueError, match=f'1 array: {one} missing'):
    published(module, less)
  with pytest.raises(ValueError, match=r'1 array: another\.weight left over'):
    published(module, {**tensors, 'another.weight': np.ones(3)})
  assert published(module, {**tensors, 'another.weight': np.ones(3)}, drop='^another').dropped == ('another.weight',)
  with pytest.raises(ValueError, match=f'{one!r}.* is not finite'):
    published(module, {**tensors, one: np.full_like(tensors[one], np.nan)})
  with pytest.raises(ValueError, match=f'{one!r}.*got the shape'):
    published(module, {**tensors, one: np.ones((7, *tensors[one].shape[1:]), np.float32)})
  with pytest.raises(ValueError, match=f'{one!r}.*weights are floats'):
    published(module, {**tensors, one: tensors[one].astype(np.int32)})


@FEW
def test_a_new_head_takes_the_place_of_the_published_one(module, form):
  tensors = random_tensors(module, form)
  whole = published(module, tensors)
  other = dataclasses.replace(module, classes=3)
  with pytest.raises(ValueError, match='number of classes'):
    published(other, tensors)
  told = published(other, tensors, new_head=True)
  assert told.fresh == tuple(f'params/{module.classifier}/{one}' for one in ('bias', 'kernel'))
  assert len(told.dropped) == 2
  assert told.variables['params'][module.classifier]['kernel'].shape[1] == 3
  for path, leaf in trees.by_path(told.variables).items():
    if path not in told.fresh:
      assert np.array_equal(leaf, trees.by_path(whole.variables)[path])
  bare = {name: array for name, array in tensors.items() if name not in told.dropped}
  assert not published(other, bare, new_head=True).dropped
  with pytest.raises(ValueError, match='new_head=True'):
    published(module, bare)


def test_boxes_of_training_scripts_are_opened_and_halves_widened():
  module = DeepResNet((1,), classes=2)
  tensors = random_tensors(module, forms_of(module)[0])
  plain = published(module, tensors)
  for boxed in (
    {'state_dict': {f'module.{name}': array for name, array in tensors.items()}, 'epoch': 3},
    {f'state_dict/{name}': array for name, array in tensors.items()},
  ):
    told = published(module, boxed)
    assert told.notes
    assert all(map(np.array_equal, jax.tree.leaves(told.variables), jax.tree.leaves(plain.variables)))
  half = {name: jnp.asarray(array, jnp.bfloat16) for name, array in tensors.items()}
  told = published(module, half)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(told.variables)} == {'float32'}


def test_positions_are_interpolated_to_another_size_and_kept_at_their_own():
  form = forms_of(SMALL_VIT)[0]
  tensors = random_tensors(SMALL_VIT, form, 64)
  same = published(SMALL_VIT, tensors, 64).variables['params']['position_bias']
  assert np.array_equal(same, tensors['pos_embed'][0])
  told = published(SMALL_VIT, tensors, (32, 96))
  assert told.notes == ('positions of 4x4 patches are interpolated to 2x6',)
  x = np.zeros((1, 32, 96, 3), np.float32)
  assert jax.eval_shape(SMALL_VIT.apply, told.variables, x).shape == (1, 5)
  flat = {**tensors, 'pos_embed': np.ones_like(tensors['pos_embed'])}
  np.testing.assert_allclose(published(SMALL_VIT, flat, 96).variables['params']['position_bias'], 1, rtol=1e-6)


@pytest.mark.parametrize(
  'module, match',
  [
    (dataclasses.replace(SMALL_VIT, exact_gelu=False), 'exact_gelu=True'),
    (dataclasses.replace(SMALL_VIT, heads=4), 'heads=1'),
    (EfficientNetLite0(epsilon=1e-5), 'epsilon=0.001'),
    (MobileNetV2(epsilon=1e-3), 'epsilon=1e-05'),
  ],
)
def test_settings_that_names_do_not_tell_are_compared(module, match):
  with pytest.raises(ValueError, match=match):
    published(module, random_tensors(SMALL_VIT, forms_of(SMALL_VIT)[0]))


def test_weights_of_another_network_are_refused():
  tensors = random_tensors(ResNet18(), forms_of(ResNet18())[0])
  with pytest.raises(ValueError, match='are these weights of another network'):
    published(ResNet50(), tensors)
  with pytest.raises(ValueError, match='are these weights of another network'):
    published(EfficientNetLite1(), tensors)
  with pytest.raises(TypeError, match='MobileNetV2'):
    published(MLP((3,)), tensors)
  with pytest.raises(TypeError, match='mapping'):
    published(ResNet18(), [1])


def test_a_variance_below_zero_is_refused():
  module = DeepResNet((1,), classes=2)
  tensors = random_tensors(module, forms_of(module)[0])
  tensors['bn1.running_var'][3] = -1
  with pytest.raises(ValueError, match=r"'bn1\.running_var'.*below 0"):
    published(module, tensors)


@pytest.mark.parametrize('module', [DeepResNet((1, 2), bottleneck=True, classes=5), SMALL_VIT], ids=['resnet', 'vit'])
def test_names_of_transformers_give_the_same_arrays(module):
  plain, other = forms_of(module)
  tensors, renamed = random_tensors(module, plain), {}
  for path, source in other.table(module).items():
    whole = tensors[plain.table(module)[path].name]
    renamed |= dict(zip(source.names, np.split(whole, len(source.names)), strict=True))
  one = published(module, tensors)
  if isinstance(module, ViT):
    with pytest.raises(ValueError, match='epsilon=1e-12'):
      published(module, renamed)
  two = published(dataclasses.replace(module, epsilon=other.fields['epsilon']), renamed)
  assert two.form == 'transformers'
  assert all(map(np.array_equal, jax.tree.leaves(one.variables), jax.tree.leaves(two.variables)))
