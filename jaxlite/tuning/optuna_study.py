"""Optuna beside the ledger: it suggests points (TPE, CMA-ES, NSGA-II), and its dashboard opens the storage.

The ledger says what is so; Optuna's study follows it. Each attempt at a trial is one of Optuna's trials: a killed
worker's stays there as FAIL, and the next attempt is a new one of the same parameters, whose attribute 'trial' is the
number of the first. Everything here runs under the ledger's lock. Optuna is imported inside functions: a grid or random
points do not need it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxlite.tuning.database import Database, StorageError, of_storage, unreachable
from jaxlite.tuning.kinds import Choice, Kind, Space, labels
from jaxlite.tuning.ledger import COMPLETE, DONE, FAILED, PRUNED, RUNNING, Trial
from jaxlite.tuning.outcome import Goal
from jaxlite.tuning.sampling import spread

METHODS = ('tpe', 'cmaes', 'nsga2')
_SPREAD = 8  # points that are spread evenly before TPE suggests any


def lacking() -> str:
  """Returns what is missing for Optuna to be used here; '' where nothing is."""
  try:
    version = importlib.metadata.version('optuna')
  except importlib.metadata.PackageNotFoundError:
    return "Optuna is not installed: pip install 'jaxlite[tune]'"
  return (
    '' if int(version.split('.')[0]) >= 5 else f"Optuna {version} is here, 5 is needed: pip install 'jaxlite[tune]'"
  )


@contextlib.contextmanager
def _quiet(database: Database) -> Iterator[None]:
  """Without Optuna's chatter; what its storage raises is one line."""
  import optuna

  before = optuna.logging.get_verbosity()
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  try:
    with warnings.catch_warnings():  # what is experimental or deprecated there is not for who runs this to mend
      warnings.simplefilter('ignore')
      yield
  except Exception as error:
    cause = of_storage(error)  # Optuna wraps what its database raised
    if cause is None or isinstance(error, StorageError):
      raise
    raise unreachable(database.address, cause) from error
  finally:
    optuna.logging.set_verbosity(before)


