"""Random arrays and lists of operations, sound in form and of no sense: what files of them have to give back."""

import ml_dtypes
import numpy as np

from jaxlite.deployment.operations import Batch, Graph, Operation, Value

DTYPES = ('float32', 'float32', 'float32', 'int8', 'int32', 'int64', 'bool', 'float16', 'float64', 'uint8', 'complex64')
EXOTIC = (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4)


def array(rng, most=600):
  """Any array: empty, a scalar, one value, whole numbers, scaled ones, few values, pruned, NaNs, any bits."""
  rank = rng.integers(0, 5)
  shape = tuple(rng.integers(0 if rng.random() < 0.1 else 1, 12, rank).tolist())
  if rng.random() < 0.05:
    shape = (1,) * rng.integers(0, 2) + (int(rng.integers(1, 5000)),) + (1,) * rng.integers(0, 2)
  shape = shape if np.prod(shape) < 8 * most else shape[:2]
  form = rng.integers(0, 8)
  dtype = np.dtype(EXOTIC[rng.integers(3)] if rng.random() < 0.15 else DTYPES[rng.integers(len(DTYPES))])
  if form == 0:
    return np.zeros(shape, dtype)
  if form == 1:
    return np.full(shape, 3).astype(dtype)
  if form == 2 and dtype.itemsize * int(np.prod(shape)) < 1 << 20 and dtype.kind != 'b' and dtype.name != 'int4':
    return (
      np.frombuffer(rng.bytes(dtype.itemsize * int(np.prod(shape))), dtype).reshape(shape).copy()
    )  # NaNs among them
  real = rng.normal(size=shape) * 10.0 ** rng.integers(-3, 3)
  zeros = rng.random(shape) < rng.random()
  if form == 3:
    real = np.where(zeros, -0.0, real)
  elif form == 4:
    real = np.where(zeros, 0, np.rint(real))
  elif form == 5:
    scale = rng.random(shape[-1:] if rng.random() < 0.7 else ()).astype(np.float32)
    real = np.where(zeros, 0, np.rint(rng.normal(size=shape) * 5)).astype(np.float32) * scale
  elif form == 6:
    real = rng.normal(size=5)[rng.integers(0, 5, shape)] * ~zeros
  with np.errstate(all='ignore'):
    if np.dtype(dtype).kind in 'iu':
      real = np.clip(np.nan_to_num(real), -100 if dtype.kind == 'i' else 0, 100)
    return np.asarray(real).astype(dtype)


def attribute(rng, depth=0):
  pick = rng.integers(0, 9 if depth < 3 else 7)
  plain = (None, True, int(rng.integers(-300, 300)), int(rng.integers(-(2**62), 2**62)), float(rng.normal()), 'SAME')
  if pick < 6:
    return plain[pick]
  if pick == 6:
    return (Batch(int(rng.integers(1, 5))), float(np.float32(rng.normal())), 'ein Wort ä', -(2**80), float('-inf'))[
      rng.integers(5)
    ]
  return tuple(attribute(rng, depth + 1) for _ in range(rng.integers(0, 4)))


def graph(rng, kinds):
  """A graph whose operations read what was made before them; nothing else about it is right."""
  shape = lambda: tuple(  # noqa: E731
    Batch(int(rng.integers(1, 3))) if rng.random() < 0.3 else int(rng.integers(0, 9)) for _ in range(rng.integers(0, 4))
  )
  value = lambda: Value(shape(), np.dtype(DTYPES[rng.integers(len(DTYPES))]))  # noqa: E731
  inputs = tuple(('input', 'input/b', 'größe')[: rng.integers(1, 4)])
  values = {name: value() for name in inputs}
  constants = {}
  for index in range(rng.integers(0, 6)):
    one = array(rng)
    constants[f'layer/{index}'] = one
    whole = tuple(Batch(2) if size == 1 and rng.random() < 0.2 else size for size in one.shape)
    values[f'layer/{index}'] = Value(whole, one.dtype)
  operations, made = [], list(inputs)
  for index in range(rng.integers(0, 12)):
    reads = tuple(str(name) for name in rng.choice([*made, *constants], rng.integers(1, 4)))
    kind = kinds[rng.integers(len(kinds))]
    told = {name: attribute(rng) for name in ('axes', 'strides', 'a name')[: rng.integers(0, 4)]}
    makes = tuple(f'made {index} {each}' for each in range(rng.integers(1, 3)))
    operations.append(Operation(kind, reads, makes, told))
    for name in makes:
      values[name] = values[reads[0]] if rng.random() < 0.5 else value()
    made += makes
  outputs = tuple(dict.fromkeys(str(name) for name in rng.choice([*made, *constants], 2)))
  return Graph(inputs, outputs, tuple(operations), values, constants)


def dense_graph(*weights, about=None):
  """Dense layers with ReLUs between them."""
  values = {'input': Value((Batch(), len(weights[0])), np.dtype('float32'))}
  operations, constants, last = [], {}, 'input'
  for index, w in enumerate(weights):
    constants[f'w{index}'], values[f'w{index}'] = w, Value(w.shape, w.dtype)
    for kind, reads in (('dense', (last, f'w{index}')), ('relu', (f'dense{index}',))):
      name = f'{kind}{index}'
      values[name] = Value((Batch(), w.shape[1]), np.dtype('float32'))
      operations.append(Operation(kind, reads, (name,), {}))
      last = name
  return Graph(('input',), (last,), tuple(operations), values, constants)


def sparse(rng, rows, columns, share=0.08):
  """Weights as pruning leaves them: alive rows and columns, values of a bell."""
  alive = rng.gamma(0.5, size=(rows, 1)) * rng.gamma(0.5, size=(1, columns))
  keep = rng.random((rows, columns)) < np.minimum(1, alive * share / alive.mean() * 1.3)
  return np.where(keep, np.rint(rng.normal(size=(rows, columns)) * 4), 0).astype(np.int8)
