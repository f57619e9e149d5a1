"""Text from a model of the next token: greedy, or drawn at a temperature from the likeliest few."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 64  # with a fixed window, buffers grow by this many tokens, so that other lengths compile nothing new


def generate(
  network: Any,
  prompt: Any,
  steps: int,
  *,
  key: jax.Array | None = None,
  temperature: float = 1.0,
  top_k: int | None = None,
  length: int | None = None,
) -> Any:
  """Continues prompts, a token after the other.

  The model must be causal, as a `Decoder` is: what is generated stands at the left of a window of one size, padded
  with 0 on the right, which earlier logits must not see. The window is run anew for each token. The token at
  position p of prompt b is drawn with the key fold_in(fold_in(key, b), p): so a text continued in two calls is that
  of one call.

  Args:
    network: a `Network` (`jaxlite.load` gives that of a run), or a function from int32[B, T] to logits,
      float[B, T, vocabulary], whose arrays become part of the compiled program.
    prompt: int[B, T], or a list of lists of ids, of any lengths from 1.
    steps: tokens to add to each, from 0.
    key: of `jax.random.key(seed)`; not needed where nothing is drawn.
    temperature: divides the logits: above 1 more even, toward 0 more greedy; 0 takes the likeliest token (of equal
      ones the first).
    top_k: draw among the k likeliest only (of equal ones the first); None among all.
    length: tokens that the model sees at once, exactly: a longer text slides out of the window on the left, a shorter
      one is padded. Give the length of training to a model with learned positions. With it, one compiled program
      serves prompts and steps of many sizes. None is as many as there are, for a loaded run that of its training.

  Returns:
    int32[B, T + steps], the prompt first; for lists, a list of lists. Within a jax transformation, where nothing can
    be raised, a token that no finite logits stand for is -1, and so is what follows it.

  Raises:
    ValueError: an empty prompt, ids that are no whole numbers; steps, temperature, top_k or length out of range; no
      key; a model that gives other than logits, or logits that are not finite.

  References:
    Top-k: Fan, Lewis and Dauphin, Hierarchical Neural Story Generation, 2018, https://arxiv.org/abs/1805.04833

  >>> after = lambda tokens: jax.nn.one_hot((tokens + 1) % 5, 5)
  >>> generate(after, jnp.array([[1, 2]]), 4, temperature=0).tolist()
  [[1, 2, 3, 4, 0, 1]]
  >>> generate(after, [[3], [0, 1]], 2, temperature=0)
  [[3, 4, 0], [0, 1, 2, 3]]
  """
  steps = _whole(steps, 'steps', 0)
  top_k = None if top_k is None else _whole(top_k, 'top_k', 1)
  length = None if length is None else _whole(length, 'length', 1)
  temperature = _temperature(temperature)
  length = length or _trained_length(network)
  drawn = steps > 0 and temperature > 0 and top_k != 1
  if drawn and not jnp.issubdtype(getattr(key, 'dtype', jnp.float32), jax.dtypes.prng_key):
    raise ValueError(
      f'generate draws tokens with a key: give key=jax.random.key(seed), or temperature=0; got {type(key).__name__}'
    )
  listed = isinstance(prompt, list | tuple)
  tokens, counts = _of_lists(prompt) if listed else _of_array(prompt)
  longest = tokens.shape[1]
  total = longest + steps
  capacity = total if length is None else -(-max(total, length) // _BLOCK) * _BLOCK
  window = max(total - 1, 1) if length is None else length
  filled = jnp.zeros((tokens.shape[0], capacity), jnp.int32).at[:, :longest].set(tokens)
  if steps and tokens.shape[0]:
    of_network = all(hasattr(network, field) for field in ('model', 'params', 'model_state'))
    apply = network.model.apply if of_network else network
    values = (network.params, network.model_state) if of_network else ()
    if not callable(apply):
      raise ValueError(f'generate takes a Network or a function from tokens to logits; got {type(network).__name__}')
    made = _continued if _is_hashable(apply) else _continued.__wrapped__
    run = made(apply, window, top_k if drawn else None, drawn)
    filled = run(values, filled, counts, steps, key if drawn else None, temperature if drawn else 1.0)
  if isinstance(filled, jax.core.Tracer):
    return filled[:, :total]
  host = np.asarray(filled)
  for row, count in enumerate(np.asarray(counts).tolist()):
    bad = np.flatnonzero(host[row, count : count + steps] < 0)
    if len(bad):
      raise ValueError(
        f'generate: the logits for token {count + int(bad[0])} of prompt {row} are not finite: an id lies outside the '
        'vocabulary, or the model has diverged'
      )
  if listed:
    return [row[: count + steps] for row, count in zip(host.tolist(), counts.tolist(), strict=True)]
  return filled[:, :total]


def _trained_length(network: Any) -> int | None:
  """The tokens that a loaded program takes, where it is one of [B, T]; its shapes are fixed."""
  shapes = getattr(getattr(getattr(network, 'model', None), 'apply', None), 'input_shapes', ())
  return shapes[0][0] if len(shapes) == 1 and len(shapes[0]) == 1 else None


@functools.lru_cache(maxsize=16)
def _continued(apply: Callable[..., Any], window: int, top_k: int | None, drawn: bool) -> Callable[..., jax.Array]:
  """Returns (values, tokens [B, C], counts [B], steps, key, temperature) -> tokens, compiled."""

  def logits_at(values: Any, tokens: jax.Array, at: jax.Array) -> jax.Array:
    """The logits, at least float32[B, V], for the token that goes to position `at` of each row."""
    begin = jnp.maximum(at - window, 0)
    slides = tokens.shape[1] > window + 1
    seen = tokens[:, :window]
    if slides:
      seen = jax.vmap(lambda row, begin: jax.lax.dynamic_slice(row, (begin,), (window,)))(tokens, begin)
    found = apply(*values, seen, train=False, key=None)[0] if values else apply(seen)
    if not hasattr(found, 'dtype') or not jnp.issubdtype(found.dtype, jnp.floating) or found.shape[:-1] != seen.shape:
      got = f'{found.dtype}{list(found.shape)}' if hasattr(found, 'dtype') else type(found).__name__
      raise ValueError(f'generate takes logits, float{[*seen.shape, "vocabulary"]}; got {got}'.replace("'", ''))
    if top_k is not None and top_k > found.shape[-1]:
      raise ValueError(f'generate: top_k is from 1 to the vocabulary, {found.shape[-1]}; got {top_k}')
    last = jnp.take_along_axis(found, (at - begin - 1)[:, None, None], axis=1)[:, 0]
    return last.astype(jnp.promote_types(last.dtype, jnp.float32))

  def chosen(logits: jax.Array, at: jax.Array, key: Any, temperature: Any) -> jax.Array:
    best = jnp.max(logits, axis=-1, keepdims=True)
    if drawn:
      scaled = (logits - best) / temperature  # the largest is 0: a small temperature does not overflow
      scaled, ids = jax.lax.top_k(scaled, top_k) if top_k is not None else (scaled, None)
      rows = jnp.arange(len(at))
      keys = jax.vmap(lambda row, at: jax.random.fold_in(jax.random.fold_in(key, row), at))(rows, at)
      new = jax.vmap(jax.random.categorical)(keys, scaled)
      new = new if ids is None else jnp.take_along_axis(ids, new[:, None], axis=1)[:, 0]
    else:
      new = jnp.argmax(logits, axis=-1)
    return jnp.where(jnp.isfinite(best[:, 0]), new, -1).astype(jnp.int32)

  @jax.jit
  def run(values: Any, tokens: jax.Array, counts: jax.Array, steps: Any, key: Any, temperature: Any) -> jax.Array:
    def step(index: Any, tokens: jax.Array) -> jax.Array:
      at = counts + index
      new = chosen(logits_at(values, tokens, at), at, key, temperature)
      before = jnp.take_along_axis(tokens, at[:, None] - 1, axis=1)[:, 0]
      new = jnp.where((index > 0) & (before < 0), -1, new)
      return tokens.at[jnp.arange(len(at)), at].set(new)

    return jax.lax.fori_loop(0, steps, step, tokens)

  return run


def _whole(value: Any, what: str, least: int) -> int:
  try:
    number = operator.index(value)
  except TypeError:
    number = least - 1
  if isinstance(value, bool) or number < least:
    raise ValueError(f'generate: {what} is a whole number from {least}; got {value!r}')
  return number


def _temperature(value: Any) -> float:
  try:
    number = math.nan if isinstance(value, bool | str) else float(value)
  except (TypeError, ValueError, jax.errors.ConcretizationTypeError):
    number = math.nan
  if not 0 <= number < math.inf:
    raise ValueError(f'generate: temperature is a number from 0; got {value!r}')
  return number


def _is_hashable(value: Any) -> bool:
  try:
    hash(value)
  except TypeError:
    return False
  return True


def _of_lists(prompts: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
  """Returns (int32[B, T] padded with 0 on the right, int32[B] lengths)."""
  rows = []
  for place, one in enumerate(prompts):
    row = np.asarray(one)
    if row.ndim == 0 and np.issubdtype(row.dtype, np.integer):
      raise ValueError(f'prompts are a list of lists of ids; got a list of ids, {list(prompts)[:3]}: give [prompt]')
    if row.ndim != 1 or not (np.issubdtype(row.dtype, np.integer) or not row.size):
      raise ValueError(f'a prompt is a list of ids, and prompts a list of those; prompt {place} is {one!r}: encode it')
    if not row.size:
      raise ValueError(f'a prompt needs one token at least; prompt {place} is empty: begin it with a newline, say')
    rows.append(row)
  counts = np.array([len(row) for row in rows], np.int32)
  tokens = np.zeros((len(rows), max(counts.tolist(), default=1)), np.int32)
  for place, row in enumerate(rows):
    tokens[place, : len(row)] = row
  return tokens, counts


def _of_array(prompt: Any) -> tuple[jax.Array, np.ndarray]:
  if not hasattr(prompt, 'dtype') or not jnp.issubdtype(prompt.dtype, jnp.integer) or prompt.ndim != 2:
    got = f'{prompt.dtype}{list(prompt.shape)}' if hasattr(prompt, 'dtype') else type(prompt).__name__
    raise ValueError(f'prompts are int[B, T], or a list of lists of ids; got {got}')
  if not prompt.shape[1]:
    raise ValueError(f'a prompt needs one token at least; got {list(prompt.shape)}: begin it with a newline, say')
  return jnp.asarray(prompt, jnp.int32), np.full(prompt.shape[0], prompt.shape[1], np.int32)
