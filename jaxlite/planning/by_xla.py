"""What XLA's own forms for CPU hold beside their operands: arrays laid out anew for convolutions, indices of pools."""

from __future__ import annotations

import math
from typing import Any

from jaxlite.planning.flow import Flow
from jaxlite.planning.writing import Written, is_filled, kind

_INDEX = 4  # bytes


def by_xla(flow: Flow, steps: list[Written], outside: set[int]) -> list[int]:
  """Returns bytes that are held at each step for forms of XLA for CPU.

  Args:
    flow: a program.
    steps: what it writes.
    outside: ids of its arguments and results.
  """
  readers: dict[int, int] = {}
  for op in flow.ops:
    for value in set(op.reads):
      readers[value] = readers.get(value, 0) + 1
  makers = {value: op for op in flow.ops for value in op.writes}

  def is_laid_anew(value: int) -> bool:
    """Whether it is there twice; else only in the order in which the convolution reads it."""
    made = makers.get(value)
    return value in outside or made is None or readers[value] > 1 or kind(made) not in ('cheap', 'dear')

  held = [0] * len(steps)
  for at, step in enumerate(steps):
    op = step.op
    if kind(op) == 'apart':  # constants, too, are arrays to a product
      held[at] += sum(flow.values[value].bytes for value in set(op.reads) if is_filled(makers.get(value)))
    if op.name == 'conv_general_dilated':
      held[at] += sum(
        flow.values[value].bytes
        for value, canonical in zip((*op.reads, op.writes[0]), _canonical(op.eqn), strict=True)
        if value >= 0 and not canonical and (value == op.writes[0] or is_laid_anew(value))
      )
      if flow.values[op.writes[0]].dtype.startswith('complex'):  # three real ones, of both parts of what they read
        held[at] += 3 * flow.values[op.writes[0]].bytes // 2
        held[at] += sum(flow.values[value].bytes for value in op.reads if value >= 0) // 2
    elif op.name == 'select_and_scatter_add':  # the place of each entry, an array for each axis, filled in at the start
      shape = op.eqn.outvars[0].aval.shape
      size = _INDEX * len(shape) * math.prod(shape)
      held[: at + 1] = [one + size for one in held[: at + 1]]
      held[at] += _INDEX * (len(shape) + 1) * math.prod(op.eqn.invars[0].aval.shape)  # where each window found its own
  return held


def _canonical(eqn: Any) -> tuple[bool, bool, bool]:
  """Whether input, kernel and result of a convolution lie as XLA for CPU computes it: [B, ..., C] and [..., C, O]."""
  lhs, rhs, out = (getattr(eqn.params['dimension_numbers'], name) for name in ('lhs_spec', 'rhs_spec', 'out_spec'))
  last = len(lhs) - 1
  places = tuple(range(1, last))
  return (
    tuple(lhs) == (0, last, *places),
    tuple(rhs) == (last, last - 1, *range(last - 1)),
    tuple(out) == (0, last, *places),
  )
