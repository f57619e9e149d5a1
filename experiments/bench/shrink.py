"""How much faster a network of half the width is, beside Torch-Pruning: whole, shrunk, whole, shrunk, in turn.

  python experiments/bench/shrink.py --rounds=20 [--torch_python=PATH]

Small CNN and ResNet-20 on images of Fashion-MNIST's and CIFAR-10's size, in float32, at batch 32, with jaxlite's own
kernels (`jl.for_cpu`), as a run evaluates. Weights are random: times do not depend on them. The interpreter of
`--torch_python` has PyTorch and torch-pruning; the same networks are pruned there by magnitude to the same share, each
timed in the faster of its two layouts, in a process that works only when it is asked. Told of its result is how far
the answers lie from those of the whole network with zeros in place of what is gone. Nothing here is asserted: machines
differ, and are shared.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
import serving
from absl import app, flags

import jaxlite as jl
from jaxlite.models import ResNet20, SmallCNN

FLAGS = flags.FLAGS
flags.DEFINE_integer('rounds', 20, 'alternations')
flags.DEFINE_integer('batch', 32, 'images at once')
flags.DEFINE_integer('calls', 10, 'forwards in a round')
flags.DEFINE_float('keep', 0.5, 'share of the units of each group that stays')
flags.DEFINE_bool('cpu_time', False, 'processor time in place of the clock, where others work on the same cores')
flags.DEFINE_string('torch_python', '', 'the interpreter that has PyTorch and torch-pruning')
NETWORKS = {'cnn': ('small CNN', SmallCNN, (28, 28, 1)), 'resnet20': ('ResNet-20', ResNet20, (32, 32, 3))}


def forward(model: jl.Model, params: Any, state: Any) -> Any:
  """A compiled forward, with everything but the images bound."""
  run = jax.jit(jl.for_cpu(lambda p, s, x: model.apply(p, s, x, train=False, key=None)[0]))
  return lambda x: run(params, state, x)


def told(counts: list[int], whole: float, less: float) -> str:
  """Returns one result as text."""
  return (
    f'{counts[0]:,} to {counts[1]:,} parameters, {whole * 1e3:.2f} to {less * 1e3:.2f} ms a batch, '
    f'{whole / less:.2f} times'
  )


def main(_: list[str]) -> None:
  """Prints a line for each network, and one for Torch-Pruning's."""
  clock = time.process_time if FLAGS.cpu_time else time.perf_counter
  worker = None
  if FLAGS.torch_python and serving.missing(FLAGS.torch_python, 'torch_pruning'):
    print(f'{FLAGS.torch_python} lacks torch-pruning, which is left out')
  elif FLAGS.torch_python:
    worker = serving.start(FLAGS.torch_python, 'shrink_torch.py', {})
  for name, (title, make, size) in NETWORKS.items():
    inputs = np.random.default_rng(0).normal(size=(FLAGS.batch, *size)).astype(np.float32)
    model = jl.from_linen(make())
    params, state = model.init(jax.random.key(0), inputs)
    small = jl.shrink(model, params, state, inputs, keep=FLAGS.keep, key=jax.random.key(0))
    ways = {'whole': forward(model, params, state), 'shrunk': forward(*small.network[:3])}
    theirs = serving.ask(worker, 'prune', name, FLAGS.keep, FLAGS.batch, False) if worker else {'why': ''}
    if theirs.get('why') and name == 'resnet20':
      print(f'{title}: Torch-Pruning does not run: {theirs["why"]}; with convolutions as shortcuts:')
      theirs = serving.ask(worker, 'prune', name, FLAGS.keep, FLAGS.batch, True)
    times: dict[str, list[float]] = {way: [] for way in ways}
    others: dict[str, list[float]] = {}
    for run in ways.values():
      jax.block_until_ready(run(inputs))
    for _ in range(FLAGS.rounds):
      for way, run in ways.items():
        begin = clock()
        for _ in range(FLAGS.calls):
          jax.block_until_ready(run(inputs))
        times[way].append((clock() - begin) / FLAGS.calls)
      if 'why' not in theirs:
        for form, seconds in serving.ask(worker, 'time', FLAGS.calls, FLAGS.cpu_time).items():
          others.setdefault(form, []).append(seconds)
    counts = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, small.params)]
    print(f'{title}: {told(counts, *(float(np.median(times[way])) for way in ways))}', flush=True)
    if theirs.get('why'):
      print(f'  Torch-Pruning does not run: {theirs["why"]}')
    elif worker:
      best = [min(np.median(found) for form, found in others.items() if form.startswith(way)) for way in ('wh', 'pr')]
      ours = [np.median(times[way]) for way in ways]
      print(
        f'  Torch-Pruning: {told(theirs["parameters"], *best)}; {best[0] / ours[0]:.2f} and {best[1] / ours[1]:.2f} of'
      )
      print(f'  our times; its answers lie within {theirs["apart"]:.1g} of those of the network with zeros there')
  if worker:
    serving.stop(worker)


if __name__ == '__main__':
  app.run(main)
