"""Frozen weights in few bits: how a base that never learns is kept, and how its values come back.

Each matrix [rows, columns] of a leaf is kept by column, cut into groups of rows that share a scale. Eight bits are a
byte; four bits are two to a byte, the first half of a column's rows in the low ones. Whatever is not finite makes its
whole group NaN, so that a loss shows it.

References:
  Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, 2023, https://arxiv.org/abs/2305.14314
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite.graph.model import KEPT_AS
from jaxlite.graph.routes import Matrix

Q, SCALE = KEPT_AS
KINDS = ('int8', 'int4', 'nf4')


@functools.cache
def levels() -> np.ndarray:
  """Returns the 16 values of NF4: quantiles of a normal, zero among them, the largest 1.

  >>> levels().round(3).tolist()[5:9]
  [-0.1850000023841858, -0.09099999815225601, 0.0, 0.07999999821186066]
  """
  normal, offset = statistics.NormalDist(), 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
  above = [normal.inv_cdf(share) for share in np.linspace(offset, 0.5, 9)[:-1]]
  below = [-normal.inv_cdf(share) for share in np.linspace(offset, 0.5, 8)[:-1]]
  found = np.sort(np.array([*above, 0.0, *below]))
  return (found / found.max()).astype(np.float32)


class Form(NamedTuple):
  """How a leaf is kept.

  Attributes:
    kind: 'int8', 'int4' or 'nf4'.
    matrix: its axes.
    dtype: its own.
    group: rows that share a scale.
  """

  kind: str
  matrix: Matrix
  dtype: str
  group: int

  @classmethod
  def of(cls, kind: str, matrix: Matrix, dtype: Any, group: int | None) -> Form:
    """Returns a form whose groups are of nearly `group` rows each; None is one a column."""
    rows = matrix.sizes[1]
    groups = 1 if group is None else -(-rows // group)
    even = -(-rows // groups)
    return cls(kind, matrix, str(jnp.dtype(dtype)), even + even % 2 if kind != 'int8' else even)

  @property
  def groups(self) -> int:
    """How many groups a column has."""
    return -(-self.matrix.sizes[1] // self.group)


@functools.partial(jax.jit, static_argnums=0)
def store(form: Form, leaf: jax.Array) -> dict[str, jax.Array]:
  """Returns what is kept of a leaf.

  Returns:
    {'jl.q': int8[*stack, columns, rows] or, in four bits, uint8[*stack, columns, rows / 2], 'jl.scale':
    float[*stack, columns, groups]}; rows filled up to whole groups.

  >>> form = Form.of('int8', Matrix((2, 1), (0,), (1,)), 'float32', None)
  >>> store(form, jnp.array([[0.5], [-1.0]]))['jl.q'].tolist()
  [[64, -127]]
  """
  stack, rows, _ = form.matrix.sizes
  columns = jnp.swapaxes(form.matrix.matrices(leaf), -1, -2).astype(jnp.float32)
  short = form.groups * form.group - rows
  columns = jnp.pad(columns, [(0, 0)] * (len(stack) + 1) + [(0, short)]) if short else columns
  grouped = columns.reshape((*columns.shape[:-1], form.groups, form.group))
  most = {'int8': 127.0, 'int4': 7.0, 'nf4': 1.0}[form.kind]
  scale = jnp.max(jnp.abs(grouped), axis=-1, keepdims=True) / most
  if form.kind != 'int8':
    scale = scale.astype(jnp.bfloat16)
  wide = scale.astype(jnp.float32)
  steps = jnp.where(wide == 0, 0.0, grouped / jnp.where(wide == 0, 1.0, wide))
  if form.kind == 'nf4':
    q = jnp.zeros(steps.shape, jnp.uint8)
    for middle in (levels()[1:] + levels()[:-1]) / 2:
      q = q + (steps > middle).astype(jnp.uint8)
  else:
    q = jnp.clip(jnp.round(steps), -most, most).astype(jnp.int8)
  q = q.reshape(columns.shape)
  if form.kind != 'int8':
    codes = (q + 8).astype(jnp.uint8) if form.kind == 'int4' else q
    low, high = jnp.split(codes, 2, axis=-1)
    q = low | (high << 4)
  return {Q: q, SCALE: scale[..., 0]}


def restore(form: Form, stored: Mapping[str, jax.Array], depth: int = 0) -> jax.Array:
  """Returns the values of a leaf, or of a slice that a scan cut off its first `depth` axes, in the leaf's dtype.

  >>> form = Form.of('nf4', Matrix((4, 1), (0,), (1,)), 'float32', None)
  >>> restore(form, store(form, jnp.array([[0.0], [-1.0], [1.0], [0.1]]))).ravel().round(2).tolist()
  [0.0, -1.0, 1.0, 0.07999999821186066]
  """
  matrix = form.matrix.inside(depth)
  if matrix is None:
    raise ValueError(f'a slice along the first {depth} axes cuts the matrices of {list(form.matrix.shape)}')
  q = stored[Q]
  if form.kind != 'int8':
    q = jnp.concatenate([q & 15, q >> 4], axis=-1)
  if form.kind == 'nf4':
    # Chosen, not looked up: the program shows where each value lies. In bare operations: functions of jax.numpy are
    # calls, and in a call that may not be inlined none of theirs are, so that each would keep its result.
    steps = lax.full(q.shape, levels()[0])
    for code, level in enumerate(levels()[1:], 1):
      steps = lax.select(lax.eq(q, lax.full_like(q, code)), lax.full_like(steps, level), steps)
  else:
    steps = q.astype(jnp.float32) - (8 if form.kind == 'int4' else 0)
  grouped = steps.reshape((*q.shape[:-1], form.groups, form.group)) * stored[SCALE].astype(jnp.float32)[..., None]
  columns = grouped.reshape(q.shape)[..., : matrix.sizes[1]]
  return matrix.leaf(jnp.swapaxes(columns, -1, -2)).astype(form.dtype)


def is_stored(node: Any) -> bool:
  """Tells whether a node of a tree is a leaf in few bits."""
  return isinstance(node, dict) and set(node) == {Q, SCALE}
