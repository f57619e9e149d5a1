"""Convolutions as matrix products and in batch chunks: the forms that XLA:CPU runs faster than its own.

Four cases. A weight gradient is a convolution whose contraction runs over the batch and whose kernel is the whole
gradient of the output: XLA:CPU is slow at it, most of all where pictures are spread out (`spread.py`). So it is at
depthwise convolutions and their gradients. And inside a loop
every convolution is slow, since XLA:CPU has only a naive path there; matrix products keep their speed. A forward
convolution of many channels outside of loops is a kernel's where there is a C compiler (oneDNN's if that extra is
installed and channels lie last, else ours), else XLA's own; where it sums a few products (gray pictures; without a
kernel color pictures too) it is one fused sum; in a teacher it is always XLA's own: its bits are what the same network
gives when it is called alone.

All forms sum in a fixed order and in fixed chunks, whatever the number of threads.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlite.cpu import spread
from jaxlite.cpu.fusion import alone, held
from jaxlite.cpu.kernels import choose, match
from jaxlite.cpu.site import XLA_FORM, Site, Where, describe, shapes_of, xla_form
from jaxlite.graph.contractions import flops_of

_CHUNKS = 4  # each is an operation to compile: eight are hardly faster and take twice the time at a start
_PLACES = 64  # unrolled in the program: more would make a long one
_GROUPS = 16  # likewise
_FEW, _TERMS = 4, 48  # channels, and channels times places, up to which a sum of products is quicker than XLA's own
_AGAIN = 9  # terms up to which the sum may be computed again in each of its readers, sooner than written and read
_TINY = 1e5  # FLOPs below which nothing is gained, in a loop neither: XLA's own bits stay, the same in both
_PATCHES = 64 << 20  # bytes: shifted copies side by side take as many times the memory as a kernel has places

_Form = Callable[[jax.Array, jax.Array], jax.Array]


def site(eqn: Any, where: Where) -> Site | None:
  """Returns the site of a `conv_general_dilated`; None where only XLA's own form is sure, or good enough.

  Args:
    eqn: the equation.
    where: it stands. A forward convolution of a network apart is left alone, if it is in no loop.
  """
  looped = where.looped
  lhs, rhs = (atom.aval for atom in eqn.invars)
  sizes = (*lhs.shape, *rhs.shape, *eqn.outvars[0].aval.shape)
  if lhs.dtype != rhs.dtype or lhs.dtype.name not in ('float32', 'float64', 'bfloat16'):
    return None
  if eqn.params['preferred_element_type'] not in (None, lhs.dtype) or eqn.params['out_sharding'] is not None:
    return None
  if not all(isinstance(size, int) and size > 0 for size in sizes):
    return None
  if (other := spread.exchanged(eqn)) is not None:
    return _of_spread(eqn, site(other, where), other, looped)
  if match.is_weight_gradient(eqn):
    kind, (forms, default) = 'weight gradient', _of_weight_gradient(eqn, looped)
  elif looped or _is_backward(eqn):
    kind, (forms, default) = 'convolution', _of_any(eqn, looped)
  elif not where.apart:
    kind, (forms, default) = 'convolution', _of_forward(eqn)
  else:
    return None
  if lhs.dtype == 'bfloat16':  # a sum of products would round each of them; a kernel rounds once
    forms, default = {}, XLA_FORM
  if flops_of(eqn) >= _TINY:
    kernel = choose.forms(eqn)
    if default != 'outer' or _terms(eqn) > _AGAIN:  # else it is fused with what reads it, which a call cannot be
      default = next(iter(kernel), default)
    forms = {**forms, **kernel}
  if not forms:
    return None
  kind += ' in a loop' if looped else ''
  flops = flops_of(eqn)
  default = default if flops >= _TINY else XLA_FORM
  return Site(kind, _key(kind, eqn), shapes_of(eqn), forms, default, xla_form(eqn), flops=flops, looped=looped)


def _of_spread(eqn: Any, other: Site | None, turned: Any, looped: bool) -> Site | None:
  """The site of a transposed convolution's weight gradient, out of that of the gradient which sums the same."""
  if flops_of(turned) < _TINY:
    return None
  forms = dict(other.forms) if other else {}
  if not looped and eqn.invars[0].aval.dtype != 'bfloat16':
    forms['exchanged'] = xla_form(turned)
  if not forms:
    return None
  default = other.default if other and other.default in forms else next(reversed(forms))
  forms = {name: spread.restored(eqn, form) for name, form in forms.items()}
  kind, flops = 'weight gradient' + (' in a loop' if looped else ''), flops_of(turned)
  return Site(kind, _key(kind, eqn), shapes_of(eqn), forms, default, xla_form(eqn), flops=flops, looped=looped)


