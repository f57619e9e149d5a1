"""A program that is killed: one worker of a study over a small network.

  python tests/tunable.py WORKDIR TRIALS METHOD STORAGE

It prints 'at work' when the study is open and 'done' at the end. STORAGE is '' for a file.
"""

import sys
from typing import Any

import jax
import numpy as np
import optax

import jaxlite as jl
from jaxlite.data import Dataset, from_arrays

SPACE = {'seed': jl.tuning.integer(0, 9999), 'recipe.rate': jl.tuning.choice(0.003, 0.03)}


def data() -> Dataset:
  """Three classes, 61 examples to train on: the last batch of an epoch is padded."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 160).astype(np.int32)
  inputs = rng.normal(size=(160, 5)).astype(np.float32) + labels[:, None]
  return from_arrays((inputs[:61], labels[:61]), (inputs[61:120], labels[61:120]), (inputs[120:], labels[120:]))


def network() -> Any:
  """One hidden layer, its values drawn for each seed."""

  def init(key: jax.Array) -> Any:
    first, second = jax.random.split(key)
    return {'a': jax.random.normal(first, (5, 8)) / 2, 'w': jax.random.normal(second, (8, 3)) / 3}

  return jl.from_function(lambda params, x: jax.nn.relu(x @ params['a']) @ params['w'], init)


def recipe(config: jl.Config, total_steps: int, rate: float = 0.01) -> jl.Recipe:
  """Adam and an average: what is killed has moments and a count."""
  return jl.chain(jl.average(0.9), optax.adam(rate))


def config(steps: int = 40) -> jl.Config:
  """Of every trial of 40 steps: five evaluations, and at least four checkpoints at other steps."""
  made = jl.Config(name='tiny', recipe=recipe, train=jl.Duration(steps=steps))
  made.data.batch_size = 16
  made.eval.every = made.log.every = jl.Duration(steps=8)
  made.checkpoint.every = jl.Duration(steps=10)
  made.log.tensorboard = False
  return made


def main(workdir: str, trials: str, method: str, storage: str = '') -> None:
  """Works until nothing is left."""
  given = {'model': network(), 'data': data(), 'method': method, 'storage': storage}
  found = jl.tune(config(), workdir, SPACE, trials=int(trials), **given, say=lambda line: print(line, flush=True))
  print('done', len(found.trials), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
