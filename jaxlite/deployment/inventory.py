"""What a trained model consists of: every array as it would be stored, and its bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
  from jaxlite.contract import Params, State
  from jaxlite.graph.layouts import LeafLayout


class Layer(NamedTuple):
  """One parameter array, as it would be stored.

  Attributes:
    path: its path in the params; of a leaf that stacks layers, one each: 'blocks/kernel[2]'.
    size: number of values.
    nonzero: how many are not exactly zero.
    bits: of a stored value: 8 where it is quantized, 32 for float32.
    weight: it enters a contraction (biases and norms do not); sparsity is counted over these.
    scales: float32 scales that decode it.
  """

  path: str
  size: int
  nonzero: int
  bits: int = 32
  weight: bool = True
  scales: int = 0


def stored_bytes(size: int, nonzero: int, bits: int, scales: int = 0) -> int:
  """Returns the bytes of one array in the smaller of two plain forms; no entropy coding, no file header.

  Dense: ceil(size * bits / 8). Sparse: ceil(nonzero * bits / 8) + ceil(size / 8), values and a mask bit for each
  place. Either adds 4 bytes a scale.

  Args:
    size: number of values.
    nonzero: how many are not zero.
    bits: of a stored value.
    scales: float32 scales that decode it.

  >>> stored_bytes(800, 80, 8), stored_bytes(800, 800, 32)
  (180, 3200)
  """
  dense = math.ceil(size * bits / 8)
  sparse = math.ceil(nonzero * bits / 8) + math.ceil(size / 8)
  return min(dense, sparse) + 4 * scales


def layers(
  model: Any,
  params: Params,
  state: State,
  inputs: Any,
  weights: Mapping[str, LeafLayout | None],
  bits: Mapping[str, int] | None = None,
) -> list[Layer]:
  """Counts what a trained model consists of: every array, as it would be stored.

  Args:
    model: the Model wrapped in its hooks.
    params: its params.
    state: its state, constants among it.
    inputs: one batch.
    weights: what enters a contraction, with the layout of its axes.
    bits: of the weights that are multiplied in integers; None reads them off the program, which is traced for it.
  """
  from jaxlite import trees  # here, so that a report is shown without JAX
  from jaxlite.quantization import weight_bits

  bits = weight_bits(model, params, state, inputs) if bits is None else bits
  exported, _ = model.export(params, state)
  names, leaves, _ = trees.flatten(exported)
  found = []
  for path, leaf in zip(names, leaves, strict=True):
    values = np.asarray(leaf)
    layout = weights.get(path)
    for place, one in _layers(values, layout):
      found.append(
        Layer(
          path=path + place,
          size=one.size,
          nonzero=int(np.count_nonzero(one)),
          bits=bits.get(path, 8 * values.dtype.itemsize),
          weight=path in weights,
          scales=_channels(one.shape, layout) if path in bits else 0,
        )
      )
  return found


def _layers(values: np.ndarray, layout: LeafLayout | None) -> list[tuple[str, np.ndarray]]:
  """(place, values) of each layer that a leaf stacks, in the leaf's axes; of a single one the place is ''."""
  stack = () if layout is None else [axis for axis in layout.stack(values.ndim) if values.shape[axis] > 1]
  if not stack:
    return [('', values)]
  found = []
  for place in np.ndindex(*(values.shape[axis] for axis in stack)):
    at = tuple(
      slice(place[stack.index(axis)], place[stack.index(axis)] + 1) if axis in stack else slice(None)
      for axis in range(values.ndim)
    )
    found.append((f'[{",".join(map(str, place))}]', values[at]))
  return found


def _channels(shape: tuple[int, ...], layout: LeafLayout | None) -> int:
  """How many scales a quantized weight has: one for each output, of each weight that is stacked in it."""
  if layout is None:  # its axes are mixed on the way: as most frameworks lay them
    return shape[-1] if shape else 1
  return math.prod(size for axis, size in enumerate(shape) if axis not in layout.summed)
