"""The cost and memory of one call of any function that JAX compiles: for training loops that are not ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxlite.host.machine import cores
from jaxlite.host.rates import Rates
from jaxlite.planning import speed
from jaxlite.planning.buffers import held
from jaxlite.planning.cost import cost
from jaxlite.planning.duration import EIGHTY, Duration
from jaxlite.planning.plan import between, mib

_SHOWN = 8  # layers or kinds of work, the dearest


class Call(NamedTuple):
  """What one call of a function takes. The process around it, the data and what else is alive are not in it.

  Attributes:
    flops: floating-point operations, a multiply-add counted as two.
    bytes: read and written.
    arguments, outputs, temporaries: bytes; of the outputs those that do not take a donated argument's place.
    work: FLOPs and bytes by kind of work, the dearest first.
    time: seconds, with the interval that holds 80 of 100; None where this machine was not measured.
    basis: 'traced', or 'compiled' where XLA has told the temporaries.
    said: what was assumed or could not be counted.
  """

  flops: float
  bytes: float
  arguments: int
  outputs: int
  temporaries: int
  work: dict[str, tuple[float, float]]
  time: Duration | None
  basis: str
  said: tuple[str, ...]

  @property
  def peak(self) -> int:
    """Bytes of arguments, outputs and temporaries together."""
    return self.arguments + self.outputs + self.temporaries

  def __str__(self) -> str:
    known = 'as XLA compiled it' if self.basis == 'compiled' else 'from its trace'
    lines = [
      f'one call: {_count(self.flops)}FLOP, {mib(self.bytes)} read and written; it holds {mib(self.peak)}, {known}:',
      f'  arguments {mib(self.arguments)}, results {mib(self.outputs)}, temporaries {mib(self.temporaries)}',
    ]
    if self.time is not None:
      lines.append(f'  about {between(self.time)} a call on this machine')
    for name, (flops, size) in list(self.work.items())[:_SHOWN]:
      lines.append(f'  {name}: {_count(flops)}FLOP, {mib(size)}')
    return '\n'.join([*lines, *(f'  not known: {line}' for line in self.said)])


def call(
  function: Callable[..., Any],
  args: Sequence[Any],
  rates: Rates | None = None,
  *,
  donated: Sequence[int] = (),
  compiled: bool = False,
) -> Call:
  """Returns what one call of a function takes; nothing is run.

  Args:
    function: of arrays, jitted or not.
    args: its arguments, or their shapes (`jax.ShapeDtypeStruct`).
    rates: of this machine; None tells no time.
    donated: positions of the arguments whose memory the results may take, as `jax.jit` takes them.
    compiled: asks XLA for the temporaries; it compiles the function for that.

  >>> found = call(lambda w, x: jax.nn.relu(x @ w), (jax.numpy.ones((8, 4)), jax.numpy.ones((2, 8))))
  >>> found.flops >= 2 * 2 * 8 * 4, found.arguments
  (True, 192)
  """
  leaves = [jax.tree.leaves(one) for one in args]
  starts = [sum(map(len, leaves[:place])) for place in range(len(leaves))]
  given = [index for place in donated for index in range(starts[place], starts[place] + len(leaves[place]))]
  on_cpu = jax.default_backend() == 'cpu'
  jaxpr = jax.make_jaxpr(function)(*args)
  work = cost(jaxpr, recomputes=not on_cpu)
  takes = held(jaxpr, given, jax.default_backend())
  arguments, outputs, temporaries = takes.arguments, takes.outputs - takes.aliased, takes.temporaries
  if compiled:
    program = jax.jit(function, donate_argnums=tuple(donated)).lower(*args).compile()
    told = program.memory_analysis()
    arguments, temporaries = told.argument_size_in_bytes, told.temp_size_in_bytes
    outputs = told.output_size_in_bytes - told.alias_size_in_bytes
  time = None
  if rates is not None:
    seconds = speed.spent(work.usual, rates, cores(), kernels=False).wall + rates.dispatch
    wide = math.exp(EIGHTY * speed.spread(work.usual, rates, cores(), kernels=False))
    time = Duration(seconds, seconds / wide, seconds * wide)
  basis = 'compiled' if compiled else 'traced'
  return Call(work.flops, work.bytes, arguments, outputs, temporaries, work.by('kind'), time, basis, tuple(work.said))


def _count(number: float) -> str:
  """A count with its prefix.

  >>> _count(1.5e9), _count(12), _count(0)
  ('1.5 G', '12 ', '0 ')
  """
  for size, prefix in ((1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if number >= size:
      return f'{number / size:.1f} {prefix}'
  return f'{number:.0f} '
