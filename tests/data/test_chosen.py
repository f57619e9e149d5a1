"""Carving costs an index: what is carved is what a copy would hold, and is not copied."""

import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlite import data as datasets
from jaxlite import tasks
from jaxlite.data import chosen, inputs
from jaxlite.data.chosen import Chosen

INDICES = (
  *(
    0,
    -1,
    slice(2, 9, 3),
    slice(None),
    slice(5, 5),
    [1, 4, 4],
    [],
    [True] * 9 + [False] * 8,
    np.array([[1, 2], [0, 3]]),
  ),
  *((), ..., None, (slice(1, 4), 2), (slice(None), ..., 1), (3, 1), (slice(0, 6), None), ([1, 2], [0, 1]), (..., 0)),
  *((slice(None), slice(1, 3)), (slice(None), [2, 0]), (-2, ..., slice(0, 2)), np.int64(4), (slice(None), np.int64(1))),
)


@pytest.mark.parametrize('index', INDICES, ids=repr)
def test_rows_that_were_chosen_are_read_as_an_array_is(index):
  base = np.random.default_rng(0).normal(size=(30, 4, 3)).astype(np.float32)
  rows = np.random.default_rng(1).permutation(30)[:17]
  picked, plain = Chosen(base, rows), base[rows]
  found, wanted = picked[index], plain[index]
  assert np.shape(found) == wanted.shape
  assert np.array_equal(found, wanted)


def test_rows_that_were_chosen_do_what_an_array_does():
  base = np.arange(60, dtype=np.float32).reshape(20, 3)
  rows = np.array([3, 19, 0, 0, 7])
  picked, plain = Chosen(base, rows), base[rows]
  same = {
    'sizes': lambda x: [len(x), *x.shape, x.ndim, x.size, x.nbytes, x.dtype.itemsize],
    'sum': lambda x: x.sum(),
    'mean': lambda x: np.mean(x, axis=0),
    'compared': lambda x: x == base[:5],
    'arithmetic': lambda x: 1 - x * x + x[::-1],
    'reshaped': lambda x: x.reshape(-1),
    'as type': lambda x: x.astype(np.int8),
    'list': lambda x: x.tolist(),
    'iterated': lambda x: np.stack(list(x)),
    'taken': lambda x: x.take([[1, 0], [2, 2]], axis=0),
    'taken flat': lambda x: x.take([1, 0]),
    'taken along': lambda x: np.take(x, [2], axis=1),
    'joined': lambda x: np.concatenate([x, x]),
    'JAX': lambda x: jax.numpy.asarray(x) + 1,
    'inside JAX': lambda x: jax.jit(lambda y: y * 2)(np.asarray(x)),
    'as float64': lambda x: np.asarray(x, np.float64),
    'chosen again': lambda x: np.asarray(chosen.choose(x, np.array([1, 1, 4]))),
    'joined rows': lambda x: np.asarray(chosen.joined([x, x])),
  }
  for name, act in same.items():
    assert np.array_equal(act(picked), act(plain)), name
  with pytest.raises(IndexError):
    picked[5]
  with pytest.raises(TypeError, match='read-only'):
    picked += 1
  with pytest.raises(TypeError):
    picked[0] = 1
  assert isinstance(chosen.joined([picked, picked]), Chosen)


def _given(kind, count, folder):
  random = np.random.default_rng(count)
  images = random.integers(0, 256, (count, 6, 6, 1)).astype(np.uint8)
  if kind == 'array':
    return images
  if kind == 'tree':
    table = random.normal(size=(count, 5))  # float64: becomes float32
    return {'image': images, 'table': table, 'ids': (random.integers(0, 9, (count, 2)), random.random(count) < 0.5)}
  np.save(folder / 'images.npy', images)
  return np.load(folder / 'images.npy', mmap_mode='r')


def _told(data):
  batches = [datasets.batch_at(data.train, 8, 3, step) for step in (0, 5, 40)]
  batches.append(datasets.batches_at(data.train, 8, 3, 2, 4))
  held = [split for split in (data.validation, data.test) if len(split.labels)]
  batches += [one for split in held for one in datasets.eval_batches(split, 16)]
  return data.fingerprint, jax.tree.leaves((data.mean, data.std, batches)), data.notes


