"""Where in a C file's static memory each buffer lies: what is not needed any more makes room.

There is an array for each type that C keeps apart (a float may not be read as an int32); bytes live among the floats,
since a byte may be read anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxlite.deployment.c.steps import Buffer, Step

_ALIGN = 16  # bytes


class Place(NamedTuple):
  """A stretch of one of the arrays: its C type's size in bytes, and where it begins there, in bytes."""

  unit: int
  start: int


class Arena(NamedTuple):
  """Where buffers lie.

  Attributes:
    places: of each.
    kinds: the array that each lies in.
    sizes: of the arrays, in bytes.
    over: of a buffer that is written over an input of its step, which one.
  """

  places: Mapping[str, Place]
  kinds: Mapping[str, str]
  sizes: Mapping[str, int]
  over: Mapping[str, int]


def kind_of(buffer: Buffer) -> str:
  """The array that a buffer lies in.

  >>> import numpy as np
  >>> kind_of(Buffer(np.dtype('int8'), 4)), kind_of(Buffer(np.dtype('uint32'), 4))
  ('floats', 'ints')
  """
  size, letter = buffer.dtype.itemsize, buffer.dtype.kind
  if size == 1 or (letter == 'f' and size == 4):
    return 'floats'
  return {2: 'shorts', 4: 'ints', 8: 'doubles' if letter == 'f' else 'longs'}[size]


UNITS = {'floats': ('float', 4), 'shorts': ('int16_t', 2), 'ints': ('int32_t', 4), 'doubles': ('double', 8)}
UNITS['longs'] = ('int64_t', 8)


def plan(steps: Sequence[Step], buffers: Mapping[str, Buffer], elsewhere: set[str]) -> Arena:
  """Finds a place for each buffer such that those needed at the same time do not meet.

  Args:
    steps: in order.
    buffers: what is known of each.
    elsewhere: buffers that lie in constants, inputs and outputs.

  Returns:
    The Arena. A step that writes entry by entry over what nobody needs afterwards has both in one place.
  """
  last: dict[str, int] = {}
  for index, step in enumerate(steps):
    for name, _ in step.inputs:
      last[name] = index
  root: dict[str, str] = {}
  over: dict[str, int] = {}
  spans: dict[str, list[int]] = {}
  for index, step in enumerate(steps):
    for name in step.scratch:
      spans[name] = [index, index]
    output = step.output
    if output in elsewhere:
      continue
    read = [name for name, _ in step.inputs]
    for place in step.over:
      name = read[place]
      alone = name not in elsewhere and last[name] == index and read.count(name) == 1
      if alone and buffers[name] == buffers[output]:
        root[output], over[output] = root.get(name, name), place
        break
    kept = root.get(output, output)
    span = spans.setdefault(kept, [index, index])
    span[1] = max(span[1], last.get(output, index))
  places: dict[str, Place] = {}
  sizes: dict[str, int] = {}
  bytes_of = {name: _up(buffers[name].size * buffers[name].dtype.itemsize) for name in spans}
  kinds = {name: kind_of(buffers[name]) for name in spans}
  for name in sorted(spans, key=lambda one: (-bytes_of[one], spans[one][0], one)):
    kind = kinds[name]
    first, final = spans[name]
    taken = sorted(
      (place.start, place.start + bytes_of[other])
      for other, place in places.items()
      if kinds[other] == kind and spans[other][0] <= final and spans[other][1] >= first
    )
    start = 0
    for begin, end in taken:
      if begin - start >= bytes_of[name]:
        break
      start = max(start, end)
    places[name] = Place(UNITS[kind][1], start)
    used = start + buffers[name].size * buffers[name].dtype.itemsize
    sizes[kind] = max(sizes.get(kind, 0), used)
  for output, kept in root.items():
    places[output] = places[kept]
  units = {kind: -(-size // UNITS[kind][1]) * UNITS[kind][1] for kind, size in sizes.items() if size}
  return Arena(places, {name: kind_of(buffers[name]) for name in places}, units, over)


def _up(size: int) -> int:
  return -(-size // _ALIGN) * _ALIGN
