"""Looking into a forward pass: which units answer nothing, which are saturated, how layers scale what they are given.

The program is read as a jaxpr and run once more with what is wanted of it beside the outputs: nothing of the network is
touched, whatever its framework. Bodies of loops (`scan`, `while`, `cond`) are run as they are and not looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.graph import walk
from jaxlite.graph.taps import output_channels

_FORM = ('broadcast_in_dim', 'convert_element_type')
_CLOSE = 0.01  # to an end of its range: saturated


class Site(NamedTuple):
  """A place in a program.

  Attributes:
    kind: 'relu', 'sigmoid', 'tanh' or 'layer'.
    name: 'relu 1' and so on in program order; of a layer the paths of its weights.
  """

  kind: str
  name: str


class Watched(NamedTuple):
  """A forward pass with its sites.

  Attributes:
    sites: in program order.
    run: (params, *args) -> (outputs, one dict of arrays for each site); traced, to be jitted by the caller.
    inside: how many equations are bodies of loops, which were not looked into.
  """

  sites: tuple[Site, ...]
  run: Callable[..., tuple[Any, list[dict[str, jax.Array]]]]
  inside: int


def watched(forward: Callable[..., Any], params: Any, *args: Any) -> Watched:
  """Reads a forward pass.

  Args:
    forward: (params, *args) -> outputs, the first of which has the examples on its first axis.
    params: arrays or their shapes.
    *args: likewise; the last holds the inputs, [B, ...].

  >>> found = watched(lambda p, x: jax.nn.relu(x @ p['w']), {'w': jnp.ones((2, 3))}, jnp.ones((4, 2)))
  >>> [(site.kind, site.name) for site in found.sites]
  [('layer', 'w'), ('relu', 'relu 1')]
  """
  jaxpr, shapes = jax.make_jaxpr(forward, return_shape=True)(params, *args)
  doubled = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2 * leaf.shape[0], *leaf.shape[1:]), leaf.dtype), args[-1])
  try:
    twin = jax.make_jaxpr(forward)(params, *args[:-1], doubled)  # which axes grow with the batch
  except Exception:  # a network of one size of batch: no axis is known to be that of the examples
    twin = jaxpr
  paths = trees.paths(params)
  tree = jax.tree.structure(shapes)
  reader = _Reader()
  made: list[frozenset[str] | None] = [frozenset({path}) for path in paths]
  flat = jax.tree.leaves((params, *args))
  made += [None] * (len(flat) - len(paths))

  def plain(*leaves: Any) -> Any:
    reader.sites, reader.stats, reader.inside, reader.counts = [], [], 0, {}
    results = reader.body(jaxpr, twin, leaves, made)[0]
    return results, reader.stats

  jax.eval_shape(plain, *flat)
  sites, inside = tuple(reader.sites), reader.inside

  def run(*given: Any) -> tuple[Any, list[dict[str, jax.Array]]]:
    results, stats = plain(*jax.tree.leaves(given))
    return jax.tree.unflatten(tree, results), stats

  return Watched(sites, run, inside)


class _Reader:
  """Runs a program equation by equation, and keeps what is seen at its sites."""

  def __init__(self) -> None:
    self.sites: list[Site] = []
    self.stats: list[dict[str, jax.Array]] = []
    self.counts: dict[str, int] = {}
    self.inside = 0

  def body(self, jaxpr: Any, twin: Any, args: Sequence[Any], made: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Returns the results, and of each the paths of the parameters that it is made of alone; None where data are in."""
    bare, consts = walk.opened(jaxpr)
    others = walk.opened(twin)[0].eqns
    others = others if len(others) == len(bare.eqns) else bare.eqns
    env = dict(zip([*bare.constvars, *bare.invars], [*consts, *args], strict=True))
    known: dict[Any, Any] = dict(zip(bare.invars, made, strict=True))
    known |= {var: frozenset() for var in bare.constvars}
    zero: set[Any] = set()
    value = lambda atom: atom.val if hasattr(atom, 'val') else env[atom]  # noqa: E731
    of = lambda atom: frozenset() if hasattr(atom, 'val') else known[atom]  # noqa: E731
    nought = lambda atom: _is_zero(atom.val) if hasattr(atom, 'val') else atom in zero  # noqa: E731
    for eqn, other in zip(bare.eqns, others, strict=True):
      operands, kind = [value(atom) for atom in eqn.invars], eqn.primitive.name
      parts = [of(atom) for atom in eqn.invars]
      if kind in walk.CALLS and kind != 'shard_map':
        inner = walk.CALLS[kind]
        results, out = self.body(eqn.params[inner], other.params.get(inner, eqn.params[inner]), operands, parts)
      else:
        with eqn.ctx.manager:
          found = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        results = list(found) if eqn.primitive.multiple_results else [found]
        joined = None if any(one is None for one in parts) else frozenset().union(*parts)
        out = [joined] * len(results)
        self.inside += kind in ('scan', 'while', 'cond')
        if kind in _FORM and nought(eqn.invars[0]):
          zero |= set(eqn.outvars)
        self.look(eqn, _grown(eqn, other), operands, results[0], parts, nought)
      env.update(zip(eqn.outvars, results, strict=True))
      known.update(zip(eqn.outvars, out, strict=True))
    return [value(atom) for atom in bare.outvars], [of(atom) for atom in bare.outvars]

  def look(self, eqn: Any, axis: int | None, operands: Any, value: Any, parts: Any, nought: Any) -> None:
    kind = eqn.primitive.name
    if all(one is not None for one in parts) or not jnp.issubdtype(getattr(value, 'dtype', jnp.int32), jnp.floating):
      return
    if kind == 'max' and axis is not None and any(nought(atom) for atom in eqn.invars):
      before = next((operand for atom, operand in zip(eqn.invars, operands, strict=True) if not nought(atom)), value)
      before = jnp.broadcast_to(before, value.shape)
      apart = jnp.max(before, axis=axis) > jnp.min(before, axis=axis)
      self.keep('relu', {'ever': jnp.any(value > 0, axis=axis).ravel(), 'varies': apart.ravel()})
    elif kind in ('logistic', 'tanh') and axis is not None:
      low = 0.0 if kind == 'logistic' else -1.0
      near = (value < low + _CLOSE) | (value > 1 - _CLOSE)
      self.keep('sigmoid' if kind == 'logistic' else 'tanh', {'saturated': jnp.mean(near.astype(jnp.float32))})
    elif kind in ('dot_general', 'conv_general_dilated') and None in parts[:2] and any(parts[:2]):
      side = 1 - parts[:2].index(None)
      channels = output_channels(eqn, side)
      rest = tuple(place for place in range(value.ndim) if place not in channels)
      stats = {'input': _rms(operands[1 - side]), 'output': _rms(value), 'spread': _spread(value, axis)}
      stats['mean'] = jnp.mean(value.astype(jnp.float32), axis=rest).ravel()
      self.keep('layer', stats, ' and '.join(sorted(parts[side])))

  def keep(self, kind: str, stats: dict[str, Any], name: str = '') -> None:
    self.counts[kind] = self.counts.get(kind, 0) + 1
    self.sites.append(Site(kind, name or f'{kind} {self.counts[kind]}'))
    self.stats.append(stats)


