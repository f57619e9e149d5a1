"""What a run's folder tells of its result."""

import jax
import numpy as np
import pytest

import jaxlite as jl
from jaxlite.deployment import inventory
from jaxlite.graph.model import weights_of
from networks import FRAMEWORKS, dense

RNG = np.random.default_rng(0)
WEIGHTS = tuple(RNG.normal(size=size).astype(np.float32) for size in ((6, 4), (4,), (4, 3), (3,)))


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_a_quantized_layer_has_a_scale_for_each_output_however_it_lies(framework):
  network, names, _ = dense(framework, WEIGHTS)
  inputs = np.ones((2, 6), np.float32)
  model = jl.fake_quant().model(network)
  params, state = model.init(jax.random.key(0), inputs)
  found = inventory.layers(model, params, state, inputs, weights_of(network, jax.random.key(0), inputs))
  assert {layer.path: (layer.bits, layer.scales) for layer in found} == dict(
    zip(names, [(8, 4), (32, 0), (8, 3), (32, 0)], strict=True)
  )
