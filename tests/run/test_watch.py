"""Who watches a run may end it, at a point or between: it is saved, goes on, and ends as if it had never stopped."""

import pytest

import studies
import tunable
from jaxlite.run import loop
from jaxlite.run.watch import Halted, Watch

pytestmark = pytest.mark.unoptimized


def train(folder, watch=None):
  given = {'model': tunable.network(), 'data': tunable.data(), 'command': '', 'say': lambda line: None}
  return loop.train_varied(tunable.config(20), folder, watch=watch, **given)


def test_a_run_that_was_stopped_twice_ends_as_if_it_never_was(tmp_path):
  heard, asked = [], []

  def hear(step, total, metrics):
    heard.append((step, total, metrics['accuracy']))
    return 'worse than others' if step == 16 else ''

  def due():
    asked.append(1)
    return 'the time is over' if len(asked) == 3 else ''

  with pytest.raises(Halted, match='the time is over'):
    train(tmp_path / 'a', Watch(hear, due))
  with pytest.raises(Halted, match='worse than others'):
    train(tmp_path / 'a', Watch(hear, due))
  assert [one[:2] for one in heard] == [(8, 20), (16, 20)]
  assert not (tmp_path / 'a' / 'result.json').exists()
  last = Watch(lambda step, total, metrics: 'too late' if step == 20 else '', lambda: '')
  result = train(tmp_path / 'a', last)  # at its end a run is not stopped
  assert train(tmp_path / 'b').metrics == result.metrics
  assert studies.digest(tmp_path / 'a') == studies.digest(tmp_path / 'b')
  points = [one for one in result.history if one['kind'] == 'validation']
  assert [(one['step'], 20, one['accuracy']) for one in points][:2] == heard
