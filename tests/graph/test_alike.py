"""Arrays taken together give what each gives by itself, and their program does not grow with them."""

import jax
import jax.numpy as jnp
import numpy as np

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


def test_first_names_the_first_and_none():
  found = leaves()
  for place in (0, 3, 5, 7, 20, len(found) - 1):
    bad = list(found)
    for i in {place, len(found) - 1}:
      bad[i] = bad[i].reshape(-1).at[-1].set(jnp.nan).reshape(bad[i].shape)
    assert int(jax.jit(lambda bad: alike.first(jnp.isnan, bad))(bad)) == place
  assert int(alike.first(jnp.isnan, found)) == len(found)
  assert int(alike.first(jnp.isnan, [jnp.zeros((0, 2)), jnp.zeros(0)])) == 2
  large = [jnp.zeros(1 << 20), jnp.zeros(3), jnp.zeros(1 << 20), jnp.full(2, jnp.nan)]
  assert int(alike.first(jnp.isnan, large)) == 3


def test_a_reduction_stands_once_for_all():
  def reductions(count):
    jaxpr = jax.make_jaxpr(lambda found: alike.first(jnp.isnan, found))([jnp.ones((3, 2)), jnp.ones(4)] * count)
    return sum(eqn.primitive.name.startswith('reduce') for eqn in equations(jaxpr))

  assert reductions(2) == reductions(30)


def test_what_was_stacked_comes_apart_again():
  stack = jnp.arange(24).reshape(4, 3, 2)
  for one, other in zip(jax.jit(alike.unstacked)(stack, jnp.array(True)), stack, strict=True):
    np.testing.assert_array_equal(one, other)


def test_count_is_that_of_all_entries():
  one, other = leaves(1), leaves(2)
  one += [jnp.ones((1 << 20) + 1), jnp.ones(3, jnp.float16)]
  other += [jnp.zeros((1 << 20) + 1), jnp.zeros(3, jnp.float16)]
  expected = sum(
    int((np.asarray(a, np.float32) > np.asarray(b, np.float32)).sum()) for a, b in zip(one, other, strict=True)
  )
  assert int(jax.jit(lambda *columns: alike.count(lambda a, b: a > b, *columns))(one, other)) == expected
  assert int(alike.count(lambda a: a > 0, [])) == 0
