"""Time series that come with the package aeon, read from its files without importing it, in the archive's splits."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Series(NamedTuple):
  """One data set, each series standardized by itself where the archive's are.

  Attributes:
    train, test: (float32[N, length, channels], int32[N]).
    classes: names.
  """

  train: tuple[np.ndarray, np.ndarray]
  test: tuple[np.ndarray, np.ndarray]
  classes: tuple[str, ...]


def read(name: str) -> Series:
  """Reads a data set; shorter series are stretched to the longest.

  Raises:
    ImportError: aeon is not installed.
  """
  found = importlib.util.find_spec('aeon')
  if found is None or not found.submodule_search_locations:
    raise ImportError("the series come with the package aeon: pip install --no-deps 'aeon>=1.6,<2'")
  folder = Path(found.submodule_search_locations[0], 'datasets', 'data', name)
  halves = [parsed(folder / f'{name}_{which}.ts') for which in ('TRAIN', 'TEST')]
  length = max(len(channel) for rows, _ in halves for row in rows for channel in row)
  classes = tuple(sorted(set(halves[0][1])))
  train, test = (
    (np.stack([stretched(row, length) for row in rows]), np.array([classes.index(one) for one in labels], np.int32))
    for rows, labels in halves
  )
  return Series(train, test, classes)


def parsed(path: Path) -> tuple[list[list[np.ndarray]], list[str]]:
  """The channels of each series, and the labels: a line is channels and the label with colons between."""
  lines = path.read_text(encoding='utf-8').split('@data', 1)[1].split('\n')[1:]
  rows = [line.strip().split(':') for line in lines if line.strip()]
  return [[np.array(one.split(','), np.float32) for one in row[:-1]] for row in rows], [row[-1] for row in rows]


def stretched(channels: list[np.ndarray], length: int) -> np.ndarray:
  """float32[length, channels], each interpolated over its whole length."""
  at = np.linspace(0, 1, length)
  return np.stack([np.interp(at, np.linspace(0, 1, len(one)), one) for one in channels], -1).astype(np.float32)


def made(seed: int = 0) -> Series:
  """Waves of two rates in noise: for a look at the command where aeon is missing."""
  rng = np.random.default_rng(seed)

  def half(count: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count, dtype=np.int32) % 2
    phase, at = rng.uniform(0, 6, (count, 1)), np.arange(24)
    waves = np.sin(at * np.where(labels, 0.8, 0.3)[:, None] + phase) + 0.3 * rng.normal(size=(count, 24))
    return waves[..., None].astype(np.float32), labels

  return Series(half(40), half(60), ('slow', 'fast'))
