"""Standardizing: which leaves of the inputs, by which statistics, and what a person is told about it.

The statistics are only recorded here; `jl.optim.normalize` applies them on the device, as a part of the model.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxlite.data.inputs import leaves, pieces


def standardization(inputs: Any, standardize: Any, *, ids_known: bool = False) -> tuple[Any, Any, list[str]]:
  """Returns mean and standard deviation of every leaf that is standardized, and notes on what is not as usual.

  Args:
    inputs: pytree of arrays [N, ...], those of the training split.
    standardize: True takes the statistics of `inputs`; False standardizes nothing; a pair (mean, std) is taken as it
      is, each like `inputs` (None for a leaf that is left as it is) and broadcast against one example.
    ids_known: integers are known to be ids; else a note says that they are taken for ids.

  Returns:
    (mean, std, notes): trees like `inputs`, None for a leaf that is not standardized: integers and bools never are.

  Raises:
    ValueError: a pair that does not fit.

  >>> mean, std, notes = standardization({'ids': np.zeros((2, 1), np.int32), 'x': np.float32([[1], [3]])}, True)
  >>> mean['ids'], mean['x'].tolist(), std['x'].tolist(), len(notes)
  (None, [2.0], [1.0], 1)
  """
  notes = []
  known = leaves(inputs)
  for path, leaf in known:
    if leaf.dtype.kind == 'i' and not ids_known:
      what = f'inputs ({path})' if path else 'inputs'
      notes.append(
        f"{what} are integers, taken for ids: they stay int32 and are not standardized; for numbers .astype('float32')"
      )
  if isinstance(standardize, bool | np.bool_):
    stats = [channel_stats(leaf) if standardize and _is_quantity(leaf) else (None, None) for _, leaf in known]
    if not standardize and any(_is_quantity(leaf) for _, leaf in known):
      notes.append('inputs are not standardized, as standardize=False says')
  else:
    stats = _given(inputs, standardize)
    notes.append('inputs are standardized by the mean and std that were given')
  treedef = jax.tree.structure(inputs)
  mean, std = (treedef.unflatten([pair[which] for pair in stats]) for which in (0, 1))
  return mean, std, notes


def _is_quantity(leaf: np.ndarray) -> bool:
  return leaf.dtype.kind == 'f' or leaf.dtype == np.uint8


def _given(inputs: Any, standardize: Any) -> list[tuple[Any, Any]]:
  if not isinstance(standardize, tuple | list) or len(standardize) != 2:
    raise ValueError(f'standardize is True, False or a pair (mean, std); got {type(standardize).__name__}')
  treedef = jax.tree.structure(inputs)
  try:
    both = [treedef.flatten_up_to(tree) for tree in standardize]
  except (ValueError, TypeError):
    names = ', '.join(path for path, _ in leaves(inputs))
    raise ValueError(f'mean and std are trees as the inputs ({names}), None for a leaf that is left as it is') from None
  return [_check_given(mean, std, path, leaf) for mean, std, (path, leaf) in zip(*both, leaves(inputs), strict=True)]


def _check_given(mean: Any, std: Any, path: str, leaf: np.ndarray) -> tuple[Any, Any]:
  what = f'mean and std of {path or "the inputs"}'
  if (mean is None) != (std is None):
    raise ValueError(f'{what} go together; one of them is None: give both or none')
  if mean is None:
    return None, None
  if not _is_quantity(leaf):
    raise ValueError(f"{leaf.dtype} is not standardized; {what} are given: pass None, or .astype('float32') the inputs")
  try:
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    fits = all(np.broadcast_shapes(value.shape, leaf.shape[1:]) == leaf.shape[1:] for value in (mean, std))
  except (ValueError, TypeError):
    fits = False
  if not fits:
    raise ValueError(f'{what} are numbers that broadcast against one example, {list(leaf.shape[1:])}: reshape them')
  if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
    raise ValueError(f'{what} are finite and std positive; got mean={mean.tolist()}, std={std.tolist()}')
  return mean, std


def channel_stats(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and standard deviation of each channel, summed in float64 over bounded pieces.

  Args:
    inputs: uint8 or float32 [N, ...]: [N], [N, features], [N, L, M] or [N, ..., C].

  Returns:
    (mean, std), float32 [1], [features], [1] or [C]. A channel that does not vary beyond rounding has std 1:
    dividing by less would blow its rounding errors up.

  >>> import numpy as np
  >>> mean, std = channel_stats(np.array([[0, 7], [2, 7]], np.uint8))
  >>> mean.tolist(), std.tolist()
  ([1.0, 7.0], [1.0, 1.0])
  """
  channels = 1 if inputs.ndim in (1, 3) else inputs.shape[-1]
  count = inputs.size // channels
  total = np.zeros(channels)
  for _, rows in pieces(inputs):
    total += rows.reshape(-1, channels).sum(0, dtype=np.float64)
  mean = total / count
  spread, largest = np.zeros(channels), np.zeros(channels)
  for _, rows in pieces(inputs):  # a second pass: the mean of squares less the squared mean cancels
    values = rows.reshape(-1, channels).astype(np.float64)
    largest = np.maximum(largest, np.abs(values).max(0))
    spread += np.square(values - mean).sum(0)
  std = np.sqrt(spread / count)
  std = np.where(std > np.finfo(np.float32).eps * largest, std, 1.0)
  return mean.astype(np.float32), np.maximum(std, np.finfo(np.float32).tiny).astype(np.float32)
