"""Laws of the train step: pure, donated, traced once, exact in its parts, honest about NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import trees
from jaxlite.contract import CONST, Network
from jaxlite.step.state import ensemble_axes, went_nan
from networks import convnet
from programs import shared_flags

pytestmark = pytest.mark.unoptimized


def batch_of(size, *, padded=0, seed=0):
  rng = np.random.default_rng(seed)
  weight = np.ones(size, np.float32)
  weight[size - padded :] = 0
  return {
    'inputs': jnp.asarray(rng.normal(size=(size, 4, 4, 1)), jnp.float32),
    'labels': jnp.asarray(rng.integers(0, 3, size), jnp.int32),
    'weight': jnp.asarray(weight),
  }


def teacher():
  return Network(convnet(), *convnet().init(jax.random.key(9), None))


def everything():
  """One chain of all first parts."""
  return jl.chain(
    jl.accumulate(2),
    jl.freeze('conv/b'),
    jl.average(0.9),
    jl.fake_quant(),
    jl.distill(teacher()),
    jl.optim.label_smoothing(0.1),
    optax.clip_by_global_norm(1.0),
    jl.optim.l2(1e-4),
    optax.adam(jl.optim.warmup_cosine(1e-2, 30, warmup_steps=3)),
    jl.prune(0.75, begin=1, end=6, every=2, allocate=jl.pruning.uniform),
  )


def run(train, state, count, start=0):
  for step in range(start, start + count):
    state, metrics = train.step(state, batch_of(8, padded=step % 3, seed=step))
  return state, metrics


def same(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for path, a, b in zip(trees.paths(one), jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=path)


def test_all_parts_together_do_what_each_promises():
  train = jl.train_step(convnet(), jl.cross_entropy, everything())
  state = train.init(jax.random.key(0), batch_of(8))
  frozen = np.asarray(state.const['freeze']['conv']['b'])
  for step in range(10):
    state, metrics = train.step(state, batch_of(8, padded=step % 3, seed=step))
    (prune,) = trees.find(state.opt_state, type(state.opt_state[-1]))
    mask = np.asarray(prune.masks['dense']['w'])
    assert not np.asarray(state.params['dense']['w'])[~mask].any()
    assert not np.asarray(state.model_state['jl.average']['dense']['w'])[~mask].any()
  assert np.count_nonzero(state.params['dense']['w']) == 48
  assert np.count_nonzero(state.params['conv']['w']) == 9
  assert int(prune.broken) == 0
  assert 'b' not in state.params['conv']
  np.testing.assert_array_equal(state.const['freeze']['conv']['b'], frozen)
  assert set(metrics) == {'loss', 'task', 'distill', 'label_smoothing'}
  np.testing.assert_allclose(metrics['loss'], sum(metrics[name] for name in set(metrics) - {'loss'}), rtol=1e-6)


def test_one_trace_over_train_last_batch_and_evaluation():
  traces = []
  train = jl.train_step(
    convnet(traces=traces), jl.cross_entropy, jl.chain(jl.fake_quant(), optax.adam(1e-2), jl.prune(0.5))
  )
  state = train.init(jax.random.key(0), batch_of(8))
  traces.clear()
  for step in range(4):
    state, _ = train.step(state, batch_of(8, padded=step, seed=step))
    train.eval(state, batch_of(8, seed=step))
  assert sorted(traces) == [False, True]


def test_the_users_arrays_live_on():
  params, state = convnet().init(jax.random.key(0), None)
  mine = teacher()
  train = jl.train_step(convnet(), jl.cross_entropy, jl.chain(jl.distill(mine), optax.sgd(0.1)))
  trained = train.init(jax.random.key(0), batch_of(8), params, state)
  np.testing.assert_array_equal(trained.params['conv']['w'], params['conv']['w'])
  trained, _ = run(train, trained, 2)
  for leaf in jax.tree.leaves((params, state, mine.params, mine.model_state)):
    assert np.isfinite(leaf).all()  # a donated array would raise here


def test_the_state_is_donated_and_constants_are_not():
  train = jl.train_step(convnet(), jl.cross_entropy, jl.chain(jl.distill(teacher()), optax.adam(0.1)))
  state = train.init(jax.random.key(0), batch_of(8))
  train.step(state, batch_of(8))
  assert state.params['dense']['w'].is_deleted()
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state.const))
  with pytest.raises(ValueError, match=r'^a step writes over the state that it is given, and a step before'):
    train.step(state, batch_of(8))


def test_a_teacher_is_an_argument_of_the_program_not_a_part_of_it():
  train = jl.train_step(convnet(), jl.cross_entropy, jl.chain(jl.distill(teacher()), optax.sgd(0.1)))
  state = train.init(jax.random.key(0), batch_of(8))
  text = jax.jit(train.step).lower(state, batch_of(8)).as_text()
  assert max(len(line) for line in text.splitlines()) < 5000


@pytest.mark.unoptimized(False)  # bits are judged
@pytest.mark.sampled(2)
@pytest.mark.parametrize('order', range(6))
def test_a_teachers_logits_are_bit_equal_to_its_own_in_every_order(order):
  mine = teacher()
  seen = []

  def loss(outputs, batch):
    return jl.cross_entropy(outputs, batch)

  def peek(inner):
    def terms(context):
      jax.debug.callback(seen.append, context.model_state['jl.taps']['distill/logits'])
      return inner(context)

    return terms

  hooks = [jl.fake_quant(), jl.distill(mine), jl.freeze('conv/b')]
  order = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)][order]
  recipe = jl.chain(jl.Hook('peek', loss=peek), *[hooks[i] for i in order], optax.sgd(0.1), jl.prune(0.5))
  train = jl.train_step(convnet(), loss, recipe)
  state = train.init(jax.random.key(0), batch_of(8))
  for step in range(2):
    batch = batch_of(8, seed=step)
    state, _ = train.step(state, batch)
    jax.effects_barrier()
    np.testing.assert_array_equal(seen[step], mine.predict(batch['inputs']))


@pytest.mark.unoptimized(False)  # bits are judged
def test_several_steps_a_dispatch_equal_the_loop():
  def dense(params, inputs):
    return inputs.reshape(inputs.shape[0], -1) @ params['w']

  for model in (convnet(), jl.from_function(dense, {'w': jnp.zeros((16, 3))})):
    train = jl.train_step(model, jl.cross_entropy, jl.chain(optax.adam(1e-2), jl.prune(0.5, begin=2)))
    one = train.init(jax.random.key(0), batch_of(8))
    many = train.init(jax.random.key(0), batch_of(8))
    batches = [batch_of(8, seed=seed) for seed in range(4)]
    losses = []
    for batch in batches:
      one, metrics = train.step(one, batch)
      losses.append(metrics['loss'])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    many, metrics = train.steps(many, stacked)
    same(one, many)
    start = train.init(jax.random.key(0), batch_of(8))  # a state that NumPy read from somewhere
    read, _ = train.steps(jax.tree.map(np.asarray, start._replace(key=None))._replace(key=start.key), stacked)
    same(one, read)
    np.testing.assert_array_equal(metrics['loss'], jnp.stack(losses))


@pytest.mark.parametrize('padded', [0, 3, 7, 8])
def test_accumulated_gradients_equal_the_full_batchs(padded):
  def stateless(params, state, inputs, *, train, key, step=None):
    outputs, _ = convnet().apply(params, state, inputs, train=False, key=key, step=step)
    return outputs, state

  model = convnet()._replace(apply=stateless)
  states = []
  for parts in ([], [jl.accumulate(4)]):
    train = jl.train_step(model, jl.cross_entropy, jl.chain(*parts, optax.sgd(1.0)))
    state, metrics = train.step(train.init(jax.random.key(0), batch_of(8)), batch_of(8, padded=padded))
    states.append((state.params, metrics['loss']))
  for one, other in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.unoptimized(False)  # bits are judged
def test_accumulation_gives_the_same_numbers_dispatched_and_scanned():
  train = jl.train_step(convnet(), jl.cross_entropy, everything())
  one = train.init(jax.random.key(0), batch_of(8))
  other = train.init(jax.random.key(0), batch_of(8))
  scanned = jax.jit(train.step)  # inside a trace it is one program
  for step in range(3):
    one, a = train.step(one, batch_of(8, padded=step, seed=step))
    other, b = scanned(other, batch_of(8, padded=step, seed=step))
  same((one.params, one.model_state, a), (other.params, other.model_state, b))


def test_accumulation_of_larger_convolutions_agrees_up_to_rounding():
  """Inside a loop they are matrix products on CPU, outside of one they are not."""
  kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 32)).astype(np.float32) / 5

  def apply(params, x):
    y = jax.lax.conv_general_dilated(x, params['w'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return jnp.tanh(y).mean((1, 2))

  train = jl.train_step(
    jl.from_function(apply, {'w': kernel}), jl.cross_entropy, jl.chain(jl.accumulate(2), optax.sgd(1))
  )
  batch = {'inputs': np.random.default_rng(1).normal(size=(8, 8, 8, 3)).astype(np.float32), 'labels': np.arange(8)}
  one, _ = train.step(train.init(jax.random.key(0), batch), batch)
  other, _ = jax.jit(train.step)(train.init(jax.random.key(0), batch), batch)
  moved = float(jnp.abs(one.params['w'] - kernel).max())
  assert moved > 1e-4
  np.testing.assert_allclose(one.params['w'], other.params['w'], rtol=0, atol=1e-4 * moved)


def test_a_batch_that_does_not_split_is_refused():
  train = jl.train_step(convnet(), jl.cross_entropy, jl.chain(jl.accumulate(3), optax.sgd(0.1)))
  state = train.init(jax.random.key(0), batch_of(8))
  with pytest.raises(ValueError, match='8 does not split into 3'):
    train.step(state, batch_of(8))


def test_an_ensemble_equals_its_members():
  train = jl.train_step(
    convnet(), jl.cross_entropy, jl.chain(optax.adam(1e-2), jl.prune(0.5, begin=1, allocate=jl.pruning.uniform))
  )
  keys = jax.random.split(jax.random.key(0), 3)
  axes = ensemble_axes(jax.eval_shape(train.init, keys[0], batch_of(8)))
  states = jax.vmap(train.init, in_axes=(0, None), out_axes=axes)(keys, batch_of(8))
  step = jax.vmap(train.step, in_axes=(axes, None), out_axes=(axes, 0))
  alone = train.init(keys[1], batch_of(8))
  assert shared_flags(jax.make_jaxpr(step)(states, batch_of(8))) >= 2
  for seed in range(3):
    states, _ = step(states, batch_of(8, seed=seed))
    alone, _ = train.step(alone, batch_of(8, seed=seed))
  np.testing.assert_allclose(states.params['dense']['w'][1], alone.params['dense']['w'], atol=1e-5)
  assert np.count_nonzero(states.params['dense']['w'][2]) == 96


@pytest.mark.parametrize('where', ['data', 'gradient'])
def test_the_first_bad_step_and_leaf_are_kept(where):
  def loss(outputs, batch):
    under_root = jnp.where(batch['labels'] == 99, outputs[:, 0] * 0, 1.0)
    return jl.cross_entropy(outputs, {**batch, 'labels': batch['labels'] % 3}) + jnp.sqrt(under_root)

  train = jl.train_step(convnet(), loss, jl.chain(optax.sgd(0.1)))
  state = train.init(jax.random.key(0), batch_of(8))
  for step in range(6):
    batch = batch_of(8, seed=step)
    if step == 3:
      if where == 'data':
        batch['inputs'] = batch['inputs'].at[0, 0, 0, 0].set(jnp.nan)
      else:  # the square root of zero has a finite value and no finite gradient
        batch['labels'] = batch['labels'].at[0].set(99)
    state, _ = train.step(state, batch)
  at_step, leaf = went_nan(state)
  assert at_step == 4
  assert leaf == 'loss' if where == 'data' else leaf in trees.paths(state.params)


def test_all_is_well_until_it_is_not():
  train = jl.train_step(convnet(), jl.cross_entropy, jl.chain(optax.sgd(0.1)))
  state, _ = run(train, train.init(jax.random.key(0), batch_of(8)), 2)
  assert went_nan(state) is None


def test_evaluation_reports_the_task_loss_alone():
  train = jl.train_step(convnet(), jl.cross_entropy, everything())
  plain = jl.train_step(convnet(), jl.cross_entropy, jl.chain(optax.sgd(0.1)))
  state = plain.init(jax.random.key(0), batch_of(8))
  outputs, terms = plain.eval(state, batch_of(8, padded=2))
  expected = np.mean(np.asarray(jl.cross_entropy(outputs, batch_of(8)))[:6])
  np.testing.assert_allclose(terms['task'], expected, rtol=1e-6)
  _, terms = train.eval(train.init(jax.random.key(0), batch_of(8)), batch_of(8))
  assert set(terms) == {'task'}


def test_the_average_is_what_evaluates_and_exports():
  train = jl.train_step(convnet(), jl.cross_entropy, jl.chain(jl.average(0.5, warmup=False), optax.sgd(0.5)))
  state = train.init(jax.random.key(0), batch_of(8))
  expected = np.asarray(state.params['dense']['w'], np.float64)
  for step in range(4):
    state, _ = train.step(state, batch_of(8, seed=step))
    expected = 0.5 * expected + 0.5 * np.asarray(state.params['dense']['w'], np.float64)
  exported, stripped = train.model.export(state.params, {**state.model_state, CONST: state.const})
  np.testing.assert_allclose(exported['dense']['w'], expected, rtol=1e-5)
  assert 'jl.average' not in stripped
  outputs, _ = train.eval(state, batch_of(8))
  again, _ = convnet().apply(exported, stripped, batch_of(8)['inputs'], train=False, key=None)
  np.testing.assert_allclose(outputs, again, atol=1e-6)


def test_l2_equals_its_gradient_and_spares_biases():
  plain = jl.train_step(convnet(), jl.cross_entropy, jl.chain(optax.sgd(1.0)))
  decayed = jl.train_step(convnet(), jl.cross_entropy, jl.chain(jl.optim.l2(0.1), optax.sgd(1.0)))
  start = convnet().init(jax.random.key(0), None)[0]
  one, _ = plain.step(plain.init(jax.random.key(0), batch_of(8), start), batch_of(8))
  other, _ = decayed.step(decayed.init(jax.random.key(0), batch_of(8), start), batch_of(8))
  np.testing.assert_allclose(other.params['conv']['w'], one.params['conv']['w'] - 0.1 * start['conv']['w'], atol=1e-6)
  np.testing.assert_array_equal(other.params['conv']['b'], one.params['conv']['b'])


def test_frozen_leaves_cost_no_gradient_and_no_moments():
  free = jl.train_step(convnet(), jl.cross_entropy, jl.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)))
  held = jl.train_step(
    convnet(), jl.cross_entropy, jl.chain(jl.freeze('^conv'), optax.clip_by_global_norm(1.0), optax.adam(0.1))
  )
  flops = []
  for train in (free, held):
    state = train.init(jax.random.key(0), batch_of(8))
    flops.append(jax.jit(train.step).lower(state, batch_of(8)).compile().cost_analysis()['flops'])
  assert flops[1] < 0.75 * flops[0]
  assert 'conv' not in state.params
  assert all('conv' not in path for path in trees.paths(state.opt_state))


@pytest.mark.parametrize(
  'build, message',
  [
    (lambda: jl.train_step(convnet(), jl.cross_entropy, jl.chain(jl.fake_quant())), 'holds no optimizer'),
    (lambda: start(jl.freeze('bn')), "'bn' matches no parameter; nearest paths"),
    (lambda: start(jl.freeze('.')), 'nothing would learn'),
    (lambda: start(jl.prune(0.5, select='kernal')), "'kernal' matches no parameter"),
    (lambda: start(optax.sgd(0.1), key=0), r'jax\.random\.key'),
    (lambda: start(optax.sgd(0.1), batch={'x': 1}), "'inputs'"),
    (lambda: step_with(jl.distill(lambda x: jnp.ones((x.shape[0], 4)))), 'same classes'),
    (lambda: jl.distill(teacher(), alpha=1.5), r'in \[0, 1\]; got 1.5'),
    (lambda: jl.distill(teacher(), temperature=0), 'positive'),
    (lambda: jl.optim.label_smoothing(1.0), r'in \[0, 1\)'),
    (lambda: jl.average(1.0), r'in \[0, 1\)'),
    (lambda: jl.accumulate(0), 'at least 1'),
    (lambda: jl.optim.l2(-1.0), 'at least 0'),
    (lambda: jl.optim.warmup_cosine(1.0, 10, warmup_steps=10), 'ends before step 10'),
    (lambda: jl.optim.normalize([0.0], [0.0]), 'std positive'),
  ],
)
def test_bad_input_is_refused_in_one_line(build, message):
  with pytest.raises(ValueError, match=message) as error:
    build()
  assert '\n' not in str(error.value)


def start(*parts, key=None, batch=None):
  parts = parts if any(isinstance(part, optax.GradientTransformation) for part in parts) else (*parts, optax.sgd(0.1))
  train = jl.train_step(convnet(), jl.cross_entropy, jl.chain(*parts))
  return train, train.init(jax.random.key(0) if key is None else key, batch or batch_of(8))


def step_with(*parts):
  train, state = start(*parts)
  train.step(state, batch_of(8))


def test_one_array_at_two_places_is_refused():
  leaf = jnp.ones((2, 2))
  model = jl.Model(lambda key, x: ({'a': leaf, 'b': leaf}, {}), lambda p, s, x, **_: (x @ p['a'] @ p['b'], s))
  train = jl.train_step(model, jl.cross_entropy, jl.chain(optax.sgd(0.1)))
  with pytest.raises(ValueError, match='one array'):
    train.init(jax.random.key(0), {'inputs': jnp.ones((1, 2))})


def test_label_smoothing_equals_smoothed_labels():
  logits, labels = jnp.asarray([[2.0, 0.5, -1.0], [0.0, 1.0, 0.0]]), jnp.array([0, 2])
  model = jl.Model(lambda key, x: ({'w': jnp.zeros((3, 3))}, {}), lambda p, s, x, **_: (x + x @ p['w'], s))
  train = jl.train_step(model, jl.cross_entropy, jl.chain(jl.optim.label_smoothing(0.3), optax.sgd(0.1)))
  batch = {'inputs': logits, 'labels': labels}
  _, metrics = train.step(train.init(jax.random.key(0), batch), batch)
  soft = optax.smooth_labels(jax.nn.one_hot(labels, 3), 0.3)
  np.testing.assert_allclose(metrics['loss'], optax.softmax_cross_entropy(logits, soft).mean(), rtol=1e-6)


def test_a_model_with_nothing_to_train_is_told():
  def apply(params, state, inputs, *, train, key, step=None):
    return inputs, state

  still = jl.Model(lambda key, inputs: ({}, {}), apply)  # as a framework's model whose every layer is frozen
  train = jl.train_step(still, jl.cross_entropy, jl.chain(optax.sgd(0.1)))
  with pytest.raises(ValueError, match='a model has a parameter that learns; this one has none'):
    train.init(jax.random.key(0), {'inputs': jnp.ones((2, 3)), 'labels': jnp.zeros(2, int)})
