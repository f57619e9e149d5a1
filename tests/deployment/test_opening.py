"""A stored forward is opened in the model that was trained, in every framework, and in no other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import trees
from jaxlite.contract import CONST, Hook, Side, _predictor
from jaxlite.cpu.replace import MARK, for_cpu
from jaxlite.deployment import opening, stablehlo
from networks import FRAMEWORKS, dense, first_values, linen_dense

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(24, 5)) * 40 + 300).astype(np.float32)
MEAN, STD = X.mean(0), X.std(0)
WEIGHTS = [RNG.normal(size=shape).astype(np.float32) for shape in ((5, 8), (8,), (8, 3), (3,))]
OTHERS = [np.zeros_like(one) for one in WEIGHTS]


def reference(weights=WEIGHTS):
  """What the network makes of raw inputs, in NumPy and double precision."""
  w1, b1, w2, b2 = (one.astype(np.float64) for one in weights)
  return np.maximum((X - MEAN.astype(np.float64)) / STD @ w1 + b1, 0) @ w2 + b2


def module_of(framework, weights):
  """The network in its framework's own form, as a person holds it."""
  import networks

  w1, b1, w2, b2 = weights
  sizes = (*w1.shape, w2.shape[1])
  if framework == 'function':
    return networks.function_dense, [(w1, b1), (w2, b2)]
  if framework == 'haiku':
    import haiku as hk

    return hk.transform(networks.haiku_dense(sizes))
  return getattr(networks, f'{framework}_dense')(sizes)


def applied(framework, module, values, inputs):
  """A framework's own forward with the values that were given back."""
  if framework == 'linen':
    return module.apply(values, inputs)
  if framework == 'nnx':
    from flax import nnx

    nnx.update(module, values)
    return module(inputs)
  if framework == 'equinox':
    return jax.vmap(values)(inputs)
  if framework == 'haiku':
    return module.apply(values, None, inputs)
  return module(inputs) if framework == 'keras' else module[0](values, inputs)


def stored(folder, model, *hooks, **made):
  """A forward as a run writes it, standardizing first, and its arrays by path."""
  recipe = jl.chain(jl.optim.normalize(MEAN, STD), *hooks, optax.sgd(0.1))
  whole = recipe.model(model)
  values = jl.Network(whole, *first_values(whole, X))
  about = {'around': ['normalize'], 'plain': not hooks, **made}
  assert stablehlo.save_program(folder, whole, recipe, values, X, about) == ''
  program = stablehlo.read_program(folder)
  return program, trees.by_path({'params': values.params, 'model_state': values.model_state}), values


def opened(program, values, model, recipe=None):
  return opening.opened(program, values, model, recipe, None, {})


LONG = ('keras',)  # takes seconds to build


@pytest.mark.parametrize(
  'framework', [pytest.param(one, marks=pytest.mark.slow) if one in LONG else one for one in FRAMEWORKS]
)
def test_a_stored_network_is_opened_and_given_back(framework, tmp_path):
  program, values, whole = stored(tmp_path, dense(framework, WEIGHTS)[0])
  module = module_of(framework, OTHERS)
  network = opened(program, values, module)
  np.testing.assert_allclose(network.predict(X), reference(), rtol=1e-4, atol=1e-4)
  sealed = stablehlo.sealed_network(program, whole.params, whole.model_state)
  np.testing.assert_array_equal(network.predict(X), sealed.predict(X))

  given, before, after = jl.give_back(network, module)
  np.testing.assert_allclose(after(applied(framework, module, given, before(X))), reference(), rtol=1e-4, atol=1e-4)

  assert sum(row.share for row in jl.coverage(network)(X) if row.quantized) == 1


@pytest.mark.slow
def test_an_opened_network_is_quantized_and_pruned_and_goes_back_as_it_is_then(tmp_path):
  program, values, _ = stored(tmp_path, dense('linen', WEIGHTS)[0])
  module = module_of('linen', OTHERS)
  network = opened(program, values, module)
  scale = np.abs(reference()).max()
  for integers in (jl.quantize(network)(X), jl.ptq(network, [X]).predict(X)):
    assert 0 < np.abs(np.asarray(integers) - reference()).max() < 0.03 * scale
  seen = jl.pruning.gather_statistics(network, batches=[{'inputs': X}])
  assert len(seen.grams) == 2
  params, _ = jl.pruning.sparsegpt(network.params, seen, 0.5)
  zeros = sum(int((np.asarray(one) == 0).sum()) for one in jax.tree.leaves(params))
  assert zeros == (5 * 8 + 8 * 3) // 2
  sparse = network._replace(params=params)
  given, before, after = jl.give_back(sparse, module)  # what was changed goes back, not what was loaded
  np.testing.assert_allclose(after(applied('linen', module, given, before(X))), sparse.predict(X), rtol=1e-4, atol=1e-4)


