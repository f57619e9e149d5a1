"""A call that writes to what it holds from outside is refused by whoever traces it, and what stood there put back."""

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

import jaxlite as jl
from changing import FORMS, LEFT, X, net, some_slow
from jaxlite.graph.effects import _around, without_effects

pytestmark = pytest.mark.unoptimized


class Counter:
  """No pytree: an object that a function holds."""

  __slots__ = ('__dict__', 'calls')

  def __init__(self):
    self.calls, self.seen, self.rows = jnp.zeros(()), {'mean': jnp.zeros(6)}, [jnp.zeros(6)]


COUNTER = Counter()


def by_global(w, x):
  COUNTER.seen['mean'] = x.mean(0) * w.sum()
  return x @ w


TOTAL = jnp.zeros(())


class Adder:
  def add(self, x):
    global TOTAL
    TOTAL = TOTAL + x.mean()

  @property
  def one(self):
    self.add(jnp.ones(1))
    return 1


ADDER = Adder()


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


@pytest.mark.parametrize(
  'adds', [lambda x: ADDER.add(x), lambda x: Adder().add(x), lambda x: ADDER.one], ids=['object', 'class', 'property']
)
def test_a_global_that_a_method_writes_to_is_found_by_way_of_what_the_function_names(adds):
  with pytest.raises(ValueError, match=r'1 array: .*TOTAL'):
    jl.quantize(lambda w, x: (adds(x), x @ w)[1])(jnp.ones((6, 2)), X)
  assert float(TOTAL) == 0


def test_what_a_function_never_names_is_not_looked_at():
  held = {'array': jnp.zeros(2)}

  def fn(w, x):
    return x @ w + held['array']

  assert [place.path for place in _around(fn, []).values()] == ['held/array']
  assert 'COUNTER/seen/mean' in {place.path for place in _around(by_global, []).values()}


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
