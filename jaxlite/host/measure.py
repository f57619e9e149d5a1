"""What `rates` times: small programs, each one kind of work, at their best of many short repeats.

Others use the machine as well, and it is never faster than when they do not: so a repeat is short, one of many falls
between theirs, and the quickest counts. On one core the process's own clock counts, which stands still while others
compute; all threads are moved there, so that nothing is compiled again. All of it runs in a process of its own
(`main`): the caller's memory and settings have no part in it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_AT_MOST = 4  # times as long, where others use the machine, is spent on a kind of work
ANSWER = 'rates: '  # begins the line that carries the answer


class Timed(NamedTuple):
  """What is timed.

  Attributes:
    build: makes the function to compile and its arguments.
    work: how much of it one call does: FLOPs, bytes, elements.
    again: whether the first argument is given away, and what comes back is the next one.
  """

  build: Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]
  work: float
  again: bool = False


def measured(
  names: list[str] | None = None,
  *,
  budget: float,
  most_bytes: int,
  alone: bool = False,
  quota: bool = False,
  also: str = '',
) -> tuple[dict[str, float], dict[str, float] | None]:
  """Returns rates by name: work a second, 'dispatch' in seconds a call. What this device cannot do is missing.

  Args:
    names: of the programs to time; None is all.
    budget: seconds on each, and at least three repeats whatever they take.
    most_bytes: of the largest array.
    alone: whether to measure on one core too, to which all threads of this process go meanwhile: for a process that
      does nothing else. Then others' use of the machine is left out of account too.
    quota: whether this process gets less than its cores: threads wait then, as they will in a run.
    also: the name of a module whose `programs(most_bytes)` are timed too.

  Returns:
    The rates, and those on one core; None where they were not asked for or the system cannot do it.
  """
  everything: dict[str, float] = {}
  single: dict[str, float] = {}
  cores = _cores() if alone else set()
  more = importlib.import_module(also).programs(most_bytes) if also else {}
  for name, timed in (programs(most_bytes) | more).items():
    if names is not None and name not in names:
      continue
    try:
      wall, own = quickest(timed, budget, cores, waits=quota or name == 'dispatch')
    except (RuntimeError, TypeError, ValueError):  # no integers on this device, say; no memory
      continue
    work = 1.0 if name == 'dispatch' else timed.work
    if cores:
      single[name] = work / max(own, 1e-9)
      if name != 'dispatch' and not quota:
        wall = own if len(cores) == 1 else min(wall, own)  # all cores together are not slower than one
    everything[name] = work / max(wall, 1e-9)
  if names is None or 'compiling' in names:
    with contextlib.suppress(RuntimeError):
      everything['compiling'] = single['compiling'] = 1 / max(_compiling(), 1e-3)
  return _derived(everything, most_bytes), _derived(single, most_bytes) if cores else None


def _compiling() -> float:
  """Seconds of the processor, of all cores, that a small program takes to compile: the least of two, each its own."""
  import jax
  import jax.numpy as jnp

  def loss(weights: Any, x: Any, turn: float) -> Any:
    for w in weights:
      x = x - x.mean(-1, keepdims=True)
      x = jax.nn.gelu(x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + turn)) @ w
    return (jax.nn.logsumexp(x, -1) - x[:, 0]).mean()

  weights, least = [jnp.ones((24, 24))] * 4, math.inf
  for turn in (1e-5, 1e-6):
    program = jax.jit(jax.value_and_grad(lambda w, x, turn=turn: loss(w, x, turn))).lower(weights, jnp.ones((8, 24)))
    stop = by_the_process()
    program.compile()
    least = min(least, stop())
  return least


def _cores() -> set[int]:
  """The cores that this process may run on; none where it cannot be moved."""
  if not hasattr(os, 'sched_getaffinity') or not os.path.isdir('/proc/self/task'):
    return set()
  return set(os.sched_getaffinity(0))


@contextlib.contextmanager
def _moved(cores: set[int]) -> Iterator[None]:
  """Keeps all threads of this process on one core in the block."""
  _move({max(cores)})  # others' interrupts are often served by the first
  try:
    yield
  finally:
    _move(cores)


def _move(cores: set[int]) -> None:
  for thread in os.listdir('/proc/self/task'):
    with contextlib.suppress(OSError):  # one that has just ended
      os.sched_setaffinity(int(thread), cores)


def _derived(found: dict[str, float], most_bytes: int) -> dict[str, float]:
  """Turns the time of a call into seconds, and of a pass over fresh memory takes what known memory needs as well."""
  if 'dispatch' in found:
    found['dispatch'] = 1 / found['dispatch']
  if 'fresh' in found and 'memory' in found:
    beyond = most_bytes / found.pop('fresh') - 2 * most_bytes / found['memory']
    if beyond > 0.02 * most_bytes / found['memory']:
      found['fresh'] = most_bytes / beyond
  return found


def quickest(timed: Timed, budget: float, cores: set[int], waits: bool = False) -> tuple[float, float]:
  """Returns the least time that one call took: with all cores, and of the processor on one.

  Args:
    timed: what to call.
    budget: seconds for each.
    cores: of this process; none: the second is not wanted, and is 0.
    waits: whether what takes time is that threads wait for each other: then only the clock on the wall sees it.
  """
  import jax

  function, arguments = timed.build()
  run = jax.jit(function, donate_argnums=(0,) if timed.again else ())

  def best(watch: Callable[[], Stop], arguments: tuple[Any, ...], seconds: float) -> tuple[float, tuple[Any, ...]]:
    least, count = math.inf, 0
    begin, own = time.perf_counter(), time.process_time()

    def is_enough() -> bool:
      lasted = time.perf_counter() - begin
      # Beside others this process comes to fewer repeats in the same time, and each of them is disturbed.
      return lasted > seconds and (not cores or time.process_time() - own > seconds or lasted > _AT_MOST * seconds)

    while count < 3 or not is_enough():
      stop = watch()
      out = jax.block_until_ready(run(*arguments))
      took = stop()
      least, count = min(least, took), count + 1
      if timed.again:
        arguments = (out, *arguments[1:])
      del out
      if took > 2 * seconds and count >= 2:
        break
    return least, arguments

  _, arguments = best(on_the_wall, arguments, 0.0)  # compiles
  together, arguments = best(by_the_busiest if cores and not waits else on_the_wall, arguments, budget)
  if not cores:
    return together, 0.0
  with _moved(cores):
    return together, best(by_the_process, arguments, budget / 2)[0]


Stop = Callable[[], float]  # ends what a watch began, and gives seconds


def on_the_wall() -> Stop:
  """Seconds as they pass."""
  start = time.perf_counter()
  return lambda: time.perf_counter() - start


def by_the_process() -> Stop:
  """Seconds of the processor, of all threads of this process."""
  start = time.process_time()
  return lambda: time.process_time() - start


def by_the_busiest() -> Stop:
  """Seconds of the processor that the busiest thread takes: those on the wall, had nobody else used the machine."""
  before, start = _threads(), time.perf_counter()

  def stop() -> float:
    wall = time.perf_counter() - start
    return min(wall, max((spent - before.get(thread, 0.0) for thread, spent in _threads().items()), default=wall))

  return stop


def _threads() -> dict[int, float]:
  """Seconds of the processor of each thread: Linux has a clock for each, with a number made from the thread's."""
  found = {}
  for thread in map(int, os.listdir('/proc/self/task')):
    with contextlib.suppress(OSError):  # one that has just ended
      found[thread] = time.clock_gettime((~thread << 3) | 6)
  return found


