"""A call that changes what it was given, or what it holds from outside, is refused by whoever traces it."""

import collections
import dataclasses
import functools
import types

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx

import jaxlite as jl
from jaxlite.graph.effects import without_effects
from jaxlite.graph.taps import tapped

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
LOST, LEFT = 'a copy of its arguments', 'no number when it has ended|holds from outside'


class Net(nnx.Module):
  def __init__(self, rngs):
    self.a, self.b = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
    self.norm, self.dropout = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x):
    return self.b(self.dropout(nnx.relu(self.norm(self.a(x)))))


class Plain(nnx.Module):
  """Changes nothing, in training either."""

  def __init__(self, rngs):
    self.a = nnx.Linear(6, 8, rngs=rngs)

  def __call__(self, x):
    return self.a(x)


class Dropped(Plain):
  def __init__(self, rngs):
    super().__init__(rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x):
    return self.dropout(self.a(x))


class Sown(Plain):
  def __call__(self, x):
    self.sow(nnx.Intermediate, 'hidden', self.a(x))
    return self.a(x)


@functools.cache
def trained():
  return Net(nnx.Rngs(0))


def net():
  return nnx.clone(trained())


def call(module, x):
  return module(x)


FORMS = {
  'quantize': lambda fn: jl.quantize(fn),
  'quantize real': lambda fn: jl.quantize(fn, real=True),
  'observe': lambda fn: jl.quantization.observe(fn),
  'coverage': lambda fn: jl.coverage(fn),
  'for_cpu': lambda fn: jl.for_cpu(fn),
  'tapped': lambda fn: tapped(fn, 'a/kernel'),
}


def some_slow(cases, step):
  """Every `step`th case in the normal run, the others in the slow one."""
  return [pytest.param(*case, marks=[pytest.mark.slow] * bool(index % step)) for index, case in enumerate(cases)]


AROUND = {
  'as it is': lambda fn: fn,
  'nnx.jit': nnx.jit,
  'nnx.value_and_grad': lambda fn: lambda m, x: nnx.value_and_grad(lambda m: jnp.sum(jax.tree.leaves(fn(m, x))[0]))(m),
}


@pytest.mark.parametrize('form', FORMS)
def test_a_module_whose_statistics_move_is_refused_and_stays_as_it_was(form):
  module = net()
  before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
  with pytest.raises(ValueError, match=LOST) as told:
    FORMS[form](call)(module, X)
  assert form.split()[0] in str(told.value)
  assert '3 arrays: dropout/rngs/count, norm/mean, norm/var of argument 0' in str(told.value)
  assert 'nnx.split' in str(told.value)
  assert 'jl.from_nnx' in str(told.value)
  assert '\n' not in str(told.value)
  after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
  jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize('around', list(AROUND)[1:])
@pytest.mark.parametrize('form', ['quantize', 'for_cpu'])
def test_it_is_refused_inside_of_the_transforms_of_nnx_and_when_they_stand_inside(around, form):
  for outer, inner in ((AROUND[around], lambda fn: fn), (lambda fn: fn, AROUND[around])):
    with pytest.raises(ValueError, match=LOST):
      outer(FORMS[form](inner(call)))(net(), X)


@pytest.mark.filterwarnings('ignore:.*sow')
@pytest.mark.parametrize('kind, changed', [(Dropped, 'dropout/rngs/count'), (Sown, 'hidden')])
def test_counts_of_random_draws_and_what_is_sown_are_changes_too(kind, changed):
  with pytest.raises(ValueError, match=changed):
    jl.quantize(call)(kind(nnx.Rngs(0)), X)


@dataclasses.dataclass
class Holder:
  module: nnx.Module
  name: str = 'holder'


jax.tree_util.register_dataclass(Holder, ['module'], ['name'])
NESTS = {
  'list': (lambda m: [m], lambda held, x: held[0](x), '0/norm/mean'),
  'dict': (lambda m: {'net': m}, lambda held, x: held['net'](x), 'net/norm/mean'),
  'tuple': (lambda m: (1.0, m), lambda held, x: held[1](x), '1/norm/mean'),
  'dataclass': (Holder, lambda held, x: held.module(x), 'module/norm/mean'),
  'keyword': (lambda m: m, call, 'norm/mean'),
}


