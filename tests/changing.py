"""Modules that change what they hold when they are called, and whoever traces a call of theirs."""

import functools

import numpy as np
import pytest
from flax import nnx

import jaxlite as jl
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