class Mirror:
  """Optuna's study of a ledger's trials."""

  def __init__(self, database: Database, name: str, space: Space, goals: Sequence[Goal]):
    """Opens it, or makes it.

    Args:
      database: that the ledger is in.
      name: of the study.
      space: its kinds by name.
      goals: of the study.
    """
    import optuna

    self._database, self._space = database, space
    with _quiet(database):
      options = {'connect_args': {'timeout': 300}} if database.is_file else {'pool_pre_ping': True}
      self._storage = storage = optuna.storages.RDBStorage(database.url, engine_kwargs=options)
      directions = ['maximize' if goal.maximize else 'minimize' for goal in goals]
      self._study: Any = optuna.create_study(
        storage=storage, study_name=name, directions=directions, load_if_exists=True
      )
      if not self._study.metric_names:
        self._study.set_metric_names([goal.name for goal in goals])
      self._several = len(directions) > 1
    self._distributions = {one: _distribution(kind) for one, kind in space.items()}

  def close(self) -> None:
    """Ends Optuna's connections."""
    with _quiet(self._database):
      self._storage.remove_session()
      self._storage.engine.dispose()

  def ask(self, method: str, seed: int, place: int) -> tuple[int, dict[str, Any]]:
    """Returns the number of a new trial of Optuna's, and the point that it suggests.

    Args:
      method: 'tpe', 'cmaes' or 'nsga2'.
      seed: of the study.
      place: how many trials were made before.
    """
    if method == 'tpe' and place < _SPREAD:
      found = spread(self._space, seed, place)
      return self.add(None, found, {}), found
    with _quiet(self._database):
      self._study.sampler = _sampler(method, zlib.crc32(f'{seed} {place}'.encode()))
      trial = self._study.ask(self._distributions)
      found = {name: self._stored(name, trial.params[name]) for name in self._space}
    return trial.number, found

  def take(self, number: int) -> None:
    """Says that a suggested trial is one of the study's, the first attempt at it."""
    with _quiet(self._database):
      self._study._storage.set_trial_user_attr(self._identity(number), 'trial', number)

  def drop(self, number: int) -> None:
    """Ends a suggested trial that nobody works on."""
    import optuna

    with _quiet(self._database):
      self._study._storage.set_trial_state_values(self._identity(number), optuna.trial.TrialState.FAIL)

  def add(self, trial: int | None, point: Mapping[str, Any], scores: Mapping[int, float]) -> int:
    """Makes a running trial of a given point, and returns its number.

    Args:
      trial: the number of the trial that it is an attempt at; None makes the first.
      point: as it is stored.
      scores: by step, of earlier attempts.
    """
    import optuna

    with _quiet(self._database):
      params = {name: self._external(name, value) for name, value in point.items()}
      attributes = {} if trial is None else {'trial': trial}
      made = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING,
        params=params,
        distributions=self._distributions,
        intermediate_values={} if self._several else dict(scores),
        user_attrs=attributes,
      )
      storage, study = self._study._storage, self._study._study_id
      number = storage.get_trial(identity := storage.create_new_trial(study, template_trial=made)).number
      if trial is None:
        storage.set_trial_user_attr(identity, 'trial', number)
    return number

  def report(self, number: int, step: int, value: float) -> None:
    """Tells the score of a running trial at a step."""
    if self._several:
      return
    with _quiet(self._database), contextlib.suppress(self._stale()):
      self._study._storage.set_trial_intermediate_value(self._identity(number), step, value)

  def finish(self, trial: Trial, values: Sequence[float], limits: Mapping[str, float]) -> None:
    """Ends a trial as the ledger has it.

    Args:
      trial: as the ledger has it now.
      values: one for each goal; () where it has none.
      limits: by name, by how much it is over them; at most 0 is within.
    """
    import optuna

    states = optuna.trial.TrialState
    with _quiet(self._database), contextlib.suppress(self._stale()):
      storage, identity = self._study._storage, self._identity(trial.mirror)
      for attribute, value in trial.found.items():  # each by itself: the dashboard draws them against each other
        if attribute not in ('trial', 'why'):
          storage.set_trial_user_attr(identity, attribute, value)
      if trial.why:
        storage.set_trial_user_attr(identity, 'why', trial.why)
      for name, over in limits.items():
        optuna.trial.Trial(self._study, identity).set_constraint(name, over)
      if trial.state == COMPLETE and values:
        storage.set_trial_state_values(identity, states.COMPLETE, list(values))
      elif trial.state == PRUNED or (trial.state == FAILED and not self._several):
        # TPE leaves FAIL out, and would suggest for ever what diverges or does not fit: that is as bad as stopped.
        pruned = list(values) if values and not self._several else None
        storage.set_trial_state_values(identity, states.PRUNED, pruned)
      else:
        storage.set_trial_state_values(identity, states.FAIL)

  def settle(self, trials: Sequence[Trial], finish: Any) -> None:
    """Ends what Optuna has as running and nobody works on: a killed worker's attempts, and what the ledger has ended.

    Args:
      trials: of the ledger, those of dead workers reaped.
      finish: (trial) ends one that is done, as `finish`.
    """
    import optuna

    states = optuna.trial.TrialState
    by_mirror = {one.mirror: one for one in trials}
    with _quiet(self._database):
      for one in self._study.get_trials(deepcopy=False, states=(states.RUNNING, states.WAITING)):
        own = by_mirror.get(one.number)
        if own is not None and own.state == RUNNING:
          continue
        if own is not None and own.state in DONE:
          finish(own)
        else:
          with contextlib.suppress(self._stale()):
            self._study._storage.set_trial_state_values(one._trial_id, states.FAIL)

  def importances(self, goal: int = 0) -> dict[str, float]:
    """Returns what share of the difference between good and other trials each name accounts for; {} if too few."""
    import optuna

    with _quiet(self._database):
      try:
        target = None if not self._several else lambda one: one.values[goal]
        found = optuna.importance.get_param_importances(self._study, target=target)
      except (ValueError, RuntimeError):
        return {}
    return {name: float(value) for name, value in found.items()}

  def _identity(self, number: int) -> int:
    return self._study._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)

  def _stale(self) -> Any:
    """What Optuna raises where a trial has ended already."""
    from optuna import exceptions

    return (exceptions.UpdateFinishedTrialError, KeyError)

  def _external(self, name: str, stored: Any) -> Any:
    kind = self._space[name]
    return labels(kind)[stored] if isinstance(kind, Choice) else stored

  def _stored(self, name: str, value: Any) -> Any:
    kind = self._space[name]
    if isinstance(kind, Choice):
      return labels(kind).index(value)
    return int(value) if kind.step else float(value)


def _distribution(kind: Kind) -> Any:
  from optuna import distributions

  if isinstance(kind, Choice):
    return distributions.CategoricalDistribution(labels(kind))
  if kind.step:
    last = int(kind.low + kind.step * ((kind.high - kind.low) // kind.step))
    return distributions.IntDistribution(int(kind.low), last, log=kind.log, step=kind.step)
  return distributions.FloatDistribution(kind.low, kind.high, log=kind.log)


def _sampler(method: str, seed: int) -> Any:
  from optuna import samplers

  if method == 'cmaes':
    return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
  if method == 'nsga2':
    return samplers.NSGAIISampler(seed=seed)
  return samplers.TPESampler(
    seed=seed, multivariate=True, n_startup_trials=_SPREAD // 2, warn_independent_sampling=False
  )
