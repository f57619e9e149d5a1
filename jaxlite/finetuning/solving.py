"""Solving a head: on features, and of texts on tf-idf beside them; kept, so that a resumed run begins with its bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxlite.data import Dataset, Split
from jaxlite.data.columns import digest
from jaxlite.finetuning import bag as bags
from jaxlite.finetuning.probe import Probe, fit_probe
from jaxlite.host import files

MIXES = (0.0, 0.5, 1.0, 2.0, 4.0)  # of tf-idf beside embeddings; 0 is none
_MOST_CELLS = 60_000_000  # of a dense table of tf-idf: float64, half a gigabyte


def solved_head(
  width: int,
  data: Dataset,
  shown: np.ndarray,
  classes: int,
  words: str,
  strengths: Sequence[float],
  seed: int,
  where: Path,
) -> tuple[Probe, bags.Bag | None, str]:
  """Solves a head, or reads the one that was kept: a run that goes on begins with the very same bits.

  Args:
    width: features of the backbone.
    data: a Dataset of classes.
    shown: float32[N, views, width], features of the training examples; of width 0 where words alone count.
    classes: outputs.
    words: of texts, 'auto', 'yes', 'no' or 'only'.
    strengths: to choose from.
    seed: of the folds.
    where: the folder in which heads are kept.

  Returns:
    (the head, what counts words beside the features or None, a word on that for a person).
  """
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
    about += [digest(np.asarray(train.inputs['mask']))]
    if len(train.labels) * (len(bag.idf) + width) > _MOST_CELLS and words == 'auto':
      bag = None
  path = where / f'head-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:20]}.npz'
  kept = _read(path)
  if kept is None:
    kept = solve_head(width, train, shown, classes, words, strengths, seed, bag, weight)
    _write(path, *kept)
  probe, mix = kept
  if bag is None:
    return probe, None, ''
  if mix == 0:
    return probe, None, ', embeddings alone'
  return probe, bag, ', tf-idf alone' if np.isinf(mix) else f', tf-idf beside embeddings at {mix:g}'


def solve_head(
  width: int,
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
  if not width or not embeddings.shape[1]:
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
      if np.isinf(mix) and width:  # the embeddings stand there, and count for nothing
        kernel = np.concatenate([np.zeros((width, classes), np.float32), kernel])
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
    return Probe(arrays[0], arrays[1], known['strength'], tried, arrays[2], known['chosen_by']), float(known['mix'])
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
      np.savez(file, about=json.dumps(known), kernel=probe.kernel, bias=probe.bias, right=probe.right)
  except OSError as error:
    raise ValueError(f'cannot keep a head in {path.parent} ({error}): give another folder') from None
