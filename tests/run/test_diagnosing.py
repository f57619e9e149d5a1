"""Diagnosing runs that lie in folders: finished, stopped, failed, damaged, or none at all; and trying what it says."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.diagnosis import Action
from jaxlite.run import acting, diagnosing, folder
from jaxlite.run.records import read_records
from loops import config_of

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 6)).astype(np.float32)
Y = ((X[:, 0] > 0).astype(np.int32) + (X[:, 1] > 0)).astype(np.int32)


def mute(line):
  del line


def network(end=lambda x: x):
  rng = np.random.default_rng(1)
  params = {'a': rng.normal(size=(6, 16)).astype(np.float32) / 2, 'b': rng.normal(size=(16, 3)).astype(np.float32) / 4}
  return (lambda p, x: end(jax.nn.relu(x @ p['a']) @ p['b'])), params


def sgd(config, total):
  return jl.chain(optax.sgd(config.optim.lr))


def quick(recipe=sgd, **fields):
  config = config_of(recipe, steps=40, **fields)
  config.log.every, config.eval.every, config.checkpoint.every = (jl.Duration(steps=n) for n in (4, 8, 20))
  config.optim.lr = fields.get('optim__lr', 0.3)
  return config


def trained(where, config, end=lambda x: x):
  return jl.train(config, where, model=network(end), data=(X, Y), say=mute)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  where = tmp_path_factory.mktemp('diagnosed') / 'run'
  trained(where, quick())
  return where


def test_a_run_is_judged_by_its_records_and_better_by_measuring(run):
  alone = jl.diagnose(run)
  assert alone.verdict in ('healthy', 'underfitting')
  assert 'records alone' in alone.certainty
  found = jl.diagnose(run, quick(), model=network(), data=(X, Y), say=mute)
  names = {one.name for one in found.findings}
  assert {'leak', 'label noise', 'vanishing gradient', 'unstable loss', 'dying ReLU', 'calibration'} <= names
  assert not any(
    one.present for one in found.findings if one.name in ('leak', 'wrong output activation', 'label noise')
  )
  kept = json.loads((run / 'diagnosis.json').read_text())
  assert jl.diagnosis.from_json(kept).verdict == found.verdict
  with pytest.raises(ValueError, match=r'the data differ|another'):
    jl.diagnose(run, quick(), model=network(), data=(X + 1, Y), say=mute)


def test_what_is_no_run_is_said_to_be_none(tmp_path, run):
  with pytest.raises(ValueError, match='holds no run to diagnose: train first'):
    jl.diagnose(tmp_path)
  with pytest.raises(ValueError, match='holds no run to diagnose: there is no such folder'):
    jl.diagnose(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match=r'name one of the runs in it, .*run'):
    jl.diagnose(run.parent)
  (tmp_path / 'study.json').write_text('{}')
  with pytest.raises(ValueError, match='it is a study; none of its trials has begun'):
    jl.diagnose(tmp_path)
  for number in range(10):
    (tmp_path / 'trials' / f'{number:04}').mkdir(parents=True)
    (tmp_path / 'trials' / f'{number:04}' / 'config.json').write_text('{}')
  with pytest.raises(ValueError, match=r'it is a study; name one of its trials, trials.0000, .* and 2 more'):
    jl.diagnose(tmp_path)
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='it is a file: name the folder of a run'):
    jl.diagnose(tmp_path / 'file')


def test_a_run_without_validation_or_half_written_says_what_cannot_be_told(tmp_path, run):
  where = tmp_path / 'bare'
  trained(where, quick(data__validation=0.0))
  found = jl.diagnose(where, quick(data__validation=0.0), model=network(), data=(X, Y), say=mute)
  assert found.verdict != 'healthy'
  assert any('no validation split' in line for line in found.unknown)
  half = tmp_path / 'half'
  shutil.copytree(run, half)
  (half / 'result.json').unlink()
  text = (half / 'metrics.jsonl').read_bytes()
  (half / 'metrics.jsonl').write_bytes(text[: len(text) * 2 // 3])
  (half / 'task.json').write_text('{')
  found = jl.diagnose(half)
  assert any('not finished' in line for line in found.unknown)
  (half / 'metrics.jsonl').write_bytes(b'nonsense\n' + text)
  with pytest.raises(ValueError, match='is no JSON'):
    jl.diagnose(half)
  (half / 'metrics.jsonl').unlink()
  assert jl.diagnose(half).verdict == 'unknown'


def test_weights_that_were_never_trained_are_no_evidence(tmp_path, run):
  """Of a run that left no checkpoint only its start is there, and a start is always worse than a quick learner."""
  bare = tmp_path / 'bare'
  shutil.copytree(run, bare)
  shutil.rmtree(bare / 'checkpoints')
  given = {'model': network(), 'data': (X, Y), 'say': mute}
  found = jl.diagnose(bare, quick(), **given)
  alone = jl.diagnose(bare)
  assert (found.verdict, found.cause) == (alone.verdict, alone.cause)  # what its curves say
  (bare / 'metrics.jsonl').unlink()
  (bare / 'result.json').unlink()
  found = jl.diagnose(bare, quick(), **given)
  assert (found.verdict, found.action) == ('unknown', None)
  assert any('no checkpoint' in line for line in found.unknown)


def test_another_version_is_said(run, tmp_path, monkeypatch):
  other = tmp_path / 'other'
  other.mkdir()
  for name in ('config.json', 'metrics.jsonl', 'task.json'):
    shutil.copy(run / name, other)
  kept = json.loads((other / 'config.json').read_text())
  (other / 'config.json').write_text(json.dumps({**kept, 'format': 99}))
  assert any(
    'config.json says: it is of another version of jaxlite (format 99)' in one for one in jl.diagnose(other).unknown
  )
  monkeypatch.setattr(diagnosing, 'versions', lambda: {'jaxlite': '9.9', 'jax': '9.9'})
  assert any('the run was made by' in line for line in jl.diagnose(run).unknown)


def test_a_run_that_met_a_nan_is_told_with_its_step(tmp_path):
  config = quick(optim__lr=1e30)
  where = tmp_path / 'nan'
  with pytest.raises(ValueError, match='not finite'):
    trained(where, config)
  for found in (jl.diagnose(where), jl.diagnose(where, config, model=network(), data=(X, Y), say=mute)):
    assert found.verdict == 'broken'
    assert found.cause in ('not finite', 'unstable loss')
    assert any('not finite at step' in one.evidence for one in found.findings)
  assert found.action.overrides['optim.lr'] < 1e30
  assert folder.failure(where, 'another') is None


def test_a_softmax_too_many_is_found_mended_and_judged_over_seeds(tmp_path):
  end = jax.nn.softmax
  config = quick(optim__lr=0.1)
  where = tmp_path / 'run'
  trained(where, config, end)
  case = diagnosing.opened(where, config, model=network(end), data=(X, Y), say=mute)
  assert case.diagnosis.cause == 'wrong output activation'
  assert case.diagnosis.action.overrides == {'repair.logits': True}
  outcome = acting.act(case, model=network(end), data=(X, Y), seeds=2, say=mute)
  assert outcome.recommended, str(outcome)
  kept = json.loads((outcome.folder / 'child.json').read_text())
  assert kept['recommended']
  assert kept['parent'] == case.record.run
  assert kept['step'] == 0
  assert (outcome.folder / 'seed-0' / 'result.json').exists()
  assert json.loads((where / 'config.json').read_text())['config']['repair']['logits'] is False
  late = acting.act(case, model=network(end), data=(X, Y), seeds=2, minutes=0.0, say=mute)
  assert not late.recommended
  assert 'budget ended after 0 seeds' in late.why


def test_nothing_is_tried_where_nothing_could_tell(run):
  case = diagnosing.opened(run, quick(), model=network(), data=(X, Y), say=mute)
  healthy = case._replace(diagnosis=case.diagnosis._replace(action=None))
  assert acting.act(healthy, say=mute) is None
  with pytest.raises(ValueError, match='with the config of the run'):
    acting.act(case._replace(config=None), say=mute)
  with pytest.raises(ValueError, match=r"unknown field 'optim.rate'; nearest: "):
    acting.overridden(quick(), {'optim.rate': 1})


def test_a_run_that_was_still_learning_goes_on_from_its_checkpoint(tmp_path):
  """The child's first values are the parent's last good ones; the folder says whose, and of which step."""
  config = quick(optim__lr=0.3)
  where = tmp_path / 'run'
  trained(where, config)
  case = diagnosing.opened(where, config, model=network(), data=(X, Y), say=mute)
  longer = Action({'train.steps': 80}, 'train on', 'checkpoint')
  case = case._replace(diagnosis=case.diagnosis._replace(action=longer, cause='slow convergence'))
  outcome = acting.act(case, model=network(), data=(X, Y), seeds=2, say=mute)
  kept = json.loads((outcome.folder / 'child.json').read_text())
  assert (kept['parent'], kept['step']) == (case.record.run, 40)
  first = read_records(outcome.folder / 'seed-0')[0]['loss'], read_records(outcome.folder / 'seed-1')[0]['loss']
  last = [point['loss'] for point in read_records(where) if point['kind'] == 'train'][-1]
  assert first[0] < 1.2 * last < 0.6 * first[1]
  assert len(kept['after']) == 2


@pytest.mark.slow
def test_what_does_not_help_is_not_recommended(tmp_path, run):
  """A verdict that was wrong does no harm: validation over seeds has the last word."""
  case = diagnosing.opened(run, quick(), model=network(), data=(X, Y), say=mute)
  worse = Action({'optim.lr': 1e-5}, 'lower the rate', 'beginning')
  case = case._replace(folder=tmp_path, diagnosis=case.diagnosis._replace(action=worse, cause='unstable loss'))
  shutil.copytree(run, tmp_path, dirs_exist_ok=True)
  outcome = acting.act(case, model=network(), data=(X, Y), seeds=2, say=mute)
  assert not outcome.recommended
  assert str(outcome).startswith('not recommended')
  with pytest.raises(ValueError, match='seeds is a whole number, at least 2'):
    acting.act(case, model=network(), data=(X, Y), seeds=1, say=mute)


def test_seeds_have_to_agree():
  assert acting.judged([0.1, 0.1, 0.1], [0.2, 0.3, 0.2], 3, 'x')[0]
  assert not acting.judged([0.1, 0.1, 0.3], [0.2, 0.3, 0.2], 3, 'x')[0]
  assert not acting.judged([0.1], [0.9], 1, 'x')[0]
  assert not acting.judged([], [], 3, 'x')[0]
  assert acting.judged([-np.inf, -np.inf], [0.1, 0.2], 2, 'x')[0]


@pytest.mark.slow
def test_repairs_are_fields_that_a_run_obeys(tmp_path):
  """A rate that a recipe has written down, and first weights of unit scale."""
  plain = quick(recipe=fixed, repair__rate=0.0001)
  result = jl.train(plain, tmp_path / 'slow', model=network(), data=(X, Y), say=mute)
  moved = jl.load(tmp_path / 'slow').params['a'] - network()[1]['a']
  assert float(jnp.abs(moved).max()) < 1e-3
  assert result.metrics
  config = quick(repair__start=True, repair__clip=1.0)
  jl.train(config, tmp_path / 'start', model=network(), data=(X, Y), say=mute)
  again = dataclasses.replace(config)
  assert jl.train(again, tmp_path / 'start', model=network(), data=(X, Y), say=mute).metrics


def fixed(config, total):
  return jl.chain(optax.sgd(0.3))
