"""What fewer features cost and save, and what a wanted precision or recall becomes on test: tables of real data.

  pip install -e '.[evidence]'
  python experiments/tabular.py --workdir=runs/tabular

Each data set is trained with all its features and with about a quarter of them, by principal components, random
projections and mutual information (`data.reduce`), fitted on the training split of each seed. Beside the score stand
what is paid: the bytes of the packed file, map and all, and the time of one training step. Then the threshold of a
binary task is chosen on validation for a wish (`eval.recall`, `eval.precision`), and test tells what came of it.

Seeds draw the splits and the first weights. Runs that are done are kept in the workdir, so the same command goes on
where it was stopped.
"""

from __future__ import annotations

import functools
import json
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags
from bench import task_data
from bench.task_tables import shown

import jaxlite as jl
from jaxlite.data import batch_at
from jaxlite.models import MLP
from jaxlite.run.setup import prepare
from jaxlite.tasks.tables import wilson

FLAGS = flags.FLAGS
flags.DEFINE_string('workdir', 'runs/tabular', 'where finished runs and the tables are kept')
flags.DEFINE_list('only', [], 'data sets by name; all when empty')
flags.DEFINE_integer('seeds', 5, 'runs behind each mean')
flags.DEFINE_bool('smoke', False, 'one seed, few steps: to see that it runs')


def of_scikit_learn(load: str, seed: int, *, larger: int = 1) -> Any:
  """A table that comes with scikit-learn; pictures may be made larger, each pixel so many times along each side."""
  from sklearn import datasets

  x, y = getattr(datasets, load)(return_X_y=True)
  x = x.astype(np.float32)
  if larger > 1:
    x = x.reshape(-1, 8, 8).repeat(larger, 1).repeat(larger, 2).reshape(len(x), -1)
    x = x + np.random.default_rng(0).normal(size=x.shape).astype(np.float32)  # so that pixels differ
  return jl.data.from_arrays((x, y), validation=0.15, test=0.2, seed=seed)


class Table(NamedTuple):
  """One data set.

  Attributes:
    title: how the table calls it.
    data: (seed) -> Dataset.
    fewer: how many features are kept.
    steps: of training.
    score: (metric, how the table calls it, format, factor).
  """

  title: str
  data: Callable[[int], Any]
  fewer: int
  steps: int
  score: tuple[str, str, str, float] = ('accuracy', 'accuracy, %', '.2f', 100)


TABLES = {
  'wine': Table('wine (178 x 13)', functools.partial(of_scikit_learn, 'load_wine'), 4, 300),
  'cancer': Table('breast cancer (569 x 30)', functools.partial(of_scikit_learn, 'load_breast_cancer'), 8, 400),
  'digits': Table('digits (1,797 x 64)', functools.partial(of_scikit_learn, 'load_digits'), 16, 800),
  'larger': Table(
    'digits of 32 x 32 pixels with noise (1,797 x 1,024)',
    functools.partial(of_scikit_learn, 'load_digits', larger=4),
    64,
    800,
  ),
  'diamonds': Table('diamonds (53,940 x 26)', task_data.diamonds, 8, 2000, ('rmse', 'RMSE, dollars', '.0f', 1)),
}
WAYS: dict[str, dict[str, Any]] = {
  'all features': {},
  'pca': {'reduce': 'pca'},
  'pca, whitened': {'reduce': 'pca', 'whiten': True},
  'pca, 95 % of the variance': {'reduce': 'pca', 'components': 0.95},
  'random projection': {'reduce': 'random_projection'},
  'mutual information': {'reduce': 'mutual_information'},
}
WISHES = ({'recall': 0.8}, {'recall': 0.95}, {'precision': 0.5}, {'precision': 0.7})


def config_of(steps: int, seed: int) -> jl.Config:
  config = jl.Config(name='tabular', seed=seed, train=jl.Duration(steps=20 if FLAGS.smoke else steps))
  config.optim.lr, config.eval.every = 3e-3, jl.Duration(percent=10)
  config.log.every = config.checkpoint.every = jl.Duration(percent=50)
  config.log.tensorboard = config.log.progress = False
  return config


def reduced(table: Table, way: str, seed: int, folder: Path) -> dict[str, Any]:
  """One run with fewer features."""
  data, config = table.data(seed), config_of(table.steps, seed)
  for name, value in {'components': table.fewer, **WAYS[way]}.items() if WAYS[way] else ():
    setattr(config.data, name, value)
  outputs = data.facts.get('classes', 1)
  result = jl.train(config, folder, model=MLP((64, 32), classes=outputs), data=data, say=lambda line: None)
  setup = prepare(config, folder, MLP((64, 32), classes=outputs), data)
  kept = setup.data.reduction
  return {
    'score': result.metrics[table.score[0]],
    'components': data.train.inputs.shape[1] if kept is None else kept.components,
    'bytes': result.bytes,
    'step': step_seconds(setup),
  }


