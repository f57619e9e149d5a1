"""Laws of what makes few features of many: scikit-learn's numbers, train alone looked at, memory bounded, bad input."""

import tracemalloc

import numpy as np
import pytest
from sklearn.decomposition import PCA, IncrementalPCA
from sklearn.inspection import permutation_importance
from sklearn.metrics import mutual_info_score
from sklearn.random_projection import johnson_lindenstrauss_min_dim

from jaxlite import data as datasets
from jaxlite.data import selection
from jaxlite.data.reduction import seen


def rows_of(seed, rows=60, features=12, rank=None, offset=0.0):
  """Float32 rows whose spread along random directions falls by a quarter from one to the next."""
  rng = np.random.default_rng(seed)
  rank = min(rows, features) if rank is None else rank
  turned = np.linalg.qr(rng.normal(size=(features, features)))[0][:rank]
  return ((rng.normal(size=(rows, rank)) * 0.75 ** np.arange(rank)) @ turned + offset).astype(np.float32)


def aligned(found, wanted):
  """A projection's axes with the signs of others."""
  return found.weight * np.sign((found.weight * wanted).sum(0))


@pytest.mark.parametrize(
  ('rows', 'features', 'components', 'whiten'),
  [
    (60, 12, 5, False),
    (60, 12, 12, True),
    (8, 30, 4, False),
    (8, 30, 7, True),
    (500, 3, 0.9, False),
    (60, 12, 0.5, True),
  ],
)
def test_exact_components_are_those_of_scikit_learn(rows, features, components, whiten):
  x = rows_of(rows, rows, features)
  theirs = PCA(components, svd_solver='full', whiten=whiten).fit(x.astype(np.float64))
  found = datasets.pca(x, components, whiten=whiten)
  scale = np.sqrt(theirs.explained_variance_) if whiten else 1.0
  axes = theirs.components_.T / scale
  np.testing.assert_allclose(aligned(found, axes), axes, rtol=1e-6, atol=1e-6 * np.abs(axes).max())
  np.testing.assert_allclose(found.share, theirs.explained_variance_ratio_, rtol=1e-12)
  np.testing.assert_allclose(np.abs(found(x)), np.abs(theirs.transform(x.astype(np.float64))), atol=1e-5)
  assert (np.take_along_axis(found.weight, np.abs(found.weight).argmax(0)[None], 0) > 0).all()


@pytest.mark.parametrize(('rows', 'batch'), [(200, 50), (203, 50), (230, 64), (40, 100)])
def test_one_pass_gives_what_scikit_learn_gives_for_the_same_batches(rows, batch):
  x = rows_of(rows, rows)
  theirs = IncrementalPCA(4, batch_size=batch).fit(x.astype(np.float64))
  found = datasets.pca(x, 4, method='incremental', batch_rows=batch)
  np.testing.assert_allclose(aligned(found, theirs.components_.T), theirs.components_.T, atol=1e-6)
  np.testing.assert_allclose(found.share, theirs.explained_variance_ratio_, rtol=1e-9)


def test_a_random_sketch_finds_the_exact_components():
  x = rows_of(0, 300, 80, offset=100)
  exact, found = datasets.pca(x, 6), datasets.pca(x, 6, method='randomized')
  np.testing.assert_allclose(found.share, exact.share, rtol=1e-6)
  np.testing.assert_allclose(found.weight, exact.weight, atol=1e-4)


def test_sums_are_in_float64():
  x = rows_of(1, 400, 5, offset=1e5)  # in float32, squares of 1e5 leave nothing of a spread of 1
  theirs = PCA(2, svd_solver='full').fit(x.astype(np.float64))
  for method in ('exact', 'randomized'):
    found = datasets.pca(x, 2, method=method)
    np.testing.assert_allclose(found.share, theirs.explained_variance_ratio_, rtol=1e-6)


def test_what_is_fitted_does_not_depend_on_the_pieces_and_needs_little_memory():
  x = rows_of(2, 4_000, 64)
  pieces = lambda: (x[start : start + 100] for start in range(0, len(x), 100))  # noqa: E731
  exact = datasets.pca(x, 5)
  np.testing.assert_allclose(datasets.pca(pieces, 5).weight, exact.weight, atol=1e-6)

  def many():  # 10 MB in float64, never together
    return (np.roll(x[:500], turn, axis=1) for turn in range(40))

  for method in ('exact', 'randomized', 'incremental'):
    tracemalloc.start()
    found = datasets.pca(many, 5, method=method)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.components == 5
    assert peak < 3e6


