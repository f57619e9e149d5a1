"""Hooks in loops of other people are what they are in `train_step`: losses bit for bit, zeros exactly."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState

import jaxlite as jl
from jaxlite import trees
from jaxlite.step.own_tree import named
from networks import convnet

KEY = jax.random.key(7)
STEPS = 7
HOOKS = {
  'QAT': lambda: jl.chain(jl.fake_quant(bits=8), jl.average(0.9), jl.accumulate(2)),
  'LSQ': lambda: jl.chain(jl.lsq(bits=4), jl.average(0.9), jl.accumulate(2)),
}
T1 = np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32)


def batch_at(step, size=12):
  rng = np.random.default_rng(step)
  inputs = rng.normal(size=(size, 20)).astype(np.float32)
  weight = np.ones(size, np.float32)
  weight[: step % 3] = 0
  labels = (inputs @ T1).argmax(1).astype(np.int32)
  return jax.tree.map(jnp.asarray, {'inputs': inputs, 'labels': labels, 'weight': weight})


def adam(prune):
  return optax.adam(1e-2), prune


def prune():
  return jl.prune(0.8, begin=2, end=6, every=2, allocate=jl.pruning.uniform)


# --- dense, batch norm, relu, dropout, dense, and each framework's own loop ----------------------------------------


class LinenNet(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(16, name='a')(x)))
    return nn.Dense(5, name='b')(nn.Dropout(0.4, deterministic=not train)(x))


class NnxNet(nnx.Module):
  def __init__(self, rngs):
    self.a, self.b = nnx.Linear(20, 16, rngs=rngs), nnx.Linear(16, 5, rngs=rngs)
    self.norm, self.dropout = nnx.BatchNorm(16, momentum=0.9, rngs=rngs), nnx.Dropout(0.4, rngs=rngs)

  def __call__(self, x):
    return self.b(self.dropout(nnx.relu(self.norm(self.a(x)))))


class EqxNet(eqx.Module):
  a: eqx.nn.Linear
  b: eqx.nn.Linear
  norm: eqx.nn.BatchNorm
  dropout: eqx.nn.Dropout

  def __init__(self, key):
    self.a, self.b = eqx.nn.Linear(20, 16, key=key), eqx.nn.Linear(16, 5, key=key)
    self.norm, self.dropout = eqx.nn.BatchNorm(16, 'batch', momentum=0.9, mode='batch'), eqx.nn.Dropout(0.4)

  def __call__(self, x, state, *, key=None):
    x, state = self.norm(self.a(x), state)
    return self.b(self.dropout(jax.nn.relu(x), key=key)), state


def linen_loop(hooks, batch_at):
  """Flax's own TrainState, whose `tx` is given the params alone."""
  loop = jl.step.wrap(jl.from_linen(LinenNet()), jl.cross_entropy, hooks)
  params, model_state = loop.init(KEY, batch_at(0))
  tx = optax.chain(*adam(jl.step.told(prune(), loop.weights(KEY, batch_at(0)))))
  state = TrainState.create(apply_fn=loop.model.apply, params=params, tx=tx)

  @jax.jit
  def step(state, model_state, batch):
    grads, model_state, terms = loop.gradient(state.params, model_state, batch, KEY, state.step)
    state = state.apply_gradients(grads=grads)
    return state, loop.model.after(state.params, model_state, state.step), terms

  losses = []
  for i in range(STEPS):
    state, model_state, terms = step(state, model_state, batch_at(i))
    losses.append(terms)
  jl.pruning.check(state.opt_state)
  return loop, losses, state.params, model_state, state.params


