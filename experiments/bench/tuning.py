"""A search beside the whole grid: what validation says of the best of each, and the epochs that both took.

  python experiments/bench/tuning.py --workdir=runs/tuning --first=10 --seeds=5
  python experiments/bench/tuning.py --first=15 --seeds=5 --plain   # minutes

The digits of scikit-learn, a small MLP, a grid of 64 points (8 rates, 4 weight decays, 2 batch sizes), and a Gaussian
process (`gp`) and Optuna's TPE over the same ranges, 16 trials each to their end: a quarter of the grid's epochs. A
seed is one of the data's split, of first values and of the points. By `jl.tune`, which goes on when it is killed; with
`--plain` points are asked of the same samplers, ledger and storage, and trained by one jitted function of plain JAX.
`--stop=halving` takes as many trials as a quarter of the epochs allows, most of them stopped early. It also tells the
noise: 0.2 points in validation examples; and, since the best of 64 is partly luck, both best settings again with five
draws of first values and orders.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats
from sklearn.datasets import load_digits

import jaxlite as jl
from jaxlite.models import MLP
from jaxlite.tuning import kinds, stopping
from jaxlite.tuning.database import Database
from jaxlite.tuning.ledger import COMPLETE, PRUNED, Ledger
from jaxlite.tuning.optuna_study import Mirror
from jaxlite.tuning.outcome import Goal
from jaxlite.tuning.surrogate import next_by_surrogate

SPACE = {
  'optim.lr': jl.tuning.log_uniform(1e-4, 1e-1, points=8),
  'optim.weight_decay': jl.tuning.log_uniform(1e-6, 1e-1, points=4),
  'data.batch_size': jl.tuning.choice(32, 128),
}
Point = dict[str, Any]


class Found(NamedTuple):
  """Best validation accuracies, the share of the grid's epochs that a method took, its trials; both settings again."""

  grid: float
  found: float
  share: float
  trials: int
  again: str = ''
  fair: float = float('nan')


def config(seed: int, epochs: int) -> jl.Config:
  """Of every trial; 40 % of the training split validate, so that one example is 0.17 points."""
  made = jl.Config(name='digits', seed=seed, train=jl.Duration(epochs=epochs))
  made.data.validation = 0.4
  made.eval.every = made.checkpoint.every = made.log.every = jl.Duration(percent=100 / 9)
  made.log.tensorboard = False
  return made


def by_tune(words: argparse.Namespace, data: Any, seed: int, method: str) -> Found:
  """By `jl.tune`."""
  given = {'data': data, 'model': MLP((64,), classes=10), 'say': lambda line: None}
  one = config(seed, words.epochs)
  grid = jl.tune(one, Path(words.workdir, f'grid{seed}'), SPACE, method='grid', stop='none', **given)
  folder = Path(words.workdir, f'{method}{seed}')
  other = jl.tune(one, folder, SPACE, method=method, trials=words.trials, stop=words.stop, seed=seed, **given)
  ledger = Ledger(folder, json.loads((folder / 'study.json').read_text())['study'], Database(folder / 'study.db'))
  ended = {row.number: row.share for row in ledger.reports()}  # the last of each
  ledger.close()
  share = sum(ended.values()) / len(grid.trials)
  return Found(grid.best.found['accuracy'], other.best.found['accuracy'], share, len(other.trials))