def test_back_is_the_nearest_that_the_components_can_tell():
  x = rows_of(3)
  for components, error in ((12, 1e-5), (3, None)):
    found = datasets.pca(x, components)
    lost = np.square(found.back(found(x)) - x).sum() / np.square(x - x.mean(0)).sum()
    assert abs(lost - (1 - found.share.sum())) < (error or 1e-5)


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: datasets.pca(rows_of(0), 13), 'at most 12 components; got 13'),
    (lambda: datasets.pca(rows_of(0, 5), 6), 'at most 5 components; got 6'),
    (lambda: datasets.pca(rows_of(0, 5), 5), 'along 4 directions, one less than there are rows'),
    (lambda: datasets.pca(np.hstack([rows_of(0), np.ones((60, 1), np.float32)]), 13), '1 features are constant'),
    (lambda: datasets.pca(np.hstack([rows_of(0), rows_of(0)]), 13), 'along 12 directions'),
    (lambda: datasets.pca(np.ones((9, 3)), 1), 'nothing varies'),
    (lambda: datasets.pca(np.full((9, 3), np.nan), 1), r'inputs are finite; got nan at \[0, 0\]'),
    (lambda: datasets.pca(np.zeros((9, 3), int), 1), 'integers are ids'),
    (lambda: datasets.pca(np.zeros((9, 3), bool), 1), 'bools masks'),
    (lambda: datasets.pca([np.ones((2, 3)), np.ones((3, 2))], 1), 'examples have one shape'),
    (lambda: datasets.pca(lambda: [np.ones((2, 3)), np.ones((2, 4))], 1), r'the first has \[3\], row 2 \[4\]'),
    (lambda: datasets.pca(lambda: [], 1), 'gives no array'),
    (lambda: datasets.pca((lambda once: lambda: once)(iter([rows_of(0), rows_of(1)])), 1), 'starts anew at each call'),
    (lambda: datasets.pca(np.zeros(9), 1), r'inputs are \[N, features\]'),
    (lambda: datasets.pca(np.array([['a', 'b']] * 3), 1), 'of numbers; got <U1'),
    (lambda: datasets.pca(rows_of(0), 1.0), 'one component is 1'),
    (lambda: datasets.pca(rows_of(0), 2.5), 'a whole number'),
    (lambda: datasets.pca(rows_of(0), True), 'a whole number'),
    (lambda: datasets.pca(rows_of(0), 0.9, method='randomized'), "needs the whole spectrum, method='exact'"),
    (lambda: datasets.pca(rows_of(0), 3, method='fast'), 'one of exact, randomized'),
    (lambda: datasets.pca(rows_of(0), 3, method='incremental', batch_rows=2), 'at least as many rows as components'),
    (lambda: datasets.pca(np.zeros((3, 5000), np.float32), 2), "got 5000: method='randomized'"),
    (
      lambda: datasets.pca(np.float32(rows_of(0)[:, :1] / [1, 3]), 2, whiten=True),
      'rounding beside the first: ask for at most 1',
    ),
    (lambda: datasets.random_projection(rows_of(0), 13), 'at most 12 components'),
    (lambda: datasets.random_projection(rows_of(0)), r'take 3509 components, and there are 12 features'),
    (lambda: datasets.random_projection(rows_of(0), 3, kind='dense'), 'one of gaussian, sparse'),
    (lambda: datasets.random_projection(rows_of(0) * np.nan, 3), 'finite'),
    (lambda: datasets.johnson_lindenstrauss(10, 1.0), r'in \(0, 1\)'),
    (lambda: datasets.select([1.0, 0.0, 0.5], 3, (3,)), '2 of 3 features have an importance above 0'),
    (lambda: datasets.select([1.0, np.nan, 0.5], 1, (3,)), 'one finite number for each of 3 features'),
    (lambda: datasets.mutual_information(rows_of(0), np.zeros((60, 2, 2))), r'labels are \[N\] or \[N, k\]'),
    (lambda: datasets.mutual_information(rows_of(0), np.zeros(59)), '60 rows and 59 labels'),
    (lambda: datasets.pca(rows_of(0), 2)(np.zeros((3, 5))), r'takes numbers \[N, 12\]; got float64\[3, 5\]'),
  ],
)
def test_what_cannot_be_is_told_in_one_line(call, words):
  with pytest.raises(ValueError, match=words) as error:
    call()
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind', ['gaussian', 'sparse'])
def test_random_projections_keep_distances_within_the_bound_that_is_told(kind):
  x = np.random.default_rng(0).normal(size=(30, 2_000)).astype(np.float32)
  found = datasets.random_projection(x, kind=kind, error=0.4, seed=3)
  assert found.components == johnson_lindenstrauss_min_dim(30, eps=0.4)
  assert '30 rows' in found.notes[0]
  assert 'within 0.40' in found.notes[0]
  first, second = np.triu_indices(30, 1)
  ratio = np.square(found(x)[first] - found(x)[second]).sum(1) / np.square(x[first] - x[second]).sum(1)
  assert (np.abs(ratio - 1) < 0.4).all()
  assert abs(found.weight.var() * found.components - 1) < 0.1
  if kind == 'sparse':
    assert abs((found.weight != 0).mean() * np.sqrt(2_000) - 1) < 0.05


