"""What `rates` times: small programs, each one kind of work, at their best of many short repeats.

Others use the machine as well, and it is never faster than when they do not: so a repeat is short, one of many falls
between theirs, and the quickest counts. On one core the process's own clock counts, which stands still while others
compute. All of it runs in a process of its own (`main`): the caller's memory and settings have no part in it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

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


def measured(names: list[str] | None, *, budget: float, most_bytes: int, one_core: bool) -> dict[str, float]:
  """Returns rates by name: work a second, 'dispatch' in seconds a call. What this device cannot do is missing.

  Args:
    names: of the programs to time; None is all.
    budget: seconds on each, and at least three repeats whatever they take.
    most_bytes: of the largest array.
    one_core: whether this process has one core: then its own clock counts.
  """
  found: dict[str, float] = {}
  for name, timed in programs(most_bytes).items():
    if names is not None and name not in names:
      continue
    try:
      wall, own = quickest(timed, budget)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # no integers on this device, say; no memory
      continue
    seconds = max(own if one_core and own > 0 else wall, 1e-9)
    found[name] = seconds if name == 'dispatch' else timed.work / seconds
  return _derived(found, most_bytes)


def _derived(found: dict[str, float], most_bytes: int) -> dict[str, float]:
  """Rates that two programs tell together: the better of two sizes, and what fresh memory takes beyond other memory."""
  for name in [name for name in found if name.endswith(' again')]:
    better = max(found.pop(name), found.get(name.removesuffix(' again'), 0.0))
    found[name.removesuffix(' again')] = better
  if 'fresh' in found and 'memory' in found:
    beyond = most_bytes / found.pop('fresh') - 2 * most_bytes / found['memory']
    if beyond > 0.02 * most_bytes / found['memory']:
      found['fresh'] = most_bytes / beyond
  return found


def quickest(timed: Timed, budget: float) -> tuple[float, float]:
  """Returns the least time that one call took, by the clock on the wall and by that of the process."""
  import jax

  function, arguments = timed.build()
  run = jax.jit(function, donate_argnums=(0,) if timed.again else ())
  wall = own = float('inf')
  begin, count = time.perf_counter(), 0
  while count < 4 or time.perf_counter() - begin < budget:
    if count == 1:
      begin = time.perf_counter()  # the first one compiled
    start, clock = time.perf_counter(), time.process_time()
    out = jax.block_until_ready(run(*arguments))
    took, used = time.perf_counter() - start, time.process_time() - clock
    if count:
      wall, own = min(wall, took), min(own, used)
      if took > 2 * budget and count >= 2:
        break
    if timed.again:
      arguments = (out, *arguments[1:])
    del out
    count += 1
  return wall, own


def programs(most_bytes: int) -> dict[str, Timed]:
  """Returns what is timed, by name. 'x again' is another size of 'x', of which the better counts.

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
  sizes = (4096, 2048) if big else (1024, 512)
  found = {'dispatch': Timed(lambda: (lambda x: x + 1, (ones(8),)), 1, again=True)}
  for name, kind in kinds.items():
    found[f'products {name}'] = product(*[sizes[0]] * 3, kind)
    found[f'products {name} again'] = product(*[sizes[1]] * 3, kind)
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
  asked = json.load(sys.stdin)
  print(ANSWER + json.dumps(measured(**asked)), flush=True)
