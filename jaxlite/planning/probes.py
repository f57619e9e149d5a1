"""Small programs that show whether the installed jaxlib has faults that are known: wrong values, crashes, lost speed.

Each is run, not looked up by version: what is wrong on one processor is right on another, and a fault that is mended
stays silent. None says more than that its own program goes wrong; what else does is not known.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_OF_CPU = ('slow', 'memory', 'crash')
_OFF = 'XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type='


class Finding(NamedTuple):
  """What one probe saw.

  Attributes:
    kind: 'wrong' (values), 'crash', 'slow', 'memory', 'figures' (a tool of JAX that misleads).
    about: the program that was tried.
    symptom: what happened, with numbers; '' where all is well.
    advice: what to do about it.
    source: where it is reported.
    version: of jaxlib.
    seconds: that the probe took.
  """

  kind: str
  about: str
  symptom: str
  advice: str
  source: str
  version: str
  seconds: float

  def line(self) -> str:
    """In one line: the fault, or that there is none."""
    if not self.symptom:
      return f'{self.about}: all is well'
    return f'{self.kind.upper()}: {self.about}: {self.symptom} (jaxlib {self.version}, {self.source}); {self.advice}'


class Probe(NamedTuple):
  """A program and what it is tried for; `run` returns the symptom, '' for none."""

  kind: str
  about: str
  run: Callable[[], str]
  advice: str
  source: str


def findings(kinds: tuple[str, ...] | None = None) -> tuple[Finding, ...]:
  """Runs the probes on the first device, and returns what each saw. One that cannot be run says so as its symptom.

  Args:
    kinds: of those to run, as in `Finding`; None is all.
  """
  version, found = jax.lib.__version__, []
  on_cpu = jax.devices()[0].platform == 'cpu'
  for probe in PROBES:
    if (kinds is not None and probe.kind not in kinds) or (not on_cpu and probe.kind in _OF_CPU):
      continue
    start = time.perf_counter()
    try:
      symptom = probe.run()
    except (RuntimeError, ValueError, TypeError, OSError, KeyError, AttributeError) as error:
      symptom = f'could not be tried ({type(error).__name__})'
    took = time.perf_counter() - start
    found.append(Finding(probe.kind, probe.about, symptom, probe.advice, probe.source, version, took))
  return tuple(found)


def _shifted_write() -> str:
  """Rows written over by the rows before them, then a reshape: read after they were overwritten."""
  x = np.arange(128, dtype=np.int32).reshape(8, 16)
  got = np.asarray(jax.jit(lambda x: (lambda base: base.at[1:].set(base[:-1])[None])(x + 1))(x))[0]
  want = np.concatenate([x[:1], x[:-1]]) + 1
  return _wrong(got, want)


def _summed_products() -> str:
  """A product of a small matrix with each of many rows, squared and summed: the last rows are another's."""
  x = np.zeros((40_000, 3), np.float32)
  x[:, 0] = np.arange(len(x)) / 1000
  got = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(x)
  return _wrong(np.asarray(got), x[:, 0] ** 2)


def _wrong(got: np.ndarray, want: np.ndarray) -> str:
  count = int(np.sum(~np.isclose(got, want, rtol=1e-4, atol=1e-4)))
  return f'{count:,} of {want.size:,} values are wrong' if count else ''


_RANK_7 = """
import jax, jax.numpy as jnp
x = jnp.ones((3, 1, 2, 2, 8, 8, 8))
assert jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(x, x).sum() == x.size
"""


def _rank_7() -> str:
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  try:
    done = subprocess.run([sys.executable, '-P', '-c', _RANK_7], capture_output=True, timeout=60, env=environment)
  except subprocess.TimeoutExpired:
    return 'it hangs'
  if done.returncode < 0:
    return f'the process is killed by signal {-done.returncode}'
  return 'it fails' if done.returncode else ''


def _stacked_scalars() -> str:
  """A scan that stacks numbers: four times the length may not take sixteen times as long."""

  def seconds(length: int) -> float:
    run = jax.jit(lambda c: lax.scan(lambda c, _: (c * 0.999, c), c, None, length=length)[1])
    return _quickest(lambda: run(1.0))

  short, long = seconds(8_000), seconds(32_000)
  return f'four times the length takes {long / short:.0f} times as long' if long > 9 * short else ''


def _convolve(x: Any, w: Any) -> Any:
  return lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _convolution_in_a_loop() -> str:
  """The gradient to the weights, in which the loss shows most."""
  x, w = np.ones((8, 16, 16, 32), np.float32), np.full((3, 3, 32, 32), 0.003, np.float32)

  def gradient(w: Any, x: Any) -> Any:
    return jax.grad(lambda w: (_convolve(x, w) ** 2).sum())(w)

  alone = jax.jit(gradient)
  looped = jax.jit(lambda w, x: lax.fori_loop(0, 2, lambda _, w: w - 1e-9 * gradient(w, x), w))
  times = _quickest(lambda: looped(w, x)) / 2 / _quickest(lambda: alone(w, x))
  return f'its gradient is {times:.0f} times slower than outside of the loop' if times > 3 else ''


