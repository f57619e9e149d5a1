"""All that a run is made of before its first step: data, model, recipe and step, built from a config."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite import data as datasets
from jaxlite.adapters import adapt
from jaxlite.config.duration import Duration
from jaxlite.config.reads import Reads, watched
from jaxlite.config.schema import Config
from jaxlite.contract import Hook, Model, Network, Recipe, chain
from jaxlite.cpu import autotune
from jaxlite.data.decoded import head
from jaxlite.data.reduction import WAYS, reduce, seen
from jaxlite.diagnosis import repairs
from jaxlite.errors import ConfigError, nearest
from jaxlite.graph.init_numpy import on_host
from jaxlite.optim import accumulate, normalize, project, remat
from jaxlite.quantization import has_integer_weights
from jaxlite.run import agreement, defaults, fit
from jaxlite.run.timetable import Plan
from jaxlite.step.state import TrainState
from jaxlite.step.train_step import Train, train_step
from jaxlite.tasks.lift import examples_in
from jaxlite.tasks.metrics import LARGEST_BATCH, Metrics
from jaxlite.tasks.task import Task

REMAT = 'machine.remat'  # a hook that changes no forward
REDUCE = 'reduce'  # what brings inputs to fewer features
_WINDOWS, _TIMED = 8, 3  # of a trial that is long enough: how often it is timed, and the steps between
REWRITES = 'rewrites.json'  # in a run's folder: how its pools and convolutions run on CPU


class Setup(NamedTuple):
  """What a run is made of before its first step."""

  config: Config
  data: datasets.Dataset
  network: Model
  recipe: Recipe
  train: Train
  metric: Metrics
  plan: Plan
  abstract: TrainState
  first_batch: Any
  began: Any  # the jaxpr of the first state
  score: str  # the metric that picks the best model
  notes: tuple[str, ...]  # what a person should read before training
  reads: Reads  # the fields of the config that somebody has read
  around: tuple[str, ...]  # the hooks that stand around the model whatever the recipe says, by name
  integers: bool  # whether the forward as evaluated multiplies any weight in integers


def prepare(config: Config, folder: Path, model: Any = None, data: Any = None, read: Collection[str] = ()) -> Setup:
  """Builds data, model, recipe and step of a run; writes nothing and trains nothing.

  Args:
    config: of the run.
    folder: the run's.
    model: as `jaxlite.train` takes it.
    data: likewise.
    read: fields of the config that were read before, by whoever made it.
  """
  reads = Reads()
  reads.paths.update(read)
  given = dataclasses.replace(config, teacher=_teacher_of(config, folder)) if config.teacher else config
  asked = watched(given, reads)  # what is read of it from here on is known
  data = repairs.of_data(asked.repair, dataset_of(asked, data))
  batch_size = config.data.batch_size
  _check_size(data, batch_size)
  epoch = datasets.steps_per_epoch(data.train, batch_size)
  sizes = {'steps_per_epoch': epoch, 'batch_size': batch_size}
  total = config.train.to_steps(**sizes)
  if total >= 2**31:
    raise ConfigError(f'steps are counted in 32 bits, so a run has fewer than 2**31; train={config.train} is {total:,}')

  def steps(duration: Duration) -> int:
    return max(1, duration.to_steps(**sizes, total_steps=total))

  plan = Plan(total, epoch, steps(config.log.every), steps(config.eval.every), steps(config.checkpoint.every))
  recipe = repairs.of_recipe(asked.repair, _asked_recipe(asked, total))
  _check_parts(recipe, data.task)
  first = datasets.batch_at(data.train, batch_size, config.seed, 0)
  if model is None:
    make = asked.model
    inputs = seen(data, first['inputs'])
    model = defaults.model(data, inputs) if make is None else _model_of(make, asked)
    if model is None:
      raise ConfigError(f'config.model returns a network; {fit.name_of(make)} returns None: does it end with return?')
  if isinstance(model, Network):
    data = agreement.started(model, data)
  agreement.check_teachers(recipe, data)
  network = repairs.of_network(asked.repair, adapt(model))
  around = getattr(network.apply, 'around', None)
  if around is None:
    outer, inner = _present(normalize(data.mean, data.std)), _present(data.task.hook(data.facts))
    first_of_all = _reduces(data)
    network = _within(first_of_all, network)
    recipe, around = chain(*outer, recipe, *inner), tuple(hook.name for hook in (*outer, *first_of_all, *inner))
  elif data.reduction is not None and REDUCE not in around:
    raise ConfigError(
      f'a network that was loaded keeps its own preprocessing, which reduces nothing; these data are reduced '
      f'({data.reduction.told()}): give it the data without'
    )
  recipe = _thrifty(recipe, config)
  rewrites = (autotune.recorded(folder / REWRITES) or True) if config.machine.rewrites else False
  built = train_step(network, asked.loss or data.task.loss(data.facts), recipe, rewrites=rewrites)
  key = on_host(lambda: jax.random.key(config.seed))()
  began, abstract = _fitting(data, network, first, lambda: fit.begun(built, network, key, first))
  metric = data.task.metrics(data.facts)
  if (score := config.eval.metric or data.task.score) not in metric.names:
    asked = 'eval.metric' if config.eval.metric else f'the score of the task {data.task.name}'
    raise fit.no_metric(asked, score, metric.names)
  some = _of_size(first, min(len(first['weight']), LARGEST_BATCH))  # evaluation goes by batches of its own
  if (count := min(config.eval.batch_size, max(len(data.validation.labels), len(data.test.labels)))) > LARGEST_BATCH:
    fit.evaluated(built, network, abstract, _of_size(first, count), data, metric)
  jaxpr = fit.evaluated(built, network, abstract, some, data, metric)  # what does not fit is told before training
  notes = (*data.notes, *fit.doubts(config, data, score, jaxpr, some))
  known = (metric, plan, abstract, first, began, score, notes, reads, around, has_integer_weights(jaxpr))
  return Setup(config, data, network, recipe, built, *known)


def _of_size(batch: Any, count: int) -> Any:
  """A batch's first so many examples; of more than it has, their shapes."""
  size, has = examples_in(batch)
  if count == size:
    return batch

  def some(leaf: Any, one: bool) -> Any:
    if not one:
      return leaf
    return leaf[:count] if count < size else jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)

  return jax.tree.map(some, dict(batch), has)


