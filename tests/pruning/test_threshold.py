"""Laws of the threshold: the masks of a stable sort, whatever the competition, the arrays or the devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.pruning._top_k import keep_largest, keep_largest_of

KEEP = jax.jit(keep_largest, static_argnames='axes')


def sorted_mask(scores, keep):
  """The reference: a stable sort by falling magnitude, ties by index."""
  flat = np.abs(np.asarray(scores, np.float64)).ravel()
  mask = np.zeros(flat.size, bool)
  mask[np.argsort(-flat, kind='stable')[:keep]] = True
  return mask.reshape(np.shape(scores))


def draws(count, shape, seed=0):
  rng = np.random.default_rng(seed)
  for index in range(count):
    kind = index % 5
    values = rng.normal(size=shape)
    if kind == 1:
      values = rng.integers(-2, 3, shape).astype(float)
    elif kind == 2:
      values = values * 1e-40  # denormals
    elif kind == 3:
      values = np.full(shape, rng.normal())
    elif kind == 4:
      values = np.where(rng.random(shape) < 0.7, 0.0, values)
    yield values.astype(np.float32), rng


@pytest.mark.parametrize('axes', [(0,), (1,), (0, 1), (2, 0), (-1,)])
def test_each_competition_is_a_sort_of_its_own(axes):
  shape = (4, 6, 5)
  for values, rng in draws(10, shape):
    rivals = [axis % 3 for axis in axes]
    keep = int(rng.integers(0, np.prod([shape[axis] for axis in rivals]) + 1))
    mask = np.asarray(KEEP(values, keep, axes=axes))
    others = [axis for axis in range(3) if axis not in rivals]
    moved = np.transpose(values, [*others, *sorted(rivals)]).reshape(-1, *[shape[axis] for axis in sorted(rivals)])
    expected = np.stack([sorted_mask(one, keep) for one in moved])
    np.testing.assert_array_equal(np.transpose(mask, [*others, *sorted(rivals)]).reshape(expected.shape), expected)


def test_several_arrays_compete_as_one():
  keep_of = jax.jit(keep_largest_of)
  rng = np.random.default_rng(3)
  for _ in range(20):
    arrays = [rng.integers(0, 4, shape).astype(np.float32) for shape in ((3, 4), (7,), (2, 2, 5))]
    keep = int(rng.integers(0, 40))
    together = np.concatenate([array.ravel() for array in arrays])
    found = np.concatenate([np.asarray(mask).ravel() for mask in keep_of(arrays, keep)])
    np.testing.assert_array_equal(found, sorted_mask(together, keep))


def test_entries_outside_rank_below_every_entry_inside():
  for values, rng in draws(15, (6, 7)):
    among = rng.random((6, 7)) < 0.5
    keep = int(rng.integers(0, 43))
    mask = np.asarray(KEEP(values, keep, among=among))
    inside = min(keep, int(among.sum()))
    assert mask.sum() == keep
    assert (mask & among).sum() == inside
    lifted = np.where(among, 1.0 + np.abs(values.astype(np.float64) * 2.0**140), 0)  # exact, and above every outsider
    np.testing.assert_array_equal(mask, sorted_mask(lifted, keep))


def test_a_nan_counts_as_larger_than_everything():
  scores = jnp.array([[1.0, jnp.nan], [jnp.inf, 2.0]])
  assert keep_largest(scores, 1).tolist() == [[False, True], [False, False]]
  assert keep_largest(scores, 2).tolist() == [[False, True], [True, False]]
  assert keep_largest(scores, 1, among=jnp.array([[True, False], [True, True]])).tolist() == [
    [False, False],
    [True, False],
  ]


def test_an_array_without_entries_keeps_none():
  assert keep_largest(jnp.zeros((0, 3)), 0).shape == (0, 3)


def test_many_models_at_once_are_those_models_one_by_one():
  values = np.stack([values for values, _ in draws(5, (6, 7))])
  keep = np.array([0, 5, 20, 41, 42], np.int32)
  together = jax.jit(jax.vmap(keep_largest))(values, keep)
  for one, k, mask in zip(values, keep, together, strict=True):
    np.testing.assert_array_equal(mask, sorted_mask(one, k))


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, re
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxlite.pruning._top_k import keep_largest
mesh = jax.make_mesh((2,), ('d',))
rng = np.random.default_rng(0)
for spec in (P('d', None), P(None, 'd')):
  sharding = NamedSharding(mesh, spec)
  f = jax.jit(keep_largest, in_shardings=(sharding, None), out_shardings=sharding)
  for values in (rng.normal(size=(64, 32)), rng.integers(0, 3, (64, 32))):
    values = jnp.asarray(values, jnp.float32)
    placed = jax.device_put(values, sharding)
    for keep in (0, 100, 2048):
      np.testing.assert_array_equal(f(placed, keep), keep_largest(values, keep))
  text = f.lower(placed, 3).compile().as_text()
  sent = re.findall(r'= .?\\w+\\[([\\d,]*)\\]\\S* (?:all-|collective-)', text)
  assert sent and all(np.prod([int(n) for n in shape.split(',') if n]) <= 2 for shape in sent), sent
print('the same')
"""


def test_shards_exchange_counts_only_and_mark_the_same():
  flags = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=2'
  done = subprocess.run(
    [sys.executable, '-c', SHARDED],
    env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout.strip() == 'the same', done.stderr
