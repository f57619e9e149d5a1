"""Integers are those of PyTorch and Qwix on the same ranges.

What they gave stands below as literals (torch 2.15.0, qwix 0.1.8), so that neither is needed. Made by:

  import jax.numpy as jnp, numpy as np, torch
  from qwix._src.core import qarray
  x, w = torch.tensor(X), torch.tensor(W)  # as below
  for bits, low, high in [(8, -1.5, 3.0), (4, -1.5, 3.0), (2, -1.5, 3.0), (8, 0.0, 2.5), (3, -2.0, 0.5)]:
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = (high - low) / (2**bits - 1)
    zero = int(np.clip(round(least - low / scale), least, most))
    kind = {8: jnp.int8, 4: jnp.int4, 3: 'int3', 2: 'int2'}[bits]
    theirs = qarray.quantize_with_scale_zero_point(jnp.array(X), kind, jnp.array([scale]), jnp.array([zero], jnp.int8))
    y = torch.fake_quantize_per_tensor_affine(x, scale, zero, least, most)
    print(torch.round(y / scale).int().tolist(), (np.asarray(theirs.qvalue, int) - zero).tolist())
  for bits in (8, 4, 3, 2):
    most = 2 ** (bits - 1) - 1
    scale = w.abs().amax(0) / most
    y = torch.fake_quantize_per_channel_affine(w, scale, torch.zeros(3, dtype=torch.int32), 1, -most, most)
    kind = {8: jnp.int8, 4: jnp.int4, 3: 'int3', 2: 'int2'}[bits]
    how = qarray.HowToQuantize(qtype=kind, channelwise_axes=[1], calibration_method='absmax')
    theirs = qarray.quantize(jnp.array(W), how)
    print(torch.round(y / scale).int().tolist(), np.asarray(theirs.qvalue, int).tolist(), theirs.scale.tolist())
"""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.quantization import _numerics as numerics

# fmt: off
X = [0.402, 0.848, -0.011, -0.936, -0.282, -1.087, 0.49, 2.41, -0.338, -0.531, 1.135, 0.935,
     0.558, -0.996, 0.356, 1.443, -1.616, -0.286, -2.452, -1.534, -2.363, 0.047, -1.501, 0.807]
W = [[0.157, -0.187, -2.517], [-0.539, -0.049, 0.113], [-1.53, -0.478, -0.979], [-0.809, 1.061, -0.808]]
ACTIVATIONS = {  # (bits, lowest, highest): integers relative to zero, of PyTorch and Qwix alike
  (8, -1.5, 3.0): [23, 48, -1, -53, -16, -62, 28, 137, -19, -30, 64, 53, 32, -56, 20,
                  82, -85, -16, -85, -85, -85, 3, -85, 46],
  (4, -1.5, 3.0): [1, 3, 0, -3, -1, -4, 2, 8, -1, -2, 4, 3, 2, -3, 1, 5, -5, -1, -5, -5, -5, 0, -5, 3],
  (2, -1.5, 3.0): [0, 1, 0, -1, 0, -1, 0, 2, 0, 0, 1, 1, 0, -1, 0, 1, -1, 0, -1, -1, -1, 0, -1, 1],
  (8, 0.0, 2.5): [41, 86, 0, 0, 0, 0, 50, 246, 0, 0, 116, 95, 57, 0, 36, 147, 0, 0, 0, 0, 0, 5, 0, 82],
  (3, -2.0, 0.5): [1, 1, 0, -3, -1, -3, 1, 1, -1, -1, 1, 1, 1, -3, 1, 1, -5, -1, -6, -4, -6, 0, -4, 1],
}
WEIGHTS = {  # bits: (PyTorch's integers, Qwix's integers, Qwix's scales)
  8: (
    [[13, -22, -127], [-45, -6, 6], [-127, -57, -49], [-67, 127, -41]],
    [[13, -22, -127], [-45, -6, 6], [-128, -57, -50], [-67, 127, -41]],
    [0.0120000001, 0.0083215693, 0.0197411776],
  ),
  4: (
    [[1, -1, -7], [-2, 0, 0], [-7, -3, -3], [-4, 7, -2]],
    [[1, -1, -7], [-3, 0, 0], [-7, -3, -3], [-4, 7, -2]],
    [0.204000011, 0.141466677, 0.335600019],
  ),
  3: (
    [[0, -1, -3], [-1, 0, 0], [-3, -1, -1], [-2, 3, -1]],
    [[0, -1, -4], [-1, 0, 0], [-4, -2, -1], [-2, 3, -1]],
    [0.437142879, 0.303142875, 0.719142854],
  ),
  2: (
    [[0, 0, -1], [0, 0, 0], [-1, 0, 0], [-1, 1, 0]],
    [[0, 0, -2], [-1, 0, 0], [-2, -1, -1], [-1, 1, 0]],
    [1.01999998, 0.707333326, 1.67799997],
  ),
}
# fmt: on


@pytest.mark.parametrize(('bits', 'low', 'high'), ACTIVATIONS)
def test_activations_are_pytorchs_and_qwixs(bits, low, high):
  grid = numerics.activation_grid((jnp.float32(low), jnp.float32(high)), bits)
  steps = jnp.clip(numerics.to_steps(jnp.array(X), grid.scale), grid.low, grid.high)
  np.testing.assert_array_equal(steps, ACTIVATIONS[bits, low, high])
  np.testing.assert_allclose(grid.scale, (high - low) / (2**bits - 1), rtol=1e-6)


@pytest.mark.parametrize('bits', WEIGHTS)
def test_weights_are_pytorchs_and_on_qwixs_scales_qwixs(bits):
  pytorch, qwix, scales = WEIGHTS[bits]
  w = jnp.array(W)
  np.testing.assert_array_equal(numerics.weight_steps(w, numerics.weight_scale(w, (0,), bits), bits), pytorch)
  most = 2 ** (bits - 1) - 1
  ours = numerics.weight_steps(w, jnp.array([scales]), bits)
  np.testing.assert_array_equal(ours, np.maximum(qwix, -most))  # Qwix's grid has one more below zero
