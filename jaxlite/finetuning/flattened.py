"""Where a program flattens pictures before a dense kernel: PyTorch does so as [C, H, W], Flax and Keras as [H, W, C].

Such a kernel has the same shape in both, and its inputs another order. So the axis of channels is followed from the
convolution that made it to the reshape that joins it with the picture's axes, and from there to the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxlite.graph import walk


class Flat(NamedTuple):
  """Features that are a flattened picture.

  Attributes:
    sizes: of the joined axes, in the program's order.
    channel: which of them is the channels'; None where nobody knows.
  """

  sizes: tuple[int, ...]
  channel: int | None


class _Picture(NamedTuple):
  """A value with an axis of channels; None where it is not known which."""

  channel: int | None


class _Joined(NamedTuple):
  """A value with an axis of flattened pictures."""

  axis: int
  flat: Flat


class _Leaf(NamedTuple):
  """A parameter, as it is or with axes of size 1."""

  path: str


_Known = _Picture | _Joined | _Leaf
_MOVES = ('reshape', 'broadcast_in_dim', 'squeeze', 'expand_dims', 'convert_element_type', 'copy')


def flattened(jaxpr: Any, leaves: Mapping[Any, str], inputs: Sequence[Any]) -> dict[str, Flat]:
  """Returns the leaves that meet flattened pictures along their features, by path.

  Args:
    jaxpr: closed; of a forward.
    leaves: the paths of its parameters, by variable.
    inputs: variables of its inputs: pictures, where they have four axes or more.
  """
  env: dict[Any, _Known] = {var: _Leaf(path) for var, path in leaves.items()}
  env.update({var: _Picture(None) for var in inputs if len(var.aval.shape) > 3 and var.aval.shape[-1] > 1})
  found: dict[str, Flat] = {}
  _follow(jaxpr.jaxpr, env, found)
  return found


def _follow(bare: Any, env: dict[Any, _Known], found: dict[str, Flat]) -> list[_Known | None]:
  def of(atom: Any) -> _Known | None:
    return None if hasattr(atom, 'val') else env.get(atom)

  for eqn in bare.eqns:
    given = [of(atom) for atom in eqn.invars]
    name = eqn.primitive.name
    bodies = walk.bodies(eqn)
    inner = walk.opened(bodies[0])[0] if bodies else None
    if inner is not None and name not in ('scan', 'while', 'cond') and len(inner.invars) == len(given):
      known = {var: one for var, one in zip(inner.invars, given, strict=True) if one is not None}
      out = _follow(inner, known, found)
    elif name == 'conv_general_dilated':
      out = [_Picture(eqn.params['dimension_numbers'].out_spec[1])]
    elif name == 'dot_general':
      _multiplied(eqn, given, found)
      out = [None]
    else:
      out = [_passed(eqn, given, found)] * len(eqn.outvars)
    env.update({var: one for var, one in zip(eqn.outvars, out, strict=False) if one is not None})
  return [of(atom) for atom in bare.outvars]


def _multiplied(eqn: Any, given: Sequence[_Known | None], found: dict[str, Flat]) -> None:
  (left, right), _ = eqn.params['dimension_numbers']
  for one, other, summed in ((given[0], given[1], left), (given[1], given[0], right)):
    if isinstance(one, _Joined) and one.axis in summed and isinstance(other, _Leaf):
      found[other.path] = one.flat


def _passed(eqn: Any, given: Sequence[_Known | None], found: dict[str, Flat]) -> _Known | None:
  """What is known of an operation's result."""
  name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
  places = [place for place, one in enumerate(given) if isinstance(one, _Picture | _Joined)]
  if not places:
    leaf = given[0] if len(given) == 1 else None
    if isinstance(leaf, _Leaf):
      wide = [[size for size in sizes if size > 1] for sizes in (shape, eqn.invars[0].aval.shape)]
      return leaf if name == 'transpose' or (name in _MOVES and wide[0] == wide[1]) else None
    if len(given) == 2 and name in ('mul', 'add', 'sub', 'div'):  # a scale times a number for each example
      return next((one for one in given if isinstance(one, _Leaf)), None)
    if name != 'reshape' or hasattr(eqn.invars[0], 'val'):
      return None
    joined = _reshaped(_Picture(None), eqn.invars[0].aval.shape, shape)  # of a past that is not known
    return joined if isinstance(joined, _Joined) and len(joined.flat.sizes) > 2 else None
  one, before = given[places[0]], eqn.invars[places[0]].aval.shape
  if isinstance(one, _Joined):
    for atom, other in zip(eqn.invars, given, strict=True):
      sizes = () if hasattr(atom, 'val') else atom.aval.shape
      along = len(sizes) == len(shape) and sizes[one.axis] == before[one.axis]
      if isinstance(other, _Leaf) and (along or math.prod(sizes) == math.prod(one.flat.sizes)):
        found[other.path] = one.flat  # a norm's scale over flattened features
    return one if len(shape) == len(before) and shape[one.axis] == before[one.axis] else None
  return _seen(eqn, name, one, before, shape)


def _seen(eqn: Any, name: str, one: _Known | None, before: Sequence[int], shape: Sequence[int]) -> _Known | None:
  if not isinstance(one, _Picture):
    return None
  if name == 'transpose':
    order = eqn.params['permutation']
    return one if one.channel is None else _Picture(order.index(one.channel))
  if name == 'reshape':
    return _reshaped(one, before, shape)
  if name == 'broadcast_in_dim':
    return one if one.channel is None else _Picture(eqn.params['broadcast_dimensions'][one.channel])
  gone = eqn.params.get('axes') if name.startswith(('reduce_', 'argm')) else eqn.params.get('dimensions')
  if name.startswith('reduce_window') or len(shape) == len(before):
    return one
  if name in ('squeeze', 'reduce_sum', 'reduce_max', 'reduce_min', 'reduce_prod') and gone is not None:
    if one.channel is None or one.channel in gone:
      return None
    return _Picture(one.channel - sum(axis < one.channel for axis in gone))
  return None


def _reshaped(one: _Picture, before: Sequence[int], shape: Sequence[int]) -> _Known | None:
  """Which axes a reshape joins: groups of axes of equal product, from the left."""
  start = 0
  for axis, size in enumerate(shape):
    stop, product = start, 1
    while stop < len(before) and (product < size or (product == size and before[stop] == 1)):
      product *= before[stop]
      stop += 1
    if product != size:
      return None  # it splits an axis
    group = range(start, stop)
    wide = [place for place in group if before[place] > 1]
    if 0 not in group and (one.channel in group or one.channel is None) and len(wide) > 1:
      channel = None if one.channel is None else wide.index(one.channel) if one.channel in wide else -1
      if channel != -1:  # one channel alone has no order among the others
        return _Joined(axis, Flat(tuple(before[place] for place in wide), channel))
    elif one.channel is not None and one.channel in group:
      return _Picture(axis)
    start = stop
  return None
