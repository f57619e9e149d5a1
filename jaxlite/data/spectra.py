"""Sound as numbers: WAV files of every kind that people have, one rate for all, and spectra on a mel scale."""

from __future__ import annotations

import math
import struct
from typing import Any

import jax.numpy as jnp
import numpy as np

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_NAMES = {2: 'ADPCM', 6: 'A-law', 7: 'mu-law', 17: 'IMA ADPCM', 85: 'MP3', 255: 'AAC'}
_MOST_SAMPLES = 1 << 28


def read_wav(content: bytes, where: str) -> tuple[np.ndarray, int]:
  """Returns the samples of a WAV file.

  Args:
    content: its bytes: RIFF or RF64, PCM of 8, 16, 24 or 32 bits, or floats of 32 or 64.
    where: its name, for errors.

  Returns:
    (samples float32 [T, channels], rate in Hz). Whole numbers become -1 to 1, by a power of two; floats stay as they
    are.

  Raises:
    ValueError: one line: no WAV, compressed, damaged, or without a sample.

  >>> import io, wave
  >>> out = io.BytesIO()
  >>> with wave.open(out, 'wb') as file:
  ...   file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
  ...   file.writeframes(np.array([0, 16384, -32768], '<i2').tobytes())
  (None, None, None)
  >>> samples, rate = read_wav(out.getvalue(), 'a file')
  >>> samples[:, 0].tolist(), rate
  ([0.0, 0.5, -1.0], 8000)
  """
  if len(content) < 12 or content[:4] not in (b'RIFF', b'RF64') or content[8:12] != b'WAVE':
    kind = 'the file is empty' if not content else f'{len(content):,} bytes that begin with {content[:4]!r}'
    raise ValueError(f'{where} is no WAV file: {kind}: convert it (ffmpeg -i in.mp3 out.wav)')
  place, about, data, wide = 12, None, None, 0
  while place + 8 <= len(content) and data is None:
    name, size = content[place : place + 4], struct.unpack('<I', content[place + 4 : place + 8])[0]
    body = place + 8
    if name == b'fmt ':
      about = content[body : body + size]
    elif name == b'ds64' and size >= 16:  # of RF64, whose other chunk of samples says 0xFFFFFFFF
      wide = struct.unpack('<Q', content[body + 8 : body + 16].ljust(8, b'\0'))[0]
    elif name == b'data':
      size = wide if wide and size == 0xFFFFFFFF else size
      # A recorder that was cut off, or a stream, does not know its length: what is there counts.
      unknown = size == 0xFFFFFFFF or body + size > len(content) or (not size and not _are_chunks(content[body:]))
      data = content[body:] if unknown else content[body : body + size]
    place = body + size + size % 2
  if about is None or len(about) < 16 or data is None:
    raise ValueError(f'{where} is damaged: it lacks its {"format" if about is None else "samples"}')
  kind, channels, rate, _, block, bits = struct.unpack('<HHIIHH', about[:16])
  if kind == _EXTENSIBLE and len(about) >= 26:
    kind = struct.unpack('<H', about[24:26])[0]
  if kind not in (_PCM, _FLOAT):
    raise ValueError(f'{where} holds {_NAMES.get(kind, f"format {kind}")}, not PCM or floats: convert it to 16-bit PCM')
  width = bits // 8
  if not (channels and rate and block == channels * width) or (kind, bits) not in (
    *((_PCM, one) for one in (8, 16, 24, 32)),
    *((_FLOAT, one) for one in (32, 64)),
  ):
    raise ValueError(
      f'{where} is damaged, or of a kind that is not read: {bits} bits, {channels} channels, {rate} Hz, blocks of '
      f'{block} bytes'
    )
  count = len(data) // block
  if not count or count * channels > _MOST_SAMPLES:
    raise ValueError(f'{where} holds {count:,} samples: {"record something" if not count else "cut it"}')
  samples = _numbers(data[: count * block], kind, bits).reshape(count, channels)
  if not np.isfinite(samples).all():
    raise ValueError(f'{where} has a sample that is not finite, at {int(np.argwhere(~np.isfinite(samples))[0][0])}')
  return samples, rate


def _are_chunks(content: bytes) -> bool:
  """Whether bytes are whole chunks of a file (its title, its program), and not samples."""
  place = 0
  while place + 8 <= len(content) and content[place : place + 4].isalnum():
    size = struct.unpack('<I', content[place + 4 : place + 8])[0]
    place += 8 + size + size % 2
  return place > 0 and len(content) <= place <= len(content) + 1


