"""Scores of features: against scikit-learn, brute force and the definitions; what cannot be scored is told."""

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from jaxlite.finetuning import probe, scores


def clouds(count=60, width=8, classes=3, spread=1.0, seed=0):
  rng = np.random.default_rng(seed)
  labels = np.arange(count) % classes
  return rng.normal(size=(classes, width))[labels] * 1.5 + spread * rng.normal(size=(count, width)), labels


@pytest.mark.parametrize('count,width', [(60, 8), (20, 40), (20, 200)], ids=['tall', 'wide', 'widest'])
@pytest.mark.parametrize('strength', [0.1, 10.0])
def test_the_probe_is_logistic_regression_of_scaled_features(count, width, strength):
  x, y = clouds(count, width)
  centered = x - x.mean(0)
  scale = np.sqrt(np.mean(np.sum(centered**2, 1)))
  theirs = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(centered / scale, y)
  ours = probe.fit_probe(x, y, 3, strengths=[strength])
  logits = ours.logits(x)
  probabilities = np.exp(logits - logits.max(1, keepdims=True))
  probabilities /= probabilities.sum(1, keepdims=True)
  np.testing.assert_allclose(probabilities, theirs.predict_proba(centered / scale), atol=2e-4)


def test_a_weight_of_two_is_the_example_twice():
  x, y = clouds(30)
  weight = np.where(np.arange(30) < 10, 2.0, 1.0)
  once = probe.fit_probe(np.concatenate([x, x[:10]]), np.concatenate([y, y[:10]]), 3, strengths=[1.0])
  centered = x - np.average(x, axis=0, weights=weight)
  scale = np.sqrt(np.mean(np.sum(centered**2, 1)))
  twice = np.concatenate([centered, centered[:10]])
  there = np.sqrt(np.mean(np.sum((twice - twice.mean(0)) ** 2, 1)))
  ours = probe.fit_probe(x, y, 3, weight=weight, strengths=[(scale / there) ** 2])
  np.testing.assert_allclose(ours.kernel, once.kernel, atol=2e-4)


def test_the_strength_is_chosen_without_the_examples_that_judge_it():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(60, 200)), rng.integers(0, 2, 60)  # noise: nothing can be learned
  found = probe.fit_probe(x, y, 2, strengths=[1e2, 1e3])
  assert found.right.mean() < 0.75
  assert (found.logits(x).argmax(1) == y).all()
  held = probe.fit_probe(x[:40], y[:40], 2, validation=(x[40:], y[40:]))
  assert len(held.right) == 20
  assert 'validation' in held.chosen_by


def test_a_class_without_examples_never_wins():
  x, y = clouds(20, classes=2)
  assert set(probe.fit_probe(x, y, 5).logits(100 * x).argmax(1)) <= {0, 1}


def evidence(x, y, logs):
  alpha, beta = np.exp(logs)
  covariance = np.eye(len(x)) / beta + x @ x.T / alpha
  return stats.multivariate_normal(np.zeros(len(x)), covariance, allow_singular=True).logpdf(y) / len(x)


@pytest.mark.parametrize('count,width', [(30, 4), (12, 30)], ids=['tall', 'wide'])
def test_logme_is_the_largest_evidence_of_a_gaussian(count, width):
  rng = np.random.default_rng(1)
  x = rng.normal(size=(count, width))
  y = x @ rng.normal(size=width) + 2 * rng.normal(size=count)
  best = max(
    -optimize.minimize(lambda logs: -evidence(x, y, logs), at, method='Nelder-Mead').fun for at in ([0, 0], [1, -1])
  )
  assert scores.logme(x, y, interval=False).value == pytest.approx(best, abs=2e-3)


def test_logme_of_classes_is_the_mean_over_one_against_all():
  x, y = clouds()
  each = [scores.logme(x, (y == one).astype(float), interval=False).value for one in range(3)]
  assert scores.logme(x, y, interval=False).value == pytest.approx(np.mean(each), abs=1e-12)


def test_the_h_score_is_the_trace_of_its_definition():
  x, y = clouds()
  centered = x - x.mean(0)
  means = np.stack([centered[y == one].mean(0) for one in range(3)])[y]
  covariance, between = centered.T @ centered / len(x), means.T @ means / len(x)
  plain = np.trace(np.linalg.pinv(covariance) @ between)
  assert scores.h_score(x, y, shrunk=False).value == pytest.approx(plain)
  shrunk, share = ledoit_wolf(centered, assume_centered=True)
  regular = np.trace(np.linalg.solve(shrunk, (1 - share) * between))
  assert scores.h_score(x, y).value == pytest.approx(regular)


