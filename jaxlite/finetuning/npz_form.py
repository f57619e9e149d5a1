"""NumPy's `.npz` archives: plain arrays only; a pickled one is refused, as NumPy itself does when told."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from jaxlite.finetuning.weights import Asker, Stored, Weights, _cut, dtype_named, view
from jaxlite.finetuning.zip_file import Member, Zip

_MOST_HEADER = 10_000  # bytes, what NumPy itself allows
_WHAT = 'npz archive'


def read_npz(archive: Zip, where: str) -> Weights:
  """Reads the headers of an npz archive's arrays; arrays are read when asked for.

  Args:
    archive: its members, each an `.npy` file.
    where: names it in errors.

  Raises:
    WeightsError: a header is damaged, an array is pickled, structured or text, or cut off.
  """
  asker = Asker(where, _WHAT)
  held = {}
  for name, member in archive.members.items():
    held[asker.name(name.removesuffix('.npy'))] = _stored(archive, member, asker)
  if len(held) < len(archive.members):
    raise asker.refuse('two of its arrays have one name')
  asker.total(held, sum(one.size for one in archive.members.values()))
  return Weights(held, where=where, form='npz')


def _stored(archive: Zip, member: Member, asker: Asker) -> Stored:
  name = member.name.removesuffix('.npy')
  start = b''
  for piece in archive.pieces(member) if member.packed else [bytes(_raw(archive, member, _MOST_HEADER + 16))]:
    start += piece
    if len(start) >= _MOST_HEADER + 16:
      break
  shape, fortran, dtype, begin = _header(start[: _MOST_HEADER + 16], name, asker)
  shape = asker.shape(shape, name)
  native = dtype_named(dtype.newbyteorder('=').name)
  if native is None:
    told = 'bfloat16 and its like, which NumPy writes without a name' if dtype.kind == 'V' else str(dtype)
    raise asker.refuse(f'{name!r} is {_cut(told)}, no numbers', 'save it as float32, or as safetensors')
  if begin + math.prod(shape) * native.itemsize != member.size:
    raise asker.refuse(f'{name!r} is {native}{list(shape)} and has {member.size - begin:,} bytes')

  def read() -> np.ndarray:
    data = archive.mapped(member.name)
    if len(data) != member.size:
      raise asker.refuse(f'{name!r} has changed')
    if native == np.bool_ and (data[begin:] > 1).any():
      raise asker.refuse(f'{name!r} is bool and has entries other than 0 and 1')
    order = shape[::-1] if fortran else shape
    array = view(data, begin, order, dtype)
    array = array.T if fortran else array
    return array if dtype.isnative else array.astype(native)

  return Stored(shape, native, read)


def _raw(archive: Zip, member: Member, most: int) -> np.ndarray:
  return archive.data[member.start : member.start + min(member.length, most)]


def _header(start: bytes, name: str, asker: Asker) -> tuple[Any, bool, np.dtype, int]:
  """Returns shape, order, dtype and where the data begin."""
  file = io.BytesIO(start)
  try:
    version = np.lib.format.read_magic(file)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = reader(file, max_header_size=_MOST_HEADER)
  except Exception as error:  # whatever NumPy's parser of a literal ends in
    raise asker.refuse(f'{_cut(name)} is no array of NumPy ({type(error).__name__})') from None
  if dtype.hasobject:
    raise asker.refuse(f'{_cut(name)} is pickled', 'save it as numbers: nothing in a file is run')
  return shape, bool(fortran), dtype, file.tell()
