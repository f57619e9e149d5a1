"""What augmentations ask of a batch: one array of images, a fill that its pixels hold, labels that move with pixels.

Labels [B, H, W, ...] of the images' own height and width have one for each pixel: whatever moves pixels moves them
alike, by the same draw, and never blends them. What comes in from outside has no label, -1, and the example then
counts by the positions that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import contract

NOTHING = -1  # the label of a pixel that has none


def field(batch: contract.Batch, name: str, what: str) -> jax.Array:
  """Returns one array of a batch, or raises."""
  if name not in batch:
    raise ValueError(f'{what} needs {name!r} in the batch; it has {", ".join(batch)}')
  if not hasattr(batch[name], 'shape'):
    raise ValueError(f'{what} works on one array; {name} are a {type(batch[name]).__name__}: write one for these')
  return jnp.asarray(batch[name])


def images_of(batch: contract.Batch, what: str, *, below: int = 0) -> jax.Array:
  """Returns the inputs of a batch, [B, H, W, C], or raises where they are no images or smaller than `below`."""
  images = field(batch, 'inputs', what)
  if images.ndim != 4:
    raise ValueError(f'{what} works on images [B, H, W, C]; inputs are {list(images.shape)}: leave it out for these')
  if below >= min(images.shape[1:3]) > 0:
    raise ValueError(f'{what} stays within the image; it reaches {below} pixels of {list(images.shape[1:3])}: lower it')
  return images


def has_pixel_labels(batch: contract.Batch) -> bool:
  """Whether there is a label for each pixel: they have the images' height and width."""
  labels = getattr(batch.get('labels'), 'shape', ())
  return len(labels) > 2 and tuple(labels[1:3]) == tuple(batch['inputs'].shape[1:3])


def move_labels(
  batch: contract.Batch, what: str, move: Callable[[jax.Array], jax.Array], *, fills: bool = False
) -> dict[str, jax.Array]:
  """Returns the labels of a batch moved as its pixels are, and the weight that is left; nothing where they stay.

  Args:
    batch: whose inputs are images.
    what: moves, for errors.
    move: [B, H, W, ...] -> [B, H, W, ...]; a label that it brings in from outside is -1.
    fills: whether it brings any in.

  Raises:
    ValueError: labels have positions that are not the pixels; it brings some in, and labels are no whole numbers, so
      that none of them says "no label".
  """
  if not has_pixel_labels(batch):
    shape = getattr(batch.get('labels'), 'shape', ())
    if len(shape) > 2:
      raise ValueError(
        f'{what} moves pixels, and labels {list(shape)} have positions that are not those of the '
        f'inputs {list(batch["inputs"].shape)}: they would stay, leave it out'
      )
    return {}
  labels = jnp.asarray(batch['labels'])
  counts = jnp.issubdtype(labels.dtype, jnp.signedinteger)
  if fills and not counts:
    raise ValueError(
      f'{what} brings in pixels without a label, and labels {labels.dtype}{list(labels.shape)} have no value for that: '
      'leave it out'
    )
  moved = move(labels)
  if not counts or 'weight' not in batch:
    return {'labels': moved}
  axes = tuple(range(1, labels.ndim))
  before, after = ((one >= 0).sum(axes).astype(jnp.float32) for one in (labels, moved))
  weight = jnp.asarray(batch['weight'])
  return {'labels': moved, 'weight': weight * jnp.where(before > 0, after / jnp.maximum(before, 1), 1)}


def fill_of(fill: float | Sequence[float], images: jax.Array, what: str) -> jax.Array:
  """Returns a fill in the images' dtype, [] or [C]."""
  value = np.asarray(fill, np.float64)
  if value.shape not in ((), (images.shape[-1],)):
    raise ValueError(f'{what}: fill is one number or one per channel; got {list(value.shape)} for {images.shape[-1]}')
  if jnp.issubdtype(images.dtype, jnp.integer):
    info = jnp.iinfo(images.dtype)
    value = np.round(value)
    if not ((value >= info.min) & (value <= info.max)).all():  # NaN neither
      raise ValueError(f'{what}: fill fits the pixels, {info.min} to {info.max}; got {fill}: give it in raw pixels')
  return jnp.asarray(value, images.dtype)


def real(batch: contract.Batch) -> jax.Array:
  """bool [B]: which examples are no padding."""
  weight = batch.get('weight')
  return jnp.ones(len(batch['labels']), bool) if weight is None else jnp.asarray(weight) > 0


def as_levels(images: jax.Array, white: float | None, what: str) -> tuple[jax.Array, float]:
  """Returns images as float32 in 0 to 255, and what one level is in their own units.

  Raises:
    ValueError: floats whose white is not told.
  """
  if images.dtype == jnp.uint8:
    if white not in (None, 255):
      raise ValueError(f'{what}: the white of uint8 is 255; got white={white}: leave it out')
    return images.astype(jnp.float32), 1.0
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(f'{what} changes colors of uint8 or floats; inputs are {images.dtype}: leave it out for these')
  if white is None or not white > 0:
    raise ValueError(f'{what}: floats do not tell their white; got white={white}: give white=1.0, or 255')
  return images.astype(jnp.float32) * (255 / white), white / 255


def from_levels(levels: jax.Array, images: jax.Array, unit: float) -> jax.Array:
  """Returns levels, 0 to 255, in the units and dtype of `images`, cut off at black and white."""
  levels = jnp.clip(levels, 0, 255)
  return (jnp.round(levels) if images.dtype == jnp.uint8 else levels * unit).astype(images.dtype)


def gray_of(levels: jax.Array) -> jax.Array:
  """Returns luma (ITU-R 601-2), [B, H, W, 1], of [B, H, W, 1 or 3]."""
  if levels.shape[-1] == 1:
    return levels
  red, green, blue = (levels[..., channel : channel + 1] for channel in range(3))
  return red * 0.299 + green * 0.587 + blue * 0.114