def _key(kind: str, eqn: Any) -> str:
  names = ('window_strides', 'padding', 'lhs_dilation', 'rhs_dilation', 'feature_group_count', 'batch_group_count')
  words = [*eqn.params['dimension_numbers'], *(eqn.params[name] for name in names)]
  return describe(kind, eqn, *(str(word).replace(' ', '') for word in words))


def _is_backward(eqn: Any) -> bool:
  return 'transpose(' in str(eqn.source_info.name_stack)


def _of_weight_gradient(eqn: Any, looped: bool) -> tuple[dict[str, _Form], str]:
  numbers, groups = eqn.params['dimension_numbers'], eqn.params['batch_group_count']
  lhs, out = eqn.invars[0].aval, eqn.outvars[0].aval
  batch, channels = (lhs.shape[axis] for axis in (numbers.lhs_spec[1], numbers.lhs_spec[0]))
  places = math.prod(out.shape[axis] for axis in numbers.out_spec[2:])
  positions = math.prod(eqn.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:])
  forms: dict[str, _Form] = {}
  if places > _PLACES:
    return {}, XLA_FORM
  if looped or places == 1 or groups > 1:
    forms['gemm'] = functools.partial(_gradient_by_places, eqn.params)
  fits = channels * places * positions * batch * lhs.dtype.itemsize <= _PATCHES
  depthwise = groups > 1 and groups == channels
  sums = out.size * positions * lhs.dtype.itemsize  # one a position of an example, for each entry of the kernel
  if depthwise and batch >= 2 * _CHUNKS and sums <= _PATCHES:
    forms['examples'] = functools.partial(_gradient_by_examples, eqn.params)
  if groups == 1 and places > 1 and channels < (16 if looped else 4) and fits:
    forms['channels_first'] = functools.partial(_gradient_channels_first, eqn.params)
  if looped:
    return forms, next(name for name in ('examples', 'channels_first', 'gemm') if name in forms)
  if batch >= 2 * _CHUNKS and groups == 1:
    forms['chunks'] = functools.partial(_gradient_by_chunks, eqn.params)
  if 1 < groups <= _GROUPS:
    forms['groups'] = functools.partial(_gradient_by_groups, eqn.params)
  strided = max(eqn.params['rhs_dilation']) > 1  # the stride of the forward convolution
  if groups > 1:
    wanted = 'groups' if not depthwise else 'examples' if 'examples' in forms else 'gemm'
  elif places == 1:
    wanted = 'gemm'
  elif channels == 1:
    wanted = 'channels_first'
  else:
    wanted = 'chunks' if channels >= 32 or strided else XLA_FORM
  return forms, wanted if wanted in forms else XLA_FORM


def _terms(eqn: Any) -> int:
  """Products that are summed into one entry of a convolution."""
  kernel = eqn.invars[1].aval
  return kernel.size // kernel.shape[eqn.params['dimension_numbers'].rhs_spec[0]]


def _of_few_channels(eqn: Any) -> tuple[dict[str, _Form], str]:
  numbers = eqn.params['dimension_numbers']
  kernel = eqn.invars[1].aval
  grouped = eqn.params['feature_group_count'] > 1 or eqn.params['batch_group_count'] > 1
  if grouped or kernel.shape[numbers.rhs_spec[1]] > _FEW or _terms(eqn) > _TERMS:
    return {}, XLA_FORM
  return {'outer': functools.partial(_by_outer_products, eqn.params)}, 'outer'


def _of_forward(eqn: Any) -> tuple[dict[str, _Form], str]:
  return _of_any(eqn, looped=False) if eqn.params['feature_group_count'] > 1 else _of_few_channels(eqn)


