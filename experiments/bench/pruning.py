"""What pruning adds to a train step: JAX against JAX in one process, in turns.

  python experiments/bench/pruning.py --rounds=20
  python experiments/bench/pruning.py --rounds=10 --models=4

An MLP of 1.2 M parameters, batch 64, Adam. Prints for each dynamic the ratio to the plain step of a step that
refreshes its masks, of one that does not, and of a run that refreshes each 100th step (the mean of 99 and 1); for
`--models` the time of a vmapped ensemble a model, against one. Nothing is asserted: machines differ, and are shared.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import turns
from absl import app, flags

import jaxlite as jl
from jaxlite import trees
from jaxlite.pruning._allocate import global_
from jaxlite.pruning._rigl import rigl, set_
from jaxlite.pruning._straight_through import straight_through
from jaxlite.pruning._structure import n_m
from jaxlite.pruning.sparsity_schedules import Schedule

FLAGS = flags.FLAGS
flags.DEFINE_integer('rounds', 20, 'alternations')
flags.DEFINE_integer('steps', 5, 'steps a round')
flags.DEFINE_integer('models', 1, 'models in an ensemble; 1 times the parts instead')
BATCH = 64
WIDTHS = (784, 1024, 384, 10)


def network() -> jl.Model:
  """784-1024-384-10: 1,200,266 parameters."""
  rng = np.random.default_rng(0)
  sizes = list(itertools.pairwise(WIDTHS))
  start = [(rng.normal(size=pair).astype(np.float32) / pair[0] ** 0.5, np.zeros(pair[1], np.float32)) for pair in sizes]

  def apply(layers: Any, x: jax.Array) -> jax.Array:
    for weight, bias in layers[:-1]:
      x = jax.nn.relu(x @ weight + bias)
    return x @ layers[-1][0] + layers[-1][1]

  return jl.from_function(apply, start)


def batch() -> dict[str, Any]:
  """Noise of the right form: nothing here depends on what is learned."""
  rng = np.random.default_rng(0)
  inputs = jnp.asarray(rng.normal(size=(BATCH, WIDTHS[0])), jnp.float32)
  return {'inputs': inputs, 'labels': jnp.asarray(rng.integers(0, 10, BATCH))}


def when(refresh: bool) -> Schedule:
  """Masks at the first step, then at each or at none: both compile the same program."""
  due = (lambda count: count >= 0) if refresh else (lambda count: count == 0)
  return Schedule(lambda count, target: jnp.float32(target), due, 0, 'bench')


def recipes(refresh: bool) -> dict[str, jl.Recipe]:
  """Each dynamic, refreshing at every step or never again."""
  adam, every = optax.adam(1e-3), 1 if refresh else 10**6
  return {
    'prune': jl.chain(adam, jl.prune(0.9, schedule=when(refresh))),
    'prune, packed': jl.chain(adam, jl.prune(0.9, schedule=when(refresh), packed=True)),
    'prune, global': jl.chain(adam, jl.prune(0.9, schedule=when(refresh), allocate=global_())),
    'prune, 2:4': jl.chain(adam, jl.prune(0.5, schedule=when(refresh), structure=n_m(2, 4))),
    'rigl': jl.chain(rigl(adam, 0.9, end=10**7, every=every)),
    'set': jl.chain(set_(adam, 0.9, end=10**7, every=every)),
    'straight through': jl.chain(straight_through(0.9, schedule=when(refresh)), adam),
  }


def main(_: list[str]) -> None:
  """Times all in turn."""
  if FLAGS.models > 1:
    ensemble()
    return
  running = {'plain': started(jl.chain(optax.adam(1e-3)))}
  for refresh in (False, True):
    running.update({f'{name}|{refresh}': started(recipe) for name, recipe in recipes(refresh).items()})
  times = turns.in_turns(running, batch_once, FLAGS.rounds, FLAGS.steps)
  plain = times['plain']
  print(f'plain step: {1e3 * np.median(plain):.2f} ms (min {1e3 * plain.min():.2f})')
  print(f'{"ratio to it, median of rounds":30} {"quiet":>8} {"refresh":>8} {"each 100":>9}')
  for name in recipes(True):
    quiet, refresh = (np.median(times[f'{name}|{on}'] / plain) for on in (False, True))
    print(f'{name:30} {quiet:8.3f} {refresh:8.2f} {(99 * quiet + refresh) / 100:9.3f}')


def started(recipe: jl.Recipe) -> tuple[Any, Any]:
  """A compiled train step with its state after two steps."""
  train = jl.train_step(network(), jl.cross_entropy, recipe)
  state = train.init(jax.random.key(0), batch_once)
  for _ in range(2):
    state, _ = train.step(state, batch_once)
  return train, state


def ensemble() -> None:
  """A vmapped step of several models against the step of one: time a model."""
  recipe = jl.chain(optax.adam(1e-3), jl.prune(0.9, begin=10**6))
  train = jl.train_step(network(), jl.cross_entropy, recipe)
  one = train.init(jax.random.key(0), batch_once)
  axes = jl.step.ensemble_axes(one)

  def stacked(path: str, leaf: jax.Array) -> jax.Array:
    return jnp.copy(leaf) if path.split('/')[-1] in ('count', 'step') else jnp.stack([leaf] * FLAGS.models)

  many = trees.map_with_path(stacked, one)
  step = jax.jit(jax.vmap(train.step, in_axes=(axes, None), out_axes=(axes, 0)), donate_argnums=0)
  states, times = {'one': one, 'many': many}, {'one': [], 'many': []}
  steps = {'one': train.step, 'many': step}
  for _ in range(FLAGS.rounds + 1):
    for name in states:
      began = time.perf_counter()
      states[name], _ = steps[name](states[name], batch_once)
      jax.block_until_ready(states[name])
      times[name].append(time.perf_counter() - began)
  ratio = np.median(times['many'][1:]) / FLAGS.models / np.median(times['one'][1:])
  print(f'{FLAGS.models} models at once: {ratio:.2f} times one, a model')


if __name__ == '__main__':
  batch_once = batch()
  app.run(main)
