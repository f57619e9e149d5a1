"""Carving is a stratified, seeded partition that never takes a class's last example."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxlite.data.splits import carve, share

labeled = st.lists(st.integers(0, 6), min_size=2, max_size=120).map(np.array)


def partition(labels, count, seed):
  """`carve`, or nothing taken where every share falls on a class of one example, which it refuses."""
  try:
    return carve(labels, count, seed, 'test')
  except ValueError:
    return np.arange(len(labels)), np.array([], int)


@settings(max_examples=200, deadline=None)
@given(labeled, st.floats(0.01, 0.99), st.integers(0, 2**40))
def test_a_partition_with_each_class_by_its_share(labels, fraction, seed):
  count = share(fraction, len(labels), 'test')
  sizes = np.bincount(labels)
  assume(count < len(labels) and sizes.max() > 1)
  kept, taken = partition(labels, count, seed)
  if not len(taken):
    assert (sizes * count // len(labels) == 0).all()
    return
  assert sorted([*kept, *taken]) == list(range(len(labels)))
  assert (np.diff(kept) > 0).all()
  assert (np.diff(taken) > 0).all()
  assert len(taken) <= count
  if sizes[sizes > 0].min() > 1 / min(fraction, 1 - fraction):
    assert len(taken) == count
  got = np.bincount(labels[taken], minlength=len(sizes))
  assert (np.abs(got - sizes * count / len(labels)) < 1).all()
  assert ((got < sizes) | (sizes == 0)).all()
  again = carve(labels, count, seed, 'test')
  np.testing.assert_array_equal(again[1], taken)


def test_seeds_and_names_draw_differently_and_members_are_uniform():
  labels = np.arange(1000) % 10
  assert len({tuple(carve(labels, 100, seed, name)[1]) for seed in range(5) for name in ('test', 'validation')}) == 10
  hits = np.zeros(40)
  for seed in range(400):
    hits[carve(np.zeros(40, int), 10, seed, 'test')[1]] += 1
  assert np.abs(hits / 400 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 400)


@pytest.mark.parametrize('count', [0, 5, 6, -1])
def test_nothing_or_everything_is_refused(count):
  with pytest.raises(ValueError, match=r'^a split takes some examples and leaves some; test takes'):
    carve(np.array([0, 0, 1, 1, 1]), count, 0, 'test')


def test_classes_of_one_example_stay_in_train():
  with pytest.raises(ValueError, match=r'^test would be empty: every class has one example of 5'):
    carve(np.arange(5), 2, 0, 'test')


@pytest.mark.parametrize('seed', [-1, 0.5, None])
def test_a_seed_is_whole_and_not_negative(seed):
  with pytest.raises(ValueError, match=r'^seed is a whole number, at least 0'):
    carve(np.array([0, 0, 1, 1]), 2, seed, 'test')


@pytest.mark.parametrize('fraction', [0, 1, -0.1, 1.5, True, 'half', float('nan')])
def test_a_fraction_lies_between_0_and_1(fraction):
  with pytest.raises(ValueError, match=r'^validation is a fraction between 0 and 1'):
    share(fraction, 100, 'validation')
