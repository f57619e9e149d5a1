"""A teacher's logits, computed once and kept: distilling then costs a student alone.

They are kept by content: of the training examples, of the teacher (its arrays and its program) and of the views.
Where any of these differs, so does the name, and what is there is left alone. A folder is complete when it has its
proof; what does not agree with its proof is made again.

Logits of one picture teach about that picture only. So where a student trains on augmented pictures, the views are
drawn beforehand and kept beside their logits: a student and its teacher always see the same one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.contract import Network, stream
from jaxlite.data import content
from jaxlite.data.columns import Columns, digest, with_columns
from jaxlite.data.dataset import Dataset, Split, check_dataset
from jaxlite.data.inputs import leaves, take
from jaxlite.distillation import check_teacher, teacher_outputs, teacher_values
from jaxlite.errors import whole
from jaxlite.host import files
from jaxlite.optim import Augmentation

_LAYOUT = 1  # of the files; another number makes older ones invisible
_PROOF = 'proof.json'
_STALE_SECONDS = 24 * 3600  # scratch of this age was left by a process that was killed


def cache_logits(
  teacher: Network | Callable[[Any], Any],
  data: Dataset,
  folder: str | os.PathLike[str],
  *,
  views: Sequence[Augmentation | None] = (None,),
  seed: int = 0,
  batch_size: int = 256,
  name: str = 'logits',
) -> Dataset:
  """Runs a teacher once over the training examples and lets their batches bring its logits.

  The second call with the same data, teacher and views reads what the first has written, and runs no teacher; with
  others it writes beside it. Written whole or not at all. To train on them: `jl.chain(jl.distill('logits'), ...)`;
  an `augment` in that recipe would change the picture after the teacher saw it, so put it into `views`.

  Args:
    teacher: a Network (`jaxlite.load(workdir)` gives that of a run), or a function from raw inputs to logits.
    data: a Dataset; validation and test stay as they are. Inputs are any tree; views need one array and classes [N].
      One that brings a teacher's logits already gets a second's, under another name, of the same views.
    folder: where the logits are kept; made where it is not there.
    views: how each example is shown, one `(key, batch) -> batch` a view, None as it is. At each step one view is
      drawn at random for each example, and the batch holds its inputs, labels and logits. E.g.
      `[None] + 3 * [shift(1)] + 3 * [mixup(1.0, 10)]`. With views other than None all views' inputs are kept too:
      as many copies of the data on disk (they are mapped, not loaded).
    seed: of the views.
    batch_size: examples the teacher sees at once. It is part of the name: mixup pairs examples within a batch.
    name: of the column in the batch.

  Returns:
    The Dataset whose training batches hold `name`: float32[B, classes], or float32[B, ...] as the teacher gives them.

  Raises:
    ValueError: the teacher gives no logits, or those of another number of classes, or NaN; a view changes the
      shape of its inputs; the data bring other views already; the folder cannot be written.
    TypeError: the teacher is none, or a view returns no batch.

  >>> import tempfile
  >>> from jaxlite.data import batch_at, from_arrays
  >>> data = from_arrays((np.zeros((20, 3), np.uint8), np.arange(20) % 2))
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   taught = cache_logits(lambda x: x[:, :2] + 1.0, data, folder)
  ...   batch_at(taught.train, 4, seed=0, step=0)['logits'][0].tolist()
  [1.0, 1.0]
  """
  if isinstance(teacher, str):
    raise TypeError('cache_logits runs a teacher, so it takes a Network or a function; got a name')
  check_teacher(teacher, 'cache_logits')
  check_dataset(data, 'cache_logits')
  if not isinstance(data.train, Split | Columns):
    raise ValueError('cache_logits runs over examples in memory; a stream makes them: distil from the teacher')
  views = list(views)
  if not views or not all(view is None or callable(view) for view in views):
    raise ValueError('views are functions (key, batch) -> batch, or None for the example as it is; one at least')
  whole(seed, 'seed', least=0)
  batch_size = min(whole(batch_size, 'batch_size', least=1), len(data.train.labels))
  plan = _plan(teacher, data, views, seed, batch_size)
  where = files.expanded(folder)
  final = where / _name(plan, data, seed, batch_size)
  found = _fetch(final)
  if found is None:
    _make(final, plan, data, seed, batch_size)
    found = _fetch(final)
    if found is None:
      raise ValueError(f'{final} does not hold what was written: is its disk full or failing?')
  columns, digests = found
  columns[name], digests[name] = columns.pop('logits'), digests.pop('logits')
  new = _unlike(data, columns, digests)
  return with_columns(data, {one: columns[one] for one in new}, {one: digests[one] for one in new})


def _unlike(data: Dataset, columns: Mapping[str, np.ndarray], digests: Mapping[str, str]) -> list[str]:
  """Names the columns that the data lack: a second teacher must have seen the very views that the batches show."""
  had = data.train.columns if isinstance(data.train, Columns) else {}
  shown = {name for name in ('inputs', 'labels') if name in had}
  if shown and any(name not in columns or digest(had[name]) != digests[name] for name in shown):
    raise ValueError('these data show other views than this teacher saw: give it the same views, seed and batch_size')
  return [name for name in columns if name not in shown]


class _Plan(NamedTuple):
  """What is computed, before it is.

  Attributes:
    shown: (batch, chunk) -> batch, compiled, for each view; None as it is.
    predict: (values, inputs) -> float32[B, classes], compiled.
    values: the teacher's arrays.
    columns: by name, dtype and shape of what is kept: [N, views, ...].
    batch: a batch's shapes.
  """

  shown: list[Any]
  predict: Any
  values: Any
  columns: dict[str, jax.ShapeDtypeStruct]
  batch: dict[str, jax.ShapeDtypeStruct]


def _plan(teacher: Any, data: Dataset, views: list[Any], seed: int, batch_size: int) -> _Plan:
  train = data.train
  batch = {
    'inputs': _batch_of(train.inputs, batch_size),
    'labels': _batch_of(train.labels, batch_size),
    'weight': jax.ShapeDtypeStruct((batch_size,), np.float32),
  }
  shown = [None if view is None else jax.jit(_drawn(view, number, seed)) for number, view in enumerate(views)]
  if any(views) and not (hasattr(train.inputs, 'ndim') and train.labels.ndim == 1):
    raise ValueError('views show one array with one class an example; these data have more: leave views out')
  seen = [batch if show is None else jax.eval_shape(show, batch, 0) for show in shown]
  for number, one in enumerate(seen):
    if not isinstance(one, Mapping) or not {'inputs', 'labels'} <= set(one):
      raise TypeError(
        f'a view returns a batch, a dict with inputs and labels; view {number} returns {type(one).__name__}'
      )
    if views[number] is not None and one['inputs'].shape != batch['inputs'].shape:
      got, wanted = list(one['inputs'].shape), list(batch['inputs'].shape)
      raise ValueError(f'a view keeps the shape of its inputs, {wanted}; view {number} makes it {got}')
  inputs = batch['inputs']
  if any(views):
    raw = all(one['inputs'].dtype == np.uint8 for one in seen)
    inputs = jax.ShapeDtypeStruct(inputs.shape, np.uint8 if raw else np.float32)
  soft = any(one['labels'].ndim == 2 for one in seen)

  @jax.jit
  def predict(values: Any, inputs: Any) -> jax.Array:
    return jnp.asarray(teacher_outputs(teacher, values, inputs)).astype(jnp.float32)

  values = teacher_values(teacher)
  logits = jax.eval_shape(predict, values, inputs)
  classes = data.facts.get('classes', logits.shape[-1] if logits.ndim else 0)
  wanted = (*batch['labels'].shape, classes) if 'classes' in data.facts else (batch_size, *logits.shape[1:])
  if logits.shape != wanted:
    raise ValueError(
      f'a teacher gives logits of the {classes} classes, {list(wanted)}; this one gives {list(logits.shape)}: train it '
      'on this label set'
    )
  lead = (len(train.labels), len(views))
  columns = {'logits': jax.ShapeDtypeStruct((*lead, *logits.shape[1:]), np.float32)}
  if any(show is not None for show in shown):
    columns['inputs'] = jax.ShapeDtypeStruct((*lead, *inputs.shape[1:]), inputs.dtype)
    labels = (*lead, classes) if soft else lead
    columns['labels'] = jax.ShapeDtypeStruct(labels, np.float32 if soft else np.int32)
  return _Plan(shown, predict, values, columns, {**batch, 'inputs': inputs})


def _batch_of(tree: Any, size: int) -> Any:
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), tree)


def _drawn(view: Augmentation, number: int, seed: int) -> Callable[[Any, Any], Any]:
  def draw(batch: Any, chunk: Any) -> Any:
    return view(stream(jax.random.key(seed), f'view/{number}', chunk), batch)

  return draw


def _name(plan: _Plan, data: Dataset, seed: int, batch_size: int) -> str:
  """Names what is kept by all that decides it."""
  raw = {**plan.batch, 'inputs': _batch_of(data.train.inputs, batch_size)}
  inputs = [[path, digest(leaf)] if path else digest(leaf) for path, leaf in leaves(data.train.inputs)]
  about = {
    'layout': _LAYOUT,
    'examples': [*inputs, digest(data.train.labels)],
    'arrays': content.of_arrays(plan.values),
    'teacher': content.of_program(plan.predict, plan.values, plan.batch['inputs']),
    'views': [None if show is None else content.of_program(show, raw, 0) for show in plan.shown],
    'seed': seed,
    'batch_size': batch_size,
  }
  return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:20]


def _make(final: Path, plan: _Plan, data: Dataset, seed: int, batch_size: int) -> None:
  """Writes into a folder of this process's own, and renames it when it is whole."""
  try:
    with files.scratch(final.parent, '.making-', stale_seconds=_STALE_SECONDS) as folder:
      made = folder / 'made'
      made.mkdir()
      arrays = {
        name: np.lib.format.open_memmap(made / f'{name}.npy', 'w+', dtype=kind.dtype, shape=kind.shape)
        for name, kind in plan.columns.items()
      }
      _fill(arrays, plan, data, seed, batch_size)
      for array in arrays.values():
        array.flush()
      (made / _PROOF).write_text(json.dumps({name: digest(array) for name, array in arrays.items()}))
      del arrays
      if final.exists() and _fetch(final) is None:  # damaged: what is there is no good to anyone
        shutil.rmtree(final, ignore_errors=True)
      files.settle(made, final, lambda folder: _fetch(folder) is not None)
  except OSError as error:
    raise ValueError(f'cannot keep logits in {final.parent} ({error}): give another folder') from None


