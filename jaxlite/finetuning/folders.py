"""Folders with weights: one file, shards with their index, a checkpoint, a run; archives that hold such a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlite import trees
from jaxlite.checkpoint import find_orbax, read_foreign
from jaxlite.finetuning.weights import Asker, Stored, Weights, WeightsError, _cut, mapped, stored
from jaxlite.host.limits import disk_free
from jaxlite.host.machine import versions

ENDINGS = ('.safetensors', '.gguf', '.pth', '.pt', '.bin', '.ckpt', '.h5', '.keras', '.npz', '.msgpack')
_INDEX = '.index.json'
_SHARD = re.compile(r'-\d{5}-of-(\d{5})(?=\.)')
_MOST_INDEX = 64 << 20  # bytes
_MOST_SHARDS = 10_000

Reader = Callable[[np.ndarray, str], Weights]
Opened = Callable[[str], np.ndarray]


def read_folder(folder: Path, reader: Reader) -> Weights:
  """Reads the weights of a folder: a run's, Orbax's, or the one model that lies there.

  Args:
    folder: what was given.
    reader: reads one file.
  """
  if (folder / 'checkpoints').is_dir() and (folder / 'config.json').is_file():
    return read_run_folder(folder)
  found = find_orbax(folder)
  if found is not None:
    return read_orbax(found)
  names = sorted(path.name for path in folder.iterdir() if path.is_file())
  return read_names(names, str(folder), lambda name: mapped(folder / name), reader)


def read_names(names: Iterable[str], where: str, opened: Opened, reader: Reader) -> Weights:
  """Reads the one model among files: the shards of an index, a file of safetensors before others, or the only one.

  Args:
    names: of the files.
    where: names the folder or archive in errors.
    opened: name -> uint8[bytes].
    reader: reads one file.
  """
  names = list(names)
  indices = [name for name in names if name.endswith(_INDEX)]
  files = [name for name in names if name.lower().endswith(ENDINGS) and not _is_other(name)]
  safe = [name for name in files if name.endswith('.safetensors')]
  if indices:
    best = [name for name in indices if '.safetensors.' in name] or indices
    if len(best) > 1:
      raise WeightsError(f'{where} holds several models ({", ".join(sorted(best))}): give the path of one index')
    return read_shards(best[0], names, where, opened, reader)
  shards = [name for name in files if _SHARD.search(name)]
  if shards and shards[0].endswith('.gguf'):
    return read_split(shards, where, opened, reader)
  if shards:
    raise WeightsError(f'{where} holds shards ({shards[0]}, ...) and no index: get the file that ends in {_INDEX}')
  chosen = safe if len(safe) == 1 else files
  if not chosen:
    raise WeightsError(f'{where} holds no weights that are read ({", ".join(ENDINGS)})')
  if len(chosen) > 1:
    raise WeightsError(f'{where} holds {len(chosen)} files of weights ({", ".join(chosen[:6])}): give the path of one')
  return reader(opened(chosen[0]), f'{where}/{chosen[0]}')


def _is_other(name: str) -> bool:
  """Files beside a model that end like weights: training's own state."""
  return Path(name).name in ('training_args.bin', 'optimizer.pt', 'scheduler.pt', 'optimizer.bin', 'rng_state.pth')


def read_shards(index: str, names: Iterable[str], where: str, opened: Opened, reader: Reader) -> Weights:
  """Reads a model that an index spreads over files: each array from the file that the index names."""
  asker = Asker(f'{where}/{index}', 'index of shards')
  data = opened(index)
  if len(data) > _MOST_INDEX:
    raise asker.refuse(f'it has {len(data):,} bytes; at most {_MOST_INDEX:,} are read')
  try:
    table = json.loads(bytes(data), object_pairs_hook=asker.once)['weight_map']
    places = {asker.name(name): str(file) for name, file in table.items()}
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
    if isinstance(error, WeightsError):
      raise
    raise asker.refuse(f'it has no weight_map ({type(error).__name__})') from None
  beside, folder = set(names), index.rpartition('/')[0]
  files = sorted(set(places.values()))
  if not files or len(files) > _MOST_SHARDS:
    raise asker.refuse(f'it names {len(files):,} shards')
  shards: dict[str, Weights] = {}
  for file in files:
    full = f'{folder}/{file}' if folder else file
    if '/' in file or '\\' in file or file in ('.', '..'):
      raise asker.refuse(f'it names the shard {_cut(file)}, which is no file beside it')
    if full not in beside:
      raise asker.refuse(f'the shard {_cut(file)} is missing')
    shards[file] = reader(opened(full), f'{where}/{full}')
  return _joined(places, shards, asker)


