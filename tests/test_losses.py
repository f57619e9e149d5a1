"""Laws of the losses, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.losses import cross_entropy


def _oracle(logits, shares):
  logits = np.asarray(logits, np.float64)
  top = logits.max(axis=1, keepdims=True)
  log_p = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
  return -(np.where(shares > 0, log_p, 0) * shares).sum(axis=1)


@pytest.mark.parametrize('scale', [0.1, 1.0, 50.0, 1e4])
@pytest.mark.parametrize('classes', [2, 7])
def test_equals_numpy_for_int_and_for_soft_labels(scale, classes):
  random = np.random.default_rng(0)
  logits = (random.normal(size=(64, classes)) * scale).astype(np.float32)
  labels = random.integers(classes, size=64)
  soft = random.dirichlet(np.full(classes, 0.3), size=64).astype(np.float32)
  for given, shares in (
    (labels, np.eye(classes)[labels]),
    (soft, soft),
    (labels.astype(np.uint8), np.eye(classes)[labels]),
  ):
    found = jax.jit(cross_entropy)(logits, {'labels': given})
    assert found.shape == (64,)
    np.testing.assert_allclose(found, _oracle(logits, shares), rtol=2e-6, atol=2e-6)


def test_gradient_is_probability_minus_label():
  logits = np.random.default_rng(1).normal(size=(16, 5)).astype(np.float32)
  labels = np.arange(16) % 5
  gradient = jax.grad(lambda x: cross_entropy(x, {'labels': labels}).sum())(logits)
  np.testing.assert_allclose(gradient, jax.nn.softmax(logits) - np.eye(5)[labels], atol=1e-6)


def test_a_class_without_a_share_cannot_poison_the_gradient():
  logits = jnp.array([[0.0, -jnp.inf]])
  value, gradient = jax.value_and_grad(lambda x: cross_entropy(x, {'labels': jnp.array([[1.0, 0.0]])})[0])(logits)
  assert float(value) == 0
  assert np.isfinite(gradient).all()


def test_bfloat16_logits_are_summed_in_float32():
  # 999 equal rivals: summed in bfloat16 the denominator would stop growing at 256.
  logits = jnp.zeros((1, 1000), jnp.bfloat16)
  found = cross_entropy(logits, {'labels': jnp.array([3])})
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, np.log(1000), rtol=1e-6)


def test_a_label_that_is_no_class_gives_nan_there_and_only_there():
  values = cross_entropy(jnp.zeros((4, 3)), {'labels': jnp.array([0, 3, -1, 2])})
  assert np.isnan(values).tolist() == [False, True, True, False]

  # A padded row (weight 0) may hold any label: its NaN must not reach a gradient.
  def mean(x):
    loss = cross_entropy(x, {'labels': jnp.array([0, -1])})
    return jnp.sum(jnp.where(jnp.array([True, False]), loss, 0))

  assert np.isfinite(jax.grad(mean)(jnp.ones((2, 3)))).all()


@pytest.mark.parametrize(
  ('outputs', 'batch', 'words'),
  [
    (jnp.zeros((4, 3)), {'labels': jnp.zeros(5, int)}, 'int32[5]'),
    (jnp.zeros((4, 3)), {'labels': jnp.zeros((4, 1), int)}, 'int32[4, 1]'),
    (jnp.zeros((4, 3)), {'labels': jnp.zeros(4)}, 'float32[4]'),
    (jnp.zeros((4, 3)), {'labels': jnp.zeros((4, 2))}, 'float32[4, 2]'),
    (jnp.zeros((4, 3)), {'label': jnp.zeros(4, int)}, "'label'"),
    (jnp.zeros(4), {'labels': jnp.zeros(4, int)}, 'float32[4]'),
    (jnp.zeros((4, 3), int), {'labels': jnp.zeros(4, int)}, 'int32[4, 3]'),
    ((jnp.zeros((4, 3)),), {'labels': jnp.zeros(4, int)}, 'tuple'),
  ],
)
def test_impossible_shapes_are_refused_in_one_line(outputs, batch, words):
  with pytest.raises(ValueError) as error:
    jax.eval_shape(cross_entropy, outputs, batch)
  assert words in str(error.value)
  assert '\n' not in str(error.value)
