"""What can be trained here within a budget: reference networks on data of a size and shape, before there is any code.

Memory and time are forecast for the default recipe. What accuracy to expect is told only where a run that anybody can
repeat has measured it, on the data that it names; `planning/measured.json` holds those, each beside its command.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite import tasks
from jaxlite.adapters import adapt
from jaxlite.config.duration import Duration
from jaxlite.config.schema import Config
from jaxlite.errors import ConfigError
from jaxlite.graph.init_numpy import on_host
from jaxlite.host.crowd import free_cores
from jaxlite.host.limits import Limits
from jaxlite.host.machine import resident
from jaxlite.planning import duration, memory
from jaxlite.planning.job import Job, Splits
from jaxlite.planning.plan import FITS, TOO_LARGE, Verdict, between, judged, mib, spoken
from jaxlite.planning.reference import rates
from jaxlite.run import defaults, fit
from jaxlite.step.train_step import train_step

_EPOCHS, _BATCH = 10, 128  # where no run has been measured: a first look


class Option(NamedTuple):
  """One network within the budget, or beyond it.

  Attributes:
    name: of the network.
    epochs: that the budget allows, at most those of the measured run, or ten.
    wanted: those.
    verdict: on its memory.
    time: of the whole run.
    epoch: seconds.
    fits: memory and time.
    measured: the entry of the table for data of this shape; None.
    failed: why it cannot be forecast; ''.
  """

  name: str
  epochs: int
  wanted: int
  verdict: Verdict | None
  time: duration.Duration | None
  epoch: float
  fits: bool
  measured: dict[str, Any] | None
  failed: str = ''


def lines(
  minutes: float, here: Limits, examples: int, shape: tuple[int, ...], classes: int, say: Callable[[str], None]
) -> list[str]:
  """Returns a ranked list of what can be trained, as lines.

  Args:
    minutes: of time.
    here: what memory there is.
    examples: in all; a tenth is for validation and a tenth for the test.
    shape: of one example.
    classes: how many.
    say: is told when this machine is measured.
  """
  found = options(minutes, here, examples, shape, classes, say)
  limit = min(here.resident_memory, resident() + here.resident_free)
  room = mib(limit) if here.resident_memory else 'nobody tells how much'
  text = [
    f'{examples:,} examples of {"x".join(map(str, shape))}, {classes} classes; {minutes:g} minutes, {room} of memory.'
    ' What fits comes first: by accuracy where it was measured, then by time.'
  ]
  rows = [('network', 'epochs', 'time', 'memory, at most', 'accuracy, where a run has measured it')]
  for one in found:
    if one.failed or one.time is None:
      rows.append((one.name, '-', '-', '-', f'not forecast: {one.failed}'))
      continue
    epochs = f'{one.epochs}' if one.epochs == one.wanted else f'{one.epochs} of {one.wanted}'
    time = between(one.time) if one.epochs else f'one epoch takes {spoken(one.epoch)}'
    size = '-' if one.verdict is None else mib(one.verdict.upper)
    size += '' if one.verdict is None or one.verdict.word == FITS else f' ({one.verdict.word})'
    rows.append((one.name, epochs, time, size, _accuracy(one)))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  text += ['  '.join(f'{cell:<{width}}' for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
  known = {one.measured['command']: one.measured for one in found if one.measured is not None}
  text += [f'measured on {one["data"]} ({one["examples"]:,} examples): {command}' for command, one in known.items()]
  text.append("Forecast for jaxlite's default recipe; on your data accuracy is another, and only a run tells it.")
  return text


def options(
  minutes: float, here: Limits, examples: int, shape: tuple[int, ...], classes: int, say: Callable[[str], None]
) -> list[Option]:
  """Returns the reference networks that take examples of a shape, ranked; see `lines`.

  Raises:
    ConfigError: this machine could not be measured.
  """
  try:
    known = rates(say)
  except RuntimeError as error:
    raise ConfigError(f'what can be trained here is not known: {error}') from None
  tell = functools.partial(duration.forecast, rates=known, crowd=free_cores())
  found = []
  for name, network in networks(shape, classes):
    measured = _measured(name, shape, classes)
    wanted, batch = (measured['epochs'], measured['batch']) if measured else (_EPOCHS, _BATCH)
    try:
      found.append(
        _option(name, network, (examples, shape, classes, min(batch, examples // 2)), wanted, minutes, here, tell)
      )
    except Exception as error:
      said = str(error).strip().split('\n')[0][:80]
      found.append(Option(name, 0, wanted, None, None, 0.0, False, measured, f'{type(error).__name__}: {said}'))
      continue
    found[-1] = found[-1]._replace(measured=measured)
  return sorted(found, key=_rank)


def _rank(one: Option) -> tuple[Any, ...]:
  accuracy = one.measured['accuracy'] if one.measured and one.epochs == one.wanted else -1.0
  return (bool(one.failed), not one.fits, -accuracy, one.time.seconds if one.time else math.inf)


def _option(
  name: str, network: Any, data: tuple[Any, ...], wanted: int, minutes: float, here: Limits, tell: Any
) -> Option:
  job = job_for(network, *data, wanted)
  verdict = judged(memory.traced(job, here), here, resident())
  whole = tell(job)
  steps = job.total // wanted
  one = tell(job._replace(total=steps))
  epoch = max(1e-9, (whole.total.seconds - one.total.seconds) / max(1, wanted - 1)) if wanted > 1 else one.total.seconds
  seconds, epochs = 60 * minutes, wanted
  if whole.total.high > seconds:
    # high ends grow with the run: of what is left after the fixed part, as many epochs as fit
    share = whole.total.high / whole.total.seconds
    fixed = max(0.0, one.total.seconds - epoch)
    epochs = max(0, min(wanted, math.floor((seconds / share - fixed) / epoch)))
    whole = tell(job._replace(total=max(1, epochs) * steps))
  fits = epochs > 0 and (verdict is None or verdict.word != TOO_LARGE)
  return Option(name, epochs, wanted, verdict, whole.total, epoch, fits, None)


def _accuracy(one: Option) -> str:
  if one.measured is None:
    return 'not measured'
  if one.epochs < one.wanted:
    return f'not measured at so few epochs ({one.measured["shown"]} at {one.wanted})'
  return f'{one.measured["shown"]} on {one.measured["data"]}, by {one.measured["recipe"]}'


def _measured(name: str, shape: Sequence[int], classes: int) -> dict[str, Any] | None:
  plain = [size for place, size in enumerate(shape) if not (place and place == len(shape) - 1 and size == 1)]
  for one in table():
    if one['network'] == name and one['shape'] == plain and one['classes'] == classes:
      return one
  return None


def table() -> list[dict[str, Any]]:
  """Returns the accuracies that runs have measured, each with the command that made it."""
  return json.loads(resources.files('jaxlite.planning').joinpath('measured.json').read_text())


def networks(shape: tuple[int, ...], classes: int) -> list[tuple[str, Any]]:
  """Returns the reference networks that take examples of a shape, by name.

  Args:
    shape: of one example: [H, W] or [H, W, C] for a picture, else a row.
    classes: how many.
  """
  from jaxlite import models

  rows = [
    ('MLP (128, 64)', models.MLP((128, 64), classes=classes)),
    ('LeNet300', models.LeNet300(classes=classes)),
    ('MLP (512, 512)', models.MLP((512, 512), classes=classes)),
  ]
  if len(shape) not in (2, 3) or min(shape[:2]) < 4:
    return rows
  pictures: list[tuple[str, Any]] = [
    ('SmallCNN', models.SmallCNN(classes=classes)),
    ('SmallCNN (64, 128)', models.SmallCNN(features=(64, 128), classes=classes)),
    ('ResNet8', models.ResNet8(classes=classes)),
    ('ResNet20', models.ResNet20(classes=classes)),
  ]
  if min(shape[:2]) >= 8:
    pictures.append(('DepthwiseCNN', models.DepthwiseCNN(classes=classes)))
  if min(shape[:2]) >= 20:
    pictures.append(('LeNet5', models.LeNet5(classes=classes)))
  if all(size % 4 == 0 for size in shape[:2]):
    pictures.append(('ViT', models.ViT(classes=classes)))
  return rows + pictures


def job_for(network: Any, examples: int, shape: tuple[int, ...], classes: int, batch_size: int, epochs: int) -> Job:
  """Returns a run of the default recipe on data that are not there.

  Args:
    network: as `adapt` takes it.
    examples: in all.
    shape: of one.
    classes: how many.
    batch_size: examples a step.
    epochs: how many.
  """
  config = Config(name='budget', train=Duration(epochs=epochs))
  held = examples // 10
  train = examples - 2 * held
  epoch = max(1, train // batch_size)
  model = adapt(network)
  built = train_step(model, tasks.cross_entropy, defaults.recipe(config, epoch * epochs))
  batch = {
    'inputs': np.broadcast_to(np.float32(0), (batch_size, *shape)),  # however large: one number lies there
    'labels': np.zeros(batch_size, np.int32),
    'weight': np.ones(batch_size, np.float32),
  }
  _, abstract = fit.begun(built, model, on_host(lambda: jax.random.key(0))(), batch)
  size = 4 * (math.prod(shape) + 1)
  task = tasks.classification(classes)
  return Job(
    train=built,
    abstract=abstract,
    batch=batch,
    evaluation=config.eval.batch_size,
    splits=Splits(train, held, held, held_bytes=examples * size),
    total=epoch * epochs,
    log=50,
    evaluate=epoch,
    checkpoint=epoch,
    keep_memory=config.machine.keep_memory,
    compile_cache=config.machine.compile_cache,
    rewrites=config.machine.rewrites,
    task=task.name,
    metric=task.metrics(task.facts(np.arange(classes, dtype=np.int32), {})),
  )
