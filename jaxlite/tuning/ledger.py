"""The ledger of a study: each trial once, whoever works on it and however often that one is killed.

A trial has one number for good, and its folder and checkpoints are named by it. A worker claims it, by a row that
names the worker; who is killed loses the claim to the next, who goes on from the checkpoint. What makes a claim exact
is a lock that the system lets go of when a process dies (a file's on one machine, PostgreSQL's own between machines):
whatever is read and then written is read and written under it. Whether a worker lives is told by a lock of its own on
this machine, which needs no clock, and by a heartbeat on others.

The tables stand beside Optuna's in one database, and need nothing but Python where that is a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from jaxlite.tuning.database import Database, StorageError

BEAT, GRACE = 10.0, 60.0  # seconds between heartbeats; without one for so long, a worker elsewhere is taken for dead
_JUMP = 5.0  # seconds by which a clock that was set, or a machine that slept, differs from one that only runs
RUNNING, WAITING, COMPLETE, PRUNED, FAILED = 'running', 'waiting', 'complete', 'pruned', 'failed'
DONE = (COMPLETE, PRUNED, FAILED)
_TABLES = (
  'create table if not exists jaxlite_study (name text primary key, about text not null)',
  'create table if not exists jaxlite_trial (study text not null, number integer not null, place integer not null, '
  'given text not null, state text not null, worker text not null, host text not null, beat double precision not null, '
  'attempts integer not null, stuck integer not null, seen integer not null, mirror integer not null, '
  'seconds double precision not null, found text not null, why text not null, primary key (study, number))',
  'create table if not exists jaxlite_report (study text not null, number integer not null, step integer not null, '
  'share double precision not null, value double precision not null, primary key (study, number, step))',
  'create table if not exists jaxlite_session (study text not null, worker text not null, began double precision not '
  'null, beat double precision not null, primary key (study, worker))',
)
_COLUMNS = 'number, place, given, state, worker, host, beat, attempts, stuck, seen, mirror, seconds, found, why'


class Trial(NamedTuple):
  """One trial, as the ledger has it.

  Attributes:
    number: for good; its folder is named by it.
    place: how many trials were made before it.
    given: the values of the space by name, as they are stored.
    state: 'running', 'waiting' (interrupted, to be gone on with), 'complete', 'pruned' or 'failed'.
    worker, host: who has it, or had it last.
    beat: when that one was last heard of, in the database's clock.
    attempts: how often it was begun or gone on with.
    stuck: how many of these, one after the other, ended by a kill without getting any further.
    seen: the last step whose score had been told at the last of these; -1.
    mirror: the number of its attempt in Optuna's study; -1 where there is none.
    seconds: spent on it, over all attempts.
    found: what it came to: metrics by name, `{}` until it is done.
    why: why it was pruned or failed; ''.
  """

  number: int
  place: int
  given: dict[str, Any]
  state: str
  worker: str
  host: str
  beat: float
  attempts: int
  stuck: int
  seen: int
  mirror: int
  seconds: float
  found: dict[str, Any]
  why: str


class Report(NamedTuple):
  """A validation score on the way: the step, its share of the run, and the score, larger is better."""

  number: int
  step: int
  share: float
  value: float


class Ledger:
  """The trials of one study in a database, for one worker.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   ledger = Ledger(folder, 'mine', Database(Path(folder) / 'study.db'))
  ...   with ledger.locked():
  ...     one = ledger.add(0, {'x': 0.5})
  ...   done = ledger.finish(one, COMPLETE, {'accuracy': 0.9}), ledger.finish(one, COMPLETE, {})
  ...   state = ledger.trials()[0].state
  ...   ledger.close()
  >>> done, state
  ((True, False), 'complete')
  """

  def __init__(self, folder: str | os.PathLike[str], study: str, database: Database, *, ago: float = 0.0):
    """Opens a study's ledger, makes its tables where they are missing, and tells this machine that a worker lives.

    Args:
      folder: of the study.
      study: its name in the database.
      database: that holds it.
      ago: seconds for which this worker has been at it already: loading, looking at what was asked.
    """
    self.study, self.worker, self.host = study, secrets.token_hex(8), _host()
    self._database, self._folder = database, Path(folder)
    self._workers = self._folder / 'workers'
    self._workers.mkdir(parents=True, exist_ok=True)
    self._alive = filelock.FileLock(self._workers / f'{self.worker}.lock', thread_local=False)
    self._alive.acquire(timeout=10)
    try:
      with self.locked():
        for table in _TABLES:
          database.execute(table)
        self._check_one_machine()
        now = self.now()
        self._begin(now, ago)
    except BaseException:
      self._gone()
      raise

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps every other worker from reading and writing while the context lasts."""
    with self._database.locked():
      yield

  def now(self) -> float:
    """Returns the time, in seconds, by the one clock that all workers share."""
    return self._database.now()

  def close(self) -> None:
    """Ends this worker: what it still has is waiting for another."""
    try:
      with contextlib.suppress(StorageError), self.locked():
        self.beat()
        values = {'waiting': WAITING, 'running': RUNNING}
        self._write(
          'update jaxlite_trial set state = :waiting where study = :study and worker = :worker and state = :running',
          **values,
        )
      self._database.close()
    finally:
      self._gone()

  def _gone(self) -> None:
    self._alive.release()
    with contextlib.suppress(OSError):
      (self._workers / f'{self.worker}.lock').unlink()

  def _check_one_machine(self) -> None:
    """Raises where a file is shared with a worker of another machine: SQLite keeps none whole over a network."""
    for trial in self.trials() if self._database.is_file else ():
      if trial.state == RUNNING and _machine(trial.host) != _machine(self.host) and self._held(trial.worker):
        raise StorageError(
          f'a worker on {trial.host.partition("/")[0]} is at work on this study, and a file is for one machine: give '
          "all of them storage='postgresql://...'"
        )

  def _begin(self, now: float, ago: float) -> None:
    """Begins a span of time in which this worker is at it."""
    self._session = secrets.token_hex(8)
    self._last = now, time.monotonic()
    values = {'session': self._session, 'began': now - ago, 'beat': now}
    self._write('insert into jaxlite_session values (:study, :session, :began, :beat)', **values)

  def about(self) -> dict[str, Any] | None:
    """Returns what the study is: its space, goals and config; None before somebody said so."""
    rows = self._read('select about from jaxlite_study where name = :study')
    return json.loads(rows[0][0]) if rows else None

  def describe(self, about: Mapping[str, Any]) -> None:
    """Says once what the study is."""
    self._write('insert into jaxlite_study values (:study, :about)', about=json.dumps(about))

  def trials(self) -> list[Trial]:
    """Returns all trials, in the order in which they were made."""
    rows = self._read(f'select {_COLUMNS} from jaxlite_trial where study = :study order by place, number')
    return [Trial(*row[:2], json.loads(row[2]), *row[3:12], json.loads(row[12]), row[13]) for row in rows]

  def reports(self) -> list[Report]:
    """Returns all scores on the way, by trial and step."""
    text = 'select number, step, share, value from jaxlite_report where study = :study order by number, step'
    return [Report(*row) for row in self._read(text)]

  def add(self, number: int, given: Mapping[str, Any], mirror: int = -1) -> Trial:
    """Makes a new trial, which this worker has. Under the lock.

    Args:
      number: that no other trial has.
      given: its values, as they are stored.
      mirror: its number in Optuna's study.
    """
    place = len(self.trials())
    made = Trial(number, place, dict(given), RUNNING, self.worker, self.host, self.now(), 1, 0, -1, mirror, 0.0, {}, '')
    values = {**made._asdict(), 'given': json.dumps(made.given), 'found': '{}'}
    self._write(f'insert into jaxlite_trial (study, {_COLUMNS}) values (:study, {_placed(_COLUMNS)})', **values)
    return made

  def claim(self, trial: Trial, mirror: int = -1) -> Trial | None:
    """Takes a trial that is waiting; None where another worker was first.

    Args:
      trial: as it was read.
      mirror: the number of the new attempt in Optuna's study.
    """
    now = self.now()
    changed = self._write(
      'update jaxlite_trial set state = :running, worker = :worker, host = :host, beat = :now, '
      'attempts = attempts + 1, mirror = :mirror where study = :study and number = :number and state = :waiting '
      'and attempts = :attempts',
      **{'running': RUNNING, 'waiting': WAITING, 'host': self.host, 'now': now, 'mirror': mirror},
      **{'number': trial.number, 'attempts': trial.attempts},
    )
    taken = {'state': RUNNING, 'worker': self.worker, 'host': self.host, 'beat': now, 'mirror': mirror}
    return trial._replace(**taken, attempts=trial.attempts + 1) if changed else None

  def reap(self) -> list[Trial]:
    """Sets every trial whose worker is dead to waiting; returns these as they were. Under the lock."""
    found = []
    for trial in self.trials():
      if trial.state != RUNNING or trial.worker == self.worker or self._lives(trial):
        continue
      step = self._progress(trial.number)
      self._write(
        'update jaxlite_trial set state = :waiting, stuck = :stuck, seen = :seen where study = :study and number = '
        ':number and state = :running and worker = :dead',
        **{'waiting': WAITING, 'running': RUNNING, 'number': trial.number, 'dead': trial.worker},
        **{'stuck': 0 if step > trial.seen else trial.stuck + 1, 'seen': step},
      )
      with contextlib.suppress(OSError):
        (self._workers / f'{trial.worker}.lock').unlink()
      found.append(trial)
    return found

  def _progress(self, number: int) -> int:
    rows = self._read('select max(step) from jaxlite_report where study = :study and number = :number', number=number)
    return -1 if rows[0][0] is None else int(rows[0][0])

  def _lives(self, trial: Trial) -> bool:
    """Whether the worker that has a trial still runs."""
    if (self._workers / f'{trial.worker}.lock').exists():
      held = self._held(trial.worker)
      if _machine(trial.host) == _machine(self.host) or (self._database.is_file and not held):
        return held
    return self.now() - trial.beat < GRACE

  def _held(self, worker: str) -> bool:
    """Whether a worker's lock is held: the system lets go of a dead process's."""
    path = self._workers / f'{worker}.lock'
    if not path.exists():
      return False
    try:
      with filelock.FileLock(path, timeout=0, thread_local=False):
        return False
    except filelock.Timeout:
      return True

  def report(self, trial: Trial, step: int, share: float, value: float) -> bool:
    """Notes a score on the way, once a step; False where the trial is not this worker's any more."""
    if not self.owns(trial):
      return False
    self._write(
      'insert into jaxlite_report values (:study, :number, :step, :share, :value) on conflict do nothing',
      **{'number': trial.number, 'step': step, 'share': share, 'value': value},
    )
    return True

  def owns(self, trial: Trial) -> bool:
    """Tells whether a trial is still this worker's."""
    text = 'select worker, state from jaxlite_trial where study = :study and number = :number'
    return [tuple(row) for row in self._read(text, number=trial.number)] == [(self.worker, RUNNING)]

  def finish(self, trial: Trial, state: str, found: Mapping[str, Any], *, seconds: float = 0.0, why: str = '') -> bool:
    """Ends a trial or sets it to waiting; False where it is not this worker's any more, and nothing is written.

    Args:
      trial: that this worker has.
      state: 'complete', 'pruned', 'failed' or 'waiting'.
      found: metrics by name.
      seconds: spent on it now.
      why: it was pruned or failed, in words.
    """
    return bool(
      self._write(
        'update jaxlite_trial set state = :state, found = :found, seconds = seconds + :seconds, why = :why, stuck = 0 '
        'where study = :study and number = :number and state = :running and worker = :worker',
        **{'state': state, 'found': json.dumps(dict(found)), 'seconds': seconds, 'why': why},
        **{'running': RUNNING, 'number': trial.number},
      )
    )

  def beat(self) -> None:
    """Tells other machines that this worker lives."""
    with self.locked():
      now, runs = self.now(), time.monotonic()
      before, ran = self._last
      values = {'now': now, 'running': RUNNING, 'session': self._session}
      if abs((now - before) - (runs - ran)) > _JUMP:  # the hours between are nobody's work
        self._begin(now, runs - ran)
      else:
        self._last = now, runs
        self._write('update jaxlite_session set beat = :now where study = :study and worker = :session', **values)
      self._write(
        'update jaxlite_trial set beat = :now where study = :study and worker = :worker and state = :running', **values
      )

  @contextlib.contextmanager
  def beating(self) -> Iterator[None]:
    """Tells so every few seconds, in a thread, while the context lasts."""
    stop = threading.Event()

    def beat() -> None:
      while not stop.wait(BEAT):
        with contextlib.suppress(Exception):  # the next one may come through; the worker itself tells what is wrong
          self.beat()

    thread = threading.Thread(target=beat, name='jaxlite-heartbeat', daemon=True)
    thread.start()
    try:
      yield
    finally:
      stop.set()
      thread.join()

  def spent(self) -> float:
    """Returns the seconds in which anybody worked on the study: those of several at once count once."""
    rows = self._read('select began, beat from jaxlite_session where study = :study')
    return together([(began, max(began, beat)) for began, beat in rows])

  def _read(self, text: str, **values: Any) -> Sequence[Any]:
    return self._database.execute(text, study=self.study, **values)[0]

  def _write(self, text: str, **values: Any) -> int:
    return self._database.execute(text, **{'study': self.study, 'worker': self.worker, **values})[1]


def _host() -> str:
  """This machine's name, and since when it runs: containers of one machine have that alike."""
  try:
    began = Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()
  except OSError:
    began = ''
  return f'{socket.gethostname()}/{began}'


def _machine(host: str) -> str:
  name, _, began = host.partition('/')
  return began or name


def _placed(columns: str) -> str:
  return ', '.join(f':{name.strip()}' for name in columns.split(','))


def together(spans: Sequence[tuple[float, float]]) -> float:
  """Returns the length of what some spans cover.

  >>> together([(0, 2), (1, 3), (5, 6)])
  4.0
  """
  total, end = 0.0, -float('inf')
  for low, high in sorted(spans):
    total += max(0.0, high - max(low, end))
    end = max(end, high)
  return total
