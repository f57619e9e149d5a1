"""Fashion-MNIST from scratch, five seeds: the small CNN, or LeNet-300-100.

  python launch.py --config=experiments/fashion_mnist.py
  python launch.py --config=experiments/fashion_mnist.py --config.network=lenet300 --config.train.epochs=30

Test accuracy, mean and 95 % interval, on 2 shared CPU cores: 91.98 % (91.72 to 92.23) and 90.25 % (90.10 to 90.40).

The four files are found where Debian's package dataset-fashion-mnist puts them, or in --config.data.directory.
"""

from __future__ import annotations

import dataclasses
import functools

import optax

import jaxlite as jl
from jaxlite.models import LeNet300, SmallCNN


@dataclasses.dataclass(kw_only=True)
class Fashion(jl.Config):
  """Adds which network.

  Attributes:
    network: 'cnn' (421,642 parameters) or 'lenet300' (266,610).
    dropout: share of the CNN's hidden units dropped in training.
  """

  network: str = 'cnn'
  dropout: float = 0.4


def get_config() -> Fashion:
  """Eight epochs, five seeds."""
  config = Fashion(name='fashion_mnist', model=model, recipe=recipe, train=jl.Duration(epochs=8))
  config.data.source, config.data.batch_size, config.data.validation = 'fashion_mnist', 128, 0.05
  config.optim.lr, config.optim.weight_decay = 2e-3, 1e-2
  config.log.every = jl.Duration(steps=200)
  config.checkpoint.every = jl.Duration(epochs=2)
  config.runs = {f'seed{seed}': functools.partial(seeded, seed=seed) for seed in range(5)}
  return config


def seeded(config: Fashion, seed: int) -> Fashion:
  """One run: its seed feeds the start, the batches, the validation split, augmentation and dropout."""
  return dataclasses.replace(config, seed=seed)


def model(config: Fashion) -> SmallCNN | LeNet300:
  """The network."""
  networks = {'cnn': SmallCNN(dropout=config.dropout), 'lenet300': LeNet300()}
  if config.network not in networks:
    raise ValueError(f'network is one of {", ".join(networks)}; got {config.network!r}')
  return networks[config.network]


def recipe(config: Fashion, total_steps: int) -> jl.Recipe:
  """Flips and shifts, AdamW on a warm-up cosine, averaged weights."""
  convolves = config.network == 'cnn'
  return jl.chain(
    # Four micro-batches of 32 keep the temporaries of a convolution in the cache: see experiments/bench/parts.py.
    jl.accumulate(4 if convolves else 1),
    jl.augment(jl.optim.flip(), jl.optim.shift(1)) if convolves else jl.augment(jl.optim.flip()),
    jl.optim.label_smoothing(0.05),
    jl.average(0.998),
    optax.clip_by_global_norm(config.optim.clip),
    optax.scale_by_adam(),
    jl.optim.l2(config.optim.weight_decay),
    optax.scale_by_learning_rate(jl.optim.warmup_cosine(config.optim.lr, total_steps, warmup_steps=total_steps // 20)),
  )
