"""What compiling and a whole short run cost as a network gets deeper, beside the same in plain JAX.

  python experiments/bench/growth_programs.py [--short]

Seconds of processor time, each in a fresh process without a compile cache, imports left out; a row of leaves tells
what those of a run take as well (jaxlite's rooms, Orbax, Matplotlib), beside which a run of few arrays is short.

  depth   the state and the first step of an MLP of that many layers, 64 wide: fake_quant + prune + Adam, beside a step
          that is fake-quantized by hand (per-channel weights, moving ranges, straight through) with the same Adam and
          no masks, which the ratio is to; one that also draws and holds masks by hand (a sort a layer, in a
          conditional), which is the same work; and the plain step of all
  prune   of the same, what prune adds to fake_quant + Adam
  leaves  `jl.train` of 6 steps of an MLP of that many parameter arrays, 16 wide, with checkpoints and report, beside
          6 steps of the same model in plain JAX
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

DEPTHS, LEAVES = (2, 50, 100, 200), (20, 200, 1_000, 2_000)
BATCH = 128


def rows(short: bool = False) -> Iterator[dict[str, Any]]:
  """Yields {'what', 'size', 'cpu seconds', 'plain JAX', 'ratio'}, a size each; of depth two more."""
  for size in DEPTHS[:2] if short else DEPTHS:
    quantized = _seconds('quantized', size)
    beside = {'with masks': _seconds('pruned by hand', size), 'plain step': _seconds('plain', size)}
    yield _row('depth', size, _seconds('pruned', size), _seconds('by hand', size), beside)
    yield {'what': 'prune', 'size': size, 'cpu seconds': round(_seconds('pruned', size) - quantized, 2)}
  for size in LEAVES[:2] if short else LEAVES:
    yield _row('leaves', size, _seconds('run', size), _seconds('plain run', size), {'imports': _seconds('imports', 1)})


def _row(what: str, size: int, ours: float, plain: float, more: dict[str, float] | None = None) -> dict[str, Any]:
  ratio = round(ours / plain, 2)
  return {'what': what, 'size': size, 'cpu seconds': ours, 'plain JAX': plain, 'ratio': ratio, **(more or {})}


_KNOWN: dict[tuple[str, int], float] = {}


def _seconds(kind: str, size: int) -> float:
  if (kind, size) not in _KNOWN:
    command = [sys.executable, __file__, '--one', kind, str(size)]
    environment = {**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    _KNOWN[kind, size] = round(float(done.stdout.splitlines()[-1]), 2)
  return _KNOWN[kind, size]


def _params(layers: int, width: int) -> dict[str, Any]:
  rng = np.random.default_rng(0)
  scale = np.float32((2 / width) ** 0.5)
  return {
    f'layer{i:04}': {
      'w': rng.normal(size=(width, width)).astype(np.float32) * scale,
      'b': np.zeros(width, np.float32),
    }
    for i in range(layers)
  }


def _data(width: int, count: int) -> tuple[Any, Any]:
  rng = np.random.default_rng(1)
  return rng.normal(size=(count, width)).astype(np.float32), rng.integers(0, width, count)


def _mlp(params: Any, x: Any) -> Any:
  import jax

  *hidden, last = sorted(params)
  for name in hidden:
    x = jax.nn.relu(x @ params[name]['w'] + params[name]['b'])
  return x @ params[last]['w'] + params[last]['b']


def _ours(size: int, *, quantized: bool, pruned: bool) -> Callable[[], Any]:
  import jax
  import optax

  import jaxlite as jl

  parts = [jl.fake_quant()] * quantized + [optax.adam(1e-3)] + [jl.prune(0.5, end=10, every=2)] * pruned
  params, (x, y) = _params(size, 64), _data(64, BATCH)
  train_step, from_function = jl.train_step, jl.from_function  # rooms are imported when they are first asked for

  def act() -> Any:
    train = train_step(from_function(_mlp, params), jl.cross_entropy, jl.chain(*parts))
    batch = {'inputs': x, 'labels': y}
    return train.step(train.init(jax.random.key(0), batch), batch)

  return act


def _run(size: int) -> Callable[[], Any]:
  import optax

  import jaxlite as jl

  params, data = _params(size // 2, 16), _data(16, 4 * BATCH)
  recipe = lambda config, total: jl.chain(optax.adam(1e-3))  # noqa: E731
  config = jl.Config(name='growth', recipe=recipe, train=jl.Duration(steps=6))
  _imported()

  def act() -> Any:
    with tempfile.TemporaryDirectory() as folder:
      return jl.train(config, folder, model=jl.from_function(_mlp, params), data=data, say=lambda line: None)

  return act


def _imported() -> None:
  """What a run imports on its way."""
  import matplotlib.backends.backend_agg
  import matplotlib.figure
  from orbax.checkpoint import v1

  import jaxlite as jl

  _ = jl.train, jl.from_function, v1, matplotlib


def _plain(size: int, width: int, steps: int, *, by_hand: bool = False, masks: bool = False) -> Callable[[], Any]:
  """What a person writes in plain JAX; of all that is optional nothing (no donation, no watch over bad numbers)."""
  import jax
  import jax.numpy as jnp
  import optax

  tx = optax.adam(1e-3)
  start, (x, y) = _params(size, width), _data(width, BATCH)

  def move(old: Any, x: Any, first: Any) -> Any:
    low, high = jnp.min(x), jnp.max(x)
    return jnp.where(first, low, 0.99 * old[0] + 0.01 * low), jnp.where(first, high, 0.99 * old[1] + 0.01 * high)

  def quantized_x(x: Any, span: Any) -> Any:
    low, high = jnp.minimum(span[0], 0), jnp.maximum(span[1], 0)
    scale = jnp.maximum((high - low) / 255, 1e-8)
    zero = jnp.round(-low / scale)
    clipped = jnp.clip(x, low, high)
    steps = jnp.clip(jnp.round(x / scale) + zero, 0, 255) - zero
    return clipped + jax.lax.stop_gradient(steps * scale - clipped)

  def quantized_w(w: Any) -> Any:
    scale = jnp.maximum(jnp.max(jnp.abs(w), axis=0, keepdims=True) / 127, 1e-8)
    return w + jax.lax.stop_gradient(jnp.clip(jnp.round(w / scale), -127, 127) * scale - w)

  def draw(w: Any, sparsity: Any) -> Any:
    sizes = jnp.abs(w)
    lowest = jnp.sort(sizes.ravel())[jnp.minimum(jnp.int32(sparsity * w.size), w.size - 1)]
    return sizes >= lowest

  def pruned(params: Any, held: Any, count: Any) -> Any:
    sparsity = 0.5 * (1 - (1 - jnp.minimum(count / 10, 1)) ** 3)
    due = (count % 2 == 0) & (count <= 10)
    held = jax.lax.cond(due, lambda: {n: draw(params[n]['w'], sparsity) for n in held}, lambda: held)
    return {n: {**params[n], 'w': jnp.where(held[n], params[n]['w'], 0)} for n in held}, held

  def loss(params: Any, spans: Any, x: Any, y: Any, first: Any) -> Any:
    new = {}
    for name in sorted(params):
      w, b = params[name]['w'], params[name]['b']
      if by_hand:
        new[name] = move(spans[name], jax.lax.stop_gradient(x), first)
        x, w = quantized_x(x, new[name]), quantized_w(w)
      x = x @ w + b
      x = x if name == max(params) else jax.nn.relu(x)
    return optax.softmax_cross_entropy_with_integer_labels(x, y).mean(), new

  @jax.jit
  def step(params: Any, state: Any, spans: Any, held: Any, x: Any, y: Any) -> Any:
    count = state[0].count
    (value, spans), grads = jax.value_and_grad(loss, has_aux=True)(params, spans, x, y, count == 0)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    params, held = pruned(params, held, count) if masks else (params, held)
    return params, state, spans, held, value

  def act() -> Any:
    params = jax.tree.map(jnp.asarray, start)
    state, spans = tx.init(params), {name: (jnp.zeros(()), jnp.zeros(())) for name in params if by_hand}
    held = {name: jnp.ones(params[name]['w'].shape, bool) for name in params if masks}
    for _ in range(steps):
      params, state, spans, held, value = step(params, state, spans, held, x, y)
    return params, value

  return act


KINDS: dict[str, Callable[[int], Callable[[], Any]]] = {
  'pruned': lambda size: _ours(size, quantized=True, pruned=True),
  'quantized': lambda size: _ours(size, quantized=True, pruned=False),
  'by hand': lambda size: _plain(size, 64, 1, by_hand=True),
  'pruned by hand': lambda size: _plain(size, 64, 1, by_hand=True, masks=True),
  'plain': lambda size: _plain(size, 64, 1),
  'run': _run,
  'plain run': lambda size: _plain(size // 2, 16, 6),
  'imports': lambda _: _imported,
}


def _one(kind: str, size: int) -> float:
  import jax
  import jax.numpy as jnp

  act = KINDS[kind](size)
  jax.block_until_ready(jnp.zeros(3) + 1)  # the backend is there
  began = time.process_time()
  found = act()
  jax.block_until_ready([leaf for leaf in jax.tree.leaves(found) if isinstance(leaf, jax.Array)])
  return time.process_time() - began


def main() -> None:
  """Prints a row a size."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--short', action='store_true', help='the two smallest sizes')
  parser.add_argument('--one', nargs=2, metavar=('KIND', 'SIZE'), help='the seconds of one kind, in this process')
  args = parser.parse_args()
  if args.one:
    print(_one(args.one[0], int(args.one[1])))
    return
  for row in rows(args.short):
    print('  '.join(f'{name} {value}' for name, value in row.items()), flush=True)


if __name__ == '__main__':
  main()
