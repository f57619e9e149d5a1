"""The text classifier: sizes by formula, the forward of NumPy, padding by id or by mask, empty documents."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
from jaxlite.models import EmbeddingBag, summary

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PLAIN = EmbeddingBag(9, classes=3, width=4)
HIDDEN = EmbeddingBag(9, classes=3, width=4, hidden=5)
TOKENS = np.array([[1, 2, 2, 8], [3, 0, 5, 0], [0, 0, 0, 0]])


def test_sizes_are_those_of_the_hand_formula_and_of_the_docstring():
  assert summary(PLAIN, (1, 6), 'int32') == (9 * 4 + 4 * 3 + 3, 2 * 4 * 3)
  assert summary(HIDDEN, (1, 6), 'int32') == (9 * 4 + 4 * 5 + 5 + 5 * 3 + 3, 2 * (4 * 5 + 5 * 3))
  text = re.sub(r'\s+', ' ', EmbeddingBag.__doc__).replace(',', '')
  parameters, flops = summary(EmbeddingBag(20_000), (1, 6), 'int32')
  assert f'{parameters} parameters and 2 * {flops // 2} = {flops} FLOPs' in text


def by_hand(p, tokens, mask):
  rows = [p['embedding'][row[keep]].sum(0) / max(keep.sum(), 1) for row, keep in zip(tokens, mask, strict=True)]
  x = np.stack(rows)
  for name in ('dense1', 'dense2') if 'dense1' in p else ('dense',):
    x = x @ p[name]['kernel'] + p[name]['bias']
    x = np.maximum(x, 0) if name == 'dense1' else x
  return x


@pytest.mark.parametrize('net', [PLAIN, HIDDEN])
def test_the_forward_is_that_of_numpy_and_an_empty_document_has_a_mean_of_zero(net):
  shapes = jax.eval_shape(net.init, KEY, TOKENS)
  values = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), shapes)
  wide = jax.tree.map(np.float64, values['params'])
  apply = jax.jit(net.apply)
  outputs = apply(values, TOKENS)
  assert (outputs.shape, outputs.dtype) == ((3, 3), np.float32)
  np.testing.assert_allclose(outputs, by_hand(wide, TOKENS, TOKENS != 0), rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(apply(values, TOKENS.astype(np.uint8)), outputs)
  longer = np.pad(TOKENS, ((0, 0), (2, 3)))
  np.testing.assert_allclose(apply(values, longer), outputs, rtol=1e-6, atol=1e-6)
  mask = RNG.random(TOKENS.shape) < 0.6
  for kind in (bool, np.float32, np.int8):  # the mask alone tells, and id 0 may be a word
    masked = apply(values, {'tokens': np.where(mask, TOKENS, -7), 'mask': mask.astype(kind)})
    np.testing.assert_allclose(masked, by_hand(wide, TOKENS, mask), rtol=1e-5, atol=1e-5)
  every = jax.jit(net.clone(padding=None).apply)(values, TOKENS)
  np.testing.assert_allclose(every, by_hand(wide, TOKENS, np.ones(TOKENS.shape, bool)), rtol=1e-5, atol=1e-5)


def test_padding_and_empty_documents_have_finite_gradients_and_an_unknown_id_is_nan():
  values = jax.jit(PLAIN.init)(KEY, TOKENS)
  apply = jax.jit(PLAIN.apply)
  grads = jax.jit(jax.grad(lambda values: jnp.sum(apply(values, TOKENS) ** 2)))(values)['params']
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
  assert not grads['embedding'][0].any()
  assert grads['embedding'][1].any()
  for bad in (9, -1):
    outputs = apply(values, np.array([[1, bad], [1, 2]]))
    assert np.isnan(outputs[0]).all()
    assert np.isfinite(outputs[1]).all()
  assert np.isfinite(apply(values, TOKENS[:, :0])).all()


def test_the_kernels_are_its_weights_and_half_precision_keeps_float32_parameters_and_logits():
  model = jl.from_linen(HIDDEN.clone(dtype=jnp.bfloat16))
  params, state = jax.eval_shape(model.init, KEY, TOKENS)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  forward = lambda p, x: model.apply(p, state, x, train=False, key=None)[0]  # noqa: E731
  assert [row.name for row in jl.coverage(forward)(params, TOKENS) if row.quantized] == [
    'dense1/kernel',
    'dense2/kernel',
  ]
  assert jax.eval_shape(forward, params, TOKENS).dtype == jnp.float32


@pytest.mark.parametrize(
  'net, inputs, rule',
  [
    (PLAIN, np.ones((2, 3)), r'EmbeddingBag takes token ids, int\[B, T\]; got float'),
    (PLAIN, np.ones(3, int), r'EmbeddingBag takes a batch of token ids, int\[B, T\]; got \[3\]'),
    (EmbeddingBag(0), TOKENS, "at least 1, hidden at least 0; got {'vocabulary': 0"),
    (PLAIN.clone(dropout=-0.1), TOKENS, r'EmbeddingBag: dropout is the share of values dropped, in \[0, 1\)'),
  ],
)
def test_what_does_not_fit_is_named(net, inputs, rule):
  with pytest.raises(ValueError, match=rule):
    jax.eval_shape(net.init, KEY, inputs)
