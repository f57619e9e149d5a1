"""How much faster a network of half the width is: whole, shrunk, whole, shrunk in one process.

  python experiments/bench/shrink.py --rounds=20

Small CNN and ResNet-20 on images of Fashion-MNIST's and CIFAR-10's size, in float32, at batch 32, with jaxlite's own
kernels (`jl.for_cpu`), as a run evaluates. Weights are random: times do not depend on them. Nothing here is asserted:
machines differ, and are shared.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
from absl import app, flags

import jaxlite as jl
from jaxlite.models import ResNet20, SmallCNN

FLAGS = flags.FLAGS
flags.DEFINE_integer('rounds', 20, 'alternations')
flags.DEFINE_integer('batch', 32, 'images at once')
flags.DEFINE_integer('calls', 10, 'forwards in a round')
flags.DEFINE_float('keep', 0.5, 'share of the units of each group that stays')
flags.DEFINE_bool('cpu_time', False, 'processor time in place of the clock, where others work on the same cores')
NETWORKS = {'small CNN': (SmallCNN, (28, 28, 1)), 'ResNet-20': (ResNet20, (32, 32, 3))}


def forward(model: jl.Model, params: Any, state: Any) -> Any:
  """A compiled forward, with everything but the images bound."""
  run = jax.jit(jl.for_cpu(lambda p, s, x: model.apply(p, s, x, train=False, key=None)[0]))
  return lambda x: run(params, state, x)


def main(_: list[str]) -> None:
  """Prints a line for each network."""
  clock = time.process_time if FLAGS.cpu_time else time.perf_counter
  for name, (make, size) in NETWORKS.items():
    inputs = np.random.default_rng(0).normal(size=(FLAGS.batch, *size)).astype(np.float32)
    model = jl.from_linen(make())
    params, state = model.init(jax.random.key(0), inputs)
    small = jl.shrink(model, params, state, inputs, keep=FLAGS.keep, key=jax.random.key(0))
    ways = {'whole': forward(model, params, state), 'shrunk': forward(*small.network[:3])}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for run in ways.values():
      jax.block_until_ready(run(inputs))
    for _ in range(FLAGS.rounds):
      for way, run in ways.items():
        begin = clock()
        for _ in range(FLAGS.calls):
          jax.block_until_ready(run(inputs))
        times[way].append((clock() - begin) / FLAGS.calls)
    whole, shrunk = (float(np.median(times[way])) for way in ways)
    counts = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, small.params)]
    print(
      f'{name}: {counts[0]:,} to {counts[1]:,} parameters, {whole * 1e3:.2f} to {shrunk * 1e3:.2f} ms a batch, '
      f'{whole / shrunk:.2f} times'
    )


if __name__ == '__main__':
  app.run(main)
