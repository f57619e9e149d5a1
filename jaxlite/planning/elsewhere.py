"""The same run on another machine: its time and price, extrapolated by what bounds each machine."""

from __future__ import annotations

from typing import NamedTuple


class Machine(NamedTuple):
  """A machine as its vendor describes it.

  Attributes:
    name: for tables.
    cores: CPU cores, or 0 where an accelerator does the work.
    flops: FLOP/s at the peak by precision.
    memory: bytes that a run may use.
    bandwidth: bytes/s of that memory.
    price: an hour, in `currency`; 0 is free, None is not known.
    source: where these figures are published.
  """

  name: str
  cores: int
  flops: dict[str, float]
  memory: int
  bandwidth: float
  price: float | None = None
  source: str = ''
