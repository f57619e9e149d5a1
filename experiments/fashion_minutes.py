"""Fashion-MNIST by the clock: what one, three and twenty minutes on two CPU cores are worth, five seeds each.

  python launch.py --config=experiments/fashion_minutes.py --run=three0
  python launch.py --config=experiments/fashion_minutes.py

Width and epochs are what fits into the minutes from a cold start (imports, data, compiling, evaluation and report
counted) on the machine whose table stands in experiments/README.md; both were chosen on 6,000 held-out training
pictures. While minutes are few, many epochs of a narrow network win.

The four files are found where Debian's package dataset-fashion-mnist puts them, or in --config.data.directory.
"""

from __future__ import annotations

import dataclasses
import functools

import optax

import jaxlite as jl
from jaxlite.models import SmallCNN


@dataclasses.dataclass(kw_only=True)
class Minutes(jl.Config):
  """Adds the network.

  Attributes:
    features: channels of the convolutions.
    hidden: width of the dense layer.
    dropout: share of hidden units dropped in training.
  """

  features: tuple[int, ...] = (16, 32, 64)
  hidden: int = 128
  dropout: float = 0.4


def get_config() -> Minutes:
  """Each budget, five seeds."""
  config = Minutes(name='fashion_minutes', model=model, recipe=recipe)
  config.data.source, config.data.batch_size, config.data.validation = 'fashion_mnist', 128, 0.05
  config.optim.lr, config.optim.weight_decay = 2e-3, 1e-2
  config.eval.every = config.checkpoint.every = jl.Duration(percent=20)
  config.log.every = jl.Duration(percent=5)
  config.runs = {
    f'{name}{seed}': functools.partial(within, seed=seed, **how) for name, how in BUDGETS.items() for seed in range(5)
  }
  return config


BUDGETS = {
  'one': {'epochs': 7},
  'three': {'epochs': 24},
  'twenty': {'epochs': 40, 'features': (32, 64, 128), 'hidden': 256},
}


def within(config: Minutes, seed: int, epochs: int, features: tuple[int, ...] = (), hidden: int = 0) -> Minutes:
  """One run: its seed feeds the start, the batches, the validation split, augmentation and dropout."""
  return dataclasses.replace(
    config,
    seed=seed,
    train=jl.Duration(epochs=epochs),
    features=features or config.features,
    hidden=hidden or config.hidden,
  )


def model(config: Minutes) -> SmallCNN:
  """The network of a run."""
  return SmallCNN(features=config.features, hidden=config.hidden, dropout=config.dropout)


def recipe(config: Minutes, total_steps: int) -> jl.Recipe:
  """Flips and shifts, AdamW on a warm-up cosine, averaged weights."""
  rate = jl.optim.warmup_cosine(config.optim.lr, total_steps, warmup_steps=total_steps // 20)
  return jl.chain(
    jl.augment(jl.optim.flip(), jl.optim.shift(1)),
    jl.optim.label_smoothing(0.05),
    jl.average(0.998),
    optax.clip_by_global_norm(config.optim.clip),
    optax.scale_by_adam(),
    jl.optim.l2(config.optim.weight_decay),
    optax.scale_by_learning_rate(rate),
  )
