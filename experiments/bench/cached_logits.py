"""What distilling from kept logits adds to a step, its batch included: A, B, A, B in one process.

  python experiments/bench/cached_logits.py --rounds=40

A step is a batch drawn from 20,000 examples of 28x28 and an Adam step of a network with 1.2 M parameters at batch
128. Plain, with logits in the batch, and with logits and the pictures of 4 views. Nothing here is asserted: machines
differ, and are shared.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import jaxlite as jl
from jaxlite.data import Dataset, batch_at, from_arrays
from jaxlite.data.logits import cache_logits

FLAGS = flags.FLAGS
flags.DEFINE_integer('rounds', 40, 'alternations')
flags.DEFINE_integer('steps', 5, 'steps a round')
BATCH, WIDTHS = 128, (784, 1000, 400, 10)


def network(seed: int) -> jl.Model:
  """A multilayer perceptron on raw pixels."""
  rng = np.random.default_rng(seed)
  params = [(rng.normal(size=size) / np.sqrt(size[0])).astype(np.float32) for size in itertools.pairwise(WIDTHS)]

  def apply(weights: Any, x: Any) -> Any:
    x = x.astype(jnp.float32).reshape(len(x), -1) / 255
    for w in weights[:-1]:
      x = jax.nn.relu(x @ w)
    return x @ weights[-1]

  return jl.from_function(apply, params)


def main(_: list[str]) -> None:
  """Times the three in turn."""
  rng = np.random.default_rng(0)
  pair = rng.integers(0, 256, (20_000, 28, 28, 1)).astype(np.uint8), rng.integers(0, 10, 20_000)
  plain = from_arrays(pair, (pair[0][:10], pair[1][:10]), (pair[0][:10], pair[1][:10]))
  teacher = jl.Network(network(1), *network(1).init(jax.random.key(0), pair[0][:1]))
  with tempfile.TemporaryDirectory() as folder:
    kept = cache_logits(teacher, plain, folder)
    views = cache_logits(teacher, plain, folder, views=[None] + 3 * [jl.optim.shift(1)])
    cases: dict[str, tuple[Dataset, list[Any]]] = {
      'plain': (plain, []),
      'logits': (kept, [jl.distill('logits')]),
      'logits, 4 views': (views, [jl.distill('logits')]),
    }
    running = {}
    for name, (data, parts) in cases.items():
      train = jl.train_step(network(0), jl.cross_entropy, jl.chain(*parts, optax.adam(1e-3)))
      batch = batch_at(data.train, BATCH, 0, 0)
      running[name] = [data, train, train.step(train.init(jax.random.key(0), batch), batch)[0], []]
    for turn in range(FLAGS.rounds):
      for entry in running.values():
        data, train, state, times = entry
        began = time.perf_counter()
        for step in range(turn * FLAGS.steps, (turn + 1) * FLAGS.steps):
          state, _ = train.step(state, batch_at(data.train, BATCH, 0, step))
        jax.block_until_ready(state.params)
        times.append((time.perf_counter() - began) / FLAGS.steps)
        entry[2] = state
    base = running['plain'][3]
    for name, (*_, times) in running.items():
      ratio = statistics.median(one / other for one, other in zip(times, base, strict=True))
      mean = statistics.mean(times)
      print(f'{name:16} {1e3 * mean:8.2f} ms  ratio of means {mean / statistics.mean(base):.3f}, of pairs {ratio:.3f}')


if __name__ == '__main__':
  app.run(main)
