"""A program that is killed: trains a chain of all first parts, then each part alone, in folders below a workdir.

  python tests/laws/resumable.py WORKDIR [NAME ...]

A name is one of `parts`, one of `others` (recipes with optimizers and ends of their own), or a task's ('task_binary').

It prints 'ready NAME' before each run and 'done' at the end. What it trains is small; what it goes through is not:
compilation, accumulation dispatched in micro-steps, several steps in a dispatch, evaluation, checkpoints, early
stopping's counters.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def others(total: int) -> dict[str, Callable[[Any], list]]:
  """What the first parts leave out: a schedule of a rate to the parts of a whole recipe."""
  model = convnet()
  teacher = jl.Network(model, *model.init(jax.random.key(9), None))
  until = {'begin': 2, 'end': total // 2, 'every': 3}
  zero = jax.tree.map(lambda leaf: np.arange(leaf.size).reshape(leaf.shape) % 4 == 0, teacher.params)
  kept = {'dense': {'w': zero['dense']['w'], 'b': None}, 'conv': {'w': None, 'b': None}}
  optim, pruning = jl.optim, jl.pruning
  return {
    'rigl': lambda rate: [jl.rigl(optax.adam(rate), 0.75, end=total // 2, every=5)],
    'set': lambda rate: [pruning.set_(optax.sgd(rate, 0.9), 0.75, end=total // 2, every=5)],
    'n_m': lambda rate: [optax.adam(rate), jl.prune(0.5, structure=pruning.n_m(2, 4), **until)],
    'packed': lambda rate: [optax.adam(rate), jl.prune(0.75, packed=True, **until)],
    'straight_through': lambda rate: [pruning.straight_through(0.75, **until), optax.adam(rate)],
    'hold': lambda rate: [optax.adam(rate), jl.hold(kept)],
    'lsq': lambda rate: [jl.lsq(4), optax.adam(rate)],
    'self_distill': lambda rate: [jl.distillation.self_distill(0.9), optax.adam(rate)],
    'hint': lambda rate: [jl.hint(teacher, {'conv/w': 'conv/w'}), optax.adam(rate)],
    'dkd': lambda rate: [jl.distill(teacher, loss=jl.distillation.dkd), optax.adam(rate)],
    'swa': lambda rate: [optim.swa(total // 2, every=3), optax.adam(rate)],
    'lora': lambda rate: [optim.lora(2, train='conv/b'), jl.average(0.9), optax.adam(rate)],
    'dora': lambda rate: [jl.accumulate(2), optim.dora(1), optax.adam(rate)],
    'qlora': lambda rate: [optim.qlora(2, group=16), optax.adam(rate)],
    'sam': lambda rate: [optim.sam(0.05), optax.sgd(rate)],
    'plateau': lambda rate: [optax.adam(rate), optim.plateau(0.5, patience=1)],
    'l1_proximal': lambda rate: [optax.sgd(rate), optim.l1_proximal(1e-2, rate)],
    'mixup': lambda rate: [jl.augment(optim.mixup(0.4, 3), optim.cutout(2)), optax.adam(rate)],
    'cutmix': lambda rate: [jl.augment(optim.cutmix(1.0, 3), optim.crop(1)), optax.adam(rate)],
    'normalize': lambda rate: [optim.normalize(0.5, 2.0, name='units'), optax.adam(rate)],
    'schedule_free': lambda rate: [optax.contrib.schedule_free_adamw(1e-2, warmup_steps=3)],
    'lbfgs': lambda rate: [optax.lbfgs()],
    'apply_if_finite': lambda rate: [optax.apply_if_finite(optax.adam(rate), 3)],
  }


TASKS = ('regression', 'two_targets', 'binary', 'multi_label', 'language', 'segmentation', 'sequence_labels')


def of_task(name: str) -> tuple[Any, Dataset]:
  """A small network and examples of one kind of task."""
  rng = np.random.default_rng(1)
  x = rng.normal(size=(100, 6)).astype(np.float32)
  tokens = rng.integers(1, 9, (100, 8)).astype(np.int32)
  after = np.concatenate([tokens[:, 1:], np.full((100, 1), -1, np.int32)], 1)
  target, one = x @ np.arange(6, dtype=np.float32) * 50 + 1000, jl.tasks
  ids, answers, task, outputs = {
    'regression': (x, target, one.regression(), 1),
    'two_targets': (x, np.stack([target, -target], 1), one.regression(), 2),
    'binary': (x, (x[:, 0] > 0.5).astype(int), one.binary(recall=0.8), 1),
    'multi_label': (x, (x[:, :3] > 0).astype(int), one.multi_label(), 3),
    'language': (tokens, after, one.language(9), 9),
    'segmentation': (tokens, tokens % 3, one.segmentation(3), 3),
    'sequence_labels': (tokens, tokens % 3, one.sequence_labels(3), 3),
  }[name]
  splits = [(ids[part], answers[part]) for part in (slice(61), slice(61, 80), slice(80, 100))]
  first = rng.normal(size=(9 if ids is tokens else 6, 8)).astype(np.float32) / 4
  values = {'a': first, 'w': rng.normal(size=(8, outputs)).astype(np.float32), 'b': np.zeros(outputs, np.float32)}

  def forward(params: Any, x: Any) -> Any:
    inner = params['a'][x] if ids is tokens else x @ params['a']
    return jax.nn.relu(inner) @ params['w'] + params['b']

  return jl.from_function(forward, values), from_arrays(*splits, task=task)


def network(name: str):
  """A convolution with dropout; what is sent off several steps at once on CPU has none."""
  if name in ('lbfgs', 'schedule_free'):  # a line search wants the same loss twice
    return convnet()
  if name != 'dispatched':
    return convnet(keep=0.8)
  rng = np.random.default_rng(9)
  weights = [rng.normal(size=shape).astype(np.float32) / 4 for shape in ((16, 32), (32,), (32, 3), (3,))]
  dense = lambda params, x: function_dense(params, x.reshape(len(x), -1))  # noqa: E731
  return jl.from_function(dense, [tuple(weights[:2]), tuple(weights[2:])])


def recipe(name: str):
  """The recipe of one run: its parts around an optimizer, what must be last at the end."""

  def build(config: jl.Config, total: int) -> jl.Recipe:
    rate = jl.optim.warmup_cosine(1e-2, total, warmup_steps=3)
    if name in others(total):
      return jl.chain(*others(total)[name](rate))
    if name.startswith('task_'):
      return jl.chain(
        jl.average(0.9), jl.fake_quant(), optax.adam(rate), jl.prune(0.5, begin=2, end=total // 2, every=3)
      )
    some = parts(total)[name]
    last = [part for part in some if isinstance(part, jl.contract.Last)]
    rest = [part for part in some if not isinstance(part, jl.contract.Last)]
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
    model, examples = of_task(name[5:]) if name.startswith('task_') else (network(name), data())
    try:
      loop.train(config, Path(workdir) / name, model=model, data=examples, say=lambda line: None)
    except loop.Preempted:
      return preempt.EXIT_PREEMPTED
  print('done', flush=True)
  return 0


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
