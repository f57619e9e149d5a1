"""What a run does where its config does not say: a recipe and a network for the first minute.

Neither is the best there is for anybody's data. They train sensibly, so that a person sees a first result before
choosing anything.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

from jaxlite.config.schema import Config
from jaxlite.contract import Recipe, chain
from jaxlite.data.dataset import Dataset
from jaxlite.errors import ConfigError
from jaxlite.optim import l2
from jaxlite.optim.schedules import warmup_cosine


def recipe(config: Config, total_steps: int) -> Recipe:
  """Clipping, AdamW and a warm-up cosine, from the values in `config.optim`.

  Args:
    config: `optim.lr`, `optim.warmup`, `optim.weight_decay` and `optim.clip` are read.
    total_steps: length of the run in optimizer steps.

  Returns:
    The Recipe.

  >>> from jaxlite.config import Config
  >>> len(recipe(Config(name='x'), 100).parts)
  4
  """
  optim = config.optim
  rate = warmup_cosine(optim.lr, total_steps, warmup_steps=_warmup(config, total_steps))
  parts: list[Any] = [optax.clip_by_global_norm(optim.clip)] if optim.clip else []
  parts.append(optax.scale_by_adam())
  if optim.weight_decay:
    parts.append(l2(optim.weight_decay))
  return chain(*parts, optax.scale_by_learning_rate(rate))


def _warmup(config: Config, total_steps: int) -> int:
  unit, amount = config.optim.warmup.given()
  epoch = 1
  if unit == 'epochs':
    of, epochs = config.train.given()
    if of != 'epochs':
      raise ConfigError(f'optim.warmup is in epochs, the run in {of}: give the warm-up in steps or percent')
    epoch = max(1, round(total_steps / epochs))
  steps = config.optim.warmup.to_steps(
    steps_per_epoch=epoch, batch_size=config.data.batch_size, total_steps=total_steps
  )
  return min(steps, max(0, total_steps - 1)) if amount else 0


def model(data: Dataset, inputs: Any) -> Any:
  """A small network for the form of the inputs and the task: a CNN for pictures, an MLP for tables, tokens embedded.

  Args:
    data: its facts and its encoder are looked at.
    inputs: those of one batch, as the data have them.

  Returns:
    A Flax Linen module.

  Raises:
    ConfigError: no default fits; the message says what was found.
  """
  from jaxlite import models  # Flax, which a run with a model of its own need not have

  facts, task = data.facts, data.task.name
  leaves = jax.tree.leaves(inputs)
  tokens = inputs['tokens'] if isinstance(inputs, dict) and 'tokens' in inputs else inputs
  ids = isinstance(tokens, np.ndarray) and tokens.ndim == 2 and tokens.dtype == np.int32
  outputs = _outputs(task, facts)
  if task == 'language' and ids:
    return models.Decoder(vocabulary=int(facts['vocabulary']), length=int(tokens.shape[1]))
  if outputs is not None and ids and hasattr(data.encoder, 'tokenizer'):
    return models.EmbeddingBag(vocabulary=int(data.encoder.tokenizer.vocabulary), classes=outputs)
  if outputs is not None and not ids and isinstance(inputs, np.ndarray):
    pictures = inputs.ndim == 4 and min(inputs.shape[1:3]) >= 4
    return models.SmallCNN(classes=outputs) if pictures else models.MLP((128, 64), classes=outputs)
  found = ', '.join(f'{leaf.dtype}{list(leaf.shape)}' for leaf in leaves[:4])
  counts = ', or .astype("float32") where the integers are quantities and no ids' if ids else ''
  raise ConfigError(f'no default network for the task {data.task.name} on inputs {found}: give model={counts}')


def _outputs(task: str, facts: dict[str, Any]) -> int | None:
  if task == 'multi_label':
    return len(facts['names'])
  known = {'classification': facts.get('classes'), 'regression': facts.get('targets'), 'binary': 1}
  return known.get(task)
