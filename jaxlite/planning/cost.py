"""What a program costs, read off its jaxpr: FLOPs and bytes by kind and by layer, every loop by its true length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Operation(NamedTuple):
  """Stub: one kernel."""

  kind: str
  flops: float
  bytes: float
  transcendentals: float
  times: float


class Cost(NamedTuple):
  """Stub: of a program."""

  operations: tuple[Operation, ...]
  equations: Mapping[str, int]
  said: tuple[str, ...]

  @property
  def flops(self) -> float:
    """Of all operations."""
    return sum(one.flops * one.times for one in self.operations)

  @property
  def bytes(self) -> float:
    """Of all operations, read and written."""
    return sum(one.bytes * one.times for one in self.operations)


def cost(jaxpr: Any) -> Cost:
  """Returns what a program costs (stub)."""
  raise NotImplementedError