def test_a_sealed_network_says_give_model_wherever_its_inside_is_wanted(tmp_path):
  program, _, whole = stored(tmp_path, dense('function', WEIGHTS)[0])
  sealed = stablehlo.sealed_network(program, whole.params, whole.model_state)
  forward = lambda p, x: sealed.model.apply(p, sealed.model_state, x, train=False, key=None)[0]  # noqa: E731
  student, _, _ = dense('function', WEIGHTS)
  batch = {'inputs': X, 'labels': np.zeros(len(X), int)}
  sgd = jl.train_step(sealed, jl.cross_entropy, jl.chain(optax.sgd(0.1)))
  pruned = jl.train_step(sealed, jl.cross_entropy, jl.chain(optax.sgd(0.1), jl.prune(0.5, end=1)))
  asked = {
    'ptq': lambda: jl.ptq(sealed, [X]),
    'quantize': lambda: jl.quantize(sealed)(X),
    'quantize a function': lambda: jl.quantize(forward)(sealed.params, X),
    'coverage': lambda: jl.coverage(sealed)(X),
    'coverage of a function': lambda: jl.coverage(forward)(sealed.params, X),
    'observe': lambda: jl.quantization.observe(forward)(sealed.params, X),
    'statistics': lambda: jl.pruning.gather_statistics(sealed, batches=[batch]),
    'hint': lambda: jl.hint(sealed, {'0/0': 'a/kernel'}).model(student).init(jax.random.key(0), X),
    'train': lambda: sgd.step(sgd.init(jax.random.key(0), batch), batch),
    'prune': lambda: pruned.init(jax.random.key(0), batch),
    'fake_quant': lambda: jl.fake_quant().model(sealed.model).init(jax.random.key(0), X),
  }
  for name, ask in asked.items():
    with pytest.raises(ValueError, match=r'give its model, jaxlite.load\(workdir, model=...\)') as error:
      ask()
    assert '\n' not in str(error.value), name


