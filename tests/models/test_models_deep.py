"""ResNet, depthwise network and ViT: sizes by formula, forwards against NumPy in float64, stochastic depth."""

from __future__ import annotations

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite import adapters, trees
from jaxlite.graph.walk import bodies, opened
from jaxlite.models import DepthwiseCNN, ResNet, ResNet8, ResNet20, ViT, summary
from jaxlite.models.layers import depth_rates, scaled_normal

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
TINY = {
  'resnet': ResNet(blocks=2, widths=(3, 5), classes=4),
  'projected': ResNet(blocks=1, widths=(3, 5), classes=4, projection=True),
  'depthwise': DepthwiseCNN(3, ((5, 2), (5, 1)), classes=4),
  'vit': ViT(patch=2, width=6, layers=2, heads=3, hidden=5, classes=4),
  'vit_token': ViT(patch=4, width=6, layers=1, heads=2, hidden=5, classes=4, class_token=True),
}


# sizes


def resnet_size(blocks, widths, size, channels, classes, projection):
  """(parameters, multiply-adds) by hand: the stem, two 3x3 convolutions a block, norms, shortcuts, the dense layer."""
  parameters, macs, last = 9 * channels * widths[0] + 2 * widths[0], size**2 * 9 * channels * widths[0], widths[0]
  for stage, width in enumerate(widths):
    size = -(-size // 2) if stage else size
    for block in range(blocks):
      came = last if block == 0 else width
      parameters += 9 * came * width + 9 * width * width + 4 * width
      macs += size**2 * (9 * came * width + 9 * width * width)
      if projection and came != width:
        parameters += came * width + 2 * width
        macs += size**2 * came * width
    last = width
  return parameters + last * classes + classes, macs + last * classes


def depthwise_size(stem, blocks, size, channels, classes):
  parameters, macs, last = 9 * channels * stem + 2 * stem, size**2 * 9 * channels * stem, stem
  for width, stride in blocks:
    size = -(-size // stride)
    parameters += 9 * last + 2 * last + last * width + 2 * width
    macs += size**2 * (9 * last + last * width)
    last = width
  return parameters + last * classes + classes, macs + last * classes


def vit_size(net, size, channels):
  d, h, count, pixels = net.width, net.hidden, net.layers, net.patch**2 * channels
  patches = (size // net.patch) ** 2
  tokens = patches + net.class_token
  parameters = pixels * d + d + tokens * d + count * (4 * d * d + 2 * d * h + 9 * d + h) + 2 * d
  macs = patches * pixels * d + count * (tokens * (4 * d * d + 2 * d * h) + 2 * tokens**2 * d)
  return parameters + net.class_token * d + d * net.classes + net.classes, macs + d * net.classes


def size_of(net, size, channels):
  if isinstance(net, ResNet):
    return resnet_size(net.blocks, net.widths, size, channels, net.classes, net.projection)
  if isinstance(net, DepthwiseCNN):
    return depthwise_size(net.stem, net.blocks, size, channels, net.classes)
  return vit_size(net, size, channels)


@pytest.mark.parametrize(
  'net, size, channels',
  [
    (ResNet8(), 32, 3),
    (ResNet20(), 32, 3),
    (ResNet20(projection=True), 32, 3),
    (ResNet8(), 28, 1),
    (DepthwiseCNN(), 28, 1),
    (DepthwiseCNN(), 32, 3),
    (ViT(), 32, 3),
    (ViT(), 28, 1),
    (ViT(class_token=True), 28, 1),
    (TINY['resnet'], 9, 2),
    (TINY['depthwise'], 7, 1),
    (TINY['vit'], 8, 1),
  ],
)
def test_sizes_are_those_of_the_hand_formulas_and_of_the_docstrings(net, size, channels):
  parameters, macs = size_of(net, size, channels)
  assert summary(net, (1, size, size, channels)) == (parameters, 2 * macs)
  text = re.sub(r'\s+', ' ', type(net).__doc__).replace(',', '')
  documented = {ResNet8: [32], ResNet20: [32], DepthwiseCNN: [28, 32], ViT: [28, 32]}.get(type(net), [])
  if net == type(net)() and size in documented:
    assert f'{parameters} parameters' in text
    assert f'2 * {macs} = {2 * macs} FLOPs' in text


def test_published_counts():
  assert round(summary(ResNet20(), (1, 32, 32, 3)).parameters / 1e6, 2) == 0.27  # table 6 of the paper
  assert resnet_size(9, (16, 32, 64), 32, 3, 10, False)[0] == 853_018  # ResNet-56, given as 0.85 M
  assert resnet_size(3, (16, 32, 64), 32, 3, 10, True)[0] - resnet_size(3, (16, 32, 64), 32, 3, 10, False)[0] == 2_752


# forwards


def conv(x, kernel, stride=1, groups=1):
  """A convolution padded by half its kernel, [B, H, W, C] by [k, k, C / groups, D]."""
  size, pad = kernel.shape[0], kernel.shape[0] // 2
  x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
  windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
  if groups == 1:
    return np.einsum('bhwckl,klcd->bhwd', windows, kernel)
  return np.einsum('bhwckl,klc->bhwc', windows, kernel[:, :, 0])


def norm(x, own, stats=None, axes=(0, 1, 2), epsilon=1e-5):
  mean, var = (x.mean(axes, keepdims=True), x.var(axes, keepdims=True)) if stats is None else stats.values()
  return (x - mean) / np.sqrt(var + epsilon) * own['scale'] + own['bias']


def relu(x):
  return np.maximum(x, 0)


def resnet_forward(net, p, x):
  def conv_norm(x, own, stride=1):
    return norm(conv(x, own['conv']['kernel'], stride), own['norm'])

  x = relu(conv_norm(x, p['stem']))
  for stage, width in enumerate(net.widths, 1):
    for block in range(1, net.blocks + 1):
      own, stride = p[f'stage{stage}_block{block}'], 2 if stage > 1 and block == 1 else 1
      y = conv_norm(relu(conv_norm(x, own['first'], stride)), own['second'])
      if stride == 2:
        grown = np.zeros((*y.shape[:3], width))
        grown[..., : x.shape[-1]] = x[:, ::2, ::2]
        x = conv_norm(x, own['shortcut'], 2) if net.projection else grown
      x = relu(x + y)
  return x.mean((1, 2)) @ p['dense']['kernel'] + p['dense']['bias']


def depthwise_forward(net, p, x):
  x = relu(norm(conv(x, p['stem']['kernel']), p['stem_norm']))
  for index, (_, stride) in enumerate(net.blocks, 1):
    x = conv(x, p[f'depthwise{index}']['kernel'], stride, groups=x.shape[-1])
    x = relu(norm(x, p[f'depthwise{index}_norm']))
    x = relu(norm(conv(x, p[f'pointwise{index}']['kernel']), p[f'pointwise{index}_norm']))
  return x.mean((1, 2)) @ p['dense']['kernel'] + p['dense']['bias']


def vit_forward(net, p, x):
  def dense(x, own):
    return x @ own['kernel'] + own['bias']

  def layer_norm(x, own):
    return norm(x, own, axes=-1, epsilon=1e-6)

  batch, height, width, _ = x.shape
  rows = [
    x[:, i : i + net.patch, j : j + net.patch].reshape(batch, -1)
    for i in range(0, height, net.patch)
    for j in range(0, width, net.patch)
  ]
  x = dense(np.stack(rows, 1), p['embed'])
  if net.class_token:
    x = np.concatenate([np.broadcast_to(p['class_token'], (batch, 1, net.width)), x], 1)
  x = x + p['position_bias']
  for index in range(1, net.layers + 1):
    own = p[f'block{index}']
    q, k, v = np.split(dense(layer_norm(x, own['norm1']), own['qkv']), 3, axis=-1)
    each = net.width // net.heads
    mixed = np.zeros_like(x)
    for head in range(net.heads):
      mine = np.s_[..., head * each : (head + 1) * each]
      scores = q[mine] @ np.swapaxes(k[mine], 1, 2) / np.sqrt(each)
      shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
      mixed[mine] = shares @ v[mine]
    x = x + dense(mixed, own['out'])
    y = dense(layer_norm(x, own['norm2']), own['dense1'])
    x = x + dense(y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))), own['dense2'])
  x = layer_norm(x, p['norm'])
  return dense(x[:, 0] if net.class_token else x.mean(1), p['dense'])


