"""Before and after a run's first step: forms for this CPU, the compiled program, memory that stays mapped."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxlite.cpu import autotune
from jaxlite.cpu.replace import Choices
from jaxlite.cpu.site import Site
from jaxlite.host import allocator, machine
from jaxlite.step.state import TrainState
from jaxlite.step.train_step import Train

Say = Callable[[str], None]


def with_forms(train: Train, state: TrainState, batch: Any, path: Path, say: Say) -> Train:
  """Chooses how pools and convolutions run on CPU, once for a run: written before its first step, read back after.

  Args:
    train: of the run.
    state: before its next step.
    batch: one of its batches, [B, ...].
    path: of the run's own table.
    say: is given what was chosen.

  Returns:
    The same functions with the forms chosen; `train` itself on other platforms.
  """
  if any(device.platform != 'cpu' for device in state.step.devices()):
    return train
  return tuned(train, state, batch, functools.partial(autotune.settle, path, say=say))


def tuned(train: Train, state: TrainState, batch: Any, choose: Callable[[Iterable[Site]], Choices]) -> Train:
  """Returns the same functions, run by programs in which each rewrite for CPU has the form that is chosen for it.

  Args:
    train: of a run.
    state: of it, or its shapes.
    batch: one of its batches, [B, ...], or its shapes.
    choose: given the `Site`s of the step's program, names the form of each by its key.
  """
  programs = train.programs.tune(state, batch, choose)
  return train._replace(step=programs.step, steps=programs.steps, eval=programs.eval, programs=programs)


@dataclasses.dataclass
class Took:
  """What compiling took.

  Attributes:
    seconds: on the clock; 0 until it is done, or where it failed.
    program: the `jax.stages.Compiled` that a step runs; None until it is done, and where a step is several programs.
  """

  seconds: float = 0.0
  program: Any = None


@contextlib.contextmanager
def compiling(train: Train, state: TrainState, batch: Any, *, steps: int) -> Iterator[Took]:
  """Compiles a run's step in the background while the body of the `with` block runs; leaves it when both are done.

  Args:
    train: of the run.
    state: before its next step.
    batch: one of its batches, [B, ...].
    steps: that are left; before none nothing is compiled.

  Yields:
    A Took, to be read after the block. What goes wrong is not told here: the first step runs into it again.
  """
  took = Took()

  def run() -> None:
    began = time.monotonic()
    took.program = train.programs.compile(state, batch)
    took.seconds = time.monotonic() - began

  with concurrent.futures.ThreadPoolExecutor(1, 'jaxlite-compile') as thread:
    if steps > 0:
      thread.submit(run)
    yield took


def keep_memory(state: TrainState, say: Say) -> allocator.Growing | None:
  """Keeps memory mapped, once the first step has shown what it needs; only on CPU do temporaries come from malloc.

  Args:
    state: after the first step.
    say: is given what was decided.

  Returns:
    What `jaxlite.host.allocator.watched` is to be given, so that growth has an end; None where nothing is kept.
  """
  if any(device.platform != 'cpu' for device in jax.block_until_ready(state.step).devices()):
    return None
  decision = allocator.keep_mapped()
  say(f'memory: {decision.why}')
  return allocator.Growing(decision.most, machine.resident()) if decision.kept else None
