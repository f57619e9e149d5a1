"""Laws of the saved form: it survives JSON, names what differs, and says what a resume may change."""

import functools
import json

import pytest

from configs import Mine, as_teacher
from jaxlite.config.duration import Duration
from jaxlite.config.fields import apply_overrides
from jaxlite.config.schema import Config
from jaxlite.config.serialize import compare, diff, may_change, to_dict
from jaxlite.errors import ConfigError


def test_the_saved_form_survives_json_and_says_nothing_changed():
  config = Mine(name='x', model=as_teacher, loss=functools.partial(as_teacher, config=3), anything=(1, {'a': None}))
  saved = json.loads(json.dumps(to_dict(config)))
  assert saved == to_dict(config)
  assert saved['model'] == 'configs:as_teacher'
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


def test_a_function_may_stand_in_another_file():
  """As where an experiment's folder was renamed, or is copied to another machine; what it makes is compared later."""
  saved = to_dict(Mine(name='x', model=as_teacher, loss=functools.partial(as_teacher, config=3)))
  saved |= {'model': 'elsewhere.configs:as_teacher', 'loss': saved['loss'].replace('configs:', 'content.configs:')}
  same = Mine(name='x', model=as_teacher, loss=functools.partial(as_teacher, config=3))
  assert compare(saved, same).refused == []
  assert len(compare(saved, same).allowed) == 2
  for other in ('elsewhere.configs:as_student', 'as_teacher', None):
    assert compare({**saved, 'model': other}, same).refused
  saved['name'] = 'a:x'  # no function: what stands behind a colon is no module's
  assert [line.split(':')[0] for line in compare(saved, Mine(name='b:x')).refused] == ['name', 'model', 'loss']


def test_may_change_is_by_group_and_not_by_likeness():
  assert all(map(may_change, ('log.every', 'eval.patience', 'checkpoint.keep')))
  assert not any(map(may_change, ('train', 'logs', 'evaluation', 'data.log', 'seed')))
  assert not may_change('eval.metric')  # checkpoints bear its values: of two metrics the largest is not the best


def test_fields_that_came_or_went_with_a_version():
  config = Mine(name='x')
  saved = to_dict(config)
  del saved['sparsity'], saved['optim']['clip']
  assert diff(saved, config) == []  # at its default a new field changes nothing
  config.sparsity = 0.5
  assert diff(saved, config) == ['sparsity: saved nothing, now 0.5']
  saved['old'] = 3
  assert 'old: saved 3, now nothing' in diff(saved, config)