@pytest.fixture(scope='module')
def built():
  """Each tiny network with random values everywhere, so that no scale of 1 or offset of 0 hides a mistake."""
  made = {}
  for name, net in TINY.items():
    model = adapters.adapt(net)
    shapes = jax.eval_shape(model.init, KEY, jnp.ones((1, 8, 8, 2)))
    draw = lambda leaf: RNG.normal(0.3, 0.5, leaf.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(draw, shapes[0])
    state = jax.tree.map(lambda leaf: RNG.uniform(0.5, 1.5, leaf.shape).astype(np.float32), shapes[1])
    made[name] = (model, params, state)
  return made


@pytest.mark.parametrize('name', TINY)
def test_the_forward_is_that_of_numpy_in_training_and_batch_statistics_are_tracked(built, name):
  model, params, state = built[name]
  x = RNG.normal(size=(3, 8, 8, 2)).astype(np.float32)
  forward = {ResNet: resnet_forward, DepthwiseCNN: depthwise_forward, ViT: vit_forward}[type(TINY[name])]
  outputs, new = jax.jit(lambda p, s, x: model.apply(p, s, x, train=True, key=None))(params, state, x)
  wanted = forward(TINY[name], jax.tree.map(np.float64, params), np.float64(x))
  np.testing.assert_allclose(outputs, wanted, rtol=2e-4, atol=2e-4)
  if 'vit' in name:
    assert state == {}
    return
  stem = params['stem']['conv'] if name != 'depthwise' else params['stem']
  seen = conv(np.float64(x), np.float64(stem['kernel'])).mean((0, 1, 2))
  own = 'stem_norm' if name == 'depthwise' else 'stem'
  old, now = (tree['batch_stats'][own] for tree in (state, new))
  old, now = (old, now) if name == 'depthwise' else (old['norm'], now['norm'])
  np.testing.assert_allclose(now['mean'], 0.9 * old['mean'] + 0.1 * seen, rtol=1e-4, atol=1e-5)


@pytest.mark.sampled(2)
@pytest.mark.unoptimized(False)  # bits are judged
@pytest.mark.parametrize('name', ['resnet', 'depthwise', 'vit', 'vit_token'])
def test_evaluation_takes_any_dtype_gray_images_and_empty_batches_and_sees_examples_alone(name):
  net = TINY[name]
  model = adapters.adapt(net)
  images = RNG.integers(0, 2, (3, 8, 8, 1)).astype(np.uint8)
  shapes = jax.eval_shape(model.init, KEY, images)
  params, state = jax.tree.map(lambda leaf: RNG.uniform(0.1, 0.5, leaf.shape).astype(np.float32), shapes)
  predict = jax.jit(lambda x: model.apply(params, state, x, train=False, key=None)[0])
  outputs = predict(images)
  assert outputs.shape == (3, 4)
  assert outputs.dtype == jnp.float32
  for other in (images[..., 0], images.astype(np.float32)):
    np.testing.assert_array_equal(predict(other), outputs)
  others = np.where(np.arange(3)[:, None, None, None] == 1, images, 1 - images)
  np.testing.assert_array_equal(predict(others)[1], outputs[1])
  assert jax.eval_shape(predict, images[:0]).shape == (0, 4)


def test_only_contractions_are_weights_and_selections_by_name_leave_norms_and_positions_alone():
  for net, added in ((ResNet20(), ()), (DepthwiseCNN(), ()), (ViT(class_token=True), ('position_bias', 'class_token'))):
    params = jax.eval_shape(adapters.adapt(net).init, KEY, jnp.ones((1, 32, 32, 3)))[0]
    chosen = trees.weight_paths(params, None, None, what='test')
    assert chosen == {path for path in trees.paths(params) if path.endswith('kernel')}
    assert set(added) <= set(trees.paths(params))


def operand_dtypes(jaxpr):
  for eqn in opened(jaxpr)[0].eqns:
    if eqn.primitive.name in ('dot_general', 'conv_general_dilated'):
      yield from (str(operand.aval.dtype) for operand in eqn.invars)
    for body in bodies(eqn):
      yield from operand_dtypes(body)


@pytest.mark.parametrize('name', ['resnet', 'depthwise', 'vit'])
def test_half_precision_computes_in_it_and_keeps_float32_parameters_and_logits(name):
  net = TINY[name].clone(dtype=jnp.bfloat16)
  variables = jax.eval_shape(net.init, KEY, jnp.ones((2, 8, 8, 1)))
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  jaxpr = jax.make_jaxpr(net.apply)(variables, jnp.ones((2, 8, 8, 1)))
  assert set(operand_dtypes(jaxpr)) == {'bfloat16'}
  assert jaxpr.out_avals[0].dtype == jnp.float32


def test_first_values_are_those_of_flax():
  for scale, theirs, shape in (
    (2.0, nn.initializers.he_normal(), (3, 3, 2, 4)),
    (1.0, nn.initializers.lecun_normal(), (5, 7)),
  ):
    np.testing.assert_allclose(scaled_normal(scale)(KEY, shape), theirs(KEY, shape), rtol=1e-6)


# stochastic depth


def test_drop_rates_grow_linearly():
  assert depth_rates(0.5, 4, 'x') == [0.125, 0.25, 0.375, 0.5]
  assert depth_rates(0.0, 2, 'x') == [0.0, 0.0]


@pytest.mark.parametrize('name', ['resnet', 'vit'])
def test_stochastic_depth_drops_whole_examples_in_training_and_nothing_in_evaluation(built, name):
  """Only the last branch adds something, a constant: the logits of an example tell whether it passed by."""
  plain, params, state = built[name]
  rate, count = 0.25, 2_000
  model = adapters.adapt(TINY[name].clone(drop_path=rate))
  quiet = jax.tree.map(np.zeros_like, params)
  if name == 'resnet':
    quiet['stage2_block2']['second']['norm']['bias'] += 3
    quiet['dense']['kernel'] += 1
  else:
    quiet['block2']['dense2']['bias'] += np.arange(6, dtype=np.float32)
    quiet['norm']['scale'] += 1
    quiet['dense']['kernel'] += np.arange(6, dtype=np.float32)[:, None]
  x = np.zeros((count, 8, 8, 2), np.float32)
  # Values are arguments: XLA:CPU folds this forward to a fifth of its value where all of them are constants.
  jitted = jax.jit(lambda p, x, step: model.apply(p, state, x, train=True, key=KEY, step=step)[0][:, 0])
  run = lambda step: np.asarray(jitted(quiet, x, step))  # noqa: E731
  logits = run(0)
  kept = logits > 1
  assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / count)
  assert np.ptp(logits[kept]) == 0
  assert not logits[~kept].any()
  if name == 'resnet':
    np.testing.assert_allclose(logits[kept], 3 * 5 / (1 - rate), rtol=1e-5)
  np.testing.assert_array_equal(run(0), logits)
  assert (run(1) != logits).any()
  few = RNG.normal(size=(2, 8, 8, 2)).astype(np.float32)
  forwards = [
    jax.make_jaxpr(lambda x, m=each: m.apply(params, state, x, train=False, key=None)[0])(few)
    for each in (model, plain)
  ]
  assert str(forwards[0]) == str(forwards[1])  # the very same program


