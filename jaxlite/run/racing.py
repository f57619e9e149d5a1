"""Trials raced in one vmapped step: those of one program that differ in numbers alone, up to where halving looks last.

Members train side by side, and each evaluation is told to the ledger as a run's is. Who is stopped never becomes a run
of its own, which is most of what a small trial costs; who is not is trained alone afterwards, from its first step, like
any other trial. So whatever a search gives is bit-equal to that run alone. What was stopped was judged by the vmapped
program, whose sums are in another order: its scores are those of the run alone up to rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import data as datasets
from jaxlite.config.schema import Config
from jaxlite.graph.init_numpy import on_host
from jaxlite.graph.walk import has_primitive
from jaxlite.run.evaluation import evaluate, numbers
from jaxlite.run.finetune_start import FineTune
from jaxlite.run.setup import Setup, prepare, rerated
from jaxlite.step.programs import on_cpu
from jaxlite.step.state import ensemble_axes
from jaxlite.tuning import stopping
from jaxlite.tuning.kinds import Range, Space, given
from jaxlite.tuning.ledger import Trial
from jaxlite.tuning.space import assigned

_READ = ('optim', 'recipe', 'loss')  # what only the step reads: a number in it may be an argument of the program
_CALL = 32  # steps a dispatch

Values = Mapping[str, Any]
Heard = Callable[[Trial, int, int, Mapping[str, float]], None]


class Track(NamedTuple):
  """A program for members of one kind.

  Attributes:
    setup: of one of them.
    names: of the space, whose values are arguments of the program.
    step: (states, batches, values) -> states: some steps of each member; batches [members, steps, ...].
    last: the step at which the rule that stops trials looks last.
  """

  setup: Setup
  names: tuple[str, ...]
  step: Callable[..., Any]
  last: int


def same(space: Space, trial: Trial) -> tuple[tuple[str, Any], ...]:
  """Returns the values of a trial that decide about its program: members of one race have them alike.

  >>> from jaxlite.tuning import choice, log_uniform
  >>> one = Trial(0, 0, {'optim.lr': 0.1, 'data.batch_size': 1}, '', '', '', 0.0, 1, 0, -1, -1, 0.0, {}, '')
  >>> same({'optim.lr': log_uniform(0.01, 1), 'data.batch_size': choice(32, 64)}, one)
  (('data.batch_size', 1),)
  """
  return tuple((name, value) for name, value in trial.given.items() if not _varies(name, space[name]))


def _varies(name: str, kind: Any) -> bool:
  return isinstance(kind, Range) and (name == 'seed' or (kind.step == 0 and name.split('.')[0] in _READ))


def track(config: Config, space: Space, folder: Path, model: Any, data: Any) -> Track | str:
  """Returns the program that trials like one run by; or why there is none, in words.

  Args:
    config: of one of them, its point set on it.
    space: what is searched.
    folder: of the study.
    model: as `jl.train` takes it.
    data: a Dataset, the same for all.
  """
  if isinstance(config, FineTune):
    return 'what is fine-tuned begins with a head that is solved for each trial'
  if not isinstance(data, datasets.Dataset):
    return 'each trial loads data of its own'
  setup = prepare(dataclasses.replace(config, runs={}), folder, model, data)
  names = tuple(name for name, kind in space.items() if _varies(name, kind) and name != 'seed')
  last = next((step for step in _looks(setup) if step / setup.plan.total >= stopping.LAST - 1e-9), 0)
  if not last:
    return 'no evaluation lies between a third of a run and its end'

  def at(values: Values) -> Any:
    return rerated(setup, assigned(config, space, values))

  def some(state: Any, batches: Any, values: Values) -> Any:
    train = at(values)
    return jax.lax.scan(lambda state, batch: (train.step(state, batch)[0], None), state, batches)[0]

  axes = ensemble_axes(setup.abstract)

  def step(states: Sequence[Any], batches: Any, values: Values) -> tuple[Any, ...]:
    whole = jax.vmap(some, in_axes=(axes, 0, 0), out_axes=axes)(_stacked(axes, states), batches, values)
    return tuple(_member(axes, whole, place) for place in range(len(states)))

  try:
    state, first = setup.abstract, jax.tree.map(_shape, setup.first_batch)
    scalars = {name: jax.ShapeDtypeStruct((), np.float32) for name in names}
    batches = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, 1, *leaf.shape), leaf.dtype), first)
    pairs = {name: jax.ShapeDtypeStruct((2,), np.float32) for name in names}
    jax.eval_shape(step, (state, state), batches, pairs)
    read = jax.make_jaxpr(lambda values, state, batch: at(values).eval(state, batch))(scalars, state, first)
  except Exception as error:
    return f'a number that is searched cannot be an argument of the step ({type(error).__name__})'
  if on_cpu(setup.abstract, setup.first_batch) and has_primitive(read, 'conv_general_dilated'):
    return 'on CPU convolutions of several networks at once, in a loop, are many times slower than of one'
  asked = {id(one) for equation in read.eqns for one in equation.invars} | {id(one) for one in read.jaxpr.outvars}
  if any(id(one) in asked for one in read.jaxpr.invars[: len(names)]):
    return 'a number that is searched is read by evaluation too'
  return Track(setup, names, jax.jit(step), last)


def race(
  made: Track,
  space: Space,
  trials: Sequence[Trial],
  configs: Sequence[Config],
  heard: Heard,
  stopped: Callable[[Trial, int, int], str],
  due: Callable[[], str],
) -> tuple[list[Trial], dict[int, str], str]:
  """Trains members side by side.

  Args:
    made: their program.
    space: what is searched.
    trials: the members.
    configs: one each.
    heard: (trial, step, steps in all, metrics) is told each evaluation.
    stopped: (trial, step, steps in all) -> why it is stopped there; ''. Asked when all have been told.
    due: () -> why all are to stop now; ''.

  Returns:
    The members that go on; why each of the others was stopped, by number; and why all were, '' where they were not.
  """
  setup, total = made.setup, made.setup.plan.total
  left = list(range(len(trials)))
  states = [_begun(setup, config) for config in configs]
  values = [{name: np.float32(given(space[name], one.given[name])) for name in made.names} for one in trials]
  whys: dict[int, str] = {}
  at = 0
  for look in (step for step in _looks(setup) if step <= made.last):
    while at < look:
      if end := due():
        return [trials[place] for place in left], whys, end
      count = min(_CALL, look - at)
      batches = [
        datasets.batches_at(setup.data.train, setup.config.data.batch_size, configs[place].seed, at, count)
        for place in left
      ]
      states = _advanced(made, states, batches, [values[place] for place in left])
      at += count
    for place, state in zip(left, states, strict=True):
      found = evaluate(setup, state, setup.data.validation)
      assert found is not None
      heard(trials[place], look, total, numbers(found.values))
    why = {place: stopped(trials[place], look, total) for place in left}
    whys |= {trials[place].number: reason for place, reason in why.items() if reason}
    states = [state for place, state in zip(left, states, strict=True) if not why[place]]
    left = [place for place in left if not why[place]]
    if not left:
      break
  return [trials[place] for place in left], whys, ''


def _advanced(made: Track, states: list[Any], batches: list[Any], values: list[Values]) -> list[Any]:
  """Some steps of each member. Their number is filled up to a power of two: so few programs are compiled."""
  count = len(states)
  full = [*range(count), *([count - 1] * ((1 << (count - 1).bit_length()) - count))]
  stack = lambda *leaves: np.stack(leaves)  # noqa: E731
  stacked = jax.tree.map(stack, *(batches[place] for place in full))
  columns = {name: np.stack([values[place][name] for place in full]) for name in made.names}
  return list(made.step(tuple(states[place] for place in full), stacked, columns)[:count])


def _begun(setup: Setup, config: Config) -> Any:
  first = datasets.batch_at(setup.data.train, config.data.batch_size, config.seed, 0)
  return rerated(setup, config).init(on_host(lambda: jax.random.key(config.seed))(), first)


def _looks(setup: Setup) -> list[int]:
  """The steps at which a run is evaluated, before its end."""
  return [step for step in range(1, setup.plan.total) if setup.plan.due(step, setup.plan.evaluate)]


def _stacked(axes: Any, states: Sequence[Any]) -> Any:
  def stack(axis: Any, *parts: Any) -> Any:
    return parts[0] if axis is None else jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)

  return jax.tree.map(stack, axes, *states, is_leaf=lambda one: one is None)


def _member(axes: Any, states: Any, place: int) -> Any:
  def take(axis: Any, part: Any) -> Any:
    return part if axis is None else jax.tree.map(lambda leaf: leaf[place], part)

  return jax.tree.map(take, axes, states, is_leaf=lambda one: one is None)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)
