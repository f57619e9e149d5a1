"""Where the range of an activation comes from: a moving average, the call itself, or a calibration.

A range is `(lowest, highest)` by the name of its site; how a batch is turned into one is `_calibration.py`'s business.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.errors import number, whole
from jaxlite.quantization import _numerics as numerics

Ranges = Mapping[str, numerics.Range]


class Activations(NamedTuple):
  """What `fake_quant` does about the ranges of activations; made by the functions of this file.

  Attributes:
    decay: of the moving average, a step; None where none is kept.
    freeze: the optimizer step from which the average stands still; None is never.
    ranges: by site, where they are given.
  """

  decay: float | None = None
  freeze: int | None = None
  ranges: Ranges | None = None

  @property
  def kept(self) -> bool:
    """Whether ranges are part of the model's state."""
    return self.decay is not None or self.ranges is not None

  def used(self, stored: numerics.Range | None, seen: numerics.Range, step: Any) -> numerics.Range:
    """Returns the range that a train step quantizes with, which is also the one that it leaves.

    Args:
      stored: before the step; None where there is none.
      seen: in this batch.
      step: int32[], the optimizer step; None is the first.
    """
    if stored is None or self.decay is None:
      return seen
    moved = _blended(stored, seen, self.decay)
    if self.freeze is None or step is None:
      return moved
    still = jnp.asarray(step) >= self.freeze  # what was never seen is adopted even then; each end by itself, as `blend`
    low, high = stored
    return jnp.where(still & (low < jnp.inf), low, moved[0]), jnp.where(still & (high > -jnp.inf), high, moved[1])


_blended = jax.jit(numerics.blend, static_argnums=2)  # traced once for all sites


def ema_ranges(decay: float = 0.99, *, freeze: int | None = None) -> Activations:
  """Keeps a moving average of every activation's range, adopting the first that is seen.

  Args:
    decay: a step, from 0 (the last batch's) to below 1.
    freeze: the optimizer step from which ranges stand still, so that the last of training sees the very grids of
      deployment; None is never.

  Returns:
    What `fake_quant(activations=)` takes.

  Raises:
    ValueError: a decay outside [0, 1), a freeze that is no whole number from 0.

  References:
    Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
    2018, https://arxiv.org/abs/1712.05877

  >>> ema_ranges(0.9, freeze=1000).decay
  0.9
  """
  decay = number(decay, 'ema_ranges: decay')
  if not 0 <= decay < 1:
    raise ValueError(f'decay is from 0 to below 1, got {decay!r}')
  if freeze is not None:
    check_step(freeze, 'freeze')
  return Activations(decay=float(decay), freeze=freeze)


def dynamic_ranges() -> Activations:
  """Takes the range of every call from that call: nothing is kept, and evaluation depends on its batch.

  Returns:
    What `fake_quant(activations=)` takes.

  >>> dynamic_ranges().kept
  False
  """
  return Activations()


def frozen_ranges(ranges: Ranges) -> Activations:
  """Takes ranges as given, from a calibration or another run; no activation is looked through for its extremes.

  Args:
    ranges: {site: (lowest, highest)}, as `observe` or `model_state['jl.fake_quant']` (of a run, of `ptq`) give them.

  Returns:
    What `fake_quant(activations=)` takes.

  Raises:
    ValueError: no ranges; a site that was never seen, or whose ends are not finite.

  >>> import numpy as np
  >>> sorted(frozen_ranges({'w': (np.float32(-1), np.float32(1))}).ranges)
  ['w']
  """
  if not ranges:
    raise ValueError('frozen_ranges holds no range: give what a calibration gave')
  for name, span in ranges.items():
    known = ends_of(name, span, 'frozen_ranges')
    if known is None:
      continue
    low, high = known
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
      raise ValueError(
        f'no activation of {name} was seen (its range is {low} to {high}): calibrate with batches that reach it, or'
        f' keep it float, rules={{{name!r}: None}}'
      )
  return Activations(ranges=dict(ranges))


def ends_of(name: str, span: Any, what: str) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns the ends of a site's range, NumPy; None where one is traced, and so not known yet.

  Raises:
    ValueError: no pair of numbers.

  >>> ends_of('w', (0.0, 1.0), 'quantize')
  (array(0.), array(1.))
  """
  if not isinstance(span, tuple | list) or len(span) != 2:
    raise ValueError(f'{what}: a range is (lowest, highest); {name!r} has {span!r}')
  if any(isinstance(end, jax.core.Tracer) for end in span):
    return None
  low, high = (np.asarray(end) for end in span)
  if any(end.dtype.kind not in 'iuf' and not jnp.issubdtype(end.dtype, np.floating) for end in (low, high)):
    raise ValueError(f'{what}: a range is (lowest, highest), two numbers; {name!r} has {span!r}')
  return low, high


def check_ranges(ranges: Ranges, what: str) -> None:
  """Raises ValueError where a range is none: ends that are not finite or the wrong way round, unless nothing was seen.

  >>> import jax.numpy as jnp
  >>> check_ranges({'w': (-1.0, 1.0), 'v': numerics.unseen()}, 'quantize')
  >>> check_ranges({'w': (3.0, -1.0)}, 'quantize')
  Traceback (most recent call last):
    ...
  ValueError: quantize: a range is (lowest, highest), both finite; 'w' has 3.0 to -1.0
  """
  for name, span in ranges.items():
    known = ends_of(name, span, what)
    if known is None:
      continue
    low, high = known
    nothing = (low == np.inf) & (high == -np.inf)  # as `observe` says it of a site that no data reached
    if not np.all(nothing | (np.isfinite(low) & np.isfinite(high) & (low <= high))):
      raise ValueError(f'{what}: a range is (lowest, highest), both finite; {name!r} has {low} to {high}')


def check_step(value: Any, what: str) -> None:
  """Raises ValueError where a value is no whole number of optimizer steps.

  >>> check_step(3, 'begin')
  """
  whole(value, f'{what} counts optimizer steps and', least=0)


def given_ranges(
  ranges: Ranges, shapes: Mapping[str, tuple[int, ...]], what: str, spared: Collection[str] = ()
) -> dict[str, numerics.Range]:
  """Returns given ranges for exactly the sites that need one.

  Args:
    ranges: {site: (lowest, highest)}.
    shapes: of either end, by site that is quantized.
    what: names the asking part in an error.
    spared: sites that may go without.

  Raises:
    ValueError: a site without a range, a range without a site, or one of another shape.
  """
  for name in sorted(shapes):
    if name not in ranges and name not in spared:
      known = trees.nearest(name, list(ranges))
      raise ValueError(f'{what} has no range for {name}; nearest: {known}: calibrate this model, or keep it float')
  for name in sorted(ranges):
    if name not in shapes:
      raise ValueError(
        f'{what}: a range names {name!r}, which is no site; nearest: {trees.nearest(name, list(shapes))}'
      )
    if any(jnp.shape(end) != shapes[name] for end in ranges[name]):
      raise ValueError(
        f'{what}: the range of {name} is float32{list(shapes[name])} each end, got {list(jnp.shape(ranges[name][0]))}'
      )
  return {
    name: (jnp.asarray(ranges[name][0], jnp.float32), jnp.asarray(ranges[name][1], jnp.float32))
    for name in shapes
    if name in ranges
  }
