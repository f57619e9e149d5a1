"""Arrays taken together give what each gives by itself, in order, and their program does not grow with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.graph import alike
from jaxlite.graph.walk import equations


def leaves(seed=0):
  rng = np.random.default_rng(seed)
  shapes = [(3, 2), (4,), (3, 2), (), (4,), (3, 2), (0, 5), (2, 3)] + [(2,)] * 40
  return [jnp.asarray(rng.normal(size=shape), [jnp.float32, jnp.bfloat16][i % 2]) for i, shape in enumerate(shapes)]


def test_groups_cover_every_position_once_and_hold_equal_shapes_and_types():
  found = leaves()
  groups = alike.groups(found)
  assert sorted(i for group in groups for i in group) == list(range(len(found)))
  for group in groups:
    assert len({(found[i].shape, found[i].dtype) for i in group}) == 1
    assert group == sorted(group)
  assert len(groups) < len(found) / 3


def test_large_arrays_stay_apart():
  assert alike.groups([np.zeros(1 << 20, np.int8)] * 2) == [[0], [1]]


@pytest.mark.parametrize('wrap', [lambda fn: fn, jax.jit], ids=['eager', 'jit'])
def test_each_is_the_loop_over_them(wrap):
  found = leaves()
  got = wrap(lambda found: alike.each(lambda leaf: jnp.sum(leaf > 0.5), found))(found)
  assert got.tolist() == [int((np.asarray(leaf, np.float32) > 0.5).sum()) for leaf in found]


def test_first_names_the_first_and_none():
  found = leaves()
  for place in (0, 3, 5, 7, 20, len(found) - 1):
    bad = list(found)
    for i in {place, len(found) - 1}:
      bad[i] = jnp.full_like(bad[i], jnp.nan)
    assert int(alike.first(lambda leaf: jnp.any(jnp.isnan(leaf)), bad)) == place
  assert int(alike.first(lambda leaf: jnp.any(jnp.isnan(leaf)), found)) == len(found)


def test_a_reduction_stands_once_for_all_of_a_kind():
  def reductions(count):
    jaxpr = jax.make_jaxpr(lambda found: alike.each(jnp.max, found))([jnp.ones((3, 2))] * count)
    return sum(eqn.primitive.name == 'reduce_max' for eqn in equations(jaxpr))

  assert reductions(2) == reductions(30) == 1