def nnx_loop(hooks, batch_at):
  """NNX's Optimizer, which writes into the module; what hooks learn is made of Params beside it."""
  net = NnxNet(nnx.Rngs(0))
  loop = jl.step.wrap(jl.from_nnx(net), jl.cross_entropy, hooks)
  params, model_state = loop.init(KEY, batch_at(0))
  extras = {name: jax.tree.map(nnx.Param, own) for name, own in params.items() if trees.is_extra(name)}
  both = (net, extras) if extras else net
  weights = loop.weights(KEY, batch_at(0), nnx.state(both, nnx.Param))
  optimizer = nnx.Optimizer(both, optax.chain(*adam(jl.step.told(prune(), weights))), wrt=nnx.Param)

  @nnx.jit
  def step(both, optimizer, model_state, batch, i):
    grads, model_state, terms = loop.gradient(nnx.state(both, nnx.Param), model_state, batch, KEY, i)
    optimizer.update(both, grads)
    return loop.model.after(nnx.state(both, nnx.Param), model_state, i + 1), terms

  losses = []
  for i in range(STEPS):
    model_state, terms = step(both, optimizer, model_state, batch_at(i), i)
    losses.append(terms)
  jl.pruning.check(optimizer.opt_state)
  return loop, losses, nnx.state(both, nnx.Param), model_state, nnx.state(net, nnx.Param)


def equinox_loop(hooks, batch_at):
  """Equinox's filtered transforms; params and gradients are modules."""
  net, held = eqx.nn.make_with_state(EqxNet)(jax.random.key(0))
  loop = jl.step.wrap(jl.from_equinox(net, held), jl.cross_entropy, hooks)
  params, model_state = loop.init(KEY, batch_at(0))
  extras = {name: own for name, own in params.items() if trees.is_extra(name)}
  both = (net, extras) if extras else net
  weights = loop.weights(KEY, batch_at(0), eqx.filter(both, eqx.is_inexact_array))
  tx = optax.chain(*adam(jl.step.told(prune(), weights)))
  opt_state = tx.init(eqx.filter(both, eqx.is_inexact_array))

  @eqx.filter_jit
  def step(both, model_state, opt_state, batch, i):
    params = eqx.filter(both, eqx.is_inexact_array)
    grads, model_state, terms = loop.gradient(params, model_state, batch, KEY, i)
    updates, opt_state = tx.update(grads, opt_state, params)
    both = eqx.apply_updates(both, updates)
    return both, loop.model.after(eqx.filter(both, eqx.is_inexact_array), model_state, i + 1), opt_state, terms

  losses = []
  for i in range(STEPS):
    both, model_state, opt_state, terms = step(both, model_state, opt_state, batch_at(i), jnp.int32(i))
    losses.append(terms)
  jl.pruning.check(opt_state)
  params = eqx.filter(both, eqx.is_inexact_array)
  return loop, losses, params, model_state, params[0] if extras else params


LOOPS = {'linen': linen_loop, 'nnx': nnx_loop, 'equinox': equinox_loop}
WEIGHT = {'linen': 'kernel', 'nnx': 'kernel', 'equinox': 'weight'}


def model_of(framework):
  if framework == 'linen':
    return jl.from_linen(LinenNet())
  return jl.from_nnx(NnxNet(nnx.Rngs(0))) if framework == 'nnx' else jl.from_equinox(*_eqx())


def _eqx():
  return eqx.nn.make_with_state(EqxNet)(jax.random.key(0))


