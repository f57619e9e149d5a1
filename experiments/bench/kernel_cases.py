"""Small programs of one kind of kernel each, as jaxlite runs them, timed on one core and on all.

    python experiments/bench/kernel_cases.py --out=FILE [--only=conv,dense]
    python experiments/bench/kernel_cases.py --pieces

`forecast_time.py fit --kernels=FILE` takes them beside whole steps: a group of kernels that the fitted networks hardly
have gets its factor here. A line holds a program's processor seconds on one core (others' work does not change them),
those on the wall by the busiest thread, and its groups by the machine's rates. Names are told as they are measured, and
the file is gone on with. `--pieces` prints `FITTED` of `planning/reference.py` for this machine; it goes with factors
that were fitted here.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_BUDGET = 0.05  # seconds on each, beside compiling

Program = tuple[Callable[..., Any], tuple[Any, ...]]


def ones(*shape: int) -> jax.Array:
  return jnp.full(shape, 0.01, jnp.float32)


def drawn(*shape: int) -> jax.Array:
  """As data are: which entry of a window is the largest is not known before it is looked at."""
  return 0.1 * jax.random.normal(jax.random.key(0), shape, jnp.float32)


def gradients(fn: Callable[..., Any], *args: Any, of: tuple[int, ...] | None = None) -> Program:
  """The gradient of the sum of squares; to all arguments, or to some."""
  return jax.grad(lambda *given: jnp.sum(fn(*given) ** 2), argnums=of or tuple(range(len(args)))), args


def convolve(x: Any, w: Any, layout: str = 'NHWC', groups: int = 1) -> Any:
  numbers = (layout, 'HWIO' if layout == 'NHWC' else 'OIHW', layout)
  return lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=numbers, feature_group_count=groups)


def pool(x: Any, layout: str = 'NHWC', side: int = 2) -> Any:
  window, step = ((1, n, n, 1) if layout == 'NHWC' else (1, 1, n, n) for n in (side, 2))
  return lax.reduce_window(x, -jnp.inf, lax.max, window, step, 'VALID')


def normed(x: Any, scale: Any, axes: tuple[int, ...] = (-1,)) -> Any:
  apart = x - x.mean(axes, keepdims=True)
  return apart * lax.rsqrt((apart * apart).mean(axes, keepdims=True) + 1e-6) * scale


def gated(x: Any, w: Any, u: Any) -> Any:
  def body(h: Any, x: Any) -> Any:
    gate, new = jnp.split(x @ w + h @ u, 2, -1)
    h = (1 - jax.nn.sigmoid(gate)) * h + jax.nn.sigmoid(gate) * jnp.tanh(new)
    return h, h

  return lax.scan(body, jnp.zeros((x.shape[1], u.shape[0])), x)[1]


def stacked(x: Any, weights: Any) -> Any:
  return lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, weights)[0]


def adamw(weights: Any, gradient: Any, mean: Any, square: Any) -> Any:
  mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient * gradient
  return weights - 0.001 * (mean / (jnp.sqrt(square) + 1e-8) + 0.01 * weights), mean, square


def ragged(x: Any, w: Any) -> Any:
  return lax.ragged_dot(x, w, jnp.full(len(w), len(x) // len(w), jnp.int32))


def programs() -> dict[str, Program]:
  """All of them, by name."""
  found: dict[str, Program] = {}
  for m, k, n in (
    (64, 64, 128), (512, 784, 512), (128, 2048, 2048), (2048, 64, 1024), (32, 100, 30_000), (64, 256, 8_000),
    (1024, 512, 10), (2048, 100, 512), (4096, 300, 256), (6000, 128, 128), (256, 50, 256), (64, 128, 256),
  ):  # fmt: skip
    found[f'dense {m}x{k}x{n}'] = gradients(jnp.dot, ones(m, k), ones(k, n))
  for b, t, d in ((64, 64, 32), (64, 128, 32), (256, 33, 16)):
    found[f'scores {b}x{t}x{d}'] = gradients(
      lambda q, k: jnp.einsum('btd,bsd->bts', q, k), ones(b, t, d), ones(b, t, d)
    )
    found[f'heads {b}x{t}x{d}'] = gradients(
      lambda q, k: jnp.einsum('bthd,bshd->bhts', q, k), ones(b // 4, t, 4, d), ones(b // 4, t, 4, d)
    )
    found[f'softmax {b}x{t}'] = gradients(lambda a: jax.nn.softmax(a, -1), ones(b, t, t))
  for b, s, c, h in ((128, 49, 32, 64), (64, 36, 96, 96)):
    found[f'mixed {b}x{s}x{c}'] = gradients(lambda x, w: jnp.einsum('bsc,sh->bhc', x, w), ones(b, s, c), ones(s, h))
    found[f'dense3 {b}x{s}x{c}'] = gradients(jnp.matmul, ones(b, s, c), ones(c, h))
  for e, m, k, n in ((8, 256, 64, 128), (4, 512, 100, 512)):
    found[f'ensemble {e}x{m}x{k}x{n}'] = gradients(jnp.matmul, ones(e, m, k), ones(e, k, n))
    found[f'ragged {e}x{m}x{k}x{n}'] = gradients(ragged, ones(m, k), ones(e, k, n))
  for t, b, i, h in ((40, 64, 12, 128), (28, 128, 28, 256), (20, 16, 8, 32)):
    found[f'gated {t}x{b}x{i}x{h}'] = gradients(gated, ones(t, b, i), ones(i, 2 * h), ones(h, 2 * h))
  for layers, m, k in ((8, 512, 256), (16, 2048, 128), (6, 128, 64)):
    found[f'stacked {layers}x{m}x{k}'] = gradients(stacked, ones(m, k), ones(layers, k, k))
  for b, side, i, o in ((64, 28, 1, 32), (64, 14, 32, 64), (32, 32, 16, 16), (32, 32, 3, 16), (64, 8, 8, 16)):
    for layout in ('NHWC', 'NCHW'):
      x = ones(b, side, side, i) if layout == 'NHWC' else ones(b, i, side, side)
      w = ones(3, 3, i, o) if layout == 'NHWC' else ones(o, i, 3, 3)
      name, run = f'{layout} {b}x{side}x{i}x{o}', functools.partial(convolve, layout=layout)
      found[f'conv {name}'] = gradients(run, x, w, of=(0, 1) if i > 3 else (1,))
      found[f'forward {name}'] = run, (x, w)
  for b, side, c in ((64, 32, 16), (32, 16, 64)):
    depthwise = functools.partial(convolve, groups=c)
    found[f'depthwise {b}x{side}x{c}'] = gradients(depthwise, ones(b, side, side, c), ones(3, 3, 1, c))
    found[f'pointwise {b}x{side}x{c}'] = gradients(convolve, ones(b, side, side, c), ones(1, 1, c, 2 * c))
  found['pool NHWC'] = gradients(pool, ones(64, 28, 28, 32))
  found['pool NCHW'] = gradients(lambda x: pool(x, 'NCHW'), ones(64, 32, 28, 28))
  for channels in (4, 12, 16, 24, 64):
    found[f'pool of {channels}'] = gradients(lambda x: pool(jax.nn.relu(x)), drawn(32, 28, 28, channels))
    found[f'sum of rows of {channels}'] = (lambda x: x.sum((0, 1, 2))), (ones(64, 28, 28, channels),)
  found['pool overlapping'] = gradients(lambda x: pool(x, 'NHWC', 3), drawn(32, 28, 28, 32))
  found['pool turned'] = gradients(lambda x: pool(x.transpose(0, 2, 3, 1)), drawn(128, 32, 14, 14))
  found['sum of a sum'] = (lambda x: x.sum(0).sum((1, 2))), (ones(64, 24, 28, 28),)
  for rows, columns in ((1024, 128), (8192, 64)):
    found[f'layer norm {rows}x{columns}'] = gradients(normed, ones(rows, columns), ones(columns))
  for shape in ((64, 28, 28, 32), (16, 16, 16, 64)):
    batch_norm = functools.partial(normed, axes=(0, 1, 2))
    found[f'batch norm {shape[1]}'] = gradients(batch_norm, ones(*shape), ones(shape[-1]))
  for rows, columns in ((1024, 128), (8192, 256)):
    for fn in (jax.nn.gelu, jnp.tanh, jax.nn.silu):
      found[f'{fn.__name__} {rows}x{columns}'] = gradients(fn, ones(rows, columns))
    found[f'bias {rows}x{columns}'] = gradients(lambda x, b: jax.nn.relu(x + b), ones(rows, columns), ones(columns))
  for size in (1 << 18, 1 << 22):
    found[f'adamw {size}'] = adamw, tuple(ones(size) for _ in range(4))
  for order in ((0, 3, 1, 2), (0, 2, 3, 1)):
    found[f'transpose {order}'] = functools.partial(jnp.transpose, axes=order), (ones(64, 28, 28, 32),)
  rows = jnp.arange(15_000) * 7 % 5000
  found['rows'] = gradients(lambda table: jnp.take(table, rows, axis=0).reshape(-1, 40, 64).mean(1), ones(5000, 64))
  return found


def main() -> None:
  from jaxlite.cpu.replace import for_cpu
  from jaxlite.host import allocator, machine, measure
  from jaxlite.planning import reference, speed
  from jaxlite.planning.cost import cost

  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', type=Path)
  parser.add_argument('--pieces', action='store_true')
  parser.add_argument('--only', default='')
  args = parser.parse_args()
  if args.pieces:
    known = reference.rates(print, anew=True)
    alone = reference.takes(known.one_core or known)
    for name, took in reference.takes(known).items():
      print(f"  '{name}': ({took:.3g}, {alone[name]:.3g}),")
    return
  if args.out is None:
    parser.error('--out=FILE says where what is measured goes')
  allocator.keep_mapped()  # as in a run
  done = {json.loads(line)['name'] for line in args.out.read_text().splitlines()} if args.out.exists() else set()
  known, cores = reference.rates(print), set(os.sched_getaffinity(0))
  for name, (fn, given) in programs().items():
    if name in done or not any(word in name for word in args.only.split(',')):
      continue
    timed = measure.Timed(lambda fn=fn, given=given: (for_cpu(fn), given), 1.0)
    wall, processor = measure.quickest(timed, _BUDGET, cores)
    program = cost(jax.make_jaxpr(fn)(*given), recomputes=False).usual
    groups = speed.by_group(program, known, machine.cores())
    told = speed.spent(program, known, machine.cores()).processor + known.dispatch
    print(f'{name}: {1e3 * processor:.3f} ms of one core, {1e3 * told:.3f} told', flush=True)
    found = {'name': name, 'processor': processor - known.dispatch, 'wall': wall, 'groups': groups}
    with args.out.open('a') as file:
      file.write(json.dumps(found) + '\n')


if __name__ == '__main__':
  main()
