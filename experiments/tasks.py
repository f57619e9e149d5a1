"""Every kind of task on real data, beside scikit-learn or PyTorch with the same budget: one table, one command.

  pip install -e '.[evidence]'
  python experiments/tasks.py --workdir=runs/tasks --torch_python=PATH
  python experiments/tasks.py --workdir=runs/resume --resume_check

A row is one data set. Both sides get the same splits, standardization, epochs, batch size and form of network, and the
same learning rates to choose from: each is tried on seed 0, and validation takes one. Then every seed (which draws the
splits too, where rows are drawn) trains with it, and its best epoch by validation meets the test split once. Grades are
scikit-learn's, of the predictions of both; jaxlite's own metrics must equal them.

The difference is that of the same seeds, pair by pair, with its 95 % interval. Runs that are done are kept in the
workdir, so the same command goes on where it was stopped. PyTorch is run by the Python that `--torch_python` names;
without it those rows have no peer. `--resume_check` trains each task once undisturbed and once killed in the middle
(SIGKILL) and started again, and compares all bits.
"""

from __future__ import annotations

import functools
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from bench import task_data, task_grades, task_peers
from bench.task_grades import Said
from bench.task_peers import Budget
from bench.task_tables import table

import jaxlite as jl
from jaxlite import checkpoint
from jaxlite.models import MLP, Decoder, EmbeddingBag
from jaxlite.models.layers import scaled_normal
from jaxlite.run.records import CLOCK, read_records

FLAGS = flags.FLAGS
flags.DEFINE_string('workdir', 'runs/tasks', 'where finished runs and the table are kept')
flags.DEFINE_list('only', [], 'rows by name; all when empty')
flags.DEFINE_integer('seeds', 5, 'runs behind each mean')
flags.DEFINE_string('torch_python', '', 'a Python that has PyTorch')
flags.DEFINE_bool('smoke', False, 'one seed, one learning rate, two epochs: to see that it runs')
flags.DEFINE_bool('resume_check', False, 'kill each run in the middle, and compare with one that was left alone')
flags.DEFINE_string('alone', '', 'train one run in this folder and stop: what --resume_check starts')


class Pixels(nn.Module):
  """Convolutions at half of the picture's size, each place of which tells four pixels' classes.

  float32[B, H, W, classes] of [B, H, W, 1], H and W even.
  """

  classes: int
  widths: Sequence[int]

  @nn.compact
  def __call__(self, x: Any) -> jax.Array:
    x = jnp.asarray(x, jnp.float32)
    for index, width in enumerate(self.widths, 1):
      kernel, strides = ((5, 5), 2) if index == 1 else ((3, 3), 1)
      x = nn.relu(nn.Conv(width, kernel, strides, kernel_init=scaled_normal(2.0), name=f'conv{index}')(x))
    x = nn.Dense(4 * self.classes, kernel_init=scaled_normal(1.0), name='head')(x)
    batch, height, across, _ = x.shape
    x = x.reshape(batch, height, across, 2, 2, self.classes).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, 2 * height, 2 * across, self.classes)


class Row(NamedTuple):
  """One data set.

  Attributes:
    name: how a flag calls it.
    title: how the table calls it.
    data: (seed) -> Dataset.
    budget: of both sides.
    grade: (validation, test) -> numbers, of either side's predictions.
    shown: metrics of the table: (name, how the table calls it, format, factor).
    network: the sizes of the budget -> a Linen module.
    peer: what it is compared with, as the table calls it.
    says: what a loaded model is asked for: 'proba' or raw outputs.
  """

  name: str
  title: str
  data: Callable[[int], Any]
  budget: Budget
  grade: task_grades.Grade
  shown: tuple[tuple[str, str, str, float], ...]
  network: Callable[..., nn.Module]
  peer: str
  says: str = 'outputs'


def mlp(outputs: int) -> Callable[..., nn.Module]:
  return lambda widths: MLP(widths, classes=outputs)


