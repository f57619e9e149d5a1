"""What training in integers costs: a step with `fake_quant` or `lsq` against the same step in float32.

  python experiments/bench/quantization.py --rounds=15

Prints for each network the ratio of each recipe's step to the float step's: median, minimum and maximum over the
rounds of alternating A, B, A, B in one process. Nothing here is asserted: machines differ, and are shared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import turns
from absl import app, flags

import jaxlite as jl
from jaxlite.models import MLP, ResNet20, SmallCNN
from jaxlite.quantization._lsq import lsq
from jaxlite.quantization._ptq import ptq
from jaxlite.quantization._ranges import ema_ranges, frozen_ranges

FLAGS = flags.FLAGS
flags.DEFINE_integer('rounds', 15, 'alternations')
flags.DEFINE_integer('steps', 5, 'steps a round')
flags.DEFINE_integer('batch', 128, 'examples per step')
flags.DEFINE_list('networks', ['MLP', 'SmallCNN'], 'of MLP (1.2 M parameters), SmallCNN, ResNet20')
flags.DEFINE_list('only', [], 'recipes; all if empty')

NETWORKS: dict[str, tuple[Callable[[], Any], tuple[int, ...], str]] = {  # and the first layer
  'MLP': (lambda: MLP((784, 512, 256), classes=10), (28, 28, 1), 'dense1'),
  'SmallCNN': (lambda: SmallCNN(), (28, 28, 1), 'conv1'),
  'ResNet20': (lambda: ResNet20(), (28, 28, 1), 'stem'),
}


def recipes(model: Any, batch: dict[str, np.ndarray], first: str) -> dict[str, list[Any]]:
  """What stands before the optimizer."""
  params, state = model.init(jax.random.key(0), batch['inputs'])
  calibrated = ptq(jl.Network(model, params, state), [batch]).model_state['jl.fake_quant']
  return {
    'float32': [],
    'fake_quant': [jl.fake_quant()],
    'fake_quant, frozen ranges': [jl.fake_quant(activations=frozen_ranges(calibrated))],
    'fake_quant, 4 bits, delay, freeze': [jl.fake_quant(4, begin=10, activations=ema_ranges(freeze=1000))],
    'fake_quant, weights alone': [jl.fake_quant((8, None))],
    'lsq': [lsq()],
    'lsq, fixed inputs': [lsq(fixed=f'^{first}/')],
  }


def main(_: list[str]) -> None:
  """Times each network's recipes in turn."""
  rng = np.random.default_rng(0)
  for network in FLAGS.networks:
    make, shape, first = NETWORKS[network]
    model = jl.from_linen(make())
    batch = {
      'inputs': rng.normal(size=(FLAGS.batch, *shape)).astype(np.float32),
      'labels': rng.integers(0, 10, FLAGS.batch).astype(np.int32),
    }
    running = {}
    for name, parts in recipes(model, batch, first).items():
      if name != 'float32' and FLAGS.only and name not in FLAGS.only:
        continue
      train = jl.train_step(model, jl.cross_entropy, jl.chain(*parts, optax.adam(1e-3)))
      running[name] = train, train.step(train.init(jax.random.key(0), batch), batch)[0]
    times = turns.in_turns(running, batch, FLAGS.rounds, FLAGS.steps)
    turns.table(times, against='float32', title=f'{network}, batch {FLAGS.batch}')


if __name__ == '__main__':
  app.run(main)
