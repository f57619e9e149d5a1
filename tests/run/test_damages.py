"""Whatever happened to one file: the same result, a way out that is said, or one line; no traceback, no wrong one."""

import contextlib
import random
import shutil
import signal
import traceback
from pathlib import Path

import numpy as np
import pytest

import damages
import jaxlite as jl
from jaxlite.checkpoint import CheckpointError
from jaxlite.run.loop import evaluate_run
from loops import X, Y, config_of, evidence, leaves, linear, points, run

pytestmark = pytest.mark.unoptimized

FIELDS = {'steps': 6, 'log__every': jl.Duration(steps=1), 'checkpoint__every': jl.Duration(steps=2)}
LONGER = {**FIELDS, 'steps': 8}
OURS = (ValueError, FileNotFoundError, CheckpointError, OSError)  # what is raised on purpose


class Trained:
  """A finished run, a sound copy of it, and what it answers."""

  def __init__(self, base: Path):
    self.folder, self.sound, self.aside, self.other = (base / name for name in ('run', 'sound', 'aside', 'other'))
    self.aside.mkdir()
    run(self.other, data=(X, np.roll(Y, 1)), **FIELDS)
    run(self.folder, **FIELDS)
    shutil.copytree(self.folder, self.sound)
    self.evidence, self.points, self.leaves = evidence(self.folder), points(self.folder), leaves(self.folder)
    steps = [int(path.name) for path in (self.folder / 'checkpoints').glob('0*')]
    self.answers = [np.asarray(jl.load(self.folder, which=step).predict(X)).tobytes() for step in steps]
    self.best = np.asarray(jl.load(self.folder).predict(X)).tobytes()
    self.labels = np.asarray(jl.load(self.folder).predict_labels(X)).tobytes()
    self.metrics = run(self.folder, **FIELDS).metrics
    self.longer = run(base / 'longer', **LONGER).metrics


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  return Trained(tmp_path_factory.mktemp('damages'))


def one_line(error: Exception) -> None:
  ours = isinstance(error, OURS)
  frame = traceback.extract_tb(error.__traceback__)[-1]
  assert ours, ''.join(traceback.format_exception(error))[-1500:]
  assert '\n' not in str(error), error
  assert isinstance(error, OSError) or (frame.line or '').startswith('raise'), ''.join(
    traceback.format_exception(error)
  )[-1500:]


def loaded(of: Trained, said) -> None:
  """What `jl.load` predicts is the run's best, or says that it went back to another checkpoint."""
  try:
    network = jl.load(of.folder)
    found, told = np.asarray(network.predict(X)).tobytes(), said()
    assert found == of.best or (found in of.answers and 'damaged' in told), told
    if found == of.best and 'task.json is missing' not in told:
      assert np.asarray(network.predict_labels(X)).tobytes() == of.labels
  except Exception as error:
    one_line(error)


def asked_again(of: Trained) -> None:
  """The same command ends with the same result; the folder then answers as ever, or a line has said what is lost."""
  lines: list[str] = []
  try:
    result = run(of.folder, say=lines.append, **FIELDS)
  except Exception as error:
    one_line(error)
    return
  assert all('\n' not in line.strip('\n') for line in lines)
  told = ' '.join(lines)
  assert result.metrics == of.metrics or 'damaged' in told, (result.metrics, told)
  if result.metrics == of.metrics and 'are lost' not in told and 'damaged' not in told:
    assert points(of.folder) == of.points


def gone_on(of: Trained) -> None:
  """A longer run goes on from a sound checkpoint and ends as one that was never damaged, or one line says why not."""
  lines: list[str] = []
  try:
    result = run(of.folder, say=lines.append, **LONGER)
  except Exception as error:
    one_line(error)
    return
  told = ' '.join(lines)
  assert result.metrics == of.longer or 'going back' in told or 'the best' in told, (result.metrics, told)


def evaluated(of: Trained) -> None:
  try:
    said: list[str] = []
    result = evaluate_run(config_of(**FIELDS), of.folder, model=linear(), data=(X, Y), say=said.append)
    assert result.metrics == of.metrics or any('damaged' in line for line in said), (result.metrics, said)
  except Exception as error:
    one_line(error)


@contextlib.contextmanager
def waiting_ends(seconds: int):
  """Ends what waits for a pipe, as a person would."""

  def end(*_):
    raise AssertionError(f'it waits: {seconds} s')

  before = signal.signal(signal.SIGALRM, end)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# Another run's file in this one's place: by their own hashes all of them are sound.
EXCHANGED = [damages.Damage('exchange', name, 1) for name in ('result.json', 'program.json')]


def through(of: Trained, count: int, seed: int, capsys, kinds=damages.KINDS) -> None:
  failures = []
  for number, damage in enumerate([*EXCHANGED, *damages.drawn(of.sound, count, seed, kinds)]):
    damages.inflict(damage, of.folder, of.aside, of.other)
    capsys.readouterr()
    try:
      with waiting_ends(120):
        loaded(of, lambda: capsys.readouterr().out)
        if number % 8 == 6:
          evaluated(of)
        gone_on(of) if number % 8 == 7 else asked_again(of)
      if (of.aside / 'precious').exists():
        assert (of.aside / 'precious').read_bytes() == b'precious', 'what stands behind a link was written'
    except AssertionError as error:
      failures.append(f'{damage}: {str(error)[:1500]}')
    damages.restore(of.folder, of.sound)
  assert not failures, f'{len(failures)} of {count}:\n' + '\n'.join(failures)


def test_no_damage_to_a_run_is_believed_or_ends_it_badly(trained, capsys):
  through(trained, 20, 0, capsys)


def test_no_pipe_folder_or_editor_s_trace_is_believed_or_waited_for(trained, capsys):
  through(trained, 12, 0, capsys, damages.MORE_KINDS)


def strangers(of: Trained, count: int, seed: int, capsys) -> None:
  """Sealed files changed by somebody who seals them anew: what they say may be anything, and ends in one line."""
  draw, names = random.Random(seed), [name for name in damages.files(of.sound) if name.endswith('.json')]
  failures = []
  for number in range(count):
    name, chance = names[number % len(names)], draw.randrange(1 << 30)
    if not damages.sealed_anew(of.folder / name, chance):
      continue
    for ask in (lambda: jl.load(of.folder).predict_labels(X), lambda: run(of.folder, **FIELDS)):
      try:
        ask()
      except Exception as error:
        try:
          one_line(error)
        except AssertionError as failure:
          failures.append(f'{name} ({chance}): {failure}')
    damages.restore(of.folder, of.sound)
  assert not failures, f'{len(failures)} of {count}:\n' + '\n'.join(failures)


def test_no_stranger_who_seals_a_file_anew_is_answered_with_a_traceback(trained, capsys):
  strangers(trained, 20, 0, capsys)


@pytest.mark.slow
@pytest.mark.parametrize('part', range(3))
def test_of_300_more_damages_none_is_believed_or_ends_it_badly(part, trained, capsys):
  through(trained, 100, 1 + part, capsys, damages.MORE_KINDS)


@pytest.mark.slow
def test_no_stranger_of_400_is_answered_with_a_traceback(trained, capsys):
  strangers(trained, 400, 1, capsys)


@pytest.mark.slow
@pytest.mark.parametrize('part', range(8))
def test_of_800_damages_to_a_run_none_is_believed_or_ends_it_badly(part, trained, capsys):
  through(trained, 100, 1 + part, capsys)
