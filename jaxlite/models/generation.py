"""Text from a model of the next token: greedy, or drawn at a temperature from the likeliest few."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.graph.effects import Outside, outside
from jaxlite.models.sampling import check_ids, chosen, prompts_of, sampling, whole

_BLOCK = 64  # with a fixed window, buffers grow by this many tokens, so that other lengths compile nothing new


def generate(
  network: Any,
  prompt: Any,
  steps: int,
  *,
  key: jax.Array | None = None,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  stop: Any = (),
  length: int | None = None,
) -> Any:
  """Continues prompts, a token after the other.

  The model must be causal, as a `Decoder` is: what is generated stands at the left of a window of one size, padded
  with 0 on the right, which earlier logits must not see. The window is run anew for each token. The token at
  position p of prompt b is drawn with the key fold_in(fold_in(key, b), p): so a text continued in two calls is that
  of one call. A `Decoder` at hand is quicker with `generate_cached`, which keeps keys and values.

  Args:
    network: a `Network` (`jaxlite.load` gives that of a run), or a function from int32[B, T] to logits,
      float[B, T, vocabulary], whose arrays become part of the compiled program; with others in their places (a module
      that was trained on) it is compiled anew.
    prompt: int[B, T], or a list of lists of ids, of any lengths from 1.
    steps: tokens to add to each, from 0.
    key: of `jax.random.key(seed)`; not needed where nothing is drawn.
    temperature: divides the logits: above 1 more even, toward 0 more greedy; 0 takes the likeliest token (of equal
      ones the first).
    top_k: draw among the k likeliest only (of equal ones the first); None among all.
    top_p: draw among the likeliest only that together have this share of the probability; None among all.
    stop: ids of tokens that end a text: none is added after one.
    length: tokens that the model sees at once, exactly: a longer text slides out of the window on the left, a shorter
      one is padded. Give the length of training to a model with learned positions. With it, one compiled program
      serves prompts and steps of many sizes. None is as many as there are, for a loaded run that of its training.

  Returns:
    int32[B, T + steps], the prompt first, filled up with the token that ended a text; for lists, a list of lists, each
    to its end. Within a jax transformation, where nothing can be raised, a token that no finite logits stand for is -1,
    and so is what follows it.

  Raises:
    ValueError: an empty prompt, ids that are no whole numbers; steps, temperature, top_k, top_p or length out of range;
      no key; a model that gives other than logits, or logits that are not finite.

  References:
    Top-k: Fan, Lewis and Dauphin, Hierarchical Neural Story Generation, 2018, https://arxiv.org/abs/1805.04833. Top-p:
    Holtzman et al., The Curious Case of Neural Text Degeneration, 2019, https://arxiv.org/abs/1904.09751

  >>> after = lambda tokens: jax.nn.one_hot((tokens + 1) % 5, 5)
  >>> generate(after, jnp.array([[1, 2]]), 4, temperature=0).tolist()
  [[1, 2, 3, 4, 0, 1]]
  >>> generate(after, [[3], [0, 1]], 2, temperature=0)
  [[3, 4, 0], [0, 1, 2, 3]]
  """
  steps = whole(steps, 'generate: steps', 0)
  length = None if length is None else whole(length, 'generate: length', 1)
  how = sampling('generate', key=key, temperature=temperature, top_k=top_k, top_p=top_p, stop=stop, steps=steps)
  length = length or _trained_length(network)
  listed = isinstance(prompt, list | tuple)
  tokens, counts = prompts_of(prompt) if listed else _of_array(prompt)
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
    run = made(apply, window, how.kind, None if of_network else outside(apply))
    filled = run(values, filled, counts, steps, how.numbers)
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
    ends = [_end(row, count, steps, how.stop) for row, count in zip(host, counts.tolist(), strict=True)]
    return [row[:end] for row, end in zip(host.tolist(), ends, strict=True)]
  return filled[:, :total]


def _trained_length(network: Any) -> int | None:
  """The tokens that a loaded program takes, where it is one of [B, T]; its shapes are fixed."""
  shapes = getattr(getattr(getattr(network, 'model', None), 'apply', None), 'input_shapes', ())
  return shapes[0][0] if len(shapes) == 1 and len(shapes[0]) == 1 else None


@functools.lru_cache(maxsize=16)
def _continued(apply: Callable[..., Any], window: int, kind: Any, held: Outside | None) -> Callable[..., jax.Array]:
  """Returns (values, tokens [B, C], counts [B], steps, numbers of the sampling) -> tokens, compiled.

  `held` is what a function reaches from outside: with other arrays there it is another program.
  """
  del held
  top_k = kind[1]

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

  @jax.jit
  def run(values: Any, tokens: jax.Array, counts: jax.Array, steps: Any, numbers: Any) -> jax.Array:
    stop = numbers[3]
    rows = jnp.arange(len(counts))

    def goes_on(carry: Any) -> jax.Array:
      index, _, done = carry
      return (index < steps) & ~done.all()

    def step(carry: Any) -> Any:
      index, tokens, done = carry
      at = counts + index
      new = chosen(logits_at(values, tokens, at), at, kind, numbers)
      before = jnp.take_along_axis(tokens, at[:, None] - 1, axis=1)[:, 0]
      new = jnp.where(done, before, jnp.where((index > 0) & (before < 0), -1, new))
      return index + 1, tokens.at[rows, at].set(new), done | jnp.isin(new, stop)

    index, tokens, _ = jax.lax.while_loop(goes_on, step, (jnp.int32(0), tokens, rows < 0))
    # Where all have ended early, each goes on with the token that ended it.
    last = jnp.take_along_axis(tokens, jnp.maximum(counts + index - 1, 0)[:, None], axis=1)
    places = jnp.arange(tokens.shape[1])
    late = (places >= (counts + index)[:, None]) & (places < (counts + steps)[:, None])
    return jnp.where(late & (index > 0), last, tokens)

  return run


def _end(row: np.ndarray, count: int, steps: int, stop: np.ndarray) -> int:
  """Where a text ends: after its first token of `stop`."""
  found = np.flatnonzero(np.isin(row[count : count + steps], stop))
  return count + (int(found[0]) + 1 if len(found) else steps)


def _is_hashable(value: Any) -> bool:
  try:
    hash(value)
  except TypeError:
    return False
  return True


def _of_array(prompt: Any) -> tuple[jax.Array, np.ndarray]:
  if not hasattr(prompt, 'dtype') or not jnp.issubdtype(prompt.dtype, jnp.integer) or prompt.ndim != 2:
    got = f'{prompt.dtype}{list(prompt.shape)}' if hasattr(prompt, 'dtype') else type(prompt).__name__
    raise ValueError(f'prompts are int[B, T], or a list of lists of ids; got {got}')
  if not prompt.shape[1]:
    raise ValueError(f'a prompt needs one token at least; got {list(prompt.shape)}: begin it with a newline, say')
  if not isinstance(prompt, jax.core.Tracer):
    check_ids(np.asarray(prompt), 'the prompt')
  return jnp.asarray(prompt, jnp.int32), np.full(prompt.shape[0], prompt.shape[1], np.int32)
