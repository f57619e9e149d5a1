"""A search space: what is drawn lies in it, what is set is what was drawn, what cannot be is told in a line."""

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxlite as jl
from jaxlite.errors import ConfigError
from jaxlite.tuning import kinds, space
from jaxlite.tuning.kinds import Choice, choice, integer, log_uniform, uniform

real = st.floats(-1e6, 1e6, allow_nan=False)


@st.composite
def any_kind(draw):
  which = draw(st.sampled_from(['choice', 'uniform', 'log', 'integer', 'steps', 'log integer']))
  if which == 'choice':
    return choice(
      *draw(
        st.lists(st.one_of(st.integers(), st.text(max_size=3), st.booleans()), min_size=1, max_size=6).filter(
          lambda some: len({kinds.as_text(one) for one in some}) == len(some)
        )
      )
    )
  if which == 'uniform':
    return uniform(*sorted([draw(real), draw(real)]))
  if which == 'log':
    return log_uniform(*sorted([draw(st.floats(1e-9, 1e6)), draw(st.floats(1e-9, 1e6))]))
  if which == 'log integer':
    low = draw(st.integers(1, 1000))
    return integer(low, low + draw(st.integers(0, 1000)), log=True)
  low = draw(st.integers(-1000, 1000))
  return integer(low, low + draw(st.integers(0, 1000)), step=draw(st.integers(1, 9)) if which == 'steps' else 1)


def inside(kind, stored):
  if isinstance(kind, Choice):
    return type(stored) is int and 0 <= stored < len(kind.values)
  whole = type(stored) is int and (stored - kind.low) % kind.step == 0 if kind.step else type(stored) is float
  return whole and kind.low <= stored <= kind.high


