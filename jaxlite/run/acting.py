"""Trying what a diagnosis suggests: child runs in folders of their own, over seeds, under a budget, compared on
validation. Only what helps there is recommended."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlite import checkpoint
from jaxlite.config.fields import fields, settable
from jaxlite.config.schema import Config, validate
from jaxlite.diagnosis import twins
from jaxlite.diagnosis.verdict import Diagnosis, flags
from jaxlite.errors import ConfigError, counted, nearest, whole
from jaxlite.host.files import write_text
from jaxlite.planning.edits import edited
from jaxlite.run import loop
from jaxlite.run.diagnosing import Case
from jaxlite.run.evaluation import evaluate, numbers
from jaxlite.run.records import read_records
from jaxlite.run.setup import REDUCE, Setup, prepare
from jaxlite.run.watch import Halted, Watch
from jaxlite.run.workdir import lock

Say = Callable[[str], None]


class Outcome(NamedTuple):
  """What came of an action.

  Attributes:
    folder: of the child runs.
    overrides: what they were given.
    metric: by which they were compared on validation.
    before: of the run as it was, one a seed, larger is better.
    after: with the change.
    recommended: it was better with every seed, by more than two standard errors on the average.
    why: in one line.
  """

  folder: Path
  overrides: dict[str, Any]
  metric: str
  before: tuple[float, ...]
  after: tuple[float, ...]
  recommended: bool
  why: str

  def __str__(self) -> str:
    verdict = 'recommended' if self.recommended else 'not recommended'
    return f'{verdict}: {flags(self.overrides)}: {self.why} ({self.folder})'


def overridden(config: Config, overrides: dict[str, Any]) -> Config:
  """Returns a config with fields set by path, as an action names them.

  Raises:
    ConfigError: no such field.

  >>> overridden(Config(name='x'), {'optim.lr': 0.5, 'train.epochs': 3}).train.epochs
  3
  """
  known = {*settable(config), *(path for path, *_ in fields(config))}
  for path in overrides:
    if path not in known:
      raise ConfigError(f'unknown field {path!r}; nearest: {nearest(path, known)}')
  config = edited(config, overrides)
  validate(config)
  return config


def act(
  case: Case,
  *,
  model: Any = None,
  data: Any = None,
  seeds: int = 3,
  minutes: float = 30.0,
  say: Say = print,
) -> Outcome | None:
  """Runs the action of a diagnosis and the run as it was, over seeds, and compares them on validation.

  Args:
    case: as `diagnosing.opened` gave it, with its config.
    model: as `jl.train` was given it.
    data: likewise.
    seeds: how many; the run itself is the first.
    minutes: no run is begun that would probably end later, and one that goes on longer is stopped.
    say: prints a line.

  Returns:
    The Outcome; None where there is nothing to do.

  Raises:
    ValueError: the run has no config here, or no validation to compare by; seeds below 2, minutes below 0.
  """
  seeds = whole(seeds, 'seeds', least=2)
  if not isinstance(minutes, int | float) or not minutes >= 0:
    raise ValueError(f'minutes is a number, at least 0; got {minutes!r}')
  diagnosis, config, setup = case.diagnosis, case.config, case.setup
  if config is None or setup is None:
    raise ValueError('an action is tried with the config of the run: give it')
  if diagnosis.action is None:
    say(f'nothing to try: {diagnosis.line()}')
    return None
  if not len(setup.data.validation.labels):
    raise ValueError('an action is judged on validation, and this run has none: hold some out, with data.validation')
  root = case.folder / 'diagnosis'
  root.mkdir(exist_ok=True)
  numbers = [int(found[1]) for path in root.iterdir() if (found := re.match(r'(\d+)-', path.name))]
  number = 1 + max(numbers, default=0)
  folder = root / f'{number}-{diagnosis.cause.replace(" ", "-")}'
  with lock(root):
    return _tried(case, diagnosis, config, setup, folder, (model, data), seeds, 60 * minutes, say)


def _tried(
  case: Case,
  diagnosis: Diagnosis,
  config: Config,
  setup: Setup,
  folder: Path,
  given: tuple[Any, Any],
  seeds: int,
  seconds: float,
  say: Say,
) -> Outcome:
  action = diagnosis.action
  assert action is not None  # or there was nothing to try
  overrides = dict(action.overrides)
  metric = overrides.get('eval.metric') or setup.score
  until, longest = time.monotonic() + seconds, case.record.seconds if case.record is not None else 0.0
  longest *= _times_as_long(setup, overrides)
  watch = Watch(lambda *heard: '', lambda: 'the budget ended' if time.monotonic() > until else '')
  before: list[float] = []
  after: list[float] = []
  ended = ''
  base = dataclasses.replace(config, runs={})
  base.teacher = str((case.folder / base.teacher).resolve()) if base.teacher else ''
  state = _checkpoint(case, setup, say) if action.start == 'checkpoint' else None
  step = 0 if state is None else int(state.step)
  folder.mkdir(parents=True)
  about = {'parent': case.record.run if case.record is not None else '', 'step': step, 'cause': diagnosis.cause}
  about |= {'overrides': overrides, 'metric': metric}
  write_text(folder / 'child.json', json.dumps(about, indent=1) + '\n')
  for seed in range(seeds):
    if time.monotonic() + longest * (1 if seed == 0 else 2) > until:
      ended = f'; the budget ended after {counted(seed, "seed")}'
      break
    one = dataclasses.replace(base, seed=(config.seed + 1000 * seed) % 2**32)
    began = time.monotonic()
    changed = overridden(dataclasses.replace(one), overrides)
    other = None if overrides.get('model', 0) is None else given[0]
    if state is not None and seed == 0:
      other = setup.network._replace(init=lambda key, inputs: _plain(state))
    pairs = [(changed, folder / f'seed-{seed}', other, after)]
    if seed:
      pairs.insert(0, (one, folder / f'as-it-was-{seed}', given[0], before))
    else:
      before.append(_score(setup, base, case.folder, metric, given, diagnosis.cause))
    for way, where, network, scores in pairs:
      say(f'\n{where.relative_to(case.folder)}: {flags(overrides) if scores is after else "as it was"}')
      try:
        loop.train_varied(way, where, model=network, data=given[1], command='', say=say, watch=watch)
        scores.append(_score(setup, way, where, metric, (network, given[1]), diagnosis.cause))
      except Halted:
        ended = f'; the budget ended after {counted(seed, "seed")}'
        break
      except loop.Preempted:
        raise
      except ValueError as error:  # it met a NaN, or cannot be trained so: that is an answer
        say(f'{where.name} failed: {error}')
        scores.append(-math.inf)
    if ended:
      break
    longest = max(longest, (time.monotonic() - began) / len(pairs))
  found = judged(before, after, seeds, metric, ended)
  outcome = Outcome(folder, overrides, metric, tuple(before), tuple(after), *found)
  plain = {'before': [_finite(x) for x in before], 'after': [_finite(x) for x in after]}
  about |= {**plain, 'recommended': outcome.recommended, 'why': outcome.why}
  write_text(folder / 'child.json', json.dumps(about, indent=1) + '\n')
  return outcome


def _times_as_long(setup: Setup, overrides: dict[str, Any]) -> float:
  """How many times as many steps a run takes with a change."""
  config = overridden(setup.config, overrides)
  sizes = {'steps_per_epoch': setup.plan.epoch, 'batch_size': config.data.batch_size}
  return max(1.0, config.train.to_steps(**sizes) / max(1, setup.plan.total))


def judged(before: list[float], after: list[float], seeds: int, metric: str, ended: str = '') -> tuple[bool, str]:
  """Returns whether scores over seeds say that a change helps, and that in words.

  >>> judged([0.5, 0.52, 0.51], [0.7, 0.72, 0.71], 3, 'accuracy')[0], judged([0.5, 0.6], [0.6, 0.5], 2, 'accuracy')[0]
  (True, False)
  """
  count = min(len(before), len(after))
  if count < 2:
    return False, f'{metric} over {counted(count, "seed")} says nothing{ended}'
  pairs = [(one, two) for one, two in zip(before[:count], after[:count], strict=True)]
  won = sum(two > one for one, two in pairs)
  finite = [(one, two) for one, two in pairs if math.isfinite(one) and math.isfinite(two)]
  apart = np.array([two - one for one, two in finite])
  error = float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else 0.0
  mean = float(apart.mean()) if len(apart) else math.inf
  ok = won == count and (mean > 2 * error)
  said = f'{metric} better with {won} of {count} seeds, by {mean:.4g} +- {error:.2g} on the average'
  return ok, f'{said}{ended}'


def _score(setup: Setup, config: Config, where: Path, metric: str, given: tuple[Any, Any], cause: str) -> float:
  """The best validation score of a run, larger is better; of a leak on the examples that training does not have."""
  sign = setup.data.task.better(metric)
  if cause != 'leak':
    values = [point[metric] for point in read_records(where) if point['kind'] == 'validation' and metric in point]
    finite = [sign * value for value in values if math.isfinite(value)]
    return max(finite, default=-math.inf)
  made = prepare(config, where, given[0], given[1])
  plain = prepare(dataclasses.replace(config, repair=type(config.repair)()), where, given[0], given[1]).data
  known = set(twins.digests(plain.train.inputs))
  rows = np.array([row for row, one in enumerate(twins.digests(plain.validation.inputs)) if one not in known], int)
  if not len(rows):
    return -math.inf
  with checkpoint.Checkpoints(where / 'checkpoints', log=lambda line: None) as saves:
    restored = saves.restore(made.abstract, which='best')
  if restored is None:
    return -math.inf
  state, clean = restored.state, _taken(plain.validation, rows)
  found = evaluate(made, state, clean)
  return -math.inf if found is None else sign * numbers(found.values)[metric]


def _taken(split: Any, rows: np.ndarray) -> Any:
  taken = split.take(rows)
  return type(split)(taken['inputs'], np.asarray(taken['labels']), taken.get('weight'))


def _checkpoint(case: Case, setup: Setup, say: Say) -> Any:
  """The state of the last good checkpoint, where a run can begin from its values; else None, which is said."""
  if case.record is None:
    return None
  if REDUCE in setup.around:
    say('the run begins anew: its inputs are reduced, which the network of a checkpoint holds already')
    return None
  with checkpoint.Checkpoints(case.folder / 'checkpoints', run=case.record.run, log=say) as saves:
    found = saves.restore(setup.abstract)
  if found is None or any(name.startswith('jl.') for name in found.state.params):
    say('the run begins anew: parts of its recipe keep values of their own among the weights')
    return None
  return found.state


def _plain(state: Any) -> tuple[Any, Any]:
  """Params and model_state without what hooks and the loop keep there."""
  return state.params, {name: value for name, value in state.model_state.items() if not name.startswith('jl.')}


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None
