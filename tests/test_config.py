"""Laws of configs: durations, fields set from text, what is refused, what a resume may change."""

import copy
import dataclasses
import functools
import itertools
import json
import math
import random
from collections.abc import Callable
from typing import Any, Literal

import pytest

from jaxlite.config import (
  Config,
  ConfigError,
  DataConfig,
  Duration,
  OptimConfig,
  apply_overrides,
  compare,
  diff,
  may_change,
  override,
  smoke,
  to_dict,
  validate,
)
from jaxlite.fields import fields


@dataclasses.dataclass(frozen=True)
class Frozen:
  depth: int = 2


@dataclasses.dataclass(kw_only=True)
class Mine(Config):
  """What an experiment adds: every kind of field."""

  sparsity: float = 0.9
  width: int | None = None
  widths: tuple[int, ...] = (300, 100)
  pair: tuple[int, float] = (1, 0.5)
  tags: list[str] = dataclasses.field(default_factory=list)
  flip: bool | None = None
  either: int | str = 0
  norm: Literal['batch', 'layer', 1] = 'batch'
  frozen: Frozen = dataclasses.field(default_factory=Frozen)
  begin: Duration | None = None
  act: Callable[[Any], Any] = abs
  anything: Any = None
  recipe: Callable[[Config, int], Any] | None = max


def _one_line(error) -> str:
  text = str(error.value)
  assert '\n' not in text
  assert text
  return text


# Durations


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
  _one_line(error)


def test_a_duration_that_was_given_a_second_unit_later_is_refused():
  duration = Duration(epochs=3)
  duration.steps = 5
  with pytest.raises(ConfigError) as error:
    duration.to_steps(steps_per_epoch=1, batch_size=1)
  assert 'steps=5, epochs=3' in _one_line(error)
  with pytest.raises(ConfigError, match=r'^train: '):
    validate(Mine(name='x', train=duration))


def test_percent_needs_the_whole_and_sizes_are_positive():
  with pytest.raises(ConfigError, match='percent is of the whole run'):
    Duration(percent=5).to_steps(steps_per_epoch=1, batch_size=1)
  with pytest.raises(ConfigError, match='empty'):
    Duration(epochs=5).to_steps(steps_per_epoch=0, batch_size=1)


# Fields set from text


@pytest.mark.parametrize(
  ('path', 'text', 'value'),
  [
    ('seed', '3', 3),
    ('optim.lr', '1e-2', 0.01),
    ('optim.lr', '1', 1.0),
    ('log.progress', 'False', False),
    ('log.progress', '1', True),
    ('log.progress', None, True),
    ('flip', None, True),
    ('flip', 'none', None),
    ('data.directory', '', ''),
    ('data.directory', 'a=b c', 'a=b c'),
    ('width', 'None', None),
    ('width', '12', 12),
    ('widths', '1,2,3', (1, 2, 3)),
    ('widths', '(4,)', (4,)),
    ('widths', '[]', ()),
    ('widths', '', ()),
    ('pair', '2, 0.25', (2, 0.25)),
    ('tags', 'a, b', ['a', 'b']),
    ('either', '5', 5),
    ('either', 'five', 'five'),
    ('norm', 'layer', 'layer'),
    ('norm', '1', 1),
    ('frozen.depth', '5', 5),
    ('begin.epochs', '2', 2.0),
    ('begin', 'none', None),
    ('sparsity', '-0.5', -0.5),
  ],
)
def test_text_is_read_as_the_annotation_says(path, text, value):
  config = override(Mine(name='x'), path, text)
  found = config
  for name in path.split('.'):
    found = getattr(found, name)
  assert found == value
  assert type(found) is type(value)


def test_one_unit_of_a_duration_clears_the_others():
  assert override(Mine(name='x'), 'train.steps', '10').train == Duration(steps=10)
  assert override(Mine(name='x'), 'optim.warmup.epochs', '0.5').optim.warmup == Duration(epochs=0.5)


