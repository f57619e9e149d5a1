"""What this machine is, in plain words: what a run may use, what makes it slow, and what is wrong with its JAX."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from jaxlite.cpu.kernels import compiler, direct, onednn
from jaxlite.host import limits, machine, rates
from jaxlite.host.accelerators import accelerators, idle
from jaxlite.planning import probes, reference

_PAYS = 1.15  # times the rate of float32, from which on a precision is said to pay
_SET = ('XLA_FLAGS', 'JAX_PLATFORMS', 'JAX_ENABLE_X64', 'JAX_DISABLE_JIT', 'JAX_DISABLE_MOST_OPTIMIZATIONS')
_SMALL_DISK = 1 << 30
_TO_COMPILE = 256 << 20  # bytes that are to be free before small programs are compiled


def doctor(say: Callable[[str], None] = print, workdir: str | os.PathLike[str] = '.', anew: bool = False) -> None:
  """Prints what this machine offers a run, what is missing for speed, and known faults of the installed JAX.

  It takes some seconds the first time, when rates are measured.

  Args:
    say: takes each line.
    workdir: the folder whose disk a run would write to.
    anew: whether rates are measured although there are kept ones.
  """
  about = machine.machine()
  say(f'machine: {about["processor"]}, {about["system"]}')
  for line in cores_lines():
    say(line)
  for line in memory_lines(limits.limits(), machine.resident()):
    say(line)
  for line in _device_lines():
    say(line)
  say(disk_line(workdir))
  try:
    found = reference.rates(say, anew)
  except RuntimeError as error:
    say(f'warning: {error}')
  else:
    for line in rate_lines(found):
      say(line)
    say(f'  kept in {rates.rates_file()}; a copy lets another machine forecast for this one')
  missing = list(lacking())
  say('missing for speed: ' + ('nothing that is known' if not missing else ''))
  for line in missing:
    say(f'  {line}')
  say('versions: ' + ', '.join(f'{name} {version}' for name, version in machine.versions().items()))
  for name in _SET:
    if os.environ.get(name):
      say(f'  {name}={os.environ[name]} is set')
  for line in _fault_lines(limits.limits()):
    say(line)


def _fault_lines(found: limits.Limits) -> Iterator[str]:
  """What the probes see, where there is memory to compile them: a compiler that is refused some takes the process."""
  if found.memory and found.free < _TO_COMPILE:
    yield f'known faults of jaxlib: not tried, since only {_size(found.free)} are free'
    return
  seen = probes.findings()
  faults = [one for one in seen if one.symptom]
  yield f'known faults of jaxlib: {len(faults) or "none"} of {len(seen)} show here'
  for fault in faults:
    yield f'  {fault.line()}'


def cores_lines() -> list[str]:
  """Returns how many cores a run really gets, and what takes the others."""
  found = limits.usable_cores()
  lines = [f'cores: {found.usable:g} of {found.present} ({found.reason})']
  if line := limits.throttled(found):
    lines.append(f'  warning: {line}')
  return lines


def memory_lines(found: limits.Limits, resident: int) -> list[str]:
  """Returns what a run may take of memory, which limit binds, and what is odd about it.

  Args:
    found: of this process.
    resident: bytes that it has in use.
  """
  if not found.memory:
    return ['memory: not told by this system', *(f'  warning: {line}' for line in found.warnings)]
  lines = [f'memory: {_size(found.memory)} in all ({found.reason}), {_size(found.free)} free now ({found.binds})']
  if found.reason != 'what the machine has' and found.physical:
    lines.append(f'  the machine has {_size(found.physical)}')
  others = found.resident_memory - found.resident_free - resident
  if found.resident_memory and others > found.resident_memory / 3:
    lines.append(f'  other processes hold about {_size(others)}: what they take more, a run cannot have')
  for limit, option in ((found.data_segment, '-d'), (found.address_space, '-v')):
    if limit is not None:
      lines.append(f'  `ulimit {option}` is {_size(limit)}')
  if found.address_space is not None and found.address_space < 1600 << 20:
    lines.append(
      '  warning: JAX maps about 1.5 GiB of address space at its start, so it may not start under `ulimit -v`'
    )
  swap = f'{_size(found.swap)} are free: a run that comes to need them is many times slower' if found.swap else 'none'
  return [*lines, f'  swap: {swap}', *(f'  warning: {line}' for line in found.warnings)]


def rate_lines(found: rates.Rates) -> list[str]:
  """Returns the measured rates, in the precisions that this processor has, and whether each pays.

  Args:
    found: of this machine.
  """
  lines = ['rates: ' + _each('products', found.products, found.products)]
  lines.append('  ' + _each('small products', found.small_products, found.small_products))
  lines.append('  ' + _each('convolutions by XLA', found.convolutions, found.convolutions))
  lines.append(
    f'  memory {found.memory / 1e9:.1f} GB/s, caches {found.elementwise / 1e9:.1f} GB/s, '
    f'{found.transcendental / 1e6:.0f} million exponentials a second, {1e6 * found.dispatch:.0f} us to start a program'
  )
  if found.one_core is not None and found.one_core.products != found.products:
    one = found.one_core
    lines.append(
      f'  one core: products {_flops(one.products["float32"])}, memory {one.memory / 1e9:.1f} GB/s; '
      f'all of them together are {found.products["float32"] / one.products["float32"]:.1f} times as fast'
    )
  return lines


def _each(name: str, by_kind: dict[str, float], among: dict[str, float]) -> str:
  base = among.get('float32')
  said = []
  for kind, rate in by_kind.items():
    times = '' if kind == 'float32' or not base else f', {rate / base:.1f} times float32'
    pays = '' if not times else ': it pays' if rate > _PAYS * base else ': it does not pay in JAX here'
    said.append(f'{kind} {_flops(rate)}{times}{pays}')
  return f'{name}: ' + '; '.join(said)


def lacking() -> Iterator[str]:
  """Gives a line for each thing whose lack makes runs slower here."""
  if compiler.compiler() is None:
    yield 'a C compiler: kernels for convolutions and integers are compiled where they run; install gcc or clang'
  on_cpu = not any(one.used_by_jax for one in accelerators())
  if on_cpu:
    if why := onednn.missing():
      yield f'oneDNN: {why}'
    if why := direct.missing():
      yield f'our own kernels: {why}'
  try:
    import filelock  # noqa: F401
  except ImportError:
    yield 'filelock: without it every start compiles anew; pip install filelock'
  if line := idle():
    yield line


def disk_line(workdir: str | os.PathLike[str]) -> str:
  """Returns how much room the disk of a folder has.

  Args:
    workdir: it need not be there yet.
  """
  free = limits.disk_free(workdir)
  if free is None:
    return f'disk: how much is free for {os.fspath(workdir)} is not told'
  warning = '; warning: a run with checkpoints may fill it' if free < _SMALL_DISK else ''
  return f'disk: {_size(free)} free for {os.fspath(workdir)}{warning}'


def _device_lines() -> Iterator[str]:
  found = accelerators()
  if not found:
    yield 'accelerators: none'
  for one in found:
    memory = 'memory not told' if one.memory is None else f'{_size(one.memory)} of memory'
    free = '' if one.free is None else f', {_size(one.free)} of it free'
    yield f'accelerator: {one.kind} ({one.platform}), {memory}{free}' + (
      '' if one.used_by_jax else '; JAX does not see it'
    )


def _flops(rate: float) -> str:
  return f'{rate / 1e12:.1f} TFLOP/s' if rate >= 2e12 else f'{rate / 1e9:.{0 if rate >= 1e10 else 1}f} GFLOP/s'


def _size(size: int) -> str:
  return f'{size / 2**30:.1f} GiB' if size >= 2**30 else f'{size / 2**20:.0f} MiB'
