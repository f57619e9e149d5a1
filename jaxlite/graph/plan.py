"""What is known of a program once it is read: where values come from, its contractions, its bodies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jaxlite.graph.covers import Cover


class Tag(NamedTuple):
  """What a value depends on.

  Attributes:
    paths: the parameters, by path; empty for a constant and for data.
    data: it depends on something that is neither parameter nor constant.
    varies: depths of the enclosing scans along which it differs from one iteration to the next.
    covers: how far it spans each of `paths`; where data picked whole matrices of leaves, of those (`paths` is empty).
    shards: the mesh axes of the enclosing shard_maps along which it differs from one shard to the next.
  """

  paths: frozenset[str] = frozenset()
  data: bool = False
  varies: frozenset[int] = frozenset()
  covers: Mapping[str, Cover] = {}
  shards: frozenset[str] = frozenset()


CONSTANT = Tag()
DATA = Tag(data=True)


def weight(path: str) -> Tag:
  """Returns the tag of a parameter's leaf."""
  return Tag(frozenset((path,)))


class Site(NamedTuple):
  """One contraction of a program.

  Attributes:
    name: the paths of its weight, joined by '+'; `#2` on its second use; '' where no operand is a weight, or
      `<activations>` where it is `paired`.
    kind: the primitive's name.
    side: which operand is the weight, 0 or 1; None where it is not exactly one.
    why_not: why it is no weight times activation, '' where it is.
    stack: depths of the enclosing scans that give each iteration another weight, outermost first.
    lengths: the lengths of those scans.
    flops: floating-point operations of one pass, every iteration of a scan counted, of a while one, and every shard
      that has operands of its own.
    shape: of its weight; () where side is None.
    summed: the axes of its weight that are summed over; the others are its output channels.
    paths: the parameters that its weight depends on.
    weights: those among them that are weights; the others scale or shift them.
    custom: it stands under a custom derivative rule.
    weighs: its fixed operand is a weight, though its type or kind, or data that pick it, may keep it from being
      rewritten.
    shards: the mesh axes over which a shard_map has cut its weight; `shape` is then that of one shard.
  """

  name: str
  kind: str
  side: int | None
  why_not: str
  stack: tuple[int, ...]
  lengths: tuple[int, ...]
  flops: int
  shape: tuple[int, ...]
  summed: tuple[int, ...]
  paths: frozenset[str]
  weights: frozenset[str]
  custom: bool
  weighs: bool
  shards: frozenset[str] = frozenset()

  @property
  def paired(self) -> bool:
    """Whether it is a product or sum of two activations that may be rewritten; `side` is then 1."""
    return not self.why_not and not self.paths and self.kind != 'reduce_sum'

  @property
  def joins(self) -> bool:
    """Whether it is no contraction: a sum of two activations, or of one over axes."""
    return self.kind in ('add', 'reduce_sum') and not self.paths

  @property
  def channels(self) -> int:
    """How many outputs its weight has."""
    return math.prod(size for axis, size in enumerate(self.shape) if axis not in self.summed)


class Plan(NamedTuple):
  """A jaxpr, read: one for every body.

  Attributes:
    out: the tags of its results.
    sites: the contractions that stand in it directly, by equation index.
    inner: the plans of the bodies of an equation, by equation index.
    beyond: contractions inside bodies whose wiring is not known, never rewritten.
    marks: (name, paths) of every `checkpoint_name` on a weight.
    depth: how many scans enclose it.
  """

  out: tuple[Tag, ...]
  sites: Mapping[int, Site]
  inner: Mapping[int, tuple[Plan, ...]]
  beyond: tuple[Site, ...]
  marks: tuple[tuple[str, frozenset[str]], ...]
  depth: int

  def walk(self) -> Iterator[Plan]:
    """Yields this plan and every plan inside it."""
    yield self
    for index in sorted(self.inner):
      for plan in self.inner[index]:
        yield from plan.walk()

  def _in_order(self) -> Iterator[Site]:
    for index in sorted({*self.sites, *self.inner}):
      if index in self.sites:
        yield self.sites[index]
      for plan in self.inner.get(index, ()):
        yield from plan._in_order()
    yield from self.beyond

  def all_sites(self) -> list[Site]:
    """Returns every contraction, rewritable or not, in program order; of branches that share one, the first."""
    seen: set[str] = set()
    kept = []
    for site in self._in_order():
      if site.why_not or site.name not in seen:
        kept.append(site)
      if not site.why_not:
        seen.add(site.name)
    return kept

  def weight_sites(self) -> dict[str, Site]:
    """Returns by name the sites that multiply a weight by an activation."""
    return {site.name: site for site in self.all_sites() if not site.why_not}
