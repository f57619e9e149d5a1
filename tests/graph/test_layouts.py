"""Laws of layouts: whatever the framework keeps a weight as, the summed axes are those of the contraction."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxlite as jl
from jaxlite.graph.layouts import LeafLayout, parameter_layouts
from jaxlite.graph.model import weights_of

pytestmark = pytest.mark.unoptimized

X = jnp.ones((2, 3))
IMAGES = jnp.ones((2, 8, 8, 3))
A, B = (0,), (1,)


def stacked(p, x):
  return lax.scan(lambda c, w: (c @ (w * 2), None), x, p['w'])[0]


def normed(p, x):
  return x @ (p['w'] / jnp.linalg.norm(p['w'], axis=0, keepdims=True) * p['g'])


def looped(p, x):
  return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] @ p['w'].T), (0, x))[1]


def branched(p, x):
  return lax.cond(x[0, 0] > 0, lambda w, x: x @ w.T, lambda w, x: x @ w.T * 2, p['w'], x)


CASES = {
  'x @ w': (lambda p, x: x @ p['w'], (3, 5), LeafLayout(A, B)),
  'x @ w.T': (lambda p, x: x @ p['w'].T, (5, 3), LeafLayout(B, A)),
  'w @ x': (lambda p, x: p['w'] @ x.T, (5, 3), LeafLayout(B, A)),
  'masked and cast': (lambda p, x: x @ (p['w'] * (p['w'] > 0)).astype(jnp.bfloat16), (3, 5), LeafLayout(A, B)),
  'heads': (lambda p, x: jnp.einsum('bi,ihd->bhd', x, p['w']), (3, 2, 5), LeafLayout(A, (1, 2))),
  'heads summed': (lambda p, x: jnp.einsum('bh,hbo->bo', x, p['w'][:, :2]), (3, 4, 5), LeafLayout(A, (2,))),
  'merged heads': (lambda p, x: x @ p['w'].reshape(3, 10), (3, 2, 5), LeafLayout(A, (1, 2))),
  'split axis': (lambda p, x: x @ p['w'].reshape(3, 10), (30,), None),
  'a row of ones': (lambda p, x: x @ p['w'].reshape(3, 5), (1, 3, 5), LeafLayout((1,), (2,))),
  'experts': (lambda p, x: jnp.einsum('ebi,eio->ebo', jnp.stack([x] * 4), p['w']), (4, 3, 5), LeafLayout((1,), (2,))),
  'layers in a scan': (stacked, (7, 3, 3), LeafLayout((1,), (2,))),
  'weight norm': (normed, (3, 5), LeafLayout(A, B)),
  'remat and jit': (lambda p, x: jax.checkpoint(jax.jit(lambda w: x @ w))(p['w']), (3, 5), LeafLayout(A, B)),
  'while': (looped, (3, 3), LeafLayout(B, A)),
  'cond': (branched, (5, 3), LeafLayout(B, A)),
  'tied both ways': (lambda p, x: x @ p['w'].T @ p['w'], (5, 3), None),
}


@pytest.mark.parametrize('name', CASES)
def test_axes_are_followed_to_the_contraction(name):
  fn, shape, expected = CASES[name]
  found = parameter_layouts(fn, {'w': jnp.ones(shape), 'g': jnp.ones(5)}, X)
  assert found['w'] == expected


class LinenNet(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Conv(8, (3, 3), name='conv')(x)
    x = nn.Conv(8, (3, 3), feature_group_count=8, name='deep')(x)
    return nn.Dense(5, name='dense')(x.mean((1, 2)))


class EqxNet(eqx.Module):
  conv: eqx.nn.Conv2d
  dense: eqx.nn.Linear

  def __init__(self, key):
    self.conv, self.dense = eqx.nn.Conv2d(3, 8, 3, key=key), eqx.nn.Linear(8, 5, key=key)

  def __call__(self, x):
    return self.dense(self.conv(jnp.transpose(x, (2, 0, 1))).mean((1, 2)))


class NnxNet(nnx.Module):
  def __init__(self, rngs):
    self.conv, self.dense = nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.Linear(8, 5, rngs=rngs)

  def __call__(self, x):
    return self.dense(self.conv(x).mean((1, 2)))


def haiku_net(x):
  return hk.Linear(5, name='dense')(hk.Conv2D(8, 3, name='conv')(x).mean((1, 2)))


IN_OUT, HWIO = LeafLayout((0,), (1,)), LeafLayout((0, 1, 2), (3,))
FRAMEWORKS = {
  'linen': (
    lambda: jl.from_linen(LinenNet()),
    {'conv/kernel': HWIO, 'deep/kernel': HWIO, 'dense/kernel': IN_OUT},
  ),
  'nnx': (lambda: jl.from_nnx(NnxNet(nnx.Rngs(0))), {'conv/kernel': HWIO, 'dense/kernel': IN_OUT}),
  'haiku': (lambda: jl.from_haiku(haiku_net), {'conv/w': HWIO, 'dense/w': IN_OUT}),
  'equinox': (
    lambda: jl.from_equinox(EqxNet(jax.random.key(0))),
    {'conv/weight': LeafLayout((2, 3, 1), (0,)), 'dense/weight': LeafLayout((1,), (0,))},
  ),
}


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_every_framework_s_kernels(framework):
  make, expected = FRAMEWORKS[framework]
  assert weights_of(make(), jax.random.key(0), np.asarray(IMAGES)) == expected