@pytest.mark.parametrize('nest', NESTS)
@pytest.mark.parametrize('form', ['quantize', 'for_cpu'])
def test_a_module_inside_of_something_is_seen(nest, form):
  make, fn, path = NESTS[nest]
  if nest == 'keyword':
    with pytest.raises(ValueError, match='norm/mean, norm/var of argument module'):
      FORMS[form](lambda w, x, module: module(x) @ w)(jnp.ones((3, 2)), X, module=make(net()))
    return
  with pytest.raises(ValueError, match=path):
    FORMS[form](fn)(make(net()), X)


@pytest.mark.parametrize('form', some_slow([(form,) for form in FORMS], 4))
def test_a_module_in_evaluation_mode_and_one_that_changes_nothing_are_taken(form):
  module = net()
  module.eval()
  fn = FORMS[form](call)
  for one in (module, Plain(nnx.Rngs(0))):
    jax.eval_shape(lambda m, x: len(jax.tree.leaves(fn(m, x))), one, X)  # coverage gives no arrays


INSIDE = {'nnx.jit': nnx.jit, 'nnx.remat': nnx.remat, 'nnx.remat in nnx.jit': lambda fn: nnx.jit(nnx.remat(fn))}


@pytest.mark.parametrize('inside', some_slow([(inside,) for inside in INSIDE][::-1], 3))
def test_transforms_that_write_back_every_array_of_a_module_change_nothing_by_that(inside):
  module = net()
  module.eval()
  jax.eval_shape(jl.quantize(INSIDE[inside](call)), module, X)
  np.testing.assert_allclose(jl.for_cpu(INSIDE[inside](call))(module, X), jl.for_cpu(call)(module, X), rtol=1e-5)


def test_what_changes_and_is_returned_is_not_lost():
  module, other = net(), net()
  outputs, state = jl.for_cpu(lambda m, x: (m(x), nnx.state(m)))(module, X)
  np.testing.assert_allclose(outputs, other(X), rtol=1e-5, atol=1e-6)
  nnx.update(module, state)
  np.testing.assert_allclose(module.norm.mean[...], other.norm.mean[...], rtol=1e-5)
  assert int(module.dropout.rngs.count[...]) == 1
  with pytest.raises(ValueError, match='dropout/rngs/count'):  # not all of what changes
    jl.for_cpu(lambda m, x: (m(x), nnx.state(m, nnx.BatchStat)))(module, X)
  graph, state = nnx.split(module)

  def pure(state, x):  # the road that the message names
    module = nnx.merge(graph, state)
    return module(x), nnx.state(module)

  outputs, new = jax.jit(jl.quantize(pure))(state, X)
  assert outputs.shape == (4, 3)
  assert int(new['dropout']['rngs']['count'][...]) == 2


def test_plain_containers_are_arguments_like_others():
  def scales(p, x):
    p['w'] = 2 * p['w']
    return x @ p['w']

  def renames(p, x):
    p['v'] = p.pop('w')
    return x @ p['v']

  def takes(p, batch):
    labels = batch.pop('labels')
    return batch['inputs'] @ p['w'] + labels[:, None]

  def keeps(p, x):
    p['w'] = 2 * p['w']
    return x @ p['w'], p

  params = {'w': jnp.ones((6, 2))}
  for wrong in (scales, renames):
    with pytest.raises(ValueError, match=LOST):
      jl.quantize(wrong)(dict(params), X)
  batch = {'inputs': X, 'labels': np.ones(4, np.float32)}
  assert jax.eval_shape(jl.quantize(takes), params, batch).shape == (4, 2)
  assert set(batch) == {'inputs', 'labels'}
  assert jax.jit(jl.quantize(keeps))(params, X)[1]['w'][0, 0] == 2


class Counter:
  """No pytree: an object that a function holds."""

  __slots__ = ('__dict__', 'calls')

  def __init__(self):
    self.calls, self.seen, self.rows = jnp.zeros(()), {'mean': jnp.zeros(6)}, [jnp.zeros(6)]


COUNTER = Counter()


def by_global(w, x):
  COUNTER.seen['mean'] = x.mean(0) * w.sum()
  return x @ w


@dataclasses.dataclass
class Callable:
  counter: Counter

  def __call__(self, w, x):
    self.counter.seen['mean'] = x.mean(0) * w.sum()
    return x @ w

  def method(self, w, x):
    return self(w, x)


