"""Which leaves of a model a low rank stands beside, and which of the frozen ones are kept in few bits."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import Params
from jaxlite.graph.layouts import LeafLayout
from jaxlite.graph.routes import Matrix
from jaxlite.optim._adapted_program import Seen
from jaxlite.optim._low_rank import Adapted
from jaxlite.optim._stored import Form


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LowRank:
  """What a hook knows of its leaves, as a part of a state: it holds no array.

  Attributes:
    adapted: (path, what is learned beside it).
    forms: (path, how it is kept) of the leaves in few bits.
    whole: (path, why) of the leaves that are merged, or restored, before the forward: they cost a gradient, or a copy
      until the backward pass.
    skipped: (path, why) of the weights that were left out.
    counts: parameters that learn, and all there are.
  """

  adapted: tuple[tuple[str, Adapted], ...] = ()
  forms: tuple[tuple[str, Form], ...] = ()
  whole: tuple[tuple[str, str], ...] = ()
  skipped: tuple[tuple[str, str], ...] = ()
  counts: tuple[int, int] = (0, 0)


class Choice(NamedTuple):
  """What a person asked for.

  Attributes:
    name: of the hook.
    rank: where no rule speaks.
    select: a rule on the leaves to adapt.
    rules: ranks by regular expression.
    train: a rule on leaves that learn as they are; () is none.
    adapted: (matrix, rank) -> what is learned beside a leaf.
    kept: (kind, group, rule) of the leaves in few bits; None is none.
    fit: whether a rank above a matrix's smaller side is lowered to it.
  """

  name: str
  rank: int
  select: trees.Rule
  rules: Mapping[str, int | None]
  train: Any
  adapted: Callable[[Matrix, int], Adapted]
  kept: tuple[str, int | None, trees.Rule] | None
  fit: bool = False

  def of(self, params: Params, layouts: Mapping[str, LeafLayout | None], seen: Seen) -> tuple[LowRank, frozenset[str]]:
    """Returns what is done with the leaves, and which are frozen; `seen` asks a program for routes."""
    name, leaves = self.name, {p: leaf for p, leaf in trees.by_path(params).items() if not trees.is_extra(p)}
    if not leaves:
      raise ValueError(
        f'{name} finds nothing to freeze: every parameter belongs to another part. A low rank freezes all there '
        'is, so one stands in a chain: rules= gives each leaf a rank of its own, train= what learns as it is'
      )
    live = frozenset() if self.train in ((), []) else trees.select(leaves, self.train, what=f'{name}: train')
    for pattern in self.rules:
      trees.select(leaves, pattern, what=f'{name}: rule')
    chosen, skipped = self._chosen(leaves, layouts, live, seen)
    found = {
      path: next((rank for pattern, rank in self.rules.items() if re.search(pattern, path)), self.rank)
      for path in sorted(chosen)
    }
    ranks = {path: rank for path, rank in found.items() if rank is not None}
    matrices = {path: self._matrix(path, leaves[path], layouts.get(path)) for path in ranks}
    if self.fit:
      ranks = {path: min(rank, *matrices[path].sizes[1:]) for path, rank in ranks.items()}
    self._check_ranks(matrices, ranks)
    items = [(path, self.adapted(matrix, ranks[path])) for path, matrix in matrices.items()]
    if not items:
      raise ValueError(f'{name} adapts nothing: its rules leave every weight out')
    frozen = frozenset(leaves) - live
    forms, restored = self._forms(leaves, layouts, frozen, seen)
    paths = {path for path, _ in items} | {path for path, _ in forms}
    apart = seen(dict(items), dict(forms)).apart
    one_piece = tuple((path, why) for path in sorted(paths) if (why := apart.get(path, '')) is not None)
    learned = sum(math.prod(a.matrix.sizes[0]) * a.rank * sum(a.matrix.sizes[1:]) for _, a in items)
    learned += sum(math.prod(a.matrix.sizes[0]) * a.matrix.sizes[2] for _, a in items if a.magnitude)
    learned += sum(np.size(leaves[path]) for path in live)
    total = sum(np.size(leaf) for leaf in leaves.values())
    return LowRank(tuple(items), forms, one_piece, (*skipped, *restored), (int(learned), int(total))), frozen

  def _chosen(self, leaves: Any, layouts: Any, live: Any, seen: Seen) -> tuple[frozenset[str], list[tuple[str, str]]]:
    name = self.name
    if self.select is None:
      known = frozenset(path for path, layout in layouts.items() if path in leaves and layout is not None) - live
      if not known:
        unclear = sorted(path for path in leaves if path in layouts and layouts[path] is None)
        why = f' ({", ".join(unclear[:3])}: multiplied, but its axes are not clear)' if unclear else ''
        shown = ', '.join(sorted(leaves)[:6])
        raise ValueError(f'{name} finds no weight to adapt among {shown}{why}: name one with select=')
      return known, [(p, 'its axes are not clear') for p in sorted(layouts) if p in leaves and layouts[p] is None]
    chosen = trees.select(leaves, self.select, what=f'{name}: select')
    if chosen & live:
      raise ValueError(f'{name}: {min(chosen & live)!r} is to be adapted and trained as it is: leave it to one of them')
    for path in sorted(chosen):
      if path in layouts and layouts[path] is None and np.ndim(leaves[path]) != 2:
        raise ValueError(f'{name}: {path!r} is multiplied, but its axes are not clear: leave it out, or train= it')
      if path not in layouts and path not in seen({}, {}).looked_up:
        raise ValueError(
          f'{name}: {path!r} is no weight (no product sums over it), so a low rank says nothing of it: leave it out of '
          'select, or train= it as it is'
        )
    return chosen, []

  def _check_ranks(self, matrices: Mapping[str, Matrix], ranks: Mapping[str, int]) -> None:
    """Raises where a rank is above the smaller side, with one rule for each such leaf: they are all told at once."""
    sides = {path: min(matrix.sizes[1:]) for path, matrix in matrices.items() if ranks[path] > min(matrix.sizes[1:])}
    if not sides:
      return
    path, (_, rows, columns) = next(iter(sides)), matrices[next(iter(sides))].sizes
    rules = ', '.join(f'{_exact(one)!r}: {side}' for one, side in sides.items())
    raise ValueError(
      f'{self.name}: the rank of a matrix is at most its smaller side; {path!r} has {rows} rows and {columns} columns, '
      f'rank is {ranks[path]}{f", and {len(sides) - 1} more are too small" if len(sides) > 1 else ""}: give '
      f'{"them ranks of their" if len(sides) > 1 else "it a rank of its"} own, rules={{{rules}}}, or None, or say '
      'fit=True'
    )

  def _matrix(self, path: str, leaf: Any, layout: LeafLayout | None) -> Matrix:
    shape = tuple(np.shape(leaf))
    if layout is None and len(shape) != 2:
      raise ValueError(f'{self.name}: a looked-up table has rows and columns; {path!r} is {list(shape)}')
    matrix = Matrix.of(shape, layout or LeafLayout((0,), (1,)))
    if not math.prod(shape):
      raise ValueError(f'{self.name}: {path!r} is empty, {list(shape)}: leave it out, rules={{{_exact(path)!r}: None}}')
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise ValueError(f'{self.name}: a low rank is of real floats; {path!r} is {leaf.dtype}: leave it out')
    return matrix

  def _forms(
    self, leaves: Any, layouts: Any, frozen: frozenset[str], seen: Seen
  ) -> tuple[tuple[tuple[str, Form], ...], list[tuple[str, str]]]:
    if self.kept is None:
      return (), []
    kind, group, rule = self.kept
    able = {}
    for path in sorted(frozen & layouts.keys()):
      if layouts[path] is not None and jnp.issubdtype(leaves[path].dtype, jnp.floating) and np.size(leaves[path]):
        able[path] = Form.of(kind, Matrix.of(np.shape(leaves[path]), layouts[path]), leaves[path].dtype, group)
    if rule is not None:
      picked = trees.select(frozen, rule, what=f'{self.name}: quantize')
      if picked - able.keys():
        raise ValueError(
          f'{self.name}: {min(picked - able.keys())!r} cannot be kept in few bits: it is no weight of real floats '
          'whose axes are clear; leave it out of quantize='
        )
      return tuple((path, able[path]) for path in sorted(picked)), []
    apart = seen({}, able).apart
    others = [(path, f'kept as it is: {apart[path]}') for path in able if apart[path] is not None]
    forms = tuple((path, form) for path, form in able.items() if apart[path] is None)
    if not forms:
      raise ValueError(f'{self.name} finds no weight that it can keep in few bits ({_told(others)}): take lora')
    return forms, others


def _exact(path: str) -> str:
  return f'^{re.escape(path)}$'


def _told(pairs: Any) -> str:
  return '; '.join(f'{path}: {why}' for path, why in list(pairs)[:4]) or 'none'
