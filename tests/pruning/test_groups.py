"""Laws of gradual structured pruning: what it masks `jl.shrink` removes exactly, and training goes on."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.pruning import find_groups, prune_groups
from loops import leaves, run

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 6, 6, 2)).astype(np.float32)
X = RNG.normal(size=(6, 5)).astype(np.float32)
LABELS = np.arange(6) % 3


class Residual(nn.Module):
  """A convolution, a block around which a sum runs, batch norms, and a norm over channels."""

  @nn.compact
  def __call__(self, x, train=False):
    def normed(x):
      return nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)

    def convolved(x, width):  # without a bias: before a norm it has no effect, so Adam would follow rounding
      return normed(nn.Conv(width, (3, 3), use_bias=False)(x))

    x = nn.relu(convolved(x, 16))
    x = nn.relu(x + convolved(nn.relu(convolved(x, 24)), 16))
    return nn.Dense(3)(nn.LayerNorm()(x.mean((1, 2))))


class Normed(nn.Module):
  """Dense layers with a batch norm."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(16, use_bias=False)(x))
    return nn.Dense(3)(nn.relu(nn.Dense(24)(nn.relu(x))))


def mlp(params, x):
  return jax.nn.relu(jax.nn.relu(x @ params['a'] + params['b']) @ params['c']) @ params['d']


def weights(seed=0, **shapes):
  rng = np.random.default_rng(seed)
  return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


MLP = {'a': (5, 16), 'b': (16,), 'c': (16, 24), 'd': (24, 3)}


def trained(model, inputs, *parts, steps=5):
  train = jl.train_step(model, jl.cross_entropy, jl.chain(*parts))
  batch = {'inputs': inputs, 'labels': LABELS}
  state = train.init(jax.random.key(0), batch)
  for _ in range(steps):
    state, _ = train.step(state, batch)
  return train, batch, state


def outputs(model, params, state, inputs, train=False):
  return model.apply(params, state, inputs, train=train, key=None)[0]


@pytest.mark.parametrize('kind', [Normed, pytest.param(Residual, marks=pytest.mark.slow)])
def test_what_is_masked_is_removed_with_equal_outputs_and_training_goes_on_as_it_would(kind):
  model, inputs = jl.from_linen(kind()), IMAGES if kind is Residual else X
  parts = (optax.adam(0.01), prune_groups(0.5, end=4, every=2, penalty=1e-4))
  train, batch, state = trained(model, inputs, *parts)
  assert int(state.opt_state[1].broken) == 0
  small = jl.shrink(model, state.params, state.model_state, inputs, key=jax.random.key(0))
  widths = sorted((one.units, one.kept) for one in small.groups)
  assert widths == [(16, 8), (24, 16)]  # half of 24 in steps of 8
  np.testing.assert_allclose(
    outputs(small.model, small.params, small.model_state, inputs),
    outputs(model, state.params, state.model_state, inputs),
    atol=1e-5,
  )
  again = jl.train_step(small.model, jl.cross_entropy, jl.chain(*parts))
  left = small.cut(state)
  assert [one.shape for one in left.opt_state[1].alive] == [(kept,) for _, kept in widths]
  for _ in range(2):
    state, wanted = train.step(state, batch)
    left, found = again.step(left, batch)
    np.testing.assert_allclose(found['loss'], wanted['loss'], rtol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), left.params, small.cut(state.params))


def test_a_loop_of_ones_own_masks_the_smallest_units():
  params = weights(**MLP)
  groups = find_groups(jl.from_function(mlp, params), X, multiple=1)
  tx = optax.chain(optax.sgd(0.0), prune_groups(0.5, groups=groups))
  updates, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
  params, whole = optax.apply_updates(params, updates), {name: np.asarray(leaf) for name, leaf in params.items()}
  jl.pruning.check(state)
  square = (whole['a'] ** 2).sum(0) + whole['b'] ** 2 + (whole['c'] ** 2).sum(1)
  left = np.sort(np.argsort(-square)[:8])
  assert np.flatnonzero(np.asarray(params['b'])).tolist() == left.tolist()
  small = jl.shrink(mlp, params, {}, X, multiple=1)
  assert small.params['c'].shape == (8, 12)
  np.testing.assert_array_equal(small.params['a'], whole['a'][:, left])
  np.testing.assert_allclose(small.network.predict(X), mlp(params, X), rtol=1e-5, atol=1e-5)


