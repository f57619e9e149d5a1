"""A network of fewer channels, out of a trained one: what it loses and how much faster it answers, five seeds.

  python experiments/shrink.py --keep=0.5 --workdir=runs/shrink
  python launch.py --config=experiments/shrink.py --run=small0 --config.keep=0.375

Of each seed three runs: `base` trains the small CNN (or `--network=resnet20`) on Fashion-MNIST, `small` takes neurons
and channels out of it and goes on for as long, and `dense` trains the whole network for as many epochs altogether. The
share that stays is to be chosen on validation; the test split is scored once for each run. With `--way=gradual` units
fall to zero while `base` trains (`jl.pruning.prune_groups`), and `jl.shrink` takes out what is zero. Times are those of
a forward at batch 32 in float32 with jaxlite's kernels, both networks in turn.

The four files are found where Debian's package dataset-fashion-mnist puts them, or in --config.data.directory.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np
import optax

import jaxlite as jl
from jaxlite.models import ResNet20, SmallCNN

NETWORKS = {'cnn': SmallCNN, 'resnet20': lambda dropout: ResNet20()}


@dataclasses.dataclass(kw_only=True)
class Shrinking(jl.Config):
  """Adds what is left, and how it comes about.

  Attributes:
    network: 'cnn' or 'resnet20', which knows no dropout.
    keep: share of the units of each group that stays.
    flops: at most so many floating-point operations for each example, in place of `keep`; 0 for none.
    way: 'once', cut at the end of `base`, or 'gradual', while it trains.
    taught: folder of a finished run that teaches all three; '' for none.
    after: epochs of `small`; 0 for as many as `base` has.
    dropout: share of hidden units dropped as the whole network is trained, in `base` and `dense`.
    dropout_after: likewise in `small`.
    lr_after: learning rate of `small`; 0 for that of the others. Fewer weights bear, and want, larger steps.
    stage: of a run: 'dense', 'base' or 'small'.
  """

  network: str = 'cnn'
  keep: float = 0.5
  flops: float = 0.0
  way: str = 'once'
  taught: str = ''
  after: int = 0
  dropout: float = 0.0
  dropout_after: float = 0.0
  lr_after: float = 0.0
  stage: str = 'dense'


def get_config(seeds: int = 5, epochs: int = 4, lr: float = 2e-3, **options: Any) -> Shrinking:
  """Three runs a seed.

  Args:
    seeds: how many.
    epochs: before units go.
    lr: the learning rate.
    **options: fields of the config.
  """
  config = Shrinking(name='shrink', model=model, recipe=recipe, train=jl.Duration(epochs=epochs), **options)
  config.data.source, config.data.batch_size, config.data.validation = 'fashion_mnist', 128, 0.1
  config.optim.lr, config.optim.weight_decay = lr, 1e-2
  config.log.every, config.checkpoint.every = jl.Duration(steps=200), jl.Duration(epochs=2)
  for seed in range(seeds):
    config.runs |= {f'{stage}{seed}': functools.partial(staged, stage, seed) for stage in ('base', 'small', 'dense')}
  return config


def staged(stage: str, seed: int, config: Shrinking) -> Shrinking:
  """One run: its seed feeds the start, the batches, the validation split, augmentation and dropout."""
  before, after = config.train.epochs, config.after or config.train.epochs
  epochs = {'base': before, 'small': after, 'dense': before + after}[stage]
  teacher = f'../base{seed}' if stage == 'small' else ''
  return dataclasses.replace(config, stage=stage, seed=seed, train=jl.Duration(epochs=epochs), teacher=teacher)


def model(config: Shrinking) -> Any:
  """The network of a run."""
  whole = NETWORKS[config.network](dropout=config.dropout_after if config.stage == 'small' else config.dropout)
  if config.stage != 'small':
    return whole
  base = jl.load(config.teacher)
  left: dict[str, float] = {'flops': config.flops} if config.flops else {'keep': config.keep}
  left = left if config.way == 'once' else {}
  shapes = jax.ShapeDtypeStruct((1, 28, 28, 1), np.float32)
  linen = jl.from_linen(whole)
  state = jax.eval_shape(linen.init, jax.random.key(0), shapes)[1]  # which of the run's arrays are the network's own
  state = {name: base.model_state[name] for name in state}
  small = jl.shrink(linen, base.params, state, shapes, **left, key=jax.random.key(config.seed))
  values = small.params, small.model_state
  try:
    return jl.from_linen(small.module(whole), {'params': small.params, **small.model_state})
  except ValueError:  # widths that differ from block to block: the class has no fields for them
    return small.model._replace(init=lambda key, inputs: values)


def recipe(config: Shrinking, total_steps: int) -> jl.Recipe:
  """Flips and shifts, AdamW on a warm-up cosine, averaged weights."""
  gradual = config.stage == 'base' and config.way == 'gradual'
  lr = (config.lr_after if config.stage == 'small' else 0) or config.optim.lr
  return jl.chain(
    jl.augment(jl.optim.flip(), jl.optim.shift(1)),
    *([jl.distill(jl.load(config.taught), temperature=2.0)] if config.taught else []),
    jl.average(0.998),
    optax.clip_by_global_norm(config.optim.clip),
    optax.scale_by_adam(),
    jl.optim.l2(config.optim.weight_decay),
    optax.scale_by_learning_rate(jl.optim.warmup_cosine(lr, total_steps, warmup_steps=total_steps // 20)),
    *(
      [jl.pruning.prune_groups(1 - config.keep, begin=total_steps // 4, end=total_steps * 3 // 4, every=50)]
      if gradual
      else []
    ),
  )


def forward(network: jl.Network, inputs: Any) -> Any:
  """A compiled forward, with everything bound."""
  run = jax.jit(jl.for_cpu(lambda p, s, x: network.model.apply(p, s, x, train=False, key=None)[0]))
  return lambda: jax.block_until_ready(run(network.params, network.model_state, inputs))


def times(networks: list[jl.Network], rounds: int = 30, calls: int = 3) -> list[float]:
  """Returns the median processor time of a forward of each, in seconds, the networks in turn."""
  inputs = np.random.default_rng(0).integers(0, 256, (32, 28, 28, 1), np.uint8)
  runs = [forward(network, inputs) for network in networks]
  found: list[list[float]] = [[] for _ in runs]
  for _ in range(rounds + 1):
    for run, each in zip(runs, found, strict=True):
      began = time.process_time()
      for _ in range(calls):
        run()
      each.append((time.process_time() - began) / calls)
  return [float(np.median(each[1:])) for each in found]


def live(folder: Any, config: Shrinking) -> jl.Network:
  """A run's values in the model that was trained: of what `jl.load` opens without its code XLA has the only kernels."""
  found = jl.load(folder / f'{config.stage}{config.seed}')
  made = model(dataclasses.replace(config, teacher=str(folder / f'base{config.seed}')))
  made = made if isinstance(made, jl.Model) else jl.from_linen(made)
  return jl.Network(made, found.params, found.model_state)


