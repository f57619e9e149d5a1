"""Laws of cutmix: one box of a real partner, labels by the area that it covers, padding untouched."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.optim._augment import augment, cutmix, mixup
from jaxlite.tasks.losses import cross_entropy

pytestmark = pytest.mark.unoptimized


def numbered(count, height, width, padded=0, seed=0):
  """Image i is filled with i, and its label is i: a pixel says where it came from."""
  images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, height, width, 2)).copy()
  weight = np.ones(count, np.float32)
  weight[np.random.default_rng(seed).permutation(count)[:padded]] = 0
  return {'inputs': images, 'labels': np.arange(count), 'weight': weight, 'other': np.arange(count)}


@pytest.mark.parametrize('count, height, width, padded', [(16, 9, 6, 0), (11, 5, 8, 4), (2, 4, 4, 0), (5, 1, 1, 1)])
def test_a_box_of_one_real_partner_and_labels_by_its_area(count, height, width, padded):
  fn = jax.jit(cutmix(0.7, count))
  for seed in range(12):
    batch = numbered(count, height, width, padded, seed)
    out = jax.tree.map(np.asarray, fn(jax.random.key(seed), batch))
    assert out['inputs'].dtype == np.uint8
    np.testing.assert_array_equal(out['other'], batch['other'])
    real = batch['weight'] > 0
    for index in range(count):
      image = out['inputs'][index]
      assert (image[..., 0] == image[..., 1]).all()
      pasted = image[..., 0] != index
      np.testing.assert_array_equal(pasted, np.outer(pasted.any(1), pasted.any(0)))  # one rectangle
      for line in (pasted.any(1), pasted.any(0)):
        assert np.abs(np.diff(np.pad(line.astype(int), 1))).sum() in (0, 2)  # without a gap
      sources = set(image[..., 0].ravel().tolist()) - {index}
      assert len(sources) <= 1
      assert real[index] or not sources
      assert all(real[source] for source in sources)
      shares = np.bincount(image[..., 0].ravel(), minlength=count) / (height * width)
      np.testing.assert_allclose(out['labels'][index], shares, atol=1e-6)
    np.testing.assert_allclose(out['weight'], batch['weight'], rtol=1e-6)


def test_the_area_follows_beta_and_the_center_is_anywhere():
  """With alpha 1 the wanted share is uniform; of a box of side s, s - s^2 / 4 lies inside on average."""
  count = 4_000
  out = jax.jit(cutmix(1.0, count))(jax.random.key(0), numbered(count, 20, 20))
  share = 1 - np.asarray(out['labels'])[np.arange(count), np.arange(count)]
  ratio = np.sqrt((np.arange(100_000) + 0.5) / 100_000)
  wanted = ((ratio - ratio**2 / 4) ** 2).mean()
  assert abs(share.mean() - wanted) < 0.03  # whole pixels take some
  assert share.min() < 0.01
  assert share.max() > 0.8


def test_soft_labels_in_mixup_before_it_and_the_loss_of_both():
  batch = {'inputs': np.ones((6, 4, 4, 1), np.float32), 'labels': np.array([0, 1, 2, 0, 1, 2])}
  both = jax.jit(lambda batch: cutmix(1.0, 3)(jax.random.key(1), mixup(1.0, 3)(jax.random.key(0), batch)))
  out = both(batch)
  np.testing.assert_allclose(out['labels'].sum(-1), 1, rtol=1e-6)
  logits = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
  log_p = np.float64(logits) - np.log(np.exp(np.float64(logits)).sum(1, keepdims=True))
  np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), out), -(log_p * out['labels']).sum(1), rtol=1e-5)


def test_it_stands_in_the_hook_and_traces_with_an_empty_batch():
  assert augment(cutmix(1.0, 3)).name == 'augment'
  empty = {'inputs': np.zeros((0, 4, 4, 1)), 'labels': np.zeros(0, int)}
  assert jax.jit(cutmix(1.0, 3))(jax.random.key(0), empty)['labels'].shape == (0, 3)


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: cutmix(0.0, 3), r'cutmix draws from Beta\(alpha, alpha\) with alpha above 0; got 0.0: try 1'),
    (lambda: cutmix(1.0, 0), 'cutmix: classes'),
    (
      lambda: cutmix(1.0, 3)(jax.random.key(0), {'inputs': np.ones((2, 4)), 'labels': np.zeros(2, int)}),
      'cutmix works on',
    ),
    (
      lambda: cutmix(1.0, 3)(jax.random.key(0), {'inputs': np.ones((2, 4, 4, 1))}),
      "cutmix needs 'labels' in the batch",
    ),
    (
      lambda: cutmix(1.0, 3)(jax.random.key(0), {'inputs': np.ones((2, 4, 4, 1)), 'labels': np.zeros((2, 4))}),
      r'cutmix takes labels int \[B\] or float \[B, 3\]',
    ),
  ],
)
def test_bad_use_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize('mix', [mixup, cutmix])
def test_a_label_that_is_no_class_shows_in_the_loss_and_padding_does_not(mix):
  labels = jnp.array([0, 2, 1, -1])
  batch = {'inputs': jnp.ones((4, 6, 6, 1)), 'labels': labels, 'weight': jnp.array([1.0, 1, 1, 0])}
  mixed = jax.jit(mix(1.0, 3))(jax.random.key(0), batch)
  assert np.isfinite(mixed['labels']).all()
  for wrong in (-1, 3):
    mixed = jax.jit(mix(1.0, 3))(jax.random.key(0), {**batch, 'labels': labels.at[1].set(wrong)})
    assert np.isnan(mixed['labels'][1]).all()
