"""The reference networks: documented sizes, accepted inputs, and pooling against NumPy."""

from __future__ import annotations

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite import adapters, trees
from jaxlite.contract import Network
from jaxlite.models import MLP, LeNet5, LeNet300, SmallCNN, max_pool, summary
from jaxlite.models.layers import ConvPool

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)


@pytest.mark.parametrize(
  'module, shape, parameters, macs',
  [
    (LeNet300(), (1, 28, 28, 1), 266_610, 266_200),
    (LeNet5(), (1, 28, 28, 1), 431_080, 2_293_000),
    (SmallCNN(), (1, 28, 28, 1), 421_642, 4_241_152),
    (SmallCNN(), (1, 8, 8, 1), 53_002, 347_392),
    (SmallCNN(batch_norm=True), (1, 8, 8, 1), 53_002 + 32 + 64, 347_392),  # scale and offset for a bias
    (MLP((5,), classes=2), (3, 4), 4 * 5 + 5 + 5 * 2 + 2, 3 * (4 * 5 + 5 * 2)),
  ],
)
def test_documented_counts_are_those_of_the_model(module, shape, parameters, macs):
  assert summary(module, shape) == (parameters, 2 * macs)
  text = re.sub(r'\s+', ' ', type(module).__doc__).replace(',', '')
  if shape[0] == 1 and not getattr(module, 'batch_norm', False):
    assert f'{parameters} parameters' in text
    assert f'2 * {macs} = {2 * macs} FLOPs' in text


@pytest.mark.parametrize('relu', [False, True])
def test_lenet5_is_what_it_says_with_and_without_a_relu_after_each_pool(relu):
  module, x = LeNet5(relu=relu), np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
  params = module.init(KEY, x)['params']
  act, found = (jax.nn.relu if relu else lambda y: y), jnp.asarray(x)
  for name in ('conv1', 'conv2'):
    found = jax.lax.conv(found.transpose(0, 3, 1, 2), params[name]['kernel'].transpose(3, 2, 0, 1), (1, 1), 'VALID')
    found = act(nn.max_pool(found.transpose(0, 2, 3, 1), (2, 2), (2, 2)) + params[name]['bias'])
  found = jax.nn.relu(found.reshape(2, -1) @ params['dense1']['kernel'] + params['dense1']['bias'])
  found = found @ params['dense2']['kernel'] + params['dense2']['bias']
  np.testing.assert_allclose(module.apply({'params': params}, x), found, rtol=1e-4, atol=1e-5)


def test_flops_count_scans_by_length_conds_by_the_dearest_branch_and_groups():
  def apply(params, x):
    x = jax.lax.scan(lambda c, w: (c @ w, None), x, params['stack'])[0]
    x = jax.lax.cond(x.sum() > 0, lambda y: y @ params['w'], lambda y: y, x)
    return jax.jit(jnp.matmul)(x, params['w'])

  params = {'stack': jnp.ones((3, 4, 4)), 'w': jnp.ones((4, 4))}
  assert summary((apply, params), (2, 4)) == (64, 2 * 2 * 16 * 5)
  grouped = nn.Conv(8, (3, 3), feature_group_count=4, use_bias=False)
  assert summary(grouped, (2, 5, 5, 8)) == (3 * 3 * 2 * 8, 2 * 2 * 25 * 9 * 2 * 8)


@pytest.mark.unoptimized(False)  # bits are judged
@pytest.mark.parametrize(
  'module, size', [(MLP(()), 8), (MLP([5]), 3), (SmallCNN((4, 4), 8), 8), (SmallCNN((4, 6), 8, batch_norm=True), 13)]
)
def test_gray_images_come_with_or_without_channels_and_of_any_dtype(module, size):
  model = adapters.adapt(module)
  images = np.random.default_rng(0).integers(0, 2, (3, size, size, 1)).astype(np.uint8)
  params, state = model.init(KEY, images)
  predict = Network(model, params, state).predict
  outputs = predict(images)
  assert outputs.shape == (3, 10)
  assert outputs.dtype == jnp.float32
  for other in (images[..., 0], images.astype(np.float32), images.astype(bool)):
    assert np.array_equal(predict(other), outputs)
  assert predict(images[:0]).shape == (0, 10)


def test_half_precision_computes_in_it_and_keeps_float32_parameters_and_logits():
  module = SmallCNN(features=(4,), hidden=8, batch_norm=True, dtype=jnp.bfloat16)
  images = jnp.ones((2, 8, 8, 1))
  variables = module.init(KEY, images)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  jaxpr = str(jax.make_jaxpr(module.apply)(variables, images))
  assert re.search(r'bf16\[2,8,8,4\] = conv_general_dilated', jaxpr)
  assert module.apply(variables, images).dtype == jnp.float32