def same_in_both(framework, hooks):
  train = jl.train_step(model_of(framework), jl.cross_entropy, jl.chain(hooks(), *adam(prune())))
  state = train.init(KEY, batch_at(0))
  wanted = []
  for i in range(STEPS):
    state, metrics = train.step(state, batch_at(i))
    wanted.append({name: float(value) for name, value in metrics.items() if name != 'loss'})
  loop, losses, params, model_state, net = LOOPS[framework](hooks(), batch_at)
  assert [{name: float(value) for name, value in terms.items()} for terms in losses] == wanted
  assert len({terms['task'] for terms in wanted}) == STEPS  # it learned, so there is something to compare
  ours, theirs = trees.by_path(named(params)[0]), trees.by_path(state.params)
  assert ours.keys() == theirs.keys()
  for path, leaf in ours.items():
    np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)
  weights = [leaf for path, leaf in trees.by_path(net).items() if path.endswith(f'/{WEIGHT[framework]}')]
  assert sorted(int(np.count_nonzero(leaf)) for leaf in weights if leaf.ndim == 2) == [16, 64]
  kept = {name: own for name, own in model_state.items() if name not in ('jl.loop', 'jl.const')}
  for path, leaf in trees.by_path(kept).items():
    np.testing.assert_array_equal(leaf, trees.by_path(state.model_state)[path], err_msg=path)
  loop.check(model_state)
  outputs = jax.jit(functools.partial(loop.model.apply, train=False, key=None))
  np.testing.assert_allclose(
    outputs(params, model_state, batch_at(9)['inputs'])[0], train.eval(state, batch_at(9))[0], rtol=1e-5, atol=1e-6
  )
  exported, _ = loop.model.export(params, model_state)  # the average, without what hooks added
  assert trees.paths(exported) == [path for path in theirs if not trees.is_extra(path)]
  live = [leaf for leaf in jax.tree.leaves(exported) if leaf.ndim == 2]
  assert sorted(int(np.count_nonzero(leaf)) for leaf in live) == [16, 64]


@pytest.mark.unoptimized
@pytest.mark.parametrize('framework, hooks', [('nnx', 'LSQ'), ('equinox', 'QAT')])  # Linen's is on the READMEs' pages
def test_losses_weights_and_averages_are_those_of_train_step_to_the_last_bit(framework, hooks):
  same_in_both(framework, HOOKS[hooks])


@pytest.mark.slow
@pytest.mark.parametrize('hooks', [*HOOKS, 'hints'])
@pytest.mark.parametrize('framework', LOOPS)
def test_the_same_of_every_framework_and_every_kind_of_hook(framework, hooks):
  def hints():
    teacher = jl.Network(jl.from_function(lambda p, x: x @ p['w'], {'w': T1}), {'w': jnp.asarray(T1)}, {})
    features = jl.hint(teacher, {f'a/{WEIGHT[framework]}': 'w'})
    return jl.chain(features, jl.distillation.self_distill(0.9), jl.average(0.9))

  same_in_both(framework, {**HOOKS, 'hints': hints}[hooks])


# --- what a loop may do, and what it is told -----------------------------------------------------------------------


def dense():
  return jl.from_function(lambda p, x: x @ p['w'] + p['b'], {'w': jnp.ones((20, 5)) / 20, 'b': jnp.zeros(5)})


def begun(hooks, model=None):
  loop = jl.step.wrap(model or dense(), jl.cross_entropy, hooks)
  return loop, *loop.init(KEY, batch_at(0))


def walk(loop, params, model_state, *, steps, after=lambda i: i + 1, at=lambda i: i):
  @jax.jit
  def step(params, model_state, batch, i, follows):
    grads, model_state, _ = loop.gradient(params, model_state, batch, KEY, i)
    params = jax.tree.map(lambda leaf, grad: leaf - 0.1 * grad, params, grads)
    return params, model_state if after is None else loop.model.after(params, model_state, follows)

  for i in range(steps):
    follows = 0 if after is None else after(i)
    params, model_state = step(params, model_state, batch_at(0), at(i), follows)
  return params, model_state


def test_a_loop_that_forgets_after_is_told_wherever_the_average_would_be_read():
  loop, params, model_state = begun(jl.average(0.9))
  loop.check(model_state)  # before the first step
  params, model_state = walk(loop, params, model_state, steps=3, after=None)
  reads = (
    lambda: loop.check(model_state),
    lambda: loop.model.export(params, model_state),
    lambda: loop.model.apply(params, model_state, batch_at(0)['inputs'], train=False, key=None),
  )
  for read in reads:
    with pytest.raises(ValueError, match=r'`after` was called 0 times in 3 steps.*loop\.model\.after'):
      read()


