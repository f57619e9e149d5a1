"""From a process's start to its first step, phase by phase, with an empty compile cache and with a full one.

  python experiments/bench/startup.py [--cases=mlp,cnn,resnet20,vit] [--through=step|loop] [--short]

Every start is a fresh process with a cache folder of its own: the first start fills it, later ones read it. `step` is
a loop of one's own around `train_step`, `loop` is all of `jaxlite.train`. Seconds on the clock, and CPU seconds beside
them (all threads), which other work on the machine disturbs less. Medians.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import serving
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list('cases', ['mlp', 'cnn', 'resnet20', 'vit'], 'which networks')
flags.DEFINE_enum('through', 'step', ['step', 'loop'], 'who trains')
flags.DEFINE_bool('short', False, 'one warm start in place of five')
JAX = ('interpreter', 'import jax, and its devices')  # what every program in JAX pays


def start(case: str, cache: str) -> dict:
  """Starts a process and returns its phases, and what JAX tells of them."""
  spec = {'case': case, 'through': FLAGS.through, 'cache': cache, 'waited': time.time()}
  path = os.pathsep.join(filter(None, [str(serving.HERE.parent.parent), os.environ.get('PYTHONPATH')]))
  command = [sys.executable, str(serving.HERE / 'startup_worker.py'), json.dumps(spec)]
  done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONPATH': path})
  return json.loads(done.stdout.splitlines()[-1])


def main(_: list[str]) -> None:
  """Prints a table a case."""
  for case in FLAGS.cases:
    with tempfile.TemporaryDirectory() as cache:
      cold = start(case, cache)
      warm = [start(case, cache) for _ in range(1 if FLAGS.short else 5)]
    print(f'\n{case}, through {FLAGS.through}   {"cold":>8} {"CPU":>7} {"warm":>8} {"CPU":>7}', flush=True)
    totals = np.zeros(4)
    for phase, first in cold['phases'].items():
      found = [*first, *np.median([one['phases'][phase] for one in warm], axis=0)]
      totals += 0 if phase in JAX or phase.startswith('the rest') else found
      print(f'  {phase:44} {found[0]:8.2f} {found[1]:7.2f} {found[2]:8.2f} {found[3]:7.2f}')
    print('  {:44} {:8.2f} {:7.2f} {:8.2f} {:7.2f}'.format('first step, beyond import jax', *totals))
    for phase, (count, seconds) in cold['inside'].items():
      again, found = warm[0]['inside'].get(phase, (0, 0.0))
      print(f'    {phase:42} {seconds:8.2f} ({count:3}x) {found:8.2f} ({again:3}x)')
  print(f'load of the machine: {os.getloadavg()[0]:.1f}')


if __name__ == '__main__':
  app.run(main)
