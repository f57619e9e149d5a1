"""Allocations: how an overall sparsity is shared among leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxlite import trees
from jaxlite.errors import number
from jaxlite.graph.layouts import LeafLayout


class Leaf(NamedTuple):
  """What an allocation sees of a leaf.

  Attributes:
    shape: of the weight.
    layout: its axes, None where they are not known.
  """

  shape: tuple[int, ...]
  layout: LeafLayout | None = None


class Global(NamedTuple):
  """One threshold for all leaves; see `global_`."""

  floor: float
  normalize: bool


Allocate = Callable[[Mapping[str, Leaf], float], Mapping[str, float]] | Mapping[str, float] | Global


def uniform(leaves: Mapping[str, Leaf], sparsity: float) -> dict[str, float]:
  """Gives every leaf the same sparsity.

  >>> uniform({'a': Leaf((2, 3)), 'b': Leaf((4, 5))}, 0.5)
  {'a': 0.5, 'b': 0.5}
  """
  return dict.fromkeys(leaves, sparsity)


def erk(leaves: Mapping[str, Leaf], sparsity: float) -> dict[str, float]:
  """Gives large leaves more zeros than small ones: density grows with the sum of a leaf's lengths over their product.

  A leaf that would need more than all of its weights stays dense, and the others make up for it. It is what every
  part takes by default: at the same number of zeros it keeps more accuracy than `uniform`, which starves small layers
  (a classifier of 10 outputs); the tables of `experiments/README.md` compare them. A convolution that stays denser
  does more of the work, so the same zeros may save fewer operations.

  Args:
    leaves: by path.
    sparsity: of all leaves together.

  Returns:
    By path, the sparsity.

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020, https://arxiv.org/abs/1911.11134
    (Erdos-Renyi-Kernel)

  >>> {path: round(share, 3) for path, share in erk({'a': Leaf((10, 10)), 'b': Leaf((100, 100))}, 0.8).items()}
  {'a': 0.0, 'b': 0.808}
  """
  sizes = {path: math.prod(leaf.shape) for path, leaf in leaves.items()}
  raw = {path: _raw_density(leaf) for path, leaf in leaves.items()}
  dense = {path for path, size in sizes.items() if not size}  # nothing to share
  scale = 1.0
  while len(dense) < len(leaves):
    budget = (1 - sparsity) * sum(sizes.values()) - sum(sizes[path] for path in dense)
    scale = budget / sum(raw[path] * sizes[path] for path in leaves if path not in dense)
    full = {path for path in leaves if path not in dense and scale * raw[path] > 1}
    if not full:
      break
    dense |= full
  # Twelve digits: leaves that are alike get the sparsity as it was written, and are rounded as `uniform` rounds them.
  return {path: 0.0 if path in dense else round(1 - scale * raw[path], 12) for path in leaves}


def _raw_density(leaf: Leaf) -> float:
  lengths = leaf.shape
  if leaf.layout is not None:  # of one weight of a stack
    lengths = tuple(leaf.shape[axis] for axis in leaf.layout.summed + leaf.layout.outputs) or lengths
  return (sum(lengths) or 1) / max(math.prod(lengths), 1)  # a scalar has no length


def global_(*, floor: float = 0.0, normalize: bool = False) -> Global:
  """Lets all leaves compete for one number of weights that live, met exactly.

  Args:
    floor: the share of each layer that lives whatever the others' scores: without it a layer may die whole.
    normalize: divide each layer's scores by their L2 norm first, so that leaves of small weights compete too.

  Returns:
    An allocation.

  Raises:
    ValueError: a floor outside [0, 1].

  >>> global_(floor=0.05)
  Global(floor=0.05, normalize=False)
  """
  floor = number(floor, 'global_: floor')
  if not 0 <= floor <= 1:
    raise ValueError(f'global_: floor is the share of each leaf that lives, in [0, 1]; got {floor}')
  return Global(floor, normalize)


def allocated(leaves: Mapping[str, Leaf], sparsity: float, allocate: Allocate, *, what: str) -> dict[str, float]:
  """Returns the sparsity of each leaf.

  Args:
    leaves: by path.
    sparsity: the overall one.
    allocate: an allocation, or {regular expression on paths: sparsity}: the first that matches decides, and a leaf
      that none matches gets the overall one.
    what: names the asking part in an error.

  Raises:
    ValueError: a rule that matches nothing, a share outside [0, 1).
  """
  if isinstance(allocate, Global):
    shares = uniform(leaves, sparsity)
  elif isinstance(allocate, Mapping):
    shares = by_rules(leaves, allocate, sparsity, what=f'{what}: allocate rule')
  elif not callable(allocate):
    raise TypeError(f'{what}: allocate is erk, uniform, global_() or rules, {{path: sparsity}}; got {allocate!r}')
  else:
    shares = dict(allocate(leaves, sparsity))
    if shares.keys() != leaves.keys():
      odd = sorted(shares.keys() ^ leaves.keys())
      raise ValueError(f'{what}: an allocation gives each leaf a sparsity, and no other; it is wrong about {odd}')
  shares = {path: number(share, f'{what}: the sparsity of {path!r}') for path, share in shares.items()}
  for path, share in shares.items():
    if not 0 <= share < 1:
      raise ValueError(f'{what}: sparsity is the share that becomes zero, in [0, 1); {path!r} got {share}')
  return shares


def by_rules(leaves: Mapping[str, Leaf], rules: Mapping[str, Any], default: Any, *, what: str) -> dict[str, Any]:
  """Returns what the first matching rule says of each leaf; every rule must match some leaf.

  >>> by_rules({'a/w': Leaf((2,)), 'b/w': Leaf((2,))}, {'^a': 1, 'w$': 2}, 0, what='rule')
  {'a/w': 1, 'b/w': 2}
  """
  found = dict.fromkeys(leaves, default)
  for pattern in reversed(list(rules)):
    found.update(dict.fromkeys(trees.select(leaves, pattern, what=what), rules[pattern]))
  return found
