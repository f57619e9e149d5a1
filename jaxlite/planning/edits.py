"""Single changes to a run that make it need less memory or time, as data: what each does to config and result.

A change is a function of a config, so that it is tried as any run is: built, compiled, and run for some steps. Nothing
here says what it saves. What does not exist for a run is not among its changes.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jaxlite.config.duration import Duration
from jaxlite.config.schema import Config
from jaxlite.contract import join_const
from jaxlite.graph.walk import equations, has_primitive
from jaxlite.planning.job import Job

SAME, ROUNDING, DRAWS, OTHER = 'same bits', 'same up to rounding', 'other draws', 'another result'
MICRO = (2, 4, 8, 16)  # how many micro-batches are tried
PIECES = (4, 8)  # into how many pieces a forward is cut
_RANDOM = ('random_bits', 'threefry2x32', 'rng_bit_generator')
_LEAST_EVALUATION = 16  # examples


class Edit(NamedTuple):
  """A change to a run.

  Attributes:
    name: for a person.
    fields: of the config, by path, with their new values.
    result: what becomes of the run's result, see the constants above.
    flags: how to get it from a command line.
  """

  name: str
  fields: dict[str, Any]
  result: str

  @property
  def flags(self) -> str:
    """As flags of the launcher, as a shell takes them: a tuple or a rule has signs that it would read.

    >>> Edit('half as wide', {'net.widths': (150, 50)}, OTHER).flags
    "'--config.net.widths=(150, 50)'"
    """
    return shlex.join(flags_of(self.fields))


def flags_of(fields: dict[str, Any], run: str = '') -> list[str]:
  """Returns flags of the launcher that set fields of a config.

  Args:
    fields: values by path.
    run: of an experiment of several, the one to set them for; '' for one alone.

  >>> flags_of({'machine.micro_batches': 4, 'train.epochs': 2})
  ['--config.machine.micro_batches=4', '--config.train.epochs=2']
  """
  inside = f'runs.{run}.' if run else ''
  return [f'--config.{inside}{path}={value}' for path, value in fields.items()]


def edited(config: Config, fields: dict[str, Any]) -> Config:
  """Returns a config with some fields set; the config itself stays.

  >>> config = edited(Config(name='x'), {'machine.micro_batches': 4, 'train.epochs': 2})
  >>> config.machine.micro_batches, str(config.train)
  (4, '2 epochs')
  """
  for path, value in fields.items():
    config = _set(config, path.split('.'), value)
  return config


def _set(group: Any, names: Sequence[str], value: Any) -> Any:
  first, rest = names[0], names[1:]
  inner = getattr(group, first) if not isinstance(group, Duration) else None
  if isinstance(inner, tuple) and isinstance(value, list):  # through JSON, on its way to a process that tries it
    value = tuple(value)
  if isinstance(inner, Duration) and rest:
    return dataclasses.replace(group, **{first: Duration(**{rest[0]: value})})
  return dataclasses.replace(group, **{first: _set(inner, rest, value) if rest else value})


def edits(config: Config, job: Job) -> list[Edit]:
  """Returns the single changes that exist for a run, those that change nothing first.

  Args:
    config: of the run.
    job: the same run.
  """
  machine, found = config.machine, []
  if machine.keep_memory:
    found.append(Edit('freed memory goes back', {'machine.keep_memory': False}, SAME))
  if not machine.compile_cache:
    found.append(Edit('compiled programs are kept', {'machine.compile_cache': True}, SAME))
  if machine.steps_per_dispatch != 1 and not _convolves(job):
    found.append(Edit('a step at a time', {'machine.steps_per_dispatch': 1}, SAME))
  largest = max(job.splits.validation, job.splits.test)
  for size in (config.eval.batch_size // 4, config.eval.batch_size // 16):
    if _LEAST_EVALUATION <= size < largest:
      found.append(Edit(f'evaluation by {size}', {'eval.batch_size': size}, ROUNDING))
  batch, result = config.data.batch_size, _of_micro_batches(job)
  for parts in MICRO:
    if machine.micro_batches == 1 and batch % parts == 0 and batch > parts:
      found.append(Edit(f'{parts} micro-batches', {'machine.micro_batches': parts}, result))
  for pieces in PIECES:
    if machine.remat == 0 and _is_deep(job, pieces):
      found.append(Edit(f'remat in {pieces} pieces', {'machine.remat': pieces}, ROUNDING))
  unit, length = config.train.given()
  if batch >= 16 and unit == 'epochs':
    found.append(Edit('half the batch', {'data.batch_size': batch // 2}, OTHER))
  if length >= 2:
    found.append(Edit(f'half the {unit}', {f'train.{unit}': type(length)(length // 2)}, OTHER))
  return found


def forms(config: Config, job: Job) -> list[Edit]:
  """Returns the forms that a run may take so that it fits, its own first, those of the least change before others.

  They differ in memory and time, and not in what is computed, but for rounding; where micro-batches draw for
  themselves, in what is drawn.

  Args:
    config: of the run.
    job: the same run.
  """
  batch, machine = config.data.batch_size, config.machine
  result = _of_micro_batches(job)
  parts = [one for one in MICRO if batch % one == 0 and batch > one and machine.micro_batches == 1 and result != OTHER]
  pieces = [one for one in PIECES if machine.remat == 0 and _is_deep(job, one)]

  def form(micro: int, remat: int) -> Edit:
    fields: dict[str, Any] = {}
    if (size := max(_LEAST_EVALUATION, batch // micro)) < config.eval.batch_size:
      fields['eval.batch_size'] = size
    fields |= {'machine.micro_batches': micro} if micro > 1 else {}
    fields |= {'machine.remat': remat} if remat else {}
    names = ([f'{micro} micro-batches'] if micro > 1 else []) + ([f'remat in {remat} pieces'] if remat else [])
    return Edit(' and '.join(names) or 'smaller evaluation', fields, result if micro > 1 else ROUNDING)

  pairs = [(1, 0), *((one, 0) for one in parts), *((1, one) for one in pieces)]
  pairs += [(one, another) for one in parts for another in pieces if one in MICRO[1::2]]
  found = [Edit('as it is', {}, SAME), *(form(*pair) for pair in pairs)]
  return [edit for place, edit in enumerate(found) if place == 0 or edit.fields]


def _of_micro_batches(job: Job) -> str:
  """What micro-batches do to a result: where the forward draws, or has state of its batch, it is another."""
  state = {name: value for name, value in job.abstract.model_state.items() if not name.startswith('jl.')}
  if any(_has_arrays(value) for value in state.values()):  # batch statistics, say: of a part of the batch
    return OTHER
  return DRAWS if has_primitive(_forward(job), *_RANDOM) else ROUNDING


def _has_arrays(tree: Any) -> bool:
  return bool(jax.tree.leaves(tree))


def _forward(job: Job) -> Any:
  """The jaxpr of the forward in training: what is drawn there is drawn by each micro-batch for itself."""
  params, state, const = job.abstract.params, job.abstract.model_state, job.abstract.const

  def forward(params: Any, state: Any, const: Any, inputs: Any, key: Any, step: Any) -> Any:
    return job.train.model.apply(params, join_const(state, const), inputs, train=True, key=key, step=step)

  return jax.make_jaxpr(forward)(params, state, const, job.batch['inputs'], job.abstract.key, job.abstract.step)


def _convolves(job: Job) -> bool:
  return has_primitive(job.train.programs.jaxpr(job.abstract, job.batch)[0], 'conv_general_dilated')


def _is_deep(job: Job, pieces: int) -> bool:
  """Whether there are layers enough that a piece holds one."""
  step = job.train.programs.jaxpr(job.abstract, job.batch)[1]
  contractions = ('dot_general', 'conv_general_dilated')
  return sum(eqn.primitive.name in contractions for eqn in equations(step)) >= pieces
