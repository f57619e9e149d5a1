"""Networks of integers at random, for tests of what runs them."""

from __future__ import annotations

import numpy as np

from jaxlite.deployment.operations import Batch, Graph, Operation, Value


class Builder:
  """A list of integers, with scales at random."""

  def __init__(self, rng: np.random.Generator, shape: tuple[int, ...]):
    self.rng, self.count = rng, 0
    self.values = {'input': Value((Batch(), *shape), np.dtype('float32'))}
    self.constants: dict[str, np.ndarray] = {}
    self.operations: list[Operation] = []
    self.grid: dict[str, tuple[float, int]] = {}

  def put(self, kind, inputs, shape, dtype='int8', grid=None, **attributes):
    name = f'v{self.count}'
    self.count += 1
    self.values[name] = Value((Batch(), *shape), np.dtype(dtype))
    self.operations.append(Operation(kind, tuple(inputs), (name,), attributes))
    if grid:
      self.grid[name] = grid
    return name

  def constant(self, array):
    name = f'c{self.count}'
    self.count += 1
    self.constants[name], self.values[name] = array, Value(array.shape, array.dtype)
    return name

  def drawn(self):
    """Scale and zero of a grid, and the attributes that a result on it has."""
    scale, zero = float(np.float32(self.rng.uniform(0.01, 0.1))), int(self.rng.integers(-128, 128))
    low = zero if self.rng.random() < 0.3 else -128
    return (scale, zero), {'y_scale': scale, 'y_zero_point': zero, 'low': low, 'high': 127}

  def shape(self, name):
    return self.values[name].shape[1:]

  def start(self, shape):
    (scale, zero), told = self.drawn()
    return self.put(
      'quantize', ['input'], shape, grid=(scale, zero), scale=scale, zero_point=zero, low=told['low'], high=127
    )

  def weights(self, *shape, outputs):
    w = self.rng.integers(-127, 128, shape).astype(np.int8)
    scale = self.rng.uniform(1e-3, 1e-2, outputs).astype(np.float32)
    return [self.constant(w), self.constant(scale), self.constant(self.rng.integers(-999, 999, outputs, np.int32))]

  def dense(self, x, outputs, is_float=False):
    *lead, inner = self.shape(x)
    grid, told = (None, {}) if is_float else self.drawn()
    names = self.weights(inner, outputs, outputs=outputs)
    scale, zero = self.grid[x]
    dtype = 'float32' if is_float else 'int8'
    return self.put(
      'quantized_dense', [x, *names], (*lead, outputs), dtype, grid, x_scale=scale, x_zero_point=zero, **told
    )

  def conv(self, x, outputs, window, stride=1, dilation=1, groups=1, low=0, high=0):
    *space, channels = self.shape(x)
    grid, told = self.drawn()
    scale, zero = self.grid[x]
    names = self.weights(outputs, *[window] * len(space), channels // groups, outputs=outputs)
    sizes = [(size + low + high - (window - 1) * dilation - 1) // stride + 1 for size in space]
    every = len(space)
    geometry = {
      'strides': (stride,) * every,
      'padding': ((low, high),) * every,
      'dilation': (dilation,) * every,
      'input_dilation': (1,) * every,
      'groups': groups,
    }
    told = {'x_scale': scale, 'x_zero_point': zero, **geometry, **told}
    return self.put('quantized_conv', [x, *names], (*sizes, outputs), 'int8', grid, **told)

  def add(self, a, b):
    grid, told = self.drawn()
    (a_scale, a_zero), (b_scale, b_zero) = self.grid[a], self.grid[b]
    return self.put(
      'quantized_add', [a, b], self.shape(a), 'int8', grid,
      a_scale=a_scale, a_zero_point=a_zero, b_scale=b_scale, b_zero_point=b_zero, **told,
    )  # fmt: skip

  def one(self, kind, x, shape, **attributes):
    """What moves bytes: on the grid of its operand."""
    names = x if isinstance(x, list) else [x]
    return self.put(kind, names, shape, 'int8', self.grid[names[0]], **attributes)

  def rescaled(self, x):
    grid, told = self.drawn()
    scale, zero = self.grid[x]
    return self.put('requantize', [x], self.shape(x), 'int8', grid, x_scale=scale, x_zero_point=zero, **told)

  def mean(self, x, axes, is_float=False):
    grid, told = (None, {}) if is_float else self.drawn()
    scale, zero = self.grid[x]
    shape = [size for axis, size in enumerate(self.shape(x), 1) if axis not in axes]
    dtype = 'float32' if is_float else 'int8'
    return self.put('quantized_mean', [x], shape, dtype, grid, axes=axes, x_scale=scale, x_zero_point=zero, **told)

  def graph(self, *outputs):
    return Graph(('input',), outputs, tuple(self.operations), self.values, self.constants)


def network(seed: int) -> Graph:
  """Layers at random over an image or a series."""
  rng = np.random.default_rng(seed)
  axes = int(rng.integers(1, 3))
  shape = (*rng.integers(6, 12, axes).tolist(), int(rng.integers(1, 9)))
  made = Builder(rng, shape)
  x = made.start(shape)
  for _ in range(int(rng.integers(2, 6))):
    *space, channels = made.shape(x)
    kind = rng.choice(['conv', 'conv', 'alone', 'groups', 'add', 'pool', 'pad', 'cut', 'join', 'turn', 'scale', 'clip'])
    if kind == 'conv' and min(space) > 4:
      low, stride = int(rng.integers(0, 2)), int(rng.integers(1, 3))
      outputs, window, dilation = int(rng.integers(1, 40)), int(rng.integers(1, 4)), int(rng.integers(1, 3))
      low = min(low, window * dilation - 1)  # kernels leave wider borders to XLA
      x = made.conv(x, outputs, window, stride, dilation, 1, low, 1)
    elif kind in ('alone', 'groups'):
      times = 1 if kind == 'alone' else int(rng.integers(2, 4))
      x = made.conv(x, channels * times, 3, groups=channels, low=1, high=1)
    elif kind == 'add':
      x = made.add(made.conv(x, channels, 3, low=1, high=1), x)
    elif kind == 'pool' and min(space) > 3:
      sizes = [(size + 1 - 3) // 2 + 1 for size in space]
      every = len(space)
      x = made.one(
        'max_pool', x, (*sizes, channels), window=(3,) * every, strides=(2,) * every, padding=((0, 1),) * every
      )
    elif kind == 'pad':
      zero = made.constant(np.array(made.grid[x][1], np.int8))
      config = ((0, 0, 0), *[(1, 2, 1)] * len(space), (0, 0, 0))
      x = made.one('pad', [x, zero], (*(2 * size - 1 + 3 for size in space), channels), padding_config=config)
    elif kind == 'cut' and min(space) > 4:
      every = len(space)
      starts, limits, steps = (0, *[1] * every, 0), (None, *space, channels), (1, *[2] * every, 1)
      sizes = [(size - 1 + 1) // 2 for size in space]
      limits = (Batch(), *space, channels)
      x = made.one('slice', x, (*sizes, channels), start_indices=starts, limit_indices=limits, strides=steps)
    elif kind == 'join':
      x = made.one('concatenate', [x, x], (*space, 2 * channels), dimension=len(space) + 1)
    elif kind == 'turn':
      order = (0, *range(len(space), 0, -1), len(space) + 1)
      x = made.one('transpose', x, (*space[::-1], channels), permutation=order)
    elif kind == 'scale':
      x = made.rescaled(x)
    elif kind == 'clip':
      x = made.one('clip', x, made.shape(x), low=-50.0, high=90.0)
  if rng.random() < 0.5:
    x = made.mean(x, tuple(range(1, len(made.shape(x)))))
  else:
    sizes = (int(np.prod(made.shape(x))),)
    x = made.one('reshape', x, sizes, new_sizes=(Batch(), *sizes))
  x = made.dense(x, int(rng.integers(1, 90)))
  outputs = [made.dense(x, int(rng.integers(1, 30)), is_float=True)]
  if rng.random() < 0.5:
    outputs.append(x)  # int8 leaves too
  return made.graph(*outputs)


def wide_network(seed: int) -> Graph:
  """Few layers, of as many channels and places as vectors of bytes have, and one more or less."""
  rng = np.random.default_rng(seed)
  channels = int(rng.choice([1, 15, 16, 17, 32, 33, 48, 63, 64, 65, 100, 130]))
  space = rng.integers(9, 16, 2).tolist()
  made = Builder(rng, (*space, channels))
  x = made.start((*space, channels))
  window, stride, dilation = int(rng.choice([3, 3, 3, 5, 2])), int(rng.integers(1, 4)), int(rng.choice([1, 1, 2]))
  border = min(int(rng.integers(0, 3)), window * dilation - 1)
  x = made.conv(x, channels, window, stride, dilation, channels, border, int(rng.integers(1, 3)))
  if rng.random() < 0.5:
    x = made.rescaled(made.add(x, made.rescaled(x)))
  *space, _ = made.shape(x)
  if min(space) > 2 and rng.random() < 0.5:
    sizes = [size - 1 for size in space]
    x = made.one('max_pool', x, (*sizes, channels), window=(2, 2), strides=(1, 1), padding=((0, 0),) * 2)
  outputs = int(rng.choice([16, 31, 32, 48, 64, 65, 80, 128, 129]))
  one = rng.random() < 0.5
  x = made.conv(x, outputs, 1 if one else 3, 1, 1, 1, 0 if one else 1, 0 if one else 1)
  return made.graph(made.dense(x, int(rng.choice([16, 33, 64, 128])), is_float=True), x)
