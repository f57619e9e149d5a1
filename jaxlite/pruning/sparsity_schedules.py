"""Schedules of sparsity: when masks are drawn anew, and how much of a weight is zero then."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlite.errors import number, whole


class Schedule(NamedTuple):
  """When masks are drawn, and for which sparsity.

  Attributes:
    at: (count, target) -> float32[], the sparsity asked at an update of a leaf whose last one is `target`.
    due: count -> bool[], whether masks are drawn at this update.
    end: the update from which on `at` is the target.
    describe: what a report says of it.
  """

  at: Callable[[jax.Array, float], jax.Array]
  due: Callable[[jax.Array], jax.Array]
  end: int
  describe: str


def _always(count: jax.Array, target: float) -> jax.Array:
  del count
  return jnp.float32(target)


def one_shot(at: int = 0) -> Schedule:
  """Draws the masks once, at the update `at`, counted from 0.

  >>> [bool(one_shot(3).due(jnp.int32(t))) for t in (2, 3, 4)]
  [False, True, False]
  """
  at = whole(at, 'one_shot: at', least=0)
  return Schedule(_always, lambda count: count == at, at, f'once, at {at}')


def cubic(begin: int, end: int, every: int = 100, initial: float = 0.0) -> Schedule:
  """Raises the sparsity fast at first and slowly at last; the target is met at `end` whatever `every` is.

  Args:
    begin: the first update that masks.
    end: the update at which the target is reached.
    every: updates between refreshes.
    initial: the sparsity at `begin`.

  Raises:
    ValueError: `end` before `begin`, `every` under 1, `initial` outside [0, 1).

  References:
    Zhu and Gupta, To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878

  >>> [round(float(cubic(0, 10, 5).at(jnp.int32(t), 0.8)), 2) for t in (0, 5, 10, 99)]
  [0.0, 0.7, 0.8, 0.8]
  """
  begin, end, every = _span('cubic', begin, end, every)
  initial = number(initial, 'cubic: initial')
  if not 0 <= initial < 1:
    raise ValueError(f'cubic: initial is the share that becomes zero, in [0, 1); got {initial}')

  def at(count: jax.Array, target: float) -> jax.Array:
    left = 1.0 - jnp.asarray(count - begin).astype(jnp.float32) / max(end - begin, 1)
    ramp = target + (min(initial, target) - target) * jnp.clip(left, 0.0, 1.0) ** 3
    return jnp.where(count >= end, jnp.float32(target), ramp.astype(jnp.float32))

  return Schedule(at, _periodically(begin, end, every), end, f'{begin} to {end}, each {every}')


def periodic(begin: int, end: int, every: int = 100) -> Schedule:
  """Asks for the target from `begin` on, and draws the masks anew each `every` updates until `end`.

  >>> [bool(periodic(2, 7, 4).due(jnp.int32(t))) for t in range(9)]
  [False, False, True, False, False, False, True, True, False]
  """
  begin, end, every = _span('periodic', begin, end, every)
  return Schedule(_always, _periodically(begin, end, every), begin, f'{begin} to {end}, each {every}')


def constant(every: int = 1) -> Schedule:
  """Asks for the target from the first update on, and draws the masks anew each `every` updates, for ever.

  >>> [bool(constant(2).due(jnp.int32(t))) for t in range(4)]
  [True, False, True, False]
  """
  every = whole(every, 'constant: every', least=1)
  return Schedule(_always, lambda count: count % every == 0, 0, f'each {every}')


def _periodically(begin: int, end: int, every: int) -> Callable[[jax.Array], jax.Array]:
  def due(count: jax.Array) -> jax.Array:
    return (count >= begin) & (count <= end) & (((count - begin) % every == 0) | (count == end))

  return due


def _span(what: str, begin: int, end: int, every: int) -> tuple[int, int, int]:
  begin, end = whole(begin, f'{what}: begin', least=0), whole(end, f'{what}: end', least=0)
  every = whole(every, f'{what}: every', least=1)
  if end < begin:
    raise ValueError(f'{what}: end={end} lies before begin={begin}: the target would never be reached')
  return begin, end, every


def schedule_of(
  what: str,
  sparsity: float,
  begin: int,
  end: int | None,
  every: int,
  initial: float,
  schedule: Schedule | None,
  *,
  usual: int = 100,
) -> tuple[Schedule, float]:
  """Returns the schedule that the short arguments of a part describe, or the given one; and the sparsity, plain.

  `usual` is what `every` is where nobody says.
  """
  sparsity = share_of(sparsity, what)
  if schedule is not None:
    if not isinstance(schedule, Schedule):
      raise TypeError(
        f'{what}: schedule is cubic(...), one_shot(...), periodic(...) or constant(...); got {schedule!r}'
      )
    if (begin, end, every, initial) != (0, None, usual, 0.0):
      raise ValueError(f'{what}: schedule= already says when; leave begin, end, every and initial out')
    return schedule, sparsity
  initial = number(initial, f'{what}: initial')
  if not 0 <= initial < 1:
    raise ValueError(f'{what}: initial is the share that becomes zero, in [0, 1); got {initial}')
  begin = whole(begin, f'{what}: begin', least=0)
  if initial > sparsity:
    raise ValueError(
      f'{what}: initial={initial} lies above sparsity={sparsity}: weights never come back, lower initial'
    )
  if initial and end is None:
    raise ValueError(
      f'{what}: initial={initial} is the sparsity at begin of a gradual schedule, and without end the target is met at '
      'once: give end, or leave initial out'
    )
  every = whole(every, f'{what}: every', least=1)
  return (one_shot(begin) if end is None else cubic(begin, end, every, initial)), sparsity


def share_of(sparsity: float, what: str) -> float:
  """Returns a sparsity as a plain number; raises ValueError for one outside [0, 1), TypeError for what is no number."""
  sparsity = number(sparsity, f'{what}: sparsity')
  if not 0 <= sparsity < 1:
    raise ValueError(f'{what}: sparsity is the share that becomes zero, in [0, 1); got {sparsity}')
  return sparsity
