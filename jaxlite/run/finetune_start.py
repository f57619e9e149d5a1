"""What a fine-tuning run is made of: its config, what it begins with, and settings that suit where nobody said.

What is decided stands in `jaxlite.finetuning`: the head is found and taken off, features are computed once, a new head
is solved on them, and by the number of examples it is that, or training that begins there. Here it becomes a config,
a network and data as any run has them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from jaxlite.config.duration import Duration
from jaxlite.config.schema import Config
from jaxlite.contract import Network, Recipe
from jaxlite.errors import ConfigError, counted
from jaxlite.finetuning import choice, start
from jaxlite.run.setup import dataset_of

_COARSE = 500  # validation examples: below, accuracy moves in steps larger than what is to be seen
# From a solved head, whose loss is small already: a rate that suits drawn values undoes it in a few steps.
_RATES = {'full': 3e-5, 'gradual': 3e-5, 'last': 1e-4, 'lora': 3e-4, 'probe': 1e-3}


@dataclasses.dataclass(kw_only=True)
class FineTune(Config):
  """A Config with what fine-tuning adds.

  Attributes:
    method: 'probe' (the head alone, solved exactly on fixed features), 'full', 'last' (the upper layers), 'gradual'
      (from the head down, one group of layers after the other), 'lora', or 'auto', which picks by the number of
      examples and says why.
    head: '' finds where the head begins; else a rule on the path of the weight behind the features, or 'outputs' where
      the network gives features itself.
    norm: 'keep' trains with the backbone as in evaluation (batch norm by its running statistics, nothing dropped),
      'train' as in training; 'auto' keeps below 5,000 examples.
    ratio: of the first layer's rate to the head's, geometric between; 0 chooses, 1 is one rate for all.
    solve: whether the head begins as it was solved on fixed features; else at 0.
    unfrozen: of 'last', the share of weights that learn.
    phases: of 'gradual'.
    rank, alpha: of 'lora'; a rank above the smaller side of a matrix is lowered to it.
    words: of texts, whether tf-idf over their tokens stands beside embeddings: 'auto' (by folds), 'yes', 'no', 'only'.
    reads: of texts, how many tokens the backbone sees; 0 is all.
    augment: (config) -> augmentations of the training batches; None for none.
    features: the folder where features are kept; '' is among the user's caches.
  """

  method: str = 'auto'
  head: str = ''
  norm: str = 'auto'
  ratio: float = 0.0
  solve: bool = True
  unfrozen: float = 0.3
  phases: int = 4
  rank: int = 8
  alpha: float = 16.0
  words: str = 'auto'
  reads: int = 0
  augment: Callable[[Config], Any] | None = None
  features: str = ''


def ready(config: Config, model: Any, data: Any, say: Callable[[str], None]) -> tuple[Config, Any, Any, frozenset[str]]:
  """Returns what a run of a config trains: of a FineTune what `finetune` would, of any other what was given.

  Args:
    config: of the run.
    model: as `train` or `finetune` takes it.
    data: likewise.
    say: prints a line.

  Returns:
    The config, model and data, and fields of the config that were read to make them.
  """
  if not isinstance(config, FineTune):
    return config, model, data, frozenset()
  if model is None:
    raise ConfigError('a FineTune begins with a network that has learned: give it as model=')
  config, data, begun, told = prepared(model, data, config, {}, say)
  for line in told:
    say(line)
  return config, begun, data, own_fields()


def own_fields() -> frozenset[str]:
  """The fields that fine-tuning adds to a config."""
  return frozenset(one.name for one in dataclasses.fields(FineTune)) - {one.name for one in dataclasses.fields(Config)}


def prepared(
  network: Any, data: Any, config: FineTune | None, fields: dict[str, Any], say: Callable[[str], None]
) -> tuple[FineTune, Any, Network, tuple[str, ...]]:
  """Returns what `jl.finetune` trains: the config, data, network, and lines to say.

  Args:
    network, data: as it takes them.
    config: likewise; None suits it to the data.
    fields: of the config, set on it.
    say: prints a line.

  Raises:
    ValueError: as `jl.finetune` says.
  """
  given = config is not None
  config = FineTune(name='finetune') if config is None else config
  known = {field.name for field in dataclasses.fields(config)}
  for name in fields:
    if name not in known:
      from jaxlite.errors import nearest

      within = [one for one in sorted(known) if name in getattr(getattr(config, one), '__dataclass_fields__', ())]
      inside = f'it is a field of config.{within[0]}' if within else f'nearest: {nearest(name, known)}'
      raise ValueError(f'finetune has no field {name!r}; {inside}')
  config = dataclasses.replace(config, **fields)
  data = dataset_of(config, data)
  if data.reduction is not None:
    raise ValueError(
      f'a backbone takes inputs as they are, and these are reduced ({data.reduction.told()}): leave data.reduce out'
    )
  count = len(data.train.labels) if hasattr(data.train, 'labels') else 0
  begun = begin(config, network, data, say)
  if not given:
    config = suited(config, begun, count, len(data.validation.labels), asked=set(fields))
  return dataclasses.replace(config, recipe=recipe_of(begun)), data, begun.network, (*begun.told, *_thin(data))


def _thin(data: Any) -> tuple[str, ...]:
  """A line where what was held out is too little to judge by."""
  held = {
    where: len(split.labels)
    for where, split in (('validation', data.validation), ('test', data.test))
    if hasattr(split, 'labels')
  }
  few = {where: count for where, count in held.items() if 0 < count < max(2, data.facts.get('classes', 2))}
  if not few:
    return ()
  told = ' and '.join(f'{counted(count, "example")} for {where}' for where, count in few.items())
  return (f'note: {told}: such scores say next to nothing; give splits of your own, or read how the head did in folds',)


def begin(config: FineTune, network: Any, data: Any, say: Callable[[str], None] | None = None) -> start.Start:
  """Returns what a config's run begins with: see `jaxlite.finetuning.begin`."""
  return start.begin(
    network,
    data,
    method=config.method,
    head=config.head,
    norm=config.norm,
    ratio=config.ratio,
    solve=config.solve,
    words=config.words,
    reads=config.reads,
    folder=config.features,
    seed=config.seed,
    say=say,
  )


