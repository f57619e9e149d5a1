"""Folders of small pictures for tests: textures whose brightness tells their class, in any format."""

import io

import numpy as np
from PIL import Image


def texture(rng, height=20, width=24, bright=0.0):
  """uint8 [height, width, 3]: smooth, so that JPEG and scaling keep it."""
  coarse = rng.normal(100 + 60 * bright, 30, (4, 5, 3))
  image = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
  return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def write(folder, count=40, classes=2, form='png', seed=0, **size):
  """Writes `count` pictures into class folders 'c0', 'c1', ... in turn; returns the folder."""
  rng = np.random.default_rng(seed)
  for number in range(count):
    place = folder / f'c{number % classes}'
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray(texture(rng, bright=number % classes, **size)).save(place / f'{number:03d}.{form}')
  return folder


def saved(image, form, **options):
  """The bytes of an image or an array as a file."""
  image = image if isinstance(image, Image.Image) else Image.fromarray(image)
  out = io.BytesIO()
  image.save(out, form, **options)
  return out.getvalue()
