"""What a run will hold in memory: its peak by stage and by what holds it, before the first step."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxlite.planning.job import Job

STAGES = ('import', 'data', 'compile', 'steps', 'evaluation', 'checkpoint', 'report')


class Memory(NamedTuple):
  """A forecast of the memory of one run in one process.

  Attributes:
    stages: bytes of resident memory at the most in each stage, in their order: 'import', 'data', 'compile', 'steps',
      'evaluation', 'checkpoint', 'report'.
    parts: bytes by what holds them at the peak: 'runtime', 'data', 'parameters', 'optimizer', 'state', 'batch',
      'activations', 'compiler', ...; they sum up to `peak`.
    peak: the most of `stages`.
    upper: what `peak` stays below in 95 of 100 runs.
    data_segment: bytes at the most of what `ulimit -d` limits, as `upper` is.
    address_space: likewise of what `ulimit -v` limits.
    basis: 'traced' (from the jaxpr) or 'compiled' (from the program).
    cache: 'cold' or 'warm': whether XLA compiles the programs or reads them.
    kept: bytes that freed memory which stays mapped may add to `upper`; 0 where it goes back.
    notes: lines on what is left out or assumed.
  """

  stages: dict[str, int]
  parts: dict[str, int]
  peak: int
  upper: int
  data_segment: int
  address_space: int
  basis: str
  cache: str = 'cold'
  kept: int = 0
  notes: tuple[str, ...] = ()


def traced(job: Job, limits: Any = None, *, cache: str | None = None) -> Memory:
  """Forecasts a run's memory from its jaxpr alone: nothing is compiled.

  Args:
    job: the run, in the process that would run it.
    limits: `host.limits.Limits`, which decide whether freed memory stays mapped; None asks the machine.
    cache: 'cold' or 'warm'; None is 'cold', the larger of the two.
  """
  raise NotImplementedError


def compiled(job: Job, limits: Any = None, *, evaluation: bool = True) -> Memory:
  """Forecasts a run's memory once its programs are compiled, here and now; the run reuses them.

  Args:
    job: the run, in the process that will run it.
    limits: as in `traced`.
    evaluation: whether evaluation's program is compiled too; else it is forecast from its jaxpr.
  """
  raise NotImplementedError
