"""Law of what decides whether a file stays: where integers alone decide the answer, none may differ."""

import pathlib
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
from jaxlite import models
from jaxlite.deployment import agreement, formats
from jaxlite.deployment.c.file import write_c
from jaxlite.deployment.integers.conversion import quantized
from jaxlite.deployment.running.program import program
from jaxlite.deployment.subject import of_network
from jaxlite.deployment.trying import tried, wanted_of

pytestmark = pytest.mark.unoptimized
INPUTS = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)


def subject():
  draw = np.random.default_rng(1)
  params = {name: jnp.asarray(draw.normal(size=(6, 6)), jnp.float32) for name in ('one', 'two')}
  params['bias'] = jnp.asarray(draw.normal(size=6), jnp.float32)
  model = jl.from_function(lambda p, x: jnp.maximum(x @ p['one'] + p['bias'], 0) @ p['two'], params)
  network = jl.ptq(jl.Network(model, *model.init(jax.random.key(0), INPUTS)), [INPUTS], every=True)
  return of_network(network, examples=INPUTS)


def test_a_file_of_ours_with_one_integer_off_is_deleted(tmp_path):
  one = subject()
  integers = quantized(one.graph)
  name = next(name for name in integers.constants if integers.constants[name].dtype == np.int32)
  bias = integers.constants[name].copy()
  bias[0] += 2  # of hundreds: less than a step of the result
  other = integers._replace(constants={**integers.constants, name: bias})
  outputs = np.asarray(one.network.predict(INPUTS))
  want = wanted_of(one, integers, outputs, (), 0.0, None, None)

  def write_other(subject, graph, path):
    write_c(other, path, {'input': INPUTS[:8]}, about=subject.about)

  wrong = tried('c', formats.FORMATS['c']._replace(write=write_other), want, tmp_path)
  assert 'which integers alone decide' in wrong.why
  assert not (tmp_path / 'network.c').exists()
  right = tried('c', formats.FORMATS['c'], want, tmp_path)
  assert not right.why
  assert (tmp_path / 'network.c').exists()


def test_how_often_the_largest_output_may_differ_hangs_on_the_network():
  integers = quantized(subject().graph)
  assert agreement.in_integers(integers)
  assert agreement.share_of(integers) == agreement.FEW == 0.9999
  one, other = np.zeros((10_000, 2)), np.zeros((10_000, 2))
  one[:, 0], other[:, 0] = 1, 1
  other[:2] = [[0, 1], [0, 1]]
  assert agreement.argmax_apart([other], [one], 0.9999) == 'in the largest output of 0.02% of the examples'
  assert agreement.argmax_apart([other[1:]], [one[1:]], 0.9999) == ''
  assert agreement.argmax_apart([other], [one], 0.999) == ''


def test_what_computes_floats_between_integers_keeps_a_tolerance():
  def apply(p, x):
    return jnp.tanh(x @ p['w']) @ p['w']

  w = {'w': np.eye(6, dtype=np.float32)}
  spans = {'w': (jnp.float32(-3), jnp.float32(3)), 'w#2': (jnp.float32(-1), jnp.float32(1))}
  from jaxlite.deployment.operations.lowering import lower

  graph = quantized(lower(jl.quantize(apply, ranges=spans), w, INPUTS))
  assert not agreement.in_integers(graph)
  assert agreement.share_of(graph) == agreement.SHARE


@pytest.mark.unoptimized(False)
@pytest.mark.parametrize('what', ['sum', 'norm'])
def test_floats_between_integers_are_those_of_fake_quantization_compiled(what):
  """A product that leaves a sum of integers is rounded before a float is added to it, in both programs."""
  draw = np.random.default_rng(2)
  params = {'w': draw.normal(size=(6, 32)), 'places': draw.normal(size=(16, 32)), 'out': draw.normal(size=(32, 4))}
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)

  def apply(p, x):
    h = x @ p['w'] + p['places']
    if what == 'sum':
      return h
    h = (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True) + 1e-6)
    return jax.nn.gelu(h) @ p['out']

  inputs = draw.normal(size=(64, 16, 6)).astype(np.float32)
  model = jl.from_function(apply, params)
  network = jl.ptq(jl.Network(model, *model.init(jax.random.key(0), inputs)), [inputs], every=True)
  known = network.params, network.model_state
  fake = jax.jit(lambda known, x: network.model.apply(*known, x, train=False, key=None)[0])
  graph = quantized(of_network(network, examples=inputs).graph)
  np.testing.assert_array_equal(jax.jit(program(graph))(inputs), fake(known, inputs))


@pytest.mark.slow
@pytest.mark.unoptimized(False)
@pytest.mark.parametrize('name', ['mlp', 'cnn'])
def test_every_runtime_computes_the_same_integers(monkeypatch, tmp_path, name):
  """The short form of `experiments/bench/agreement.py`."""
  bench = pathlib.Path(__file__).resolve().parents[2] / 'experiments' / 'bench'
  monkeypatch.syspath_prepend(str(bench))
  script = runpy.run_path(str(bench / 'agreement.py'))
  draw = np.random.default_rng(0)
  images, labels = draw.random((700, 28, 28, 1), np.float32), draw.integers(0, 10, 700).astype(np.int32)
  train, test = (images[:200], labels[:200]), images[200:]
  parts = script['networks']()[name](), train, ['-O0', '-O3'], 250
  row = script['agreement'](name, lambda: script['Judge'](*parts, None), test, labels[200:])
  assert row['in integers']
  assert row['integers'] > 10_000
  for what in ('answers otherwise than fake quantization', 'eager', 'unpacked', 'C -O0', 'C -O3'):
    assert row[what] == 0, what
  assert all(row.get(kind, 0) <= 1 for kind in ('onnx', 'litert'))
  kept = lambda: script['Judge'](*parts, tmp_path / 'values.npz')  # noqa: E731
  assert script['agreement'](name, kept, test, labels[200:], tmp_path, until=0.0) is None
  assert script['agreement'](name, kept, test, labels[200:], tmp_path) == row
  assert script['agreement'](name, kept, test, labels[200:], tmp_path, until=0.0) == row


@pytest.mark.slow
@pytest.mark.unoptimized(False)
@pytest.mark.parametrize('name', ['mlp', 'cnn', 'resnet8', 'depthwise', 'vit'])
def test_openvino_reads_the_onnx_file_and_names_as_many_rightly(monkeypatch, name):
  pytest.importorskip('openvino')
  bench = pathlib.Path(__file__).resolve().parents[2] / 'experiments' / 'bench'
  monkeypatch.syspath_prepend(str(bench))
  script = runpy.run_path(str(bench / 'agreement.py'))
  digits = jl.data.load('digits')
  made = {**script['networks'](), 'resnet8': models.ResNet8, 'vit': lambda: models.ViT(patch=2, width=32, layers=2)}
  train = [(np.tile(one, (4,) + (1,) * (one.ndim - 1))) for one in digits.train[:2]]
  judge = script['Judge'](made[name](), train, [], 0, None)
  test, labels = digits.test[:2]
  ours = np.asarray(judge.ours(test)[judge.graph.outputs[0]])
  row = script['openvino'](judge.graph, test, labels, ours, sys.executable)
  right = int((ours.argmax(-1) == labels).sum())
  assert right > 0.5 * len(test)
  assert abs(row['openvino right'] - right) <= max(1, 0.005 * len(test))
  if name in ('mlp', 'cnn'):  # its low-precision transformation moves scales through an Add: ResNet-20, 60 steps
    assert row['openvino steps, most'] <= 4
