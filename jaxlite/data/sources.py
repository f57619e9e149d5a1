"""`load`: a named data set as three splits, prepared once and read as arrays afterwards, without TensorFlow."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxlite import errors, tasks
from jaxlite.data import cache, idx
from jaxlite.data.arrays import from_arrays
from jaxlite.data.dataset import Dataset, check_labels
from jaxlite.data.inputs import as_inputs
from jaxlite.host.files import expanded, read_json

_PIECE = 1024  # examples decoded at once
_SPLITS = ('train', 'validation', 'test')


def load(name: str, *, directory: str = '', validation: float = 0.1, seed: int = 0) -> Dataset:
  """Loads a data set by name, preparing it first where that was not done before.

  Args:
    name: 'digits' (1,797 pictures, needs nothing), 'fashion_mnist' (from its four published files), or a data
      set that TensorFlow Datasets prepared as array_record: its name, or the path of its folder.
    directory: where the files lie. For 'fashion_mnist' the folder of the four files (empty: where Debian's
      package dataset-fashion-mnist puts them); for prepared data sets the TFDS data_dir (empty:
      $TFDS_DATA_DIR, else ~/tensorflow_datasets); 'digits' is prepared in it, if given.
    validation: the fraction of train to carve, seeded and stratified, where there is no such split. A data
      set without a test split is tested on its validation split, or else on a tenth of train.
    seed: of the carving. The test split does not depend on it where the data set has one.

  Returns:
    The Dataset. Pictures keep their uint8 pixels, [N, H, W, C]. What was prepared and decoded is kept in
    $JAXLITE_DATA, else $XDG_CACHE_HOME/jaxlite, else ~/.cache/jaxlite.

  Raises:
    ValueError: no such data set, files missing or not the published ones, or prepared in a format that cannot
      be read without TensorFlow; the message has the command that helps.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   data = load('digits', directory=folder)
  >>> data.train.inputs.shape, len(data.validation.labels), len(data.test.labels)
  ((1293, 8, 8, 1), 144, 360)
  """
  name, directory = os.fspath(name), os.fspath(directory)
  where = expanded(directory) if directory else cache.root()
  if name == 'digits':
    found = _decoded(_digits(where), where)
  elif name == 'fashion_mnist':
    found = _decoded((directory and _find(name, where)) or _fashion(directory), cache.root())
  else:
    base = where if directory else expanded(os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')
    prepared = _find(name, base)
    if prepared is None:
      raise ValueError(_unknown(name, base))
    found = _decoded(prepared, cache.root())
  splits, notes = dict(found.splits), []
  train = splits.pop('train', None)
  if train is None:
    raise ValueError(f'a data set needs a train split; {name} has {", ".join(splits) or "none of ours"}')
  if 'test' not in splits:
    notes.append(f'{name} has no test split: {"its validation split" if splits else "a tenth of train"} is the test')
    splits = {'test': splits['validation']} if splits else {}
  return from_arrays(
    train,
    splits.get('validation', validation),
    splits.get('test'),
    name=found.name,
    class_names=found.class_names,
    notes=notes,
    seed=seed,
  )


def _loads(asker: str) -> None:
  """Refuses a TFDS that is installed and does not load: it hides that itself, and fails later at `tfds.core`."""
  log = logging.getLogger('absl')  # which gets the traceback as well
  before = log.level
  log.setLevel(logging.CRITICAL)
  try:
    importlib.import_module('tensorflow_datasets.core')
  except Exception as error:  # a package it builds on may raise anything
    raise ImportError(
      f'{asker} needs tensorflow_datasets, which is installed and does not load ({_line(error)}): '
      'a package that it builds on is too old or too new; pip install --upgrade tensorflow-datasets '
      'tensorflow-metadata protobuf'
    ) from None
  finally:
    log.setLevel(before)


def _digits(where: pathlib.Path) -> pathlib.Path:
  prepared = cache.prepared(where, 'digits')
  if not (prepared / cache.PROOF).exists():
    errors.need('digits', 'tensorflow_datasets', 'sklearn')
    _loads('digits')
    from jaxlite.data import builders  # a second start imports no TFDS

    builders.prepare(builders.Digits, builders.read_digits, where)
  return prepared


def _fashion(directory: str) -> pathlib.Path:
  prepared = cache.prepared(cache.root(), 'fashion_mnist')
  if not directory and (prepared / cache.PROOF).exists():
    return prepared
  source = str(expanded(directory or idx.DEBIAN))
  absent = idx.missing(source)
  if absent:
    raise ValueError(
      f'fashion_mnist needs its four files; {source} lacks {", ".join(absent)}: on Debian or Ubuntu run '
      '`apt-get install dataset-fashion-mnist`, or put the four .gz files in a folder and pass --config.data.directory'
    )
  errors.need('fashion_mnist', 'tensorflow_datasets')
  _loads('fashion_mnist')
  from jaxlite.data import builders

  # Verified even when prepared: a folder that was asked for and is wrong must not pass in silence.
  arrays = idx.read_verified(source, builders.fashion_checksums())
  return builders.prepare(builders.FashionMnist, lambda: arrays, cache.root())


def _find(name: str, base: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder of a data set that TFDS prepared: the newest version where several stand."""
  relative = name.replace(':', '/')  # TFDS writes name:version
  # A bare name never means a folder that happens to lie in the current directory.
  for folder in (base / relative, *([expanded(relative)] if '/' in relative else [])):
    if (folder / cache.PROOF).is_file():
      return folder
    versions = [path.parent for path in folder.glob(f'*/{cache.PROOF}')]
    if versions:
      return max(versions, key=_version)
  if (base / cache.PROOF).is_file() and _named(base / cache.PROOF) == name:
    return base  # `directory` is the data set's own folder
  return None


