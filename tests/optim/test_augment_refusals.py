"""What an augmentation refuses: to blend ids, and inputs that are no one array."""

import jax
import jax.numpy as jnp
import pytest

from jaxlite.optim import cutout, flip, mixup, rand_augment, random_resized_crop


@pytest.mark.parametrize(
  'fn, batch, message',
  [
    (mixup(0.2, 2), {'inputs': jnp.ones((2, 5), jnp.int32), 'labels': jnp.zeros(2, int)}, 'taken for ids'),
    (
      cutout(2, fill=float('nan')),
      {'inputs': jnp.ones((2, 4, 4, 1), jnp.uint8)},
      'fill fits the pixels, 0 to 255; got nan',
    ),
    (flip(), {'inputs': {'left': jnp.ones((2, 4, 4, 1))}, 'labels': jnp.zeros(2, int)}, 'one array; inputs are a dict'),
  ],
)
def test_what_would_blend_ids_or_parts_of_a_tree_is_refused(fn, batch, message):
  with pytest.raises(ValueError, match=message) as raised:
    fn(jax.random.key(0), batch)
  assert '\n' not in str(raised.value)


def test_a_piece_cut_out_leaves_labels_of_pixels_where_they_are():
  batch = {'inputs': jnp.ones((2, 6, 6, 1)), 'labels': jnp.ones((2, 6, 6), int)}
  assert (cutout(2)(jax.random.key(0), batch)['labels'] == 1).all()


@pytest.mark.parametrize('make', [rand_augment, random_resized_crop])
def test_pictures_change_where_ranks_are_not_promoted_and_a_batch_may_be_empty(make):
  batch = {'inputs': jnp.arange(2 * 6 * 5 * 3, dtype=jnp.uint8).reshape(2, 6, 5, 3), 'labels': jnp.ones((2, 6, 5), int)}
  plain = make()(jax.random.key(3), batch)
  with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
    strict = make()(jax.random.key(3), batch)
  assert jax.tree.all(jax.tree.map(jnp.array_equal, plain, strict))
  empty = {name: values[:0] for name, values in batch.items()}
  assert jax.tree.map(jnp.shape, make()(jax.random.key(3), empty)) == jax.tree.map(jnp.shape, empty)