def test_a_loop_with_wrong_steps_is_told():
  loop, params, model_state = begun(jl.average(0.9))
  _, still = walk(loop, params, model_state, steps=3, at=lambda i: 0, after=lambda i: 1)
  with pytest.raises(ValueError, match='moved by 1 step while `after` was called 3 times: count steps up'):
    loop.check(still)
  _, late = walk(loop, params, model_state, steps=3, after=lambda i: i)
  with pytest.raises(ValueError, match=r'give it step \+ 1, where `gradient` was given step; 3 calls did not'):
    loop.check(late)
  _, later = walk(loop, params, model_state, steps=3, at=lambda i: i + 100, after=lambda i: i + 101)
  loop.check(later)  # a loop that goes on from step 100


def test_a_part_that_was_told_is_told_in_every_chain():
  params = {'norm': jnp.ones((4, 4)), 'w': jnp.ones((4, 4))}
  for chain in (optax.chain, lambda *parts: jl.chain(*parts).tx):
    state = chain(optax.sgd(0.1), jl.step.told(jl.prune(0.5), {'w': None})).init(params)
    assert trees.paths(state[1].masks) == ['w']


def test_flax_serialization_writes_the_state_of_a_part_that_was_told():
  loop = jl.step.wrap(jl.from_linen(nn.Dense(3)), jl.cross_entropy, jl.average(0.9))
  batch = {'inputs': jnp.ones((4, 5)), 'labels': jnp.zeros(4, int)}
  params, model_state = loop.init(KEY, batch)
  weights = loop.weights(KEY, batch)
  for part in (jl.prune(0.5), jl.prune(0.5, packed=True), jl.rigl(optax.adam(0.1), 0.5, end=9)):
    tx = optax.chain(optax.sgd(0.1), jl.step.told(part, weights))
    _, state = tx.update(params, tx.init(params), params)
    data = serialization.to_bytes({'opt_state': state, 'model_state': model_state})
    fresh = {'opt_state': tx.init(params), 'model_state': jax.tree.map(jnp.zeros_like, model_state)}
    back = serialization.from_bytes(fresh, data)
    assert jax.tree.structure(back['opt_state']) == jax.tree.structure(state)  # layouts too
    assert jax.tree.all(jax.tree.map(np.array_equal, back, {'opt_state': state, 'model_state': model_state}))


def test_a_chain_with_an_optimizer_is_refused_and_so_is_what_is_no_hook():
  for part in (optax.adam(1e-2), jl.prune(0.5)):
    with pytest.raises(ValueError, match='put it into your optimizer'):
      jl.step.wrap(dense(), jl.cross_entropy, jl.chain(jl.fake_quant(), part))
  with pytest.raises(TypeError, match=r'hooks from jl\.chain.*got function'):
    jl.step.wrap(dense(), jl.cross_entropy, lambda model: model)
  with pytest.raises(TypeError, match='takes a Model'):
    jl.step.wrap(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), jl.cross_entropy, jl.average())
  with pytest.raises(TypeError, match='selects weights'):
    jl.step.told(optax.adam(1e-2), {})
  with pytest.raises(ValueError, match='typed key'):
    jl.step.wrap(dense(), jl.cross_entropy, jl.average()).init(jnp.zeros(2, jnp.uint32), batch_at(0))


def test_params_that_are_not_the_models_are_refused():
  net = NnxNet(nnx.Rngs(0))
  loop = jl.step.wrap(jl.from_nnx(net), jl.cross_entropy, jl.fake_quant())
  _, model_state = loop.init(KEY, batch_at(0))
  with pytest.raises(ValueError, match=r"is none: 'dropout/rngs/count'.*nnx\.state\(net, nnx\.Param\)"):
    loop.gradient(nnx.state(net), model_state, batch_at(0), KEY, 0)
  module, held = _eqx()
  loop = jl.step.wrap(jl.from_equinox(module, held), jl.cross_entropy, jl.lsq())
  _, model_state = loop.init(KEY, batch_at(0))
  with pytest.raises(ValueError, match=r"lack 'jl\.lsq/.*where hooks learn something"):
    loop.gradient(eqx.filter(module, eqx.is_inexact_array), model_state, batch_at(0), KEY, 0)


