"""What feeds each use of a weight: by it the uses of two passes, training and evaluation, are told apart.

The same use is fed alike in both, but not by the same equations: training drops, adds noise and normalizes by the
batch. So three things are kept of every value, each coarser than the one before: what exactly it is; what it is since
the last contractions, without what is random; and its landmarks, the inputs and the contractions that it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.graph import walk
from jaxlite.graph.canonical import Writer
from jaxlite.graph.contractions import operands_of
from jaxlite.graph.plan import Plan, Site

# (what was cut out of it on the way, ('input', path), ('weight', path), ('site', name) or ('carry', ''))
Landmark = tuple[int, tuple[str, str]]

_CUTS = frozenset({'slice', 'dynamic_slice', 'gather', 'split', 'unstack', 'rev'})


class Leaf(NamedTuple):
  """What an input of a program is.

  Attributes:
    name: ('input', path), ('weight', path), ('state', path), ('key', path) or ('step', path).
  """

  name: tuple[str, str]


class Feed(NamedTuple):
  """What feeds the activation of one use, or both operands of a product of activations.

  Attributes:
    exact: equal where the values are equal.
    local: what it is since the last contractions; randomness and its scaling are left out.
    marks: its landmarks.
    roots: the inputs that it depends on, by path.
    scopes: the names of `jax.named_scope` and of modules around it.
    drawn: equal where one could be the other's next draw: the same but for the keys.
    sure: nothing random, no statistic and no schedule came in since the last contractions.
    site: the use.
  """

  exact: frozenset[int]
  local: frozenset[int]
  marks: frozenset[Landmark]
  roots: frozenset[str]
  scopes: frozenset[str]
  drawn: frozenset[int]
  sure: bool
  site: Site


class _Value(NamedTuple):
  exact: int
  local: int
  drawn: int
  unscaled: int  # `local` before it was divided by what dropout keeps
  marks: frozenset[Landmark] = frozenset()
  roots: frozenset[str] = frozenset()
  data: bool = False  # it depends on inputs
  aside: bool = False  # on randomness, statistics or the step, since the last contractions
  noisy: bool = False  # randomness has just come in


class Ids(dict[Any, int]):
  """Small numbers for what is equal; shared by the programs that are compared."""

  def of(self, *parts: Any) -> int:
    return self.setdefault(parts, len(self))


def base_of(name: str) -> str:
  """Returns a site's name without the number of its use.

  >>> base_of('dense/kernel#12')
  'dense/kernel'
  """
  return re.sub(r'#\d+$', '', name)


def read(jaxpr: Any, plan: Plan, leaves: Sequence[Leaf], ids: Ids) -> dict[str, Feed]:
  """Reads what feeds each use.

  Args:
    jaxpr: closed.
    plan: of it.
    leaves: one for each of its inputs.
    ids: what the programs that are compared share.

  Returns:
    By name of the site, in program order; branches that share a name are one use, fed by either.
  """
  reader = _Reader(ids, Writer(), {})
  values = [reader.leaf(leaf) for leaf in leaves]
  reader.body(jaxpr, plan, values, ())
  return {name: _together(list(places.values())) for name, places in reader.found.items()}


def _together(alternatives: list[Feed]) -> Feed:
  first, *rest = alternatives
  for other in rest:
    several = [one | two for one, two in zip(first[:6], other[:6], strict=True)]
    first = Feed(*several, sure=first.sure and other.sure, site=first.site)
  return first


class _Reader(NamedTuple):
  ids: Ids
  writer: Writer
  found: dict[str, dict[tuple[Any, ...], Feed]]

  def leaf(self, leaf: Leaf) -> _Value:
    kind, path = leaf.name
    own = self.ids.of('leaf', leaf.name)
    marks = frozenset({(0, leaf.name)}) if kind in ('input', 'weight') else frozenset()
    data, aside = kind == 'input', kind in ('state', 'key', 'step')
    roots = frozenset({path}) if data else frozenset()
    drawn = self.ids.of('key') if kind == 'key' else own
    return _Value(own, self.ids.of('aside') if aside else own, drawn, own, marks, roots, data, aside)

  def constant(self, value: Any) -> _Value:
    if jnp.issubdtype(getattr(value, 'dtype', np.dtype('f')), jax.dtypes.prng_key):
      return self.leaf(Leaf(('key', 'constant')))
    big = np.size(value) > 2**16  # what both traces capture is one object
    own = self.ids.of('constant', ('object', id(value)) if big else self.writer.array(value), str(jnp.shape(value)))
    return _Value(own, own, own, own)

  def body(self, jaxpr: Any, plan: Plan, given: Sequence[_Value], place: tuple[Any, ...], scope: str = '') -> Any:
    bare, consts = walk.opened(jaxpr)
    env = dict(zip(bare.invars, given, strict=True))
    env.update({var: self.constant(value) for var, value in zip(bare.constvars, consts, strict=False)})

    def value(atom: Any) -> _Value:
      if hasattr(atom, 'val'):
        own = self.ids.of('literal', repr(atom.val), str(atom.aval))
        return _Value(own, own, own, own)
      return env.get(atom) or _Value(*(self.ids.of('unknown', id(atom)),) * 4)

    for index, eqn in enumerate(bare.eqns):
      here = (*place, index)
      operands = [value(atom) for atom in eqn.invars]
      site, inner = plan.sites.get(index), plan.inner.get(index)
      stack = f'{scope}/{eqn.source_info.name_stack}'
      if site is not None and not site.why_not:
        out = [self.use(eqn, site, operands, here, stack)]
      elif inner:
        out = self.enter(eqn, inner, operands, here, stack)
      else:
        out = [self.joined(eqn, operands, place) for place in range(len(eqn.outvars))]
      env.update(zip(eqn.outvars, out, strict=True))
    return [value(atom) for atom in bare.outvars]

  def use(self, eqn: Any, site: Site, operands: Sequence[_Value], place: tuple[Any, ...], scope: str) -> _Value:
    positions = operands_of(eqn) if site.kind != 'reduce_sum' else (0, 0)
    both = [operands[position] for position in positions]
    fed = both if site.paired else [both[1 - (site.side or 0)]]
    self.found.setdefault(site.name, {})[place] = Feed(
      frozenset({self.ids.of('fed', *(one.exact for one in fed))}),
      frozenset({self.ids.of('fed', *(one.local for one in fed))}),
      frozenset(
        (self.ids.of('side', side, cut) if site.paired else cut, mark)
        for side, one in enumerate(fed)
        for cut, mark in one.marks
      ),
      frozenset().union(*(one.roots for one in fed)),
      frozenset({scope}),
      frozenset({self.ids.of('fed', *(one.drawn for one in fed))}),
      not any(one.aside for one in fed),
      site,
    )
    exact = self.ids.of(eqn.primitive.name, self.writer.params(eqn), *(one.exact for one in both))
    local = self.ids.of('site', base_of(site.name))
    roots = frozenset().union(*(one.roots for one in both))
    drawn = self.ids.of('site', site.name, place)
    return _Value(exact, local, drawn, local, frozenset({(0, ('site', site.name))}), roots, data=True)

  def joined(self, eqn: Any, given: Sequence[_Value], place: int) -> _Value:
    """The value of a result of an equation without a body."""
    name, ids = eqn.primitive.name, self.ids
    if name in ('name', 'optimization_barrier', 'sharding_constraint', 'pvary', 'pcast', 'copy'):
      return given[min(place, len(given) - 1)]
    said = self.writer.params(eqn)
    exact = ids.of(name, said, place, *(one.exact for one in given))
    is_key = jnp.issubdtype(getattr(eqn.outvars[place].aval, 'dtype', np.dtype('f')), jax.dtypes.prng_key)
    drawn = ids.of('key') if is_key else ids.of('drawn', name, said, place, *(one.drawn for one in given))
    data, aside = any(one.data for one in given), any(one.aside for one in given)
    marks = self.cut(name, said, given, place) if name in _CUTS else frozenset().union(*(one.marks for one in given))
    roots = frozenset().union(*(one.roots for one in given))
    if not data:
      local = ids.of('aside') if aside else exact
      return _Value(exact, local, drawn, local, marks, roots, data, aside)
    fed = [one for one in given if one.data]
    only = fed[0] if len({one.local for one in fed}) == 1 else None
    if only is not None and any(one.aside and not one.data for one in given):  # a mask, noise, a statistic
      return _Value(exact, only.unscaled, drawn, only.unscaled, marks, roots, data, aside, noisy=True)
    scaled = only is not None and name == 'div' and 0 < getattr(eqn.invars[1], 'val', 0) < 1  # by what dropout keeps
    if scaled and only is not None and only.noisy:
      return only._replace(exact=exact, drawn=drawn, marks=marks)
    local = ids.of(name, said, place, *(one.local for one in given))
    unscaled = only.unscaled if scaled and only is not None else local
    return _Value(exact, local, drawn, unscaled, marks, roots, data, aside)

  def cut(self, name: str, said: str, given: Sequence[_Value], place: int) -> frozenset[Landmark]:
    """The landmarks of a part: which part it is goes with them, unless data or chance choose it."""
    of, *where = given
    chosen = any(one.data or one.aside for one in where)
    part = self.ids.of(name, said, place, 'chosen' if chosen else tuple(one.exact for one in where))
    of_parts = frozenset((self.ids.of('part', part, before), mark) for before, mark in of.marks)
    return of_parts.union(*(one.marks for one in where))

  def enter(
    self, eqn: Any, plans: Sequence[Plan], given: Sequence[_Value], place: tuple[Any, ...], scope: str
  ) -> list[_Value]:
    name, params = eqn.primitive.name, eqn.params
    if name == 'scan':
      consts, carries = walk.scan_layout(eqn)
      split = consts + carries
      xs = [self.seen_as('slice', one) for one in given[split:]]
      return self.loop(eqn, params['jaxpr'], plans[0], given[:consts], given[consts:split], xs, place, scope)
    if name == 'while':
      skipped, consts = params['cond_nconsts'], params['body_nconsts']
      fixed, init = given[skipped : skipped + consts], given[skipped + consts :]
      return self.loop(eqn, params['body_jaxpr'], plans[1], fixed, init, [], place, scope)
    if name == 'cond':
      several = [
        self.body(branch, plan, given[1:], (*place, way), scope)
        for way, (branch, plan) in enumerate(zip(params['branches'], plans, strict=True))
      ]
      return [self.either(given[0], outs) for outs in zip(*several, strict=True)]
    return self.body(params[walk.CALLS[name]], plans[0], given, place, scope)

  def seen_as(self, what: str, *several: _Value) -> _Value:
    """A value that control flow makes of others."""
    data, aside = any(one.data for one in several), any(one.aside for one in several)
    marks = frozenset().union(*(one.marks for one in several))
    roots = frozenset().union(*(one.roots for one in several))
    exact = self.ids.of(what, *(one.exact for one in several))
    local = self.ids.of(what, frozenset(one.local for one in several))
    drawn = self.ids.of(what, 'drawn', *(one.drawn for one in several))
    return _Value(exact, local, drawn, local, marks, roots, data, aside)

  def either(self, index: _Value, outs: Sequence[_Value]) -> _Value:
    found = self.seen_as('either', *outs)
    return found._replace(exact=self.ids.of('either', index.exact, *(one.exact for one in outs)))

  def loop(
    self,
    eqn: Any,
    body: Any,
    plan: Plan,
    fixed: Sequence[_Value],
    init: Sequence[_Value],
    xs: Sequence[_Value],
    place: tuple[Any, ...],
    scope: str,
  ) -> list[_Value]:
    """A body that runs again and again: its carry is what it began with and what the body makes of that."""
    whole = self.ids.of(eqn.primitive.name, self.writer.params(eqn), *(one.exact for one in (*fixed, *init, *xs)))
    bare = walk.opened(body)[0]
    kept = [out is var for out, var in zip(bare.outvars, bare.invars[len(fixed) :], strict=False)][: len(init)]

    def carried(position: int, *several: _Value) -> _Value:
      value = self.seen_as('carry', *several)
      marks = value.marks | {(0, ('carry', ''))}
      return value._replace(exact=self.ids.of('carry', whole, position), marks=marks)

    outs: list[_Value] = list(init)
    for time in (0, 1):
      carry = [
        one if same else carried(position, one, *outs[position : position + 1] * time)
        for position, (one, same) in enumerate(zip(init, kept, strict=True))
      ]
      outs = self.body(body, plan, [*fixed, *carry, *xs], place, scope)
    after = [self.seen_as('after', out)._replace(exact=self.ids.of('after', whole, k)) for k, out in enumerate(outs)]
    return [one if same else new for new, one, same in zip(after, init, kept, strict=False)] + after[len(init) :]
