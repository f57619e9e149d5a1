"""The text models through a whole recipe: clip, schedule, fake integers, a teacher, pruning, killed and resumed."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import trees
from jaxlite.checkpoint import Checkpoints
from jaxlite.data import pad, windows
from jaxlite.distillation import kd
from jaxlite.models import Decoder, EmbeddingBag, generate

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
STEPS, STOP, SPARSITY = 40, 25, 0.5
STUDENT = Decoder(9, width=8, layers=1, heads=2, hidden=16, length=8)
TEACHER = Decoder(9, width=16, layers=1, heads=2, hidden=32, length=8, positions='learned', tied=False)


def next_token_loss(logits, batch):
  """float[B]: the mean over each text's own tokens; a label of -1 is none."""
  live = batch['labels'] >= 0
  log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(batch['labels'], 0)[..., None], -1)[..., 0]
  return -jnp.where(live, log_p, 0).sum(1) / jnp.maximum(live.sum(1), 1)


def token_kd(student, teacher, *, labels, temperature=2.0):
  """`kd` over each text's own tokens."""
  live = labels >= 0
  return jnp.where(live, kd(student, teacher, temperature=temperature), 0).sum(1) / jnp.maximum(live.sum(1), 1)


def text_batches():
  """Counting to nine, over and over; the last text of each batch is padding only, and weighs nothing."""
  stream = np.arange(STEPS * 24 + 1) % 8 + 1
  inputs, labels = windows(stream, 8)
  for step in range(STEPS):
    inside, told = inputs[3 * step : 3 * step + 4].copy(), labels[3 * step : 3 * step + 4].copy()
    if len(inside) < 4:
      inside, told = (np.pad(one, ((0, 1), (0, 0)), constant_values=fill) for one, fill in ((inside, 0), (told, -1)))
    inside[3], told[3], told[2, 5:] = 0, -1, -1
    yield {'inputs': inside, 'labels': told, 'weight': (told >= 0).sum(1).astype(np.float32)}


def document_batches():
  """A document is of class 1 where it holds the word 5."""
  for _ in range(STEPS):
    documents = [RNG.integers(1, 5, RNG.integers(1, 7)).tolist() for _ in range(8)]
    labels = np.arange(8) % 2
    documents = [text + [5] * label for text, label in zip(documents, labels.tolist(), strict=True)]
    yield {'inputs': pad(documents, 8), 'labels': labels}


CASES = {
  'decoder': (STUDENT, TEACHER, next_token_loss, token_kd, text_batches),
  'embedding_bag': (
    EmbeddingBag(9, classes=2, width=8, hidden=8, dropout=0.1),
    EmbeddingBag(9, classes=2, width=16),
    jl.cross_entropy,
    kd,
    document_batches,
  ),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize('name', CASES)
def test_a_whole_recipe_learns_keeps_its_laws_and_resumes_to_the_same_bits(name, tmp_path):
  net, big, loss, divergence, make = CASES[name]
  batches = list(make())
  model, teacher = jl.from_linen(net), jl.from_linen(big)
  shapes = jax.eval_shape(teacher.init, KEY, batches[0]['inputs'])[0]
  teacher = jl.Network(
    teacher, jax.tree.map(lambda leaf: RNG.normal(0, 0.3, leaf.shape).astype(np.float32), shapes), {}
  )
  recipe = jl.chain(
    optax.clip_by_global_norm(1.0),
    jl.fake_quant(bits=8),
    jl.distill(teacher, alpha=0.1, loss=divergence),
    optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 0.05, 5, STEPS)),
    jl.prune(SPARSITY, begin=5, end=20, every=5, allocate=jl.pruning.uniform),
  )
  train = jl.train_step(model, loss, recipe)
  state = train.init(KEY, batches[0])
  weights = {path for path in trees.paths(state.params) if path.endswith('kernel')}
  weights |= {'embedding'} if name == 'decoder' else set()
  assert set(state.model_state['jl.fake_quant']) == weights
  first, told = None, []
  with Checkpoints(tmp_path) as checkpoints:
    for step, batch in enumerate(batches):
      if step == STOP:
        checkpoints.save(step, state, {})
        checkpoints.wait()
      state, metrics = train.step(state, batch)
      told.append(jax.tree.map(float, metrics))
      first = first or told[0]
    restored = checkpoints.restore(jax.eval_shape(lambda: state))
  assert set(told[0]) == {'loss', 'task', 'distill'}
  assert told[-1]['task'] < 0.6 * first['task']
  again = restored.state
  for batch, before in zip(batches[restored.step :], told[restored.step :], strict=True):
    again, metrics = train.step(again, batch)
    assert jax.tree.map(float, metrics) == before
  assert restored.step == STOP
  names, ended, _ = trees.flatten(jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key))))
  for path, one, other in zip(
    names, ended, jax.tree.leaves(again._replace(key=jax.random.key_data(again.key))), strict=True
  ):
    np.testing.assert_array_equal(one, other, err_msg=path)
  leaves = dict(zip(*trees.flatten(state.params)[:2], strict=True))
  for path, leaf in leaves.items():
    zeros = int((leaf == 0).sum())
    assert zeros == (round(SPARSITY * leaf.size) if path in weights else 0), path
  if name == 'decoder':  # and text comes out of what was trained, at integers
    live = jl.Network(train.model, state.params, {**state.model_state, 'jl.const': state.const})
    [text] = generate(live, [[1, 2, 3]], 9, temperature=0, length=8)
    assert sum((b - a) % 8 == 1 for a, b in itertools.pairwise(text)) >= 7  # of 11


def test_a_mean_over_tokens_is_exact_with_padding_and_weights():
  """Texts padded to any length, in any grouping, give the loss of all their tokens together."""
  model = jl.from_linen(STUDENT)
  stream = RNG.integers(1, 9, 30)
  train = jl.train_step(model, next_token_loss, jl.chain(optax.sgd(0.0)))

  def batch_of(texts):
    inputs = pad([text[:-1] for text in texts], 12)
    labels = np.where(inputs['mask'], pad([text[1:] for text in texts], 12)['tokens'], -1)
    return {'inputs': inputs, 'labels': labels, 'weight': inputs['mask'].sum(1).astype(np.float32)}

  texts = [stream[:13], stream[13:17], stream[17:30]]
  state = train.init(KEY, batch_of(texts))
  outputs, metrics = train.eval(state, batch_of(texts))
  log_p = np.asarray(jax.nn.log_softmax(outputs), np.float64)
  wanted = [-log_p[row, place, label] for row, text in enumerate(texts) for place, label in enumerate(text[1:])]
  np.testing.assert_allclose(metrics['task'], np.mean(wanted), rtol=1e-6)
