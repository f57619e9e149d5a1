"""What the memory of a run depends on: sizes of its state and batches, of its programs, and what the process holds."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax

from jaxlite.host import allocator
from jaxlite.host.machine import resident, status
from jaxlite.planning.buffers import held
from jaxlite.planning.flow import size_of
from jaxlite.planning.programs import Traced, evaluation_batch


class Process(NamedTuple):
  """What a process holds, in bytes.

  Attributes:
    anonymous: resident memory that stands for no file; all of it where the system does not tell them apart.
    files: resident pages of programs and libraries, which come in as they are used.
    peak: the most that was resident so far; see `host.machine.forget_peak`.
    data_segment, address_space: what `ulimit -d` and `ulimit -v` count.
    free: of `anonymous`, what was freed and is there for what comes next: a run that was before leaves much of it.
  """

  anonymous: int
  files: int
  peak: int
  data_segment: int
  address_space: int
  free: int = 0


class Sizes(NamedTuple):
  """Bytes of a job, and how large its programs are.

  Attributes:
    parameters, optimizer, state, constants: of the first state.
    batch, evaluation_batch: of one each, as they lie on the device.
    step, evaluation: what the two programs hold at the most, beside arguments and what lies in their place.
    gradients: of `step`, what has the shape of a parameter.
    equations, evaluation_equations: of the two programs with their calls opened.
    data: of all splits.
  """

  parameters: int
  optimizer: int
  state: int
  constants: int
  batch: int
  evaluation_batch: int
  step: int
  evaluation: int
  gradients: int
  equations: int
  evaluation_equations: int
  data: int

  @property
  def live(self) -> int:
    """What the steps change, and every checkpoint holds."""
    return self.parameters + self.optimizer + self.state


def process() -> Process:
  """Returns what this process holds now."""
  whole = resident()
  anonymous = status('RssAnon') or whole
  files = status('RssFile') + status('RssShmem')
  mapped, data = status('VmSize') or whole, status('VmData') or whole
  return Process(anonymous, files, max(whole, status('VmHWM')), data, mapped, min(allocator.freed(), anonymous))


def sizes(traced: Traced) -> Sizes:
  """Returns the sizes of a job.

  Args:
    traced: its programs.
  """
  job, state, platform = traced.job, traced.job.abstract, traced.platform
  parameters = _bytes(state.params)
  if traced.step is not None:
    donated = len(jax.tree.leaves(state._replace(key=None, const=None)))
    step = held(traced.step.jaxpr, range(donated), platform)
    temporaries, equations = step.temporaries + step.outputs - step.aliased, step.equations
  else:  # micro-batches: the sums of their gradients live from one to the next
    step = held(traced.micro, (), platform)
    temporaries, equations = step.temporaries + step.outputs + parameters, 2 * step.equations
  metrics = len(jax.tree.leaves(jax.eval_shape(job.metric.init)))
  evaluation = held(traced.evaluation.jaxpr, range(metrics), platform)
  shapes = {(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(state.params)}
  return Sizes(
    parameters=parameters,
    optimizer=_bytes(state.opt_state),
    state=_bytes(state.model_state),
    constants=_bytes(state.const),
    batch=_bytes(job.batch),
    evaluation_batch=_bytes(evaluation_batch(job)),
    step=temporaries,
    evaluation=evaluation.temporaries + evaluation.outputs - evaluation.aliased,
    gradients=sum(one.bytes for one in step.at_peak if math.prod(one.shape) > 1 and (one.shape, one.dtype) in shapes),
    equations=equations,
    evaluation_equations=evaluation.equations,
    data=job.splits.held_bytes,
  )


def _bytes(tree: Any) -> int:
  return sum(size_of(leaf) for leaf in jax.tree.leaves(tree))
