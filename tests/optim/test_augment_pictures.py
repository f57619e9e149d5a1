"""Random crops, colors, RandAugment, SpecAugment: Pillow and NumPy as oracles, labels that move with their pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxlite.optim import (
  OPERATIONS,
  augment,
  color_jitter,
  crop,
  flip,
  rand_augment,
  random_resized_crop,
  shift,
  spec_augment,
)
from jaxlite.optim import _rand_augment as rand

pytestmark = pytest.mark.unoptimized

COARSE = np.random.default_rng(0).integers(0, 256, (6, 7, 3)).astype(np.uint8)
PICTURE = Image.fromarray(COARSE).resize((20, 16), Image.Resampling.BICUBIC)
IMAGES = np.stack([np.asarray(PICTURE)] * 4)
KEY = jax.random.key(0)
ALL = {
  'crop': random_resized_crop(),
  'jitter': color_jitter(0.4, 0.4, 0.4, 0.1, white=255),
  'rand': rand_augment(2, 9, white=255),
}


def oracle(name):
  enhance = {'brightness': 'Brightness', 'contrast': 'Contrast', 'saturation': 'Color', 'sharpness': 'Sharpness'}
  if name in enhance:
    return getattr(ImageEnhance, enhance[name])(PICTURE).enhance(1.81)
  return {
    'posterize': lambda: ImageOps.posterize(PICTURE, 4),
    'solarize': lambda: ImageOps.solarize(PICTURE, 26),
    'autocontrast': lambda: ImageOps.autocontrast(PICTURE),
    'equalize': lambda: ImageOps.equalize(PICTURE),
    'invert': lambda: ImageOps.invert(PICTURE),
  }[name]()


@jax.jit
def changed(place):
  levels, one = jnp.asarray(IMAGES, jnp.float32), jnp.ones(4)
  levels = rand._tabled(levels, place, one, 0.9, rand._TABLES)
  return jnp.round(rand._blended(levels, place, one, 0.9, rand._BLENDS))


@pytest.mark.parametrize('name', [*rand._TABLES, *rand._BLENDS])
def test_changes_of_color_are_those_of_pillow(name):
  got = np.asarray(changed(jnp.full(4, OPERATIONS.index(name))))[0]
  assert np.abs(got - np.asarray(oracle(name), float)).max() <= 1  # Pillow cuts fractions off


@jax.jit
def moved(place, strength):
  height, width = IMAGES.shape[1:3]
  move = rand._move(place, jnp.ones(1), strength, height, width)
  return move, rand._bilinear(jnp.asarray(IMAGES[:1]), *rand._sources(move, height, width), jnp.uint8(0))


@pytest.mark.parametrize('name, strength', [('translate_x', 5), ('translate_y', 5), ('rotate', 10), ('shear_x', 9)])
def test_moves_are_those_of_pillow(name, strength):
  height, width = IMAGES.shape[1:3]
  move, got = (np.asarray(one)[0] for one in moved(jnp.full(1, OPERATIONS.index(name)), strength / 10))
  (a, b, c), (d, e, f) = move[:2]
  row, column = (height - 1) / 2, (width - 1) / 2  # Pillow counts from corners, x first, and pixels by their middle
  x = e, d, f + column - e * column - d * row + 0.5 - 0.5 * (e + d)
  y = b, a, c + row - b * column - a * row + 0.5 - 0.5 * (b + a)
  wanted = np.asarray(PICTURE.transform((width, height), Image.Transform.AFFINE, (*x, *y), Image.Resampling.BILINEAR))
  inside = (wanted > 0).all(-1) & (got > 0).all(-1)
  assert inside.mean() > 0.4
  assert np.percentile(np.abs(got.astype(int) - wanted)[inside], 95) <= 2


@pytest.mark.parametrize('name', ALL)
def test_dtype_shape_and_bits_depend_on_key_and_batch_alone(name):
  run = jax.jit(lambda key, inputs: ALL[name](key, {'inputs': inputs, 'labels': jnp.zeros(4, int)})['inputs'])
  bright = jnp.asarray(IMAGES)
  one, two, other = run(KEY, bright), run(KEY, bright), run(jax.random.key(1), bright)
  assert (one.shape, one.dtype) == (bright.shape, bright.dtype)
  assert (one == two).all()
  assert (one != other).any()
  assert (one[0] != one[1]).any()  # each example draws its own
  assert jax.eval_shape(run, KEY, bright.astype(jnp.bfloat16)).dtype == jnp.bfloat16
  if name == 'jitter':
    floats = run(KEY, bright.astype(jnp.float32))
    assert np.percentile(np.abs(np.asarray(floats) - np.asarray(one, np.float32)), 95) <= 2


def test_floats_have_their_own_white():
  images = jnp.asarray(IMAGES, jnp.float32)
  unit, full = (
    jax.jit(color_jitter(0.5, white=white))(KEY, {'inputs': images * (white / 255)})['inputs'] for white in (1.0, 255)
  )
  np.testing.assert_allclose(unit * 255, full, atol=0.01)
  for make in (lambda white: color_jitter(0.5, white=white), lambda white: rand_augment(white=white)):
    with pytest.raises(ValueError, match=r'floats do not tell their white; .* give white=1.0'):
      jax.eval_shape(make(None), KEY, {'inputs': jnp.ones((2, 8, 8, 3))})
    with pytest.raises(ValueError, match='the white of uint8 is 255'):
      jax.eval_shape(make(1.0), KEY, {'inputs': jnp.ones((2, 8, 8, 3), jnp.uint8)})


def test_a_box_of_the_whole_image_is_the_image():
  run = jax.jit(random_resized_crop(scale=(1, 1), ratio=(1.25, 1.25)))
  got = run(KEY, {'inputs': jnp.asarray(IMAGES)})['inputs']
  np.testing.assert_array_equal(got, IMAGES)
  run = jax.jit(random_resized_crop((8, 10), scale=(1, 1), ratio=(1.25, 1.25)))
  small = run(KEY, {'inputs': jnp.asarray(IMAGES)})['inputs']
  wanted = np.asarray(PICTURE.resize((10, 8), Image.Resampling.BILINEAR), int)
  assert np.abs(np.asarray(small[0], int) - wanted).max() <= 1


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
  'fn',
  [flip(), shift(3), crop(3), random_resized_crop(scale=(0.3, 1)), rand_augment(2, 9, operations=rand._MOVES)],
  ids=['flip', 'shift', 'crop', 'resized', 'moves'],
)
def test_labels_of_pixels_move_with_them_and_the_weight_counts_those_that_are_left(fn):
  labels = np.kron(np.random.default_rng(1).integers(0, 4, (8, 4, 5)), np.ones((4, 4), int))
  batch = {
    'inputs': jnp.asarray(labels[..., None] * 60 + 10, jnp.uint8),
    'labels': jnp.asarray(labels, jnp.int32),
    'weight': jnp.full(8, float(labels[0].size)),
  }
  got = jax.jit(fn)(KEY, batch)
  assert (got['inputs'] != batch['inputs']).any()
  seen, told = np.asarray(got['inputs'][..., 0], int), np.asarray(got['labels'])
  assert told.dtype == np.int32
  sharp = (seen - 10) % 60 == 0
  agree = (seen - 10 == told * 60)[sharp & (told >= 0)]
  assert agree.mean() > 0.97
  assert sharp.mean() > 0.4
  np.testing.assert_allclose(got['weight'], (told >= 0).sum((1, 2)), rtol=1e-6)


def test_labels_on_another_grid_are_refused():
  batch = {'inputs': jnp.ones((2, 8, 8, 3), jnp.uint8), 'labels': jnp.zeros((2, 4, 4), int)}
  for fn in (flip(), shift(1), crop(1), random_resized_crop(), rand_augment()):
    with pytest.raises(ValueError, match='are not those of the inputs'):
      jax.eval_shape(fn, KEY, batch)
  with pytest.raises(ValueError, match='no value for that'):
    jax.eval_shape(shift(1), KEY, {**batch, 'labels': jnp.zeros((2, 8, 8))})


def test_stretches_and_bands_are_blanked_and_nothing_else():
  sound = jnp.asarray(np.random.default_rng(2).normal(size=(40, 30, 16)), jnp.float32)
  got = jax.jit(spec_augment(times=1, longest=6, bands=1, widest=3, fill=9.0))(KEY, {'inputs': sound})['inputs']
  blank = np.asarray(got == 9)
  assert (np.asarray(got)[~blank] == np.asarray(sound)[~blank]).all()
  times, bands = blank.all(2).sum(1), blank.all(1).sum(1)
  assert set(times) == set(range(7))
  assert set(bands) == set(range(4))
  assert (blank == (blank.all(2)[:, :, None] | blank.all(1)[:, None, :])).all()
  mean = jax.jit(spec_augment(longest=6))(KEY, {'inputs': sound[..., None]})['inputs'][..., 0]
  changed = np.asarray(mean != sound)
  np.testing.assert_allclose(
    np.asarray(mean)[changed], np.broadcast_to(sound.mean((1, 2), keepdims=True), sound.shape)[changed], rtol=1e-3
  )


@pytest.mark.parametrize(
  'make, said',
  [
    (lambda: color_jitter(), 'changes something'),
    (lambda: color_jitter(hue=0.7), 'hue is 0 to 0.5'),
    (lambda: color_jitter(-1), 'brightness is 0 or above'),
    (lambda: rand_augment(0), 'layers'),
    (lambda: rand_augment(2, 11), 'magnitude is 0 to 10'),
    (lambda: rand_augment(operations=['rotat']), 'nearest: rotate'),
    (lambda: rand_augment(operations=[]), 'got none'),
    (lambda: random_resized_crop(scale=(0, 1)), 'scale is'),
    (lambda: random_resized_crop(ratio=(2, 1)), 'ratio is'),
    (lambda: spec_augment(times=0, bands=0), 'blanks something'),
    (lambda: spec_augment(longest=99)(KEY, {'inputs': jnp.ones((2, 30, 16))}), 'at most the 30'),
    (lambda: spec_augment()(KEY, {'inputs': jnp.ones((2, 30, 16), jnp.uint8)}), 'works on floats'),
    (lambda: spec_augment()(KEY, {'inputs': jnp.ones((2, 30))}), 'works on spectrograms'),
    (lambda: color_jitter(hue=0.1)(KEY, {'inputs': jnp.ones((2, 8, 8, 1), jnp.uint8)}), 'saturation and hue of 1'),
    (lambda: color_jitter(0.1)(KEY, {'inputs': jnp.ones((2, 8, 8, 3), jnp.int32)}), 'uint8 or floats'),
    (
      lambda: rand_augment(operations=['saturation'])(KEY, {'inputs': jnp.ones((2, 8, 8, 1), jnp.uint8)}),
      'gray or RGB',
    ),
  ],
)
def test_what_cannot_be_meant_is_refused(make, said):
  with pytest.raises(ValueError, match=said) as caught:
    make()
  assert '\n' not in str(caught.value)


def test_they_stand_in_a_recipe():
  hook = augment(random_resized_crop(), color_jitter(0.2), rand_augment())
  seen = []
  grad = hook.grad(lambda params, state, batch, key, step: seen.append(batch) or (params, state, {}))
  jax.eval_shape(lambda batch: grad({}, {}, batch, KEY, 3), {'inputs': IMAGES, 'labels': np.zeros(4, int)})
  assert seen[0]['inputs'].shape == IMAGES.shape
