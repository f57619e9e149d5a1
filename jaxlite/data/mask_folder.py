"""A data set out of pictures and masks: the class of every pixel, decoded and cut with the picture it belongs to."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlite import errors, tasks
from jaxlite.data import folders
from jaxlite.data.dataset import Dataset, Split
from jaxlite.data.decoded import AHEAD, Decoded, Workers
from jaxlite.data.inputs import frozen
from jaxlite.data.inspection import inspect_files
from jaxlite.data.picture_files import (
  contents,
  decoder,
  fingerprint_of,
  fits_memory,
  look_at,
  sized,
  statistics,
  usable,
)
from jaxlite.data.picture_folder import as_size, split_rows
from jaxlite.data.pixels import MOST_PIXELS, PictureEncoder, oriented, reads_name
from jaxlite.data.standardize import standardization

_MOST_CLASSES = 256
_VOID = 255  # what most data sets write where there is no class
_OUTSIDE = 65535  # what a padded mask holds beyond the picture


def masked_pictures(
  folder: str | os.PathLike[str],
  masks: str | os.PathLike[str],
  size: int | tuple[int, int] | None = None,
  *,
  values: Sequence[int | tuple[int, int, int]] | None = None,
  ignore: int | Sequence[int | tuple[int, int, int]] | None = 255,
  class_names: Sequence[str] | None = None,
  channels: int = 3,
  fit: str = 'crop',
  background: int = 255,
  keep: str = 'auto',
  broken: str = 'error',
  validation: float | None = None,
  test: float | None = None,
  standardize: Any = True,
  threads: int | None = None,
  ahead: int = AHEAD,
  most_pixels: int = MOST_PIXELS,
  progress: bool = True,
  name: str = '',
  seed: int = 0,
) -> Dataset:
  """Makes a Dataset of pictures and masks of the same names, for `jl.tasks.segmentation`.

  Args:
    folder: of pictures, at any depth; or folders train, val and test with them.
    masks: a folder with a mask for each picture, under the same relative path but for the extension. A mask has its
      picture's height and width. Gray values, of 8 or 16 bits, and indices of a palette are classes; black and white
      are 0 and 1.
    size: as in `pictures`; masks take the nearest pixel of the same cut, and -1 where a picture was padded.
    values: where the numbers of masks are not the classes: of each class in order its gray value, or its color (RGB).
    ignore: gray values that are no class, -1 in the labels; colors where `values` are. 255 may be a class by them.
    class_names: one name per class; None numbers them.
    channels, fit, background, broken, validation, test, standardize, threads, ahead, most_pixels, progress, name, seed:
      as in `pictures`. Splits are carved at random.
    keep: 'memory', 'folder' or 'auto', as in `pictures`.

  Returns:
    The Dataset: inputs uint8 [N, height, width, channels], labels int32 [N, height, width], weight the number of
    labeled pixels.

  Raises:
    ValueError: a picture without a mask, of another size than its mask, a mask that cannot be read or holds something
      that is no class; masks of 0 and 255 alone, where it is not said what they mean.

  >>> import pathlib, tempfile
  >>> from PIL import Image
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   for kind in ('pictures', 'masks'):
  ...     pathlib.Path(folder, kind).mkdir()
  ...     for number in range(10):
  ...       Image.new('L', (6, 4), number % 2).save(pathlib.Path(folder, kind, f'{number}.png'))
  ...   data = masked_pictures(pathlib.Path(folder, 'pictures'), pathlib.Path(folder, 'masks'), channels=1)
  >>> data.train.inputs.shape, data.train.labels.shape, data.classes
  ((8, 4, 6, 1), (8, 4, 6), 2)
  """
  if keep not in ('auto', 'memory', 'folder'):
    raise ValueError(f"keep of masks is 'auto', 'memory' or 'folder'; got {keep!r}")
  encoder = PictureEncoder(as_size(size), channels, fit, background, most_pixels)
  workers = Workers(threads)
  listing = folders.list_all(folder, reads_name, 'picture')
  paired = _pair(listing, folders.list_all(masks, reads_name, 'mask'))
  looked = look_at(listing, encoder, broken, workers, progress)
  listing = looked.listing
  mask_files = [paired[file] for file in listing.files]
  encoder = sized(encoder, looked)
  wanted = {paired[file]: tuple(shape) for file, shape in zip(listing.files, looked.turned, strict=True)}
  known, left_out = _meant(values, ignore)
  read = _reader(encoder, known, left_out)
  masks_listing = folders.Listing(folders.as_folder(masks, 'mask'), tuple(mask_files), listing.splits, listing.labels)
  about = f'mask {encoder.to_json()} {values} {ignore}'
  if known is not None and left_out != [one for one in _listed(ignore) if not isinstance(known[0], tuple)]:
    about += f' {left_out}'  # what was looked at by the same words before is not what they mean now
  empty = {'present': np.zeros(_MOST_CLASSES // 8, np.uint8), 'positions': np.array(0), 'odd': np.array(False)}

  def look(path: str, content: bytes) -> dict[str, Any]:
    file = os.path.relpath(path, masks_listing.root).replace(os.sep, '/')
    labels, odd = read(content, path, wanted[file])
    there = np.zeros(_MOST_CLASSES, bool)
    there[np.unique(labels[labels >= 0])] = True
    return {'present': np.packbits(there), 'positions': int((labels >= 0).sum()), 'odd': odd}

  options = {'about': about, 'what': 'masks', 'workers': workers, 'progress': progress}
  found = inspect_files(masks_listing.root, mask_files, look, empty, **options)
  usable(masks_listing, found, 'error', 'mask', can_skip=False)
  if values is None and found.columns['odd'].all():
    raise ValueError(
      f'masks in {masks_listing.root} hold 0 and 255 alone, and 255 means no class where ignore says so: '
      'for two classes give values=(0, 255)'
    )
  there = np.unpackbits(found.columns['present'], axis=1).any(0)
  if not there.any():
    raise ValueError(f'masks hold classes; those in {masks_listing.root} hold none but what is ignored ({ignore})')
  classes = len(values) if values is not None else int(np.flatnonzero(there)[-1]) + 1
  learned = tasks.segmentation(None if class_names else classes, class_names)
  facts = learned.facts(np.array([[classes - 1]], np.int32), {})
  if facts['classes'] < classes:
    raise ValueError(
      f'every class has a name; masks hold the class {classes - 1}, class_names has {facts["classes"]}: name all, '
      'or ignore the value'
    )
  count = len(listing.files)
  rows, told = split_rows(listing, learned, np.zeros((count, 1), np.int32), validation, test, seed)
  assert encoder.size is not None

  def make(row: int, out: np.ndarray) -> None:
    file = mask_files[row]
    out[...] = read(contents(masks_listing, found, row), str(masks_listing.root / file), wanted[file])[0]

  base = Decoded(make, count, encoder.size, np.int32, workers=workers, ahead=ahead)
  inputs: Any = decoder(looked, encoder, 'folder', workers, ahead, progress)
  if keep == 'memory' or (keep == 'auto' and fits_memory(count * (base.example_bytes + inputs.example_bytes))):
    inputs, labels = (frozen(one.take(np.arange(count))) for one in (inputs, base))
    splits = {where: (inputs[which], labels[which]) for where, which in rows.items()}
  else:
    splits = {where: (inputs.rows(which), base.rows(which)) for where, which in rows.items()}
  weight = found.columns['positions'].astype(np.float32)
  parts = {where: Split(*pair, frozen(weight[rows[where]])) for where, pair in splits.items()}
  for where, part in parts.items():
    if not part.weight.any():
      raise ValueError(f'some pixel counts; {where} has none that is labeled')
  known = standardize is True
  mean, std, notes = standardization(
    parts['train'].inputs, statistics(looked.found, rows['train'], encoder) if known else standardize
  )
  seen = np.unpackbits(found.columns['present'][rows['train']], axis=1).any(0)
  absent = [name for place, name in enumerate(facts['class_names']) if not seen[place]]
  remarks = [f'training has no pixel of {", ".join(map(repr, absent[:5]))}'] if absent else []
  empty_ones = int((weight[rows['train']] == 0).sum())
  remarks += [f'{errors.counted(empty_ones, "training mask")} without a labeled pixel'] if empty_ones else []
  told_by = np.frombuffer(hashlib.sha256(about.encode()).digest(), np.uint8)
  pairs = np.concatenate([looked.found.digest, found.digest, np.tile(told_by, (count, 1))], axis=1)
  return Dataset(
    name or Path(listing.root).name,
    parts['train'],
    parts.get('validation', _nothing(parts['test'])),
    parts['test'],
    learned,
    facts,
    mean,
    std,
    fingerprint_of(looked, rows, pairs, encoder, False),
    (*looked.notes, *told, *remarks, *([] if known else notes)),
    encoder=encoder,
    files={where: tuple(listing.files[row] for row in which) for where, which in rows.items()},
  )


def _nothing(split: Split) -> Split:
  none = np.zeros(0, np.int64)
  return Split(*(one.take(none, axis=0) for one in split[:2]), split.weight[none])  # type: ignore[index]


def _pair(listing: folders.Listing, masks: folders.Listing) -> dict[str, str]:
  """Returns the mask of each picture, by their names without extensions."""
  by_stem: dict[str, str] = {}
  for file in masks.files:
    stem = os.path.splitext(file)[0]
    if stem in by_stem:
      raise ValueError(f'a picture has one mask; {masks.root} has {by_stem[stem]} and {file}: keep one')
    by_stem[stem] = file
  stems = [os.path.splitext(file)[0] for file in listing.files]
  without = [file for file, stem in zip(listing.files, stems, strict=True) if stem not in by_stem]
  if without:
    near = errors.nearest(without[0], masks.files, 1)
    raise ValueError(
      f'every picture has a mask of its name; {len(without):,} of {len(listing.files):,} have none in {masks.root}, '
      f'such as {without[0]!r} (nearest: {near}): add it, or move the picture elsewhere'
    )
  if alone := sorted(set(by_stem) - set(stems)):
    raise ValueError(
      f'every mask has a picture of its name; {masks.root} has {by_stem[alone[0]]!r} ({len(alone):,} in all) without '
      f'one in {listing.root}: remove it, or bring the picture'
    )
  return {file: by_stem[stem] for file, stem in zip(listing.files, stems, strict=True)}


def _listed(some: Any) -> list[Any]:
  """Gray values as whole numbers, colors as tuples of three."""
  some = [] if some is None else [some] if isinstance(some, int | np.integer) else list(some)
  return [tuple(map(int, one)) if isinstance(one, tuple | list | np.ndarray) else int(one) for one in some]


def _meant(values: Any, ignore: Any) -> tuple[list[Any] | None, list[Any]]:
  """Returns what stands for each class, None for its own number, and what for none."""
  known, left_out = None if values is None else _listed(values), _listed(ignore)
  if known is not None and (
    not 0 < len(known) <= _MOST_CLASSES
    or len(set(known)) != len(known)
    or {len(one) if isinstance(one, tuple) else 1 for one in known} not in ({1}, {3})
  ):
    raise ValueError(f'values are the gray values or the colors of the classes, each once; got {values}')
  colors = known is not None and isinstance(known[0], tuple)
  if left_out == [_VOID] and (colors or _VOID in (known or ())):  # that nobody asked for, most likely
    left_out = []
  if colors and len(left_out) == 3 and not any(isinstance(one, tuple) for one in left_out):
    left_out = [tuple(left_out)]
  if any(one in (known or ()) or isinstance(one, tuple) != colors for one in left_out):
    raise ValueError(
      f'ignore names {"colors" if colors else "gray values"} that are no class, values those that are one; got '
      f'ignore={ignore} and values={values}'
    )
  return known, left_out


def _reader(encoder: PictureEncoder, values: Any, ignored: list[Any]) -> Any:
  """Returns (content, where, (height, width)) -> labels int32 [H, W], and whether it holds 0 and 255 alone."""
  colors = values is not None and isinstance(values[0], tuple)

  def read(content: bytes, where: str, wanted: tuple[int, int]) -> tuple[np.ndarray, bool]:
    from PIL import Image

    try:
      with Image.open(io.BytesIO(content)) as image:
        if image.width * image.height > encoder.most_pixels:
          raise ValueError(f'{where} has {image.width} x {image.height} pixels, more than most_pixels')
        image.load()
        image = oriented(image)
    except Exception as error:
      told = str(error).split('\n')[0]
      raise ValueError(told if told.startswith(where) else f'{where} is damaged ({told})') from None
    if (image.height, image.width) != wanted:
      raise ValueError(
        f'a mask has the size of its picture; {where} is {image.height} x {image.width}, the picture '
        f'{wanted[0]} x {wanted[1]}'
      )
    if colors:
      raw = np.asarray(image.convert('RGB')).astype(np.int64)
      raw = raw[..., 0] << 16 | raw[..., 1] << 8 | raw[..., 2]
      known, other = ([red << 16 | green << 8 | blue for red, green, blue in which] for which in (values, ignored))
    elif image.mode in ('L', 'P', '1') or image.mode.startswith('I;16'):
      raw = np.asarray(image).astype(np.int64)
      known, other = values if values is not None else list(range(_MOST_CLASSES)), ignored
    else:
      raise ValueError(
        f'a mask is gray or of a palette; {where} is {image.mode}: give the color of each class, '
        'values=[(0, 0, 0), ...]'
      )
    table = {value: place for place, value in enumerate(known)} | dict.fromkeys(other, -1)
    found, index = np.unique(raw, return_inverse=True)
    for value in found.tolist():
      if value not in table:
        shown = (value >> 16, value >> 8 & 255, value & 255) if colors else value
        raise ValueError(f'a mask holds classes; {where} has {shown}, which is none: add it to values or ignore')
    labels = np.array([table[value] for value in found.tolist()], np.int32)[index].reshape(raw.shape)
    odd = not colors and image.mode != '1' and set(found.tolist()) <= {0, 255} and 255 in found
    stored = Image.fromarray(np.where(labels < 0, _OUTSIDE, labels).astype(np.int32))  # mode I: any number of classes
    placed = np.asarray(encoder.place(stored, _OUTSIDE, blends=False)).astype(np.int32)
    return np.where(placed == _OUTSIDE, -1, placed).astype(np.int32), odd

  return read