def test_without_stochastic_depth_training_needs_no_key(built):
  for name in ('resnet', 'vit'):
    model, params, state = built[name]
    jaxpr = jax.make_jaxpr(lambda p, s, m=model: m.apply(p, s, jnp.ones((2, 8, 8, 2)), train=True, key=KEY, step=0)[0])(
      params, state
    )
    assert 'random_bits' not in str(jaxpr)


# bad input


@pytest.mark.parametrize(
  'net, shape, rule',
  [
    (ResNet(blocks=0), (2, 8, 8, 1), r'ResNet has stages of at least one block'),
    (ResNet20(widths=(32, 16)), (2, 8, 8, 1), r'ResNet20 has .* widths that do not fall; got blocks=3, \(32, 16\)'),
    (ResNet20(widths=()), (2, 8, 8, 1), r'ResNet20 has stages'),
    (ResNet20(), (2, 3, 8, 1), r'ResNet20 takes images of at least 4x4 pixels; got \[2, 3, 8, 1\]'),
    (ResNet8(), (2, 784), r'ResNet8 takes images \[B, H, W, C\] or \[B, H, W\]; got \[2, 784\]'),
    (ResNet8(drop_path=1.0), (2, 8, 8), r'ResNet8: drop_path is the share dropped at .* \[0, 1\); got 1'),
    (DepthwiseCNN(), (2, 7, 7, 1), r'DepthwiseCNN takes images of at least 8x8 pixels'),
    (DepthwiseCNN(blocks=((8,),)), (2, 8, 8, 1), r'a block of DepthwiseCNN is \(channels, stride\)'),
    (DepthwiseCNN(blocks=((8, 0),)), (2, 8, 8, 1), r'a block of DepthwiseCNN is \(channels, stride\), each at least 1'),
    (ViT(), (2, 30, 28, 1), r'the patches of a ViT tile the image; got 4x4 for 30x28: set patch='),
    (ViT(), (2, 2, 4, 1), r'ViT takes images of at least 4x4 pixels'),
    (ViT(patch=0), (2, 8, 8, 1), r'the patches of a ViT tile the image; got 0x0'),
    (ViT(heads=3), (2, 8, 8, 1), r'the width of a ViT is a multiple of its heads; got width=128, heads=3'),
    (ViT(drop_path=-0.1), (2, 8, 8, 1), r'ViT: drop_path is the share dropped'),
  ],
)
def test_what_does_not_fit_is_named_in_one_line(net, shape, rule):
  with pytest.raises(ValueError, match=rule) as caught:
    jax.eval_shape(net.init, KEY, jnp.ones(shape))
  assert '\n' not in str(caught.value)


def test_another_image_size_than_at_first_is_named(built):
  model, params, state = built['vit']
  with pytest.raises(ValueError, match='a ViT works on the image size that it began with: 16 tokens; this image has 4'):
    model.apply(params, state, jnp.ones((1, 4, 4, 2)), train=False, key=None)
