"""Learning-rate schedules: plain functions of Optax's own count, `int32[] -> float32[]`, to use and to join.

Lengths are steps, or a `Duration` in any unit: `Duration(epochs=5)`. A unit other than steps needs the sizes of
the run, `run=Run(total_steps, steps_per_epoch, batch_size)`. Every schedule has its stated values at its ends
exactly, and keeps the last one from there on; but `warmup_cosine`, which is Optax's, counts in steps alone and meets
them to a rounding unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlite.config.duration import Duration
from jaxlite.errors import number, whole

Length = int | Duration


class Run(NamedTuple):
  """The sizes of a run, by which a Duration becomes steps; only those that its unit needs.

  Attributes:
    total_steps: of the whole run; for percent.
    steps_per_epoch: for epochs.
    batch_size: for examples.
  """

  total_steps: int | None = None
  steps_per_epoch: int | None = None
  batch_size: int | None = None


def in_steps(length: Length, run: Run | None = None) -> int:
  """Returns a length in optimizer steps, rounded up.

  Args:
    length: steps, or a Duration.
    run: the sizes that its unit needs.

  Raises:
    ValueError: a size is missing, or a length is negative or no whole number of steps.

  >>> in_steps(Duration(percent=10), Run(total_steps=250))
  25
  """
  if not isinstance(length, Duration):
    length = Duration(steps=length)
  unit, _ = length.given()
  sizes = run or Run()
  wanted = {'percent': 'total_steps', 'epochs': 'steps_per_epoch', 'examples': 'batch_size'}.get(unit)
  if wanted and getattr(sizes, wanted) is None:
    raise ValueError(f'a schedule of {length} needs the size of the run: give run=Run({wanted}=...)')
  return length.to_steps(
    steps_per_epoch=1 if sizes.steps_per_epoch is None else sizes.steps_per_epoch,
    batch_size=1 if sizes.batch_size is None else sizes.batch_size,
    total_steps=sizes.total_steps,
  )


def _steps(value: Any, what: str, *, least: int) -> int:
  """A count of steps, 1e4 among them."""
  return whole(int(value) if isinstance(value, float) and value.is_integer() else value, what, least=least)


def warmup_cosine(peak: float, total_steps: int, *, warmup_steps: int = 0, final: float = 0.0) -> optax.Schedule:
  """Rises linearly to `peak`, then falls along a cosine to `final` at the last step.

  Args:
    peak: the learning rate at the end of the warm-up, which rises to it from peak / (warmup_steps + 1). May be traced.
    total_steps: length of the whole schedule in steps, the warm-up included.
    warmup_steps: length of the warm-up in steps, less than `total_steps`; step 0 is already above 0.
    final: the learning rate that step `total_steps` would have. May be traced.

  Returns:
    A schedule, int32[] -> float32[].

  Raises:
    ValueError: a rate that is not finite, a warm-up that does not end before the schedule, or a length under 1.

  References:
    Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2016,
    https://arxiv.org/abs/1608.03983

  >>> schedule = warmup_cosine(1.0, 10, warmup_steps=2)
  >>> [round(float(schedule(t)), 2) for t in (0, 1, 2, 6, 10)]
  [0.33, 0.67, 1.0, 0.5, 0.0]
  """
  total_steps = _steps(total_steps, 'warmup_cosine: total_steps', least=1)
  warmup_steps = _steps(warmup_steps, 'warmup_cosine: warmup_steps', least=0)
  if not warmup_steps < total_steps:
    raise ValueError(f'warmup_cosine: the warm-up ends before step {total_steps}; got warmup_steps={warmup_steps}')
  traced = any(isinstance(rate, jax.core.Tracer) for rate in (peak, final))
  if not traced:
    peak, final = _finite('warmup_cosine', peak, final)
  if traced or not peak:  # a rate that is an argument of the program: Optax compares it, and divides by it
    unit = warmup_cosine(1.0, total_steps, warmup_steps=warmup_steps)

    def schedule(count: Any) -> Any:
      share = unit(count)
      falling = final + (peak - final) * share
      return jnp.where(count < warmup_steps, peak * share, falling) if warmup_steps else falling

    return schedule
  return optax.warmup_cosine_decay_schedule(
    init_value=peak / (warmup_steps + 1),  # a first step at rate 0 would be a step wasted
    peak_value=peak,
    warmup_steps=warmup_steps,
    decay_steps=total_steps,
    end_value=final,
  )


def polynomial(
  first: float, final: float, length: Length, *, power: float = 1.0, run: Run | None = None
) -> optax.Schedule:
  """Goes from `first` to `final` over `length`, the distance left shrinking as (1 - progress) ** power.

  Args:
    first: the value at step 0.
    final: the value at step `length` and after.
    length: how long it takes, at least 1 step.
    power: above 0; 1 is a straight line (a warm-up, say), 2 slows down toward the end.
    run: the sizes of the run, where `length` is not in steps.

  Returns:
    A schedule, int32[] -> float32[].

  Raises:
    ValueError: a value that is not finite, no power above 0, a length under 1 step.

  >>> [float(polynomial(1.0, 0.0, 4, power=2)(t)) for t in (0, 2, 4, 9)]
  [1.0, 0.25, 0.0, 0.0]
  """
  power = number(power, 'polynomial: power')
  if not power > 0:
    raise ValueError(f'polynomial: power is above 0; got {power}')
  return _blend('polynomial', first, final, length, run, lambda progress: (1 - progress) ** power)


def cosine(first: float, final: float, length: Length, *, run: Run | None = None) -> optax.Schedule:
  """Goes from `first` to `final` over `length` along half a cosine: flat at both ends.

  Args:
    first: the value at step 0.
    final: the value at step `length` and after.
    length: how long it takes, at least 1 step.
    run: the sizes of the run, where `length` is not in steps.

  Returns:
    A schedule, int32[] -> float32[].

  Raises:
    ValueError: a value that is not finite, a length under 1 step.

  >>> schedule = cosine(1.0, 0.0, Duration(epochs=2), run=Run(steps_per_epoch=5))
  >>> [round(float(schedule(t)), 2) for t in (0, 5, 10)]
  [1.0, 0.5, 0.0]
  """
  return _blend('cosine', first, final, length, run, lambda progress: (1 + jnp.cos(jnp.pi * progress)) / 2)


def cosine_restarts(
  peak: float,
  period: Length,
  cycles: int,
  *,
  growth: float = 1.0,
  decay: float = 1.0,
  final: float = 0.0,
  run: Run | None = None,
) -> optax.Schedule:
  """Falls from a peak along a cosine again and again; each restart begins at its peak, and the last ends at `final`.

  Args:
    peak: the value at step 0.
    period: length of the first cycle, at least 1 step.
    cycles: how many there are.
    growth: each cycle is so many times as long as the one before, rounded to steps; at least 1.
    decay: each peak is so many times as high as the one before; above 0.
    final: where every cycle ends, and the value after the last.
    run: the sizes of the run, where `period` is not in steps.

  Returns:
    A schedule, int32[] -> float32[].

  Raises:
    ValueError: an argument out of its range.

  References:
    Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2016,
    https://arxiv.org/abs/1608.03983

  >>> schedule = cosine_restarts(1.0, 4, cycles=2, decay=0.5)
  >>> [round(float(schedule(t)), 3) for t in (0, 2, 3, 4, 6, 8, 9)]
  [1.0, 0.5, 0.146, 0.5, 0.25, 0.0, 0.0]
  """
  cycles = whole(cycles, 'cosine_restarts: cycles', least=1)
  growth, decay = number(growth, 'cosine_restarts: growth'), number(decay, 'cosine_restarts: decay')
  if not (growth >= 1 and decay > 0):
    raise ValueError(f'cosine_restarts: growth is at least 1 and decay above 0; got growth={growth}, decay={decay}')
  [peak], start = _finite('cosine_restarts', peak), _at_least_one('cosine_restarts', period, run)
  lengths = [round(start * growth**cycle) for cycle in range(cycles)]
  pieces = [(cosine(peak * decay**cycle, final, length), length) for cycle, length in enumerate(lengths)]
  return join(*pieces[:-1], pieces[-1][0])


def one_cycle(
  peak: float,
  length: Length,
  *,
  rise: float = 0.3,
  first: float | None = None,
  final: float | None = None,
  run: Run | None = None,
) -> optax.Schedule:
  """Rises from `first` to `peak` along a cosine, then falls along one to `final`, far below where it began.

  Args:
    peak: the largest value.
    length: of the whole cycle, at least 2 steps.
    rise: the share of it that rises, in (0, 1); rounded so that both parts have a step.
    first: the value at step 0; None is peak / 25.
    final: the value at step `length` and after; None is peak / 250,000.
    run: the sizes of the run, where `length` is not in steps.

  Returns:
    A schedule, int32[] -> float32[].

  Raises:
    ValueError: an argument out of its range.

  References:
    Smith and Topin, Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates, 2017,
    https://arxiv.org/abs/1708.07120

  >>> schedule = one_cycle(1.0, 10, first=0.1, final=0.0)
  >>> [round(float(schedule(t)), 2) for t in (0, 3, 10, 11)]
  [0.1, 1.0, 0.0, 0.0]
  """
  steps = in_steps(length, run)
  if steps < 2:
    raise ValueError(f'one_cycle rises and falls: its length is at least 2 steps; got {length}')
  [peak], rise = _finite('one_cycle', peak), number(rise, 'one_cycle: rise')
  if not 0 < rise < 1:
    raise ValueError(f'one_cycle: rise is the share that rises, in (0, 1); got {rise}')
  up = min(max(round(rise * steps), 1), steps - 1)
  first, final = peak / 25 if first is None else first, peak / 250_000 if final is None else final
  return join((cosine(first, peak, up), up), cosine(peak, final, steps - up))


def piecewise(values: Sequence[float], boundaries: Sequence[Length], *, run: Run | None = None) -> optax.Schedule:
  """Holds each value until its boundary: `values[i]` from `boundaries[i - 1]` on, up to `boundaries[i]`.

  Args:
    values: one more than there are boundaries.
    boundaries: steps (or durations from the start) at which the next value begins, rising.
    run: the sizes of the run, where a boundary is not in steps.

  Returns:
    A schedule, int32[] -> float32[].

  Raises:
    ValueError: numbers that do not fit, boundaries that do not rise.

  >>> schedule = piecewise([0.5, 0.25], [100])
  >>> float(schedule(99)), float(schedule(100))
  (0.5, 0.25)
  """
  if not all(isinstance(one, Iterable) for one in (values, boundaries)):
    raise TypeError(f'piecewise takes several values and boundaries; got {values!r} and {boundaries!r}: give lists')
  at = [in_steps(boundary, run) for boundary in boundaries]
  if len(values) != len(at) + 1:
    raise ValueError(f'piecewise: one value more than boundaries; got {len(values)} values, {len(at)} boundaries')
  if sorted(set(at)) != at or (at and at[0] < 1):
    raise ValueError(f'piecewise: boundaries rise from step 1 on; got {at} steps')
  values = _finite('piecewise', *values)
  held = [(lambda count, value=value: jnp.full(jnp.shape(count), value, jnp.float32)) for value in values]
  return optax.join_schedules(held, at)


def join(*pieces: tuple[optax.Schedule, Length] | optax.Schedule, run: Run | None = None) -> optax.Schedule:
  """Runs schedules one after the other, each from its own step 0.

  Args:
    *pieces: (schedule, how long it runs, at least 1 step), and as the last the schedule that stays.
    run: the sizes of the run, where a length is not in steps.

  Returns:
    A schedule, int32[] -> float32[].

  Raises:
    ValueError: the lengths do not fit.
    TypeError: a piece is neither.

  >>> schedule = join((polynomial(0.0, 1.0, 4), 4), cosine(1.0, 0.0, Duration(percent=80), run=Run(20)))
  >>> [round(float(schedule(t)), 2) for t in (0, 2, 4, 12, 20)]
  [0.0, 0.5, 1.0, 0.5, 0.0]
  """
  if not pieces:
    raise ValueError('join takes (schedule, length) pairs and a last schedule; got nothing')
  for index, piece in enumerate(pieces[:-1]):
    if not (isinstance(piece, tuple) and len(piece) == 2 and callable(piece[0])):
      raise TypeError(f'join: every piece but the last is (schedule, length); piece {index} is {type(piece).__name__}')
  if not callable(pieces[-1]):
    raise TypeError(f'join: the last piece is a schedule alone, which stays; got {type(pieces[-1]).__name__}')
  boundaries: list[int] = []
  for _, length in pieces[:-1]:
    boundaries.append((boundaries[-1] if boundaries else 0) + _at_least_one('join', length, run))
  joined = optax.join_schedules([*[schedule for schedule, _ in pieces[:-1]], pieces[-1]], boundaries)
  return lambda count: jnp.asarray(joined(count), jnp.float32)


def _blend(
  what: str, first: float, final: float, length: Length, run: Run | None, left: Callable[[jax.Array], jax.Array]
) -> optax.Schedule:
  """`left` of progress goes from 1 to 0. A weighted sum, as `first + (final - first) * x` need not end on `final`:
  Optax's own polynomial and cosine may miss it by a rounding unit."""
  steps = _at_least_one(what, length, run)
  first, final = _finite(what, first, final)
  begin, end = np.float32(first), np.float32(final)

  def schedule(count: jax.Array) -> jax.Array:
    share = left(jnp.clip(jnp.asarray(count, jnp.float32) / jnp.float32(steps), 0, 1))
    return jnp.clip(share * begin + (1 - share) * end, min(begin, end), max(begin, end))

  return schedule


def _at_least_one(what: str, length: Length, run: Run | None) -> int:
  steps = in_steps(length, run)
  if steps < 1:
    raise ValueError(f'{what}: a length is at least 1 step; got {length}')
  return steps


def _finite(what: str, *values: float) -> list[float]:
  plain = [number(value, f'{what}: a rate') for value in values]
  for value in plain:
    if not math.isfinite(value):
      raise ValueError(f'{what}: a rate is a finite number; got {value}')
  return plain
