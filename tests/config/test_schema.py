"""Laws of configs: what cannot run is refused, and smoke is the same run, short."""

import copy
import functools
import math
import random

import pytest

from configs import Mine, one_line
from jaxlite.config.duration import Duration
from jaxlite.config.schema import DataConfig, OptimConfig, smoke, validate
from jaxlite.errors import ConfigError

# --- ranges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('path', 'value', 'words'),
  [
    ('seed', -1, 'at least 0'),
    ('seed', 2**32, '2**32'),
    ('seed', 1.0, 'int'),
    ('seed', True, 'int'),
    ('data.batch_size', 0, 'at least 1'),
    ('data.batch_size', '64', 'int'),
    ('data.validation', 1.0, '[0, 1)'),
    ('data.validation', -0.1, '[0, 1)'),
    ('data.source', '', 'data set'),
    ('data', None, 'DataConfig'),
    ('optim.lr', 0.0, 'above 0'),
    ('optim.lr', math.nan, 'above 0'),
    ('optim.lr', math.inf, 'finite'),
    ('optim.weight_decay', -1.0, 'at least 0'),
    ('optim.clip', -1.0, 'at least 0'),
    ('eval.patience', -1, 'at least 0'),
    ('eval.batch_size', 0, 'at least 1'),
    ('eval.every', Duration(steps=0), 'longer than 0'),
    ('log.every', Duration(steps=0), 'longer than 0'),
    ('checkpoint.keep', 0, 'at least 1'),
    ('train', Duration(steps=0), 'longer than 0'),
    ('train', Duration(percent=50), 'steps, epochs or examples'),
    ('train', 3, 'Duration'),
    ('model', 3, 'a function'),
    ('widths', [1, 2], 'tuple[int, ...]'),
    ('runs', {'../x': abs}, 'folder'),
    ('runs', {'x': 3}, 'runs is dict'),
    ('runs', {'report.html': abs}, 'written in the folder of all runs'),  # else told when all are trained
    ('runs', {'a': abs, 'a-': abs}, 'more than dots and dashes'),
    ('runs', [], 'runs is dict'),
    ('name', 'a/b', 'folder'),
    ('name', '', 'folder'),
    ('optim.lrr', 0.1, 'nearest: optim.lr'),
    ('sed', 0.1, 'nearest: seed'),
  ],
)
def test_what_cannot_run_is_refused(path, value, words):
  config = Mine(name='x')
  validate(config)
  *groups, name = path.split('.')
  setattr(functools.reduce(getattr, groups, config), name, value)
  with pytest.raises(ConfigError) as error:
    validate(config)
  assert words in one_line(error)
  assert path in str(error.value) or name in str(error.value) or repr(value) in str(error.value)


# --- smoke --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('train', [Duration(epochs=30), Duration(steps=5000), Duration(examples=10**6)])
def test_smoke_is_short_valid_in_proportion_and_the_same_twice(train):
  config = Mine(name='x', train=train, begin=Duration(percent=60), data=DataConfig(batch_size=512))
  config.optim.warmup = Duration(steps=0)
  before = copy.deepcopy(config)
  small = smoke(config)
  validate(small)
  assert config == before
  sizes = {'steps_per_epoch': 100, 'batch_size': small.data.batch_size}
  total = small.train.to_steps(**sizes)
  assert total <= 50
  assert small.begin.to_steps(**sizes, total_steps=total) == math.ceil(0.6 * total)
  assert small.optim.warmup.to_steps(**sizes, total_steps=total) == 0
  assert 1 <= small.eval.every.to_steps(**sizes, total_steps=total) <= total
  assert smoke(small) == small


def test_smoke_keeps_the_order_of_durations():
  seconds = random.Random(0)
  for _ in range(200):
    amounts = sorted(seconds.sample(range(1, 10_000), 2))
    train = seconds.choice([Duration(steps=10_000), Duration(epochs=3), Duration(examples=7)])
    config = Mine(name='x', train=train, begin=Duration(steps=amounts[0]))
    config.optim = OptimConfig(warmup=Duration(steps=amounts[1]))
    small = smoke(config)
    assert small.begin.percent <= small.optim.warmup.percent <= 100