def test_the_share_grows_to_the_target_and_a_state_that_was_saved_goes_on_to_the_same_bits():
  start = weights(**MLP)
  groups = find_groups(jl.from_function(mlp, start), X, multiple=1)
  tx = optax.chain(optax.adam(0.05), prune_groups(0.5, begin=1, end=4, every=1, groups=groups, penalty=1e-3))

  @jax.jit
  def step(params, state):
    grads = jax.grad(lambda params: (mlp(params, X) ** 2).mean())(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  def run(saved):
    params, state, dead = start, tx.init(start), []
    for at in range(6):
      if at == saved:
        held = [np.asarray(leaf) for leaf in jax.tree.leaves((params, state))]
        params, state = jax.tree.unflatten(jax.tree.structure((start, tx.init(start))), held)
      params, state = step(params, state)
      dead.append([int((~one).sum()) for one in state[1].alive])
    return params, state, dead

  (params, state, dead), (again, _, _) = run(None), run(3)
  assert dead[0] == [0, 0]
  assert dead[-1] == dead[4] == [8, 12]
  assert dead == sorted(dead)
  assert bool(state[1].reached)
  jl.pruning.check(state)
  jax.tree.map(np.testing.assert_array_equal, params, again)
  assert jl.shrink(mlp, params, {}, X, multiple=1).params['c'].shape == (8, 12)


def test_the_penalty_is_a_proximal_step_of_group_lasso_until_the_target_is_reached():
  params = weights(**MLP)
  groups = find_groups(jl.from_function(mlp, params), X, multiple=1)
  tx = prune_groups({'^d$': 0.5}, begin=0, end=1, every=1, groups=groups, penalty=0.25)
  state = tx.init(params)
  updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
  new = optax.apply_updates(params, updates)

  def size(tree):
    return np.sqrt(((np.asarray(tree['a']) ** 2).sum(0) + np.asarray(tree['b']) ** 2) / 6)

  alone = {**params, 'c': jnp.zeros_like(params['c'])}  # of one group alone the step is exact
  zeros = jax.tree.map(jnp.zeros_like, alone)
  shrunk = optax.apply_updates(alone, tx.update(zeros, tx.init(alone), alone)[0])
  rows = np.asarray((alone['a'] ** 2).sum(0) + alone['b'] ** 2) / (5 + 1 + 24)
  np.testing.assert_allclose(size(shrunk), size(alone) * np.maximum(1 - 0.25 / np.sqrt(rows), 0), rtol=1e-4)
  assert (np.abs(new['c']) <= np.abs(params['c'])).all()
  assert [bool(one.all()) for one in state.alive] == [True, True]  # nothing yet of a cubic schedule at its begin
  for _ in range(2):
    before, last = new, state
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, new), state, new)
    new = optax.apply_updates(new, updates)
  assert bool(last.reached)
  np.testing.assert_array_equal(new['a'], before['a'])  # reached: no pull
  assert [int((~one).sum()) for one in state.alive] == [0, 12]


def test_it_composes_with_a_teacher_and_few_bits():
  model = jl.from_function(mlp, weights(**MLP))
  teacher = jl.Network(model, *model.init(jax.random.key(0), X))
  parts = (jl.distill(teacher), jl.fake_quant(bits=8), optax.adam(0.01), prune_groups(0.5, end=3, every=1))
  train, _, state = trained(model, X, *parts)
  params, _ = train.model.export(state.params, {**state.model_state, 'jl.const': state.const})
  small = jl.shrink(model, params, {}, X)
  assert small.params['c'].shape == (8, 16)
  np.testing.assert_allclose(small.network.predict(X), mlp(params, X), atol=1e-5)


