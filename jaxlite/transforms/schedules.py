"""Learning-rate schedules: plain functions of Optax's own count."""

from __future__ import annotations

import optax


def warmup_cosine(peak: float, total_steps: int, *, warmup_steps: int = 0, final: float = 0.0) -> optax.Schedule:
  """Rises linearly to `peak`, then falls along a cosine to `final` at the last step.

  Args:
    peak: the learning rate at the end of the warm-up.
    total_steps: length of the whole schedule in steps, the warm-up included.
    warmup_steps: length of the warm-up in steps, less than `total_steps`; step 0 is already above 0.
    final: the learning rate that step `total_steps` would have.

  Returns:
    A schedule, int32[] -> float32[].

  Raises:
    ValueError: a warm-up that does not end before the schedule, or a length under 1.

  References:
    Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2016,
    https://arxiv.org/abs/1608.03983

  >>> schedule = warmup_cosine(1.0, 10, warmup_steps=2)
  >>> [round(float(schedule(t)), 2) for t in (0, 1, 2, 6, 10)]
  [0.33, 0.67, 1.0, 0.5, 0.0]
  """
  if total_steps < 1:
    raise ValueError(f'warmup_cosine: total_steps is at least 1; got {total_steps}')
  if not 0 <= warmup_steps < total_steps:
    raise ValueError(f'warmup_cosine: the warm-up ends before step {total_steps}; got warmup_steps={warmup_steps}')
  return optax.warmup_cosine_decay_schedule(
    init_value=peak / (warmup_steps + 1),  # a first step at rate 0 would be a step wasted
    peak_value=peak,
    warmup_steps=warmup_steps,
    decay_steps=total_steps,
    end_value=final,
  )
