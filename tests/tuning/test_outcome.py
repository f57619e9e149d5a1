"""What trials came to: the best, the front, limits, budgets in words, and which fields matter."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxlite.errors import ConfigError
from jaxlite.tuning import outcome
from jaxlite.tuning.importance import importances
from jaxlite.tuning.kinds import choice, integer, uniform
from jaxlite.tuning.ledger import COMPLETE, FAILED, PRUNED, WAITING, Trial
from jaxlite.tuning.outcome import Goal
from jaxlite.tuning.sampling import next_at_random, next_of_grid

ACCURACY, BYTES = Goal('accuracy', True), Goal('bytes', False)


def trial(number, state=COMPLETE, given=None, **found):
  return Trial(number, number, given or {}, state, '', '', 0.0, 1, 0, -1, -1, 0.0, found, '')


pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=12)


@given(pairs)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_front_is_what_no_other_beats(scores):
  trials = [trial(number, accuracy=accuracy, bytes=size) for number, (accuracy, size) in enumerate(scores)]
  found = {scores[one.number] for one in outcome.front(trials, [ACCURACY, BYTES], {})}
  beaten = lambda a, b: b != a and b[0] >= a[0] and b[1] <= a[1]  # noqa: E731
  assert found == {one for one in scores if not any(beaten(one, other) for other in scores)}
  assert len(found) == len(outcome.front(trials, [ACCURACY, BYTES], {}))


def test_the_best_keeps_the_limits_and_has_come_to_its_end():
  trials = [
    trial(0, accuracy=0.9, bytes=30_000),
    trial(1, accuracy=0.7, bytes=10_000),
    trial(2, PRUNED, accuracy=0.99),
    trial(3, FAILED),
    trial(4, accuracy=math.nan, bytes=1),
  ]
  assert outcome.best(trials, [ACCURACY], {}).number == 0
  assert outcome.best(trials, [ACCURACY], {'bytes': 20_000}).number == 1
  assert outcome.best(trials, [ACCURACY], {'bytes': 5_000}) is None
  assert outcome.best(trials[2:], [ACCURACY], {}).number == 2
  assert outcome.best([trial(0, WAITING, accuracy=0.5), trial(1, FAILED)], [ACCURACY], {}).number == 0
  assert outcome.best([], [ACCURACY], {}) is None
  assert [one.number for one in outcome.ranked(trials, [ACCURACY], {'bytes': 20_000})] == [1, 0, 2, 4, 3]
  assert outcome.best(trials[:2], [Goal('accuracy', False)], {}).number == 1


@pytest.mark.parametrize(
  'text', ['2', 'two hours', '1 fortnight', '-1 hours', '0 s', '1..2 h', 'h', 'nan s', '2 hours!']
)
def test_a_budget_that_is_no_time_is_told(text):
  with pytest.raises(ConfigError, match='a budget is a length of time'):
    outcome.seconds_of(text)


def test_a_budget_is_read_and_one_without_a_unit_is_not_guessed():
  assert outcome.seconds_of('1.5 Hours') == 5400
  assert outcome.seconds_of('1 hour, 30 minutes') == 5400
  assert outcome.seconds_of('90s') == 90
  with pytest.raises(ConfigError, match='without one'):
    outcome.seconds_of(90)


@pytest.mark.parametrize('given', ['size:3', 'bytes:many', 'bytes', {'bytes': True}, {'latency': 0}, {'bytes': -1}])
def test_a_limit_that_cannot_be_is_told(given):
  with pytest.raises(ConfigError, match='limit'):
    outcome.limits_of(given)


def test_importance_finds_a_best_value_in_the_middle_and_leaves_chance_at_nothing():
  rng = np.random.default_rng(0)
  space = {'rate': uniform(0, 1), 'noise': uniform(0, 1), 'kind': choice('a', 'b', 'c')}
  points = [{'rate': rng.uniform(), 'noise': rng.uniform(), 'kind': int(rng.integers(3))} for _ in range(200)]
  scores = [-((point['rate'] - 0.5) ** 2) + 0.02 * (point['kind'] == 1) for point in points]
  found = importances([trial(n, given=point) for n, point in enumerate(points)], scores, space)
  assert list(found) == ['rate', 'kind', 'noise']
  assert found['rate'] > 0.5
  assert found['noise'] < 0.05
  assert importances([trial(0, given=points[0])] * 7, scores[:7], space) == {}
  assert importances([trial(n, given=points[n]) for n in range(20)], [1.0] * 20, space) == {}


def points_of(draw, space, seed, most=1000):
  past = []
  while len(past) < most and (point := draw(space, seed, past)) is not None:
    past.append(trial(len(past), given=point))
  return [one.given for one in past]


def test_a_grid_is_tried_whole_and_random_points_never_twice():
  space = {'a': choice(1, 2, 3), 'b': integer(0, 3)}
  whole = [{'a': a, 'b': b} for a in range(3) for b in range(4)]
  for draw in (next_of_grid, next_at_random):
    found = points_of(draw, space, 5)
    assert sorted(map(str, found)) == sorted(map(str, whole))
    assert found != whole
    assert found == points_of(draw, space, 5)
    assert found != points_of(draw, space, 6)
  assert len(points_of(next_at_random, {'a': uniform(0, 1)}, 0, most=20)) == 20
