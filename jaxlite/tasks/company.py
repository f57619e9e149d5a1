"""Whether a loss looks at each example by itself: tried where a batch is taken in parts, and told where it does not.

A contrastive or ranking loss compares the examples of a batch, and so does Cox's. Of a micro-batch it sees fewer: the
mean over micro-batches is then another loss than the whole batch's, and nothing in its shapes shows that.
"""

from __future__ import annotations

import contextlib
import contextvars
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxlite.tasks.calling import name_of

_ROWS = 4  # examples that are tried, whole and in halves
_FEW = 1 << 20  # numbers of so many examples at the most: of more nothing is tried
_NEAR, _NEAR_IN_HALVES = 1e-4, 0.05  # of the largest loss, by which rounding may differ; numbers of 16 bits and fewer
_PARTS: contextvars.ContextVar[bool] = contextvars.ContextVar('parts', default=False)


@contextlib.contextmanager
def in_parts() -> Iterator[None]:
  """While it lasts, losses are given parts of a batch."""
  token = _PARTS.set(True)
  try:
    yield
  finally:
    _PARTS.reset(token)


def is_part() -> bool:
  """Tells whether a batch is a part of one."""
  return _PARTS.get()


def told_of_company(
  loss: Callable[[Any, Any], Any], outputs: Any, batch: Mapping[str, Any], size: int, has: Mapping[str, Any]
) -> None:
  """Warns of a loss whose value for an example depends on the other examples.

  jaxlite's own losses are not tried, nor is what fails on made-up numbers.

  Args:
    loss: (outputs, batch) -> float[B].
    outputs: of the model; arrays or tracers.
    batch: likewise.
    size: B.
    has: a tree like the batch: which leaves have a row for each example.
  """
  own = getattr(getattr(loss, 'func', loss), '__module__', None) or ''
  if own.partition('.')[0] == 'jaxlite':
    return
  leaves, treedef = jax.tree.flatten((outputs, dict(batch)))
  rows = (*(np.shape(leaf)[:1] == (size,) for leaf in jax.tree.leaves(outputs)), *jax.tree.leaves(dict(has)))
  kinds = tuple((tuple(np.shape(leaf)), str(getattr(leaf, 'dtype', ''))) for leaf in leaves)
  try:
    alone = _alone(loss, treedef, kinds, rows)
  except Exception:  # made-up numbers are no batch of this loss: nothing is known
    return
  if not alone:
    warnings.warn(
      f'accumulate: what {name_of(loss)} gives for an example depends on the other examples, of which it sees those of '
      "one micro-batch: that is another loss than the whole batch's. Take the batch at once, or filter this warning "
      'where that is meant',
      stacklevel=2,
    )


def _alone(loss: Callable[[Any, Any], Any], treedef: Any, kinds: tuple[Any, ...], rows: tuple[bool, ...]) -> bool:
  """Whether a loss gives for four made-up examples what it gives for two and two."""
  random = np.random.default_rng(0)
  shapes = [(_ROWS, *shape[1:]) if row else shape for (shape, _), row in zip(kinds, rows, strict=True)]
  if sum(int(np.prod(shape)) for shape in shapes) > _FEW:
    return True
  leaves = [_drawn(random, shape, dtype) for shape, (_, dtype) in zip(shapes, kinds, strict=True)]

  def values(of: slice) -> np.ndarray:
    some = [leaf[of] if row else leaf for leaf, row in zip(leaves, rows, strict=True)]
    traced = jax.jit(lambda some: loss(*treedef.unflatten(some))).trace(some)
    if traced.jaxpr.effects:
      raise ValueError('it prints or calls back, which is not for made-up numbers')
    return np.asarray(traced.lower().compile()(some), np.float64)  # runs at once, inside a trace too

  whole = values(slice(None))
  parts = np.concatenate([values(slice(_ROWS // 2)), values(slice(_ROWS // 2, None))])
  if whole.shape != parts.shape or not (np.isfinite(whole).all() and np.isfinite(parts).all()):
    return True
  narrow = any(jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact) and leaf.dtype.itemsize < 4 for leaf in leaves)
  return bool(np.abs(whole - parts).max() <= (_NEAR_IN_HALVES if narrow else _NEAR) * np.abs(whole).max())


def _drawn(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
  """Normal numbers; of whole numbers and truth values 0 and 1."""
  kind = jax.numpy.dtype(dtype)
  if jax.numpy.issubdtype(kind, jax.numpy.inexact):
    return random.normal(size=shape).astype(kind)
  return random.integers(0, 2, shape).astype(kind)
