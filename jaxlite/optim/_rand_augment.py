"""RandAugment on the device: a few changes drawn from a list, each with the same strength, as tables and one warp.

Every example draws its own changes, and shapes are static: so all that changes a pixel by its own value is one table of
256 levels, picked by the draw; saturation and sharpness are blends whose factor is 1 where they were not drawn; and all
moves of an example are multiplied into one matrix, so that pixels are read once and blurred once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import contract
from jaxlite.errors import nearest, number, whole
from jaxlite.optim._augment_batch import NOTHING, as_levels, fill_of, from_levels, gray_of, images_of, move_labels

# Changes by name; those of one group are told apart by their place in it.
_TABLES = ('brightness', 'contrast', 'posterize', 'solarize', 'autocontrast', 'equalize', 'invert')
_BLENDS = ('saturation', 'sharpness')
_MOVES = ('rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y')
OPERATIONS = ('identity', *_TABLES, *_BLENDS, *_MOVES)
_USUAL = tuple(name for name in OPERATIONS if name != 'invert')  # as the paper's list has them
_STRONGEST = 10


def rand_augment(
  layers: int = 2,
  magnitude: float = 9,
  *,
  operations: Sequence[str] = _USUAL,
  fill: float | Sequence[float] = 0,
  white: float | None = None,
) -> Any:
  """Changes each image by `layers` operations that are drawn from a list, all of one strength.

  At strength 10: rotation by 30 degrees, shearing by 0.3, moves by 0.45 of the side, brightness, contrast, saturation
  and sharpness by factors 0.1 or 1.9, posterizing to 4 bits, solarizing from 0 on; signs are drawn. Changes of color
  come first, in the order drawn; moves are then done at once, bilinear, so that pixels blur once.

  Args:
    layers: how many are drawn for each image, from 1; the same may be drawn twice.
    magnitude: their strength, 0 to 10.
    operations: names out of `jaxlite.optim.OPERATIONS`.
    fill: what comes in at the border: one number, or one per channel.
    white: of float inputs, in their own units (1.0, or 255); uint8 have 255.

  Returns:
    (key, batch) -> batch, for inputs [B, H, W, 1 or 3], uint8 or float, of the same dtype, black 0. Tables are read
    between their levels for floats. Labels that have one for each pixel move along, the nearest one.

  Raises:
    ValueError: an argument is out of range; floats without white; saturation of gray images.

  References:
    Cubuk et al., RandAugment: Practical Automated Data Augmentation with a Reduced Search Space, 2019,
    https://arxiv.org/abs/1909.13719

  >>> batch = {'inputs': jnp.full((2, 8, 8, 3), 100, jnp.uint8)}
  >>> jax.jit(rand_augment(2, 5))(jax.random.key(0), batch)['inputs'].shape
  (2, 8, 8, 3)
  """
  layers, magnitude = whole(layers, 'rand_augment: layers', least=1), number(magnitude, 'rand_augment: magnitude')
  if not 0 <= magnitude <= _STRONGEST:
    raise ValueError(f'rand_augment: magnitude is 0 to {_STRONGEST}; got {magnitude}')
  usual, operations = operations is _USUAL, tuple(operations)
  for name in operations:
    if name not in OPERATIONS:
      raise ValueError(f'rand_augment: {name!r} is no operation (nearest: {nearest(str(name), OPERATIONS)})')
  if not operations:
    raise ValueError(f'rand_augment draws from operations; got none: name some of {", ".join(OPERATIONS)}')
  strength = magnitude / _STRONGEST

  def apply(key: jax.Array, batch: contract.Batch) -> dict[str, Any]:
    images = images_of(batch, 'rand_augment')
    count, height, width, channels = images.shape
    names = tuple(name for name in operations if not (usual and channels == 1 and name == 'saturation'))
    if channels not in (1, 3) or (channels == 1 and 'saturation' in names):
      what = 'saturation of ' if channels == 1 else ''
      raise ValueError(f'rand_augment changes gray or RGB; got {what}{channels} channels: leave it out')
    value = fill_of(fill, images, 'rand_augment')
    levels, unit = as_levels(images, white, 'rand_augment')
    which, signs = jax.random.split(key)
    drawn = jax.random.randint(which, (layers, count), 0, len(names))
    place = jnp.asarray([OPERATIONS.index(name) for name in names])[drawn]
    sign = jnp.where(jax.random.bernoulli(signs, 0.5, (layers, count)), 1.0, -1.0)
    matrix = jnp.broadcast_to(jnp.eye(3), (count, 3, 3))
    touched = jnp.zeros(count, bool)
    for layer in range(layers):
      levels = _tabled(levels, place[layer], sign[layer], strength, [n for n in _TABLES if n in names])
      levels = _blended(levels, place[layer], sign[layer], strength, [n for n in _BLENDS if n in names])
      touched |= place[layer] != 0
      move = _move(place[layer], sign[layer], strength, height, width)
      matrix = jnp.einsum('bij,bjk->bik', move, matrix, precision=jax.lax.Precision.HIGHEST)
    colored = jnp.where(_each(touched, 4), from_levels(levels, images, unit), images)  # what stays, stays bit for bit
    if not any(name in names for name in _MOVES):
      return {**batch, 'inputs': colored}
    moved = ~(matrix == jnp.eye(3)[None]).all((1, 2))
    rows, columns = _sources(matrix, height, width)
    warped = _bilinear(colored, rows, columns, value)

    def follow(labels: jax.Array) -> jax.Array:
      return jnp.where(_each(moved, labels.ndim), _nearest(labels, rows, columns), labels)

    inputs = jnp.where(_each(moved, 4), warped, colored)
    return {**batch, 'inputs': inputs, **move_labels(batch, 'rand_augment', follow, fills=True)}

  return apply


def _each(flags: jax.Array, ndim: int) -> jax.Array:
  return flags.reshape(-1, *[1] * (ndim - 1))


def _is(place: jax.Array, name: str) -> jax.Array:
  return place == OPERATIONS.index(name)


def _tabled(levels: jax.Array, place: jax.Array, sign: jax.Array, strength: float, names: Sequence[str]) -> jax.Array:
  """Changes pixels by their own value, through a table of 256 levels for each image and channel."""
  if not names:
    return levels
  ramp = jnp.arange(256.0)[None, None]
  factor = (1 + 0.9 * strength * sign)[:, None, None]
  table = jnp.broadcast_to(ramp, (len(levels), levels.shape[-1], 256))
  if 'brightness' in names:
    table = jnp.where(_each(_is(place, 'brightness'), 3), ramp * factor, table)
  if 'contrast' in names:
    mean = gray_of(levels).mean((1, 2, 3)).reshape(-1, 1, 1)
    table = jnp.where(_each(_is(place, 'contrast'), 3), mean + (ramp - mean) * factor, table)
  if 'posterize' in names:
    step = 2.0 ** round(4 * strength)
    table = jnp.where(_each(_is(place, 'posterize'), 3), jnp.floor(ramp / step) * step, table)
  if 'solarize' in names:
    threshold = 255 * (1 - strength)
    table = jnp.where(_each(_is(place, 'solarize'), 3), jnp.where(ramp >= threshold, 255 - ramp, ramp), table)
  if 'invert' in names:
    table = jnp.where(_each(_is(place, 'invert'), 3), 255 - ramp, table)
  if 'autocontrast' in names:
    low, high = levels.min((1, 2))[..., None], levels.max((1, 2))[..., None]
    stretched = jnp.where(high > low, (ramp - low) * (255 / jnp.maximum(high - low, 1e-6)), ramp)
    table = jnp.where(_each(_is(place, 'autocontrast'), 3), stretched, table)
  if 'equalize' in names:
    table = jnp.where(_each(_is(place, 'equalize'), 3), _equalized(levels), table)
  table = jnp.clip(table, 0, 255)
  below = jnp.clip(jnp.floor(levels), 0, 255).astype(jnp.int32)
  share = levels - below.astype(levels.dtype)
  flat = below.reshape(len(levels), math.prod(levels.shape[1:3]), levels.shape[-1]).swapaxes(1, 2)
  at = jnp.take_along_axis(table, flat, 2)
  after = jnp.take_along_axis(table, jnp.minimum(flat + 1, 255), 2)
  at, after = (one.swapaxes(1, 2).reshape(levels.shape) for one in (at, after))
  read = jnp.where(share == 0, at, at + share * (after - at))
  named = jnp.zeros(len(levels), bool)
  for name in names:
    named |= _is(place, name)
  return jnp.where(_each(named, 4), read, levels)


def _equalized(levels: jax.Array) -> jax.Array:
  """The table that spreads each channel's levels evenly, as Pillow's `ImageOps.equalize` does, [B, C, 256]."""
  count, height, width, channels = levels.shape
  flat = jnp.clip(jnp.round(levels), 0, 255).astype(jnp.int32).reshape(count, height * width, channels).swapaxes(1, 2)
  bins = flat + 256 * jnp.arange(count * channels).reshape(count, channels, 1)
  counts = jnp.zeros(count * channels * 256, jnp.int32).at[bins.reshape(-1)].add(1).reshape(count, channels, 256)
  last = 255 - jnp.argmax(counts[..., ::-1] > 0, axis=-1)
  step = (counts.sum(-1) - jnp.take_along_axis(counts, last[..., None], -1)[..., 0]) // 255
  before = jnp.cumsum(counts, -1) - counts
  spread = (before + (step // 2)[..., None]) // jnp.maximum(step, 1)[..., None]
  return jnp.where((step > 0)[..., None], jnp.clip(spread, 0, 255), jnp.arange(256)[None, None]).astype(jnp.float32)


def _blended(levels: jax.Array, place: jax.Array, sign: jax.Array, strength: float, names: Sequence[str]) -> jax.Array:
  """Moves pixels away from their gray, or from their neighbors."""
  factor = (1 + 0.9 * strength * sign)[:, None, None, None]
  if 'saturation' in names and levels.shape[-1] == 3:
    gray = gray_of(levels)
    levels = jnp.where(_each(_is(place, 'saturation'), 4), jnp.clip(gray + (levels - gray) * factor, 0, 255), levels)
  if 'sharpness' in names and min(levels.shape[1:3]) > 2:
    kernel = jnp.asarray(np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13, jnp.float32)
    smooth = sum(
      kernel[row, column] * levels[:, row : levels.shape[1] - 2 + row, column : levels.shape[2] - 2 + column]
      for row in range(3)
      for column in range(3)
    )
    smooth = levels.at[:, 1:-1, 1:-1].set(smooth)
    sharp = jnp.clip(smooth + (levels - smooth) * factor, 0, 255)
    levels = jnp.where(_each(_is(place, 'sharpness'), 4), sharp, levels)
  return levels


def _move(place: jax.Array, sign: jax.Array, strength: float, height: int, width: int) -> jax.Array:
  """The matrix of a move, [B, 3, 3], on (row, column, 1) around the middle; the identity where none was drawn."""
  angle = jnp.where(_is(place, 'rotate'), sign * math.radians(30) * strength, 0.0)
  shear = sign * 0.3 * strength
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  zero, one = jnp.zeros_like(sign), jnp.ones_like(sign)
  across = jnp.where(_is(place, 'shear_x'), shear, 0.0)
  down = jnp.where(_is(place, 'shear_y'), shear, 0.0)
  right = jnp.where(_is(place, 'translate_x'), jnp.round(sign * 0.45 * strength * width), 0.0)
  below = jnp.where(_is(place, 'translate_y'), jnp.round(sign * 0.45 * strength * height), 0.0)
  return jnp.stack([cos, sin + down, below, across - sin, cos, right, zero, zero, one], -1).reshape(-1, 3, 3)


def _sources(matrix: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
  """Where each new pixel is read, (rows, columns) float32 [B, H, W]."""
  middle = (height - 1) / 2, (width - 1) / 2
  down, across = (jnp.arange(size, dtype=jnp.float32) for size in (height, width))
  row, column = jnp.meshgrid(down - middle[0], across - middle[1], indexing='ij')
  row, column = row[None], column[None]
  entry = [[matrix[:, i, j, None, None] for j in range(3)] for i in range(2)]
  return (
    entry[0][0] * row + entry[0][1] * column + entry[0][2] + middle[0],
    entry[1][0] * row + entry[1][1] * column + entry[1][2] + middle[1],
  )


def _read(images: jax.Array, rows: jax.Array, columns: jax.Array, value: Any) -> jax.Array:
  """Pixels at whole places, `value` outside."""
  height, width = images.shape[1:3]
  inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
  flat = images.reshape(len(images), height * width, *images.shape[3:])
  index = jnp.clip(rows, 0, height - 1) * width + jnp.clip(columns, 0, width - 1)
  index = index.reshape(len(images), math.prod(rows.shape[1:]))
  found = jax.vmap(lambda one, at: one[at])(flat, index).reshape(*rows.shape, *images.shape[3:])
  return jnp.where(inside.reshape(*inside.shape, *[1] * (images.ndim - 3)), found, value)


def _bilinear(images: jax.Array, rows: jax.Array, columns: jax.Array, value: jax.Array) -> jax.Array:
  top, left = jnp.floor(rows), jnp.floor(columns)
  down, right = (rows - top)[..., None], (columns - left)[..., None]
  top, left = top.astype(jnp.int32), left.astype(jnp.int32)

  def at(row: int, column: int) -> jax.Array:
    return _read(images, top + row, left + column, value).astype(jnp.float32)

  upper = at(0, 0) * (1 - right) + at(0, 1) * right
  lower = at(1, 0) * (1 - right) + at(1, 1) * right
  found = upper * (1 - down) + lower * down
  return (jnp.round(found) if jnp.issubdtype(images.dtype, jnp.integer) else found).astype(images.dtype)


def _nearest(labels: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
  return _read(labels, jnp.round(rows).astype(jnp.int32), jnp.round(columns).astype(jnp.int32), NOTHING)