def size(network: jl.Network) -> int:
  """Returns how many parameters there are."""
  return sum(leaf.size for leaf in jax.tree.leaves(network.params))


if __name__ == '__main__':
  from pathlib import Path

  from absl import app, flags
  from bench.task_tables import interval

  from jaxlite.host.files import read_json
  from jaxlite.run import experiment

  FLAGS = flags.FLAGS
  flags.DEFINE_string('workdir', 'runs/shrink', 'the folder of the runs')
  flags.DEFINE_integer('seeds', 5, 'how many')
  flags.DEFINE_integer('epochs', 4, 'before units go')
  flags.DEFINE_integer('after', 0, 'epochs after it; 0 for as many')
  flags.DEFINE_string('taught', '', 'folder of a finished run that teaches all networks')
  flags.DEFINE_float('keep', 0.5, 'share of the units that stays')
  flags.DEFINE_float('dropout', 0.0, 'share of hidden units dropped as the whole network is trained')
  flags.DEFINE_float('lr', 2e-3, 'learning rate')
  flags.DEFINE_float('lr_after', 0.0, 'learning rate after it; 0 for that of the others')
  flags.DEFINE_float('flops', 0.0, 'operations for each example that are left at the most, in place of --keep')
  flags.DEFINE_enum('network', 'cnn', list(NETWORKS), 'what is made smaller')
  flags.DEFINE_enum('way', 'once', ['once', 'gradual'], 'how they go')
  flags.DEFINE_list('run', [], 'which runs; all')

  def main(_: list[str]) -> None:
    """Trains, and compares."""
    seeds = range(FLAGS.seeds)
    how = {
      name: getattr(FLAGS, name)
      for name in ('network', 'keep', 'flops', 'way', 'after', 'taught', 'dropout', 'lr_after')
    }
    config = get_config(FLAGS.seeds, FLAGS.epochs, FLAGS.lr, **how)
    code = experiment.run(config, FLAGS.workdir, command='python experiments/shrink.py', only=FLAGS.run)
    if code or FLAGS.run:
      raise SystemExit(code)
    right = {
      stage: [
        100 * read_json(Path(FLAGS.workdir, f'{stage}{seed}', 'result.json'))['metrics']['accuracy'] for seed in seeds
      ]
      for stage in ('dense', 'base', 'small')
    }
    networks = [live(Path(FLAGS.workdir).absolute(), staged(stage, 0, config)) for stage in ('dense', 'small')]
    (one, less), (many, few) = times(networks), (size(network) for network in networks)
    print(f'{1e3 * one:.2f} to {1e3 * less:.2f} ms of the processor at batch 32: {one / less:.2f} times less')
    print(f'{many:,} to {few:,} parameters')
    wide = (lambda found: f' ± {interval(found):.2f}') if len(seeds) > 1 else lambda found: ''
    for stage, found in right.items():
      print(f'{stage}: {np.mean(found):.2f} %{wide(found)} on test')
    lost = np.subtract(right['dense'], right['small'])
    print(f'lost: {np.mean(lost):.2f} points{wide(lost)}, seed by seed')

  app.run(main)
