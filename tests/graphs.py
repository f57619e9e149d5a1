"""Graphs made by hand and by chance, whose shapes and dtypes are those that the reference gives."""

import numpy as np

from jaxlite.deployment.operations import Batch, Graph, Operation, Value, pruned, reference

ROUND = {'rounding_method': 1}


class Maker:
  """A graph, growing. Axis 0 of every value is the batch."""

  def __init__(self, seed=0):
    self.rng = np.random.default_rng(seed)
    self.inputs, self.operations, self.values, self.constants, self.samples = [], [], {}, {}, {}
    self.fixed = set()  # what depends on no input

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
    self.fixed.add(name)
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
    fixed = all(name in self.fixed for name in names)
    self.fixed |= {output} if fixed else set()
    self.values[output] = Value(result.shape if fixed else (Batch(), *result.shape[1:]), np.dtype(dtype))
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


def integer_network(seed):
  """A network of every integer operation; its scales keep most values within their grids."""
  m = Maker(seed)
  rng = m.rng

  def spread(total, **rest):
    """A grid on which sums of this size are at home."""
    return float(np.float32(total / 60)), int(rng.integers(-60, 61)), rest

  def of(name):
    told = next(one for one in m.operations if one.outputs[0] == name).attributes
    prefix = '' if 'scale' in told else 'y_'
    return told[f'{prefix}scale'], told[f'{prefix}zero_point']

  def told_of(prefix, name):
    scale, point = of(name)
    return {f'{prefix}_scale': scale, f'{prefix}_zero_point': point}

  def grid(real, relu=False):
    scale, point, _ = spread(max(float(np.std(real)) * 1.5, 1e-3))
    return {'y_scale': scale, 'y_zero_point': point, 'low': point if relu else -128, 'high': 127}

  def layer(kind, q, weight, outputs, scale_of, relu=False, bias=True, out=True, **told):
    told = {**told_of('x', q), **told}
    w_scale = m.constant(rng.uniform(0.001, 0.01, outputs).astype(np.float32))
    more = (m.constant(rng.integers(-3000, 3000, outputs).astype(np.int32)),) if bias else ()
    names = (q, m.constant(weight), w_scale, *more)
    operands = [m.samples[name] for name in names]
    real = reference.RULES[kind](*operands, **told)
    return m.op(kind, *names, **told, **(grid(real, relu) if out else {}))

  def weight(*shape):
    return rng.integers(-127, 128, shape).astype(np.int8)

  def conv(q, outputs, kernel, groups=1, relu=False, bias=True, out=True, source=None, **told):
    array = weight(outputs, *kernel, m.shape(q)[-1] // groups)
    return layer(
      'quantized_conv', q, array, outputs, 0, relu, bias, out, **convolution(len(kernel), groups=groups, **told)
    )

  def dot(a, b, numbers, out=True, of_a=None, of_b=None):
    told = {**told_of('a', of_a or a), **told_of('b', of_b or b), 'dimension_numbers': numbers}
    real = reference.RULES['quantized_dot'](m.samples[a], m.samples[b], **told)
    return m.op('quantized_dot', a, b, **told, **(grid(real) if out else {}))

  x = m.input(9, 7, 3)
  q = m.op('quantize', x, scale=0.03, zero_point=5, low=-128, high=127)
  first = conv(q, 18, (3, 3), padding=((1, 1),), relu=True)
  alone = conv(first, 18, (3, 3), groups=18, padding=((1, 1),))
  point = conv(alone, 18, (1, 1))
  parts = conv(point, 12, (2, 3), groups=3, strides=(1, 2), padding=((0, 1), (1, 1)), dilation=(2, 1), bias=False)
  spread_out = conv(parts, 5, (3, 3), spread=2, padding=((1, 2),), out=False)
  lone = conv(point, 18, (2, 2), groups=18, out=False, bias=False)
  told = {**told_of('a', first), **told_of('b', alone)}
  added = m.op('quantized_add', first, alone, **told, y_scale=of(first)[0] * 1.5, y_zero_point=-20, low=-20, high=127)
  pooled = m.op('max_pool', added, window=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0)))
  rows = m.op('reshape', pooled, new_sizes=(Batch(), 12, 18))
  m.operations[-1] = m.operations[-1]._replace(attributes={'new_sizes': (Batch(), 12, 18)})
  heads = dot(rows, rows, (((2,), (2,)), ((0,), (0,))), of_a=added, of_b=added)
  mixed = dot(heads, rows, (((2,), (1,)), ((0,), (0,))), of_b=added)
  loose = dot(heads, heads, (((1,), (2,)), ((0,), (0,))), out=False)
  told = told_of('x', mixed)
  again = m.op('requantize', mixed, **told, y_scale=of(mixed)[0] * 0.7, y_zero_point=3, low=-100, high=100)
  told = told_of('x', again)
  mean = m.op(
    'quantized_mean', again, axes=(1,), **told, y_scale=of(again)[0] * 0.4, y_zero_point=0, low=-128, high=127
  )
  real = m.op('quantized_mean', again, axes=(1, 2), **told)
  hidden = layer('quantized_dense', mean, weight(18, 23), 23, 0, relu=True)
  logits = layer('quantized_dense', hidden, weight(23, 10), 10, 0, out=False)
  wide = layer('quantized_dense', rows if False else again, weight(18, 7), 7, 0, bias=False)
  back = m.op('dequantize', wide, scale=of(wide)[0], zero_point=of(wide)[1])
  return m, (logits, spread_out, lone, loose, real, back, wide)


