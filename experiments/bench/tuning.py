"""A search beside the whole grid: what validation says of the best of each, and the epochs that both took.

  python experiments/bench/tuning.py --workdir=runs/tuning --seeds=5

The digits of scikit-learn, a small MLP, a grid of 64 points (8 rates, 4 weight decays, 2 batch sizes), and by Optuna's
TPE 16 trials over the same ranges, each trained to its end: a quarter of the grid's epochs. A seed is one of the data's
split, of first values and of the points. Killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import jaxlite as jl
from jaxlite.models import MLP

SPACE = {
  'optim.lr': jl.tuning.log_uniform(1e-4, 1e-1, points=8),
  'optim.weight_decay': jl.tuning.log_uniform(1e-6, 1e-1, points=4),
  'data.batch_size': jl.tuning.choice(32, 128),
}


def config(seed: int, epochs: int) -> jl.Config:
  """Of every trial; 40 % of the training split validate, so that one example is 0.17 points."""
  made = jl.Config(name='digits', seed=seed, train=jl.Duration(epochs=epochs))
  made.data.validation = 0.4
  made.eval.every = made.checkpoint.every = made.log.every = jl.Duration(percent=100 / 9)
  made.log.tensorboard = False
  return made


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--workdir', default='runs/tuning')
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--epochs', type=int, default=12)
  parser.add_argument('--trials', type=int, default=16)
  words = parser.parse_args()
  held = load_digits()
  data = (held.images[..., None].astype(np.float32), held.target)
  gaps = []
  for seed in range(words.seeds):
    given = {'data': data, 'model': MLP((64,), classes=10), 'say': lambda line: None}
    one = config(seed, words.epochs)
    grid = jl.tune(one, Path(words.workdir, f'grid{seed}'), SPACE, method='grid', stop='none', **given)
    folder = Path(words.workdir, f'tpe{seed}')
    tpe = jl.tune(one, folder, SPACE, method='tpe', trials=words.trials, stop='none', seed=seed, **given)
    best = [100 * one.best.found['accuracy'] for one in (grid, tpe)]
    gaps.append(best[1] - best[0])
    share = len(tpe.trials) / len(grid.trials)  # each trained to its end
    line = f'seed {seed}: grid {best[0]:.2f}, TPE {best[1]:.2f} ({gaps[-1]:+.2f}) at {share:.0%} of the epochs; '
    print(line + f'{grid.seconds:.0f} and {tpe.seconds:.0f} s', flush=True)
  print(f'mean difference {statistics.mean(gaps):+.2f}, worst {min(gaps):+.2f} points of validation accuracy')


if __name__ == '__main__':
  main()