def test_the_plain_h_score_of_more_features_than_examples_says_that_it_says_nothing():
  rng = np.random.default_rng(0)
  found = scores.h_score(rng.normal(size=(20, 300)), np.arange(20) % 4, shrunk=False)
  assert found.value == pytest.approx(3.0)
  assert 'says nothing' in found.note
  noise = rng.normal(size=(20, 300))
  told = noise + 3 * rng.normal(size=(4, 300))[np.arange(20) % 4]
  assert scores.h_score(told, np.arange(20) % 4).value > scores.h_score(noise, np.arange(20) % 4).value + 0.3


def test_nearest_neighbors_are_those_of_scikit_learn():
  x, y = clouds(50, spread=2.0)
  centered = x - x.mean(0)
  right = 0
  for row in range(50):
    others = np.arange(50) != row
    theirs = KNeighborsClassifier(1, metric='cosine').fit(centered[others], y[others])
    right += theirs.predict(centered[row : row + 1])[0] == y[row]
  assert scores.nearest_neighbors(x, y, k=1).value == right / 50


def linear_probe(x, y):
  return scores.linear_probe(x, y, strengths=[1.0, 10.0])


SCORES = [scores.logme, scores.h_score, scores.nearest_neighbors, linear_probe]


@pytest.mark.parametrize('score', SCORES, ids=lambda one: one.__name__)
def test_a_score_tells_good_features_from_noise_and_stands_in_its_interval(score):
  x, y = clouds(90, 6, spread=0.7)
  noise = np.random.default_rng(5).normal(size=x.shape)
  good, bad = score(x, y), score(noise, y)
  assert good.low <= good.value <= good.high
  assert good.seconds > 0
  assert good.low > bad.value


@pytest.mark.parametrize('score', SCORES, ids=lambda one: one.__name__)
@pytest.mark.parametrize(
  'change',
  ['constant feature', 'constant features', 'a copy of a feature', 'one example of a class', 'huge', 'float16'],
)
def test_a_score_is_finite_at_the_edge(score, change):
  x, y = clouds(40, 6)
  y = y.copy()
  if change == 'constant feature':
    x[:, 2] = 3.0
  elif change == 'constant features':
    x[:] = 1.0
  elif change == 'a copy of a feature':
    x[:, 1] = x[:, 0]
  elif change == 'one example of a class':
    y[y == 2], y[7] = 0, 2
  elif change == 'huge':
    x *= 1e12
  elif change == 'float16':
    x = x.astype(np.float16)
  with np.errstate(all='raise', under='ignore'):
    found = score(x, y)
  assert np.isfinite(found.value)


@pytest.mark.parametrize('score', SCORES, ids=lambda one: one.__name__)
@pytest.mark.parametrize(
  'change,told',
  [
    ('nan', r'features are finite; example 3 has nan at 1'),
    ('one class', r'all 40 labels are 1'),
    ('few', r'2 examples of 3 classes'),
    ('lengths', r'40 rows of features and 39 labels'),
    ('negative', r'labels are 0 \.\. 2; example 5 has -1'),
    ('pictures', r'features are \[N, D\]'),
  ],
)
def test_what_cannot_be_scored_is_told(score, change, told):
  x, y = clouds(40, 6)
  y = y.copy()
  if change == 'nan':
    x[3, 1] = np.nan
  elif change == 'one class':
    y[:] = 1
  elif change == 'few':
    x, y = x[:2], np.array([0, 2])
  elif change == 'lengths':
    y = y[:-1]
  elif change == 'negative':
    y[5] = -1
  elif change == 'pictures':
    x = x.reshape(40, 2, 3)
  with pytest.raises(ValueError, match=told):
    score(x, y)


def test_folds_deal_every_class_over_all_of_them():
  labels = np.repeat([0, 1, 2], [10, 20, 5])
  groups = probe.fold_of(labels, 5, 0)
  assert [np.bincount(groups[labels == one]).tolist() for one in range(3)] == [[2] * 5, [4] * 5, [1] * 5]
