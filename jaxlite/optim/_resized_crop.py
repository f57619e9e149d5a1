"""Cutting a box of random size and shape out of each picture and scaling it back, on the device."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite import contract
from jaxlite.errors import number, whole
from jaxlite.optim._augment_batch import from_levels, images_of, move_labels


def random_resized_crop(
  size: int | tuple[int, int] | None = None,
  *,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Any:
  """Cuts a box out of each image, of random area, shape and place, and scales it to one size.

  Args:
    size: height and width of what comes out, or one number for both; None keeps the images' own.
    scale: the box's share of the image's area, drawn evenly; in (0, 1].
    ratio: its width over its height, drawn evenly on a log scale; a side that would be longer than the image's is cut.

  Returns:
    (key, batch) -> batch, for inputs [B, H, W, C], of the same dtype: [B, *size, C]. Boxes lie between pixels; scaling
    is bilinear, over all pixels that a new one covers. Labels that have one for each pixel take the nearest one of the
    same box.

  Raises:
    ValueError: an argument is out of range; inputs are no images.

  References:
    Szegedy et al., Going Deeper with Convolutions, 2014, https://arxiv.org/abs/1409.4842

  >>> batch = {'inputs': jnp.ones((2, 8, 8, 3), jnp.uint8)}
  >>> jax.jit(random_resized_crop(4))(jax.random.key(0), batch)['inputs'].shape
  (2, 4, 4, 3)
  """
  scale = tuple(number(one, 'random_resized_crop: scale') for one in scale)
  ratio = tuple(number(one, 'random_resized_crop: ratio') for one in ratio)
  for name, pair, most in (('scale', scale, 1.0), ('ratio', ratio, math.inf)):
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most or not math.isfinite(pair[1]):
      raise ValueError(
        f'random_resized_crop: {name} is (least, most) above 0{" up to 1" if most == 1 else ""}; got {pair}'
      )
  if size is not None:
    sides = size if isinstance(size, tuple) else (size, size)
    size = (whole(sides[0], 'size', least=1), whole(sides[1], 'size', least=1))

  def apply(key: jax.Array, batch: contract.Batch) -> dict[str, Any]:
    images = images_of(batch, 'random_resized_crop')
    count, height, width, _ = images.shape
    tall, wide = size or (height, width)
    areas, shapes, places = jax.random.split(key, 3)
    area = jax.random.uniform(areas, (count,), minval=scale[0], maxval=scale[1]) * (height * width)
    shape = jnp.exp(jax.random.uniform(shapes, (count,), minval=math.log(ratio[0]), maxval=math.log(ratio[1])))
    box = jnp.stack([jnp.minimum(jnp.sqrt(area / shape), height), jnp.minimum(jnp.sqrt(area * shape), width)], -1)
    corner = jax.random.uniform(places, (count, 2)) * (jnp.array([[height, width]], jnp.float32) - box)

    def scaled(image: jax.Array, box: jax.Array, corner: jax.Array) -> jax.Array:
      factor = jnp.array([tall, wide], jnp.float32) / box
      out = (tall, wide, image.shape[-1])
      return jax.image.scale_and_translate(
        image.astype(jnp.float32), out, (0, 1), factor, -corner * factor, 'linear', precision=jax.lax.Precision.HIGHEST
      )

    def nearest(old: jax.Array) -> jax.Array:
      def along(axis: int, new: int, most: int) -> jax.Array:
        place = corner[:, axis, None] + (jnp.arange(new, dtype=jnp.float32) + 0.5)[None] * box[:, axis, None] / new
        return jnp.clip(place.astype(jnp.int32), 0, most - 1)

      rows, columns = along(0, tall, height), along(1, wide, width)
      return jax.vmap(lambda one, row, column: one[row][:, column])(old, rows, columns)

    made = jax.vmap(scaled)(images, box, corner)
    if jnp.issubdtype(images.dtype, jnp.integer):
      made = from_levels(made, images, 1.0) if images.dtype == jnp.uint8 else jnp.round(made).astype(images.dtype)
    return {
      **batch,
      'inputs': made.astype(images.dtype),
      **move_labels(batch, 'random_resized_crop', nearest, fills=True),
    }

  return apply
