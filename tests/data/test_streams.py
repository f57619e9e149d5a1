"""A stream is a function of (seed, step): it gives the same batches however it is asked."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlite.data import Stream, attach, batch_at, batches_at, folds, from_iterable, steps_per_epoch, stream
from jaxlite.data.logits import cache_logits

TEST = (np.zeros((4, 3), np.float32), [0, 1, 0, 1])


def make(seed, step, count=8):
  rng = np.random.default_rng((seed, step))
  labels = rng.integers(0, 2, count)
  return {'inputs': rng.normal(size=(count, 3)) + labels[:, None], 'labels': labels, 'step': np.full(count, step)}


def endless(seed):
  return (make(seed, step) for step in itertools.count())


def same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)
  assert jax.tree.structure(one) == jax.tree.structure(other)


OPTIONS = {'steps_per_epoch': 5, 'test': TEST}
KINDS = {'stream': stream(make, **OPTIONS), 'iterable': from_iterable(endless, **OPTIONS)}


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=6))
def test_a_batch_depends_on_seed_and_step_alone(kind, steps):
  train = KINDS[kind].train
  for seed, step in steps:
    batch = batch_at(train, 8, seed, step)
    raw = make(seed, step)
    np.testing.assert_array_equal(batch['inputs'], raw['inputs'].astype(np.float32))
    np.testing.assert_array_equal(batch['labels'], raw['labels'])
    assert batch['weight'].tolist() == [1.0] * 8
    assert {name: value.dtype for name, value in batch.items()} == {
      'inputs': np.float32,
      'labels': np.int32,
      'weight': np.float32,
      'step': np.int64,
    }
    same(batches_at(train, 8, seed, step, 2), jax.tree.map(lambda *a: np.stack(a), batch, train.at(seed, step + 1)))


def test_a_stream_makes_the_data_set_that_its_first_batches_show():
  one, other = KINDS['stream'], KINDS['iterable']
  assert one.fingerprint == other.fingerprint
  assert isinstance(one.train, Stream)
  assert (steps_per_epoch(one.train, 8), one.classes, len(one.validation.labels)) == (5, 2, 0)
  first = np.concatenate([make(0, step)['inputs'] for step in range(4)])
  np.testing.assert_allclose(one.mean, first.mean(0), rtol=1e-5)
  assert 'by the statistics of the first 4 batches' in one.notes[-1]
  assert stream(make, **OPTIONS, standardize=False).mean is None
  others = [
    stream(lambda seed, step: make(seed + 1, step), **OPTIONS),
    stream(make, **{**OPTIONS, 'steps_per_epoch': 6}),
    stream(make, **OPTIONS, name='x'),
    stream(make, **OPTIONS, validation=TEST),
  ]
  assert len({one.fingerprint, *(each.fingerprint for each in others)}) == 5
  assert stream(make, **OPTIONS, facts={'classes': 3}).classes == 3


def test_an_iterable_that_ends_is_shown_over_and_over():
  data = from_iterable(lambda seed: [make(seed, step) for step in range(5)], **OPTIONS)
  for step in (7, 2, 12, 4):
    same(data.train.at(3, step), KINDS['stream'].train.at(3, step % 5))


def test_an_iterable_in_order_is_gone_over_once():
  started = []

  def fresh(seed):
    started.append(seed)
    return endless(seed)

  data = from_iterable(fresh, **OPTIONS)
  del started[:]
  for step in range(20):
    batch_at(data.train, 8, 1, step)
  assert started == [1]
  batch_at(data.train, 8, 1, 3)
  assert started == [1, 1]


def shifting(seed, step):
  return make(seed, step, 8 if step < 4 else 7)


def forgetful():
  counter = itertools.count()
  return lambda seed, step: make(seed, next(counter))


used_up = endless(0)
BAD = {
  'no dict': (
    lambda seed, step: make(seed, step)['inputs'],
    {},
    "^a batch is a dict with 'inputs' and 'labels'; .* ndarray",
  ),
  'no labels': (lambda seed, step: {'inputs': TEST[0]}, {}, '^a batch is a dict .* that of step 0 is a dict of inputs'),
  'not a function of its arguments': (forgetful(), {}, r'^a stream makes the same batch for the same \(seed, step\)'),
  'nan': (
    lambda seed, step: {'inputs': TEST[0] * np.nan, 'labels': TEST[1]},
    {},
    '^inputs are finite; the first batch',
  ),
  'a generator function': (
    lambda: endless(0),
    {},
    r'^a stream is made by a function \(seed, step\) -> batch; .* from_iterable',
  ),
  'nan later': (
    lambda seed, step: {'inputs': TEST[0] * (np.nan if step == 2 else 1), 'labels': TEST[1]},
    {},
    r'^inputs are finite; the batch of step 2 has nan at \[0, 0\]',
  ),
  'no steps': (make, {'steps_per_epoch': 0}, '^steps_per_epoch is a whole number, at least 1'),
  'no test': (make, {'test': None}, '^a stream needs a test split'),
  'other shapes': (
    make,
    {'test': (np.zeros((4, 2)), TEST[1])},
    r'^every split has examples of one shape; train has \[3\]',
  ),
  'other classes': (make, {'test': (TEST[0], [0, 1, 2, 9])}, '^labels are .* test has 2 at 2'),
}


@pytest.mark.parametrize('case', BAD)
def test_what_cannot_be_a_stream_is_one_line(case):
  function, options, message = BAD[case]
  with pytest.raises(ValueError, match=message) as caught:
    stream(function, **{**OPTIONS, **options})
  assert '\n' not in str(caught.value)


def test_shapes_never_change_between_batches():
  data = stream(shifting, **OPTIONS)
  with pytest.raises(
    ValueError, match=r'^every batch has the same shapes; inputs of the first is float32\[8, 3\], that of '
  ):
    data.train.at(0, 4)
  extra = stream(lambda seed, step: make(seed, step) | ({'more': np.ones(8)} if step > 6 else {}), **OPTIONS)
  with pytest.raises(
    ValueError, match=r'^every batch holds the same arrays; .* that of step 7 inputs, labels, more, step'
  ):
    extra.train.at(0, 7)


def test_a_batch_size_is_the_streams_own_and_what_needs_all_examples_is_refused(tmp_path):
  data = KINDS['stream']
  for call in (steps_per_epoch, lambda split, size: batch_at(split, size, 0, 0)):
    with pytest.raises(
      ValueError, match=r'^a stream makes batches of its own size, 8; got batch_size 4: set data.batch_s'
    ):
      call(data.train, 4)
  with pytest.raises(ValueError, match='come from a stream'):
    attach(data, a=np.ones(8))
  with pytest.raises(ValueError, match='a stream makes them'):
    cache_logits(lambda x: x, data, tmp_path)
  with pytest.raises(ValueError, match='folds cut examples in memory'):
    folds(data)


def test_a_generator_that_is_used_up_is_told():
  with pytest.raises(ValueError, match=r'^an iterable gives batches; .* is it a generator that was used up'):
    from_iterable(lambda seed: iter(()), **OPTIONS)
  with pytest.raises(ValueError, match=r'^an iterable is started again by .* got a generator: .*lambda seed'):
    from_iterable(endless(0), **OPTIONS)