RATES = (1e-3, 3e-3, 1e-2)
ROWS = (
  Row(
    'diabetes',
    'regression: diabetes (442)',
    task_data.diabetes,
    Budget(30, 32, RATES, {'widths': (32,)}),
    task_grades.regression,
    (('rmse', 'RMSE', '.2f', 1),),
    mlp(1),
    'MLPRegressor',
  ),
  Row(
    'diamonds',
    'regression: diamonds (53,940)',
    task_data.diamonds,
    Budget(15, 256, RATES, {'widths': (128, 64)}),
    task_grades.regression,
    (('rmse', 'RMSE, dollars', '.1f', 1),),
    mlp(1),
    'MLPRegressor',
  ),
  Row(
    'default',
    'binary, 3.3 % positive: Default (10,000)',
    task_data.default,
    Budget(20, 128, RATES, {'widths': (16,)}),
    task_grades.binary(task_data.RECALL),
    (
      ('average_precision', 'average precision, %', '.2f', 100),
      ('precision', 'precision at the threshold for recall 0.8, %', '.2f', 100),
      ('recall', 'recall there, %', '.2f', 100),
    ),
    mlp(1),
    'MLPClassifier',
    'proba',
  ),
  Row(
    'movies',
    'multi-label, 7 genres: movies (58,788)',
    task_data.movies,
    Budget(10, 256, RATES, {'widths': (128, 64)}),
    task_grades.multi_label,
    (('average_precision_macro', 'average precision, macro, %', '.2f', 100),),
    mlp(len(task_data.GENRES)),
    'MLPClassifier',
    'proba',
  ),
  Row(
    'news',
    'text, 5 classes: BBC news (2,127)',
    task_data.news,
    Budget(10, 32, RATES, {'vocabulary': 20_000, 'classes': 5, 'width': 32}),
    task_grades.classification,
    (('accuracy', 'accuracy, %', '.2f', 100),),
    EmbeddingBag,
    'PyTorch',
  ),
  Row(
    'topics',
    'next token: pydoc_data.topics (465 kB)',
    task_data.topics,
    Budget(3, 32, RATES[1:], {'vocabulary': 257, 'width': 64, 'layers': 2, 'heads': 4, 'hidden': 256}),
    task_grades.language,
    (('bits_per_byte', 'bits per byte', '.4f', 1),),
    functools.partial(Decoder, length=64),
    'PyTorch',
  ),
  Row(
    'mosaics',
    'segmentation: mosaics of digits (2,200)',
    task_data.mosaics,
    Budget(20, 32, RATES, {'classes': 11, 'widths': (32, 32, 32, 32)}),
    task_grades.segmentation,
    (('mean_iou', 'mean IoU, %', '.2f', 100),),
    Pixels,
    'PyTorch',
  ),
)


def shortened(row: Row) -> Row:
  """The row in a form of seconds."""
  data = functools.partial(row.data, train=96, others=32) if row.name == 'mosaics' else row.data
  sizes = row.budget.sizes | ({'widths': (4,)} if 'widths' in row.budget.sizes else {})
  return row._replace(data=data, budget=row.budget._replace(epochs=2, rates=row.budget.rates[-1:], sizes=sizes))


def learn(row: Row, data: Any, rate: float, seed: int, folder: Path, say: Callable[[str], None]) -> jl.Network:
  """Trains and loads as a user would."""
  config = jl.Config(name=row.name, seed=seed, train=jl.Duration(epochs=row.budget.epochs))
  config.optim.lr, config.data.batch_size = rate, row.budget.batch
  config.eval.batch_size = 128
  config.log.tensorboard = config.log.progress = False
  jl.train(config, folder, model=row.network(**row.budget.sizes), data=data, say=say)
  return jl.load(folder)