def _named(proof: pathlib.Path) -> Any:
  """The name of the data set in a prepared folder; None where its description is damaged."""
  try:
    about = read_json(proof)
  except (OSError, ValueError):
    return None
  return about.get('name') if isinstance(about, dict) else None


def _version(folder: pathlib.Path) -> list[int]:
  return [int(number) for number in re.findall(r'\d+', folder.name)]


def _unknown(name: str, base: pathlib.Path) -> str:
  if not name or expanded(name).is_absolute():
    return f'no data set is prepared in {name!r}: name digits, fashion_mnist, or the folder that holds {cache.PROOF}'
  there = [path.name for path in base.iterdir() if path.is_dir()] if base.is_dir() else []
  close = ', '.join(difflib.get_close_matches(name, ['digits', 'fashion_mnist', *there], n=3, cutoff=0.3))
  return (
    f'no data set {name!r} is prepared in {base}{f" (nearest: {close})" if close else ""}: '
    f'give --config.data.directory, or run `{_command(name, str(base))}` where TensorFlow is installed'
  )


def _command(reference: str, base: str) -> str:
  """Returns the command that prepares a data set as array_record. (The `tfds` program needs Apache Beam too.)"""
  made = f'tfds.builder({reference!r}, data_dir={base!r}, file_format={"array_record"!r}).download_and_prepare()'
  return f'python -c "import tensorflow_datasets as tfds; {made}"'


def _reference(info: Any) -> str:
  """Returns 'name:version' or 'name/config:version', as TFDS reads it."""
  return ':'.join(info.full_name.rsplit('/', 1))


def _decoded(prepared: pathlib.Path, where: pathlib.Path) -> cache.Decoded:
  """Returns a prepared data set as arrays, decoding it unless that was done before."""
  final = cache.place(prepared, where)
  found = cache.fetch(final)
  if found is None:
    with cache.scratch(where) as folder:
      if final.exists():  # damaged
        shutil.move(final, folder / 'damaged')
      made = folder / 'decoded'
      made.mkdir()
      _decode(prepared, made)
      cache.settle(made, final)
    found = cache.fetch(final)
  if found is None:
    raise ValueError(f'{final} changes while it is read: remove it and run again')
  return found


def _decode(prepared: pathlib.Path, folder: pathlib.Path) -> None:
  errors.need(f'reading {prepared}', 'tensorflow_datasets')
  _loads(f'reading {prepared}')
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(prepared)
  except Exception as error:  # TFDS raises many kinds for a damaged folder
    raise ValueError(
      f'{prepared} is no prepared data set, or damaged ({_line(error)}): remove it and prepare it again'
    ) from None
  formats = sorted(form.value for form in builder.info.available_file_formats())
  if not {'array_record', 'parquet'} & set(formats):
    target = f'{prepared}-array_record'
    raise ValueError(
      f'{"/".join(formats)} cannot be read without TensorFlow; {prepared} holds nothing else: where TensorFlow is '
      f'installed, run `{_command(_reference(builder.info), target)}`, then pass --config.data.directory={target}'
    )
  inputs, label = _keys(builder.info, tfds)
  names = getattr(builder.info.features[label], 'names', None) or ()
  others = {key: tfds.decode.SkipDecoding() for key in builder.info.features if key not in (inputs, label)}
  splits: dict[str, Any] = {}
  for split in _SPLITS:
    if split in builder.info.splits:
      source = _source(builder, split, others, prepared)
      splits[split] = (len(source), _pieces(source, inputs, label, f'{split} of {prepared}'))
  cache.store(folder, builder.info.name, names, splits)


def _source(builder: Any, split: str, decoders: Any, prepared: pathlib.Path) -> Any:
  try:
    return builder.as_data_source(split=split, decoders=decoders)
  except Exception as error:  # a missing or foreign shard
    raise ValueError(f'{split} of {prepared} cannot be read ({_line(error)}): remove it and prepare it again') from None


def _keys(info: Any, tfds: Any) -> tuple[str, str]:
  """Returns which features are the input and the label."""
  keys = info.supervised_keys
  if isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(key, str) for key in keys):
    return keys
  features = dict(info.features)
  pictures = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
  labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
  if len(pictures) != 1 or len(labels) != 1:
    raise ValueError(
      f'one input and one label are wanted; {info.name} has {", ".join(sorted(features))} and no such supervised_keys: '
      'read it yourself and pass arrays to from_arrays'
    )
  return pictures[0], labels[0]


def _pieces(source: Any, inputs: str, label: str, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  shape = None
  for start in range(0, len(source), _PIECE):
    try:
      examples = source.__getitems__(range(start, min(start + _PIECE, len(source))))
    except Exception as error:  # array_record and the decoders raise many kinds
      raise ValueError(
        f'{split} cannot be read from example {start} on ({_line(error)}): remove it and prepare it again'
      ) from None
    for index, example in enumerate(examples):
      got = np.shape(example[inputs])
      shape = got if shape is None else shape
      if got != shape:
        raise ValueError(
          f'examples have one shape; {split} has {list(shape)} at 0 and {list(got)} at {start + index}: '
          'resize them and pass arrays to from_arrays'
        )
    pixels = as_inputs(np.stack([example[inputs] for example in examples]), split)
    yield pixels, check_labels(tasks.classification(), np.stack([example[label] for example in examples]), split)


def _line(error: Exception) -> str:
  """The first line of another library's error."""
  return f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else "no message"}'
