"""Runs of a moment on made-up data, for the tests of the loop: what is trained, and what it leaves to compare."""

import json

import jax.numpy as jnp
import numpy as np
import optax

import jaxlite as jl
from jaxlite import checkpoint
from jaxlite.run import loop, records
from jaxlite.run.records import read_records

X = np.random.default_rng(0).normal(size=(90, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)


def linear(classes=3):
  """A fresh model each time: (function, start values)."""
  params = {'w': np.zeros((6, classes), np.float32), 'b': np.zeros(classes, np.float32)}
  return lambda p, x: x @ p['w'] + p['b'], params


def adam(config, total):
  return jl.chain(optax.adam(0.05))


def up_and_down(config, total):
  """Learns for six steps, then unlearns."""
  return jl.chain(optax.sgd(lambda count: jnp.where(count < 6, 0.5, -2.0)))


def config_of(recipe=adam, *, steps=12, **fields):
  """A quick config; fields by path, dots as double underscores."""
  config = jl.Config(name='x', recipe=recipe, train=jl.Duration(steps=steps))
  config.log.every = config.eval.every = jl.Duration(steps=2)
  config.checkpoint.every, config.data.batch_size, config.eval.batch_size = jl.Duration(steps=4), 16, 20
  config.log.tensorboard = config.log.progress = False
  for path, value in fields.items():
    group, _, name = path.rpartition('__')
    setattr(getattr(config, group) if group else config, name, value)
  return config


def run(folder, recipe=adam, *, model=None, data=(X, Y), fresh=False, say=lambda line: None, **fields):
  return jl.train(config_of(recipe, **fields), folder, model=model or linear(), data=data, fresh=fresh, say=say)


def points(folder):
  return [{name: value for name, value in point.items() if name not in records.CLOCK} for point in read_records(folder)]


def leaves(folder):
  names = ('step', 'key', 'params', 'model_state', 'opt_state', 'const')
  return checkpoint.fingerprint(checkpoint.load_arrays(folder / 'checkpoints', names, which='latest').state)


def evidence(folder):
  result = json.loads((folder / 'result.json').read_text())
  best = np.asarray(jl.load(folder).predict(X)).tobytes()
  return leaves(folder), points(folder), result['metrics'], result['evidence'], best


def crash_at(step, monkeypatch):
  """Ends the process's run as a fault would, before the batch of a step."""
  real = loop.datasets.batch_at

  def batch_at(split, size, seed, at):
    if at == step:
      raise MemoryError('the machine is gone')
    return real(split, size, seed, at)

  with monkeypatch.context() as patch:
    patch.setattr(loop.datasets, 'batch_at', batch_at, raising=False)
    yield
