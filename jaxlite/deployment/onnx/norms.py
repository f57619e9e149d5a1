"""Layer norms as one operation, which ONNX has a word for and ONNX Runtime a kernel: written out they are a dozen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxlite.deployment.operations import Graph, Operation, pruned
from jaxlite.deployment.operations.rewriting import Editor, edited

KIND = 'layer_norm'  # x, scale float[C], shift float[C]; epsilon. Over the last axis. Of ONNX alone


def with_norms(graph: Graph) -> Graph:
  """Returns the graph with its layer norms over the last axis as such.

  Found in what frameworks make of them: the variance as a mean of squares less the square of the mean, or as a mean of
  squared distances; scale and shift, or none.
  """
  return pruned(edited(graph, _norm))


class _Scaled(NamedTuple):
  """(x - mean(x)) * rsqrt(variance + epsilon) * scale."""

  x: str
  epsilon: float
  scale: np.ndarray | None


def _norm(editor: Editor, one: Operation) -> str | None:
  if one.kind not in ('add', 'mul') or len(one.inputs) != 2:
    return None
  shape, dtype = editor.values[one.outputs[0]]
  width = shape[-1] if shape else None
  if not isinstance(width, int) or not np.issubdtype(dtype, np.floating):
    return None
  if (found := _more(editor, one, width)) is not None:
    return found
  whole = _scaled(editor, one, width) if one.kind == 'mul' else None
  if whole is None or editor.values[whole.x].shape != shape:
    return None
  scale = np.ones(width) if whole.scale is None else whole.scale
  return _put(editor, one, whole.x, scale, np.zeros(width), whole.epsilon)


def _put(editor: Editor, one: Operation, x: str, scale: np.ndarray, shift: np.ndarray, epsilon: float) -> str:
  output = one.outputs[0]
  shape, dtype = editor.values[output]
  rows = [editor.constant(f'{output}/{what}', row.astype(dtype)) for what, row in (('scale', scale), ('shift', shift))]
  return editor.add(KIND, [x, *rows], output, shape, epsilon=epsilon)


def _more(editor: Editor, one: Operation, width: int) -> str | None:
  """A number for each channel, added to a norm or multiplied with it: part of it."""
  for index, name in enumerate(one.inputs):
    row, norm = _row(editor, name, width), editor.maker(one.inputs[1 - index], KIND)
    if row is None or norm is None or editor.values[norm.outputs[0]] != editor.values[one.outputs[0]]:
      continue
    scale, shift = (editor.constants[each].astype(np.float64) for each in norm.inputs[1:])
    scale, shift = (scale * row, shift * row) if one.kind == 'mul' else (scale, shift + row)
    editor.drop(norm)
    return _put(editor, one, norm.inputs[0], scale, shift, norm.attributes['epsilon'])
  return None


def _scaled(editor: Editor, one: Operation, width: int) -> _Scaled | None:
  """A product of a centered value, the root of its variance and perhaps a scale, in any order."""
  factors, scale = _factors(editor, one), None
  left: list[str] = []
  for name in factors:
    row = _row(editor, name, width)
    if row is None:
      left.append(name)
    elif scale is not None:
      return None
    else:
      scale = row
  if len(left) != 2:
    return None
  for centered, root in (left, reversed(left)):
    x = _centered(editor, centered)
    beside = x is not None and _beside(editor, root, x)
    epsilon = _root(editor, root, x) if x is not None and beside else None
    if x is not None and epsilon is not None:
      return _Scaled(x, epsilon, scale)
  return None


def _factors(editor: Editor, one: Operation) -> list[str]:
  """What is multiplied, two products deep."""
  if one.kind != 'mul':
    return []
  found: list[str] = []
  for name in one.inputs:
    inner = editor.made.get(_moved(editor, name))
    found += inner.inputs if inner is not None and inner.kind == 'mul' else [name]
  return found


def _moved(editor: Editor, name: str) -> str:
  """The value before it was only given axes of size 1, or repeated."""
  while (one := editor.made.get(name)) is not None and one.kind in ('reshape', 'broadcast_in_dim'):
    before, after = (editor.values[each].shape for each in (one.inputs[0], name))
    if one.kind == 'broadcast_in_dim':  # repeated along what comes behind it
      if tuple(one.attributes['broadcast_dimensions']) != tuple(range(len(before))):
        return name
    elif [size for size in before if size != 1] != [size for size in after if size != 1]:
      return name
    name = one.inputs[0]
  return name


def _row(editor: Editor, name: str, width: int) -> np.ndarray | None:
  """A constant that is one row of the last axis."""
  array = editor.constants.get(_moved(editor, name))
  if array is None or array.size not in (1, width) or (array.size == width and width > 1 and array.shape[-1] != width):
    return None
  return np.broadcast_to(array.reshape(-1), (width,)).astype(np.float64)


def _mean_of(editor: Editor, name: str) -> str | None:
  """What a value is the mean of, along the last axis; one number for each row."""
  one = editor.made.get(_moved(editor, name))
  if one is None or one.kind != 'mean':
    return None
  inner = one.inputs[0]
  rank = len(editor.values[inner].shape)
  return inner if tuple(axis % rank for axis in one.attributes['axes']) == (rank - 1,) else None


def _centered(editor: Editor, name: str) -> str | None:
  """x of x - mean(x)."""
  one = editor.made.get(name)
  if one is None or one.kind != 'sub' or _mean_of(editor, one.inputs[1]) != one.inputs[0]:
    return None
  return one.inputs[0] if _beside(editor, one.inputs[1], one.inputs[0]) else None


def _beside(editor: Editor, name: str, x: str) -> bool:
  """Whether a number for each row of x stands beside its row, and not along another axis as long."""
  shape = editor.values[x].shape
  return editor.values[name].shape in ((*shape[:-1], 1), shape)


def _root(editor: Editor, name: str, x: str) -> float | None:
  """Epsilon of rsqrt(variance(x) + epsilon)."""
  one = editor.made.get(_moved(editor, name))
  if one is None or one.kind != 'rsqrt':
    return None
  total = editor.made.get(_moved(editor, one.inputs[0]))
  if total is None or total.kind != 'add':
    return None
  for index, each in enumerate(total.inputs):
    epsilon = editor.number(each)
    if epsilon is not None and _is_variance(editor, total.inputs[1 - index], x):
      return epsilon
  return None


def _is_variance(editor: Editor, name: str, x: str) -> bool:
  one = editor.made.get(_moved(editor, name))
  if one is not None and one.kind in ('relu', 'max'):  # rounding may make it negative
    floor = [each for each in one.inputs if editor.number(each) != 0]
    one = editor.made.get(_moved(editor, floor[0])) if len(floor) == 1 else None
  if one is None:
    return False
  if one.kind == 'sub':
    squares, mean = _square_of(editor, _mean_of(editor, one.inputs[0])), _square_of(editor, one.inputs[1])
    return squares == x and mean is not None and _mean_of(editor, mean) == x
  inner = _square_of(editor, _mean_of(editor, one.outputs[0]))
  return inner is not None and _centered(editor, inner) == x


def _square_of(editor: Editor, name: str | None) -> str | None:
  one = None if name is None else editor.made.get(_moved(editor, name))
  if one is None:
    return None
  if one.kind == 'square':
    return one.inputs[0]
  return one.inputs[0] if one.kind == 'mul' and one.inputs[0] == one.inputs[1] else None