def reformed(setup: Setup, config: Config) -> Setup:
  """Returns a run of the same network, data and state whose step takes another form; nothing is traced.

  Args:
    setup: of the run, in its own form.
    config: of the same run, with other values of `machine` and `eval.batch_size` alone.
  """
  recipe = _thrifty(setup.recipe, config)
  loss = config.loss or setup.data.task.loss(setup.data.facts)
  built = train_step(setup.network, loss, recipe, rewrites=config.machine.rewrites)
  return setup._replace(config=config, recipe=recipe, train=built)


def rerated(setup: Setup, config: Config) -> Train:
  """Returns the step of the same network and data by a recipe that is made anew; plain programs, without rewrites.

  Args:
    setup: of the run.
    config: of the same run but for what its recipe reads, which may be traced (a rate).
  """
  recipe, data = _asked_recipe(config, setup.plan.total), setup.data
  if getattr(setup.network.apply, 'around', None) is None:
    recipe = chain(*_present(normalize(data.mean, data.std)), recipe, *_present(data.task.hook(data.facts)))
  loss = config.loss or setup.data.task.loss(setup.data.facts)
  return train_step(setup.network, loss, _thrifty(recipe, config), rewrites=False)


def _model_of(make: Callable[..., Any], config: Config) -> Any:
  """The network that `config.model` makes. One that stands there itself can be called too, with inputs."""
  try:
    return fit.asked(make, 'config.model', '(config)', config)
  except Exception as error:
    if not _is_network(make):
      raise
    raise ConfigError(
      f'config.model is a function (config) -> network; got a {type(make).__name__}: model=lambda config: network; a '
      'network itself is given to jl.train(..., model=network)'
    ) from error


def _is_network(value: Any) -> bool:
  with contextlib.suppress(Exception):
    adapt(value)
    return True
  return False


def _asked_recipe(config: Config, total: int) -> Recipe:
  """The recipe of a run, before what stands around every model."""
  recipe = fit.asked(config.recipe or defaults.recipe, 'config.recipe', '(config, total_steps)', config, total)
  if not isinstance(recipe, Recipe):
    fix = ': does it end with return?' if recipe is None else ': write jl.chain in place of optax.chain'
    raise ValueError(f'config.recipe returns a recipe from jl.chain(...); got {type(recipe).__name__}{fix}')
  return recipe


