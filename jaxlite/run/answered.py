"""What a result keeps of single test examples: which were right, which were worst, and of which split that is told."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxlite.data import inputs as trees
from jaxlite.data.dataset import Dataset
from jaxlite.report.pictures import data_url
from jaxlite.tasks.reliability import reliability_curve
from jaxlite.tasks.task import Answers, Facts

MOST = 12  # mistakes that are shown
_BITS = 1 << 17  # examples whose answers are kept, 16 KiB
_SAMPLED = 64  # examples whose inputs tell one test split from another
_BINS = 15
_LETTERS = 240


def answered(data: Dataset, kept: Any, facts: Facts) -> dict[str, Any]:
  """Returns what a `Result` keeps of single examples, by the names of its fields; a field is left out where none is.

  Args:
    data: of the run.
    kept: what `Metrics.keep` gave for the test split, or None.
    facts: of the run.
  """
  found: dict[str, Any] = {'tested': fingerprint(data.test)}
  answers = None if kept is None else data.task.answers(kept, facts)
  if answers is None:
    return found
  if answers.right is not None and data.test.weight is None and len(answers.right) <= _BITS:
    found['right'] = base64.b64encode(np.packbits(np.asarray(answers.right, bool)).tobytes()).decode()
  found['mistakes'] = [_mistake(data, answers, int(index)) for index in worst(answers, data.test.weight)]
  return found


def reliability(kept: Any, facts: Facts, data: Dataset) -> list[list[float]]:
  """Returns the reliability curve, [said, came true, weight] of each bin; [] where no probability is known."""
  answers = None if kept is None else data.task.answers(kept, facts)
  if answers is None or answers.sure is None or answers.right is None:
    return []
  known = np.isfinite(answers.sure)
  weight = None if data.test.weight is None else np.asarray(data.test.weight)[known]
  if not known.any() or (weight is not None and not (weight > 0).any()):
    return []
  sure = np.clip(np.asarray(answers.sure, np.float64)[known], 0, 1)
  curve = reliability_curve(np.asarray(answers.right, bool)[known], sure, weight, bins=_BINS)
  return np.stack([curve.probability, curve.share, curve.weight], axis=1).tolist()


def worst(answers: Answers, weight: Any = None, most: int = MOST) -> np.ndarray:
  """Returns the examples that were answered worst, worst first; of equal ones the first.

  Args:
    answers: of a split.
    weight: float[N], or None; examples of weight 0 are left out.
    most: how many at most.

  >>> worst(Answers(np.array([0.0, 0.5, np.nan, 0.9]), None, None, str), most=2).tolist()
  [2, 3]
  """
  wrong = np.nan_to_num(np.asarray(answers.wrong, np.float64), nan=np.inf, posinf=np.inf)
  used = wrong > 0 if weight is None else (wrong > 0) & (np.asarray(weight) > 0)
  places = np.flatnonzero(used)
  if len(places) > most:
    places = places[wrong[places] >= np.partition(wrong[places], -most)[-most]]
  return places[np.argsort(-wrong[places], kind='stable')][:most]


def fingerprint(split: Any) -> str:
  """Returns what tells one split from another: a hash of all labels and weights, and of the inputs of some examples."""
  found = hashlib.sha256()
  count = len(split.labels)
  rows = np.unique(np.linspace(0, max(0, count - 1), min(count, _SAMPLED)).astype(np.int64))
  inputs = trees.take(split.inputs, rows) if count else ()
  for leaf in (split.labels, split.weight, *jax.tree.leaves(inputs)):
    array = np.ascontiguousarray(leaf if leaf is not None else [])
    found.update(f'{array.dtype}{array.shape}'.encode())
    found.update(array.tobytes())
  return found.hexdigest()[:16]


def _mistake(data: Dataset, answers: Answers, index: int) -> dict[str, str]:
  shown = {'example': str(index), **{name: str(said)[:_LETTERS] for name, said in answers.told(index).items()}}
  files = (data.files or {}).get('test', ())
  if index < len(files):
    shown['told'] = ', '.join(filter(None, (shown.get('told', ''), str(files[index])[-_LETTERS:])))
  inputs = jax.tree.map(lambda leaf: np.asarray(leaf)[0], trees.take(data.test.inputs, np.array([index])))
  leaves = [inputs['tokens']] if isinstance(inputs, dict) and 'tokens' in inputs else jax.tree.leaves(inputs)
  if len(leaves) == 1 and (url := data_url(leaves[0])):
    return {**shown, 'picture': url}
  return {**shown, 'inputs': _written(leaves, data)}


def _written(leaves: Sequence[np.ndarray], data: Dataset) -> str:
  """Inputs that are no picture, in words: a text where a tokenizer is known, else numbers with their names."""
  tokenizer = getattr(data.encoder, 'tokenizer', None)
  first = leaves[0].ravel() if leaves else np.zeros(0)
  if tokenizer is not None and first.dtype.kind in 'iu' and hasattr(tokenizer, 'decode'):
    try:
      return str(tokenizer.decode(first.tolist()))[:_LETTERS]
    except (ValueError, TypeError, LookupError, AttributeError):
      pass  # a tokenizer of somebody's own
  names = data.feature_names if len(data.feature_names) == len(first) else ()
  parts = [
    f'{names[place]} {value:.4g}' if names else f'{value:.4g}' for place, value in enumerate(first[:40].tolist())
  ]
  return ', '.join(parts)[:_LETTERS] + (' …' if len(first) > 40 else '')
