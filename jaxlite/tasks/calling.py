"""Calling a loss that somebody else wrote: what goes wrong in it is told in the words of who called it.

Whoever comes from another library hands over a loss of (outputs, labels), or reads a column that the batch does not
have. What fails is tried in the other ways that people write losses; where one of them works, that is the mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxlite.errors import nearest, one_line


def called(loss: Callable[[Any, Any], Any], outputs: Any, batch: Mapping[str, Any]) -> Any:
  """Returns what a loss gives for outputs and a batch.

  Args:
    loss: (outputs, batch) -> float[B] or a scalar.
    outputs: of the model.
    batch: a dict.

  Raises:
    TypeError: it is a loss of (outputs, labels), of (batch, outputs), or gives no array or whole numbers.
    ValueError: it reads what the batch does not have.
    Exception: whatever else it raises, with a note of what it was called with.

  >>> import jax.numpy as jnp
  >>> called(lambda logits, labels: (logits - labels) ** 2, jnp.ones(2), {'labels': jnp.zeros(2)})
  Traceback (most recent call last):
    ...
  TypeError: a loss is called with (outputs, batch), the batch a dict; <lambda> takes (outputs, labels): loss=lambda \
outputs, batch: ...(outputs, batch['labels'])
  """
  try:
    values = loss(outputs, batch)
  except Exception as error:
    if one_line(error) is not None:
      raise
    _told(loss, outputs, batch, error)
    error.add_note(
      f'It came from the loss, which was called with outputs {kinds(outputs)} and a batch of '
      f'{", ".join(f"{name!r} {kinds(value)}" for name, value in batch.items())}.'
    )
    raise
  if values is None or isinstance(values, str | dict | tuple | list):
    raise TypeError(
      f'a loss returns one value per example, float[B]; {name_of(loss)} returns {type(values).__name__}'
      + (': does it end with return?' if values is None else ': return the array alone')
    )
  if hasattr(values, 'dtype') and not jax.numpy.issubdtype(values.dtype, jax.numpy.inexact):
    raise TypeError(
      f'a loss is float[B] and has a gradient; {name_of(loss)} returns {kinds(values)}, which has none: count mistakes '
      'in a metric, and minimize what is smooth, such as jl.cross_entropy'
    )
  return values


def _told(loss: Callable[..., Any], outputs: Any, batch: Mapping[str, Any], error: Exception) -> None:
  """Raises what the mistake is where that is certain."""
  if isinstance(error, KeyError) and error.args and isinstance(name := error.args[0], str) and name not in batch:
    attached = (
      ''
      if name in _LABELS
      else '; a column that jl.data.attach adds is in training batches only: in evaluation leave its term out (if '
      f'{name!r} in batch)'
    )
    known = f'{", ".join(batch)} (nearest: {nearest(name, batch, 1)})'
    raise ValueError(f'the loss reads batch[{name!r}]; this batch has {known}{attached}') from error
  labels = batch.get('labels')
  inner = getattr(loss, 'func', loss)  # of a partial
  optax = (getattr(inner, '__module__', None) or '').split('.')[0] == 'optax'
  if labels is not None and (optax or _gives(loss, outputs, labels)):
    shown = f'optax.{inner.__name__}' if optax and hasattr(inner, '__name__') else '...'
    raise TypeError(
      f'a loss is called with (outputs, batch), the batch a dict; {name_of(loss)} takes (outputs, labels): '
      f"loss=lambda outputs, batch: {shown}(outputs, batch['labels'])"
    ) from error
  if _gives(loss, batch, outputs):
    raise TypeError(
      f'a loss is called with (outputs, batch) in this order; {name_of(loss)} takes the batch first: exchange them'
    ) from error


_LABELS = ('label', 'target', 'targets', 'y')


def _gives(loss: Callable[..., Any], *args: Any) -> bool:
  """Whether a loss works with these arguments; its operations go nowhere."""
  try:
    return all(hasattr(leaf, 'shape') for leaf in jax.tree.leaves(loss(*args))[:1])
  except Exception:
    return False


def name_of(thing: Any) -> str:
  """What a person calls a function."""
  inner = getattr(thing, 'func', thing)
  return getattr(inner, '__name__', type(inner).__name__)


def kinds(tree: Any, most: int = 4) -> str:
  """Returns dtypes and shapes of the arrays in a tree, for a message.

  >>> import jax.numpy as jnp
  >>> kinds({'a': jnp.zeros((2, 3)), 'b': 1.0})
  'float32[2, 3], float'
  """
  leaves = jax.tree.leaves(tree)
  shown = [
    f'{leaf.dtype}{list(leaf.shape)}' if hasattr(leaf, 'dtype') else type(leaf).__name__ for leaf in leaves[:most]
  ]
  return ', '.join(shown) + (f' and {len(leaves) - most} more' if len(leaves) > most else '') or 'nothing'