def shortened(setup: Setup, steps: int) -> Setup:
  """Returns the same programs for a trial of some steps, with an evaluation of some batches and a checkpoint.

  Args:
    setup: of a run, whose length stays that of the schedules.
    steps: how many.
  """
  steps, plan = min(steps, setup.plan.total), setup.plan
  logged = max(1, steps // (_WINDOWS if steps >= _TIMED * _WINDOWS else 2))
  few = plan._replace(total=steps, log=logged, evaluate=steps, checkpoint=steps)
  most, data = 2 * setup.config.eval.batch_size + 1, setup.data
  splits = {name: _first(getattr(data, name), most) for name in ('validation', 'test')}
  return setup._replace(plan=few, data=data._replace(**splits))


def _first(split: Any, most: int) -> Any:
  if not isinstance(split, datasets.Split) or len(split.labels) <= most:
    return split
  return split._make(None if one is None else jax.tree.map(lambda leaf: head(leaf, most), one) for one in split)


def _teacher_of(config: Config, folder: Path) -> str:
  """Where a run's teacher lies. '..' behind a folder that is not there yet, since nothing is trained, leads nowhere."""
  path = folder / config.teacher
  return str(path) if folder.is_dir() else os.path.normpath(path)


def _check_size(data: datasets.Dataset, batch_size: int) -> None:
  """Raises where a batch would be larger than the training split."""
  labels = getattr(data.train, 'labels', None)  # a stream has a size of its own
  if labels is not None and batch_size > len(labels):
    held = len(data.validation.labels) + len(data.test.labels)
    raise ConfigError(
      f'data.batch_size is at most the {len(labels):,} training examples ({held:,} more are validation and test); got '
      f'{batch_size}: lower data.batch_size, or give more data'
    )


def dataset_of(config: Config, data: Any) -> datasets.Dataset:
  """The data of a run: given, made by the config's function, or loaded by name."""
  if data is None and config.data.load is not None:
    data = config.data.load(config)
  if data is None:
    data = _loaded(config)
  task = config.task() if config.task is not None else None
  if not isinstance(data, datasets.Dataset):
    given = {'task': task, 'standardize': config.data.standardize}
    data = datasets.from_arrays(data, validation=config.data.validation, seed=config.seed, **given)
    return _wishing(config, _reduced(config, data))
  if task is not None:
    _check_task(config, data, task)
  if not config.data.standardize:
    if data.reduction is not None and data.reduction.standardized:
      raise ConfigError(
        'data.standardize is False, and the data were reduced as standardized: make them with standardize=False too'
      )
    data = data._replace(
      mean=None, std=None, notes=(*data.notes, 'inputs are not standardized, as data.standardize says')
    )
  return _wishing(config, _reduced(config, data))


def _wishing(config: Config, data: datasets.Dataset) -> datasets.Dataset:
  """The data with the precision or recall that `config.eval` wants of the threshold."""
  asked = {'precision': config.eval.precision, 'recall': config.eval.recall}
  wishes = {name: wish for name, wish in asked.items() if wish is not None}
  if not wishes:
    return data
  told = ' and '.join(f'eval.{name}' for name in wishes)
  had = data.facts.get('wanted')
  if had is None:
    raise ConfigError(
      f'{told} {"is" if len(wishes) == 1 else "are"} of tasks that cut scores by a threshold, and this one is '
      f'{data.task.name}: task=jl.tasks.binary or jl.tasks.multi_label'
    )
  if had and had != wishes:
    raise ConfigError(f'{told} and the task ask for different thresholds, {wishes} and {had}: leave one of the two out')
  if 'thresholds' in data.facts and not isinstance(data.facts.get('threshold'), str):
    raise ConfigError(
      f'{told} chooses thresholds, and the task has a fixed one, {data.facts["threshold"]}: leave one out'
    )
  return data._replace(facts={**data.facts, 'wanted': wishes})


def _reduced(config: Config, data: datasets.Dataset) -> datasets.Dataset:
  """The data as `config.data` has them reduced."""
  by, asked = config.data.reduce, config.data
  if not by:
    return data
  if by not in WAYS:
    raise ConfigError(f'data.reduce is one of {", ".join(WAYS)}; got {by!r} (nearest: {nearest(by, WAYS)})')
  count = int(asked.components) if asked.components >= 1 else asked.components
  if count < 1 and by != 'pca':
    raise ConfigError(f'data.components is a whole number where data.reduce is {by!r}; got {count}: say how many')
  if data.reduction is not None:
    how = data.reduction.how
    same = isinstance(how.get('by'), str) and how['by'] == by
    if not same or (how['components'], how['whiten']) != (count, asked.whiten):
      raise ConfigError(
        f'data.reduce is {by!r}, and these data are reduced already ({data.reduction.told()}): leave one of the two out'
      )
    return data
  return reduce(data, by, count, whiten=asked.whiten, seed=config.seed)


def _reduces(data: datasets.Dataset) -> tuple[Hook, ...]:
  """What brings the inputs of these data to fewer features."""
  found = data.reduction
  return () if found is None else (project(found.weight, found.mean, leaf=found.leaf, name=REDUCE),)


def _fitting(data: datasets.Dataset, network: Model, batch: Any, begin: Callable[[], Any]) -> Any:
  """What begins a run; of a network that does not take inputs that were reduced, what it is given is told."""
  try:
    return begin()
  except Exception as error:
    if data.reduction is None or fit.runs(network, batch['inputs']):
      raise
    said = (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix('.')[:200]
    raise ConfigError(
      f'the network is given float32[B, {data.reduction.components}], since its inputs are reduced, and does not take '
      f'that ({said}): take one for tables, such as jl.models.MLP, or leave data.reduce out'
    ) from error


def _within(hooks: tuple[Hook, ...], network: Model) -> Model:
  """A network behind what changes the form of its inputs: whoever asks for its weights gives it inputs as they came."""
  for hook in hooks:
    inner, network = network, hook.model(network)
    if (module := getattr(inner.apply, 'module', None)) is not None:
      network.apply.module = module  # type: ignore[attr-defined]
  return network


def _loaded(config: Config) -> datasets.Dataset:
  """The data that `config.data.source` names; fields that these data do not have stay unread, which is said."""
  given, path = config.data, datasets.path_of(config.data.source, config.data.directory)
  if path is None:
    return datasets.load(given.source, directory=given.directory, validation=given.validation, seed=config.seed)
  kind = datasets.kind_of(path)
  options = {'validation': given.validation, 'seed': config.seed, 'task': config.task}
  if kind != 'texts':
    options['keep'] = given.keep
  if kind in ('pictures', 'sounds'):
    options['threads'] = given.threads
  if kind == 'pictures':
    options['size'] = given.size
  elif kind == 'table':
    options['label'] = given.label
  return datasets.open_path(path, **options)


def _thrifty(recipe: Recipe, config: Config) -> Recipe:
  """A recipe as `config.machine` has it run in less memory.

  The micro-batches are innermost: what other parts do to a batch is done to the whole of it, with the same draws.
  """
  parts, batches = config.machine.micro_batches, config.data.batch_size
  if parts > 1 and batches % parts:
    raise ConfigError(f'machine.micro_batches divides data.batch_size, {batches}; got {parts}')
  first = (remat(config.machine.remat, name=REMAT),) if config.machine.remat > 1 else ()
  last = (accumulate(parts, name='machine.micro_batches'),) if parts > 1 else ()
  return chain(*first, recipe, *last) if first or last else recipe


def _check_parts(recipe: Recipe, task: Task) -> None:
  """Raises where a part reads outputs as logits over classes of which one is right, and the task's are not."""
  for part in recipe.parts:
    if isinstance(part, Hook) and part.distribution and not task.distribution:
      raise ValueError(
        f'{part.name} needs outputs that are logits over classes of which one is right; those of the task {task.name} '
        'are not: leave it out, or give it a loss of your own, such as loss=lambda student, teacher: ...'
      )


def _check_task(config: Config, data: datasets.Dataset, task: Task) -> None:
  """Raises where a data set was made for another task than the config names, or for the same with other arguments."""
  if task.name != data.task.name:
    raise ValueError(
      f'the config names the task {task.name}, the data set was made for {data.task.name}: make it with '
      f'task={task.name}, or leave config.task out'
    )
  labels = datasets.batch_at(data.train, config.data.batch_size, config.seed, 0)['labels']
  asked, has = task.facts(np.asarray(labels), {}), data.task.facts(np.asarray(labels), {})
  if differ := [f'{name}: {asked[name]} and {has.get(name)}' for name in asked if asked[name] != has.get(name)]:
    raise ValueError(
      f'config.task and the task that the data set was made with differ ({"; ".join(differ)}): make the data set with '
      'task=config.task, or leave config.task out'
    )


def _present(hook: Hook | None) -> tuple[Hook, ...]:
  return () if hook is None or hook == Hook(hook.name) else (hook,)
