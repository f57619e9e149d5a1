"""Laws of the contract: what is a part, which orders are refused, who meets the weights first."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.contract import Context, Network, drop_extras, stream
from jaxlite.step.train_step import train_step
from jaxlite.tasks.lift import lift_loss, weighted_mean


def linear():
  def apply(params, state, inputs, *, train, key, step=None):
    return inputs @ params['w'] + params['b'], state

  return jl.Model(lambda key, inputs: ({'w': jnp.ones((3, 2)), 'b': jnp.zeros(2)}, {}), apply)


def scaling(name, factor):
  def view(params, state, **_):
    return {**params, 'w': params['w'] * factor}

  return jl.Hook(name, model=lambda inner: jl.reparam(inner, name, lambda key, p, s: (p, s), view))


def appending(name, value):
  """A view that is no commutative one: it puts its value behind what it meets."""

  def view(params, state, **_):
    return {**params, 'w': params['w'] * 10 + value}

  return jl.Hook(name, model=lambda inner: jl.reparam(inner, name, lambda key, p, s: (p, s), view))


@pytest.mark.parametrize(
  'combinator',
  [
    lambda hook: optax.chain(hook, optax.sgd(0.1)),
    lambda hook: optax.masked(hook, True),
    lambda hook: optax.MultiSteps(hook, 2),
    lambda hook: optax.partition({'a': hook}, 'a').init({'w': jnp.ones(2)}),
  ],
)
def test_plain_optax_raises_when_given_a_hook(combinator):
  with pytest.raises(TypeError, match=r'jl\.chain'):
    combinator(jl.Hook('mine'))


def test_a_chain_is_itself_a_part():
  inner = jl.chain(scaling('a', 2.0), optax.sgd(0.1))
  outer = jl.chain(inner, scaling('b', 3.0))
  assert [type(part).__name__ for part in outer.parts] == ['Hook', 'GradientTransformationExtraArgs', 'Hook']
  model = outer.model(linear())
  params, state = model.init(jax.random.key(0), jnp.ones((1, 3)))
  outputs, _ = model.apply(params, state, jnp.ones((1, 3)), train=True, key=None)
  np.testing.assert_allclose(outputs, 18.0)


def test_weights_meet_the_parts_from_left_to_right():
  model = jl.chain(appending('a', 1), appending('b', 2)).model(linear())
  params, state = model.init(jax.random.key(0), jnp.ones((1, 3)))
  exported, _ = model.export(params, state)
  assert exported['w'][0, 0] == 112  # 1, then a's 1, then b's 2


def test_gradients_meet_the_parts_from_left_to_right():
  seen = []

  def noting(name):
    def grad(inner):
      def noted(*args):
        seen.append(name)
        return inner(*args)

      return noted

    return jl.Hook(name, grad=grad)

  train = train_step(linear(), lambda out, batch: jnp.sum(out, 1), jl.chain(noting('a'), noting('b'), optax.sgd(0.1)))
  batch = {'inputs': jnp.ones((4, 3))}
  train.step(train.init(jax.random.key(0), batch), batch)
  assert seen == ['a', 'b']


def test_two_hooks_of_one_name_are_refused():
  with pytest.raises(ValueError, match="'a' stands twice"):
    jl.chain(scaling('a', 1.0), scaling('a', 2.0))


@pytest.mark.parametrize('name', ['task', 'loss', 'const', 'point'])  # the task's loss, say, would be gone
def test_a_hook_of_the_name_of_what_a_step_keeps_itself_is_refused(name):
  with pytest.raises(ValueError, match=f"'{name}' stands twice or is the step's"):
    jl.chain(jl.distill(lambda x: x, name=name), optax.sgd(0.1))


@pytest.mark.parametrize('shape', [(4,), (1,)])
def test_a_term_that_is_no_single_number_is_told(shape):
  hook = jl.Hook('mine', loss=lambda inner: lambda context: {**inner(context), 'mine': jnp.ones(shape)})
  train = train_step(linear(), lambda out, batch: jnp.sum(out, 1), jl.chain(hook, optax.sgd(0.1)))
  with pytest.raises(ValueError, match=r"are single numbers, .*; 'mine' is float32\[\d\]: take a mean"):
    train.step(train.init(jax.random.key(0), {'inputs': jnp.ones((4, 3))}), {'inputs': jnp.ones((4, 3))})


def test_an_update_after_prune_is_refused_and_a_hook_is_not():
  with pytest.raises(ValueError, match='stay zero'):
    jl.chain(jl.prune(0.5), optax.sgd(0.1))
  jl.chain(optax.sgd(0.1), jl.prune(0.5), scaling('a', 1.0), jl.prune(0.6, select='w'))


def test_what_is_no_part_is_refused():
  with pytest.raises(TypeError, match='part 1 is int'):
    jl.chain(optax.sgd(0.1), 3)
  with pytest.raises(TypeError, match=r'part 0 is the function adam: call it, adam\(\.\.\.\)'):
    jl.chain(optax.adam)
  with pytest.raises(TypeError, match=r'part 0 is a list: unpack it'):
    jl.chain([optax.sgd(0.1)])
  with pytest.raises(TypeError, match=r'jl\.accumulate'):
    jl.chain(optax.MultiSteps(optax.sgd(0.1), 2))


def test_hidden_multisteps_is_refused_at_init():
  hidden = optax.chain(optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation())
  train = train_step(linear(), lambda out, batch: jnp.sum(out, 1), jl.chain(hidden))
  with pytest.raises(ValueError, match=r'jl\.accumulate'):
    train.init(jax.random.key(0), {'inputs': jnp.ones((4, 3))})


def test_chain_of_updates_equals_optax_chain():
  parts = [optax.clip_by_global_norm(1.0), optax.contrib.reduce_on_plateau(), optax.adam(0.1)]
  ours, theirs = jl.chain(*parts).tx, optax.chain(*parts)
  params = {'w': jnp.arange(6.0).reshape(2, 3)}
  ours_state, theirs_state = ours.init(params), theirs.init(params)
  for step in range(3):
    grads = {'w': jnp.ones((2, 3)) * step}
    a, ours_state = ours.update(grads, ours_state, params, value=jnp.float32(step))
    b, theirs_state = theirs.update(grads, theirs_state, params, value=jnp.float32(step))
    np.testing.assert_array_equal(a['w'], b['w'])


def test_a_state_of_another_recipe_is_refused():
  state = jl.chain(optax.sgd(0.1)).tx.init({'w': jnp.ones(2)})
  with pytest.raises(ValueError, match='2 update parts'):
    jl.chain(optax.sgd(0.1), optax.scale(1.0)).tx.update({'w': jnp.ones(2)}, state, {'w': jnp.ones(2)})


def test_a_hook_that_learns_keeps_what_it_learned_out_of_export():
  def init(key, params, state):
    return {**params, 'jl.gain': {'g': jnp.float32(3)}}, {**state, 'jl.gain': jnp.ones(()), 'jl.const': {'gain': 1.0}}

  def view(params, state, **_):
    return {**drop_extras(params, 'gain'), 'w': params['w'] * params['jl.gain']['g']}

  model = jl.reparam(linear(), 'gain', init, view)
  params, state = model.init(jax.random.key(0), jnp.ones((1, 3)))
  exported, stripped = model.export(params, state)
  assert set(exported) == {'w', 'b'}
  assert stripped == {}
  np.testing.assert_array_equal(
    linear().apply(exported, {}, jnp.ones((1, 3)), train=False, key=None)[0],
    model.apply(params, state, jnp.ones((1, 3)), train=False, key=None)[0],
  )


def test_params_that_are_no_dict_are_refused_where_a_part_adds_to_them():
  model = jl.Model(lambda key, inputs: ((jnp.ones(2),), {}), lambda p, s, x, **_: (x * p[0], s))
  wrapped = jl.reparam(model, 'x', lambda key, p, s: (p, s), lambda p, s, **_: p)
  with pytest.raises(TypeError, match='needs params to be a dict'):
    wrapped.init(jax.random.key(0), jnp.ones((1, 2)))


def test_streams_differ_by_name_and_step_and_repeat():
  key = jax.random.key(1)
  drawn = {(name, step): jax.random.key_data(stream(key, name, step)).tolist() for name in 'ab' for step in range(3)}
  assert len({tuple(value) for value in drawn.values()}) == 6
  assert jax.random.key_data(stream(key, 'a', 2)).tolist() == drawn['a', 2]
  assert stream(None, 'a', 1) is None


@pytest.mark.parametrize('weight', [None, [1.0, 1.0, 1.0], [1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
def test_task_is_the_weighted_mean(weight):
  values = jnp.array([1.0, 5.0, 3.0])
  batch = {'inputs': values} if weight is None else {'inputs': values, 'weight': jnp.array(weight)}
  found = lift_loss(lambda outputs, batch: outputs)(Context(values, batch, {}, {}, None, 0))['task']
  expected = 0.0 if weight and not any(weight) else np.average([1.0, 5.0, 3.0], weights=weight)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_loss_of_another_shape_is_refused():
  context = Context(jnp.ones((3, 2)), {'inputs': 0, 'weight': jnp.ones(3)}, {}, {}, None, 0)
  with pytest.raises(ValueError, match='one value per example'):
    lift_loss(lambda outputs, batch: outputs)(context)
  scalar = lift_loss(lambda outputs, batch: jnp.sum(outputs))
  with pytest.raises(ValueError, match='got a scalar: leave its mean out'):
    scalar(context)
  assert scalar(context._replace(batch={'inputs': 0}))['task'] == 6.0


def test_padding_has_no_gradient_even_where_its_loss_is_infinite():
  gradient = jax.grad(lambda v: weighted_mean(1 / v, jnp.array([1.0, 0.0])))(jnp.array([2.0, 0.0]))
  assert gradient[0] == -0.25


def test_predict_runs_the_model_as_in_evaluation():
  network = Network(linear(), *linear().init(None, None))
  np.testing.assert_array_equal(network.predict(np.ones((2, 3), np.float32)), np.full((2, 2), 3.0))