def _grown(eqn: Any, other: Any) -> int | None:
  """The axis of an equation's first result that grows with the batch; None where none or several do."""
  one, two = (getattr(of.outvars[0].aval, 'shape', ()) if of.outvars else () for of in (eqn, other))
  found = [axis for axis, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
  return found[0] if len(found) == 1 and len(one) == len(two) and len(one) > 1 else None


def _spread(value: Any, axis: int | None) -> Any:
  """How much a value differs from example to example: the deviation over them, of all units together."""
  axis = 0 if axis is None else axis
  return jnp.sqrt(jnp.mean(jnp.var(value.astype(jnp.float32), axis=axis))) if value.ndim else jnp.float32(jnp.nan)


def _rms(value: Any) -> Any:
  return jnp.sqrt(jnp.mean(jnp.square(value.astype(jnp.float32))))


def _is_zero(value: Any) -> bool:
  return (
    np.ndim(value) == 0 and float(value) == 0.0 if isinstance(value, int | float | np.ndarray | np.generic) else False
  )


def merged(sites: Sequence[Site], seen: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, float]]:
  """Returns one dict of numbers for each site from what several batches showed.

  >>> varies = np.array([True, True, False])
  >>> merged([Site('relu', 'relu 1')], [[{'ever': np.array([True, False, False]), 'varies': varies}]])
  [{'dead': 0.5}]
  """
  found = []
  for place, site in enumerate(sites):
    each = [one[place] for one in seen]
    if site.kind == 'relu':
      ever, varies = (np.any([np.asarray(one[name]) for one in each], axis=0) for name in ('ever', 'varies'))
      found.append({'dead': float(1 - np.mean(ever[varies])) if varies.any() else float('nan')})
    else:
      found.append({name: float(np.mean([one[name] for one in each])) for name in each[0] if name != 'mean'})
  return found
