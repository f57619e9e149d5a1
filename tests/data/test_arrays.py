"""`from_arrays` carves what is not given, from train alone, without losing or doubling an example."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlite.data import from_arrays


def numbered(count, classes=4):
  return np.arange(count, dtype=np.float32)[:, None], np.arange(count) % classes


def rows(split):
  return split.inputs[:, 0].astype(int).tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(40, 200), st.floats(0.05, 0.4), st.floats(0.05, 0.4), st.integers(0, 99))
def test_carved_splits_partition_train(count, validation, test, seed):
  inputs, labels = numbered(count)
  data = from_arrays((inputs, labels), validation, test, seed=seed)
  splits = data.train, data.validation, data.test
  assert sorted(row for split in splits for row in rows(split)) == list(range(count))
  assert len(data.test.labels) == round(test * count)
  assert len(data.validation.labels) == round(validation * count)
  for split in splits:
    assert split.labels.tolist() == [labels[row] for row in rows(split)]
  again = from_arrays((inputs, labels), validation, test, seed=seed)
  assert again.fingerprint == data.fingerprint


def test_the_test_split_does_not_depend_on_the_validation_split():
  whole = numbered(100)
  assert rows(from_arrays(whole, 0.1).test) == rows(from_arrays(whole, 0.3).test)
  assert rows(from_arrays(whole, seed=1).test) != rows(from_arrays(whole, seed=2).test)


def test_pairs_that_are_given_are_kept_as_they_are():
  train, other = numbered(60), (np.full((3, 1), -1.0), np.array([0, 1, 2]))
  data = from_arrays(train, other)
  assert data.validation.inputs.tolist() == [[-1], [-1], [-1]]
  assert -1 not in rows(data.test)
  assert len(data.train.labels) == 54
  both = from_arrays(train, other, list(other))
  assert rows(both.train) == list(range(60))


def test_statistics_are_of_what_is_left_in_train():
  data = from_arrays(numbered(100), 0.2, 0.2)
  assert data.mean[0] == pytest.approx(np.mean(rows(data.train)))
  assert data.std[0] == pytest.approx(np.std(rows(data.train)))


def test_jax_arrays_and_names():
  data = from_arrays((jnp.ones((20, 2, 2, 1), jnp.uint8), jnp.arange(20) % 2), class_names=['no', 'yes'], name='mine')
  assert (data.name, data.classes, data.class_names) == ('mine', 2, ('no', 'yes'))
  assert data.train.inputs.dtype == np.uint8


def test_a_validation_of_zero_holds_nothing_out():
  data = from_arrays(numbered(50), 0.0, 0.2)
  assert (len(data.train.labels), len(data.validation.labels), len(data.test.labels)) == (40, 0, 10)


@pytest.mark.parametrize(
  'arguments, message',
  [
    ((numbered(50), -0.1), '^validation is a fraction between 0 and 1 or a pair'),
    ((numbered(50), 0.1, 1.0), '^test is a fraction between 0 and 1 or a pair'),
    ((numbered(50), 0.6, 0.6), '^a split takes some examples and leaves some; validation takes 30 of 20'),
    ((numbered(50), numbered(4)[0]), '^validation is a fraction between 0 and 1 or a pair'),
    ((numbered(50), (numbered(4)[0],)), r'^a split is a pair .* validation is tuple of 1'),
    ((np.ones((4, 2)),), r'^a split is a pair \(inputs, labels\); train is ndarray'),
    ((numbered(1),), '^a split takes some examples'),
  ],
)
def test_wrong_arguments_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    from_arrays(*arguments)


def test_numbers_that_float32_makes_equal_are_told():
  """Times since 1970, in float64: two minutes are one number, and a network would see steps."""
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(60, 3))
  labels = np.arange(60) % 2
  assert from_arrays((inputs, labels)).notes == ()
  inputs[:, 1] = 1.7e9 + rng.uniform(0, 300, 60)
  (note,) = from_arrays((inputs, labels)).notes
  assert note.startswith('column 1 lies between 17000000')
  assert 'float32 rounds by up to 6' in note
  assert from_arrays((inputs, labels), feature_names=('a', 'when', 'c')).notes[0].startswith("column 'when' lies")
  assert from_arrays(({'x': inputs}, labels)).notes[0].startswith("column 'x[1]' lies")
  assert from_arrays((inputs.astype(np.float32), labels)).notes == ()  # so they came: nothing is lost here
  with pytest.raises(ValueError, match=r'has -?inf at \[0, 0\]: .* or divide what is beyond float32'):
    from_arrays((inputs[:, :1] * 1e300, labels))
