"""A verdict is never surer than what it was given, and says so."""

import json
import math

import numpy as np
import pytest

from jaxlite.diagnosis import Diagnosis, Finding, diagnose, from_json
from jaxlite.diagnosis.actions import Known, action_for
from jaxlite.diagnosis.judge import with_overrides


def points(train, validation=(), every=10):
  history = [{'kind': 'train', 'step': every * (i + 1), 'loss': value} for i, value in enumerate(train)]
  history += [{'kind': 'validation', 'step': every * (i + 1), 'loss': value} for i, value in enumerate(validation)]
  return history


FALLING = [2 * 0.7**i + 0.1 for i in range(20)]
CASES = {
  'nothing': ([], [], 'unknown', ''),
  'one point': ([1.0], [1.0], 'unknown', ''),
  'too short': ([1.0, 0.9], [1.0, 0.9], 'unknown', ''),
  'without validation': (FALLING, [], 'unknown', ''),
  'healthy': (FALLING, FALLING, 'healthy', ''),
  'overfitting': (FALLING, [*FALLING[:8], *(0.2 + 0.1 * i for i in range(1, 12))], 'overfitting', 'overfitting'),
  'still falling': (list(np.linspace(2, 1, 20)), list(np.linspace(2, 1, 20)), 'underfitting', 'still falling'),
  'rough': ([2.0, 0.3] * 10, FALLING, 'broken', 'unstable loss'),
  'blown up': (list(np.geomspace(1, 50, 20)), FALLING, 'broken', 'blown up'),
  'NaN': ([*FALLING, math.nan], FALLING, 'broken', 'not finite'),
  'all NaN': ([math.nan] * 9, [math.inf] * 9, 'broken', 'not finite'),
}


@pytest.mark.parametrize('name', CASES)
def test_curves_alone(name):
  train, validation, verdict, cause = CASES[name]
  found = diagnose(points(train, validation))
  assert (found.verdict, found.cause) == (verdict, cause)
  assert 'from the records alone' in found.certainty
  assert any('nothing was measured' in line for line in found.unknown)
  if not validation:
    assert any('no validation split' in line for line in found.unknown)
  if verdict == 'unknown':
    assert found.action is None
  again = json.loads(json.dumps(found.to_json(), allow_nan=False))
  assert from_json(again).verdict == verdict
  assert str(found).startswith(f'verdict: {verdict}')


def test_what_is_strange_in_a_record_is_left_out():
  strange = [
    {},
    {'kind': 'train'},
    {'kind': 'train', 'step': 'x', 'loss': 1},
    None,
    {'kind': 'other', 'step': 1, 'loss': 1},
  ]
  assert diagnose([*strange, *points(FALLING, FALLING)]) == diagnose(points(FALLING, FALLING))
  shuffled = points(FALLING, FALLING)[::-1]
  assert diagnose(shuffled) == diagnose(points(FALLING, FALLING))


def test_a_run_that_failed_says_where_and_what_to_do():
  config = {'optim': {'lr': 0.5}, 'recipe': None, 'repair': {'rate': 1.0}}
  found = diagnose(points([1.0, 5.0]), failed={'step': 17, 'where': 'dense/kernel'}, config=config)
  assert (found.verdict, found.cause) == ('broken', 'not finite')
  assert 'at step 17, first in dense/kernel' in found.findings[0].evidence
  assert found.action.overrides == {'optim.lr': 0.05}


def test_a_rate_that_the_recipe_does_not_read_is_changed_by_its_updates():
  config = {'optim': {'lr': 0.5}, 'recipe': 'mine:recipe'}
  assert action_for('not finite', Known(config, None, None)).overrides == {'repair.rate': 0.1}
  assert action_for('not finite', Known(config, {'optim.lr'}, None)).overrides == {'optim.lr': 0.05}
  assert action_for('distribution shift', Known(config, None, None)) is None


def test_the_command_is_that_of_the_run_with_the_change():
  command = (
    'python launch.py --mode=diagnose --act --config=a.py --workdir runs/a --config.seed=3 --config.train.steps=5'
  )
  said = with_overrides(command, {'loss': None, 'repair.start': True, 'train.epochs': 9}, 'my runs/a-next')
  assert said == (
    "python launch.py --config=a.py --config.seed=3 '--workdir=my runs/a-next' --config.loss=none "
    '--config.repair.start=true --config.train.epochs=9'
  )


def test_no_diagnosis_is_said_to_be_none():
  with pytest.raises(ValueError, match='it holds no diagnosis'):
    from_json({'verdict': 'healthy'})
  with pytest.raises(ValueError, match='it holds no diagnosis'):
    from_json({**Diagnosis('healthy', '', (), None, '', ()).to_json(), 'findings': [{'name': 'x'}]})
  one = Finding('x', 'y', math.inf, math.nan, True)
  assert math.isnan(from_json(Diagnosis('broken', 'x', (one,), None, '', ()).to_json()).findings[0].value)


def test_what_is_set_already_is_not_suggested():
  config = {'optim': {'lr': 0.5}, 'recipe': None, 'model': None, 'repair': {'leaks': True, 'start': True, 'clip': 0.0}}
  assert action_for('leak', Known(config, None, None)) is None
  assert action_for('exploding gradient', Known(config, None, None)).overrides == {'repair.clip': 1.0}
  assert 'model' not in action_for('underfitting', Known({**config, 'train': {'epochs': 3}}, None, None)).overrides
  assert action_for('underfitting', Known({**config, 'model': 'given'}, None, None)).overrides == {'model': None}
