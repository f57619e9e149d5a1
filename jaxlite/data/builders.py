"""TensorFlow Datasets builders that work without TensorFlow. The only file that subclasses anything of theirs.

Pictures are `features.Tensor` of raw bytes: an Image feature compresses each to PNG and back, and a Tensor by
default writes each pixel as a variable-length integer; for pictures of a kilobyte both cost more than they save.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxlite.data import cache, splits

_CLOTHES = ('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot')


class _Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Gray pictures with labels, from arrays that are read when they are needed and not before."""

  VERSION = tfds.core.Version(cache.VERSION)
  PICTURE: tuple[int, int, int]
  NAMES: tuple[str, ...]
  ABOUT: str

  def __init__(self, *, read: Callable[[], dict[str, tuple[np.ndarray, np.ndarray]]], **options: Any):
    self._read = read
    super().__init__(**options)

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      {
        'image': tfds.features.Tensor(shape=self.PICTURE, dtype=np.uint8, encoding='bytes'),
        'label': tfds.features.ClassLabel(names=self.NAMES),
      }
    )
    return tfds.core.DatasetInfo(
      builder=self, description=self.ABOUT, features=features, supervised_keys=('image', 'label')
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    return {where: self._generate_examples(*pair) for where, pair in self._read().items()}

  def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
      yield index, {'image': image, 'label': label}


class Digits(_Pictures, skip_registration=True):
  name = 'digits'
  PICTURE = (8, 8, 1)
  NAMES = tuple('0123456789')
  ABOUT = '1,797 handwritten digits of 8x8 pixels (UCI Optical Recognition of Handwritten Digits, test part).'


class FashionMnist(_Pictures, skip_registration=True):
  name = 'fashion_mnist'
  PICTURE = (28, 28, 1)
  NAMES = _CLOTHES
  ABOUT = '70,000 pictures of clothes, 28x28 pixels (Xiao, Rasul, Vollgraf 2017, https://arxiv.org/abs/1708.07747).'


def read_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns scikit-learn's digits, 0 .. 16 scaled to 0 .. 255, with a fixed stratified test split of 360."""
  from sklearn.datasets import load_digits

  raw = load_digits()
  images = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]
  train, test = splits.carve(raw.target, 360, seed=0, name='test')
  return {'train': (images[train], raw.target[train]), 'test': (images[test], raw.target[test])}


def fashion_checksums() -> dict[str, str]:
  """Returns the sha256 that TensorFlow Datasets has on record for each of the four files, by name."""
  infos = tfds.builder_cls('fashion_mnist').url_infos
  return {os.path.basename(url): info.checksum for url, info in infos.items()}


def prepare(builder: type[_Pictures], read: Callable[[], Any], root: pathlib.Path) -> pathlib.Path:
  """Prepares a data set as array_record under `root`, once; safe beside other processes and after a kill.

  Args:
    builder: what to prepare.
    read: returns {split: (images, labels)}.
    root: where prepared data sets lie.

  Returns:
    The folder of the prepared data set.
  """
  final = cache.prepared(root, builder.name)
  if not (final / cache.PROOF).exists():
    tfds.disable_progress_bar()
    # TFDS prints that it downloads something of unknown size, which is not true here.
    with cache.scratch(root) as folder, contextlib.redirect_stdout(io.StringIO()):
      made = builder(read=read, data_dir=folder, file_format='array_record')
      made.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
      cache.settle(pathlib.Path(made.data_path), final)
  return final
