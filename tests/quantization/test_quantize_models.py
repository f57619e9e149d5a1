"""The reference models in integers: what is covered, and that fake is real on a whole test set."""

import jax
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.data import load
from jaxlite.models import MLP, DepthwiseCNN, LeNet5, ResNet20, SmallCNN, ViT
from jaxlite.quantization._lsq import lsq
from jaxlite.quantization._ptq import ptq
from jaxlite.quantization._qat import fake_quant
from jaxlite.quantization._quantize import coverage
from jaxlite.quantization._ranges import frozen_ranges

KEY = jax.random.key(0)
NETWORKS = {
  'MLP': lambda: MLP((128,), classes=10),
  'LeNet5': LeNet5,
  'SmallCNN': lambda: SmallCNN(batch_norm=True),
  'ResNet20': ResNet20,
  'DepthwiseCNN': DepthwiseCNN,
  'ViT': ViT,
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize('name', NETWORKS)
def test_every_contraction_is_covered(name):
  model = jl.from_linen(NETWORKS[name]())
  images = jax.ShapeDtypeStruct((2, 28, 28, 1), np.float32)
  values = jax.eval_shape(model.init, KEY, images)
  forward = lambda p, s, x: model.apply(p, s, x, train=False, key=None)[0]  # noqa: E731
  rows = coverage(forward, attention=True)(*values, images)
  assert sum(row.share for row in rows if row.quantized) == pytest.approx(1)
  without = coverage(forward)(*values, images)
  assert {row.why for row in without if not row.quantized} <= {'both operands are activations'}
  assert sum(row.share for row in without if row.quantized) > 0.9


@pytest.fixture(scope='module')
def fashion():
  return load('fashion_mnist')  # where it is not there, the error says how to get it: a skip would hide other mistakes


@pytest.mark.slow
@pytest.mark.parametrize('learned', [False, True])
@pytest.mark.parametrize('name', NETWORKS)
def test_fake_is_real_on_all_of_fashion_mnists_test_images(name, learned, fashion):
  examples, tested = (np.asarray(split.inputs, np.float32) / 255 for split in (fashion.train, fashion.test))
  batches = [
    {'inputs': examples[i : i + 64], 'labels': fashion.train.labels[i : i + 64]} for i in range(0, 64 * 30, 64)
  ]
  model = jl.from_linen(NETWORKS[name]())
  train = jl.train_step(model, jl.cross_entropy, jl.chain(optax.adam(1e-3)))
  state = train.init(KEY, batches[0])
  for batch in batches:
    state, _ = train.step(state, batch)
  trained = jl.Network(model, state.params, state.model_state)
  calibration = [examples[:256]]
  if learned:
    given = model._replace(init=lambda key, inputs: (trained.params, trained.model_state))
    values = lsq().model(given).init(KEY, calibration[0])
    nets = [jl.Network(lsq(real=real).model(model), *values) for real in (False, True)]
  else:
    fake = ptq(trained, calibration, attention=True)
    ranges = frozen_ranges(fake.model_state['jl.fake_quant'])
    real = fake_quant(activations=ranges, attention=True, real=True).model(model)
    nets = [fake, jl.Network(real, *fake[1:])]
  chunks = np.split(tested, 20)
  logits, integers = (np.concatenate([net.predict(chunk) for chunk in chunks]) for net in nets)
  same = int((logits.argmax(-1) == integers.argmax(-1)).sum())
  print(f'{name}: {same} of {len(logits)} argmax, bit-equal logits: {np.array_equal(logits, integers)}')
  assert len(logits) == 10_000
  assert same >= 9_990
