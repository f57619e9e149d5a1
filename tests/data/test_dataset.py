"""What `make_dataset` promises: refused data, statistics of train only, a fingerprint of every byte."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from jaxlite.data import make_dataset
from jaxlite.data.standardize import channel_stats


def pair(count=6, shape=(4, 4, 1), dtype=np.uint8, seed=0, classes=3):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, *shape)).astype(dtype), np.arange(count) % classes


def replaced(inputs=None, labels=None, **options):
  old = pair(**options)
  return (old[0] if inputs is None else inputs, old[1] if labels is None else labels)


def spoiled(place, value):
  inputs = pair(dtype=np.float32)[0]
  inputs[place] = value
  return inputs, pair()[1]


FLOAT = pair(dtype=np.float32)
NOT_CLASSES = '^labels are integers .N. where no task is named; train has '
BAD = {
  'no pair': ({'train': pair()[0]}, r'^a split is a pair \(inputs, labels\); train is ndarray: pass'),
  'empty': ({'test': (np.zeros((0, 4, 4, 1), np.uint8), np.zeros(0, int))}, '^a split needs .* test is empty: carve'),
  'empty list': ({'test': (np.zeros((0, 4, 4, 1), np.uint8), [])}, '^a split needs .* test is empty: carve'),
  'lengths': ({'test': (pair()[0], pair(7)[1])}, '^every example has one label; test has 6 inputs and 7 labels'),
  'out of range': ({'test': replaced(labels=[0, 1, 2, 9, 0, 1])}, '^labels are .* test has 9 at 3: pass classes=10'),
  'negative': ({'train': replaced(labels=[0, 1, -1, 0, 0, 1])}, '^labels are .* train has -1 at 2: number'),
  'huge label': ({'train': replaced(labels=[0, 1, 2**40, 0, 0, 1])}, '^labels are .* train has 1099511627776 at 2'),
  'real labels': (
    {'train': replaced(labels=np.linspace(0, 1, 6))},
    NOT_CLASSES + r'.*astype\(int\); .*regression',
  ),
  'one-hot': (
    {'train': replaced(labels=np.eye(6))},
    NOT_CLASSES + '.* one-hot; .*multi_label',
  ),
  'column': (
    {'train': replaced(labels=np.zeros((6, 1), int))},
    NOT_CLASSES + r'.* use labels\[:, 0\]; .*binary',
  ),
  'strings': (
    {'train': replaced(labels=list('abcabc'))},
    NOT_CLASSES + '<U1.*numpy.unique',
  ),
  'nan': (
    {'train': FLOAT, 'validation': spoiled((2, 1, 3, 0), np.nan), 'test': FLOAT},
    r'^inputs are finite; validation has nan at \[2, 1, 3, 0\]: drop example 2',
  ),
  'inf': (
    {'train': spoiled((5, 0, 0, 0), np.inf), 'validation': FLOAT, 'test': FLOAT},
    r'^inputs are finite; train has inf at \[5, 0, 0, 0\]: drop example 5',
  ),
  'beyond float32': ({'train': (np.full((6, 2), 1e300), pair()[1])}, '^inputs are finite; train has inf'),
  'beyond int32': (
    {'train': (np.full((6, 2), 2**31), pair()[1])},
    '^integers are ids and fit .* train have 2147483648',
  ),
  'below int32': (
    {'train': (np.full((6, 2), -(2**40)), pair()[1])},
    '^integers are ids and fit .* have -1099511627776',
  ),
  'shapes': ({'test': pair(shape=(5, 4, 1))}, r'^every split has .* train has \[4, 4, 1\], test \[5, 4, 1\]: resize'),
  'dtypes': ({'test': FLOAT}, '^every split has one dtype.* train is uint8, test float32: prepare test as train'),
  'ragged': (
    {'train': replaced(inputs=[[1], [1, 2], [1], [1], [1], [1]])},
    '^examples have one shape; inputs of train',
  ),
  'ragged objects': (
    {'train': replaced(inputs=np.array([np.ones(2), np.ones(3)], dtype=object))},
    '^examples have one shape; inputs of train',
  ),
  'no features': ({'train': replaced(inputs=np.zeros(6))}, r'^inputs are \[N, features\] .* train has \[6\]: give'),
  'no pixels': ({'train': replaced(inputs=np.zeros((6, 0)))}, r'^inputs are \[N, features\] .* train has \[6, 0\]'),
  'text': (
    {'train': replaced(inputs=np.array([['a']] * 6))},
    '^inputs are numbers; train has dtype <U1: give an array',
  ),
  'masked': ({'train': replaced(inputs=np.ma.masked_less(np.arange(6.0)[:, None], 2))}, '^every value .* of train are'),
  'complex': ({'train': replaced(inputs=np.ones((6, 2), complex))}, '^inputs are numbers; train has dtype complex'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_data_is_one_line_that_names_the_place_and_the_fix(case):
  splits, message = BAD[case]
  with pytest.raises(ValueError, match=message) as caught:
    make_dataset('bad', **{'train': pair(), 'validation': pair(), 'test': pair(), **splits}, classes=3)
  assert '\n' not in str(caught.value)


def test_names_must_fit_the_classes():
  with pytest.raises(ValueError, match=r'^every class has one name; got 2 names for 3 classes'):
    make_dataset('bad', pair(), pair(), pair(), classes=3, class_names=['a', 'b'])


@pytest.mark.parametrize('classes', [0, 3.0, '3'])
def test_classes_are_a_whole_number(classes):
  with pytest.raises(ValueError, match=r'^classes is a whole number, at least 1'):
    make_dataset('bad', pair(), pair(), pair(), classes=classes)


def test_a_class_without_examples_is_a_note_and_not_an_error():
  data = make_dataset('thin', pair(classes=2), pair(), pair(), class_names=['ant', 'bee', 'cat'])
  assert data.notes == ('train has no example of cat: the model cannot learn what it never sees',)
  assert make_dataset('full', pair(), pair(), pair()).notes == ()
  many = make_dataset('thin', pair(classes=2), pair(), pair(), classes=1000).notes
  assert len(many) == 1
  assert 'and 990 more' in many[0]


def test_suspicious_data_are_noted():
  first = pair(shape=(3, 8, 8))
  assert any('channels-first' in note for note in make_dataset('nchw', first, first, first).notes)
  one = replaced(labels=np.zeros(6, int))
  assert any('one class only' in note for note in make_dataset('one', one, one, one).notes)


KINDS = {
  'bool': (np.array([[True], [False]]), np.bool_),
  'uint8': (np.array([[255], [0]], np.uint8), np.uint8),
  'int64': (np.array([[-3], [2**31 - 1]]), np.int32),
  'uint16': (np.array([[3], [2**16 - 1]], np.uint16), np.int32),
  'swapped ids': (np.array([[3], [-4]], '>i4'), np.int32),
  'float16': (np.array([[0.5], [1.0]], np.float16), np.float32),
  'float64': (np.array([[0.1], [1.0]]), np.float32),
  'list': ([[1.5], [2.5]], np.float32),
  'jax': (jnp.array([[1.5], [2.5]]), np.float32),
  'bfloat16': (jnp.array([[1.5], [2.5]], jnp.bfloat16), np.float32),
  'jax uint8': (jnp.array([[1], [2]], jnp.uint8), np.uint8),
  'swapped': (np.array([[1.5], [2.5]], '>f4'), np.float32),
}


@pytest.mark.parametrize('case', KINDS)
def test_quantities_become_uint8_or_float32_ids_int32_and_masks_stay(case):
  inputs, dtype = KINDS[case]
  one = (inputs, jnp.array([0, 1]))
  data = make_dataset('kinds', one, one, one)
  assert data.train.inputs.dtype == dtype
  assert data.train.inputs.dtype.isnative
  assert data.train.labels.dtype == np.int32
  assert type(data.train.inputs) is np.ndarray
  np.testing.assert_array_equal(data.train.inputs, np.asarray(inputs).astype(dtype))


def test_the_callers_arrays_stay_writeable_and_the_splits_do_not():
  inputs, labels = pair(dtype=np.float32)
  data = make_dataset('own', (inputs, labels), FLOAT, FLOAT)
  inputs[0] = 7
  with pytest.raises(ValueError, match='read-only'):
    data.train.inputs[0] = 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.floats(-1e4, 1e4), st.floats(1e-2, 1e4), st.integers(0, 1000))
def test_statistics_equal_scikit_learns(count, features, center, scale, seed):
  inputs = (np.random.default_rng(seed).normal(size=(count, features)) * scale + center).astype(np.float32)
  inputs[:, 0] = np.float32(center)  # a feature that does not vary
  mean, std = channel_stats(inputs)
  oracle = StandardScaler().fit(inputs.astype(np.float64))
  np.testing.assert_allclose(mean, oracle.mean_, rtol=1e-6, atol=1e-6 * abs(center) + 1e-30)
  tiny = np.sqrt(oracle.var_) <= np.finfo(np.float32).eps * np.abs(inputs).max(0)
  np.testing.assert_allclose(std, np.where(tiny, 1.0, np.sqrt(oracle.var_)), rtol=1e-5)
  assert std[0] == 1


@pytest.mark.parametrize(
  'shape, channels, axes',
  [((3,), 3, (0,)), ((5, 4), 1, (0, 1, 2)), ((5, 4, 3), 3, (0, 1, 2)), ((2, 3, 4, 2), 2, (0, 1, 2, 3))],
)
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_statistics_are_a_channels(shape, channels, axes, dtype):
  inputs = pair(50, shape, dtype)[0]
  mean, std = channel_stats(inputs)
  assert mean.shape == std.shape == (channels,)
  wide = inputs.astype(np.float64)
  np.testing.assert_allclose(mean, wide.mean(axes), rtol=1e-6)
  np.testing.assert_allclose(std, wide.std(axes), rtol=1e-6)


def test_statistics_over_several_pieces_and_of_train_only():
  big = pair(3000, (20, 20, 1))  # 1.2 M values: more than one piece
  one = make_dataset('big', big, pair(shape=(20, 20, 1)), pair(shape=(20, 20, 1)))
  other = make_dataset('big', big, pair(9, (20, 20, 1), seed=3), pair(7, (20, 20, 1), seed=4))
  np.testing.assert_allclose(one.mean, big[0].mean(), rtol=1e-6)
  assert one.mean == other.mean
  assert one.std == other.std
  assert one.fingerprint != other.fingerprint


def test_a_large_mean_does_not_cancel_the_spread():
  inputs = (np.random.default_rng(0).integers(0, 2, (1000, 1)) + 1e6).astype(np.float32)
  assert channel_stats(inputs)[1] == pytest.approx(inputs.astype(np.float64).std(), rel=1e-6)


def test_fingerprint_is_sha256_over_names_dtypes_shapes_and_bytes():
  data = make_dataset('print', pair(seed=1), pair(seed=2), pair(seed=3))
  digest = hashlib.sha256()
  for where in ('train', 'validation', 'test'):
    for what in ('inputs', 'labels'):
      array = getattr(getattr(data, where), what)
      digest.update(f'{where}/{what} {array.dtype} {list(array.shape)}\n'.encode() + array.tobytes())
  assert data.fingerprint == digest.hexdigest()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_changed_bit_changes_the_fingerprint(draw):
  splits = [pair(seed=seed, dtype=draw.draw(st.sampled_from([np.uint8]))) for seed in range(3)]
  before = make_dataset('bits', *splits, classes=8).fingerprint
  inputs, labels = splits[draw.draw(st.integers(0, 2))]
  if draw.draw(st.booleans()):
    inputs.reshape(-1)[draw.draw(st.integers(0, inputs.size - 1))] ^= 1 << draw.draw(st.integers(0, 7))
  else:
    labels[draw.draw(st.integers(0, 5))] ^= 1 << draw.draw(st.integers(0, 1))
  assert make_dataset('bits', *splits, classes=8).fingerprint != before


def test_reshaping_or_recasting_changes_the_fingerprint():
  flat = [(inputs.reshape(6, 16), labels) for inputs, labels in [pair()] * 3]
  wide = [(inputs.astype(np.float32), labels) for inputs, labels in [pair()] * 3]
  prints = {make_dataset('shape', *splits).fingerprint for splits in ([pair()] * 3, flat, wide)}
  assert len(prints) == 3
