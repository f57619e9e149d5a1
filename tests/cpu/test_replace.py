"""Laws of exchanged equations: for CPU alone, at any depth, and nothing else of the program changes."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxlite.cpu.kernels import choose
from jaxlite.cpu.replace import MARK, for_cpu, sites

pytestmark = pytest.mark.unoptimized


@pytest.fixture(autouse=True)
def without_onednn(monkeypatch):
  """What holds without the extra; with it, test_onednn.py."""
  monkeypatch.setattr(choose, 'forms', lambda *_: {})


RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 8, 8, 3)), jnp.float32)
W = jnp.asarray(RNG.normal(size=(3, 3, 3, 16)), jnp.float32)  # large enough to be exchanged in a loop


def network(x, w):
  y = jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  return nn.max_pool(jnp.tanh(y), (3, 3), (2, 2), 'SAME')


def loss(x, w):
  return (network(x, w) ** 2).sum()


gradient = jax.grad(loss, (0, 1))


def scanned(x, w):
  def turn(w, scale):
    value, (_, slope) = jax.value_and_grad(loss, (0, 1))(x * scale, w)
    return w - 0.01 * slope, value

  return jax.lax.scan(turn, w, jnp.array([1.0, 0.5, 2.0]))


def looped(x, w):
  return jax.lax.fori_loop(0, 3, lambda i, w: w - 0.01 * gradient(x * i, w)[1], w)


def branched(x, w):
  return jax.lax.cond(x.sum() > 0, lambda: gradient(x, w), lambda: gradient(-x, w))


def rematerialized(x, w):
  return jax.grad(lambda x, w: jax.checkpoint(loss)(x, w), (0, 1))(x, w)


def nested(x, w):
  return jax.jit(lambda x: jax.jit(gradient)(x, w))(x)


def unrolled(x, w):
  return jax.lax.scan(lambda w, _: (w - 0.01 * gradient(x, w)[1], None), w, None, length=2, unroll=True)[0]


def ensemble(x, w):
  return jax.vmap(gradient)(jnp.stack([x, 2 * x]), jnp.stack([w, -w]))


QUICK = (scanned, branched, rematerialized, ensemble)
PROGRAMS = (*QUICK, *(pytest.param(fn, marks=pytest.mark.slow) for fn in (gradient, looped, nested, unrolled)))


def close(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(a).max()))


def lowered(fn, platform, *args):
  return export.export(jax.jit(fn), platforms=[platform])(*args).mlir_module()


@pytest.mark.sampled(2)
@pytest.mark.parametrize('program', PROGRAMS, ids=lambda fn: getattr(fn, '__name__', 'gradient'))
def test_any_depth_gives_the_same_numbers_and_the_same_bits_again(program):
  ours = for_cpu(program)
  first, again = ours(X, W), ours(X, W)
  close(jax.jit(program)(X, W), first)
  for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('program', [scanned, branched], ids=lambda fn: fn.__name__)
def test_the_marker_stands_in_the_program_for_cpu_alone(program):
  assert MARK in lowered(for_cpu(program), 'cpu', X, W)
  for platform in ('cuda', 'tpu'):
    text = lowered(for_cpu(program), platform, X, W)
    assert MARK not in text
    xla = lowered(program, platform, X, W)
    for op in ('stablehlo.convolution', '"stablehlo.select_and_scatter"', '"stablehlo.reduce_window"'):
      assert (op in text) == (op in xla)


def test_what_comes_out_may_be_differentiated_and_batched_again():
  def second(g):
    return jax.grad(lambda w: sum((leaf**2).sum() for leaf in g(X, w)))

  close(jax.jit(second(gradient))(W), jax.jit(second(for_cpu(gradient)))(W))
  many = jnp.stack([W, 2 * W])
  batched = [jax.jit(jax.vmap(fn, (None, 0))) for fn in (gradient, for_cpu(gradient))]
  close(*(fn(X, many) for fn in batched))
  close(jax.jit(jax.jacfwd(loss, 1))(X, W), jax.jit(jax.jacfwd(for_cpu(loss), 1))(X, W))


def test_the_function_is_traced_once_for_each_shape_and_donates():
  traces = []

  def step(x, w):
    traces.append(x.shape)
    return x + 1, gradient(x, w)[1]

  compiled = jax.jit(for_cpu(step), donate_argnums=0)
  x = X + 0
  for _ in range(3):
    x, _ = compiled(x, W)
  assert traces == [X.shape]
  once = X + 0
  compiled(once, W)
  assert once.is_deleted()


def test_equal_sites_are_one_function_of_the_program():
  def summed(x):
    for _ in range(3):
      x = nn.max_pool(x, (3, 3), (1, 1), 'SAME')
    return x.sum()

  program = lowered(for_cpu(jax.grad(summed)), 'cpu', jnp.ones((2, 8, 8, 3)))
  kinds = sites(jax.make_jaxpr(jax.grad(summed))(jnp.ones((2, 8, 8, 3))))  # by key: values and gradients
  functions = [
    line for line in program.splitlines() if 'func.func' in line and re.search(rf'{MARK}_(reduce|select)', line)
  ]
  assert len(functions) == len(kinds)


def test_any_tree_with_keys_integers_and_constants_of_an_outer_trace():
  def step(state, *, scale=2.0):
    noise = jax.random.normal(state['key'], W.shape)
    grads = gradient(state['x'], state['w'] + noise * scale)
    return {**state, 'count': state['count'] + 1, 'w': grads[1]}, jax.random.split(state['key'])

  state = {'key': jax.random.key(3), 'x': X, 'w': W, 'count': jnp.int32(7), 'none': None}
  close_state(jax.jit(step)(state), for_cpu(step)(state))
  outer = jax.jit(lambda w: for_cpu(lambda x: gradient(x, w))(X))  # w is a tracer that the function closes over
  close(outer(W), jax.jit(gradient)(X, W))


def close_state(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    assert a.dtype == b.dtype
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    close(a, b)


def test_a_choice_by_platform_that_is_already_made_is_left_alone():
  ours = for_cpu(gradient)

  def to_exchange(fn):
    return [site for site in sites(jax.make_jaxpr(fn)(X, W)).values() if site.default != 'xla']

  assert to_exchange(gradient)
  assert not to_exchange(ours)
  close(for_cpu(ours)(X, W), ours(X, W))


def test_an_open_batch_size_stays_native():
  (size,) = export.symbolic_shape('batch')
  shapes = jax.ShapeDtypeStruct((size, *X.shape[1:]), X.dtype)
  program = export.export(jax.jit(for_cpu(gradient)), platforms=['cpu'])(shapes, W)
  close(program.call(X, W), jax.jit(gradient)(X, W))


def test_choices_name_forms():
  (key, *_) = sites(jax.make_jaxpr(gradient)(X, W))
  with pytest.raises(ValueError, match=f"got 'magic' for .{key[:8]}"):
    for_cpu(gradient, {key: 'magic'})(X, W)
  every = dict.fromkeys(sites(jax.make_jaxpr(gradient)(X, W)), 'xla')
  assert MARK not in jax.jit(for_cpu(gradient, every)).lower(X, W).as_text()


def test_two_devices():
  code = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import PartitionSpec as P
    from test_replace import MARK, W, X, close, for_cpu, loss
    mesh = jax.make_mesh((2,), ('devices',), axis_types=(jax.sharding.AxisType.Auto,))

    def step(checked):
      def shard(x, w):
        def turn(w, _):
          value, slope = jax.value_and_grad(loss, 1)(x, w)
          slope = slope if checked else jax.lax.psum(slope, 'devices')
          return w - 0.01 * slope, jax.lax.psum(value, 'devices')
        return jax.lax.scan(turn, w, None, length=2)
      return jax.shard_map(shard, mesh=mesh, in_specs=(P('devices'), P()), out_specs=P(), check_vma=checked)

    for checked in (True, False):
      assert MARK in jax.jit(for_cpu(step(checked))).lower(X, W).as_text()
      close(jax.jit(step(checked))(X, W), for_cpu(step(checked))(X, W))
    ask = lambda fn: jax.grad(lambda w: fn(X, w)[1].sum())
    close(jax.jit(ask(step(True)))(W), jax.jit(ask(for_cpu(step(True))))(W))
    """
  here = Path(__file__).parent
  environment = {
    **os.environ,
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
    'PYTHONPATH': os.pathsep.join([str(here), str(here.parent), str(here.parents[1])]),
  }
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)], env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr


def test_what_is_no_function_is_refused_when_it_is_given():
  with pytest.raises(TypeError, match=r'^for_cpu takes a function; got int: '):
    for_cpu(3)
