"""Laws of the losses, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite import tasks
from jaxlite.contract import Context
from jaxlite.optim._penalties import label_smoothing
from jaxlite.tasks.lift import lift_loss
from jaxlite.tasks.losses import class_weights, cross_entropy, weighted_cross_entropy

pytestmark = pytest.mark.unoptimized


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


# class weights


def test_class_weights_count_each_class_in_hard_and_soft_labels():
  rng = np.random.default_rng(0)
  logits, weights = rng.normal(size=(9, 4)).astype(np.float32), np.array([0.5, 2.0, 0.0, 1.25])
  labels = rng.integers(0, 4, 9)
  soft = rng.dirichlet(np.ones(4), 9).astype(np.float32)
  loss = weighted_cross_entropy(weights)
  for given, shares in ((labels, np.eye(4)[labels]), (soft, np.float64(soft))):
    got = loss(jnp.asarray(logits), {'labels': jnp.asarray(given)})
    np.testing.assert_allclose(got, _oracle(logits, shares * weights), rtol=1e-5, atol=1e-6)
  one = weighted_cross_entropy(np.ones(4))(jnp.asarray(logits), {'labels': jnp.asarray(labels)})
  np.testing.assert_array_equal(one, cross_entropy(jnp.asarray(logits), {'labels': jnp.asarray(labels)}))


def test_balanced_weights_are_those_of_sklearn_and_average_one_over_the_examples():
  from sklearn.utils.class_weight import compute_class_weight

  labels = np.random.default_rng(1).choice(5, 200, p=[0.5, 0.3, 0.1, 0.06, 0.04])
  weights = class_weights(labels, 5)
  np.testing.assert_allclose(weights, compute_class_weight('balanced', classes=np.arange(5), y=labels), rtol=1e-6)
  np.testing.assert_allclose(weights[labels].mean(), 1, rtol=1e-6)


def test_a_class_of_weight_zero_gives_no_loss_and_no_nan_even_at_probability_zero():
  logits = jnp.array([[0.0, -jnp.inf], [1.0, 2.0]])
  loss = weighted_cross_entropy([1.0, 0.0])
  labels = {'labels': jnp.array([1, 1])}
  assert loss(logits, labels).tolist() == [0, 0]
  assert np.isfinite(jax.grad(lambda x: loss(x, labels).sum())(logits)[1]).all()


def test_smoothing_and_soft_labels_go_together():
  """Smoothing what mixup leaves is the cross-entropy of the smoothed distribution."""
  rng = np.random.default_rng(2)
  logits, soft = rng.normal(size=(6, 3)).astype(np.float32), rng.dirichlet(np.ones(3), 6).astype(np.float32)
  context = Context(jnp.asarray(logits), {'labels': jnp.asarray(soft)}, {}, {}, None, 0)
  terms = label_smoothing(0.2).loss(lift_loss(cross_entropy))(context)
  wanted = _oracle(logits, 0.8 * np.float64(soft) + 0.2 / 3).mean()
  np.testing.assert_allclose(sum(terms.values()), wanted, rtol=1e-5)


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: weighted_cross_entropy([1.0, -1.0]), 'class weights are float[classes], at least 0, finite and not all 0'),
    (lambda: weighted_cross_entropy([[1.0]]), 'class weights are float[classes]'),
    (lambda: weighted_cross_entropy([0.0, 0.0]), 'not all 0; got [0.0, 0.0]'),
    (lambda: weighted_cross_entropy([1.0, np.nan]), 'finite'),
    (
      lambda: weighted_cross_entropy([1.0, 1.0])(jnp.zeros((2, 3)), {'labels': jnp.zeros(2, int)}),
      'class weights are one per class; got 2 for logits [2, 3]',
    ),
    (lambda: weighted_cross_entropy({0: 1.0, 2: 1.0}), 'one for every class; got {0: 1.0, 2: 1.0}'),
    (lambda: class_weights([0, 2], 2), 'class_weights: labels are 0 to 1; got 0 to 2'),
    (lambda: class_weights([0, 1], 2.0), 'class_weights: classes is a whole number'),
    (lambda: class_weights([0, 0], 3), 'every class needs an example; none of class 1'),
    (lambda: class_weights([0.5], 3), 'class_weights takes labels int[N]; got float64[1]'),
    (lambda: class_weights([], 3), 'class_weights takes labels int[N]'),
  ],
)
def test_bad_weights_are_named_in_one_line(call, words):
  with pytest.raises(ValueError) as error:
    call()
  assert words in str(error.value)
  assert '\n' not in str(error.value)


def test_weights_by_class_are_those_of_a_list():
  logits, batch = jnp.array([[1.0, 2.0], [0.5, -1.0]]), {'labels': jnp.array([0, 1])}
  by_class = weighted_cross_entropy({1: 3.0, 0: 1.0})(logits, batch)  # as Keras writes class_weight
  np.testing.assert_array_equal(by_class, weighted_cross_entropy([1.0, 3.0])(logits, batch))


def test_losses_of_every_task_run_where_ranks_and_dtypes_are_not_promoted():
  rng = np.random.default_rng(0)
  cases = [
    (tasks.classification(), [0, 1, 2, 1], (3,)),
    (tasks.binary(), [0, 1, 0, 1], (2,)),
    (tasks.multi_label(), [[0, 1], [1, 1], [0, 0], [1, 0]], (2,)),
    (tasks.regression(), [[0.0, 1], [1, 1], [0, 0], [1, 0]], (2,)),
    (tasks.language(vocabulary=3), [[0, 1, -1], [1, 2, 2], [0, 0, 0], [1, 0, -1]], (3, 3)),
    (tasks.segmentation(), [[[0, 1], [1, -1]]] * 4, (2, 2, 2)),
  ]
  for task, given, shape in cases:
    labels = task.check(given, 'train')
    loss = task.loss(task.facts(labels, {}))
    outputs, batch = jnp.asarray(rng.normal(size=(4, *shape)).astype(np.float32)), {'labels': jnp.asarray(labels)}
    slope = jax.grad(lambda outputs, loss=loss, batch=batch: jnp.sum(loss(outputs, batch)))
    plain = slope(outputs)
    with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
      np.testing.assert_array_equal(slope(outputs), plain, err_msg=task.name)