def test_the_bound_is_that_of_scikit_learn_and_turns_round():
  for rows in (2, 50, 10_000):
    for error in (0.05, 0.3, 0.9):
      components = datasets.johnson_lindenstrauss(rows, error)
      assert components == johnson_lindenstrauss_min_dim(rows, eps=error)
      found = datasets.distance_error(rows, components)
      assert datasets.johnson_lindenstrauss(rows, found) <= components
      assert found <= error
  assert datasets.distance_error(1_000, 3) is None


def test_mutual_information_is_scikit_learns_of_the_same_parts_less_chance():
  rng = np.random.default_rng(0)
  x, labels = rng.normal(size=(500, 4)).astype(np.float32), rng.integers(0, 3, 500)
  x[:, 1] += labels
  x[:, 2] = rng.integers(0, 5, 500)
  found = datasets.mutual_information(x, labels)
  for feature, value in enumerate(found):
    edges = np.quantile(x[:, feature].astype(np.float64), np.arange(1, 16) / 16)
    parts = np.searchsorted(edges, x[:, feature], side='right') if feature != 2 else x[:, 2]
    chance = (len(np.unique(parts)) - 1) * 2 / 1000
    assert abs(value - max(0.0, mutual_info_score(parts, labels) - chance)) < 1e-12
  assert found.argmax() == 1
  assert found[[0, 2, 3]].max() < 0.02
  numbers = datasets.mutual_information(x, x[:, 3] * 2 + 0.01 * x[:, 0])
  assert numbers.argmax() == 3
  both = datasets.mutual_information(x, np.stack([rng.integers(0, 3, 500), labels], 1))
  assert (both >= found).all()


def test_permutation_importance_is_that_of_scikit_learn():
  class Model:
    def fit(self, x, y):
      return self

    def score(self, x, y):
      return float((self.outputs(x) == y).mean())

    def outputs(self, x):
      return (2 * x[:, 0] + x[:, 2] > 0).astype(int)

  x = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
  model, y = Model(), (2 * x[:, 0] + x[:, 2] + 0.3 * x[:, 3] > 0).astype(int)
  theirs = permutation_importance(model, x, y, n_repeats=20, random_state=0)
  score = lambda outputs, labels: float((outputs == labels).mean())  # noqa: E731
  found = datasets.permutation_importance(model.outputs, x, y, score, repeats=20)
  assert (found.mean[[1, 3]] == 0).all()
  error = 4 * np.sqrt((found.deviation**2 + theirs.importances_std**2) / 20)
  assert (np.abs(found.mean - theirs.importances_mean) <= error).all()
  assert found.mean.argmax() == 0
  assert (datasets.select(found.mean, 2, (4,)).columns == [0, 2]).all()


def of(seed=0, rows=100, features=6, **options):
  x = rows_of(seed, rows, features) * np.arange(1, features + 1, dtype=np.float32) + 5
  return datasets.from_arrays((x, np.arange(rows) % 2), **options)


@pytest.mark.parametrize('way', ['pca', 'mutual_information'])
def test_only_the_training_split_is_looked_at(way):
  data = of()
  moved = {
    name: getattr(data, name)._replace(inputs=getattr(data, name).inputs * 100, labels=1 - getattr(data, name).labels)
    for name in ('validation', 'test')
  }
  ours, other = (datasets.reduce(one, way, 2).reduction for one in (data, data._replace(**moved)))
  assert (ours.weight == other.weight).all()
  assert ours.mean is other.mean is None or (ours.mean == other.mean).all()