@given(any_kind(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_drawn_lies_in_the_space_and_so_does_every_point_of_its_grid(kind, seed):
  rng = np.random.default_rng(seed)
  drawn = [kinds.draw(kind, rng) for _ in range(5)]
  points = [point['x'] for point in kinds.grid({'x': kind})] if kinds.size({'x': kind}) < 5000 else []
  for stored in [*drawn, *points, kinds.middle(kind)]:
    assert inside(kind, stored), (kind, stored)
    assert 0 <= kinds.share(kind, stored) <= 1
    assert kinds.held(kind, kinds.given(kind, stored)) == stored
  assert len(points) == len(set(points))


def test_every_whole_number_is_drawn_alike_and_every_ratio_of_a_logarithm():
  rng = np.random.default_rng(0)
  counts = np.bincount([kinds.draw(integer(0, 4), rng) for _ in range(5000)])
  assert counts.min() > 880
  assert counts.max() < 1120
  logs = np.log10([kinds.draw(log_uniform(1e-4, 1e-1), rng) for _ in range(3000)])
  assert abs(logs.mean() + 2.5) < 0.06
  assert logs.min() < -3.95
  assert logs.max() > -1.05


@dataclasses.dataclass
class Net:
  widths: tuple[int, ...] = (8,)
  deep: bool = False


@dataclasses.dataclass(kw_only=True)
class Mine(jl.Config):
  net: Net = dataclasses.field(default_factory=Net)


def recipe(config, total_steps, sparsity=0.5, *, begin=0):
  return sparsity, begin


def config():
  return Mine(name='mine', recipe=recipe)


def test_a_point_is_set_on_fields_units_and_arguments_and_leaves_the_config_alone():
  one = config()
  over = {
    'optim.lr': log_uniform(1e-4, 1e-1),
    'train.epochs': integer(1, 9),
    'net.widths': choice((8,), (16, 8)),
    'net.deep': choice(False, True),
    'recipe.sparsity': uniform(0, 1),
    'recipe.begin': integer(0, 5),
  }
  over = space.check(over, one)
  values = {'optim.lr': 0.01, 'train.epochs': 3, 'net.widths': 1, 'net.deep': 1, 'recipe.sparsity': 0.25}
  made = space.assigned(one, over, {**values, 'recipe.begin': 2})
  assert (made.optim.lr, str(made.train), made.net.widths, made.net.deep) == (0.01, '3 epochs', (16, 8), True)
  assert made.recipe(made, 10) == (0.25, 2)
  assert (one.optim.lr, one.net.widths, one.recipe) == (1e-3, (8,), recipe)


@pytest.mark.parametrize(
  'over, said',
  [
    ({}, 'an empty one'),
    (None, 'NoneType'),
    ({'optim.lrr': uniform(0, 1)}, r"'optim.lrr', which the config does not have; nearest: optim.lr,"),
    ({'recipe.sparsty': uniform(0, 1)}, 'nearest: recipe.sparsity'),
    ({'net.widht': choice((8,))}, 'nearest: net.widths'),
    ({'optim.lr': 0.1}, 'optim.lr of the search space is jl.tuning.choice'),
    ({'optim.lr': uniform(0, 1)}, 'optim.lr is above 0'),
    ({'data.batch_size': uniform(16, 64)}, 'data.batch_size is int; got 16.0: integer is'),
    ({'optim.lr': choice([1e-3, 1e-2])}, r'got \[0.001, 0.01\]: choice takes values one by one'),
    ({'data.batch_size': integer(0, 64)}, 'data.batch_size is at least 1; got 0'),
    ({'train.epochs': integer(1, 2), 'train.steps': integer(1, 2)}, 'sets one field twice'),
    ({'train': choice(jl.Duration(epochs=1)), 'train.steps': integer(1, 2)}, 'sets one field twice'),
  ],
)
def test_what_cannot_be_searched_is_told_in_a_line(over, said):
  with pytest.raises(ConfigError, match=said) as error:
    space.check(over, config())
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'make, said',
  [
    (lambda: choice(), 'at least one value'),
    (lambda: choice(1, 2, 1), 'different values; got 1 twice'),
    (lambda: uniform(2, 1), 'the lower end first'),
    (lambda: uniform(0, float('inf')), 'finite'),
    (lambda: log_uniform(0, 1), 'begins above 0'),
    (lambda: integer(0.5, 2), 'whole numbers; got 0.5'),
    (lambda: integer(1, 9, step=2, log=True), 'with log=True'),
    (lambda: uniform('a', 2), "finite numbers; got 'a'"),
    (lambda: uniform(-1.7e308, 1.7e308), 'whose difference is a finite number'),
    (lambda: choice(lambda: 1, lambda: 2), 'functions are told apart by name'),
    (lambda: choice(float('nan'), 1.0), 'which are the same in every process; got nan'),
    (lambda: choice(object()), 'which are the same in every process; got <object object'),
    (lambda: kinds.grid({'a': integer(0, 10**12)}), 'at most 1,000,000 points'),
    (lambda: kinds.grid({name: uniform(0, 1, points=100) for name in 'abcd'}), 'would have 100,000,000'),
  ],
)
def test_a_kind_that_cannot_be_is_told(make, said):
  with pytest.raises(ConfigError, match=said):
    make()


@pytest.mark.parametrize(
  'values',
  [
    (0.12341, 0.12342),
    (True, 1, 0),
    (1, '1', None, 'None'),
    ((8,), '(8,)', (8, 8)),
    (max, 'max', functools.partial(max, 3), functools.partial(max, 4)),
    (jl.Duration(steps=3), jl.Duration(epochs=3)),
    (float('inf'), 1.0),
  ],
)
def test_values_that_look_alike_are_told_apart_and_optuna_gives_each_back(values):
  one = choice(*values)
  names = kinds.labels(one)
  assert [kinds.held(one, value) for value in values] == list(range(len(values)))
  assert [names.index(name) for name in names] == list(range(len(values)))
  optuna = pytest.importorskip('optuna')
  known = optuna.distributions.CategoricalDistribution(names)
  assert [int(known.to_internal_repr(name)) for name in names] == list(range(len(values)))


def test_a_group_that_is_none_is_made_where_one_of_its_fields_is_searched():
  @dataclasses.dataclass(kw_only=True)
  class Some(jl.Config):
    net: Net | None = None
    rest: jl.Duration | None = None

  over = space.check({'net.widths': choice((8,), (16,)), 'rest.steps': integer(1, 3)}, Some(name='x'))
  made = space.assigned(Some(name='x'), over, {'net.widths': 1, 'rest.steps': 2})
  assert (made.net, made.rest) == (Net((16,)), jl.Duration(steps=2))
  with pytest.raises(ConfigError, match='sets one field twice'):
    space.check({'rest.steps': integer(1, 3), 'rest.epochs': integer(1, 3)}, Some(name='x'))


def test_values_of_numpy_are_plain_numbers():
  assert [type(value) for value in choice(np.int32(1), np.float32(0.5)).values] == [int, float]
  kind = uniform(np.float32(0.5), np.int64(2))
  assert (type(kind.low), type(kind.high)) == (float, float)
  assert type(integer(np.int64(0), np.int64(3)).high) is int


def test_a_space_is_typed():
  text = 'optim.lr=log(1e-4, 1e-1); data.batch_size=choice(32,64); '
  text += 'net.widths=choice((8,),(16,8)); recipe.begin=int(0,4)'
  found = space.check(space.parsed(text, config()), config())
  assert found['optim.lr'] == log_uniform(1e-4, 1e-1)
  assert found['data.batch_size'].values == (32, 64)
  assert found['net.widths'].values == ((8,), (16, 8))
  assert found['recipe.begin'] == integer(0, 4)
  for wrong in ('optim.lr', 'optim.lr=log(1)', 'optim.lr=lag(1,2)', 'a=log(1,x)', 'a=int(1,2);a=int(1,2)'):
    with pytest.raises(ConfigError, match='typed as'):
      space.parsed(wrong, config())
  for wrong in ('optim.lr=uniform(1,0)', 'optim.lr=log(0,1)', 'optim.lr=choice()', 'optim.lr=int(0.5,2)'):
    with pytest.raises(ConfigError, match=r'^optim\.lr of the search space: '):  # which of several is wrong
      space.parsed(wrong, config())


def test_fields_of_runs_that_take_any_argument_are_taken():
  one = dataclasses.replace(config(), recipe=lambda config, total, **more: more)
  over = space.check({'recipe.anything': uniform(0, 1)}, one)
  assert space.assigned(one, over, {'recipe.anything': 0.5}).recipe(one, 1) == {'anything': 0.5}
