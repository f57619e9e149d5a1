"""A data set out of a folder of pictures: decoded by threads when a batch asks for them, never all in memory."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlite import errors, tasks
from jaxlite.data import folders, frames, splits
from jaxlite.data.arrays import carved, groups
from jaxlite.data.chosen import choose
from jaxlite.data.contradictions import contradictions
from jaxlite.data.dataset import Dataset, as_task, check_labels, check_split, finish
from jaxlite.data.decoded import AHEAD, Decoded, Workers
from jaxlite.data.inspection import Inspection
from jaxlite.data.picture_files import decoder, fingerprint_of, look_at, sized, statistics
from jaxlite.data.pixels import MOST_PIXELS, PictureEncoder, reads_name
from jaxlite.data.table_labels import read_labels
from jaxlite.tasks.task import Task

KEEPS = ('auto', 'memory', 'folder', 'pixels', 'jpeg')


def pictures(
  folder: str | os.PathLike[str],
  size: int | tuple[int, int] | None = None,
  *,
  channels: int = 3,
  fit: str = 'crop',
  background: int = 255,
  keep: str = 'auto',
  broken: str = 'error',
  labels: Any = None,
  file: str = 'file',
  label: str = 'label',
  task: Task | Callable[[], Task] | None = None,
  validation: float | None = None,
  test: float | None = None,
  standardize: Any = True,
  facts: Mapping[str, Any] | None = None,
  threads: int | None = None,
  ahead: int = AHEAD,
  most_pixels: int = MOST_PIXELS,
  progress: bool = True,
  name: str = '',
  seed: int = 0,
) -> Dataset:
  """Makes a Dataset of the pictures in a folder, decoded when a batch asks for them.

  Every file is looked at once before training, by threads, and the look is remembered: what cannot be read is named
  then, and not in the middle of a run.

  Args:
    folder: holds a folder for each class, with pictures at any depth; or folders train, val and test that do so. Any
      size, format and mode that Pillow reads; hidden files are passed over, links followed.
    size: height and width that every picture is brought to, or one number for both; None where all have one size.
    channels: 3 for RGB, 1 for gray.
    fit: 'crop', 'stretch' or 'pad', see `PictureEncoder`.
    background: 0 to 255, beneath what is transparent and around what is padded.
    keep: where pictures are decoded from. 'folder': from their files, at each use. 'memory': once, as uint8. 'pixels':
      once, as uint8 in one file among the user's caches (`$JAXLITE_DATA`). 'jpeg': so too, scaled and as JPEG of
      quality 95, which changes pixels a little: for large photographs. 'auto': in memory where all take at most 256 MiB
      and an eighth of what is free, else from the folder. But for 'jpeg' no bit depends on it.
    broken: 'error' names the files that cannot be used; 'skip' leaves them out and says so.
    labels: where classes are no folders: a table (see `from_table`) with a row for each picture.
    file: the column of `labels` that has paths relative to the folder.
    label: the column of `labels` that is learned.
    task: what is learned; None takes classification.
    validation: the fraction of training to carve, seeded and stratified, where the folder has no such split; None takes
      a tenth, 0 holds nothing out.
    test: likewise, above 0. A folder with train and val alone is tested on val.
    standardize: True, False, or a pair (mean, std) of float[channels] in units of 0 to 255.
    facts: what else the task should know, by name.
    threads: that decode; None takes one a core, 8 at most. No bit depends on it.
    ahead: bytes that are decoded before a step asks for them, at most.
    most_pixels: a picture that is larger when decoded is refused.
    progress: whether what takes seconds says how far it is, on the standard error.
    name: what the data are called; '' takes the folder's name.
    seed: of the carving.

  Returns:
    The Dataset: inputs uint8 [N, height, width, channels]. `encoder` makes them of other pictures, and is kept with a
    run; `files` names each example's file.

  Raises:
    ValueError: one line: no such folder, an empty class, pictures outside of classes, files that cannot be used,
      several sizes and none asked for, a picture without a label.

  >>> import pathlib, tempfile
  >>> from PIL import Image
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   for number in range(20):
  ...     place = pathlib.Path(folder, 'dark' if number % 2 else 'light')
  ...     place.mkdir(exist_ok=True)
  ...     Image.new('L', (9, 7), 200 - number if number % 2 else number).save(place / f'{number}.png')
  ...   data = pictures(folder, size=8)
  >>> data.train.inputs.shape, data.class_names, data.files['test']
  ((16, 8, 8, 3), ('dark', 'light'), ('dark/5.png', 'light/10.png'))
  """
  encoder = PictureEncoder(as_size(size), channels, fit, background, most_pixels)
  if keep not in KEEPS:
    raise ValueError(
      f'keep is one of {", ".join(KEEPS)}; got {keep!r} (nearest: {errors.nearest(str(keep), KEEPS, 1)})'
    )
  workers = Workers(threads)
  if labels is None:
    listing = folders.list_classes(folder, reads_name, 'picture')
  else:
    listing = folders.list_all(folder, reads_name, 'picture')
  targets = None if labels is None else _from_table(listing, labels, file, label, task)
  looked = look_at(listing, encoder, broken, workers, progress)
  listing, found = looked.listing, looked.found
  if targets is None:
    learned = tasks.classification() if task is None else as_task(task, np.zeros(1, np.int32))
    class_names = sorted(set(listing.labels))
    values = np.searchsorted(class_names, listing.labels).astype(np.int32)
    given: dict[str, Any] = {'class_names': class_names}
  else:
    learned, by_file, given = targets
    values = np.asarray([by_file[one] for one in listing.files])
  checked = check_labels(learned, values, 'train')
  rows, told = split_rows(listing, learned, checked, validation, test, seed)
  encoder = sized(encoder, looked)
  base = decoder(looked, encoder, keep, workers, ahead, progress)
  parts = {
    where: check_split(
      learned, (base.rows(which) if isinstance(base, Decoded) else choose(base, which), values[which]), where
    )
    for where, which in rows.items()
  }
  data = finish(
    name or Path(listing.root).name,
    parts,
    learned,
    classes=None,
    class_names=None,
    facts={**given, **(facts or {})},
    standardize=standardize,
    notes=[*looked.notes, *told, *twins(found, rows, listing.files, values)],
    encoder=encoder,
    statistics=statistics(found, rows['train'], encoder),
    sha256=fingerprint_of(looked, rows, checked, encoder, keep == 'jpeg'),
  )
  return data._replace(files={where: tuple(listing.files[row] for row in which) for where, which in rows.items()})


def as_size(size: Any) -> tuple[int, int] | None:
  """Returns (height, width), both whole and positive, or None.

  >>> as_size(8), as_size((4, 6))
  ((8, 8), (4, 6))
  """
  if size is None:
    return None
  both = tuple(size) if isinstance(size, tuple | list) else (size, size)
  if len(both) != 2:
    raise ValueError(f'size is (height, width) or one number for both; got {size!r}')
  return (errors.whole(both[0], 'size', least=1), errors.whole(both[1], 'size', least=1))


def split_rows(
  listing: folders.Listing, task: Task, labels: np.ndarray, validation: float | None, test: float | None, seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns the rows of each split, those of folders or carved from training, and notes."""
  given = {split: np.flatnonzero(np.array(listing.splits) == split) for split in ('train', 'validation', 'test')}
  train, notes = given.pop('train'), []
  rows = {split: which for split, which in given.items() if len(which)}
  if 'validation' in rows and 'test' not in rows:
    rows = {'test': rows['validation']}
    notes = [f'{listing.root} has no test split: its validation split is the test, and validation is carved']
  if 'test' not in rows:
    own = carved(task, labels[train], 0 if 'validation' in rows else validation, test, seed)
  elif 'validation' not in rows and validation != 0:
    own = carved_validation(task, labels[train], validation, seed)
  else:
    own = {'train': np.arange(len(train))}
  rows |= {split: train[which] for split, which in own.items()}
  order = [split for split in ('train', 'validation', 'test') if split in rows]
  return {split: rows[split] for split in order}, notes


