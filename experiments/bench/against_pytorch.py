"""Train steps against PyTorch, plain Flax Linen + Optax and NNX: same networks, weights, data, batch, optimizer.

  python experiments/bench/against_pytorch.py --out=FOLDER [--short] [--torch-python=PATH]

What keeps it honest. First weights are drawn once in NumPy and handed to all; before anything is timed, the losses of
the first 20 steps have to agree. PyTorch and JAX each live in a process of their own, started with the same allocator
settings, and take turns, one step loop at a time, so that no thread pool disturbs the other. Of PyTorch's memory
layouts and ways to run an optimizer all are shown and the fastest is the yardstick. Ratios are formed within a round.
Plain Linen is timed a second time in a process with the allocator's defaults, as its user would meet it. Starts and
peak memory come from fresh processes. PyTorch may live in an interpreter of its own (--torch-python).

Writes against_pytorch.md and .png. The short form takes minutes, the long one about an hour; use a quiet machine: with
other work on its cores, PyTorch's barriers were seen to cost ten times and more.
"""

from __future__ import annotations

import itertools
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import cases
import evidence
import jax_worker
import numpy as np
import serving
import torch_worker
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string('out', '', 'folder for the table and the picture; empty only prints')
flags.DEFINE_bool('short', False, 'fewer and shorter turns')
flags.DEFINE_float('seconds', 1.0, 'of a turn; not of the short form')
flags.DEFINE_string('torch_python', sys.executable, 'the interpreter that has PyTorch')
flags.DEFINE_list('cases', [case.name for case in cases.CASES], 'which networks')
flags.DEFINE_list('optimizers', ['sgd', 'adamw'], 'which optimizers')
flags.DEFINE_enum('allocator', 'kept', ['kept', 'default'], "glibc's settings in every process, but for 'own defaults'")
flags.DEFINE_bool('compile', False, 'torch.compile too; its warm-up is told apart')
flags.DEFINE_bool('starts', True, 'starts and peak memory, in fresh processes')
LINEN, OWN = 'Linen + Optax', 'Linen + Optax, own defaults'
STEPS, TOLERANCE = 20, 1e-3  # float32 in another order, twenty steps on


class Turn(NamedTuple):
  """A form and who runs it."""

  worker: serving.Worker
  form: str  # as the worker calls it
  name: str  # as the table does
  first: float  # seconds of its build and first step


def workers(case: str, optimizer: str, with_torch: bool) -> list[Turn]:
  """Starts the processes of a case and takes every form through its first step, one after another."""
  spec = {'case': case, 'optimizer': optimizer, 'allocator': FLAGS.allocator, 'cache': ''}
  asked = [(sys.executable, 'jax_worker.py', spec, jax_worker.forms(case))]
  asked.append((sys.executable, 'jax_worker.py', {**spec, 'allocator': 'default'}, [LINEN]))
  if with_torch:
    compiled = [f'{torch_worker.forms(case)[0]} compiled'] if FLAGS.compile else []
    asked.append((FLAGS.torch_python, 'torch_worker.py', spec, [*torch_worker.forms(case), *compiled]))
  turns = []
  for index, (python, script, own, forms) in enumerate(asked):
    worker = serving.start(python, script, own)
    for form in forms:
      seconds = serving.seconds(lambda worker=worker, form=form: serving.ask(worker, 'first', form))
      turns.append(Turn(worker, form, (form, OWN, f'PyTorch {form}')[index], seconds))
  return turns


def check_losses(turns: list[Turn]) -> float:
  """Returns the largest relative difference between the forms' losses over the first steps; refuses a large one."""
  losses = {turn.name: np.array(serving.ask(turn.worker, 'losses', turn.form, STEPS)) for turn in turns}
  reference = losses['jaxlite']
  apart = {name: float(np.max(np.abs(found / reference - 1))) for name, found in losses.items()}
  worst = max(apart, key=lambda name: apart[name])
  if not apart[worst] <= TOLERANCE:
    raise ValueError(
      f'forms train alike before they are timed: losses of the first {STEPS} steps agree within {TOLERANCE}; '
      f'{worst} is off by {apart[worst]:.1e}'
    )
  return apart[worst]


