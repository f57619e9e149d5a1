"""Folders of runs as runs leave them, made without training: for what only reads them."""

import base64
import json
import math

import numpy as np

from jaxlite.deployment.inventory import Layer
from jaxlite.host.files import write_text
from jaxlite.report.pictures import data_url
from jaxlite.report.result import Result, to_json
from jaxlite.tasks import classification

CONFIG = {'name': '', 'seed': 0, 'optim': {'lr': 0.001}, 'train': {'steps': 400, 'epochs': None}}


def history(steps=400, rate=1.0, seed=0, every=4):
  random = np.random.default_rng(seed)
  points = []
  for step in range(every, steps + 1, every):
    falling = 2.3 * math.exp(-rate * step / 120) + 0.05
    points.append({'kind': 'train', 'step': step, 'time': 0.0, 'loss': falling * random.uniform(0.85, 1.2), 'lr': 1e-3})
    if step % (10 * every) == 0:
      share = 1 - 0.9 * math.exp(-rate * step / 90) - 0.02
      points.append({'kind': 'validation', 'step': step, 'time': 0.0, 'loss': falling + 0.06, 'accuracy': share})
  return points


def result(name, right, *, classes=10, names=(), zero=0.0, seed=0, tested='a0'):
  """A Result of a classifier that has `right` (bool[N]) of its test examples right."""
  right, random = np.asarray(right, bool), np.random.default_rng(seed)
  labels = np.arange(len(right)) % classes
  predicted = np.where(right, labels, (labels + random.integers(1, classes, len(right))) % classes)
  matrix = np.zeros((classes, classes))
  np.add.at(matrix, (labels, predicted), 1)
  task = classification()
  facts = {'classes': classes, 'class_names': list(names), 'top': [5]}
  metrics = {'accuracy': float(right.mean()), 'loss': float(0.05 + 2 * (1 - right.mean()))}
  metrics |= {
    f'{a}_{b}': float(right.mean()) for a in ('precision', 'recall', 'f1') for b in ('micro', 'macro', 'weighted')
  }
  layers = [
    Layer('conv1/kernel', 288, int(288 * (1 - zero)), 8, True, 32),
    Layer('conv1/bias', 32, 32, 32, False),
    Layer('dense/kernel', 15680, int(15680 * (1 - zero)), 8, True, 10),
  ]
  made = Result(
    name, metrics, layers, 12.5 + seed, [], task.name, facts, [list(row) for row in task.rows], list(task.curve),
    len(right), 'accuracy', {'confusion': matrix.tolist()}, task.tables({**metrics, 'confusion': matrix}, facts),
  )  # fmt: skip
  sure = np.linspace(0.15, 0.97, 8)
  made.evidence['reliability'] = np.stack([sure, (sure**1.3).clip(0, 1), np.arange(8) + 1.0], 1).tolist()
  made.command = f'python launch.py --workdir=runs/{name}'
  made.versions, made.machine = {'python': '3.11.7', 'jax': '0.10.2'}, {'processor': 'a processor', 'cores': '2'}
  made.best_step, made.falls, made.tested = 360, ['loss', 'nan_outputs'], tested
  made.right = base64.b64encode(np.packbits(right).tobytes()).decode()
  made.parts = [
    ['normalize', 'each training step', 'held still 2 arrays: mean, std', ''],
    ['prune', '20 updates; masks drawn 20 times', '2 arrays: conv1/kernel, dense/kernel', 'nothing is left of a bias'],
  ]
  made.forecast = {
    'time': {'forecast': 11.0, 'low': 9.0, 'high': 14.0, 'actual': 12.5, 'basis': 'measured'},
    'memory': {'forecast': 4.0e8, 'upper': 6.0e8, 'actual': 4.4e8, 'basis': 'traced'},
  }
  spots = random.integers(0, 255, (12, 8, 8), dtype=np.uint8)
  made.mistakes = [
    {'example': str(i), 'true': str(i % classes), 'predicted': '7', 'told': '98 % sure', 'picture': data_url(spot)}
    for i, spot in enumerate(spots)
  ]
  return made


def write_run(folder, made, *, config=CONFIG, seed=0, points=None, program='== the step\nadd', run='', finished=True):
  """Writes the files of a run."""
  folder.mkdir(parents=True)
  saved = {**config, 'name': made.name, 'seed': seed}
  write_text(folder / 'config.json', json.dumps({'format': 1, 'run': run, 'config': saved}))
  lines = (json.dumps(point) + '\n' for point in (history(seed=seed) if points is None else points))
  write_text(folder / 'metrics.jsonl', ''.join(lines))
  write_text(folder / 'step.txt', program)
  if finished:
    write_text(folder / 'result.json', to_json(made, run))
  return folder


def answers(count, share, seed):
  """bool[count], about `share` of them True; of two seeds correlated, as those of two networks are."""
  hard = np.random.default_rng(99).random(count)
  return hard + np.random.default_rng(seed).normal(0, 0.05, count) < share
