"""The next token out of logits: the likeliest, or one drawn at a temperature among the likeliest few."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_STOPS = 8
_LARGEST = 2**31 - 1  # of an id


class Sampling(NamedTuple):
  """How tokens are chosen, checked: what a compiled program depends on, and the numbers that it is given.

  Attributes:
    drawn: whether tokens are drawn; else the likeliest is taken.
    top_k: among how many, None for all.
    nucleus: whether `top_p` restricts them.
    key: of jax.random, None where nothing is drawn.
    temperature, top_p: numbers.
    stop: int32[n], tokens that end a text, -2 in places that are left over.
  """

  drawn: bool
  top_k: int | None
  nucleus: bool
  key: Any
  temperature: Any
  top_p: Any
  stop: np.ndarray

  @property
  def kind(self) -> tuple[bool, int | None, bool]:
    """What a program is compiled for."""
    return self.drawn, self.top_k, self.nucleus

  @property
  def numbers(self) -> tuple[Any, Any, Any, Any]:
    """What a program is given: (key, temperature, top_p, stop)."""
    return self.key, self.temperature, self.top_p, self.stop


def sampling(
  who: str, *, key: Any, temperature: Any, top_k: Any, top_p: Any, stop: Any, steps: int | None = None
) -> Sampling:
  """Checks how tokens are to be chosen.

  Raises:
    ValueError: a number out of range, or no key where tokens are drawn; names `who` asks.

  >>> sampling('generate', key=None, temperature=0, top_k=None, top_p=1, stop=(2,)).kind
  (False, None, False)
  """
  top_k = None if top_k is None else whole(top_k, f'{who}: top_k', 1)
  temperature = _number(temperature, f'{who}: temperature is a number from 0', 0, math.inf)
  top_p = 1.0 if top_p is None else _number(top_p, f'{who}: top_p is above 0 and at most 1', 1e-6, 1.0 + 1e-9)
  several = stop.tolist() if hasattr(stop, 'tolist') else stop
  listed = list(several) if isinstance(several, Sequence) else [several]
  if not all(hasattr(one, '__index__') and not isinstance(one, bool) and 0 <= one <= _LARGEST for one in listed):
    raise ValueError(f'{who}: stop is the id of a token, or several; got {stop!r:.60}')
  drawn = temperature > 0 and top_k != 1 and steps != 0
  if drawn and not (jnp.issubdtype(getattr(key, 'dtype', jnp.float32), jax.dtypes.prng_key) and key.shape == ()):
    got = f'{key.dtype}{list(key.shape)}' if hasattr(key, 'shape') else type(key).__name__
    raise ValueError(f'{who} draws tokens with a key: give key=jax.random.key(seed), or temperature=0; got {got}')
  # Filled up with what no token is, so that another number of them compiles nothing new.
  ids = np.full(-(-max(len(listed), 1) // _STOPS) * _STOPS, -2, np.int32)
  ids[: len(listed)] = [operator.index(one) for one in listed]
  if not drawn:
    return Sampling(False, None, False, None, 1.0, 1.0, ids)
  least = float(np.finfo(np.float32).tiny)  # below it float32 has 0, by which nothing is divided
  return Sampling(True, top_k, top_p < 1, key, max(temperature, least), top_p, ids)


def chosen(logits: jax.Array, at: jax.Array, kind: tuple[bool, int | None, bool], numbers: tuple[Any, ...]) -> Any:
  """Chooses the next token of each row; -1 where its logits are not finite.

  Args:
    logits: at least float32[B, V].
    at: int32[B], the position that each token goes to: row b's is drawn with fold_in(fold_in(key, b), at).
    kind: of a `Sampling`.
    numbers: of it.

  Returns:
    int32[B].

  References:
    Top-k: Fan, Lewis and Dauphin, Hierarchical Neural Story Generation, 2018, https://arxiv.org/abs/1805.04833. Top-p:
    Holtzman et al., The Curious Case of Neural Text Degeneration, 2019, https://arxiv.org/abs/1904.09751
  """
  drawn, top_k, nucleus = kind
  key, temperature, top_p, _ = numbers
  best = jnp.max(logits, axis=-1, keepdims=True)
  if drawn:
    scaled, ids = (logits - best) / temperature, None  # the largest is 0: a small temperature does not overflow
    if top_k is not None or nucleus:
      scaled, ids = jax.lax.top_k(scaled, scaled.shape[-1] if top_k is None else top_k)
    if nucleus:
      shares = jax.nn.softmax(scaled, axis=-1)
      before = jnp.cumsum(shares, axis=-1) - shares
      # The first is always among them, whatever the sum of one share rounds to.
      scaled = jnp.where((before < top_p).at[:, 0].set(True), scaled, -jnp.inf)
    rows = jnp.arange(len(at))
    keys = jax.vmap(lambda row, at: jax.random.fold_in(jax.random.fold_in(key, row), at))(rows, at)
    new = jax.vmap(jax.random.categorical)(keys, scaled)
    new = new if ids is None else jnp.take_along_axis(ids, new[:, None], axis=1)[:, 0]
  else:
    new = jnp.argmax(logits, axis=-1)
  return jnp.where(jnp.isfinite(best[:, 0]), new, -1).astype(jnp.int32)


def whole(value: Any, what: str, least: int) -> int:
  """Returns a whole number as int, or raises ValueError naming `what` it is."""
  try:
    number = operator.index(value)
  except TypeError:
    number = least - 1
  if isinstance(value, bool) or number < least:
    raise ValueError(f'{what} is a whole number from {least}; got {value!r}')
  return number


def _number(value: Any, rule: str, least: float, below: float) -> float:
  try:
    number = math.nan if isinstance(value, bool | str) else float(value)
  except (TypeError, ValueError, jax.errors.ConcretizationTypeError):
    number = math.nan
  if not least <= number < below:
    raise ValueError(f'{rule}; got {value!r}')
  return number


def check_ids(ids: Any, what: str) -> None:
  """Raises where a number is no id: int32 would make another of a large one, and a negative one counts from the end.

  >>> check_ids(np.array([3, 2**31 - 1]), 'prompt 0')
  """
  bad = np.argwhere((ids < 0) | (ids > _LARGEST))
  if len(bad):
    got = ids[tuple(bad[0])]
    raise ValueError(f'ids of tokens are from 0 to {_LARGEST}; {what} has {got} at {bad[0][-1]}: encode it')


def prompts_of(prompts: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
  """Returns (int32[B, T] padded with 0 on the right, int32[B] lengths) of a list of lists of ids.

  Raises:
    ValueError: an empty prompt, something that is no list of ids.
  """
  rows = []
  for place, one in enumerate(prompts):
    row = np.asarray(one)
    if row.ndim == 0 and np.issubdtype(row.dtype, np.integer):
      raise ValueError(f'prompts are a list of lists of ids; got a list of ids, {list(prompts)[:3]}: give [prompt]')
    if row.ndim != 1 or not (np.issubdtype(row.dtype, np.integer) or not row.size):
      raise ValueError(f'a prompt is a list of ids, and prompts a list of those; prompt {place} is {one!r}: encode it')
    if not row.size:
      raise ValueError(f'a prompt needs one token at least; prompt {place} is empty: begin it with a newline, say')
    check_ids(row, f'prompt {place}')
    rows.append(row)
  counts = np.array([len(row) for row in rows], np.int32)
  tokens = np.zeros((len(rows), max(counts.tolist(), default=1)), np.int32)
  for place, row in enumerate(rows):
    tokens[place, : len(row)] = row
  return tokens, counts
