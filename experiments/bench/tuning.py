"""A search beside the whole grid: what validation says of the best of each, and the epochs that both took.

  python experiments/bench/tuning.py --workdir=runs/tuning --seeds=5
  python experiments/bench/tuning.py --workdir=runs/tuning --seeds=5 --plain   # a minute

The digits of scikit-learn, a small MLP, a grid of 64 points (8 rates, 4 weight decays, 2 batch sizes), and by Optuna's
TPE 16 trials over the same ranges, each trained to its end: a quarter of the grid's epochs. A seed is one of the data's
split, of first values and of the points. By `jl.tune`, which goes on when it is killed; with `--plain` the same points
are asked of the same sampler, ledger and storage, and trained by one jitted function of plain JAX.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxlite as jl
from jaxlite.models import MLP
from jaxlite.tuning import kinds
from jaxlite.tuning.database import Database
from jaxlite.tuning.ledger import COMPLETE, Ledger
from jaxlite.tuning.optuna_study import Mirror

SPACE = {
  'optim.lr': jl.tuning.log_uniform(1e-4, 1e-1, points=8),
  'optim.weight_decay': jl.tuning.log_uniform(1e-6, 1e-1, points=4),
  'data.batch_size': jl.tuning.choice(32, 128),
}
Point = dict[str, Any]


def config(seed: int, epochs: int) -> jl.Config:
  """Of every trial; 40 % of the training split validate, so that one example is 0.17 points."""
  made = jl.Config(name='digits', seed=seed, train=jl.Duration(epochs=epochs))
  made.data.validation = 0.4
  made.eval.every = made.checkpoint.every = made.log.every = jl.Duration(percent=100 / 9)
  made.log.tensorboard = False
  return made


def by_tune(words: argparse.Namespace, data: Any, seed: int) -> tuple[float, float]:
  """The best accuracies of the grid and of TPE."""
  given = {'data': data, 'model': MLP((64,), classes=10), 'say': lambda line: None}
  one = config(seed, words.epochs)
  grid = jl.tune(one, Path(words.workdir, f'grid{seed}'), SPACE, method='grid', stop='none', **given)
  folder = Path(words.workdir, f'tpe{seed}')
  tpe = jl.tune(one, folder, SPACE, method='tpe', trials=words.trials, stop='none', seed=seed, **given)
  return grid.best.found['accuracy'], tpe.best.found['accuracy']


def plain(data: Any, seed: int, epochs: int) -> Callable[[Point], float]:
  """(a point) -> the best validation accuracy of nine looks at a run, by plain JAX."""
  inputs, labels = data
  order = np.random.default_rng(seed).permutation(len(labels))
  train, held = order[: len(order) * 6 // 10], order[len(order) * 6 // 10 :]
  x, y = jnp.asarray(inputs.reshape(len(labels), -1) / 16 - 0.3), jnp.asarray(labels)
  first = jax.random.split(jax.random.key(seed), 2)
  params = [
    (jax.random.normal(first[0], (64, 64)) / 8, jnp.zeros(64)),
    (jax.random.normal(first[1], (64, 10)) / 8, jnp.zeros(10)),
  ]

  def forward(params: Any, x: jax.Array) -> jax.Array:
    (a, b), (c, d) = params
    return jax.nn.relu(x @ a + b) @ c + d

  @functools.partial(jax.jit, static_argnums=2)
  def trained(rate: jax.Array, decay: jax.Array, batch: int) -> jax.Array:
    total = epochs * (len(train) // batch)
    schedule = jl.optim.warmup_cosine(rate, total, warmup_steps=total // 20)
    tx = optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.scale_by_adam(),
      optax.add_decayed_weights(decay),
      optax.scale_by_learning_rate(schedule),
    )
    orders = jnp.stack(
      [
        jax.random.permutation(jax.random.key(epoch), jnp.asarray(train))[: total // epochs * batch].reshape(-1, batch)
        for epoch in range(epochs)
      ]
    ).reshape(total, batch)

    def step(state: Any, rows: jax.Array) -> tuple[Any, jax.Array]:
      params, inner = state
      loss = lambda params: optax.softmax_cross_entropy_with_integer_labels(forward(params, x[rows]), y[rows]).mean()  # noqa: E731
      updates, inner = tx.update(jax.grad(loss)(params), inner, params)
      params = optax.apply_updates(params, updates)
      return (params, inner), (forward(params, x[held]).argmax(1) == y[held]).mean()

    _, right = jax.lax.scan(step, (params, tx.init(params)), orders)
    looks = [min(total, -(-total * look // 9)) - 1 for look in range(1, 10)]
    return right[jnp.asarray(looks)].max()

  def accuracy(point: Point) -> float:
    batch = kinds.given(SPACE['data.batch_size'], point['data.batch_size'])
    return float(trained(jnp.float32(point['optim.lr']), jnp.float32(point['optim.weight_decay']), batch))

  return accuracy


def by_plain(words: argparse.Namespace, data: Any, seed: int) -> tuple[float, float]:
  """As `by_tune`."""
  accuracy, found = plain(data, seed, words.epochs), []
  with tempfile.TemporaryDirectory() as folder:
    database = Database(Path(folder, 'study.db'))
    ledger = Ledger(folder, 'bench', database)
    mirror = Mirror(database, 'bench', SPACE, [True])
    for place in range(words.trials):
      number, point = mirror.ask('tpe', seed, place)
      mirror.take(number)
      trial = ledger.add(number, point, number)
      found.append(accuracy(point))
      ledger.finish(trial, COMPLETE, {'accuracy': found[-1]})
      mirror.finish(ledger.trials()[-1], (found[-1],), {})
    ledger.close()
  return max(map(accuracy, kinds.grid(SPACE))), max(found)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--workdir', default='runs/tuning')
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--epochs', type=int, default=12)
  parser.add_argument('--trials', type=int, default=16)
  parser.add_argument('--plain', action='store_true')
  words = parser.parse_args()
  held = load_digits()
  data = (held.images[..., None].astype(np.float32), held.target)
  gaps = []
  for seed in range(words.seeds):
    grid, tpe = (by_plain if words.plain else by_tune)(words, data, seed)
    gaps.append(100 * (tpe - grid))
    share = words.trials / len(kinds.grid(SPACE))  # each was trained to its end
    print(
      f'seed {seed}: grid {100 * grid:.2f}, TPE {100 * tpe:.2f} ({gaps[-1]:+.2f}), {share:.0%} of the epochs',
      flush=True,
    )
  print(f'mean difference {statistics.mean(gaps):+.2f}, worst {min(gaps):+.2f} points of validation accuracy')


if __name__ == '__main__':
  main()
