"""What a run made is worked on with its preprocessing, by whoever loads it, and never with somebody else's."""

import flax.linen as nn
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import trees
from jaxlite.run import agreement
from loops import config_of

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(160, 6)) * 50 + 300).astype(np.float32)  # far from where an unstandardized network learns
Y = (X[:, 0] > 300).astype(int) + (X[:, 1] > 300)
WORDS = {'praise': ['good', 'fine', 'film'], 'blame': ['bad', 'dull', 'film']}


def trained(folder, data, model=None, *, recipe=None, said=None, steps=30):
  config = config_of(recipe, steps=steps)
  config.optim.lr, config.optim.warmup = 0.02, jl.Duration(steps=0)
  config.eval.every = config.log.every = config.checkpoint.every = jl.Duration(steps=steps)
  say = (lambda line: None) if said is None else said.append
  return jl.train(config, folder, model=model, data=data, say=say)


def accuracy(network, split):
  return float((np.asarray(network.predict(split.inputs)).argmax(1) == split.labels).mean())


def texts(seed):
  rng = np.random.default_rng(seed)
  labels = ['praise', 'blame'] * 30
  return [' '.join(rng.choice(WORDS[label], 6)) for label in labels], labels


def test_a_run_of_the_defaults_is_pruned_quantized_and_trained_on_without_being_told_its_model(tmp_path):
  data = jl.data.from_arrays((X, Y))
  result = trained(tmp_path / 'first', data)
  network = jl.load(tmp_path / 'first')
  assert result.metrics['accuracy'] > 0.6
  assert accuracy(network, data.test) == result.metrics['accuracy']
  assert abs(accuracy(jl.ptq(network, [X]), data.test) - result.metrics['accuracy']) <= 1 / len(data.test.labels)
  assert all(row.quantized for row in jl.coverage(network)(X))
  sparse, masks = jl.pruning.sparsify(
    network.params, 0.5, context=jl.pruning.gather_statistics(network, batches=[{'inputs': X}])
  )
  said = []
  keep = lambda config, total: jl.chain(optax.adam(0.01), jl.hold(masks))  # noqa: E731
  more = trained(tmp_path / 'second', data, network._replace(params=sparse), recipe=keep, said=said)
  assert any('standardized as the given network does it' in line for line in said)
  assert more.metrics['accuracy'] > 0.6
  again = jl.load(tmp_path / 'second')
  assert accuracy(again, data.test) == more.metrics['accuracy']
  kernel = next(path for path in trees.paths(again.params) if path.endswith('dense2/kernel'))
  assert (np.asarray(trees.by_path(again.params)[kernel]) == 0).mean() >= 0.5
  same = trained(tmp_path / 'second', data, network._replace(params=sparse), recipe=keep)  # a finished run is reported
  assert same.metrics == more.metrics


def test_a_regression_goes_back_to_its_module_in_the_units_of_its_targets(tmp_path):
  target = X @ np.arange(1, 7, dtype=np.float32) * 50
  data = jl.data.from_arrays((X, target), task=jl.tasks.regression())
  module = nn.Dense(1)
  result = trained(tmp_path, data, module)
  network = jl.load(tmp_path, model=nn.Dense(1))
  values, before, after = jl.give_back(network, module)
  test = data.test
  found = np.asarray(after(module.apply(values, before(test.inputs))), np.float64).reshape(-1)
  rmse = np.sqrt(np.mean((found - test.labels) ** 2))
  assert abs(rmse - result.metrics['rmse']) < 1e-4 * result.metrics['rmse']
  np.testing.assert_allclose(network.predict(test.inputs).reshape(-1), found, rtol=1e-4)


@pytest.mark.slow
def test_texts_are_encoded_wherever_a_loaded_network_takes_them(tmp_path):
  rows, labels = texts(0)
  data = jl.data.from_texts(rows, labels)
  trained(tmp_path / 'run', data, steps=10)
  network = jl.load(tmp_path / 'run')
  wanted = np.asarray(network.predict(rows[:8]))
  assert all(row.quantized for row in jl.coverage(network)(rows[:8]))
  integers = jl.ptq(network, [rows[:8]])
  np.testing.assert_allclose(integers.predict(rows[:8]), wanted, atol=0.05 * np.abs(wanted).max())
  assert set(integers.predict_labels(rows[:8])) <= set(WORDS)
  assert jl.pruning.gather_statistics(network, batches=[{'inputs': rows[:8]}]).norms
  # ids of another vocabulary have the same shapes
  other = jl.data.from_texts([text.replace('dull', 'zzz').replace('bad', 'a') for text in rows], labels)
  with pytest.raises(ValueError, match=r'the network to train on reads .* of \d+ tokens'):
    trained(tmp_path / 'on', other, network)
  taught = lambda config, total: jl.chain(jl.distill(network), optax.adam(0.01))  # noqa: E731
  with pytest.raises(ValueError, match=r'the teacher of distill reads .*jaxlite.data.attach'):
    trained(tmp_path / 'taught', other, recipe=taught)
  assert agreement.started(network, data._replace(encoder=None)).encoder == network.encode  # and it is kept
  assert trained(tmp_path / 'on', data, network, steps=4).metrics['accuracy'] >= 0


@pytest.mark.slow
def test_a_teacher_whose_classes_stand_in_another_order_is_refused(tmp_path):
  data = jl.data.from_arrays((X, Y % 2), class_names=['cat', 'dog'])
  trained(tmp_path / 'teacher', data, nn.Dense(2), steps=4)
  teacher = jl.load(tmp_path / 'teacher', model=nn.Dense(2))
  turned = jl.data.from_arrays((X, Y % 2), class_names=['dog', 'cat'])
  with pytest.raises(ValueError, match=r'the teacher of distill answers cat, dog, .* are dog, cat'):
    trained(tmp_path / 'a', turned, nn.Dense(2), recipe=lambda c, t: jl.chain(jl.distill(teacher), optax.sgd(0.1)))
  with pytest.raises(ValueError, match='the network to train on answers cat, dog'):
    trained(tmp_path / 'b', turned, teacher)


@pytest.mark.slow
def test_an_own_task_with_a_part_around_the_model_is_asked_for(tmp_path):
  task = jl.tasks.regression()._replace(name='mine')
  data = jl.data.from_arrays((X, X[:, 0] * 100), task=task)
  trained(tmp_path, data, nn.Dense(1), steps=4)
  with pytest.raises(ValueError, match="the task of this run has a part 'units' around its model: give task="):
    jl.load(tmp_path, model=nn.Dense(1))
  network = jl.load(tmp_path, model=nn.Dense(1), task=task)
  np.testing.assert_allclose(network.predict(X), jl.load(tmp_path).predict(X), rtol=1e-5)


@pytest.mark.slow
def test_a_hint_comes_from_a_loaded_teacher(tmp_path):
  data = jl.data.from_arrays((X, Y))
  trained(tmp_path / 'teacher', data, steps=4)
  teacher = jl.load(tmp_path / 'teacher')
  hinted = lambda config, total: jl.chain(jl.hint(teacher, {'kernel': 'dense2/kernel'}), optax.adam(0.01))  # noqa: E731
  said = []
  trained(tmp_path / 'student', data, nn.Dense(3), recipe=hinted, said=said, steps=4)
  assert jl.load(tmp_path / 'student', model=nn.Dense(3)).predict(X).shape == (160, 3)
