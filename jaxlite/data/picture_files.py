"""Pictures in files: looked at once, decoded when they are asked for, from their files or from a prepared cache."""

from __future__ import annotations

import collections
import hashlib
import io
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxlite import errors
from jaxlite.data import cache, folders
from jaxlite.data.decoded import Decoded, Workers
from jaxlite.data.inspection import Inspection, inspect_files
from jaxlite.data.pixels import PictureEncoder, as_pixels
from jaxlite.data.records import make_records
from jaxlite.host import machine
from jaxlite.host.files import read_file

_IN_MEMORY = 1 << 28  # bytes up to which 'auto' keeps pictures in memory, where that is an eighth of what is free
_QUALITY = 95  # of JPEG where keep='jpeg' writes it


class Looked(NamedTuple):
  """Files and what was found in them.

  Attributes:
    listing: of the folder, of the files that can be used.
    found: in each of these.
    notes: what a person should read.
  """

  listing: folders.Listing
  found: Inspection
  notes: tuple[str, ...]

  @property
  def turned(self) -> list[list[int]]:
    """Height and width of each picture as it is shown, before it is scaled."""
    return self.found.columns['turned'].tolist()


def look_at(listing: folders.Listing, encoder: PictureEncoder, broken: str, workers: Workers, progress: bool) -> Looked:
  """Returns what every file holds; files that cannot be used are named in an error, or left out and noted."""
  if broken not in ('error', 'skip'):
    raise ValueError(f"broken is 'error' or 'skip'; got {broken!r}")
  import PIL

  empty = {
    'size': np.zeros(2, np.int32),
    'turned': np.zeros(2, np.int32),
    'shape': np.zeros(2, np.int32),
    'mode': np.array('', 'U8'),
    'format': np.array('', 'U8'),
    'animated': np.array(False),
    'sums': np.zeros(encoder.channels, np.int64),
    'squares': np.zeros(encoder.channels, np.int64),
    'look': np.array(0, np.uint64),
  }

  def look(path: str, content: bytes) -> dict[str, Any]:
    about: dict[str, Any] = {}
    image = encoder.decode(content, path, about)
    counts = np.array(image.histogram(), np.int64).reshape(encoder.channels, 256)
    levels = np.arange(256)
    return {
      'size': about['size'],
      'turned': about['turned'],
      'shape': (image.height, image.width),
      'mode': about['mode'][:8],
      'format': (about['format'] or '')[:8],
      'animated': about['animated'],
      'sums': counts @ levels,
      'squares': counts @ (levels * levels),
      'look': gradient_hash(image),
    }

  about = f'{PIL.__version__} {encoder.to_json()}'
  options = {'about': about, 'what': 'pictures', 'workers': workers, 'progress': progress}
  found = inspect_files(listing.root, listing.files, look, empty, **options)
  listing, found, notes = usable(listing, found, broken, 'picture')
  return Looked(listing, found, (*listing.notes, *notes, *_modes(found, encoder)))


def usable(
  listing: folders.Listing, found: Inspection, broken: str, what: str, *, can_skip: bool = True
) -> tuple[folders.Listing, Inspection, list[str]]:
  """Returns the files that can be used and a note on the others, or raises, naming them.

  Raises:
    ValueError: files cannot be used, or a class has no other ones.
  """
  bad = np.flatnonzero(found.error != '').tolist()
  if not bad:
    return listing, found, []
  told = '; '.join(str(found.error[row]) for row in bad[:3]) + (f'; and {len(bad) - 3} more' if len(bad) > 3 else '')
  if broken == 'error':
    raise ValueError(
      f'every {what} can be read; {len(bad):,} of {len(listing.files):,} cannot: {told}: mend or remove them'
      + (", or leave them out with broken='skip'" if can_skip else '')
    )
  good = np.flatnonzero(found.error == '')
  left = {listing.labels[row] for row in good.tolist() if listing.splits[row] == 'train'}
  for label in sorted(set(listing.labels)):
    if label not in left:
      raise ValueError(f'every class has a {what} that can be read; {label!r} has none for training: {told}')
  kept = [tuple(values[row] for row in good.tolist()) for values in listing[1:4]]
  taken = Inspection(found.digest[good], found.error[good], {name: one[good] for name, one in found.columns.items()})
  return (
    listing._replace(files=kept[0], splits=kept[1], labels=kept[2]),
    taken,
    [f'{errors.counted(len(bad), what)} left out, as broken says: {told}'],
  )


