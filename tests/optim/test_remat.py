"""Laws of remat: the same gradients, less memory in the program that XLA makes, whatever the network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxpr_as_fun

import jaxlite as jl
from jaxlite.graph.pieces import cuts, in_pieces
from jaxlite.step import gradient
from jaxlite.tasks.lift import lift_loss
from simulated import sound_on

LAYERS, WIDTH, BATCH = 16, 64, 512


def deep(params, x):
  for i in range(LAYERS):
    x = jax.nn.gelu(x @ params[f'w{i:02}'])
  return x @ params['last']


def values(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  layers = {f'w{i:02}': jnp.asarray(rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5, dtype) for i in range(LAYERS)}
  return {**layers, 'last': jnp.asarray(rng.normal(size=(WIDTH, 10)), dtype)}


def temporaries(fn, *args):
  return jax.jit(fn).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize('pieces', [2, 4, 7])
def test_gradients_are_those_of_the_function_itself_and_memory_shrinks(pieces):
  """XLA:CPU undoes `jax.checkpoint`: this fails as soon as it undoes ours too."""
  x, params = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, WIDTH)), jnp.float32), values()
  loss = lambda fn, params, x: jnp.sum(jnp.sin(fn(params, x)))  # noqa: E731
  plain = jax.grad(functools.partial(loss, deep))
  cut = jax.grad(functools.partial(loss, in_pieces(deep, pieces)))
  for one, other in zip(
    jax.tree.leaves(jax.jit(plain)(params, x)), jax.tree.leaves(jax.jit(cut)(params, x)), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
  share = temporaries(cut, params, x) / temporaries(plain, params, x)
  assert share < {2: 0.75, 4: 0.6, 7: 0.6}[pieces], share


def nets():
  import flax.linen as nn

  from jaxlite.models import ResNet8, ViT

  yield 'function', jl.from_function(deep, values()), (WIDTH,)
  yield 'jitted', jl.from_function(jax.jit(deep), values()), (WIDTH,)
  yield 'statistics', jl.from_linen(ResNet8()), (16, 16, 3)
  yield 'attention', jl.from_linen(ViT(width=32, hidden=64)), (16, 16, 3)
  yield (
    'dropout',
    jl.from_linen(nn.Sequential([nn.Dense(32), nn.Dropout(0.5, deterministic=False), nn.Dense(10)])),
    (8,),
  )


@pytest.mark.sampled(2)
@pytest.mark.parametrize('name', ['function', 'jitted', 'statistics', 'attention'])
def test_a_step_gives_the_same_gradient_state_and_loss(name):
  model, shape = next((model, shape) for found, model, shape in nets() if found == name)
  rng = np.random.default_rng(2)
  batch = {'inputs': rng.normal(size=(8, *shape)).astype(np.float32), 'labels': np.arange(8) % 10}
  key = jax.random.key(0)
  params, state = model.init(key, batch['inputs'])
  found = []
  for parts in ((), (jl.optim.remat(3),)):
    recipe = jl.chain(*parts, optax.sgd(0.1))
    inner = gradient.gradient_of(recipe.model(model), lift_loss(jl.cross_entropy))
    found.append(jax.jit(inner)(params, state, batch, key, jnp.int32(0)))
  for one, other in zip(jax.tree.leaves(found[0]), jax.tree.leaves(found[1]), strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_draws_are_the_same_though_they_are_drawn_twice():
  def noisy(params, x, key):
    for i in range(4):
      keep = jax.random.bernoulli(jax.random.fold_in(key, i), 0.5, x.shape)
      x = jnp.tanh(jnp.where(keep, x @ params[f'w{i:02}'], 0.0))
    return x.sum()

  x, params, key = jnp.ones((4, WIDTH)), values(), jax.random.key(3)
  one, other = (jax.jit(jax.grad(fn))(params, x, key) for fn in (noisy, in_pieces(noisy, 3)))
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_it_composes_with_the_other_parts_of_a_recipe():
  rng = np.random.default_rng(4)
  batch = {'inputs': rng.normal(size=(8, WIDTH)).astype(np.float32), 'labels': np.arange(8) % 10}
  parts = [jl.fake_quant(bits=8), jl.average(0.9), optax.adam(1e-2), jl.prune(0.5, begin=1, end=3, every=1)]
  ends = []
  for first in ([], [jl.optim.remat(4)]):
    train = jl.train_step(jl.from_function(deep, values()), jl.cross_entropy, jl.chain(*first, *parts))
    state = train.init(jax.random.key(0), batch)
    for _ in range(3):
      state, metrics = train.step(state, batch)
    ends.append((float(metrics['loss']), float(jnp.mean(state.params['w03'] == 0))))
  assert abs(ends[0][0] - ends[1][0]) < 1e-3
  assert ends[0][1] == ends[1][1] > 0.4


def test_vmap_bfloat16_integers_and_what_is_not_differentiated():
  ids = jnp.arange(6).reshape(2, 3)

  def embedded(params, ids):
    x = params['last'][ids % 64].astype(jnp.bfloat16)
    return jnp.sin(jnp.sin(jnp.sin(x))).astype(jnp.float32).sum()

  params = values()
  plain = jax.vmap(jax.grad(embedded), in_axes=(None, 0))(params, ids)
  cut = jax.vmap(jax.grad(in_pieces(embedded, 3)), in_axes=(None, 0))(params, ids)
  np.testing.assert_allclose(plain['last'], cut['last'], rtol=1e-2, atol=1e-3)
  assert float(in_pieces(embedded, 3)(params, ids[0])) == pytest.approx(float(embedded(params, ids[0])), rel=1e-2)


def test_a_short_program_is_cut_less_often_and_an_empty_one_not_at_all():
  bare = jax.make_jaxpr(lambda x: jnp.sin(x))(1.0).jaxpr
  assert cuts(bare, 4) == []
  assert in_pieces(lambda p, x: x, 4)({}, jnp.ones(2)).tolist() == [1, 1]
  program = jax.make_jaxpr(deep)(values(), jnp.ones((2, WIDTH)))
  for pieces in (1, 2, 5, 40):
    places = cuts(program.jaxpr, pieces)
    assert places == sorted(set(places))
    assert len(places) < pieces
  assert jaxpr_as_fun(program)


@pytest.mark.parametrize('pieces', [1, 0, True, 2.0])
def test_pieces_are_at_least_two(pieces):
  with pytest.raises(ValueError, match='remat: pieces is a whole number, at least 2'):
    jl.optim.remat(pieces)


SHARDS = """
  import jax, numpy as np
  from jax.sharding import PartitionSpec as P
  import jaxlite as jl

  rng = np.random.default_rng(0)
  params = {name: rng.normal(size=(6, 6)).astype(np.float32) for name in 'abcd'}
  def net(p, x, *, train, key):
    for name in p:
      x = jax.nn.relu(x @ p[name])
    return x * (1 + jax.random.uniform(key, x.shape[1:]) if train else 1)
  batch = {'inputs': rng.normal(size=(8, 6)).astype(np.float32), 'labels': np.arange(8) % 3}
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('d',))

  found = []
  for parts in ([], [jl.optim.remat(2)]):
    loop = jl.step.wrap(jl.from_function(net, params), jl.cross_entropy, jl.chain(*parts))
    start, state = loop.init(jax.random.key(0), batch)
    def gradient(params, batch):
      mine = jax.lax.pcast(params, 'd', to='varying')
      return jax.lax.pmean(loop.gradient(mine, state, batch, jax.random.key(0), 0)[0], 'd')
    spread = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P('d')), out_specs=P())
    found += [jax.jit(spread)(start, batch), jax.jit(loop.gradient)(start, state, batch, jax.random.key(0), 0)[0]]
  for one in found[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, found[0])
  print('sound', jax.device_count())
"""


def test_pieces_are_those_of_a_shard_too():
  sound_on(2, SHARDS)