def recipe(config, total):
  return jl.chain(optax.adam(0.05), prune_groups(0.5, end=8, every=3, penalty=1e-3))


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_bits(tmp_path, monkeypatch):
  from loops import crash_at

  model = jl.models.MLP((16,), classes=3)
  run(tmp_path / 'whole', recipe, model=model)
  crash = crash_at(7, monkeypatch)
  next(crash)
  with pytest.raises(MemoryError):
    run(tmp_path / 'torn', recipe, model=model)
  next(crash, None)
  result = run(tmp_path / 'torn', recipe, model=model)
  assert leaves(tmp_path / 'torn') == leaves(tmp_path / 'whole')
  assert any('8 of 16 neurons, channels and heads are zero' in ' '.join(part) for part in result.parts)
  network = jl.load(tmp_path / 'torn')
  small = jl.shrink(network.model, network.params, network.model_state, X[:, [0, 1, 2, 3, 4, 0]])
  assert small.params['dense1']['kernel'].shape == (6, 8)


def test_what_is_not_understood_or_not_trained_is_refused_by_name():
  def sorted_(p, x):
    return jnp.sort(x @ p['a'], axis=-1) @ p['c'] + jax.nn.relu(x @ p['e']) @ p['f']

  params = weights(a=(5, 8), c=(8, 3), e=(5, 16), f=(16, 3))
  groups = find_groups(jl.from_function(sorted_, params), X)
  assert [str(one) for one in groups.families] == ['e[1], f[0]']

  def summed(p, x):
    return jnp.exp(x @ p['a'] * jnp.arange(8.0) + jnp.arange(8.0)).sum(-1, keepdims=True) @ p['c']

  with pytest.raises(ValueError, match=r'a\[1\].*reduce_sum'):
    prune_groups(0.5, groups=find_groups(jl.from_function(summed, weights(a=(5, 8), c=(1, 3))), X)).init(
      weights(a=(5, 8), c=(1, 3))
    )
  model = jl.from_function(mlp, weights(**MLP))
  _, _, state = trained(model, X, jl.freeze('^a$'), optax.sgd(0.1), prune_groups(0.5), steps=1)
  assert [str(one) for one in state.opt_state[1].groups.families] == ['c[1], d[0]']
  assert ('a[1], b[0], c[0]', 'not all of it is trained') in state.opt_state[1].groups.refused
  assert 'stays whole: not all of it is trained' in state.opt_state[1].account(state.params).left


def test_mistakes_are_told_in_a_line():
  params = weights(**MLP)
  groups = find_groups(jl.from_function(mlp, params), X)
  for make, words in (
    (lambda: prune_groups(1.0), r'in \[0, 1\)'),
    (lambda: prune_groups(0.5, penalty=-0.1), '0 or more'),
    (lambda: prune_groups(0.5).init(params), r'groups=jl.pruning.find_groups'),
    (lambda: prune_groups(0.5, groups=groups).init(weights(**{**MLP, 'a': (5, 8)})), 'of another network'),
    (lambda: prune_groups({'nope': 0.5}, groups=groups).init(params), 'nope'),
    (lambda: prune_groups(0.1, groups=groups).init(params), 'give multiple=1'),
    (lambda: find_groups(jl.from_function(mlp, params), X, multiple=0), 'whole number'),
  ):
    with pytest.raises(ValueError, match=words):
      make()
  with pytest.raises(TypeError, match='find_groups'):
    prune_groups(0.5, groups={'a': 1}).init(params)
  with pytest.raises(ValueError, match='no update may follow'):
    jl.chain(prune_groups(0.5), optax.sgd(0.1))
  tx = optax.chain(prune_groups(0.5, groups=groups), optax.sgd(1.0))
  state = tx.init(params)
  for _ in range(2):
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    params = optax.apply_updates(params, updates)
  with pytest.raises(ValueError, match='the last of its chain'):
    jl.pruning.check(state)
