"""What an augmentation refuses: to blend ids, and inputs that are no one array."""

import jax
import jax.numpy as jnp
import pytest

from jaxlite.optim import cutout, flip, mixup


@pytest.mark.parametrize(
  'fn, batch, message',
  [
    (mixup(0.2, 2), {'inputs': jnp.ones((2, 5), jnp.int32), 'labels': jnp.zeros(2, int)}, 'taken for ids'),
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