def writers(counter):
  def by_dict(w, x):
    counter.seen['mean'] = x.mean(0) * w.sum()
    return x @ w

  def by_slot(w, x):
    counter.calls = counter.calls + x.mean()
    return x @ w

  def by_new_name(w, x):
    counter.last = x[0]
    return x @ w

  def by_list(w, x):
    counter.rows[0] = x[0]
    return x @ w

  def by_append(w, x):
    counter.rows.append(x[0])
    return x @ w

  def by_cell(w, x):
    nonlocal total
    total = total + x.mean()
    return x @ w

  def by_default(w, x, held=counter):
    return by_dict(w, x) if held is counter else None

  def by_argument(held, w, x):
    held.calls = x.mean()
    return x @ w

  total = jnp.zeros(())
  helper = types.SimpleNamespace(fn=by_dict)
  return {
    'dict': by_dict,
    'slot': by_slot,
    'new name': by_new_name,
    'list': by_list,
    'append': by_append,
    'cell': by_cell,
    'default': by_default,
    'jitted': jax.jit(by_dict),
    'partial': functools.partial(by_argument, counter),
    'callable': Callable(counter),
    'method': Callable(counter).method,
    'inside a helper': lambda w, x: helper.fn(w, x),
    'global': by_global,
  }


FUNCTIONS = ('observe', 'coverage', 'for_cpu', 'gather_statistics', 'synflow', 'from_function')
CASES = [(how, 'quantize') for how in writers(Counter())] + [('dict', form) for form in FUNCTIONS]


@pytest.mark.parametrize('how, form', some_slow(CASES, 2))
def test_a_traced_value_that_is_left_outside_is_refused_and_what_stood_there_put_back(how, form):
  counter, w = Counter(), jnp.ones((6, 2))
  fn = writers(counter)[how]
  ours = COUNTER if how == 'global' else counter
  calls = {
    'gather_statistics': lambda: jl.pruning.gather_statistics(fn, w, batches=[{'inputs': X}]),
    'synflow': lambda: jl.pruning.scores.synflow(fn, X)(w),
    'from_function': lambda: jax.eval_shape(
      lambda p: jl.from_function(fn, w).apply(p, {}, X, train=True, key=None), {'value': w}
    ),
  }
  with pytest.raises(ValueError, match=LEFT):
    calls.get(form, lambda: FORMS[form](fn)(w, X))()
  held = [ours.calls, *ours.seen.values(), *ours.rows, *vars(ours).values()]
  assert not [leaf for leaf in jax.tree.leaves(held) if isinstance(leaf, jax.core.Tracer)]
  assert len(ours.rows) == 1
  assert float(ours.seen['mean'].sum()) == 0


def test_an_object_among_the_arguments_is_held_from_outside():
  counter = Counter()

  def fn(w, x, counter):
    counter.calls = counter.calls + x.mean()
    return x @ w

  with pytest.raises(ValueError, match='1 array: calls'):
    jl.quantize(fn)(jnp.ones((6, 2)), X, counter)
  assert float(counter.calls) == 0


def test_what_is_computed_once_and_kept_is_no_loss():
  tables, calls = {}, collections.Counter()

  def fn(w, x):
    calls['fn'] += 1
    if 'positions' not in tables:
      tables['positions'] = np.arange(4, dtype=np.float32)[:, None]
    return (x + tables['positions']) @ w

  w = jnp.ones((6, 2))
  jax.eval_shape(jl.quantize(fn), w, X)
  assert calls['fn'] == 1
  np.testing.assert_allclose(jl.for_cpu(fn)(w, X), fn(w, X), rtol=1e-6)


def test_a_function_that_holds_traced_values_of_outside_is_taken():
  @jax.jit
  def outer(w, x):
    held = {'w': w, 'more': [w + 1]}
    return jl.quantize(lambda x, v: x @ (held['w'] + held['more'][0] + v), weights=1)(x, w)

  assert jax.eval_shape(outer, jnp.ones((6, 2)), X).shape == (4, 2)


