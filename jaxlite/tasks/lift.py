"""From a batch to the terms that a step minimizes: its examples, their mean, and a user's loss as a `Loss`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite import trees
from jaxlite.contract import LOSSES, TAPS, Batch, Context, Loss, Terms
from jaxlite.tasks import running
from jaxlite.tasks.calling import called
from jaxlite.tasks.company import is_part, told_of_company

SHARED = 'shared'  # batch: a tree of arrays without an axis of examples (class weights), never taken apart
LABELS = 'jl.labels'  # batch: labels for the user's loss alone, in place of 'labels', which other parts go on reading


def dicts_in(batches: Iterable[Any], what: str) -> Iterator[Batch]:
  """Gives batches one by one, each a dict with 'inputs'.

  Raises:
    TypeError: one is none, or `batches` is a single one.

  >>> len(list(dicts_in([{'inputs': jnp.ones((2, 3))}], 'x')))
  1
  >>> next(dicts_in({'inputs': jnp.ones((2, 3))}, 'x'))
  Traceback (most recent call last):
    ...
  TypeError: x takes several batches; got one: give [batch]
  """
  if isinstance(batches, Mapping):
    raise TypeError(f'{what} takes several batches; got one: give [batch]')
  for batch in batches:
    if not isinstance(batch, Mapping) or 'inputs' not in batch:
      got = f'the keys {sorted(batch)}' if isinstance(batch, Mapping) else type(batch).__name__
      raise TypeError(f"{what} takes batches that are dicts with 'inputs' (and 'labels', 'weight'); got {got}")
    yield batch


def examples_in(batch: Batch) -> tuple[int, dict[str, Any]]:
  """Tells how many examples per batch has, and which of its leaves have them.

  Every leaf of inputs, labels and weight has one example per row. Of what else stands in a batch, a leaf has them where
  its first axis is as long; what lies under `batch['shared']` never has.

  Args:
    batch: a dict with 'inputs', [B, ...].

  Returns:
    (B, a tree like the batch of bools).

  Raises:
    ValueError: a leaf of inputs, labels or weight without B rows.

  >>> batch = {'inputs': jnp.ones((8, 2)), 'class_weight': jnp.ones(10), 'scale': 2.0, 'shared': {'prior': jnp.ones(8)}}
  >>> examples_in(batch)
  (8, {'inputs': True, 'class_weight': False, 'scale': False, 'shared': {'prior': False}})
  """
  named = {name: batch[name] for name in ('inputs', 'labels', 'weight') if name in batch}
  rows = {path: jnp.shape(leaf)[:1] for path, leaf in trees.by_path(named).items()}
  size = next((row[0] for row in rows.values() if row), None)
  for path, row in rows.items():
    if row != (size,):
      got = f'{row[0]} rows' if row else 'a scalar'
      raise ValueError(
        f'inputs, labels and weight have one row per example; {path!r} is {got} beside {size}: put what is no '
        f"example's under batch[{SHARED!r}]"
      )

  def has(name: str, leaf: Any) -> bool:
    if isinstance(leaf, str | bytes):
      raise ValueError(f'a batch holds arrays; {name!r} holds a {type(leaf).__name__}: leave it out')
    return name != SHARED and jnp.shape(leaf)[:1] == (size,)

  found = {name: jax.tree.map(lambda leaf, name=name: has(name, leaf), tree) for name, tree in batch.items()}
  return size or 0, found


def weighted_mean(values: jax.Array, weight: jax.Array | None) -> jax.Array:
  """Returns the mean over examples, each counted by its weight (0 is padding); 0 when all weigh nothing.

  A weight below 0 counts as such, and one that is NaN is seen in the result.

  Args:
    values: float[B].
    weight: float[B] or None.

  Returns:
    float[], at least float32.

  >>> import jax.numpy as jnp
  >>> float(weighted_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1.0, 1.0, 0.0])))
  2.0
  """
  values = running.widened(values)
  if weight is None:
    return jnp.mean(values)
  weight = weight.astype(values.dtype)
  total = jnp.sum(weight)
  summed = jnp.sum(jnp.where(weight != 0, values, 0) * weight)
  return jnp.where(total != 0, summed / jnp.where(total != 0, total, 1), 0)


def lift_loss(loss: Callable[[Any, Batch], jax.Array]) -> Loss:
  """Lifts a user's loss into a Loss: the term 'task', and those that the network's forward brought itself.

  Args:
    loss: (outputs, batch) -> float[B]; or a scalar, taken as it is, for batches whose examples have no weight.

  Returns:
    A Loss: the weighted mean over the batch; a tap 'loss/x' (regularizers of layers) is the term 'x' beside it.

  Raises:
    TypeError: the loss gives whole numbers, which have no gradient.
    ValueError: the loss is neither a scalar nor one value per example; or a scalar, which hides the examples, where
      each counts by its weight (padding, micro-batches).
  """

  def term(context: Context) -> Terms:
    batch = dict(context.batch)
    given = {**batch, 'labels': batch.pop(LABELS)} if LABELS in batch else context.batch
    values = running.widened(called(loss, context.outputs, given))
    weight = context.batch.get('weight')
    if weight is not None and not hasattr(weight, 'shape'):
      raise ValueError(
        f"a batch holds arrays; its 'weight' is a {type(weight).__name__}: numpy.asarray makes one of it"
      )
    taps = context.model_state.get(TAPS, {}).items()
    own = {name.removeprefix(LOSSES): value for name, value in taps if name.startswith(LOSSES)}
    if values.ndim == 0 and weight is None:
      return {'task': values, **own}
    if values.ndim != 1 or (weight is not None and values.shape != weight.shape):
      crossed = _crossed(context.outputs, given, values)
      if weight is None:
        raise ValueError(
          f'a loss gives one value per example, float[B], or a scalar; got {list(values.shape)}{crossed}'
        )
      got = 'a scalar: leave its mean out' if values.ndim == 0 else f'{list(values.shape)}{crossed}'
      raise ValueError(
        f'a loss gives one value per example, float{list(weight.shape)}, where each counts by its weight (padding, '
        f'micro-batches); got {got}'
      )
    if is_part():
      told_of_company(loss, context.outputs, given, *examples_in(given))
    return {'task': weighted_mean(values, weight), **own}

  return term


def _crossed(outputs: Any, batch: Batch, values: jax.Array) -> str:
  """What to say where outputs [B, 1] met labels [B], which NumPy's rules make [B, B]; '' where they did not."""
  shapes = getattr(outputs, 'shape', ()), getattr(batch.get('labels'), 'shape', ())
  size = values.shape[0] if values.ndim else 0
  if shapes == ((size, 1), (size,)):
    return ': outputs are [B, 1] and labels [B], which makes [B, B]: take outputs[:, 0]'
  return ': take the mean over all axes but the first' if values.ndim > 1 else ''
