"""MNIST-1D, signals of 40 numbers: a convolutional network of 1,146 parameters, alone, taught, and in few bytes.

  pip install -e '.[evidence]'
  python launch.py --config=experiments/signals.py

The 4,000 training and 1,000 test signals are those of the package mnist1d, made by its generator with the seed that it
publishes. Five seeds of the small network alone; a teacher of 88,394 parameters; five seeds of the same small network
that learns from it, with half of its inner weights zero and the rest int8.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxlite as jl


class Signals(nn.Module):
  """Convolutions along the signal, each normalized; the largest value of each channel; one dense layer.

  float32[B, classes] of [B, T]; every second convolution halves the signal.

  Attributes:
    channels: of each convolution, of width 5 and then 3.
    dropout: share of the pooled values dropped in training, in [0, 1).
    classes: number of logits.
  """

  channels: Sequence[int]
  dropout: float = 0.0
  classes: int = 10

  @nn.compact
  def __call__(self, x: Any, train: bool = False) -> jax.Array:
    x = jnp.asarray(x, jnp.float32)[..., None]
    for index, channels in enumerate(self.channels):
      width, stride = 3 if index else 5, 1 + index % 2
      x = nn.Conv(channels, (width,), (stride,), use_bias=False, name=f'conv{index + 1}')(x)
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f'norm{index + 1}')(x)
      x = nn.relu(x)
    x = nn.Dropout(self.dropout)(x.max(1), deterministic=not train)
    return nn.Dense(self.classes, name='dense')(x)


@dataclasses.dataclass(kw_only=True)
class Signal(jl.Config):
  """Adds what the network is and becomes.

  Attributes:
    channels: of the convolutions.
    dropout: share of pooled values dropped in training.
    sparsity: share of the inner convolutions' weights that ends at zero.
    bits: of weights and activations; 0 leaves them float32.
  """

  channels: tuple[int, ...] = (8, 12, 16)
  dropout: float = 0.0
  sparsity: float = 0.0
  bits: int = 0


def get_config() -> Signal:
  """The teacher, and five seeds of each small network."""
  config = Signal(name='mnist1d', model=model, recipe=recipe, train=jl.Duration(epochs=120))
  config.data.load, config.data.batch_size, config.data.validation = signals, 100, 0.1
  config.optim.lr, config.optim.weight_decay = 1e-2, 1e-3
  config.eval.every = config.checkpoint.every = jl.Duration(percent=25)
  config.log.every = jl.Duration(percent=5)
  seeds = range(5)
  alone = {f'alone{seed}': functools.partial(small, seed=seed) for seed in seeds}
  taught = {f'student{seed}': functools.partial(student, seed=seed) for seed in seeds}
  config.runs = {**alone, 'teacher': teacher, **taught}
  return config


def small(config: Signal, seed: int) -> Signal:
  """The network of 1,146 parameters: the seed feeds its start, the batches and the validation split."""
  return dataclasses.replace(config, seed=seed)


def teacher(config: Signal) -> Signal:
  """Wider and deeper."""
  optim = dataclasses.replace(config.optim, lr=3e-3, weight_decay=1e-2)
  return dataclasses.replace(
    config, channels=(64, 64, 128, 128), dropout=0.3, optim=optim, train=jl.Duration(epochs=60)
  )


def student(config: Signal, seed: int) -> Signal:
  """The small network, taught, half of the inner weights zero, the rest int8."""
  return dataclasses.replace(
    config, seed=seed, teacher='../teacher', sparsity=0.5, bits=8, train=jl.Duration(epochs=200)
  )


def signals(config: Signal) -> Any:
  """The published signals; the seed draws which tenth of the training split is held out."""
  splits = made()
  return jl.data.from_arrays(
    splits['train'], test=splits['test'], validation=config.data.validation, seed=config.seed, standardize=False
  )


@functools.cache
def made() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Both splits: ((float32[N, 40], int32[N]) each; the generator scales them to mean 0 and deviation 1."""
  try:
    from mnist1d.data import get_dataset_args, make_dataset
  except ImportError as error:
    raise ImportError("the signals come with the package mnist1d: pip install 'jaxlite[evidence]'") from error
  drawn = np.random.get_state()  # noqa: NPY002, the package seeds this one
  kept = make_dataset(get_dataset_args())
  np.random.set_state(drawn)  # noqa: NPY002
  names = {'train': ('x', 'y'), 'test': ('x_test', 'y_test')}
  return {split: (kept[x].astype(np.float32), kept[y].astype(np.int32)) for split, (x, y) in names.items()}


def turned(key: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
  """Each signal, moved by up to a fifth of its length; what leaves at one end comes in at the other."""
  inputs = batch['inputs']
  most = inputs.shape[1] // 5
  by = jax.random.randint(key, inputs.shape[:1], -most, most + 1)
  return {**batch, 'inputs': jax.vmap(jnp.roll)(inputs, by)}


def model(config: Signal) -> Signals:
  """The network of a run."""
  return Signals(config.channels, config.dropout)


def recipe(config: Signal, total_steps: int) -> jl.Recipe:
  """AdamW on a warm-up cosine, averaged weights, moved signals; then what the run compresses."""
  parts: list[Any] = [jl.augment(turned), jl.average(0.995)]
  if config.bits:
    parts.append(jl.fake_quant(bits=config.bits))
  if config.teacher:
    parts.append(jl.distill(jl.load(config.teacher), temperature=2.0, alpha=0.7))
  rate = jl.optim.warmup_cosine(config.optim.lr, total_steps, warmup_steps=total_steps // 20)
  parts += [optax.scale_by_adam(), jl.optim.l2(config.optim.weight_decay), optax.scale_by_learning_rate(rate)]
  if config.sparsity:
    when = {'begin': total_steps // 10, 'end': total_steps * 6 // 10, 'every': 40, 'allocate': jl.pruning.uniform}
    parts.append(jl.prune(config.sparsity, select='conv[23]/kernel', **when))
  return jl.chain(*parts)
