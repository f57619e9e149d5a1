"""A data set out of a folder of sounds: WAV files as mel spectra, made by threads when a batch asks for them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlite import tasks
from jaxlite.data import folders
from jaxlite.data.chosen import choose
from jaxlite.data.dataset import Dataset, as_task, check_labels, check_split, finish
from jaxlite.data.decoded import AHEAD, Decoded, Workers
from jaxlite.data.inspection import inspect_files
from jaxlite.data.picture_files import Looked, contents, fingerprint_of, fits_memory, usable
from jaxlite.data.picture_folder import split_rows, twins
from jaxlite.data.sound_encoder import SoundEncoder
from jaxlite.data.spectra import log_mel, read_wav
from jaxlite.errors import whole
from jaxlite.tasks.task import Task


def sounds(
  folder: str | os.PathLike[str],
  seconds: float | None = None,
  *,
  rate: int = 16_000,
  bands: int = 64,
  frame: int = 400,
  hop: int = 160,
  low: float = 0.0,
  high: float | None = None,
  keep: str = 'auto',
  broken: str = 'error',
  task: Task | Callable[[], Task] | None = None,
  validation: float | None = None,
  test: float | None = None,
  standardize: Any = True,
  facts: Mapping[str, Any] | None = None,
  threads: int | None = None,
  ahead: int = AHEAD,
  progress: bool = True,
  name: str = '',
  seed: int = 0,
) -> Dataset:
  """Makes a Dataset of the WAV files in a folder, a folder for each class, as mel spectra.

  Args:
    folder: holds a folder for each class; or folders train, val and test that do so.
    seconds: that every sound is cut or filled up to; None where all have one length.
    rate: Hz that every sound is brought to.
    bands, frame, hop, low, high: as in `log_mel`; frames and hops are samples at `rate`.
    keep: 'memory', 'folder' or 'auto', as in `pictures`.
    broken, task, validation, test, standardize, facts, threads, ahead, progress, name, seed: as in `pictures`.

  Returns:
    The Dataset: inputs float32 [N, frames, bands, 1]. `encoder` makes them of other sounds, and is kept with a run.

  Raises:
    ValueError: one line: no such folder, an empty class, files that cannot be read, several lengths and none asked for.

  >>> import pathlib, tempfile
  >>> from scipy.io import wavfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   for number in range(20):
  ...     place = pathlib.Path(folder, 'high' if number % 2 else 'low')
  ...     place.mkdir(exist_ok=True)
  ...     wave = np.sin(np.arange(4_000) * (0.9 if number % 2 else 0.1)) * 0.5
  ...     wavfile.write(place / f'{number}.wav', 8_000, wave.astype(np.float32))
  ...   data = sounds(folder, 0.5, rate=8_000, bands=16)
  >>> data.train.inputs.shape, data.class_names
  ((16, 23, 16, 1), ('high', 'low'))
  """
  if keep not in ('auto', 'memory', 'folder'):
    raise ValueError(f"keep of sounds is 'auto', 'memory' or 'folder'; got {keep!r}")
  workers = Workers(threads)
  listing = folders.list_classes(folder, reads_sound, 'sound')
  whole(rate, 'rate', least=1)
  if seconds is None:
    samples = _one_length(listing, rate, workers, progress)
  elif not 0 < seconds < math.inf:
    raise ValueError(f'seconds are above 0; got {seconds}')
  else:
    samples = round(seconds * rate)
  encoder = SoundEncoder(rate, samples, bands, frame, hop, low, high)
  log_mel(
    np.zeros(samples, np.float32), rate, bands=bands, frame=frame, hop=hop, low=low, high=high
  )  # says what is off
  looked = _look_at(listing, encoder, broken, workers, progress)
  listing, found = looked.listing, looked.found
  learned = tasks.classification() if task is None else as_task(task, np.zeros(1, np.int32))
  class_names = sorted(set(listing.labels))
  values = np.searchsorted(class_names, listing.labels).astype(np.int32)
  checked = check_labels(learned, values, 'train')
  rows, told = split_rows(listing, learned, checked, validation, test, seed)

  def make(row: int, out: np.ndarray) -> None:
    out[...] = encoder.decode(contents(listing, found, row), str(listing.root / listing.files[row]))

  base = Decoded(make, len(values), encoder.shape, np.float32, workers=workers, ahead=ahead)
  held = keep == 'memory' or (keep == 'auto' and fits_memory(len(values) * base.example_bytes))
  array = base.take(np.arange(len(values))) if held else base
  splits = {
    where: check_split(learned, (choose(array, which) if held else base.rows(which), values[which]), where)
    for where, which in rows.items()
  }
  train = rows['train']
  count = len(train) * math.prod(encoder.shape)
  mean = math.fsum(found.columns['sum'][train].tolist()) / count
  spread = math.fsum(found.columns['squares'][train].tolist()) / count - mean * mean
  std = math.sqrt(spread) if spread > 1e-12 * max(1.0, mean * mean) else 1.0
  data = finish(
    name or Path(listing.root).name,
    splits,
    learned,
    classes=None,
    class_names=None,
    facts={'class_names': class_names, **(facts or {})},
    standardize=standardize,
    notes=[*looked.notes, *told, *twins(found, rows, listing.files, values)],
    encoder=encoder,
    statistics=(np.array([mean], np.float32), np.array([std], np.float32)),
    sha256=fingerprint_of(looked, rows, checked, encoder, False),
  )
  return data._replace(files={where: tuple(listing.files[row] for row in which) for where, which in rows.items()})


def reads_sound(name: str) -> bool:
  """Whether a file is a WAV by its name."""
  return os.path.splitext(name)[1].lower() in ('.wav', '.wave')


def _look_at(listing: Any, encoder: SoundEncoder, broken: str, workers: Workers, progress: bool) -> Looked:
  empty = {
    'sum': np.array(0.0),
    'squares': np.array(0.0),
    'rate': np.array(0),
    'channels': np.array(0),
    'length': np.array(0),
    'silent': np.array(False),
  }

  def look(path: str, content: bytes) -> dict[str, Any]:
    samples, rate = read_wav(content, path)
    values = encoder.features(samples, rate).astype(np.float64)
    about = {'rate': rate, 'channels': samples.shape[1], 'length': math.ceil(len(samples) * encoder.rate / rate)}
    return {**about, 'sum': values.sum(), 'squares': np.square(values).sum(), 'silent': not samples.any()}

  options = {'about': encoder.to_json(), 'what': 'sounds', 'workers': workers, 'progress': progress}
  found = inspect_files(listing.root, listing.files, look, empty, **options)
  listing, found, notes = usable(listing, found, broken, 'sound')
  columns, count = found.columns, len(found.error)
  for number, told in (
    ((columns['rate'] != encoder.rate).sum(), f'are resampled to {encoder.rate} Hz'),
    ((columns['channels'] > 1).sum(), 'have several channels, which are averaged'),
    (
      (columns['length'] > encoder.samples).sum(),
      f'are longer than {encoder.samples / encoder.rate:g} s and cut there',
    ),
    ((columns['length'] < encoder.samples).sum(), 'are shorter and followed by silence'),
    (columns['silent'].sum(), 'are silent all through'),
  ):
    notes += [f'{int(number):,} of {count:,} sounds {told}'] if number else []
  return Looked(listing, found, (*listing.notes, *notes))


def _one_length(listing: Any, rate: int, workers: Workers, progress: bool) -> int:
  """Samples at the rate that every sound has, or raises where they differ."""
  empty = {'length': np.array(0)}

  def look(path: str, content: bytes) -> dict[str, Any]:
    samples, own = read_wav(content, path)
    return {'length': math.ceil(len(samples) * rate / own)}

  options = {'about': f'length {rate}', 'what': 'sounds', 'workers': workers, 'progress': progress}
  found = inspect_files(listing.root, listing.files, look, empty, **options)
  lengths = np.unique(found.columns['length'][found.error == ''])
  if len(lengths) > 1:
    form = '.2f' if lengths[-1] - lengths[0] > rate / 50 else '.6g'
    shown, most = (f'{one / rate:{form}}' for one in (lengths[0], lengths[-1]))
    usual = np.percentile(found.columns['length'][found.error == ''], 90) / rate
    raise ValueError(f'sounds have one length; {listing.root} has {shown} to {most} s: give seconds={usual:.2f}, say')
  return int(lengths[0]) if len(lengths) else 1
