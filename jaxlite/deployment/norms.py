"""Layer and RMS norms, found by what they compute: every framework writes them in operations of its own.

A region of a list reads one value, has means over its last axis and ends in a value of the same shape. Whether it is a
norm is not read off its operations but tried: on a few rows it gives what the formula gives, with a scale and a bias
that two of them tell and the others confirm.

References:
  Ba et al., Layer Normalization, 2016, https://arxiv.org/abs/1607.06450
  Zhang and Sennrich, Root Mean Square Layer Normalization, 2019, https://arxiv.org/abs/1910.07467
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlite.deployment import reference
from jaxlite.deployment.operations import Batch, Graph, Operation, Size, Value, pruned

_INSIDE = frozenset(
  {
    *('add', 'sub', 'mul', 'div', 'neg', 'square', 'integer_pow', 'sqrt', 'rsqrt', 'pow', 'max', 'relu'),
    *('mean', 'reduce_sum', 'reshape', 'broadcast_in_dim'),
  }
)
_LONGEST = 30  # operations of one norm
_ROWS = 6  # that are tried


class _Norm(NamedTuple):
  scale: np.ndarray
  bias: np.ndarray
  epsilon: float
  centered: bool


def normed(graph: Graph) -> Graph:
  """Puts the operations of a norm over the last axis into one, 'layer_norm'.

  Its inputs are x [..., C], scale [C] and bias [C], its attributes `epsilon` and `centered`: where that is
  false the mean is not taken off (an RMS norm).

  Args:
    graph: of `patterns.recognized`.

  >>> import jax.numpy as jnp
  >>> from jaxlite.deployment.lowering import lower
  >>> from jaxlite.deployment.patterns import recognized
  >>> fn = lambda p, x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * p
  >>> graph = normed(recognized(lower(fn, jnp.arange(1.0, 5.0), jnp.ones((1, 4)))))
  >>> [one.kind for one in graph.operations]
  ['layer_norm']
  """
  done: set[str] = set()
  while (found := _first(graph, done)) is not None:
    x, y, norm = found
    done.add(x)
    graph = _replaced(graph, x, y, norm)
  return graph


def _first(graph: Graph, done: set[str]) -> tuple[str, str, _Norm] | None:
  for one in graph.operations:
    if one.kind not in ('mean', 'reduce_sum'):
      continue
    for x in _starts(graph, one):
      if x in done:
        continue
      region = _region(graph, x)
      for last in reversed(region):
        y = last.outputs[0]
        if graph.values[y] == graph.values[x] and (norm := _tried(graph, x, region, y)) is not None:
          return x, y, norm
      done.add(x)
  return None


def _starts(graph: Graph, one: Operation) -> list[str]:
  """What a mean over the last axis may be the mean of: its operand, or what that is the square of."""
  name = one.inputs[0]
  shape, dtype = graph.values[name]
  if tuple(one.attributes['axes']) != (len(shape) - 1,) or dtype != np.float32 or isinstance(shape[-1], Batch):
    return []
  made = next((other for other in graph.operations if name in other.outputs), None)
  squares = made is not None and (made.kind in ('square', 'integer_pow') or len(set(made.inputs)) == 1)
  return [made.inputs[0], name] if made is not None and squares else [name]


def _region(graph: Graph, x: str) -> list[Operation]:
  """What depends on one value alone, by operations that a norm may have."""
  inside, found = {x}, []
  for one in graph.operations:
    reads = [name for name in one.inputs if name not in graph.constants]
    if one.kind in _INSIDE and reads and all(name in inside for name in reads) and _along_rows(graph, one, x):
      inside.update(one.outputs)
      found.append(one)
      if len(found) == _LONGEST:
        break
  return found


def _along_rows(graph: Graph, one: Operation, x: str) -> bool:
  """Whether an operation leaves rows apart, those of the last axis of x, and does the same to each."""
  lead, shape = graph.values[x].shape[:-1], graph.values[one.outputs[0]].shape
  if shape[: len(lead)] != lead or len(shape) > len(lead) + 1:
    return False
  known = [graph.constants[name] for name in one.inputs if name in graph.constants]
  return all(set(array.shape[:-1]) <= {1} or (array == array.reshape(-1)[:1]).all() for array in known)


def _tried(graph: Graph, x: str, region: Sequence[Operation], y: str) -> _Norm | None:
  names = {name for one in region for name in (*one.inputs, *one.outputs)}
  width = graph.values[x].shape[-1]
  if not isinstance(width, int) or width < 2:
    return None
  rows = np.random.default_rng(0).normal(size=(_ROWS, width)) * np.array([1, 1, 3, 0.01, 1, 30])[:, None]
  rows[4] += 2  # a mean of its own
  alone = Graph(
    (x,),
    (y,),
    tuple(region),
    {name: graph.values[name] for name in {*names, x}},
    {name: graph.constants[name] for name in names if name in graph.constants},
  )
  shape = graph.values[x].shape
  lead = [size for size in shape[1:-1] if isinstance(size, int)]
  if len(lead) != len(shape) - 2 or not isinstance(shape[0], Batch):
    return None
  given = np.broadcast_to(rows.astype(np.float32).reshape(_ROWS, *[1] * len(lead), width), (_ROWS, *lead, width))
  if shape[0].times > 1:
    given = np.repeat(given, shape[0].times, 0)
  answer = np.asarray(reference.run(_single(alone), given), np.float64)
  answer = answer.reshape(_ROWS, -1, width)
  if not np.isfinite(answer).all() or (answer != answer[:, :1]).any():  # places differ: more than a norm
    return None
  for epsilon in _epsilons(alone):
    for centered in (True, False):
      plain = _formula(given.reshape(_ROWS, -1, width)[:, 0], epsilon, centered)
      norm = _fitted(plain, answer[:, 0], epsilon, centered)
      if norm is not None:
        return norm
  return None


def _single(graph: Graph) -> Graph:
  """A graph whose batch is counted in rows of its input."""
  times = graph.values[graph.inputs[0]].shape[0].times  # type: ignore[union-attr]
  if times == 1:
    return graph

  def shorter(size: Size) -> Size:
    return Batch(size.times // times) if isinstance(size, Batch) else size

  values = {name: Value(tuple(map(shorter, shape)), dtype) for name, (shape, dtype) in graph.values.items()}
  operations = tuple(
    one._replace(
      attributes={
        key: tuple(map(shorter, value)) if key in ('new_sizes', 'shape') else value
        for key, value in one.attributes.items()
      }
    )
    for one in graph.operations
  )
  return graph._replace(values=values, operations=operations)


def _epsilons(graph: Graph) -> list[float]:
  """Small numbers that are added to something, and none at all."""
  added = [name for one in graph.operations if one.kind in ('add', 'max') for name in one.inputs]
  numbers = {
    float(graph.constants[name].reshape(-1)[0]) for name in added if graph.constants.get(name, np.ones(2)).size == 1
  }
  return [*sorted(number for number in numbers if 0 < number <= 0.1), 0.0]


def _formula(rows: np.ndarray, epsilon: float, centered: bool) -> np.ndarray:
  rows = rows.astype(np.float64)
  if centered:
    rows = rows - rows.mean(-1, keepdims=True)
  return rows / np.sqrt((rows**2).mean(-1, keepdims=True) + epsilon)


def _fitted(plain: np.ndarray, answer: np.ndarray, epsilon: float, centered: bool) -> _Norm | None:
  """Scale and bias by least squares over the rows, where they then fit all of them."""
  mean, other = plain.mean(0), answer.mean(0)
  spread = ((plain - mean) ** 2).sum(0)
  scale = ((plain - mean) * (answer - other)).sum(0) / np.where(spread > 0, spread, 1)
  bias = other - scale * mean
  size = np.abs(answer).max() + 1e-6
  if (np.abs(plain * scale + bias - answer) > 2e-5 * size).any():
    return None
  return _Norm(scale.astype(np.float32), bias.astype(np.float32), epsilon, centered)


def _replaced(graph: Graph, x: str, y: str, norm: _Norm) -> Graph:
  values, constants = dict(graph.values), dict(graph.constants)
  names = [x]
  for array in (_known(graph, y, norm.scale), _known(graph, y, norm.bias)):
    name = next((one for one, held in graph.constants.items() if held.shape == array.shape and held is array), '')
    if not name:
      count = len(constants)
      while f'c{count}' in values:
        count += 1
      name = f'c{count}'
    values[name], constants[name] = Value(array.shape, array.dtype), array
    names.append(name)
  one = Operation('layer_norm', tuple(names), (y,), {'epsilon': norm.epsilon, 'centered': norm.centered})
  operations = [one if y in other.outputs else other for other in graph.operations]
  return pruned(graph._replace(operations=tuple(operations), values=values, constants=constants))


def _known(graph: Graph, y: str, fitted: np.ndarray) -> np.ndarray:
  """The array of the list that a fit has found, to the last bit; the fit where there is none."""
  for array in graph.constants.values():
    if array.shape == fitted.shape and array.dtype == np.float32 and np.allclose(array, fitted, rtol=1e-4, atol=1e-5):
      return array
  rounded = np.rint(fitted)
  return rounded if np.allclose(rounded, fitted, rtol=0, atol=1e-5) and (rounded == rounded[0]).all() else fitted