def step_seconds(setup: Any) -> float:
  """The time of a training step, compiled and with its batch on the host: the fastest twentieth of many."""
  state = setup.train.init(jax.random.key(0), setup.first_batch)
  batch = batch_at(setup.data.train, setup.config.data.batch_size, 0, 0)
  took = []
  for _ in range(20 if FLAGS.smoke else 300):
    began = time.perf_counter()
    state, _ = jax.block_until_ready(setup.train.step(state, batch))
    took.append(time.perf_counter() - began)
  return sorted(took)[len(took) // 20]


def wished(wish: dict[str, float], seed: int, folder: Path) -> dict[str, Any]:
  """One run whose threshold serves a wish; a run of its own only the first time a seed is asked."""
  data, config = task_data.default(seed), config_of(1200, seed)
  data = data._replace(facts={**data.facts, 'wanted': {}})
  ((name, value),) = wish.items()
  setattr(config.eval, name, value)
  result = jl.train(config, folder, model=MLP((16,), classes=1), data=data, say=lambda line: None)
  network, counts = jl.load(folder), np.asarray(result.evidence['confusion'])
  scores = network.predict_proba(data.validation.inputs)
  return {
    'validation': getattr(cut_on(scores, data.validation.labels, result.facts['threshold']), name),
    'test': result.metrics[name],
    'other': result.metrics['precision' if name == 'recall' else 'recall'],
    'counted': float(counts[1].sum() if name == 'recall' else counts[:, 1].sum()),
    'note': result.facts.get('threshold_note', ''),
  }


class Shares(NamedTuple):
  precision: float
  recall: float


def cut_on(scores: Any, labels: Any, threshold: float) -> Shares:
  """Precision and recall of what is called positive at a threshold."""
  called = np.asarray(scores) >= threshold - 1e-6
  hits = float((called & (labels == 1)).sum())
  return Shares(hits / max(1, called.sum()), hits / max(1, (labels == 1).sum()))


def kept(folder: Path, name: str, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
  """What a run found, made once."""
  path, place = folder / f'{name}.json', folder / 'run'
  if not path.exists():
    shutil.rmtree(place, ignore_errors=True)
    found = make(place)
    part = path.with_suffix('.part')
    part.write_text(json.dumps(found))
    part.rename(path)
    shutil.rmtree(place, ignore_errors=True)
  return json.loads(path.read_text())


def compared(name: str, folder: Path, seeds: int) -> list[str]:
  """The lines of one data set."""
  table, lines = TABLES[name], []
  _, title, form, factor = table.score
  for place, way in enumerate(WAYS):
    runs = [
      kept(folder, f'{name}-{place}-{seed}', functools.partial(reduced, table, way, seed)) for seed in range(seeds)
    ]
    score = shown([factor * run['score'] for run in runs], form)
    size, step = (statistics.median(run[what] for run in runs) for what in ('bytes', 'step'))
    count = sorted({run['components'] for run in runs})
    features = str(count[0]) if len(count) == 1 else f'{count[0]} to {count[-1]}'
    lead = f'{table.title}: {title}' if not place else ''
    lines.append(f'| {lead} | {way} | {features} | {score} | {size:,.0f} | {1e6 * step:.0f} |')
    print(lines[-1], flush=True)
  return lines


def thresholds(folder: Path, seeds: int) -> list[str]:
  """The lines of the wishes."""
  lines = []
  for wish in WISHES:
    ((name, value),) = wish.items()
    runs = [kept(folder, f'wish-{name}-{value}-{seed}', functools.partial(wished, wish, seed)) for seed in range(seeds)]
    held = 0
    for run in runs:
      low, high = wilson(run['test'], max(run['counted'], 1))
      held += low <= value <= high or run['test'] >= value
    missed = sum(bool(run['note']) for run in runs)
    cells = [shown([100 * run[what] for run in runs], '.1f') for what in ('validation', 'test', 'other')]
    lines.append(f'| {name} {value:g} | {" | ".join(cells)} | {held} of {len(runs)} | {missed} |')
    print(lines[-1], flush=True)
  return lines


def main(_: Sequence[str]) -> None:
  """Fills, prints and writes the tables."""
  unknown = set(FLAGS.only) - {*TABLES, 'default'}
  if unknown:
    raise app.UsageError(f'--only takes {", ".join((*TABLES, "default"))}; got {", ".join(sorted(unknown))}')
  folder, seeds = Path(FLAGS.workdir).expanduser().absolute(), 1 if FLAGS.smoke else FLAGS.seeds
  folder = folder / ('smoke' if FLAGS.smoke else '')
  folder.mkdir(parents=True, exist_ok=True)
  chosen = FLAGS.only or [*TABLES, 'default']
  lines = ['| data: score | inputs | features | on test | bytes packed | step, us |', '|---|---|--:|--:|--:|--:|']
  for name in TABLES:
    lines += compared(name, folder, seeds) if name in chosen else []
  if 'default' in chosen:
    lines += ['', '| wanted of Default (10,000, 3.3 % positive) | on validation, % | on test, % | the other share | '
              'within its interval | not reached |', '|---|--:|--:|--:|--:|--:|']  # fmt: skip
    lines += thresholds(folder, seeds)
  (folder / 'tabular.md').write_text('\n'.join(lines) + '\n')
  print('\n'.join(lines))


if __name__ == '__main__':
  app.run(main)
