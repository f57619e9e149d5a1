"""What each part adds to a train step: JAX against JAX in one process, A, B, A, B.

  python experiments/bench/parts.py --rounds=15

Prints, for the small CNN on 28x28 images at batch 128, the ratio of each recipe's time to the plain step's (median,
minimum and maximum over the rounds; a round is several steps, since pruning works now and then), and the temporaries
of the compiled program. Nothing here is asserted: machines differ, and are shared.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import turns
from absl import app, flags

import jaxlite as jl
from jaxlite.models import SmallCNN
from jaxlite.optim._accumulate import micro_step
from jaxlite.step.train_step import gradient_of
from jaxlite.tasks.lift import lift_loss

FLAGS = flags.FLAGS
flags.DEFINE_integer('rounds', 15, 'alternations')
flags.DEFINE_integer('steps', 10, 'steps a round')
BATCH, MICRO = 128, 4


def recipes() -> dict[str, list[Any]]:
  """The parts that are added to clip and Adam."""
  teacher = jl.Network(jl.from_linen(SmallCNN()), *jl.from_linen(SmallCNN()).init(jax.random.key(1), batch()['inputs']))
  return {
    'plain': [],
    f'accumulate({MICRO})': [jl.accumulate(MICRO)],
    'average': [jl.average()],
    'augment': [jl.augment(jl.optim.flip(), jl.optim.shift(2))],
    'fake_quant': [jl.fake_quant()],
    'distill': [jl.distill(teacher)],
    'prune, refresh each 10': [jl.prune(0.9, end=10**6, every=10)],
  }


@functools.cache
def batch() -> dict[str, np.ndarray]:
  """Noise of the right form: nothing here depends on what is learned."""
  rng = np.random.default_rng(0)
  return {
    'inputs': rng.normal(size=(BATCH, 28, 28, 1)).astype(np.float32),
    'labels': rng.integers(0, 10, BATCH).astype(np.int32),
    'weight': np.ones(BATCH, np.float32),
  }


def main(_: list[str]) -> None:
  """Times all recipes in turn."""
  running = {}
  for name, parts in recipes().items():
    last = [part for part in parts if isinstance(part, jl.contract.Last)]
    rest = [part for part in parts if not isinstance(part, jl.contract.Last)]
    recipe = jl.chain(*rest, optax.clip_by_global_norm(1.0), optax.adam(1e-3), *last)
    train = jl.train_step(jl.from_linen(SmallCNN()), jl.cross_entropy, recipe)
    running[name] = train, train.step(train.init(jax.random.key(0), batch()), batch())[0]
  turns.table(turns.in_turns(running, batch(), FLAGS.rounds, FLAGS.steps), against='plain')
  whole, micro = temporaries()
  print(f'temporaries of a gradient: {whole / 2**20:.1f} MiB whole, {micro / 2**20:.1f} MiB in {MICRO} micro-batches')


def temporaries() -> tuple[int, int]:
  """Bytes of XLA's temporaries for the full batch's gradient and for one micro-step."""
  model = jl.from_linen(SmallCNN())
  gradient = gradient_of(model, lift_loss(jl.cross_entropy))
  params, state = model.init(jax.random.key(0), batch()['inputs'])
  key, zero = jax.random.key(0), jnp.int32(0)
  whole = jax.jit(gradient).lower(params, state, batch(), key, zero)
  step = jax.jit(functools.partial(micro_step, gradient, MICRO), donate_argnums=0)
  micro = step.lower(params, state, zero, params, {}, batch(), key, zero)
  return tuple(one.compile().memory_analysis().temp_size_in_bytes for one in (whole, micro))


if __name__ == '__main__':
  app.run(main)