def _joined(places: Mapping[str, str], shards: Mapping[str, Weights], asker: Asker) -> Weights:
  held: dict[str, Stored] = {}
  for name, file in places.items():
    if name not in shards[file]:
      raise asker.refuse(f'the shard {_cut(file)} has no {_cut(name)}, which the index says it has')
    held[name] = shards[file].stored(name)
  for file, shard in shards.items():
    more = [name for name in shard if places.get(name) != file]
    if more:
      raise asker.refuse(f'the shard {_cut(file)} holds {_cut(more[0])}, of which the index says otherwise')
  first = next(iter(shards.values()))
  return Weights(held, where=asker.where, form=first.form, layout=first.layout, about=first.about)


def read_split(names: list[str], where: str, opened: Opened, reader: Reader) -> Weights:
  """Reads a GGUF model that is split into numbered files; the first has the metadata."""
  names = sorted(names)
  asker = Asker(f'{where}/{names[0]}', 'split model')
  whole = int(_SHARD.search(names[0])[1])  # type: ignore[index]
  if len(names) != whole:
    raise asker.refuse(f'{len(names)} of {whole} parts are there')
  parts = [reader(opened(name), f'{where}/{name}') for name in names]
  held: dict[str, Stored] = {}
  for part in parts:
    for name in part:
      if name in held:
        raise asker.refuse(f'two parts hold {_cut(name)}')
      held[name] = part.stored(name)
  return Weights(held, where=asker.where, form=parts[0].form, layout=parts[0].layout, about=parts[0].about)


def parts_beside(path: Path) -> list[str] | None:
  """The names of all parts of a split GGUF model, where a file is one of them."""
  found = _SHARD.search(path.name)
  if not found or path.suffix != '.gguf' or found[1] == '00001':
    return None
  like = re.compile(re.escape(path.name[: found.start()]) + r'-\d{5}' + re.escape(found[0][6:] + path.suffix) + '$')
  return [one.name for one in path.parent.iterdir() if like.match(one.name)]


def read_orbax(folder: Path) -> Weights:
  """Reads a tree that Orbax saved, or `flax.nnx`, or `flax.training` with it."""
  asker = Asker(str(folder), 'checkpoint of Orbax')
  try:
    leaves = read_foreign(folder)
  except ValueError as error:
    raise asker.refuse(str(error)) from None
  held = {}
  for path, leaf in leaves.items():
    name = asker.name(path.removesuffix('/value') if f'{path.removesuffix("/value")}/raw_value' not in leaves else path)
    held[name] = Stored(asker.shape(leaf.shape, name), leaf.dtype, _told(leaf.read, asker))
  if not held:
    raise asker.refuse('it holds no arrays')
  asker.total(held, sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()))
  return Weights(held, where=str(folder), form='orbax', layout='jax')


def _told(read: Callable[[], np.ndarray], asker: Asker) -> Callable[[], np.ndarray]:
  def again() -> np.ndarray:
    try:
      return read()
    except ValueError as error:
      raise asker.refuse(str(error)) from None

  return again


def read_run_folder(folder: Path) -> Weights:
  """Reads what one of our own runs made: its best params, and its model_state without what parts of the recipe keep."""
  from jaxlite.deployment.held import read_run

  held = read_run(folder)
  values: dict[str, Any] = trees.by_path({name: one for name, one in held.params.items() if not trees.is_extra(name)})
  state = {name: one for name, one in held.model_state.items() if not trees.is_extra(name)}
  values |= trees.by_path(state)
  arrays = {path: stored(np.asarray(value)) for path, value in values.items()}
  return Weights(arrays, where=str(folder), form='run', layout='jax', about={'step': held.step, **versions()})


def room_for(size: int, where: str) -> None:
  """Refuses to unpack more than the disk has room for."""
  import tempfile

  free = disk_free(tempfile.gettempdir())
  if free is not None and size > free:
    raise WeightsError(f'{where} unpacks to {size:,} bytes and {free:,} are free in {tempfile.gettempdir()}: make room')
