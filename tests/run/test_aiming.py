"""A run with a target: told as it trains and at its end, also where it goes on; nothing where there is no target."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxlite as jl
from jaxlite.planning.target import LEAST
from jaxlite.report.result import Result, from_json, to_json
from jaxlite.run import aiming, checking
from jaxlite.run.records import read_records

pytestmark = pytest.mark.unoptimized


def task():
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(400, 6)).astype(np.float32)
  return inputs, (inputs[:, 0] + 0.5 * inputs[:, 1] > 0).astype(np.int64)


def config(target, steps=60, **more):
  made = jl.Config(name='aimed', train=jl.Duration(steps=steps), **more)
  made.data.batch_size, made.optim.lr = 32, 3e-3
  made.eval.every = made.log.every = made.checkpoint.every = jl.Duration(steps=3)
  made.eval.target, made.log.tensorboard = target, False
  return made


@pytest.fixture(scope='module')
def aimed(tmp_path_factory):
  """A run that reaches its target, with what it said."""
  folder, said = tmp_path_factory.mktemp('aimed'), []
  result = jl.train(config(0.75), folder / 'run', data=task(), say=said.append)
  return folder / 'run', result, said


def test_each_point_says_when_it_will_be_reached_and_the_end_whether_it_was(aimed):
  folder, result, said = aimed
  found = result.forecast['target']
  curve = [(one['step'], one['accuracy']) for one in read_records(folder) if one['kind'] == 'validation']
  first = next((step for step, value in curve if value >= 0.75), None)
  assert found['reached'] == first is not None
  points = [line for line in said if line.startswith('step ')]
  told = [line for line in points if 'accuracy 0.75 ' in line]
  assert len(told) >= len(points) - LEAST
  assert all(f'reached at step {first}' in line for line in told if int(re.match(r'step (\d+)', line)[1]) >= first)
  assert any(line.startswith(f'accuracy 0.75 was reached at step {first}') for line in said)
  assert 'step of accuracy 0.75 | ' in (folder / 'report.md').read_text()
  assert json.loads((folder / 'result.json').read_text())['forecast']['target'] == found
  assert 'target: 1 of 1 reached' in checking.table(folder)


def test_a_target_changes_no_number_and_a_run_that_goes_on_knows_its_whole_curve(aimed, tmp_path, monkeypatch):
  folder, *_ = aimed
  said, lengths, reach = [], [], aiming.reach
  first = jl.train(config(None, steps=30), tmp_path / 'run', data=task(), say=said.append)
  assert 'target' not in first.forecast
  assert not [line for line in said if '80 of 100' in line]
  monkeypatch.setattr(
    aiming, 'reach', lambda steps, *rest, **more: lengths.append(len(steps)) or reach(steps, *rest, **more)
  )
  again = jl.train(config(0.75), tmp_path / 'run', data=task(), say=said.append)
  assert lengths[0] == 10  # one look at the whole curve: a look at each of its points grows with its square
  curve = [(one['step'], one['accuracy']) for one in read_records(tmp_path / 'run') if one['kind'] == 'validation']
  assert [step for step, _ in curve] == list(range(3, 61, 3))
  assert again.forecast['target']['reached'] == next((step for step, value in curve if value >= 0.75), None)
  other = [one['accuracy'] for one in read_records(folder) if one['kind'] == 'validation']
  assert [value for _, value in curve][:5] == pytest.approx(other[:5], abs=0.06)  # an example, where a rounding decides


@settings(max_examples=25, deadline=None)
@given(
  values=st.lists(st.floats(-2, 2) | st.just(math.nan), max_size=12),
  target=st.floats(-2, 2),
  better=st.sampled_from([1, -1]),
)
def test_whatever_a_curve_does_something_is_said_and_result_and_report_take_it(values, target, better):
  aim = aiming.Aim.__new__(aiming.Aim)
  aim.target, aim.metric, aim._better, aim._total, aim._batch = target, 'score', better, 20, 4
  aim._steps, aim._values, aim._earlier, aim._expected = [], [], [], None
  for step, value in enumerate(values, 1):
    aim.saw(step, value)
    assert all(isinstance(one, str) for one in aim.said(step, 10.0))
  found = aim.outcome()
  reached = [step for step, value in enumerate(values, 1) if better * value >= better * target]
  assert found['reached'] == (reached[0] if reached else None)
  assert aiming.told(found)
  result = Result('x', {}, forecast={'target': found})
  assert from_json(to_json(result, 'id'), 'id').forecast == result.forecast


@pytest.mark.parametrize('line', ['{', '{"steps": [1]}', '{"steps": [2, 1, 3, 4], "values": [1, 1, 1, 1]}', 'null', ''])
def test_curves_that_are_damaged_are_passed_over(tmp_path, line):
  good = {'run': 'a', 'steps': [1, 2, 3, 4], 'values': [0.1, 0.2, 0.3, 0.4]}
  (tmp_path / 'curves.jsonl').write_text(f'{line}\n{json.dumps(good)}\n{line}')
  assert aiming._kept(tmp_path / 'curves.jsonl') == [good]


def test_a_target_that_is_no_number_is_refused():
  with pytest.raises(ValueError, match=r'eval\.target'):
    jl.train(config(math.nan), 'never', data=task())