@pytest.mark.parametrize(
  ('path', 'text', 'words'),
  [
    ('sead', '1', 'seed'),
    ('optim.lrr', '1', 'optim.lr'),
    ('data.optim.lr', '1', 'optim.lr'),
    ('optim.warmup.step', '1', 'optim.warmup.steps'),
    ('optim.warmup.steps.x', '1', 'optim.warmup.steps'),
    ('optim.lr.x', '1', 'optim.lr'),
    ('', '1', 'unknown field'),
    ('begin.x.y', '1', 'begin.steps'),
    ('optim', '1', 'optim.lr, optim.warmup'),
    ('train', '3', 'train.epochs'),
    ('train', 'none', 'train.epochs'),
    ('begin', '3', 'begin.steps'),
    ('seed', '1.5', "seed is int; got '1.5'"),
    ('seed', '', "seed is int; got ''"),
    ('seed', None, 'needs a value'),
    ('optim.lr', 'x', "optim.lr is float; got 'x'"),
    ('optim.lr', 'nan', 'float'),
    ('log.progress', 'maybe', 'bool'),
    ('width', 'x', 'int | None'),
    ('widths', '1,x', 'tuple[int, ...]'),
    ('pair', '1', 'tuple[int, float]'),
    ('norm', 'group', "'batch', 'layer', 1"),
    ('train.steps', '-1', 'train.steps: '),
    ('train.steps', 'none', 'int'),
    ('train.epochs', 'inf', 'finite'),
    ('model', 'x', 'a function'),
    ('act', 'x', 'a function'),
    ('runs', '{}', 'cannot be set'),
    ('runs.teacher', 'x', 'unknown field'),
    ('anything', '1', 'cannot be set'),
  ],
)
def test_a_mistake_gets_one_line_with_the_way_out(path, text, words):
  config = Mine(name='x')
  before = copy.deepcopy(config)
  with pytest.raises(ConfigError) as error:
    override(config, path, text)
  assert words in _one_line(error)
  assert config == before


def test_overrides_commute_and_leave_the_original_alone():
  pairs = [('optim.lr', '0.5'), ('train.steps', '7'), ('seed', '3'), ('frozen.depth', '4'), ('begin.steps', '1')]
  config = Mine(name='x')
  before = copy.deepcopy(config)
  found = [apply_overrides(config, order) for order in itertools.permutations(pairs)]
  assert all(one == found[0] for one in found)
  assert config == before
  assert found[0].optim is not config.optim
  old = {path: value for path, *_, value in fields(config)}
  changed = {path for path, *_, value in fields(found[0]) if value != old[path]}
  assert changed == {'optim.lr', 'train', 'seed', 'frozen.depth', 'begin'}


def test_the_same_field_twice_is_refused_unless_it_agrees():
  config = Mine(name='x')
  assert apply_overrides(config, [('optim.lr', '0.1'), ('optim.lr', '1e-1')]).optim.lr == 0.1
  assert apply_overrides(config, [('train.steps', '5'), ('train.steps', '5')]).train == Duration(steps=5)
  for pairs in (
    [('optim.lr', '0.1'), ('optim.lr', '0.2')],
    [('train.steps', '5'), ('train.epochs', '5')],
    [('begin.steps', '5'), ('begin', 'none')],
  ):
    for order in (pairs, pairs[::-1]):
      with pytest.raises(ConfigError) as error:
        apply_overrides(config, order)
      assert 'given once' in _one_line(error)


def _teacher(config):
  return dataclasses.replace(config, train=Duration(epochs=60), sparsity=0.0)


def test_what_is_typed_is_stronger_than_a_variation():
  config = apply_overrides(Mine(name='x', runs={'teacher': _teacher}), [('train.steps', '5')])
  varied = config.runs['teacher'](config)
  assert varied.train == Duration(steps=5)
  assert varied.sparsity == 0
  assert to_dict(config)['runs'] == {'teacher': f'{__name__}:_teacher'}  # the name that is saved stays


