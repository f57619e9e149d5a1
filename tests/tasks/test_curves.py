"""Measures over every threshold equal scikit-learn's, on random cases with ties and weights; what has no meaning is
refused in one line."""

import warnings

import jax
import ml_dtypes
import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics as sk

from jaxlite import tasks

SAME = {'rtol': 1e-12, 'atol': 1e-12}


def binary_case(seed):
  """Labels of both classes, scores with and without ties, weights or none, some of them 0."""
  rng = np.random.default_rng(seed)
  n = int(rng.integers(2, 40))
  labels = rng.integers(0, 2, n)
  labels[rng.permutation(n)[:2]] = 0, 1
  scores = rng.normal(size=n) if seed % 3 == 0 else rng.integers(0, 5, n) / rng.choice([4, 7])
  weight = None if seed % 2 else rng.choice([0.0, 0.3, 1.0, 2.5], n)
  if weight is not None:
    weight[[np.argmax(labels == 0), np.argmax(labels == 1)]] = 1.7
  return (
    labels.astype(rng.choice(['bool', 'int32', 'float64'])),
    scores.astype(rng.choice(['float32', 'float64'])),
    weight,
  )


def check_binary(seed):
  labels, scores, weight = binary_case(seed)
  given = {'sample_weight': weight}
  np.testing.assert_allclose(tasks.roc_auc(labels, scores, weight), sk.roc_auc_score(labels, scores, **given), **SAME)
  ours = tasks.average_precision(labels, scores, weight)
  np.testing.assert_allclose(ours, sk.average_precision_score(labels, scores, **given), **SAME)
  for ours, theirs in (
    (tasks.precision_recall_curve(labels, scores, weight), sk.precision_recall_curve(labels, scores, **given)),
    (tasks.roc_curve(labels, scores, weight), sk.roc_curve(labels, scores, drop_intermediate=False, **given)),
  ):
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
      np.testing.assert_allclose(a, b, **SAME)
  check_reliability(seed, labels.astype(int), scores)


def check_reliability(seed, labels, scores):
  said = np.clip(scores.astype(float) - scores.min(), 0, None)
  said = said / said.max() if said.max() > 0 else said
  bins, by = 1 + seed % 12, ('uniform', 'quantile')[seed % 2]
  share, mean = sklearn.calibration.calibration_curve(labels, said, n_bins=bins, strategy=by)
  ours = tasks.reliability_curve(labels, said, bins=bins, by=by)
  np.testing.assert_allclose(ours.share, share, **SAME)
  np.testing.assert_allclose(ours.probability, mean, **SAME)
  edges = np.linspace(0, 1, bins + 1)
  edges = np.percentile(said, edges * 100) if by == 'quantile' else edges
  which = np.searchsorted(edges[1:-1], said)
  error = sum(abs((labels - said)[which == b].sum()) for b in range(bins)) / len(said)
  np.testing.assert_allclose(tasks.calibration_error(labels, said, bins=bins, by=by), error, **SAME)


def check_columns(seed):
  rng = np.random.default_rng(seed)
  n, classes = int(rng.integers(8, 30)), int(rng.integers(3, 6))
  shares = rng.integers(1, 5, (n, classes)).astype(float)
  shares /= shares.sum(1, keepdims=True)
  labels = rng.permutation(np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)]))
  weight = None if seed % 2 else rng.uniform(0.1, 2, n)
  several = np.eye(classes, dtype=int)[labels] | rng.integers(0, 2, (n, classes))
  several[0], several[1] = 0, 1
  for average in ('macro', 'weighted', 'micro', None):
    given = {'average': average, 'sample_weight': weight}
    for truth, extra in ((labels, {'multi_class': 'ovr'}), (several, {})):
      ours = tasks.roc_auc(truth, shares, weight, average=average)
      np.testing.assert_allclose(ours, sk.roc_auc_score(truth, shares, **given, **extra), **SAME)
      ours = tasks.average_precision(truth, shares, weight, average=average)
      np.testing.assert_allclose(ours, sk.average_precision_score(truth, shares, **given), **SAME)
  surest, right = shares.max(1), shares.argmax(1) == labels
  assert tasks.calibration_error(labels, shares) == tasks.calibration_error(right, surest)


@pytest.mark.parametrize('seeds', [range(60)])
def test_they_are_those_of_scikit_learn(seeds):
  for seed in seeds:
    check_binary(seed)
  for seed in seeds[::5]:
    check_columns(seed)


@pytest.mark.slow
def test_they_are_those_of_scikit_learn_in_ten_thousand_cases():
  with warnings.catch_warnings():
    for seed in range(1000, 11_000):
      check_binary(seed)
    for seed in range(1000, 2000):
      check_columns(seed)


