"""Text from a decoder that keeps keys and values: the prompt is read in chunks, then each step reads one token."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.models.attention import KVCache
from jaxlite.models.decoder import Decoder
from jaxlite.models.sampling import chosen, prompts_of, sampling, whole

_BLOCK = 64  # slots are a multiple of it, so that other lengths compile nothing new


class Generated(NamedTuple):
  """Texts that were continued, and how long it took.

  Attributes:
    tokens: the ids of each text, prompt first, to its end.
    new: those that were added.
    read: tokens of the prompts.
    compile_seconds: to compile both programs; 0 where they were there.
    read_seconds: to read the prompts, and choose the first token of each.
    step_seconds: to add the others.
  """

  tokens: list[list[int]]
  new: list[list[int]]
  read: int
  compile_seconds: float
  read_seconds: float
  step_seconds: float

  @property
  def tokens_per_second(self) -> float:
    """Tokens added a second, of all texts together, after the first of each; NaN where there are none."""
    added = sum(max(len(one) - 1, 0) for one in self.new)
    return added / self.step_seconds if added and self.step_seconds else float('nan')

  def __repr__(self) -> str:
    added = sum(len(one) for one in self.new)
    return (
      f'Generated({len(self.new)} texts: {self.read} tokens read in {self.read_seconds:.2f} s, {added} added, '
      f'{self.tokens_per_second:.1f} a second; compiled in {self.compile_seconds:.1f} s)'
    )


class _State(NamedTuple):
  """What a step reads and writes: the cache; the tokens of each slot, [B, S]; which texts have ended, [B]."""

  cache: KVCache
  tokens: jax.Array
  done: jax.Array


def generate_cached(
  decoder: Decoder,
  params: Any,
  prompts: Sequence[Sequence[int]],
  steps: int,
  *,
  key: jax.Array | None = None,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  stop: Any = (),
  chunk: int | None = None,
  cache_dtype: Any = None,
) -> Generated:
  """Continues prompts with a decoder whose keys and values are kept, so that a step costs one token and not the text.

  The tokens are those of `generate` with the same arguments, but for what rounds differently: sums over the slots of
  the cache and over a window have other lengths.

  Args:
    decoder: the network.
    params: its parameters; arrays of jax, in any dtype that they were loaded in.
    prompts: lists of ids, of any lengths from 1.
    steps: tokens to add to each, at most.
    key: of `jax.random.key(seed)`; not needed where nothing is drawn.
    temperature: divides the logits; 0 takes the likeliest token.
    top_k: draw among the k likeliest only; None among all.
    top_p: draw among the likeliest only that together have this share of the probability; None among all.
    stop: ids of tokens that end a text: none is added after one, and when all texts have ended it is over.
    chunk: tokens of a prompt that are read at once; None takes a power of two that holds the longest, 64 at most.
    cache_dtype: what keys and values are kept in; None takes that in which the decoder computes.

  Returns:
    The texts, with tokens a second.

  Raises:
    ValueError: an empty prompt, an id outside the vocabulary; steps, temperature, top_k, top_p or chunk out of range;
      no key; more tokens than learned positions; logits that are not finite.

  >>> net = Decoder(11, width=8, layers=1, heads=2, hidden=12, form='llama', groups=1)
  >>> params = net.init(jax.random.key(0), jnp.ones((1, 2), int))['params']
  >>> found = generate_cached(net, params, [[1, 2], [3]], 4, temperature=0)
  >>> [len(text) for text in found.tokens]
  [6, 5]
  """
  if not isinstance(decoder, Decoder):
    raise ValueError(f'generate_cached takes a Decoder; got {type(decoder).__name__}: generate takes any network')
  if cache_dtype is not None and not jnp.issubdtype(cache_dtype, jnp.floating):
    raise ValueError(f'generate_cached: cache_dtype is a float, that keys and values are kept in; got {cache_dtype!r}')
  if isinstance(params, Mapping) and set(params) == {'params'}:
    raise ValueError("generate_cached takes the parameters alone; got a dict of them: give its ['params']")
  steps = whole(steps, 'generate_cached: steps', 0)
  how = sampling('generate_cached', key=key, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop, steps=steps)
  if how.top_k is not None and how.top_k > decoder.vocabulary:
    raise ValueError(f'generate_cached: top_k is from 1 to the vocabulary, {decoder.vocabulary}; got {how.top_k}')
  tokens, counts = prompts_of(prompts)
  _check_ids(tokens, counts, decoder.vocabulary)
  longest = int(counts.max(initial=1))
  if decoder.positions == 'learned' and longest + steps > decoder.length:
    raise ValueError(
      f'learned positions end at length={decoder.length}; got {longest} tokens and {steps} steps: generate takes a '
      'window, length='
    )
  if not steps or not len(counts):
    return Generated([list(map(int, one)) for one in prompts], [[] for _ in counts], int(counts.sum()), 0.0, 0.0, 0.0)
  chunk = min(1 << (longest - 1).bit_length(), _BLOCK) if chunk is None else whole(chunk, 'generate_cached: chunk', 1)
  read = -(-longest // chunk) * chunk
  slots = -(-(read + steps) // _BLOCK) * _BLOCK
  begin = (read - counts).astype(np.int32)
  laid = np.zeros((len(counts), slots), np.int32)
  for row, count in enumerate(counts.tolist()):
    laid[row, begin[row] : read] = tokens[row, :count]
  params = jax.tree.map(jnp.asarray, params)
  dtype = decoder.dtype if cache_dtype is None else cache_dtype
  state = _State(decoder.empty_cache(slots, begin, dtype), jnp.asarray(laid), jnp.zeros(len(counts), bool))

  began = time.perf_counter()
  programs = _programs(decoder, how.kind, chunk, _layout((params, state, how.numbers)))
  reader, first, step = programs(params, state, how.numbers)
  compiled = time.perf_counter()
  logits = None
  for _ in range(read // chunk):
    logits, state = reader(params, state)
  state = first(logits, state, how.numbers)
  jax.block_until_ready(state)
  ready = time.perf_counter()
  for _ in range(steps - 1):
    if how.stop.max() >= 0 and bool(state.done.all()):
      break
    state = step(params, state, how.numbers)
  found = np.asarray(state.tokens)
  ended = time.perf_counter()
  made = int(state.cache.count) + 1 - read
  texts = [found[row, begin[row] : read + made] for row in range(len(counts))]
  new = [_ended(text[count:], how.stop) for text, count in zip(texts, counts.tolist(), strict=True)]
  for row, text in enumerate(new):
    if min(text) < 0:
      raise ValueError(
        f'generate_cached: the logits for token {counts[row] + text.index(min(text))} of prompt {row} are not finite: '
        'the weights hold what is no number, or the model has diverged'
      )
  whole_texts = [[*map(int, prompt), *text] for prompt, text in zip(prompts, new, strict=True)]
  return Generated(whole_texts, new, int(counts.sum()), compiled - began, ready - compiled, ended - ready)


@functools.lru_cache(maxsize=8)
def _programs(decoder: Decoder, kind: Any, chunk: int, layout: Any) -> Any:
  """Returns (params, state, numbers) -> the three compiled programs, made at the first call.

  They are compiled ahead so that no step's time holds it; `layout` is what else they were compiled for.
  """
  del layout

  def forward(params: Any, state: _State, size: int) -> tuple[jax.Array, _State]:
    tokens = jax.lax.dynamic_slice_in_dim(state.tokens, state.cache.count, size, axis=1)
    logits, cache = decoder.apply({'params': params}, tokens, cache=state.cache, give='last')
    return logits[:, 0], state._replace(cache=cache)

  def reader(params: Any, state: _State) -> tuple[jax.Array, _State]:
    return forward(params, state, chunk)

  def choose(logits: jax.Array, state: _State, numbers: Any) -> _State:
    at = state.cache.count
    new = chosen(logits, at - state.cache.begin, kind, numbers)
    before = jax.lax.dynamic_index_in_dim(state.tokens, at - 1, axis=1, keepdims=False)
    new = jnp.where(state.done | (before < 0), before, new)
    tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, new[:, None], at, axis=1)
    return state._replace(tokens=tokens, done=state.done | jnp.isin(new, numbers[3]) | (new < 0))

  def step(params: Any, state: _State, numbers: Any) -> _State:
    logits, state = forward(params, state, 1)
    return choose(logits, state, numbers)

  made: list[Any] = []

  def programs(params: Any, state: _State, numbers: Any) -> Any:
    if not made:
      rows = len(state.done)
      logits = jax.ShapeDtypeStruct((rows, decoder.vocabulary), jnp.float32)
      made.extend(
        (
          jax.jit(reader, donate_argnums=1).lower(params, state).compile(),
          jax.jit(choose, donate_argnums=1).lower(logits, state, numbers).compile(),
          jax.jit(step, donate_argnums=1).lower(params, state, numbers).compile(),
        )
      )
    return made

  return programs


def _layout(values: Any) -> Any:
  """What distinguishes programs: structure, shapes, dtypes, devices."""
  leaves, structure = jax.tree.flatten(values)
  told = (
    (np.shape(leaf), str(getattr(leaf, 'dtype', type(leaf).__name__)), getattr(leaf, 'sharding', None))
    for leaf in leaves
  )
  return structure, tuple(told)


def _check_ids(tokens: np.ndarray, counts: np.ndarray, vocabulary: int) -> None:
  for row, count in enumerate(counts.tolist()):
    bad = np.flatnonzero((tokens[row, :count] < 0) | (tokens[row, :count] >= vocabulary))
    if len(bad):
      raise ValueError(
        f'generate_cached: ids are from 0 to {vocabulary - 1}; token {bad[0]} of prompt {row} is '
        f'{tokens[row, bad[0]]}: encode with the tokenizer of this model'
      )


def _ended(text: np.ndarray, stop: np.ndarray) -> list[int]:
  found = np.flatnonzero(np.isin(text, stop))
  return text[: int(found[0]) + 1 if len(found) else len(text)].tolist()
