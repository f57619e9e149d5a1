"""A jaxpr is read to its last body, on either JAX version."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxlite.graph import walk

X = jnp.ones((2, 2))


@jax.custom_vjp
def doubled(x):
  return jnp.sin(x) * 2


doubled.defvjp(lambda x: (doubled(x), x), lambda x, g: (g,))


@jax.custom_jvp
def tripled(x):
  return jnp.sin(x) * 3


tripled.defjvp(lambda primals, tangents: (tripled(*primals), tangents[0]))

HIDING = {
  'bare': jnp.sin,
  'jit': jax.jit(jnp.sin),
  'jit in jit': jax.jit(lambda x: jax.jit(jnp.sin)(x)),
  'scan': lambda x: lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=3)[0],
  'while': lambda x: lax.while_loop(lambda c: c.sum() < 1, jnp.sin, x),
  'while condition': lambda x: lax.while_loop(lambda c: jnp.sin(c).sum() < 1, lambda c: c + 1, x),
  'fori': lambda x: lax.fori_loop(0, 3, lambda i, c: jnp.sin(c), x),
  'cond': lambda x: lax.cond(x.sum() > 0, lambda y: y, jnp.sin, x),
  'switch': lambda x: lax.switch(x.sum().astype(int), [lambda y: y, lambda y: -y, jnp.sin], x),
  'remat': jax.checkpoint(jnp.sin),
  'custom_vjp': doubled,
  'custom_jvp': tripled,
  'platform': lambda x: lax.platform_dependent(x, cpu=lambda y: y, default=jnp.sin),
  'solve': lambda x: lax.custom_linear_solve(jnp.sin, x, lambda mv, b: b),
  'shard_map': lambda x: jax.shard_map(
    jnp.sin,
    mesh=jax.sharding.Mesh(jax.devices()[:1], ('d',)),
    in_specs=jax.sharding.PartitionSpec('d'),
    out_specs=jax.sharding.PartitionSpec('d'),
  )(x),
}


@pytest.mark.parametrize('name', HIDING)
def test_a_primitive_is_found_wherever_it_hides(name):
  closed = jax.make_jaxpr(HIDING[name])(X)
  assert walk.has_primitive(closed, 'sin')
  assert walk.has_primitive(closed.jaxpr, 'cos', 'sin')  # an open jaxpr does as well
  assert not walk.has_primitive(closed, 'cos')


def test_no_name_is_no_primitive():
  assert not walk.has_primitive(jax.make_jaxpr(jnp.sin)(X))


@pytest.mark.parametrize(('consts', 'carry', 'xs'), [(0, 1, 0), (1, 2, 1), (2, 1, 3), (0, 0, 1)])
def test_a_scan_tells_constants_from_carry(consts, carry, xs):
  def run(consts, carry, xs):
    def body(carry, xs):
      return [c + sum(consts, 0.0) for c in carry], sum(xs, 0.0) + sum(consts, 0.0)

    return lax.scan(body, carry, xs, length=3)

  closed = jax.make_jaxpr(run)([1.0] * consts, [jnp.zeros(())] * carry, [jnp.zeros(3)] * xs)
  (scan,) = [eqn for eqn in walk.equations(closed) if eqn.primitive.name == 'scan']
  assert walk.scan_layout(scan) == (consts, carry)