def test_a_data_set_is_fitted_as_it_is_standardized():
  data = of()
  standard = (data.train.inputs.astype(np.float64) - data.mean) / data.std
  theirs = PCA(3, svd_solver='full').fit(standard)
  found = datasets.reduce(data, 'pca', 3)
  np.testing.assert_allclose(aligned(found.reduction, theirs.components_.T), theirs.components_.T, atol=1e-6)
  raw = datasets.reduce(of(standardize=False), 'pca', 3).reduction
  theirs = PCA(3, svd_solver='full').fit(data.train.inputs.astype(np.float64))
  np.testing.assert_allclose(aligned(raw, theirs.components_.T), theirs.components_.T, atol=1e-6)
  assert found.train is data.train
  assert found.fingerprint == data.fingerprint
  assert any('6 features become 3' in note for note in found.notes)
  assert seen(found, standard.astype(np.float32)).shape == (80, 3)


def test_trees_pictures_streams_and_mixtures_are_reduced():
  tree = {'ids': np.zeros((100, 3), np.int32), 'x': rows_of(0, 100, 6)}
  data = datasets.from_arrays((tree, np.arange(100) % 2))
  assert datasets.reduce(data, 'pca', 2).reduction.leaf == 'x'
  pictures = np.random.default_rng(0).integers(0, 256, (100, 4, 4, 3)).astype(np.uint8)
  found = datasets.reduce(datasets.from_arrays((pictures, np.arange(100) % 2)), 'randomized_pca', 5).reduction
  assert (found.features, found.components, found.shape) == (48, 5, (4, 4, 3))

  def make(seed, step):
    rng = np.random.default_rng((seed, step))
    return {'inputs': rng.normal(size=(16, 5)) * np.arange(1, 6), 'labels': np.arange(16) % 2}

  data = datasets.stream(make, steps_per_epoch=8, test=(np.zeros((4, 5)), [0, 1, 0, 1]), standardize=False)
  rows = np.concatenate([make(0, step)['inputs'] for step in range(8)])
  streamed = datasets.reduce(data, 'pca', 2).reduction
  np.testing.assert_allclose(streamed.weight, datasets.pca(np.float32(rows), 2).weight, atol=1e-6)
  mixed = datasets.mix({'a': (of(0), 1), 'b': (of(1), 1)})
  assert datasets.reduce(mixed, 'pca', 2).reduction.components == 2
  with pytest.raises(ValueError, match='a mixture is reduced as a whole'):
    datasets.mix({'a': (of(0), 1), 'b': (datasets.reduce(of(1), 'pca', 2), 1)})


def test_folds_fit_anew_on_what_each_trains_on():
  parts = datasets.folds(datasets.reduce(of(), 'pca', 2), k=3)
  for part in parts:
    alone = datasets.reduce(part._replace(reduction=None), 'pca', 2)
    assert (part.reduction.weight == alone.reduction.weight).all()
  assert not np.array_equal(parts[0].reduction.weight, parts[1].reduction.weight)


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: datasets.reduce(datasets.reduce(of(), 'pca', 2), 'pca', 1), 'reduced once'),
    (lambda: datasets.reduce(of(), 'PCA', 2), 'nearest: pca'),
    (lambda: datasets.reduce(of(), 'mutual_information'), 'give components'),
    (lambda: datasets.reduce(of(), 'random_projection', 2, whiten=True), 'whiten says nothing'),
    (lambda: datasets.reduce(of(), np.ones(5), 2), 'each of 6 features; got 5'),
    (lambda: datasets.reduce(of(), datasets.pca(rows_of(0), 2)), r'these are \[N, 6\], it takes \[N, 12\]'),
    (lambda: datasets.reduce(of(), 'pca', 2, leaf='x'), 'leaf names one of the inputs'),
    (
      lambda: datasets.reduce(datasets.from_arrays((np.zeros((40, 3), int), np.arange(40) % 2)), 'pca', 1),
      'these inputs are int32, ids or masks',
    ),
    (
      lambda: datasets.reduce(datasets.from_arrays(({'a': rows_of(0), 'b': rows_of(1)}, np.arange(60) % 2)), 'pca', 1),
      "a, b are of numbers: name it, leaf='a'",
    ),
  ],
)
def test_what_a_data_set_cannot_be_reduced_by_is_told(call, words):
  with pytest.raises(ValueError, match=words) as error:
    call()
  assert '\n' not in str(error.value)


def test_a_choice_of_features_names_them():
  table = {'size': rows_of(0, 100, 1)[:, 0], 'noise': rows_of(1, 100, 1)[:, 0]}
  table['label'] = (table['size'] > 0).astype(int)
  data = datasets.reduce(datasets.from_table(table, 'label'), 'mutual_information', 1)
  assert 'size are kept' in data.notes
  assert (data.reduction.columns == [0]).all()
  assert data.reduction.told() == 'features by mutual information: 2 features become 1'
  assert selection.select([0.0, 2.0, 1.0], 1, (3,)).columns.tolist() == [1]
