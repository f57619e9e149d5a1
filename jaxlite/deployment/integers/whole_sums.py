"""Sums that a fake-quantized network holds as whole numbers (`every=True`), told as the floats that they stand for.

Its evaluation computes `rint(float32(int32(sum) + bias) * M)`, of additions and means likewise. Here the sum of a
contraction becomes that contraction times numbers, which `points` puts into its scale and bias, and the whole sum of
two values on grids, or of one over axes, an addition or a mean of what they stand for.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.integers.grids import Grid, grid_of
from jaxlite.deployment.integers.rules import ADD_BITS
from jaxlite.deployment.operations import Batch, Operation
from jaxlite.deployment.operations.rewriting import Editor

_MOVES = ('reshape', 'transpose', 'squeeze', 'broadcast_in_dim', 'slice', 'max_pool', 'reduce_window_max')
_LARGEST = float(np.finfo(np.float32).max)


class _Part(NamedTuple):
  """Whole steps of a value on a grid, times a number."""

  real: str
  grid: Grid


class Sums(NamedTuple):
  """What is known of values so far.

  Attributes:
    parts: int32 values that count steps of one value, or those times a number.
    floats: int32 values that hold a contraction's sum, as the float value that is the same.
    pairs: int32 values that are the sum of two parts, or of one over axes: the value that they stand for.
    units: by that value, what one of its whole numbers is.
    counted: float32 values that hold a whole sum: what stands for it, '' where it is the contraction's own.
  """

  parts: dict[str, _Part]
  floats: dict[str, str]
  pairs: dict[str, str]
  units: dict[str, float]
  counted: dict[str, str]


def told(editor: Editor, one: Operation, sums: Sums, steps: dict[str, Any]) -> str | None:
  """A rule for `rewriting.edited`, before that of points; None where an operation is no part of such a sum."""
  output, value = one.outputs[0], editor.values[one.outputs[0]]
  if one.kind == 'max':
    for name, other in zip(one.inputs, reversed(one.inputs), strict=True):
      if editor.number(other) == -_LARGEST and editor.values[name] == value:
        return name  # which kept a product from being contracted with a sum
  if one.kind == 'convert_element_type':
    return _converted(editor, one, sums, steps)
  if one.kind in _MOVES and one.inputs[0] in sums.counted and sums.counted[one.inputs[0]]:
    real = sums.counted[one.inputs[0]]
    moved = editor.fresh(f'{output}_s')
    editor.values[moved] = editor.values[output]
    sums.counted[output] = editor.put(Operation(one.kind, (real, *one.inputs[1:]), (moved,), one.attributes))
    return None
  if value.dtype == np.int32:
    return _whole(editor, one, sums)
  if one.kind == 'mul':  # a whole sum that leaves as a float
    for name, other in zip(one.inputs, reversed(one.inputs), strict=True):
      real, by = sums.counted.get(name, ''), editor.number(other)
      if real in sums.units and by is not None and math.isclose(by, sums.units[real], rel_tol=1e-6):
        return real
  return None


def _converted(editor: Editor, one: Operation, sums: Sums, steps: dict[str, Any]) -> str | None:
  x, output = one.inputs[0], one.outputs[0]
  before, after = editor.values[x].dtype, editor.values[output].dtype
  if (before, after) == (np.float32, np.int32):
    if x in steps:
      sums.parts[output] = _Part(*steps[x])
    elif sums.counted.get(x):
      sums.pairs[output] = sums.counted[x]
    else:
      sums.floats[output] = x
    return None
  if (before, after) == (np.int32, np.float32):
    if x in sums.floats:
      sums.counted[sums.floats[x]] = ''
      return sums.floats[x]
    if x in sums.pairs:
      sums.counted[output] = sums.pairs[x]
  return None


def _whole(editor: Editor, one: Operation, sums: Sums) -> str | None:
  output, shape = one.outputs[0], editor.values[one.outputs[0]].shape
  if one.kind == 'reduce_sum' and one.inputs[0] in sums.parts:
    part = sums.parts[one.inputs[0]]
    name = editor.fresh(f'{output}_s')
    editor.values[name] = editor.values[part.real]
    sums.pairs[output] = editor.add('mean', [part.real], name, shape, axes=one.attributes['axes'])
    sizes = [editor.values[part.real].shape[axis] for axis in one.attributes['axes']]
    if not any(isinstance(size, Batch) for size in sizes):
      sums.units[name] = part.grid.scale / math.prod(int(size) for size in sizes)  # type: ignore[arg-type]
    return None
  if one.kind not in ('mul', 'add') or len(one.inputs) != 2:
    return None
  first, second = one.inputs
  if one.kind == 'add' and first in sums.parts and second in sums.parts:
    name = editor.fresh(f'{output}_s')
    editor.values[name] = editor.values[sums.parts[first].real]
    sums.pairs[output] = editor.add('add', [sums.parts[first].real, sums.parts[second].real], name, shape)
    sums.units[name] = math.ldexp(max(sums.parts[first].grid.scale, sums.parts[second].grid.scale), -ADD_BITS)
    return None
  for name, other in ((first, second), (second, first)):
    if other not in editor.constants:
      continue
    if one.kind == 'mul' and name in sums.parts:
      sums.parts[output] = sums.parts[name]
    elif name in sums.floats:
      number = editor.constant(other, editor.constants[other].astype(np.float64), editor.values[other].shape)
      result = editor.fresh(f'{output}_f')
      editor.values[result] = editor.values[sums.floats[name]]
      sums.floats[output] = editor.add(one.kind, [sums.floats[name], number], result, shape)
  return None


def rounded(
  editor: Editor, scaled: Operation, low: float, high: float, scales: list[float], sums: Sums
) -> tuple[str, Grid] | None:
  """What is rounded where a whole sum is multiplied, and to which grid; None where it is no such sum.

  Args:
    editor: the graph.
    scaled: the product.
    low: of the grid, in steps from zero.
    high: likewise.
    scales: by what the steps are multiplied afterwards.
    sums: what is known.
  """
  for name, other in zip(scaled.inputs, reversed(scaled.inputs), strict=True):
    if name not in sums.counted or other not in editor.constants or not scales:
      continue
    scale = scales[0]
    grid = grid_of(float(np.float32(1) / np.float32(scale)), low, high, [scale])
    if grid is None or not math.isfinite(scale):
      return None
    if sums.counted[name]:
      return sums.counted[name], grid
    by = editor.constants[other].astype(np.float64) * grid.scale
    number = editor.constant(f'{scaled.outputs[0]}_m', by, editor.values[other].shape)
    real = editor.fresh(f'{scaled.outputs[0]}_s')
    editor.values[real] = editor.values[name]
    return editor.add('mul', [name, number], real, editor.values[scaled.outputs[0]].shape), grid
  return None