def ours(row: Row, data: Any, rate: float, seed: int, folder: Path) -> dict[str, Any]:
  """One run of jaxlite: what it says is graded, and must be what its own metrics say."""
  shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped: its seconds would be wrong
  began = time.monotonic()
  network = learn(row, data, rate, seed, folder, lambda line: None)
  seconds = time.monotonic() - began
  validation, test = (asked(network, split, row.says) for split in (data.validation, data.test))
  grades = row.grade(validation, test)
  result = json.loads((folder / 'result.json').read_text())
  task_grades.agree(result['metrics'], grades)
  better = data.task.better(data.task.score)
  tried = [better * point[data.task.score] for point in read_records(folder) if point['kind'] == 'validation']
  shutil.rmtree(folder)
  return {
    'score': better * max(tried),
    'grades': grades,
    'seconds': seconds,
    'training': result['seconds'],
    'parameters': sum(layer['size'] for layer in result['layers']),
    'notes': result['notes'],
  }


def asked(network: jl.Network, split: Any, says: str, size: int = 128) -> Said:
  """What a model says of a split, in batches of one size; the last is filled up with its first rows."""
  ask = network.predict_proba if says == 'proba' else network.predict
  count, pieces = len(split.labels), []
  for at in range(0, count, size):
    rows = np.arange(at, at + size) % count
    pieces.append(np.asarray(ask(jax.tree.map(lambda leaf, rows=rows: leaf[rows], split.inputs))))
  return Said(split.labels, np.concatenate(pieces)[:count])


def theirs(row: Row, data: Any, rate: float, seed: int, folder: Path) -> dict[str, Any]:
  """One run of the peer, graded likewise."""
  run = task_peers.scikit
  if row.peer == 'PyTorch':
    run = functools.partial(task_peers.pytorch, python=FLAGS.torch_python)
  score = data.task.score
  found = run(data, row.budget, rate, seed, row.grade, score, data.task.better(score), folder)
  validation = Said(data.validation.labels, found.validation)
  return {
    'score': found.score,
    'grades': row.grade(validation, Said(data.test.labels, found.test)),
    'seconds': found.seconds,
    'training': found.seconds,
  }


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
  """What a run found, made once."""
  if not path.exists():
    found = make()
    scratch = path.with_suffix('.part')
    scratch.write_text(json.dumps(found))
    scratch.rename(path)
  return json.loads(path.read_text())


def score(row: Row, run: Callable[..., dict[str, Any]], folder: Path, seeds: int) -> dict[str, Any]:
  """Chooses a learning rate on seed 0, then trains every seed."""
  data = functools.cache(row.data)

  def one(rate: float, seed: int) -> dict[str, Any]:
    name = f'{row.name}-{run.__name__}-{rate:g}-{seed}'
    return kept(folder / f'{name}.json', lambda: run(row, data(seed), rate, seed, folder / name))

  better = data(0).task.better(data(0).task.score)
  tried = {rate: better * one(rate, 0)['score'] for rate in row.budget.rates}
  rate = max(tried, key=tried.__getitem__)
  return {'rate': rate, 'runs': [one(rate, seed) for seed in range(seeds)]}


def compare(rows: Sequence[Row], folder: Path) -> None:
  """Fills, prints and writes the table."""
  found, seeds = [], 1 if FLAGS.smoke else FLAGS.seeds
  for row in rows:
    sides = {'ours': score(row, ours, folder, seeds)}
    if row.peer != 'PyTorch' or FLAGS.torch_python:
      sides['theirs'] = score(row, theirs, folder, seeds)
    found.append((row, sides))
    took = {side: statistics.median(run['seconds'] for run in of['runs']) for side, of in sides.items()}
    told = ', '.join(f'{side} {of["runs"][0]["grades"]} at {of["rate"]:g}' for side, of in sides.items())
    print(f'{row.name}: {told}, seconds {took}', file=sys.stderr, flush=True)
  lines = [*table(found, seeds), '', *(f'- {note}' for note in notes(found))]
  (folder / 'tasks.md').write_text('\n'.join(lines) + '\n')
  print('\n'.join(lines))


