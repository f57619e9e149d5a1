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
  """

  name: str
  rank: int
  select: trees.Rule
  rules: Mapping[str, int | None]
  train: Any
  adapted: Callable[[Matrix, int], Adapted]
  kept: tuple[str, int | None, trees.Rule] | None

  def of(self, params: Params, layouts: Mapping[str, LeafLayout | None], seen: Seen) -> tuple[LowRank, frozenset[str]]:
    """Returns what is done with the leaves, and which are frozen; `seen` asks a program for routes."""
    name, leaves = self.name, {p: leaf for p, leaf in trees.by_path(params).items() if not trees.is_extra(p)}
    if not leaves:
      raise ValueError(f'{name} finds nothing to freeze: every parameter belongs to another part')
    live = frozenset() if self.train == () else trees.select(leaves, self.train, what=f'{name}: train')
    for pattern in self.rules:
      trees.select(leaves, pattern, what=f'{name}: rule')
    chosen, skipped = self._chosen(leaves, layouts, live, seen)
    items = []
    for path in sorted(chosen):
      own = next((rank for pattern, rank in self.rules.items() if re.search(pattern, path)), self.rank)
      if own is not None:
        items.append((path, self._one(path, leaves[path], layouts.get(path), own)))
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
        shown = ', '.join(sorted(leaves)[:6])
        raise ValueError(f'{name} finds no weight to adapt among {shown}: name one with select=')
      return known, [(p, 'its axes are not clear') for p in sorted(layouts) if p in leaves and layouts[p] is None]
    chosen = trees.select(leaves, self.select, what=f'{name}: select')
    if chosen & live:
      raise ValueError(f'{name}: {min(chosen & live)!r} is to be adapted and trained as it is: leave it to one of them')
    for path in sorted(chosen):
      if path in layouts and layouts[path] is None:
        raise ValueError(f'{name}: {path!r} is multiplied, but its axes are not clear: leave it out, or train= it')
      if path not in layouts and path not in seen({}, {}).looked_up:
        raise ValueError(
          f'{name}: {path!r} is no weight (no product sums over it), so a low rank says nothing of it: leave it out of '
          'select, or train= it as it is'
        )
    return chosen, []

  def _one(self, path: str, leaf: Any, layout: LeafLayout | None, rank: int) -> Adapted:
    shape = tuple(np.shape(leaf))
    if layout is None and len(shape) != 2:
      raise ValueError(f'{self.name}: a looked-up table has rows and columns; {path!r} is {list(shape)}')
    matrix = Matrix.of(shape, layout or LeafLayout((0,), (1,)))
    _, rows, columns = matrix.sizes
    if not math.prod(shape):
      raise ValueError(f'{self.name}: {path!r} is empty, {list(shape)}: leave it out, rules={{{_exact(path)!r}: None}}')
    if rank > min(rows, columns):
      raise ValueError(
        f'{self.name}: the rank of a matrix is at most its smaller side; {path!r} has {rows} rows and {columns} '
        f'columns, rank is {rank}: give it a rank of its own, rules={{{_exact(path)!r}: {min(rows, columns)}}}, or None'
      )
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise ValueError(f'{self.name}: a low rank is of real floats; {path!r} is {leaf.dtype}: leave it out')
    return self.adapted(matrix, rank)

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
