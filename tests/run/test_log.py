"""A log of one's own: told what is recorded, when it is recorded, and unable to harm the run."""

import base64
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlite.config.schema import LogConfig
from jaxlite.errors import ConfigError
from jaxlite.run import loop
from jaxlite.run.records import Told, read_records
from loops import X, Y, config_of, crash_at, leaves, linear

import jaxlite as jl  # isort: skip


def train(folder, log, say=lambda line: None, **fields):
  fields = {'machine__steps_per_dispatch': 1, **fields}
  return jl.train(config_of(**fields), folder, model=linear(), data=(X, Y), say=say, log=log)


def told_of(folder):
  """What the record holds, as a log is told it."""
  points = list(read_records(folder))
  return [(p.pop('kind'), p.pop('step'), {name: v for name, v in p.items() if name != 'time'}) for p in points]


@pytest.fixture(scope='module')
def logged(tmp_path_factory):
  folder, seen = tmp_path_factory.mktemp('logged') / 'run', []
  result = train(folder, lambda kind, step, values: seen.append((kind, step, values)))
  return folder, seen, result


def test_it_is_told_every_point_of_the_record_and_the_test(logged):
  folder, seen, result = logged
  assert seen[:-1] == told_of(folder)
  assert seen[-1] == ('test', 12, result.metrics)
  assert all(type(value) in (int, float) for _, _, values in seen for value in values.values())
  json.dumps(seen)


def test_what_it_raises_or_changes_harms_nothing(logged, tmp_path):
  folder, _, straight = logged
  lines, calls = [], []

  def log(kind, step, values):
    values.clear()
    calls.append(step)
    raise RuntimeError('no\nnetwork')

  result = train(tmp_path / 'run', log, say=lines.append)
  assert len(calls) == len(told_of(folder)) + 1  # called again each time
  told = [line for line in lines if 'log raised' in line]
  assert told == ['warning: log raised RuntimeError (no network) at step 2: the run goes on, and it is called again']
  assert result.metrics == straight.metrics
  assert leaves(tmp_path / 'run') == leaves(folder)


def test_an_interrupt_within_it_is_one(tmp_path):
  def log(kind, step, values):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    train(tmp_path / 'run', log)


def test_what_is_no_function_is_refused_before_anything_is_made(tmp_path):
  with pytest.raises(TypeError, match=r'log is a function \(kind, step, values\); got str'):
    train(tmp_path / 'run', 'wandb')

  async def later(kind, step, values):
    raise AssertionError

  with pytest.raises(TypeError, match='called and not awaited'):
    train(tmp_path / 'run', later)
  assert not list(tmp_path.iterdir())


def test_a_coroutine_is_told_wherever_it_comes_from():
  async def later(kind, step, values):
    raise AssertionError

  lines = []
  Told(lambda *point: later(*point), lines.append)('train', 2, {'loss': 0.5})
  assert lines == [
    'warning: log raised TypeError (it gave a coroutine, which nobody awaits) at step 2: the run goes on, and it is '
    'called again'
  ]


def fine_tuned(folder, **given):
  network = (lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], {'a': np.eye(6, 8, dtype=np.float32), 'b': np.zeros((8, 2))})
  given = {'method': 'probe', 'features': str(folder / 'features'), 'say': lambda line: None, **given}
  return jl.finetune(network, (X, Y), folder / 'run', **given)


def folded(folder, **given):
  given = {'data': (X, Y), 'model': linear, 'folds': 2, 'say': lambda line: None, **given}
  return jl.cross_validate(config_of(steps=4, data__validation=0.2), folder / 'run', **given)


def searched(folder, **given):
  space = {'optim.lr': jl.tuning.choice(0.1, 0.2)}
  given = {'model': linear(), 'data': (X, Y), 'method': 'grid', 'stop': 'none', 'say': lambda line: None, **given}
  return jl.tune(config_of(learned, steps=4), folder / 'run', space, **given)


def learned(config, total):
  return jl.chain(optax.sgd(config.optim.lr))


@pytest.mark.unoptimized
def test_fine_tuning_tells_the_points_of_its_run(tmp_path):
  seen = []
  result = fine_tuned(tmp_path, log=lambda *point: seen.append(point))
  assert seen[:-1] == told_of(tmp_path / 'run')
  assert (seen[-1][0], seen[-1][2]) == ('test', result.metrics)
  with pytest.raises(ConfigError, match=r'log\.every is longer than 0'):  # the config's field of that name
    fine_tuned(tmp_path, log=LogConfig(every=jl.Duration(steps=0)))


@pytest.mark.unoptimized
@pytest.mark.parametrize(
  ('call', 'places'),
  [(folded, {'fold1': 'x-fold1', 'fold2': 'x-fold2'}), (searched, {'trial0': 'trials/0000', 'trial1': 'trials/0001'})],
)
def test_several_runs_say_which_of_them_it_was(tmp_path, call, places):
  seen, lines = [], []

  def log(*point):
    seen.append(point)
    raise RuntimeError('no network')

  call(tmp_path, log=log, say=lines.append)
  assert len([line for line in lines if 'log raised RuntimeError' in line]) == 1  # and not once a run
  for place, folder in places.items():
    mine = [(kind.partition('/')[2], step, values) for kind, step, values in seen if kind.startswith(f'{place}/')]
    assert mine[:-1] == told_of(tmp_path / 'run' / folder)
    assert mine[-1][0] == 'test'
  assert {kind.partition('/')[0] for kind, _, _ in seen} == set(places)


@pytest.mark.parametrize('call', [fine_tuned, folded, searched])
def test_what_is_no_function_moves_and_makes_nothing_there_either(tmp_path, call):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'mine').touch()
  with pytest.raises(TypeError, match='log is a function'):
    call(tmp_path, log='wandb', fresh=True)
  assert [path.name for path in tmp_path.rglob('*')] == ['run', 'mine']


def test_points_since_the_checkpoint_come_again_equal_and_a_finished_run_tells_nothing(logged, tmp_path, monkeypatch):
  _folder, seen, _ = logged
  before, after = [], []
  for _ in crash_at(11, monkeypatch):
    with pytest.raises(MemoryError):
      train(tmp_path / 'run', lambda *point: before.append(point))
  train(tmp_path / 'run', lambda *point: after.append(point))
  without = lambda points: [(k, s, {n: v for n, v in vs.items() if n != 'examples_per_second'}) for k, s, vs in points]  # noqa: E731
  first = next((index for index, point in enumerate(before) if point[:2] == after[0][:2]), len(before))
  assert without(before[:first] + after) == without(seen)
  assert without(before[first:]) == without(after)[: len(before) - first]
  again = []
  train(tmp_path / 'run', lambda *point: again.append(point))
  assert again == []


def test_a_result_knows_its_examples(logged):
  folder, _, result = logged
  right = np.unpackbits(np.frombuffer(base64.b64decode(result.right), np.uint8))[: result.examples]
  assert right.mean() == pytest.approx(result.metrics['accuracy'])
  assert len(result.tested) == 16
  assert result.falls == ['loss', 'nan_outputs']
  assert sum(weight for _, _, weight in result.evidence['reliability']) == result.examples
  assert all(one['true'] != one['predicted'] and one['inputs'] for one in result.mistakes)
  assert (
    loop.evaluate_run(config_of(), folder, model=linear(), data=(X, Y), say=lambda line: None).right == result.right
  )
  assert (folder / 'report.html').read_text().count('Worst mistakes') >= 1
