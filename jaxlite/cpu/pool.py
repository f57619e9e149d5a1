"""Max-pooling: its gradient without a search per window, its value by shifted slices.

XLA:CPU runs `select_and_scatter` as a loop over windows that compares and scatters element by element. Here the winner
of every window is found by comparing k shifted views of the whole array in window order, which vectorizes, and the
gradient is laid back without a scatter. The same winner (the first of equals), the same order of summation where
windows overlap: the same gradient as XLA's own, entry by entry.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlite.cpu.fusion import held
from jaxlite.cpu.site import Site, describe, shapes_of, xla_form

_TAPS = 32  # a window of more entries would make a long program
_FLOATS = ('float16', 'bfloat16', 'float32', 'float64')
_SUMS = ('float32', 'float64')  # in half precision XLA may keep a running sum in another dtype


def gradient(eqn: Any) -> Site | None:
  """Returns the site of a `select_and_scatter_add`; None where only XLA's own form is sure."""
  source, operand = (atom.aval for atom in eqn.invars)
  windows = _windows(eqn.params, operand.shape, source.shape)
  if windows is None or eqn.params['select_prim'].name != 'ge' or operand.dtype.name not in _FLOATS:
    return None
  if windows.window == windows.stride and not windows.padded and windows.window[-1] == 1:
    form = functools.partial(_spread, windows)
  elif windows.apart or source.dtype.name in _SUMS:
    form = functools.partial(_woven, windows)
  else:
    return None
  return _site('max-pool gradient', eqn, windows, 'compare', form)


def value(eqn: Any) -> Site | None:
  """Returns the site of a `reduce_window_max`; None where only XLA's own form is sure."""
  (operand,) = (atom.aval for atom in eqn.invars)
  dilated = {*eqn.params['base_dilation'], *eqn.params['window_dilation']} != {1}
  windows = None if dilated else _windows(eqn.params, operand.shape, eqn.outvars[0].aval.shape)
  if windows is None or operand.dtype.name not in _FLOATS:
    return None
  form = functools.partial(_largest, windows)
  return _site('max-pool', eqn, windows, 'slices', form)


def _site(kind: str, eqn: Any, windows: _Windows, name: str, form: Any) -> Site:
  key = describe(kind, eqn, *windows)
  return Site(kind, key, shapes_of(eqn), {name: form}, name, xla_form(eqn), exact=True)


class _Windows(NamedTuple):
  """How windows lie, by axis."""

  window: tuple[int, ...]
  stride: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]
  count: tuple[int, ...]

  @property
  def apart(self) -> bool:
    return all(size <= step for size, step in zip(self.window, self.stride, strict=True))

  @property
  def padded(self) -> bool:
    return any(low or high for low, high in self.padding)

  def places(self) -> list[tuple[int, ...]]:
    """The places in a window, in the order in which XLA looks at them."""
    return list(itertools.product(*map(range, self.window)))

  def view(self, padded: jax.Array, place: Sequence[int]) -> jax.Array:
    """One place of every window: shape `count`."""
    steps = zip(place, self.count, self.stride, strict=True)
    return lax.slice(padded, place, [start + (n - 1) * step + 1 for start, n, step in steps], self.stride)


def _windows(params: Any, shape: Sequence[Any], count: Sequence[Any]) -> _Windows | None:
  """What the parameters say; None for windows that are large, empty, cropped or wholly in the padding."""
  windows = _Windows(params['window_dimensions'], params['window_strides'], params['padding'], tuple(count))
  if not all(isinstance(size, int) and size > 0 for size in (*shape, *count)) or math.prod(windows.window) > _TAPS:
    return None
  for size, n, window, step, (low, high) in zip(shape, count, *windows[:3], strict=True):
    if min(low, high) < 0 or low >= window or (n - 1) * step - low >= size:
      return None
  return windows


def _padded(windows: _Windows, x: jax.Array) -> jax.Array:
  if not windows.padded:
    return x
  return lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(low, high, 0) for low, high in windows.padding])


