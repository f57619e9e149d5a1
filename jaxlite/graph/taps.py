"""Values from inside a program: what a `checkpoint_name` names, or what a weight's contraction gives.

A tap is looked for by name in the jaxpr and handed out by running the program again (`rewrite.run`): nothing of
the network is touched or patched, and jit, remat, vmap and scan stay what they are. What cannot be handed out
(a value in a branch that may not run, say) is an error that says why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxlite import trees
from jaxlite.errors import nearest
from jaxlite.graph import provenance, rewrite, walk
from jaxlite.graph.contractions import CONTRACTIONS
from jaxlite.graph.effects import without_effects

_BARRED = {
  'while': 'inside a while loop, where it has a value each turn: use a scan',
  'cond': 'in a branch of a conditional, which may not run',
  'shard_map': 'inside a shard_map, where a shard sees its own part only',
}


class Tap(NamedTuple):
  """A value that was found.

  Attributes:
    name: as it was asked for.
    layers: lengths of the scans around it, outermost first: the leading axes of what is handed out.
    shape: of one layer's value.
    channels: the axes of `shape` that are output channels, read off the contraction; None of a named value.
    where: its place in the program.
  """

  name: str
  layers: tuple[int, ...]
  shape: tuple[int, ...]
  channels: tuple[int, ...] | None
  where: tuple[int, ...]


class _Spot(NamedTuple):
  """What `rewrite` needs to know of a place: the interface of a `provenance.Site`."""

  name: str
  why_not: str = ''
  stack: tuple[int, ...] = ()
  lengths: tuple[int, ...] = ()


class _Candidate(NamedTuple):
  names: frozenset[str]
  tap: Tap
  why_not: str


def tapped(
  fn: Callable[..., Any], names: str | Sequence[str], *, weights: int = 0
) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
  """Returns the function with values from its inside.

  Args:
    fn: any function of pytrees of arrays.
    names: of `jax.ad_checkpoint.checkpoint_name`s, or paths of weights: the output of the contraction that
      consumes it (with a custom derivative rule of its own, what the rule gives). Where one name stands for
      several values, 'name#2' is the second in program order.
    weights: position of the argument that holds the weights.

  Returns:
    A function of the same arguments to (outputs, {name: value}). A value inside a scan is stacked, the scan's
    axis first. It can be differentiated.

  Raises:
    ValueError: when called: a name that matches nothing, or several values, or what cannot be handed out.

  >>> import jax.numpy as jnp
  >>> fn = lambda p, x: jnp.tanh(x @ p['a']) @ p['b']
  >>> outputs, taps = tapped(fn, 'a')({'a': jnp.ones((2, 3)), 'b': jnp.ones((3, 1))}, jnp.ones((4, 2)))
  >>> taps['a'].shape, taps['a'][0, 0].item()
  ((4, 3), 2.0)
  """

  def run_tapped(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, jax.Array]]:
    tags = [
      provenance.weight(path) if position == weights else provenance.DATA
      for position, arg in enumerate(args)
      for path in trees.paths(arg)
    ]
    pure = without_effects(fn, 'tapped')
    program = read(lambda *args: pure(*args, **kwargs), args, tags, names, what='tapped')
    return program.run(jax.tree.leaves(args))

  return run_tapped


class Program(NamedTuple):
  """A function at some shapes, with its taps found.

  Attributes:
    jaxpr: closed.
    plan: of the tapped places alone.
    out_tree: the structure of its results.
    taps: by name.
  """

  jaxpr: Any
  plan: provenance.Plan
  out_tree: Any
  taps: Mapping[str, Tap]

  def run(self, leaves: Sequence[Any]) -> tuple[Any, dict[str, jax.Array]]:
    """Returns (results, {name: value [*layers, *shape]}) for flat arguments."""
    results, records = rewrite.run(self.jaxpr, self.plan, leaves, _HAND_OUT, {})
    values = {name: records[_key(tap.where)] for name, tap in self.taps.items()}
    return jax.tree.unflatten(self.out_tree, results), values


def read(
  fn: Callable[..., Any],
  args: Sequence[Any],
  tags: Sequence[provenance.Tag],
  names: str | Sequence[str],
  *,
  what: str,
) -> Program:
  """Traces a function and finds its taps.

  Args:
    fn: takes `args`.
    args: pytrees of arrays or ShapeDtypeStructs.
    tags: one per leaf of `args`.
    names: as in `tapped`.
    what: names the asking part in an error.

  Returns:
    The Program.

  Raises:
    ValueError: as in `tapped`.
  """
  jaxpr, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
  plan = provenance.read(jaxpr, tags)
  candidates = list(_candidates(jaxpr, plan, (), (), ''))
  wanted = [names] if isinstance(names, str) else list(names)
  if not candidates:
    walk.refuse_sealed(jaxpr, what)
  found = {name: _pick(name, candidates, what) for name in wanted}
  only = _only(plan, (), {tap.where for tap in found.values()})
  return Program(jaxpr, only, jax.tree.structure(shapes), found)


def _pick(name: str, candidates: Sequence[_Candidate], what: str) -> Tap:
  base, number = name, None
  matched = [one for one in candidates if name in one.names]
  if not matched and (numbered := re.fullmatch(r'(.*)#(\d+)', name)):
    base, number = numbered[1], int(numbered[2])
    matched = [one for one in candidates if base in one.names]
  if not matched:
    known = sorted(set().union(*(one.names for one in candidates)))
    near = f'nearest: {nearest(name, known)}' if known else 'the program has none'
    raise ValueError(f'{what}: tap {name!r} matches no checkpoint_name and no weight that is multiplied; {near}')
  if number is None and len(matched) > 1:
    raise ValueError(
      f'{what}: tap {name!r} matches {len(matched)} values: say which, {f"{base}#1"!r} to {f"{base}#{len(matched)}"!r}'
    )
  if number is not None and not 1 <= number <= len(matched):
    raise ValueError(f'{what}: tap {base!r} matches {len(matched)} values, counted from 1; got {name!r}')
  one = matched[(number or 1) - 1]
  if one.why_not:
    raise ValueError(f'{what}: tap {name!r} stands {one.why_not}; name another value')
  return one.tap._replace(name=name)


def _candidates(
  jaxpr: Any, plan: provenance.Plan, where: tuple[int, ...], layers: tuple[int, ...], barred: str
) -> Iterator[_Candidate]:
  """Yields every value that has a name, in program order."""
  for index, eqn in enumerate(walk.opened(jaxpr)[0].eqns):
    here, kind = (*where, index), eqn.primitive.name
    if kind == 'name' and not trees.is_extra(eqn.params['name']):
      tap = Tap('', layers, tuple(eqn.outvars[0].aval.shape), None, here)
      yield _Candidate(frozenset((eqn.params['name'],)), tap, barred)
    elif index in plan.sites:
      yield from _contraction(eqn, plan.sites[index], here, layers, barred)
    elif kind.startswith('custom_') and index in plan.inner:
      yield from _ruled(eqn, plan.inner[index], here, layers, barred)
    else:
      inside = (*layers, eqn.params['length']) if kind == 'scan' else layers
      for turn, (body, inner) in enumerate(zip(_bodies(eqn), plan.inner.get(index, ()), strict=False)):
        yield from _candidates(body, inner, (*here, turn), inside, barred or _BARRED.get(kind, ''))


def _bodies(eqn: Any) -> list[Any]:
  """The bodies of an equation in the order of `Plan.inner`."""
  kind = eqn.primitive.name
  if kind in walk.CALLS:
    return [eqn.params[walk.CALLS[kind]]]
  if kind == 'scan':
    return [eqn.params['jaxpr']]
  if kind == 'while':
    return [eqn.params['cond_jaxpr'], eqn.params['body_jaxpr']]
  return list(eqn.params['branches']) if kind == 'cond' else []


def _contraction(
  eqn: Any, site: provenance.Site, where: tuple[int, ...], layers: tuple[int, ...], barred: str
) -> Iterator[_Candidate]:
  if site.side is not None and site.kind in CONTRACTIONS and (site.weighs or not site.why_not):
    tap = Tap('', layers, tuple(eqn.outvars[0].aval.shape), output_channels(eqn, site.side), where)
    yield _Candidate(site.weights or site.paths, tap, barred)


def output_channels(eqn: Any, side: int) -> tuple[int, ...]:
  """The axes of a contraction's result that are the weight's own; `side` is the operand that the weight is."""
  if eqn.primitive.name == 'conv_general_dilated':
    return (eqn.params['dimension_numbers'].out_spec[1],)
  contracting, batch = eqn.params['dimension_numbers']
  free = eqn.invars[side].aval.ndim - len(contracting[side]) - len(batch[side])
  ndim, shared = eqn.outvars[0].aval.ndim, len(batch[0])
  return tuple(range(ndim - free, ndim)) if side == 1 else tuple(range(shared, shared + free))


def _ruled(
  eqn: Any, plans: Sequence[provenance.Plan], where: tuple[int, ...], layers: tuple[int, ...], barred: str
) -> Iterator[_Candidate]:
  """A custom derivative rule: its own result has a gradient, what its body computes on the way has none.

  Quantization's contractions are such, and their result is the scaled one.
  """
  (plan,) = plans
  inside = list(_candidates(eqn.params[walk.CALLS[eqn.primitive.name]], plan, (0,), (), ''))
  weighed = [one for one in inside if one.tap.channels is not None]
  out = [tuple(var.aval.shape) for var in eqn.outvars]
  for one in inside:
    if one in weighed and len(weighed) == 1 and out == [one.tap.shape]:
      yield _Candidate(one.names, one.tap._replace(layers=layers, where=where), barred)
    else:
      yield _Candidate(one.names, one.tap, barred or 'under a custom derivative rule, where no gradient would reach it')


def _only(plan: provenance.Plan, where: tuple[int, ...], wanted: set[tuple[int, ...]]) -> provenance.Plan:
  """The plan with nothing in it but the wanted places."""
  sites = {place[-1]: _Spot(_key(place)) for place in wanted if place[:-1] == where}
  inner = {}
  for index, plans in plan.inner.items():
    here = (*where, index)
    if any(place[: len(here)] == here and len(place) > len(here) for place in wanted):
      inner[index] = tuple(_only(one, (*here, turn), wanted) for turn, one in enumerate(plans))
  return plan._replace(sites=sites, inner=inner, beyond=(), marks=())


def _key(where: tuple[int, ...]) -> str:
  return '.'.join(map(str, where))


def _visit(site: Any, eqn: Any, operands: Sequence[Any], read: Any, axes: Any) -> tuple[Any, Any]:
  del site, read, axes
  out = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
  value = out[0] if eqn.primitive.multiple_results else out
  return value, value


def _never(*_: Any) -> Any:
  raise AssertionError('taps stand in no while, conditional or shard_map: `_pick` refuses them')


_HAND_OUT = rewrite.Rules(
  visit=_visit, wanted=lambda site: True, merge=_never, fold=lambda stacked: stacked, absent=_never, across=_never
)


def as_features(value: jax.Array, tap: Tap, doubled: Tap, examples: int, what: str) -> jax.Array:
  """Brings a tap's value into one form, whatever the framework's layout.

  Args:
    value: [*layers, *shape].
    tap: where it comes from.
    doubled: the same tap of the program at twice the batch size: the axis that grows is that of the examples.
    examples: the batch size.
    what: names the asking part in an error.

  Returns:
    [layers, examples, positions..., channels]; layers is 1 outside of scans, channels 1 where there are none.
    Of a named value the last axis is the channels.

  Raises:
    ValueError: no axis, or several, grow with the batch.
  """
  grown = [axis for axis, (one, two) in enumerate(zip(tap.shape, doubled.shape, strict=True)) if one != two]
  if len(grown) != 1 or tap.shape[grown[0]] % examples or doubled.shape[grown[0]] != 2 * tap.shape[grown[0]]:
    raise ValueError(
      f'{what}: tap {tap.name!r} has one axis that grows with the batch; at {examples} examples it is '
      f'{list(tap.shape)}, at {2 * examples} {list(doubled.shape)}: tap a value of the examples'
    )
  (axis,) = grown
  split = (*tap.shape[:axis], examples, tap.shape[axis] // examples, *tap.shape[axis + 1 :])  # [B * T, d] is [B, T, d]
  rest = [place for place in range(len(tap.shape)) if place != axis]
  channels = [place for place in (rest[-1:] if tap.channels is None else tap.channels) if place != axis]
  moved = [place + (place > axis) for place in [*(p for p in rest if p not in channels), *channels]]
  positions = [split[place] for place in moved[: len(moved) - len(channels)]]
  if split[axis + 1] > 1:
    positions, moved = [split[axis + 1], *positions], [axis + 1, *moved]
  else:
    moved = [*moved, axis + 1]
  value = value.reshape(-1, *split).transpose(0, axis + 1, *(place + 1 for place in moved))
  return value.reshape(len(value), examples, *positions, math.prod(tap.shape[place] for place in channels))
