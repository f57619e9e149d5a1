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
from jaxlite.contract import CONST, POINT, TAPS, Model, Network, Params, State
from jaxlite.deployment import shrink_budget, shrunk_model
from jaxlite.errors import counted
from jaxlite.graph import removable, shrunk
from jaxlite.graph.removable import Given
from jaxlite.graph.traces import shapes_of
from jaxlite.step.state import HEALTH
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
    inputs: the shapes of the batch that was given.
  """

  model: Model
  params: Params
  model_state: State
  groups: tuple[Group, ...]
  fixed: dict[str, str]
  cut: Callable[[Any], Any]
  inputs: Any = None

  @property
  def network(self) -> Network:
    """The model with its values."""
    return Network(self.model, self.params, self.model_state)

  def module(self, whole: Any) -> Any:
    """Returns the reference network of these widths, which takes `params` and `model_state` as its own.

    Args:
      whole: the reference network (of `jaxlite.models`) that was shrunk: `SmallCNN()`.

    Raises:
      ValueError: none of its kind computes the same: it has no field for these widths, or units were removed across a
        layer norm, whose statistics still count them here and would not there.
    """
    from jaxlite.models.narrower import narrower  # Flax, which no other network needs

    return narrower(whole, self.network, self.inputs)

  def __str__(self) -> str:
    size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
    return '\n'.join([f'{counted(size, "parameter")} left', *map(str, self.groups)])


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
    model: a Model, or a function (params, inputs) -> outputs. One in the hooks that it trained in (`train.model`, with
      the state's params and model_state) is cut with what they keep, averages say.
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
    The smaller network. A group that cannot be removed rightly is left whole, and says why. Members of an ensemble in
    stacked arrays are units too: a mean over them still counts those that are gone, as zeros.

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
  if not asked:
    given = removable.read(model, params, model_state or {}, inputs, key)
    picked = removable.picked(given, rule)
    steps = [removable.step_of(family, multiple) for family in given.coupled.families]
    removed, why = _dead(given, picked, steps)
    return _assemble(model, given, removed, why, inputs)
  found = ways(model, params, model_state, inputs, multiple=multiple, rule=rule, scores=scores, key=key)
  if keep is not None:
    return found.make(found.path.share(keep))
  if latency is not None:
    return found.make(
      shrink_budget.by_time(found.path, latency, lambda kept: shrink_budget.seconds_of(found.make(kept), inputs))
    )
  name, most = next(iter(asked.items()))
  return found.make(shrink_budget.first(found.path, name, float(most)))


class Ways(NamedTuple):
  """What a network may become.

  Attributes:
    path: the way down from the whole network.
    make: units left of each family -> the smaller network.
  """

  path: shrink_budget.Path
  make: Callable[[Sequence[int]], Shrunk]


def ways(
  model: Model,
  params: Any,
  model_state: State | None,
  inputs: Any,
  *,
  multiple: int = 8,
  rule: Rule = None,
  scores: Any = None,
  key: Any = None,
) -> Ways:
  """Finds what a network may become; arguments and errors are those of `shrink`."""
  given = removable.read(model, params, model_state or {}, inputs, key)
  families, picked = given.coupled.families, removable.picked(given, rule)
  steps = [removable.step_of(family, multiple) for family in families]
  worth = removable.worth_of(given, params, scores)
  why = removable.refusals(given, picked)
  open_ = [not one and pick for one, pick in zip(why, picked, strict=True)]
  _some(given, open_, steps, why)
  widths = tuple(int(jnp.dtype(leaf.dtype).itemsize) for leaf in given.leaves)
  cost = shrink_budget.Cost(
    families, given.coupled.products, tuple(given.shapes), widths, given.weights, _batch(inputs)
  )
  path = shrink_budget.path(cost, steps, open_, worth)
  return Ways(path, lambda kept: _assemble(model, given, _worst(worth, kept), why, inputs))


def _as_model(fn: Callable[..., Any], params: Any) -> Model:
  if not callable(fn):
    fix = ': give *network[:3], its model, params and model_state' if isinstance(fn, Network) else ''
    raise TypeError(f'shrink takes a Model or a function (params, inputs) -> outputs; got a {type(fn).__name__}{fix}')

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    return fn(params, inputs), state

  return Model(lambda key, inputs: (params, {}), apply)


def _batch(inputs: Any) -> int:
  leaves = [leaf for leaf in jax.tree.leaves(inputs) if np.ndim(leaf)]
  return int(np.shape(leaves[0])[0]) if leaves else 1


def _some(given: Given, open_: Sequence[bool], steps: Sequence[int], why: Sequence[str]) -> None:
  families = given.coupled.families
  if any(one and len(f.units) > step for one, f, step in zip(open_, families, steps, strict=True)):
    return
  told = [f'{given.member(*f.members[0])} ({one})' for f, one in zip(families, why, strict=True) if one]
  narrow = [given.member(*f.members[0]) for f, one in zip(families, open_, strict=True) if one]
  if not told and narrow:
    raise ValueError(f'shrink: no group is wider than the step of its widths, {narrow[0]} neither: give multiple=1')
  ends = ('it is an input', 'it is an output')
  told += [f'{given.member(*one)} ({why})' for one, why in given.coupled.fixed.items() if why not in ends]
  inside = {name.partition('/')[0].removeprefix('jl.') for name in given.names if trees.is_extra(name)}
  inside -= {name.removeprefix('jl.') for name in (CONST, POINT, TAPS, HEALTH)}
  fix = (
    f'; the model is wrapped in hooks ({", ".join(sorted(inside))}): shrink the bare one with the values that '
    "evaluation sees, jl.shrink(model, *train.model.export(state.params, {**state.model_state, 'jl.const': "
    'state.const}), inputs)'
  )
  raise ValueError(
    f'shrink: no group of this network can be removed; {"; ".join(told[:3]) or "it has none"}{fix if inside else ""}'
  )


def _worst(worth: Sequence[np.ndarray], kept: Sequence[int]) -> list[list[int]]:
  """The units that go: those that are worth least, the later ones of equals."""
  out = []
  for scores, stay in zip(worth, kept, strict=True):
    order = np.argsort(-scores, kind='stable')
    out.append(sorted(order[stay:].tolist()))
  return out


def _dead(given: Given, picked: Sequence[bool], steps: Sequence[int]) -> tuple[list[list[int]], list[str]]:
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
  return ~(np.asarray(removable.wide(leaf)) != 0).any(tuple(one for one in range(leaf.ndim) if one != axis))


def _assemble(model: Model, given: Given, removed: Sequence[Sequence[int]], why: Sequence[str], inputs: Any) -> Shrunk:
  families = given.coupled.families
  kept = shrunk.kept_entries(families, removed, given.shapes)
  zeros = removable.all_zero(given)
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
  return Shrunk(
    shrunk_model.smaller(model, given.traces, kept, zeros), params, state, tuple(groups), fixed, cut, shapes_of(inputs)
  )
