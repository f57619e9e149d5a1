"""Steps taken again from the start of a run: whether each does to its own batch what it was made for."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.contract import join_const
from jaxlite.diagnosis.look import Looker, Subject

_STEPS = 80  # at most so many are taken
_LEAST = 12  # fewer say nothing


class Walk(NamedTuple):
  """Steps from the start of the run.

  Attributes:
    steps: how many.
    raised: the share of the later ones after which the loss of their own batch was larger.
    ratio: the median of |update| / |weight| over the later steps, of the leaves that do not begin at zero.
    losses: before each.
    finite: whether all stayed finite.
    unchanged: of weights of few bits that have a gradient, the share that an update left as they were; NaN where all
      have at least 32.
    largest: the largest |update| of all, beside the size of the weights at the start.
  """

  steps: int
  raised: float
  ratio: float
  losses: tuple[float, ...]
  finite: bool
  unchanged: float
  largest: float


@jax.jit
def _apart(old: Any, new: Any) -> Any:
  """(|new - old|, |old|, how many values of few bits are as they were, how many there are)."""
  pairs = list(zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))
  wide = [(one.astype(jnp.float32), two.astype(jnp.float32)) for one, two in pairs]
  few = [(one, two) for one, two in pairs if one.dtype.itemsize < 4]
  same = sum((jnp.sum(one == two) for one, two in few), jnp.int32(0))
  size = sum(one.size for one, _ in few)
  apart = sum((jnp.sum(jnp.square(two - one)) for one, two in wide), jnp.float32(0))
  return jnp.sqrt(apart), jnp.sqrt(sum((jnp.sum(jnp.square(one)) for one, _ in wide), jnp.float32(0))), same, size


def _begun(start: Any) -> Any:
  """Which leaves have a size to begin with: beside what begins at zero any move is large."""
  return [bool(np.any(np.asarray(leaf))) for leaf in jax.tree.leaves(start)]


def _of(tree: Any, which: Any) -> Any:
  return [leaf for leaf, taken in zip(jax.tree.leaves(tree), which, strict=True) if taken]


def moved(start: Any, end: Any) -> float:
  """|end - start| / |start| over the leaves that do not begin at zero; NaN where all do."""
  which = _begun(start)
  if not any(which):
    return float('nan')
  apart, size, *_ = _apart(_of(start, which), _of(end, which))
  return float(apart) / max(float(size), 1e-30)


def walk(subject: Subject, looker: Looker, until: float, missing: list[str]) -> Walk | None:
  """Takes steps as the run did, and looks whether each lowers the loss of the batch that it was made for."""
  total = min(subject.total, _STEPS)
  state = jax.tree.map(jnp.copy, subject.start)
  losses, raised, ratios, unchanged, moves, finite = [], [], [], [], [], True
  which = _begun(state.params)
  begun = _apart(_of(state.params, which), _of(state.params, which))[1]
  for step in range(total):
    if time.monotonic() > until:
      missing.append(f'steps from the start beyond {step}: the time was up (seconds=)')
      break
    batch = looker.batch(step)
    before, old, key, at = state.model_state, jax.tree.map(jnp.copy, state.params), state.key, state.step
    kept = jax.tree.map(jnp.copy, (before, at))
    full = join_const(kept[0], state.const)
    state, _ = subject.train.step(state, batch)
    # Both by one function: parts of the recipe may have changed the batch that the step saw.
    loss, after = (float(looker.value(params, full, batch, key, kept[1])) for params in (old, state.params))
    apart, size, same, few = _apart(_of(old, which), _of(state.params, which))
    finite = bool(np.isfinite([loss, after, float(apart)]).all())  # of the others the loss tells
    losses.append(loss)
    moves.append(float(apart) / max(float(begun), 1e-30) if any(which) else float('nan'))
    if not finite:
      break
    raised.append(after > loss + 1e-4 * abs(loss))
    ratios.append(float(apart) / max(float(size), 1e-30) if any(which) else float('nan'))
    unchanged.append(float(same) / few if few else float('nan'))
  if finite and len(raised) < min(_LEAST, total):
    return None
  largest = max((one for one in moves if np.isfinite(one)), default=float('nan'))
  if not raised:
    return Walk(len(losses), 1.0, float('nan'), tuple(losses), finite, float('nan'), largest) if losses else None
  late = len(raised) // 3
  return Walk(
    len(losses),
    float(np.mean(raised[late:])),
    float(np.median(ratios[late:])),
    tuple(losses),
    finite,
    float(np.mean(unchanged[late:])),
    largest,
  )
