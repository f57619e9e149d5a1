"""Folds test every example once, by equal parts, and never train on what they test."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from jaxlite.data import folds, from_arrays, from_table
from jaxlite.tasks.losses import cross_entropy
from jaxlite.tasks.metrics import means
from jaxlite.tasks.task import Task

NUMBERS = Task('numbers', loss=lambda facts: cross_entropy, metrics=lambda facts: means(), score='loss')


def rows(split):
  return split.inputs[:, 0].astype(int).tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=12, max_size=60), st.integers(2, 6), st.integers(0, 99), st.booleans())
def test_every_example_is_tested_once_and_each_class_by_its_share(labels, k, seed, classes):
  labels = np.array(labels)
  inputs = np.arange(len(labels), dtype=np.float32)[:, None]
  weight = 1 + np.arange(len(labels)) % 3
  task = None if classes else NUMBERS
  options = {'task': task} if task else {'facts': {'classes': 4}}
  made = folds((inputs, labels, weight), k, seed, **options)
  assert len(made) == k
  assert sorted(row for fold in made for row in rows(fold.test)) == list(range(len(labels)))
  sizes = [len(fold.test.labels) for fold in made]
  assert max(sizes) - min(sizes) <= 1
  for fold in made:
    splits = (fold.train, fold.validation, fold.test)
    assert sorted(row for split in splits for row in rows(split)) == list(range(len(labels)))
    for split in splits:
      np.testing.assert_array_equal(split.labels, labels[rows(split)])
      np.testing.assert_array_equal(split.weight, weight[rows(split)])
    assert fold.mean[0] == pytest.approx(np.mean(rows(fold.train)), rel=1e-5)
  if classes:
    counts = np.array([np.bincount(fold.test.labels, minlength=4) for fold in made])
    assert (np.ptp(counts, axis=0) <= 1).all()


def test_class_counts_are_those_of_scikit_learns_folds():
  labels = np.repeat([0, 1, 2], [50, 30, 20])
  made = folds((np.zeros((100, 1)), labels), 5)
  oracle = StratifiedKFold(5, shuffle=True, random_state=0).split(labels, labels)
  wanted = [np.bincount(labels[test]).tolist() for _, test in oracle]
  assert [np.bincount(fold.test.labels).tolist() for fold in made] == wanted


def test_folds_of_a_data_set_take_its_splits_together_and_keep_what_it_knows():
  table = {'x': np.arange(40.0), 'y': ['a', 'b'] * 20, 'kind': ['cat', 'dog'] * 20}
  data = from_table(table, 'kind', standardize=False)
  made = folds(data, 4, validation=0)
  assert sorted(row for fold in made for row in rows(fold.test)) == list(range(40))
  for fold in made:
    assert (fold.name, fold.class_names, fold.feature_names) == ('table', ('cat', 'dog'), ('x', 'y=a', 'y=b'))
    assert fold.encoder == data.encoder
    assert fold.mean is None
    assert len(fold.validation.labels) == 0
  assert len({fold.fingerprint for fold in made}) == 4
  assert [fold.fingerprint for fold in folds(data, 4, validation=0)] == [fold.fingerprint for fold in made]
  assert folds(data, 4, seed=1)[0].fingerprint != folds(data, 4)[0].fingerprint


def test_the_weight_of_positions_is_counted_once():
  task = NUMBERS._replace(weight=lambda labels: (labels >= 0).sum(1))
  labels = np.where(np.arange(60).reshape(20, 3) % 4, 1, -1)
  data = from_arrays((np.zeros((20, 1)), labels), task=task)
  total = sum(fold.test.weight.sum() for fold in folds(data, 4))
  assert total == (labels >= 0).sum()


@pytest.mark.parametrize(
  'options, message',
  [
    ({'k': 1}, '^k is a whole number, at least 2'),
    ({'k': 21}, '^a fold tests on one example at least; got k=21 for 20 examples'),
    ({'validation': 1.5}, '^validation is a fraction between 0 and 1'),
    ({'seed': -1}, '^seed is a whole number'),
    (
      {'data': from_arrays((np.zeros((20, 1)), np.arange(20) % 2)), 'task': NUMBERS},
      '^a Dataset has its task and facts',
    ),
  ],
)
def test_wrong_arguments_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    folds(**{'data': (np.zeros((20, 1)), np.arange(20) % 2), **options})


def test_a_class_of_one_example_is_a_class_in_every_fold():
  labels = np.r_[np.zeros(10, int), np.ones(9, int), 2]
  assert [fold.classes for fold in folds((np.zeros((20, 1)), labels), 4)] == [3] * 4
