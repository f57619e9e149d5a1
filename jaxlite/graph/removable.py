"""What of a Model can be removed: the units that hang together, by name, and why the others stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from jaxlite import trees
from jaxlite.contract import CONST, POINT, Model, State
from jaxlite.graph import shrunk
from jaxlite.graph.coupled import Coupled, Family, Program
from jaxlite.graph.families import couple
from jaxlite.graph.traces import Traces
from jaxlite.trees import Rule

_BESIDE = 'it is constant and has no part in the answers: a teacher, say'


class Given(NamedTuple):
  """What a model holds.

  Attributes:
    leaves: of params and model_state, whole.
    names: their paths.
    weights: how many of them are parameters; what is constant counts as one of them for what is zero, and so do the
      values at which params are read where the model does not train.
    coupled: what belongs together.
    traces: the forms in which the model runs.
  """

  leaves: list[Any]
  names: list[str]
  weights: int
  coupled: Coupled
  traces: Traces

  @property
  def shapes(self) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in self.leaves]

  def is_weight(self, leaf: int) -> bool:
    return leaf < self.weights or self.names[leaf].startswith((f'{CONST}/', f'{POINT}/'))

  def member(self, leaf: int, axis: int) -> str:
    return f'{self.names[leaf]}[{axis}]'


def read(model: Model, params: Any, state: State, inputs: Any, key: Any, *, what: str = 'shrink') -> Given:
  """Reads what of a model belongs together.

  Args:
    model: a Model, its hooks around it or bare.
    params, state: its values; shapes are enough where nobody asks what units are worth.
    inputs: one batch, arrays or shapes.
    key: the root key, where the model draws random numbers in training.
    what: names who asks, in an error.
  """
  leaves = jax.tree.leaves((params, state))
  names = trees.paths(params) + trees.paths(state)
  for name, leaf in zip(names, leaves, strict=True):
    if not hasattr(leaf, 'dtype'):
      raise TypeError(f'{what}: a model holds arrays; {name!r} is {type(leaf).__name__}')
  traces = Traces.of(model, params, state)
  programs = [traces.forward(inputs, train, key, None)[0] for train in (False, True)]
  answering = _read(programs[0])
  beside = {leaf: _BESIDE for leaf, name in enumerate(names) if name.startswith(f'{CONST}/') and leaf not in answering}
  every = [*programs, traces.after()[0], *_points(names, leaves)]
  coupled = couple(every, [tuple(leaf.shape) for leaf in leaves], beside)
  return Given(leaves, names, len(trees.paths(params)), coupled, traces)


def _points(names: Sequence[str], leaves: Sequence[Any]) -> list[Program]:
  """A program in which each param meets the value that it is read at where the model does not train, if an update part
  keeps one (schedule-free averages): no forward reads both, and one is nothing without the other."""
  place = {name: index for index, name in enumerate(names)}
  points = {name.removeprefix(f'{POINT}/'): at for name, at in place.items() if name.startswith(f'{POINT}/')}
  pairs = [(place[name], at) for name, at in points.items() if name in place]  # a file may hold the points alone
  if not pairs:
    return []
  shapes = [[jax.ShapeDtypeStruct(leaves[one].shape, leaves[one].dtype) for one in pair] for pair in pairs]
  jaxpr = jax.make_jaxpr(lambda pairs: [one + other for one, other in pairs])(shapes)
  return [Program(jaxpr, tuple(one for pair in pairs for one in pair), (-1,) * len(pairs))]


def _read(program: Program) -> set[int]:
  """The leaves that answers depend on."""
  asked = [leaf is None for leaf in program.outs]
  used = partial_eval.dce_jaxpr(program.jaxpr.jaxpr, asked)[1]
  return {leaf for leaf, one in zip(program.ins, used, strict=True) if one and leaf is not None}


def picked(given: Given, rule: Rule, *, what: str = 'shrink: rule') -> list[bool]:
  """Tells which families a rule on the paths of their members picks."""
  families = given.coupled.families
  paths = {given.names[leaf] for family in families for leaf, _ in family.members}
  chosen = trees.select(sorted(paths), rule, what=what)
  held = [[leaf for leaf, _ in family.members] for family in families]
  return [any(given.names[leaf] in chosen for leaf in leaves) and any(map(given.is_weight, leaves)) for leaves in held]


def step_of(family: Family, multiple: int) -> int:
  """How many units at a time keep every width a multiple."""
  widths = [width for width in family.widths if width] or [len(entries) for entries in family.units[0]]
  return math.lcm(*(multiple // math.gcd(multiple, width) for width in widths))


def share(units: int, step: int, keep: float) -> int:
  """Returns the width nearest to a share of it: whole steps, one at least, or all.

  >>> share(64, 8, 0.5), share(20, 8, 0.1), share(6, 8, 0.5)
  (32, 8, 6)
  """
  if keep == 1:
    return units
  return min(max(int(keep * units / step + 0.5), 1) * step, units)


def worth_of(given: Given, params: Any, scores: Any) -> list[np.ndarray]:
  """What each unit is worth: the sum over the weights that it has a part of."""
  if scores is None:
    values = [_sizes(leaf) for leaf in given.leaves[: given.weights]]
  else:
    if jax.tree.structure(scores) != jax.tree.structure(params):
      raise ValueError('shrink: scores have the structure of params')
    values = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(scores)]
  for name, shape, value in zip(given.names, given.shapes, values, strict=False):
    if value is not None and (value.shape != shape or not np.isfinite(value).all() or value.min(initial=0) < 0):
      raise ValueError(f'shrink: scores are finite numbers from 0, one a weight; those of {name!r} are not')
  out = []
  for family in given.coupled.families:
    total = np.zeros(len(family.units))
    for place, (leaf, axis) in enumerate(family.members):
      if leaf < given.weights and values[leaf] is not None:
        value = values[leaf]
        along = value.sum(tuple(one for one in range(value.ndim) if one != axis))  # type: ignore[union-attr]
        total += along[np.asarray([unit[place] for unit in family.units])].sum(1)
    out.append(total)
  return out


def _sizes(leaf: Any) -> np.ndarray | None:
  is_float = jnp.issubdtype(leaf.dtype, jnp.inexact)
  return np.abs(np.asarray(wide(leaf))).astype(np.float64) if is_float else None


def wide(leaf: Any) -> Any:
  """Narrow floats are none of NumPy's own."""
  return leaf.astype(jnp.float32) if leaf.dtype in (jnp.bfloat16, jnp.float16) else leaf


