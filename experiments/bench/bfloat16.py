"""A training step in bfloat16 on this machine's CPU: jaxlite's beside XLA's own, and beside jaxlite's in float32.

  python experiments/bench/bfloat16.py

A network's `dtype=jnp.bfloat16` halves its activations; parameters and moments stay float32. XLA:CPU multiplies in
float32 all the same, and pays for both conversions. Steps of the three forms alternate; the median of the rounds'
ratios with the least and the most, the processor's time of one step, and the load are told.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import jaxlite as jl
from jaxlite.cpu.kernels import onednn
from jaxlite.models import MLP, ResNet20, SmallCNN, ViT

FLAGS = flags.FLAGS
flags.DEFINE_list('only', [], 'networks by name; all when empty')
flags.DEFINE_integer('rounds', 9, 'of each form in turn')
flags.DEFINE_float('seconds', 0.3, 'of a round, about')


def images(batch: int, *shape: int) -> dict[str, jax.Array]:
  inputs = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
  return {'inputs': jnp.asarray(inputs), 'labels': jnp.arange(batch) % 10}


CASES: dict[str, tuple[Callable[[Any], Any], Callable[[], dict[str, jax.Array]]]] = {
  'MLP 784-512-512-10, batch 128': (lambda dtype: MLP((512, 512), dtype=dtype), lambda: images(128, 784)),
  'MLP 784-2048-2048-10, batch 256': (lambda dtype: MLP((2048, 2048), dtype=dtype), lambda: images(256, 784)),
  'small CNN, batch 128': (lambda dtype: SmallCNN(dtype=dtype), lambda: images(128, 28, 28, 1)),
  'ResNet-20 on 32x32, batch 64': (lambda dtype: ResNet20(dtype=dtype), lambda: images(64, 32, 32, 3)),
  'ViT d128 L4, batch 32': (lambda dtype: ViT(dtype=dtype), lambda: images(32, 32, 32, 3)),
}
FORMS = {'float32': (jnp.float32, True), 'bfloat16, XLA': (jnp.bfloat16, False), 'bfloat16': (jnp.bfloat16, True)}


class Step:
  """One form of a step, compiled."""

  def __init__(self, make: Callable[[Any], Any], batch: dict[str, jax.Array], form: str):
    dtype, rewrites = FORMS[form]
    recipe = jl.chain(optax.adam(1e-3))
    self.train = jl.train_step(jl.from_linen(make(dtype)), jl.cross_entropy, recipe, rewrites=rewrites)
    self.batch = batch
    self.state = self.train.init(jax.random.key(0), batch)
    self.run(2)
    self.often = max(2, int(FLAGS.seconds / self.run(2)[0]))

  def run(self, often: int) -> tuple[float, float]:
    """(seconds, processor seconds) of a step."""
    clock, spent = time.perf_counter(), time.process_time()
    for _ in range(often):
      self.state, metrics = self.train.step(self.state, self.batch)
    jax.block_until_ready(metrics)
    return (time.perf_counter() - clock) / often, (time.process_time() - spent) / often


def told(ratios: list[float]) -> str:
  return f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'


def main(_: list[str]) -> None:
  reason = onednn.missing('bfloat16')
  print(f'load {os.getloadavg()[0]:.1f}; {reason or "this processor multiplies bfloat16"}')
  print("| a step's time over | XLA's bfloat16 | our float32 | ms of the processor |")
  print('|---|--:|--:|--:|')
  for name, (make, batch) in CASES.items():
    if FLAGS.only and not any(name.startswith(one) for one in FLAGS.only):
      continue
    steps = {form: Step(make, batch(), form) for form in FORMS}
    rounds = [{form: step.run(step.often) for form, step in steps.items()} for _ in range(FLAGS.rounds)]
    over = {form: [one['bfloat16'][0] / one[form][0] for one in rounds] for form in FORMS}
    spent = {form: 1e3 * min(one[form][1] for one in rounds) for form in FORMS}
    told_spent = f'{spent["bfloat16"]:.1f}; {spent["bfloat16, XLA"]:.1f}; {spent["float32"]:.1f}'
    print(f'| {name} | {told(over["bfloat16, XLA"])} | {told(over["float32"])} | {told_spent} |', flush=True)


if __name__ == '__main__':
  app.run(main)
