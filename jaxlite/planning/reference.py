"""Small pieces of train steps that every machine times once, beside its rates: what rates alone do not say of it.

A rate is that of one plain operation. How much slower a piece of a real step is than it, the gradients of a layer norm
or of narrow products, an optimizer's update, a loop of small steps, differs from processor to processor, and so does
what kernels of ours are worth. The factors in `speed.py` were fitted on one machine; `correction` moves them by what
the pieces took there and here, each measured against the rate that it goes with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from jaxlite.host import rates as host_rates
from jaxlite.host.measure import Timed
from jaxlite.host.rates import PIECE, Rates

_MOST = 3.0  # that a correction moves a factor by: beyond it a measurement went wrong

# Of each piece, how long it takes where the factors of `speed.py` were fitted, as a multiple of the time in which the
# rate that it goes with does one unit of work: (on all cores, on one).
FITTED: dict[str, tuple[float, float]] = {
  'products': (4.4e08, 4.37e08),
  'small products': (8.26e06, 4.6e06),
  'narrow products': (5.46e07, 5.3e07),
  'batched products': (5.92e07, 3.81e07),
  'convolutions': (1.12e08, 1.93e08),
  'narrow convolutions': (9.48e07, 1.69e08),
  'depthwise': (1.13e07, 1.92e07),
  'elementwise': (2.14e07, 2.93e07),
  'reductions': (2.93e07, 4.09e07),
  'transcendental': (2.93e05, 3.26e05),
  'gradients of pools': (1.35e07, 1.74e07),
  'rows': (2.6e07, 3.24e07),
  'kernels': (12.2, 10.5),
}
# Groups that have no piece of their own, by the one that is most like them.
_LIKE = {
  'convolutions to weights': 'convolutions',
  'convolutions apart': 'convolutions',
  'narrow convolutions apart': 'narrow convolutions',
  'ragged products': 'batched products',
  'gradients of pools apart': 'gradients of pools',
  'gradients of pools by XLA': 'gradients of pools',
  'windows': 'gradients of pools',
  'few by place': 'gradients of pools',
  'gathers': 'rows',
  'scatters': 'rows',
  'sums over wide rows': 'reductions',
  'movement': 'elementwise',
  'transposes': 'elementwise',
}
# The rate that a piece goes with.
_RATE: dict[str, Callable[[Rates], float]] = {
  'products': lambda rates: rates.products['float32'],
  'small products': lambda rates: rates.small_products['float32'],
  'narrow products': lambda rates: rates.products['float32'],
  'batched products': lambda rates: rates.small_products['float32'],
  'convolutions': lambda rates: rates.convolutions['float32'],
  'narrow convolutions': lambda rates: rates.convolutions['float32'],
  'depthwise': lambda rates: rates.convolutions['float32'],
  'elementwise': lambda rates: rates.elementwise,
  'reductions': lambda rates: rates.elementwise,
  'transcendental': lambda rates: rates.transcendental,
  'gradients of pools': lambda rates: rates.elementwise,
  'rows': lambda rates: rates.elementwise,
  'kernels': lambda rates: 1 / rates.dispatch,
}


def rates(say: Callable[[str], None] | None = None, anew: bool = False) -> Rates:
  """Returns this machine's rates, with what its pieces take; as `host.rates.rates`, which it calls.

  Args:
    say: takes a line before measuring, and warnings.
    anew: whether to measure although there are kept ones.

  Raises:
    RuntimeError: no program could be timed here.
  """
  return host_rates.rates(say, anew, also=__name__)


def correction(group: str, rates: Rates, alone: bool) -> float:
  """Returns by how much a group's factor differs on a machine from where it was fitted; 1 where that is not known.

  Args:
    group: of kernels, as `speed.group_of` names it.
    rates: of the machine, all cores or one.
    alone: whether they are of one core.

  >>> none = Rates({}, {}, {}, 1.0, 1.0, 1.0, 1.0, 1.0)
  >>> correction('products', none, True)
  1.0
  """
  name = _LIKE.get(group, group)
  runs, there = rates.more.get(PIECE + name), FITTED.get(name)
  if runs is None or there is None:
    return 1.0
  found = _RATE[name](rates) / runs / there[alone]
  return min(_MOST, max(1 / _MOST, found))


def takes(rates: Rates) -> dict[str, float]:
  """Returns what each piece took, as a multiple of the time in which its rate does one unit of work: for `FITTED`."""
  return {
    name: float(f'{rate(rates) / rates.more[PIECE + name]:.4g}')
    for name, rate in _RATE.items()
    if PIECE + name in rates.more
  }


def programs(most_bytes: int) -> dict[str, Timed]:
  """Returns the pieces, by the name under which `Rates.more` holds how many of each run in a second.

  Args:
    most_bytes: of the largest array; none is near it.
  """
  import jax
  import jax.numpy as jnp
  from jax import lax

  from jaxlite.cpu.replace import for_cpu

  def ones(*shape: int) -> Any:
    return jnp.full(shape, 0.01, jnp.float32)

  def gradients(loss: Callable[..., Any], *arguments: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """As jaxlite runs them: rewritten for this processor."""
    places = tuple(range(len(arguments)))
    return for_cpu(jax.grad(lambda *given: jnp.sum(loss(*given) ** 2), argnums=places)), arguments

  def convolve(x: Any, w: Any, groups: int = 1) -> Any:
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=numbers, feature_group_count=groups)

  def normed(x: Any, scale: Any) -> Any:
    apart = x - x.mean(-1, keepdims=True)
    return apart * lax.rsqrt((apart * apart).mean(-1, keepdims=True) + 1e-6) * scale

  def pooled(x: Any) -> Any:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')

  def update(weights: Any, gradient: Any, mean: Any, square: Any) -> Any:
    mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient * gradient
    return weights - 0.001 * (mean / (jnp.sqrt(square) + 1e-8) + 0.01 * weights), mean, square

  def looped(x: Any, w: Any) -> Any:
    return lax.scan(lambda c, _: (jnp.tanh(c @ w) + c[::-1], c.sum(0)), x, None, length=100)

  rows = functools.partial(jnp.take, mode='clip')
  pieces: dict[str, Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]] = {
    'products': lambda: gradients(jnp.dot, ones(256, 512), ones(512, 512)),
    'small products': lambda: gradients(jnp.dot, ones(128, 64), ones(64, 64)),
    'narrow products': lambda: gradients(jnp.dot, ones(1024, 512), ones(512, 10)),
    'batched products': lambda: gradients(lambda q, k: q @ k.swapaxes(1, 2), ones(64, 48, 32), ones(64, 48, 32)),
    'convolutions': lambda: gradients(convolve, ones(16, 16, 16, 32), ones(3, 3, 32, 32)),
    'narrow convolutions': lambda: gradients(convolve, ones(32, 28, 28, 4), ones(3, 3, 4, 16)),
    'depthwise': lambda: gradients(lambda x, w: convolve(x, w, 32), ones(16, 16, 16, 32), ones(3, 3, 1, 32)),
    'elementwise': lambda: (update, tuple(ones(1 << 18) for _ in range(4))),
    'reductions': lambda: gradients(normed, ones(1024, 128), ones(128)),
    'transcendental': lambda: gradients(lambda x: jax.nn.gelu(x), ones(1024, 128)),
    'gradients of pools': lambda: gradients(pooled, ones(16, 28, 28, 16)),
    'rows': lambda: (
      jax.grad(lambda table, which: rows(table, which, axis=0).sum()),
      (ones(5000, 64), jnp.arange(4096) * 7 % 5000),
    ),
    'kernels': lambda: (looped, (ones(8, 8), ones(8, 8))),
  }
  return {PIECE + name: Timed(build, 1.0) for name, build in pieces.items()}
