"""`--mode=fit`: the fastest form of a run that fits, found by trying, and trained.

Each form is tried in a process of its own under this one's limits, a twelfth tighter: its programs are compiled, some
steps are taken, evaluated, saved, tested and reported; twice where that comes near the limit. What is compiled stays in
the compile cache, so that the run itself need not find memory for it. Then this process becomes the run: it is replaced
by the same command with the flags that were found.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxlite.config.schema import Config
from jaxlite.errors import ConfigError
from jaxlite.host.files import expanded
from jaxlite.planning.edits import DRAWS, SAME, flags_of
from jaxlite.planning.plan import TOO_LARGE, Tried, changes, mib, spoken
from jaxlite.run import folder as run_folder
from jaxlite.run.trial import MARGIN, Died, Source, asked

Say = Callable[[str], None]

_EASY = 0.6  # of its limit: what a forecast's bound must keep to for a run to be started without a trial
_TRIALS = 8  # forms that are tried at the most
_NEAR = 0.75  # of its limit: what a trial has to come through twice
_GOOD = 2  # of those that fit, how many are compared
_KEPT = ('eval.batch_size', 'machine.keep_memory', 'machine.micro_batches', 'machine.remat')
_BACK = {'machine.keep_memory': False}


class Found(NamedTuple):
  """What fits.

  Attributes:
    fields: of the config, to be set; {} where the run fits as it is.
    tried: what was tried.
  """

  fields: dict[str, Any]
  tried: tuple[Tried, ...]


def fit(config: Config, source: Source, words: Sequence[str], fresh: bool, say: Say) -> None:
  """Finds for each run of an experiment the fastest form that fits, and becomes the command that trains them.

  Args:
    config: of the experiment.
    source: where it comes from.
    words: the command line of this process, the interpreter first.
    fresh: what lies in the workdir is moved aside, so that nothing of it counts.
    say: prints a line.

  Raises:
    ConfigError: no form fits.
  """
  flags: list[str] = []
  for name in config.runs or ['']:
    if name:
      say(f'\n== {name}')
    flags += flags_of(_fields(config, source, name, fresh, say), name)
  command = [*_without_mode(words), '--mode=train', *flags, '--force']
  say(f'training: {shlex.join(command[1:])}\n')
  sys.stdout.flush()
  sys.stderr.flush()
  os.execv(command[0], command)


def _fields(config: Config, source: Source, name: str, fresh: bool, say: Say) -> dict[str, Any]:
  folder = expanded(source.workdir) / name
  begun = not fresh and (folder / 'checkpoints').is_dir()
  record = run_folder.remembered(folder) if begun else None
  if record is None:
    found = search(source, name, say)
    if found.tried:
      for line in changes(found.tried):
        say(line)
    return found.fields
  saved = record.began['config']
  fields = {path: saved.get(path.split('.')[0], {}).get(path.split('.')[1]) for path in _KEPT}
  say('this run has begun: it goes on in the form that it began with')
  return {path: value for path, value in fields.items() if value is not None}


def search(source: Source, name: str, say: Say) -> Found:
  """Returns the fastest form of a run that fits.

  Args:
    source: of the config.
    name: of the run; '' for the only one.
    say: prints a line.

  Raises:
    ConfigError: no form fits.
  """
  try:
    told = asked(source, name, 'outlook')
  except Died as end:
    raise ConfigError(
      f'not even data and model fit into memory here ({end}): fewer examples, or a smaller model'
    ) from end
  say(f'forecast: {told["line"]}')
  forms = told['forms']
  first = forms[0]
  if first['upper'] is not None and first['upper'] <= _EASY * first['limit']:
    say('it fits as it is')
    return Found({}, ())
  tried: list[Tried] = []
  good: list[tuple[float, Any]] = []
  for form in sorted(forms, key=_promise)[:_TRIALS]:
    if good and (form['result'] == DRAWS or _slower(form, good)):
      continue
    for back in ({}, _BACK) if told['keeps'] else ({},):
      one = _tried(source, name, {**form, 'fields': {**form['fields'], **back}}, say)
      tried.append(one)
      if one.fits:
        good.append((one.seconds or float('inf'), {**form['fields'], **back}))
        break
    if good and (not form['fields'] or len(good) == _GOOD):
      break
  if not good:
    least = min((form['upper'] for form in forms if form['upper']), default=None)
    need = '' if least is None else f'; the least is forecast to need {mib(least)}'
    raise ConfigError(f'no form of this run fits into memory here{need}: take a smaller model, batch or data set')
  return Found(min(good, key=lambda pair: pair[0])[1], tuple(tried))


def _promise(form: dict[str, Any]) -> Any:
  """What is tried first: what is forecast to fit, what changes no draws, the fastest, the least changed."""
  worse = (form['word'] == TOO_LARGE) + bool(form['dies'])
  own = not form['fields'] and not worse
  return (not own, worse, form['result'] == DRAWS, form['step'] or 0.0, len(form['fields']))


def _slower(form: dict[str, Any], good: Sequence[tuple[float, Any]]) -> bool:
  """Whether a form is not worth a trial beside those that fit: it is forecast to die, or to take half as long again."""
  slow = form['step'] is not None and form['step'] > 1.5 * min(seconds for seconds, _ in good)
  return bool(form['dies']) or slow


def _tried(source: Source, name: str, form: dict[str, Any], say: Say) -> Tried:
  how = ' '.join(flags_of(form['fields'], name))
  label = form['name'] + (', freed memory goes back' if _BACK.items() <= form['fields'].items() else '')
  question = {'fields': form['fields'], 'step': form['step']}
  try:
    try:
      found = asked(source, name, 'trial', **question)
    except Died as end:
      if end.stepped:
        raise
      asked(source, name, 'compile', **question)  # too much may have been to compile beside all else
      found = asked(source, name, 'trial', **question)
    if found['peak'] > _NEAR * min(form['room'] or math.inf, form['limit'] or math.inf):
      # Kernels were chosen and programs compiled in the first, and freed memory lies elsewhere each time.
      again = asked(source, name, 'trial', **question)
      found = {**again, 'peak': max(found['peak'], again['peak'])}
  except Died as end:
    say(f'  {label}: does not fit ({end})')
    return Tried(label, form['result'], None, None, False, how)
  except ValueError as error:
    if not form['fields']:
      raise
    say(f'  {label}: cannot be ({error})')
    return Tried(label, form['result'], None, None, False, how)
  room = form['room']  # limits of the process held the trial itself: what they count is not resident memory
  fits = room is None or found['peak'] <= room * MARGIN
  pace = '' if found['step'] is None else f', {spoken(found["step"])} a step'
  say(f'  {label}: {"fits" if fits else "does not fit"} ({mib(found["peak"])}{pace})')
  return Tried(label, form['result'] or SAME, found['peak'], found['step'], fits, how)


def _without_mode(words: Sequence[str]) -> list[str]:
  """A command line without its --mode."""
  kept, skip = [], False
  for word in words:
    if skip:
      skip = False
    elif word in ('--mode', '-mode'):
      skip = True
    elif not word.startswith(('--mode=', '-mode=')):
      kept.append(word)
  return kept
