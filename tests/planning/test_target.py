"""When a target is reached: laws of what is told, and curves whose end is known."""

import math

import numpy as np
import pytest

from jaxlite.planning.target import LEAST, reach

CURVES = {
  'a power': lambda s: 1 - 0.9 * s**-0.4,
  'an exponential': lambda s: 1 - np.exp(-s / 400),
  'between': lambda s: 1 - 1 / (1 + s / 150),
}


def first(curve, goal, total):
  steps = np.arange(1, total + 1)
  return float(steps[np.argmax(curve(steps) >= goal)])


@pytest.mark.parametrize('name', CURVES)
@pytest.mark.parametrize('part', [0.4, 0.5])
def test_curves_without_noise_are_told_near_enough(name, part):
  curve, total = CURVES[name], 1_000
  goal = float(curve(np.float64(part * total)))
  at = np.arange(20, 301, 20)
  told = reach(at, curve(at), goal, total, limit=1.0)
  assert told.low <= first(curve, goal, total) <= told.high
  assert told.step == pytest.approx(part * total, rel=0.35)
  assert told.share > 0.5


def test_the_interval_holds_and_narrows_as_the_run_goes_on():
  rng, held, wide = np.random.default_rng(0), [], {0.2: [], 0.6: []}
  for _ in range(60):
    shape, level = rng.uniform(0.2, 0.9), rng.uniform(0.8, 1.0)
    at = np.arange(20, 1_001, 20)
    values = level - 0.8 * (at / 10) ** -shape + 0.004 * rng.normal(size=len(at))
    goal = np.maximum.accumulate(values)[40]
    truth = at[np.argmax(values >= goal)]
    for known in wide:
      seen = int(known * len(at))
      if truth > at[seen - 1]:
        told = reach(at[:seen], values[:seen], goal, 1_000, limit=1.0)
        held.append(told.low <= truth <= told.high)
        if told.level is None:
          wide[known].append(told.high - told.low)
  assert 0.65 <= np.mean(held) <= 0.97
  assert np.median(wide[0.6]) < 0.7 * np.median(wide[0.2])


def test_what_cannot_be_is_told_so():
  at = np.arange(10, 210, 10)
  flat = 0.7 + 0.001 * np.sin(at)
  assert reach(at, flat, 0.9, 400, limit=1.0).share < 0.5
  assert reach(at, CURVES['a power'](at), 1.01, 400, limit=1.0).share == 0
  assert math.isinf(reach(at, CURVES['a power'](at), 1.01, 400, limit=1.0).step)
  assert 'levels off near 0.7,' in str(reach(at, flat, 0.9, 400, limit=1.0))
  assert 'not reached within the run' in str(reach(at, CURVES['a power'](at), 1.01, 400, limit=1.0))
  assert reach(at, CURVES['a power'](at), 0.9, 200, limit=1.0).share == 0  # the run is over


def test_a_nearer_target_is_reached_earlier_and_surer():
  at = np.arange(10, 210, 10)
  told = [reach(at, CURVES['between'](at), goal, 1_000, limit=1.0) for goal in (0.6, 0.65, 0.7, 0.8, 0.85)]
  assert [one.step for one in told] == sorted(one.step for one in told)
  assert [one.share for one in told] == sorted((one.share for one in told), reverse=True)


def test_less_is_better_mirrors_more_is_better():
  at = np.arange(10, 210, 10)
  values = CURVES['an exponential'](at)
  more, less = reach(at, values, 0.8, 900, limit=1.0), reach(at, -values, -0.8, 900, better=-1, limit=-1.0)
  assert more == less


def test_what_was_reached_is_told_as_it_was():
  told = reach([1, 2, 3], [0.1, 0.9, 0.5], 0.8, 10)
  assert (told.step, told.share, told.now) == (2.0, 1.0, True)
  assert str(told) == 'reached at step 2'


def test_few_points_say_nothing_and_those_that_are_no_numbers_none():
  assert reach([1, 2, 3], [0.1, 0.2, 0.3], 0.8, 10) is None
  assert reach([1, 2, 3, 4], [0.1, math.nan, 0.2, 0.3], 0.8, 10) is None
  assert reach(range(1, 12), [0.1, *[math.nan] * (11 - LEAST), *[0.2] * (LEAST - 1)], 0.8, 99) is not None


def test_earlier_runs_are_followed_where_they_are_alike():
  """A curve that stands still in its middle: no law of its own start tells its end, an earlier run does."""
  curve = lambda s: 0.3 * (1 - np.exp(-s / 40)) + 0.6 / (1 + np.exp(-(s - 600) / 40))  # noqa: E731
  at = np.arange(20, 1_001, 20)
  seen = at <= 400
  goal, truth = 0.8, first(curve, 0.8, 1_000)
  earlier = [(at, curve(at * speed)) for speed in (0.9, 1.0, 1.1)]
  alone = reach(at[seen], curve(at[seen]), goal, 1_000, limit=1.0)
  told = reach(at[seen], curve(at[seen]), goal, 1_000, limit=1.0, earlier=earlier)
  assert abs(math.log(told.step / truth)) < abs(math.log(alone.step / truth))
  assert told.share >= alone.share


def test_a_loss_without_a_known_best_is_told_too():
  at = np.arange(10, 210, 10)
  told = reach(at, -CURVES['a power'](at), -0.9, 1_000, better=-1)
  assert at[-1] < told.step <= 1_000


WRONG = {
  'steps that fall': ({'steps': [1, 3, 2, 4], 'values': [0.1] * 4}, 'rise'),
  'a step of 0': ({'steps': [0, 1, 2, 3], 'values': [0.1] * 4}, 'above 0'),
  'other lengths': ({'steps': [1, 2], 'values': [0.1]}, 'as many steps as values'),
  'another direction': ({'steps': [1, 2], 'values': [0.1, 0.2], 'better': 0}, 'better is 1'),
  'no target': ({'steps': [1, 2], 'values': [0.1, 0.2], 'target': math.nan}, 'a target is a number'),
}


@pytest.mark.parametrize('name', WRONG)
def test_what_makes_no_sense_is_refused(name):
  given, said = WRONG[name]
  with pytest.raises(ValueError, match=said):
    reach(**{'target': 0.5, 'total': 10, **given})


ENDS = {
  'an exponential': lambda s: 0.75 - 0.6 * np.exp(-s / 40),
  'a power': lambda s: 0.75 - 0.6 * (s / 10) ** -1.0,
  'no more': lambda s: np.full(len(s), 0.75),
  'back again': lambda s: 0.76 - 0.6 * np.exp(-s / 30) - 0.00005 * s,
}


@pytest.mark.parametrize('name', ENDS)
@pytest.mark.parametrize('better', [1, -1])
def test_a_curve_that_levels_off_short_of_the_target_is_told_so_plainly(name, better):
  at = np.arange(20, 401, 20)
  seen = ENDS[name](at) + 0.001 * np.random.default_rng(0).normal(size=len(at))
  told = reach(at, better * seen, better * 0.9, 1_000, better=better, limit=1.0 if better > 0 else None)
  assert told.share == 0
  assert told.level == pytest.approx(better * 0.75, abs=0.03)
  assert 'levels off near' in str(told)


@pytest.mark.parametrize('name', CURVES)
def test_a_curve_that_still_rises_is_not_told_to_level_off(name):
  for noise in (0.0, 0.002, 0.01):
    at = np.arange(20, 301, 20)
    seen = CURVES[name](at) + noise * np.random.default_rng(1).normal(size=len(at))
    goal = float(CURVES[name](np.float64(600)))
    assert reach(at, seen, goal, 1_000, limit=1.0).level is None