def plain(data: Any, seed: int, epochs: int) -> Callable[..., np.ndarray]:
  """(a point, a draw) -> validation accuracies at nine looks at a run, by plain JAX."""
  inputs, labels = data
  order = np.random.default_rng(seed).permutation(len(labels))
  small = len(labels) < 10_000  # a split of 4 in 10 of digits; of Fashion-MNIST 3,000 to train and 10,000 to validate
  cut = len(order) * 6 // 10 if small else 3_000
  order = order[: len(order) if small else 13_000]
  inputs = inputs[order].reshape(len(order), -1) / inputs.max() - 0.3
  split = [jnp.asarray(part) for whole in (inputs, labels[order]) for part in (whole[:cut], whole[cut:])]
  size = inputs.shape[1]

  def forward(params: Any, x: jax.Array) -> jax.Array:
    (a, b), (c, d) = params
    return (jax.nn.relu(x @ a + b) if small else x) @ c + d

  @functools.partial(jax.jit, static_argnums=2)
  def trained(rate: jax.Array, decay: jax.Array, batch: int, key: jax.Array, split: Any) -> jax.Array:
    x, held, y, truth = split
    first, second, rows = jax.random.split(key, 3)
    params = [
      (jax.random.normal(first, (size, 64)) / 8, jnp.zeros(64)),
      (jax.random.normal(second, (64 if small else size, 10)) / 8, jnp.zeros(10)),
    ]
    total = epochs * (cut // batch)
    schedule = jl.optim.warmup_cosine(rate, total, warmup_steps=total // 20)
    tx = optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.scale_by_adam(),
      optax.add_decayed_weights(decay),
      optax.scale_by_learning_rate(schedule),
    )
    orders = jnp.stack(
      [
        jax.random.permutation(key, cut)[: total // epochs * batch].reshape(-1, batch)
        for key in jax.random.split(rows, epochs)
      ]
    ).reshape(total, batch)

    def step(state: Any, rows: jax.Array) -> tuple[Any, jax.Array]:
      params, inner = state
      loss = lambda params: optax.softmax_cross_entropy_with_integer_labels(forward(params, x[rows]), y[rows]).mean()  # noqa: E731
      updates, inner = tx.update(jax.grad(loss)(params), inner, params)
      return (optax.apply_updates(params, updates), inner), None

    state, found, at = (params, tx.init(params)), [], 0
    for look in range(1, 10):
      until = min(total, -(-total * look // 9))
      state, _ = jax.lax.scan(step, state, orders[at:until])
      found.append((forward(state[0], held).argmax(1) == truth).mean())
      at = until
    return jnp.stack(found)

  def accuracies(point: Point, draw: int = 0) -> np.ndarray:
    batch = kinds.given(SPACE['data.batch_size'], point['data.batch_size'])
    key = jax.random.fold_in(jax.random.key(seed), draw)
    return np.asarray(
      trained(jnp.float32(point['optim.lr']), jnp.float32(point['optim.weight_decay']), batch, key, split)
    )

  return accuracies


@functools.lru_cache(maxsize=1)  # of the grid and of each method
def _plain(name: str, seed: int, epochs: int) -> Callable[..., np.ndarray]:
  known: dict[Any, np.ndarray] = {}
  made = plain(data_of(name), seed, epochs)

  def accuracies(point: Point, draw: int = 0) -> np.ndarray:
    key = (*point.values(), draw)
    if key not in known:
      known[key] = made(point, draw)
    return known[key]

  return accuracies


def data_of(name: str) -> tuple[np.ndarray, np.ndarray]:
  """Pictures and labels."""
  if name == 'digits':
    held = load_digits()
    return held.images[..., None].astype(np.float32), held.target
  whole = jl.data.load('fashion_mnist', validation=0.0).train
  return np.asarray(whole.inputs, np.float32), np.asarray(whole.labels)


def by_plain(words: argparse.Namespace, data: Any, seed: int, method: str) -> Found:
  """By plain JAX."""
  accuracies = _plain(words.data, seed, words.epochs)
  points = kinds.grid(SPACE)
  of_grid = [float(accuracies(point).max()) for point in points]
  tried, found, spent, whole = [], [], 0, 9 * len(points) // 4  # ninths of a run
  with tempfile.TemporaryDirectory() as folder:
    database = Database(Path(folder, 'study.db'))
    ledger = Ledger(folder, 'bench', database)
    mirror = Mirror(database, 'bench', SPACE, [Goal('accuracy', True)])
    for place in range(len(points)):
      if spent >= whole:
        break
      if method == 'gp':
        point = next_by_surrogate(SPACE, seed, ledger.trials(), ledger.reports(), Goal('accuracy', True), {})
        assert point is not None
        number = mirror.add(None, point, {})
      else:
        number, point = mirror.ask(method, seed, place)
        mirror.take(number)
      trial = ledger.add(number, point, number)
      state, why, values = COMPLETE, '', [float(one) for one in accuracies(point)]
      for look, value in enumerate(values, 1):
        ledger.report(trial, look, look / 9, value)
        mirror.report(number, look, value)
        spent += 1
        why = stopping.verdict(words.stop, number, place, look / 9, ledger.reports())
        if why or (spent >= whole and look < 9):
          state = PRUNED
          break
      else:
        found.append(max(values))
        tried.append(point)
      ledger.finish(trial, state, {'accuracy': max(values[:look])})
      mirror.finish(ledger.trials()[-1], (max(values[:look]),), {})
    mirror.close()
    ledger.close()
  fresh = []  # the best of many is partly luck: both again, with first values and orders that neither has seen
  for best in (points[int(np.argmax(of_grid))], tried[int(np.argmax(found))]):
    draws = [100 * float(accuracies(best, draw).max()) for draw in range(1, 6)]
    fresh.append((statistics.mean(draws), statistics.stdev(draws)))
  again = f'{fresh[0][0]:.2f} ± {fresh[0][1]:.2f} and {fresh[1][0]:.2f} ± {fresh[1][1]:.2f}'
  return Found(max(of_grid), max(found), spent / 9 / len(points), len(found), again, fresh[1][0] - fresh[0][0])


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--workdir', default='runs/tuning')
  parser.add_argument('--first', type=int, default=10)
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--epochs', type=int, default=12)
  parser.add_argument('--trials', type=int, default=16)
  parser.add_argument('--stop', default='none')
  parser.add_argument('--data', default='digits', help='or fashion_mnist, with --plain: softmax regression')
  parser.add_argument('--plain', action='store_true')
  parser.add_argument('--methods', default='gp,tpe')
  words = parser.parse_args()
  data = data_of(words.data)
  count = (
    10_000 if words.data != 'digits' else len(data[1]) * (4 if words.plain else 36) // (10 if words.plain else 100)
  )
  print(f'{count} validation examples: 0.2 points are {0.002 * count:.1f} of them', flush=True)
  methods = words.methods.split(',')
  gaps, fair = {name: [] for name in methods}, {name: [] for name in methods}
  for seed in range(words.first, words.first + words.seeds):
    for method in methods:
      one = (by_plain if words.plain else by_tune)(words, data, seed, method)
      gaps[method].append(100 * (one.found - one.grid))
      fair[method].append(one.fair)
      shown = f'grid {100 * one.grid:.2f}, {method} {100 * one.found:.2f} ({gaps[method][-1]:+.2f})'
      again = f'; both again, five draws each: {one.again} ({one.fair:+.2f})' if one.again else ''
      print(f'seed {seed}: {shown}, {one.trials} trials whole, {one.share:.1%} of the epochs{again}', flush=True)
  for method in methods:
    print(
      f'{method}: difference {shown_mean(gaps[method])}, worst {min(gaps[method]):+.2f} points of validation accuracy'
    )
    print(f'{method}: both again: difference {shown_mean(fair[method])}, worst {min(fair[method]):+.2f}')


def shown_mean(values: Sequence[float]) -> str:
  """The mean over seeds and half of its 95 % interval by Student's t."""
  if len(values) < 2:
    return f'{values[0]:+.2f}'
  half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
  return f'{statistics.mean(values):+.2f} ± {half:.2f}'


if __name__ == '__main__':
  main()