def carved_validation(task: Task, labels: np.ndarray, validation: float | None, seed: int) -> dict[str, np.ndarray]:
  """Returns the rows of 'train' and 'validation', where a test split is given."""
  count = splits.share(0.1 if validation is None else validation, len(labels), 'validation')
  kept, taken = splits.carve(groups(task, labels), count, seed, 'validation')
  return {'train': kept, 'validation': taken}


def twins(found: Inspection, rows: dict[str, np.ndarray], files: Sequence[str], labels: np.ndarray) -> list[str]:
  """Returns notes on files that stand in two splits, or with two labels, byte for byte, or none."""
  seen: dict[bytes, tuple[str, int]] = {}
  twins: list[tuple[str, str, int, int]] = []
  for where, which in rows.items():
    mine = {found.digest[row].tobytes(): row for row in which.tolist()}
    twins += [(seen[key][0], where, seen[key][1], row) for key, row in mine.items() if key in seen]
    seen = {**{key: (where, row) for key, row in mine.items()}, **seen}
  apart = contradictions(found.digest, labels, 'file', files)
  if not twins:
    return apart
  one, other, first, second = twins[0]
  return [
    f'{errors.counted(len(twins), "file")} in two splits, byte for byte, such as {files[first]} in {one} and '
    f'{files[second]} in {other}: scores are too good (jl.data.quality shows all)',
    *apart,
  ]


def _from_table(
  listing: folders.Listing, table: Any, file: str, label: str, task: Any
) -> tuple[Task, dict[str, Any], dict[str, Any]]:
  """Returns the task, the label of each file, and what the label's column says."""
  columns = frames.read_columns(table)
  for wanted in (file, label):
    if wanted not in columns:
      near = errors.nearest(wanted, columns)
      raise ValueError(
        f'labels are a table with the columns {file!r} and {label!r}; it lacks {wanted!r} (nearest: {near})'
      )
  names = [str(Path(str(name)).as_posix()) for name in columns[file].tolist()]
  twice = [name for name, count in collections.Counter(names).items() if count > 1]
  if twice:
    raise ValueError(f'each picture has one row of labels; {twice[0]!r} has several: keep one')
  learned, values, given = read_labels({label: columns[label]}, task)
  known = set(listing.files)
  if lost := [name for name in names if name not in known]:
    near = errors.nearest(lost[0], listing.files, 1)
    raise ValueError(
      f'each row of labels names a picture in {listing.root}; {errors.counted(len(lost), "row")} do not, such as '
      f'{lost[0]!r} (nearest: {near})'
    )
  by_file = dict(zip(names, values, strict=True))
  if without := [name for name in listing.files if name not in by_file]:
    raise ValueError(
      f'every picture has a label; {len(without):,} of {len(listing.files):,} pictures have no row, such as '
      f'{without[0]!r}: add them to the table, or move them elsewhere'
    )
  return learned, by_file, given
