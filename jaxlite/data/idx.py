"""Fashion-MNIST's own files: reading the idx format, and proving that four files are the published ones.

The published files carry a name and a time in their gzip headers, and TensorFlow Datasets records the sha256
of the whole. Debian's package holds the same compressed data with both stripped, as its builds are
reproducible; with the header restored, byte for byte, the recorded checksum applies to it too.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

DEBIAN = '/usr/share/datasets/fashion-mnist'


class File(NamedTuple):
  """One of the four files.

  Attributes:
    name: as published.
    time: seconds since 1970 in the published gzip header.
  """

  name: str
  time: int


FILES = {
  'train': (File('train-images-idx3-ubyte.gz', 1504176606), File('train-labels-idx1-ubyte.gz', 1504176606)),
  'test': (File('t10k-images-idx3-ubyte.gz', 1504176627), File('t10k-labels-idx1-ubyte.gz', 1504176627)),
}
_STRIPPED = b'\x1f\x8b\x08\x00'  # gzip, deflate, no optional field
_HEADER = 10  # bytes of a gzip header without optional fields


def missing(directory: str) -> list[str]:
  """Returns the names of those of the four files that are not in `directory`.

  >>> len(missing('/nowhere'))
  4
  """
  names = [file.name for files in FILES.values() for file in files]
  return [name for name in names if not os.path.isfile(os.path.join(directory, name))]


def read_verified(directory: str, checksums: Mapping[str, str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads the four files after proving each one genuine.

  Args:
    directory: where they lie.
    checksums: sha256 of each published file, by name, in hexadecimal.

  Returns:
    {'train': (images uint8 [N, H, W, 1], labels uint8 [N]), 'test': ...}.

  Raises:
    ValueError: a file is missing, is not the published one, or does not hold what idx promises.
  """
  splits = {}
  for where, (images, labels) in FILES.items():
    pixels, numbers = (
      _read(os.path.join(directory, file.name), file, checksums[file.name]) for file in (images, labels)
    )
    if pixels.ndim != 3 or numbers.ndim != 1 or len(pixels) != len(numbers):
      raise ValueError(f'{where} needs images [N, H, W] and labels [N]; got {pixels.shape} and {numbers.shape}')
    splits[where] = (pixels[..., None], numbers)
  return splits


def _read(path: str, file: File, checksum: str) -> np.ndarray:
  try:
    with open(path, 'rb') as stream:
      data = stream.read()
  except OSError as error:
    raise ValueError(f'cannot read {path}: {error.strerror or error}') from None
  if checksum not in (_sha256(data), _sha256(with_header(data, file))):
    raise ValueError(f'{path} is not the published file: its sha256 is {_sha256(data)}, not {checksum}: get it again')
  return parse(data, path)


def _sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def with_header(data: bytes, file: File) -> bytes:
  """Returns gzip data with the published header in place of a stripped one; other data are left as they are."""
  if not data.startswith(_STRIPPED):
    return data
  name = file.name.removesuffix('.gz').encode()
  return b'\x1f\x8b\x08\x08' + struct.pack('<I', file.time) + b'\0\3' + name + b'\0' + data[_HEADER:]


def parse(data: bytes, where: str) -> np.ndarray:
  """Parses a gzipped idx file of bytes.

  Args:
    data: the compressed file.
    where: names it in errors.

  Returns:
    uint8, of the shape that the file's header states.

  Raises:
    ValueError: it is damaged, or holds something else.

  >>> parse(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])), 'example').tolist()
  [7, 9]
  """
  try:
    raw = gzip.decompress(data)
  except (OSError, EOFError, zlib.error) as error:
    raise ValueError(f'{where} is no gzip file, or damaged ({error}): get it again') from None
  if len(raw) < 4 or raw[:3] != b'\0\0\x08' or len(raw) < 4 + 4 * raw[3]:
    raise ValueError(
      f'an idx file of bytes starts with 0 0 8 and its shape; {where} with {list(raw[:4])}: get it again'
    )
  shape = struct.unpack(f'>{raw[3]}I', raw[4 : 4 + 4 * raw[3]])
  body = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
  if body.size != np.prod(shape, dtype=np.int64):
    raise ValueError(f'{where} promises {list(shape)} bytes and holds {body.size}: get it again')
  return body.reshape(shape)
