"""Every kind of network that is written in C is strict C, clean under sanitizers, and computes what NumPy computes, by
gcc and by clang, in floats and in integers."""

import sys

import numpy as np
import pytest

import jaxlite as jl
from jaxlite import models
from jaxlite.cpu.kernels.compiler import compiler
from jaxlite.deployment.c import check as c_check
from jaxlite.deployment.c.source import c_source
from jaxlite.deployment.integers.conversion import quantized
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from jaxlite.deployment.subject import of_network
from networks import first_values

CC = compiler()
pytestmark = [pytest.mark.skipif(CC is None, reason='no C compiler'), pytest.mark.unoptimized]
STRICT = ('-std=c99', '-Wall', '-Wextra', '-Werror', '-pedantic')
WATCHED = ('-fsanitize=address,undefined', '-fno-sanitize-recover=all')
PICTURES = {
  'mlp': lambda: models.MLP((24, 16)),
  'lenet': models.LeNet5,
  'cnn': lambda: models.SmallCNN(features=(8, 16), hidden=24),
  'resnet': lambda: models.ResNet8(),
  'depthwise': lambda: models.DepthwiseCNN(stem=8, blocks=((16, 2), (24, 1))),
  'vit': lambda: models.ViT(patch=4, width=16, layers=1, heads=2, hidden=32),
}
TEXTS = {
  'bag': lambda: models.EmbeddingBag(40, width=8, classes=3),
  'decoder': lambda: models.Decoder(40, width=16, layers=1, heads=2, hidden=24),
}
KINDS = [*PICTURES, *TEXTS]


def inputs_of(name, count=6):
  rng = np.random.default_rng(0)
  if name in TEXTS:
    return rng.integers(0, 40, (count, 7)).astype(np.int32)
  return rng.normal(size=(count, 28, 28, 1) if name == 'lenet' else (count, 12, 12, 1)).astype(np.float32)


def graphs(name):
  """The list of a network in floats and, where it can be, in integers."""
  model, inputs = jl.adapt({**PICTURES, **TEXTS}[name]()), inputs_of(name)
  network = jl.Network(model, *first_values(model, inputs))
  yield 'floats', recognized(of_network(network, examples=inputs).graph)
  few = jl.ptq(network, [inputs], every=True)
  yield 'integers', quantized(of_network(few, examples=inputs).graph)


@pytest.mark.sampled(2)
@pytest.mark.parametrize('name', KINDS)
def test_every_kind_of_network_is_strict_c_and_clean_under_sanitizers(name):
  given = inputs_of(name, 3)
  for _, graph in graphs(name):
    c_check.verify(c_source(graph), graph, {graph.inputs[0]: given}, [CC, *STRICT, *WATCHED, '-O1'])


@pytest.mark.parametrize('rows', [6, 8])
def test_a_compiler_that_optimizes_warns_of_nothing(rows):
  x, weight = np.ones((2, rows, 5), np.float32), np.ones((5, 6), np.float32)
  graph = recognized(lower(lambda params, x: x @ params, weight, x))
  c_check.verify(c_source(graph), graph, {'input': x}, [CC, *STRICT, '-O3'])


@pytest.mark.slow
@pytest.mark.parametrize('name', KINDS)
def test_clang_takes_every_kind_of_network(name):
  pytest.importorskip('ziglang')
  given, zig = inputs_of(name, 3), [sys.executable, '-m', 'ziglang', 'cc']
  for _, graph in graphs(name):
    for flags in (['-O0', '-fsanitize=undefined', '-fno-sanitize-recover=all'], ['-O3', '-march=native']):
      c_check.verify(c_source(graph), graph, {graph.inputs[0]: given}, [*zig, *STRICT, *flags])
