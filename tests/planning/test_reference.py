"""Pieces of steps that each machine times: what they teach of it."""

import jax
import numpy as np
import pytest

from jaxlite.host.rates import PIECE, Rates
from jaxlite.planning import reference, speed
from jaxlite.planning.cost import cost

KINDS = {'float32': 1e11, 'bfloat16': 1e11, 'int8': 2e11}
RATES = Rates(KINDS, KINDS, KINDS, 1e9, 5e10, 1e10, 1e9, 5e-6)


def measured(slower=1.0, rates=RATES):
  """Rates of a machine whose pieces take so many times what they took where factors were fitted."""
  pieces = {PIECE + name: reference._RATE[name](rates) / took[0] / slower for name, took in reference.FITTED.items()}
  return rates._replace(more=pieces)


def test_each_piece_has_a_rate_that_it_goes_with_and_a_factor_that_it_moves():
  assert set(reference.FITTED) == set(reference._RATE) <= {reference._LIKE.get(one, one) for one in speed.FACTORS}
  assert set(reference.programs(1 << 20)) == {PIECE + name for name in reference.FITTED}


@pytest.mark.parametrize('group', sorted(speed.FACTORS))
def test_where_pieces_take_what_they_took_nothing_is_corrected(group):
  assert reference.correction(group, measured(), False) == pytest.approx(1.0)
  assert reference.correction(group, RATES, False) == 1.0  # a machine that was described, or measured before


def test_a_piece_that_is_slower_makes_its_kernels_slower_and_not_beyond_reason():
  program = cost(jax.make_jaxpr(lambda x: x @ x)(np.ones((512, 512), np.float32))).operations
  usual, slower = (speed.spent(program, measured(times), 1).wall for times in (1.0, 2.0))
  assert 1.8 * usual < slower <= 2.0 * usual
  assert reference.correction('products', measured(100.0), False) == reference._MOST
  assert reference.correction('products', measured(0.001), False) == 1 / reference._MOST


def test_what_pieces_take_is_what_it_was_where_it_is_told_for_the_same_machine():
  assert reference.takes(measured()) == pytest.approx(
    {name: took[0] for name, took in reference.FITTED.items()}, rel=1e-3
  )
  assert reference.takes(RATES) == {}


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(reference.FITTED))
def test_every_piece_runs(name):
  function, arguments = reference.programs(1 << 20)[PIECE + name].build()
  for leaf in jax.tree.leaves(jax.jit(function)(*arguments)):
    assert np.isfinite(leaf).all()


def test_one_piece_runs():
  function, arguments = reference.programs(1 << 20)[PIECE + 'elementwise'].build()
  weights, *_ = jax.jit(function)(*arguments)
  assert weights.shape == arguments[0].shape
  assert np.isfinite(weights).all()
