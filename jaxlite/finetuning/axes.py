"""From the axes of a stored kernel to those that a program reads: by whose convention it was stored, and by what the
program sums over. Shapes are never asked: a square matrix says nothing about which way round it is.

PyTorch stores a dense kernel as [out, in] and a convolution's as [out, in, *window]; Flax, Haiku and Keras store
[in, out] and [*window, in, out].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.finetuning.flattened import Flat
from jaxlite.finetuning.program import Kernel


class Move(NamedTuple):
  """How a stored array becomes a leaf: its axes split, permuted, and that is the leaf.

  Attributes:
    split: the shape that it is seen in first.
    order: which of these axes comes where.
    shape: of the leaf.
  """

  split: tuple[int, ...]
  order: tuple[int, ...]
  shape: tuple[int, ...]

  def __call__(self, array: np.ndarray) -> np.ndarray:
    """Moves an array; a view where it can be."""
    return array.reshape(self.split).transpose(self.order).reshape(self.shape)

  @property
  def transposes(self) -> bool:
    """Whether entries change their order."""
    wide = [axis for axis in self.order if self.split[axis] > 1]
    return wide != sorted(wide)


class Unclear(NamedTuple):
  """Why nobody can tell how an array is to be moved."""

  why: str


def as_stored(shape: Sequence[int], wanted: Sequence[int]) -> Move | Unclear:
  """How an array that no contraction reads becomes a leaf: as it is, up to axes of size 1.

  >>> as_stored((8,), (1, 8)).shape
  (1, 8)
  """
  if [one for one in shape if one != 1] != [one for one in wanted if one != 1]:
    return Unclear('shape')
  return Move(tuple(shape), tuple(range(len(shape))), tuple(wanted))


def moved(shape: Sequence[int], wanted: Sequence[int], kernel: Kernel, layout: str) -> Move | Unclear:
  """How a stored kernel becomes a leaf.

  Args:
    shape: of the stored array.
    wanted: the leaf's.
    kernel: what the program does with the leaf.
    layout: whose convention it was stored by: 'torch' or 'jax'.

  Returns:
    A Move; Unclear where it takes a person to say. Its word 'shape' means: of another size.

  >>> from jaxlite.graph.layouts import LeafLayout
  >>> dense = Kernel('dense', LeafLayout(summed=(0,), outputs=(1,)))
  >>> moved((5, 3), (3, 5), dense, 'torch')(np.ones((5, 3))).shape
  (3, 5)
  >>> moved((3, 3), (3, 3), dense, 'torch').transposes, moved((3, 3), (3, 3), dense, 'jax').transposes
  (True, False)
  """
  if kernel.kind == 'mixed' or kernel.layout is None:
    return Unclear('the program uses it in several ways, or mixes its axes')
  summed, outputs = kernel.layout.summed, kernel.layout.outputs
  stacked = kernel.layout.stack(len(wanted))
  if any(wanted[axis] > 1 for axis in stacked):
    return Unclear('it stacks several layers')
  if kernel.kind == 'conv':
    return _convolution(shape, wanted, kernel, layout, summed, outputs)
  return _dense(shape, wanted, layout, summed, outputs, kernel.flat)


def _dense(
  shape: Sequence[int],
  wanted: Sequence[int],
  layout: str,
  summed: Sequence[int],
  outputs: Sequence[int],
  flat: Flat | None,
) -> Move | Unclear:
  many_in, many_out = (math.prod(wanted[axis] for axis in group) for group in (summed, outputs))
  ins, outs = [wanted[axis] for axis in summed], [wanted[axis] for axis in outputs]
  if layout == 'torch' and len(shape) > 2 and all(one == 1 for one in shape[2:]):
    shape = shape[:2]  # a convolution with a window of 1 is a dense kernel
  if layout == 'jax' and len(shape) > 2 and len(shape) == len(wanted):
    if max(summed, default=-1) > min(outputs, default=len(wanted)):
      return Unclear('it has several axes, and the program has them in another order')
    return as_stored(shape, wanted) if tuple(shape) == tuple(wanted) else Unclear('shape')
  if len(shape) != 2:
    if math.prod(shape) != math.prod(wanted):
      return Unclear('shape')
    return Unclear(f'it has {len(shape)} axes where a dense kernel has 2')
  stored_out, stored_in = shape if layout == 'torch' else shape[::-1]
  if (stored_in, stored_out) != (many_in, many_out):
    return Unclear('shape')
  across: list[Any] = list(summed)
  if flat is not None:
    if flat.channel is None or len(summed) != 1:
      return Unclear('its inputs are a flattened picture, which PyTorch flattens as [C, H, W] and others as [H, W, C]')
    order = [place for place in range(len(flat.sizes)) if place != flat.channel]
    order = [flat.channel, *order] if layout == 'torch' else [*order, flat.channel]
    ins, across = [flat.sizes[place] for place in order], [summed[0] + place / len(order) for place in order]
  split, places = (outs + ins, [*outputs, *across]) if layout == 'torch' else (ins + outs, [*across, *outputs])
  return _placed(split, places, wanted)


def _convolution(
  shape: Sequence[int],
  wanted: Sequence[int],
  kernel: Kernel,
  layout: str,
  summed: Sequence[int],
  outputs: Sequence[int],
) -> Move | Unclear:
  if kernel.backward:
    return Unclear('a transposed convolution, whose window frameworks store in different orders')
  if len(shape) != kernel.spatial + 2:
    same = math.prod(shape) == math.prod(wanted)
    return Unclear(f'it has {len(shape)} axes where this convolution has {kernel.spatial + 2}' if same else 'shape')
  if len(summed) < kernel.spatial:
    return Unclear('the program mixes the axes of its window')
  window, channels = summed[: kernel.spatial], summed[kernel.spatial :]  # the window's axes come first
  ins, outs = [wanted[axis] for axis in channels], [wanted[axis] for axis in outputs]
  sizes = [wanted[axis] for axis in window]
  many_in, many_out = math.prod(ins), math.prod(outs)
  if layout == 'torch':
    told, split, places = (many_out, many_in, *sizes), [*outs, *ins, *sizes], [*outputs, *channels, *window]
  else:
    told, split, places = (*sizes, many_in, many_out), [*sizes, *ins, *outs], [*window, *channels, *outputs]
    if tuple(shape) == tuple(wanted) and places == sorted(places):  # Keras's depthwise kernel: [*window, in, times]
      return as_stored(shape, wanted)
    if many_in == 1 < shape[-2] and shape[-2] * shape[-1] == many_out:  # and into one that has [*window, 1, in * times]
      shape = (*shape[:-2], 1, many_out)
  return _placed(split, places, wanted) if tuple(shape) == told else Unclear('shape')


def _placed(split: Sequence[int], places: Sequence[float], wanted: Sequence[int]) -> Move | Unclear:
  """The i-th axis stored lies at `places[i]` of the leaf (between two whole numbers: as a part of the lower axis)."""
  if len(set(places)) != len(places):
    return Unclear('the program reads an axis of it twice')
  order = tuple(sorted(range(len(places)), key=lambda one: places[one]))
  return Move(tuple(split), order, tuple(wanted))
