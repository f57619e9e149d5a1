"""Structured pruning that changes shapes: a smaller dense network, out of a trained one, whatever its framework.

Neurons, channels and heads are found in the program of the model (`graph/coupled`), scored, removed from every array
that they have a part in, and the program runs again with smaller shapes (`graph/cut_flow`). So the model's code stays
as it is. What the smaller network gives is what the whole one gives with all of a removed unit's parameters at zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import CONST, Model, Network, Params, State
from jaxlite.deployment import shrink_budget, shrunk_model
from jaxlite.errors import counted
from jaxlite.graph import shrunk
from jaxlite.graph.coupled import Coupled, Family
from jaxlite.graph.families import couple
from jaxlite.trees import Rule


class Group(NamedTuple):
  """Units that are alike, and how many of them are left.

  Attributes:
    members: 'path[axis]' of what each unit has a part of.
    units: how many there were.
    kept: how many are left.
    why: why none could be removed; '' where some could.
  """

  members: tuple[str, ...]
  units: int
  kept: int
  why: str = ''

  def __str__(self) -> str:
    shown = ', '.join(self.members[:4]) + (', ...' if len(self.members) > 4 else '')
    return f'{self.kept} of {self.units}: {shown}' + (f' (refused: {self.why})' if self.why else '')


class Shrunk(NamedTuple):
  """A smaller network.

  Attributes:
    model: its `init` gives the smaller parameters, its `apply` takes them, at any batch size; it trains like any Model.
    params: the smaller parameters.
    model_state: the smaller other arrays (batch statistics).
    groups: what was found, and what is left of it.
    fixed: 'path[axis]' -> why nothing could be removed along it.
    cut: any pytree with arrays shaped like the whole parameters, under their paths (an optimizer's state, a TrainState,
      gradients, masks) -> the same, smaller.
  """

  model: Model
  params: Params
  model_state: State
  groups: tuple[Group, ...]
  fixed: dict[str, str]
  cut: Callable[[Any], Any]

  @property
  def network(self) -> Network:
    """The model with its values."""
    return Network(self.model, self.params, self.model_state)

  def __str__(self) -> str:
    size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
    return '\n'.join([f'{counted(size, "parameter")} left', *map(str, self.groups)])


class _Given(NamedTuple):
  """What a model holds.

  Attributes:
    leaves: of params and model_state, whole.
    names: their paths.
    weights: how many of them are parameters; what is constant counts as one of them for what is zero.
    coupled: what belongs together.
    traces: the forms in which the model runs.
  """

  leaves: list[Any]
  names: list[str]
  weights: int
  coupled: Coupled
  traces: shrunk_model.Traces

  @property
  def shapes(self) -> list[tuple[int, ...]]:
    return [tuple(jnp.shape(leaf)) for leaf in self.leaves]

  def is_weight(self, leaf: int) -> bool:
    return leaf < self.weights or self.names[leaf].startswith(f'{CONST}/')

  def member(self, leaf: int, axis: int) -> str:
    return f'{self.names[leaf]}[{axis}]'


def shrink(
  model: Model | Callable[..., Any],
  params: Any,
  model_state: State | None,
  inputs: Any,
  *,
  keep: float | None = None,
  parameters: int | None = None,
  bytes: int | None = None,
  flops: float | None = None,
  latency: float | None = None,
  multiple: int = 8,
  rule: Rule = None,
  scores: Any = None,
  key: Any = None,
) -> Shrunk:
  """Removes whole neurons, channels and heads, so that shapes become smaller.

  At most one of `keep` and the budgets is given. With none, only what changes nothing is removed: units whose weights
  are zero (`jl.prune(structure=channel())` makes them) and of which nothing else is alive, a bias say.

  Args:
    model: a Model, or a function (params, inputs) -> outputs.
    params: its trained parameters.
    model_state: its other arrays; None or {} where it has none.
    inputs: one batch, arrays or shapes [B, ...]. The smaller model takes any other batch size too.
    keep: share of the units of each group that stays, in (0, 1].
    parameters: at most so many parameters.
    bytes: at most so many bytes of parameters and other arrays, as they are in memory.
    flops: at most so many floating-point operations of contractions for each example.
    latency: seconds, at most so long for a forward of `inputs`, measured here; they must be arrays.
    multiple: widths that are cut stay multiples of this.
    rule: picks groups by the paths of their members; None takes all.
    scores: a pytree like params of what each weight is worth, non-negative; None takes absolute values.
    key: the root key, where the model draws random numbers in training.

  Returns:
    The smaller network. A group that cannot be removed rightly is left whole, and says why.

  Raises:
    ValueError: nothing can be removed; a budget that cannot be met (it names the nearest); numbers that are not finite.

  References:
    Fang et al., DepGraph: Towards Any Structural Pruning, 2023, https://arxiv.org/abs/2301.12900

  >>> import jax
  >>> def mlp(p, x):
  ...   return jax.nn.relu(x @ p['a'] + p['b']) @ p['c']
  >>> params = {'a': jnp.ones((3, 16)), 'b': jnp.ones(16), 'c': jnp.ones((16, 2))}
  >>> small = shrink(mlp, params, None, jnp.ones((4, 3)), keep=0.5)
  >>> {name: leaf.shape for name, leaf in small.params.items()}
  {'a': (3, 8), 'b': (8,), 'c': (8, 2)}
  >>> small.network.predict(jnp.ones((5, 3))).shape
  (5, 2)
  """
  budgets = {'parameters': parameters, 'bytes': bytes, 'flops': flops, 'latency': latency}
  asked = {name: value for name, value in {'keep': keep, **budgets}.items() if value is not None}
  if len(asked) > 1:
    raise ValueError(f'shrink takes one of keep and the budgets; got {", ".join(asked)}')
  for name, value in asked.items():
    if not (isinstance(value, int | float) and 0 < value < math.inf) or (name == 'keep' and value > 1):
      raise ValueError(f'shrink: {name} is above 0{" and at most 1" if name == "keep" else ""}; got {value!r}')
  if not isinstance(multiple, int) or multiple < 1:
    raise ValueError(f'shrink: multiple is a whole number from 1; got {multiple!r}')
  model = model if isinstance(model, Model) else _as_model(model, params)
  given = _read(model, params, model_state or {}, inputs, key)
  families, picked = given.coupled.families, _picked(given, rule)
  steps = [_step(family, multiple) for family in families]
  worth = _worth(given, params, scores)
  if asked:
    why = _refusals(given, picked)
    open_ = [not one and pick for one, pick in zip(why, picked, strict=True)]
    _some(given, open_, steps, why)
    widths = tuple(int(jnp.dtype(leaf.dtype).itemsize) for leaf in given.leaves)
    cost = shrink_budget.Cost(
      families, given.coupled.products, tuple(given.shapes), widths, given.weights, _batch(inputs)
    )
    if keep is not None:
      kept = [
        shrink_budget.share(len(family.units), step, keep) if one else len(family.units)
        for family, step, one in zip(families, steps, open_, strict=True)
      ]
    else:
      (name, most), path = next(iter(asked.items())), shrink_budget.path(cost, steps, open_, worth)
      if name == 'latency':

        def seconds(kept: Sequence[int]) -> float:
          return _assemble(model, given, _worst(worth, kept), why, inputs).timed(inputs)

        kept = shrink_budget.by_time(path, float(most), seconds)
      else:
        kept = shrink_budget.first(path, name, float(most), cost)
    removed = _worst(worth, kept)
  else:
    removed, why = _dead(given, picked, steps)
  return _assemble(model, given, removed, why, inputs).shrunk


def _as_model(fn: Callable[..., Any], params: Any) -> Model:
  if not callable(fn):
    raise TypeError(f'shrink takes a Model or a function (params, inputs) -> outputs; got {type(fn).__name__}')

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    return fn(params, inputs), state

  return Model(lambda key, inputs: (params, {}), apply)


def _batch(inputs: Any) -> int:
  leaves = [leaf for leaf in jax.tree.leaves(inputs) if np.ndim(leaf)]
  return int(np.shape(leaves[0])[0]) if leaves else 1


def _read(model: Model, params: Any, state: State, inputs: Any, key: Any) -> _Given:
  leaves = jax.tree.leaves((params, state))
  names = trees.paths(params) + trees.paths(state)
  for name, leaf in zip(names, leaves, strict=True):
    if not hasattr(leaf, 'dtype'):
      raise TypeError(f'shrink: a model holds arrays; {name!r} is {type(leaf).__name__}')
  traces = shrunk_model.Traces.of(model, params, state)
  programs = [traces.forward(inputs, train, key, None)[0] for train in (False, True)]
  coupled = couple([*programs, traces.after()[0]], [jnp.shape(leaf) for leaf in leaves])
  return _Given(leaves, names, len(trees.paths(params)), coupled, traces)


def _picked(given: _Given, rule: Rule) -> list[bool]:
  families = given.coupled.families
  paths = {given.names[leaf] for family in families for leaf, _ in family.members}
  chosen = trees.select(sorted(paths), rule, what='shrink: rule')
  held = [[leaf for leaf, _ in family.members] for family in families]
  return [any(given.names[leaf] in chosen for leaf in leaves) and any(map(given.is_weight, leaves)) for leaves in held]


def _step(family: Family, multiple: int) -> int:
  """How many units at a time keep every width a multiple."""
  widths = [width for width in family.widths if width] or [len(entries) for entries in family.units[0]]
  return math.lcm(*(multiple // math.gcd(multiple, width) for width in widths))


def _worth(given: _Given, params: Any, scores: Any) -> list[np.ndarray]:
  """What each unit is worth: the sum over the weights that it has a part of."""
  if scores is None:
    values = [_sizes(leaf) for leaf in given.leaves[: given.weights]]
  else:
    if jax.tree.structure(scores) != jax.tree.structure(params):
      raise ValueError('shrink: scores have the structure of params')
    values = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(scores)]
  for name, shape, value in zip(given.names, given.shapes, values, strict=False):
    if value is not None and (value.shape != shape or not np.isfinite(value).all()):
      raise ValueError(f'shrink: scores are finite numbers, one a weight; those of {name!r} are not')
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
  return np.abs(np.asarray(_wide(leaf))).astype(np.float64) if is_float else None


def _wide(leaf: Any) -> Any:
  """Narrow floats are none of NumPy's own."""
  return leaf.astype(jnp.float32) if leaf.dtype in (jnp.bfloat16, jnp.float16) else leaf


