"""Laws of the tasks themselves: what labels may be, what is learned, what is decided, answered and shown."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlite import tasks
from jaxlite.contract import Model
from jaxlite.tasks.counting import count, count_pairs, number
from jaxlite.tasks.lift import weighted_mean

pytestmark = pytest.mark.unoptimized


def _sample(name, size=40):
  """A task with labels and outputs that are mostly right."""
  random = np.random.default_rng(0)
  noise = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
  three = random.integers(0, 3, size)
  spots = random.integers(-1, 3, (size, 4, 2))
  words = random.integers(-1, 3, (size, 5))
  real = 3 * noise(size) + 10
  two = random.random(size) < 0.4
  many = random.random((size, 3)) < 0.4
  return {
    'classification': lambda: (tasks.classification(class_names=list('abc'), top=(2,)), three, 3 * np.eye(3)[three]),
    'regression': lambda: (tasks.regression(), real, real[:, None] + noise(size, 1)),
    'regression of two': lambda: (tasks.regression(['u', 'v'], 'mae'), np.stack([real, -real], 1), noise(size, 2)),
    'binary': lambda: (tasks.binary('no', ['no', 'yes'], recall=0.9), two, noise(size) - 2 * two),
    'binary of two logits': lambda: (tasks.binary(precision=0.7), two, noise(size, 2) + np.eye(2)[two.astype(int)]),
    'multi_label': lambda: (tasks.multi_label(['a', 'b', 'c'], 'one'), many, noise(size, 3) + many),
    'multi_label of a wish': lambda: (tasks.multi_label(recall=0.8), many, noise(size, 3) + many),
    'language': lambda: (tasks.language(3, [1, 2, 3]), words, noise(size, 5, 3)),
    'segmentation': lambda: (tasks.segmentation(3), spots, noise(size, 4, 2, 3)),
    'sequence_labels': lambda: (tasks.sequence_labels(class_names=['o', 'x', 'y']), words, noise(size, 5, 3)),
  }[name]()


SAMPLES = [
  *('classification', 'regression', 'regression of two', 'binary', 'binary of two logits'),
  *('multi_label', 'multi_label of a wish', 'language', 'segmentation', 'sequence_labels'),
]


@pytest.fixture(scope='module', params=SAMPLES)
def shown(request):
  """A task, its facts with what was decided, outputs, and the values of its metrics."""
  task, labels, outputs = _sample(request.param)
  labels = task.check(labels, 'train')
  facts = task.facts(labels, {})
  for where in ('train', 'test'):
    task.check_facts(labels, facts, where)
  outputs = np.asarray(outputs, np.float32)
  batch = {'labels': labels}
  if (weight := task.weight(labels)) is not None:
    batch['weight'] = weight
  metric, loss = task.metrics(facts), task.loss(facts)
  state = jax.jit(lambda state, outputs, batch: metric.update(state, outputs, batch, loss(outputs, batch)))(
    metric.init(), outputs, batch
  )
  if metric.keep is None:
    return task, facts, labels, outputs, metric.compute(state)
  kept = jax.tree.map(np.asarray, metric.keep(jnp.asarray(outputs), batch))
  facts = {**facts, **task.decide(kept, facts)}
  return task, facts, labels, outputs, task.metrics(facts).compute(state, kept)


def test_a_task_names_what_it_measures(shown):
  task, facts, _, _, values = shown
  names = task.metrics(facts).names
  assert set(names) <= values.keys()
  assert all(isinstance(values[name], float) for name in names)
  assert task.score in names
  assert task.curve[1] in names
  for _, name, form in task.rows:
    assert name in (*names, 'nan_outputs', 'bits_per_byte')
    assert form == 'percent' or form.format(0.5)
  worse = {name for name in (*names, 'nan_outputs') if task.better(name) < 0}
  if task.name in ('binary', 'multi_label') and 'recall' in facts['wanted']:
    assert np.min(values['recall' if task.name == 'binary' else 'recall_each']) >= facts['wanted']['recall']
  assert worse == {'loss', 'nan_outputs', 'mae', 'rmse', 'perplexity', 'bits_per_byte'} & {*names, 'nan_outputs'}


def test_a_task_shows_its_tables_and_pictures(shown, tmp_path):
  task, facts, _, _, values = shown
  back = {name: np.asarray(value).tolist() for name, value in values.items()}  # as a saved result has them
  for table in task.tables(back, facts):
    assert len({len(row) for row in table}) == 1
    assert all(isinstance(cell, str) for row in table for cell in row)
  assert task.tables(back, facts) == task.tables(values, facts)
  slugs = []
  for picture in task.figures(back, facts, 'mine $5'):
    picture.draw().savefig(tmp_path / f'{picture.slug}.png', dpi=30)
    slugs.append(picture.slug)
    assert not picture.caption.endswith('.')
  assert len(set(slugs)) == len(slugs)
  assert slugs or task.name == 'language'


def test_a_saved_run_finds_its_task(shown):
  task, facts, labels, outputs, values = shown
  facts = json.loads(json.dumps(facts))
  again = tasks.named(task.name, facts)
  assert again.facts(labels, {}) == {name: value for name, value in facts.items() if name in again.facts(labels, {})}
  assert (again.name, again.score, again.rows) == (task.name, task.score, task.rows)
  one, other = task.answer(outputs, facts), again.answer(outputs, facts)
  assert one.keys() == other.keys()
  assert all(np.asarray(one[name] == other[name]).all() for name in one)  # the labels of multi_label are lists
  assert len(one['labels']) == len(outputs)
  assert again.metrics(facts).names == task.metrics(facts).names
  if 'threshold' in values:  # what is answered is what was measured
    right = np.asarray(one['labels']).astype(str) == np.asarray(facts['class_names'])[labels]
    assert abs(right.mean() - values['accuracy']) < 1e-12


def test_a_task_of_ones_own_is_not_found_by_name():
  with pytest.raises(ValueError, match='pass the Task'):
    tasks.named('mine', {})


@pytest.mark.parametrize(
  ('task', 'labels', 'words'),
  [
    (tasks.classification(), np.zeros((4, 1), int), 'labels[:, 0]'),
    (tasks.classification(), np.zeros((4, 3)), 'argmax(-1)'),
    (tasks.classification(), np.zeros((4, 3, 3)), 'one integer an example'),
    (tasks.classification(), ['cat', 'dog'], 'return_inverse'),
    (tasks.classification(), [0.0, 1.0], 'astype(int)'),
    (tasks.classification(), [0, -1], 'has -1 at 1'),
    (tasks.classification(), [0, 1 << 40], 'number the classes'),
    (tasks.classification(), np.ma.masked_array([0, 1], [False, True]), 'masked in places'),
    (tasks.classification(), [[0], [0, 1]], 'labels of here differ'),
    (tasks.classification(3), [0, 3], 'pass classes=4'),
    (tasks.classification(3, ['a']), [0, 1], 'got 1 names for 3 classes'),
    (tasks.regression(), ['a'], 'numbers'),
    (tasks.regression(), [0.0, np.nan], 'nan at 1'),
    (tasks.regression(), [0.0, 1e300], 'rescale'),
    (tasks.regression(), np.zeros((2, 2, 2)), '[N, targets]'),
    (tasks.regression(), 1e9 + np.arange(5.0), 'subtract a constant'),
    (tasks.regression(['a']), np.zeros((2, 2)), 'got 1 names for 2'),
    (tasks.binary(), ['ham', 'spam'], 'class_names=['),
    (tasks.binary(class_names=['ham', 'spam']), ['ham', 'eggs'], "'eggs' at 1"),
    (tasks.binary(), [0, 2], 'classification()'),
    (tasks.binary(), [0.5, 1], 'astype(int)'),
    (tasks.binary('x', ['a', 'b']), [0, 1], 'positive is one of'),
    (tasks.multi_label(), [0, 1], 'numpy.stack'),
    (tasks.multi_label(), [[0, 2]], 'has 2 at [0, 1]'),
    (tasks.multi_label(['a']), [[0, 1]], 'got 1 names for 2'),
    (tasks.multi_label(3000), [[0, 1]], 'a list of names, one each; got 3000'),
    (tasks.regression('price'), [0.0], "a list of names, one each; got 'price'"),
    (tasks.language(), [0, 1], '[N, T]'),
    (tasks.language(), [[0, -100]], 'write -1'),
    (tasks.language(), [[0.0]], 'integers'),
    (tasks.language(3), [[0, 3]], 'pass vocabulary=4'),
    (tasks.language(3, [1, 2]), [[0, 1]], 'token_bytes is int[3]'),
    (tasks.segmentation(2), [[[0, 2]]], 'has 2 at [0, 0, 1]'),
    (tasks.sequence_labels(2), [[[0, 1]]], '[N, T]'),
  ],
)
def test_bad_labels_get_one_line(task, labels, words):
  def accept():
    checked = task.check(labels, 'here')
    task.check_facts(checked, task.facts(checked, {}), 'here')

  with pytest.raises(ValueError) as error:
    accept()
  assert words in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda: tasks.regression(loss='rmse'), "'mse', 'mae'"),
    (lambda: tasks.binary(recall=1.5), 'at most 1'),
    (lambda: tasks.binary(class_names=['a', 'b', 'c']), 'classification()'),
    (lambda: tasks.multi_label(threshold='best'), "'each', 'one'"),
    (lambda: tasks.multi_label(recall=0), 'above 0'),
    (lambda: tasks.multi_label(threshold=0.3, recall=0.9), 'one of the two'),
    (lambda: tasks.units([0.0], [0.0]), 'std positive'),
    (lambda: tasks.binary().facts(np.zeros(2, int), {'classes': 3}), 'have 3'),
  ],
)
def test_bad_arguments_get_one_line(make, words):
  with pytest.raises(ValueError) as error:
    make()
  assert words in str(error.value)


def test_what_the_data_state_is_used_and_what_the_task_says_comes_first():
  labels = np.array([0, 1], np.int32)
  assert tasks.classification().facts(labels, {'classes': 4})['class_names'] == ['0', '1', '2', '3']
  assert tasks.classification(3).facts(labels, {'classes': 4, 'class_names': ()})['classes'] == 3
  assert tasks.binary('yes').facts(labels, {'classes': 2, 'class_names': ('yes', 'no')})['positive'] == 0
  assert tasks.multi_label().facts(np.eye(2), {'target_names': ['a', 'b']})['names'] == ['a', 'b']
  assert tasks.language().facts(labels[None], {'token_bytes': [1, 1, 2]}) == {'vocabulary': 3, 'token_bytes': [1, 1, 2]}
  assert tasks.classification().check(np.array([True, False]), 'x').dtype == np.int32
  assert tasks.regression().check([1, 2], 'x').dtype == np.float32


def test_remarks_say_what_cannot_be_learned():
  def notes(task, labels):
    labels = task.check(labels, 'train')
    return list(task.notes(labels, task.facts(labels, {})))

  missing = 'train has no example of cat: the model cannot learn what it never sees'
  assert notes(tasks.classification(class_names=['cat', 'dog']), [1, 1]) == [missing]
  assert notes(tasks.classification(), [0, 0]) == ['there is one class only: any model is right always']
  assert notes(tasks.binary(class_names=['cat', 'dog']), [1, 1]) == [missing]
  assert 'nothing to learn' in notes(tasks.regression(), [3, 3])[0]
  assert 'subtract a constant' in notes(tasks.regression(), 1e6 + np.arange(4.0))[0]
  assert notes(tasks.regression(), 1e5 + np.arange(4.0)) == []
  assert len(notes(tasks.multi_label(), [[0, 1], [0, 1]])) == 2
  assert '1 of 2 examples' in notes(tasks.language(), [[-1], [0]])[0]
  assert any('no pixel of b' in note for note in notes(tasks.segmentation(class_names=['a', 'b']), [[0, 0]]))


def _linear():
  """A model of one number, x @ w + b, as it is taught standardized targets."""
  init = lambda key, x: ({'w': jnp.zeros(x.shape[1]), 'b': jnp.zeros(())}, {})  # noqa: E731
  return Model(init, lambda p, s, x, *, train, key, step=None: (x @ p['w'] + p['b'], s))


def test_a_mean_far_above_the_spread_costs_nothing_that_shows():
  random = np.random.default_rng(0)
  x = random.normal(size=(256, 3)).astype(np.float32)
  y = (1e5 + x @ [0.5, -0.6, 0.4] + 0.5 * random.normal(size=256)).astype(np.float32)
  task = tasks.regression()
  facts = task.facts(task.check(y, 'train'), {})
  model, loss = task.hook(facts).model(_linear()), task.loss(facts)
  params, state = model.init(None, x)
  outputs = lambda params: model.apply(params, state, x, train=True, key=None)[0]  # noqa: E731
  descend = jax.grad(lambda params: jnp.mean(loss(outputs(params), {'labels': y})))
  step = lambda _, params: optax.apply_updates(params, jax.tree.map(lambda g: -0.2 * g, descend(params)))  # noqa: E731
  params = jax.jit(lambda params: jax.lax.fori_loop(0, 100, step, params))(params)
  design = np.concatenate([x, np.ones((256, 1))], axis=1).astype(np.float64)
  best = design @ np.linalg.lstsq(design, y.astype(np.float64), rcond=None)[0]
  found = np.asarray(outputs(params), np.float64)
  rmse = [np.sqrt(np.mean((of - y) ** 2)) for of in (found, best)]
  assert abs(rmse[0] - rmse[1]) < 1e-3 * rmse[1]
  exported, kept = model.export(params, state)  # what leaves predicts in units
  assert np.array_equal(np.asarray(model.apply(exported, kept, x, train=False, key=None)[0]), found.astype(np.float32))


def test_shapes_that_would_broadcast_are_refused():
  task = tasks.regression()
  facts = {'targets': 1, 'mean': [0.0], 'std': [2.0], 'axes': 1, 'standardize': True, 'target_names': ['y']}
  loss = task.loss(facts)
  labels = jnp.array([1.0, 3.0, 5.0])
  for outputs in (jnp.zeros(3), jnp.zeros((3, 1))):
    for shape in ((3,), (3, 1)):
      assert loss(outputs, {'labels': labels.reshape(shape)}).tolist() == [0.25, 2.25, 6.25]
  for outputs, shape in ((jnp.zeros((3, 3)), (3,)), (jnp.zeros((1, 3)), (3,)), (jnp.zeros(3), (1, 3))):
    with pytest.raises(ValueError, match=r'float\[B\]|labels are'):
      loss(outputs, {'labels': labels.reshape(shape)})
  with pytest.raises(ValueError, match='fix its last layer'):
    task.hook(facts).model(_linear()._replace(apply=lambda p, s, x, **_: (jnp.zeros((3, 2)), s))).apply(
      {}, {'jl.const': {'units': {}}}, None, train=False, key=None
    )
  for name, bad in (('binary', (3, 3)), ('multi_label', (3, 4)), ('language', (3, 5)), ('segmentation', (3, 8, 3))):
    other, some, _ = _sample(name, 3)
    some = other.check(some, 'train')
    with pytest.raises(ValueError):
      other.loss(other.facts(some, {}))(jnp.zeros(bad), {'labels': some})
  summed = tasks.regression(loss=lambda residual: jnp.sum(residual, axis=1))
  with pytest.raises(ValueError, match='gives float'):
    summed.loss(facts)(labels, {'labels': labels})


def test_extreme_logits_give_a_finite_loss_and_gradient():
  loss = jax.jit(tasks.binary().loss({'positive': 1}))
  logits, batch = jnp.array([1e4, -1e4, 0.0]), {'labels': jnp.array([1, 0, 1])}
  value, slope = jax.jit(jax.value_and_grad(lambda logits: jnp.sum(loss(logits, batch))))(logits)
  assert abs(float(value) - np.log(2)) < 1e-6
  assert slope.tolist() == [0, 0, -0.5]
  assert np.isnan(loss(logits, {'labels': jnp.array([2, 0, 1])})[0])  # no class: a loss that is seen
  mixed = loss(jnp.zeros(2), {'labels': jnp.array([[0.3, 0.7], [1.0, 0.0]])})
  assert np.allclose(mixed, np.log(2))


def test_a_position_without_a_label_is_not_looked_at():
  loss = jax.jit(tasks.language().loss({'vocabulary': 3}))
  labels = np.array([[0, -1], [-1, -1]])
  logits = np.where(labels[..., None] < 0, np.nan, np.zeros((2, 2, 3))).astype(np.float32)
  value, slope = jax.jit(jax.value_and_grad(lambda logits: jnp.sum(loss(logits, {'labels': labels}))))(logits)
  assert abs(float(value) - np.log(3)) < 1e-6
  assert np.isfinite(slope).all()
  assert not np.asarray(slope)[labels < 0].any()
  assert np.isnan(loss(np.nan_to_num(logits), {'labels': labels + 3})[0])  # no token: a loss that is seen


def test_the_weighted_mean_over_examples_is_the_mean_over_tokens():
  task, labels, outputs = _sample('language')
  labels, outputs = task.check(labels, 'x'), outputs.astype(np.float32)
  each = np.asarray(jax.jit(task.loss({'vocabulary': 3}))(outputs, {'labels': labels}))
  weight = task.weight(labels)
  whole = float(weighted_mean(each, weight))
  parts = [slice(0, 7), slice(7, 40)]  # micro-batches count by their share of the weight
  means = [float(weighted_mean(each[part], weight[part])) for part in parts]
  assert abs(whole - np.average(means, weights=[weight[part].sum() for part in parts])) < 1e-6
  log_p = np.asarray(jax.jit(jax.nn.log_softmax)(outputs))
  flat = -np.take_along_axis(log_p, np.maximum(labels, 0)[..., None], -1)[..., 0][labels >= 0]
  assert abs(whole - flat.mean()) < 1e-6


def test_counts_are_exact_for_millions_of_positions_in_a_batch():
  size = 2_000_003
  random = np.random.default_rng(0)
  rows, columns = random.integers(0, 3, size=(2, size)).astype(np.int32)
  times = random.integers(0, 65536, size=size).astype(np.int32)
  for value in (1.0, 0.1):
    weight, exact = jnp.full(size, value, jnp.float32), float(np.float32(value))
    found = number(jax.jit(count_pairs, static_argnums=3)(weight, rows, columns, 3))
    assert (np.bincount(3 * rows + columns, minlength=9).reshape(3, 3) * exact == found).all()
    assert number(jax.jit(count)(weight, times)) == int(times.sum(dtype=np.int64)) * exact


def test_drawing_and_tables_load_no_jax():
  code = (
    'import sys\nfrom jaxlite.tasks import figures, tables\n'
    "assert not {'jax', 'matplotlib'} & set(sys.modules)\nfigures.confusion([[1.0, 0], [0, 1]], [], 'x')\n"
    "assert not {'jax', 'matplotlib.pyplot'} & set(sys.modules)\n"
  )
  subprocess.run([sys.executable, '-W', 'error', '-c', code], check=True)
