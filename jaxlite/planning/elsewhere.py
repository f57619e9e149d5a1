"""The same run on another machine: its time and price, extrapolated by what bounds each machine.

A step takes as long as its FLOPs or its bytes do, whichever is longer (the roofline of Williams et al. 2009,
<https://doi.org/10.1145/1498765.1498785>), and an accelerator also takes a while to start each of its kernels. Programs
reach a part of a machine's peak, and which part is not known before: so each answer is a range, and says so.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

from jaxlite.host.rates import Rates, rates_of
from jaxlite.host.sealed import Damaged, read_sealed
from jaxlite.planning.machines import MACHINES, PRICES, Machine

# The part of the peak that programs reach, from the worst to the best, by kind of machine.
EFFICIENCY = {'cpu': (0.2, 0.8), 'gpu': (0.1, 0.6), 'tpu': (0.05, 0.5)}
MEASURED = (0.7, 1.1)  # of rates that were measured there
LAUNCH = (3e-6, 15e-6)  # seconds that an accelerator takes to start a kernel
_CARRIED = 3.0  # a program this much slower than this machine's own roofline may be as slow on another CPU, not slower


class Run(NamedTuple):
  """What is to be computed, and how long that takes here.

  Attributes:
    flops: of one step.
    bytes: that one step reads and writes.
    step: seconds of one step here.
    steps: how many there are.
    input: seconds that making one batch takes here, which goes on beside a step.
    once: seconds here of what does not scale: start, compiling, checkpoints, report.
    evaluation: seconds here of all evaluations together.
    kernels: operations that one step starts.
    precision: of its products: 'float32', 'bfloat16', 'int8'.
    memory: bytes that it needs where it computes; 0 is not known.
  """

  flops: float
  bytes: float
  step: float
  steps: int
  input: float = 0.0
  once: float = 0.0
  evaluation: float = 0.0
  kernels: int = 0
  precision: str = 'float32'
  memory: int = 0


class Elsewhere(NamedTuple):
  """A run on another machine: an extrapolation, never a measurement.

  Attributes:
    machine: which.
    low, seconds, high: of the whole run, from the best efficiency to the worst.
    price: dollars, low to high; None where it is not known.
    bound: what a step waits for there: 'FLOPs', 'memory', 'starting kernels' or 'input'.
    fits: whether its memory is enough; None where either is not known.
    said: what was assumed, a line each.
  """

  machine: Machine
  low: float
  seconds: float
  high: float
  price: tuple[float, float] | None
  bound: str
  fits: bool | None
  said: tuple[str, ...]

  def line(self) -> str:
    """In one line, for a table."""
    if self.fits is False:
      return f'{self.machine.name}: does not fit its {self.machine.memory / 2**30:.0f} GiB'
    cost = '' if self.price is None else ', free within its quota'
    if self.price is not None and self.price[1] > 0:
      cost = f', ${self.price[0]:.2f} to {self.price[1]:.2f} (at a price that is {_checked(self.machine)})'
    middle = f'about {_time(self.seconds)} ({_time(self.low)} to {_time(self.high)}){cost}'
    return f'{self.machine.name}: {middle}, bound by {self.bound}; extrapolated'


def scaled(run: Run, here: Rates, there: Machine) -> Elsewhere:
  """Extrapolates a run to another machine.

  Args:
    run: its work, and its time here.
    here: the rates of this machine.
    there: the other one.

  Returns:
    An Elsewhere, whose range goes from the best efficiency to the worst.

  Raises:
    ValueError: the run has no work or no time, or the machine no rate of its precision.
  """
  if not (run.flops > 0 and run.bytes > 0 and run.step > 0 and run.steps > 0):
    raise ValueError(f'a run to extrapolate has FLOPs, bytes, steps and time above 0; got {run}')
  said = [f'extrapolated: {there.source}' if there.source else 'extrapolated']
  peak = there.flops.get(run.precision) or there.flops['float32']
  if run.precision not in there.flops:
    said.append(f'{there.name} has no rate for {run.precision}, that of float32 stands in')
  worst, best = MEASURED if there.measured else EFFICIENCY[there.kind]
  rate = 'measured there' if there.measured else 'its peak'
  said.append(f'at {worst:.0%} to {best:.0%} of the rates that are {rate}')
  bandwidth = there.bandwidth
  if not bandwidth:
    bandwidth = here.memory
    said.append(f'the bandwidth of {there.name} is not known, so that of this machine stands in')
  here_at_best = max(run.flops / _rate(here, run.precision), run.bytes / here.memory)
  carried = min(_CARRIED, max(1.0, run.step / here_at_best)) if there.kind == 'cpu' else 1.0
  flops, moved = run.flops / peak, run.bytes / bandwidth
  starts = [0.0, 0.0] if there.kind == 'cpu' else [run.kernels * seconds for seconds in LAUNCH]
  low = max(flops, moved) / best + starts[0]
  high = max(flops, moved) * carried / worst + starts[1]
  middle = math.sqrt(low * high)
  bound = (
    'starting kernels' if math.sqrt(starts[0] * starts[1]) > middle / 2 else 'FLOPs' if flops >= moved else 'memory'
  )
  if run.input > middle:
    bound = 'input'
    said.append('making a batch is reckoned to take as long as here, and to be what a step waits for')
  times = []
  for step, once in ((low, 0.5), (middle, 1.0), (high, 2.0)):
    times.append(run.steps * max(step, run.input) + run.evaluation * step / run.step + once * run.once)
  price = None if there.price is None else (there.price * times[0] / 3600, there.price * times[2] / 3600)
  fits = run.memory <= there.memory if run.memory and there.memory else None
  said += [there.note] if there.note else []
  said += [f'the price is not verified: see {PRICES}'] if there.price and there in MACHINES else []
  return Elsewhere(there, *times, price, bound, fits, tuple(said))


def _checked(machine: Machine) -> str:
  """How a price is known."""
  return 'not verified' if machine in MACHINES else 'as described'


def table(run: Run, here: Rates, machines: tuple[Machine, ...] = MACHINES) -> tuple[Elsewhere, ...]:
  """Extrapolates a run to each of some machines.

  Args:
    run: its work, and its time here.
    here: the rates of this machine.
    machines: in the order of the answers.
  """
  return tuple(scaled(run, here, machine) for machine in machines)


def machine_in(path: str | os.PathLike[str]) -> Machine:
  """Returns the machine whose rates a file holds, as `doctor` kept them on that machine and says where.

  Args:
    path: a copy of that file.

  Raises:
    ValueError: it is missing, damaged, or holds no rates.
  """
  try:
    content = read_sealed(path)
    found = rates_of(content)
    about = content.get('machine', {})
    name, cores, memory = about.get('name', Path(path).stem), about.get('cores', 0), about.get('memory', 0)
    kind = about.get('kind', 'cpu')
    if kind not in EFFICIENCY or not all(isinstance(number, int) and number >= 0 for number in (cores, memory)):
      raise ValueError('its machine is none')
  except (Damaged, ValueError, AttributeError) as error:
    raise ValueError(
      f'{os.fspath(path)} holds no rates of a machine ({error}): copy the file that doctor names'
    ) from None
  return Machine(str(name), cores, found.products, memory, found.memory, None, f'measured there, {path}', kind, True)


def _rate(here: Rates, precision: str) -> float:
  return here.products.get(precision) or here.products['float32']


def _time(seconds: float) -> str:
  """A duration in two digits or so.

  >>> _time(0.4), _time(42), _time(1500), _time(9000), _time(400_000)
  ('0.4 s', '42 s', '25 min', '2.5 h', '4.6 days')
  """
  for unit, size in (('days', 86_400), ('h', 3_600), ('min', 60)):
    if seconds >= (1.5 if unit == 'days' else 1.5 if unit == 'h' else 2) * size:
      return f'{seconds / size:.{0 if seconds / size >= 10 or unit == "min" else 1}f} {unit}'
  return f'{seconds:.{0 if seconds >= 10 else 1}f} s'