@pytest.mark.parametrize('tree', [[{'w': 1.0}, 2.0], (1.0, 2.0), {'a/b': {'c': 1.0}, 'a': 2.0}, 3.0], ids=str)
def test_a_tree_comes_back_as_it_was(tree):
  if isinstance(tree, dict) and len(tree) == 2:
    tree = {'a/b': {'c': 1.0}}  # Haiku's names
  params, back = named(tree)
  assert all(type(name) is str and '/' not in name for name in params)
  assert back(jax.tree.map(lambda leaf: leaf + 1, params)) == jax.tree.map(lambda leaf: leaf + 1, tree)


def test_a_gradient_outside_of_a_trace_and_a_value_are_those_inside():
  loop, params, model_state = begun(jl.accumulate(3), convnet(keep=0.5))
  batch = {'inputs': jax.random.normal(KEY, (6, 4, 4, 1)), 'labels': jnp.arange(6) % 3}
  params, model_state = loop.init(KEY, batch)
  args = params, model_state, batch, KEY, jnp.int32(3)
  eager, jitted = loop.gradient(*args), jax.jit(loop.gradient)(*args)
  for one, other in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
  assert float(jax.jit(loop.value)(*args)) == pytest.approx(float(eager[2]['task']), rel=1e-6)


@pytest.mark.slow
def test_a_line_search_gets_its_value():
  loop, params, model_state = begun(jl.fake_quant())
  tx = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=8))

  @jax.jit
  def step(params):
    grads, _, terms = loop.gradient(params, model_state, batch_at(0), KEY, 0)
    value_fn = lambda params: loop.value(params, model_state, batch_at(0), KEY, 0)  # noqa: E731
    updates, _ = tx.update(grads, tx.init(params), params, value=terms['task'], grad=grads, value_fn=value_fn)
    return value_fn(optax.apply_updates(params, updates)), terms['task']

  after, before = step(params)
  assert float(after) < float(before)


def test_what_hooks_learn_is_no_weight_in_any_tree():
  params = ({'w': jnp.ones((4, 4))}, {'jl.hint': {'a': {'kernel': jnp.ones((4, 4))}}})
  state = jl.prune(0.5).init(params)
  assert trees.paths(state.masks) == ['0/w']
  assert trees.paths(jl.prune(0.5, select='').init(params).masks) == ['0/w']


def test_teachers_stay_arguments_and_nothing_of_the_loop_is_exported():
  teacher = jl.Network(jl.from_function(lambda p, x: x @ p['w'], {'w': T1}), {'w': jnp.asarray(T1)}, {})
  loop, params, model_state = begun(jl.chain(jl.distill(teacher), jl.average(0.5)))
  closed = jax.make_jaxpr(loop.gradient)(params, model_state, batch_at(0), KEY, 0)
  assert not [const for const in closed.consts if np.size(const) > 1]
  exported, state = loop.model.export(params, model_state)
  assert set(exported) == {'w', 'b'}
  assert not [name for name in state if trees.is_extra(name)]


@pytest.mark.parametrize('hooks', [jl.average(0.9), jl.accumulate(2)], ids=['plain', 'micro-batches'])
def test_a_gradient_of_no_example_is_refused(hooks):
  loop = jl.step.wrap(jl.from_function(lambda p, x: x @ p['w'], {'w': jnp.zeros((20, 5))}), jl.cross_entropy, hooks)
  batch = batch_at(0)
  params, state = loop.init(KEY, batch)
  with pytest.raises(ValueError, match=r'one example at least; got a batch of none'):
    loop.gradient(params, state, jax.tree.map(lambda leaf: leaf[:0], batch), KEY, jnp.int32(0))
