"""Networks that nobody here wrote for export: each answers rightly in every runtime, in floats and in integers, at
batch sizes that it was not traced with, or is refused with a reason that names what stands in the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import jaxlite as jl
from jaxlite.deployment.formats import missing
from jaxlite.deployment.litert.file import litert_bytes
from jaxlite.deployment.onnx.file import onnx_bytes
from jaxlite.deployment.operations import reference
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from networks import first_values

pytestmark = pytest.mark.unoptimized
FORMATS = ('pack', 'c', 'onnx', 'litert', 'stablehlo')


def floats(*shape):
  return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def weights(**shapes):
  draw = np.random.default_rng(1)
  return {name: jnp.asarray(0.5 * draw.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def conv(x, w, stride=1, padding='SAME', dilation=1, groups=1):
  space = 'DHW'[-(x.ndim - 2) :]
  numbers = (f'N{space}C', f'{space}IO', f'N{space}C')
  every = len(space)
  return lax.conv_general_dilated(
    x,
    w,
    (stride,) * every,
    padding,
    rhs_dilation=(dilation,) * every,
    feature_group_count=groups,
    dimension_numbers=numbers,
  )


def odd_sizes(p, x):
  x = jax.nn.relu(conv(x, p['a'], 2))
  x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), 'SAME')
  return conv(x, p['b'], 3).mean((1, 2))


def chosen(p, x):
  h = x @ p['a']
  return jnp.take_along_axis(h, jnp.argmax(h[..., 0], 1)[:, None, None], 1)[:, 0]


def cropped(p, x):
  """A transposed convolution that is cut to the size of what it is joined with."""
  h = jax.nn.relu(conv(x, p['a']))
  low = jax.nn.relu(conv(h, p['b'], 2))
  up = lax.conv_transpose(low, p['t'], (2, 2), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  return conv(jnp.concatenate([h, up[:, : x.shape[1], : x.shape[2]]], -1), p['o'])


def padded(p, x):
  x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode='reflect')
  x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), mode='edge')
  return jax.nn.relu(conv(x, p['a'], 1, 'VALID')).mean((1, 2)) @ p['b']


def resized(p, x):
  h = jax.nn.relu(conv(x, p['a'], 2))
  near = jax.image.resize(h, (x.shape[0], 12, 12, 8), 'nearest')
  return conv(near, p['b']), jax.image.resize(h, (x.shape[0], 15, 10, 8), 'bilinear').mean((1, 2))


def dead(p, x):
  """A channel of zeros in either layer, behind a bias."""
  h = jax.nn.relu(conv(x, p['a'].at[..., 2].set(0)) + p['d'])
  return h.mean((1, 2)) @ p['b'].at[:, 1].set(0)


PICTURES, SERIES = floats(10, 12, 12, 3), floats(10, 9, 5)
FUNCTIONS = {  # function, shapes of its weights, inputs
  'odd sizes': (odd_sizes, {'a': (3, 3, 3, 8), 'b': (5, 5, 8, 4)}, floats(10, 33, 17, 3)),
  'tuples': (lambda p, x: (x.mean(1) @ p['a'], (x.max(1) @ p['b'],)), {'a': (5, 6), 'b': (5, 3)}, SERIES),
  'a number': (lambda p, x: (jax.nn.relu(x.mean(1) @ p['a']) @ p['b'])[:, 0], {'a': (5, 6), 'b': (6, 1)}, SERIES),
  'one class': (lambda p, x: jax.nn.relu(x.mean(1) @ p['a']) @ p['b'], {'a': (5, 6), 'b': (6, 1)}, SERIES),
  'two inputs': (
    lambda p, x: jax.nn.relu(x['series'].mean(1) @ p['a'] + x['more'] @ p['b']) @ p['c'],
    {'a': (5, 6), 'b': (3, 6), 'c': (6, 4)},
    {'series': SERIES, 'more': floats(10, 3)},
  ),
  'one axis': (
    lambda p, x: conv(jax.nn.relu(conv(x, p['a'], 1, 'SAME', 2)), p['b'], 2).mean(1),
    {'a': (3, 5, 8), 'b': (3, 8, 4)},
    SERIES,
  ),
  'three axes': (
    lambda p, x: jax.nn.relu(conv(x, p['a'], 2)).mean((1, 2, 3)) @ p['b'],
    {'a': (3, 3, 3, 2, 4), 'b': (4, 3)},
    floats(10, 6, 7, 8, 2),
  ),
  'dilated groups': (
    lambda p, x: conv(jax.nn.relu(conv(x, p['a'], 1, 'VALID', 3)), p['b'], 2, 'SAME', 1, 4).mean((1, 2)),
    {'a': (3, 3, 3, 8), 'b': (3, 3, 2, 12)},
    PICTURES,
  ),
  'a dead channel': (dead, {'a': (3, 3, 3, 8), 'd': (8,), 'b': (8, 4)}, PICTURES),
  'only zeros': (lambda p, x: jax.nn.relu(x.mean(1) @ (0 * p['a'])) @ p['b'], {'a': (5, 6), 'b': (6, 3)}, SERIES),
  'resized': (resized, {'a': (3, 3, 3, 8), 'b': (3, 3, 8, 2)}, PICTURES),
  'padded': (padded, {'a': (3, 3, 3, 8), 'b': (8, 4)}, PICTURES),
  'cropped': (
    cropped,
    {'a': (3, 3, 3, 8), 'b': (3, 3, 8, 8), 't': (2, 2, 8, 8), 'o': (3, 3, 16, 2)},
    floats(10, 11, 9, 3),
  ),
  'tokens': (
    lambda p, x: jax.nn.relu((jax.nn.one_hot(x, 7) @ p['a'] + p['t'][x]).mean(1)) @ p['b'],
    {'a': (7, 6), 't': (7, 6), 'b': (6, 4)},
    np.random.default_rng(0).integers(0, 7, (10, 5)).astype(np.int32),
  ),
  'chosen': (chosen, {'a': (5, 4)}, SERIES),
  'bytes': (
    lambda p, x: jax.nn.relu(conv(x.astype(jnp.float32) / 255, p['a'], 2)).mean((1, 2)) @ p['b'],
    {'a': (3, 3, 3, 8), 'b': (8, 4)},
    np.random.default_rng(0).integers(0, 256, (10, 13, 11, 3)).astype(np.uint8),
  ),
  'a mask': (
    lambda p, x: jnp.where(x['there'][..., None], x['series'], 0).sum(1) @ p['a'],
    {'a': (5, 4)},
    {'series': SERIES, 'there': SERIES[..., 0] > 0},
  ),
}


def keras_gru():
  import keras

  given = keras.Input((9, 5))
  return jl.from_keras(keras.Model(given, keras.layers.Dense(4)(keras.layers.GRU(12)(given))))


def haiku_lstm():
  import haiku as hk

  def network(x):
    core = hk.LSTM(8)
    return hk.Linear(4)(hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)[0][:, -1])

  return jl.from_haiku(network)


def equinox_transposed():
  import equinox as eqx

  class Network(eqx.Module):
    down: eqx.nn.Conv1d
    up: eqx.nn.ConvTranspose1d

    def __call__(self, x):
      return self.up(jax.nn.gelu(self.down(x)))

  one, other = jax.random.split(jax.random.key(0))
  return jl.from_equinox(Network(eqx.nn.Conv1d(9, 8, 3, 2, key=one), eqx.nn.ConvTranspose1d(8, 2, 3, 2, key=other)))


class Wrapped(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(6, (3,), padding='CIRCULAR')(x))
    x = nn.avg_pool(nn.avg_pool(x, (3,), (2,), 'SAME'), (2,), (1,), 'SAME', count_include_pad=False)
    return nn.Dense(3)(x.reshape(x.shape[0], -1))


FRAMEWORKS = {
  'keras': keras_gru,
  'haiku': haiku_lstm,
  'equinox': equinox_transposed,
  'flax': lambda: jl.from_linen(Wrapped()),
}


def network(name, whole):
  if name in FRAMEWORKS:
    model, inputs = FRAMEWORKS[name](), SERIES
  else:
    fn, shapes, inputs = FUNCTIONS[name]
    model = jl.from_function(fn, weights(**shapes))
  one = jl.Network(model, *first_values(model, inputs))
  return (jl.ptq(one, [inputs], every=True) if whole else one), inputs


def deployed(one, inputs, folder, formats=FORMATS):
  report = jl.deploy(one, formats, out=folder, examples=inputs, batches=(1, 7), seconds=0.0, say=lambda line: None)
  return {row.format: row for row in report.written}


REFUSED: dict[tuple[str, ...], str] = {
  ('tokens', 'litert', 'integers'): 'one_hot',
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize('name', [*FUNCTIONS, *FRAMEWORKS])
@pytest.mark.parametrize('whole', [False, True], ids=['floats', 'integers'])
def test_a_foreign_network_answers_rightly_in_every_runtime(whole, name, tmp_path):
  if name in FRAMEWORKS:
    pytest.importorskip(name)
  one, inputs = network(name, whole)
  for kind, row in deployed(one, inputs, tmp_path, [each for each in FORMATS if not missing(each)]).items():
    why = REFUSED.get((name, kind, 'integers') if whole else (), '') or REFUSED.get((name, kind), '')
    assert why in row.why
    assert bool(row.why) == bool(why), (kind, row.why)


@pytest.mark.parametrize('mode', ['edge', 'reflect', 'symmetric', 'wrap', 'linear_ramp', 'mean', 'minimum'])
def test_every_way_to_pad_images_is_written(mode):
  """Along the examples nothing is added, though the program reads the first and the last of them for it."""

  def fn(p, x):
    return jnp.pad(x, ((0, 0), (2, 1), (0, 3), (0, 0)), mode=mode)

  graph = recognized(lower(fn, {}, PICTURES))
  np.testing.assert_allclose(reference.run(graph, PICTURES[:7]), fn({}, PICTURES[:7]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('space', [1, 2, 3])
def test_windows_of_every_shape_reach_litert(space):
  """Its converter makes a loop of them by itself."""
  if missing('litert'):
    pytest.skip(missing('litert'))
  inputs, window, steps = floats(3, *(7, 6, 5)[:space], 4), (3, 2, 2)[:space], (2, 1, 2)[:space]

  def fn(p, x):
    mean = nn.avg_pool(x, window, steps, 'SAME', count_include_pad=False)
    return mean, nn.avg_pool(x, window, steps), nn.max_pool(x, window, steps, 'SAME')

  assert litert_bytes(recognized(lower(fn, {}, inputs)))


PLACES = {
  'resized': lambda p, x: jax.image.resize(conv(x, p['a']), (x.shape[0], 9, 24, 8), 'nearest'),
  'rows': lambda p, x: jnp.take(conv(x, p['a']), jnp.array([[2, 1], [1, 0]]), axis=1),
  'channels': lambda p, x: conv(x, p['a'])[..., np.array([0, 3, -1])],
  'clipped': lambda p, x: jnp.take(x, jnp.array([90, 1]), axis=2, mode='clip'),
}


@pytest.mark.parametrize('name', PLACES)
def test_known_places_along_an_axis_reach_onnx(name):
  if missing('onnx'):
    pytest.skip(missing('onnx'))
  import onnxruntime

  fn, params = PLACES[name], weights(a=(3, 3, 3, 8))
  session = onnxruntime.InferenceSession(onnx_bytes(recognized(lower(fn, params, PICTURES))))
  (found,) = session.run(None, {session.get_inputs()[0].name: PICTURES[:7]})
  np.testing.assert_allclose(found, fn(params, PICTURES[:7]), rtol=1e-4, atol=1e-4)


def test_places_beyond_an_axis_are_refused_by_onnx():
  fn = lambda p, x: jnp.take(x, jnp.array([90, 1]), axis=2, mode='fill')  # noqa: E731
  with pytest.raises(ValueError, match='places beyond an axis of 12'):
    onnx_bytes(recognized(lower(fn, {}, PICTURES)))


@pytest.mark.sampled(1)
@pytest.mark.parametrize('kind', ['litert', 'onnx', 'c'])
def test_a_narrow_float_that_a_runtime_lacks_is_named_with_what_helps(kind, tmp_path):
  if missing(kind):
    pytest.skip(missing(kind))
  narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights(a=(5, 6), b=(6, 3)))
  model = jl.from_function(lambda p, x: jax.nn.relu(x.mean(1).astype(jnp.bfloat16) @ p['a']) @ p['b'], narrow)
  row = deployed(jl.Network(model, *first_values(model, SERIES)), SERIES, tmp_path, (kind, 'pack'))[kind]
  assert 'bfloat16' in row.why
  assert 'float32' in row.why
