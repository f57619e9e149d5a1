"""Distillation in a recipe: several teachers, the student's own average, logits in the batch, any loss."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import trees
from jaxlite.contract import CONST, Network, Side
from jaxlite.distillation._dist import dist
from jaxlite.distillation._distill import distill
from jaxlite.distillation._dkd import dkd
from jaxlite.distillation._kd import kd
from jaxlite.distillation._self_distill import self_distill

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(8, 5)), jnp.float32)
BATCH = {'inputs': X, 'labels': jnp.asarray(RNG.integers(0, 3, 8)), 'weight': jnp.array([1.0] * 6 + [0, 0])}


def network(seed=0, dtype=np.float32):
  """Two layers, and a running mean that only evaluation uses."""

  def init(key, inputs):
    rng = np.random.default_rng(seed)
    params = {'a': {'w': rng.normal(size=(5, 6)) / 2, 'b': np.zeros(6)}, 'c': {'w': rng.normal(size=(6, 3)) / 2}}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params), {'stats': {'mean': jnp.zeros(6, dtype)}}

  def apply(params, state, inputs, *, train, key, step=None):
    x = inputs.astype(dtype) @ params['a']['w'] + params['a']['b']
    mean = x.mean(0) if train else state['stats']['mean']
    if train:
      state = {**state, 'stats': {'mean': 0.9 * state['stats']['mean'] + 0.1 * mean}}
    return jnp.tanh(x - mean) @ params['c']['w'], state

  return jl.Model(init, apply)


def teacher(seed=1):
  model = network(seed)
  return Network(model, *model.init(None, None))


def watched(tap, seen):
  """A hook that hands out what stands in a tap."""

  def loss(inner):
    def terms(context):
      jax.debug.callback(lambda value: seen.append(np.asarray(value)), context.model_state['jl.taps'][tap])
      return inner(context)

    return terms

  return jl.Hook('watched', loss=loss)


def run(*parts, count=1, model=None, batch=None):
  train = jl.train_step(model or network(), jl.cross_entropy, jl.chain(*parts))
  state = train.init(jax.random.key(0), batch or BATCH)
  for _ in range(count):
    state, metrics = train.step(state, batch or BATCH)
  jax.effects_barrier()
  return train, state, metrics


@functools.lru_cache
def outputs():
  """The student's logits in its first step."""
  model = network()
  return model.apply(*model.init(None, None), X, train=True, key=None)[0]


def mean(values):
  return float(np.mean(np.asarray(values)[:6]))


ORDERS = list(itertools.permutations(range(5)))


def laws(orders):
  own = teacher()
  parts = [jl.prune(0.5), jl.fake_quant(), distill(own), jl.freeze('a/b'), jl.average(0.9)]
  wanted = own.predict(X)
  for order in orders:
    seen = []
    some = [parts[place] for place in order]
    place = min(order.index(0), 4)  # an update after prune is refused, so the optimizer stands before it
    _, state, metrics = run(watched('distill/logits', seen), *some[:place], optax.sgd(0.1), *some[place:], count=2)
    assert len(seen) == 2
    for logits in seen:
      np.testing.assert_array_equal(logits, wanted, err_msg=str(order))
    assert set(metrics) == {'loss', 'task', 'distill'}
    assert not trees.find(state.const, Side)


@pytest.mark.unoptimized(False)  # bits are judged
def test_a_teachers_logits_are_its_own_in_some_orders():
  laws([ORDERS[0], ORDERS[-1]])


@pytest.mark.slow
def test_a_teachers_logits_are_its_own_in_every_order():
  laws(ORDERS)


def test_several_teachers_teach_the_mean_of_their_softened_probabilities():
  own, seen = [teacher(1), teacher(2), teacher(3)], []
  parts = [watched('distill/logits/1', seen), distill(own, temperature=2.0, weights=[1, 2, 5]), optax.sgd(0.1)]
  _, _, metrics = run(*parts)
  np.testing.assert_array_equal(seen[0], own[1].predict(X))
  shares = np.array([1, 2, 5]) / 8
  p = sum(share * jax.nn.softmax(one.predict(X) / 2) for share, one in zip(shares, own, strict=True))
  q = jax.nn.log_softmax(outputs() / 2)
  wanted = 4 * (p * (jnp.log(p) - q)).sum(-1)
  np.testing.assert_allclose(metrics['distill'], 0.9 * mean(wanted), rtol=1e-5)
  _, _, one = run(distill([own[0]]), optax.sgd(0.1))
  _, _, same = run(distill(own[0]), optax.sgd(0.1))
  np.testing.assert_array_equal(one['distill'], same['distill'])


