"""Which entries of which parameters belong together: those that can only be removed at once.

Every entry along every axis of every value is a node. An equation says which nodes of its operands and results are
one: the channels of a sum, the two sides of a product, the parts of a concatenation. What hangs together is a
**unit**: a hidden neuron with its column, its bias and its row; a channel through all blocks of a residual stage; a
head. Entries of a program's inputs and outputs, and what an equation that is not understood touches, are fixed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.graph import walk
from jaxlite.graph.covers import blocks
from jaxlite.graph.cut import ELEMENTWISE, named
from jaxlite.graph.cut_products import PRODUCTS

Nodes = list[np.ndarray]  # of a value: by axis, int[size]

_REDUCE = ('reduce_sum', 'reduce_max', 'reduce_min')
_ALONG = ('cumsum', 'cummax', 'cummin', 'cumprod', 'cumlogsumexp', 'sort')
_SOURCES = ('random_bits', 'rng_bit_generator', 'random_seed', 'random_wrap', 'random_fold_in', 'random_split')
_WINDOWS = ('reduce_window_max', 'reduce_window_min', 'reduce_window_sum', 'reduce_window')


class Program(NamedTuple):
  """A program over leaves.

  Attributes:
    jaxpr: closed.
    ins: for each input the leaf that it is, or None.
    outs: for each output the leaf whose new value it is; None where it is an answer, -1 where it may be cut.
  """

  jaxpr: Any
  ins: tuple[int | None, ...]
  outs: tuple[int | None, ...]


class Family(NamedTuple):
  """Units that are alike: neurons of a layer, channels of a stage, heads.

  Attributes:
    members: (leaf, axis) of all that a unit has a part of, in order.
    units: for each unit, for each member, its entries along that axis.
    widths: for each member, by how much a unit makes a matrix of a product wider there (a head by all that is in it);
      0 where it is in none.
  """

  members: tuple[tuple[int, int], ...]
  units: tuple[tuple[tuple[int, ...], ...], ...]
  widths: tuple[int, ...] = ()


class Product(NamedTuple):
  """What a contraction costs: the product of the lengths of these axes, each given by the family of each entry.

  Attributes:
    axes: for each axis how many entries are fixed, and how many belong to each family, by its index.
    each: what stays whatever is removed.
  """

  axes: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
  each: float


class Coupled(NamedTuple):
  """What was found.

  Attributes:
    families: those that may be removed.
    fixed: (leaf, axis) -> why none of its entries may be removed.
    products: one for each contraction of the first program.
  """

  families: tuple[Family, ...]
  fixed: dict[tuple[int, int], str]
  products: tuple[Product, ...]


class Reshape(NamedTuple):
  """A block of axes that a reshape merges or splits."""

  eqn: Any
  old: Nodes
  new: Nodes


class Reader:
  """The nodes of a program, growing."""

  def __init__(self) -> None:
    self.count = 0
    self.edges: list[tuple[np.ndarray, np.ndarray]] = []
    self.marks: list[tuple[np.ndarray, str]] = []
    self.reshapes: list[Reshape] = []
    self.products: list[tuple[list[np.ndarray], float]] = []
    self.owners: dict[int, int] = {}  # by id of an axis of a leaf: the leaf
    self.beside: dict[int, int] = {}  # by id of an axis in a product: the size of what lies beside it in one matrix
    self.read: list[np.ndarray] = []  # what is summed, or becomes an output of a sum: rows that are cut off are not

  def fresh(self, shape: Sequence[int]) -> Nodes:
    out = []
    for size in shape:
      out.append(np.arange(self.count, self.count + size))
      self.count += size
    return out

  def tie(self, one: np.ndarray, other: np.ndarray) -> None:
    if len(one) == len(other) and one is not other:
      self.edges.append((one, other))

  def fix(self, nodes: Sequence[np.ndarray], why: str) -> None:
    self.marks.extend((one, why) for one in nodes)

  def body(self, jaxpr: Any, given: Sequence[Nodes], times: int = 1) -> list[Nodes]:
    bare, consts = walk.opened(jaxpr)
    env: dict[Any, Nodes] = {}
    for var, value in zip(bare.constvars, consts, strict=True):
      env[var] = self.fresh(np.shape(value))
    env.update(zip(bare.invars, given, strict=True))

    def nodes(atom: Any) -> Nodes:
      return self.fresh(getattr(atom.aval, 'shape', ())) if hasattr(atom, 'val') else env[atom]

    for eqn in bare.eqns:
      env.update(zip(eqn.outvars, self.equation(eqn, [nodes(atom) for atom in eqn.invars], times), strict=True))
    return [nodes(atom) for atom in bare.outvars]

  def equation(self, eqn: Any, given: list[Nodes], times: int) -> list[Nodes]:
    name, params = eqn.primitive.name, eqn.params
    shapes = [tuple(getattr(var.aval, 'shape', ())) for var in eqn.outvars]
    if (
      name in ('iota', 'random_bits', 'rng_bit_generator', 'random_seed', 'random_wrap', 'random_fold_in') or not given
    ):
      return [self.fresh(shape) for shape in shapes]
    if (name in ELEMENTWISE or name in ('sharding_constraint', 'bitcast_convert_type')) and len(shapes) == 1:
      return [self.merged(given, shapes[0])]
    if name == 'optimization_barrier':
      return given
    if name in walk.CALLS and name != 'shard_map':
      return self.body(params[walk.CALLS[name]], given, times)
    if name in _LOOPS:
      return _LOOPS[name](self, eqn, given, times)
    if name in (*PRODUCTS, *_REDUCE):
      self.read.extend(one for value in given for one in value)
    if name in _RULES:
      return [_RULES[name](self, eqn, given[0], shapes[0])]
    if name == 'concatenate':
      axis = params['dimension']
      rest = self.merged([[*one[:axis], *one[axis + 1 :]] for one in given], shapes[0][:axis] + shapes[0][axis + 1 :])
      return [[*rest[:axis], np.concatenate([one[axis] for one in given]), *rest[axis:]]]
    if name == 'split':
      axis, ends = params['axis'], list(itertools.accumulate(params['sizes'], initial=0))
      return [[n[a:b] if i == axis else n for i, n in enumerate(given[0])] for a, b in itertools.pairwise(ends)]
    if name == 'dot_general':
      return [self.dot(eqn, given, times)]
    if name == 'conv_general_dilated':
      return [self.convolution(eqn, given, shapes[0], times)]
    if name == 'reduce':  # by a rule of one's own, several operands at once
      rest = self.merged(given[: len(shapes)], tuple(eqn.invars[0].aval.shape))
      return [[one for axis, one in enumerate(rest) if axis not in params['dimensions']]] * len(shapes)
    if name in _ALONG:
      axis = params.get('axis', params.get('dimension'))
      self.fix([one[axis] for one in given], f'{named(eqn)} runs along it')
      return [self.merged(given, shapes[0])] * len(shapes)
    if name == 'dynamic_update_slice':
      for axis, (one, other) in enumerate(zip(given[0], given[1], strict=True)):
        if len(one) == len(other):
          self.tie(one, other)
        else:
          self.fix([given[0][axis], given[1][axis]], f'{named(eqn)} writes into it')
      return [given[0]]
    if name == 'stack':
      rest = self.merged(given, shapes[0][: params['axis']] + shapes[0][params['axis'] + 1 :])
      return [[*rest[: params['axis']], *self.fresh([len(given)]), *rest[params['axis'] :]]]
    if name == 'unstack':
      self.fix([given[0][params['axis']]], f'{named(eqn)} takes it apart')
      return [[*given[0][: params['axis']], *given[0][params['axis'] + 1 :]]] * len(shapes)
    out = [self.fresh(shape) for shape in shapes]
    self.fix([one for value in (*given, *out) for one in value], f'{named(eqn)} is not understood')
    return out

  def merged(self, given: Sequence[Nodes], shape: Sequence[int]) -> Nodes:
    """Of values of one shape, each axis being one."""
    out = []
    for axis, size in enumerate(shape):
      held = [one[axis] for one in given if len(one) == len(shape) and len(one[axis]) == size]
      for other in held[1:]:
        self.tie(held[0], other)
      out.append(held[0] if held else self.fresh([size])[0])
    return out

  def dot(self, eqn: Any, given: Sequence[Nodes], times: int) -> Nodes:
    summed, batches = eqn.params['dimension_numbers']
    for pairs in (summed, batches):
      for one, other in zip(*pairs, strict=True):
        self.tie(given[0][one], given[1][other])
    out = [given[0][axis] for axis in batches[0]]
    for side in (0, 1):
      out += [one for axis, one in enumerate(given[side]) if axis not in (*summed[side], *batches[side])]
      free = [axis for axis in range(len(given[side])) if axis not in (*summed[side], *batches[side])]
      if len({self.owners.get(id(one), -1 - place) for place, one in enumerate(given[side])}) == 1:  # a leaf's own axes
        self.matrix([given[side][axis] for axis in summed[side]])
        self.matrix([given[side][axis] for axis in free])
    self.products.append(([*out, *(given[0][axis] for axis in summed[0])], 2.0 * times))
    return out

  def matrix(self, nodes: Nodes) -> None:
    """Notes axes that a product takes as one."""
    size = math.prod(map(len, nodes))
    for one in nodes:
      beside = size // max(len(one), 1)
      self.beside[id(one)] = min(self.beside.get(id(one), beside), beside)

  def convolution(self, eqn: Any, given: Sequence[Nodes], shape: Sequence[int], times: int) -> Nodes:
    numbers, groups = eqn.params['dimension_numbers'], eqn.params['feature_group_count']
    batch, feature, *spatial = numbers.lhs_spec
    out_axis, in_axis, *window = numbers.rhs_spec
    out = self.fresh(shape)
    out[numbers.out_spec[0]], out[numbers.out_spec[1]] = given[0][batch], given[1][out_axis]
    around = [given[0][axis] for axis in spatial] + [given[1][axis] for axis in window]
    self.fix([*around, *(out[axis] for axis in numbers.out_spec[2:])], f'{named(eqn)} moves over it')
    if eqn.params['batch_group_count'] != 1:
      self.fix([*given[0], *given[1], *out], f'{named(eqn)} groups the batch')
    if groups == 1:
      self.tie(given[0][feature], given[1][in_axis])
    else:
      of_groups = self.fresh([groups])[0]
      for nodes in (given[0][feature], given[1][out_axis]):
        self.edges.append((np.repeat(of_groups, len(nodes) // groups), nodes))
      self.fix([given[1][in_axis]], f'{named(eqn)} sums over it within each group')
    each = 2.0 * times * math.prod(len(one) for one in around[len(spatial) :])
    axes = [
      out[numbers.out_spec[0]],
      *(out[axis] for axis in numbers.out_spec[2:]),
      given[1][out_axis],
      given[1][in_axis],
    ]
    self.products.append((axes, each))
    return out


def _broadcast(reader: Reader, eqn: Any, nodes: Nodes, shape: Sequence[int]) -> Nodes:
  out = reader.fresh(shape)
  for one, place in zip(nodes, eqn.params['broadcast_dimensions'], strict=True):
    if len(one) == shape[place]:
      out[place] = one
  return out


def _reshape(reader: Reader, eqn: Any, nodes: Nodes, shape: Sequence[int]) -> Nodes:
  out = reader.fresh(shape)
  if eqn.params.get('dimensions') is not None:
    reader.fix([*nodes, *out], f'{named(eqn)} is no plain reshape')
    return out
  reader.fix([one for one in nodes if len(one) == 1], f'{named(eqn)} takes it apart')
  for old, new in blocks([len(one) for one in nodes], shape):
    wide = [axis for axis in old if len(nodes[axis]) != 1], [axis for axis in new if shape[axis] != 1]
    if len(wide[0]) == len(wide[1]) == 1:
      out[wide[1][0]] = nodes[wide[0][0]]
    elif wide[0]:
      reader.reshapes.append(Reshape(eqn, [nodes[axis] for axis in wide[0]], [out[axis] for axis in wide[1]]))
  return out


def _squeeze(reader: Reader, eqn: Any, nodes: Nodes, shape: Sequence[int]) -> Nodes:
  gone = [axis % len(nodes) for axis in eqn.params['dimensions']]
  reader.fix([nodes[axis] for axis in gone], f'{named(eqn)} takes it apart')  # what was sliced off: one of three
  return [one for axis, one in enumerate(nodes) if axis not in gone]


def _reduce(reader: Reader, eqn: Any, nodes: Nodes, shape: Sequence[int]) -> Nodes:
  axes = [axis % len(nodes) for axis in eqn.params['axes']]
  if eqn.primitive.name not in _REDUCE:
    reader.fix([nodes[axis] for axis in axes], f'{named(eqn)} runs over it')
  return [one for axis, one in enumerate(nodes) if axis not in axes]


def _pad(reader: Reader, eqn: Any, nodes: Nodes, shape: Sequence[int]) -> Nodes:
  out = []
  for one, (low, high, inside) in zip(nodes, eqn.params['padding_config'], strict=True):
    if low < 0 or high < 0 or inside:
      (new,) = reader.fresh([len(one) + low + high + inside * max(len(one) - 1, 0)])
      reader.fix([one, new], f'{named(eqn)} spreads or trims it')
      out.append(new)
    else:
      before, after = reader.fresh([low, high])
      out.append(np.concatenate([before, one, after]))
  return out


def _gather(reader: Reader, eqn: Any, nodes: Nodes, shape: Sequence[int]) -> Nodes:
  numbers, sizes, out = eqn.params['dimension_numbers'], eqn.params['slice_sizes'], reader.fresh(shape)
  gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
  places = dict(zip([axis for axis in range(len(sizes)) if axis not in gone], numbers.offset_dims, strict=True))
  for axis, one in enumerate(nodes):
    if axis not in gone and sizes[axis] == len(one):
      out[places[axis]] = one
    else:
      reader.fix([one, *([out[places[axis]]] if axis in places else [])], f'{named(eqn)} picks along it')
  reader.fix([out[a] for a in range(len(shape)) if a not in numbers.offset_dims], f'{named(eqn)} picks along it')
  return out


def _dynamic_slice(reader: Reader, eqn: Any, nodes: Nodes, shape: Sequence[int]) -> Nodes:
  out = reader.fresh(shape)
  for axis, one in enumerate(nodes):
    if len(one) == shape[axis]:
      out[axis] = one
    else:
      reader.fix([one, out[axis]], f'{named(eqn)} slices it')
  return out


def _window(reader: Reader, eqn: Any, nodes: Nodes, shape: Sequence[int]) -> Nodes:
  out, params = reader.fresh(shape), eqn.params
  names = ('window_dimensions', 'window_strides', 'base_dilation', 'window_dilation')
  for axis, one in enumerate(nodes):
    if all(not params.get(name) or params[name][axis] == 1 for name in names) and not any(params['padding'][axis]):
      out[axis] = one
    else:
      reader.fix([one, out[axis]], f'{named(eqn)} moves over it')
  return out


def _slice(reader: Reader, eqn: Any, nodes: Nodes, shape: Sequence[int]) -> Nodes:
  strides = eqn.params['strides'] or (1,) * len(nodes)
  spans = zip(eqn.params['start_indices'], eqn.params['limit_indices'], strides, strict=True)
  return [one[start:stop:stride] for one, (start, stop, stride) in zip(nodes, spans, strict=True)]


def _tile(reader: Reader, eqn: Any, nodes: Nodes, shape: Sequence[int]) -> Nodes:
  out = reader.fresh(shape)
  for axis, one in enumerate(nodes):
    if len(one) == shape[axis]:
      out[axis] = one
    else:
      reader.fix([one, out[axis]], f'{named(eqn)} repeats it')
  return out


_RULES: dict[str, Any] = {
  'broadcast_in_dim': _broadcast,
  'reshape': _reshape,
  'transpose': lambda reader, eqn, nodes, shape: [nodes[axis] for axis in eqn.params['permutation']],
  'squeeze': _squeeze,
  'rev': lambda reader, eqn, nodes, shape: [
    one[::-1] if axis in eqn.params['dimensions'] else one for axis, one in enumerate(nodes)
  ],
  'slice': _slice,
  'pad': _pad,
  'gather': _gather,
  'dynamic_slice': _dynamic_slice,
  'tile': _tile,
  **dict.fromkeys(_WINDOWS, _window),
  **dict.fromkeys((*_REDUCE, 'reduce_prod', 'reduce_and', 'reduce_or', 'argmax', 'argmin'), _reduce),
}


def _scan(reader: Reader, eqn: Any, given: list[Nodes], times: int) -> list[Nodes]:
  num_consts, num_carry = walk.scan_layout(eqn)
  split = num_consts + num_carry
  reader.fix([one[0] for one in given[split:]], 'a loop runs over it')
  out = reader.body(
    eqn.params['jaxpr'], [*given[:split], *(one[1:] for one in given[split:])], times * eqn.params['length']
  )
  for old, new in zip(given[num_consts:split], out, strict=False):
    for one, other in zip(old, new, strict=True):
      reader.tie(one, other)
  stacked = []
  for one in out[num_carry:]:
    (front,) = reader.fresh([eqn.params['length']])
    reader.fix([front], 'a loop runs over it')
    stacked.append([front, *one])
  return [*given[num_consts:split], *stacked]


def _while(reader: Reader, eqn: Any, given: list[Nodes], times: int) -> list[Nodes]:
  conds, bodies = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
  carry = given[conds + bodies :]
  reader.body(eqn.params['cond_jaxpr'], [*given[:conds], *carry], times)
  out = reader.body(eqn.params['body_jaxpr'], given[conds:], times)
  for old, new in zip(carry, out, strict=True):
    for one, other in zip(old, new, strict=True):
      reader.tie(one, other)
  return carry


def _cond(reader: Reader, eqn: Any, given: list[Nodes], times: int) -> list[Nodes]:
  several = [reader.body(branch, given[1:], times) for branch in eqn.params['branches']]
  return [reader.merged(outs, [len(axis) for axis in outs[0]]) for outs in zip(*several, strict=True)]


_LOOPS = {'scan': _scan, 'while': _while, 'cond': _cond}