def test_a_weight_of_two_is_the_example_twice_and_tokens_are_examples():
  labels, said = np.array([[0, 1, 1], [1, 0, 2]]), np.random.default_rng(0).dirichlet(np.ones(3), (2, 3))
  weight = np.array([[1, 2, 0], [3, 1, 1]])
  times = weight.ravel()
  one = tasks.calibration_error(labels, said, weight, bins=4)
  assert one == tasks.calibration_error(
    np.repeat(labels.ravel(), times), np.repeat(said.reshape(6, 3), times, 0), bins=4
  )


def test_scores_may_be_of_any_float_and_infinite():
  scores = np.array([-np.inf, 0.5, 1.0, np.inf], ml_dtypes.bfloat16)
  assert tasks.roc_auc([0, 0, 1, 1], scores) == 1.0
  assert tasks.average_precision([[0], [0], [1], [1]], scores[:, None]) == 1.0


NAN = [0.1, np.nan, 0.3]
REFUSED = {
  'NaN': (tasks.roc_auc, ([0, 1, 1], NAN), 'NaN has no place in an order; 1 of the scores are NaN, the first at [1]'),
  'NaN label': (tasks.roc_auc, ([0, np.nan, 1], [1, 2, 3]), 'labels that are 0 and 1'),
  'NaN weight': (tasks.average_precision, ([0, 1, 1], [1, 2, 3], NAN), 'weights are NaN'),
  'NaN said': (tasks.calibration_error, ([0, 1, 1], NAN), 'probabilities are NaN'),
  'one class': (tasks.roc_auc, ([1, 1], [1, 2]), 'all 2 examples with a weight are positive'),
  'one class by weight': (tasks.roc_curve, ([0, 1], [1, 2], [1, 0]), 'all 1 examples with a weight are negative'),
  'no positive': (tasks.average_precision, ([0, 0], [1, 2]), 'none of the 2 examples with a weight is positive'),
  'no positive curve': (tasks.precision_recall_curve, ([0, 0], [1, 2]), 'none of the 2 examples'),
  'absent class': (tasks.roc_auc, ([0, 1], np.full((2, 3), 1 / 3)), 'column 2 compares positives with negatives'),
  'nothing': (tasks.roc_auc, ([], []), 'needs an example: there is none'),
  'weight 0': (tasks.roc_curve, ([0, 1], [1, 2], [0, 0]), 'all 2 have weight 0'),
  'negative weight': (tasks.roc_auc, ([0, 1], [1, 2], [1, -1]), 'a weight is at least 0 and finite; got -1'),
  'weights': (tasks.roc_auc, ([0, 1], [1, 2], [1]), 'one weight an example, [2]; got [1]'),
  'lengths': (tasks.roc_auc, ([0, 1], [1, 2, 3]), 'labels [2] and scores [3]'),
  'shapes': (tasks.roc_auc, ([[0, 1]], [[1, 2, 3]]), 'labels [1, 2] and scores [1, 3]'),
  'signs': (tasks.roc_auc, ([-1, 1], [1, 2]), 'got -1: use labels > 0'),
  'names': (tasks.roc_auc, (['no', 'yes'], [1, 2]), "such as labels == 'yes'"),
  'classes beyond': (tasks.roc_auc, ([0, 3], np.full((2, 3), 1 / 3)), 'classes from 0 to 2; got 0 to 3'),
  'logits': (tasks.roc_auc, ([0, 1, 2], np.eye(3) * 4), 'jax.nn.softmax(logits)'),
  'logits said': (tasks.calibration_error, ([0, 1], [-2.0, 3.0]), 'in [0, 1]; got -2 to 3'),
  'shares': (tasks.calibration_error, ([0, 1], [[0.5, 0.9], [0.1, 0.2]]), 'whose rows sum to 1'),
  'text': (tasks.roc_auc, ([0, 1], ['a', 'b']), 'scores of roc_auc are numbers'),
  'average': (lambda *given: tasks.roc_auc(*given, average='mean'), ([0, 1], [1, 2]), "got 'mean'"),
  'bins': (lambda *given: tasks.calibration_error(*given, bins=0), ([0, 1], [0.1, 0.2]), 'at least 1; got 0'),
  'by': (lambda *given: tasks.reliability_curve(*given, by='x'), ([0, 1], [0.1, 0.2]), "got 'x'"),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_has_no_meaning_is_refused_in_one_line(name):
  measure, given, says = REFUSED[name]
  with pytest.raises(ValueError) as error:
    measure(*given)
  assert says in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('measure', [tasks.roc_auc, tasks.roc_curve, tasks.calibration_error])
def test_a_traced_value_is_told_where_to_measure_it(measure):
  with pytest.raises(TypeError, match=r'scores of|probabilities of') as error:
    jax.jit(lambda scores: measure(np.array([0, 1]), scores))(np.array([0.25, 0.5], np.float32))
  assert 'call it outside of jit' in str(error.value)