def test_teachers_of_all_kinds_may_teach_together():
  own = teacher()
  logits = own.predict(X)
  given = [own, lambda x: own.predict(x), 'theirs']
  batch = {**BATCH, 'theirs': logits}
  _, state, three = run(distill(given), optax.sgd(0.1), batch=batch)
  _, _, one = run(distill(own), optax.sgd(0.1))
  np.testing.assert_allclose(three['distill'], one['distill'], rtol=1e-5)
  _, state, alone = run(distill('theirs'), optax.sgd(0.1), batch=batch)
  np.testing.assert_allclose(alone['distill'], one['distill'], rtol=1e-6)
  assert not jax.tree.leaves(state.const)


def test_a_loss_is_given_what_it_names():
  own = teacher()
  logits = own.predict(X)
  cases = {
    'dkd': (dkd, dkd(outputs(), logits, BATCH['labels'])),
    'partial': (functools.partial(dkd, beta=2.0, temperature=3.0), None),
    'dist': (dist, dist(outputs(), logits, weight=BATCH['weight'])),
    'own': (lambda student, teacher: jnp.abs(student - teacher).sum(-1), jnp.abs(outputs() - logits).sum(-1)),
    'scalar': (lambda s, t, *, weight: jnp.sum(weight * (s - t).sum(-1)), None),
  }
  cases['partial'] = (cases['partial'][0], dkd(outputs(), logits, BATCH['labels'], beta=2.0, temperature=3.0))
  cases['scalar'] = (cases['scalar'][0], np.full(8, (outputs() - logits).sum(-1)[:6].sum()))
  parts = [distill(own, loss=loss, alpha=0.5, name=name) for name, (loss, _) in cases.items()]
  _, _, metrics = run(*parts, optax.sgd(0.1))
  for name, (_, wanted) in cases.items():
    np.testing.assert_allclose(metrics[name], 0.5 * mean(wanted), rtol=2e-5, err_msg=name)


def test_alpha_may_be_a_schedule():
  schedule = optax.linear_schedule(0.0, 1.0, 4)
  train = jl.train_step(network(), jl.cross_entropy, jl.chain(distill(teacher(), alpha=schedule), optax.sgd(0.0)))
  state = train.init(jax.random.key(0), BATCH)
  found = []
  for _ in range(5):
    state, metrics = train.step(state, BATCH)
    found.append((float(metrics['task']), float(metrics['distill'])))
  (task, none), (_, all_of_it) = found[0], found[4]
  assert none == 0.0
  for step, (one, other) in enumerate(found):
    np.testing.assert_allclose([one, other], [(1 - step / 4) * task, step / 4 * all_of_it], rtol=1e-5, atol=1e-7)


# --- the student's own average ---------------------------------------------------------------------------------------


def test_the_mean_teacher_is_the_students_evaluation_on_averaged_weights():
  seen = []
  parts = [watched('self_distill/logits', seen), self_distill(0.9), jl.fake_quant(), optax.sgd(0.3), jl.prune(0.5)]
  train = jl.train_step(network(), jl.cross_entropy, jl.chain(*parts))
  state = train.init(jax.random.key(0), BATCH)
  evaluated = jax.jit(lambda params, state: train.model.apply(params, state, X, train=False, key=None, step=0)[0])
  averaged = jax.tree.map(np.array, state.params)
  for step in range(6):
    held = jax.tree.map(np.array, state.model_state['jl.self_distill'])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), held, averaged)
    own = evaluated(held, {**state.model_state, CONST: {}})
    state, metrics = train.step(state, BATCH)
    jax.effects_barrier()
    np.testing.assert_allclose(seen[step], own, rtol=1e-5, atol=1e-6)
    kept = min(0.9, 1 - 1 / (step + 1))
    averaged = jax.tree.map(
      lambda old, new, kept=kept: np.where(np.asarray(new) == 0, 0, kept * old + (1 - kept) * np.asarray(new)),
      averaged,
      state.params,
    )
  assert float(metrics['self_distill']) > 0
  zeros = np.asarray(state.params['a']['w']) == 0
  assert zeros.sum() + (np.asarray(state.params['c']['w']) == 0).sum() == (5 * 6 + 6 * 3) // 2
  assert not np.asarray(state.model_state['jl.self_distill']['a']['w'])[zeros].any()
  params, rest = train.model.export(state.params, {**state.model_state, CONST: state.const})
  assert sorted(params) == ['a', 'c']
  assert 'self_distill' not in str(sorted(rest))


def test_a_student_that_equals_its_average_learns_nothing_from_it():
  model = jl.from_function(lambda p, x: x @ p['w'], {'w': RNG.normal(size=(5, 3)).astype(np.float32)})
  _, state, metrics = run(self_distill(0.5, alpha=1.0), optax.sgd(10.0), model=model)
  np.testing.assert_allclose(metrics['loss'], 0, atol=1e-6)
  start, _ = model.init(None, None)
  np.testing.assert_allclose(state.params['w'], start['w'], atol=1e-5)


def test_it_stands_beside_every_other_hook():
  own = teacher()
  parts = [self_distill(0.9), jl.average(0.9), jl.fake_quant(), distill(own), jl.freeze('a/b'), jl.accumulate(2)]
  for some in (parts, parts[::-1]):
    _, state, metrics = run(*some, optax.adam(1e-2), jl.prune(0.5), count=3)
    assert set(metrics) == {'loss', 'task', 'distill', 'self_distill'}
    assert np.isfinite(metrics['loss'])
    assert set(state.const) == {'distill', 'freeze'}


