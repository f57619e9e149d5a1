"""Where fine-tuning begins: a backbone with a head that was solved on its features; and the recipe that goes on."""

from __future__ import annotations

import hashlib
import json
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
from jaxlite.data.columns import digest
from jaxlite.finetuning import bag as bags
from jaxlite.finetuning.choice import METHODS, Choice, choose
from jaxlite.finetuning.features import cached_features
from jaxlite.finetuning.head import HEAD, Backbone, backbone, with_head
from jaxlite.finetuning.probe import STRENGTHS, Probe, fit_probe
from jaxlite.finetuning.rates import rates_by_depth, thaw
from jaxlite.host import files

MIXES = (0.0, 0.5, 1.0, 2.0, 4.0)  # of tf-idf beside embeddings; 0 is none
_MOST_CELLS = 60_000_000  # of a dense table of tf-idf: float64, half a gigabyte


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
  """
  if method not in METHODS:
    raise ValueError(f'method is one of {", ".join(METHODS)}; got {method!r}')
  if norm not in ('auto', 'keep', 'train'):
    raise ValueError(f"norm is 'auto', 'keep' or 'train'; got {norm!r}")
  if words not in ('auto', 'yes', 'no', 'only'):
    raise ValueError(f"words is 'auto', 'yes', 'no' or 'only'; got {words!r}")
  if not isinstance(data.train, Split):
    raise ValueError(f'fine-tuning takes examples in memory or mapped; train is a {type(data.train).__name__}')
  outputs, solvable = _outputs(data)
  _check_encoders(network, data)
  began = time.perf_counter()
  first = jax.tree.map(lambda leaf: np.asarray(leaf[:2]), data.train.inputs)
  network = _reading(network, reads) if reads else network
  try:
    found = backbone(network, first, head=head or None)
  except (TypeError, ValueError) as error:
    if not _of_shapes(error):
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
  if not solvable or not (solve or choice.method == 'probe'):
    return Start(with_head(found, outputs), found, choice, None, tuple(told))
  where = files.expanded(folder) if folder else cache.root() / 'features'
  if found.width > 0 and words != 'only':
    shown = cached_features(found, data.train, where, views=views, seed=seed, say=say)
  else:
    shown = np.zeros((count, 1, 0), np.float32)
  spent = time.perf_counter() - began
  began = time.perf_counter()
  probe, extra, mixed = _solved(found, data, shown, outputs, words, strengths, seed, where)
  told.append(
    f'features: {count:,} x {shown.shape[1]} x {found.width:,} in {spent:.1f} s (kept in {where}); head: C = '
    f'{probe.strength:g} chosen {probe.chosen_by}{mixed}, {100 * max(probe.tried.values(), default=np.nan):.1f} % of '
    f'them right, in {time.perf_counter() - began:.1f} s'
  )
  options = {} if extra is None else {'extra': bags.tf_idf, 'state': extra.state}
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
    known = _depths(found)
    frozen = frozenset(path for path, at in known.items() if at < cut / depth)
    hooks += [optim.freeze(lambda path: path in frozen)] if frozen else []
  if choice.method == 'lora':
    hooks.append(_lora(rank, alpha))
    hooks.append(optim.freeze(_but_head_and_extras))
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


def _but_head_and_extras(path: str) -> bool:
  return _but_head(path) and not trees.is_extra(path)


def _lora(rank: int, alpha: float) -> Any:
  lora = getattr(optim, 'lora', None)
  if lora is None:
    raise ValueError("method='lora' needs jl.optim.lora, which this version lacks: take method='last'")
  return lora(rank, alpha=alpha, select=_but_head)


def _depths(found: Backbone) -> dict[str, float]:
  from jaxlite.finetuning.rates import depths

  return depths(found.order, trees.paths(found.params))


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


def _of_shapes(error: Exception) -> bool:
  text = str(error)
  return not (
    isinstance(error, ValueError) and text.startswith(('head', 'a backbone', 'features are', 'finetune', 'no weight'))
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


def _solved(
  found: Backbone,
  data: Dataset,
  shown: np.ndarray,
  classes: int,
  words: str,
  strengths: Sequence[float],
  seed: int,
  where: Path,
) -> tuple[Probe, bags.Bag | None, str]:
  """The head, kept by what it was solved from: a run that goes on begins with the very same bits."""
  train = data.train
  weight = None if train.weight is None else np.asarray(train.weight)
  about = [digest(np.asarray(shown)), digest(train.labels), classes, words, list(map(float, strengths)), seed, 2]
  about += [] if weight is None else [digest(weight)]
  texts = bags.is_text(train.inputs)
  if words in ('yes', 'only') and not texts:
    raise ValueError(f'words={words!r} counts the tokens of texts; the inputs of these data are none')
  bag = None
  if texts and words != 'no':
    bag = bags.fit_bag(train.inputs, getattr(getattr(data.encoder, 'tokenizer', None), 'vocabulary', None))
    about += [digest(bag.column), digest(bag.idf), digest(np.asarray(train.inputs['tokens']))]
    if len(train.labels) * (len(bag.idf) + found.width) > _MOST_CELLS and words == 'auto':
      bag = None
  path = where / f'head-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:20]}.npz'
  kept = _read(path)
  if kept is None:
    kept = _solve(found, train, shown, classes, words, strengths, seed, bag, weight)
    _write(path, *kept)
  probe, mix = kept
  if bag is None:
    return probe, None, ''
  if mix == 0:
    return probe, None, ', embeddings alone'
  return probe, bag, ', tf-idf alone' if np.isinf(mix) else f', tf-idf beside embeddings at {mix:g}'


def _solve(
  found: Backbone,
  train: Split,
  shown: np.ndarray,
  classes: int,
  words: str,
  strengths: Sequence[float],
  seed: int,
  bag: bags.Bag | None,
  weight: np.ndarray | None,
) -> tuple[Probe, float]:
  embeddings = np.asarray(shown[:, 0], np.float64)
  labels = np.asarray(train.labels)
  if bag is None:
    probe = fit_probe(embeddings, labels, classes, weight=weight, strengths=strengths, seed=seed)
    if shown.shape[1] == 1:
      return probe, 0.0
    # The strength is chosen on examples, not on views, which would put one example on both sides of a fold.
    views = shown.shape[1]
    each = np.repeat(np.ones(len(labels)) if weight is None else weight, views) / views
    again = fit_probe(
      shown.reshape(-1, shown.shape[2]), np.repeat(labels, views), classes, weight=each, strengths=[probe.strength]
    )
    return probe._replace(kernel=again.kernel, bias=again.bias), 0.0
  if shown.shape[1] > 1:
    raise ValueError('views are shown to a backbone alone: give words="no"')
  counted = bags.tf_idf_of(bag, train.inputs).astype(np.float64)
  mixes = {'auto': (*MIXES, np.inf), 'yes': MIXES[1:], 'only': (np.inf,), 'no': (0.0,)}[words]
  if not found.width or not embeddings.shape[1]:
    mixes = (np.inf,)
  size = {name: _spread(one) for name, one in (('e', embeddings), ('t', counted)) if one.shape[1]}
  best: tuple[tuple[float, float], Probe, float] | None = None
  for mix in mixes:
    blocks = []
    if not np.isinf(mix):
      blocks.append((embeddings, 1 / size['e']))
    if mix:
      blocks.append((counted, 1 / size['t'] if np.isinf(mix) else mix / size['t']))
    table = np.concatenate([block * scale for block, scale in blocks], axis=1)
    probe = fit_probe(table, labels, classes, weight=weight, strengths=strengths, seed=seed)
    rank = (float(probe.right.mean()) if len(probe.right) else 0.0, -abs(np.log2(mix)) if 0 < mix < np.inf else -9.0)
    if best is None or rank > best[0]:
      scales = np.concatenate([np.full(block.shape[1], scale) for block, scale in blocks])
      kernel = (probe.kernel * scales[:, None]).astype(np.float32)
      if np.isinf(mix) and found.width:  # the embeddings stand there, and count for nothing
        kernel = np.concatenate([np.zeros((found.width, classes), np.float32), kernel])
      best = rank, probe._replace(kernel=kernel), mix
  assert best is not None
  return best[1], best[2]


def _spread(values: np.ndarray) -> float:
  centered = values - values.mean(0)
  return float(np.sqrt(np.mean(np.sum(centered**2, axis=1)))) or 1.0


def _read(path: Path) -> tuple[Probe, float] | None:
  try:
    with np.load(path, allow_pickle=False) as kept:
      known = json.loads(str(kept['about']))
      arrays = [kept[name] for name in ('kernel', 'bias', 'right')]
    if [digest(one) for one in arrays] != known['sha256']:
      return None
    tried = {float(one): value for one, value in known['tried']}
    return Probe(*arrays[:2], known['strength'], tried, arrays[2], known['chosen_by']), float(known['mix'])
  except (OSError, ValueError, KeyError, EOFError, TypeError):
    return None


def _write(path: Path, probe: Probe, mix: float) -> None:
  arrays = {'kernel': probe.kernel, 'bias': probe.bias, 'right': probe.right}
  known = {
    'strength': probe.strength,
    'tried': list(probe.tried.items()),
    'chosen_by': probe.chosen_by,
    'mix': str(mix),
    'sha256': [digest(one) for one in arrays.values()],
  }
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole_file(path) as part, open(part, 'wb') as file:
      np.savez(file, about=json.dumps(known), **arrays)
  except OSError as error:
    raise ValueError(f'cannot keep a head in {path.parent} ({error}): give another folder') from None
