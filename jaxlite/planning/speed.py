"""How long one kernel takes on a machine of known rates: the longer of computing and moving, and what starting costs.

A rate is what a kind of work reaches at its best. A small, narrow or oddly shaped piece of it reaches less: for each
kind there is a curve by size, and a factor that was fitted once, on CPU seconds of whole train steps, by
`experiments/bench/forecast_time.py --fit`.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxlite.graph.contractions import SPARSE
from jaxlite.host.rates import Rates
from jaxlite.planning.cost import Operation
from jaxlite.planning.reference import correction
from jaxlite.planning.work import SMALL

_LARGE = 2e9  # FLOPs from which a product reaches its best
_CACHED = 2e6  # bytes that a kernel moves, up to which they lie in the caches
_FAR = 6e7  # from which they do not
_THREADED = 1e6  # bytes, or transcendentals, below which XLA for CPU gives a kernel to one core
_CHUNKS = 8  # parts of a batch, at most, that kernels in C convolve side by side
_UNEVEN = 1.05  # by which the last of several cores ends later than all would if they ended together
_STREAMS = 4  # cores that memory serves at their full speed
_NARROW = 16  # columns, or channels, below which kernels leave units of the processor idle
_TINY = 5e4  # FLOPs of one of many products at which it takes twice as long as at the rate of small ones
_WIDE = {'float64': 0.5, 'complex64': 0.7, 'complex128': 0.3}  # of the FLOP/s of float32, on a CPU
# Numbers in a row from which XLA for CPU sums rows in strides, and seconds that each of their entries then takes.
_WIDE_ROW, _STRIDE = 16_384, 5e-9
# Seconds that adding one more row takes, however few columns there are, since a sum waits for the one before; and of
# wide rows for each column, since a few of them at a time are summed over all rows.
_ROW, _COLUMN, _COLUMNS = 3.1e-9, 3e-10, 256
# Seconds that an entry takes where the place of the largest is asked for, and in running sums; as multiples of these
# what is dearer.
_PLACED, _RUNNING = 3.7e-9, 4e-9
_STORED = 9e-11  # seconds of a FLOP of a sparse product, whose rows are gathered and scattered
_DEARER = {'cummax': 1.7, 'cummin': 1.7, 'cumlogsumexp': 60.0}
# Seconds that a sliding window takes for each of its places: of a picture's channels together, however few, then for
# each of them; and where channels lie apart.
_PLACE, _CHANNEL, _PLACE_APART = 7.5e-9, 2.5e-10, 4.3e-10
# Entries side by side below which XLA for CPU computes one by one what asks for its own place, and seconds that each
# takes then, where a ReLU stands before (two questions that nobody guesses right; without it half); of fewer than half
# as many each takes less.
_FEW, _EACH = 16, 9e-9
# XLA's own convolutions for CPU, as shares of what those of two axes reach: of three axes by channel, and at most;
# in groups by channel of one; the gradient of weights in groups, along one axis and along more, and of what was
# spread by zeros (transposed convolutions), which it computes number by number. `bench/xla_convolutions.py`.
_DEEP_CHANNEL, _DEEP_MOST, _DEEP_SPREAD = 1 / 190, 1 / 8, 1 / 4
_GROUP_CHANNEL, _GROUP_GRADIENT, _LINE_GRADIENT, _SPREAD_GRADIENT = 1 / 90, 1 / 300, 1 / 14, 1 / 55
KERNEL_SECONDS = 1.2e-6  # that one more kernel of a program costs
_CALL, _CALLED = 3e-5, 2e7  # processor seconds of calling a kernel in C, and the FLOPs from which a product is one

# By group, what a kernel takes as a multiple of what its rates alone would say.
FACTORS: dict[str, float] = {
  'products': 0.92,
  'small products': 0.97,
  'narrow products': 1.8,
  'batched products': 0.98,
  'ragged products': 2.2,
  'convolutions': 0.81,
  'convolutions apart': 1.14,
  'narrow convolutions': 1.4,
  'narrow convolutions apart': 2.3,
  'convolutions to weights': 0.77,
  'convolutions of three axes by XLA': 1.0,
  'convolutions in groups by XLA': 1.0,
  'gradients of groups by XLA': 1.0,
  'gradients of spread convolutions by XLA': 1.0,
  'depthwise': 0.47,
  'elementwise': 3.9,
  'transcendental': 1.35,
  'reductions': 1.3,
  'sums over wide rows': 1.0,
  'gradients of pools': 0.07,
  'gradients of pools apart': 0.47,
  'gradients of pools by XLA': 2.4,
  'few by place': 1.0,
  'windows': 1.0,
  'movement': 2.6,
  'transposes': 12.0,
  'gathers': 4.0,
  'scatters': 1.4,
  'sorting': 1.0,
  'random': 0.6,
  'linear algebra': 1.0,
  'kernels': 0.34,
  'calls': 1.0,
}


# By group, the standard deviation of the logarithm of what a factor leaves unsaid; that of groups with another name.
UNSURE: dict[str, float] = {
  'products': 0.1,
  'small products': 0.2,
  'convolutions': 0.15,
  'convolutions to weights': 0.15,
  'convolutions of three axes by XLA': 0.5,
  'convolutions in groups by XLA': 0.5,
  'gradients of groups by XLA': 1.0,
  'gradients of spread convolutions by XLA': 0.4,
  'linear algebra': 0.8,  # LAPACK's threads wait for each other, by far the most in small matrices
}
_UNSURE, _ALWAYS = 0.35, 0.1


class Spent(NamedTuple):
  """Seconds of some kernels.

  Attributes:
    wall: on a machine that does nothing else.
    processor: of all cores together.
  """

  wall: float
  processor: float


def spent(
  operations: Sequence[Operation],
  rates: Rates,
  cores: int,
  factors: Mapping[str, float] | None = None,
  kernels: bool = True,
) -> Spent:
  """Returns what kernels take, one after the other.

  Args:
    operations: of a program.
    rates: of the machine.
    cores: that a program may use.
    factors: in place of `FACTORS`.
    kernels: whether convolutions and large products that are not calls of C yet are made so, where it is faster.
  """
  used = FACTORS if factors is None else factors
  wall = processor = 0.0
  for group, (alone, together) in by_group(operations, rates, cores, kernels).items():
    factor = used.get(group, 1.0)
    wall, processor = wall + factor * together, processor + factor * alone
  return Spent(wall, processor)


def spread(
  operations: Sequence[Operation],
  rates: Rates,
  cores: int,
  kernels: bool = True,
) -> float:
  """Returns how sure what kernels take is: the standard deviation of the logarithm of their seconds.

  Each group is off in its own direction, by more where it was seen less often.

  Args:
    operations: of a program.
    rates: of the machine.
    cores: that a program may use.
    kernels: whether convolutions and large products that are not calls of C yet are made so, where it is faster.
  """
  parts = {
    group: FACTORS.get(group, 1.0) * alone for group, (alone, _) in by_group(operations, rates, cores, kernels).items()
  }
  total = sum(parts.values()) or 1.0
  off = sum((UNSURE.get(group, _UNSURE) * seconds / total) ** 2 for group, seconds in parts.items())
  return math.sqrt(_ALWAYS**2 + off)


def by_group(
  operations: Sequence[Operation], rates: Rates, cores: int, kernels: bool = True
) -> dict[str, tuple[float, float]]:
  """Returns (processor seconds, seconds on the wall) of each group of kernels, by the rates alone.

  Args:
    operations: of a program.
    rates: of the machine.
    cores: that a program may use.
    kernels: whether convolutions and large products that are not calls of C yet are made so, where it is faster.
  """
  single = rates.one_core or rates
  single = single._replace(more={**rates.more, **single.more})
  found: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
  beside = KERNEL_SECONDS * correction('kernels', single, True)
  for one in operations:
    group = group_of(one, kernels)
    in_c = kernels or one.primitive == 'ffi_call'
    together = _seconds(one, group, rates, in_c) * correction(group, rates, False)
    alone = together * (cores if _is_shared(one) else 1)
    if rates.one_core:
      alone = _seconds(one, group, single, in_c) * correction(group, single, True)
      together = _shared(one, together, alone, cores, in_c)
    found[group][0] += alone * one.times
    found[group][1] += together * one.times
    found['kernels'][0] += beside * one.times
    found['kernels'][1] += beside * one.times
    large = one.kind in ('convolutions', 'depthwise') or (one.kind == 'products' and one.flops > _CALLED)
    if in_c and rates.one_core and large:
      found['calls'][0] += _CALL * one.times
      found['calls'][1] += _CALL / min(cores, 2) * one.times
  return {group: (alone, together) for group, (alone, together) in found.items()}


def _shared(one: Operation, together: float, alone: float, cores: int, in_c: bool) -> float:
  """Seconds on the wall of what takes so many of one core, and by the rates of all cores together so many."""
  if not _is_shared(one):
    return alone
  if in_c and one.kind in ('convolutions', 'depthwise'):  # XLA's rates are of one thread
    together = alone / min(cores, _CHUNKS)
  elif one.kind in ('elementwise', 'transcendental', 'reductions', 'movement'):
    together = alone / min(cores, _STREAMS)
  return min(max(together, _UNEVEN * alone / max(1, cores)), alone)


def group_of(one: Operation, kernels: bool = True) -> str:
  """Returns which factor serves a kernel: kernels of one group are off in one direction.

  Args:
    one: the kernel.
    kernels: whether it takes a form of ours, where that is faster.

  >>> from jaxlite.planning.cost import cost
  >>> import jax
  >>> group_of(cost(jax.make_jaxpr(lambda x: x @ x)(jax.numpy.ones((32, 32)))).operations[0])
  'small products'
  """
  if one.kind in ('products', 'small products'):
    if one.primitive.startswith('ragged'):
      return 'ragged products'
    if one.sides and one.sides[0] > 1:
      return 'batched products'
    return 'narrow products' if one.sides and min(one.sides[1:]) < _NARROW else one.kind
  if one.kind == 'convolutions':
    groups, positions, summed, channels, places, apart, axes, spread, gathers = one.sides
    if spread > 1 and gathers and axes < 3 and not (kernels and groups == 1):  # else it is one of a strided one
      return 'gradients of spread convolutions by XLA'
    if not kernels and one.primitive != 'ffi_call':
      if axes > 2:
        return 'convolutions of three axes by XLA'
      if groups > 1:
        return f'{"gradients of" if positions < summed else "convolutions in"} groups by XLA'
    inputs = summed // max(1, places) if positions >= summed else positions // max(1, places)
    if min(channels, inputs) < _NARROW:
      return 'narrow convolutions apart' if apart else 'narrow convolutions'
    if apart:
      return 'convolutions apart'
    return 'convolutions to weights' if positions < summed else 'convolutions'
  if one.kind == 'reductions':
    if 'scatter' in one.primitive:
      if not kernels:
        return 'gradients of pools by XLA'
      _, apart, beside, _ = one.sides
      return 'gradients of pools apart' if apart else 'gradients of pools' if beside >= _FEW else 'few by place'
    if 'window' in one.primitive:
      return 'windows'
    return 'sums over wide rows' if one.sides and one.sides[0] > _WIDE_ROW else 'reductions'
  if one.strided:
    return 'transposes'
  if one.kind == 'elementwise' and one.sides and one.sides[-1] < _FEW:
    return 'few by place'
  if one.kind == 'movement':
    for name in ('sort', 'top_k'):
      if name in one.primitive:
        return 'sorting'
    if one.primitive.startswith('scatter'):
      return 'scatters'
    if one.primitive == 'gather':
      return 'gathers'
  return one.kind


def _is_shared(one: Operation) -> bool:
  """Whether several cores share a kernel."""
  if one.kind in ('products', 'convolutions', 'depthwise', 'linear algebra'):
    return True
  if one.kind == 'small products':
    return one.flops > 1e6
  if group_of(one) == 'sums over wide rows':
    return False
  return one.bytes + one.strided > _THREADED


def _seconds(one: Operation, group: str, rates: Rates, kernels: bool) -> float:
  """Of one run, by these rates."""
  if one.strided:
    return one.strided / rates.elementwise
  moving = one.bytes / _bandwidth(one.bytes, rates)
  return max(_computing(one, group, rates, kernels), moving)


def _bandwidth(size: float, rates: Rates) -> float:
  """Bytes a second, between those of the caches and those of memory."""
  if size <= _CACHED:
    return rates.elementwise
  far = min(1.0, math.log(size / _CACHED) / math.log(_FAR / _CACHED))
  return rates.elementwise ** (1 - far) * rates.memory**far


def _computing(one: Operation, group: str, rates: Rates, kernels: bool) -> float:
  kind, dtype = one.kind, one.dtype if one.dtype in ('bfloat16', 'int8') else 'float32'
  if dtype == 'bfloat16' and not kernels:  # XLA for CPU multiplies in float32
    dtype = 'float32'
  if kind in ('products', 'small products'):
    return one.padded / _of_products(one, rates, dtype)
  if kind == 'convolutions':
    best = rates.convolutions.get(dtype, rates.convolutions['float32'])
    if group == 'convolutions to weights':
      best = min(best, rates.more.get('convolution_gradients', best))
    return one.padded / best if not group.endswith('by XLA') else _by_xla(one, group, best)
  if kind == 'depthwise':
    best = rates.convolutions['float32'] / 4  # of a kernel in C, which stands in for XLA's where there is one
    return one.padded / (max(best, rates.depthwise) if kernels else rates.depthwise)
  if kind == 'linear algebra':
    return 4 * one.flops / rates.small_products['float32']
  if kind == 'random':
    return one.flops / 60 / rates.more.get('random', rates.transcendental)
  if group == 'reductions':
    passing = one.bytes / rates.more.get('reductions', rates.elementwise)
    if one.primitive.startswith('cum'):
      return max(passing, one.out * _RUNNING * _DEARER.get(one.primitive, 1.0))
    if one.primitive.startswith('arg'):
      return max(passing, one.flops / 2 * _PLACED)
    return max(passing, _rows(one)) + one.transcendentals / rates.transcendental
  if group == 'few by place':
    beside = one.sides[2] if kind == 'reductions' else one.sides[-1]
    return one.out * _EACH * min(1.0, 2 * beside / _FEW) * (max(1.0, one.sides[0] / 4) if kind == 'reductions' else 1.0)
  if group.startswith('gradients of pools'):
    again = one.sides[0] if one.sides[3] and kernels and not one.sides[1] else 1  # windows that overlap share entries
    return again * one.out / rates.more.get('pool_gradient', rates.elementwise / 64)
  if group == 'windows':
    places, apart, beside, _ = one.sides
    each = _PLACE_APART if apart else max(_PLACE, _CHANNEL * beside)
    return one.out / max(1, beside) * places * each
  if group == 'sums over wide rows':
    return one.sides[1] * _STRIDE
  if group == 'scatters' and 'scatter' in rates.more:
    return one.bytes / (768 * rates.more['scatter'])
  if one.primitive in SPARSE:
    return one.flops * _STORED
  if group == 'sorting':
    return 1_200 * one.flops / rates.elementwise  # a comparison waits for the one before
  return one.transcendentals / rates.transcendental + one.flops / rates.elementwise


def _by_xla(one: Operation, group: str, best: float) -> float:
  """Seconds of a convolution in a form of XLA for CPU that is none of its fast ones."""
  _, positions, summed, channels, places, _, axes, spread, _ = one.sides
  inputs = (summed if positions >= summed else positions) // max(1, places)
  if axes > 2:
    share = min(_DEEP_MOST, _DEEP_CHANNEL * max(1, min(channels, inputs)))
    return one.padded / best / (share * (_DEEP_SPREAD if spread > 1 else 1.0))
  if group == 'convolutions in groups by XLA':
    return one.padded / best / min(1.0, _GROUP_CHANNEL * max(1, inputs))
  if group == 'gradients of groups by XLA':
    return one.padded / best / (_LINE_GRADIENT if axes == 1 else _GROUP_GRADIENT)
  return one.flops / best / _SPREAD_GRADIENT


def _rows(one: Operation) -> float:
  """Seconds below which a sum over rows does not come; 0 of one along a row."""
  beside, entries = one.sides if one.kind == 'reductions' and len(one.sides) == 2 else (0, 0)
  if not beside:
    return 0.0
  each = _ROW if beside > 1 else 0.45 * _ROW
  return entries / beside * (each if beside < _COLUMNS else max(each, _COLUMN * beside))


def _of_products(one: Operation, rates: Rates, dtype: str) -> float:
  """FLOP/s of a product: from a small one's rate to a large one's, by its size."""
  small = rates.small_products.get(dtype, rates.small_products['float32'])
  large = rates.products.get(dtype, rates.products['float32'])
  each = max(1.0, one.padded / max(1, one.sides[0] if one.sides else 1))
  share = min(1.0, max(0.0, math.log(each / SMALL) / math.log(_LARGE / SMALL)))
  return small ** (1 - share) * large**share * each / (each + _TINY) * _WIDE.get(one.dtype, 1.0)
