"""Laws of `every=True`: what training sees is deployed in integers without examples, and evaluation shows those very
integers; a part like any other; without it nothing changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxlite as jl
from jaxlite import models
from jaxlite.contract import join_const
from jaxlite.deployment.integers.conversion import layers, quantized
from jaxlite.deployment.integers.rules import add_factors
from jaxlite.deployment.operations import reference
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.running.program import traced
from jaxlite.graph import joins, rewrite
from jaxlite.quantization import _rule
from networks import equinox_net, first_values

RNG = np.random.default_rng(0)


def floats(*shape):
  return RNG.normal(size=shape).astype(np.float32)


# --- the arithmetic -------------------------------------------------------------------------------------------------


def drawn(count, low=-12, high=3):
  return np.exp(RNG.uniform(low, high, count)).astype(np.float32)


def test_quotients_are_those_of_float64_rounded_once():
  x, w, y = drawn(100_000), drawn(100_000), drawn(100_000)
  wanted = (x.astype(np.float64) * w / y).astype(np.float32)
  np.testing.assert_array_equal(_rule.quotient(x, w, y), wanted)
  for count in (1, 9, 49, 784):
    wanted = (x.astype(np.float64) * (1 / count) / y).astype(np.float32)
    np.testing.assert_array_equal(jax.vmap(lambda x, y, count=count: _rule.share(x, y, count))(x, y), wanted)


def test_the_factors_of_an_addition_are_those_of_deployment():
  most = drawn(2_000)
  less = (most * RNG.uniform(1e-5, 1, 2_000)).astype(np.float32)
  wanted = [add_factors(float(one), float(other), 1.0)[0] for one, other in zip(less, most, strict=True)]
  np.testing.assert_array_equal(jax.vmap(_rule.times)(less, most), wanted)


# --- the same integers ----------------------------------------------------------------------------------------------


class Residual(nn.Module):
  """A residual network with batch norms, a shortcut of its own, a pool and a mean; depthwise or in groups."""

  groups: int = 1

  @nn.compact
  def __call__(self, x, train=False):
    norm = functools.partial(nn.BatchNorm, use_running_average=not train)
    x = nn.relu(norm()(nn.Conv(6, (3, 3))(x)))
    x = nn.max_pool(x, (2, 2), (2, 2))
    y = nn.relu6(norm()(nn.Conv(6, (3, 3), feature_group_count=self.groups)(x)))
    x = nn.relu(x + norm()(nn.Conv(6, (3, 3), use_bias=False)(y)))
    x = nn.relu(nn.Conv(7, (1, 1), strides=(2, 2))(x) + nn.Conv(7, (3, 3), strides=(2, 2))(x))
    return nn.Dense(5)(x.mean((1, 2)))


class Scanned(nn.Module):
  """Layers in a scan, each with a shortcut."""

  @nn.compact
  def __call__(self, x, train=False):
    class Block(nn.Module):
      @nn.compact
      def __call__(self, x, _):
        return nn.relu(x + nn.Dense(8)(nn.relu(nn.Dense(8)(x)))), None

    x = nn.relu(nn.Dense(8)(x))
    x, _ = nn.scan(Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)()(x, None)
    return nn.Dense(4)(x)


def nnx_net():
  from flax import nnx

  class Net(nnx.Module):
    def __init__(self, rngs):
      self.conv, self.norm = nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
      self.other, self.last = nnx.Conv(8, 8, (3, 3), rngs=rngs), nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
      x = nnx.relu(self.norm(self.conv(x)))
      return self.last(nnx.relu(x + self.other(x)).mean((1, 2)))

  return Net(nnx.Rngs(0))


def haiku_net():
  import haiku as hk

  def forward(x, is_training=False):
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(6, 3)(x), is_training))
    return hk.Linear(5)(jax.nn.relu(x + hk.Conv2D(6, 3)(x)).mean((1, 2)))

  return hk.transform_with_state(forward)


def plain_net():
  def apply(p, x):
    x = jnp.maximum(x @ p['in'] + p['b'], 0)
    return (x + jnp.maximum(x @ p['mid'] - p['b'], 0)) @ p['out']

  return jl.from_function(apply, {'in': floats(6, 8), 'mid': floats(8, 8), 'out': floats(8, 3), 'b': floats(8)})


IMAGES = floats(8, 8, 9, 3)
SHORT = {
  'plain': (plain_net, floats(8, 6)),
  'residual': (Residual, IMAGES),
  'scan': (Scanned, floats(8, 6)),
}
LONG = {
  'mlp': (lambda: models.MLP((16, 9)), floats(8, 5, 5, 1)),
  'small cnn': (models.SmallCNN, floats(8, 14, 14, 1)),
  'depthwise': (lambda: Residual(groups=6), IMAGES),
  'equinox': (functools.partial(equinox_net, jax.nn.relu), floats(8, 3, 8, 8)),
  'nnx': (nnx_net, IMAGES),
  'haiku': (haiku_net, IMAGES),
  'resnet20': (models.ResNet20, floats(8, 28, 28, 1)),
  'deep': (models.DepthwiseCNN, floats(8, 28, 28, 1)),
}
CASES = {**SHORT, **LONG}


def trained(model, inputs, *parts, steps=3):
  """(forward, its values) after a few steps; batch norms turn some signs."""
  model = model if isinstance(model, jl.Model) else jl.adapt(model)
  train = jl.train_step(model, jl.cross_entropy, jl.chain(*parts, optax.sgd(0.05)))
  batch = {'inputs': inputs, 'labels': np.arange(len(inputs)) % 3}
  state = train.init(jax.random.key(0), batch)
  for _ in range(steps):
    state, _ = train.step(state, batch)

  def forward(known, x):
    return train.model.apply(*known, x, train=False, key=None)[0]

  return forward, (_turned(state.params), join_const(state.model_state, state.const))


def _turned(params):
  def one(path, leaf):
    told = jax.tree_util.keystr(path)
    return leaf * jnp.where(jnp.arange(leaf.size) % 3 == 1, -1.0, 1.0).reshape(leaf.shape) if 'scale' in told else leaf

  return jax.tree_util.tree_map_with_path(one, params)


def shown(fn, known, inputs):
  """Every array of steps that a fake-quantized network holds when it is compiled."""
  closed = joins.inlined(jax.make_jaxpr(fn)(known, inputs))

  def collect(*args):
    env = dict(zip([*closed.jaxpr.constvars, *closed.jaxpr.invars], [*closed.consts, *args], strict=True))
    found = []
    for eqn in closed.jaxpr.eqns:
      operands = [atom.val if hasattr(atom, 'val') else env[atom] for atom in eqn.invars]
      env.update(zip(eqn.outvars, rewrite.bind(eqn, operands), strict=True))
      found += [env[eqn.outvars[0]]] if eqn.primitive.name == 'clamp' else []
    return found

  return [np.asarray(one) for one in jax.jit(collect)(*jax.tree.leaves((known, inputs)))]


def integers(graph, values):
  """Every array of integers of a list, relative to its zero, wherever it was moved."""
  makers = {one.outputs[0]: one for one in graph.operations}
  for one in graph.operations:
    if values[one.outputs[0]].dtype == np.int8:
      first = one
      while 'y_zero_point' not in first.attributes and 'zero_point' not in first.attributes:
        first = makers[first.inputs[0]]
      zero = first.attributes.get('y_zero_point', first.attributes.get('zero_point'))
      yield np.asarray(values[one.outputs[0]], np.int32) - zero


def check(make, inputs, *, flat=True):
  fn, known = trained(make(), inputs, jl.fake_quant(every=True))
  graph = quantized(lower(fn, known, inputs))  # no examples
  assert [one for one in layers(graph) if one.why and one.why != 'a result of the network'] == []
  values = jax.jit(lambda x: traced(graph, x))(inputs)
  np.testing.assert_array_equal(values[graph.outputs[0]], jax.jit(fn)(known, inputs))
  np.testing.assert_array_equal(reference.run(graph, inputs), values[graph.outputs[0]])
  if not flat:
    return
  deployed = list(integers(graph, values))
  held, shapes = {(one.shape, one.tobytes()) for one in deployed}, {one.shape for one in deployed}
  fakes = [one.astype(np.int32) for one in shown(fn, known, inputs) if one.shape in shapes]
  assert len(fakes) >= len([one for one in graph.operations if one.kind.startswith('quantized_')]) - 1
  for one in fakes:
    assert (one.shape, one.tobytes()) in held


@pytest.mark.sampled(1)
@pytest.mark.parametrize('name', SHORT)
def test_evaluation_shows_the_integers_that_are_deployed_without_examples(name):
  check(*SHORT[name], flat=name != 'scan')  # whose values lie inside of a loop


@pytest.mark.slow
@pytest.mark.parametrize('name', LONG)
def test_evaluation_of_other_networks_shows_the_integers_that_are_deployed(name):
  check(*LONG[name], flat=name != 'equinox')


@pytest.mark.slow
def test_a_transformer_is_deployed_without_examples_and_lies_within_a_step():
  inputs = floats(8, 8, 8, 1)
  fn, known = trained(models.ViT(patch=4, width=16, layers=1, heads=2), inputs, jl.fake_quant(every=True))
  graph = quantized(lower(fn, known, inputs))
  assert {one.kind for one in graph.operations} >= {'quantized_dense', 'quantized_dot', 'quantized_add'}
  wanted = np.asarray(jax.jit(fn)(known, inputs))
  np.testing.assert_allclose(reference.run(graph, inputs), wanted, atol=0.05 * np.ptp(wanted))


# --- a part like any other ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_composes_with_prune_and_distill_and_resumes():
  make, inputs = CASES['residual']
  batch = {'inputs': inputs, 'labels': np.arange(8) % 5}
  model = jl.adapt(make())
  teacher = jl.Network(model, *model.init(jax.random.key(1), inputs))
  recipe = jl.chain(
    jl.fake_quant(every=True),
    jl.distill(teacher, temperature=2.0, alpha=0.5),
    optax.adam(1e-2),
    jl.prune(sparsity=0.5, begin=0, end=4, every=1),
  )
  train = jl.train_step(model, jl.cross_entropy, recipe)
  state = train.init(jax.random.key(0), batch)
  for step in range(6):
    if step == 3:
      again = jax.tree.map(jnp.copy, state)
    state, metrics = train.step(state, batch)
  for _ in range(3):
    again, other = train.step(again, batch)
  assert metrics == other
  for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
    assert bool((one == two).all())
  fn = lambda known, x: train.model.apply(*known, x, train=False, key=None)[0]  # noqa: E731
  known = state.params, join_const(state.model_state, state.const)
  graph = quantized(lower(fn, known, inputs))
  np.testing.assert_array_equal(reference.run(graph, inputs), jax.jit(fn)(known, inputs))
  zeros = [np.mean(array == 0) for name, array in graph.constants.items() if array.dtype == np.int8 and array.ndim > 1]
  assert np.mean(zeros) > 0.3


def test_calibration_finds_all_ranges_and_its_network_is_deployed_without_examples():
  make, inputs = CASES['residual']
  model = jl.adapt(make())
  network = jl.ptq(jl.Network(model, *first_values(model, inputs)), [inputs], every=True)
  assert {'<add>', '<add>#2', '<sum>'} <= network.model_state['jl.fake_quant'].keys()
  fn = lambda known, x: network.model.apply(*known, x, train=False, key=None)[0]  # noqa: E731
  known = network.params, network.model_state
  graph = quantized(lower(fn, known, inputs))
  np.testing.assert_array_equal(reference.run(graph, inputs), jax.jit(fn)(known, inputs))


def test_functions_observe_and_quantize_by_the_same_points():
  def apply(p, x):
    x = jnp.maximum(x @ p['in'] + p['b'], 0)
    return (x + jnp.maximum(x @ p['mid'], 0)) @ p['out']

  params = {'in': floats(6, 8), 'mid': floats(8, 8), 'out': floats(8, 3), 'b': floats(8)}
  inputs = floats(16, 6)
  out, ranges = jax.jit(jl.quantization.observe(apply, every=True))(params, inputs)
  np.testing.assert_allclose(out, apply(params, inputs), rtol=1e-5, atol=1e-5)  # sums of tens, in another order
  assert ranges.keys() == {'in', 'mid', 'out', '<add>'}
  assert ranges['<add>'][0].shape == (2,)
  fake = jl.quantize(apply, ranges=ranges, every=True)
  graph = quantized(lower(fake, params, inputs))
  np.testing.assert_array_equal(reference.run(graph, inputs), jax.jit(fake)(params, inputs))
  real = jl.quantize(apply, ranges=ranges, every=True, real=True)
  np.testing.assert_array_equal(jax.jit(real)(params, inputs), jax.jit(fake)(params, inputs))
  slope, wanted = (jax.jit(jax.grad(lambda p, fn=fn: fn(p, inputs).sum()))(params) for fn in (fake, apply))
  for name in params:  # straight through
    assert np.corrcoef(np.ravel(slope[name]), np.ravel(wanted[name]))[0, 1] > 0.9


@pytest.mark.unoptimized
def test_a_sum_that_is_kept_float_has_no_point():
  make, inputs = CASES['plain']
  fn, known = trained(make(), inputs, jl.fake_quant(every=True, rules={'<add>': None}))
  assert '<add>' not in known[1]['jl.fake_quant']
  assert np.isfinite(np.asarray(jax.jit(fn)(known, inputs))).all()


@pytest.mark.unoptimized
def test_without_it_no_sum_is_a_site():
  make, inputs = CASES['residual']
  _, known = trained(make(), inputs, jl.fake_quant(), steps=1)
  assert not [name for name in known[1]['jl.fake_quant'] if name.startswith('<')]
