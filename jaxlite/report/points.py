"""The points of a run as columns: read from metrics.jsonl as it grows, damaged lines counted and left out."""

from __future__ import annotations

import array
import contextlib
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlite.host.files import parsed_json

_PIECE = 1 << 22  # bytes that are read at once
_LINE = 1 << 20  # bytes; a longer line is no point of ours
_NAMES = 64  # metrics of a kind; more are damage, or nobody's picture
_NOT = ('kind', 'step')


class Points:
  """Columns of steps and values, by kind ('train' or 'validation') and metric.

  >>> points = Points.of([{'kind': 'train', 'step': 1, 'loss': 2.0}, {'kind': 'train', 'step': 2, 'loss': 1.0}])
  >>> [column.tolist() for column in points('train', 'loss')]
  [[1.0, 2.0], [2.0, 1.0]]
  """

  def __init__(self) -> None:
    self._clear()

  def _clear(self) -> None:
    self._columns: dict[tuple[str, str], tuple[array.array[float], array.array[float]]] = {}
    self._read = 0  # bytes of the file that are behind us
    self._rest = b''  # the line that is not whole yet
    self._file: tuple[int, int] | None = None
    self.damaged = 0
    self.step = 0
    self.time = 0.0
    self.count = 0

  @classmethod
  def of(cls, points: Iterable[Any]) -> Points:
    """Returns the columns of points that are in memory."""
    made = cls()
    for point in points:
      made.add(point)
    return made

  def add(self, point: Any) -> bool:
    """Takes a point; False where it is none."""
    if not isinstance(point, Mapping) or not isinstance(kind := point.get('kind'), str):
      return False
    step = point.get('step')
    if isinstance(step, bool) or not isinstance(step, int | float):
      return False
    try:
      step = float(step)
    except OverflowError:
      return False
    if not 0 <= step < 2**53:
      return False
    self.count += 1
    self.step = max(self.step, int(step))
    for name, value in point.items():
      if name in _NOT or isinstance(value, bool) or not isinstance(value, int | float):
        continue
      with contextlib.suppress(OverflowError):  # an integer that is no float
        if name == 'time':
          self.time = float(value) if math.isfinite(value) else self.time
          continue
        if (column := self._columns.get((kind, name))) is None:
          if len(self._columns) >= 4 * _NAMES:
            continue
          column = self._columns[kind, name] = array.array('d'), array.array('d')
        column[1].append(value)
        column[0].append(step)
    return True

  def follow(self, path: Path) -> bool:
    """Reads what was added to a file since the last time; from the start where it was cut or replaced.

    Args:
      path: of metrics.jsonl; a run that goes on may cut it.

    Returns:
      Whether there is anything new.

    Raises:
      OSError: it cannot be read.
    """
    opened = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_NOFOLLOW', 0))
    with open(opened, 'rb') as file:
      found = os.fstat(file.fileno())
      same = (found.st_dev, found.st_ino)
      if self._file not in (None, same) or found.st_size < self._read:
        self._clear()
      self._file = same
      file.seek(self._read)
      before = self._read
      while piece := file.read(_PIECE):
        self._read += len(piece)
        *lines, self._rest = (self._rest + piece).split(b'\n')
        self._rest = self._rest if len(self._rest) < _LINE else b''
        for line in lines:
          try:
            self.damaged += not self.add(parsed_json(line))
          except ValueError:
            self.damaged += bool(line)
    return self._read > before

  def __call__(self, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, values) of a metric, float64[N] each; empty where it was never recorded."""
    steps, values = self._columns.get((kind, name), (array.array('d'), array.array('d')))
    return np.array(steps), np.array(values)

  def names(self, kind: str) -> list[str]:
    """Returns what was recorded of a kind, in order."""
    return [name for of, name in self._columns if of == kind]

  def last(self, kind: str, name: str) -> float:
    """Returns the newest value of a metric; NaN where there is none."""
    column = self._columns.get((kind, name))
    return math.nan if column is None else column[1][-1]
