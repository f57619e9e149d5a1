"""A run that brings its inputs to fewer features: predicted, resumed, opened, given back and exported with the map."""

import json

import flax.linen as nn
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.config.fields import apply_overrides
from jaxlite.deployment.operations import listing, reference
from jaxlite.deployment.packed.file import pack
from jaxlite.run import identity
from jaxlite.run.setup import dataset_of
from loops import config_of, leaves, points, run

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(240, 3)) @ RNG.normal(size=(3, 12)) * 40 + RNG.normal(size=(240, 12)) + 300).astype(np.float32)
Y = (X[:, 0] > 300).astype(int) + (X[:, 1] > 300)


def small(config):
  return jl.models.MLP((4,), classes=3)


def trained(folder, data=(X, Y), *, model=None, recipe=None, steps=30, say=lambda line: None, **fields):
  config = config_of(recipe, steps=steps, **fields)
  config.optim.lr, config.optim.warmup = 0.02, jl.Duration(steps=0)
  return jl.train(config, folder, model=model, data=data, say=say)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A run of the defaults on the first components."""
  folder, said = tmp_path_factory.mktemp('reduced'), []
  result = trained(folder, say=said.append, data__reduce='pca', data__components=3)
  assert any('pca: 12 features become 3' in line and '39' not in line for line in said)
  assert result.metrics['accuracy'] > 0.8
  return folder


def test_a_loaded_run_takes_raw_inputs_and_says_what_evaluation_said(folder):
  told = json.loads((folder / 'result.json').read_text())
  network = jl.load(folder)
  data = jl.data.from_arrays((X, Y))
  outputs = np.asarray(network.predict(data.test.inputs))
  assert outputs.shape == (24, 3)
  assert (outputs.argmax(1) == data.test.labels).mean() == told['metrics']['accuracy']
  assert any('every export' in note for note in told['notes'])
  with pytest.raises(ValueError, match=r'takes float32\[B, 12\]'):
    network.predict(X[:, :3])


def test_the_three_ways_are_one(folder):
  alone = jl.data.reduce(jl.data.from_arrays((X, Y)), 'pca', 3)
  flags = (('data.reduce', 'pca'), ('data.components', '3'))
  assert (dataset_of(apply_overrides(config_of(), flags), (X, Y)).reduction.weight == alone.reduction.weight).all()
  ours = np.asarray(jl.load(folder).predict(X))
  standard = (X.astype(np.float64) - alone.mean) / alone.std
  reduced = alone.reduction(standard)
  network = jl.load(folder)
  values, before, after = jl.give_back(network, jl.models.MLP((128, 64), classes=3))
  np.testing.assert_allclose(before(X), reduced, atol=1e-4)
  module = jl.models.MLP((128, 64), classes=3)
  np.testing.assert_allclose(after(module.apply(values, before(X))), ours, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_run_that_stopped_goes_on_to_the_same_bits(tmp_path):
  fields = {'model': small, 'data__reduce': 'pca', 'data__components': 2}
  for name, lengths in (('whole', [12]), ('torn', [4, 12])):
    for steps in lengths:
      jl.train(config_of(steps=steps, **fields), tmp_path / name, data=(X, Y), say=lambda line: None)
  assert leaves(tmp_path / 'whole') == leaves(tmp_path / 'torn')
  assert points(tmp_path / 'whole') == points(tmp_path / 'torn')
  with pytest.raises(ValueError, match='another config'):
    jl.train(
      config_of(steps=12, **{**fields, 'data__components': 3}), tmp_path / 'torn', data=(X, Y), say=lambda line: None
    )


def test_a_run_is_not_that_of_other_features_but_last_bits_of_a_fit_do_not_count():
  data = jl.data.from_arrays((X, Y))

  def told(by, components=2, **options):
    return identity._of_reduction(jl.data.reduce(data, by, components, **options).reduction)

  first, other = np.arange(12) < 2, np.arange(12) > 9
  assert told(first * 1.0) == told(first * 1.0) != told(other * 1.0)
  assert told('random_projection', seed=1) != told('random_projection', seed=2)
  fitted = jl.data.reduce(data, 'pca', 2).reduction
  assert identity._of_reduction(fitted) == identity._of_reduction(fitted._replace(weight=fitted.weight * (1 + 1e-7)))
  assert told('pca', 2) != told('pca', 3)


def test_exports_hold_the_map(folder):
  network, graph = jl.load(folder), listing.graph_of(folder)
  assert [one.kind for one in graph.operations].count('dot_general') == 4
  packed = jl.unpack(pack(graph))
  np.testing.assert_allclose(reference.run(packed.graph, X), network.predict(X), atol=1e-4)


@pytest.mark.slow
def test_every_format_answers_as_the_run_does(folder, tmp_path):
  report = jl.deploy(folder, out=tmp_path, examples=(X, Y), say=lambda line: None)
  assert all(row.same in (None, 1.0) for row in report.written)


def test_it_is_trained_on_with_its_own_map_and_not_with_another(folder, tmp_path):
  network, data = jl.load(folder), jl.data.from_arrays((X, Y))
  more = trained(tmp_path / 'more', data, model=network, steps=4)
  assert more.metrics['accuracy'] > 0.8
  plain = jl.load(folder)
  plain.model.apply.around = ('normalize',)  # as of a run that reduced nothing
  with pytest.raises(ValueError, match='keeps its own preprocessing, which reduces nothing'):
    trained(tmp_path / 'other', jl.data.reduce(data, 'pca', 3), model=plain, steps=2)
  with pytest.raises(ValueError, match='a backbone takes inputs as they are'):
    jl.finetune(network, jl.data.reduce(data, 'pca', 3), tmp_path / 'tuned')


def test_few_bits_take_the_map_as_a_layer(tmp_path):
  recipe = lambda config, total: jl.chain(jl.fake_quant(bits=8), optax.adam(0.02))  # noqa: E731
  module = nn.Dense(3)
  result = trained(tmp_path, model=module, recipe=recipe, steps=4, data__reduce='pca', data__components=2)
  (row,) = [row for row in result.parts if row[0] == 'fake_quant']
  assert 'reduction in 8 bits' in row[2]
  assert row[3] == ''


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'data__reduce': 'pcs'}, 'nearest: pca'),
    ({'data__reduce': 'random_projection'}, 'data.components is a whole number'),
    ({'data__reduce': 'pca', 'data__components': 13.0}, 'at most 12 components'),
    ({'data__reduce': 'pca', 'data__components': 1.5}, r'data.components is a share in \(0, 1\)'),
    ({'data__reduce': 'pca', 'data__components': 0.0}, r'data.components is a share in \(0, 1\)'),
    ({'data__reduce': 'mutual_information', 'data__components': 2.0, 'data__whiten': True}, 'whiten says nothing'),
  ],
)
def test_what_cannot_be_is_told_before_training(tmp_path, fields, words):
  with pytest.raises(ValueError, match=words) as error:
    run(tmp_path, data=(X, Y), **fields)
  assert '\n' not in str(error.value)


def test_data_that_are_reduced_already_are_not_reduced_again(tmp_path):
  data = jl.data.reduce(jl.data.from_arrays((X, Y)), 'pca', 3)
  with pytest.raises(ValueError, match='leave one of the two out'):
    trained(tmp_path, data, data__reduce='pca', data__components=2)
  with pytest.raises(ValueError, match='standardize=False too'):
    trained(tmp_path, data, data__standardize=False)


def test_a_network_that_cannot_take_vectors_is_told_what_it_gets(tmp_path):
  pictures = np.repeat(X[:, :4].reshape(-1, 2, 2, 1), 4, axis=1)
  with pytest.raises(ValueError, match=r'given float32\[B, 2\]') as error:
    trained(tmp_path, (pictures, Y), model=jl.models.SmallCNN(classes=3), data__reduce='pca', data__components=2)
  assert '\n' not in str(error.value)
