"""`--mode=fit`: the fastest form of a run that fits, found by trying, and trained.

Each form is tried in a process of its own under this one's limits, a twelfth tighter: its programs are compiled, some
steps are taken, evaluated, saved, tested and reported; twice where that comes near the limit, and twice again where the
first died, beside its compiling. What is compiled stays in the compile cache, so that the run itself need not find
memory for it. Of a long run smaller pieces of the batch are tried too where the run fits without: what lies in the
processor's cache between two layers may be faster. Then this process becomes the run: it is replaced by the same
command with the flags that were found.
"""

from __future__ import annotations

import functools
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxlite.config.schema import Config
from jaxlite.errors import ConfigError
from jaxlite.host.files import expanded
from jaxlite.planning.edits import DRAWS, ROUNDING, SAME, flags_of
from jaxlite.planning.plan import TOO_LARGE, Tried, changes, mib, spoken
from jaxlite.run import folder as run_folder
from jaxlite.run.again import without
from jaxlite.run.trial import MARGIN, Died, Source, asked

Say = Callable[[str], None]

_EASY = 0.6  # of its limit: what a forecast's bound must keep to for a run to be started without a trial
_TRIALS = 8  # forms that are tried at the most
_NEAR = 0.75  # of its limit: what a trial has to come through twice
_AGAIN = 3  # times that a run which dies all the same may begin again from its checkpoint
_FEW = 512  # examples of an evaluation where memory is least
_GOOD = 2  # of those that fit, how many are compared
_LONG = 600.0  # seconds: what a run is forecast to take for smaller pieces to be asked for though memory is ample
_WORTH = 20  # trials: as long as these a run has to take for smaller pieces to be asked for
_LEAST = 2e-3  # seconds of a step: below it what stands around the step says more
_FASTER = 0.95  # of the step: what smaller pieces have to take at the most, twice
_NO_SLOWER = 1.1  # of the step: within it smaller pieces yet may be faster, where these just missed a cache
_PARTS = 'machine.micro_batches'
_KEPT = ('eval.batch_size', 'machine.keep_memory', _PARTS, 'machine.remat')
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
  command = [*without(words, 'mode', 'again'), '--mode=train', *flags, '--force', f'--again={_AGAIN}']
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
    if not _long(told, first['step'], _LONG):
      return Found({}, ())
  tried: list[Tried] = []
  good: list[tuple[float, Any]] = []
  began = time.monotonic()
  for form in sorted(forms, key=_promise)[:_TRIALS]:
    if good and (form['result'] == DRAWS or _slower(form, good)):
      continue
    for back in ({}, _BACK) if told['keeps'] else ({},):
      one = _tried(source, name, {**form, 'fields': {**form['fields'], **back}, 'warm': bool(back)}, say)
      tried.append(one)
      if one.fits:
        good.append((one.seconds or float('inf'), {**form['fields'], **back}))
        break
    if good and (not form['fields'] or len(good) == _GOOD):
      break
  for form in _last(forms, told['evaluation']):
    if good:
      break
    one = _tried(source, name, {**form, 'margin': 1.0, 'warm': True}, say)
    tried.append(one)
    if one.fits:
      good.append((one.seconds or float('inf'), form['fields']))
  if not good:
    least = min((form['upper'] for form in forms if form['upper']), default=None)
    need = '' if least is None else f'; the least is forecast to need {mib(least)}'
    raise ConfigError(f'no form of this run fits into memory here{need}: take a smaller model, batch or data set')
  step, fields = min(good, key=lambda pair: pair[0])
  if _long(told, step, _WORTH * (time.monotonic() - began) / len(tried)):
    fields, more = _in_pieces(functools.partial(_tried, source, name, say=say), forms, step, fields)
    tried += more
  return Found(fields, tuple(tried))


def _long(told: dict[str, Any], step: float | None, seconds: float) -> bool:
  """Whether the steps of a run take so long, and each long enough for a comparison of two to say something."""
  return step is not None and _LEAST <= step < math.inf and step * told['steps'] >= seconds


