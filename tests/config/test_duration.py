"""Laws of durations: one amount in one unit, steps rounded up."""

import itertools
import math

import pytest

from configs import Mine, one_line
from jaxlite.config.duration import Duration
from jaxlite.config.schema import validate
from jaxlite.errors import ConfigError


@pytest.mark.parametrize(
  ('given', 'steps'),
  [
    ({'steps': 7}, 7),
    ({'steps': 0}, 0),
    ({'epochs': 2}, 22),
    ({'epochs': 0.01}, 1),
    ({'epochs': 0.1 * 3}, 4),  # 0.30000000000000004 as it is written, times 11
    ({'examples': 1}, 1),
    ({'examples': 64}, 2),
    ({'examples': 65}, 3),
    ({'percent': 10}, 3),
    ({'percent': 0.1}, 1),
    ({'percent': 100}, 30),
    ({'percent': 0}, 0),
  ],
)
def test_a_duration_is_steps_rounded_up(given, steps):
  assert Duration(**given).to_steps(steps_per_epoch=11, batch_size=32, total_steps=30) == steps


def test_rounding_up_never_overshoots_a_written_decimal():
  for total, percent in itertools.product(range(1, 400), (0.1, 0.3, 1.1, 7, 33.3)):
    exact = math.ceil(round(total * percent * 10) / 1000)
    assert Duration(percent=percent).to_steps(steps_per_epoch=1, batch_size=1, total_steps=total) == exact


@pytest.mark.parametrize(
  'given',
  [{}, {'steps': 1, 'epochs': 1}, {'steps': -1}, {'steps': 1.5}, {'steps': True}, {'epochs': math.nan},
   {'epochs': math.inf}, {'percent': 101}, {'epochs': 'x'}],
)  # fmt: skip
def test_a_duration_has_one_sensible_amount(given):
  with pytest.raises(ValueError) as error:
    Duration(**given)
  one_line(error)


def test_a_duration_that_was_given_a_second_unit_later_is_refused():
  duration = Duration(epochs=3)
  duration.steps = 5
  with pytest.raises(ConfigError) as error:
    duration.to_steps(steps_per_epoch=1, batch_size=1)
  assert 'steps=5, epochs=3' in one_line(error)
  with pytest.raises(ConfigError, match=r'^train: '):
    validate(Mine(name='x', train=duration))


def test_percent_needs_the_whole_and_sizes_are_positive():
  with pytest.raises(ConfigError, match='percent is of the whole run'):
    Duration(percent=5).to_steps(steps_per_epoch=1, batch_size=1)
  with pytest.raises(ConfigError, match='empty'):
    Duration(epochs=5).to_steps(steps_per_epoch=0, batch_size=1)
