"""SpecAugment on the device: stretches of time and bands of frequency are blanked in spectrograms."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite import contract
from jaxlite.errors import number, whole
from jaxlite.optim._augment_batch import field


def spec_augment(
  *, times: int = 2, longest: int = 20, bands: int = 2, widest: int = 8, fill: float | None = None
) -> Any:
  """Blanks stretches of time and bands of frequency in each spectrogram; time is not warped.

  Args:
    times: stretches of time for each example.
    longest: frames of a stretch at most; each length from 0 on is as likely.
    bands: bands of frequency for each example.
    widest: channels of a band at most.
    fill: what is put there; None takes each example's mean.

  Returns:
    (key, batch) -> batch, for float inputs [B, frames, bands] or [B, frames, bands, 1], of the same dtype.

  Raises:
    ValueError: nothing is blanked, an argument is out of range, or larger than the spectrogram; inputs are none.

  References:
    Park et al., SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition, 2019,
    https://arxiv.org/abs/1904.08779

  >>> batch = {'inputs': jnp.ones((2, 30, 16))}
  >>> jax.jit(spec_augment(longest=5, fill=0.0))(jax.random.key(0), batch)['inputs'].shape
  (2, 30, 16)
  """
  times, longest, bands, widest = (
    whole(value, f'spec_augment: {name}', least=0)
    for name, value in (('times', times), ('longest', longest), ('bands', bands), ('widest', widest))
  )
  if not (times and longest) and not (bands and widest):
    raise ValueError('spec_augment blanks something; got no stretch of time and no band: give times and longest')
  fill = None if fill is None else number(fill, 'spec_augment: fill')
  if fill is not None and not math.isfinite(fill):
    raise ValueError(f'spec_augment: fill is finite, or None for the mean; got {fill}')

  def apply(key: jax.Array, batch: contract.Batch) -> dict[str, Any]:
    inputs = field(batch, 'inputs', 'spec_augment')
    if inputs.ndim not in (3, 4) or (inputs.ndim == 4 and inputs.shape[-1] != 1):
      raise ValueError(
        'spec_augment works on spectrograms [B, frames, bands] or [B, frames, bands, 1]; inputs are '
        f'{list(inputs.shape)}'
      )
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
      raise ValueError(f'spec_augment works on floats; inputs are {inputs.dtype}: leave it out for these')
    frames, channels = inputs.shape[1:3]
    for what, most, size in (('longest', longest, frames), ('widest', widest, channels)):
      if most > size:
        raise ValueError(f'spec_augment: {what} is at most the {size} there are; got {most}: lower it')
    keys = jax.random.split(key, 2)
    blank = _stretches(keys[0], len(inputs), times, longest, frames)[:, :, None]
    blank |= _stretches(keys[1], len(inputs), bands, widest, channels)[:, None, :]
    blank = blank.reshape(*blank.shape, *[1] * (inputs.ndim - 3))
    axes = tuple(range(1, inputs.ndim))
    mean = inputs.astype(jnp.float32).mean(axes, keepdims=True).astype(inputs.dtype)
    return {**batch, 'inputs': jnp.where(blank, mean if fill is None else jnp.asarray(fill, inputs.dtype), inputs)}

  return apply


def _stretches(key: jax.Array, count: int, number: int, most: int, size: int) -> jax.Array:
  """bool [count, size]: whether a place lies in one of `number` stretches of up to `most`, anywhere inside."""
  lengths, starts = jax.random.split(key)
  length = jax.random.randint(lengths, (count, number, 1), 0, most + 1)
  start = jax.random.randint(starts, (count, number, 1), 0, size - length + 1)
  place = jnp.arange(size)[None, None]
  return ((place >= start) & (place < start + length)).any(1)
