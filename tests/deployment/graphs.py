"""Graphs made by hand and by chance, whose shapes and dtypes are those that the reference gives."""

import numpy as np

from jaxlite.deployment import reference
from jaxlite.deployment.operations import Batch, Graph, Operation, Value, pruned

ROUND = {'rounding_method': 1}


class Maker:
  """A graph, growing. Axis 0 of every value is the batch."""

  def __init__(self, seed=0):
    self.rng = np.random.default_rng(seed)
    self.inputs, self.operations, self.values, self.constants, self.samples = [], [], {}, {}, {}

  def input(self, *shape, dtype='float32', low=None, high=None):
    name = f'input/{len(self.inputs)}' if self.inputs else 'input'
    drawn = self.rng.normal(size=(1, *shape)) if low is None else self.rng.integers(low, high, (1, *shape))
    self.inputs.append(name)
    self.samples[name] = drawn.astype(dtype)
    self.values[name] = Value((Batch(), *shape), np.dtype(dtype))
    return name

  def constant(self, array, shape=None):
    array, name = np.asarray(array), f'c{len(self.constants)}'
    shape = array.shape if shape is None else shape
    self.constants[name], self.values[name] = array, Value(shape, array.dtype)
    self.samples[name] = np.broadcast_to(array, [1 if isinstance(size, Batch) else size for size in shape])
    return name

  def floats(self, *shape, scale=1.0):
    return self.constant((self.rng.normal(size=shape) * scale).astype(np.float32))

  def bytes(self, *shape):
    return self.constant(self.rng.integers(-127, 128, shape).astype(np.int8))

  def op(self, kind, *names, dtype=None, **attributes):
    operands = [self.samples[name] for name in names]
    told = {name: reference._at(value, 1) for name, value in attributes.items()}
    with np.errstate(all='ignore'):
      result = np.asarray(reference.RULES[kind](*operands, **told))
    if dtype is None:
      first = self.values[names[0]].dtype
      dtype = result.dtype if result.dtype != np.float64 else first if first.kind == 'f' else np.float32
    output = f'v{len(self.operations)}'
    self.operations.append(Operation(kind, tuple(names), (output,), attributes))
    self.samples[output] = result.astype(dtype)
    self.values[output] = Value((Batch(), *result.shape[1:]), np.dtype(dtype))
    return output

  def shape(self, name):
    return self.samples[name].shape

  def graph(self, *outputs):
    return pruned(Graph(tuple(self.inputs), outputs, tuple(self.operations), self.values, self.constants))

  def examples(self, count):
    found = {}
    for name in self.inputs:
      sample = self.samples[name]
      if sample.dtype.kind == 'f':
        found[name] = self.rng.normal(size=(count, *sample.shape[1:])).astype(sample.dtype)
      else:
        low, high = sample.min(initial=0), sample.max(initial=1) + 1
        found[name] = self.rng.integers(low, high, (count, *sample.shape[1:])).astype(sample.dtype)
    return found

  # --- integer layers ---------------------------------------------------------------------------------------------

  def point(self):
    return int(self.rng.integers(-128, 128))

  def scale(self):
    return float(np.float32(self.rng.uniform(0.01, 0.1)))

  def grid(self, prefix='y_', relu=False):
    """Where a result goes: a scale, a zero point and bounds."""
    point = self.point()
    low = point if relu else -128
    return {f'{prefix}scale': self.scale(), f'{prefix}zero_point': point, 'low': low, 'high': 127}

  def quantized(self, x):
    point = self.point()
    return self.op('quantize', x, scale=self.scale(), zero_point=point, low=-128, high=127)


def convolution(space, strides=1, padding=((0, 0),), dilation=1, spread=1, groups=1):
  every = lambda one: (one,) * space if isinstance(one, int) else tuple(one)  # noqa: E731
  return {
    'strides': every(strides),
    'padding': tuple(padding) * space if len(padding) == 1 else tuple(padding),
    'dilation': every(dilation),
    'input_dilation': every(spread),
    'groups': groups,
  }
