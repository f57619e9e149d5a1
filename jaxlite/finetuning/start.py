"""Where fine-tuning begins: a backbone with a head that was solved on its features; and the recipe that goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxlite import optim, trees
from jaxlite.contract import Hook, Model, Network, Recipe, chain
from jaxlite.data import Dataset, Split, cache
from jaxlite.data.dataset import check_dataset
from jaxlite.errors import one_line
from jaxlite.finetuning import bag as bags
from jaxlite.finetuning.choice import METHODS, Choice, choose
from jaxlite.finetuning.features import cached_features
from jaxlite.finetuning.head import HEAD, Backbone, backbone, with_head
from jaxlite.finetuning.probe import STRENGTHS, Probe
from jaxlite.finetuning.rates import depths, rates_by_depth, thaw
from jaxlite.finetuning.solving import solved_head
from jaxlite.host import files


class Start(NamedTuple):
  """What fine-tuning begins with.

  Attributes:
    network: the backbone with its new head: give it to `jl.train(model=...)`.
    found: the backbone.
    choice: how it will learn.
    probe: the head as it was solved; None where it begins at 0.
    told: lines for a person: what was taken off, chosen and solved, and in what time.
  """

  network: Network
  found: Backbone
  choice: Choice
  probe: Probe | None
  told: tuple[str, ...]


def begin(
  network: Any,
  data: Dataset,
  *,
  method: str = 'auto',
  head: str = '',
  norm: str = 'auto',
  ratio: float = 0.0,
  solve: bool = True,
  words: str = 'auto',
  reads: int = 0,
  views: Sequence[Any] = (None,),
  strengths: Sequence[float] = STRENGTHS,
  folder: str | Path = '',
  seed: int = 0,
  say: Callable[[str], None] | None = None,
) -> Start:
  """Takes a network's head off, computes the features of the data (once: they are kept) and solves a new head on them.

  Args:
    network: with its values, as in `backbone`.
    data: classes, or any task whose outputs are a row an example.
    method: 'auto', 'probe', 'full', 'last', 'gradual' or 'lora'.
    head: as in `backbone`; '' finds it.
    norm, ratio: as in `Choice`; 'auto' and 0 choose.
    solve: whether the head begins as it was solved; else at 0.
    words: of texts, whether tf-idf over the tokens stands beside the embeddings: 'yes', 'no', 'only', or 'auto', what
      folds of the training examples find best.
    reads: of texts, how many tokens the backbone sees, of those that tf-idf does; 0 is all.
    views: how the training examples are shown to the probe.
    strengths: to choose from.
    folder: where features are kept; '' is among the user's caches.
    seed: of folds and views.
    say: prints a line.

  Returns:
    The Start.

  Raises:
    ValueError: labels and head, or data and network, do not fit.

  >>> import tempfile, jax.numpy as jnp
  >>> from jaxlite.data import from_arrays
  >>> x, y = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0), np.repeat(np.arange(3), 10)
  >>> net = (lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], {'a': jnp.eye(3), 'b': jnp.ones((3, 2))})
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   begun = begin(net, from_arrays((x, y)), folder=folder)
  >>> begun.choice.method, begun.network.predict(np.eye(3, dtype=np.float32)).argmax(1).tolist()
  ('probe', [0, 1, 2])
  """
  if method not in METHODS:
    raise ValueError(f'method is one of {", ".join(METHODS)}; got {method!r}')
  if norm not in ('auto', 'keep', 'train'):
    raise ValueError(f"norm is 'auto', 'keep' or 'train'; got {norm!r}")
  if words not in ('auto', 'yes', 'no', 'only'):
    raise ValueError(f"words is 'auto', 'yes', 'no' or 'only'; got {words!r}")
  check_dataset(data, 'begin')
  if not isinstance(data.train, Split):
    raise ValueError(f'fine-tuning takes examples in memory or mapped; train is a {type(data.train).__name__}')
  outputs, solvable = _outputs(data)
  _check_encoders(network, data)
  began = time.perf_counter()
  first = jax.tree.map(lambda leaf: np.asarray(leaf[:2]), data.train.inputs)
  network = _reading(network, reads) if reads else network
  try:
    found = backbone(network, first, head=head or None)
  except Exception as error:  # each framework has its own for shapes that do not fit
    if one_line(error) is not None:
      raise
    shapes = ', '.join(f'{leaf.dtype}{list(leaf.shape[1:])}' for leaf in jax.tree.leaves(first))
    raise ValueError(
      f'the backbone does not take the inputs of these data, {shapes} an example '
      f'({str(error).splitlines()[0][:160]}): resize them, or give the data what the backbone was trained on'
    ) from error
  count = len(data.train.labels)
  size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(found.params))
  choice = choose(count, outputs, size, method=method, norm=norm, ratio=ratio, can_probe=solvable)
  if choice.method == 'probe' and not solvable:
    raise ValueError(
      f'a probe solves classes of which one is right; the task {data.task.name} is none: method="full" or "last"'
    )
  told = [found.told, f'method: {choice.method} ({choice.why})']
  encode = None if data.encoder is not None else found.encode
  found = found._replace(encode=encode)
  if solve and not solvable:
    told.append(
      f'head: begins at 0, since one is solved where one class is right, and the task {data.task.name} is another: it '
      'takes more steps than a solved head, or a larger optim.lr'
    )
  if not solvable or not (solve or choice.method == 'probe'):
    return Start(with_head(found, outputs), found, choice, None, tuple(told))
  where = files.expanded(folder) if folder else cache.root() / 'features'
  if found.width > 0 and words != 'only':
    shown = cached_features(found, data.train, where, views=views, seed=seed, say=say)
  else:
    shown = np.zeros((count, 1, 0), np.float32)
  spent = time.perf_counter() - began
  began = time.perf_counter()
  probe, extra, mixed = solved_head(found.width, data, shown, outputs, words, strengths, seed, where)
  told.append(
    f'features: {count:,} x {shown.shape[1]} x {found.width:,} in {spent:.1f} s (kept in {where}); head: C = '
    f'{probe.strength:g} chosen {probe.chosen_by}{mixed}, {100 * max(probe.tried.values(), default=np.nan):.1f} % of '
    f'them right, in {time.perf_counter() - began:.1f} s'
  )
  options: dict[str, Any] = {} if extra is None else {'extra': bags.tf_idf, 'state': extra.state}
  ready = with_head(found, outputs, kernel=probe.kernel, bias=probe.bias, **options)
  return Start(ready, found, choice, probe, tuple(told))


def recipe(
  start: Start,
  total_steps: int,
  *,
  optim_config: Any,
  unfrozen: float = 0.3,
  phases: int = 4,
  rank: int = 8,
  alpha: float = 16.0,
  augment: Sequence[Any] = (),
) -> Recipe:
  """Returns the recipe of a method: AdamW on a warm-up cosine, with what the method freezes, holds back or adds.

  Args:
    start: what `begin` gave.
    total_steps: of the run.
    optim_config: `lr`, `weight_decay` and `clip` are read.
    unfrozen: of 'last', the share of weights, from the head down, that learn.
    phases: of 'gradual'.
    rank, alpha: of 'lora'.
    augment: augmentations of the training batches.
  """
  choice, found = start.choice, start.found
  hooks: list[Any] = [optim.augment(*augment)] if augment else []
  if choice.method == 'probe':
    return chain(optim.freeze(_but_head), optax.set_to_zero())
  depth = len(found.order)
  if choice.method == 'last':
    if not 0 < unfrozen <= 1:
      raise ValueError(f'unfrozen is the share of weights that learn, in (0, 1]; got {unfrozen}')
    cut = min(depth - 1, round(depth * (1 - unfrozen)))
    known = depths(found.order, trees.paths(found.params))
    frozen = frozenset(path for path, at in known.items() if at < cut / depth)
    hooks += [optim.freeze(lambda path: path in frozen)] if frozen else []
  if choice.method == 'lora':
    # Beside the low-rank changes of the backbone the head learns, and nothing else.
    hooks.append(optim.lora(rank, alpha, train=f'^{HEAD}/', fit=True))
  if choice.norm == 'keep':
    hooks.append(as_evaluated())
  rate = optim.warmup_cosine(optim_config.lr, total_steps, warmup_steps=min(total_steps // 10, max(0, total_steps - 1)))
  parts: list[Any] = [optax.clip_by_global_norm(optim_config.clip)] if optim_config.clip else []
  parts.append(optax.scale_by_adam())
  if optim_config.weight_decay:
    parts.append(optim.l2(optim_config.weight_decay))
  if choice.method in ('full', 'gradual', 'last') and choice.ratio < 1:
    parts.append(rates_by_depth(found.order, choice.ratio))
  parts.append(optax.scale_by_learning_rate(rate))
  if choice.method == 'gradual':
    parts.append(thaw(found.order, phases, max(1, total_steps // (2 * phases))))
  return chain(*hooks, *parts)


def as_evaluated(*, name: str = 'as_evaluated') -> Hook:
  """Runs the network in training as in evaluation: batch norm by its running statistics, which stay; nothing dropped.

  With few examples a batch, statistics of batches are worse than those that the backbone came with.
  """

  def model(inner: Model) -> Model:
    def apply(params: Any, state: Any, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      del train
      return inner.apply(params, state, inputs, train=False, key=key, step=step)

    return inner._replace(apply=apply)

  return Hook(name, model=model)


def _but_head(path: str) -> bool:
  return not path.startswith(f'{HEAD}/')


def _outputs(data: Dataset) -> tuple[int, bool]:
  """How many outputs a head has, and whether they are classes of which one is right."""
  facts, name = data.facts, data.task.name
  if name == 'classification' and np.ndim(data.train.labels) == 1:
    return int(facts['classes']), True
  known = {'multi_label': len(facts.get('names') or ()), 'regression': facts.get('targets'), 'binary': 1}
  if not known.get(name):
    raise ValueError(
      f'a new head gives a row of outputs an example: of classification, multi_label, binary, regression; the task is '
      f'{name}: train such a network as it is, jl.train(model=network)'
    )
  return int(known[name]), False


def _check_encoders(network: Any, data: Dataset) -> None:
  """Raises where texts were made into ids by another tokenizer than the backbone's."""
  known, made = getattr(network, 'encode', None), data.encoder
  ours, theirs = getattr(known, 'tokenizer', None), getattr(made, 'tokenizer', None)
  if ours is not None and theirs is not None and ours != theirs:
    raise ValueError(
      f'the backbone reads ids of {type(ours).__name__} ({ours.vocabulary} tokens), the data have those of '
      f'{type(theirs).__name__} ({theirs.vocabulary}): make them with tokenizer=network.encode.tokenizer'
    )


def _reading(network: Any, most: int) -> Any:
  """The network on the first tokens of each text."""
  if not isinstance(network, Network):
    raise ValueError(f'reads= cuts the texts of a Network; got {type(network).__name__}')
  model = network.model

  def apply(params: Any, state: Any, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    if bags.is_text(inputs):
      inputs = {name: one[:, :most] for name, one in inputs.items()}
    return model.apply(params, state, inputs, train=train, key=key, step=step)

  return network._replace(model=model._replace(apply=apply))
