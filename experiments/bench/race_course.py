"""What both sides of the race on Fashion-MNIST share: the recipe, the data as arrays, and how a runner reports.

NumPy and the standard library only.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

BATCH, EVAL_BATCH, EVERY, EPOCHS = 128, 1000, 200, 12  # test accuracy is taken every 200 steps
LR, WEIGHT_DECAY, DROPOUT = 1e-3, 1e-2, 0.3
MEAN, STD = 72.94, 90.02  # of the training pixels


class Fashion(NamedTuple):
  """Fashion-MNIST: uint8 [N, 28, 28, 1] and int32 [N]."""

  train: tuple[np.ndarray, np.ndarray]
  test: tuple[np.ndarray, np.ndarray]


def read(folder: str) -> Fashion:
  """Reads the four published files."""

  def pair(which: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (
      np.frombuffer(gzip.decompress(Path(folder, f'{which}-{what}-ubyte.gz').read_bytes()), np.uint8)
      for what in ('images-idx3', 'labels-idx1')
    )
    return images[16:].reshape(-1, 28, 28, 1), labels[8:].astype(np.int32)

  return Fashion(pair('train'), pair('t10k'))


def tell(step: int, accuracy: float) -> bool:
  """Tells the parent, who holds the clock, and hears whether to go on."""
  print(json.dumps([step, accuracy]), flush=True)
  return input() == 'on'