def test_dropout_and_batch_norm_train():
  model = adapters.adapt(SmallCNN(features=(4,), hidden=32, dropout=0.5, batch_norm=True))
  images = jax.random.normal(KEY, (16, 8, 8, 1))
  params, state = model.init(KEY, images)
  assert trees.paths(state) == ['batch_stats/norm1/mean', 'batch_stats/norm1/var']
  run = jax.jit(lambda step: model.apply(params, state, images, train=True, key=KEY, step=step))
  (one, new), (other, _) = run(0), run(1)
  assert not np.array_equal(one, other)
  assert not np.array_equal(new['batch_stats']['norm1']['mean'], state['batch_stats']['norm1']['mean'])


@pytest.mark.parametrize(
  'module, shape, rule',
  [
    (LeNet5(), (2, 8, 8, 1), 'LeNet5 takes images of at least 16x16 pixels'),
    (SmallCNN(features=(4, 4, 4)), (2, 7, 9, 1), 'SmallCNN takes images of at least 8x8 pixels'),
    (SmallCNN(), (2, 784), r'SmallCNN takes images \[B, H, W, C\] or \[B, H, W\]; got \[2, 784\]'),
    (MLP((3,)), (784,), r'MLP takes a batch, \[B, ...\]; got \[784\]'),
  ],
)
def test_inputs_that_do_not_fit_are_named(module, shape, rule):
  with pytest.raises(ValueError, match=rule):
    module.init(KEY, jnp.ones(shape))


@pytest.mark.parametrize('shape, size', [((2, 6, 4, 3), 2), ((1, 7, 5, 2), 2), ((2, 3, 8, 1), 3), ((1, 4, 4, 1), 1)])
def test_max_pool_and_its_gradient_are_those_of_numpy(shape, size):
  x = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(np.float32)  # no ties
  rows, columns = shape[1] // size, shape[2] // size
  up = np.arange(shape[0] * rows * columns * shape[3], dtype=np.float32).reshape(shape[0], rows, columns, shape[3])
  oracle, slopes = np.zeros_like(up), np.zeros_like(x)
  for index in np.ndindex(*up.shape):
    image, row, column, channel = index
    window = np.s_[image, row * size : (row + 1) * size, column * size : (column + 1) * size, channel]
    oracle[index] = x[window].max()
    slopes[window] = up[index] * (x[window] == oracle[index])
  assert np.array_equal(max_pool(jnp.asarray(x), size), oracle)
  assert np.array_equal(jax.grad(lambda x: (max_pool(x, size) * up).sum())(jnp.asarray(x)), slopes)
  half, up = jnp.asarray(x, jnp.bfloat16), jnp.asarray(up, jnp.bfloat16)  # integers below 256: none is rounded
  assert np.array_equal(max_pool(half, size), oracle)
  assert max_pool(half, size).dtype == jnp.bfloat16
  slope = jax.grad(lambda x: (max_pool(x, size) * up).astype(jnp.float32).sum())(half)
  assert np.array_equal(slope, np.asarray(jnp.asarray(slopes, jnp.bfloat16)))


@pytest.mark.parametrize('size', [2, 3])
def test_max_pool_and_its_gradient_are_those_of_flax_where_entries_tie_or_are_nan(size):
  x = jnp.asarray(np.random.default_rng(0).integers(-1, 2, (4, 7, 6, 3)), jnp.float32)
  x = x.at[0, 1, 0, 0].set(jnp.nan).at[1, 0, 0, 1].set(jnp.nan)

  def slopes(pool):
    return jax.value_and_grad(lambda x: (pool(x) * jnp.arange(3.0)).sum())(x)

  mine, theirs = slopes(lambda x: max_pool(x, size)), slopes(lambda x: nn.max_pool(x, (size, size), (size, size)))
  np.testing.assert_array_equal(mine[1], theirs[1])
  np.testing.assert_array_equal(mine[0], theirs[0])


def test_max_pool_refuses_what_is_smaller_than_a_window():
  with pytest.raises(ValueError, match='at least 2x2 pixels'):
    max_pool(jnp.zeros((1, 1, 4, 1)))


@pytest.mark.parametrize('relu', [False, True])
def test_bias_and_relu_after_the_pool_give_the_numbers_of_those_before_it(relu):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 9, 8, 2)), jnp.float32)
  layer = ConvPool(5, relu=relu)
  params = layer.init(jax.random.key(0), x)
  params = jax.tree.map(lambda leaf: leaf + 0.1, params)

  def before(params, x):
    y = nn.Conv(5, (3, 3)).apply(params, x)
    return nn.max_pool(nn.relu(y) if relu else y, (2, 2), (2, 2))

  np.testing.assert_array_equal(layer.apply(params, x), before(params, x))
  mine, theirs = (jax.grad(lambda p, f=f: (f(p, x) ** 2).sum())(params) for f in (layer.apply, before))
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5), mine, theirs)
