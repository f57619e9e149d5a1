"""Train steps timed in turns, A, B, A, B, in one process: what every bench of JAX against JAX shares."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def in_turns(
  running: dict[str, tuple[Any, Any]],
  batch: Any,
  rounds: int,
  steps: int,
  clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
  """Times each train step in turn.

  Args:
    running: by name (Train, its state after a first step: compiled).
    batch: what every step is given.
    rounds: alternations.
    steps: of each in a round.
    clock: `time.process_time` counts what all threads of this process work, which others' work hardly changes.

  Returns:
    By name the seconds per step, float[rounds].
  """
  states = {name: state for name, (_, state) in running.items()}
  times: dict[str, list[float]] = {name: [] for name in running}
  for _ in range(rounds):
    for name, (train, _) in running.items():
      state = states[name]
      began = clock()
      for _ in range(steps):
        state, _ = train.step(state, batch)
      jax.block_until_ready(state)
      times[name].append((clock() - began) / steps)
      states[name] = state
  return {name: np.array(found) for name, found in times.items()}


def table(times: dict[str, np.ndarray], against: str, title: str = '') -> None:
  """Prints the median time of each, and its ratio to one of them: median, minimum and maximum of the rounds."""
  print(f'{title:36} {"ms per step":>10} {"ratio":>7} {"min":>6} {"max":>6}')
  for name, found in times.items():
    ratio = found / times[against]
    print(f'{name:36} {1e3 * np.median(found):10.1f} {np.median(ratio):7.3f} {ratio.min():6.2f} {ratio.max():6.2f}')