def _of_any(eqn: Any, looped: bool) -> tuple[dict[str, _Form], str]:
  numbers, groups = eqn.params['dimension_numbers'], eqn.params['feature_group_count']
  kernel, out = eqn.invars[1].aval, eqn.outvars[0].aval
  channels = kernel.shape[numbers.rhs_spec[1]]
  places = math.prod(kernel.shape[axis] for axis in numbers.rhs_spec[2:])
  depthwise = groups > 1 and channels == 1
  if eqn.params['batch_group_count'] > 1 or places > _PLACES or not (looped or depthwise):
    return {}, XLA_FORM
  by_places = functools.partial(_by_places, eqn.params)
  # Of a depthwise kernel it is elementwise, and reads each entry at every place: what stands before would be fused in.
  forms: dict[str, _Form] = {'gemm': alone(by_places) if depthwise else by_places}
  rows = out.size // out.shape[numbers.out_spec[1]]
  if groups == 1 and places > 1 and rows * channels * places * out.dtype.itemsize <= _PATCHES:
    forms['patches'] = functools.partial(_by_patches, eqn.params)
  few, _ = _of_few_channels(eqn)
  return {**forms, **few}, next((name for name in ('outer', 'patches') if name in {**forms, **few}), 'gemm')


def _channels_last(params: Any, x: jax.Array, spec: Sequence[int], steps: Sequence[int]) -> jax.Array:
  """The left operand as [first, space..., last] of `spec`, dilated and padded; padding may crop."""
  x = jnp.transpose(x, (spec[0], *spec[2:], spec[1]))
  room = [(low, high, step - 1) for (low, high), step in zip(params['padding'], steps, strict=True)]
  return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *room, (0, 0, 0)])


def _views(x: jax.Array, places: Sequence[int], gap: Sequence[int], count: Sequence[int], step: Sequence[int]) -> Any:
  """By place of a window, one entry of every window: [first, count..., last] of x [first, space..., last]."""
  for place in itertools.product(*map(range, places)):
    start = tuple(map(operator.mul, place, gap))
    end = [a + (n - 1) * s + 1 for a, n, s in zip(start, count, step, strict=True)]
    yield place, lax.slice(x, (0, *start, 0), (x.shape[0], *end, x.shape[-1]), (1, *step, 1))


def _back(x: jax.Array, spec: Sequence[int]) -> jax.Array:
  """[first, space..., last] in the axes that `spec` gives to first, last and space."""
  axes = (spec[0], *spec[2:], spec[1])
  return jnp.transpose(x, tuple(axes.index(axis) for axis in range(len(axes))))


