"""A plan of kernels while it is made: buffers and when they live, steps, and the bytes of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlite.cpu.kernels.integers import Buffer, Step
from jaxlite.deployment.operations import Batch, Graph, Shape, Value

SIGN = 128  # what is stored as int8, plus this, is the kernels' byte
ALIGNED = 64


def of_example(shape: Shape) -> tuple[int, ...]:
  """The shape of an array of one example: what its batch holds more than once is an axis of its own."""
  first, *rest = shape
  times = first.times if isinstance(first, Batch) else 1
  return (*((times,) if times > 1 else ()), *(int(size) for size in rest if isinstance(size, int)))


class Unknown(Exception):  # noqa: N818  (an answer: kernels do not do this)
  pass


class Maker(NamedTuple):
  """A plan, growing. A buffer of the arena has its place only at the end."""

  graph: Graph
  buffers: list[Buffer]
  steps: list[Step]
  numbers: dict[str, int]  # of the buffer that holds a value
  weights: list[np.ndarray]
  held: dict[bytes, int]  # where equal bytes already lie

  def value(self, name: str) -> Value:
    return self.graph.values[name]

  def count(self, name: str) -> int:
    return math.prod(of_example(self.opened(name).shape))

  def opened(self, name: str) -> Value:
    value = self.value(name)
    inside = [size for size in value.shape[1:] if isinstance(size, Batch)]
    if not value.shape or not isinstance(value.shape[0], Batch) or inside:
      raise Unknown(f'{name} is {value}, without a leading batch')
    return value

  def buffer(self, name: str) -> int:
    """The number of the buffer of a value, made where it has none."""
    if name in self.graph.constants:
      raise Unknown(f'{name} is a constant')
    if name not in self.numbers:
      dtype = self.opened(name).dtype
      if dtype not in (np.int8, np.float32):
        raise Unknown(f'{name} is {dtype}')
      self.numbers[name] = self.new(self.count(name) * dtype.itemsize)
    return self.numbers[name]

  def new(self, size: int, place: int = 0, at: int = 0) -> int:
    if size < 1:
      raise Unknown('an array of nothing')
    self.buffers.append(Buffer(place, at, size))
    return len(self.buffers) - 1

  def step(
    self, kind: str, x: int, y: int, numbers: Sequence[int], other: int | None = None, more: Sequence[int] = ()
  ) -> None:
    self.steps.append(Step(kind, x, x if other is None else other, y, [int(one) for one in numbers], more))

  def put(self, *parts: np.ndarray) -> int:
    """Where some bytes lie among the weights."""
    data = np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.int8) for part in parts])
    key = data.tobytes()
    if key not in self.held:
      self.held[key] = sum(map(len, self.weights))
      self.weights.append(np.concatenate([data, np.zeros(-len(data) % ALIGNED, np.int8)]))
    return self.held[key]

  def table(self, x: int, y: int, count: int, stored: np.ndarray) -> None:
    """Bytes by bytes: `stored` is what becomes of each byte of x as it lies."""
    self.step('table', x, y, [count, self.put(stored.astype(np.uint8).view(np.int8))])

  def given(self, index: int, name: str) -> None:
    value, count = self.opened(name), self.count(name)
    operand = self.new(count * value.dtype.itemsize, 1, index)
    if value.dtype == np.int8:
      self.table(operand, self.buffer(name), count, _FLIPPED)
    else:
      self.numbers[name] = operand

  def result(self, index: int, name: str) -> None:
    value, count = self.opened(name), self.count(name)
    result, source = self.new(count * value.dtype.itemsize, 2, index), self.buffer(name)
    if value.dtype == np.int8:
      self.table(source, result, count, _FLIPPED)
    else:
      self.step('copy', source, result, [1, 1, 1, 1, count, *[0, 0, 0, 0, 1] * 2, 0, 0, 4])


_FLIPPED = np.arange(256) ^ SIGN


def placed(maker: Maker) -> tuple[list[Buffer], int]:
  """Gives each buffer of the arena its place: those that live at the same time lie apart."""
  lives: dict[int, list[int]] = {}
  for index, step in enumerate(maker.steps):
    for number in (step.x, step.other, step.y, *step.more):
      lives.setdefault(number, []).append(index)
  buffers, arena, taken = list(maker.buffers), 0, []
  for number in sorted((one for one in lives if maker.buffers[one].place == 0), key=lambda one: lives[one][0]):
    begin, end = min(lives[number]), max(lives[number])
    size = -(-maker.buffers[number].bytes // ALIGNED) * ALIGNED
    at = 0
    for low, high, first, last in sorted(taken):  # the first gap that is wide enough
      if first <= end and begin <= last:
        if at + size <= low:
          break
        at = max(at, high)
    taken.append((at, at + size, begin, end))
    buffers[number] = maker.buffers[number]._replace(at=at)
    arena = max(arena, at + size)
  return buffers, max(arena, ALIGNED)