def notes(found: Sequence[Any]) -> list[str]:
  """What a reader of the table should know of its data."""
  names = [row.name for row, _ in found]
  return [task_data.topics_note()] if 'topics' in names else []


def resume_check(rows: Sequence[Row], folder: Path) -> bool:
  """Trains each task twice, the second time killed in the middle; tells whether all bits are equal."""
  equal = True
  for row in rows:
    whole, torn = (folder / f'{row.name}-{way}' for way in ('whole', 'torn'))
    for path in (whole, torn):
      shutil.rmtree(path, ignore_errors=True)
    wait(alone(row, whole), row)
    torn.mkdir(parents=True)
    if (whole / 'rewrites.json').exists():  # forms that were timed; two fresh runs may choose others
      shutil.copy(whole / 'rewrites.json', torn)
    process, total = alone(row, torn), max(saved(whole))
    while process.poll() is None and max(saved(torn), default=0) < total / 3:
      time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if process.returncode != -signal.SIGKILL or (torn / 'result.json').exists():
      raise RuntimeError(f'{row.name} was over (code {process.returncode}) before it could be killed: try again')
    resumed = next((line for line in wait(alone(row, torn), row) if line.startswith('resumed')), 'began anew')
    one, other = evidence(whole), evidence(torn)
    same = [name for name in one if one[name] == other[name]]
    equal = equal and len(same) == len(one)
    verdict = 'equal' if len(same) == len(one) else f'DIFFERENT in {", ".join(sorted(set(one) - set(same)))}'
    print(f'{row.name}: killed, {resumed}: {verdict}, leaves {one["leaves"][:16]}', flush=True)
  return equal


def alone(row: Row, folder: Path) -> subprocess.Popen:
  """Starts one run in a process of its own."""
  command = [sys.executable, __file__, f'--alone={folder}', f'--only={row.name}', f'--smoke={FLAGS.smoke}']
  return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait(process: subprocess.Popen, row: Row) -> list[str]:
  """Returns the lines of a run that ends well."""
  out, _ = process.communicate()
  if process.returncode:
    raise RuntimeError(f'{row.name} ended with code {process.returncode}:\n{out}')
  return out.splitlines()


def saved(folder: Path) -> list[int]:
  """Steps of the checkpoints that are complete."""
  return [int(path.name) for path in (folder / 'checkpoints').glob('*') if path.name.isdigit()]


def evidence(folder: Path) -> dict[str, Any]:
  """All that two runs must share: every leaf of the last state, every metric but the clock's, the test's result."""
  names = ('step', 'key', 'params', 'model_state', 'opt_state', 'const')
  state = checkpoint.load_arrays(folder / 'checkpoints', names, which='latest').state
  points = [{name: point[name] for name in point if name not in CLOCK} for point in read_records(folder)]
  result = json.loads((folder / 'result.json').read_text())
  found = {name: result[name] for name in ('metrics', 'evidence', 'facts', 'best_step')}
  return {'leaves': checkpoint.fingerprint(state), 'points': json.dumps(points), **found}


def main(_: list[str]) -> None:
  """Does what the flags say."""
  unknown = set(FLAGS.only) - {row.name for row in ROWS}
  if unknown:
    raise app.UsageError(f'--only takes {", ".join(row.name for row in ROWS)}; got {", ".join(sorted(unknown))}')
  rows = [shortened(row) if FLAGS.smoke else row for row in ROWS if not FLAGS.only or row.name in FLAGS.only]
  if FLAGS.alone:
    learn(rows[0], rows[0].data(0), rows[0].budget.rates[-1], 0, Path(FLAGS.alone), print)
    return
  folder = Path(FLAGS.workdir).expanduser().absolute() / ('smoke' if FLAGS.smoke else '')
  folder.mkdir(parents=True, exist_ok=True)
  if not FLAGS.resume_check:
    compare(rows, folder)
  elif not resume_check(rows, folder):
    sys.exit('some runs differ')


if __name__ == '__main__':
  app.run(main)