def _parts(params: Any, lhs: jax.Array, rhs: jax.Array) -> tuple[Iterator[Any], jax.Array, int]:
  """The views that a kernel meets, the kernel [space..., in, out], and its groups."""
  numbers = params['dimension_numbers']
  kernel = jnp.transpose(rhs, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
  x = _channels_last(params, lhs, numbers.lhs_spec, params['lhs_dilation'])
  count = _count(params, x.shape[1:-1], kernel.shape[:-2])
  views = _views(x, kernel.shape[:-2], params['rhs_dilation'], count, params['window_strides'])
  return views, kernel, params['feature_group_count']


def _count(params: Any, space: Sequence[int], kernel: Sequence[int]) -> list[int]:
  steps = zip(space, kernel, params['rhs_dilation'], params['window_strides'], strict=True)
  return [(size - (k - 1) * gap - 1) // stride + 1 for size, k, gap, stride in steps]


def _by_places(params: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
  """One matrix product for each place of the kernel; of a depthwise kernel, one multiplication."""
  views, kernel, groups = _parts(params, lhs, rhs)
  channels, features = kernel.shape[-2:]

  def meet(view: jax.Array, weights: jax.Array) -> jax.Array:
    if groups == 1:
      return lax.dot_general(view, weights, (((view.ndim - 1,), (0,)), ((), ())), precision=params['precision'])
    split = view.reshape(*view.shape[:-1], groups, channels)
    weights = weights.reshape(channels, groups, features // groups)
    if channels == 1:
      found = split * weights[0]
    else:
      axes = (((split.ndim - 1,), (0,)), ((split.ndim - 2,), (1,)))
      found = jnp.moveaxis(lax.dot_general(split, weights, axes, precision=params['precision']), 0, -2)
    return found.reshape(*view.shape[:-1], features)

  total = functools.reduce(operator.add, [meet(view, kernel[place]) for place, view in views])
  return _back(total, params['dimension_numbers'].out_spec)


def _by_outer_products(params: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
  """One multiplication for each place and channel, all in one fused sum: nothing is laid side by side.

  It is written in the axes of the result: XLA takes it into whatever reads it, a transpose too, and would then compute
  it in an order that no vector unit likes.
  """
  numbers = params['dimension_numbers']
  x_spec, out_spec = numbers.lhs_spec, numbers.out_spec
  kernel = jnp.transpose(rhs, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
  room = [(0, 0, 0)] * lhs.ndim
  for axis, (low, high), step in zip(x_spec[2:], params['padding'], params['lhs_dilation'], strict=True):
    room[axis] = (low, high, step - 1)
  x = lax.pad(lhs, jnp.zeros((), lhs.dtype), room)
  count = _count(params, [x.shape[axis] for axis in x_spec[2:]], kernel.shape[:-2])
  turn = [x_spec[out_spec.index(axis)] for axis in range(lhs.ndim)]
  wide = [kernel.shape[-1] if axis == out_spec[1] else 1 for axis in range(lhs.ndim)]
  terms = []
  for place in itertools.product(*map(range, kernel.shape[:-2])):
    for channel in range(kernel.shape[-2]):
      start, ends, steps = [0] * x.ndim, list(x.shape), [1] * x.ndim
      start[x_spec[1]], ends[x_spec[1]] = channel, channel + 1
      spaces = zip(x_spec[2:], place, params['rhs_dilation'], params['window_strides'], count, strict=True)
      for axis, at, gap, step, n in spaces:
        start[axis], steps[axis] = at * gap, step
        ends[axis] = at * gap + (n - 1) * step + 1
      view = lax.transpose(lax.slice(x, start, ends, steps), turn)
      terms.append(view * kernel[place][channel].reshape(wide))
  found = functools.reduce(operator.add, terms)
  return found if out_spec[1] == lhs.ndim - 1 and len(terms) <= _AGAIN else held(found)


def _by_patches(params: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
  """All places side by side, then one matrix product."""
  views, kernel, _ = _parts(params, lhs, rhs)
  patches = jnp.concatenate([view for _, view in views], -1)
  weights = kernel.reshape(-1, kernel.shape[-1])
  found = lax.dot_general(patches, weights, (((patches.ndim - 1,), (0,)), ((), ())), precision=params['precision'])
  return _back(found, params['dimension_numbers'].out_spec)


def _laid(params: Any, lhs: jax.Array, rhs: jax.Array) -> tuple[jax.Array, jax.Array, tuple[int, ...], Any]:
  """Of a weight gradient: the padded image [B, space..., C], the outputs' gradient [B, space..., features], the
  kernel's own space, and the function that cuts an image into views. What the program calls a stride is the gap between
  places, and its dilation of the right operand the stride."""
  numbers = params['dimension_numbers']
  flipped = (numbers.lhs_spec[1], numbers.lhs_spec[0], *numbers.lhs_spec[2:])
  x = _channels_last(params, lhs, flipped, params['lhs_dilation'])
  slope = jnp.transpose(rhs, (numbers.rhs_spec[1], *numbers.rhs_spec[2:], numbers.rhs_spec[0]))
  count = slope.shape[1:-1]
  kernel = tuple(_count(params, x.shape[1:-1], count))
  cut = functools.partial(_views, places=kernel, gap=params['window_strides'], count=count, step=params['rhs_dilation'])
  return x, slope, kernel, cut


def _examples(params: Any, lhs: jax.Array, rhs: jax.Array) -> tuple[Iterator[Any], jax.Array, tuple[int, ...]]:
  """Of a weight gradient: the views [B, space..., C] by place of the kernel, and what else `_laid` gives."""
  x, slope, kernel, cut = _laid(params, lhs, rhs)
  return cut(x), slope, kernel


def _gradient_by_places(params: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
  """One matrix product over batch and positions for each place of the kernel."""
  views, slope, kernel = _examples(params, lhs, rhs)
  groups, features = params['batch_group_count'], slope.shape[-1]
  summed = tuple(range(slope.ndim - 1))

  def meet(view: jax.Array) -> jax.Array:
    channels = view.shape[-1] // groups
    if groups == 1:
      return lax.dot_general(view, slope, ((summed, summed), ((), ())), precision=params['precision'])
    split, wide = (x.reshape(*x.shape[:-1], groups, -1) for x in (view, slope))
    if channels == 1:
      return (split * wide).sum(summed).reshape(1, features)
    axes = ((summed, summed), ((split.ndim - 2,), (wide.ndim - 2,)))
    found = lax.dot_general(split, wide, axes, precision=params['precision'])  # [groups, channels, features of one]
    return jnp.moveaxis(found, 0, 1).reshape(channels, features)

  return _laid_out(params, jnp.stack([meet(view) for _, view in views]), kernel)


def _gradient_by_examples(params: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
  """For a depthwise kernel: products of one example after the other, added where they stand, and over positions last.

  XLA:CPU sums over leading axes many times slower than it adds arrays.
  """
  groups = params['batch_group_count']
  x, slope, kernel, cut = _laid(params, lhs, rhs)

  def add(sums: list[jax.Array], example: tuple[jax.Array, jax.Array]) -> tuple[list[jax.Array], None]:
    one, by = example
    by = by.reshape(*by.shape[:-1], groups, -1)
    return [total + view[0, ..., None] * by for total, (_, view) in zip(sums, cut(one[None]), strict=True)], None

  shape = (*slope.shape[1:-1], groups, slope.shape[-1] // groups)
  sums, _ = lax.scan(add, [jnp.zeros(shape, slope.dtype)] * math.prod(kernel), (x, slope))
  found = jnp.stack([total.sum(tuple(range(total.ndim - 2))).reshape(1, -1) for total in sums])
  return _laid_out(params, found, kernel)


def _gradient_channels_first(params: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
  """For few input channels: each place and channel a row, as long as batch and positions, and one matrix product."""
  views, slope, kernel = _examples(params, lhs, rhs)
  rows = jnp.stack([jnp.moveaxis(view, -1, 0) for _, view in views])
  places, channels = rows.shape[:2]
  found = jnp.matmul(
    rows.reshape(places * channels, -1), slope.reshape(-1, slope.shape[-1]), precision=params['precision']
  )
  return _laid_out(params, found.reshape(places, channels, -1), kernel)


def _laid_out(params: Any, found: jax.Array, kernel: tuple[int, ...]) -> jax.Array:
  """[places, channels, features] in the axes of the result."""
  found = jnp.moveaxis(found.reshape(*kernel, *found.shape[1:]), -2, 0)
  return _back(found, params['dimension_numbers'].out_spec)


def _gradient_by_chunks(params: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
  """XLA's own gradients of parts of the batch, added from first to last."""
  axes = (params['dimension_numbers'].lhs_spec[1], params['dimension_numbers'].rhs_spec[1])
  batch = lhs.shape[axes[0]]
  size = -(-batch // _CHUNKS)
  parts = [_native(params, _cut(lhs, axes[0], i, size), _cut(rhs, axes[1], i, size)) for i in range(0, batch, size)]
  return functools.reduce(operator.add, parts)


def _gradient_by_groups(params: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
  """One gradient for each group of channels."""
  numbers, groups = params['dimension_numbers'], params['batch_group_count']
  alone = {**params, 'batch_group_count': 1}
  one, other = lhs.shape[numbers.lhs_spec[0]] // groups, rhs.shape[numbers.rhs_spec[0]] // groups
  parts = [
    _native(alone, _cut(lhs, numbers.lhs_spec[0], i * one, one), _cut(rhs, numbers.rhs_spec[0], i * other, other))
    for i in range(groups)
  ]
  return jnp.concatenate(parts, numbers.out_spec[1])


def _cut(x: jax.Array, axis: int, start: int, size: int) -> jax.Array:
  return lax.slice_in_dim(x, start, min(start + size, x.shape[axis]), axis=axis)


def _native(params: Any, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
  return lax.conv_general_dilated_p.bind(lhs, rhs, **params)
