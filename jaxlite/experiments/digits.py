"""The main job: a teacher on handwritten digits, and a student a third its size, pruned, int8 and distilled.

  python launch.py

Three runs side by side: the teacher, the student that learns from it, and the same student alone. On 2 shared CPU
cores, in 63 s from a cold start: 99.72 %, 99.44 % and 99.17 % of 360 test digits.
"""

from __future__ import annotations

import dataclasses

import optax

import jaxlite as jl
from jaxlite.models import SmallCNN


@dataclasses.dataclass(kw_only=True)
class Digits(jl.Config):
  """Adds what the student is compressed to.

  Attributes:
    features: channels of the convolutions.
    hidden: width of the dense layer.
    dropout: share of hidden units dropped in training.
    sparsity: share of each inner layer's weights that ends at zero; 0 prunes nothing.
    sparsity_ends: the same for the first layer and the classifier, which have few weights and need them.
    bits: of weights and activations; 0 leaves them float32.
    temperature, alpha: of the distillation, where there is a teacher.
  """

  features: tuple[int, ...] = (64, 128)
  hidden: int = 128
  dropout: float = 0.0
  sparsity: float = 0.0
  sparsity_ends: float = 0.45
  bits: int = 0
  temperature: float = 4.0
  alpha: float = 0.7


# What `--mode=tune --run=alone --budget='1 hour'` searches.
SPACE = {
  'optim.lr': jl.tuning.log_uniform(1e-3, 1e-2),
  'optim.weight_decay': jl.tuning.log_uniform(1e-5, 1e-2),
  'hidden': jl.tuning.choice(64, 128),
}


def get_config() -> Digits:
  """The teacher's values, and the runs that vary them."""
  config = Digits(name='digits', model=model, recipe=recipe, train=jl.Duration(epochs=60))
  config.optim.lr = 3e-3
  config.eval.every = jl.Duration(epochs=5)
  config.checkpoint.every = jl.Duration(epochs=20)
  config.log.every = jl.Duration(epochs=10)
  config.runs = {'teacher': teacher, 'student': student, 'alone': alone}
  return config


def teacher(config: Digits) -> Digits:
  """The full network, trained on labels."""
  return dataclasses.replace(config, dropout=0.3)


def alone(config: Digits) -> Digits:
  """The small network: nine weights in ten zero, the rest int8, trained on labels only."""
  return dataclasses.replace(config, features=(32, 64), sparsity=0.92, bits=8, train=jl.Duration(epochs=100))


def student(config: Digits) -> Digits:
  """The same small network, taught by the teacher."""
  return dataclasses.replace(alone(config), teacher='../teacher')


def model(config: Digits) -> SmallCNN:
  """The network of a run."""
  return SmallCNN(features=config.features, hidden=config.hidden, dropout=config.dropout)


def recipe(config: Digits, total_steps: int) -> jl.Recipe:
  """Clip, AdamW on a warm-up cosine; then what the run compresses."""
  rate = jl.optim.warmup_cosine(config.optim.lr, total_steps, warmup_steps=total_steps // 20)
  parts = [
    jl.augment(jl.optim.shift(1)),
    optax.clip_by_global_norm(config.optim.clip),
    optax.scale_by_adam(),
    jl.optim.l2(config.optim.weight_decay),
    optax.scale_by_learning_rate(rate),
    jl.average(0.99),
  ]
  if config.bits:
    parts.append(jl.fake_quant(bits=config.bits))
  if config.teacher:
    parts.append(jl.distill(jl.load(config.teacher), temperature=config.temperature, alpha=config.alpha))
  if config.sparsity:
    when = {'begin': total_steps // 10, 'end': total_steps * 6 // 10, 'every': 20, 'allocate': jl.pruning.uniform}
    parts.append(jl.prune(config.sparsity, select='(conv2|dense1)/kernel', **when))
    parts.append(jl.prune(config.sparsity_ends, select='(conv1|dense2)/kernel', **when))
  return jl.chain(*parts)