def _in_pieces(
  attempt: Callable[[dict[str, Any]], Tried], forms: Sequence[dict[str, Any]], step: float, fields: dict[str, Any]
) -> tuple[dict[str, Any], list[Tried]]:
  """Asks whether a form is faster with its batch in more pieces, until it becomes slower.

  Args:
    attempt: tries a form.
    forms: that the run may take.
    step: seconds of the form that fits.
    fields: of that form.

  Returns:
    The fields of the fastest, and what was tried.
  """
  tried: list[Tried] = []
  own = {path: value for path, value in fields.items() if path != _PARTS}
  # Pieces that draw for themselves, or have statistics of their own, are another result: not for speed alone.
  same = [form for form in forms if form['result'] in (SAME, ROUNDING) and _PARTS in form['fields']]
  for form in sorted(same, key=lambda form: form['fields'][_PARTS]):
    parts = form['fields'][_PARTS]
    if parts <= fields.get(_PARTS, 1) or form['fields'].get('machine.remat') != own.get('machine.remat'):
      continue
    smaller = {**form, 'name': f'{parts} micro-batches', 'fields': {**own, _PARTS: parts}}
    if _BACK.items() <= own.items():  # of smaller pieces what is freed may find room to be kept
      kept = {**smaller, 'fields': {path: value for path, value in smaller['fields'].items() if path not in _BACK}}
      one = attempt(kept)
      smaller, one = (kept, one) if one.fits else (smaller, attempt({**smaller, 'warm': True}))
    else:
      one = attempt(smaller)
    if one.fits and one.seconds is not None and one.seconds <= _FASTER * step:  # on a busy machine once is not enough
      before, again = attempt({**smaller, 'name': 'as before', 'fields': fields}), attempt(smaller)
      step = min(step, before.seconds or step)
      one = again._replace(seconds=min(one.seconds, again.seconds or one.seconds))
    tried.append(one)
    if not one.fits or one.seconds is None or one.seconds >= _NO_SLOWER * step:
      break
    if one.seconds <= _FASTER * step:  # else smaller ones may be worth it
      step, fields = one.seconds, smaller['fields']
  return fields, tried


def _promise(form: dict[str, Any]) -> Any:
  """What is tried first: what is forecast to fit, what changes no draws, the fastest, the least changed."""
  worse = (form['word'] == TOO_LARGE) + bool(form['dies'])
  own = not form['fields'] and not worse
  return (not own, worse, form['result'] == DRAWS, form['step'] or 0.0, len(form['fields']))


def _last(forms: Sequence[dict[str, Any]], evaluation: int) -> list[dict[str, Any]]:
  """What is left to try where nothing has fitted: the form that is forecast to need least, freed memory going back and
  evaluation in few examples, three times, now that its programs are compiled, with no room to spare. Near a limit it is
  chance, and a run that dies there begins again."""
  known = sorted((form for form in forms if form['upper']), key=lambda form: form['upper'])
  small = {'eval.batch_size': _FEW} if evaluation > _FEW else {}
  return [{**form, 'fields': {**small, **form['fields'], **_BACK}} for form in known[:1]] * 3


def _slower(form: dict[str, Any], good: Sequence[tuple[float, Any]]) -> bool:
  """Whether a form is not worth a trial beside those that fit: it is forecast to die, or to take half as long again."""
  slow = form['step'] is not None and form['step'] > 1.5 * min(seconds for seconds, _ in good)
  return bool(form['dies']) or slow


def _tried(source: Source, name: str, form: dict[str, Any], say: Say) -> Tried:
  how = shlex.join(flags_of(form['fields'], name))
  label = form['name'] + (', freed memory goes back' if _BACK.items() <= form['fields'].items() else '')
  margin = form.get('margin', MARGIN)
  question = {'fields': form['fields'], 'step': form['step'], 'margin': margin}
  near = _NEAR * min(form['room'] or math.inf, form['limit'] or math.inf)
  try:
    try:
      found = asked(source, name, 'trial', **question)
    except Died as end:
      if end.stepped and form.get('warm'):
        raise
      # What is compiled on the way is held beside all else. It lies in the cache afterwards, as it will for the run.
      if not end.stepped:
        asked(source, name, 'compile', **question)
      found, near = asked(source, name, 'trial', **question), 0.0
    if found['peak'] > near or found.get('share', 0.0) > _NEAR:
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
    return Tried(label, form['result'], None, None, False, how, end='cannot be')
  room = form['room']  # limits of the process held the trial itself: what they count is not resident memory
  fits = room is None or found['peak'] <= room * margin
  pace = '' if found['step'] is None else f', {spoken(found["step"])} a step'
  say(f'  {label}: {"fits" if fits else "does not fit"} ({mib(found["peak"])}{pace})')
  return Tried(label, form['result'] or SAME, found['peak'], found['step'], fits, how)