def test_one_run_can_be_set_alone():
  config = Mine(name='x', runs={'teacher': _teacher, 'student': copy.copy})
  pairs = [('runs.student.optim.lr', '0.2'), ('optim.lr', '0.1'), ('runs.teacher.train.steps', '3')]
  for order in itertools.permutations(pairs):
    found = apply_overrides(config, order)
    teacher, student = (found.runs[name](found) for name in ('teacher', 'student'))
    assert (found.optim.lr, teacher.optim.lr, student.optim.lr) == (0.1, 0.1, 0.2)
    assert teacher.train == Duration(steps=3)
    assert student.train == config.train
  for path, words in (
    ('runs.studnt.optim.lr', 'the runs are teacher, student'),
    ('runs.student.optim.lrr', 'nearest: optim.lr'),
    ('runs.student', 'unknown field'),
  ):
    with pytest.raises(ConfigError) as error:
      override(config, path, '1')
    assert words in _one_line(error)


# Ranges


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
    ('recipe', None, 'total_steps'),
    ('widths', [1, 2], 'tuple[int, ...]'),
    ('runs', {'../x': abs}, 'folder'),
    ('runs', {'x': 3}, 'runs is dict'),
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
  assert words in _one_line(error)
  assert path in str(error.value) or name in str(error.value) or repr(value) in str(error.value)


# Saved form


def test_the_saved_form_survives_json_and_says_nothing_changed():
  config = Mine(name='x', model=_teacher, loss=functools.partial(_teacher, config=3), anything=(1, {'a': None}))
  saved = json.loads(json.dumps(to_dict(config)))
  assert saved == to_dict(config)
  assert saved['model'] == f'{__name__}:_teacher'
  assert diff(saved, config) == []
  with pytest.raises(ConfigError, match='anything is object'):
    to_dict(Mine(name='x', anything=object()))


def test_every_field_that_differs_is_named():
  config = Mine(name='x')
  saved = to_dict(config)
  other = apply_overrides(config, [('optim.lr', '0.5'), ('train.epochs', '20'), ('log.every.steps', '3')])
  other.widths = (1,)
  refused, allowed = compare(saved, other)
  assert refused == ['optim.lr: saved 0.001, now 0.5', 'widths: saved [300, 100], now [1]']
  assert [line.split(';')[0] for line in allowed] == [
    'train: saved 10 epochs, now 20 epochs',
    'log.every: saved 50 steps, now 3 steps',
  ]
  assert 'schedules' in allowed[0]
  assert diff(saved, other) == refused + allowed


def test_only_a_longer_run_in_the_same_unit_may_go_on():
  saved = to_dict(Config(name='x', train=Duration(epochs=10)))
  for train, allowed in ((Duration(epochs=9), False), (Duration(epochs=11), True), (Duration(steps=99), False)):
    found = compare(saved, Config(name='x', train=train))
    assert (not found.refused) is allowed
  # Another field of a longer run is still refused.
  assert compare(saved, Config(name='x', train=Duration(epochs=11), seed=1)).refused == ['seed: saved 0, now 1']


def test_may_change_is_by_group_and_not_by_likeness():
  assert all(map(may_change, ('log.every', 'eval.metric', 'checkpoint.keep')))
  assert not any(map(may_change, ('train', 'logs', 'evaluation', 'data.log', 'seed')))


def test_fields_that_came_or_went_with_a_version():
  config = Mine(name='x')
  saved = to_dict(config)
  del saved['sparsity'], saved['optim']['clip']
  assert diff(saved, config) == []  # at its default a new field changes nothing
  config.sparsity = 0.5
  assert diff(saved, config) == ['sparsity: saved nothing, now 0.5']
  saved['old'] = 3
  assert 'old: saved 3, now nothing' in diff(saved, config)


# Smoke


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
