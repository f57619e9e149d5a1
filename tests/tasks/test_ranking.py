"""Laws of rankings: order and weights do not matter beyond what they mean, and no threshold serves a wish better."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlite.tasks.ranking import average_precision, choose_threshold, ranking, roc_auc

EXAMPLES = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=12)


def _columns(examples):
  labels, scores, weight = (np.array(column) for column in zip(*examples, strict=True))
  return labels, scores / 6, weight.astype(float)


def _outcome(labels, scores, weight, threshold):
  called = scores >= threshold
  hits = weight[called & labels].sum()
  precision = hits / weight[called].sum() if weight[called].any() else 0
  return precision, hits / weight[labels].sum()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(EXAMPLES, st.randoms(use_true_random=False))
def test_a_weight_of_two_is_the_example_twice_and_order_is_nothing(examples, random):
  labels, scores, weight = _columns(examples)
  shuffled = list(examples)
  random.shuffle(shuffled)
  order, times = _columns(shuffled), weight.astype(int)
  one, other = ranking(labels, scores, weight), ranking(*order)
  twice = ranking(np.repeat(labels, times), np.repeat(scores, times))
  for found in (other, twice):
    assert all(np.array_equal(a, b) for a, b in zip(one, found, strict=True))
  assert average_precision(one) == average_precision(twice)
  pairs = [
    a * b * (1.0 if x > y else 0.5 if x == y else 0.0)
    for is_it, x, a in zip(labels, scores, weight, strict=True)
    for other_is, y, b in zip(labels, scores, weight, strict=True)
    if is_it and not other_is
  ]
  if one.positives and one.negatives:
    assert abs(roc_auc(one) - sum(pairs) / (one.positives * one.negatives)) < 1e-12
  else:
    assert np.isnan(roc_auc(one))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(EXAMPLES, st.sampled_from([0.1, 0.5, 0.9, 1.0]), st.sampled_from(['f1', 'recall', 'precision', 'both']))
def test_no_threshold_serves_the_wish_better(examples, wish, what):
  labels, scores, weight = _columns(examples)
  wishes = {'f1': {}, 'both': {'recall': wish, 'precision': wish}}.get(what, {what: wish})
  threshold, note = choose_threshold(ranking(labels, scores, weight), **wishes)
  if not weight[labels].any():
    assert threshold == 0.5
    assert 'no positive example' in note
    return
  precision, recall = _outcome(labels, scores, weight, threshold)
  every = [_outcome(labels, scores, weight, cut) for cut in np.unique(scores[weight > 0])]
  if what == 'f1':
    f1 = lambda pair: 2 * pair[0] * pair[1] / max(sum(pair), 1e-300)  # noqa: E731
    assert f1((precision, recall)) >= max(map(f1, every)) - 1e-12
    assert not note
    return
  slack = 1e-9
  fit = [pair for pair in every if ('precision' not in wishes or pair[0] >= wish - slack)
         and ('recall' not in wishes or pair[1] >= wish - slack)]  # fmt: skip
  assert bool(note) is not bool(fit)
  if fit:
    index = 1 if 'precision' in wishes else 0
    assert (precision, recall)[index] >= max(pair[index] for pair in fit) - 1e-12
    assert (precision, recall) in fit
  else:
    assert 'cannot be reached' in note


def test_an_output_that_is_nan_is_no_threshold():
  labels, scores = np.array([True, True, False]), np.array([np.nan, 0.7, np.nan])
  threshold, note = choose_threshold(ranking(labels, scores), recall=0.9)
  assert threshold == 0.7
  assert 'recall 0.9 cannot be reached' in note
  assert choose_threshold(ranking(labels, np.full(3, np.nan)))[0] == 0.5


@pytest.mark.parametrize('measure', [average_precision, roc_auc])
def test_nothing_to_rank(measure):
  assert not measure(ranking([], [])) > 0
