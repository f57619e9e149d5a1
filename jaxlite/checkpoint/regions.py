"""Regions of an array, as text: which part of a sharded leaf each device holds, and one hash speaks for.

A region is written '0:4,8:16', one range an axis; '' is the whole of an array that is not sharded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

WHOLE = ''


def spell(index: Sequence[slice], shape: Sequence[int]) -> str:
  """Writes the index of a shard, as JAX gives it, as a region.

  >>> spell((slice(0, 4), slice(None)), (8, 16))
  '0:4,0:16'
  """
  return ','.join(
    f'{part.start or 0}:{size if part.stop is None else part.stop}' for part, size in zip(index, shape, strict=True)
  )


def slices(region: str) -> tuple[slice, ...]:
  """Returns the index that a region stands for.

  >>> slices('0:4,0:16'), slices(WHOLE)
  ((slice(0, 4, None), slice(0, 16, None)), ())
  """
  return tuple(slice(*map(int, part.split(':'))) for part in region.split(',') if part)


def shape(region: str, whole: Sequence[int]) -> tuple[int, ...]:
  """Returns the shape of a region of an array.

  >>> shape('0:4,8:16', (8, 16)), shape(WHOLE, (8, 16))
  ((4, 8), (8, 16))
  """
  return tuple(part.stop - part.start for part in slices(region)) if region else tuple(whole)


def is_sharded(array: Any) -> bool:
  """Tells whether an array is split over devices, so that to copy it to the host would gather it."""
  return isinstance(array, jax.Array) and not array.is_fully_replicated


def parts(array: np.ndarray | jax.Array) -> dict[str, np.ndarray]:
  """Returns the values of an array by region, as they lie: nothing is gathered.

  >>> parts(np.arange(3))
  {'': array([0, 1, 2])}
  """
  if not is_sharded(array):
    return {WHOLE: np.asarray(array)}
  return {
    spell(shard.index, array.shape): np.asarray(shard.data)
    for shard in array.addressable_shards
    if shard.replica_id == 0
  }


def join(found: Mapping[str, np.ndarray], whole: Sequence[int]) -> np.ndarray:
  """Returns the array that regions make up.

  >>> join({'0:1': np.ones(1), '1:3': np.zeros(2)}, (3,))
  array([1., 0., 0.])
  """
  if WHOLE in found:
    return found[WHOLE]
  array = np.empty(tuple(whole), next(iter(found.values())).dtype)
  for region, values in found.items():
    array[slices(region)] = values
  return array


def place(found: Mapping[str, np.ndarray], whole: Sequence[int], sharding: jax.sharding.Sharding) -> jax.Array | None:
  """Puts each region on the devices that hold it under a sharding; None where the sharding has other regions."""
  wanted = {
    device: spell(index, whole) for device, index in sharding.addressable_devices_indices_map(tuple(whole)).items()
  }
  if not set(wanted.values()) <= set(found):
    return None
  arrays = [jax.device_put(found[region], device, may_alias=False) for device, region in wanted.items()]
  return jax.make_array_from_single_device_arrays(tuple(whole), sharding, arrays)
