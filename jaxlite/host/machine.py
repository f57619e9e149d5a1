"""Facts of the machine and the process, each read in one place: processor, cores, memory, devices, versions."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from jaxlite.host.accelerators import idle
from jaxlite.host.limits import allowed_cores, limits, throttled, usable_cores
from jaxlite.host.tables import kibibytes, number, text


def print_device(say: Callable[[str], None] = print) -> None:
  """Prints what the run computes on, with a warning when an accelerator stands idle."""
  import jax

  devices = jax.devices()
  kinds = ', '.join(sorted({device.device_kind for device in devices}))
  say(f'device: {len(devices)} x {devices[0].platform} ({kinds}), {cores()} CPU cores, jax {jax.__version__}')
  for line in (idle(), _beside(), throttled(usable_cores()), _eager()):
    if line:
      say(f'warning: {line}')


def _beside() -> str | None:
  """One line where this process has several devices: a run computes on one."""
  import jax

  others = jax.local_device_count() - 1
  if others < 1:
    return None
  return (
    f'a run computes on one device, and {others} {"stands" if others == 1 else "stand"} idle: jl.train_step, in a loop '
    'of your own, computes on all over whose mesh jax.device_put spreads its batches'
  )


def _eager() -> str | None:
  """One line where JAX compiles nothing, and the way out."""
  import jax

  if not jax.config.values['jax_disable_jit']:
    return None
  return (
    'JAX_DISABLE_JIT is set, so nothing is compiled: every step takes hundreds of times as long, and no forecast '
    'counts that; unset it to train'
  )


def versions() -> dict[str, str]:
  """Returns the versions that the numbers of a run may depend on."""
  found = {'python': platform.python_version()}
  for name in (
    'jaxlite',
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'equinox',
    'dm-haiku',
    'orbax-checkpoint',
    'numpy',
    'scikit-learn',
  ):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def machine() -> dict[str, str]:
  """Returns what this process runs on: system, processor, cores, memory, and JAX's devices where JAX is loaded."""
  found = {'system': f'{platform.system()} {platform.release()} {platform.machine()}', 'processor': _processor()}
  found['cores'] = str(cores())
  with contextlib.suppress(AttributeError, ValueError, OSError):  # no such call on this system
    found['memory'] = f'{os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30:.1f} GiB'
  if 'jax' in sys.modules:
    devices = sys.modules['jax'].devices()
    found['devices'] = f'{len(devices)} x {devices[0].platform} ({devices[0].device_kind})'
  return found


def tuned() -> dict[str, str]:
  """Returns what is set for XLA and JAX from outside and may change the last bits of what a program computes."""
  import jax

  flags = os.environ.get('XLA_FLAGS', '').strip() or 'not set'
  return {'XLA_FLAGS': flags, 'JAX_DISABLE_JIT': str(jax.config.values['jax_disable_jit'])}


def cores() -> int:
  """Returns how many CPU cores this process may run on: fewer than the machine has under `taskset` or in a CPU set."""
  return allowed_cores()


def all_cores() -> int:
  """Returns how many CPU cores the machine has, whether or not this process may use them."""
  return os.cpu_count() or 1


@functools.cache
def _cpuinfo() -> tuple[str, ...] | None:
  """The kernel's own table of the processors; None where there is none."""
  try:
    return tuple(Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace').splitlines())
  except OSError:
    return None


def processor_lines(*starts: str) -> list[str]:
  """Returns the lines of the kernel's table of processors that begin with one of these words; [] where it has none."""
  return [line for line in _cpuinfo() or () if line.startswith(starts)]


def _processor() -> str:
  named = [line.partition(':')[2].strip() for line in processor_lines('model name')]
  return named[0] if named else platform.processor() or 'unknown'


def abilities() -> str:
  """Returns what compiled code depends on of the processor, as the system names it."""
  if _cpuinfo() is None:
    return platform.processor()
  return next(iter(processor_lines('flags', 'Features')), '')


def resident() -> int:
  """Returns the bytes of memory that this process has in use; where that is not told, the most that it ever had."""
  pages = number(' '.join((text(Path('/proc/self/statm')) or '').split()[1:]))
  if pages is not None:
    return pages * os.sysconf('SC_PAGE_SIZE')
  try:
    import resource
  except ImportError:  # Windows
    return 0
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024


def available() -> int:
  """Returns by how many bytes this process may grow: the least that machine, control groups and limits allow."""
  return limits().free


def mapped() -> int:
  """Returns the bytes of address space that this process has, which `ulimit -v` limits; 0 where it is not told."""
  return status('VmSize')


def status(name: str) -> int:
  """Returns one line of the kernel's table of this process, in bytes; 0 where it is not there."""
  return kibibytes(Path('/proc/self/status'), name)


def forget_peak() -> bool:
  """Sets back what the kernel remembers as the most that this process had resident, so that it tells of what follows.

  Returns:
    Whether it did: only Linux can, and not in every sandbox.
  """
  try:
    Path('/proc/self/clear_refs').write_text('5')
  except OSError:
    return False
  return status('VmHWM') <= 1.02 * resident()


def meminfo(name: str) -> int:
  """Returns one line of the kernel's table of memory, in bytes; 0 where it is not there."""
  return kibibytes(Path('/proc/meminfo'), name)