def test_another_model_of_the_same_shapes_is_not_believed(tmp_path):
  import flax.linen as nn

  class Other(nn.Module):
    act: object

    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, name='b')(self.act(nn.Dense(8, name='a')(x)))

  class Half(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(8, name='a')(x)

  program, values, _ = stored(tmp_path, dense('linen', WEIGHTS)[0])
  np.testing.assert_allclose(opened(program, values, Other(nn.relu)).predict(X), reference(), rtol=1e-4, atol=1e-4)
  for act in (nn.gelu, nn.leaky_relu, lambda x: x, lambda x: nn.relu(x) * 1.002):
    with pytest.raises(ValueError, match='not the model that the run trained: on the same inputs outputs differ by'):
      opened(program, values, Other(act))
  with pytest.raises(ValueError, match=r"'a/bias' is float32\[9\] in this model and float32\[8\] in the run"):
    opened(program, values, linen_dense((5, 9, 3)))
  with pytest.raises(ValueError, match="this model has 'bias', which the run has not; nearest: "):
    opened(program, values, nn.Dense(3))
  with pytest.raises(ValueError, match="the run trained 'b/bias', which this model has not"):
    opened(program, values, Half())


def hooks_of(name):
  return {
    'average': [jl.average(0.5)],
    'straight_through': [jl.pruning.straight_through(0.5)],
    'freeze': [jl.freeze('^a/')],
    'fake_quant': [jl.fake_quant(4)],
    'lsq': [jl.lsq(4)],
    'both': [jl.average(0.5), jl.fake_quant(4)],
    'teacher': [jl.distill(lambda x: x[:, :3])],
  }[name]


SLOW = [
  pytest.param(name, marks=pytest.mark.slow)
  for name in ('average', 'fake_quant', 'freeze', 'lsq', 'straight_through', 'teacher')
]


@pytest.mark.parametrize('name', ['both', *SLOW])
def test_what_hooks_added_is_in_the_weights_or_asked_for(name, tmp_path):
  few_bits = name in ('fake_quant', 'lsq', 'both')
  recipe = jl.chain(jl.optim.normalize(MEAN, STD), *hooks_of(name), optax.sgd(0.05))
  train = jl.train_step(dense('linen', WEIGHTS)[0], jl.cross_entropy, recipe)
  batch = {'inputs': X, 'labels': np.arange(len(X)) % 3}
  state = train.init(jax.random.key(0), batch)
  for _ in range(3):
    state, _ = train.step(state, batch)
  full = {**state.model_state, CONST: state.const}
  whole = jl.Network(train.model, state.params, full)
  made = {'around': ['normalize'], 'plain': False, 'quantized': few_bits}
  assert stablehlo.save_program(tmp_path, train.model, recipe, whole, X, made) == ''
  program = stablehlo.read_program(tmp_path)
  values = trees.by_path({'params': state.params, 'model_state': full})
  module = linen_dense((5, 8, 3))
  wanted = np.asarray(train.eval(state, batch)[0])
  if not few_bits:
    network = opened(program, values, module)
    np.testing.assert_allclose(network.predict(X), wanted, rtol=1e-5, atol=1e-5)
    assert trees.paths(network.params) == ['a/bias', 'a/kernel', 'b/bias', 'b/kernel']
    if name == 'straight_through':
      assert sum((np.asarray(network.params[one]['kernel']) == 0).sum() for one in 'ab') == (5 * 8 + 8 * 3) // 2
    return
  with pytest.raises(ValueError, match=r'few bits.*give recipe= too.*or recipe=jl.chain\(\)'):
    opened(program, values, module)
  floats = opened(program, values, module, jl.chain())
  assert np.abs(np.asarray(floats.predict(X)) - wanted).max() > 0.001
  assert sorted(floats.params) == ['a', 'b']
  same = jl.chain(*hooks_of(name)[-1:], optax.sgd(0.05))
  np.testing.assert_allclose(opened(program, values, module, same).predict(X), wanted, rtol=1e-5, atol=1e-5)
  if name == 'both':  # both are there, and what is done to the weights would not show
    with pytest.raises(ValueError, match=r'an average in it stands in their place.*leave it out of recipe='):
      opened(program, values, module, recipe=jl.chain(*hooks_of(name)))
  other = jl.lsq(2) if name == 'lsq' else jl.fake_quant(8)
  with pytest.raises(ValueError, match='not the model and the recipe that the run trained'):
    opened(program, values, module, jl.chain(other))


def test_a_network_that_is_loaded_is_standardized_once(tmp_path):
  program, values, _ = stored(tmp_path, dense('linen', WEIGHTS)[0])
  network = opened(program, values, linen_dense((5, 8, 3)))
  with pytest.raises(ValueError, match='normalize: this model standardizes its inputs already'):
    jl.optim.normalize(MEAN, STD).model(network.model).init(jax.random.key(0), X)


def test_a_step_begins_with_the_values_that_a_network_has_now(tmp_path):
  program, values, _ = stored(tmp_path, dense('linen', WEIGHTS)[0])
  network = opened(program, values, linen_dense((5, 8, 3)))
  zero = network._replace(params=jax.tree.map(jnp.zeros_like, network.params))
  batch = {'inputs': X, 'labels': np.zeros(len(X), int)}
  train = jl.train_step(zero, jl.cross_entropy, jl.chain(optax.sgd(0.1)))
  _, metrics = train.step(train.init(jax.random.key(0), batch), batch)
  assert abs(float(metrics['loss']) - np.log(3)) < 1e-6
  assert not np.isnan(np.asarray(zero.predict(X))).any()  # its arrays live on


def test_what_is_quantized_does_not_go_back_into_a_float_module(tmp_path):
  program, values, _ = stored(tmp_path, dense('linen', WEIGHTS)[0])
  module = linen_dense((5, 8, 3))
  network = opened(program, values, module)
  with pytest.raises(ValueError, match=r"has 'jl.fake_quant' of a part of its recipe too"):
    jl.give_back(jl.ptq(network, [X]), module)
  with pytest.raises(TypeError, match='got Model: give the module itself'):
    jl.give_back(network, jl.from_linen(module))
  integers = jl.ptq(network._replace(encode=lambda rows: np.asarray(rows, np.float32), answer=lambda out: {}), [X])
  assert integers.encode is not None
  assert integers.answer is not None


def test_inputs_of_another_kind_are_refused_by_an_opened_network_too(tmp_path):
  program, values, _ = stored(tmp_path, dense('linen', WEIGHTS)[0])
  module = linen_dense((5, 8, 3))
  network = opened(program, values, module)
  for ask in (network.predict, jl.give_back(network, module).before):
    with pytest.raises(ValueError, match=r'takes float32\[B, 5\]; got an array of shape \[24, 4\]'):
      ask(X[:, :4])


def test_an_export_that_computes_is_part_of_the_stored_program(tmp_path):
  """A view of one's own: the merged weight is neither of its factors."""

  def low_rank():
    def init(key, params, state):
      return {**params, 'jl.low': {'u': jnp.ones((5, 1)), 'v': jnp.arange(8.0)[None]}}, state

    def view(params, state, **_):
      own = params['jl.low']
      kernel = params['a']['kernel'] + own['u'] @ own['v']
      return {**{k: v for k, v in params.items() if k != 'jl.low'}, 'a': {**params['a'], 'kernel': kernel}}

    return Hook('low', model=lambda model: jl.reparam(model, 'low', init, view))

  program, values, whole = stored(tmp_path, dense('linen', WEIGHTS)[0], low_rank())
  network = opened(program, values, linen_dense((5, 8, 3)))
  merged = WEIGHTS[0] + np.ones((5, 1)) @ np.arange(8.0)[None]
  np.testing.assert_allclose(network.params['a']['kernel'], merged, rtol=1e-6)
  np.testing.assert_allclose(network.predict(X), reference([merged, *WEIGHTS[1:]]), rtol=1e-4, atol=1e-3)
  sealed = stablehlo.sealed_network(program, whole.params, whole.model_state)
  np.testing.assert_allclose(sealed.predict(X), network.predict(X), rtol=1e-5, atol=1e-3)
  assert not isinstance(low_rank(), Side)


def test_an_opened_network_predicts_on_cpu_by_the_forms_that_evaluation_took(tmp_path):
  pictures = RNG.normal(size=(8, 12, 12, 4)).astype(np.float32)
  model = jl.adapt(jl.models.SmallCNN((8, 16), hidden=16, classes=2))
  network = jl.Network(model, *model.init(jax.random.key(0), pictures))
  stablehlo.save_program(tmp_path, model, jl.chain(optax.sgd(0.1)), network, pictures)
  found = stablehlo.read_program(tmp_path)
  served = trees.by_path({'params': network.params, 'model_state': network.model_state})
  opened = opening.opened(found, served, model, None, None, {})
  wanted = np.asarray(for_cpu(lambda *given: model.apply(*given, train=False, key=None)[0])(
    network.params, network.model_state, pictures))  # fmt: skip
  assert np.array_equal(opened.predict(pictures), wanted)
  given = (opened.params, opened.model_state, pictures)
  plain = jax.jit(lambda *given: model.apply(*given, train=False, key=None)[0]).lower(*given)
  assert _predictor(opened.model.apply).lower(*given).as_text().count(MARK) > plain.as_text().count(MARK)
  np.testing.assert_allclose(opened.predict(pictures), found.run(served, pictures), atol=1e-5)


def test_a_smaller_network_is_still_one_that_was_loaded(tmp_path):
  program, values, _ = stored(tmp_path, dense('linen', WEIGHTS)[0])
  network = opened(program, values, module_of('linen', OTHERS))
  small = jl.shrink(*network[:3], X, keep=0.5, multiple=1)
  w1, b1, w2, b2 = WEIGHTS
  left = np.sort(np.argsort(-(np.abs(w1).sum(0) + np.abs(b1) + np.abs(w2).sum(1)))[:4])
  np.testing.assert_allclose(
    small.network.predict(X), reference((w1[:, left], b1[left], w2[left], b2)), rtol=1e-4, atol=1e-4
  )
  for name in ('compiled', 'around', 'checked', 'input_shapes', 'reduced'):  # nobody standardizes its inputs again
    assert getattr(small.model.apply, name) is getattr(network.model.apply, name)
  assert not hasattr(small.model.apply, 'made_of')  # of other widths
  recipe = jl.chain(jl.distill(network), optax.sgd(1e-3))  # which has constants of its own beside the network's
  train = jl.train_step(jl.adapt(small.network), jl.cross_entropy, recipe)
  batch = {'inputs': X, 'labels': np.arange(len(X)) % 3}
  state, metrics = train.step(train.init(jax.random.key(0), batch), batch)
  assert metrics['distill'] > 0
  assert {*state.const} == {'normalize', 'distill'}
