"""The decoder: sizes by formula, the forward of NumPy in float64, causality, padding and rotary positions."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxlite as jl
from jaxlite import trees
from jaxlite.graph.layouts import parameter_layouts
from jaxlite.graph.walk import bodies, opened
from jaxlite.models import Decoder, summary
from jaxlite.models.decoder import attention, turned

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
TINY = Decoder(11, width=8, layers=2, heads=2, hidden=12, length=6)
NETS = {'rope': TINY, 'learned': TINY.clone(positions='learned', tied=False)}
TOKENS = RNG.integers(1, 11, (2, 6))


def size_of(net, tokens):
  """(parameters, multiply-adds) by hand."""
  v, d, h, count = net.vocabulary, net.width, net.hidden, net.layers
  parameters = v * d + count * (4 * d * d + 2 * d * h + 2 * d) + d
  parameters += net.length * d * (net.positions == 'learned') + v * d * (not net.tied)
  return parameters, count * (tokens * (4 * d * d + 2 * d * h) + 2 * tokens**2 * d) + tokens * v * d


@pytest.mark.parametrize(
  'net, tokens', [(Decoder(257), 256), (Decoder(99, positions='learned'), 7), *((n, 6) for n in NETS.values())]
)
def test_sizes_are_those_of_the_hand_formula_and_of_the_docstring(net, tokens):
  parameters, macs = size_of(net, tokens)
  assert summary(net, (1, tokens), 'int32') == (parameters, 2 * macs)
  text = re.sub(r'\s+', ' ', Decoder.__doc__).replace(',', '')
  if net == Decoder(257):
    assert f'{parameters} parameters and 2 * {macs} = {2 * macs} FLOPs' in text


def turned_by_hand(x, places):
  """[T, heads, d] as complex numbers, in float64."""
  half = x.shape[-1] // 2
  z = x[..., :half] + 1j * x[..., half:]
  z = z * np.exp(1j * places[:, None, None] * 10_000.0 ** (-np.arange(half) / half))
  return np.concatenate([z.real, z.imag], -1)


def forward_by_hand(net, p, tokens):
  """One sequence without padding, in float64: [T] -> [T, vocabulary]."""

  def norm(x, own):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + net.epsilon) * own['scale']

  size = len(tokens)
  x = p['embedding'][tokens]
  if net.positions == 'learned':
    x = x + p['position_bias'][:size]
  for index in range(1, net.layers + 1):
    own = p[f'block{index}']
    q, k, v = (norm(x, own['norm1']) @ own['qkv']['kernel']).reshape(size, 3, net.heads, -1).swapaxes(0, 1)
    if net.positions == 'rope':
      q, k = (turned_by_hand(one, np.arange(size)) for one in (q, k))
    mixed = np.zeros_like(v)
    for t in range(size):
      for head in range(net.heads):
        scores = k[: t + 1, head] @ q[t, head] / np.sqrt(net.width // net.heads)
        mixed[t, head] = np.exp(scores) / np.exp(scores).sum() @ v[: t + 1, head]
    x = x + mixed.reshape(size, -1) @ own['out']['kernel']
    y = norm(x, own['norm2']) @ own['dense1']['kernel']
    x = x + y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))) @ own['dense2']['kernel']
  return norm(x, p['norm']) @ (p['embedding'].T if net.tied else p['head']['kernel'])


def drawn(net):
  """Values without a compilation of the init."""
  return jax.tree.map(lambda leaf: RNG.normal(0.3, 0.5, leaf.shape).astype(np.float32), shapes_of(net))


def shapes_of(net):
  return jax.eval_shape(net.init, KEY, TOKENS)


@pytest.fixture(scope='module')
def built():
  """By name: random values, so that no scale of 1 hides a mistake, and the compiled forward."""
  made = {}
  for name, net in NETS.items():
    params = drawn(net)['params']
    run = jax.jit(lambda p, tokens, mask, net=net: net.apply({'params': p}, {'tokens': tokens, 'mask': mask}))
    made[name] = (
      params,
      lambda tokens, mask=None, run=run, params=params: np.asarray(
        run(params, jnp.asarray(tokens, jnp.int32), jnp.ones((2, 6), bool) if mask is None else jnp.asarray(mask, bool))
      ),
    )
  return made


@pytest.mark.parametrize('name', NETS)
def test_the_forward_is_that_of_numpy(built, name):
  params, run = built[name]
  wide = jax.tree.map(np.float64, params)
  wanted = np.stack([forward_by_hand(NETS[name], wide, row) for row in TOKENS])
  np.testing.assert_allclose(run(TOKENS), wanted, rtol=2e-4, atol=2e-4)
  bare = jax.jit(NETS[name].apply)({'params': params}, TOKENS.astype(np.uint8))  # without a mask, and of another dtype
  assert (bare.shape, bare.dtype) == ((2, 6, 11), np.float32)
  np.testing.assert_allclose(bare, wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize('name', NETS)
@settings(max_examples=20, deadline=None)
@given(place=st.integers(0, 5), new=st.integers(0, 10), row=st.integers(0, 1))
def test_a_token_changes_no_logits_before_it_and_none_of_another_text(built, name, place, new, row):
  run = built[name][1]
  other = TOKENS.copy()
  other[row, place] = new
  before, after = run(TOKENS), run(other)
  np.testing.assert_array_equal(after[row, :place], before[row, :place])
  np.testing.assert_array_equal(after[1 - row], before[1 - row])
  assert new == TOKENS[row, place] or not np.array_equal(after[row, place], before[row, place])


@pytest.mark.parametrize('name', NETS)
@pytest.mark.parametrize('begin', [0, 1, 3])
def test_padding_on_either_side_changes_no_tokens_logits_whatever_it_holds(built, name, begin):
  run = built[name][1]
  alone = run(TOKENS)[:, :3]
  tokens = RNG.integers(0, 11, (2, 6))
  tokens[:, begin : begin + 3] = TOKENS[:, :3]
  tokens[0, 5 if begin < 3 else 0] = -1  # padding may be no id at all
  mask = (np.arange(6) >= begin) & (np.arange(6) < begin + 3)
  padded = run(tokens, np.broadcast_to(mask, (2, 6)))
  assert np.isfinite(padded).all()
  np.testing.assert_allclose(padded[:, begin : begin + 3], alone, rtol=1e-5, atol=1e-5)


def test_padding_has_no_gradient_and_no_softmax_is_over_nothing():
  net, mask = NETS['learned'].clone(layers=1), np.zeros((2, 6), bool)
  mask[0, 2:4] = True  # the other text is padding only

  def loss(values, tokens):
    logits = net.apply(values, {'tokens': tokens, 'mask': mask})
    return jnp.sum(jnp.where(mask[..., None], logits, 0) ** 2), logits

  (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(drawn(net), np.where(mask, TOKENS, 10))
  assert np.isfinite(logits).all()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
  rows = np.abs(grads['params']['embedding']).sum(1)
  assert set(np.flatnonzero(rows)) == set(TOKENS[mask])


@pytest.mark.parametrize('bad', [-1, 11, 2**31 - 1])
def test_an_id_outside_the_vocabulary_is_nan_in_its_own_text_and_never_another_token(built, bad):
  run = built['rope'][1]
  tokens = TOKENS.copy()
  tokens[0, 4] = bad
  logits = run(tokens)
  assert np.isnan(logits[0, 4:]).all()
  np.testing.assert_array_equal(logits[1], run(TOKENS)[1])


# rotary positions


def test_rotary_scores_depend_on_the_distance_only_and_lengths_stay():
  query, key = (RNG.normal(size=(1, 1, 2, 8)).astype(np.float32) for _ in range(2))
  places = RNG.integers(0, 50, (200, 2))
  score = jax.jit(lambda one, other: jnp.sum(turned(query, one[None, None]) * turned(key, other[None, None]), -1))
  for one, other in places[:20]:
    np.testing.assert_allclose(score(one + 7, other + 7), score(one, other), atol=1e-5)
  assert not np.allclose(score(5, 3), score(3, 5), atol=1e-2)
  many = np.broadcast_to(query, (1, 200, 2, 8))
  moved = turned(jnp.asarray(many), jnp.asarray(places[None, :, 0]))
  np.testing.assert_allclose(moved[0], turned_by_hand(np.float64(many[0]), places[:, 0]), atol=1e-5)
  np.testing.assert_allclose(jnp.linalg.norm(moved, axis=-1), np.linalg.norm(many, axis=-1), rtol=1e-6)


def test_attention_is_shift_invariant_with_rotary_positions():
  q, k, v = (jnp.asarray(RNG.normal(size=(1, 5, 2, 4)), jnp.float32) for _ in range(3))
  allowed = jnp.tri(5, dtype=bool)[None]
  run = jax.jit(lambda places: attention(turned(q, places), turned(k, places), v, allowed))
  first = run(jnp.arange(5)[None])
  np.testing.assert_allclose(run(jnp.arange(5)[None] + 100), first, rtol=1e-4, atol=1e-5)
  assert not np.allclose(run(2 * jnp.arange(5)[None]), first, atol=1e-3)


# what other parts see


def test_the_weights_are_the_kernels_and_the_tied_embedding():
  for net, added in ((TINY, 'embedding'), (NETS['learned'], 'head/kernel')):
    model = jl.from_linen(net)
    params, state = jax.eval_shape(model.init, KEY, TOKENS)
    forward = lambda p, x, s=state, m=model: m.apply(p, s, x, train=False, key=None)[0]  # noqa: E731
    found = parameter_layouts(forward, params, TOKENS)
    names = [f'block{i}/{name}/kernel' for i in (1, 2) for name in ('dense1', 'dense2', 'out', 'qkv')]
    assert sorted(found) == sorted([*names, added])
    assert found[added] == (((1,), (0,)) if net.tied else ((0,), (1,)))  # summed over, outputs
    assert 'position_bias' not in trees.weight_paths(params, None, None, what='test')  # in a foreign loop
    rows = jl.coverage(forward, attention=True)(params, TOKENS)
    assert all(row.quantized for row in rows)
    rows = jl.coverage(forward)(params, TOKENS)
    assert {row.name for row in rows if row.quantized} == set(found)
    assert {row.why for row in rows if not row.quantized} == {'both operands are activations'}


@pytest.mark.unoptimized(False)  # bits are judged
def test_fake_integers_are_real_ones_bit_for_bit():
  net = TINY.clone(layers=1)
  params, run = drawn(net), net.apply
  both = jax.jit(lambda p, x: [jl.quantize(run, real=real)(p, x) for real in (False, True)])
  fake, real = both(params, TOKENS)
  np.testing.assert_array_equal(fake, real)


def operand_dtypes(jaxpr):
  for eqn in opened(jaxpr)[0].eqns:
    if eqn.primitive.name == 'dot_general':
      yield from (str(operand.aval.dtype) for operand in eqn.invars)
    for body in bodies(eqn):
      yield from operand_dtypes(body)


@pytest.mark.parametrize('name', NETS)
def test_half_precision_computes_in_it_and_keeps_float32_parameters_softmax_and_logits(name):
  net = NETS[name].clone(dtype=jnp.bfloat16)
  variables = jax.eval_shape(net.init, KEY, TOKENS)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  jaxpr = jax.make_jaxpr(net.apply)(variables, TOKENS)
  assert set(operand_dtypes(jaxpr)) == {'bfloat16'}
  assert jaxpr.out_avals[0].dtype == jnp.float32
  exponents = {str(eqn.invars[0].aval.dtype) for eqn in jaxpr.eqns if eqn.primitive.name == 'exp'}
  assert exponents == {'float32'}


def test_dropout_draws_in_training_only():
  net = TINY.clone(dropout=0.5, layers=1)
  model, params = jl.from_linen(net), drawn(net)['params']

  def run(step, train=True):
    return model.apply(params, {}, TOKENS, train=train, key=KEY, step=step)[0]

  drawing = jax.jit(run)
  assert not np.array_equal(drawing(0), drawing(1))
  np.testing.assert_array_equal(drawing(0), drawing(0))
  assert 'random_bits' in str(jax.make_jaxpr(run)(0))
  assert 'random_bits' not in str(jax.make_jaxpr(lambda step: run(step, train=False))(0))


@pytest.mark.parametrize(
  'net, inputs, rule',
  [
    (NETS['learned'], np.ones((1, 7), int), r'learned positions end at length=6; got 7 tokens'),
    (TINY, np.ones((1, 6), np.float32), r'token ids, int\[B, T\]; got float32'),
    (TINY, np.ones(6, int), r'int\[B, T\]; got \[6\]: add the missing axis'),
    (TINY, np.ones((2, 0), int), r'one token at least; got \[2, 0\]'),
    (TINY, {'ids': TOKENS}, r"a dict of 'tokens' and, where there is padding, 'mask'; got \['ids'\]"),
    (TINY, {'tokens': TOKENS, 'mask': np.ones((2, 5))}, r'one entry per token, \[2, 6\]; got \[2, 5\]'),
    (TINY.clone(heads=3), TOKENS, 'a multiple of its heads; got width=8, heads=3'),
    (TINY.clone(width=6), TOKENS, 'width / heads is even; got 6 / 2 = 3'),
    (TINY.clone(positions='sinus'), TOKENS, "'rope' or 'learned'; got 'sinus'"),
    (TINY.clone(dropout=1.0), TOKENS, r'dropout is the share of values dropped, in \[0, 1\); got 1.0'),
    (TINY.clone(layers=0), TOKENS, "sizes of a Decoder are at least 1; got {'vocabulary': 11"),
  ],
)
def test_what_does_not_fit_is_named(net, inputs, rule):
  with pytest.raises(ValueError, match=rule):
    jax.eval_shape(net.init, KEY, inputs)


def test_rotary_positions_have_no_longest_length_and_one_id_and_one_token_are_enough():
  net = TINY.clone(vocabulary=1, layers=1)
  values = drawn(net)
  assert np.isfinite(jax.jit(net.apply)(values, np.zeros((1, 1), int))).all()
  assert jax.eval_shape(net.apply, values, np.zeros((1, 9), int)).shape == (1, 9, 1)
