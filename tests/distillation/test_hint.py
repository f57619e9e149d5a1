"""Hints: the same pull in every framework, gradients into the student alone, mistakes told in one line."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

import jaxlite as jl
from jaxlite.contract import Network
from jaxlite.distillation._attention_transfer import attention_transfer
from jaxlite.distillation._distill import distill
from jaxlite.distillation._hint import hint, mean_squared
from jaxlite.step.state import ensemble_axes

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(6, 4, 4, 2)), jnp.float32)
BATCH = {'inputs': IMAGES, 'labels': jnp.array([0, 1, 2, 0, 1, 2]), 'weight': jnp.array([1.0, 1, 1, 1, 1, 0])}
K, B = RNG.normal(size=(3, 3, 2, 3)).astype(np.float32) / 4, np.zeros(3, np.float32)
W, C = RNG.normal(size=(3, 3)).astype(np.float32) / 2, np.zeros(3, np.float32)


def conv(x, kernel):
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def function_net(width, named=False):
  """A convolution, the mean over positions, a dense layer."""

  def apply(p, x):
    hidden = conv(x, p['conv']['w'])
    hidden = checkpoint_name(hidden, 'hid') if named else hidden
    return jax.nn.relu(hidden + p['conv']['b']).mean((1, 2)) @ p['dense']['w'] + p['dense']['b']

  rng = np.random.default_rng(width)
  params = {
    'conv': {'w': rng.normal(size=(3, 3, 2, width)).astype(np.float32) / 4, 'b': np.zeros(width, np.float32)},
    'dense': {'w': rng.normal(size=(width, 3)).astype(np.float32) / 2, 'b': np.zeros(3, np.float32)},
  }
  return jl.from_function(apply, params)


def teacher(width=5, named=True):
  model = function_net(width, named)
  return Network(model, *model.init(jax.random.key(0), IMAGES))


# --- the student in five frameworks --------------------------------------------------------------------------------


class LinenNet(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3, name='dense')(nn.relu(nn.Conv(3, (3, 3), name='conv')(x)).mean((1, 2)))


class NnxNet(nnx.Module):
  def __init__(self, rngs):
    self.conv, self.dense = nnx.Conv(2, 3, (3, 3), rngs=rngs), nnx.Linear(3, 3, rngs=rngs)

  def __call__(self, x):
    return self.dense(nnx.relu(self.conv(x)).mean((1, 2)))


class EqxNet(eqx.Module):
  conv: eqx.nn.Conv2d
  dense: eqx.nn.Linear

  def __init__(self, key):
    self.conv, self.dense = eqx.nn.Conv2d(2, 3, 3, padding='SAME', key=key), eqx.nn.Linear(3, 3, key=key)

  def __call__(self, x):
    return self.dense(jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0))).mean((1, 2)))


def haiku_net(x):
  return hk.Linear(3, name='dense')(jax.nn.relu(hk.Conv2D(3, 3, name='conv')(x)).mean((1, 2)))


def student(framework):
  """The network with the weights K, B, W, C, and the paths of its two kernels."""
  if framework == 'linen':
    values = {'params': {'conv': {'kernel': K, 'bias': B}, 'dense': {'kernel': W, 'bias': C}}}
    return jl.from_linen(LinenNet(), values), ('conv/kernel', 'dense/kernel')
  if framework == 'nnx':
    module = NnxNet(nnx.Rngs(0))
    for layer, weight, bias in ((module.conv, K, B), (module.dense, W, C)):
      layer.kernel[...], layer.bias[...] = weight, bias
    return jl.from_nnx(module), ('conv/kernel', 'dense/kernel')
  if framework == 'equinox':
    where = lambda m: (m.conv.weight, m.conv.bias, m.dense.weight, m.dense.bias)  # noqa: E731
    values = tuple(map(jnp.asarray, (K.transpose(3, 2, 0, 1), B[:, None, None], W.T, C)))
    return jl.from_equinox(eqx.tree_at(where, EqxNet(jax.random.key(0)), values)), ('conv/weight', 'dense/weight')
  if framework == 'haiku':
    return jl.from_haiku(haiku_net, {'conv': {'w': K, 'b': B}, 'dense': {'w': W, 'b': C}}), ('conv/w', 'dense/w')
  params = {'conv': {'w': K, 'b': B}, 'dense': {'w': W, 'b': C}}
  model = function_net(3)
  return model._replace(init=lambda key, x: (jax.tree.map(jnp.array, params), {})), ('conv/w', 'dense/w')


def brightness(student, teacher):
  """Compares position by position, whatever the number of channels."""
  return mean_squared(student.mean(-1), teacher.mean(-1))


def first_term(framework):
  model, (one, two) = student(framework)
  part = hint(teacher(), {one: 'hid', two: 'dense/w'}, project=False, loss=brightness)
  train = jl.train_step(model, jl.cross_entropy, jl.chain(part, optax.sgd(0.1)))
  state = train.init(jax.random.key(0), BATCH)
  found = []
  for _ in range(2):
    state, metrics = train.step(state, BATCH)
    found.append([float(metrics['task']), float(metrics['hint'])])
  return found


@pytest.mark.slow
def test_the_same_student_is_pulled_alike_in_every_framework():
  wanted = first_term('function')
  assert wanted[0] != pytest.approx(wanted[1], abs=1e-4)
  for framework in ('linen', 'nnx', 'equinox', 'haiku'):
    np.testing.assert_allclose(first_term(framework), wanted, rtol=2e-4, atol=2e-5, err_msg=framework)


# --- what the term is -----------------------------------------------------------------------------------------------


def steps(recipe, count=1, model=None):
  train = jl.train_step(model or student('function')[0], jl.cross_entropy, recipe)
  state = train.init(jax.random.key(0), BATCH)
  for _ in range(count):
    state, metrics = train.step(state, BATCH)
  return train, state, metrics


def test_the_projected_term_is_its_formula_and_padding_does_not_count():
  own = teacher()
  recipe = jl.chain(hint(own, {'conv/w': 'hid'}, scale=2.0), optax.sgd(0.0))
  train = jl.train_step(student('function')[0], jl.cross_entropy, recipe)
  state = train.init(jax.random.key(0), BATCH)
  projector = jax.tree.map(np.array, state.params['jl.hint']['conv/w'])
  assert {name: leaf.shape for name, leaf in projector.items()} == {'kernel': (1, 3, 5), 'bias': (1, 5)}
  _, metrics = train.step(state, BATCH)
  features = np.einsum('bhwc,cd->bhwd', conv(IMAGES, K), projector['kernel'][0]) + projector['bias'][0]
  wanted = ((features - conv(IMAGES, own.params['conv']['w'])) ** 2).reshape(6, -1).mean(1)[:5].mean()
  np.testing.assert_allclose(metrics['hint'], 2 * wanted, rtol=1e-5)


@pytest.mark.unoptimized(False)  # bits are judged
def test_student_and_projector_learn_the_teacher_does_not_and_export_leaves_nothing():
  own = teacher()
  train, state, first = steps(jl.chain(hint(own, {'conv/w': 'hid'}, scale=10.0), optax.adam(1e-2)))
  before = jax.tree.map(np.array, (state.params, state.const))
  for _ in range(60):
    state, metrics = train.step(state, BATCH)
  assert float(metrics['hint']) < 0.5 * float(first['hint'])
  jax.tree.map(np.testing.assert_array_equal, before[1], jax.tree.map(np.array, state.const))
  moved = jax.tree.map(lambda a, b: bool((a != np.asarray(b)).any()), before[0], state.params)
  assert all(jax.tree.leaves(moved))
  full = {**state.model_state, 'jl.const': state.const}
  params, rest = train.model.export(state.params, full)
  assert sorted(params) == ['conv', 'dense']
  assert 'hint' not in str(sorted(rest))
  alone = Network(function_net(3), params, {})
  np.testing.assert_array_equal(train.eval(state, BATCH)[0], alone.predict(IMAGES))


@pytest.mark.unoptimized(False)  # bits are judged
def test_in_every_order_the_teachers_logits_and_the_terms_are_the_same():
  own, seen, found = teacher(), [], []

  def peek(inner):
    def terms(context):
      jax.debug.callback(seen.append, context.model_state['jl.taps']['hint/logits'])
      return inner(context)

    return terms

  parts = [hint(own, {'conv/w': 'hid'}), jl.fake_quant(), distill('hint/logits')]
  for order in ((0, 1, 2), (2, 1, 0)):
    some = [parts[place] for place in order]
    _, _, metrics = steps(jl.chain(jl.Hook('peek', loss=peek), *some, optax.sgd(0.1), jl.prune(0.5)), 2)
    found.append({name: float(value) for name, value in metrics.items()})
  jax.effects_barrier()
  assert len(seen) == 4
  for logits in seen:
    np.testing.assert_array_equal(logits, own.predict(IMAGES))
  assert set(found[0]) == {'loss', 'task', 'hint', 'distill'}
  assert all(one == found[0] for one in found)


def test_an_ensemble_by_vmap_is_its_single_runs():
  train = jl.train_step(function_net(3), jl.cross_entropy, jl.chain(hint(teacher(), {'conv/w': 'hid'}), optax.sgd(0.1)))
  batches = [{**BATCH, 'inputs': IMAGES + shift} for shift in (0.0, 1.0)]
  alone = [train.init(jax.random.key(seed), batch) for seed, batch in enumerate(batches)]
  axes = ensemble_axes(alone[0])
  many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
  many = jax.tree.map(
    lambda axis, part: part if axis == 0 else jax.tree.map(lambda leaf: leaf[0], part), axes, many,
    is_leaf=lambda node: node is None,
  )  # fmt: skip
  batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
  for _ in range(2):
    many, metrics = jax.vmap(train.step, in_axes=(axes, 0), out_axes=(axes, 0))(many, batch)
    for index in range(2):
      alone[index], own = train.step(alone[index], batches[index])
      np.testing.assert_allclose(metrics['hint'][index], own['hint'], rtol=1e-5)
  jax.tree.map(
    lambda whole, *each: np.testing.assert_allclose(whole, np.stack(each), atol=1e-6),
    many.params, *(state.params for state in alone),
  )  # fmt: skip


def stacked_net(width):
  def apply(p, x):
    def layer(x, w):
      return checkpoint_name(jnp.tanh(x @ w), 'act'), None

    x, _ = jax.lax.scan(jax.checkpoint(layer), x.reshape(len(x), -1) @ p['first'], p['layers'])
    return x @ p['last']

  rng = np.random.default_rng(width)
  shapes = {'first': (32, width), 'layers': (3, width, width), 'last': (width, 3)}
  return jl.from_function(apply, {name: rng.normal(size=s).astype(np.float32) / 4 for name, s in shapes.items()})


def test_layers_of_a_scan_are_paired_one_by_one():
  model = stacked_net(7)
  own = Network(model, *model.init(jax.random.key(0), IMAGES))
  train, state, first = steps(jl.chain(hint(own, {'act': 'act'}), optax.adam(3e-2)), model=stacked_net(4))
  assert state.params['jl.hint']['act']['kernel'].shape == (3, 4, 7)
  for _ in range(30):
    state, metrics = train.step(state, BATCH)
  assert float(metrics['hint']) < 0.5 * float(first['hint'])
  with pytest.raises(ValueError, match="'act' to 'first': layers are paired one by one; got 3 and 1"):
    steps(jl.chain(hint(own, {'act': 'first'}), optax.sgd(0.1)), model=stacked_net(4))


def test_a_number_may_stand_beside_the_examples():
  """A scale among the inputs has no axis of examples: the term is that of inputs which are scaled already."""

  def net(params, x):
    return jnp.tanh(x['x'] @ params['a'] * x['scale']) @ params['b']

  def taught(x):
    return checkpoint_name(x['x'] * x['scale'], 'seen')

  key, x = jax.random.key(0), RNG.normal(size=(4, 3)).astype(np.float32)
  weights = {'a': np.ones((3, 5), np.float32), 'b': np.ones((5, 2), np.float32)}
  found = []
  for inputs in ({'x': x, 'scale': np.float32(2)}, {'x': 2 * x, 'scale': np.ones((4, 1), np.float32)}):
    loop = jl.step.wrap(jl.from_function(net, weights), lambda out, batch: out[:, 0], hint(taught, {'b': 'seen'}))
    params, state = loop.init(key, {'inputs': inputs})
    found.append(float(loop.value(params, state, {'inputs': inputs}, key, 0)))
  np.testing.assert_allclose(*found, rtol=1e-5)


def test_other_losses_need_no_projector():
  own = teacher()
  part = hint(own, {'conv/w': 'hid'}, loss=attention_transfer, project=False)
  _, state, metrics = steps(jl.chain(part, optax.sgd(0.0)))
  assert 'jl.hint' not in state.params
  wanted = attention_transfer(conv(IMAGES, K), conv(IMAGES, own.params['conv']['w']))[:5].mean()
  np.testing.assert_allclose(metrics['hint'], wanted, rtol=1e-5)


def test_a_function_may_teach():
  own = teacher()
  plain = lambda x: own.model.apply(own.params, {}, x, train=False, key=None)[0]  # noqa: E731
  metrics = [steps(jl.chain(hint(one, {'conv/w': 'hid'}), optax.sgd(0.1)))[2] for one in (own, plain)]
  np.testing.assert_allclose(metrics[0]['hint'], metrics[1]['hint'], rtol=1e-6)


def of(pairs=None, own=None, **options):
  return lambda: steps(jl.chain(hint(own or teacher(), pairs or {'conv/w': 'hid'}, **options), optax.sgd(0.1)))


@pytest.mark.parametrize(
  'call, kind, message',
  [
    (of({'conv/kernel': 'hid'}), ValueError, "hint, student: tap 'conv/kernel' matches no .* nearest: conv/w"),
    (of({'conv/w': 'hidden'}), ValueError, "hint, teacher: tap 'hidden' matches no .* nearest: hid"),
    (of({'conv/w': 'dense/w'}), ValueError, "'conv/w' to 'dense/w': features are of one shape"),
    (of({'conv/w': 'hid'}, project=False), ValueError, r'the student gives \[6, 4, 4, 3\], the teacher \[6, 4, 4, 5\]'),
    (of({'conv/w': 'hid'}, scale=0), ValueError, 'scale is positive; got 0'),
    (lambda: hint(teacher(), {}), ValueError, 'one at least'),
    (lambda: hint(teacher(), 'conv/w'), ValueError, 'one at least'),
    (lambda: hint('logits', {'a': 'b'}), TypeError, 'must run'),
    (lambda: hint(3, {'a': 'b'}), TypeError, 'a teacher is a Network'),
    (lambda: hint(teacher(), {'a': 'b'}, loss=None), TypeError, 'loss is a function'),
  ],
)
def test_mistakes_are_told_in_one_line(call, kind, message):
  with pytest.raises(kind, match=message) as raised:
    call()
  assert '\n' not in str(raised.value)
