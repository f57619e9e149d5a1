"""BBC news by few labels: MiniLM's embeddings with a solved head, tf-idf, both; and what `jl.finetune` takes by itself.

  python experiments/bench/news.py --out=runs/news.jsonl

At each number of labels and for each seed, texts are drawn class by class as they come; all others are the test. C is
chosen by folds of the labeled texts, everywhere. 'probe': embeddings of the first 128 tokens. 'tf-idf': scikit-learn's,
of the whole text (words, sublinear, L2) with its LogisticRegression. 'ours': tf-idf of MiniLM's own tokens. 'default':
what folds like best of embeddings, tf-idf and both at several weights. Embeddings are computed once and kept
(`--features`); a line that is in `--out` is not computed again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import transfer_data
from absl import app, flags

import jaxlite as jl
from jaxlite.data import Split
from jaxlite.data.encoders import TextEncoder
from jaxlite.finetuning import backbone, bag, cached_features, fit_probe, solving
from jaxlite.finetuning.probe import STRENGTHS

FLAGS = flags.FLAGS
flags.DEFINE_string('out', 'runs/news.jsonl', 'where finished lines are kept')
flags.DEFINE_string('features', 'runs/features', 'where embeddings are kept')
flags.DEFINE_integer('seeds', 5, 'draws of labels')
flags.DEFINE_list('labels', ['25', '100', '400'], 'how many texts have one')
flags.DEFINE_integer('length', 128, 'tokens that the encoder sees')
flags.DEFINE_integer('counted', 512, 'tokens that tf-idf counts')
FOLDS = 5


def drawn(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
  """Rows of as many texts, each class there."""
  rng = np.random.default_rng(seed)
  while True:
    rows = np.sort(rng.permutation(len(labels))[:count])
    if len(np.unique(labels[rows])) == labels.max() + 1 and np.bincount(labels[rows]).min() > 1:
      return rows


def scikit(texts: list[str], labels: np.ndarray, rows: np.ndarray, rest: np.ndarray) -> float:
  """tf-idf with logistic regression, C by folds."""
  from sklearn.feature_extraction.text import TfidfVectorizer
  from sklearn.linear_model import LogisticRegression
  from sklearn.model_selection import GridSearchCV, StratifiedKFold

  found = TfidfVectorizer(sublinear_tf=True).fit([texts[row] for row in rows])
  grid = {'C': [0.1, 1, 10, 100, 1000]}
  least = int(np.bincount(labels[rows]).min())
  folds = StratifiedKFold(min(FOLDS, least), shuffle=True, random_state=0)
  model = GridSearchCV(LogisticRegression(max_iter=2000), grid, cv=folds)
  model.fit(found.transform([texts[row] for row in rows]), labels[rows])
  return float((model.predict(found.transform([texts[row] for row in rest])) == labels[rest]).mean())


def main(_: list[str]) -> None:
  """Fills what is missing and prints the table."""
  texts, names = transfer_data.news()
  kinds = sorted(set(names))
  labels = np.array([kinds.index(name) for name in names], np.int32)
  path = Path(FLAGS.out)
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  have = {(one['labels'], one['seed']) for one in lines}
  wanted = [(int(count), seed) for count in FLAGS.labels for seed in range(FLAGS.seeds)]
  if set(wanted) - have:
    whole = jl.finetuning.pretrained_text(
      transfer_data.weights_of('all_minilm_l6_v2', 'model.zip'), length=FLAGS.length
    )
    started = time.perf_counter()
    short = TextEncoder(whole.tokenizer, FLAGS.length).encode(texts)[0]
    long = TextEncoder(whole.tokenizer, FLAGS.counted).encode(texts)[0]
    found = backbone(whole.network, {name: one[:2] for name, one in short.items()}, head='outputs')
    shown = cached_features(found, Split(short, labels), FLAGS.features, say=print)
    print(f'{len(texts):,} texts encoded or read in {time.perf_counter() - started:.1f} s')
    for count, seed in wanted:
      if (count, seed) in have:
        continue
      rows = drawn(labels, count, seed)
      rest = np.setdiff1d(np.arange(len(texts)), rows)
      one = {'labels': count, 'seed': seed, 'test': len(rest), **compared(texts, labels, shown, long, rows, rest, seed)}
      lines.append(one)
      with open(path, 'a', encoding='utf-8') as file:
        file.write(json.dumps(one) + '\n')
      print(json.dumps(one))
  print(table(lines))


def compared(
  texts: list[str], labels: np.ndarray, shown: np.ndarray, long: Any, rows: np.ndarray, rest: np.ndarray, seed: int
) -> dict[str, Any]:
  """Accuracies on the other texts, and what each head cost."""
  classes = int(labels.max()) + 1
  inputs = {name: array[rows] for name, array in long.items()}
  other = {name: array[rest] for name, array in long.items()}
  train = Split(inputs, labels[rows])
  counted = bag.fit_bag(inputs)
  found: dict[str, Any] = {}

  def judged(name: str, head: Any, table: np.ndarray, began: float) -> None:
    found[name] = float((head.logits(table).argmax(1) == labels[rest]).mean())
    found[f'{name}_seconds'] = round(time.perf_counter() - began, 2)

  began = time.perf_counter()
  head = fit_probe(np.asarray(shown[rows, 0]), labels[rows], classes, folds=FOLDS, seed=seed)
  judged('probe', head, np.asarray(shown[rest, 0]), began)
  words = bag.tf_idf_of(counted, other)
  both = np.concatenate([np.asarray(shown[rest, 0]), words], axis=1)
  for name, mode in (('ours', 'only'), ('default', 'auto')):
    began = time.perf_counter()
    head, mix = solving.solve_head(
      shown.shape[2], train, np.asarray(shown[rows]), classes, mode, STRENGTHS, seed, counted, None
    )
    found[f'{name}_mix'] = str(mix)
    judged(name, head, both if head.kernel.shape[0] == both.shape[1] else both[:, : shown.shape[2]], began)
  began = time.perf_counter()
  found['tf-idf'] = scikit(texts, labels, rows, rest)
  found['tf-idf_seconds'] = round(time.perf_counter() - began, 2)
  return found


def table(lines: list[dict[str, Any]]) -> str:
  """Means over seeds, and the default's difference to the better of the two, seed by seed."""
  rows = [
    '| labels | seeds | probe | tf-idf (scikit-learn) | tf-idf (its tokens) | default | default - better of two |',
    '|--:|--:|--:|--:|--:|--:|--:|',
  ]
  for count in sorted({one['labels'] for one in lines}):
    some = [one for one in lines if one['labels'] == count]
    means = [np.mean([one[name] for one in some]) for name in ('probe', 'tf-idf', 'ours', 'default')]
    better = max(('probe', 'tf-idf'), key=lambda name: np.mean([one[name] for one in some]))
    gaps = np.array([one['default'] - one[better] for one in some])
    half = 0.0
    if len(gaps) > 1:
      from scipy import stats

      half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5
    cells = ' | '.join(f'{100 * mean:.1f}' for mean in means)
    rows.append(f'| {count} | {len(some)} | {cells} | {100 * gaps.mean():+.1f} ± {100 * half:.1f} |')
  return '\n'.join(rows)


if __name__ == '__main__':
  app.run(main)
