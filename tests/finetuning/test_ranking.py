"""Ranking candidates: the one whose features tell the classes stands first; agreement with the truth is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxlite as jl
from jaxlite.finetuning import rank, resized
from jaxlite.models import SmallCNN

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)
Y = np.arange(200) % 4
X = np.concatenate([RNG.normal(size=(4, 6))[Y] + 0.4 * RNG.normal(size=(200, 6)), RNG.normal(size=(200, 6))], axis=1)
X = X.astype(np.float32)


def sees(columns, width=8):
  """A network that reads some columns."""
  chosen = np.zeros((12, width), np.float32)
  chosen[columns, : len(columns)] = np.eye(len(columns))
  return (lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], {'a': jnp.asarray(chosen), 'b': jnp.ones((width, 3))})


CANDIDATES = {'noise': sees([6, 7, 8, 9]), 'all': sees([0, 1, 2, 3, 4, 5]), 'some': sees([0, 7])}


@pytest.fixture(scope='module')
def ranking(tmp_path_factory):
  data = jl.data.from_arrays((X, Y))
  truth = {'noise': 0.3, 'all': 0.95, 'some': 0.6}
  return rank(CANDIDATES, data, truth=truth, folder=tmp_path_factory.mktemp('features'), examples=100)


def test_the_one_that_sees_the_classes_is_first(ranking):
  assert [row.name for row in ranking.rows] == ['all', 'some', 'noise']
  assert ranking.best == 'all'
  assert ranking.tied == ('all',)
  assert ranking.examples == 100


def test_agreement_with_the_truth_is_scipys_weighted_tau(ranking):
  values = [row.scores['knn'].value for row in ranking.rows]
  assert ranking.tau['knn'] == pytest.approx(stats.weightedtau(values, [row.truth for row in ranking.rows]).statistic)
  assert set(ranking.tau) == {'logme', 'h_score', 'knn', 'probe'}
  assert ranking.tau['probe'] == pytest.approx(1)


def test_the_table_says_what_was_done(ranking):
  text = str(ranking)
  assert text.count('\n') == 5
  assert 'by probe, on 100 examples' in text
  assert 'weighted tau' in text
  assert ' 95.0' in text


def test_pictures_of_another_size_are_resized_inside():
  model = jl.adapt(SmallCNN(features=(2, 2), hidden=4))
  net = jl.Network(model, *model.init(jax.random.key(0), jnp.zeros((2, 8, 8, 1))))
  wide = resized(net, (8, 8, 1))
  grey = RNG.integers(0, 255, (3, 8, 8, 1)).astype(np.uint8)
  np.testing.assert_allclose(wide.predict(np.repeat(grey, 3, 3)), wide.predict(grey), atol=1e-4)
  np.testing.assert_allclose(wide.predict(grey), net.predict(grey.astype(np.float32)), atol=1e-4)
  standard = resized(net, (8, 8, 1), scale=([10.0], [2.0]))
  np.testing.assert_allclose(standard.predict(grey), net.predict((grey.astype(np.float32) - 10) / 2), atol=1e-4)


@pytest.mark.parametrize(
  'options,told',
  [
    ({'candidates': {}}, 'networks by name'),
    ({'by': 'logmee'}, 'nearest: logme'),
    ({'by': 'knn', 'use': ('probe',)}, 'not among the scores'),
    ({'truth': {'al': 1.0}}, "'al', which is no candidate; nearest: all"),
    (
      {'candidates': {'narrow': (lambda p, x: x @ p['w'] @ p['v'], {'w': jnp.ones((3, 2)), 'v': jnp.ones((2, 2))})}},
      "'narrow' does not take",
    ),
    ({'examples': 3}, 'an example a class'),
    (
      {
        'candidates': {
          'lost': (lambda p, x: x @ p['w'] @ p['v'], {'w': jnp.full((X.shape[1], 2), jnp.nan), 'v': jnp.ones((2, 2))})
        }
      },
      "the candidate 'lost': features are finite",
    ),
  ],
)
def test_what_cannot_be_ranked_is_told(options, told, tmp_path):
  options = {'candidates': {'all': CANDIDATES['all']}, **options}
  with pytest.raises(ValueError, match=told):
    rank(options.pop('candidates'), jl.data.from_arrays((X, Y)), folder=tmp_path, **options)


def test_arrays_are_no_data_set():
  with pytest.raises(TypeError, match=r'rank takes a Dataset, as jl.data.from_arrays.* got tuple of 2'):
    rank({'a': (lambda p, x: x @ p['w'], {'w': np.ones((2, 2))})}, (np.ones((4, 2)), np.arange(4) % 2))