def _fill(arrays: Mapping[str, np.ndarray], plan: _Plan, data: Dataset, seed: int, batch_size: int) -> None:
  count = len(data.train.labels)
  for number, show in enumerate(plan.shown):
    # Where examples meet (mixup), those beside each other must be no neighbors of a sorted file.
    order = np.arange(count) if show is None else np.random.default_rng((seed, number)).permutation(count)
    for chunk, start in enumerate(range(0, count, batch_size)):
      rows = order[start : start + batch_size]
      real = len(rows)
      padded = np.concatenate([rows, order[: batch_size - real]])
      batch = {'inputs': take(data.train.inputs, padded), 'labels': data.train.labels[padded]}
      batch['weight'] = (np.arange(batch_size) < real).astype(np.float32)
      batch = batch if show is None else show(batch, chunk)
      inputs = jax.tree.map(
        lambda leaf, kind: np.asarray(leaf).astype(kind.dtype, copy=False), batch['inputs'], plan.batch['inputs']
      )
      logits = np.asarray(plan.predict(plan.values, inputs))[:real]
      if np.isnan(logits).any():
        example = int(rows[np.argwhere(np.isnan(logits))[0][0]])
        raise ValueError(f'a teacher gives numbers; view {number} of training example {example} gives NaN')
      arrays['logits'][rows, number] = logits
      if 'inputs' in arrays:
        arrays['inputs'][rows, number] = inputs[:real]
        arrays['labels'][rows, number] = _labels(np.asarray(batch['labels']), arrays['labels'])[:real]


def _labels(labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
  """One kind of labels for all views: distributions as soon as one view blends them."""
  if not (labels.ndim == 1 and kept.ndim == 3):
    return labels
  return (labels[:, None] == np.arange(kept.shape[-1])).astype(np.float32)


def _fetch(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]] | None:
  """Returns (columns, digests) as they were written, or None where they are not there or no longer so."""
  try:
    digests: dict[str, str] = files.read_json(folder / _PROOF)
    columns = {name: np.load(folder / f'{name}.npy', mmap_mode='r', allow_pickle=False) for name in digests}
  except (OSError, ValueError, EOFError, AttributeError, TypeError):
    return None
  intact = 'logits' in columns and all(digest(column) == digests[name] for name, column in columns.items())
  return (columns, digests) if intact else None
