"""Augmentation on the device: pure functions `(key, batch) -> batch`, and the hook that puts them in a recipe.

Each factory gives one such function. It draws anew for each example, depends on the key and the batch alone,
keeps the dtype (but for `mixup`, which needs fractions) and runs under jit, vmap and scan. Whatever else stands
in the batch is handed through. Pixels stay raw: 0 .. 255 for uint8; models normalize. Labels that have one for
each pixel move with the pixels (`_augment_batch.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite import contract
from jaxlite.errors import number, whole
from jaxlite.optim._augment_batch import NOTHING, field, fill_of, images_of, move_labels, real

Augmentation = Callable[[jax.Array, contract.Batch], dict[str, Any]]


def augment(*fns: Augmentation, name: str = 'augment') -> contract.Hook:
  """Augments every training batch, function after function, before its gradient is taken.

  Args:
    *fns: `(key, batch) -> batch`, as the factories of this file give them.
    name: the hook's; it also seeds the functions' streams.

  Returns:
    A Hook. Left of `accumulate` it sees the whole batch, right of it each micro-batch. Labels of pixels move with them;
    labels that are coordinates, such as boxes [B, 4], do not: move these by a function of your own.

  Raises:
    ValueError: no function is given.
    TypeError: one is not callable, or returns no batch.

  >>> hook = augment(flip(), shift(2))
  >>> hook.name
  'augment'
  """
  if not fns:
    raise ValueError('augment needs a function at least: give flip(), shift(2) or your own (key, batch) -> batch')
  for index, fn in enumerate(fns):
    if not callable(fn):
      raise TypeError(f'augment takes functions (key, batch) -> batch; argument {index} is {type(fn).__name__}')

  def wrap(inner: contract.Grad) -> contract.Grad:
    def grad(params: Any, model_state: Any, batch: contract.Batch, key: Any, step: Any) -> Any:
      if key is None:
        raise ValueError(f'{name} draws at random and got no key: give the step a root key')
      for index, fn in enumerate(fns):
        batch = fn(contract.stream(key, f'{name}/{index}', step), batch)
        if not isinstance(batch, Mapping) or 'inputs' not in batch:
          raise TypeError(f'{name}: function {index} returns a batch, a dict with inputs; got {type(batch).__name__}')
      return inner(params, model_state, batch, key, step)

    return grad

  return contract.Hook(name, grad=wrap)


def flip(*, probability: float = 0.5) -> Augmentation:
  """Mirrors images left to right.

  Args:
    probability: of each image to be mirrored, 0 .. 1.

  Returns:
    (key, batch) -> batch, for inputs [B, H, W, C] of any dtype.

  Raises:
    ValueError: probability is outside 0 .. 1; inputs are no images.

  >>> batch = {'inputs': jnp.array([[[[1], [2]]]])}
  >>> flip(probability=1.0)(jax.random.key(0), batch)['inputs'].ravel().tolist()
  [2, 1]
  """
  probability = number(probability, 'flip: probability')
  if not 0 <= probability <= 1:
    raise ValueError(f'a probability is 0 to 1; flip got {probability}')

  def apply(key: jax.Array, batch: contract.Batch) -> dict[str, Any]:
    images = images_of(batch, 'flip')
    mirrored = jax.random.bernoulli(key, probability, (len(images),))

    def move(pixels: jax.Array) -> jax.Array:
      return jnp.where(mirrored.reshape(-1, *[1] * (pixels.ndim - 1)), pixels[:, :, ::-1], pixels)

    return {**batch, 'inputs': move(images), **move_labels(batch, 'flip', move)}

  return apply


def shift(pixels: int, *, fill: float | Sequence[float] = 0) -> Augmentation:
  """Moves images up to `pixels` up or down and left or right, each distance as likely as any other.

  Args:
    pixels: the farthest move along either axis, below the image's height and width.
    fill: what comes in at the border: one number, or one per channel.

  Returns:
    (key, batch) -> batch, for inputs [B, H, W, C] of any dtype. The same as cropping the padded image.

  Raises:
    ValueError: pixels is negative or moves the image out of sight; fill does not fit the dtype.

  >>> batch = {'inputs': jnp.ones((2, 4, 4, 1), jnp.uint8)}
  >>> shift(1)(jax.random.key(0), batch)['inputs'].shape
  (2, 4, 4, 1)
  """
  whole(pixels, 'shift', least=0)

  def apply(key: jax.Array, batch: contract.Batch) -> dict[str, Any]:
    images = images_of(batch, 'shift', below=pixels)
    value = fill_of(fill, images, 'shift')
    border = [(pixels, pixels), (pixels, pixels)]
    inside = jnp.pad(jnp.ones(images.shape[1:3], bool), border)

    def move(old: jax.Array, value: Any = NOTHING) -> jax.Array:
      padded = jnp.pad(old, [(0, 0), *border, *[(0, 0)] * (old.ndim - 3)])
      # jnp.pad knows one value only, not one per channel
      padded = jnp.where(inside.reshape(1, *inside.shape, *[1] * (old.ndim - 3)), padded, value)
      return _windows(key, padded, old.shape, pixels)

    return {**batch, 'inputs': move(images, value), **move_labels(batch, 'shift', move, fills=True)}

  return apply


def crop(padding: int) -> Augmentation:
  """Mirrors images outwards at their borders by `padding` pixels and cuts the old size out anywhere.

  As `shift`, but what comes in continues the picture: better for photographs, whose borders are not empty.

  Args:
    padding: pixels on each side, below the image's height and width.

  Returns:
    (key, batch) -> batch, for inputs [B, H, W, C] of any dtype.

  Raises:
    ValueError: padding is negative or not below the image's size.

  References:
    He et al., Deep Residual Learning for Image Recognition, 2015, https://arxiv.org/abs/1512.03385 (there with zeros).

  >>> batch = {'inputs': jnp.ones((2, 4, 4, 1), jnp.uint8)}
  >>> crop(2)(jax.random.key(0), batch)['inputs'].min().item()
  1
  """
  whole(padding, 'crop', least=0)

  def apply(key: jax.Array, batch: contract.Batch) -> dict[str, Any]:
    images = images_of(batch, 'crop', below=padding)

    def move(old: jax.Array) -> jax.Array:
      border = [(0, 0), (padding, padding), (padding, padding), *[(0, 0)] * (old.ndim - 3)]
      return _windows(key, jnp.pad(old, border, mode='reflect'), old.shape, padding)

    return {**batch, 'inputs': move(images), **move_labels(batch, 'crop', move)}

  return apply


def cutout(size: int, *, fill: float | Sequence[float] = 0) -> Augmentation:
  """Blanks a square of `size` pixels around a random pixel of each image; at a border it is cut off.

  Args:
    size: the square's side, 1 to the smaller side of the image.
    fill: what is put there: one number, or one per channel (the data set's mean is neutral to the model).

  Returns:
    (key, batch) -> batch, for inputs [B, H, W, C] of any dtype.

  Raises:
    ValueError: size is below 1 or larger than the image; fill does not fit the dtype.

  References:
    DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017,
    https://arxiv.org/abs/1708.04552.

  >>> batch = {'inputs': jnp.ones((1, 8, 8, 1))}
  >>> 4 <= 64 - cutout(4)(jax.random.key(0), batch)['inputs'].sum().item() <= 16
  True
  """
  whole(size, 'cutout', least=1)

  def apply(key: jax.Array, batch: contract.Batch) -> dict[str, Any]:
    images = images_of(batch, 'cutout', below=size - 1)
    count, height, width, _ = images.shape
    rows, columns = jax.random.split(key)
    blank = _stretch(rows, count, height, size)[:, :, None] & _stretch(columns, count, width, size)[:, None, :]
    return {**batch, 'inputs': jnp.where(blank[..., None], fill_of(fill, images, 'cutout'), images)}

  return apply


def mixup(alpha: float, classes: int) -> Augmentation:
  """Blends each example with another one, inputs and labels alike, by a share drawn from Beta(alpha, alpha).

  Examples of weight 0 are padding: they stay as they are and no other example is blended with them. The share
  of the example itself is the larger of the two; as each may be either one of a pair, the distribution is the
  published one.

  Args:
    alpha: above 0; small values blend few examples strongly, 1 makes every share equally likely.
    classes: how many classes there are.

  Returns:
    (key, batch) -> batch: inputs float32 of the same shape and units, labels float32 [B, classes] that sum
    to 1, weight blended as the labels are. Labels may come as int [B] or float [B, classes]; one that is no
    class is NaN, so that a loss shows it.

  Raises:
    ValueError: alpha or classes is out of range; labels are of neither kind.

  References:
    Zhang et al., mixup: Beyond Empirical Risk Minimization, 2017, https://arxiv.org/abs/1710.09412.

  >>> batch = {'inputs': jnp.zeros((4, 2)), 'labels': jnp.array([0, 1, 2, 0])}
  >>> jax.jit(mixup(0.2, 3))(jax.random.key(0), batch)['labels'].sum(-1).tolist()
  [1.0, 1.0, 1.0, 1.0]
  """
  alpha = number(alpha, 'mixup: alpha')
  if not (alpha > 0 and math.isfinite(alpha)):
    raise ValueError(f'mixup draws from Beta(alpha, alpha) with alpha above 0; got {alpha}: try 0.2')
  whole(classes, 'mixup: classes', least=1)

  def apply(key: jax.Array, batch: contract.Batch) -> dict[str, Any]:
    inputs = field(batch, 'inputs', 'mixup')
    if jnp.issubdtype(inputs.dtype, jnp.integer) and inputs.dtype != jnp.uint8:
      raise ValueError(
        f'mixup blends numbers; inputs are {inputs.dtype}, taken for ids: leave it out, or make them float32'
      )
    inputs = inputs.astype(jnp.float32)
    labels = _soft(field(batch, 'labels', 'mixup'), classes, real(batch), 'mixup')
    pairs, shares = jax.random.split(key)
    partner = _partners(pairs, real(batch))
    share = _lesser_share(shares, alpha, len(inputs))  # of the partner
    return {**batch, 'inputs': _blend(inputs, partner, share), **_blend_labels(batch, labels, partner, share)}

  return apply


def cutmix(alpha: float, classes: int) -> Augmentation:
  """Pastes a box of another example into each image; the labels are shared by the area that it really covers.

  The box has the image's proportions and a share of its area drawn from Beta(alpha, alpha), its center anywhere;
  what lies beyond the border is cut off, and does not count. Examples of weight 0 are padding: they stay as they
  are, and nothing of them is pasted.

  Args:
    alpha: above 0; 1, as published, makes every share equally likely.
    classes: how many classes there are.

  Returns:
    (key, batch) -> batch: inputs [B, H, W, C] of the same dtype, labels float32 [B, classes] that sum to 1,
    weight shared as the labels are. Labels may come as int [B] or float [B, classes]; one that is no
    class is NaN, so that a loss shows it.

  Raises:
    ValueError: alpha or classes is out of range; labels are of neither kind; inputs are no images.

  References:
    Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, 2019,
    https://arxiv.org/abs/1905.04899.

  >>> batch = {'inputs': jnp.zeros((4, 6, 6, 1), jnp.uint8), 'labels': jnp.array([0, 1, 2, 0])}
  >>> mixed = jax.jit(cutmix(1.0, 3))(jax.random.key(0), batch)
  >>> mixed['inputs'].dtype.name, mixed['labels'].sum(-1).tolist()
  ('uint8', [1.0, 1.0, 1.0, 1.0])
  """
  alpha = number(alpha, 'cutmix: alpha')
  if not (alpha > 0 and math.isfinite(alpha)):
    raise ValueError(f'cutmix draws from Beta(alpha, alpha) with alpha above 0; got {alpha}: try 1')
  whole(classes, 'cutmix: classes', least=1)

  def apply(key: jax.Array, batch: contract.Batch) -> dict[str, Any]:
    images = images_of(batch, 'cutmix')
    labels = _soft(field(batch, 'labels', 'cutmix'), classes, real(batch), 'cutmix')
    count, height, width, _ = images.shape
    pairs, shares, sides, rows, columns = jax.random.split(key, 5)
    partner = _partners(pairs, real(batch))
    lesser = _lesser_share(shares, alpha, count)
    side = jnp.sqrt(jnp.where(jax.random.bernoulli(sides, 0.5, (count,)), lesser, 1 - lesser))[:, None]
    tall = _stretch(rows, count, height, jnp.floor(side * height).astype(jnp.int32))
    wide = _stretch(columns, count, width, jnp.floor(side * width).astype(jnp.int32))
    box = tall[:, :, None, None] & wide[:, None, :, None]
    covered = (tall.sum(1) * wide.sum(1)).astype(jnp.float32) / max(height * width, 1)
    mixed = jnp.where(box, images[partner], images)
    return {**batch, 'inputs': mixed, **_blend_labels(batch, labels, partner, covered)}

  return apply


def _blend(values: jax.Array, partner: jax.Array, share: jax.Array) -> jax.Array:
  # In this form a value blended with itself is bit-equal to itself: padding, and weights of 1.
  return values + share.reshape(-1, *[1] * (values.ndim - 1)) * (values[partner] - values)


def _blend_labels(batch: contract.Batch, labels: jax.Array, partner: jax.Array, share: jax.Array) -> dict[str, Any]:
  blended = {'labels': _blend(labels, partner, share)}
  if 'weight' in batch:
    blended['weight'] = _blend(jnp.asarray(batch['weight']).astype(jnp.float32), partner, share)
  return blended


def _lesser_share(key: jax.Array, alpha: float, count: int) -> jax.Array:
  """Draws min(x, 1 - x) for x from Beta(alpha, alpha), float32 [count], exactly and without a rejection loop.

  If t has Student's distribution with 2 alpha degrees of freedom, (1 + t / sqrt(2 alpha + t^2)) / 2 is such an
  x; and t^2 / (2 alpha) is (u^(-1 / alpha) - 1) cos(2 pi v)^2 for two uniforms. (jax.random.beta is right too;
  its loops take seconds to compile.)

  References:
    Devroye, Random Variate Generation in One Line of Code, Winter Simulation Conference, 1996.
  """
  first, second = jax.random.uniform(key, (2, count))
  power = first ** (1 / alpha)
  tail = (1 - power) * jnp.square(jnp.cos(2 * jnp.pi * second))
  return (1 - jnp.sqrt(tail / (tail + power))) / 2


def _partners(key: jax.Array, real: jax.Array) -> jax.Array:
  """Pairs each real example with another one: the real ones in random order, each with the next, in a ring."""
  count = len(real)
  place = jnp.argsort(jnp.where(real, 0, 1) + jax.random.uniform(key, (count,)))  # uniform < 1: real ones first
  reals = real.sum()
  ring = jnp.arange(count)
  following = jnp.where(ring < reals, (ring + 1) % jnp.maximum(reals, 1), ring)
  return jnp.zeros(count, place.dtype).at[place].set(place[following])


def _soft(labels: jax.Array, classes: int, real: jax.Array, what: str) -> jax.Array:
  if labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer):
    # A label that is no class would be a row of zeros: no loss, and nobody would know.
    known = (labels >= 0) & (labels < classes) | ~real
    return jnp.where(known[:, None], jax.nn.one_hot(labels, classes, dtype=jnp.float32), jnp.nan)
  if labels.ndim == 2 and labels.shape[1] == classes and jnp.issubdtype(labels.dtype, jnp.floating):
    return labels.astype(jnp.float32)
  raise ValueError(f'{what} takes labels int [B] or float [B, {classes}]; got {labels.dtype} {list(labels.shape)}')


def _windows(key: jax.Array, padded: jax.Array, shape: tuple[int, ...], padding: int) -> jax.Array:
  """Cuts one window of an image's size out of each padded image. As slices under vmap it is the fastest form
  on CPU (beside a gather of pixels, products with one-hot matrices, and selects over all offsets)."""
  corners = jax.random.randint(key, (shape[0], 2), 0, 2 * padding + 1)
  return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], *[0] * (len(shape) - 3)), shape[1:]))(
    padded, corners
  )


def _stretch(key: jax.Array, count: int, length: int, size: int | jax.Array) -> jax.Array:
  """bool [count, length]: `size` neighbors (one number, or [count, 1]) around a random place, cut off at the ends."""
  start = jax.random.randint(key, (count, 1), 0, length) - size // 2
  place = jnp.arange(length)[None]
  return (place >= start) & (place < start + size)
