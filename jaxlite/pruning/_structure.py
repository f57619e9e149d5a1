"""Structures: how the weights of a leaf come together into units that live or die as one.

Each takes the layout of a leaf, as `train_step` reads it off the model. Layers that a leaf stacks (by scan or vmap)
never compete with each other. In a foreign loop there is none, and the
defaults are those of (in, out) and HWIO kernels: outputs last, summed over second to last; say `axis=` elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlite.errors import number, whole
from jaxlite.graph.layouts import LeafLayout
from jaxlite.tasks import running


def _itself(scores: jax.Array, layout: LeafLayout | None) -> jax.Array:
  del layout
  return scores


def _spread_itself(units: jax.Array, shape: tuple[int, ...], layout: LeafLayout | None) -> jax.Array:
  del shape, layout
  return units


def _none(shape: tuple[int, ...], layout: LeafLayout | None) -> None:
  del shape, layout


class Structure(NamedTuple):
  """How a leaf is cut into units.

  Attributes:
    describe: its name in reports and errors.
    units: (scores of the weights, layout) -> scores of the units, float[...], non-negative.
    spread: (bool, which units live; shape of the leaf; layout) -> bool[shape].
    rivals: (shape of the leaf, layout) -> the axes of the units that compete; None for all.
    fixed: (shape, layout) -> how many units live in the end, where the structure itself says; else None.
    fewest: units that live whatever the sparsity.
    share: the sparsity that the structure itself asks for, None where any will do.
    pattern: (n, m) of N:M, else None.
    by_axes: it goes by the layout, so a weight of which none can be read is refused.
    stack: axes that are declared to stack layers, beside those of the layout.
  """

  describe: str
  units: Callable[[jax.Array, LeafLayout | None], jax.Array] = _itself
  spread: Callable[[jax.Array, tuple[int, ...], LeafLayout | None], jax.Array] = _spread_itself
  rivals: Callable[[tuple[int, ...], LeafLayout | None], tuple[int, ...] | None] = _none
  fixed: Callable[[tuple[int, ...], LeafLayout | None], int | None] = _none
  fewest: int = 0
  share: float | None = None
  pattern: tuple[int, int] | None = None
  by_axes: bool = False
  stack: tuple[int, ...] = ()


element = Structure('element')  # every weight is a unit


def is_element(structure: Structure) -> bool:
  """Tells whether every weight is a unit, in layers or not."""
  return structure._replace(describe=element.describe, stack=()) == element


def stacked(structure: Structure = element, *, axis: int | tuple[int, ...] = 0) -> Structure:
  """Declares axes along which a leaf stacks layers, where no program tells: each layer is then pruned by itself.

  A foreign loop shows arrays only, and the first layer of an ensemble over shared inputs is one wide layer to any
  reader of its program. Layers that a scan runs over, or a vmap over inputs of their own, need no declaring.

  Args:
    structure: of each layer.
    axis: the axis or axes.

  >>> stacked(n_m(2, 4), axis=0).describe
  '2:4 of each layer'
  """
  axes = (axis,) if isinstance(axis, int) else tuple(axis)
  return structure._replace(describe=f'{structure.describe} of each layer', stack=axes)


def per_output(axis: int | None = None) -> Structure:
  """Weights compete only with those of the same output, as Wanda asks: each output keeps the same share.

  Args:
    axis: the axis of the outputs; None takes the layout's, in a foreign loop the last.

  References:
    Sun et al., A Simple and Effective Pruning Approach for Large Language Models, 2023,
    https://arxiv.org/abs/2306.11695
  """

  def rivals(shape: tuple[int, ...], layout: LeafLayout | None) -> tuple[int, ...]:
    if axis is None and layout is not None:
      return layout.summed
    return tuple(one for one in range(len(shape)) if one != (-1 if axis is None else axis) % len(shape))

  return Structure('per output', rivals=rivals, by_axes=axis is None)


def channel(axis: int | None = None) -> Structure:
  """Whole output channels live or die, by the L2 norm of their scores; the last one always lives.

  Args:
    axis: the axis of the channels; None takes the layout's outputs, in a foreign loop the last axis.

  >>> import jax.numpy as jnp
  >>> channel().units(jnp.array([[3.0, 0.0], [4.0, 1.0]]), None).tolist()
  [[5.0, 1.0]]
  """

  def together(ndim: int, layout: LeafLayout | None) -> tuple[int, ...]:
    if axis is None and layout is not None:
      return layout.summed
    return tuple(one for one in range(ndim) if one != (-1 if axis is None else axis) % ndim)

  def units(scores: jax.Array, layout: LeafLayout | None) -> jax.Array:
    # Scaled, so that the squares of small scores do not vanish.
    wide = running.widened(scores)
    top = jnp.max(wide, axis=together(scores.ndim, layout), keepdims=True, initial=0.0)
    scaled = wide / jnp.where(top > 0, top, 1)
    return top * jnp.sqrt(jnp.sum(scaled**2, axis=together(scores.ndim, layout), keepdims=True))

  def spread(units: jax.Array, shape: tuple[int, ...], layout: LeafLayout | None) -> jax.Array:
    return jnp.broadcast_to(units, shape)

  return Structure('channel', units, spread, fewest=1, by_axes=axis is None)


def n_m(n: int, m: int, *, axis: int | None = None) -> Structure:
  """At most `n` of each `m` weights in a row along the contraction axis live: what sparse matrix units multiply.

  The summed axes count as one, in the order of the matrix product that a convolution is (space, then input
  channels). Where `m` does not divide it, the last group of r weights keeps its share, ceil(r * n / m). A gradual
  schedule first zeroes the smallest weights that the pattern has no place for, and ends at the pattern.

  Args:
    n: weights that live in a group, 1 to `m`.
    m: weights in a group.
    axis: the axis to group along; None takes the layout's summed axes, in a foreign loop the second to last axis.

  Raises:
    ValueError: n above m, or under 1.

  References:
    Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, https://arxiv.org/abs/2104.08378

  >>> import jax.numpy as jnp
  >>> n_m(1, 2).units(jnp.array([[1.0], [2.0], [4.0], [3.0], [5.0]]), None).ravel().tolist()
  [1.0, inf, inf, 3.0, inf]
  """
  n, m = number(n, 'n_m: n'), number(m, 'n_m: m')
  if not (isinstance(n, int) and isinstance(m, int) and 1 <= n <= m):
    raise ValueError(
      f'n_m: of each m weights n live, so they are integers and 1 <= n <= m; got n={n}, m={m}: 2:4 is n_m(2, 4)'
    )

  def along(ndim: int, layout: LeafLayout | None) -> tuple[int, ...]:
    if axis is not None:
      return (axis % ndim,)
    return layout.summed if layout is not None else (max(ndim - 2, 0),)

  def units(scores: jax.Array, layout: LeafLayout | None) -> jax.Array:
    """Scores in which those that the pattern keeps are infinite."""
    scores = jnp.where(jnp.isnan(scores), jnp.inf, scores)
    summed = along(scores.ndim, layout)
    order = (*(one for one in range(scores.ndim) if one not in summed), *summed)
    moved = jnp.transpose(scores, order)
    length = math.prod(scores.shape[one] for one in summed)
    lead = moved.shape[: scores.ndim - len(summed)]
    rows = moved.reshape(*lead, length)
    rows = jnp.pad(rows, [(0, 0)] * len(lead) + [(0, -length % m)], constant_values=-1)  # below every score
    groups = rows.reshape(*lead, -1, m)
    ahead = [1] * (groups.ndim - 2)
    place = jnp.arange(m).reshape(*ahead, 1, m)
    rank = jnp.zeros(groups.shape, jnp.int32)
    for other in range(m):  # how many of its group stand before it: larger, or equal and earlier
      rival = groups[..., other : other + 1]
      rank += ((rival > groups) | (rival == groups) & (other < place)).astype(jnp.int32)
    live = rank < jnp.asarray(_room(length, n, m)).reshape(*ahead, -1, 1)
    live = live.reshape(*lead, -1)[..., :length].reshape(moved.shape)
    live = jnp.transpose(live, tuple(order.index(one) for one in range(scores.ndim)))
    return jnp.where(live, jnp.inf, jnp.minimum(scores, jnp.finfo(scores.dtype).max))

  def fixed(shape: tuple[int, ...], layout: LeafLayout | None) -> int:
    summed = along(len(shape), layout)
    length = math.prod(shape[one] for one in summed)
    return sum(_room(length, n, m)) * (math.prod(shape) // max(length, 1))

  return Structure(f'{n}:{m}', units, fixed=fixed, share=1 - n / m, pattern=(n, m), by_axes=axis is None)


def _room(length: int, n: int, m: int) -> list[int]:
  """How many weights each group keeps."""
  tail = length % m
  return [n] * (length // m) + [-(-tail * n // m)] * (tail > 0)


def block(rows: int, columns: int) -> Structure:
  """Blocks of the last two axes live or die as one, by the mean of their scores.

  Args:
    rows: their extent along the second to last axis.
    columns: along the last. A block at the edge may be smaller.

  Raises:
    ValueError: an extent under 1.

  >>> import jax.numpy as jnp
  >>> block(2, 2).units(jnp.arange(6.0).reshape(2, 3), None).tolist()
  [[2.0, 3.5]]
  """
  rows, columns = whole(rows, 'block: rows', least=1), whole(columns, 'block: columns', least=1)

  def blocks(values: jax.Array) -> jax.Array:
    *lead, height, width = values.shape
    values = jnp.pad(values, [(0, 0)] * len(lead) + [(0, -height % rows), (0, -width % columns)])
    return values.reshape(*lead, -(-height // rows), rows, -(-width // columns), columns)

  def units(scores: jax.Array, layout: LeafLayout | None) -> jax.Array:
    if layout is not None and {scores.ndim - 2, scores.ndim - 1} & {*layout.stack(scores.ndim)}:
      raise ValueError(
        f'block: a block lies in one layer; a weight {scores.shape} stacks layers along its last two axes'
      )
    wide = running.widened(scores)
    return jnp.sum(blocks(wide), axis=(-3, -1)) / jnp.sum(blocks(jnp.ones_like(wide)), axis=(-3, -1))

  def spread(units: jax.Array, shape: tuple[int, ...], layout: LeafLayout | None) -> jax.Array:
    wide: Any = jnp.repeat(jnp.repeat(units, rows, axis=-2), columns, axis=-1)
    return wide[..., : shape[-2], : shape[-1]]

  return Structure(f'block of {rows} x {columns}', units, spread, fewest=1)
