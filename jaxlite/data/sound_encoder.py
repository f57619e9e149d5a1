"""Sounds of any rate and length as mel spectra of one shape; what a run keeps of its preprocessing."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np

from jaxlite.data.spectra import log_mel, read_wav, resampled
from jaxlite.host.files import read_file


@dataclasses.dataclass(frozen=True)
class SoundEncoder:
  """Sounds as float32 [N, frames, bands, 1]: the logarithm of power on a mel scale; kept with a run.

  Channels are averaged; another rate is resampled (`resampled`); a longer sound is cut at its end, a shorter one is
  followed by silence.

  Attributes:
    rate: Hz that every sound is brought to.
    samples: of each sound, at that rate.
    bands, frame, hop, low, high: as in `log_mel`.

  >>> SoundEncoder(16_000, 16_000)([np.zeros(8_000, np.float32)]).shape
  (1, 98, 64, 1)
  """

  rate: int
  samples: int
  bands: int = 64
  frame: int = 400
  hop: int = 160
  low: float = 0.0
  high: float | None = None

  @property
  def shape(self) -> tuple[int, int, int]:
    """Of one sound: frames, bands, 1."""
    return 1 + (self.samples - self.frame) // self.hop, self.bands, 1

  @property
  def about(self) -> str:
    """What it does, in a line: for whoever feeds a deployed model without it."""
    return (
      f'sounds at {self.rate} Hz, {self.samples} samples, log power in {self.bands} mel bands, frames of {self.frame} '
      f'every {self.hop}'
    )

  def __str__(self) -> str:
    return self.about

  def __call__(self, sounds: Any) -> np.ndarray:
    """Returns float32 [N, frames, bands, 1] of a list of paths, or of samples [T] or [T, channels] at this rate.

    An array float [N, frames, bands, 1], such as the inputs of a split, is encoded already and passes.

    Raises:
      ValueError: something that is no sound, or cannot be read, with its place.
    """
    if hasattr(sounds, 'ndim') and hasattr(sounds, 'dtype') and sounds.ndim == 4:
      if tuple(sounds.shape[1:]) != self.shape or sounds.dtype.kind != 'f':
        raise ValueError(f'encoded sounds are float[N, {", ".join(map(str, self.shape))}]; got {list(sounds.shape)}')
      return sounds
    if isinstance(sounds, str | os.PathLike):
      sounds = [sounds]
    found = [self._one(sound, f'sound {place}') for place, sound in enumerate(sounds)]
    if not found:
      raise ValueError('sounds are a list of paths or arrays; got none')
    return np.stack(found)

  def _one(self, sound: Any, where: str) -> np.ndarray:
    if isinstance(sound, str | os.PathLike):
      try:
        content = read_file(sound)
      except OSError as error:
        raise ValueError(f'{sound} cannot be read: {error.strerror or error}') from None
      return self.decode(content, os.fspath(sound))
    array = np.asarray(sound)
    if array.dtype.kind != 'f' or array.ndim not in (1, 2) or not np.isfinite(array).all():
      raise ValueError(f'a sound is a path or float [T] or [T, channels]; {where} is {array.dtype}{list(array.shape)}')
    return self.features(array.astype(np.float32).reshape(len(array), -1), self.rate)

  def decode(self, content: bytes, where: str) -> np.ndarray:
    """Returns float32 [frames, bands, 1] of the bytes of a WAV file; `where` names it in errors."""
    return self.features(*read_wav(content, where))

  def features(self, samples: np.ndarray, rate: int) -> np.ndarray:
    """Returns float32 [frames, bands, 1] of samples [T, channels] at a rate."""
    mono = resampled(samples.mean(axis=1, dtype=np.float64).astype(np.float32), rate, self.rate)[: self.samples]
    mono = np.pad(mono, (0, self.samples - len(mono)))
    options = {'bands': self.bands, 'frame': self.frame, 'hop': self.hop, 'low': self.low, 'high': self.high}
    return log_mel(mono, self.rate, **options)[..., None]

  def to_json(self) -> str:
    """Returns its JSON form."""
    return json.dumps({'kind': 'sound', **dataclasses.asdict(self)})

  @classmethod
  def from_json(cls, text: str) -> SoundEncoder:
    """Returns the encoder of a JSON form; ValueError where it is of another kind."""
    found = json.loads(text)
    if not isinstance(found, dict) or found.pop('kind', None) != 'sound':
      raise ValueError("this encoder reads JSON of the kind 'sound': use load_encoder")
    return cls(**found)
