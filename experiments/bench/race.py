"""A race on Fashion-MNIST: seconds from a cold process to 91 % test accuracy, jaxlite against PyTorch.

  python experiments/bench/race.py --torch-python=PATH [--seeds=5] [--target=0.91]

The same small CNN with the same first weights, AdamW, dropout, batch size, data and allocator settings. Runners take
turns, seed by seed; the clock starts with the process, so imports, reading the files, compiling and every test are
in it. jaxlite runs twice a seed: with an empty compile cache, and with the one that the first of them left.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

import numpy as np
import serving
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string('torch_python', sys.executable, 'the interpreter that has PyTorch')
flags.DEFINE_string('data', '/usr/share/datasets/fashion-mnist', 'the folder of the four published files')
flags.DEFINE_integer('seeds', 5, 'how many races')
flags.DEFINE_float('target', 0.91, 'test accuracy to reach')


def run(python: str, script: str, spec: dict) -> tuple[float, int, float]:
  """Lets one runner run; returns (seconds, steps, accuracy) when it reached the target; infinity where it did not."""
  worker = serving.start(python, script, spec)
  try:
    for line in worker.process.stdout:
      step, accuracy = json.loads(line)
      seconds = serving.since(worker)
      reached = accuracy >= FLAGS.target
      worker.process.stdin.write('stop\n' if reached else 'on\n')
      worker.process.stdin.flush()
      if reached:
        return seconds, step, accuracy
  finally:
    serving.stop(worker)
  if worker.process.returncode:
    raise RuntimeError(f'{script} died with exit code {worker.process.returncode}; see above')
  return float('inf'), step, accuracy


def main(_: list[str]) -> None:
  """Runs all races, prints each and the medians."""
  absent = serving.missing(FLAGS.torch_python, 'torch')
  if absent:
    print('PyTorch is not installed there: jaxlite runs alone (--torch-python=PATH)')
  seconds: dict[str, list[float]] = {}
  for seed in range(FLAGS.seeds):
    with tempfile.TemporaryDirectory() as cache:
      spec = {'seed': seed, 'data': FLAGS.data, 'cache': cache}
      runners = {
        'jaxlite, empty compile cache': (sys.executable, 'race_jax.py'),
        'jaxlite, programs kept': (sys.executable, 'race_jax.py'),
        **({} if absent else {'PyTorch': (FLAGS.torch_python, 'race_torch.py')}),
      }
      for name, (python, script) in runners.items():
        taken, steps, accuracy = run(python, script, spec)
        seconds.setdefault(name, []).append(taken)
        print(f'seed {seed}  {name:30} {taken:7.1f} s  {steps:5} steps  {100 * accuracy:.2f} %', flush=True)
  print(f'\n{"seconds to " + format(FLAGS.target, ".0%"):30} {"median":>7} {"min":>7} {"max":>7}  of PyTorch')
  for name, found in seconds.items():
    share = '' if absent else f'{np.median(np.array(found) / np.array(seconds["PyTorch"])):.2f}'
    print(f'{name:30} {np.median(found):7.1f} {min(found):7.1f} {max(found):7.1f}  {share}')
  print(f'{serving.cores()} cores, load of the machine {os.getloadavg()[0]:.1f}')


if __name__ == '__main__':
  app.run(main)