@settings(max_examples=8, deadline=None)
@given(st.integers(40, 200), st.sampled_from(['array', 'tree', 'map']), st.booleans(), st.integers(0, 5))
def test_an_index_and_a_copy_make_the_same_data(tmp_path_factory, count, kind, weighted, seed):
  given_inputs = _given(kind, count, tmp_path_factory.mktemp('map'))
  labels = np.arange(count) % 4
  train = (given_inputs, labels, np.linspace(0.5, 2, count)) if weighted else (given_inputs, labels)
  made = []
  for least in (1 << 40, 1):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(chosen, 'LEAST', least)
      data = datasets.from_arrays(train, validation=0.2, seed=seed)
      made.append([data, *datasets.folds(train, k=3, seed=seed), *datasets.folds(data, k=2, validation=0)])
  for copied, indexed in zip(*made, strict=True):
    one, other = _told(copied), _told(indexed)
    assert one[0] == other[0]
    assert one[2] == other[2]
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(one[1], other[1], strict=True))
  assert all(isinstance(leaf, Chosen) for leaf in jax.tree.leaves(made[1][0].train.inputs))


def _peak(act):
  tracemalloc.start()
  try:
    left = act()
    return tracemalloc.get_traced_memory()[1], left
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize('kind', ['array', 'tree', 'map'])
def test_carving_copies_next_to_nothing(kind, tmp_path):
  inputs = np.ones((80_000, 1_000), np.uint8)  # 80 MB
  if kind == 'map':
    np.save(tmp_path / 'x.npy', inputs)
    inputs = np.load(tmp_path / 'x.npy', mmap_mode='r')
  labels = np.arange(len(inputs)) % 10
  given_inputs = {'a': inputs, 'b': inputs[:, :3]} if kind == 'tree' else inputs
  peak, data = _peak(lambda: datasets.from_arrays((given_inputs, labels)))
  assert len(data.train.labels) == 64_000
  assert peak < 60e6  # the two tenths, and work on pieces; copies were 144 MB at the peak
  assert jax.tree.leaves(data.train.inputs)[0][5].tolist() == [1] * 1_000


def test_folds_copy_next_to_nothing():
  inputs, labels = np.ones((20_000, 1_000), np.uint8), np.arange(20_000) % 2
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(chosen, 'LEAST', 1 << 20)
    peak, parts = _peak(lambda: datasets.folds((inputs, labels), k=5))
  assert len(parts) == 5
  assert peak < 40e6  # copies were 100 MB, and are so of what is small


def test_no_memory_is_one_line():
  count = 1 << 42
  inputs, labels = np.broadcast_to(np.float64(1), (count, 8)), np.broadcast_to(np.int32(1), count)
  for act in (
    lambda: datasets.from_arrays((inputs, labels)),
    lambda: datasets.make_dataset('mine', (inputs, labels), None, (inputs, labels)),
    lambda: datasets.folds((inputs, labels)),
    lambda: datasets.from_arrays((inputs, np.broadcast_to(np.float32(1), count)), task=tasks.regression),
  ):
    with pytest.raises(MemoryError, match=r"there is no memory for the data '(arrays|mine)'.*memory map") as error:
      act()
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('dtype', ['float16', 'uint16', '>f4', 'float64'])
def test_a_memory_map_of_any_dtype_is_read_where_it_is_asked_for(dtype, tmp_path, monkeypatch):
  """The data set is that of the array in memory, bit for bit; no copy of it stands."""
  monkeypatch.setattr(chosen, 'LEAST', 1 << 12)
  monkeypatch.setattr(inputs, 'LEAST', 1 << 12)
  values = (np.random.default_rng(0).normal(size=(4_000, 16)) * 9 + 40).astype(dtype)
  np.save(tmp_path / 'x.npy', values)
  labels = np.arange(4_000) % 3
  plain = datasets.from_arrays((np.array(values), labels))
  tracemalloc.start()
  mapped = datasets.from_arrays((np.load(tmp_path / 'x.npy', mmap_mode='r'), labels))
  batch = datasets.batch_at(mapped.train, 32, 3, 7)
  held = tracemalloc.get_traced_memory()[0]
  tracemalloc.stop()
  assert held < 4_000 * 16 * 4
  assert isinstance(mapped.train.inputs, Chosen)
  assert mapped.fingerprint == plain.fingerprint
  jax.tree.map(np.testing.assert_array_equal, batch, datasets.batch_at(plain.train, 32, 3, 7))
  jax.tree.map(np.testing.assert_array_equal, (mapped.mean, mapped.std), (plain.mean, plain.std))
  values[17, 3] = np.inf if dtype != 'uint16' else 0
  np.save(tmp_path / 'y.npy', values)
  if dtype != 'uint16':
    with pytest.raises(ValueError, match=r'inputs are finite; train has inf at \[17, 3\]'):
      datasets.from_arrays((np.load(tmp_path / 'y.npy', mmap_mode='r'), labels))