def random_graph(seed, count=14):
  """A graph of operations by chance, on values of odd shapes."""
  m = Maker(seed)
  rng = m.rng
  values = [m.input(*rng.choice([1, 2, 3, 5, 8], rng.integers(1, 4)).tolist()) for _ in range(rng.integers(1, 3))]

  def pick(kind='f'):
    return values[rng.choice([index for index, name in enumerate(values) if m.values[name].dtype.kind == kind])]

  def bounded(name):
    """Kept small, so that rounding stays small."""
    return m.op('tanh', name) if np.abs(m.samples[name]).max(initial=0) > 8 else name

  for _ in range(count):
    x = bounded(pick())
    shape = m.shape(x)
    axis = int(rng.integers(1, len(shape))) if len(shape) > 1 else None
    choice = rng.choice(
      [
        'unary',
        'number',
        'both',
        'turn',
        'flat',
        'cut',
        'pad',
        'join',
        'sum',
        'dense',
        'conv',
        'pool',
        'dot',
        'soft',
        'flip',
        'integer',
        'where',
        'gelu',
      ]
    )
    if choice == 'unary':
      y = m.op(str(rng.choice(['tanh', 'logistic', 'relu', 'abs', 'neg', 'square', 'sin', 'erf'])), x)
    elif choice == 'number':
      y = m.op(str(rng.choice(['add', 'sub', 'mul', 'max', 'min'])), x, m.constant(np.float32(rng.normal())))
    elif choice == 'both':
      other = [m.floats(*(size if rng.random() < 0.6 else 1 for size in (1, *shape[1:]))), x, m.op('tanh', x)]
      pair = [x, other[rng.integers(3)]]
      y = m.op(str(rng.choice(['add', 'sub', 'mul', 'max'])), *pair[:: int(rng.choice([1, -1]))])
    elif choice == 'where':
      y = m.op('select_n', m.op('lt', x, m.constant(np.float32(0))), x, m.op('mul', x, m.constant(np.float32(0.1))))
    elif choice == 'gelu':
      half = m.op('mul', x, m.constant(np.float32(0.7)))
      y = m.op('mul', x, m.op('add', m.op('erf', half), m.constant(np.float32(1))))
    elif choice == 'turn' and len(shape) > 2:
      y = m.op('transpose', x, permutation=(0, *(1 + rng.permutation(len(shape) - 1)).tolist()))
    elif choice == 'flat' and len(shape) > 2:
      y = m.op('reshape', x, new_sizes=(Batch(), *shape[1:-2], shape[-2] * shape[-1]))
    elif choice == 'cut' and axis:
      low = [0] * len(shape)
      low[axis] = int(rng.integers(0, shape[axis]))
      steps = tuple(int(rng.integers(1, 3)) if index else 1 for index in range(len(shape)))
      y = m.op('slice', x, start_indices=tuple(low), limit_indices=(Batch(), *shape[1:]), strides=steps)
    elif choice == 'pad' and axis:
      config = [(0, 0, 0)] + [tuple(rng.integers(0, 2, 3).tolist()) for _ in shape[1:]]
      y = m.op('pad', x, m.constant(np.float32(0.5)), padding_config=tuple(config))
    elif choice == 'join' and axis:
      y = m.op('concatenate', x, m.op('neg', x), dimension=axis)
    elif choice == 'flip' and axis:
      y = m.op('rev', x, dimensions=(axis,))
    elif choice == 'sum' and axis:
      y = m.op(str(rng.choice(['reduce_sum', 'reduce_max', 'mean', 'reduce_min'])), x, axes=(axis,))
    elif choice == 'dense' and axis:
      width = int(rng.choice([1, 3, 16, 19]))
      y = m.op('dense', x, m.floats(shape[-1], width, scale=0.5), *[m.floats(width)] * int(rng.integers(2)))
    elif choice == 'conv' and len(shape) in (3, 4):
      space = len(shape) - 2
      groups = int(rng.choice([1, shape[-1]]))
      kernel = rng.integers(1, 4, space).tolist()
      told = convolution(space, tuple(rng.integers(1, 3, space).tolist()), ((2, 2),), groups=groups)
      outputs = shape[-1] if groups > 1 else int(rng.choice([1, 4, 18]))
      y = m.op('conv', x, m.floats(outputs, *kernel, shape[-1] // groups, scale=0.4), **told)
    elif choice == 'pool' and len(shape) in (3, 4):
      space = len(shape) - 2
      y = m.op('max_pool', x, window=(2,) * space, strides=(1,) * space, padding=((1, 0),) * space)
    elif choice == 'dot' and len(shape) == 3:
      numbers = (((2,), (2,)), ((0,), (0,))) if rng.random() < 0.5 else (((1,), (1,)), ((0,), (0,)))
      y = m.op('dot_general', x, bounded(x), dimension_numbers=numbers)
    elif choice == 'soft' and axis:
      y = m.op('softmax', x, axis=axis)
    elif choice == 'integer':
      q = m.op('quantize', x, scale=0.02, zero_point=int(rng.integers(-20, 20)), low=-128, high=127)
      y = m.op('dequantize', q, scale=0.02, zero_point=m.operations[-1].attributes['zero_point'])
    else:
      continue
    values.append(y)
  outputs = [name for name in values if name not in m.inputs][-3:] or [m.op('neg', values[0])]
  return m, outputs
