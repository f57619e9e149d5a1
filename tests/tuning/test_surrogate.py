"""Points by a Gaussian process: in the space, none twice, a function of what came before; it is scikit-learn's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxlite.tuning import surrogate
from jaxlite.tuning.kinds import choice, integer, log_uniform, size, uniform
from jaxlite.tuning.ledger import COMPLETE, FAILED, PRUNED, RUNNING, Report, Trial
from jaxlite.tuning.outcome import Goal
from jaxlite.tuning.sampling import next_at_random

ACCURACY, LOSS = Goal('accuracy', True), Goal('loss', False)
SPACE = {'rate': log_uniform(1e-4, 1.0), 'decay': uniform(0.0, 1.0), 'kind': choice('a', 'b', 'c')}


def trial(number, given, state=COMPLETE, **found):
  return Trial(number, number, given, state, '', '', 0.0, 1, 0, -1, -1, 0.0, found, '')


def suggested(space, past, reports=(), goal=ACCURACY, limits=None, seed=0):
  return surrogate.next_by_surrogate(space, seed, past, reports, goal, limits or {})


def value(point):
  return -((math.log10(point['rate']) + 2) ** 2) - point['decay'] ** 2 + 0.5 * (point['kind'] == 1)


def searched(count, seed=0, space=SPACE, score=value):
  past = []
  while len(past) < count and (point := suggested(space, past, seed=seed)) is not None:
    past.append(trial(len(past), point, accuracy=score(point)))
  return past


ints = st.integers(-9, 9)
kinds = st.one_of(
  st.builds(lambda count: choice(*range(count)), st.integers(1, 4)),
  st.builds(lambda low, room: integer(low, low + 3 * room, step=3), ints, st.integers(0, 4)),
  st.builds(lambda low, room: integer(low, low + room, log=True), st.integers(1, 9), st.integers(0, 90)),
  st.just(uniform(-1.0, 2.0)),
  st.just(uniform(3.0, 3.0)),
  st.just(log_uniform(1e-9, 1e9)),
)  # fmt: skip
scores = st.sampled_from([0.0, 1.0, -1e300, 1e-300, 0.9000000001, 0.9, math.nan])


@given(st.lists(kinds, min_size=1, max_size=3), st.lists(scores, min_size=12, max_size=12), st.integers(0, 9))
@settings(deadline=None, max_examples=8)
def test_points_lie_in_the_space_and_none_comes_twice(several, values, seed):
  space = {f'x{index}': kind for index, kind in enumerate(several)}
  past = []
  for number, score in enumerate(values):
    point = suggested(space, past, seed=seed)
    assert point == suggested(space, past, seed=seed)  # nothing else decides
    if point is None:
      assert len(past) == size(space)
      return
    for name, kind in space.items():
      if hasattr(kind, 'values'):
        assert 0 <= point[name] < len(kind.values)
      else:
        assert kind.low <= point[name] <= kind.high
        assert not kind.step or (point[name] - kind.low) % kind.step == 0
    assert point not in [one.given for one in past]
    past.append(trial(number, point, COMPLETE if number % 3 else FAILED, accuracy=score))


def test_the_process_is_that_of_scikit_learn():
  gaussian_process = pytest.importorskip('sklearn.gaussian_process')
  rng = np.random.default_rng(0)
  x, new, y = rng.random((12, 2)), rng.random((30, 2)), rng.normal(size=12)
  lengths, noise = np.array([0.3, 0.8]), 0.05
  choices = np.zeros(2, bool)
  own = surrogate._process(lengths, noise, choices, x, y)
  kernel = gaussian_process.kernels.Matern(lengths, nu=2.5)
  theirs = gaussian_process.GaussianProcessRegressor(kernel, alpha=noise + 1e-6, optimizer=None).fit(x, y)
  mean, deviation = own.at(new)
  expected, spread = theirs.predict(new, return_std=True)
  np.testing.assert_allclose(mean, expected, atol=1e-9)
  np.testing.assert_allclose(deviation, spread, atol=1e-9)
  likely = theirs.log_marginal_likelihood(kernel.theta) + 6 * math.log(2 * math.pi)
  (evidence,) = surrogate._evidence(x, y, lengths[None], np.array([noise]), choices)
  assert evidence == pytest.approx(likely, abs=1e-9)


def test_the_improvement_is_its_integral():
  for mean, deviation, best in ((0.0, 1.0, 0.5), (2.0, 0.3, 1.0), (-1.0, 0.5, 1.0)):
    draws = stats.norm(mean, deviation).ppf((np.arange(200_000) + 0.5) / 200_000)
    (found,) = surrogate._improvement(np.array([mean]), np.array([deviation]), best)
    assert found == pytest.approx(np.maximum(draws - best, 0).mean(), abs=1e-5)


def test_a_peak_is_found_in_few_trials():
  rng = np.random.default_rng(0)
  noisy = lambda point: value(point) + 0.02 * rng.normal()  # noqa: E731
  best, luck = [], []
  for seed in range(2):
    best.append(max(value(one.given) for one in searched(16, seed, score=noisy)))
    past = []
    for number in range(16):
      past.append(trial(number, next_at_random(SPACE, seed, past)))
    luck.append(max(value(one.given) for one in past))
  assert min(best) > 0.45  # 0.5 is the most
  assert np.mean(best) > np.mean(luck)


def test_how_scores_are_counted_and_how_bad_the_bad_ones_are_decides_nothing():
  past = searched(9)
  point = suggested(SPACE, past)
  stretched = [one._replace(found={'accuracy': 8 * one.found['accuracy'] - 64}) for one in past]
  assert suggested(SPACE, stretched) == point
  turned = [one._replace(found={'loss': -one.found['accuracy']}) for one in past]
  assert suggested(SPACE, turned, goal=LOSS) == point
  worst = min(past, key=lambda one: one.found['accuracy'])
  worse = [one._replace(found={'accuracy': -1e12}) if one is worst else one for one in past]
  assert suggested(SPACE, worse) == point


def test_workers_do_not_crowd_together():
  past = searched(9)
  first = suggested(SPACE, past)
  beside = suggested(SPACE, [*past, trial(9, first, RUNNING)])
  assert abs(math.log10(beside['rate'] / first['rate'])) + abs(beside['decay'] - first['decay']) > 1e-3


def test_what_was_stopped_failed_or_is_too_large_is_judged():
  curve = lambda number, *values: [Report(number, at, at / 4, one) for at, one in enumerate(values, 1)]  # noqa: E731
  reports = [*curve(0, 0.2, 0.5, 0.8, 0.9), *curve(1, 0.4, 0.6, 0.7, 0.8), *curve(2, 0.1, 0.4)]
  rows = [trial(0, {}, accuracy=0.9, bytes=10), trial(1, {}, accuracy=0.8, bytes=30)]
  rows += [trial(2, {}, PRUNED, accuracy=0.4), trial(3, {}, FAILED), trial(4, {}, RUNNING)]
  found = surrogate.scored(rows, reports, ACCURACY, {})
  assert found == {0: 0.9, 1: 0.8, 2: pytest.approx(0.4 + 0.3), 3: pytest.approx(0.7)}  # others gained 0.4 and 0.2
  kept = surrogate.scored(rows, reports, ACCURACY, {'bytes': 20})
  assert kept[0] == 0.9
  assert kept[1] == kept[3] == min(kept.values())
  none = surrogate.scored(rows, reports, ACCURACY, {'bytes': 5})  # the nearest to the limit is the best there is
  assert none[0] > none[1] == none[2] == none[3]
  lost = surrogate.scored(rows, reports, ACCURACY, {'bytes': 20, 'latency': 1})
  assert all(map(math.isfinite, lost.values()))
  assert suggested(SPACE, [one._replace(given=searched(9)[one.number].given) for one in rows], reports) is not None
