"""Inputs of any tree, with weights: each leaf is treated as an array alone is; ids and masks are left as they are."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

import jaxlite as jl
from jaxlite.contract import CONST, Model
from jaxlite.data import batch_at, batches_at, eval_batches, from_arrays, make_dataset, steps_per_epoch
from jaxlite.data.inputs import leaves
from jaxlite.optim._normalize import normalize
from jaxlite.tasks.losses import cross_entropy
from jaxlite.tasks.metrics import means
from jaxlite.tasks.task import Task

Pair = collections.namedtuple('Pair', 'left right')
RNG = np.random.default_rng(0)
POSITIONS = Task(
  'positions',
  loss=lambda facts: cross_entropy,
  metrics=lambda facts: means(),
  score='loss',
  weight=lambda labels: (labels >= 0).sum(1).astype(np.float32),
)
NUMBERS = Task('numbers', loss=lambda facts: cross_entropy, metrics=lambda facts: means(), score='loss')


def numbered(shape, dtype):
  """A leaf whose examples are their number; the shape is that of one example."""
  return lambda count: np.broadcast_to(
    np.arange(count).reshape(-1, *[1] * len(shape)) % (2 if dtype is bool else 256), (count, *shape)
  ).astype(dtype)


leaf = st.builds(
  numbered,
  st.sampled_from([(2,), (3, 1), (2, 2, 1)]),
  st.sampled_from([np.uint8, np.float32, np.float64, np.int64, np.int16, bool]),
)
nested = st.recursive(
  leaf,
  lambda inner: st.one_of(
    st.dictionaries(st.sampled_from('abc'), inner, min_size=1, max_size=3),
    st.lists(inner, min_size=2, max_size=3),
    st.tuples(inner, inner),
    st.builds(Pair, inner, inner),
  ),
  max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(nested, st.integers(4, 30), st.integers(1, 4), st.integers(0, 99), st.booleans())
def test_a_batch_of_a_tree_holds_the_same_rows_of_every_leaf(tree, count, batch_size, seed, weighs):
  inputs = jax.tree.map(lambda make: make(count), tree)
  weight = np.arange(1, count + 1, dtype=np.float32) / 4 if weighs else None
  labels = np.arange(count)
  pair = (inputs, labels, weight) if weighs else (inputs, labels)
  data = make_dataset('tree', pair, None, pair)
  assert jax.tree.structure(data.train.inputs) == jax.tree.structure(inputs)
  steps = steps_per_epoch(data.train, batch_size)
  several = batches_at(data.train, batch_size, seed, steps - 1, 3)
  seen = []
  for step in range(steps + 2):
    batch = batch_at(data.train, batch_size, seed, step)
    for got, whole in zip(jax.tree.leaves(batch['inputs']), jax.tree.leaves(inputs), strict=True):
      assert got.dtype == (whole.dtype if whole.dtype in (np.uint8, bool) else np.dtype(whole.dtype.kind + '4'))
      np.testing.assert_array_equal(got, whole[batch['labels']])
    if step >= steps - 1:
      jax.tree.map(np.testing.assert_array_equal, batch, jax.tree.map(lambda many: many[step - steps + 1], several))  # noqa: B023
    if step < steps:
      rows = np.arange(batch_size) + step * batch_size < count  # the last batch is filled up at weight 0
      np.testing.assert_array_equal(batch['weight'], rows * (1 if weight is None else weight[batch['labels']]))
      seen += batch['labels'][rows].tolist()
  assert sorted(seen) == list(range(count))
  total = sum(batch['weight'].sum() for batch in eval_batches(data.test, batch_size))
  assert total == (weight.sum() if weighs else count)


def test_the_weight_of_an_example_is_its_own_times_its_labeled_positions():
  labels = np.array([[1, 2, -1], [0, -1, -1], [5, 5, 5], [-1, -1, -1]])
  inputs = np.zeros((4, 3), int)
  own = np.array([1.0, 2.0, 0.5, 9.0])
  data = make_dataset('text', (inputs, labels, own), None, (inputs, labels), task=POSITIONS)
  assert data.train.weight.tolist() == [2.0, 2.0, 1.5, 0.0]
  assert data.test.weight.tolist() == [2.0, 1.0, 3.0, 0.0]
  (batch,) = eval_batches(data.test, 9)
  assert batch['weight'].tolist() == [2.0, 1.0, 3.0, 0.0]
  with pytest.raises(ValueError, match='the weight of a Split counts its labeled positions already; train is one'):
    from_arrays(data.train, task=POSITIONS)
  with pytest.raises(ValueError, match='all weights or labeled positions of test are 0'):
    make_dataset('text', (inputs, labels), None, (inputs[3:], labels[3:]), task=POSITIONS)
  carved = from_arrays((np.tile(inputs, (10, 1)), np.tile(labels, (10, 1)), np.tile(own, 10)), task=POSITIONS)
  wanted = np.tile(own, 10).sum() and sum(own * [2, 1, 3, 0]) * 10
  assert sum(split.weight.sum() for split in (carved.train, carved.validation, carved.test)) == wanted


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_changed_bit_of_any_leaf_or_weight_changes_the_fingerprint(draw):
  def parts():
    rng = np.random.default_rng(0)
    inputs = {'a': rng.normal(size=(5, 2)).astype(np.float32), 'b': (rng.integers(0, 9, (5, 1)).astype(np.int32),)}
    return [(inputs, np.arange(5, dtype=np.int32) % 2, np.ones(5, np.float32)) for _ in range(2)]

  before, after = parts(), jax.tree.map(np.copy, parts())
  array = draw.draw(st.sampled_from(jax.tree.leaves(after[draw.draw(st.integers(0, 1))])))
  raw = array.reshape(-1).view(np.uint8)
  raw[4 * draw.draw(st.integers(0, array.size - 1))] ^= 1  # the lowest bit of a little-endian number
  one, other = (make_dataset('bits', train, None, test, classes=2) for train, test in (before, after))
  assert one.fingerprint != other.fingerprint


def test_names_are_part_of_the_fingerprint_and_a_weight_of_ones_is_too():
  x, y = np.zeros((4, 1), np.float32), np.array([0, 1, 0, 1])
  pairs = [(x, y), (x, y, np.ones(4)), ({'a': x}, y), ({'b': x}, y), ((x, x), y), ([x, x], y), ({'a': {'b': x}}, y)]
  prints = [make_dataset('names', pair, None, pair).fingerprint for pair in pairs]
  assert len(set(prints)) == len(pairs) - 1
  assert prints[4] == prints[5]  # a list and a tuple of the same


def mixed(count=50):
  rng = np.random.default_rng(1)
  return {
    'age': rng.normal(40, 9, count),
    'image': rng.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8),
    'table': rng.normal(-3, 2, (count, 3)).astype(np.float32),
    'tokens': rng.integers(0, 99, (count, 5)),
    'mask': rng.random((count, 5)) < 0.5,
  }


def test_quantities_are_standardized_leaf_by_leaf_as_scikit_learn_does_and_ids_and_masks_never():
  inputs = mixed()
  data = make_dataset('mixed', (inputs, np.arange(50) % 2), None, (inputs, np.arange(50) % 2))
  for name, channels in (('age', 1), ('image', 3), ('table', 3)):
    oracle = StandardScaler().fit(data.train.inputs[name].reshape(-1, channels).astype(np.float64))
    np.testing.assert_allclose(data.mean[name], oracle.mean_, rtol=1e-6)
    np.testing.assert_allclose(data.std[name], oracle.scale_, rtol=1e-6)
  assert (
    [data.mean[name] for name in ('tokens', 'mask')] == [data.std[name] for name in ('tokens', 'mask')] == [None] * 2
  )
  assert data.train.inputs['age'].dtype == np.float32
  (note,) = data.notes
  assert note.startswith('inputs (tokens) are integers, taken for ids')
  inner = Model(lambda key, x: ({}, {}), lambda p, s, x, **_: (x, s))
  model = normalize(data.mean, data.std).model(inner)
  params, state = model.init(None, data.train.inputs)
  out, _ = jax.jit(lambda s, x: model.apply(params, s, x, train=False, key=None))(state, data.train.inputs)
  for name in ('age', 'image', 'table'):
    wanted = (data.train.inputs[name].astype(np.float32) - data.mean[name]) / data.std[name]
    np.testing.assert_allclose(out[name], wanted, rtol=1e-6, atol=1e-6)
  for name in ('tokens', 'mask'):
    assert out[name].dtype == data.train.inputs[name].dtype
    np.testing.assert_array_equal(out[name], data.train.inputs[name])
  exported = model.export(params, state)[1]
  assert jax.tree.structure(exported[CONST]['normalize']['mean']) == jax.tree.structure(data.mean)
  with pytest.raises(ValueError, match='statistics are an array or a tree like the inputs'):
    model.init(None, {'age': jnp.zeros((1,))})


def test_one_mean_holds_for_every_leaf_but_masks_and_none_for_no_leaf():
  inner = Model(lambda key, x: ({}, {}), lambda p, s, x, **_: (x, s))
  model = normalize([1.0], [2.0]).model(inner)
  tree = (jnp.array([[3]], jnp.uint8), jnp.array([[True]]))
  out, _ = model.apply(*model.init(None, tree), tree, train=False, key=None)
  assert (out[0].tolist(), out[1].tolist()) == ([[1.0]], [[True]])
  assert normalize(None, None).model(inner) is inner
  assert normalize({'a': None}, {'a': None}).model(inner) is inner
  with pytest.raises(ValueError, match='None in the same places'):
    normalize({'a': np.ones(1), 'b': None}, {'a': np.ones(1), 'b': np.ones(1)})


def test_standardizing_is_said_where_it_is_not_as_usual():
  x, y = RNG.normal(size=(20, 3)), np.arange(20) % 2
  usual = from_arrays((x, y))
  assert usual.notes == ()
  off = from_arrays((x, y), standardize=False)
  assert (off.mean, off.std) == (None, None)
  assert off.notes == ('inputs are not standardized, as standardize=False says',)
  given_ = from_arrays((x, y), standardize=(0.5, [1, 2, 4]))
  assert (given_.mean.tolist(), given_.std.tolist()) == (0.5, [1, 2, 4])
  assert given_.notes == ('inputs are standardized by the mean and std that were given',)
  assert usual.fingerprint == off.fingerprint == given_.fingerprint
  ids = from_arrays((x.astype(int), y))
  assert (ids.mean, ids.train.inputs.dtype) == (None, np.int32)
  assert "ids: they stay int32 and are not standardized; for numbers .astype('float32')" in ids.notes[0]
  tree = {'x': x, 'ids': x.astype(int)}
  some = from_arrays((tree, y), standardize=({'x': np.ones(3), 'ids': None}, {'x': np.full(3, 2.0), 'ids': None}))
  assert (some.mean['ids'], some.std['x'].tolist()) == (None, [2, 2, 2])


X, Y = RNG.normal(size=(20, 3)), np.arange(20) % 2
BAD = {
  'no leaf': (({}, Y), {}, r'^inputs are arrays; train has none of them, \{\}'),
  'nothing in it': (({'a': {}, 'b': None}, Y), {}, '^inputs are arrays; train has none of them'),
  'a scalar leaf': (({'a': X, 'b': 3.0}, Y), {}, r'^inputs are \[N, features\] .* train \(b\) has \[\]'),
  'a short leaf': (({'a': X, 'b': X[:9]}, Y), {}, r'^every example has one label; train \(b\) has 9 inputs and 20'),
  'nan in a leaf': (({'a': X, 'b': X * np.nan}, Y), {}, r'^inputs are finite; train \(b\) has nan at \[0, 0\]'),
  'words in a leaf': (({'a': [X, Y.astype(str)]}, Y), {}, r'^inputs are numbers; train \(a/1\) has dtype <U'),
  'objects': (({'a': np.array([object()] * 20)}, Y), {}, r'^inputs are numbers; train \(a\) has dtype object'),
  'ragged': (({'a': [[1]] * 19 + [[1, 2]]}, Y), {}, r'^examples have one shape; .* train \(a\) differ: .*jl.data.pad'),
  'keys': (({1: X}, Y), {}, r'^inputs have names; train has the key 1: make it a string'),
  'huge': (({'a': np.full((20, 1), 2**31)}, Y), {}, r'^integers are ids .* train \(a\) have 2147483648'),
  'weights': ((X, Y, np.ones(19)), {}, r'^weights are float\[20\], one per example; train has float64\[19\]'),
  'negative': ((X, Y, np.where(Y, -1, 1)), {}, '^weights are 0 to 65535; train has -1.0 at 1'),
  'nan weight': ((X, Y, np.where(Y, np.nan, 1)), {}, '^weights are 0 to 65535; train has nan at 1'),
  'heavy': ((X, Y, np.full(20, 1e6)), {}, '^weights are 0 to 65535; train has 1000000.0 at 0: scale'),
  'all zero': ((X, Y, np.zeros(20)), {}, '^some example counts; all weights of train are 0'),
  'words as weights': ((X, Y, ['a'] * 20), {}, r'^weights are float\[20\]'),
  'nan labels': ((X, np.full(20, np.nan)), {'task': NUMBERS}, '^labels are finite; train has nan at 0'),
  'one label': ((X, 3), {'task': NUMBERS}, r'^labels are \[N, ...\]; train has one value'),
  'no task': ((X, Y), {'task': 'regression'}, "^task is a Task or a function that makes one.*got 'regression'"),
  'a function': ((X, Y), {'task': lambda: 3}, '^task is a Task .* a function that gives int'),
  'names of classes': ((X, Y), {'task': jl.tasks.regression, 'class_names': ['a']}, '^regression has no class_names'),
  'names twice': (
    (X, Y),
    {'task': jl.tasks.classification(class_names=['a', 'b']), 'class_names': ['b', 'a']},
    '^classes have one name each; class_names says b, a, the task a, b: give them once',
  ),
  'feature names': ((X, Y), {'feature_names': ['a']}, '^every feature has one name; got 1 names for 3 features'),
  'nothing at all': ((None, Y), {}, '^inputs are numbers; train is NoneType: give an array'),
  'a task to call': ((X, Y), {'task': lambda config: NUMBERS}, '^task is a Task or a function that makes one'),
  'unknown': ((X, Y), {'standardize': 'yes'}, r'^standardize is True, False or a pair \(mean, std\); got str'),
  'shape': ((X, Y), {'standardize': (np.ones(2), np.ones(2))}, r'^mean and std of the inputs .* one example, \[3\]'),
  'zero std': ((X, Y), {'standardize': (0, 0)}, '^mean and std of the inputs are finite and std positive'),
  'half': ((X, Y), {'standardize': (0, None)}, '^mean and std of the inputs go together'),
  'other tree': (({'a': X}, Y), {'standardize': ({'b': 0}, {'b': 1})}, r'^mean and std are trees as the inputs \(a\)'),
  'ids by mean': (
    (X.astype(int), Y),
    {'standardize': (0, 1)},
    '^int32 is not standardized; mean and std of the inputs',
  ),
}


@pytest.mark.parametrize('case', BAD)
def test_what_is_wrong_is_one_line_that_names_leaf_and_fix(case):
  pair, options, message = BAD[case]
  with pytest.raises(ValueError, match=message) as caught:
    from_arrays(pair, **options)
  assert '\n' not in str(caught.value)


def test_splits_have_the_same_tree():
  one, other = ({'a': X}, Y), ({'a': X, 'b': X}, Y)
  with pytest.raises(ValueError, match=r"^every split has the same inputs; train has \['a'\], test \['a', 'b'\]"):
    make_dataset('bad', one, None, other)
  with pytest.raises(ValueError, match=r'^every split has examples of one shape; train has \[3\], test \(a\) \[2\]'):
    make_dataset('bad', one, None, ({'a': X[:, :2]}, Y))
  with pytest.raises(
    ValueError, match=r'^every split has one kind of labels; train has int32\[20\], test int32\[20, 2'
  ):
    make_dataset('bad', (X, Y), None, (X, np.ones((20, 2), int)), task=NUMBERS)


def test_a_list_of_examples_is_an_array_and_a_list_of_arrays_of_all_examples_a_tree():
  rows = from_arrays((list(X), Y)).train.inputs
  assert isinstance(rows, np.ndarray)
  two = from_arrays(([X, X[:, :1]], Y)).train.inputs
  assert [path for path, _ in leaves(two)] == ['0', '1']
  assert from_arrays((tuple(map(tuple, X)), Y)).fingerprint == from_arrays((X, Y)).fingerprint


def test_a_labels_dtype_is_the_tasks():
  data = from_arrays((X, X[:, 0]), task=NUMBERS)
  assert data.train.labels.dtype == np.float32
  assert data.class_names == ()
  with pytest.raises(AttributeError, match='numbers has no classes'):
    _ = data.classes
  assert from_arrays((X, X), task=lambda: NUMBERS).test.labels.shape == (2, 3)
  assert from_arrays((X, Y), task=NUMBERS, facts={'unit': 'm'}).facts == {'unit': 'm'}
