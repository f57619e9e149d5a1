"""Groups: neurons, channels and heads with all that belongs to them, found in a model's program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import Model
from jaxlite.graph import removable
from jaxlite.graph.traces import shapes_of


class Family(NamedTuple):
  """Units that are alike: the neurons of a layer, the channels of a stage, the heads of a block.

  Attributes:
    members: (path, axis, unit of each entry along it, -1 where it is in none), of the parameters.
    units: how many there are.
    step: how many go at a time, so that every width stays a multiple.
  """

  members: tuple[tuple[str, int, tuple[int, ...]], ...]
  units: int
  step: int

  def __str__(self) -> str:
    shown = ', '.join(f'{path}[{axis}]' for path, axis, _ in self.members[:4])
    return shown + (', ...' if len(self.members) > 4 else '')

  def share(self, keep: float) -> int:
    """Returns how many units are left of a share: whole steps, one at least; all of 1."""
    return removable.share(self.units, self.step, keep)

  def left(self, kept: Mapping[tuple[str, int], tuple[int, ...]]) -> tuple[Family, np.ndarray]:
    """Returns the family of what is kept, and which units are in it."""
    rows = [(path, axis, np.asarray(ids)) for path, axis, ids in self.members]
    cut = [(path, axis, ids[list(kept[path, axis])] if (path, axis) in kept else ids) for path, axis, ids in rows]
    stay = np.unique(np.concatenate([ids[ids >= 0] for _, _, ids in cut])) if cut else np.zeros(0, int)
    new = np.full(self.units + 1, -1)
    new[stay] = np.arange(len(stay))
    members = tuple((path, axis, tuple(new[ids].tolist())) for path, axis, ids in cut)
    return Family(members, len(stay), self.step), stay


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
  """What `find_groups` found: no array, so it is structure where it is part of a state.

  Attributes:
    families: those whose units may go.
    refused: (members, why) of those that may not.
  """

  families: tuple[Family, ...]
  refused: tuple[tuple[str, str], ...] = ()

  @functools.cached_property
  def _hash(self) -> int:
    return hash((self.families, self.refused))

  def __hash__(self) -> int:  # asked at every dispatch
    return self._hash

  def __eq__(self, other: object) -> bool:
    if not isinstance(other, Groups):
      return NotImplemented
    return self is other or (self.families, self.refused) == (other.families, other.refused)

  def renamed(self, names: Mapping[str, str]) -> Groups:
    """Returns the groups by other paths, where there are any."""
    families = tuple(
      one._replace(members=tuple((names.get(path, path), axis, ids) for path, axis, ids in one.members))
      for one in self.families
    )
    return Groups(families, self.refused)

  def __str__(self) -> str:
    told = [f'{one.units}: {one}' for one in self.families]
    return '\n'.join([*told, *(f'refused: {members}: {why}' for members, why in self.refused)])


def find_groups(
  model: Model, inputs: Any, *, key: Any = None, params: Any = None, model_state: Any = None, multiple: int = 8
) -> Groups:
  """Finds what of a model can only be removed at once: a neuron with its column, bias and row, a channel through
  all blocks of a stage with its batch norms, a head.

  Args:
    model: a Model, without hooks.
    inputs: one batch, arrays or shapes [B, ...].
    key: a typed key, where the model draws random numbers in training.
    params, model_state: shapes are enough; None takes those that `model.init` gives.
    multiple: widths that are cut stay multiples of this.

  Returns:
    The groups, and by name those that cannot be removed rightly.

  References:
    Fang et al., DepGraph: Towards Any Structural Pruning, 2023, https://arxiv.org/abs/2301.12900

  >>> import jaxlite as jl
  >>> params = {'a': jnp.ones((3, 16)), 'b': jnp.ones(16), 'c': jnp.ones((16, 2))}
  >>> model = jl.from_function(lambda p, x: jax.nn.relu(x @ p['a'] + p['b']) @ p['c'], params)
  >>> print(find_groups(model, jnp.ones((4, 3))))
  16: a[1], b[0], c[0]
  """
  if not isinstance(multiple, int) or multiple < 1:
    raise ValueError(f'find_groups: multiple is a whole number from 1; got {multiple!r}')
  if params is None:
    params, model_state = jax.eval_shape(model.init, jax.random.key(0) if key is None else key, inputs)
  params, model_state, inputs = shapes_of((params, model_state or {}, inputs))
  given = removable.read(model, params, model_state, inputs, key, what='find_groups')
  families = given.coupled.families
  found, refused = [], []
  own = [any(leaf < given.weights for leaf, _ in family.members) for family in families]
  for family, why, mine in zip(families, removable.refusals(given, own), own, strict=True):
    if not mine:
      continue
    names = ', '.join(given.member(*one) for one in family.members[:4])
    frozen = [given.names[leaf] for leaf, _ in family.members if leaf >= given.weights and given.is_weight(leaf)]
    if why or frozen:
      refused.append((names, why or f'{frozen[0]!r} is frozen'))
      continue
    members = []
    for place, (leaf, axis) in enumerate(family.members):
      if leaf >= given.weights:
        continue  # statistics: what a scale of zero multiplies
      ids = np.full(given.shapes[leaf][axis], -1)
      for unit, parts in enumerate(family.units):
        ids[list(parts[place])] = unit
      members.append((given.names[leaf], axis, tuple(ids.tolist())))
    found.append(Family(tuple(members), len(family.units), removable.step_of(family, multiple)))
  return Groups(tuple(found), tuple(refused))


def by_leaf(groups: Groups) -> dict[str, list[tuple[int, int, np.ndarray]]]:
  """Returns for each path the (family, axis, unit of each entry) that it has a part in."""
  found: dict[str, list[tuple[int, int, np.ndarray]]] = {}
  for place, family in enumerate(groups.families):
    for path, axis, ids in family.members:
      found.setdefault(path, []).append((place, axis, np.asarray(ids)))
  return found


def along(values: jax.Array, ids: np.ndarray, axis: int, rank: int, rest: Any) -> jax.Array:
  """Spreads what is known of units along an axis of a leaf; `rest` stands where there is no unit.

  >>> along(jnp.array([5.0, 7.0]), np.array([1, -1, 0]), 1, 2, 1.0).tolist()
  [[7.0, 1.0, 5.0]]
  """
  whole = jnp.concatenate([values, jnp.asarray([rest], values.dtype)])  # -1 is the last
  return whole[ids].reshape([-1 if one == axis else 1 for one in range(rank)])


def norms(groups: Groups, params: Any) -> list[jax.Array]:
  """Returns the root mean square of all that each unit has a part in: of each family float32[units]."""
  leaves = trees.by_path(params)
  sums: dict[int, Any] = {}
  counts: dict[int, Any] = {}
  for path, parts in by_leaf(groups).items():
    square = jnp.square(leaves[path].astype(jnp.promote_types(leaves[path].dtype, jnp.float32)))
    for family, axis, ids in parts:
      units = groups.families[family].units
      flat = jnp.sum(square, [one for one in range(square.ndim) if one != axis])
      total = jnp.zeros(units + 1, jnp.float32).at[ids].add(flat.astype(jnp.float32))[:units]
      sums[family] = sums.get(family, 0.0) + total
      each = np.bincount(ids[ids >= 0], minlength=units) * (square.size // max(len(ids), 1))
      counts[family] = counts.get(family, 0) + each
  return [jnp.sqrt(sums[one] / np.maximum(counts[one], 1)) for one in range(len(groups.families))]
