"""What a person should know of data before training on them: counts, twins, outliers, what is constant or missing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite.data import frames
from jaxlite.data import inputs as trees
from jaxlite.data.dataset import Dataset
from jaxlite.errors import counted

_PIECE = 1 << 24  # bytes of examples looked at at once
_NEAR_BITS = 4  # of 64, in which gradients of near twins may differ
_NEAR_LEVELS = 6.0  # of 255, mean difference of their thumbnails
_SIDE = 16  # of a thumbnail
_FAR = 8.0  # robust deviations from the median
_MOST_PAIRS = 100_000
_SHOWN = 5


class Twin(NamedTuple):
  """Two examples that are the same, or nearly.

  Attributes:
    first, second: (split, row) of each.
    same_label: whether their labels agree.
  """

  first: tuple[str, int]
  second: tuple[str, int]
  same_label: bool


class Quality(NamedTuple):
  """What was found; `str` is a table to read.

  Attributes:
    name: of the data.
    counts: by split, examples of each class; {'': all of them} where there are no classes.
    twins: examples whose inputs are equal.
    near: pictures that look alike: scaled, compressed again, a little brighter.
    outliers: ((split, row), why).
    constant: features or columns that never change.
    missing: (what, how many): labels, cells of a table, files that cannot be read.
    files: by split, the file of each example, where there are any.
    notes: what else was found, and what was not looked at.
  """

  name: str
  counts: dict[str, dict[str, int]]
  twins: tuple[Twin, ...]
  near: tuple[Twin, ...]
  outliers: tuple[tuple[tuple[str, int], str], ...]
  constant: tuple[str, ...]
  missing: tuple[tuple[str, int], ...]
  files: dict[str, Sequence[str]]
  notes: tuple[str, ...]

  def between(self, twins: Sequence[Twin]) -> list[Twin]:
    """Returns those of two splits: what they are tested on was seen."""
    return [twin for twin in twins if twin.first[0] != twin.second[0]]

  def __str__(self) -> str:
    lines = [f'quality of {self.name}']
    splits = list(self.counts)
    classes = list(dict.fromkeys(name for split in splits for name in self.counts[split]))
    width = max([len(name) for name in classes] + [8])
    lines.append('  ' + 'examples'.ljust(width) + ''.join(split.rjust(12) for split in splits))
    shown = sorted(classes, key=lambda name: -self.counts[splits[0]].get(name, 0))
    if len(shown) > 12:
      shown = [*shown[:6], *shown[-6:]]
    if classes != ['']:
      for name in shown:
        lines.append(
          '  ' + name.ljust(width) + ''.join(f'{self.counts[split].get(name, 0):,}'.rjust(12) for split in splits)
        )
      if len(classes) > len(shown):
        lines.append(f'  ({len(classes) - len(shown)} classes between these are not shown)')
    lines.append(
      '  ' + 'all'.ljust(width) + ''.join(f'{sum(self.counts[split].values()):,}'.rjust(12) for split in splits)
    )
    for what, twins in (('equal', self.twins), ('look alike', self.near)):
      across, apart = self.between(twins), [twin for twin in twins if not twin.same_label]
      lines.append(
        f'  {counted(len(twins), "pair")} {what}: {len(across):,} between splits, {len(apart):,} with other labels'
      )
      lines += [
        f'    {self._name(twin.first)} = {self._name(twin.second)}' for twin in (across or apart or twins)[:_SHOWN]
      ]
    lines.append(f'  {counted(len(self.outliers), "outlier")}')
    lines += [f'    {self._name(place)}: {why}' for place, why in self.outliers[:_SHOWN]]
    named = ', '.join(self.constant[:_SHOWN]) + (' ...' if len(self.constant) > _SHOWN else '')
    lines.append(f'  {counted(len(self.constant), "constant feature")}{": " + named if named else ""}')
    lines.append('  missing: ' + (', '.join(f'{number:,} {what}' for what, number in self.missing) or 'nothing'))
    return '\n'.join([*lines, *(f'  note: {note}' for note in self.notes)])

  def _name(self, place: tuple[str, int]) -> str:
    split, row = place
    return self.files[split][row] if split in self.files else f'{split} {row}'


def quality(data: Any, label: str | None = None, **options: Any) -> Quality:
  """Looks at every example once and tells what may be wrong with them.

  Args:
    data: a Dataset; the folder of a `pictures` data set, whose broken files are then counted; or a table as
      `from_table` takes it, before anything is made of it.
    label: of a table, the column that is learned.
    **options: of a folder, as `pictures` takes them; size is 64 where none is given.

  Returns:
    The Quality; print it. Equal inputs are found by hash; pictures that look alike by where brightness rises, and by
    thumbnails of 16 x 16. An outlier is a picture of one color, or one whose brightness or contrast, or a feature that,
    lies 8 robust deviations off.

  Raises:
    ValueError: as the data's own maker.

  >>> from jaxlite.data import from_arrays
  >>> inputs = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
  >>> inputs[:, 2], inputs[7] = 1, inputs[3]
  >>> found = quality(from_arrays((inputs, np.arange(40) % 2)))
  >>> len(found.twins), found.constant
  (1, ('feature 2',))
  """
  if isinstance(data, Dataset):
    return _of_dataset(data)
  if isinstance(data, str | os.PathLike) and Path(data).is_dir() and not list(Path(data).glob('*.parquet')):
    from jaxlite.data.picture_folder import pictures

    return _of_dataset(pictures(data, **{'size': 64, 'broken': 'skip', **options}))
  return _of_table(
    frames.read_columns(data), label, Path(data).stem if isinstance(data, str | os.PathLike) else 'table'
  )


def _of_dataset(data: Dataset) -> Quality:
  splits = {where: getattr(data, where) for where in ('train', 'validation', 'test')}
  notes = list(data.notes)
  if not hasattr(splits['train'], 'labels'):
    notes.append(f'training examples come from a {type(splits.pop("train")).__name__}, which is not looked at')
  splits = {where: split for where, split in splits.items() if len(split.labels)}
  names = list(data.class_names)
  counts, missing = {}, []
  for where, split in splits.items():
    labels = split.labels
    if names and labels.ndim == 1 and labels.dtype.kind in 'iu':
      each = np.bincount(np.asarray(labels), minlength=len(names))
      counts[where] = dict(zip(names, each.tolist(), strict=True))
    else:
      counts[where] = {'': len(labels)}
    if split.weight is not None and (zero := int((np.asarray(split.weight) == 0).sum())):
      missing.append((f'examples of {where} without a label or weight', zero))
  digests, looks, thumbs, outliers, constant = _look(splits, data)
  places = [(where, row) for where, split in splits.items() for row in range(len(split.labels))]
  labels = [np.asarray(split.labels) if split.labels.ndim < 3 else None for split in splits.values()]
  flat = [None if part is None else one for part in labels for one in (part if part is not None else [])]
  alike = (lambda one, other: bool(np.array_equal(flat[one], flat[other]))) if len(flat) == len(places) else (
    lambda one, other: True)  # fmt: skip
  equal = _equal(digests)
  twins = tuple(Twin(places[one], places[other], alike(one, other)) for one, other in equal)
  near: tuple[Twin, ...] = ()
  if looks is not None:
    pairs, cut = _near(looks, thumbs, digests)
    near = tuple(Twin(places[one], places[other], alike(one, other)) for one, other in pairs)
    if cut:
      notes.append(f'of pictures that look alike only the first {_MOST_PAIRS:,} candidates were compared')
  files = dict(data.files or {})
  return Quality(data.name, counts, twins, near, tuple(outliers), constant, tuple(missing), files, tuple(notes))


def _look(splits: dict[str, Any], data: Dataset) -> Any:
  """One pass over all examples, in pieces: hashes, and what pictures and features look like."""
  digests: list[bytes] = []
  looks: list[int] = []
  thumbs: list[np.ndarray] = []
  bright: list[tuple[float, float]] = []
  lows: Any = None
  highs: Any = None
  first = splits[next(iter(splits))].inputs
  pictures = getattr(first, 'ndim', 0) == 4 and first.dtype == np.uint8 and first.shape[-1] in (1, 3)
  for split in splits.values():
    for part in _pieces(split.inputs):
      arrays = jax.tree.leaves(part)
      for row in range(len(arrays[0])):
        told = hashlib.blake2b(digest_size=16)
        for array in arrays:
          told.update(np.ascontiguousarray(array[row]))
        digests.append(told.digest())
      if pictures:
        for image in arrays[0]:
          look, thumb, light = _pictured(image)
          looks.append(look)
          thumbs.append(thumb)
          bright.append(light)
      elif len(arrays) == 1 and arrays[0].ndim == 2 and arrays[0].dtype.kind == 'f':
        low, high = arrays[0].min(0), arrays[0].max(0)
        lows, highs = (low, high) if lows is None else (np.minimum(low, lows), np.maximum(high, highs))
  constant = () if lows is None else _named(np.flatnonzero(lows == highs), data)
  outliers = _odd_pictures(splits, np.array(bright)) if pictures else _odd_features(splits, data, lows)
  return digests, np.array(looks, np.uint64) if pictures else None, np.array(thumbs), outliers, constant


def _pieces(inputs: Any) -> Iterator[Any]:
  leaves = [leaf for _, leaf in trees.leaves(inputs)]
  each = sum(leaf.nbytes for leaf in leaves) // max(1, len(leaves[0]))
  step = max(1, _PIECE // max(1, each))
  for start in range(0, len(leaves[0]), step):
    yield jax.tree.map(lambda leaf: np.asarray(leaf[start : start + step]), inputs)  # noqa: B023 - used at once


def _pictured(image: np.ndarray) -> tuple[int, np.ndarray, tuple[float, float]]:
  from PIL import Image

  from jaxlite.data.picture_files import gradient_hash

  shown = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  gray = shown.convert('L')
  thumb = np.asarray(gray.resize((_SIDE, _SIDE), Image.Resampling.BOX))
  values = np.asarray(gray, np.float32)
  return gradient_hash(shown), thumb, (float(values.mean()), float(values.std()))


def _equal(digests: list[bytes]) -> list[tuple[int, int]]:
  """Pairs of equal ones: each with the first of its kind."""
  seen: dict[bytes, int] = {}
  return [(seen[one], place) for place, one in enumerate(digests) if seen.setdefault(one, place) != place]


def _near(looks: np.ndarray, thumbs: np.ndarray, digests: list[bytes]) -> tuple[list[tuple[int, int]], bool]:
  """Pairs that look alike and are not equal. What differs in few bits agrees in one of several parts of them."""
  found: set[tuple[int, int]] = set()
  tried, parts = 0, _NEAR_BITS + 1
  flat = thumbs.reshape(len(thumbs), -1).astype(np.int16)
  varied = flat.std(1) > 4  # of pictures of one color all look alike
  edges = np.linspace(0, 64, parts + 1).astype(int)
  for part in range(parts):
    mask = np.uint64(((1 << int(edges[part + 1] - edges[part])) - 1) << int(edges[part]))
    keys = looks & mask
    order = np.argsort(keys, kind='stable')
    order = order[varied[order]]
    starts = np.flatnonzero(np.r_[True, np.diff(keys[order]) != 0])
    for start, end in zip(starts, np.r_[starts[1:], len(order)], strict=True):
      group = order[start:end]
      for place, one in enumerate(group[:-1]):
        others = group[place + 1 :]
        tried += len(others)
        if tried > _MOST_PAIRS * 100:
          return sorted(found), True
        close = np.bitwise_count(looks[others] ^ looks[one]) <= _NEAR_BITS
        for other in others[close].tolist():
          pair = (min(int(one), other), max(int(one), other))
          same = digests[pair[0]] == digests[pair[1]]
          if not same and pair not in found and np.abs(flat[pair[0]] - flat[pair[1]]).mean() <= _NEAR_LEVELS:
            found.add(pair)
            if len(found) >= _MOST_PAIRS:
              return sorted(found), True
  return sorted(found), False


def _robust(values: np.ndarray) -> np.ndarray:
  """How many robust deviations each value lies from the median, [N, ...]; 0 where most are alike."""
  middle = np.median(values, 0)
  spread = 1.4826 * np.median(np.abs(values - middle), 0)
  return np.where(spread > 0, np.abs(values - middle) / np.where(spread > 0, spread, 1), 0)


def _odd_pictures(splits: dict[str, Any], bright: np.ndarray) -> list[tuple[tuple[str, int], str]]:
  places = [(where, row) for where, split in splits.items() for row in range(len(split.labels))]
  far = _robust(bright)
  found = []
  for place, (mean, spread), (one, other) in zip(places, bright, far, strict=True):
    if spread < 1:
      found.append((place, f'one color, {mean:.0f}'))
    elif max(one, other) > _FAR:
      what = f'mean {mean:.0f}' if one > other else f'contrast {spread:.0f}'
      found.append((place, f'{what}, {max(one, other):.0f} robust deviations off'))
  return found


def _odd_features(splits: dict[str, Any], data: Dataset, lows: Any) -> list[tuple[tuple[str, int], str]]:
  if lows is None:
    return []
  found = []
  train = np.asarray(splits[next(iter(splits))].inputs)
  middle = np.median(train, 0)
  spread = 1.4826 * np.median(np.abs(train - middle), 0)
  for where, split in splits.items():
    values = np.asarray(split.inputs)
    off = np.where(spread > 0, np.abs(values - middle) / np.where(spread > 0, spread, 1), 0)
    for row in np.flatnonzero((off > _FAR).any(1)).tolist():
      column = int(off[row].argmax())
      name = _named(np.array([column]), data)[0]
      found.append(((where, row), f'{name} is {values[row, column]:g}, {off[row, column]:.0f} robust deviations off'))
  return found


def _named(columns: np.ndarray, data: Dataset) -> tuple[str, ...]:
  return tuple(data.feature_names[one] if data.feature_names else f'feature {one}' for one in columns.tolist())


def _of_table(columns: dict[str, np.ndarray], label: str | None, name: str) -> Quality:
  text = {column: frames.as_text(values) for column, values in columns.items()}
  count = len(next(iter(text.values())))
  if label is not None and label not in text:
    from jaxlite.errors import nearest

    raise ValueError(f'label is a column of the table; got {label!r} (nearest: {nearest(label, text)})')
  missing = [
    (f'cells of {column!r}' if column != label else f'labels ({column!r})', int((cells == '').sum()))
    for column, cells in text.items()
    if (cells == '').any()
  ]
  features = [column for column in text if column != label]
  rows = ['\0'.join(text[column][row] for column in features).encode() for row in range(count)]
  labels = text[label] if label is not None else np.zeros(count)
  twins = tuple(Twin(('rows', one), ('rows', other), bool(labels[one] == labels[other])) for one, other in _equal(rows))
  constant = tuple(column for column in features if (text[column] == text[column][0]).all())
  outliers: list[tuple[tuple[str, int], str]] = []
  for column in features:
    try:
      numbers = frames.as_numbers(column, columns[column])
    except ValueError:
      continue
    if numbers is None or not np.isfinite(numbers).any():
      continue
    off = _robust(np.where(np.isfinite(numbers), numbers, np.nanmedian(numbers)))
    told = [
      (('rows', row), f'{column} is {numbers[row]:g}, {off[row]:.0f} robust deviations off')
      for row in np.flatnonzero(off > _FAR).tolist()
    ]
    outliers += told
  kinds, each = np.unique(labels, return_counts=True)
  named = label is not None and len(kinds) <= max(20, count // 50)
  counts = {'rows': dict(zip(map(str, kinds), each.tolist(), strict=True)) if named else {'': count}}
  return Quality(name, counts, twins, (), tuple(outliers), constant, tuple(missing), {}, ())
