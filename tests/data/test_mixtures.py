"""A mixture: exact shares, every example once before any again, and no memory of what was shown."""

import numpy as np
import pytest

from jaxlite import tasks
from jaxlite.data import batch_at, batches_at, from_arrays, mix
from jaxlite.data.batches import steps_per_epoch
from jaxlite.data.decoded import Decoded
from jaxlite.data.standardize import channel_stats


def source(count, offset, seed=0):
  inputs = np.arange(count, dtype=np.float32)[:, None] + offset
  return from_arrays((inputs, np.arange(count) % 2), validation=0.1, test=0.1, seed=seed)


A, B = source(50, 0), source(500, 1000)


def test_shares_are_exact_and_no_example_comes_twice_before_all_came_once():
  data = mix({'a': (A, 1), 'b': (B, 3)})
  seen, sources = [], []
  for step in range(96):
    batch = batch_at(data.train, 8, 5, step)
    seen += batch['inputs'][:, 0].tolist()
    sources += batch['source'].tolist()
  sources = np.array(sources)
  assert [int((sources[at : at + 256] == 0).sum()) for at in (0, 256, 512)] == [64, 64, 64]
  ours = np.array(seen)[sources == 0]
  for turn in range(len(ours) // 40):
    assert len(set(ours[turn * 40 : turn * 40 + 40])) == 40
  assert len(set(np.array(seen)[sources == 1][:400])) == 400


def test_a_batch_is_a_function_of_seed_and_step_alone():
  data = mix({'a': (A, 0.2), 'b': (B, 0.7)})
  forward = [batch_at(data.train, 16, 3, step)['inputs'] for step in range(30)]
  for step in (29, 3, 17, 0):
    np.testing.assert_array_equal(batch_at(data.train, 16, 3, step)['inputs'], forward[step])
  np.testing.assert_array_equal(batches_at(data.train, 16, 3, 4, 3)['inputs'], np.stack(forward[4:7]))
  assert (batch_at(data.train, 16, 4, 0)['inputs'] != forward[0]).any()
  together = np.concatenate(forward)
  np.testing.assert_array_equal(  # how they are cut into batches changes nothing
    np.concatenate([batch_at(data.train, 8, 3, step)['inputs'] for step in range(60)]), together
  )
  assert steps_per_epoch(data.train, 16) == 28


def test_its_mean_and_deviation_are_those_of_what_it_shows():
  data = mix({'a': (A, 1), 'b': (B, 1)})
  many = np.concatenate([batch_at(data.train, 400, 0, step)['inputs'] for step in range(20)])
  for got, want in zip((data.mean, data.std), channel_stats(many), strict=True):
    np.testing.assert_allclose(got, want, rtol=0.01)


def test_examples_that_lie_in_files_are_mixed_as_those_in_memory():
  def make(row, out):
    out[...] = row

  lazy = from_arrays(
    (Decoded(make, 50, (1,), np.float32).rows(), np.arange(50) % 2), validation=0.1, test=0.1, standardize=False
  )
  held, other = (from_arrays((x.astype(np.float32), np.arange(len(x)) % 2), validation=0.1, test=0.1, standardize=False)
                 for x in (np.arange(50)[:, None], np.arange(99)[:, None]))  # fmt: skip
  one, two = (mix({'a': (first, 2), 'b': (other, 1)}) for first in (lazy, held))
  for step in (0, 1, 2, 9):
    np.testing.assert_array_equal(
      batch_at(one.train, 10, 0, step)['inputs'], batch_at(two.train, 10, 0, step)['inputs']
    )


@pytest.mark.parametrize(
  'sources, said',
  [
    ({}, 'got none'),
    ({'a': A}, "'a' is Dataset"),
    ({'a': (A, 0)}, 'a number above 0'),
    ({'a': (A, float('nan'))}, 'a number above 0'),
    ({'a': (A, 1), 'b': (from_arrays((np.zeros((40, 2)), np.arange(40) % 2)), 1)}, 'examples of one shape'),
    ({'a': (A, 1), 'b': (from_arrays((np.zeros((40, 1)), np.arange(40) % 4)), 1)}, 'sources learn one thing'),
    (
      {'a': (A, 1), 'b': (from_arrays((np.zeros((40, 1)), np.arange(40) / 3), task=tasks.regression), 1)},
      'sources learn one thing',
    ),
    ({'a': (A, 1), 'b': (A._replace(mean=None, std=None), 1)}, 'standardized alike'),
    ({'a': (A, 1e9), 'b': (B, 1)}, 'within a factor of 10,000'),
  ],
)
def test_what_cannot_be_mixed_is_refused(sources, said):
  with pytest.raises(ValueError, match=said):
    mix(sources)
  with pytest.raises(ValueError, match='evaluated names a source'):
    mix({'a': (A, 1)}, evaluated='b')


def test_numbers_are_learned_in_the_units_of_the_whole_mixture():
  rng = np.random.default_rng(0)
  one, other = (
    from_arrays((rng.normal(size=(200, 3)), size * rng.normal(size=200) + size), task=tasks.regression)
    for size in (1, 100)
  )
  data = mix({'small': (one, 3), 'large': (other, 1)})
  shown = np.concatenate([batch_at(data.train, 64, 0, step)['labels'] for step in range(40)]).astype(np.float64)
  np.testing.assert_allclose(data.facts['mean'], shown.mean(), rtol=0.1)
  np.testing.assert_allclose(data.facts['std'], shown.std(), rtol=0.1)
