"""A program that is killed: trains a chain of all first parts, then each part alone, in folders below a workdir.

  python tests/laws/resumable.py WORKDIR [NAME ...]

It prints 'ready NAME' before each run and 'done' at the end. What it trains is small; what it goes through is not:
compilation, accumulation dispatched in micro-steps, several steps in a dispatch, evaluation, checkpoints, early
stopping's counters.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import optax

import jaxlite as jl
from jaxlite.data import Dataset, from_arrays
from jaxlite.host import preempt
from jaxlite.run import loop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/, as pyproject.toml has it for pytest

from networks import convnet, function_dense


def data() -> Dataset:
  """Three classes of 4x4 images, 61 to train on: the last batch of an epoch is padded."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 100).astype(np.int32)
  inputs = rng.normal(size=(100, 4, 4, 1)).astype(np.float32) + labels[:, None, None, None]
  return from_arrays((inputs[:61], labels[:61]), (inputs[61:80], labels[61:80]), (inputs[80:], labels[80:]))


def parts(total: int) -> dict[str, list]:
  """The hooks and updates of each run, without its optimizer."""
  model = convnet(keep=0.8)
  teacher = jl.Network(model, *model.init(jax.random.key(9), None))
  alone = {
    'prune': [jl.prune(0.75, begin=2, end=total // 2, every=3)],
    'fake_quant': [jl.fake_quant()],
    'distill': [jl.distill(teacher)],
    'freeze': [jl.freeze('conv/b')],
    'accumulate': [jl.accumulate(2)],
    'average': [jl.average(0.9)],
    'label_smoothing': [jl.optim.label_smoothing(0.1)],
    'augment': [jl.augment(jl.optim.shift(1), jl.optim.flip())],
    'l2': [jl.optim.l2(1e-3)],
  }
  dispatched = {'dispatched': [jl.average(0.9), jl.prune(0.75, begin=2, end=total // 2, every=3)]}
  return {'all': [part for some in alone.values() for part in some], **alone, **dispatched}


def network(name: str):
  """A convolution with dropout; what is sent off several steps at once on CPU has none."""
  if name != 'dispatched':
    return convnet(keep=0.8)
  rng = np.random.default_rng(9)
  weights = [rng.normal(size=shape).astype(np.float32) / 4 for shape in ((16, 32), (32,), (32, 3), (3,))]
  dense = lambda params, x: function_dense(params, x.reshape(len(x), -1))  # noqa: E731
  return jl.from_function(dense, [tuple(weights[:2]), tuple(weights[2:])])


def recipe(name: str):
  """The recipe of one run: its parts around an optimizer, what must be last at the end."""

  def build(config: jl.Config, total: int) -> jl.Recipe:
    some = parts(total)[name]
    last = [part for part in some if isinstance(part, jl.contract.Last)]
    rest = [part for part in some if not isinstance(part, jl.contract.Last)]
    rate = jl.optim.warmup_cosine(1e-2, total, warmup_steps=3)
    return jl.chain(*rest, optax.clip_by_global_norm(1.0), optax.adam(rate), *last)

  return build


def main(workdir: str, *names: str) -> int:
  """Trains the runs of these names, all by default; 75 when a signal stopped it."""
  for name in names or parts(4):
    config = jl.Config(name=name, recipe=recipe(name), train=jl.Duration(steps=60))
    config.data.batch_size = 8
    config.eval.every, config.eval.patience, config.eval.batch_size = jl.Duration(steps=7), 100, 5
    config.checkpoint.every, config.log.every = jl.Duration(steps=5), jl.Duration(steps=4)
    config.log.progress, config.machine.steps_per_dispatch = False, 3
    print(f'ready {name}', flush=True)
    try:
      loop.train(config, Path(workdir) / name, model=network(name), data=data(), say=lambda line: None)
    except loop.Preempted:
      return preempt.EXIT_PREEMPTED
  print('done', flush=True)
  return 0


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
