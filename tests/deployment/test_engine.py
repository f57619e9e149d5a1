"""Networks of integers by kernels: every integer as the rules in NumPy give it, whatever the shapes and the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from integer_networks import Builder, network, wide_network
from jaxlite.cpu.kernels import integers
from jaxlite.deployment.operations import Graph, reference
from jaxlite.deployment.running import kernels as engine
from jaxlite.deployment.running import tables
from jaxlite.deployment.running.kernel_forms import formed

pytestmark = pytest.mark.skipif(bool(integers.missing()), reason='needs a C compiler')


def _same(graph: Graph, batch: int, seed: int = 0) -> None:
  pieces = engine.parted(graph)
  assert [piece.by_kernels for piece in pieces] == [True]
  x = np.random.default_rng(seed).normal(0, 3, (batch, *graph.values['input'].shape[1:])).astype(np.float32)
  x.reshape(-1)[:: max(x.size // 3, 1)] = np.nan
  given = dict.fromkeys(pieces[0].graph.inputs, x)
  found = jax.jit(engine.network(pieces[0].graph))(*given.values())
  wanted = reference.run(graph, x)
  wanted = wanted if isinstance(wanted, tuple) else (wanted,)
  by_name = dict(zip(pieces[0].graph.outputs, found, strict=True))
  for name, want in zip(graph.outputs, wanted, strict=True):
    np.testing.assert_array_equal(by_name[name], want)


@pytest.mark.sampled(4)
@pytest.mark.parametrize('seed', range(12))
def test_networks_at_random_give_the_integers_of_the_rules(seed):
  _same(network(seed), batch=1 + seed % 5, seed=seed)


@pytest.mark.sampled(6)
@pytest.mark.parametrize('seed', range(24))
def test_as_many_channels_and_places_as_vectors_have_give_the_integers_of_the_rules(seed):
  _same(wide_network(seed), batch=1 + seed % 3, seed=seed)


@pytest.mark.parametrize('turned', [(0, 3, 1, 2), (0, 1, 3, 2), (0, 2, 1, 3)], ids=str)
def test_a_product_that_is_turned_is_the_same_integers(turned):
  made = Builder(np.random.default_rng(4), (7, 3, 5))
  a, b = made.conv(made.start((7, 3, 5)), 5, 1), made.start((7, 3, 5))
  (a_scale, a_zero), (b_scale, b_zero) = made.grid[a], made.grid[b]
  grid, told = made.drawn()
  x = made.put(
    'quantized_dot', [a, b], (3, 7, 7), grid=grid, dimension_numbers=(((3,), (3,)), ((0, 2), (0, 2))),
    a_scale=a_scale, a_zero_point=a_zero, b_scale=b_scale, b_zero_point=b_zero, **told,
  )  # fmt: skip
  shape = tuple((3, 7, 7)[axis - 1] for axis in turned[1:])
  x = made.one('transpose', made.rescaled(x), shape, permutation=turned)
  graph = made.graph(x)
  short = formed(graph)
  exchanged = next(one for one in short.operations if one.kind == 'quantized_dot').inputs == (b, a)
  assert exchanged == (turned[-1] == 2)
  given = np.random.default_rng(0).normal(0, 2, (4, 7, 3, 5)).astype(np.float32)
  (piece,) = engine.parted(short)
  np.testing.assert_array_equal(engine.network(piece.graph)(given)[0], reference.run(graph, given))


@pytest.mark.slow
def test_five_hundred_networks_at_random():
  for seed in range(100, 600):
    _same(network(seed), batch=1 + seed % 40, seed=seed)
    _same(wide_network(seed), batch=1 + seed % 5, seed=seed)


def test_every_batch_size_gives_each_example_the_same():
  graph = network(3)
  run = jax.jit(engine.network(engine.parted(graph)[0].graph))
  x = np.random.default_rng(0).normal(0, 3, (67, *graph.values['input'].shape[1:])).astype(np.float32)
  alone = np.concatenate([run(x[at : at + 1])[0] for at in range(67)])
  np.testing.assert_array_equal(run(x)[0], alone)
  assert run(x[:0])[0].shape == (0, *alone.shape[1:])


def test_one_example_of_a_large_network_is_shared_by_threads_and_the_same():
  made = Builder(np.random.default_rng(5), (60, 60, 8))
  x = made.conv(made.start((60, 60, 8)), 64, 3, low=1, high=1)
  x = made.add(made.conv(x, 64, 3, low=1, high=1), made.rescaled(x))
  x = made.conv(made.conv(x, 64, 3, 2, groups=64, low=1, high=1), 128, 1)
  graph = made.graph(made.dense(made.mean(x, (1, 2)), 100, is_float=True), x)
  run = jax.jit(engine.network(engine.parted(graph)[0].graph))
  x = np.random.default_rng(0).normal(0, 3, (5, 60, 60, 8)).astype(np.float32)
  together = run(x)
  for _ in range(5):
    for at in range(5):
      for alone, every in zip(run(x[at : at + 1]), together, strict=True):
        np.testing.assert_array_equal(alone[0], every[at])


def test_what_kernels_lack_stands_in_a_piece_of_its_own():
  made = Builder(np.random.default_rng(0), (5, 4))
  x = made.dense(made.start((5, 4)), 8, is_float=True)
  x = made.put('sin', [x], (5, 8), 'float32')
  made.grid[x] = (0.0, 0)
  grid, _ = made.drawn()
  x = made.put('quantize', [x], (5, 8), grid=grid, scale=grid[0], zero_point=grid[1], low=-128, high=127)
  graph = made.graph(made.dense(x, 3, is_float=True))
  pieces = engine.parted(graph)
  assert [piece.by_kernels for piece in pieces] == [True, False, True]
  assert [one.kind for one in pieces[1].graph.operations] == ['sin']


def test_a_plan_that_says_more_than_its_operands_hold_is_refused():
  graph = engine.parted(network(0))[0].graph
  plan, weights = engine.planned(graph)
  lib = integers.compiler.load('integers', tuned=True)
  x = np.zeros((2, *graph.values['input'].shape[1:]), np.float32)
  found = [np.zeros(1 << 20, np.int8) for _ in graph.outputs]
  assert integers.run(lib, plan, weights, [x], found) == 0
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(3_000):  # nothing crashes, whatever a number is
    other = plan.copy()
    for _ in range(int(rng.integers(1, 4))):
      other[rng.integers(len(other))] = rng.choice([-1, 0, 1, 2, 7, 255, 1 << 20, 1 << 31, 1 << 62, -(1 << 62)])
    if (other[1] != plan[1]) or (other[2] != plan[2]) or (other[4] > plan[4]):
      continue  # what was handed over is told by the caller: here it is not looked at
    buffers = other[8 : 8 + 3 * plan[6]].reshape(-1, 3) if other[6] == plan[6] else np.zeros((0, 3), np.int64)
    room = {1: x[0].nbytes, 2: len(found[0]) // 2}
    if any(size > room.get(place, size) for place, _, size in buffers.tolist()):
      continue
    refused += integers.run(lib, other, weights, [x], found) == 1
  assert refused > 500


def test_programs_refuse_operands_of_other_sizes():
  graph = engine.parted(network(0))[0].graph
  plan, weights = engine.planned(graph)
  shapes = [jax.ShapeDtypeStruct((2, 1), jnp.float32) for _ in graph.outputs]
  with pytest.raises(Exception, match='integers: operands of other sizes'):
    jax.block_until_ready(integers.call(plan, jnp.asarray(weights), shapes, jnp.zeros((2, 3))))
  with pytest.raises(Exception, match='integers: a plan that cannot be run'):
    jax.block_until_ready(integers.call(plan, jnp.asarray(weights[:-64]), shapes, jnp.zeros((2, 3))))


def test_what_lies_entry_by_entry_between_two_grids_is_a_table():
  made = Builder(np.random.default_rng(1), (6, 5))
  x = made.dense(made.start((6, 5)), 8)
  scale, zero = made.grid[x]
  real = made.put('dequantize', [x], (6, 8), 'float32', scale=scale, zero_point=zero)
  half, one = (made.constant(np.array(number, np.float32)) for number in (0.5, 1.0))
  grown = made.put('add', [made.put('tanh', [real], (6, 8), 'float32'), one], (6, 8), 'float32')
  real = made.put('mul', [made.put('mul', [real, half], (6, 8), 'float32'), grown], (6, 8), 'float32')
  grid, _ = made.drawn()
  x = made.put('quantize', [real], (6, 8), grid=grid, scale=grid[0], zero_point=grid[1], low=-128, high=127)
  graph = made.graph(made.dense(x, 3, is_float=True), x)
  short = tables.tabled(graph)
  assert [one.kind for one in short.operations] == ['quantize', 'quantized_dense', 'table', 'quantized_dense']
  (piece,) = engine.parted(short)
  given = np.random.default_rng(0).normal(0, 2, (9, 6, 5)).astype(np.float32)
  by_name = dict(zip(piece.graph.outputs, engine.network(piece.graph)(given), strict=True))
  for name, want in zip(graph.outputs, reference.run(graph, given), strict=True):
    np.testing.assert_array_equal(by_name[name], want)
