"""Protocol buffers and the records of TensorBoard's event files, as far as they are written here.

An event file is a row of records, each a length, its checksum, the event and its checksum.
"""

from __future__ import annotations

import math
import struct

PREFIX = 'events.out.tfevents.'  # of a file's name
VERSION = b'brain.Event:2'  # of the first event of a file


def record_of(event: bytes) -> bytes:
  """Returns an event as a file holds it."""
  size = struct.pack('<Q', len(event))
  return b''.join((size, checksum(size), event, checksum(event)))


def float32(value: float) -> bytes:
  """Returns a number in four bytes; one that is too large as infinity."""
  try:
    return struct.pack('<f', value)
  except OverflowError:
    return struct.pack('<f', math.copysign(math.inf, value))


def double(field: int, value: float) -> bytes:
  """Returns a field that holds a number in eight bytes."""
  return bytes([field << 3 | 1]) + struct.pack('<d', value)


def embedded(field: int, value: bytes) -> bytes:
  """Returns a field that holds a text or a message."""
  return bytes([field << 3 | 2]) + varint(len(value)) + value


def varint(value: int) -> bytes:
  """Returns a whole number, seven bits a byte, the low ones first.

  References:
    Google, Protocol Buffers: Encoding, https://protobuf.dev/programming-guides/encoding
  """
  written = bytearray()
  while value > 127:
    written.append(value & 127 | 128)
    value >>= 7
  return bytes([*written, value])


def _table() -> list[int]:
  found = []
  for byte in range(256):
    for _ in range(8):
      byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    found.append(byte)
  return found


_CRC = _table()


def checksum(data: bytes) -> bytes:
  """Returns the CRC-32C of some bytes, turned and shifted as the records of event files have it.

  References:
    Stone, Stewart and Otis, Stream Control Transmission Protocol (SCTP) Checksum Change, 2002, RFC 3309,
    https://www.rfc-editor.org/rfc/rfc3309
  """
  found, table = 0xFFFFFFFF, _CRC
  for byte in data:
    found = table[(found ^ byte) & 255] ^ found >> 8
  found ^= 0xFFFFFFFF
  return struct.pack('<I', ((found >> 15 | found << 17) + 0xA282EAD8) & 0xFFFFFFFF)
