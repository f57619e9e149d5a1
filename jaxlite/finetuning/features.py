"""Features of a backbone that does not learn, computed once and kept: a head on them then costs seconds.

They are kept by content: of the examples, of the backbone (its arrays and its program) and of the views. Where any of
these differs, so does the name. Memory does not grow with the examples: what is computed goes piece by piece into a
file that is mapped. Each piece is noted with its hash once it is on disk, so that a process that was killed goes on
with the next one; a complete folder has a proof, and what does not agree with it is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlite.contract import stream
from jaxlite.data import Dataset, Split, content
from jaxlite.data.columns import Columns, digest, with_columns
from jaxlite.data.dataset import check_dataset
from jaxlite.data.inputs import leaves, take
from jaxlite.errors import whole
from jaxlite.finetuning.head import Backbone
from jaxlite.host import files
from jaxlite.optim import Augmentation

_LAYOUT = 1  # of the files; another number makes older ones invisible
_PROOF, _ARRAY, _NOTES = 'proof.json', 'features.npy', 'pieces.jsonl'
_TELL_SECONDS = 5.0

Say = Callable[[str], None]


def cached_features(
  found: Backbone,
  split: Split,
  folder: str | os.PathLike[str],
  *,
  views: Sequence[Augmentation | None] = (None,),
  seed: int = 0,
  batch_size: int = 64,
  say: Say | None = None,
) -> np.ndarray:
  """Computes the features of a split's examples, or reads what an earlier call with the same has kept.

  Args:
    found: the backbone; it runs as in evaluation: no dropout, batch norm by its running statistics.
    split: examples in memory or memory-mapped.
    folder: where they are kept; made where it is not there.
    views: how each example is shown, one `(key, batch) -> batch` a view, None as it is; a view keeps the labels.
    seed: of the views.
    batch_size: examples at once; part of the name, since sums may round differently.
    say: prints a line where it takes long.

  Returns:
    float32[N, views, width], memory-mapped and read-only.

  Raises:
    ValueError: features that are not finite, a view that changes labels or shapes, a folder that cannot be written.

  >>> import tempfile, jax.numpy as jnp
  >>> from jaxlite.finetuning.head import backbone
  >>> params = {'a': jnp.eye(3), 'b': jnp.ones((3, 2))}
  >>> found = backbone((lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], params), np.eye(3))
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   cached_features(found, Split(np.eye(3, dtype=np.float32), np.arange(3, dtype=np.int32)), folder).shape
  (3, 1, 3)
  """
  if not isinstance(split, Split):
    raise ValueError(
      f'features are computed of examples in memory or mapped; got a {type(split).__name__}: give a data set of arrays'
    )
  views = list(views)
  if not views or not all(view is None or callable(view) for view in views):
    raise ValueError('views are functions (key, batch) -> batch, or None for the example as it is; one at least')
  whole(seed, 'seed', least=0)
  maker = _Maker(found, split, views, seed, min(whole(batch_size, 'batch_size', least=1), len(split.labels)))
  where = files.expanded(folder)
  final = where / maker.name()
  kept = _fetch(final, maker.shape)
  if kept is not None:
    return kept
  try:
    with _alone(where, final.name):
      kept = _fetch(final, maker.shape)  # by the process that was waited for
      if kept is None:
        _make(maker, final, say)
        kept = _fetch(final, maker.shape)
  except OSError as error:
    raise ValueError(f'cannot keep features in {where} ({error}): give another folder') from None
  if kept is None:
    raise ValueError(f'{final} does not hold what was written: is its disk full or failing?')
  return kept


def feature_data(
  found: Backbone,
  data: Dataset,
  folder: str | os.PathLike[str],
  *,
  views: Sequence[Augmentation | None] = (None,),
  seed: int = 0,
  batch_size: int = 64,
  say: Say | None = None,
) -> Dataset:
  """Returns a data set whose inputs are features of the backbone, computed once and kept.

  Args:
    found: the backbone.
    data: a Dataset of raw inputs.
    folder: where features are kept.
    views: of the training examples, as in `cached_features`; at each step one is drawn for each example. Validation
      and test are seen as they are.
    seed, batch_size, say: as in `cached_features`.

  Returns:
    The Dataset: inputs float32[N, width]. A head, or anything else, trains on it as on any.

  Raises:
    ValueError: as `cached_features`; the data bring columns or come from a stream.
  """
  check_dataset(data, 'feature_data')
  if not isinstance(data.train, Split):
    raise ValueError(f'feature_data takes plain examples; train is a {type(data.train).__name__}')
  options: dict[str, Any] = {'seed': seed, 'batch_size': batch_size, 'say': say}
  if data.reduction is not None:
    raise ValueError('a backbone takes inputs as they are: reduce what feature_data gives, not what it is given')
  shown = cached_features(found, data.train, folder, views=views, **options)
  splits = {'train': data.train._replace(inputs=shown[:, 0])}
  for name in ('validation', 'test'):
    split = getattr(data, name)
    empty = not len(split.labels)
    inputs = np.zeros((0, found.width), np.float32) if empty else cached_features(found, split, folder, **options)[:, 0]
    splits[name] = split._replace(inputs=inputs)
  told = json.dumps([data.fingerprint, *(digest(split.inputs) for split in splits.values())])
  fingerprint = hashlib.sha256(told.encode()).hexdigest()
  made = data._replace(**splits, mean=None, std=None, encoder=None, feature_names=(), fingerprint=fingerprint)
  return made if len(views) == 1 else with_columns(made, {'inputs': shown})


def is_columns(data: Dataset) -> bool:
  """Whether the training batches of a data set bring more than inputs and labels."""
  return isinstance(data.train, Columns)


class _Maker:
  """What is computed, and the programs that do."""

  def __init__(self, found: Backbone, split: Split, views: list[Any], seed: int, batch_size: int):
    self.found, self.split, self.seed, self.batch_size = found, split, seed, batch_size
    self.values = {'params': found.params, 'model_state': found.model_state}
    self.shown = [None if view is None else jax.jit(_drawn(view, number, seed)) for number, view in enumerate(views)]
    self.shape = (len(split.labels), len(views), found.width)
    self.pieces = [(view, start) for view in range(len(views)) for start in range(0, self.shape[0], batch_size)]

    @jax.jit
    def run(values: Any, inputs: Any) -> jax.Array:
      return found.model.apply(values['params'], values['model_state'], inputs, train=False, key=None)[0]

    self.run = run
    self.batch = self._batch(0)
    for number, show in enumerate(self.shown):
      self._check(number, show)

  def _check(self, number: int, show: Any) -> None:
    if show is None:
      return
    seen = jax.eval_shape(show, self.batch, 0)
    if not isinstance(seen, dict) or not {'inputs', 'labels'} <= set(seen):
      raise ValueError(f'a view returns a batch, a dict with inputs and labels; view {number} does not')
    for what in ('inputs', 'labels'):
      before, after = (jax.tree.map(lambda leaf: tuple(leaf.shape), one[what]) for one in (self.batch, seen))
      if before != after:
        raise ValueError(
          f'a view of cached features keeps the shape of {what}, {before}; view {number} makes it {after}: what blends '
          'labels (mixup, cutmix) is for jl.augment, while the network trains'
        )

  def _batch(self, start: int) -> dict[str, Any]:
    """Some examples as a batch; the last is filled up with the first ones, whose weight is 0."""
    count, size = len(self.split.labels), self.batch_size
    rows = np.arange(start, start + size) % count
    real = (np.arange(start, start + size) < count).astype(np.float32)
    return {'inputs': take(self.split.inputs, rows), 'labels': self.split.labels[rows], 'weight': real}

  def name(self) -> str:
    """Names what is kept by all that decides it."""
    inputs = [[path, digest(leaf)] if path else digest(leaf) for path, leaf in leaves(self.split.inputs)]
    views = [None if show is None else content.of_program(show, self.batch, 0) for show in self.shown]
    about = {
      'layout': _LAYOUT,
      'examples': inputs if views == [None] else [*inputs, digest(self.split.labels)],
      'arrays': content.of_arrays(self.values),
      'program': content.of_program(self.run, self.values, self.batch['inputs']),
      'views': views,
      'seed': self.seed if views != [None] else 0,
      'batch_size': self.batch_size,
    }
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:20]

  def rows(self, piece: tuple[int, int]) -> tuple[slice, int]:
    view, start = piece
    return slice(start, min(start + self.batch_size, self.shape[0])), view

  def compute(self, piece: tuple[int, int]) -> np.ndarray:
    """Returns float32[n, width] of one piece."""
    view, start = piece
    batch, show = self._batch(start), self.shown[view]
    shown = batch if show is None else show(batch, start // self.batch_size)
    if show is not None and not np.array_equal(np.asarray(shown['labels']), batch['labels']):
      raise ValueError(
        f'a view of cached features keeps the labels; view {view} changes them: what blends them (mixup, cutmix) is '
        'for jl.augment, while the network trains'
      )
    inputs = jax.tree.map(lambda leaf, raw: np.asarray(leaf).astype(raw.dtype), shown['inputs'], batch['inputs'])
    values = np.asarray(self.run(self.values, inputs))[: int(batch['weight'].sum())]
    if not np.isfinite(values).all():
      row, column = np.argwhere(~np.isfinite(values))[0]
      raise ValueError(
        f'features are finite; example {start + row} gives {values[row, column]} at {column}: look at that example, or '
        'at the weights of the backbone'
      )
    return values


def _drawn(view: Augmentation, number: int, seed: int) -> Callable[[Any, Any], Any]:
  def draw(batch: Any, chunk: Any) -> Any:
    return view(stream(jax.random.key(seed), f'view/{number}', chunk), batch)

  return draw


@contextlib.contextmanager
def _alone(where: Path, name: str) -> Any:
  """Keeps a second process from making the same: it waits, and then reads."""
  from filelock import FileLock

  where.mkdir(parents=True, exist_ok=True)
  with FileLock(where / f'.{name}.lock'):
    yield


def _make(maker: _Maker, final: Path, say: Say | None) -> None:
  """Computes what is missing, piece by piece, in a folder beside; renames it when it is whole."""
  part = final.with_name(f'.{final.name}.part')
  part.mkdir(parents=True, exist_ok=True)
  array = _opened(part, maker.shape)
  done = _done(part, array, maker)
  began = told = time.monotonic()
  computed = 0
  with open(part / _NOTES, 'a', encoding='utf-8') as notes:
    for number, piece in enumerate(maker.pieces):
      if number in done:
        continue
      rows, view = maker.rows(piece)
      array[rows, view] = maker.compute(piece)
      array.flush()  # on disk before it is noted
      notes.write(json.dumps([number, _hash(array[rows, view])]) + '\n')
      notes.flush()
      computed += 1
      if say is not None and time.monotonic() - told > _TELL_SECONDS:
        told = time.monotonic()
        left = (told - began) / computed * (len(maker.pieces) - len(done) - computed)
        say(f'features: {len(done) + computed} of {len(maker.pieces)} pieces, about {left:.0f} s left')
  (part / _PROOF).write_text(json.dumps({'sha256': digest(array)}))
  del array
  if final.exists():  # damaged: what is there is no good to anyone
    shutil.rmtree(final, ignore_errors=True)
  (part / _NOTES).unlink()
  files.settle(part, final, lambda folder: _fetch(folder, maker.shape) is not None)


def _opened(part: Path, shape: tuple[int, ...]) -> Any:
  """The file that is filled: the one that a killed process left, where it has this form."""
  path = part / _ARRAY
  with contextlib.suppress(OSError, ValueError, EOFError):
    array = np.load(path, mmap_mode='r+', allow_pickle=False)
    if array.shape == shape and array.dtype == np.float32:
      return array
  (part / _NOTES).unlink(missing_ok=True)
  return np.lib.format.open_memmap(path, 'w+', dtype=np.float32, shape=shape)


def _done(part: Path, array: np.ndarray, maker: _Maker) -> set[int]:
  """The pieces that were noted, and are what was noted."""
  found = set()
  try:
    lines = (part / _NOTES).read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError):
    return set()
  for line in lines:
    try:
      number, known = json.loads(line)
      rows, view = maker.rows(maker.pieces[number])
      if number >= 0 and _hash(array[rows, view]) == known:
        found.add(number)
    except (ValueError, TypeError, IndexError):  # the line that was being written
      continue
  return found


def _hash(values: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _fetch(folder: Path, shape: tuple[int, ...]) -> np.ndarray | None:
  """Returns what was written, or None where it is not there or no longer so."""
  try:
    known = files.read_json(folder / _PROOF)['sha256']
    array = np.load(folder / _ARRAY, mmap_mode='r', allow_pickle=False)
  except (OSError, ValueError, EOFError, AttributeError, TypeError, KeyError):
    return None
  return array if array.shape == shape and array.dtype == np.float32 and digest(array) == known else None
