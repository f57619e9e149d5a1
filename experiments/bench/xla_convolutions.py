"""How fast XLA's own convolutions for CPU are, and how near `jl.plan` of a function tells it.

    python experiments/bench/xla_convolutions.py [--only=3-D,groups]

Each line: a convolution or one of its gradients, its FLOPs, those a second, processor seconds taken and told. What
`planning/speed.py` knows of forms that are none of XLA's fast ones was read off here.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlite.host.rates import rates
from jaxlite.planning import speed
from jaxlite.planning.cost import cost

LAYOUTS = {1: ('NHC', 'HIO', 'NHC'), 2: ('NHWC', 'HWIO', 'NHWC'), 3: ('NDHWC', 'DHWIO', 'NDHWC')}


def convolution(stride: int = 1, groups: int = 1, wide: int = 1) -> Callable[..., Any]:
  def of(x: Any, w: Any) -> Any:
    axes = x.ndim - 2
    return lax.conv_general_dilated(
      *(x, w, (stride,) * axes, 'SAME'),
      rhs_dilation=(wide,) * axes,
      dimension_numbers=LAYOUTS[axes],
      feature_group_count=groups,
    )

  return of


def transposed(stride: int) -> Callable[..., Any]:
  return lambda x, w: lax.conv_transpose(x, w, (stride,) * (x.ndim - 2), 'SAME')


CASES = {
  '2-D': (convolution(), (16, 16, 16, 32), (3, 3, 32, 32)),
  '2-D, stride 2': (convolution(2), (16, 32, 32, 16), (3, 3, 16, 32)),
  '1-D': (convolution(), (16, 500, 16), (5, 16, 32)),
  '1-D, stride 4': (convolution(4), (8, 4000, 8), (9, 8, 16)),
  '1-D, dilated': (convolution(wide=4), (16, 500, 32), (3, 32, 32)),
  '3-D, 8 channels': (convolution(), (8, 12, 12, 12, 8), (3, 3, 3, 8, 16)),
  '3-D, 32 channels': (convolution(), (8, 8, 8, 8, 32), (3, 3, 3, 32, 32)),
  '3-D, 1 channel': (convolution(), (4, 16, 16, 16, 1), (3, 3, 3, 1, 8)),
  '3-D, stride 2': (convolution(2), (4, 16, 16, 16, 4), (3, 3, 3, 4, 16)),
  '4 groups': (convolution(groups=4), (16, 16, 16, 32), (3, 3, 8, 32)),
  '2 groups': (convolution(groups=2), (8, 16, 16, 64), (3, 3, 32, 64)),
  '8 groups': (convolution(groups=8), (8, 12, 12, 64), (3, 3, 8, 64)),
  '4 groups, 1-D': (convolution(groups=4), (8, 200, 64), (5, 16, 64)),
  'transposed, 16 channels': (transposed(2), (16, 8, 8, 16), (4, 4, 16, 16)),
  'transposed, 64 channels': (transposed(2), (16, 7, 7, 64), (4, 4, 64, 32)),
  'transposed, stride 3': (transposed(3), (8, 10, 10, 16), (5, 5, 16, 8)),
  'transposed, 1-D': (transposed(2), (16, 200, 16), (4, 16, 16)),
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--only', default='', help='parts of names, by commas')
  only = [one for one in parser.parse_args().only.split(',') if one]
  here = rates(print)
  for name, (fn, *shapes) in CASES.items():
    if only and not any(one in name for one in only):
      continue
    x, w = (jax.random.normal(jax.random.key(i), shape, jnp.float32) for i, shape in enumerate(shapes))
    out = fn(x, w)
    for what, one, args in (
      ('forward', fn, (x, w)),
      ('to weights', lambda x, w, g, fn=fn: jax.vjp(lambda w: fn(x, w), w)[1](g)[0], (x, w, out)),
      ('to inputs', lambda x, w, g, fn=fn: jax.vjp(lambda x: fn(x, w), x)[1](g)[0], (x, w, out)),
    ):
      compiled, seconds = jax.jit(one), []
      jax.block_until_ready(compiled(*args))
      for _ in range(7):
        began = time.process_time()
        jax.block_until_ready(compiled(*args))
        seconds.append(time.process_time() - began)
      took, work = sorted(seconds)[3], cost(jax.make_jaxpr(one)(*args))
      told = speed.spent(work.usual, here, 2, kernels=False).processor
      print(
        f'{name + ", " + what:36} {work.flops / 1e6:7.1f} MFLOP {work.flops / took / 1e9:7.2f} GFLOP/s, '
        f'took {1e3 * took:8.3f} ms, told {1e3 * told:8.3f}: {told / took:.2f}'
      )


if __name__ == '__main__':
  main()
