"""The quick learners that runs are judged beside: what they are told, and that none has seen what it is judged on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlite.diagnosis import label_noise, probe, reference

pytestmark = pytest.mark.unoptimized


def drawn(size=400, features=3, seed=0):
  return np.random.default_rng(seed).normal(size=(size, features))


LOSSES = {
  'numbers': lambda out, y: 0.5 * jnp.sum((out - y) ** 2, -1),
  'labels': lambda out, y: jnp.sum(optax.sigmoid_binary_cross_entropy(out, y), -1),
  'classes': optax.softmax_cross_entropy,
}


@pytest.mark.parametrize('kind', LOSSES)
def test_the_small_network_descends_the_gradient_of_its_loss(kind):
  rng = np.random.default_rng(0)
  params = [p.astype(np.float32) for p in probe._first(rng, 2, 3, 4)]
  x = rng.normal(size=(2, 8, 3)).astype(np.float32)
  y = np.eye(4, dtype=np.float32)[rng.integers(0, 4, (2, 8))]
  wanted = jax.grad(lambda ps: jnp.sum(jnp.mean(LOSSES[kind](probe_forward(ps, x), y), -1)))(params)
  for ours, theirs in zip(probe._gradients(kind, params, x, y), wanted, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def probe_forward(params, x):
  for place in (0, 2):
    x = jax.nn.relu(x @ params[place] + params[place + 1])
  return x @ params[4] + params[5]


def test_no_learner_has_seen_what_it_is_judged_on():
  """Labels that are drawn by chance cannot be called better than chance."""
  x, labels = drawn(), np.random.default_rng(1).integers(0, 4, 400)
  found = reference.reference('classification', {'classes': 4}, (x, labels), (x[:0], labels[:0]))
  for scores in (found.train, found.best_train, found.halves, probe.fit('classes', x, x[:0], np.eye(4)[labels])[0]):
    assert reference.risks('classes', scores, labels).mean() > 0.68  # 0.75, less three standard errors
  assert found.validation.shape == (0, 4)


def test_a_rule_that_bends_is_found_by_one_of_them():
  x = drawn(600, 4)
  y = np.abs(x[:, :1]) + np.sign(x[:, 1:2]) * x[:, 2:3]
  found = reference.reference('regression', {}, (x[:400], y[:400]), (x[400:], y[400:]))
  assert reference.risks('numbers', found.best_validation, y[400:]).mean() < 0.25


def test_numbers_far_off_move_the_fit_that_doubts_little():
  x = drawn(500, 3)
  rule = x @ [[1.0], [-2.0], [0.5]]
  wrong = np.random.default_rng(2).random(500) < 0.15
  y = np.where(wrong[:, None], 40.0, rule + 0.1 * drawn(500, 1, 3))
  found = reference.reference('regression', {}, (x, y), (x[:0], y[:0]))
  assert np.abs(found.train - rule)[~wrong].max() < 1.0
  doubt = label_noise.noise(found)
  assert doubt.share == pytest.approx(wrong.mean(), abs=0.01)
  assert set(label_noise.doubtful(found)) == set(np.flatnonzero(wrong))


TAILS = {
  'lognormal': lambda x, rng: np.exp(x[:, 0] + rng.normal(size=len(x))),
  'two degrees of freedom': lambda x, rng: x[:, 0] + rng.standard_t(2, size=len(x)),
  'deviation by example': lambda x, rng: x[:, 0] + np.exp(1.5 * x[:, 1]) * rng.normal(size=len(x)),
  'mostly nothing': lambda x, rng: np.where(rng.random(len(x)) < 0.6, 0, np.exp(x[:, 0] + rng.normal(size=len(x)))),
  'counts': lambda x, rng: rng.poisson(np.exp(x[:, 0])).astype(float),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize('name', TAILS)
def test_a_long_tail_is_no_wrong_label(name):
  x = drawn(1200, 4)
  y = TAILS[name](x, np.random.default_rng(5))
  found = reference.reference('regression', {}, (x, y), (x[:0], y[:0]))
  assert label_noise.noise(found).share == 0


def test_what_more_examples_would_tell_is_no_wrong_label():
  """Errors of a learner with too few examples lie anywhere, as wrong labels do; they become fewer with more."""
  rng = np.random.default_rng(3)
  centres = rng.normal(size=(10, 30))
  labels = rng.integers(0, 10, 260)
  x = centres[labels] + 2.2 * rng.normal(size=(260, 30))
  found = reference.reference('classification', {'classes': 10}, (x, labels), (x[:0], labels[:0]))
  doubt = label_noise.noise(found)
  assert doubt.limit < doubt.share or doubt.share == 0
