"""Where fine-tuning begins, and what each method lets move; what cannot be fine-tuned is told in a line."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

import jaxlite as jl
from jaxlite import trees
from jaxlite.config.schema import OptimConfig
from jaxlite.finetuning import bag, begin, choose, recipe
from networks import first_values

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)
Y = np.arange(60) % 3
X = (RNG.normal(size=(3, 4))[Y] + 0.5 * RNG.normal(size=(60, 4))).astype(np.float32)


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    for name in ('one', 'two', 'three'):
      x = nn.relu(nn.BatchNorm(use_running_average=not train, name=f'{name}_norm')(nn.Dense(8, name=name)(x)))
    return nn.Dense(5, name='old')(x)


@functools.cache
def network():
  model = jl.adapt(Net())
  return jl.Network(model, *first_values(model, X))


@functools.cache
def data(classes=3):
  return jl.data.from_arrays((X, Y), standardize=False) if classes == 3 else None


def moved(begun, steps=6, **options):
  """Paths of parameters that differ after some steps, and the states."""
  made = recipe(begun, steps, optim_config=OptimConfig(lr=0.01), **options)
  train = jl.train_step(begun.network, jl.cross_entropy, made)
  batch = {'inputs': jnp.asarray(X[:16]), 'labels': jnp.asarray(Y[:16])}
  first = train.init(jax.random.key(0), batch)
  before = jax.device_get(first)
  state = first
  for _ in range(steps):
    state, _ = train.step(state, batch)
  then = trees.by_path(before.params)
  return {p for p, leaf in trees.by_path(state.params).items() if not np.array_equal(leaf, then[p])}, before, state


def layers(paths):
  return {path.split('/')[0].split('_')[0] for path in paths}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('features')


def test_full_moves_everything_and_keeps_statistics(folder):
  begun = begin(network(), data(), method='full', folder=folder)
  paths, before, state = moved(begun)
  assert layers(paths) == {'one', 'two', 'three', 'head'}
  for one, other in zip(
    jax.tree.leaves(before.model_state['batch_stats']), jax.tree.leaves(state.model_state['batch_stats']), strict=True
  ):
    np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_statistics_move_where_that_is_asked(folder):
  _, before, state = moved(begin(network(), data(), method='full', norm='train', folder=folder), steps=1)
  one = 'one_norm'
  assert (before.model_state['batch_stats'][one]['mean'] != state.model_state['batch_stats'][one]['mean']).any()


@pytest.mark.parametrize(
  'method,options,learns',
  [
    ('probe', {}, {'head'}),
    ('last', {'unfrozen': 0.34}, {'three', 'head'}),
    ('lora', {'rank': 2}, {'jl.lora', 'head'}),
    pytest.param('gradual', {'phases': 4}, {'one', 'two', 'three', 'head'}, marks=pytest.mark.slow),
  ],
)
def test_what_is_frozen_has_neither_gradient_nor_moment(method, options, learns, folder):
  begun = begin(network(), data(), method=method, folder=folder)
  paths, before, state = moved(begun, **options)
  assert layers(trees.paths(state.params)) == learns
  moments = [leaf for leaf in jax.tree.leaves(before.opt_state) if np.ndim(leaf)]
  size = sum(np.size(leaf) for leaf in jax.tree.leaves(state.params))
  assert sum(np.size(leaf) for leaf in moments) == (0 if method == 'probe' else 2 * size)
  assert paths <= set(trees.paths(state.params))
  assert (method == 'probe') == (not paths)


def test_the_head_is_the_solved_one_and_the_same_bits_again(folder):
  one, again = (begin(network(), data(), method='probe', folder=folder) for _ in range(2))
  np.testing.assert_array_equal(one.network.params['head']['kernel'], again.network.params['head']['kernel'])
  found = one.network.predict(data().test.inputs).argmax(1)
  assert (found == data().test.labels).mean() > 0.5
  assert not begin(network(), data(), method='full', solve=False).network.params['head']['kernel'].any()


def test_other_tasks_begin_at_zero_and_say_so(folder):
  numbers = jl.data.from_arrays((X, X[:, :1]), task=jl.tasks.regression)
  begun = begin(network(), numbers, folder=folder)
  assert begun.network.predict(X).shape == (60, 1)
  assert any(line.startswith('head: begins at 0') for line in begun.told)
  assert not any('begins at 0' in line for line in begin(network(), data(), folder=folder).told)
  with pytest.raises(ValueError, match='the task regression is none'):
    begin(network(), numbers, method='probe', folder=folder)


@pytest.mark.parametrize(
  'examples,parameters,method,norm',
  [
    (50, 10**6, 'probe', 'keep'),
    (900, 10**6, 'full', 'keep'),
    (900, 10**8, 'lora', 'keep'),
    (9000, 10**6, 'full', 'train'),
  ],
)
def test_the_default_follows_the_examples(examples, parameters, method, norm):
  found = choose(examples, 5, parameters)
  assert (found.method, found.norm) == (method, norm)
  assert '\n' not in found.why
  assert len(found.why) > 20


def test_tf_idf_is_that_of_scikit_learn():
  texts = ['a b b c', 'a c c c d', 'a e', 'b b d d d a']
  ids = [['abcdef'.index(word) for word in text.split()] for text in texts]
  length = max(map(len, ids))
  tokens = np.array([one + [0] * (length - len(one)) for one in ids], np.int32)
  mask = np.array([[True] * len(one) + [False] * (length - len(one)) for one in ids])
  found = bag.fit_bag({'tokens': tokens, 'mask': mask})
  ours = bag.tf_idf_of(found, {'tokens': tokens, 'mask': mask})
  theirs = TfidfVectorizer(analyzer=str.split, sublinear_tf=True, vocabulary=list('bcde')).fit(texts).transform(texts)
  np.testing.assert_allclose(ours, theirs.toarray(), atol=1e-6)  # 'a' is in every text, and is not counted
  unknown = {'tokens': np.array([[9, 1]]), 'mask': np.ones((1, 2), bool)}
  assert bag.tf_idf_of(found, unknown)[0].tolist() == [1, 0, 0, 0]


@pytest.mark.slow
def test_words_stand_beside_embeddings_where_folds_like_them(folder):
  rng = np.random.default_rng(0)
  labels = np.arange(60) % 2
  tokens = rng.integers(2, 30, (60, 12)).astype(np.int32)
  tokens[:, 3] = 30 + labels  # one word tells; a mean of random embeddings blurs it
  inputs = {'tokens': tokens, 'mask': np.ones((60, 12), bool)}
  texts = jl.data.from_arrays((inputs, labels))
  net = (
    lambda p, x: p['table'][x['tokens']] @ p['w'],
    {'table': jnp.asarray(rng.normal(size=(32, 6)), jnp.float32), 'w': jnp.eye(6)},
  )
  begun = begin(net, texts, head='outputs', folder=folder)
  assert 'tf-idf' in begun.told[2]
  assert (begun.network.predict(texts.test.inputs).argmax(1) == texts.test.labels).all()
  alone = begin(net, texts, head='outputs', words='no', folder=folder)
  assert 'tf-idf' not in alone.told[2]
  assert alone.network.params['head']['kernel'].shape == (6, 2)
  assert begun.found.width == 6


@pytest.mark.parametrize(
  'change,told',
  [
    ('inputs', r'does not take the inputs of these data, float32\[3\] an example'),
    ('nan', 'features are finite'),
    ('method', 'method is one of'),
    ('norm', "norm is 'auto'"),
    ('words', 'the inputs of these data are none'),
    ('class', r'all 48 labels are 0|one class|classes'),
    ('few', r'examples of 40 classes'),
    ('sealed', 'gives a row of outputs'),
  ],
)
def test_what_cannot_be_fine_tuned_is_told_in_one_line(change, told, folder):
  net, found, options = network(), data(), {'method': 'probe', 'folder': folder}
  if change == 'inputs':
    found = jl.data.from_arrays((X[:, :3], Y))
  elif change == 'nan':
    net = net._replace(params=jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), net.params))
  elif change in ('method', 'norm', 'words'):
    options[change] = 'yes' if change == 'words' else 'other'
  elif change == 'class':
    found = found._replace(train=found.train._replace(labels=np.zeros(len(found.train.labels), np.int32)))
  elif change == 'few':
    found = found._replace(facts={**found.facts, 'classes': 40}, train=jl.data.Split(X[:8], Y[:8].astype(np.int32)))
  elif change == 'sealed':
    found = jl.data.from_arrays(
      (np.ones((20, 4), np.int32), np.ones((20, 4), np.int32)), task=lambda: jl.tasks.language(5)
    )
  with pytest.raises(ValueError, match=told) as error:
    begin(net, found, **options)
  assert '\n' not in str(error.value)