def _numbers(data: bytes, kind: int, bits: int) -> np.ndarray:
  if kind == _FLOAT:
    return np.frombuffer(data, f'<f{bits // 8}').astype(np.float32)
  if bits == 8:  # the only unsigned one
    return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
  if bits == 24:
    raw = np.frombuffer(data, np.uint8).reshape(-1, 3)
    wide = np.zeros((len(raw), 4), np.uint8)
    wide[:, 1:] = raw
    return (wide.view('<i4')[:, 0] / 2.0**31).astype(np.float32)
  return (np.frombuffer(data, f'<i{bits // 8}') / 2.0 ** (bits - 1)).astype(np.float32)


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
  """Returns sound at another rate, by a polyphase filter (Kaiser window, beta 5) that cuts what it cannot hold.

  Args:
    samples: float32 [T, ...].
    rate: Hz.
    wanted: Hz.

  Returns:
    float32 [ceil(T * wanted / rate), ...].

  >>> resampled(np.zeros((10, 1), np.float32), 8000, 16000).shape
  (20, 1)
  """
  if rate == wanted:
    return samples
  from scipy import signal

  common = math.gcd(rate, wanted)
  return signal.resample_poly(samples, wanted // common, rate // common, axis=0).astype(np.float32)


def log_mel(
  samples: Any,
  rate: int,
  *,
  bands: int = 64,
  frame: int = 400,
  hop: int = 160,
  low: float = 0.0,
  high: float | None = None,
  floor: float = 1e-6,
) -> Any:
  """Returns the natural logarithm of the power in bands of a mel scale, frame by frame.

  A periodic Hann window of `frame` samples every `hop`, none beyond the end; the spectrum of the next power of two;
  triangles of height 1 between `bands` + 2 points that lie evenly on the scale 2595 log10(1 + f / 700).

  Args:
    samples: float [..., T], NumPy or JAX; T from `frame` on.
    rate: Hz.
    bands: how many.
    frame: samples in a window (400 are 25 ms at 16 kHz).
    hop: samples from one window to the next.
    low: Hz, where the first band begins.
    high: Hz, where the last ends; None takes half the rate.
    floor: power below it is raised to it.

  Returns:
    float32 [..., frames, bands], 1 + (T - frame) // hop frames; NumPy of NumPy, computed in float64, JAX of JAX.

  Raises:
    ValueError: too few samples, a band without a frequency, a number out of range.

  References:
    Davis and Mermelstein, Comparison of Parametric Representations for Monosyllabic Word Recognition in Continuously
    Spoken Sentences, 1980, https://doi.org/10.1109/TASSP.1980.1163420

  >>> log_mel(np.zeros(16_000, np.float32), 16_000).shape
  (98, 64)
  """
  for name, number in (('rate', rate), ('bands', bands), ('frame', frame), ('hop', hop)):
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
      raise ValueError(f'log_mel: {name} is a whole number from 1; got {number!r}')
  if not floor > 0:
    raise ValueError(f'log_mel: floor is above 0; got {floor}')
  xp: Any = np if isinstance(samples, np.ndarray | list | tuple) else jnp
  values = np.asarray(samples, np.float64) if xp is np else jnp.asarray(samples, jnp.float32)
  count = values.shape[-1] if values.ndim else 0
  if count < frame:
    raise ValueError(f'log_mel: a frame takes {frame} samples; got {count}: pad the sound, or take a shorter frame')
  size = 1 << (frame - 1).bit_length()
  starts = np.arange(1 + (count - frame) // hop)[:, None] * hop + np.arange(frame)
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / frame)
  spectrum = xp.fft.rfft(values[..., starts] * xp.asarray(window, values.dtype), n=size)
  power = spectrum.real**2 + spectrum.imag**2
  filters = xp.asarray(mel_filters(rate, size, bands, low, high), values.dtype)
  found = power @ filters if xp is np else jnp.matmul(power, filters, precision='highest')
  return xp.log(xp.maximum(found, floor)).astype(xp.float32)


def mel_filters(rate: int, size: int, bands: int, low: float = 0.0, high: float | None = None) -> np.ndarray:
  """Returns how much each frequency of a spectrum counts in each band, float64 [size // 2 + 1, bands].

  Raises:
    ValueError: bands so narrow that one has no frequency, or edges out of order.

  >>> mel_filters(8000, 256, 10).shape
  (129, 10)
  """
  high = rate / 2 if high is None else high
  if not 0 <= low < high <= rate / 2:
    raise ValueError(f'bands lie from low to high, 0 to {rate / 2:g} Hz at this rate; got {low:g} to {high:g}')
  ends = 2595 * np.log10(1 + np.array([low, high]) / 700)
  points = 700 * (10 ** (np.linspace(*ends, bands + 2) / 2595) - 1)
  frequencies = np.fft.rfftfreq(size, 1 / rate)[:, None]
  up = (frequencies - points[:-2]) / (points[1:-1] - points[:-2])
  down = (points[2:] - frequencies) / (points[2:] - points[1:-1])
  found = np.maximum(0, np.minimum(up, down))
  if not found.any(0).all():
    place = int(np.flatnonzero(~found.any(0))[0])
    raise ValueError(
      f'a band holds a frequency; of {bands} bands number {place} lies between two ({rate / size:g} Hz apart): take '
      'fewer bands, or a longer frame'
    )
  return found
