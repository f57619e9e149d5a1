"""Seconds on the clock that a program takes on this machine beside others, and what they may become.

What a program computes, and how fast, is told by `speed`. Here is what the machine adds: others take some of its cores,
they may go, and more may come; a branch goes the way that data pick; and what was measured on CPUs alone is not
measured elsewhere. Each makes the interval wider, to the side on which it is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax

from jaxlite.host import machine
from jaxlite.host.rates import Rates
from jaxlite.planning import speed
from jaxlite.planning.branches import BY_DATA
from jaxlite.planning.cost import Cost

EIGHTY = 1.2816  # standard deviations of a normal: 80 of 100 lie within
_MORE = 2.0  # others come, one beside this process on each core that it has: then it has half
_NOWHERE_FITTED = 1.0  # by which the logarithm of seconds is unsure where factors were fitted on no machine of a kind
ON_A_DEVICE = (
  'factors of a CPU stand in for those of this device, which nobody has measured: seconds of steps and of compiling '
  'are a guess'
)
_KNOWN = ('float32', 'float16', 'bfloat16', 'int8', 'float64', 'complex64', 'complex128', '')


class Elapsed(NamedTuple):
  """Seconds of one run of a program.

  Attributes:
    wall: on the clock, as busy as the machine is now.
    processor: of all cores together; of a device, its own.
    spread: the standard deviation of the logarithm of `wall` on a machine that stays as it is.
    fewer, more: logarithms, by which it is less where others go and data pick cheap sides, and more where as many come
      again and data pick dear ones.
    at_most: times as long as `wall`, where every branch takes its dearest side.
    said: what was assumed, a line each.
  """

  wall: float
  processor: float
  spread: float
  fewer: float
  more: float
  at_most: float
  said: tuple[str, ...]


def elapsed(work: Cost, rates: Rates, free: float, kernels: bool = True) -> Elapsed:
  """Returns how long a program takes.

  Args:
    work: what it computes.
    rates: of this machine.
    free: cores that others leave to this process.
    kernels: whether convolutions and large products that are not calls of C yet are made so, where it is faster.
  """
  on_cpu = jax.default_backend() == 'cpu'
  cores = machine.cores() if on_cpu else 1
  free = min(free, cores) if on_cpu else 1.0  # of this machine: a device's program waits for none of them
  usual, dear = (speed.spent(one, rates, cores, kernels=kernels) for one in (work.usual, work.counted))
  wall = lambda left: max(usual.wall, usual.processor / left)  # noqa: E731
  told = max(wall(free), 1e-12)
  at_most = max(1.0, max(dear.wall, dear.processor / free) / told)
  spread = speed.spread(work.usual, rates, cores, kernels)
  said = _said(work)
  if not on_cpu:
    spread, said = math.hypot(spread, _NOWHERE_FITTED), (*said, ON_A_DEVICE)
  fewer = math.log(told / max(wall(cores), 1e-12))
  more = math.log(max(wall(free / _MORE), 1e-12) / told) if on_cpu else 0.0
  if BY_DATA in work.said:
    least = speed.spent(work.least, rates, cores, kernels=kernels)
    least_wall = max(least.wall, least.processor / free, 1e-12)
    fewer, more = math.hypot(fewer, max(0.0, math.log(told / least_wall))), math.hypot(more, math.log(at_most))
  return Elapsed(told, usual.processor, spread, max(0.0, fewer), max(0.0, more), at_most, said)


def _said(work: Cost) -> tuple[str, ...]:
  kinds = {one.dtype for one in work.usual if one.kind in ('products', 'small products', 'convolutions')}
  return tuple(
    f'products of {kind} are told at the rate of float32, and may take a hundred times as long'
    for kind in sorted(kinds.difference(_KNOWN))
  )
