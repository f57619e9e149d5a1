"""A small job of a given form, for `tests/run/test_fit.py`: its widths, batch and kind come from a file of JSON.

As an experiment file of the launcher: get_config reads the file that the environment's JOB names.
"""

import dataclasses
import itertools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxlite as jl


@dataclasses.dataclass(kw_only=True)
class Job(jl.Config):
  """Adds the form.

  Attributes:
    kind: 'function' or 'linen'; 'statistics' has batch statistics, 'dropout' draws.
    width, depth: of the network.
    features: of an example.
  """

  kind: str = 'function'
  width: int = 64
  depth: int = 2
  features: int = 32
  examples: int = 4096


def get_config():
  asked = json.loads(pathlib.Path(os.environ['JOB']).read_text())
  config = Job(name='job', model=model, recipe=recipe, train=jl.Duration(steps=asked.pop('steps')))
  config.data.load = load
  config.data.batch_size = asked.pop('batch')
  config.eval.batch_size = asked.pop('evaluation')
  config.eval.every = config.checkpoint.every = jl.Duration(steps=10)
  config.log.every, config.log.tensorboard = jl.Duration(steps=5), False
  return dataclasses.replace(config, **asked)


def load(config):
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(config.examples, config.features)).astype(np.float32)
  return jl.data.from_arrays((inputs, (inputs[:, 0] > 0).astype(int)), seed=config.seed)


def model(config):
  if config.kind in ('linen', 'dropout', 'statistics'):
    import flax.linen as nn

    class Net(nn.Module):
      @nn.compact
      def __call__(self, x, train: bool = False):
        for _ in range(config.depth):
          x = nn.gelu(nn.Dense(config.width)(x))
          x = nn.Dropout(0.1, deterministic=not train)(x) if config.kind == 'dropout' else x
          x = nn.BatchNorm(use_running_average=not train)(x) if config.kind == 'statistics' else x
        return nn.Dense(2)(x)

    return Net()
  rng = np.random.default_rng(1)
  sizes = [config.features, *[config.width] * config.depth, 2]
  params = {
    f'w{i:02}': rng.normal(size=pair).astype(np.float32) / pair[0] ** 0.5
    for i, pair in enumerate(itertools.pairwise(sizes))
  }

  def apply(params, x):
    for i in range(config.depth):
      x = jax.nn.gelu(x @ params[f'w{i:02}'])
    return x @ params[f'w{config.depth:02}']

  return jl.from_function(apply, jax.tree.map(jnp.asarray, params))


def recipe(config, total_steps):
  return jl.chain(optax.clip_by_global_norm(1.0), optax.adam(config.optim.lr))
