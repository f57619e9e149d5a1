"""Schedules have their stated values at their ends exactly, in any unit, alone and joined."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlite.config.duration import Duration
from jaxlite.optim.schedules import (
  Run,
  cosine,
  cosine_restarts,
  in_steps,
  join,
  one_cycle,
  piecewise,
  polynomial,
  warmup_cosine,
)

pytestmark = pytest.mark.unoptimized

RATES = [(0.3, 0.1), (0.1, 0.3), (1e-3, 0.0), (0.0, 0.7), (0.123456789, 1e-7), (3.0, 3.0)]


def f32(value):
  return float(np.float32(value))


@pytest.mark.parametrize('first, final', RATES)
@pytest.mark.parametrize('length', [1, 2, 7, 1000])
def test_the_ends_are_exact_and_the_last_value_stays(first, final, length):
  for schedule in (
    polynomial(first, final, length),
    polynomial(first, final, length, power=2.5),
    cosine(first, final, length),
  ):
    assert float(schedule(0)) == f32(first)
    for step in (length, length + 1, 10 * length):
      assert float(schedule(step)) == f32(final)
    low, high = sorted((f32(first), f32(final)))
    values = np.asarray(schedule(jnp.arange(length + 1)))
    assert values.dtype == np.float32
    assert ((values >= low) & (values <= high)).all()


def test_the_way_between_is_that_of_the_formulas():
  steps = np.arange(21)
  progress = steps / 20
  for power in (0.5, 1, 3):
    wanted = 0.2 + (1.5 - 0.2) * (1 - progress) ** power
    np.testing.assert_allclose(polynomial(1.5, 0.2, 20, power=power)(steps), wanted, rtol=1e-5)
    np.testing.assert_allclose(optax.polynomial_schedule(1.5, 0.2, power, 20)(steps), wanted, rtol=1e-5)
  wanted = 0.2 + (1.5 - 0.2) * (1 + np.cos(np.pi * progress)) / 2
  np.testing.assert_allclose(cosine(1.5, 0.2, 20)(steps), wanted, rtol=1e-5)


@pytest.mark.parametrize('growth, lengths', [(1.0, [6, 6, 6]), (2.0, [6, 12, 24]), (1.5, [6, 9, 14])])
def test_each_restart_begins_at_its_peak_and_the_last_cycle_ends_at_final(growth, lengths):
  schedule = cosine_restarts(0.7, 6, 3, growth=growth, decay=0.9, final=0.01)
  begin = 0
  for cycle, length in enumerate(lengths):
    peak = 0.7 * 0.9**cycle
    assert float(schedule(begin)) == f32(peak)
    inside = np.arange(length)
    wanted = 0.01 + (peak - 0.01) * (1 + np.cos(np.pi * inside / length)) / 2
    np.testing.assert_allclose(schedule(jnp.asarray(begin + inside)), wanted, rtol=1e-5)
    begin += length
  assert float(schedule(begin)) == float(schedule(begin + 99)) == f32(0.01)


@pytest.mark.parametrize('length, rise, top', [(10, 0.3, 3), (2, 0.3, 1), (2, 0.99, 1), (1000, 0.25, 250)])
def test_one_cycle_has_its_three_values(length, rise, top):
  schedule = one_cycle(0.3, length, rise=rise, first=0.02, final=0.003)
  values = np.asarray(schedule(jnp.arange(length + 2)))
  assert [values[0], values[top], values[length], values[-1]] == [f32(v) for v in (0.02, 0.3, 0.003, 0.003)]
  assert (np.diff(values[: top + 1]) > 0).all()
  assert (np.diff(values[top : length + 1]) < 0).all()
  assert float(one_cycle(1.0, length)(0)) == f32(1 / 25)
  assert float(one_cycle(1.0, length)(length)) == f32(1 / 250_000)


def test_one_cycle_is_that_of_optax():
  ours, theirs = one_cycle(0.5, 100), optax.cosine_onecycle_schedule(100, 0.5)
  np.testing.assert_allclose(ours(jnp.arange(101)), [theirs(t) for t in range(101)], rtol=2e-4, atol=1e-7)


def test_piecewise_holds_exact_values_up_to_each_boundary():
  schedule = piecewise([0.1, 0.03, 0.007], [5, 9])
  wanted = [0.1] * 5 + [0.03] * 4 + [0.007] * 6
  assert np.asarray(schedule(jnp.arange(15))).tolist() == [f32(value) for value in wanted]
  assert float(piecewise([0.2], [])(7)) == f32(0.2)


def test_joined_schedules_each_begin_at_their_own_step_zero():
  warm, flat, fall = polynomial(0.0, 0.5, 4), piecewise([0.5], []), cosine(0.5, 0.1, 6)
  schedule = join((warm, 4), (flat, 3), fall)
  wanted = [warm(t) for t in range(4)] + [flat(t) for t in range(3)] + [fall(t) for t in range(9)]
  assert [float(schedule(t)) for t in range(16)] == [float(value) for value in wanted]
  nested = join((join((warm, 4), flat), 7), fall)
  assert [float(nested(t)) for t in range(16)] == [float(value) for value in wanted]


def test_any_unit_is_the_same_length():
  run = Run(total_steps=200, steps_per_epoch=25, batch_size=32)
  same = [50, Duration(steps=50), Duration(epochs=2), Duration(examples=1600), Duration(percent=25)]
  assert {in_steps(length, run) for length in same} == {50}
  for length in same:
    for schedule in (
      cosine(1.0, 0.0, length, run=run),
      polynomial(1.0, 0.0, length, run=run),
      one_cycle(1.0, length, final=0.0, run=run),
      cosine_restarts(1.0, length, 1, run=run),
      piecewise([1.0, 0.0], [length], run=run),
      join((piecewise([1.0], []), length), piecewise([0.0], []), run=run),
    ):
      assert float(schedule(50)) == 0
      assert float(schedule(49)) > 0


def test_jit_traces_once_and_equals_the_eager_value_of_python_and_array_counts():
  schedule = join((polynomial(0.0, 0.3, 5), 5), cosine_restarts(0.3, 4, 2, growth=2, decay=0.5))
  traces = []
  compiled = jax.jit(lambda t: (traces.append(t), schedule(t))[1])
  for step in range(20):
    value = compiled(jnp.int32(step))
    assert value.dtype == jnp.float32
    assert not value.weak_type
    np.testing.assert_allclose(value, schedule(step), rtol=1e-6, atol=1e-9)
  assert len(traces) == 1
  tx = optax.sgd(schedule)
  state = tx.init({'w': jnp.ones(2)})
  for _ in range(6):
    updates, state = tx.update({'w': jnp.ones(2)}, state)
  np.testing.assert_allclose(updates['w'], -0.3, rtol=1e-6)


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: cosine(1.0, 0.0, Duration(percent=5)), r'a schedule of 5 % of the run needs .* run=Run\(total_steps='),
    (lambda: cosine(1.0, 0.0, Duration(epochs=5), run=Run(9)), r'a schedule of 5 epochs .* run=Run\(steps_per_epoch='),
    (lambda: cosine(1.0, 0.0, Duration(examples=5), run=Run(9)), r'5 examples needs .* run=Run\(batch_size='),
    (lambda: cosine(1.0, 0.0, 0), 'cosine: a length is at least 1 step; got 0'),
    (lambda: cosine(1.0, 0.0, -3), 'a duration is finite and at least 0; got steps=-3'),
    (lambda: cosine(1.0, 0.0, 2.5), 'steps of a duration is an int; got 2.5'),
    (lambda: cosine(math.nan, 0.0, 3), 'cosine: a rate is a finite number; got nan'),
    (lambda: polynomial(1.0, 0.0, 3, power=0), 'polynomial: power is above 0; got 0'),
    (lambda: cosine_restarts(1.0, 3, 0), 'cosine_restarts: cycles is a whole number, at least 1; got 0'),
    (lambda: cosine_restarts(1.0, 3, 2, growth=0.5), 'growth is at least 1 and decay above 0; got growth=0.5'),
    (lambda: one_cycle(1.0, 1), 'one_cycle rises and falls: its length is at least 2 steps; got 1'),
    (lambda: one_cycle(1.0, 9, rise=1.0), r'one_cycle: rise is the share that rises, in \(0, 1\); got 1.0'),
    (lambda: piecewise([1.0], [5]), 'one value more than boundaries; got 1 values, 1 boundaries'),
    (lambda: piecewise([1.0, 2.0, 3.0], [5, 5]), r'piecewise: boundaries rise from step 1 on; got \[5, 5\] steps'),
    (lambda: piecewise([1.0, 2.0], [0]), 'boundaries rise from step 1 on'),
    (lambda: cosine_restarts(1.0, 3, 2.5), 'cycles is a whole number, at least 1; got 2.5'),
    (lambda: cosine('1', 0.0, 3), "cosine: a rate is a number; got '1'"),
    (lambda: jax.jit(lambda rate: cosine(rate, 0.0, 3)(0))(1.0), 'a rate is known before a program is compiled'),
    (lambda: piecewise(0.1, 5), 'piecewise takes several values and boundaries; got 0.1 and 5'),
    (lambda: warmup_cosine(math.nan, 9), 'warmup_cosine: a rate is a finite number; got nan'),
    (lambda: warmup_cosine(0.1, 9, final=math.inf), 'warmup_cosine: a rate is a finite number; got inf'),
    (lambda: warmup_cosine('0.1', 9), "warmup_cosine: a rate is a number; got '0.1'"),
    (lambda: warmup_cosine(0.1, 9.5), 'warmup_cosine: total_steps is a whole number, at least 1; got 9.5'),
    (lambda: warmup_cosine(0.1, 9, warmup_steps=0.5), 'warmup_cosine: warmup_steps is a whole number'),
    (lambda: join(), r'join takes \(schedule, length\) pairs and a last schedule; got nothing'),
    (lambda: join(cosine(1.0, 0.0, 3), cosine(1.0, 0.0, 3)), r'piece 0 is function'),
    (lambda: join((cosine(1.0, 0.0, 3), 3)), 'the last piece is a schedule alone, which stays; got tuple'),
    (lambda: join((cosine(1.0, 0.0, 3), 0), cosine(1.0, 0.0, 3)), 'join: a length is at least 1 step'),
  ],
)
def test_bad_arguments_are_named_in_one_line(make, message):
  with pytest.raises((ValueError, TypeError), match=message) as caught:
    make()
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'peak, final, warmup', [(1.0, 0.5, 3), (0.3, 0.0, 3), (0.1, 0.7, 2), (0.0, 0.5, 2), (1.0, 0.5, 0)]
)
def test_a_traced_rate_warms_up_as_a_known_one(peak, final, warmup):
  steps = jnp.arange(13)
  known = jax.vmap(warmup_cosine(peak, 10, warmup_steps=warmup, final=final))(steps)
  traced = jax.jit(lambda peak, final: jax.vmap(warmup_cosine(peak, 10, warmup_steps=warmup, final=final))(steps))
  np.testing.assert_allclose(traced(peak, final), known, rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose([known[0], known[warmup], known[10], known[12]],
                             [peak / (warmup + 1), peak, final, final], rtol=1e-6, atol=1e-7)  # fmt: skip


def test_a_whole_count_of_steps_may_be_written_as_a_float():
  assert float(warmup_cosine(1.0, 1e2, warmup_steps=1e1)(55)) == float(warmup_cosine(1.0, 100, warmup_steps=10)(55))
  with pytest.raises(ValueError, match=r'^warmup_cosine: warmup_steps is a whole number, at least 0; got 12\.5$'):
    warmup_cosine(1.0, 100, warmup_steps=12.5)
