"""What the launcher calls where nothing is trained yet: the plan of an experiment, a run that fits, a budget."""

from __future__ import annotations

import functools
import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from jaxlite.checkpoint.directory import entries
from jaxlite.config.schema import Config
from jaxlite.config.serialize import compare, to_dict
from jaxlite.data.batches import steps_per_epoch
from jaxlite.errors import ConfigError
from jaxlite.host import limits as machine_limits
from jaxlite.host import streams
from jaxlite.host.files import expanded
from jaxlite.planning.duration import Durations
from jaxlite.planning.edits import SAME, Edit, edited, edits, flags_of
from jaxlite.planning.plan import FITS, Plan, Tried, between, spoken
from jaxlite.run import fitting, planning
from jaxlite.run import folder as run_folder
from jaxlite.run.foreseen import foreseen
from jaxlite.run.jobs import job_of
from jaxlite.run.micro_batches import labelled
from jaxlite.run.own_edits import own_edits
from jaxlite.run.setup import Setup, prepare
from jaxlite.run.trial import Died, Source, asked, made


def plan(
  config: Config, source: Source, *, changes: bool = False, elsewhere: str = '', target: float | None = None
) -> int:
  """Prints what each run of an experiment will need.

  Args:
    config: of the experiment.
    source: where it comes from.
    changes: whether to try what could be changed.
    elsewhere: other machines to tell it of, as `planning.elsewhere` takes them; '' for none.
    target: a training loss: when it will be reached; None where nobody asks.

  Returns:
    The exit code, 0: also where a run does not fit, which is an answer.
  """
  say = streams.steady(functools.partial(print, flush=True))
  began, times = time.monotonic(), []
  if elsewhere:
    planning.machines_of(elsewhere)  # a mistake is told before this machine is measured
  told: set[str] = set()
  for name in config.runs or ['']:
    one = made(source, name)
    with planning.ground(config, source.workdir, name) as folder:
      setup = prepare(planning.placed(one, folder), folder)
    job = job_of(setup)
    found = foreseen(job, one.name, say, measure=True)
    found = planning.elsewhere(job, found, elsewhere) if elsewhere else found
    found = found if target is None else planning.with_loss(found, setup, target, say)
    tried: list[Tried] = []
    if changes:
      base = found.durations.step.seconds if found.durations is not None else None
      offered = labelled(setup, edits(one, job), machine_limits.limits().resident_free)
      for edit in [Edit('as it is', {}, SAME), *offered, *own_edits(setup, job)]:
        tried.append(_try(source, name, edit, base)._replace(steps=_steps(setup, edit)))
    say(_but_for(str(found._replace(changes=tuple(tried))), told))
    if folder_holds := _behind(expanded(source.workdir) / name, one, job.total):
      say(f'  {folder_holds}')
    if found.durations is not None and job.total > setup.plan.epoch:
      epoch = setup.plan.epoch / job.total * again_and_again(found.durations)
      say(f'  an epoch takes about {spoken(epoch)}: fewer of them take less, and end elsewhere')
    say('')
    if not changes and found.verdict is not None and found.verdict.word != FITS:
      say('--mode=plan --changes tries what to change; --mode=fit trains in the fastest form that fits\n')
    times.append(found)
  if len(times) > 1 and (whole := _together(times)):
    say(whole)
  say(f'told in {time.monotonic() - began:.1f} s; nothing was trained')
  return 0


def again_and_again(found: Durations) -> float:
  """Seconds of what a run does again and again, its share of the whole: steps, evaluations, checkpoints."""
  sums = sum(found.counts[name] * getattr(found, name).seconds for name in ('step', 'evaluation', 'checkpoint'))
  return sums * found.total.seconds / (sums + found.compile.seconds + found.rest.seconds)