def test_a_module_of_nnx_that_a_function_holds_is_named_with_the_road():
  module = net()
  for form in ('quantize', 'for_cpu'):
    with pytest.raises(ValueError, match=r'held? from outside|holds from outside: .*nnx\.split') as told:
      FORMS[form](lambda w, x: module(x) @ w)(jnp.ones((3, 2)), X)
    assert form in str(told.value)
  assert float(jnp.abs(module.norm.mean[...]).sum()) == 0


def test_a_layer_of_keras_that_a_function_holds_is_refused_and_goes_on_working():
  layers = keras.Sequential([keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)])
  layers(X)
  before = np.asarray(layers.layers[1].moving_mean)
  for form in ('quantize', 'for_cpu'):
    with pytest.raises(ValueError, match='moving_mean'):
      FORMS[form](lambda w, x: layers(x, training=True) @ w)(jnp.ones((4, 2)), X)
    np.testing.assert_array_equal(layers.layers[1].moving_mean, before)
    jax.eval_shape(FORMS[form](lambda w, x: layers(x, training=False) @ w), jnp.ones((4, 2)), X)
  assert layers(X, training=True).shape == (4, 4)


def test_a_bound_module_of_linen_that_writes_is_refused_and_one_that_reads_is_taken():
  norm = nn.BatchNorm(use_running_average=False)
  variables = norm.init(jax.random.key(0), X)
  bound = norm.bind(variables, mutable=['batch_stats'])
  with pytest.raises(ValueError, match='batch_stats'):
    jl.quantize(lambda w, x: bound(x) @ w)(jnp.ones((6, 2)), X)
  reads = nn.BatchNorm(use_running_average=True).bind(variables)
  assert jax.eval_shape(jl.quantize(lambda w, x: reads(x) @ w), jnp.ones((6, 2)), X).shape == (4, 2)


class EqxNet(eqx.Module):
  a: eqx.nn.Linear
  norm: eqx.nn.BatchNorm

  def __init__(self, key):
    self.a, self.norm = eqx.nn.Linear(6, 8, key=key), eqx.nn.BatchNorm(8, 'batch', mode='batch')

  def __call__(self, x, state):
    return self.norm(self.a(x), state)


@pytest.mark.parametrize('form', ['quantize', 'for_cpu'])
def test_a_state_of_equinox_is_handed_on_and_not_changed(form):
  whole, state = eqx.nn.make_with_state(EqxNet)(jax.random.key(0))
  arrays, static = eqx.partition(whole, eqx.is_array)

  def fn(arrays, x, state):  # the state given is worth nothing afterwards: its successor is returned
    net = eqx.combine(arrays, static)
    return jax.vmap(net, (0, None), (0, None), axis_name='batch')(x, state)

  outputs, new = jax.jit(FORMS[form](fn))(arrays, X, state)
  assert outputs.shape == (4, 8)
  assert float(jnp.abs(jax.tree.leaves(new)[0]).sum()) != float(jnp.abs(jax.tree.leaves(state)[0]).sum())


def test_a_teacher_that_is_a_function_is_held_to_the_same():
  module = net()
  student = jl.from_function(lambda p, x: x @ p['w'], {'w': jnp.zeros((6, 3))})
  for hook in (jl.distill(module), jl.hint(module, {'w': 'a/kernel'})):
    train = jl.train_step(student, jl.cross_entropy, jl.chain(hook, optax.sgd(0.1)))
    batch = {'inputs': jnp.asarray(X), 'labels': jnp.zeros(4, int)}
    with pytest.raises(ValueError, match='evaluation mode'):
      train.step(train.init(jax.random.key(0), batch), batch)


def test_a_function_is_called_as_often_as_before():
  calls = []

  def fn(w, x):
    calls.append(1)
    return x @ w

  without_effects(fn, 'this')(jnp.ones((6, 2)), X)
  assert len(calls) == 1


def test_what_does_not_let_itself_be_looked_at_is_passed_over():
  class Proxy:
    @property
    def __dict__(self):
      raise RuntimeError('working outside of its context')

  proxy, endless = Proxy(), []
  endless.append(endless)
  held = {'proxy': proxy, 'endless': endless, 'many': list(range(100_000)), 'array': jnp.zeros(2)}

  def fn(w, x):
    return x @ w + held['array']

  assert jax.eval_shape(jl.quantize(fn), jnp.ones((6, 2)), X).shape == (4, 2)
