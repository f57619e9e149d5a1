"""Networks for photographs among the parts: quantized whole, pruned, shrunk, trained with what a run trains with."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import trees
from jaxlite.adapters import from_linen
from jaxlite.models import DeepResNet, EfficientNetLite, MobileNetV2, ViT
from jaxlite.models.saved import described, made

pytestmark = pytest.mark.unoptimized

NETWORKS = [
  MobileNetV2(0.35, classes=4),
  EfficientNetLite(0.35, 0.5, classes=4),
  DeepResNet((1, 1), classes=4),
  DeepResNet((1, 1), bottleneck=True, classes=4),
]
EACH = pytest.mark.parametrize('module', NETWORKS, ids=['mobilenet', 'efficientnet', 'basic', 'bottleneck'])
X = jax.ShapeDtypeStruct((2, 32, 32, 3), 'float32')


@EACH
def test_every_product_has_a_form_in_integers(module):
  model = from_linen(module)
  params, state = jax.eval_shape(model.init, jax.random.key(0), X)
  told = jl.coverage(lambda params, state, x: model.apply(params, state, x, train=False, key=None)[0])(params, state, X)
  assert [row.name for row in told if row.bits is None] == []
  kernels = [path for path in trees.paths(params) if path.endswith('kernel')]
  assert len(told) == len(kernels)


@EACH
def test_a_network_is_opened_from_what_is_kept_of_it(module):
  assert made(described(module)) == module


@pytest.mark.parametrize(
  'module', [NETWORKS[2], ViT(8, 8, 1, 1, 8, class_token=True)], ids=lambda one: type(one).__name__
)
def test_features_are_what_the_classifier_reads(module):
  x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
  params, state = from_linen(module).init(jax.random.key(0), x)
  variables = {'params': params, **state}

  def both(variables, x):
    return (
      module.apply(variables, x),
      module.apply(variables, x, method='features'),
      module.apply(variables, x, pooled=True),
    )

  logits, features, pooled = jax.jit(both)(variables, x)
  head = variables['params'][module.classifier]
  assert np.array_equal(features, pooled)
  np.testing.assert_allclose(features @ head['kernel'] + head['bias'], logits, rtol=1e-4, atol=1e-5)


def test_kept_statistics_stay_in_training_and_normalize_there():
  module = DeepResNet((1,), classes=2, keep_statistics=True)
  x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
  model = from_linen(module)
  params, state = model.init(jax.random.key(0), x)
  run = jax.jit(model.apply, static_argnames='train')
  logits, same = run(params, state, x, train=True, key=jax.random.key(1))
  assert all(map(np.array_equal, jax.tree.leaves(same), jax.tree.leaves(state)))
  np.testing.assert_allclose(logits, run(params, state, x, train=False, key=None)[0], rtol=1e-5, atol=1e-6)
  _, moved = from_linen(dataclasses.replace(module, keep_statistics=False)).apply(
    params, state, x, train=True, key=jax.random.key(1)
  )
  assert not np.array_equal(moved['batch_stats']['stem']['norm']['mean'], state['batch_stats']['stem']['norm']['mean'])


@pytest.mark.parametrize(
  'module, match',
  [
    (MobileNetV2(0), 'width multiplies'),
    (MobileNetV2(dropout=1.0), 'dropout is the share'),
    (MobileNetV2(drop_path=1.0), 'drop_path is the share'),
    (EfficientNetLite(depth=float('nan')), 'depth multiplies'),
    (DeepResNet(()), 'at least one block'),
  ],
)
def test_fields_that_cannot_be_are_refused(module, match):
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(module.init, jax.random.key(0), X)
  with pytest.raises(ValueError, match='at least 32x32'):
    jax.eval_shape(MobileNetV2().init, jax.random.key(0), jnp.zeros((1, 31, 40, 3)))


@pytest.mark.slow
@EACH
def test_pruned_and_quantized_training_then_files(module, tmp_path):
  model = from_linen(module)
  x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
  recipe = jl.chain(jl.fake_quant(bits=8), optax.adam(1e-3), jl.prune(sparsity=0.5, begin=0, end=2, every=1))
  train = jl.train_step(model, jl.cross_entropy, recipe)
  batch = {'inputs': x, 'labels': np.arange(4)}
  state = train.init(jax.random.key(0), batch)
  for _ in range(3):
    state, metrics = train.step(state, batch)
  assert np.isfinite(metrics['loss'])
  zeros = {
    path: float((leaf == 0).mean()) for path, leaf in trees.by_path(state.params).items() if path.endswith('kernel')
  }
  assert 0.4 < sum(zeros.values()) / len(zeros) < 0.6
  smaller = jl.shrink(
    model,
    state.params,
    jax.tree.map(jnp.asarray, model.init(jax.random.key(0), x)[1]),
    x,
    keep=0.75,
    key=jax.random.key(0),
  )
  sizes = [sum(leaf.size for leaf in jax.tree.leaves(one)) for one in (smaller.params, state.params)]
  assert sizes[0] < sizes[1]
  network = jl.Network(model, *model.init(jax.random.key(0), x))
  report = jl.deploy(network, 'pack,c,onnx', out=tmp_path, examples=x, batches=(1,), seconds=0.1)
  assert [row.why for row in report.rows] == [''] * 3
