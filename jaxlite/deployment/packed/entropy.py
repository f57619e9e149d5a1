"""Bits by their probabilities: an adaptive arithmetic coder for the zeros and the values of a network's weights.

One stream of bytes holds everything, one thing after the other. What is coded is predicted from what was coded before
it: a zero from its row and its column so far, those beside them, its neighbors, and how many inputs the unit before it
kept; a value from its place, the values near it and the zeros around it; a sign from the signs around it. Predictions
are mixed as in the compressors of the PAQ family (Mahoney 2005, http://mattmahoney.net/dc/paq1.pdf), in whole numbers
alone, so that every machine finds the same.

`entropy.c` does the work where a C compiler is found, `entropy_numpy.py` elsewhere: the same bytes from both.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.packed import entropy_numpy
from jaxlite.deployment.packed.entropy_numpy import DENSITIES, INPUTS, LANES, SHARED, tables

VERSION = 2  # of what is looked at; what another one wrote is read as it was written

_RATE = 10  # of a mixer: the higher, the slower it learns;
_RATES = {1: 10, 2: 11}  # of one for zeros, by version
BYTES, NUMBERS, NONZERO = 0, 1, 2  # what symbols are
PLACES = 4096  # that a symbol may stand at, twice


class Spent(Exception):  # noqa: N818  (whoever calls says what it means)
  """Written, it takes more bytes than there is room for; read, it asks for more than there are."""


class Coder(ctypes.Structure):
  """The state of a stream, as C has it; `data` is its buffer."""

  _fields_ = (
    *((name, ctypes.c_int64) for name in ('low', 'high', 'code', 'at', 'size', 'decodes')),
    *((name, ctypes.c_void_p) for name in ('bytes', 'logs', 'odds')),
  )
  data: np.ndarray


class Model(NamedTuple):
  """What is learned of one kind of things; it serves one tensor after the other.

  Attributes:
    counts: uint16[cells, 2], how often 0 and 1 came.
    weights: int64[sets, 9], of mixers, in 2^-24.
  """

  counts: np.ndarray
  weights: np.ndarray

  def copy(self) -> Model:
    counts = np.empty_like(self.counts)
    counts[:SHARED] = self.counts[:SHARED]  # those of places, many more, are set to zero before each use
    return Model(counts, self.weights.copy())


def zeros_model(version: int = VERSION) -> Model:
  weights = np.zeros((37, INPUTS), np.int64)
  weights[:8, : 6 if version == 1 else 8] = (12000 if version == 1 else 8000) << 8
  return Model(np.zeros((DENSITIES[version], 2), np.uint16), weights)


def symbols_model() -> Model:
  weights = np.zeros((51, INPUTS), np.int64)
  weights[:50, :7] = 10000 << 8
  return Model(np.zeros((SHARED + 2 * PLACES * 16, 2), np.uint16), weights)


def encoder(size: int) -> Coder:
  """Returns a stream to write, with room for `size` bytes."""
  return _coder(np.zeros(size, np.uint8), 0)


def decoder(data: bytes) -> Coder:
  """Returns a stream to read."""
  c = _coder(np.frombuffer(data, np.uint8).copy(), 1)
  c.code, c.at = int.from_bytes(data[:4].ljust(4, b'\0'), 'big'), 4
  return c


def _coder(data: np.ndarray, decodes: int) -> Coder:
  logs, odds = tables()
  c = Coder(0, 0xFFFFFFFF, 0, 0, len(data), decodes, 0, logs.ctypes.data, odds.ctypes.data)
  return _put(c, data)


def _put(c: Coder, data: np.ndarray) -> Coder:
  c.data, c.size, c.bytes = data, len(data), data.ctypes.data
  return c


def room(c: Coder, size: int) -> None:
  """Gives a stream to write room for exactly `size` further bytes."""
  data = np.zeros(c.at + size, np.uint8)
  data[: c.at] = c.data[: c.at]
  _put(c, data)


def state(c: Coder) -> tuple[int, int, int]:
  return c.low, c.high, c.at


def back(c: Coder, before: tuple[int, int, int]) -> None:
  """Takes back what was written since."""
  c.low, c.high, c.at = before


def finish(c: Coder) -> bytes:
  """Returns the bytes of a stream: the fewest that decode to what was written, without zeros at the end."""
  for kept in range(5):
    rest = (1 << 32 - 8 * kept) - 1
    last = (c.low + rest) & ~rest
    if last <= c.high:
      break
  return (c.data[: c.at].tobytes() + last.to_bytes(5, 'big')[1 : 1 + kept]).rstrip(b'\0')


def zeros(
  c: Coder,
  flags: np.ndarray,
  model: Model,
  lanes: int,
  near: int,
  far: int,
  units: np.ndarray,
  version: int = VERSION,
) -> None:
  """Codes which entries of a matrix are not zero.

  Args:
    c: the stream.
    flags: uint8[rows, columns] of 0 and 1; written where the stream is read.
    model: of `zeros_model`; learns.
    lanes: rows that run side by side, each a column behind the one above it: all above and to the left is known.
    near, far: how many rows above those stand that are most alike.
    units: int64[rows], 0 .. 15: what is known of each row from the layer before.
    version: of what is looked at.

  Raises:
    Spent: see there.
  """
  rows, columns = flags.shape
  margin = 2 * max(near, far)
  wide = np.zeros((margin + rows, columns + 2), np.uint8)
  wide[margin:, 2:] = flags
  counts = np.concatenate([model.counts, np.zeros((rows + columns, 2), np.uint16)])
  units = np.ascontiguousarray(units, np.int64)
  native = _native()
  if native is None:
    fine = entropy_numpy.zeros(
      c,
      wide,
      rows,
      columns,
      lanes,
      near,
      far,
      margin,
      units,
      counts.reshape(-1),
      model.weights,
      _RATES[version],
      version,
    )
  else:
    seen = np.zeros(rows + columns, np.int64)
    numbers = (rows, columns, lanes, near, far, margin)
    places = (units, counts, model.weights, seen[:rows], seen[rows:])
    how = (ctypes.c_int64(_RATES[version]), ctypes.c_int64(version))
    fine = not native.entropy_zeros(ctypes.byref(c), _at(wide), *map(ctypes.c_int64, numbers), *map(_at, places), *how)
  if not fine:
    raise Spent
  flags[:] = wide[margin:, 2:]
  model.counts[:] = counts[: len(model.counts)]


def symbols(
  c: Coder,
  values: np.ndarray,
  model: Model,
  lanes: int,
  what: int,
  narrow: np.ndarray,
  wide: np.ndarray,
  before: np.ndarray,
) -> None:
  """Codes numbers one after the other, `lanes` side by side, a bit of each at a time.

  Args:
    c: the stream.
    values: int64[n]; written where the stream is read.
    model: of `symbols_model`; learns.
    lanes: see above.
    what: BYTES, NUMBERS below 2^32 in size, or such that are NONZERO.
    narrow: int64[2, n], what is known of each, for few bits: its row and its column, say; below PLACES.
    wide: int64[2, n], what is known of each for all bits, below 64.
    before: int64[2, n]: places of values that may tell, or -1; those not known yet tell nothing. Of six, all tell a
      sign.

  Raises:
    Spent: see there.
  """
  first, second = narrow
  firsts = int(first.max(initial=-1)) + 1
  narrow = np.stack([first, firsts + second])  # no cell counts a bit twice
  model.counts[SHARED : SHARED + 16 * (int(narrow.max(initial=-1)) + 1)] = 0  # other places than the last time
  native = _native()
  known = [np.ascontiguousarray(one, np.int64) for one in (narrow, wide, before)]
  if native is None:
    fine = entropy_numpy.symbols(c, values, lanes, what, *known, model.counts.reshape(-1), model.weights, _RATE)
  else:
    numbers = (len(values), lanes, what)
    fine = not native.entropy_symbols(
      ctypes.byref(c),
      _at(values),
      *map(ctypes.c_int64, numbers),
      *map(_at, (*known, model.counts, model.weights)),
      ctypes.c_int64(_RATE),
      ctypes.c_int64(len(before)),
    )
  if not fine:
    raise Spent


def lanes_for(steps: int) -> int:
  """How many lanes keep NumPy quick for so many things; the fewer, the sooner the models learn.

  >>> lanes_for(100), lanes_for(266_200)
  (1, 64)
  """
  return max(1, min(LANES, steps >> 8))


def _at(array: np.ndarray) -> Any:
  return ctypes.c_void_p(array.ctypes.data)


@functools.cache
def _native() -> Any:
  """The library made of entropy.c, or None: $JAXLITE_NO_COMPILER=1 does without, as do machines that have none."""
  if os.environ.get('JAXLITE_NO_COMPILER') == '1':
    return None
  from jaxlite.cpu.kernels import compiler

  try:
    library = compiler.load('entropy', source=Path(__file__).with_name('entropy.c'))
  except compiler.NoLibrary:
    return None
  for name in ('entropy_zeros', 'entropy_symbols'):
    getattr(library, name).restype = ctypes.c_int64
  return library