def suited(config: FineTune, begun: start.Start, examples: int, validated: int, asked: set[str]) -> FineTune:
  """Returns a config with length, rate and pauses that suit a method and so many examples, where nobody said.

  Args:
    config: of the run.
    begun: what it begins with.
    examples: of the training split.
    validated: examples of the validation split.
    asked: names of fields that somebody set.
  """
  data = dataclasses.replace(config.data, batch_size=max(1, min(32, examples)))
  method = begun.choice.method
  rate = _RATES[method] * (1 if begun.probe is not None else 10)
  optim = dataclasses.replace(config.optim, lr=rate)
  if method == 'probe':
    every = Duration(steps=1)
    config = config if 'train' in asked else dataclasses.replace(config, train=Duration(steps=1))
    looks = dataclasses.replace(config.eval, every=every)
  else:
    steps = choice.steps_for(examples, data.batch_size)
    config = config if 'train' in asked else dataclasses.replace(config, train=Duration(steps=steps))
    every = Duration(steps=max(1, math.ceil(steps / 8))) if 'train' not in asked else Duration(percent=12.5)
    # Few examples are rightly predicted alike by many models: their loss tells these apart.
    metric = config.eval.metric or ('loss' if validated < _COARSE else '')
    looks = dataclasses.replace(config.eval, every=every, start=True, metric=metric)
  saves = dataclasses.replace(config.checkpoint, every=every)
  log = dataclasses.replace(config.log, every=every)
  made: dict[str, Any] = {'data': data, 'optim': optim, 'eval': looks, 'checkpoint': saves, 'log': log}
  return dataclasses.replace(config, **{name: value for name, value in made.items() if name not in asked})


def recipe_of(begun: start.Start) -> Callable[[Any, int], Recipe]:
  """Returns the recipe of what was begun, as a config takes it: (config, total_steps) -> Recipe."""

  def recipe(config: FineTune, total_steps: int) -> Recipe:
    options: dict[str, Any] = {
      'unfrozen': config.unfrozen,
      'phases': config.phases,
      'rank': config.rank,
      'alpha': config.alpha,
    }
    augment = config.augment(config) if config.augment is not None else ()
    return start.recipe(begun, total_steps, optim_config=config.optim, augment=augment, **options)

  return recipe
