"""What a branch costs: its dearest side in memory, its time by who asks, a counter or the data."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxlite.graph import alike
from jaxlite.planning.branches import BY_DATA, SCHEDULED
from jaxlite.planning.cost import NOT_COUNTED, UNKNOWN_LENGTH, cost


def cost_of(fn, *args):
  return cost(jax.make_jaxpr(fn)(*args))


def f32(*shape):
  return jax.ShapeDtypeStruct(shape, 'float32')


@pytest.mark.parametrize('ends', [True, False])
def test_a_conditional_written_as_a_loop_is_a_branch(ends):
  once = lambda w, x: alike.once(w, lambda x: x @ x, x)[1]  # noqa: E731
  loop = lambda w, x: jax.lax.while_loop(lambda c: c[0], lambda c: (c[1][0, 0] > 0, c[1] @ c[1]), (w, x))[1]  # noqa: E731
  found = cost_of(once if ends else loop, True, f32(8, 8))
  assert found.by('kind')['small products'][0] == 2 * 8**3
  assert found.said == ((SCHEDULED if ends else UNKNOWN_LENGTH),)
  assert sum(one.flops for one in found.usual if one.kind == 'small products') == (0 if ends else 2 * 8**3)


def test_a_branch_counts_its_dearest_side_and_says_so():
  fn = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x + 1, x)  # noqa: E731
  found = cost_of(fn, f32(8, 8))
  assert found.by('kind')['small products'][0] == 2 * 2 * 8**3
  assert found.said == (BY_DATA,)
  assert sum(one.flops * one.times for one in found.usual if one.kind == 'small products') == 2 * 8**3


def product_flops(operations):
  return sum(one.flops * one.times for one in operations if one.kind == 'small products')


ASKED = {
  'a step': (lambda step, x: step % 10 == 0, SCHEDULED),
  'a flag among loops': (lambda step, x: jax.lax.fori_loop(0, 3, lambda i, c: c + i, step) > 4, SCHEDULED),
  'data': (lambda step, x: x.sum() > 0, BY_DATA),
  'data and a step': (lambda step, x: (step > 3) & (x[0, 0] > 0), BY_DATA),
  'data, as a whole number': (lambda step, x: jnp.argmax(x[0]) > step, BY_DATA),
}


@pytest.mark.parametrize('name', ASKED)
def test_time_is_told_of_the_cheap_side_where_a_counter_asks_and_of_every_side_where_data_do(name):
  asks, line = ASKED[name]
  dear, cheap = (lambda x: jnp.tanh(x @ x) @ x), (lambda x: x + 1)
  fn = lambda step, x: jax.lax.cond(asks(step, x), dear, cheap, x)  # noqa: E731
  found = cost_of(fn, jax.ShapeDtypeStruct((), 'int32'), f32(8, 8))
  whole = 2 * 2 * 8**3
  assert line in found.said
  assert product_flops(found.counted) == whole
  assert product_flops(found.usual) == (0 if line == SCHEDULED else whole / 2)


def test_each_of_several_sides_counts_by_its_share_and_sides_within_sides_by_both():
  picked = lambda x: jax.lax.switch((x[0, 0] * 3).astype(int), [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x], x)  # noqa: E731
  found = cost_of(picked, f32(8, 8))
  assert product_flops(found.usual) == pytest.approx(2 * 8**3 * (0 + 1 + 2) / 3)
  assert product_flops(found.counted) == 2 * 2 * 8**3
  nested = lambda step, x: jax.lax.cond(step > 5, lambda x: x, picked, x)  # noqa: E731
  found = cost_of(nested, jax.ShapeDtypeStruct((), 'int32'), f32(8, 8))
  assert product_flops(found.counted) == 2 * 2 * 8**3
  assert product_flops(found.usual) == 0  # the cheapest of a schedule
  assert SCHEDULED in found.said
  assert BY_DATA not in found.said  # at most steps nothing asks data


def test_what_a_loop_carries_is_a_counter_only_where_no_turn_puts_data_there():
  def stepped(x, xs, fresh):
    def turn(c, x):
      kept = jax.lax.cond(c[0] > 2, lambda x: x @ x, lambda x: x, c[1])
      return (c[0] + 1 if fresh else jnp.argmax(x), kept), None

    return jax.lax.scan(turn, (0, x), xs)[0]

  for fresh, line in ((True, SCHEDULED), (False, BY_DATA)):
    assert line in cost_of(functools.partial(stepped, fresh=fresh), f32(8, 8), f32(5, 8)).said


def test_a_loop_of_unknown_length_on_the_side_that_a_schedule_takes_now_and_then_says_nothing_of_a_run():
  endless = lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)  # noqa: E731
  for asks, known in ((lambda step, x: step == 0, True), (lambda step, x: x[0, 0] > 0, False)):
    fn = lambda step, x, asks=asks: jax.lax.cond(asks(step, x), endless, lambda x: x, x)  # noqa: E731
    said = cost_of(fn, jax.ShapeDtypeStruct((), 'int32'), f32(4, 4)).said
    assert known != any(line.startswith(NOT_COUNTED) for line in said), said


def test_of_forms_for_several_platforms_the_one_that_is_compiled_here_counts():
  fn = lambda x: jax.lax.platform_dependent(x, cpu=lambda x: x + 1, default=lambda x: x @ x @ x)  # noqa: E731
  assert product_flops(cost_of(fn, f32(8, 8)).operations) == 0


def test_a_side_that_gives_zeros_for_what_it_does_not_compute_writes_them():
  """The gradient of a branch: the untaken side's weights get zeros, and what it would have kept is filled too."""
  dear, cheap = (lambda w, x: jnp.tanh(x @ w).sum()), (lambda w, x: x.sum())
  fn = lambda w, x: jax.lax.cond(x[0, 0] > 0, dear, cheap, w, x)  # noqa: E731
  least = cost_of(jax.grad(fn), f32(8, 512), f32(64, 8)).least
  filled = sum(one.bytes for one in least if one.primitive == 'fill')
  assert filled >= 4 * 8 * 512  # the weights' gradient


def test_the_least_the_usual_and_the_most_are_in_order():
  options = [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x, lambda x: x @ x @ x @ x]
  inner = lambda x: jax.lax.switch((x[0, 0] * 3).astype(int), options, x)  # noqa: E731
  fn = lambda x: jax.lax.cond(x.sum() > 0, lambda x: inner(x) @ x, inner, x)  # noqa: E731
  found = cost_of(fn, f32(8, 8))
  product = 2 * 8**3
  assert product_flops(found.least) == 0
  assert product_flops(found.counted) == 4 * product
  assert product_flops(found.usual) == pytest.approx(product * (0.5 * (1 + 1.5) + 0.5 * 1.5))