def sized(encoder: PictureEncoder, looked: Looked) -> PictureEncoder:
  """Returns the encoder with the one size of all pictures, or raises where they have several and none was asked for."""
  shapes = looked.found.columns['shape']
  if encoder.size is not None:
    return encoder
  kinds, first, counts = np.unique(shapes, axis=0, return_index=True, return_counts=True)
  if len(kinds) > 1:
    common, rare = int(first[counts.argmax()]), int(first[counts.argmin()])
    shown = ' and '.join(f'{shapes[row][0]} x {shapes[row][1]} ({looked.listing.files[row]})' for row in (common, rare))
    raise ValueError(
      f'pictures are brought to one size; {looked.listing.root} has {len(kinds)} sizes (height x width), such as '
      f'{shown}: give size='
    )
  return PictureEncoder(
    (int(kinds[0][0]), int(kinds[0][1])), encoder.channels, encoder.fit, encoder.background, encoder.most_pixels
  )


def decoder(
  looked: Looked, encoder: PictureEncoder, keep: str, workers: Workers, ahead: int, progress: bool
) -> Decoded | np.ndarray:
  """Returns all pictures as an array, uint8 [N, height, width, channels], or as one that decodes them when asked."""
  listing, found = looked.listing, looked.found
  assert encoder.size is not None
  shape = (*encoder.size, encoder.channels)
  count, each = len(listing.files), math.prod(shape)

  def make(row: int, out: np.ndarray) -> None:
    out[:] = as_pixels(encoder.decode(contents(listing, found, row), str(listing.root / listing.files[row])))

  if keep in ('pixels', 'jpeg'):
    make = _from_records(looked, encoder, keep, workers, make, progress)
  base = Decoded(make, count, shape, np.uint8, workers=workers, ahead=ahead)
  held = keep == 'memory' or (keep == 'auto' and fits_memory(count * each))
  return base.take(np.arange(count)) if held else base