def timed(turns: list[Turn], rounds: int, seconds: float) -> dict[str, np.ndarray]:
  """Returns the seconds per step of each form, by name, float[rounds]: A, B, C, A, B, C ..."""
  steps = {}
  for turn in turns:
    for want in (1, 10):  # the first turn is not counted: it finds the caches cold
      found = serving.ask(turn.worker, 'time', turn.form, want)
    steps[turn.name] = max(1, round(seconds * found['steps'] / found['seconds']))
  times: dict[str, list[float]] = {turn.name: [] for turn in turns}
  for _ in range(rounds):
    for turn in turns:
      found = serving.ask(turn.worker, 'time', turn.form, steps[turn.name])
      times[turn.name].append(found['seconds'] / found['steps'])
  return {name: np.array(found) for name, found in times.items()}


def starts(case: str, optimizer: str, best_torch: str, repeats: int) -> dict[str, evidence.Start]:
  """Times fresh processes to the end of their first step; jaxlite with an empty cache, then a full one."""
  found: dict[str, evidence.Start] = {}
  for form in ('jaxlite', LINEN, 'NNX', *([best_torch] if best_torch else [])):
    own = form == 'jaxlite'
    python, script = (
      (FLAGS.torch_python, 'torch_worker.py') if form == best_torch else (sys.executable, 'jax_worker.py')
    )
    runs = []
    for _ in range(repeats):
      with tempfile.TemporaryDirectory() as cache:
        spec = {'case': case, 'optimizer': optimizer, 'allocator': FLAGS.allocator, 'cache': cache if own else ''}
        for _ in range(2 if own else 1):
          worker = serving.start(python, script, spec)
          serving.ask(worker, 'first', form.removeprefix('PyTorch '))
          runs.append((serving.since(worker), 0))
          serving.ask(worker, 'losses', form.removeprefix('PyTorch '), STEPS)
          runs[-1] = runs[-1][0], serving.ask(worker, 'peak')
          serving.stop(worker)
    cold, warm = runs[:: 2 if own else 1], runs[1::2] if own else []
    found[form] = evidence.Start(
      float(np.median([seconds for seconds, _ in cold])),
      float(np.median([seconds for seconds, _ in warm])) if warm else None,
      max(peak for _, peak in runs),
    )
  return found


def main(_: list[str]) -> None:
  """Runs all that is asked, prints as it goes, writes at the end."""
  rounds, seconds, repeats = (3, 0.2, 1) if FLAGS.short else (9, FLAGS.seconds, 3)
  absent = serving.missing(FLAGS.torch_python, 'torch')
  if absent:
    print(f'PyTorch is not installed in {Path(FLAGS.torch_python).name}: its rows are left out (--torch-python=PATH)')
  results = []
  for case, optimizer in itertools.product(FLAGS.cases, FLAGS.optimizers):
    turns = workers(case, optimizer, with_torch=not absent)
    apart = check_losses(turns)
    print(f'{case}, {optimizer}: losses of {STEPS} steps agree within {apart:.1e}', flush=True)
    found = timed(turns, rounds, seconds)
    for worker in {id(turn.worker): turn.worker for turn in turns}.values():
      serving.stop(worker)
    result = evidence.Result(cases.case(case), optimizer, apart, found, {turn.name: turn.first for turn in turns}, {})
    if FLAGS.starts and optimizer == FLAGS.optimizers[0]:
      result = result._replace(starts=starts(case, optimizer, evidence.yardstick(result), repeats))
    results.append(result)
    print(evidence.rows(result), flush=True)
  from jaxlite.cpu.kernels import (
    onednn,  # not before: the flags are told without JAX
    onednn_c,
  )

  settings = (
    f'{rounds} rounds of {seconds} s a form; allocator: {FLAGS.allocator}; {serving.cores()} cores of '
    f'{evidence.processor() or platform.machine()}; load of the machine at the end {os.getloadavg()[0]:.1f}; '
    + (onednn.missing() or f'oneDNN {onednn_c.version()}')
  )
  text = evidence.table(results, settings, 'not installed' if absent else serving.version(FLAGS.torch_python, 'torch'))
  print(text)
  if FLAGS.out:
    folder = Path(FLAGS.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'against_pytorch.md').write_text(text)
    evidence.picture(results, folder / 'against_pytorch.png')


if __name__ == '__main__':
  app.run(main)