def _behind(folder: Path, config: Config, total: int) -> str:
  """What of a run's folder changes what a run takes; '' where nothing lies there."""
  try:
    record = run_folder.remembered(folder)
    saved = {} if record is None else record.began['config']
    other = compare(saved, config).refused if saved else []
  except (ValueError, LookupError, TypeError, AttributeError):  # damaged: who trains is told more
    saved, other = {}, []
  if other:
    more = f' and {len(other) - 1} more' if len(other) > 1 else ''
    return f'{folder} holds a run of another config ({other[0]}{more}): this one would be refused there'
  if run_folder.is_finished(folder) and saved.get('train') in (None, to_dict(config.train)):
    return f'{folder} holds this run, finished: it would be reported again, not trained; --fresh moves it aside'
  steps = [one.step for one in entries(folder / 'checkpoints')]
  if not steps:
    return ''
  left = max(0, total - max(steps))
  return f'{folder} has {max(steps):,} steps already: a run goes on with the {left:,} that are left, and takes less'


def _but_for(page: str, told: set[str]) -> str:
  """A plan's page without the doubts that another run's page has told already; adds those that it tells."""
  lines = [line for line in page.split('\n') if line not in told]
  told.update(line for line in lines if line.startswith(('  not known: ', '  warning: ')))
  return '\n'.join(lines)


def _try(source: Source, run: str, edit: Edit, step: float | None) -> Tried:
  how = shlex.join(flags_of(edit.fields, run))
  try:
    found = asked(source, run, 'trial', fields=edit.fields, step=step)
  except (Died, ValueError) as end:
    became = 'killed' if isinstance(end, Died) else 'cannot be'
    return Tried(f'{edit.name} ({str(end)[:60]})', edit.result, None, None, False, how, end=became)
  return Tried(edit.name, edit.result, found['peak'], found['step'], True, how)


def _steps(setup: Setup, edit: Edit) -> int:
  """Of the changed run; 0 where it has none."""
  config = edited(setup.config, edit.fields)
  batch = config.data.batch_size
  try:
    return config.train.to_steps(steps_per_epoch=steps_per_epoch(setup.data.train, batch), batch_size=batch)
  except ValueError:
    return 0


def _together(plans: Sequence[Plan]) -> str:
  found: list[Durations] = [one.durations for one in plans if one.durations is not None]
  if len(found) < len(plans):
    return ''
  total = found[0].total._replace(
    seconds=sum(one.total.seconds for one in found),
    low=sum(one.total.low for one in found),
    high=sum(one.total.high for one in found),
  )
  return f'all {len(plans)} runs, one after the other: about {between(total)}'


def fit(config: Config, source: Source, words: Sequence[str], fresh: bool) -> int:
  """Becomes the command that trains an experiment in forms that fit, see `fitting.fit`."""
  say = streams.steady(functools.partial(print, flush=True))
  fitting.fit(config, source, words, fresh, say)
  return 0


def budget(
  minutes: float, examples: int, shape: Sequence[str], megabytes: int | None = None, classes: int | None = None
) -> int:
  """Prints which reference networks can be trained here within a budget.

  Args:
    minutes: of time.
    examples: to train on.
    shape: of one example, as texts.
    megabytes: of memory, MiB; None for what this machine allows.
    classes: how many; None for 10.

  Raises:
    ConfigError: a number that cannot be.
  """
  from jaxlite.run import affordable

  if not all(one.strip().isdecimal() and int(one) > 0 for one in shape) or not shape:
    raise ConfigError(f'--shape is the size of one example, such as 28,28,1 or 20; got {",".join(shape)}')
  classes = 10 if classes is None else classes
  for flag, value, least in (('minutes', minutes, 0), ('examples', examples, 19), ('classes', classes, 1)):
    if not least < value < math.inf:
      raise ConfigError(f'--{flag} is above {least}; got {value}')
  if megabytes is not None and megabytes < 1:
    raise ConfigError(f'--megabytes is above 0; got {megabytes}')
  here = machine_limits.limits()
  if megabytes is not None:
    least = min(megabytes << 20, here.resident_memory or megabytes << 20)
    here = here._replace(resident_memory=least, resident_free=max(here.resident_free, least), memory=least)
    here = here._replace(reason='--megabytes')
  say = streams.steady(functools.partial(print, flush=True))
  for line in affordable.lines(minutes, here, examples, tuple(map(int, shape)), classes, say):
    say(line)
  return 0
