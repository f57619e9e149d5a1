"""Batches are pure in (seed, step), cover each epoch exactly once, and never hold an image that does not exist."""

import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlite.data import Columns, Split, batch_at, batches_at, eval_batches, steps_per_epoch
from jaxlite.data import batches as module


def numbered(count, shape=(2,), dtype=np.uint8):
  """Examples that can be told apart: the label is the place, the inputs repeat it."""
  labels = np.arange(count, dtype=np.int32)
  return Split(np.broadcast_to(labels.reshape(-1, *[1] * len(shape)), (count, *shape)).astype(dtype), labels)


sizes = st.integers(1, 60).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, count)))


@settings(max_examples=100, deadline=None)
@given(sizes, st.integers(0, 2**40), st.integers(0, 4))
def test_an_epoch_shows_every_example_exactly_once(size, seed, epoch):
  count, batch_size = size
  split = numbered(count)
  steps = steps_per_epoch(split, batch_size)
  assert steps == -(-count // batch_size)
  seen = []
  for step in range(epoch * steps, (epoch + 1) * steps):
    batch = batch_at(split, batch_size, seed, step)
    assert {key: (value.dtype, value.shape) for key, value in batch.items()} == {
      'inputs': (np.dtype(np.uint8), (batch_size, 2)),
      'labels': (np.dtype(np.int32), (batch_size,)),
      'weight': (np.dtype(np.float32), (batch_size,)),
    }
    np.testing.assert_array_equal(batch['inputs'], np.repeat(batch['labels'][:, None], 2, axis=1))
    assert set(batch['weight']) <= {0.0, 1.0}
    assert len(set(batch['labels'])) == batch_size  # padding never doubles a row of its own batch
    seen.extend(batch['labels'][batch['weight'] == 1])
  assert sorted(seen) == list(range(count))


@settings(max_examples=50, deadline=None)
@given(sizes, st.integers(0, 1000), st.lists(st.integers(0, 200), min_size=1, max_size=8))
def test_a_batch_depends_on_seed_and_step_alone(size, seed, steps):
  count, batch_size = size
  split = numbered(count, dtype=np.float32)
  forward = {step: batch_at(split, batch_size, seed, step) for step in steps}
  module._order.cache_clear()
  for step in reversed(steps):  # in another order, without what was cached
    again = batch_at(split, batch_size, np.int64(seed), np.int32(step))
    for key, value in again.items():
      np.testing.assert_array_equal(value, forward[step][key])


@settings(max_examples=50, deadline=None)
@given(sizes, st.integers(0, 1000), st.integers(0, 200), st.integers(1, 40), st.booleans())
def test_batches_of_several_steps_are_those_of_each(size, seed, step, steps, views):
  count, batch_size = size
  split = numbered(count, dtype=np.float32)
  if views:
    split = Columns(
      *split, {'logits': np.random.default_rng(0).normal(size=(count, 3, 2)), 'once': np.ones((count, 1))}
    )
  several = batches_at(split, batch_size, seed, step, steps)
  for row in range(steps):
    one = batch_at(split, batch_size, seed, step + row)
    assert one.keys() == several.keys()
    for key, value in one.items():
      assert value.dtype == several[key].dtype
      np.testing.assert_array_equal(several[key][row], value)


def test_the_order_is_the_documented_one():
  split = numbered(10)
  order = np.random.default_rng((7, 3)).permutation(10)
  np.testing.assert_array_equal(batch_at(split, 5, 7, 3 * 2 + 1)['labels'], order[5:])


def test_epochs_and_seeds_differ():
  split = numbered(200)
  first = [tuple(batch_at(split, 200, seed, step)['labels']) for seed in range(4) for step in range(4)]
  assert len(set(first)) == 16


def test_the_same_batches_in_another_process_and_with_another_numpy():
  labels = np.concatenate([batch_at(numbered(250), 32, 11, step)['labels'] for step in range(20)])
  digest = hashlib.sha256(labels.tobytes()).hexdigest()
  code = (
    'import hashlib, numpy as np; from jaxlite.data import Split, batch_at; n = np.arange(250, dtype=np.int32); '
    's = Split(n[:, None].astype(np.uint8), n); '
    "l = np.concatenate([batch_at(s, 32, 11, i)['labels'] for i in range(20)]); "
    'print(hashlib.sha256(l.tobytes()).hexdigest())'
  )
  run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert run.stdout.strip() == digest
  assert digest.startswith('dffc88a77ee13dad')


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 90))
def test_evaluation_sees_every_example_once_in_order(count, batch_size):
  batches = list(eval_batches(numbered(count), batch_size))
  assert {len(batch['labels']) for batch in batches} == {min(batch_size, count)}
  labels = np.concatenate([batch['labels'] for batch in batches])
  weight = np.concatenate([batch['weight'] for batch in batches])
  assert labels[weight == 1].tolist() == list(range(count))
  assert (weight[:count] == 1).all()
  for batch in batches:
    np.testing.assert_array_equal(batch['inputs'][:, 0], batch['labels'])
    assert len(set(batch['labels'])) == len(batch['labels'])


@pytest.mark.parametrize('batch_size', [0, -1, 2.0, None])
def test_a_batch_size_is_a_whole_number(batch_size):
  for call in (batch_at, lambda split, size, seed, step: steps_per_epoch(split, size)):
    with pytest.raises(ValueError, match=r'^batch_size is a whole number, at least 1; got'):
      call(numbered(10), batch_size, 0, 0)


def test_a_batch_larger_than_the_data_names_the_bound():
  with pytest.raises(
    ValueError, match=r'^a batch holds at most the 10 examples of the split; got batch_size 11: lower'
  ):
    batch_at(numbered(10), 11, 0, 0)


def test_bad_evaluation_raises_at_once():
  with pytest.raises(ValueError, match=r'^batch_size is a whole number'):
    eval_batches(numbered(10), 0)
  with pytest.raises(ValueError, match=r'^evaluation needs at least one example'):
    eval_batches(numbered(0), 4)


@pytest.mark.parametrize('seed, step, what', [(-1, 0, 'seed'), (0, -1, 'step'), (1.5, 0, 'seed'), (0, 1.5, 'step')])
def test_seed_and_step_are_whole_and_not_negative(seed, step, what):
  with pytest.raises(ValueError, match=rf'^{what} is a whole number, at least 0'):
    batch_at(numbered(10), 2, seed, step)


def test_a_batch_is_the_callers_own_copy():
  split = numbered(10)
  batch = batch_at(split, 10, 0, 0)
  batch['inputs'][:] = 0
  np.testing.assert_array_equal(split.inputs[:, 0], np.arange(10))


def test_gathering_beats_a_pipeline_of_examples():
  """28x28 pictures, batches of 128: one gather against one array an example, collected."""
  split = numbered(12800, (28, 28, 1))

  def pipeline(step):
    order = module._order(12800, 0, 0)
    rows = order[step * 128 : (step + 1) * 128]
    examples = [{'inputs': split.inputs[row], 'labels': split.labels[row], 'weight': np.float32(1)} for row in rows]
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}

  def seconds(batch):
    best = float('inf')
    for _ in range(5):
      start = time.perf_counter()
      for step in range(50):
        batch(step)
      best = min(best, time.perf_counter() - start)
    return best

  for key, value in pipeline(3).items():
    np.testing.assert_array_equal(value, batch_at(split, 128, 0, 3)[key])
  slow, fast = seconds(pipeline), seconds(lambda step: batch_at(split, 128, 0, step))
  assert slow > 8 * fast, (slow, fast)  # 20 on a quiet machine; the bound leaves room for a loaded one
