"""The file that forecasts learn from: whole, bounded, tolerant, and never far off with little evidence."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from jaxlite.planning import calibration
from jaxlite.planning.calibration import Outcome, add, correction, outcomes, place


def outcome(ratio=2.0, what='time/step', basis='cost', **more):
  return Outcome(what, basis, 1.0, ratio, **more)


def test_what_was_added_is_there(tmp_path):
  first, second = outcome(features={'flops': 3.0}, run='a'), outcome(1.5)
  assert add([first], tmp_path)
  assert add([second], tmp_path)
  assert outcomes(tmp_path) == (first, second)


def test_of_one_run_the_latest_counts(tmp_path):
  add([outcome(2.0, run='a'), outcome(1.0, run='b')], tmp_path)
  add([outcome(3.0, run='a')], tmp_path)
  assert [one.actual for one in outcomes(tmp_path)] == [1.0, 3.0]


def test_nothing_is_kept_of_nothing(tmp_path):
  assert outcomes(tmp_path / 'none') == ()


DAMAGE = {
  'torn': b'{"what": "time/step", "ba',
  'other bytes': b'\x00\xff\xfe',
  'another kind': b'[1, 2]',
  'a number': b'7',
  'deep': b'[' * 100_000,
  'a word for a number': json.dumps({**outcome()._asdict(), 'actual': 'fast'}).encode(),
  'less than nothing': json.dumps({**outcome()._asdict(), 'actual': -1}).encode(),
  'no number': json.dumps({**outcome()._asdict(), 'actual': math.nan}).encode(),
  'features of words': json.dumps({**outcome()._asdict(), 'features': {'a': 'b'}}).encode(),
  'a flipped exponent': json.dumps({**outcome()._asdict(), 'actual': 1e300, 'predicted': 1e-300}).encode(),
  'more than is known': json.dumps({**outcome()._asdict(), 'new': 1}).encode(),
}


@pytest.mark.parametrize('name', DAMAGE)
def test_damage_costs_the_damaged_line_alone(tmp_path, name):
  add([outcome(2.0)], tmp_path)
  with place(tmp_path).open('ab') as file:
    file.write(DAMAGE[name])  # no end of line: its process died
  add([outcome(3.0)], tmp_path)
  assert [one.actual for one in outcomes(tmp_path)] == [2.0, 3.0]


def test_it_stays_small(tmp_path, monkeypatch):
  monkeypatch.setattr(calibration, 'BYTES', 5_000)
  for i in range(100):
    add([outcome(1.0 + i)], tmp_path)
  assert place(tmp_path).stat().st_size < 5_000 + 200
  assert outcomes(tmp_path)[-1].actual == 100.0


WRITER = """
import pathlib, sys
from jaxlite.planning.calibration import Outcome, add
for i in range(50):
  add([Outcome('time/step', 'cost', 1.0, 1.0 + i, run=f'{sys.argv[2]} {i}')], pathlib.Path(sys.argv[1]))
"""


def test_of_several_writers_none_is_lost(tmp_path):
  writers = [subprocess.Popen([sys.executable, '-c', WRITER, str(tmp_path), str(who)]) for who in range(4)]
  assert [one.wait() for one in writers] == [0] * 4
  assert len(outcomes(tmp_path)) == 200


def test_where_it_cannot_be_written_it_is_said(tmp_path):
  (tmp_path / 'file').write_text('in the way')
  assert not add([outcome()], tmp_path / 'file')


@pytest.mark.parametrize('wrong', [0.0, -1.0, math.nan, math.inf, True])
def test_what_is_no_amount_is_refused(tmp_path, wrong):
  with pytest.raises(ValueError, match='above 0'):
    add([outcome(wrong)], tmp_path)


def test_nothing_known_changes_nothing():
  assert correction('time/step', 'cost', spread=0.4, among=[]) == (1.0, 0.4, 0.0)


def test_another_quantity_or_basis_teaches_nothing():
  other = [outcome(5.0, what='time/compile'), outcome(5.0, basis='probe')]
  assert correction('time/step', 'cost', spread=0.4, among=other).factor == 1.0


def test_much_evidence_is_followed_and_one_outlier_is_not():
  rng = np.random.default_rng(0)
  known = [outcome(1.7 * math.exp(0.05 * one)) for one in rng.normal(size=60)]
  learned = correction('time/step', 'cost', spread=0.4, among=[*known, outcome(40.0)])
  assert learned.factor == pytest.approx(1.7, rel=0.05)
  assert learned.spread < 0.3


def test_likes_count_more():
  known = [outcome(1.0, features={'size': 0.0})] * 9 + [outcome(3.0, features={'size': 4.0})] * 9
  near = correction('time/step', 'cost', {'size': 4.0}, spread=0.4, among=known)
  assert near.factor > 2.4
  assert correction('time/step', 'cost', {'size': 0.0}, spread=0.4, among=known).factor < 1.1


def test_learning_shrinks_the_error_of_forecasts_to_come():
  rng = np.random.default_rng(1)
  seen, before, after = [], [], []
  for _ in range(40):
    ratio = 1.6 * math.exp(0.1 * rng.normal())
    learned = correction('time/step', 'cost', spread=0.4, among=seen)
    before.append(abs(math.log(ratio)))
    after.append(abs(math.log(ratio / learned.factor)))
    seen.append(outcome(ratio))
  assert np.mean(after[5:]) < 0.4 * np.mean(before[5:])


def test_runs_on_an_accelerator_teach_nothing_of_those_on_the_processor_beside_it(tmp_path, monkeypatch):
  import jax

  here = place(tmp_path)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert place(tmp_path) != here


def test_features_without_measure_are_no_error():
  far = [outcome(2.0, features={'size': 1e308}), outcome(2.0, features={'size': -1e308})]
  found = correction('time/step', 'cost', {'size': 1e308}, spread=0.3, among=far)
  assert 1 < found.factor < 2
  assert found.count == pytest.approx(1)
