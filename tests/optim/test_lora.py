"""Laws of low rank: merged equals apart, the base neither learns nor is copied, whatever the network's form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxlite as jl
from jaxlite import trees
from jaxlite.contract import join_const
from jaxlite.graph import walk
from jaxlite.graph.routes import Matrix
from jaxlite.optim import dora, lora, qlora
from jaxlite.optim._stored import KINDS, Form, restore, store
from networks import FRAMEWORKS, dense

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(5, 8)), jnp.float32)
IMAGES = jnp.asarray(RNG.normal(size=(3, 6, 6, 4)), jnp.float32)
TOKENS = jnp.asarray(RNG.integers(0, 11, (3, 7)))
KEY = jax.random.key(3)


def draw(*shape):
  return (np.random.default_rng(sum(shape)).normal(size=shape) / 4).astype(np.float32)


def conv(w, x, groups=1, numbers=('NHWC', 'HWIO', 'NHWC')):
  return lax.conv_general_dilated(x, w, (1, 2), 'SAME', None, (2, 1), numbers, groups)


def qkv(p, x):
  q, k, v = jnp.split(x @ p['w'], 3, -1)
  return q * k + v


def cut(p, x):
  return (x @ p['w'][:, :4]) * (x @ p['w'][:, 8:]) + x @ p['w'][:, 4:8]


def layers(p, x):
  return lax.scan(lambda c, w: (jnp.tanh(c @ w['k'].T + w['b']), None), x, p)[0]


def blocks(p, x):
  step = jax.checkpoint(lambda c, w: (jnp.tanh(c @ w), None))
  return lax.scan(lambda c, w: lax.scan(step, c, w), x, p['w'])[0]


def channels_first(p, x):
  return conv(p['w'], jnp.moveaxis(x, -1, 1), 1, ('NCHW', 'OIHW', 'NCHW'))


# name: (function, leaves, inputs, whether inputs meet weight and factors apart)
FORMS = {
  'in, out': (lambda p, x: x @ p['w'], {'w': (8, 6)}, X, True),
  'out, in': (lambda p, x: x @ p['w'].T, {'w': (6, 8)}, X, True),
  'weight first': (lambda p, x: jnp.einsum('of,bf->ob', p['w'], x).T, {'w': (6, 8)}, X, True),
  'to heads': (lambda p, x: jnp.einsum('bd,dhk->bhk', x, p['w']), {'w': (8, 2, 4)}, X, True),
  'from heads': (lambda p, x: jnp.einsum('bhk,hkd->bd', x.reshape(5, 2, 4), p['w']), {'w': (2, 4, 6)}, X, True),
  'fused': (qkv, {'w': (8, 12)}, X, True),
  'cut': (cut, {'w': (8, 12)}, X, True),
  'twice': (lambda p, x: jnp.tanh(x @ p['w']) @ p['w'], {'w': (8, 8)}, X, True),
  'layers': (layers, {'k': (3, 8, 8), 'b': (3, 8)}, X, True),
  'layers of layers': (blocks, {'w': (2, 3, 8, 8)}, X, True),
  'experts': (lambda p, x: jnp.einsum('bd,edf->bef', x, p['w']), {'w': (3, 8, 6)}, X, True),
  'vmap': (lambda p, x: jax.vmap(lambda w: x @ w)(p['w']), {'w': (3, 8, 6)}, X, True),
  'convolution': (lambda p, x: conv(p['w'], x), {'w': (3, 3, 4, 6)}, IMAGES, True),
  'channels first': (channels_first, {'w': (6, 4, 3, 3)}, IMAGES, True),
  'masked': (lambda p, x: x @ (p['w'] * (jnp.arange(6) % 2)), {'w': (8, 6)}, X, False),
  'weight norm': (lambda p, x: x @ (p['w'] / jnp.linalg.norm(p['w'], axis=0)), {'w': (8, 6)}, X, False),
  'picked by data': (
    lambda p, x: jnp.einsum('bd,bdf->bf', x, p['w'][jnp.argmax(x[:, :3], 1)]),
    {'w': (3, 8, 6)},
    X,
    False,
  ),
  'tied': (lambda p, x: jnp.tanh(p['w'][x]) @ p['w'].T, {'w': (11, 8)}, TOKENS, False),
}
HOOKS = {
  'lora': lambda: lora(2, 3.0),
  'dora': lambda: dora(2),
  'int8': lambda: qlora(2, base='int8', quantize=r'^(w|k)$'),
  'nf4': lambda: qlora(2, group=4, magnitude=True, quantize=r'^(w|k)$'),
}


def moved_away(params, slot):
  """Factors and magnitudes away from where they begin."""
  noise = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)  # noqa: E731
  return {**params, slot: jax.tree.map(noise, params[slot])}


def begun(name, kind, rank=None):
  function, shapes, inputs, apart = FORMS[name]
  values = {leaf: draw(*shape) for leaf, shape in shapes.items()}
  hook, bare = HOOKS[kind](), jl.from_function(function, values)
  model = hook.model(bare)
  params, state = model.init(KEY, inputs)
  return hook, bare, model, moved_away(params, f'jl.{hook.name}'), state, values, inputs, apart


def by_hand(values, path, params, hook, state):
  """The merged leaf by NumPy, from what is kept and learned."""
  own = {part: np.asarray(leaf, np.float64) for part, leaf in params[f'jl.{hook.name}'][path].items()}
  adapted = dict(state[f'jl.{hook.name}'].adapted)[path]
  forms = dict(state[f'jl.{hook.name}'].forms)
  base = restore(forms[path], state['jl.const'][hook.name][path]) if path in forms else values[path]
  order = (*adapted.matrix.stack, *adapted.matrix.summed, *adapted.matrix.outputs)
  wide = np.asarray(base, np.float64).transpose(order).reshape(*own['a'].shape[:-1], own['b'].shape[-1])
  whole = wide + adapted.scale * own['a'] @ own['b']
  if 'm' in own:
    whole *= (own['m'] / np.linalg.norm(whole, axis=-2))[..., None, :]
  return whole.reshape([values[path].shape[axis] for axis in order]).transpose(np.argsort(order))


@pytest.mark.unoptimized
@pytest.mark.sampled(6)
@pytest.mark.parametrize('kind', HOOKS)
@pytest.mark.parametrize('name', FORMS)
def test_apart_equals_merged_in_outputs_and_gradients(name, kind):
  hook, bare, model, params, state, values, inputs, apart = begun(name, kind)
  known = state[f'jl.{hook.name}']
  assert (known.whole == ()) is apart
  exported, left = model.export(params, state)
  assert set(exported) == set(values)
  assert not left
  for path, _ in known.adapted:
    np.testing.assert_allclose(exported[path], by_hand(values, path, params, hook, state), atol=1e-6)

  def loss(model, params, state=state):
    return jnp.sum(jnp.sin(model.apply(params, state, inputs, train=True, key=KEY, step=0)[0]))

  step = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=0)
  for one, other in zip(
    jax.tree.leaves(step(model, params)), jax.tree.leaves(step(hook.as_one(bare), params)), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)
  out = jax.jit(lambda params: model.apply(params, state, inputs, train=False, key=None)[0])(params)
  np.testing.assert_allclose(out, bare.apply(exported, {}, inputs, train=False, key=None)[0], rtol=1e-6, atol=1e-6)


def test_a_depthwise_kernel_has_one_row_side():
  bare = jl.from_function(lambda p, x: conv(p['w'], x, 4), {'w': draw(3, 3, 1, 8)})
  params, state = lora(1).model(bare).init(KEY, IMAGES)
  assert params['jl.lora']['w']['a'].shape == (9, 1)
  assert [path for path, _ in state['jl.lora'].whole] == ['w']


@pytest.mark.unoptimized
@pytest.mark.sampled(3)
@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_it_begins_as_the_model_and_exports_its_own_params_in_every_framework(framework):
  weights = (draw(20, 16), draw(16), draw(16, 5), draw(5))
  model, names, _ = dense(framework, weights)
  batch = {'inputs': draw(8, 20), 'labels': np.arange(8) % 5}
  train = jl.train_step(model, jl.cross_entropy, jl.chain(lora(2, train='b(ias)?$|/1$'), optax.adam(1e-2)))
  state = train.init(jax.random.key(0), batch)
  params, own = model.init(jax.random.key(0), batch['inputs'])
  before = model.apply(params, own, batch['inputs'], train=False, key=None)[0]
  np.testing.assert_array_equal(train.eval(state, batch)[0], before)
  for _ in range(3):
    state, metrics = train.step(state, batch)
  exported, _ = train.model.export(state.params, {**state.model_state, 'jl.const': state.const})
  assert jax.tree.structure(exported) == jax.tree.structure(params)
  after = model.apply(exported, own, batch['inputs'], train=False, key=None)[0]
  np.testing.assert_allclose(train.eval(state, batch)[0], after, atol=1e-6)
  found, first = trees.by_path(exported), trees.by_path(params)
  assert all(not np.array_equal(found[name], first[name]) for name in names)
  assert np.isfinite(metrics['loss'])


# --- what is frozen costs nothing --------------------------------------------------------------------------------

WIDTH, DEPTH = 192, 8


def deep(p, x):
  for index in range(DEPTH):
    x = x + jax.nn.gelu(x @ p[f'w{index}'])
  return x @ p['head']


def deep_values():
  return {**{f'w{index}': draw(WIDTH, WIDTH) for index in range(DEPTH)}, 'head': draw(WIDTH, 10)}


def compiled(hook):
  batch = {'inputs': jnp.ones((16, WIDTH)), 'labels': jnp.arange(16) % 10}
  train = jl.train_step(jl.from_function(deep, deep_values()), jl.cross_entropy, jl.chain(hook, optax.adam(1e-3)))
  state = train.init(jax.random.key(0), batch)
  loop = jl.step.wrap(jl.from_function(deep, deep_values()), jl.cross_entropy, hook)
  given = (*loop.init(jax.random.key(0), batch), batch, jax.random.key(0), jnp.int32(0))
  return state, jax.jit(loop.gradient), given


@pytest.mark.parametrize('kind', ['lora', 'int8', 'nf4', 'freeze'])
def test_no_frozen_leaf_has_a_gradient_a_moment_or_a_copy(kind):
  hook = {
    'lora': lambda: lora(2),
    'int8': lambda: qlora(2, base='int8'),
    'nf4': lambda: qlora(2),
    'freeze': lambda: jl.freeze('^w'),
  }[kind]()
  state, gradient, given = compiled(hook)
  square = (WIDTH, WIDTH)
  learned = jax.tree.leaves(state.params)
  assert not [leaf for leaf in (*learned, *jax.tree.leaves(state.opt_state)) if leaf.shape == square]
  assert len(jax.tree.leaves(state.opt_state)) == 1 + 2 * len(learned)  # Adam's count and two moments
  closed = jax.make_jaxpr(gradient)(*given)
  made = [
    eqn for eqn in walk.equations(closed) if eqn.primitive.name == 'dot_general' and eqn.outvars[0].aval.shape == square
  ]
  assert not made  # the gradient of a square weight would be a product of that shape
  size = 4 * WIDTH * WIDTH
  temporaries = gradient.lower(*given).compile().memory_analysis().temp_size_in_bytes
  assert temporaries < 5 * size, (temporaries / size, 'copies of the base are kept for the backward pass')


def test_copies_of_the_base_would_be_seen():
  """The oracle of the test above: dequantized once, all eight weights live until the backward pass."""
  given = compiled(qlora(2, base='int8'))[2]
  hook = qlora(2, base='int8')
  loop = jl.step.wrap(jl.from_function(deep, deep_values()), jl.cross_entropy, jl.Hook('naive', model=hook.as_one))
  naive = jax.jit(loop.gradient).lower(*loop.init(jax.random.key(0), given[2]), *given[2:]).compile()
  assert naive.memory_analysis().temp_size_in_bytes > DEPTH * 4 * WIDTH * WIDTH


# --- in few bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
def test_stored_values_are_the_nearest_of_their_grid(kind):
  leaf = draw(2, 37, 5)
  form = Form.of(kind, Matrix(leaf.shape, (1,), (2,)), 'float32', None if kind == 'int8' else 16)
  kept = store(form, jnp.asarray(leaf))
  found = np.asarray(restore(form, kept))
  assert found.shape == leaf.shape
  bits = 8 * sum(value.nbytes for value in kept.values()) / leaf.size
  assert bits < {'int8': 9.5, 'int4': 6, 'nf4': 6}[kind]
  scale = np.repeat(np.asarray(kept['jl.scale'], np.float32), form.group, -1)[..., : leaf.shape[1]].swapaxes(-1, -2)
  step = {'int8': 1.0, 'int4': 1.0, 'nf4': 0.31}[kind]
  assert np.all(np.abs(found - leaf) <= (step / 2 + 0.02) * scale)
  again = np.asarray(restore(form, store(form, jnp.asarray(found))))
  np.testing.assert_allclose(again, found, atol=1e-2)
  for index in range(2):  # a scan's slice
    one = restore(form, jax.tree.map(lambda value: value[index], kept), 1)  # noqa: B023
    np.testing.assert_array_equal(one, found[index])


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_base_that_is_not_finite_shows_in_the_loss(bad):
  values = {'w': draw(8, 6)}
  values['w'][3, 2] = bad
  for kind in KINDS:
    model = qlora(2, base=kind).model(jl.from_function(lambda p, x: x @ p['w'], values))
    params, state = model.init(KEY, X)
    assert not np.isfinite(model.apply(params, state, X, train=True, key=None, step=0)[0]).all()


def test_levels_are_those_of_the_paper():
  """Dettmers et al. 2023, appendix E."""
  from jaxlite.optim._stored import levels

  paper = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
  paper += [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
  paper += [0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
  np.testing.assert_allclose(levels(), paper, atol=1e-6)


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('make', 'says'),
  [
    (lambda: lora(0), 'rank is a whole number, at least 1'),
    (lambda: lora(True), 'rank is a whole number'),
    (lambda: lora(2, float('nan')), 'alpha is a number above 0'),
    (lambda: lora(2, -1), 'alpha is a number above 0'),
    (lambda: lora(2, rules={'w': 0}), 'at least 1'),
    (lambda: qlora(2, base='int3'), 'base is one of int8, int4, nf4'),
    (lambda: qlora(2, group=1), 'group is a whole number, at least 2'),
  ],
)
def test_arguments_outside_their_range_are_refused(make, says):
  with pytest.raises(ValueError, match=says):
    make()


@pytest.mark.parametrize(
  ('hook', 'says'),
  [
    (lambda: lora(7), r"'w' has 8 rows and 6 columns, rank is 7"),
    (lambda: lora(2, rules={'nothing': 2}), 'matches no parameter'),
    (lambda: lora(2, select='nothing'), 'matches no parameter'),
    (lambda: lora(2, train='nothing'), 'matches no parameter'),
    (lambda: lora(2, select='^b$'), 'is no weight'),
    (lambda: lora(2, select='^w$', train='w'), 'adapted and trained'),
    (lambda: lora(2, rules={'w': None}), 'adapts nothing'),
    (lambda: qlora(2, quantize='^b$'), 'cannot be kept in few bits'),
  ],
)
def test_rules_that_fit_no_leaf_are_refused(hook, says):
  model = jl.from_function(lambda p, x: x @ p['w'] + p['b'], {'w': draw(8, 6), 'b': draw(6)})
  with pytest.raises(ValueError, match=says):
    hook().model(model).init(KEY, X)


def test_every_weight_that_is_too_small_is_told_at_once_with_its_rule():
  values = {'a': draw(8, 3), 'b': draw(3, 6), 'c': draw(6, 5)}
  model = jl.from_function(lambda p, x: x @ p['a'] @ p['b'] @ p['c'], values)
  said = r"'a' has 8 rows and 3 columns, rank is 4, and 1 more are too small.*rules=\{'\^a\$': 3, '\^b\$': 3\}"
  with pytest.raises(ValueError, match=said):
    lora(4).model(model).init(KEY, X)
  for hook in (lora(4, rules={'^a$': 3, '^b$': 3}), lora(4, fit=True)):
    params, _ = hook.model(model).init(KEY, X)
    assert {leaf: own['a'].shape[1] for leaf, own in params['jl.lora'].items()} == {'a': 3, 'b': 3, 'c': 4}


@pytest.mark.parametrize('hook', [lora, dora])
def test_a_matrix_that_is_used_in_both_directions_is_told_and_learns_where_it_is_named(hook):
  """Which of its axes are rows is not clear, and a product of low rank does not ask."""
  tied = lambda p, x: jnp.tanh(x @ p['w']) @ p['w'].T  # noqa: E731
  bare = jl.from_function(tied, {'w': draw(8, 6)})
  with pytest.raises(ValueError, match='w: multiplied, but its axes are not clear'):
    hook(2).model(bare).init(KEY, X)
  model = hook(2, select='w').model(bare)
  params, state = model.init(KEY, X)
  params = moved_away(params, f'jl.{hook.__name__}')
  merged = model.export(params, state)[0]
  assert np.linalg.matrix_rank(merged['w'] - draw(8, 6), tol=1e-3) == (2 if hook is lora else 6)
  mine = model.apply(params, state, X, train=True, key=None, step=0)[0]
  np.testing.assert_allclose(mine, tied(merged, X), rtol=1e-4, atol=1e-5)


def test_a_second_low_rank_is_refused_with_what_to_write():
  model = jl.from_function(lambda p, x: x @ p['w'], {'w': draw(8, 6)})
  recipe = jl.chain(lora(2, name='one'), lora(2, name='two'))
  with pytest.raises(ValueError, match=r'one finds nothing to freeze.* rules= gives each leaf a rank of its own'):
    recipe.model(model).init(KEY, X)


def test_an_empty_weight_is_refused():
  model = jl.from_function(lambda p, x: x @ p['w'], {'w': np.zeros((8, 0), np.float32)})
  with pytest.raises(ValueError, match=r'is empty|rank of a matrix|finds no weight'):
    lora(1).model(model).init(KEY, X)


def test_a_base_of_eight_bit_floats_learns_and_is_merged_in_its_dtype():
  values = {'w': jnp.asarray(draw(8, 4)).astype(jnp.float8_e4m3fn)}
  model = lora(2).model(jl.from_function(lambda p, x: x @ p['w'].astype(jnp.float32), values))
  params, state = model.init(KEY, np.ones((1, 8), np.float32))
  merged = model.export(params, state)[0]['w']
  assert merged.dtype == jnp.float8_e4m3fn
  np.testing.assert_array_equal(merged.astype(np.float32), values['w'].astype(np.float32))
  after = model.export(moved_away(params, 'jl.lora'), state)[0]['w']
  assert (after.astype(np.float32) != values['w'].astype(np.float32)).any()


def test_a_table_that_is_looked_up_can_be_named_and_learns():
  values = {'e': draw(11, 8), 'w': draw(8, 4)}
  model = lora(2, select='.').model(jl.from_function(lambda p, x: p['e'][x] @ p['w'], values))
  params, state = model.init(KEY, TOKENS)
  params = moved_away(params, 'jl.lora')
  loss = lambda params: jnp.sum(model.apply(params, state, TOKENS, train=True, key=None, step=0)[0] ** 2)  # noqa: E731
  grads = jax.grad(loss)(params)['jl.lora']
  assert np.abs(grads['e']['a']).sum() > 0
  assert [path for path, _ in state['jl.lora'].whole] == ['e']


def test_most_of_a_transformer_is_frozen():
  from jaxlite.models import Decoder

  model = jl.from_linen(Decoder(vocabulary=64, width=64, layers=2, heads=4, length=16))
  batch = {'inputs': np.arange(32).reshape(2, 16) % 64, 'labels': np.arange(32).reshape(2, 16) % 64}
  params, state = qlora(1, base='int8').model(model).init(KEY, jnp.asarray(batch['inputs']))
  known = state['jl.qlora']
  learned, total = known.counts
  assert learned == sum(leaf.size for leaf in jax.tree.leaves(params))
  assert learned / total < 0.1


@pytest.mark.parametrize('share, told', [(0.9, True), (0.0, False)])
def test_a_pruned_base_that_is_filled_is_told(share, told):
  w = np.where(np.random.default_rng(0).random((16, 8)) < share, 0, draw(16, 8))
  model, hook = jl.from_function(lambda p, x: x @ p['w'], {'w': w}), lora(2)
  batch = {'inputs': jnp.ones((4, 16)), 'labels': jnp.zeros(4, int)}
  train = jl.train_step(model, jl.cross_entropy, jl.chain(hook, optax.sgd(0.1)))
  state, _ = train.step(train.init(KEY, batch), batch)
  trained = jl.Network(train.model, state.params, join_const(state.model_state, state.const))
  assert (train.model.export(trained.params, trained.model_state)[0]['w'] != 0).mean() > 0.9  # it is filled
  assert ("% of the base 'w' is zero" in hook.account(trained, model, batch['inputs']).left) == told
