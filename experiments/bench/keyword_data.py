"""Spoken words for the keyword study: a folder of WAV files, made by the speech synthesizer espeak-ng and noise.

No package was found that ships recordings of keywords, so this is synthetic speech: ten words that are asked for, words
that are not, and silence, as in MLPerf Tiny. A speaker is one of espeak-ng's voices; those of the three splits are
disjoint. Each recording has an accent, a speed, a pitch, a place in its second and noise of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np

from jaxlite.data import read_wav, resampled

RATE = 16_000
WANTED = ('down', 'go', 'left', 'no', 'off', 'on', 'right', 'stop', 'up', 'yes')
_OTHERS = (
  'backward bed bird cat dog eight five follow forward four happy house learn marvin nine one seven sheila six '
  'three tree two visual wow zero '
)
ACCENTS = ('en-gb', 'en-us', 'en-gb-scotland', 'en-gb-x-rp', 'en-029')
_VOICES = (
  'f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8 Alex Alicia Andrea Andy Annie Denis Diogo Gene Hugo Jacky Lee Mario '
  'Michael Mike adam anika antonio aunty belinda benjamin boris caleb david ed edward grandma grandpa iven john '
  'klatt linda marcelo max michel miguel pablo paul pedro quincy rob robert sandro shelby steph travis victor '
  'zac '
)
SHARES = {'train': (0, 36), 'val': (36, 45), 'test': (45, 60)}  # which voices, after they were shuffled


def write(folder: Path, counts: dict[str, int], seed: int = 0) -> None:
  """Writes folder/{train,val,test}/{class}/{number}.wav, as many of each class as `counts` says; once.

  Raises:
    FileNotFoundError: espeak-ng is not installed.
  """
  if (folder / 'done').exists():
    return
  if shutil.which('espeak-ng') is None:
    raise FileNotFoundError('the words are spoken by espeak-ng: apt-get install espeak-ng')
  shutil.rmtree(folder, ignore_errors=True)
  rng = np.random.default_rng(seed)
  voices, others = rng.permutation(_VOICES.split()).tolist(), _OTHERS.split()
  for split, count in counts.items():
    mine = voices[slice(*SHARES[split])]
    for name in (*WANTED, 'silence', 'unknown'):
      place = folder / split / name
      place.mkdir(parents=True)
      for number in range(count):
        word = {'silence': '', 'unknown': others[rng.integers(len(others))]}.get(name, name)
        save(place / f'{number:04}.wav', heard(spoken(word, mine, rng), rng))
  (folder / 'done').touch()


def spoken(word: str, voices: list[str], rng: np.random.Generator) -> np.ndarray:
  """A word by a voice, float32[T] at RATE."""
  if not word:
    return np.zeros(1, np.float32)
  voice = f'{ACCENTS[rng.integers(len(ACCENTS))]}+{voices[rng.integers(len(voices))]}'
  how = ['-v', voice, '-s', str(rng.integers(110, 220)), '-p', str(rng.integers(20, 80))]
  with tempfile.NamedTemporaryFile(suffix='.wav') as file:
    subprocess.run(['espeak-ng', *how, '-w', file.name, word], check=True, stderr=subprocess.DEVNULL)
    samples, rate = read_wav(Path(file.name).read_bytes(), word)
  sound = resampled(samples, rate, RATE)[:, 0]
  loud = np.flatnonzero(np.abs(sound) > 0.01)
  return sound[loud[0] : loud[-1] + 1][:RATE] if len(loud) else sound[:RATE]


def heard(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """A second with the sound somewhere in it and noise, white to brown, 3 to 25 dB below the word."""
  out = np.zeros(RATE)
  at = rng.integers(0, RATE - len(sound) + 1)
  out[at : at + len(sound)] = sound / max(1e-3, float(np.sqrt(np.mean(sound**2))))
  tilt = rng.uniform(0, 1)  # 0 is white, 1 falls by 6 dB an octave
  spectrum = np.fft.rfft(rng.normal(size=RATE))
  spectrum[1:] /= np.arange(1, len(spectrum)) ** tilt
  spectrum[0] = 0
  noise = np.fft.irfft(spectrum, RATE)
  out += noise / noise.std() * 10 ** (-rng.uniform(3, 25) / 20)
  return out * rng.uniform(0.02, 0.08)


def save(path: Path, sound: np.ndarray) -> None:
  with wave.open(str(path), 'wb') as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(RATE)
    file.writeframes(np.round(np.clip(sound, -1, 1) * 32767).astype('<i2').tobytes())


def tones(folder: Path) -> None:
  """Two classes of hum in noise: for a look at the command where espeak-ng is missing."""
  rng = np.random.default_rng(0)
  for split, count in (('train', 24), ('val', 6), ('test', 6)):
    for name, pitch in (('high', 1500), ('low', 200)):
      place = folder / split / name
      place.mkdir(parents=True, exist_ok=True)
      for number in range(count):
        hum = np.sin(np.arange(RATE // 2) * 2 * np.pi * pitch / RATE * rng.uniform(0.8, 1.2))
        save(place / f'{number}.wav', heard(hum.astype(np.float32), rng))
