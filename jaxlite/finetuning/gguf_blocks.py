"""The blocks that a GGUF file quantizes in: how many entries and bytes each has, and its values in float32.

References:
  ggml-org, GGUF and the layouts of blocks in ggml, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_PIECE = 1 << 16  # blocks decoded at once: 8 MiB of float32


class Kind(NamedTuple):
  """A way to store entries in blocks of some.

  Attributes:
    name: as GGUF's documents write it.
    entries, bytes: of a block.
    decode: uint8[blocks, bytes] -> float32[blocks, entries].
  """

  name: str
  entries: int
  bytes: int
  decode: Callable[[np.ndarray], np.ndarray]


def _half(part: np.ndarray) -> np.ndarray:
  """Two bytes of each block as float32[blocks, 1]."""
  return np.ascontiguousarray(part).view('<f2').astype(np.float32)


def _nibbles(part: np.ndarray) -> np.ndarray:
  """Sixteen bytes of each block as 32 entries: the low halves first."""
  return np.concatenate([part & 0x0F, part >> 4], axis=-1)


def _fifth(part: np.ndarray) -> np.ndarray:
  """Four bytes of each block as the fifth bits of its 32 entries."""
  return np.unpackbits(np.ascontiguousarray(part), axis=-1, bitorder='little') << 4


def _q4_0(blocks: np.ndarray) -> np.ndarray:
  return _half(blocks[:, :2]) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
  return _half(blocks[:, :2]) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks[:, 2:4])


def _q5_0(blocks: np.ndarray) -> np.ndarray:
  whole = _nibbles(blocks[:, 6:]) | _fifth(blocks[:, 2:6])
  return _half(blocks[:, :2]) * (whole.astype(np.float32) - 16)


def _q5_1(blocks: np.ndarray) -> np.ndarray:
  whole = _nibbles(blocks[:, 8:]) | _fifth(blocks[:, 4:8])
  return _half(blocks[:, :2]) * whole.astype(np.float32) + _half(blocks[:, 2:4])


def _q8_0(blocks: np.ndarray) -> np.ndarray:
  return _half(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


KINDS = {
  2: Kind('Q4_0', 32, 18, _q4_0),
  3: Kind('Q4_1', 32, 20, _q4_1),
  6: Kind('Q5_0', 32, 22, _q5_0),
  7: Kind('Q5_1', 32, 24, _q5_1),
  8: Kind('Q8_0', 32, 34, _q8_0),
}
PLAIN = {0: 'float32', 1: 'float16', 24: 'int8', 25: 'int16', 26: 'int32', 27: 'int64', 28: 'float64', 30: 'bfloat16'}
# What is known by name and not read.
OTHERS = {
  **{9: 'Q8_1', 10: 'Q2_K', 11: 'Q3_K', 12: 'Q4_K', 13: 'Q5_K', 14: 'Q6_K', 15: 'Q8_K', 16: 'IQ2_XXS', 17: 'IQ2_XS'},
  **{18: 'IQ3_XXS', 19: 'IQ1_S', 20: 'IQ4_NL', 21: 'IQ3_S', 22: 'IQ2_S', 23: 'IQ4_XS', 29: 'IQ1_M', 34: 'TQ1_0'},
  **{35: 'TQ2_0', 39: 'MXFP4'},
}


def decoded(data: np.ndarray, kind: Kind) -> np.ndarray:
  """Returns the values of blocks, float32[entries], decoded a piece at a time.

  Args:
    data: uint8[bytes], whole blocks.
    kind: what blocks.

  >>> decoded(np.array([0, 60, *range(32)], np.uint8), KINDS[8])[:4].tolist()
  [0.0, 1.0, 2.0, 3.0]
  """
  blocks = data.reshape(-1, kind.bytes)
  out = np.empty((len(blocks), kind.entries), np.float32)
  for start in range(0, len(blocks), _PIECE):
    with np.errstate(all='ignore'):  # a scale that is none gives entries that are none
      out[start : start + _PIECE] = kind.decode(blocks[start : start + _PIECE])
  return out.reshape(-1)