def _pool_gradient() -> str:
  x = np.random.default_rng(0).normal(size=(8, 28, 28, 32)).astype(np.float32)

  def pool(x: Any) -> Any:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID').sum()

  def reshaped(x: Any) -> Any:
    return x.reshape(8, 14, 2, 14, 2, 32).max((2, 4)).sum()

  ours, theirs = (jax.jit(jax.grad(function)) for function in (reshaped, pool))
  times = _quickest(lambda: theirs(x)) / _quickest(lambda: ours(x))
  return f'{times:.0f} times slower than the same by a reshape' if times > 3 else ''


def _sum_over_wide_rows() -> str:
  """The gradient of the bias of a layer of many units: rows are summed in strides where they are long."""
  x = np.ones((32, 30_000), np.float32)
  summed, multiplied = jax.jit(lambda x: x.sum(0)), jax.jit(lambda x: jnp.ones((1, len(x)), x.dtype) @ x)
  times = _quickest(lambda: summed(x)) / _quickest(lambda: multiplied(x))
  return f'{times:.0f} times slower than a product with ones' if times > 3 else ''


def _remat() -> str:
  weights, x = np.ones((4, 64, 64), np.float32), np.ones((1024, 64), np.float32)

  def layer(w: Any, x: Any) -> Any:
    return jnp.tanh(jnp.tanh(x @ w) @ w)

  def temporaries(layer: Callable[[Any, Any], Any]) -> int:
    def loss(weights: Any) -> Any:
      out = x
      for w in weights:
        out = layer(w, out)
      return out.sum()

    return jax.jit(jax.grad(loss)).lower(weights).compile().memory_analysis().temp_size_in_bytes

  plain, saving = temporaries(layer), temporaries(jax.checkpoint(layer))
  return f'{saving / plain:.0%} of the memory is still used' if saving > 0.9 * plain else ''


def _flops_of_a_loop() -> str:
  run = jax.jit(lambda x: lax.scan(lambda c, _: (c @ c, None), x, None, length=8)[0])
  found = run.lower(np.ones((32, 32), np.float32)).compile().cost_analysis()
  flops = (found[0] if isinstance(found, list) else found)['flops']
  share = flops / (8 * 2 * 32**3)
  return f'{share:.0%} of the FLOPs are counted' if share < 0.9 else ''


def _quickest(run: Callable[[], Any], least: int = 3, seconds: float = 0.05) -> float:
  """The least time on the process's own clock, which stands still while other processes compute."""
  jax.block_until_ready(run())
  best, begin, count = float('inf'), time.perf_counter(), 0
  while count < least or (time.perf_counter() - begin < seconds and count < 100):
    start = time.process_time()
    jax.block_until_ready(run())
    best, count = min(best, time.process_time() - start), count + 1
  return max(best, 1e-7)


PROBES = (
  Probe(
    'wrong', 'rows written over by the rows before them, then reshaped (`c.at[1:].set(c[:-1])[None]`)', _shifted_write,
    'write `jnp.concatenate([c[:1], c[:-1]])`, or do not reshape it in the same program', 'openxla/xla#49176',
  ),
  Probe(
    'wrong', 'a small matrix times each of 40,000 rows under vmap, squared and summed', _summed_products,
    f'set {_OFF} before Python starts, or use another jaxlib', 'jax-ml/jax#39103',
  ),
  Probe(
    'crash', 'a product of arrays with seven axes, one of length 1, summed', _rank_7,
    f'set {_OFF} before Python starts, or merge axes', 'jax-ml/jax#40412',
  ),
  Probe(
    'slow', 'a scan that stacks single numbers', _stacked_scalars,
    'stack at least 64 float32 numbers a turn, or use jaxlib 0.11.0 or older', 'jax-ml/jax#40101',
  ),
  Probe(
    'slow', 'a convolution in a scan or fori_loop', _convolution_in_a_loop,
    'dispatch the steps one by one, as jaxlite does', 'XLA:CPU',
  ),
  Probe(
    'slow', 'the gradient of max pooling', _pool_gradient,
    'pool by a reshape and a maximum, as jaxlite does where it rewrites programs', 'XLA:CPU',
  ),
  Probe(
    'slow', 'a sum over rows of 30,000 numbers (the gradient of a bias)', _sum_over_wide_rows,
    'leave out the bias of so wide a layer, or sum by a product with ones', 'XLA:CPU',
  ),
  Probe(
    'memory', '`jax.checkpoint` around each of several layers written out', _remat,
    'put the layers into a scan with `jax.checkpoint` around its body, where they hold no convolution',
    'jax-ml/jax#24062',
  ),
  Probe(
    'figures', '`cost_analysis` of a loop of eight turns', _flops_of_a_loop,
    'count with `python launch.py --mode=plan`', 'jax-ml/jax#18672',
  ),
)  # fmt: skip