def fits_memory(size: int) -> bool:
  """Whether so many bytes of examples are kept in memory where nobody says how: few, and few of what is free."""
  return size <= min(_IN_MEMORY, machine.available() // 8)


def contents(listing: folders.Listing, found: Inspection, row: int) -> bytes:
  """Returns the bytes of a file, or raises where they are not those that were looked at."""
  path = listing.root / listing.files[row]
  try:
    content = read_file(path)
  except OSError as error:
    raise ValueError(f'{path} cannot be read any more: {error.strerror or error}: bring it back') from None
  if hashlib.sha256(content).digest() != found.digest[row].tobytes():
    raise ValueError(f'{path} has changed since the data were made: bring the old one back, or start anew')
  return content


def _from_records(
  looked: Looked, encoder: PictureEncoder, keep: str, workers: Workers, make: Any, progress: bool
) -> Callable[[int, np.ndarray], None]:
  import PIL

  listing, found = looked.listing, looked.found
  assert encoder.size is not None
  shape = (*encoder.size, encoder.channels)
  count, each = len(listing.files), math.prod(shape)
  told = hashlib.sha256(f'{PIL.__version__} {encoder.to_json()} {keep} {_QUALITY}'.encode() + found.digest.tobytes())
  path = cache.root() / 'prepared' / f'{told.hexdigest()[:24]}.{keep}'

  def encode(row: int) -> bytes:
    content = contents(listing, found, row)
    about: dict[str, Any] = {}
    image = encoder.decode(content, str(listing.root / listing.files[row]), about)
    if keep == 'pixels':
      return as_pixels(image).tobytes()
    if (about['format'], about['mode'], about['size']) == ('JPEG', image.mode, image.size):
      return content  # as small as it gets, and without loss
    out = io.BytesIO()
    image.save(out, 'JPEG', quality=_QUALITY, subsampling=0)
    return out.getvalue()

  expected = count * each // (1 if keep == 'pixels' else 6)
  options = {'expected': expected, 'workers': workers, 'what': 'pictures', 'progress': progress}
  records = make_records(path, count, encode, **options)

  def read(row: int, out: np.ndarray) -> None:
    if keep == 'pixels':
      if records.read(row, out) is None:
        make(row, out)  # damaged: the same pixels from where they came
      return
    content = records.read(row)
    content = encode(row) if content is None else content.tobytes()
    out[:] = as_pixels(encoder.decode(content, f'{path}, record {row}'))

  return read


def statistics(found: Inspection, rows: np.ndarray, encoder: PictureEncoder) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and standard deviation of each channel of some pictures, float32 [channels], exactly rounded."""
  pixels = int(found.columns['shape'][rows].astype(np.int64).prod(axis=1).sum())
  mean, std = [], []
  for channel in range(encoder.channels):
    total = sum(found.columns['sums'][rows, channel].tolist())
    squares = sum(found.columns['squares'][rows, channel].tolist())
    mean.append(total / pixels)
    spread = pixels * squares - total * total  # whole numbers of any length: nothing cancels
    std.append(math.sqrt(spread) / pixels if spread else 1.0)
  return np.array(mean, np.float32), np.array(std, np.float32)


def fingerprint_of(looked: Looked, rows: dict[str, np.ndarray], labels: np.ndarray, encoder: Any, lossy: bool) -> str:
  """Returns sha256 over the contents of all files, what is made of them, labels and splits."""
  told = hashlib.sha256(json.dumps([encoder.to_json(), lossy]).encode())
  for where, which in rows.items():
    part = looked.found.fingerprint(looked.listing.files, which, where)
    told.update(part.encode() + np.ascontiguousarray(labels[which]).tobytes())
  return told.hexdigest()


def gradient_hash(image: Any) -> int:
  """Returns 64 bits that pictures which look alike share but for a few: where brightness rises to the right.

  References:
    Krawetz, Kind of Like That, 2013, https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html
  """
  from PIL import Image

  small = np.asarray(image.convert('L').resize((9, 8), Image.Resampling.BOX), np.int16)
  return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), 'big')


_ALPHA = ('RGBA', 'LA', 'PA', 'La', 'RGBa')  # 'LAB' has none


def _modes(found: Inspection, encoder: PictureEncoder) -> list[str]:
  """Notes on pictures that are not as they are shown to a model."""
  counts = collections.Counter(found.columns['mode'].tolist())
  plain = {'L', '1'} if encoder.channels == 1 else {'RGB'}
  words = {
    'L': 'gray', '1': 'black and white', 'P': 'of a palette', 'RGBA': 'with alpha', 'LA': 'gray with alpha',
    'PA': 'of a palette with alpha', 'CMYK': 'CMYK', 'RGB': 'in color',
  }  # fmt: skip
  notes = []
  changed = {mode: count for mode, count in counts.items() if mode not in plain}
  if changed:
    told = ', '.join(f'{count:,} {words.get(mode, mode)}' for mode, count in sorted(changed.items()))
    beneath = f', laid on {encoder.background}' if any(mode in _ALPHA or mode == 'P' for mode in changed) else ''
    notes.append(
      f'of {len(found.error):,} pictures {told}: all become {"gray" if encoder.channels == 1 else "RGB"}{beneath}'
    )
  if encoder.channels == 3 and counts and set(counts) <= {'L', '1', 'LA', 'I;16', 'I;16B'}:
    notes.append('all pictures are gray: channels=1 takes a third of the memory and time')
  moving = int(found.columns['animated'].sum())
  if moving:
    notes.append(f'{errors.counted(moving, "picture")} with several frames: the first is taken')
  return notes
