"""The accelerators that JAX sees, with their memory, and those that stand idle."""

from __future__ import annotations

from typing import NamedTuple


class Accelerator(NamedTuple):
  """One device.

  Attributes:
    platform: 'gpu', 'tpu', ...
    kind: its model, as its driver names it.
    memory: bytes that programs may use of it; None where it is not told.
    free: bytes of these that nobody uses; None where it is not told.
    used_by_jax: whether JAX sees it.
  """

  platform: str
  kind: str
  memory: int | None
  free: int | None
  used_by_jax: bool = True


def accelerators() -> tuple[Accelerator, ...]:
  """Returns the accelerators of this machine; () where there is none."""
  return ()