def all_zero(given: Given) -> Callable[[int, int], bool]:
  """Of which leaves what is removed counts as zero: parameters, frozen ones among them."""
  return lambda leaf, axis: given.is_weight(leaf)


def refusals(given: Given, picked: Sequence[bool]) -> list[str]:
  """Tries each family, and then all: why it cannot be cut, '' where it can, beside all others of which that is said."""
  families = given.coupled.families

  def tried(which: Sequence[int]) -> str:
    removed = [[len(f.units) // 2] if place in which and len(f.units) > 1 else [] for place, f in enumerate(families)]
    kept = shrunk.kept_entries(families, removed, given.shapes)
    return shrunk.refusal(given.traces.programs, kept, all_zero(given))

  asked = [place for place, pick in enumerate(picked) if pick]
  why = [''] * len(families)
  if not tried(asked):
    return why
  for place in asked:
    why[place] = tried([place])
  able = [place for place in asked if not why[place]]
  if tried(able):  # each alone, and not all at once: the widest ones go first
    together: list[int] = []
    for place in sorted(able, key=lambda place: -_entries(given, families[place])):
      told = tried([*together, place])
      if told:
        why[place] = f'not beside {_first(given, families, together)}: {told}'
      else:
        together.append(place)
  return why


def _entries(given: Given, family: Family) -> int:
  """How many parameters stand along its members."""
  return sum(math.prod(given.shapes[leaf]) for leaf, _ in family.members)


def _first(given: Given, families: Sequence[Family], places: Sequence[int]) -> str:
  return ', '.join(given.member(*families[place].members[0]) for place in places[:3])
