"""What the whole compressed step costs beside jaxlite's own plain one: A, B, A, B in one process.

  python experiments/bench/compressed.py --rounds=5

Plain is momentum SGD at a constant rate (or AdamW, --optimizer=adamw), nothing clipped. The whole adds a clip by global
norm, a schedule, 8 bits for weights and activations, a teacher's kept logits and pruning with a refresh every 100
steps; --each shows what every one of them adds alone. A round is 100 steps of each, so it holds one refresh, and times
are means over it. Nothing here is asserted: machines differ, and are shared.
"""

from __future__ import annotations

import time
from typing import Any

import cases
import jax
import numpy as np
import optax
import turns
from absl import app, flags

import jaxlite as jl
from jaxlite.cpu import autotune
from jaxlite.host import allocator
from jaxlite.models import ResNet20, SmallCNN
from jaxlite.step import warm_up

FLAGS = flags.FLAGS
flags.DEFINE_integer('rounds', 5, 'alternations')
flags.DEFINE_integer('steps', 100, 'steps a round; pruning refreshes every 100')
flags.DEFINE_enum('optimizer', 'sgd', ['sgd', 'adamw'], 'of the plain step')
flags.DEFINE_list('networks', ['cnn', 'resnet20'], 'small CNN at batch 128, ResNet-20 at batch 64')
flags.DEFINE_bool('each', False, 'every part alone too')
flags.DEFINE_bool('cpu_time', False, 'processor time in place of the clock, where others work on the same cores')
NETWORKS = {'cnn': SmallCNN, 'resnet20': ResNet20}
EVERY, TOTAL = 100, 10_000


def optimizer(rate: Any) -> Any:
  """Of the plain step, at a rate or a schedule."""
  if FLAGS.optimizer == 'sgd':
    return optax.sgd(rate, momentum=cases.MOMENTUM)
  return optax.adamw(rate, weight_decay=cases.WEIGHT_DECAY)


def recipes(lr: float) -> dict[str, list[Any]]:
  """The plain step, its parts one by one, and all of them."""
  plain, scheduled = optimizer(lr), optimizer(jl.optim.warmup_cosine(lr, TOTAL, warmup_steps=100))
  clip, prune = optax.clip_by_global_norm(1.0), jl.prune(0.9, begin=0, end=TOTAL, every=EVERY)
  quant, distill = jl.fake_quant(8), jl.distill('logits')
  each = {
    'clip': [clip, plain],
    'schedule': [scheduled],
    'fake_quant': [quant, plain],
    'distill from kept logits': [distill, plain],
    'prune': [plain, prune],
  }
  whole = {'whole': [clip, quant, distill, scheduled, prune]}
  return {'plain': [plain], **(each if FLAGS.each else {}), **whole}


def main(_: list[str]) -> None:
  """Times the steps of each network in turn, in a process set up as the loop sets it up."""
  allocator.share_one_arena()
  for name in FLAGS.networks:
    case, batch = cases.case(name), dict(cases.batches(name)[0])
    batch['logits'] = np.random.default_rng(1).normal(size=(case.batch, cases.CLASSES)).astype(np.float32)
    running = {}
    for recipe, parts in recipes(case.lr[FLAGS.optimizer]).items():
      train = jl.train_step(jl.from_linen(NETWORKS[name]()), jl.cross_entropy, jl.chain(*parts))
      state = train.init(jax.random.key(0), batch)
      train = warm_up.tuned(train, state, batch, lambda sites: autotune.choose(sites).table.choices)  # as the loop does
      running[recipe] = train, train.step(state, batch)[0]
    allocator.keep_mapped()
    clock = time.process_time if FLAGS.cpu_time else time.perf_counter
    times = turns.in_turns(running, batch, FLAGS.rounds, FLAGS.steps, clock)
    turns.table(times, against='plain', title=f'{case.title}, {FLAGS.optimizer}')


if __name__ == '__main__':
  app.run(main)
