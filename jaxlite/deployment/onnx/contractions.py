"""Contractions in ONNX's words: Gemm, MatMul, Einsum, Conv and ConvTranspose, of floats or of what was dequantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxlite.deployment.onnx.writer import Writer, channels_first
from jaxlite.deployment.operations import Operation

Read = Callable[[Writer, str, tuple[int, ...]], str]  # (writer, value, order of its axes) -> a float of the file


def _dense(w: Writer, one: Operation) -> None:
  x, weight, *bias = one.inputs
  if len(w.shape(x)) == 2:
    return w.put(one.outputs[0], w.node('Gemm', [w.get(x), w.get(weight), *map(w.get, bias)]))
  product = w.node('MatMul', [w.get(x), w.get(weight)])
  w.put(one.outputs[0], w.node('Add', [product, w.get(bias[0])]) if bias else product)


def _turned(w: Writer, name: str, order: tuple[int, ...]) -> str:
  if name in w.graph.constants:
    return w.node('Transpose', [w.whole(name)], perm=list(order))
  return w.get(name, order)


def product(w: Writer, one: Operation, read: Sequence[Read] = (_turned, _turned)) -> str:
  """Writes the product of two values: MatMul where one axis is summed, else Einsum.

  Args:
    w: the graph so far.
    one: a 'dot_general', or a 'quantized_dot'.
    read: gives each operand as a float.

  Returns:
    The result's name in the file.
  """
  x, y = one.inputs
  (inner_x, inner_y), (batch_x, batch_y) = one.attributes['dimension_numbers']
  free_x, free_y = (
    [axis for axis in range(len(w.shape(name))) if axis not in (*inner, *batch)]
    for name, inner, batch in ((x, inner_x, batch_x), (y, inner_y, batch_y))
  )
  if any(len(axes) != 1 for axes in (inner_x, free_x, free_y)):
    letters = iter('abcdefghijklmnopqrstuvwxyz')
    left = [next(letters) for _ in w.shape(x)]
    right = [next(letters) for _ in w.shape(y)]
    for a, b in (*zip(inner_x, inner_y, strict=True), *zip(batch_x, batch_y, strict=True)):
      right[b] = left[a]
    out = [left[axis] for axis in (*batch_x, *free_x)] + [right[axis] for axis in free_y]
    spell = f'{"".join(left)},{"".join(right)}->{"".join(out)}'
    whole = [tuple(range(len(w.shape(name)))) for name in (x, y)]
    return w.node('Einsum', [read[0](w, x, whole[0]), read[1](w, y, whole[1])], equation=spell)
  left_order, right_order = (*batch_x, *free_x, *inner_x), (*batch_y, *inner_y, *free_y)
  return w.node('MatMul', [read[0](w, x, left_order), read[1](w, y, right_order)])


def convolution(
  w: Writer, one: Operation, x: str, weight: np.ndarray, put: Callable[[np.ndarray, str, int], str], bias: Sequence[str]
) -> str:
  """Writes a convolution, channels first.

  Args:
    w: the graph so far.
    one: a 'conv', or a 'quantized_conv'.
    x: its input in the file, a float, channels first.
    weight: its kernel [O, space..., C / groups].
    put: (kernel in ONNX's order, a name, the axis of its outputs) -> its name in the file, a float.
    bias: its name in the file, or nothing.

  Returns:
    The result's name in the file.
  """
  told, (output,) = one.attributes, one.outputs
  array = np.moveaxis(weight, -1, 1)  # outputs, inputs, space
  lows, highs = ([pair[side] for pair in told['padding']] for side in (0, 1))
  name = one.inputs[1]
  if {*told['input_dilation']} == {1}:
    if min(*lows, *highs) < 0:
      raise ValueError(f'ONNX pads a convolution; {output} crops it')
    return w.node(
      'Conv',
      [x, put(array, name, 0), *bias],
      strides=told['strides'],
      pads=[*lows, *highs],
      dilations=told['dilation'],
      group=told['groups'],
    )
  if {*told['strides']} != {1} or told['groups'] != 1:
    raise ValueError(f'ONNX takes a transposed convolution without stride or groups; {output} has them')
  reach = [(size - 1) * step for size, step in zip(array.shape[2:], told['dilation'], strict=True)]
  begin = [wide - low for wide, low in zip(reach, lows, strict=True)]
  end = [wide - high for wide, high in zip(reach, highs, strict=True)]
  if min(begin) < 0:
    raise ValueError(f'ONNX pads a transposed convolution by less than its kernel; {output} by more')
  turned = np.flip(array, tuple(range(2, array.ndim))).swapaxes(0, 1)
  return w.node(
    'ConvTranspose',
    [x, put(turned, f'{name} turned', 1), *bias],
    strides=told['input_dilation'],
    pads=[*begin, *(max(size, 0) for size in end)],
    output_padding=[max(-size, 0) for size in end],
    dilations=told['dilation'],
  )


def _convolved(w: Writer, one: Operation) -> None:
  x, kernel, *bias = one.inputs
  order = channels_first(len(w.shape(x)))
  stored = next((each for each in w.graph.operations if each.outputs == (kernel,)), None)

  def put(array: np.ndarray, near: str, axis: int) -> str:
    if stored is None:
      return w.array(array, near)
    return w.node('DequantizeLinear', [w.array(array, near), w.get(stored.inputs[1])], axis=axis)

  if stored is None:
    weight = w.graph.constants[kernel]
  elif stored.kind == 'dequantize' and len(stored.inputs) == 2 and stored.attributes.get('axis', 0) == 0:
    weight = w.graph.constants[stored.inputs[0]]
  else:
    raise ValueError(f'ONNX is written of convolutions with known kernels; {one.outputs[0]} computes its own')
  w.put(one.outputs[0], convolution(w, one, w.get(x, order), weight, put, [w.get(name) for name in bias]), order)


RULES: dict[str, Callable[[Writer, Operation], Any]] = {
  'dense': _dense,
  'dot_general': lambda w, one: w.put(one.outputs[0], product(w, one)),
  'conv': _convolved,
}
