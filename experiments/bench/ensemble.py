"""Several small models in one vmapped step, beside the same models one after the other: for which sizes is it faster?

  python experiments/bench/ensemble.py --members=8
  python experiments/bench/ensemble.py --members=8 --search   # a search of 24 tiny trials, with members and without

Random data, the shapes of digits (8 x 8) and Fashion-MNIST (28 x 28). The step is `jl.train_step`'s, its rate an
argument; a member's batch is its own. Milliseconds for a step of all members, the median of some rounds: alone as a
run dispatches it (`steps`, 16 steps a call, its rewrites for CPU), alone in plain XLA, and vmapped. The last column is
the largest difference of a member's params from itself alone in plain XLA after the steps, relative to their largest.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxlite as jl
from jaxlite.models import MLP, SmallCNN
from jaxlite.step import ensemble_axes

_STEPS = 16  # a call


def network(name: str) -> tuple[Any, tuple[int, ...]]:
  """A network and the shape of its inputs, by what its name says: 'mlp 64', 'mlp 300-100', 'cnn 8'."""
  kind, _, sizes = name.partition(' ')
  widths = tuple(map(int, sizes.split('-')))
  if kind == 'mlp':
    return MLP(widths, classes=10), (8, 8, 1) if widths[0] < 128 else (28, 28, 1)
  return SmallCNN(widths, classes=10), (28, 28, 1)


def timed(call: Callable[[], Any], rounds: int) -> float:
  """Milliseconds, the median."""
  jax.block_until_ready(call())
  took = []
  for _ in range(rounds):
    began = time.perf_counter()
    jax.block_until_ready(call())
    took.append(1e3 * (time.perf_counter() - began))
  return statistics.median(took)


def compared(name: str, batch_size: int, members: int, rounds: int) -> list[str]:
  """A row of the table."""
  model, shape = network(name)
  rng = np.random.default_rng(0)
  rates = np.geomspace(1e-4, 1e-2, members).astype(np.float32)
  batches = {
    'inputs': rng.normal(size=(members, _STEPS, batch_size, *shape)).astype(np.float32),
    'labels': rng.integers(0, 10, (members, _STEPS, batch_size)).astype(np.int32),
    'weight': np.ones((members, _STEPS, batch_size), np.float32),
  }

  def made(rate: Any, rewrites: bool) -> Any:
    recipe = jl.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))
    return jl.train_step(jl.adapt(model), jl.cross_entropy, recipe, rewrites=rewrites)

  first = jax.tree.map(lambda leaf: leaf[0, 0], batches)
  own = made(1e-3, True)
  begin = lambda member: own.init(jax.random.key(member), first)  # noqa: E731

  def some(state: Any, batch: Any, rate: Any) -> Any:
    body = lambda state, one: (made(rate, False).step(state, one)[0], None)  # noqa: E731
    return jax.lax.scan(body, state, batch)[0]

  alone = jax.jit(some)
  axes = ensemble_axes(begin(0))
  together = jax.jit(jax.vmap(some, in_axes=(axes, 0, 0), out_axes=axes))
  states = [begin(member) for member in range(members)]
  stack = lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
  lead = lambda axis, *trees: trees[0] if axis is None else stack(*trees)  # noqa: E731
  stacked = jax.tree.map(lead, axes, *states, is_leaf=lambda one: one is None)
  each = [jax.tree.map(lambda leaf, member=member: leaf[member], batches) for member in range(members)]

  began = time.perf_counter()
  found = jax.block_until_ready(together(stacked, batches, rates))
  compiled = time.perf_counter() - began
  apart = 0.0
  for member in range(members):
    one = alone(states[member], each[member], rates[member])
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(found.params), strict=True):
      apart = max(apart, float(jnp.max(jnp.abs(a - b[member])) / jnp.max(jnp.abs(a))))

  live = list(states)

  def as_runs() -> Any:
    for member in range(members):
      live[member] = own.steps(live[member], each[member])[0]
    return live[-1].params

  whole = lambda: [alone(states[member], each[member], rates[member]).params for member in range(members)]  # noqa: E731
  vmapped = timed(lambda: together(stacked, batches, rates).params, rounds)
  plain = timed(whole, rounds)
  runs = timed(as_runs, rounds)
  row = [name, str(batch_size), *(f'{one / _STEPS:.3f}' for one in (runs, plain, vmapped))]
  return [*row, f'{min(runs, plain) / vmapped:.1f}', f'{compiled:.1f}', f'{apart:.1e}']


def searched(members: int) -> str:
  """What a search of 24 trials by successive halving takes: processor seconds, of this process with all its threads."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 160).astype(np.int32)
  inputs = rng.normal(size=(160, 5)).astype(np.float32) + labels[:, None]
  parts = [(inputs[part], labels[part]) for part in (slice(61), slice(61, 120), slice(120, 160))]

  def recipe(config: jl.Config, total_steps: int, rate: float = 0.01) -> jl.Recipe:
    schedule = jl.optim.warmup_cosine(rate, total_steps)
    return jl.chain(optax.clip_by_global_norm(1.0), jl.average(0.9), optax.adam(schedule))

  config = jl.Config(name='tiny', recipe=recipe, train=jl.Duration(steps=90))
  config.data.batch_size, config.log.tensorboard = 16, False
  config.eval.every = config.log.every = config.checkpoint.every = jl.Duration(percent=100 / 9)
  space = {'recipe.rate': jl.tuning.log_uniform(1e-4, 1e-1), 'seed': jl.tuning.integer(0, 99)}
  began = time.process_time()
  with tempfile.TemporaryDirectory() as folder:
    given = {'model': MLP((8,), classes=3), 'data': jl.data.from_arrays(*parts), 'say': lambda line: None}
    found = jl.tune(config, folder, space, trials=24, method='random', stop='halving', members=members, **given)
  whole = sum(one.state == 'complete' for one in found.trials)
  return f'members={members}: {time.process_time() - began:.1f} s, {whole} trials whole, the best {found.best.found}'


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--members', type=int, default=8)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--cases', default='mlp 16:32,mlp 64:32,mlp 64:128,mlp 300-100:32,mlp 300-100:128,cnn 8:32')
  parser.add_argument('--search', action='store_true')
  words = parser.parse_args()
  if words.search:
    for members in (1, words.members):
      print(searched(members), flush=True)
    return
  print('network | batch | as runs ms | plain XLA ms | vmapped ms | faster | compile s | apart')
  for case in words.cases.split(','):
    name, _, batch_size = case.partition(':')
    print(' | '.join(compared(name, int(batch_size), words.members, words.rounds)), flush=True)


if __name__ == '__main__':
  main()
