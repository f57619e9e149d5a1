"""The reference network of the widths that are left computes what the shrunk one does, or is refused by name."""

import jax
import numpy as np
import pytest

import jaxlite as jl
import shrinking
from jaxlite import models

pytestmark = pytest.mark.unoptimized
CASES = {
  'mlp': (models.MLP((16, 24), classes=3), (5,), {'widths': (8, 12)}),
  'cnn': (models.SmallCNN((8, 4), hidden=6, batch_norm=True), (8, 8, 1), {'features': (4, 2), 'hidden': 3}),
  'resnet': (models.ResNet(1, (4, 8)), (8, 8, 1), {'widths': (2, 4)}),
  'depthwise': (models.DepthwiseCNN(4, ((8, 2), (6, 1))), (8, 8, 1), {'stem': 2, 'blocks': ((4, 2), (3, 1))}),
}


def shrunk(module, size, **options):
  inputs = np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)
  model = jl.from_linen(module)
  params, state = model.init(jax.random.key(0), inputs)
  params, state = shrinking.scrambled(params, 0), shrinking.scrambled(state, 1)
  options = {'keep': 0.5, 'multiple': 1, 'key': jax.random.key(0), **options}
  return jl.shrink(model, params, state, inputs, **options), inputs


@pytest.mark.parametrize('name', ['cnn', *(pytest.param(one, marks=pytest.mark.slow) for one in CASES if one != 'cnn')])
def test_its_fields_are_the_widths_and_it_takes_the_cut_weights(name):
  module, size, fields = CASES[name]
  small, inputs = shrunk(module, size)
  found = small.module(module)
  assert type(found) is type(module)
  assert {field: getattr(found, field) for field in fields} == fields
  wanted = found.apply({'params': small.params, **small.model_state}, inputs)
  np.testing.assert_allclose(wanted, small.network.predict(inputs), rtol=1e-4, atol=1e-4)


def test_a_norm_that_was_crossed_and_a_network_without_widths_are_refused():
  vit = models.ViT(patch=4, width=8, layers=1, heads=2, hidden=12)
  small, _ = shrunk(vit, (8, 8, 1))
  with pytest.raises(ValueError, match=r'does not compute the same.*norm'):  # though every shape fits
    small.module(vit)
  small, _ = shrunk(vit, (8, 8, 1), rule='embed')
  with pytest.raises(ValueError, match=r"no fields.*'block1/out/kernel' is \[8, 4\]"):
    small.module(vit)
  small, _ = shrunk(vit, (8, 8, 1), rule='block1/dense1/bias')
  assert small.module(vit).hidden == 6
  small, _ = shrunk(models.MLP((8,)), (5,))
  with pytest.raises(TypeError, match='have widths; got LeNet5'):
    small.module(models.LeNet5())
