"""The checkpoints of a run: saved in the background, a few kept, the newest sound one restored.

What is slow runs in one writer thread; the training loop waits for the copy of its state and for nothing else.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import json
import math
import operator
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

from jaxlite.checkpoint import containers, directory, leaves, storage
from jaxlite.checkpoint.directory import Entry
from jaxlite.checkpoint.leaves import Snapshot
from jaxlite.checkpoint.manifest import CheckpointError, CheckpointMismatch, Damaged, Manifest
from jaxlite.checkpoint.names import orbax_names
from jaxlite.checkpoint.order import first_sound
from jaxlite.errors import number, whole
from jaxlite.host.files import comes_loose

_T = TypeVar('_T')
_Const = tuple[list[Any], Snapshot] | None  # what never changes and is to be written: the leaves, and their copy
_Constants = Callable[[], tuple[list[Any], Snapshot]]


class Restored(NamedTuple):
  """What a checkpoint gives back.

  Attributes:
    step: the step it was saved at.
    state: the state, in the template's structure.
    loop: the loop's own values, as JSON keeps them.
  """

  step: int
  state: Any
  loop: dict[str, Any]


class Checkpoints:
  """The checkpoints of one run: keeps the latest few and the best, and restores the newest sound one.

  One writer at a time: hold the lock of the workdir. Not thread-safe. A save at step s is the end of the
  run as it stands: whatever was there at s or beyond (left of a damaged or abandoned future) is replaced.

  >>> import tempfile, jax, jax.numpy as jnp
  >>> state = {'params': {'w': jnp.ones((2, 2))}, 'key': jax.random.key(0)}
  >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
  ...   checkpoints.save(100, state, {'patience': 3}, metric=0.9)
  ...   back = checkpoints.restore(jax.eval_shape(lambda: state))
  >>> back.step, back.loop, back.state['params']['w'].sum().item()
  (100, {'patience': 3}, 4.0)
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    keep: int = 2,
    const: str = 'const',
    run: str | None = None,
    log: Callable[[str], Any] = print,
    there: Callable[[], bool] | None = None,
  ):
    """Reads nothing yet and writes nothing yet.

    Args:
      directory: the folder of checkpoints; made by the first save.
      keep: how many of the latest to keep, beside the best.
      const: the top-level name of the state under which nothing changes during a run: written once.
      run: the id of the run, which the loop's own values hold under 'run': a checkpoint of another one counts as
        damaged. None: any.
      log: is given one line for each damaged checkpoint passed over.
      there: asked before each write, in the writer's thread; where it says no, the write fails. None: what is gone is
        made again.

    Raises:
      ValueError: `keep` is below 1; the folder is a bucket or URL, or has a backslash in its name.
    """
    text = os.fspath(directory)
    if '://' in text or (os.sep == '/' and '\\' in text):
      rule = 'a bucket or URL' if '://' in text else 'one with a backslash in its name, which TensorStore reads as /'
      raise ValueError(f'checkpoints are kept in a local folder, not {rule}; got {text!r}: name another')
    keep = whole(keep, 'keep, how many checkpoints are kept,', least=1)
    self.directory = Path(directory).absolute()
    self._keep, self._const_name, self._run, self._log, self._there = keep, const, run, log, there
    self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='jaxlite-checkpoint')
    self._pending: list[concurrent.futures.Future[None]] = []  # at most one
    weakref.finalize(self, _tell_uncollected, self._pending, log)
    self._metrics: dict[Entry, tuple[float | None, str | None] | None] = {}  # (metric, const); None: unreadable
    self._damaged: set[Entry] = set()  # found by a restore
    self._const: tuple[list[Any], str | None] = ([], None)  # leaves known to be on disk, and their hash
    self._clean = False  # what a killed run left has been removed
    self.failed: tuple[Snapshot, Manifest, _Constants] | None = None  # the last save, where it could not be written

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    try:
      self.close()
    except CheckpointError as failure:
      if kind is None:
        raise
      self._log(str(failure))  # the error under way comes first

  def save(
    self, step: int, state: Any, loop: Mapping[str, Any], *, metric: float | None = None, wait: bool = False
  ) -> None:
    """Saves a checkpoint; returns once `state` is copied to the host, and writes in the background.

    A save still being written is waited for first. The newest save of a step wins.

    Args:
      step: the optimizer step, at least 0.
      state: any pytree of arrays and plain numbers; may be donated afterwards.
      loop: the loop's own values: anything JSON can hold.
      metric: larger is better; None, NaN and infinities never count as best.
      wait: return only when the checkpoint is on disk.

    Raises:
      CheckpointError: this write (with `wait`) or the one before failed; says which checkpoint is good.
      TypeError: a leaf is no array, `metric` no number, or `loop` is not JSON.
      ValueError: the state holds no array, two leaves share a path, or the step is negative.
    """
    self.wait()
    step = whole(step, 'the step of a checkpoint', least=0)
    try:
      loop = json.loads(json.dumps(loop))
    except (TypeError, ValueError) as error:
      raise TypeError(f'the loop values of a checkpoint must be JSON: {error}') from None
    metric = None if metric is None else number(metric, 'the metric of a checkpoint')
    metric = None if metric is None or not math.isfinite(metric) else float(metric)
    arrays, named = {path: leaves.as_array(leaf) for path, leaf in leaves.by_path(state).items()}, orbax_names(state)
    const = {path: arrays.pop(path) for path in list(arrays) if path.split('/')[0] == self._const_name}
    if not arrays:
      raise ValueError('a checkpoint needs a state with at least one array that changes, got none')
    snapshot = leaves.snapshot(arrays, named)
    same = len(const) == len(self._const[0]) and all(map(operator.is_, const.values(), self._const[0]))
    written = directory.const_paths(self.directory, self._const[1]) if self._const[1] else []
    same = same and all(path.is_dir() and any(path.iterdir()) for path in written)  # still on disk
    constants: _Constants = lambda: (list(const.values()), leaves.snapshot(const, named))  # noqa: E731
    fresh = None if same else constants()
    manifest = Manifest(step, metric, loop, None, containers.structure(state), snapshot.leaves, {})
    self._pending.append(self._writer.submit(self._write_step, snapshot, manifest, fresh, constants))
    if wait:
      self.wait()

  def wait(self) -> None:
    """Waits until the save under way is on disk.

    Raises:
      CheckpointError: it failed.
    """
    if self._pending:
      self._pending.pop().result()

  def hand_over(self, other: Checkpoints) -> None:
    """Writes into other checkpoints, in the background, the save that failed here, if the last one did."""
    other.wait()
    failed, self.failed = self.failed, None
    if failed is not None:
      other._pending.append(other._writer.submit(other._write_step, failed[0], failed[1], failed[2](), failed[2]))

  def close(self) -> None:
    """Waits for the save under way and ends the writer.

    Raises:
      CheckpointError: the save failed.
    """
    try:
      self.wait()
    finally:
      self._writer.shutdown()

  def latest_step(self) -> int | None:
    """Returns the step of the newest checkpoint on disk, sound or not; None when there is none."""
    self.wait()
    return max((entry.step for entry in directory.entries(self.directory)), default=None)

  def holds(self, step: int) -> bool:
    """Tells whether a checkpoint of this step is on disk, sound or not."""
    self.wait()
    return any(entry.step == step for entry in directory.entries(self.directory))

  def best_step(self) -> int | None:
    """Returns the step of the checkpoint with the largest metric; None when none has one."""
    self.wait()
    best = self._best(directory.entries(self.directory))
    return best.step if best else None

  def loop(self) -> dict[str, Any] | None:
    """Returns the loop's own values of the newest checkpoint whose manifest is sound; None where there is none."""
    self.wait()
    return next((manifest.loop for manifest in storage.sound_manifests(self.directory, self._run)), None)

  def restore(self, abstract_state: Any, *, which: str | int = 'latest') -> Restored | None:
    """Restores the newest sound checkpoint, whatever the number of devices it was saved from.

    Args:
      abstract_state: a pytree of arrays, `jax.ShapeDtypeStruct`, plain numbers: structure, shapes, dtypes, shardings.
      which: 'latest', 'best' (largest metric, else the latest) or a step.

    Returns:
      The Restored run; None when nothing was ever saved.

    Raises:
      CheckpointMismatch: structure, shape or dtype differ; lists where. Nothing was read but the manifest.
      CheckpointError: there are checkpoints and none is sound, or none of that step, or an older or newer format.
    """

    def read(path: Path, manifest: Manifest) -> Restored:
      const = self._copy(manifest.const, lambda _, found: found.leaves) if manifest.const else []
      lines = leaves.differences([*manifest.leaves, *const], abstract_state)
      if lines:
        shown = lines if len(lines) <= 9 else [*lines[:8], f'and {len(lines) - 8} more']
        raise CheckpointMismatch(
          f'checkpoint {path} does not fit the program; use the config that made it, or another workdir:\n  '
          + '\n  '.join(shown)
        )
      want = leaves.by_path(abstract_state)

      def arrays(where: Path, found: Manifest) -> dict[str, Any]:
        return storage.read(where, found, found.leaves, lambda leaf, of: leaves.restored(leaf, of, want[leaf.path]))

      have = arrays(path, manifest) | (self._copy(manifest.const, arrays) if manifest.const else {})
      state = jax.tree.structure(abstract_state).unflatten(have[path] for path in want)
      return Restored(manifest.step, state, manifest.loop)

    return self._newest_sound(which, read)

  def load(
    self, names: Sequence[str], *, which: str | int = 'best', keep: Callable[[str], bool] | None = None
  ) -> Restored | None:
    """Restores parts of a state by their top-level names, without a template: see `load_arrays`."""

    def read(path: Path, manifest: Manifest) -> Restored:
      kind, children = next(iter(manifest.structure.items())) if isinstance(manifest.structure, dict) else ('', [])
      parts = {str(name): child for name, child in children} if kind == 'dict' else {}
      unknown = [name for name in names if name not in parts]
      if unknown:
        raise ValueError(f'checkpoint {path} has no part {unknown[0]!r}; it has: {", ".join(parts) or "none"}')
      if keep is not None:
        parts = {name: containers.pruned(parts[name], keep) for name in names}
      wanted = {leaf for name in names for leaf in containers.leaf_paths(parts[name])}

      def arrays(where: Path, found: Manifest) -> dict[str, jax.Array]:
        return storage.read(where, found, [leaf for leaf in found.leaves if leaf.path in wanted], leaves.restored)

      loaded = arrays(path, manifest)
      if manifest.const and self._const_name in names:
        loaded |= self._copy(manifest.const, arrays)
      if lost := wanted - set(loaded):
        raise Damaged(f'{len(lost)} of the arrays that it names are nowhere, first {min(lost)!r}')
      state = {name: containers.rebuild(parts[name], loaded) for name in names}
      return Restored(manifest.step, state, manifest.loop)

    return self._newest_sound(which, read)

  def _newest_sound(self, which: str | int, read: Callable[[Path, Manifest], Restored]) -> Restored | None:
    self.wait()

    def one(entry: Entry) -> Restored:
      return read(self.directory / entry.name, storage.read_entry(self.directory, entry, self._run))

    return first_sound(self.directory, which, self._rank, one, self._damaged.add, self._log)

  def _rank(self, entry: Entry) -> float:
    if entry not in self._metrics:
      try:
        manifest = storage.read_entry(self.directory, entry, self._run)
        self._metrics[entry] = (manifest.metric, manifest.const)
      except Damaged as damage:
        if comes_loose(damage):  # it may be sound
          return math.inf
        self._metrics[entry] = None
    known = self._metrics[entry]
    if known is None:
      return math.inf
    return -math.inf if known[0] is None else known[0]

  def _best(self, entries: Sequence[Entry]) -> Entry | None:
    """The first with the largest metric: a tie does not move the best."""
    return max((entry for entry in entries if math.isfinite(self._rank(entry))), key=self._rank, default=None)

  # The next four run in the writer's thread.

  def _write_step(self, snapshot: Snapshot, manifest: Manifest, const: _Const, constants: _Constants) -> None:
    folder = self.directory
    for entry in directory.entries(folder):
      self._rank(entry)  # refuses a folder of another format before it is written to
    try:
      try:
        entry, manifest = self._attempt(snapshot, manifest, const)
      except Exception as error:
        if not storage.may_pass(error):
          raise
        self._log(f'the checkpoint of step {manifest.step} is written again ({storage.reason(error)})')
        self._clean = False
        entry, manifest = self._attempt(snapshot, manifest, constants())
    except Exception as error:
      self.failed = (snapshot, manifest, constants)
      with contextlib.suppress(OSError):
        directory.remove_leftovers(folder)  # half a checkpoint would keep a full disk full
      good = [entry.step for entry in directory.entries(folder) if entry not in self._damaged]
      last = f'the checkpoint of step {good[-1]} is still good' if good else 'there is none before it'
      raise CheckpointError(
        f'the checkpoint of step {manifest.step} could not be written to {folder} ({storage.reason(error)}); {last}: '
        'make room or mend that, then run the same command again'
      ) from error
    self.failed = None
    self._metrics[entry] = (manifest.metric, manifest.const)
    try:
      self._retire(entry)
    except OSError as error:
      self._log(f'old checkpoints in {folder} could not be removed ({storage.reason(error)})')

  def _attempt(self, snapshot: Snapshot, manifest: Manifest, const: _Const) -> tuple[Entry, Manifest]:
    self._check_there()
    self.directory.mkdir(parents=True, exist_ok=True)
    if not self._clean:
      directory.remove_leftovers(self.directory)
      self._clean = True
    if const is not None:
      self._const = (const[0], self._write_const(const[1]))
    manifest = manifest._replace(hashes=snapshot.hashes(), const=self._const[1])
    entry = directory.next_entry(self.directory, manifest.step)
    storage.write(self.directory / entry.name, snapshot, manifest)
    self._check_there()  # Orbax makes what folders it lacks
    return entry, manifest

  def _check_there(self) -> None:
    if self._there is not None and not self._there():
      raise OSError(errno.ENOTCONN, 'the folder is out of reach', str(self.directory))

  def _retire(self, newest: Entry) -> None:
    entries = directory.entries(self.directory)
    sound = [entry for entry in entries if entry.step < newest.step and entry not in self._damaged] + [newest]
    best = self._best(sound)
    kept = {*sound[-self._keep :], *([best] if best else [])}
    for entry in entries:
      if entry not in kept:
        directory.remove(self.directory / entry.name)
        self._metrics.pop(entry, None)
        self._damaged.discard(entry)
    if all(self._rank(entry) < math.inf for entry in kept):  # an unreadable one may need any constants
      directory.remove_other_constants(self.directory, {const for _, const in self._metrics.values() if const})

  def _write_const(self, snapshot: Snapshot) -> str | None:
    if not snapshot.leaves:
      return None
    manifest = Manifest(0, None, {}, None, None, snapshot.leaves, snapshot.hashes())
    whole = manifest.combined()
    for path in directory.const_paths(self.directory, whole):
      if path.exists():
        try:
          found = storage.read_const_manifest(path, whole)
          storage.read(path, found, found.leaves)
          continue
        except Damaged as damage:
          self._log(f'constants {path} are damaged, writing them again: {damage}')
          directory.remove(path)
      storage.write(path, snapshot, manifest._replace(const=whole))
    return whole

  def _copy(self, whole: str, read: Callable[[Path, Manifest], _T]) -> _T:
    """Reads the first sound copy of the constants."""
    failed = []
    for path in directory.const_paths(self.directory, whole):
      try:
        return read(path, storage.read_const_manifest(path, whole))
      except Damaged as damage:
        failed.append(f'{path.name}: {damage}')
        self._log(f'constants {path} are damaged, taking the other copy: {damage}')
    raise Damaged('no copy of its constants is sound: ' + ', '.join(failed))


def _tell_uncollected(pending: Sequence[concurrent.futures.Future[None]], log: Callable[[str], Any]) -> None:
  for save in pending:  # a program that ends without `close` has no threads left for Orbax: it is at least said
    if save.done() and save.exception():
      log(f'{save.exception()}; and close the Checkpoints before the program ends')