def programs(most_bytes: int) -> dict[str, Timed]:
  """Returns what is timed, by name.

  Args:
    most_bytes: of the largest array; above 128 MiB sizes are those of an accelerator.
  """
  import jax
  import jax.numpy as jnp
  from jax import lax

  big = most_bytes > 128 << 20
  key = jax.random.key(0)
  kinds = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16, 'int8': jnp.int8}

  def ones(*shape: int, kind: Any = jnp.float32) -> Any:
    return jnp.ones(shape, kind)

  def product(m: int, k: int, n: int, kind: Any) -> Timed:
    wide = jnp.int32 if kind == jnp.int8 else jnp.float32

    def multiply(a: Any, b: Any) -> Any:
      return lax.dot(a, b, preferred_element_type=wide)

    return Timed(lambda: (multiply, (ones(m, k, kind=kind), ones(k, n, kind=kind))), 2.0 * m * k * n)

  def convolve(x: Any, w: Any, groups: int = 1) -> Any:
    wide = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
    return lax.conv_general_dilated(
      x,
      w,
      (1, 1),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=groups,
      preferred_element_type=wide,
    )

  batch, side, channels = (128 if big else 16), 16, 32
  image = batch, side, side, channels
  flops = 2.0 * batch * side * side * channels * channels * 9

  def convolution(kind: Any) -> Timed:
    return Timed(lambda: (convolve, (ones(*image, kind=kind), ones(3, 3, channels, channels, kind=kind))), flops)

  def gradients(x: Any, w: Any, out: Any) -> Any:
    return jax.vjp(convolve, x, w)[1](out)

  def pooled(x: Any) -> Any:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID').sum()

  cached = (32 << 20 if big else 1 << 20) // 4
  far = most_bytes // 4
  side_of_product = 4096 if big else 768
  found = {'dispatch': Timed(lambda: (lambda x: x + 1, (ones(8),)), 1, again=True)}
  for name, kind in kinds.items():
    found[f'products {name}'] = product(side_of_product, side_of_product, side_of_product, kind)
    found[f'small_products {name}'] = product(128, 256, 256, kind)
    found[f'convolutions {name}'] = convolution(kind)
  found |= {
    'convolution_gradients': Timed(
      lambda: (gradients, (ones(*image), ones(3, 3, channels, channels), ones(*image))), 2 * flops
    ),
    'depthwise': Timed(
      lambda: (lambda x, w: convolve(x, w, channels), (ones(*image), ones(3, 3, 1, channels))), flops / channels
    ),
    'elementwise': Timed(
      lambda: (lambda x: lax.fori_loop(0, 16, lambda _, y: y * 0.999 + 0.5, x), (ones(cached),)),
      16 * 8.0 * cached,
      again=True,
    ),
    'memory': Timed(lambda: (lambda x: x * 0.999 + 0.5, (ones(far),)), 8.0 * far, again=True),
    'fresh': Timed(lambda: (lambda x: x * 0.999 + 0.5, (ones(far),)), 4.0 * far),
    'transcendental': Timed(lambda: (jnp.exp, (-ones(1 << 18),)), 1 << 18, again=True),
    'reductions': Timed(lambda: (lambda x: x.sum(axis=-1), (ones(1024, 1024),)), 4.0 * (1 << 20)),
    'random': Timed(lambda: (lambda k: jax.random.bits(k, (1 << 18,)), (key,)), 1 << 18),
    'pool_gradient': Timed(lambda: (jax.grad(pooled), (ones(*image),)), batch * side * side * channels),
    'scatter': Timed(
      lambda: (lambda t, i, r: t.at[i].add(r), (ones(4096, 64), jnp.arange(4096) * 7 % 4096, ones(4096, 64))),
      4096,
      again=True,
    ),
  }
  return found


def main() -> None:
  """Times what standard input asks for, and prints it in one line."""
  import jax

  jax.config.update('jax_enable_compilation_cache', False)  # compiling is timed too
  asked = json.load(sys.stdin)
  print(ANSWER + json.dumps(measured(**asked)), flush=True)
