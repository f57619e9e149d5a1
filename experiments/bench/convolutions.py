"""Value and gradients of one convolution of many kinds: plain JAX, jaxlite's forms of it, and PyTorch.

  python experiments/bench/convolutions.py [--torch_python=PATH] [--rounds=9] [--only=depthwise]

JAX forms alternate in this process, PyTorch in one of its own that works only when it is asked; each round is the
mean of a few calls, shown is the median and the ratio to plain JAX. Both keep freed memory mapped, as jaxlite's loop
does. `jaxlite` takes oneDNN where that extra is installed, `without the extra` kernels compiled on this machine,
`without a compiler` XLA's operations alone. JAX lays channels last, PyTorch as it is faster: as it comes, or last.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import serving
from absl import app, flags
from jax import lax

import jaxlite as jl
from jaxlite.cpu.kernels import direct, onednn
from jaxlite.host import allocator

FLAGS = flags.FLAGS
flags.DEFINE_string('torch_python', sys.executable, 'the interpreter that has PyTorch')
flags.DEFINE_integer('rounds', 9, 'alternations')
flags.DEFINE_string('only', '', 'kinds whose name holds this')
flags.DEFINE_integer('calls', 5, 'of a form in its turn')


class Kind(NamedTuple):
  """A convolution, padded by half its kernel.

  Attributes:
    batch, size, channels, features, kernel, stride, groups: `size` is that of every axis in turn.
    transposed: it makes a picture larger by its stride.
  """

  batch: int
  size: tuple[int, ...]
  channels: int
  features: int
  kernel: int
  stride: int = 1
  groups: int = 1
  transposed: bool = False


KINDS = {
  'one axis: 1000, 32 to 64, kernel 5': Kind(64, (1000,), 32, 64, 5),
  'picture: 28x28, 1 to 32': Kind(128, (28, 28), 1, 32, 3),
  'picture: 14x14, 32 to 64': Kind(128, (14, 14), 32, 64, 3),
  'picture: 32x32, 16 to 32, stride 2': Kind(64, (32, 32), 16, 32, 3, 2),
  'pointwise: 14x14, 256 to 64': Kind(32, (14, 14), 256, 64, 1),
  'depthwise: 32x32, 64': Kind(64, (32, 32), 64, 64, 3, 1, 64),
  'depthwise: 14x14, 384, kernel 7': Kind(16, (14, 14), 384, 384, 7, 1, 384),
  'depthwise: 3x3, 1152, kernel 5': Kind(16, (3, 3), 1152, 1152, 5, 1, 1152),
  'four groups: 16x16, 64': Kind(64, (16, 16), 64, 64, 3, 1, 4),
  'transposed: 14x14, 64 to 32, stride 2': Kind(32, (14, 14), 64, 32, 3, 2, transposed=True),
  'transposed: 32x32, 32 to 16, kernel 4': Kind(16, (32, 32), 32, 16, 4, 2, transposed=True),
  'transposed: 4x4, 512 to 256, kernel 4': Kind(8, (4, 4), 512, 256, 4, 2, transposed=True),
  'three axes: 16x32x32, 8 to 16': Kind(8, (16, 32, 32), 8, 16, 3),
}


def plain(kind: Kind) -> Any:
  """The gradients of a convolution's squares by image and weights."""
  space = 'DHW'[-len(kind.size) :]
  steps, before = (kind.stride,) * len(kind.size), kind.kernel // 2
  before = kind.kernel - 1 - before if kind.transposed else before
  conv = functools.partial(
    lax.conv_general_dilated,
    window_strides=(1,) * len(kind.size) if kind.transposed else steps,
    lhs_dilation=steps if kind.transposed else None,
    padding=[(before, before)] * len(kind.size),
    dimension_numbers=(f'N{space}C', f'{space}IO', f'N{space}C'),
    feature_group_count=kind.groups,
  )
  return jax.grad(lambda x, w: (conv(x, w) ** 2).sum(), (0, 1))


def forms(kind: Kind, x: Any, w: Any) -> dict[str, Any]:
  """Compiled programs by name; which kernels there are is asked while a program is traced."""
  found = {'plain JAX': jax.jit(plain(kind)), 'jaxlite': jax.jit(jl.for_cpu(plain(kind)))}
  jax.block_until_ready([form(x, w) for form in found.values()])
  present = onednn.missing, direct.missing
  try:
    onednn.missing = lambda: 'left out'
    found['without the extra'] = jax.jit(jl.for_cpu(plain(kind)))
    jax.block_until_ready(found['without the extra'](x, w))
    direct.missing = lambda: 'left out'
    found['without a compiler'] = jax.jit(jl.for_cpu(plain(kind)))
    jax.block_until_ready(found['without a compiler'](x, w))
  finally:
    onednn.missing, direct.missing = present
  return found


def timed(form: Any, x: Any, w: Any) -> float:
  """Seconds a call."""
  return serving.seconds(lambda: jax.block_until_ready([form(x, w) for _ in range(FLAGS.calls)])) / FLAGS.calls


def main(_: list[str]) -> None:
  """Prints one row per kind."""
  allocator.share_one_arena()
  absent = serving.missing(FLAGS.torch_python, 'torch')
  worker = None if absent else serving.start(FLAGS.torch_python, 'convolutions_torch.py', {})
  rng = np.random.default_rng(0)
  print(f'{"ms, and of plain JAX":36} {"plain JAX":>9}', end='')
  print(''.join(f'{name:>20}' for name in ('jaxlite', 'without the extra', 'without a compiler', 'PyTorch')))
  for title, kind in KINDS.items():
    if FLAGS.only not in title:
      continue
    x = rng.normal(size=(kind.batch, *kind.size, kind.channels)).astype(np.float32)
    w = rng.normal(size=(kind.kernel,) * len(kind.size) + (kind.channels // kind.groups, kind.features)).astype(
      np.float32
    )
    running = forms(kind, x, w)
    allocator.keep_mapped()
    times: dict[str, list[float]] = {}
    for turn in range(FLAGS.rounds):
      for name, form in running.items():
        times.setdefault(name, []).append(timed(form, x, w))
      if worker:
        times.setdefault('PyTorch', []).append(serving.ask(worker, 'run', list(kind), FLAGS.calls, turn == 0))
    base = np.array(times.pop('plain JAX'))
    cells = [f'{1e3 * np.median(found):8.1f} ({np.median(np.array(found) / base):.2f})' for found in times.values()]
    print(f'{title:36} {1e3 * np.median(base):9.1f}' + ''.join(f'{cell:>20}' for cell in cells), flush=True)
  if worker:
    serving.stop(worker)


if __name__ == '__main__':
  app.run(main)
