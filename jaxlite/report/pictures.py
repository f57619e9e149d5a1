"""Small pictures of examples, as a page holds them: PNG by hand, a few hundred bytes each, no package."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np

SIDE = 96  # pixels at most
_SIGN = b'\x89PNG\r\n\x1a\n'
_KINDS = {1: 0, 3: 2, 4: 6}  # channels -> PNG's color type


def png(pixels: Any) -> bytes:
  """Returns a picture as PNG.

  Args:
    pixels: uint8[H, W, 1, 3 or 4].

  References:
    W3C, Portable Network Graphics (PNG) Specification, 2025, https://www.w3.org/TR/png-3/

  >>> png(np.zeros((2, 3, 1), np.uint8))[:4]
  b'\\x89PNG'
  """
  pixels = np.ascontiguousarray(pixels, np.uint8)
  height, width, channels = pixels.shape
  lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
  head = struct.pack('>IIBBBBB', width, height, 8, _KINDS[channels], 0, 0, 0)
  parts = ((b'IHDR', head), (b'IDAT', zlib.compress(lines.tobytes(), 6)), (b'IEND', b''))
  return _SIGN + b''.join(
    struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data)) for kind, data in parts
  )


def data_url(example: Any) -> str:
  """Returns an example as a picture in a page; '' where it is none.

  Args:
    example: uint8 or float[H, W], or with 1, 3 or 4 channels last. Numbers outside of 0 to 255 are brought there by
      their own least and largest; a picture larger than `SIDE` is averaged down.

  >>> data_url(np.zeros(3)), data_url(np.zeros((4, 4)))[:22]
  ('', 'data:image/png;base64,')
  """
  array = np.asarray(example)
  if array.ndim == 2:
    array = array[..., None]
  if array.ndim != 3 or array.shape[-1] not in _KINDS or min(array.shape[:2]) < 4 or array.dtype.kind not in 'biuf':
    return ''
  whole = array.dtype == np.uint8
  values = array.astype(np.float32)
  factor = -(-max(values.shape[:2]) // SIDE)
  if factor > 1:
    height, width = (max(1, size // factor) for size in values.shape[:2])
    values = values[: height * factor, : width * factor]
    values = values.reshape(height, values.shape[0] // height, width, values.shape[1] // width, -1).mean(axis=(1, 3))
  if not whole:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    with np.errstate(invalid='ignore', over='ignore'):
      values = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) * (255 / max(high - low, 1e-30))
  return 'data:image/png;base64,' + base64.b64encode(png(values.clip(0, 255).round().astype(np.uint8))).decode()
