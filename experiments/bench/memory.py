"""Peak memory of training, where there is enough of it and where it is the limit.

  python experiments/bench/memory.py [--cases=cnn,resnet20]

Fresh processes: plain Flax Linen + Optax, jaxlite with memory to spare, and jaxlite under a limit (as `ulimit -v` sets
it, here --room MiB above what the process has mapped when its first step is compiled) too small for keeping freed
memory mapped. The most memory each held in 30 steps, and its decision. Medians.
"""

from __future__ import annotations

import sys

import numpy as np
import serving
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list('cases', ['cnn', 'resnet20'], 'which networks')
flags.DEFINE_integer('room', 400, 'MiB that the limited process may grow by')
flags.DEFINE_integer('repeats', 3, 'processes of each kind')
KINDS = {
  'Linen + Optax': ('Linen + Optax', 'default', 0),
  'jaxlite': ('jaxlite', 'kept', 0),
  'jaxlite, limited': ('jaxlite', 'kept', 1),
}


def main(_: list[str]) -> None:
  """Prints a table a case."""
  for case in FLAGS.cases:
    print(f'{case:32} {"peak MiB":>9} {"of plain":>9}')
    plain = None
    for name, (form, allocator, limited) in KINDS.items():
      spec = {'case': case, 'optimizer': 'sgd', 'allocator': allocator, 'cache': '', 'room': limited * FLAGS.room}
      peaks = []
      for _ in range(FLAGS.repeats):
        worker = serving.start(sys.executable, 'jax_worker.py', spec)
        serving.ask(worker, 'first', form)
        serving.ask(worker, 'time', form, 30)
        peaks.append(serving.ask(worker, 'peak') / 2**20)
        serving.stop(worker)
      peak = float(np.median(peaks))
      plain = plain or peak
      print(f'{name:32} {peak:9.0f} {peak / plain:9.2f}', flush=True)


if __name__ == '__main__':
  app.run(main)
