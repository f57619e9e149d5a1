"""Changing the light and the colors of pictures at random, on the device."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import contract
from jaxlite.errors import number
from jaxlite.optim._augment_batch import as_levels, from_levels, gray_of, images_of

# YIQ: brightness, and two axes of color that a hue turns.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def color_jitter(
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
  *,
  white: float | None = None,
) -> Any:
  """Changes brightness, contrast, saturation and hue of each image, in this order, each by a factor of its own.

  Args:
    brightness: the factor is drawn from 1 - brightness to 1 + brightness, black at least; 0 leaves it.
    contrast: likewise, around the image's mean gray.
    saturation: likewise, around each pixel's gray; images of three channels.
    hue: colors turn by up to this share of the circle, 0 to 0.5; images of three channels.
    white: of float inputs, in their own units (1.0, or 255); uint8 have 255.

  Returns:
    (key, batch) -> batch, for inputs [B, H, W, 1 or 3], uint8 or float, of the same dtype, black 0. Hue turns in YIQ,
    where brightness stays, as a matrix does it; what leaves the range is cut off.

  Raises:
    ValueError: nothing is changed, a value is out of range; floats without white; colors of gray images.

  >>> batch = {'inputs': jnp.full((2, 4, 4, 3), 100, jnp.uint8)}
  >>> jax.jit(color_jitter(brightness=0.5))(jax.random.key(0), batch)['inputs'].dtype.name
  'uint8'
  """
  given = {'brightness': brightness, 'contrast': contrast, 'saturation': saturation, 'hue': hue}
  given = {name: number(value, f'color_jitter: {name}') for name, value in given.items()}
  brightness, contrast, saturation, hue = given.values()
  for name, value in given.items():
    if not (0 <= value < math.inf) or (name == 'hue' and value > 0.5):
      raise ValueError(f'color_jitter: {name} is {"0 to 0.5" if name == "hue" else "0 or above"}; got {value}')
  if not any(given.values()):
    raise ValueError('color_jitter changes something; all four are 0: give brightness=0.4, say')

  def apply(key: jax.Array, batch: contract.Batch) -> dict[str, Any]:
    images = images_of(batch, 'color_jitter')
    colors = images.shape[-1]
    if colors not in (1, 3) or (colors == 1 and (saturation or hue)):
      what = 'saturation and hue of' if colors == 1 else 'images of'
      raise ValueError(f'color_jitter changes gray or RGB; {what} {colors} channels are none: leave it out')
    levels, unit = as_levels(images, white, 'color_jitter')
    draws = jax.random.uniform(key, (4, len(images), 1, 1, 1), minval=-1.0)

    def factor(place: int, most: float) -> jax.Array:
      return jnp.maximum(0, 1 + most * draws[place])

    if brightness:
      levels = jnp.clip(levels * factor(0, brightness), 0, 255)
    if contrast:
      mean = gray_of(levels).mean((1, 2, 3), keepdims=True)
      levels = jnp.clip(mean + (levels - mean) * factor(1, contrast), 0, 255)
    if saturation:
      gray = gray_of(levels)
      levels = jnp.clip(gray + (levels - gray) * factor(2, saturation), 0, 255)
    if hue:
      levels = _turned(levels, 2 * math.pi * hue * draws[3, :, 0, 0, 0])
    return {**batch, 'inputs': from_levels(levels, images, unit)}

  return apply


def _turned(levels: jax.Array, angle: jax.Array) -> jax.Array:
  cos, sin, zero, one = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle), jnp.ones_like(angle)
  turn = jnp.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], -1).reshape(-1, 3, 3)
  highest = jax.lax.Precision.HIGHEST
  back = jnp.asarray(np.linalg.inv(_YIQ), jnp.float32)
  matrix = jnp.einsum('ij,bjk,kl->bil', back, turn, jnp.asarray(_YIQ, jnp.float32), precision=highest)
  return jnp.einsum('bhwc,bdc->bhwd', levels, matrix, precision=highest)
