"""The accelerators that JAX sees, with their memory, and those that stand idle."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# What a driver leaves in /dev, what that means, and how JAX comes to see it.
_SIGNS = (
  ('nvidia[0-9]*', 'an NVIDIA GPU', "pip install -U 'jax[cuda12]'"),
  ('kfd', 'an AMD GPU', "pip install -U 'jax[rocm]'"),
  ('accel[0-9]*', 'a TPU', "pip install -U 'jax[tpu]'"),
)
_SMI = ('nvidia-smi', '--query-gpu=name,memory.total,memory.free', '--format=csv,noheader,nounits')


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
  """Returns the accelerators of this machine, those of JAX first; () where there is none.

  JAX claims three quarters of a GPU's memory when it starts, and that is what `memory` says then.
  """
  import jax

  driver = list(_rows(_said(_SMI)))
  found = []
  for device in jax.local_devices():
    if device.platform == 'cpu':
      continue
    memory, free = _memory(device)
    if memory is None and device.platform == 'gpu' and len(driver) == 1:  # with several, which one it is is not told
      memory, free = driver[0].memory, driver[0].free
    found.append(Accelerator(device.platform, device.device_kind, memory, free))
  if not any(one.platform == 'gpu' for one in found):
    found += driver
  return tuple(found)


def idle(dev: Path = Path('/dev')) -> str | None:
  """Returns in one line which accelerator JAX does not see, and the way out; None where it sees one, or there is none.

  Args:
    dev: where drivers show their devices.
  """
  import jax

  if jax.devices()[0].platform != 'cpu':
    return None
  for sign, what, fix in _SIGNS:
    with contextlib.suppress(OSError):
      if any(dev.glob(sign)):
        return f'{what} is present but JAX does not see it, so the CPU is used: {fix}'
  return None


def _memory(device: Any) -> tuple[int | None, int | None]:
  with contextlib.suppress(RuntimeError, AttributeError):
    stats = device.memory_stats() or {}
    total, used = stats.get('bytes_limit'), stats.get('bytes_in_use', 0)
    if total:
      return int(total), max(0, int(total) - int(used))
  return None, None


def _rows(table: str) -> Iterator[Accelerator]:
  """The GPUs in what NVIDIA's driver prints; a line of another form is passed over ('[N/A]' on some machines).

  >>> [gpu.memory for gpu in _rows('Tesla T4, 15360, 15000\\nbroken')]
  [16106127360]
  """
  for line in table.splitlines():
    parts = [part.strip() for part in line.rsplit(',', 2)]
    if len(parts) == 3 and parts[0]:
      memory, free = (int(part) << 20 if part.isascii() and part.isdigit() else None for part in parts[1:])
      yield Accelerator('gpu', parts[0], memory, free, used_by_jax=False)


def _said(command: tuple[str, ...]) -> str:
  with contextlib.suppress(OSError, subprocess.SubprocessError):
    return subprocess.run(command, capture_output=True, text=True, errors='replace', timeout=10, check=True).stdout
  return ''
