"""How fast this machine computes: measured once, in some seconds, and kept in the user's cache.

Nothing is measured at import, and nothing at a run's start: `known_rates` only reads. What is kept belongs to one
processor, number of cores, quota, jaxlib and device; damage is measured again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxlite.host import measure
from jaxlite.host.files import own_folder, user_cache
from jaxlite.host.limits import allowed_cores, limits, usable_cores
from jaxlite.host.machine import processor_lines
from jaxlite.host.sealed import Damaged, read_sealed, write_sealed

_FORM = 1  # of what is kept: another number is not read
_BUDGET = 0.06  # seconds on each kind of work
_CHILD = 400 << 20  # bytes that a process takes which measures, beside its arrays
_KINDS = ('float32', 'bfloat16', 'int8')
_BY_KIND = ('products', 'small_products', 'convolutions')
_ALONE = ('depthwise', 'elementwise', 'memory', 'transcendental', 'dispatch')
_PROGRAM = 'from jaxlite.host import measure; measure.main()'


class Rates(NamedTuple):
  """What compiled programs reach here at their best, by the kind of work. A multiply-add is two FLOPs.

  Attributes:
    products: FLOP/s of large matrix products, by 'float32', 'bfloat16', 'int8'.
    small_products: FLOP/s of small ones ([128, 256] by [256, 256]), by the same.
    convolutions: FLOP/s of XLA's convolutions (3x3, 32 channels), by the same; a precision it has none for is missing.
    depthwise: FLOP/s of XLA's depthwise convolutions, float32.
    elementwise: bytes/s, read and written, of a pass over arrays that lie in the caches.
    memory: bytes/s, read and written, of a pass over arrays that do not.
    transcendental: exponentials a second.
    dispatch: seconds that one call of a compiled program takes beside its work.
    one_core: the same on one core; None where it was not measured.
    more: further rates by name, each with its unit in `UNITS`.
    load: how many processes wanted each core while it was measured; much above 1 they may be low.
    warnings: lines on what was left out.
  """

  products: dict[str, float]
  small_products: dict[str, float]
  convolutions: dict[str, float]
  depthwise: float
  elementwise: float
  memory: float
  transcendental: float
  dispatch: float
  one_core: Rates | None = None
  more: dict[str, float] = {}  # noqa: RUF012  (never written)
  load: float = 0.0
  warnings: tuple[str, ...] = ()


# What `Rates.more` may hold: the unit of each.
UNITS = {
  'convolution_gradients': 'FLOP/s of both gradients of the convolution, float32',
  'compiling': 'programs of four small layers and their gradients that one core compiles in a second',
  'fresh': 'bytes/s of memory touched for the first time',
  'reductions': 'bytes/s read by a sum over the last axis',
  'random': 'random 32-bit words a second',
  'pool_gradient': "elements a second of the input of XLA's gradient of a 2x2 max pool",
  'scatter': 'rows of 64 floats a second added to a table (the gradient of an embedding)',
}


PIECE = 'piece: '  # begins the name of a piece of a step in `Rates.more`, which holds how many run in a second


def _is_known(name: str) -> bool:
  return name in UNITS or name.startswith(PIECE)


def rates(say: Callable[[str], None] | None = None, anew: bool = False, also: str = '') -> Rates:
  """Returns this machine's rates: those that are kept for it, or measured now, which takes some seconds.

  What was measured while others kept the machine busy is measured again once it is quieter.

  Args:
    say: takes a line before measuring, and warnings.
    anew: whether to measure although there are kept ones.
    also: the name of a module whose `programs(most_bytes)` are timed too, as `measure.programs` are; what is kept
      without any of them is measured again.

  Raises:
    RuntimeError: no program could be timed here: too little memory is free, or JAX itself does not run.
  """
  say = say or (lambda _: None)
  found = None if anew else known_rates()
  lacks = found is not None and also not in ('', _kept().get('also'))
  if found is not None and not lacks and not (found.load > 1.5 and _load() < 0.5 * found.load):
    return found
  say('measuring how fast this machine computes, which takes some seconds and is kept')
  found = _measured(also)
  for line in found.warnings:
    say(f'warning: {line}')
  try:
    own_folder(rates_file().parent)
    write_sealed(rates_file(), {**_plain(found), 'form': _FORM, 'machine': _about(), 'also': also})
  except OSError as error:
    say(f'warning: the rates are not kept, {rates_file().parent} cannot be written ({type(error).__name__})')
  return found


def known_rates() -> Rates | None:
  """Returns the rates that are kept for this machine; None where they were not measured. Nothing is measured."""
  found = _kept()
  try:
    return rates_of(found) if found.get('form') == _FORM else None
  except ValueError:
    return None


def _kept() -> dict[str, Any]:
  """What is kept of this machine; empty where nothing is, or where it is damaged."""
  try:
    return read_sealed(rates_file())
  except Damaged:
    return {}


def rates_of(content: Mapping[str, Any]) -> Rates:
  """Returns the rates in the JSON values that were kept of some.

  Raises:
    ValueError: they are not those of rates: a number is missing, not finite or not above 0.
  """
  try:
    kinds = [{str(name): _rate(value) for name, value in content[field].items()} for field in _BY_KIND]
    more = {str(name): _rate(value) for name, value in content['more'].items() if _is_known(name)}
    one_core = content['one_core'] and rates_of(content['one_core'])
    warnings = tuple(str(line) for line in content['warnings'])
    alone = [_rate(content[name]) for name in _ALONE]
    return Rates(*kinds, *alone, one_core or None, more, float(content['load']), warnings)
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'these are no rates ({type(error).__name__}: {error})') from None


def _rate(value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
    raise ValueError(f'a rate is a number above 0; got {value!r}')
  return float(value)


def _plain(found: Rates) -> dict[str, Any]:
  return {**found._asdict(), 'one_core': found.one_core and _plain(found.one_core)}


def rates_file() -> Path:
  """Returns where the rates of this machine are kept, under a name of all that they depend on.

  With a copy of it another machine's forecast speaks of this one (`planning.elsewhere.machine_in`).
  """
  import jax

  device = jax.devices()[0]
  about = '|'.join(processor_lines('model name', 'flags', 'Features', 'cpu cores', 'CPU part')) or platform.processor()
  parts = (platform.machine(), about, device.platform, device.device_kind, os.environ.get('XLA_FLAGS', ''))
  parts += (str(allowed_cores()), f'{usable_cores().usable:.2f}')
  name = hashlib.sha256('|'.join(parts).encode()).hexdigest()[:12]
  return user_cache() / 'rates' / f'jaxlib-{jax.lib.__version__}-{name}.json'


def _about() -> dict[str, Any]:
  """What this machine is, for a forecast that is made on another one."""
  import jax

  device = jax.devices()[0]
  names = [line.partition(':')[2].strip() for line in processor_lines('model name')] or [platform.processor()]
  name = names[0] if device.platform == 'cpu' else device.device_kind
  memory = limits().resident_memory if device.platform == 'cpu' else 0
  kind = device.platform if device.platform in ('cpu', 'tpu') else 'gpu'
  return {'name': name or platform.machine(), 'cores': allowed_cores(), 'memory': memory, 'kind': kind}


def _measured(also: str = '') -> Rates:
  import jax

  if jax.devices()[0].platform != 'cpu':  # another process would not get the device that this one holds
    return _filled(measure.measured(budget=_BUDGET, most_bytes=256 << 20), [])
  own, child = _rooms()
  most = min(64 << 20, max(4 << 20, min(own, child) // 16))
  asked, cores = {'budget': _BUDGET, 'most_bytes': most, 'also': also}, usable_cores()
  found, why = None, f'{child >> 20} MiB are free'
  if child >= _CHILD + 4 * most:
    found, why = (
      _answer({**asked, 'alone': True, 'quota': cores.usable < cores.allowed}),
      'a process of its own could not measure them',
    )
  if found is not None:
    return _filled(found, [])
  if own < _CHILD // 2:  # a program that is refused memory may take its process with it
    raise RuntimeError(f'rates could not be measured: {own >> 20} MiB are free, and it takes {_CHILD // 2 >> 20}')
  return _filled(measure.measured(**asked), [f'{why}: rates are measured in this process, and none on one core'])


def _rooms() -> tuple[int, int]:
  """Bytes that this process may still take, and those that another one may: `ulimit` is for each of them anew."""
  found = limits()
  if not found.memory:  # not told: as if there were enough
    return 1 << 40, 1 << 40
  ulimits = [limit for limit in (found.data_segment, found.address_space) if limit is not None]
  return found.free, min([found.resident_free, *ulimits])


def _answer(asked: dict[str, Any]) -> tuple[dict[str, float], dict[str, float] | None] | None:
  """What a process of its own measures, as `measure.measured` says; None where it does not come to an end."""
  root = str(Path(__file__).resolve().parents[2])
  path = os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH', '')]))
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': path}
  try:
    done = subprocess.run(
      [sys.executable, '-P', '-c', _PROGRAM], input=json.dumps(asked), capture_output=True, text=True, timeout=120,
      env=environment, check=False,
    )  # fmt: skip
  except (OSError, subprocess.SubprocessError):
    return None
  lines = [line for line in done.stdout.splitlines() if line.startswith(measure.ANSWER)]
  try:
    everything, single = json.loads(lines[-1].removeprefix(measure.ANSWER))
  except (IndexError, ValueError, TypeError):
    return None
  return everything, single


def _filled(measured: tuple[dict[str, float], dict[str, float] | None], warnings: list[str]) -> Rates:
  load = _load()
  found, single = measured
  missing = [name for name in ('products float32', *_ALONE) if name not in found]
  if missing:
    raise RuntimeError(f'rates could not be measured: {", ".join(missing)} did not run on this device')
  if load > 1.5:
    lacking = f'{load:.1f} processes wanted each core while rates were measured: they may be low'
    warnings = [*warnings, lacking]
  kinds = [{kind: found[f'{name} {kind}'] for kind in _KINDS if f'{name} {kind}' in found} for name in _BY_KIND]
  more = {name: value for name, value in found.items() if _is_known(name)}
  one_core = None
  if single and all(name in single for name in ('products float32', *_ALONE)):
    one_core = _filled((single, None), [])._replace(warnings=(), load=load)
  return Rates(*kinds, *(found[name] for name in _ALONE), one_core, more, load, tuple(warnings))


def _load() -> float:
  """Processes that want the processor, for each core; 0 where it is not told."""
  try:
    return os.getloadavg()[0] / usable_cores().usable
  except (AttributeError, OSError):  # Windows
    return 0.0
