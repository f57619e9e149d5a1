"""One checkpoint on disk: written whole by Orbax, read back leaf by leaf, verified or reported as damaged.

The only file that imports Orbax, on the first save: it takes half a second. Orbax makes a write atomic. It loads
flipped bits of array data without a word; the hashes in the manifest catch those. It loads all leaves in one event
loop, which the first unreadable one ends under the others; so the arrays are read with TensorStore, on which Orbax
stands, and each leaf is judged alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import re
import stat
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.checkpoint import leaves, names, regions
from jaxlite.checkpoint.directory import Entry, entries
from jaxlite.checkpoint.leaves import Leaf, Snapshot
from jaxlite.checkpoint.manifest import Damaged, Manifest, seal, unseal
from jaxlite.host.files import read_json
from jaxlite.host.release import free, lent
from jaxlite.host.sealed import check_run

_T = TypeVar('_T')
_ARRAYS, _MANIFEST = 'state', 'manifest'  # what Orbax calls checkpointables: each in a folder of its own
_LINE = 160  # characters of a reason
_PATH = re.compile(r'"/[^"]*(/[^"/]+/?)"')  # TensorStore names a file at each level, and why at last
_REASONS = [
  os.strerror(code)
  for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOMEM, errno.EAGAIN)
]
_ODD = re.compile(r'[*?\[]|:/')  # in the name of a folder
_PASSING = ('no such file', 'not_found', 'timed out', 'timeout', 'deadline')
_ALONE = threading.Lock()  # Orbax mixes up the folders of two saves under way in one process
_LAST_WRITES = 60.0  # seconds that writes under way are waited for when one has failed
_AT_ONCE = 1 << 26  # bytes read before they are handed on: a restore needs little more memory than the state


def write(path: Path, snapshot: Snapshot, manifest: Manifest) -> None:
  """Writes a checkpoint."""
  named = {leaf.name: snapshot.arrays[leaf.path] for leaf in snapshot.leaves if leaf.stored}
  parts = {_ARRAYS: names.nest(named)} if named else {}  # Orbax refuses an empty tree
  with _ALONE, _plainly_named(path.parent) as folder, _orbax() as ocp:
    try:
      ocp.save_checkpointables(folder / path.name, {**parts, _MANIFEST: seal(manifest)})
    except BaseException:
      _wait_for_writers()
      raise


@contextlib.contextmanager
def _plainly_named(folder: Path) -> Iterator[Path]:
  """A folder under a name that Orbax takes as it stands: it looks for arrays in 'run[1]' as a pattern, finds none, and
  says that all is written; 'gs:/' is a bucket to it."""
  if not _ODD.search(str(folder)):
    yield folder
    return
  with tempfile.TemporaryDirectory(prefix='jaxlite-') as at:
    link = Path(at, 'folder')
    link.symlink_to(folder, target_is_directory=True)
    yield link


def read_manifest(path: Path) -> Manifest:
  """Reads and verifies what a checkpoint says of itself."""
  try:
    sealed = read_json(path / _MANIFEST / 'data.json')
  except (OSError, ValueError) as error:
    raise Damaged(reason(error)) from error
  return unseal(sealed, path)


def read_entry(folder: Path, entry: Entry, run: str | None = None) -> Manifest:
  """Reads and verifies what the checkpoint of a step says of itself, and that it is this step's and this run's.

  Args:
    folder: of the checkpoints.
    entry: which of them.
    run: the id of the run; None: any.
  """
  manifest = read_manifest(folder / entry.name)
  if manifest.step != entry.step:
    raise Damaged(f'it is that of step {manifest.step}')
  check_run(manifest.loop, run)
  return manifest


def sound_manifests(folder: Path, run: str | None = None) -> Iterator[Manifest]:
  """Gives what the checkpoints of a folder say of themselves, newest first, of those whose manifest is sound."""
  for entry in entries(folder)[::-1]:
    with contextlib.suppress(Damaged):
      yield read_entry(folder, entry, run)


def read_const_manifest(path: Path, whole: str) -> Manifest:
  """Reads and verifies the manifest of constants, and that they are those of this run."""
  manifest = read_manifest(path)
  if manifest.combined() != whole:
    raise Damaged('they are those of another run')
  return manifest


def read(
  path: Path,
  manifest: Manifest,
  wanted: Sequence[Leaf],
  use: Callable[[Leaf, Mapping[str, np.ndarray]], _T] = lambda leaf, found: None,
) -> dict[str, _T]:
  """Reads and verifies leaves, a few at a time.

  Args:
    path: the checkpoint.
    manifest: what it says of itself.
    wanted: which leaves.
    use: makes of a sound leaf, given by region as it is stored, what is kept of it.

  Returns:
    What `use` made, by path.

  Raises:
    Damaged: leaves cannot be read or have another hash than was written; tells how many, and the first.
  """
  check_plain(path / _ARRAYS)
  made: dict[str, _T] = {}
  damaged: list[str] = []
  for batch in _batches(wanted):
    sources, copies = [], []
    for leaf, found in _fetch(path, batch, manifest.hashes):
      if isinstance(found, Exception):
        damaged.append(f'{leaf.path!r} cannot be read: {reason(found)}')
      elif leaf.stored and leaves.hashes_of(leaf, found) != manifest.hashes[leaf.path]:
        damaged.append(f'{leaf.path!r} has another hash than was written')
      elif not damaged:
        made[leaf.path] = use(leaf, found)
        if isinstance(made[leaf.path], jax.Array):
          sources += lent(found.values())
          copies.append(made[leaf.path])
      del found  # else the last would live on here
    free(sources, copies)
  if damaged:
    raise Damaged(f'{len(damaged)} of {len(wanted)} leaves are damaged, first {damaged[0]}')
  return made


def check_plain(folder: Path) -> None:
  """Refuses what TensorStore would wait for: it opens a pipe as a file, and no error ends that."""
  for at, _, files in os.walk(folder):
    for path in (os.path.join(at, name) for name in files):
      with contextlib.suppress(OSError):  # what is not there, it says itself
        if not stat.S_ISREG(os.stat(path).st_mode):
          raise Damaged(f'{os.path.relpath(path, folder.parent)} is no plain file')


def _batches(wanted: Sequence[Leaf]) -> Iterator[list[Leaf]]:
  batch: list[Leaf] = []
  size = 0
  for leaf in wanted:
    nbytes = math.prod(leaf.stored_shape) * jnp.dtype(leaf.stored or 'uint8').itemsize
    if batch and size + nbytes > _AT_ONCE:
      yield batch
      batch, size = [], 0
    batch.append(leaf)
    size += nbytes
  yield batch


def _fetch(
  path: Path, batch: Sequence[Leaf], hashes: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[Leaf, dict[str, np.ndarray] | Exception]]:
  """Reads leaves at once: what is stored of each, by region, or why it cannot be read."""
  import tensorstore

  context = tensorstore.Context({'cache_pool': {'total_bytes_limit': 0}, 'file_io_concurrency': {'limit': 32}})
  base = {'driver': 'file', 'path': f'{(path / _ARRAYS).resolve()}/'}  # TensorStore takes no '..'
  opening = {
    leaf.path: tensorstore.open(
      {'driver': 'zarr3', 'kvstore': {'driver': 'ocdbt', 'base': base, 'path': f'{leaf.name}/'}},
      open=True,
      read=True,
      context=context,
    )
    for leaf in batch
    if leaf.stored
  }
  reading: dict[str, dict[str, Any] | Exception] = {}
  for leaf in batch:
    try:
      if leaf.stored:
        array = opening.pop(leaf.path).result()
        if (array.shape, array.dtype.name) != (leaf.stored_shape, leaf.stored):  # before it asks for any memory
          raise ValueError(f'it is {leaves.spell(array.dtype.name, array.shape)}')
        reading[leaf.path] = {region: array[regions.slices(region)].read() for region in hashes[leaf.path]}
    except Exception as error:  # whatever TensorStore makes of garbage
      reading[leaf.path] = error
  for leaf in batch:
    found = reading.pop(leaf.path, {})
    try:
      yield leaf, found if isinstance(found, Exception) else {key: future.result() for key, future in found.items()}
    except Exception as error:  # the same
      yield leaf, error


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
  """Imports Orbax; while it works, keeps its log quiet: a full disk would be 200 lines of traceback."""
  from orbax.checkpoint import v1 as ocp
  from orbax.checkpoint._src import asyncio_utils

  def foreign(record: logging.LogRecord) -> bool:
    return 'orbax' not in record.pathname

  context = ocp.Context()
  context.array.saving.use_ocdbt = context.array.saving.use_zarr3 = True  # as `_fetch` reads
  context.array.saving.use_compression = False  # weights hardly shrink, and a save would cost four times the CPU
  context.memory.deepcopy_host_arrays = False  # a snapshot is a copy already
  context.checkpointables.registry = ocp.handlers.local_registry()
  context.checkpointables.registry.add(ocp.handlers.JsonHandler, checkpointable_name=_MANIFEST)
  logger, run = logging.getLogger('absl'), asyncio_utils.run_sync
  logger.addFilter(foreign)
  asyncio_utils.run_sync = lambda work: run(_to_the_end(work))
  try:
    with context:
      yield ocp
  finally:
    asyncio_utils.run_sync = run
    logger.removeFilter(foreign)


async def _to_the_end(work: Awaitable[_T]) -> _T:
  """Waits for all writes under way when one has failed.

  Orbax closes their event loop at once: each would say so on stderr, and write on while the leftovers are removed.
  """
  try:
    return await work
  except BaseException:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
      done, _ = await asyncio.wait(left, timeout=_LAST_WRITES)
      for task in done:
        task.cancelled() or task.exception()  # looked at, so that nobody reports it
    raise


def _wait_for_writers() -> None:
  """Waits for Orbax's own threads when a save has failed: one that was timed out is still written.

  It would write into what is being removed, and under the save that is tried again.
  """
  end = time.monotonic() + _LAST_WRITES
  for thread in threading.enumerate():
    if type(thread).__module__.startswith('orbax.'):
      threading.Thread.join(thread, max(0.0, end - time.monotonic()))  # Orbax's own goes by the clock that jumps


def may_pass(error: BaseException | None) -> bool:
  """Tells whether a write that failed may go well a second time.

  What it wrote to was taken away under it, or Orbax's clock, which runs on while a laptop sleeps, timed it out.
  """
  while error is not None:
    text = f'{type(error).__name__}: {error}'.lower()
    if isinstance(error, FileNotFoundError | TimeoutError) or any(word in text for word in _PASSING):
      return True
    error = error.__cause__ or error.__context__
  return False


def reason(error: BaseException) -> str:
  """One readable phrase out of an error that may be a page."""
  text = str(error)
  for phrase in _REASONS:
    if phrase in text:
      return phrase
  lines = _PATH.sub(r'"... \1"', text).strip().splitlines()
  first = lines[0] if lines else ''
  if len(first) > _LINE:  # what was written stands first, and why it could not be last
    first = f'{first[: _LINE // 2]} ... {first[-_LINE // 2 :]}'
  return f'{type(error).__name__}: {first}' if first else type(error).__name__
