"""`jl.coverage` lists every contraction, with its share and why it stays float, also where no rule reads it."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import sparse

import jaxlite as jl

pytestmark = pytest.mark.unoptimized

X = jnp.ones((2, 6))


def test_coverage_lists_every_contraction_with_its_share():
  s = sparse.BCOO.fromdense(jnp.eye(6))

  def forward(p, x):
    one = lax.ragged_dot(x, p['ragged'], jnp.array([1, 1]))
    two = jax.vmap(lambda x, i: x @ p['experts'][i])(x, (x[:, 0] > 0).astype(int))
    three = sparse.BCOO((x[0], s.indices), shape=(6, 6)) @ p['thin']
    return one, two, three, x @ p['dense'], jax.nn.relu((x[..., None] * p['hand']).sum(1))

  shapes = {'ragged': (2, 6, 6), 'experts': (2, 6, 6), 'thin': (6, 2), 'dense': (6, 6), 'hand': (6, 2)}
  rows = jl.coverage(forward)({path: jnp.ones(shape) for path, shape in shapes.items()}, X)
  assert {row.name: row.why for row in rows} == {
    'ragged': 'ragged_dot_general has no rule',
    'experts': 'data pick its weight',
    'thin': 'bcoo_dot_general has no rule',
    'dense': '',
    'hand': 'it is a product that is summed by hand: write it as x @ w',
  }
  flops = {'ragged': 144, 'experts': 144, 'thin': 24, 'dense': 144, 'hand': 48}
  assert {row.name: row.flops for row in rows} == flops
  assert sum(row.share for row in rows) == pytest.approx(1)


def test_coverage_lists_sparse_and_complex_products():
  nonzero, columns, starts = jnp.arange(6), jnp.arange(6), jnp.arange(7)

  def forward(p, x):
    coo = sparse.COO((p['coo'], nonzero, columns), shape=(6, 6)) @ x.T
    bcsr = sparse.BCSR((p['bcsr'], columns, starts), shape=(6, 6)) @ x.T
    turned = x.astype(jnp.complex64) @ p['complex']
    return coo, bcsr, turned, x @ p['dense']

  params = {
    'coo': jnp.ones(6),
    'bcsr': jnp.ones(6),
    'complex': jnp.ones((6, 6), jnp.complex64),
    'dense': jnp.ones((6, 6)),
  }
  rows = {row.name: row for row in jl.coverage(forward)(params, X)}
  assert [name for name, row in rows.items() if row.quantized] == ['dense']
  assert {'coo', 'bcsr', 'complex', 'dense'} == {*rows}
  batch = X.shape[0]
  flops = {'coo': 2 * 6 * batch, 'bcsr': 2 * 6 * batch, 'complex': 8 * 36 * batch, 'dense': 2 * 36 * batch}
  assert {name: row.flops for name, row in rows.items()} == flops
  assert sum(row.share for row in rows.values()) == pytest.approx(1)
