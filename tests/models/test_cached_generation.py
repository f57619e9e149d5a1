"""Generation by KV cache against the window that is run anew: the same texts, whatever their lengths and the chunks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
from jaxlite.models import Decoder, generate, generate_cached

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(3)
PROMPTS = [[1, 2], [3], [4, 5, 6, 7, 8, 9, 10, 1, 2, 3]]
LLAMA = Decoder(17, width=16, layers=2, heads=4, hidden=20, form='llama', groups=2, order='interleaved', length=32)
LEARNED = Decoder(17, width=16, layers=2, heads=4, hidden=20, positions='learned', tied=False, length=32)


def drawn(net):
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(net.init, KEY, np.ones((1, 4), int))['params']
  return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.1, 0.7, leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope='module')
def params():
  return {net: drawn(net) for net in (LLAMA, LEARNED)}


@pytest.mark.parametrize('net', [LLAMA, pytest.param(LEARNED, marks=pytest.mark.slow)])
def test_texts_are_those_of_the_window(params, net):
  network = jl.Network(jl.from_linen(net), params[net], {})
  wanted = generate(network, PROMPTS, 12, temperature=0)
  got = generate_cached(net, params[net], PROMPTS, 12, temperature=0)
  assert got.tokens == wanted
  assert [prompt + new for prompt, new in zip(PROMPTS, got.new, strict=True)] == wanted
  assert (got.read, got.tokens_per_second > 0) == (13, True)


@pytest.mark.slow
def test_drawn_texts_are_those_of_the_window_whatever_the_chunks(params):
  network = jl.Network(jl.from_linen(LLAMA), params[LLAMA], {})
  how = {'key': KEY, 'temperature': 0.8, 'top_k': 9, 'top_p': 0.9}
  assert generate_cached(LLAMA, params[LLAMA], PROMPTS, 12, chunk=3, **how).tokens == generate(
    network, PROMPTS, 12, **how
  )


def test_logits_by_the_cache_are_those_without_it_whatever_the_chunks(params):
  tokens = np.random.default_rng(1).integers(0, 17, (2, 12))
  run = jax.jit(lambda params, tokens, cache=None: LLAMA.apply({'params': params}, tokens, cache=cache))
  wanted = run(params[LLAMA], tokens)
  cache = LLAMA.empty_cache(16, [2, 0])  # the first text has two slots of padding before it
  laid = np.concatenate([[[9, 9, *tokens[0, :10]]], tokens[1:]])
  found = []
  for start, stop in ((0, 6), (6, 12)):
    logits, cache = run(params[LLAMA], laid[:, start:stop], cache)
    found.append(logits)
  found = np.concatenate(found, axis=1)
  near = 1e-5 * np.abs(wanted).max()
  np.testing.assert_allclose(found[1], wanted[1], atol=near)
  np.testing.assert_allclose(found[0, 2:], wanted[0, :10], atol=near)
  assert int(cache.count) == 12


def test_a_text_ends_at_a_stop_token_and_all_end_early(params):
  free = generate_cached(LLAMA, params[LLAMA], PROMPTS, 12, temperature=0)
  stop = free.new[0][2]
  ended = generate_cached(LLAMA, params[LLAMA], PROMPTS, 12, temperature=0, stop=stop)
  wanted = [new[: new.index(stop) + 1] if stop in new else new for new in free.new]
  assert ended.new == wanted
  assert len(wanted[0]) == free.new[0].index(stop) + 1
  every = generate_cached(LLAMA, params[LLAMA], PROMPTS, 12, temperature=0, stop=range(17))
  assert [len(new) for new in every.new] == [1, 1, 1]
  network = jl.Network(jl.from_linen(LLAMA), params[LLAMA], {})
  texts = generate(network, PROMPTS, 12, temperature=0, stop=[stop])
  assert texts == ended.tokens
  filled = generate(network, np.array([PROMPTS[0]]), 12, temperature=0, stop=[stop])[0].tolist()
  assert filled == texts[0] + [stop] * (14 - len(texts[0]))


def test_draws_from_the_nucleus_leave_out_what_lies_beyond_it():
  logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
  flat = lambda tokens: jnp.broadcast_to(logits, (*tokens.shape, 4))  # noqa: E731
  prompt = np.zeros((400, 1), int)

  def seen(top_p):
    found, counts = np.unique(generate(flat, prompt, 5, key=KEY, top_p=top_p)[:, 1:], return_counts=True)
    return dict(zip(found.tolist(), (counts / counts.sum()).tolist(), strict=True))

  assert set(seen(0.4)) == {0}
  assert set(seen(0.75)) == {0, 1}
  assert seen(0.75)[0] == pytest.approx(0.5 / 0.8, abs=0.04)
  assert set(seen(0.9)) == {0, 1, 2}
  assert set(seen(1.0)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
  'change, told',
  [
    ({'prompts': [[1], []]}, 'prompt 1 is empty'),
    ({'prompts': [[1, 17]]}, 'ids are from 0 to 16; token 1 of prompt 0 is 17'),
    ({'prompts': [1, 2]}, r'give \[prompt\]'),
    ({'steps': -1}, 'steps is a whole number from 0; got -1'),
    ({'steps': 40}, 'learned positions end at length=32'),
    ({'temperature': 1.0}, 'draws tokens with a key'),
    ({'temperature': 1.0, 'key': KEY, 'top_p': 0}, 'top_p is above 0 and at most 1; got 0'),
    ({'temperature': 1.0, 'key': KEY, 'top_k': 18}, 'top_k is from 1 to the vocabulary, 17; got 18'),
    ({'stop': 'end'}, "stop is the id of a token, or several; got 'end'"),
    ({'cache_dtype': 'int8'}, "cache_dtype is a float, that keys and values are kept in; got 'int8'"),
    ({'params': {'params': {}}}, r"takes the parameters alone; got a dict of them: give its \['params'\]"),
    ({'chunk': 0}, 'chunk is a whole number from 1; got 0'),
    ({'decoder': 'gpt'}, 'takes a Decoder; got str'),
  ],
)
def test_what_cannot_be_is_refused(params, change, told):
  how = {'decoder': LEARNED, 'params': params[LEARNED], 'prompts': [[1, 2]], 'steps': 3, 'temperature': 0} | change
  with pytest.raises(ValueError, match=told):
    generate_cached(**how)


def test_weights_that_hold_no_number_are_told_and_nothing_to_do_is_nothing(params):
  broken = dict(params[LLAMA], embedding=params[LLAMA]['embedding'].at[:, 0].set(jnp.nan))
  with pytest.raises(ValueError, match='token 2 of prompt 0 are not finite'):
    generate_cached(LLAMA, broken, [[1, 2]], 3, temperature=0)
  assert generate_cached(LLAMA, params[LLAMA], [], 3, temperature=0).tokens == []
  assert generate_cached(LLAMA, params[LLAMA], [[1]], 0).tokens == [[1]]
