"""The uses of a weight in two passes, paired by what feeds them: training's get the names that evaluation has.

Evaluation names the uses of a weight in its own order, so a function that is evaluated alone knows its names. What
only training uses is numbered after them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxlite.graph import feeds
from jaxlite.graph.feeds import Feed, Landmark, base_of
from jaxlite.graph.plan import Plan, Site

Feeds = Mapping[str, Feed]


class Pairs(NamedTuple):
  """Which use of one pass is which of the other.

  Attributes:
    names: the name of every use of training.
    alone: uses that only evaluation has.
    unclear: weights whose uses cannot be told apart: (of training, of evaluation), by the weight.
  """

  names: dict[str, str]
  alone: frozenset[str]
  unclear: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


def pair(training: Feeds, evaluation: Feeds) -> Pairs:
  """Pairs the uses of two passes.

  In turn: what is fed exactly alike; what is the only one fed by the same inputs and contractions in the same way but
  for randomness; by the same inputs and contractions; in the same scope of names; or by some of the same. The only use
  of a weight in both passes is one use wherever it depends on an input in common.

  Args:
    training: by name, as `feeds.read` gives them.
    evaluation: likewise, with the same ids.

  Returns:
    The pairs; a use that could be another one as well is none.
  """
  left, right = _by_base(training), _by_base(evaluation)
  found = _Found(training, evaluation, {}, {})
  both = [(left[base], right[base]) for base in right if base in left]  # in evaluation's order: what feeds comes first
  for ours, theirs in both:
    for one, other in itertools.product(ours, theirs):
      if one not in found.ours and other not in found.theirs and found.alike(one, other, _exactly):
        found.add(one, other)
  ways = (_locally, _from_afar, _in_scope)
  while (
    sum(found.unique(ours, theirs, way) for ours, theirs in both for way in ways)
    or any(found.unique(ours, theirs, None) for ours, theirs in both)
    or any(found.only(ours, theirs) for ours, theirs in both)
  ):
    pass
  names, unclear, alone = dict(found.ours), {}, set(evaluation) - set(found.theirs)
  for base, ours in left.items():
    theirs = right.get(base, [])
    rest = [one for one in ours if one not in names], [other for other in theirs if other in alone]
    if any(found.near(one, other) for one, other in itertools.product(*rest)):
      unclear[base] = tuple(ours), tuple(theirs)
    taken = {*theirs}
    free = (name for count in itertools.count(1) if (name := base if count == 1 else f'{base}#{count}') not in taken)
    names.update(zip(rest[0], free, strict=False))
  return Pairs(names, frozenset(alone), unclear)


class _Found(NamedTuple):
  training: Feeds
  evaluation: Feeds
  ours: dict[str, str]  # training's name -> evaluation's
  theirs: dict[str, str]  # and back

  def add(self, one: str, other: str) -> None:
    self.ours[one], self.theirs[other] = other, one

  def marks(self, feed: Feed, trains: bool) -> frozenset[Any]:
    """Landmarks of both passes in the same words: a contraction that is paired by its name in evaluation."""

    def said(mark: Landmark) -> Any:
      cut, (kind, name) = mark
      if kind != 'site' or not trains:
        return cut, kind, name, kind == 'site' and name not in self.theirs
      return cut, kind, self.ours.get(name, name), name not in self.ours and 'training'

    return frozenset(map(said, feed.marks))

  def fits(self, one: str, other: str) -> bool:
    """Whether both may be one use: alike in shape, and no two different functions of the same."""
    ours, theirs = self.training[one], self.evaluation[other]
    if _kept(ours.site) != _kept(theirs.site):
      return False
    differ = ours.sure and theirs.sure and ours.local != theirs.local
    return not (differ and self.marks(ours, True) == self.marks(theirs, False))

  def near(self, one: str, other: str) -> bool:
    """Whether they may be one use, for all that is known."""
    ours, theirs = self.training[one].roots, self.evaluation[other].roots
    return (bool(ours & theirs) or not (ours and theirs)) and self.fits(one, other)

  def alike(self, one: str, other: str, way: Callable[[Feed, frozenset[Any]], Any] | None) -> bool:
    """Whether they are fed alike, in a way; None is by some of the same."""
    ours, theirs = self.training[one], self.evaluation[other]
    marks, others = self.marks(ours, True), self.marks(theirs, False)
    if way is None:
      same = any(kind in ('input', 'site') for _, kind, *_ in marks & others)
    else:
      same = way(ours, marks) == way(theirs, others)
    return same and self.fits(one, other)

  def unique(self, ours: list[str], theirs: list[str], way: Callable[[Feed, frozenset[Any]], Any] | None) -> bool:
    """Pairs what is like nothing else, or only like what could stand for it, and tells whether there was any."""
    any_new = False
    for other in theirs:
      fitting = [
        one for one in ours if other not in self.theirs and one not in self.ours and self.alike(one, other, way)
      ]
      if not fitting:
        continue
      rivals = [one for one in theirs if one not in self.theirs and self.alike(fitting[0], one, way)]
      draws = {self.training[one].drawn for one in fitting}
      values = {self.evaluation[one].exact for one in rivals}
      if len(draws) == len(values) == 1:
        self.add(fitting[0], other)
        any_new = True
    return any_new

  def only(self, ours: list[str], theirs: list[str]) -> bool:
    """Pairs the only use of a weight in both."""
    (one, *more), (other, *others) = ours, theirs
    if more or others or one in self.ours or not self.near(one, other):
      return False
    self.add(one, other)
    return True


def _exactly(feed: Feed, marks: frozenset[Any]) -> Any:
  return feed.exact


def _locally(feed: Feed, marks: frozenset[Any]) -> Any:
  return feed.local, marks


def _from_afar(feed: Feed, marks: frozenset[Any]) -> Any:
  return marks


def _in_scope(feed: Feed, marks: frozenset[Any]) -> Any:
  return marks, feed.scopes


def _by_base(uses: Feeds) -> dict[str, list[str]]:
  found: dict[str, list[str]] = {}
  for name in uses:
    found.setdefault(base_of(name), []).append(name)
  return found


def _kept(site: Site) -> Any:
  """What the shape of that which is kept of a use, one range a layer, depends on."""
  return site.lengths, site.shape, site.summed, site.paired


def renamed(plan: Plan, names: Mapping[str, str]) -> Plan:
  """Returns a plan whose sites have other names.

  Args:
    plan: at any depth.
    names: by the old name; one that is missing stays.
  """

  def new(site: Site) -> Site:
    return site if site.why_not else site._replace(name=names.get(site.name, site.name))

  return plan._replace(
    sites={index: new(site) for index, site in plan.sites.items()},
    inner={index: tuple(renamed(body, names) for body in bodies) for index, bodies in plan.inner.items()},
    beyond=tuple(map(new, plan.beyond)),
  )


def named_alike(training: tuple[Any, Plan], evaluation: tuple[Any, Plan], leaves: Any, others: Any) -> Pairs:
  """Reads two passes and pairs their uses.

  Args:
    training: the jaxpr and its plan.
    evaluation: likewise.
    leaves: of training's inputs.
    others: of evaluation's.
  """
  ids = feeds.Ids()
  return pair(feeds.read(*training, leaves, ids), feeds.read(*evaluation, others, ids))
