"""Generation: plain Python says what greedy text is, frequencies say what drawn text is, and keys decide it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxlite as jl
from jaxlite.models import Decoder, generate

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
NET = Decoder(11, width=8, layers=1, heads=2, hidden=12, length=8, positions='learned')
TABLE = RNG.normal(size=(7, 7)).astype(np.float32)


def after(tokens):
  """A text in which only the last token matters."""
  return jnp.asarray(TABLE)[tokens]


@pytest.fixture(scope='module')
def network():
  model = jl.from_linen(NET)
  shapes = jax.eval_shape(model.init, KEY, np.ones((1, 8), int))[0]
  return jl.Network(model, jax.tree.map(lambda leaf: RNG.normal(0.2, 0.8, leaf.shape).astype(np.float32), shapes), {})


def greedy_by_hand(logits, prompt, steps, length=None):
  """One text, the whole of it or its last `length` tokens run anew for each token."""
  text = list(prompt)
  for _ in range(steps):
    seen = text[-length:] if length else text
    text.append(int(np.argmax(logits(seen))))
  return text


def test_greedy_text_is_repeated_argmax_also_beyond_the_window_and_for_prompts_of_any_length(network):
  padded = jax.jit(lambda tokens: NET.apply({'params': network.params}, tokens))

  def logits(seen):
    return padded(np.array([[*seen, *[0] * (8 - len(seen))]]))[0, len(seen) - 1]

  prompts = [[1, 2], [3], [4, 5, 6, 7, 8, 9, 10, 1, 2, 3]]
  wanted = [greedy_by_hand(logits, prompt, 12, 8) for prompt in prompts]
  got = generate(network, prompts, 12, temperature=0, length=8)
  assert got == wanted
  assert all(isinstance(number, int) for text in got for number in text)
  assert generate(network, prompts, 12, top_k=1, length=8) == wanted  # no key, since nothing is drawn
  alone = generate(network, np.array([[1, 2]], np.uint8), 5, temperature=0.0)
  assert (alone.shape, alone.dtype) == ((1, 7), np.int32)
  assert alone[0].tolist() == wanted[0][:7]


def test_ties_forbidden_tokens_and_any_temperature():
  """Tokens 1 and 4 are equally likely, 3 is forbidden, the others lie far below."""
  logits = 1e4 * jnp.array([-1, 0, -1, -jnp.inf, 0, -1, -1])
  flat = lambda tokens: jnp.broadcast_to(logits, (*tokens.shape, 7))  # noqa: E731
  prompt = np.zeros((100, 1), int)

  def drawn(**how):
    return set(np.unique(generate(flat, prompt, 5, **how)[:, 1:]))

  assert drawn(temperature=0) == drawn(top_k=1) == {1}  # of equal ones the first
  assert drawn(key=KEY, temperature=1e-30) == drawn(key=KEY) == {1, 4}
  assert drawn(key=KEY, temperature=1e-46, top_p=0.9) == {1, 4}  # float32 has none so small
  assert drawn(key=KEY, temperature=1e30) == {0, 1, 2, 4, 5, 6}
  assert drawn(key=KEY, temperature=1e30, top_k=3) == {0, 1, 4}


@pytest.mark.parametrize('temperature, top_k', [(1.0, None), (0.5, None), (2.0, 3)])
def test_frequencies_are_those_of_softmax(temperature, top_k):
  count = 4_000
  text = np.asarray(generate(after, np.full((count, 1), 2), 2, key=KEY, temperature=temperature, top_k=top_k))
  logits = np.float64(TABLE) / temperature
  if top_k:
    logits = np.where(logits >= np.sort(logits, axis=1)[:, -top_k, None], logits, -np.inf)
  shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  assert len(np.unique(text[:, 1])) == (top_k or 7)

  def chi_square(seen, expected):
    live = expected > 0
    assert not seen[~live].any()
    return ((seen - expected)[live] ** 2 / expected[live]).sum()

  first = np.bincount(text[:, 1], minlength=7)
  second = np.bincount(text[:, 2], minlength=7)
  assert chi_square(first, count * shares[2]) < 25  # 6 degrees of freedom: 1 in 3,000 lies above
  assert chi_square(second, count * shares[2] @ shares) < 25


def test_keys_decide_and_two_calls_are_one():
  prompt = np.array([[1, 2], [1, 2]])
  whole = generate(after, prompt, 20, key=KEY, length=4)
  np.testing.assert_array_equal(generate(after, prompt, 20, key=KEY, length=4), whole)
  parts = generate(after, generate(after, prompt, 7, key=KEY, length=4), 13, key=KEY, length=4)
  np.testing.assert_array_equal(parts, whole)
  assert generate(after, prompt.tolist(), 20, key=KEY, length=4) == whole.tolist()
  assert not np.array_equal(whole[0], whole[1])  # equal prompts, other draws
  assert not np.array_equal(generate(after, prompt, 20, key=jax.random.key(4), length=4), whole)
  np.testing.assert_array_equal(generate(after, prompt[:1], 20, key=KEY, length=4), whole[:1])  # whoever stands beside
  np.testing.assert_array_equal(generate(after, prompt, 0), prompt)
  assert generate(after, [], 3, key=KEY) == []


def test_a_window_compiles_once_for_prompts_and_steps_of_many_sizes():
  shapes = []

  def traced(tokens):
    shapes.append(tokens.shape)
    return after(tokens)

  for size, steps in ((1, 3), (5, 1), (9, 30), (2, 17)):
    assert generate(traced, np.ones((2, size), int), steps, key=KEY, temperature=0.7, length=6).shape == (
      2,
      size + steps,
    )
    generate(traced, np.ones((2, size), int), steps, key=KEY, temperature=1.3, length=6)
  assert set(shapes) == {(2, 6)}
  assert len(shapes) == 1


def test_a_function_whose_arrays_were_exchanged_is_another():
  held = {'w': jnp.eye(5)}
  function = lambda tokens: held['w'][tokens]  # noqa: E731
  module = nnx.Embed(5, 5, rngs=nnx.Rngs(0))
  for shift in (1, 2):
    held['w'] = jnp.roll(jnp.eye(5), shift, axis=1)
    module.embedding[...] = held['w']
    for network in (function, module):
      assert generate(network, [[0]], 2, temperature=0) == [[0, shift, 2 * shift]]


def test_logits_that_are_not_finite_are_told_and_marked_within_a_transformation(network):
  broken = lambda tokens: jnp.where((tokens == 4)[..., None], jnp.nan, after(tokens))  # noqa: E731
  with pytest.raises(ValueError, match='logits for token 2 of prompt 1 are not finite: an id lies outside'):
    generate(broken, [[1, 1, 1], [1, 4]], 2, temperature=0)
  with pytest.raises(ValueError, match='logits for token 2 of prompt 0 are not finite'):
    generate(network, [[1, 11]], 2, temperature=0, length=8)
  run = jax.jit(lambda prompt: generate(broken, prompt, 2, temperature=0))
  assert run(np.array([[1, 4]])).tolist() == [[1, 4, -1, -1]]
  many = jax.vmap(lambda prompt: generate(after, prompt, 3, temperature=0))(np.array([[[1]], [[2]]]))
  assert many[:, 0].tolist() == [greedy_by_hand(lambda seen: TABLE[seen[-1]], [first], 3) for first in (1, 2)]


@pytest.mark.parametrize(
  'prompt, steps, given, rule',
  [
    ([[]], 1, {}, 'one token at least; prompt 0 is empty'),
    (np.zeros((2, 0), int), 1, {}, r'one token at least; got \[2, 0\]'),
    ([1, 2], 1, {}, r'prompts are a list of lists of ids; got a list of ids, \[1, 2\]: give \[prompt\]'),
    (['text'], 1, {}, "prompt 0 is 'text': encode it"),
    ('text', 1, {}, r'prompts are int\[B, T\], or a list of lists of ids; got str'),
    ([[1.0]], 1, {}, 'a prompt is a list of ids'),
    (np.ones((1, 2)), 1, {}, r'got float64\[1, 2\]'),
    (np.ones(2, int), 1, {}, r'got int64\[2\]'),
    ([[1, 2**33]], 1, {}, 'prompt 0 has 8589934592 at 1: encode it'),
    ([[1], [-1]], 1, {}, 'prompt 1 has -1 at 0'),
    (np.array([[1, 2**32]]), 1, {}, 'ids of tokens are from 0 to 2147483647; the prompt has 4294967296 at 1'),
    ([[1]], 1, {'stop': 2**31}, 'stop is the id of a token, or several; got 2147483648'),
    ([[1]], 1, {'key': jax.random.split(KEY)}, r'give key=.*; got key<fry>\[2\]'),
    ([[1]], -1, {}, 'steps is a whole number from 0; got -1'),
    ([[1]], 1.5, {}, 'steps is a whole number from 0; got 1.5'),
    ([[1]], 1, {'temperature': -1.0}, 'temperature is a number from 0; got -1.0'),
    ([[1]], 1, {'temperature': float('nan')}, 'temperature is a number from 0; got nan'),
    ([[1]], 1, {'temperature': None}, 'temperature is a number from 0; got None'),
    ([[1]], 1, {'top_k': 0}, 'top_k is a whole number from 1; got 0'),
    ([[1]], 1, {'top_k': 8}, 'top_k is from 1 to the vocabulary, 7; got 8'),
    ([[1]], 1, {'length': 0}, 'length is a whole number from 1; got 0'),
    ([[1]], 1, {'key': None}, r'give key=jax.random.key\(seed\), or temperature=0; got NoneType'),
    ([[1]], 1, {'key': 0}, 'give key=.*; got int'),
  ],
)
def test_what_does_not_fit_is_named(prompt, steps, given, rule):
  with pytest.raises(ValueError, match=rule):
    generate(after, prompt, steps, **{'key': KEY, **given})


def test_what_gives_no_logits_is_named(network):
  with pytest.raises(ValueError, match=r'generate takes logits, float\[1, 2, vocabulary\]; got int32\[1, 2\]'):
    generate(lambda tokens: tokens, [[1, 2]], 1, temperature=0)
  with pytest.raises(ValueError, match='generate takes a Network or a function from tokens to logits; got int'):
    generate(3, [[1]], 1, temperature=0)
  with pytest.raises(ValueError, match='learned positions end at length=8; got 9 tokens'):
    generate(network, [[1]], 9, temperature=0)