def _exactly(form: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Half precision in float32: the same numbers, as each sum has one term that is not zero. XLA:CPU would round after
  each operation."""

  @functools.wraps(form)
  def run(windows: _Windows, first: jax.Array, *rest: jax.Array) -> jax.Array:
    if first.dtype.itemsize >= 4:
      return form(windows, first, *rest)
    return form(windows, *(x.astype(jnp.float32) for x in (first, *rest))).astype(first.dtype)

  return run


@_exactly
def _largest(windows: _Windows, x: jax.Array) -> jax.Array:
  """Held, or XLA takes all the slices, and what made them, into each reader of the result."""
  padded = _padded(windows, x)
  return held(functools.reduce(lax.max, [windows.view(padded, place) for place in windows.places()]))


def _winners(windows: _Windows, x: jax.Array) -> jax.Array:
  """Which place wins each window: int32[count]. A later place wins only where the best is not at least as large, as
  natively: the first of equals, and what follows a NaN, be it padding."""
  padded, (first, *places) = _padded(windows, x), windows.places()
  best, winner = windows.view(padded, first), jnp.zeros(windows.count, jnp.int32)
  for index, place in enumerate(places, 1):
    candidate = windows.view(padded, place)
    stays = lax.ge(best, candidate)
    best = lax.select(stays, best, candidate)
    winner = lax.select(stays, winner, jnp.full(windows.count, index, jnp.int32))
  return winner


@_exactly
def _spread(windows: _Windows, source: jax.Array, operand: jax.Array) -> jax.Array:
  """Windows that neither overlap nor leave the array: every entry asks whether it is its window's winner. The question
  has the shape of the array: reshaped afterwards, XLA would not fuse it with the mask of a ReLU before the pool."""
  wide = [size for pair in zip(windows.count, windows.window, strict=True) for size in pair]
  covered = [n * window for n, window in zip(windows.count, windows.window, strict=True)]
  kept = range(0, len(wide), 2)
  winner, value = (lax.broadcast_in_dim(x, wide, kept).reshape(covered) for x in (_winners(windows, operand), source))
  place, stride = jnp.zeros(covered, jnp.int32), 1
  for axis in reversed(range(operand.ndim)):
    place += stride * (lax.broadcasted_iota(jnp.int32, covered, axis) % windows.window[axis])
    stride *= windows.window[axis]
  laid = lax.select(winner == place, value, jnp.zeros_like(value))
  rest = [(0, size - there, 0) for size, there in zip(operand.shape, covered, strict=True)]
  return lax.pad(laid, jnp.zeros((), laid.dtype), rest)


def _woven(windows: _Windows, source: jax.Array, operand: jax.Array) -> jax.Array:
  """Any windows. An entry q of the padded array is place t of window o where q = o * stride + t, so entries of one
  remainder q % stride are sums of shifted arrays of the windows' own shape; these are woven together."""
  winner = _winners(windows, operand)
  zero, zeros = jnp.zeros((), source.dtype), jnp.zeros_like(source)
  number = {place: index for index, place in enumerate(windows.places())}
  longest = [-(-window // step) for window, step in zip(windows.window, windows.stride, strict=True)]
  extent = [n + longer - 1 for n, longer in zip(windows.count, longest, strict=True)]

  def entries(remainder: tuple[int, ...]) -> jax.Array:
    places = [place for place in number if tuple(map(operator.mod, place, windows.stride)) == remainder]
    total = jnp.zeros(extent, source.dtype)
    for place in reversed(places):  # the last place belongs to the first window: XLA adds windows in their order
      shifts = [t // step for t, step in zip(place, windows.stride, strict=True)]
      won = lax.select(winner == number[place], source, zeros)
      room = [(shift, length - n - shift, 0) for shift, length, n in zip(shifts, extent, windows.count, strict=True)]
      total += lax.pad(won, zero, room)
    return total

  def woven(remainder: tuple[int, ...]) -> jax.Array:
    axis = len(remainder)
    if axis == operand.ndim:
      return entries(remainder)
    parts = [woven((*remainder, r)) for r in range(windows.stride[axis])]
    if len(parts) == 1:
      return parts[0]
    shape = list(parts[0].shape)
    shape[axis] *= len(parts)
    return jnp.stack(parts, axis + 1).reshape(shape)

  whole = woven(())
  sizes = zip(windows.padding, operand.shape, whole.shape, strict=True)
  return lax.pad(whole, zero, [(-low, low + size - length, 0) for (low, _), size, length in sizes])
