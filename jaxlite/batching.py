"""Running a function on some examples at a time, so that memory does not grow with how many there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AT_ONCE = 512  # examples, as evaluation takes them


def in_parts(run: Callable[[Any], Any], inputs: Any, most: int = AT_ONCE) -> Any:
  """Returns what a function makes of examples, run on some of them at a time.

  Up to `most` examples are one batch. Of more every batch has `most`, so that one program serves them; the last is
  filled up with examples before it, whose results are dropped.

  Args:
    run: (inputs [B, ...]) -> a tree of arrays [B, ...], or a list with an entry per example.
    inputs: a tree of arrays [N, ...]; or a list with a list of numbers for each example.
    most: examples a batch.

  Returns:
    The results of all examples, in their order.

  Raises:
    ValueError: inputs are texts or objects.

  >>> sizes = []
  >>> in_parts(lambda x: sizes.append(len(x)) or x + 1, np.arange(5), most=2).tolist(), sizes
  ([1, 2, 3, 4, 5], [2, 2, 2])
  """
  inputs = _as_array(inputs)
  arrays = jax.tree.leaves(inputs)
  for leaf in arrays:
    if getattr(getattr(leaf, 'dtype', None), 'kind', '') in ('O', 'S', 'U', 'M', 'm'):  # JAX says so in a paragraph
      raise ValueError(f'a network takes numbers; got an array of {leaf.dtype}: encode the inputs as for training')
  counts = {jnp.shape(leaf)[:1] for leaf in arrays}
  if any(isinstance(leaf, jax.core.Tracer) or _is_spread(leaf) for leaf in arrays) or len(counts) != 1 or () in counts:
    return run(inputs)
  count = counts.pop()[0]
  if count <= most:
    return run(_rows(inputs, slice(None)))
  made = []
  for start in (*range(0, count - most, most), count - most):  # the last begins where it ends with the last example
    found = run(_rows(inputs, slice(start, start + most)))
    if not _has_rows(found, most):
      return run(_rows(inputs, slice(None)))  # no result for each example: only all together say what they are
    made.append(_from(found, len(made) * most - start))
    jax.block_until_ready(made[-1])  # the next would want its memory beside this one
  if isinstance(made[0], list) and not all(hasattr(one, 'shape') for one in made[0]):
    return [one for part in made for one in part]
  return jax.tree.map(lambda *parts: (jnp if isinstance(parts[0], jax.Array) else np).concatenate(parts), *made)


def _as_array(inputs: Any) -> Any:
  """Rows as lists are one array, as they are where a run is trained on them, and no tree of numbers."""
  if not (isinstance(inputs, list) and inputs and all(isinstance(row, list | tuple) for row in inputs)):
    return inputs
  if not all(isinstance(leaf, int | float) for leaf in jax.tree.leaves(inputs)):
    return inputs
  try:
    return np.asarray(inputs)
  except ValueError:  # ragged
    return inputs


def _has_rows(found: Any, count: int) -> bool:
  if isinstance(found, list) and not all(hasattr(one, 'shape') for one in found):
    return len(found) == count
  return all(np.shape(leaf)[:1] == (count,) for leaf in jax.tree.leaves(found))


def _from(found: Any, first: int) -> Any:
  if isinstance(found, list) and not all(hasattr(one, 'shape') for one in found):
    return found[first:]
  return jax.tree.map(lambda leaf: leaf[first:], found) if first else found


def _rows(inputs: Any, which: slice) -> Any:
  """Rows of every leaf; of what only stands for an array (a DataFrame's column, rows that were chosen) a copy."""

  def cut(leaf: Any) -> Any:
    part = leaf if which == slice(None) else leaf[which]
    return part if isinstance(part, jax.Array | np.ndarray | np.generic) else np.asarray(part)

  return jax.tree.map(cut, inputs)


def _is_spread(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1


def asked(answers: Mapping[str, Any], what: str) -> Any:
  """Returns one of a network's answers by name.

  Raises:
    ValueError: it has none of that name.
  """
  if what not in answers:
    known = ', '.join(answers) or 'nothing, since it does not know what its outputs mean: use predict'
    raise ValueError(f'asked for {what}, this network answers {known}')
  return answers[what]