def _all_zero(given: _Given) -> Callable[[int, int], bool]:
  return lambda leaf, axis: given.is_weight(leaf)


def _refusals(given: _Given, picked: Sequence[bool]) -> list[str]:
  """Tries each family: why it cannot be cut, '' where it can."""
  families, why = given.coupled.families, []

  def tried(which: Sequence[bool]) -> str:
    removed = [[len(f.units) // 2] if one and len(f.units) > 1 else [] for f, one in zip(families, which, strict=True)]
    kept = shrunk.kept_entries(families, removed, given.shapes)
    return shrunk.refusal(given.traces.programs, kept, _all_zero(given))

  if not tried(picked):
    return [''] * len(families)
  for place in range(len(families)):
    why.append(tried([one == place for one in range(len(families))]) if picked[place] else '')
  return why


def _some(given: _Given, open_: Sequence[bool], steps: Sequence[int], why: Sequence[str]) -> None:
  families = given.coupled.families
  if any(one and len(f.units) > step for one, f, step in zip(open_, families, steps, strict=True)):
    return
  told = [f'{given.member(*f.members[0])} ({one})' for f, one in zip(families, why, strict=True) if one]
  narrow = [given.member(*f.members[0]) for f, one in zip(families, open_, strict=True) if one]
  if not told and narrow:
    raise ValueError(f'shrink: no group is wider than the step of its widths, {narrow[0]} neither: give multiple=1')
  raise ValueError(f'shrink: no group of this network can be removed; {"; ".join(told[:3]) or "it has none"}')


def _worst(worth: Sequence[np.ndarray], kept: Sequence[int]) -> list[list[int]]:
  """The units that go: those that are worth least, the later ones of equals."""
  out = []
  for scores, stay in zip(worth, kept, strict=True):
    order = np.argsort(-scores, kind='stable')
    out.append(sorted(order[stay:].tolist()))
  return out


def _dead(given: _Given, picked: Sequence[bool], steps: Sequence[int]) -> tuple[list[list[int]], list[str]]:
  """Units whose weights are zero and that change nothing, and why others whose weights are zero stay."""
  families = given.coupled.families
  removed: list[list[int]] = [[] for _ in families]
  why = [''] * len(families)
  empty = {
    member: _empty(given.leaves[member[0]], member[1])
    for family in families
    for member in family.members
    if given.is_weight(member[0])
  }

  def zeros(kept: Mapping[tuple[int, int], Sequence[int]]) -> Callable[[int, int], bool]:
    def is_zero(leaf: int, axis: int) -> bool:
      gone = np.ones(given.shapes[leaf][axis], bool)
      gone[list(kept[leaf, axis])] = False
      return (leaf, axis) in empty and bool(empty[leaf, axis][gone].all())

    return is_zero

  for place, family in enumerate(families):
    patterns: dict[tuple[bool, ...], list[int]] = {}
    for unit, parts in enumerate(family.units if picked[place] else ()):
      pattern = tuple(
        member in empty and bool(empty[member][list(entries)].all())
        for member, entries in zip(family.members, parts, strict=True)
      )
      if any(one and len(given.shapes[leaf]) > 1 for one, (leaf, _) in zip(pattern, family.members, strict=True)):
        patterns.setdefault(pattern, []).append(unit)
    for units in sorted(patterns.values(), key=len, reverse=True):
      wanted = sorted({*removed[place], *units})
      stay = shrink_budget.up(len(family.units) - len(wanted), steps[place], len(family.units))
      trial = [*removed[:place], wanted[: len(family.units) - stay], *removed[place + 1 :]]
      kept = shrunk.kept_entries(families, trial, given.shapes)
      told = shrunk.refusal(given.traces.programs, kept, zeros(kept))
      if told:
        why[place] = f'{counted(len(units), "unit")} with zero weights not dead: {told}'
      else:
        removed = trial
  if not any(removed):
    told = '; '.join(filter(None, why)) or 'no unit has weights that are all zero'
    raise ValueError(f'shrink: without keep= or a budget it removes what changes nothing, and there is nothing: {told}')
  return removed, why


def _empty(leaf: Any, axis: int) -> np.ndarray:
  """Which entries along an axis hold zeros only."""
  return ~(np.asarray(_wide(leaf)) != 0).any(tuple(one for one in range(leaf.ndim) if one != axis))


class _Made(NamedTuple):
  shrunk: Shrunk

  def timed(self, inputs: Any) -> float:
    return shrink_budget.seconds_of(self.shrunk, inputs)


def _assemble(model: Model, given: _Given, removed: Sequence[Sequence[int]], why: Sequence[str], inputs: Any) -> _Made:
  families = given.coupled.families
  kept = shrunk.kept_entries(families, removed, given.shapes)
  zeros = _all_zero(given)
  told = shrunk.refusal(given.traces.programs, kept, zeros)
  if told:
    raise ValueError(f'shrink: these groups cannot be removed together: {told}')
  smaller = [shrunk.cut_leaf(jnp.asarray(leaf), index, kept) for index, leaf in enumerate(given.leaves)]
  params, state = given.traces.unflatten(smaller)
  groups = [
    Group(tuple(given.member(*one) for one in f.members), len(f.units), len(f.units) - len(gone), told)
    for f, gone, told in zip(families, removed, why, strict=True)
  ]
  fixed = {given.member(*one): told for one, told in given.coupled.fixed.items()}
  cut = shrunk_model.cutter(given.names, given.shapes, kept)
  return _Made(Shrunk(shrunk_model.smaller(model, given.traces, kept, zeros), params, state, tuple(groups), fixed, cut))
