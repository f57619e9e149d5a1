"""The members of a zip archive, mapped where they are stored as they are, and never more bytes than were declared.

An archive that comes from a stranger may name a member twice, let members overlap (so that a small file becomes a huge
one), or say one size and hold another. All of it is refused before anything is decompressed.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxlite.finetuning.weights import Asker, _cut

_MOST_MEMBERS = 100_000
_HEADER = 30  # bytes of a member's own header before its name
_MOST_RATIO = 100  # decompressed to compressed bytes: weights of floats come to 2, sparse ones to 20
_SPARE = 16 << 20  # bytes that members may decompress to whatever the ratio
_PIECE = 1 << 20


class Member(NamedTuple):
  """One file of an archive.

  Attributes:
    name: its path in the archive.
    size: its bytes, decompressed.
    start, length: where its stored bytes lie in the archive.
    packed: whether they are deflated.
    crc: CRC-32 of its bytes.
  """

  name: str
  size: int
  start: int
  length: int
  packed: bool
  crc: int


class Zip(NamedTuple):
  """A zip archive in mapped bytes.

  Attributes:
    data: uint8[bytes].
    members: by name, in the archive's order; folders are left out.
    asker: names the archive in errors.
  """

  data: np.ndarray
  members: dict[str, Member]
  asker: Asker

  def read(self, name: str, most: int) -> bytes:
    """Returns a member's bytes, and refuses one that is larger than `most`."""
    member = self.member(name)
    if member.size > most:
      raise self.asker.refuse(f'{name!r} has {member.size:,} bytes; at most {most:,} are read')
    found = b''.join(self.pieces(member))
    if zlib.crc32(found) != member.crc:
      raise self.asker.refuse(f'{name!r} is damaged: its bytes do not match their CRC')
    return found

  def member(self, name: str) -> Member:
    """Returns a member by its name."""
    if name not in self.members:
      raise self.asker.refuse(f'{name!r} is missing in it')
    return self.members[name]

  def mapped(self, name: str) -> np.ndarray:
    """Returns a member as uint8[size]: a view of the archive, or, of a deflated one, of a file without a name."""
    member = self.member(name)
    if not member.packed:
      return self.data[member.start : member.start + member.length]
    if not member.size:
      return np.zeros(0, np.uint8)
    crc = 0
    with tempfile.TemporaryFile(prefix='jaxlite-') as file:  # gone with the mapping, whatever happens
      for piece in self.pieces(member):
        crc = zlib.crc32(piece, crc)
        file.write(piece)
      if crc != member.crc:
        raise self.asker.refuse(f'{name!r} is damaged: its bytes do not match their CRC')
      file.flush()
      return np.asarray(np.memmap(file, np.uint8, 'r'))

  def pieces(self, member: Member) -> Iterator[bytes]:
    """Yields a member's bytes a piece at a time, exactly as many as it declares."""
    stored = self.data.data[member.start : member.start + member.length]
    if not member.packed:
      yield bytes(stored)
      return
    engine, left = zlib.decompressobj(-zlib.MAX_WBITS), member.size
    try:
      for start in range(0, len(stored), _PIECE):
        rest = bytes(stored[start : start + _PIECE])
        while len(rest) and not engine.eof:
          made = engine.decompress(rest, min(left + 1, _PIECE))
          left -= len(made)
          if left < 0:
            raise self.asker.refuse(f'{member.name!r} holds more than the {member.size:,} bytes that it declares')
          yield made
          rest = engine.unconsumed_tail
    except zlib.error as error:
      raise self.asker.refuse(f'{member.name!r} is damaged ({error})') from None
    if left or not engine.eof:
      raise self.asker.refuse(f'{member.name!r} ends {left:,} bytes before its declared end')


def is_zip(data: np.ndarray) -> bool:
  """Tells by the first bytes."""
  return bytes(data[:4]) in (b'PK\x03\x04', b'PK\x05\x06')


def read_zip(data: np.ndarray, asker: Asker) -> Zip:
  """Reads an archive's directory and checks it against the members' own headers.

  Raises:
    WeightsError: it is damaged, encrypted or compressed by another method than deflate; members share a name or bytes;
      what it would decompress to is no model's size but a bomb's.
  """
  try:
    with zipfile.ZipFile(io.BufferedReader(FileOfBytes(data))) as archive:
      found = [info for info in archive.infolist() if not info.is_dir()]
  except Exception as error:  # zipfile's own, struct.error, UnicodeDecodeError: whatever a directory of noise ends in
    raise asker.refuse(f'its directory is damaged ({_cut(str(error) or type(error).__name__)})') from None
  if len(found) > _MOST_MEMBERS:
    raise asker.refuse(f'it has {len(found):,} members; at most {_MOST_MEMBERS:,} are read')
  members: dict[str, Member] = {}
  for info in found:
    if info.filename in members:
      raise asker.refuse(f'two members have the name {_cut(info.filename)}')
    members[info.filename] = _member(data, info, asker)
  at, last = 0, ''
  for info in sorted(found, key=lambda one: one.header_offset):
    if info.header_offset < at:
      raise asker.refuse(f'the members {_cut(last)} and {_cut(info.filename)} share bytes')
    at, last = members[info.filename].start + info.compress_size, info.filename
  packed = sum(one.size for one in members.values() if one.packed)
  if packed > _SPARE + _MOST_RATIO * len(data):
    raise asker.refuse(f'{len(data):,} bytes would become {packed:,}: a bomb, not weights')
  return Zip(data, members, asker)


def _member(data: np.ndarray, info: zipfile.ZipInfo, asker: Asker) -> Member:
  name = info.filename
  if info.flag_bits & 0x1:
    raise asker.refuse(f'{_cut(name)} is encrypted', 'unpack it first')
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise asker.refuse(f'{_cut(name)} is compressed by method {info.compress_type}', 'unpack it first')
  header = bytes(data[info.header_offset : info.header_offset + _HEADER])
  if len(header) < _HEADER or header[:4] != b'PK\x03\x04':
    raise asker.refuse(f'{_cut(name)} has no header where the directory says')
  start = info.header_offset + _HEADER + int.from_bytes(header[26:28], 'little')
  start += int.from_bytes(header[28:30], 'little')
  packed = info.compress_type == zipfile.ZIP_DEFLATED
  if not 0 <= start <= start + info.compress_size <= len(data) or info.file_size < 0:
    raise asker.refuse(f'{_cut(name)} lies beyond its end')
  if not packed and info.compress_size != info.file_size:
    raise asker.refuse(f'{_cut(name)} says two sizes, {info.compress_size:,} and {info.file_size:,} bytes')
  return Member(name, info.file_size, start, info.compress_size, packed, info.CRC)


class FileOfBytes(io.RawIOBase):
  """Mapped bytes as a file, without a copy of them."""

  def __init__(self, data: np.ndarray) -> None:
    super().__init__()
    self._data, self._at = data.data, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    self._at = max(0, (0, self._at, len(self._data))[whence] + offset)
    return self._at

  def tell(self) -> int:
    return self._at

  def readinto(self, buffer: Any) -> int:
    part = self._data[self._at : self._at + len(buffer)]
    buffer[: len(part)] = part
    self._at += len(part)
    return len(part)