@pytest.mark.unoptimized(False)  # bits are judged
def test_it_goes_on_where_it_stopped():
  train, state, _ = run(self_distill(0.9), optax.adam(1e-2), count=3)
  key = np.array(jax.random.key_data(state.key))
  held = jax.tree.map(np.array, state._replace(key=None))
  ends = []
  for start in (state, jax.tree.map(jnp.asarray, held)._replace(key=jax.random.wrap_key_data(jnp.asarray(key)))):
    for _ in range(3):
      start, metrics = train.step(start, BATCH)
    ends.append((start.params, start.model_state, metrics))
  jax.tree.map(np.testing.assert_array_equal, *ends)


def test_bfloat16_students_learn_from_float32_teachers():
  model = network(0, jnp.bfloat16)
  parts = [distill(teacher()), self_distill(0.99), distill(teacher(), loss=dkd, name='another')]
  _, state, metrics = run(*parts, optax.sgd(0.01), model=model, count=2)
  assert np.isfinite(metrics['loss'])
  assert state.params['a']['w'].dtype == jnp.bfloat16


BLENDED = {**BATCH, 'labels': jax.nn.one_hot(BATCH['labels'], 3)}


def wide(x):
  return jnp.ones((len(x), 4))


MISTAKES = {
  'other classes': (lambda: run(distill(wide), optax.sgd(0.1)), ValueError, 'same classes; the teacher gives'),
  'one of several': (lambda: run(distill([teacher(), wide]), optax.sgd(0.1)), ValueError, 'same classes'),
  'column of other classes': (
    lambda: run(distill('theirs'), optax.sgd(0.1), batch={**BATCH, 'theirs': wide(X)}),
    ValueError,
    'same classes',
  ),
  'no column': (lambda: run(distill('logit'), optax.sgd(0.1)), ValueError, "neither the batch nor a tap holds 'logit'"),
  'an array': (lambda: distill(np.ones((8, 3))), TypeError, 'an array of logits belongs to its examples'),
  'nothing': (lambda: distill(None), TypeError, 'a teacher is a Network .*; got NoneType'),
  'no teachers': (lambda: distill([]), ValueError, 'at least one'),
  'weights': (lambda: distill([wide, wide], weights=[1]), ValueError, 'a positive number for each of 2'),
  'negative weight': (lambda: distill([wide, wide], weights=[1, -1]), ValueError, 'a positive number'),
  'alpha': (lambda: distill(wide, alpha=1.5), ValueError, r'in \[0, 1\]; got 1.5'),
  'alpha NaN': (lambda: self_distill(alpha=float('nan')), ValueError, r'in \[0, 1\]; got nan'),
  'temperature': (lambda: distill(wide, temperature=-1.0), ValueError, 'positive; got -1.0'),
  'temperature of none': (
    lambda: distill(wide, temperature=2.0, loss=lambda s, t: s),
    ValueError,
    'takes no temperature',
  ),
  'decay': (lambda: self_distill(1.0), ValueError, r'in \[0, 1\); got 1.0'),
  'loss': (lambda: distill(wide, loss='kd'), TypeError, 'loss is a function'),
  'labels': (
    lambda: run(
      distill(teacher(), loss=dkd), optax.sgd(0.1), batch={**BATCH, 'labels': jax.nn.one_hot(BATCH['labels'], 3)}
    ),
    ValueError,
    'use kd',
  ),
  'of another shape': (
    lambda: run(distill(teacher(), loss=lambda s, t: jnp.ones(3)), optax.sgd(0.1)),
    ValueError,
    r'float\[8\]; got \[3\]',
  ),
  'integers': (lambda: run(distill(lambda x: jnp.ones((8, 3), int)), optax.sgd(0.1)), ValueError, 'int32'),
  'by NumPy': (
    lambda: run(distill(lambda x: np.asarray(x)[:, :3]), optax.sgd(0.1)),
    ValueError,
    'makes NumPy arrays of its inputs, .* jaxlite.data.attach',
  ),
  'shares': (
    lambda: run(distill(teacher(), alpha=lambda step: jnp.ones(8)), optax.sgd(0.1)),
    ValueError,
    r"'\w+' is float32\[8\]: .*alpha=",
  ),
  'two of a name': (lambda: jl.chain(distill(wide), distill(wide)), ValueError, 'stands twice'),
}


@pytest.mark.parametrize('case', MISTAKES)
def test_mistakes_are_told_in_one_line(case):
  call, kind, message = MISTAKES[case]
  with pytest.raises(kind, match=message) as raised:
    call()
  assert '\n' not in str(raised.value)


def test_kd_stands_where_it_stood():
  from jaxlite.distillation import _distill as module

  assert module.kd is kd
