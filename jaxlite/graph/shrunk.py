"""Leaves cut along their axes, and programs run on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.graph.coupled import Family, Program
from jaxlite.graph.cut import CannotCutError, Cut, Same, Value, cannot, fitted, kept_of
from jaxlite.graph.cut_flow import run

Kept = Mapping[tuple[int, int], tuple[int, ...]]  # (leaf, axis) -> the entries that stay
Zeros = Callable[[int, int], bool]  # (leaf, axis) -> whether what goes there is zero


def kept_entries(
  families: Sequence[Family], removed: Sequence[Sequence[int]], shapes: Sequence[Sequence[int]]
) -> dict[tuple[int, int], tuple[int, ...]]:
  """Returns which entries stay when units are removed.

  Args:
    families: as `couple` gives them.
    removed: for each family its units that go, by index.
    shapes: of the leaves.
  """
  gone: dict[tuple[int, int], set[int]] = {}
  for family, units in zip(families, removed, strict=True):
    for unit in units:
      for member, entries in zip(family.members, family.units[unit], strict=True):
        gone.setdefault(member, set()).update(entries)
  return {
    (leaf, axis): tuple(one for one in range(shapes[leaf][axis]) if one not in entries)
    for (leaf, axis), entries in sorted(gone.items())
  }


def cut_leaf(array: Any, leaf: int, kept: Kept) -> Any:
  """Returns what stays of a leaf."""
  for (one, axis), entries in kept.items():
    if one == leaf:
      array = kept_of(array, axis, entries)
  return array


def cut_shape(shape: Sequence[int], leaf: int, kept: Kept) -> tuple[int, ...]:
  """Returns the shape of what stays of a leaf."""
  sizes = {axis: len(entries) for (one, axis), entries in kept.items() if one == leaf}
  return tuple(sizes.get(axis, size) for axis, size in enumerate(shape))


def _cuts(leaf: int, shape: Sequence[int], dtype: Any, kept: Kept, zeros: Zeros) -> dict[int, Cut]:
  zero = Same(np.zeros((), dtype)[()])
  return {
    axis: Cut(entries, shape[axis], zero if zeros(leaf, axis) else None)
    for (one, axis), entries in kept.items()
    if one == leaf
  }


def replay(program: Program, arrays: Sequence[Any], kept: Kept, zeros: Zeros) -> list[Any]:
  """Runs a program on leaves that are cut.

  Args:
    program: of the whole leaves.
    arrays: its inputs; what is a leaf is cut.
    kept: what the leaves keep.
    zeros: of which leaves what is gone counts as zero.

  Returns:
    Its outputs; what is a leaf is cut likewise.

  Raises:
    CannotCutError: an equation needs what is gone, or an output is cut.
  """
  given = []
  for leaf, array, aval in zip(program.ins, arrays, program.jaxpr.in_avals, strict=True):
    cuts = {} if leaf is None else _cuts(leaf, aval.shape, aval.dtype, kept, zeros)
    given.append(Value(array, cuts))
  out = []
  for leaf, value, aval in zip(program.outs, run(program.jaxpr, given), program.jaxpr.out_avals, strict=True):
    if leaf is None and value.cuts:
      raise cannot('the output', 'it would lose entries')
    if leaf is not None and leaf >= 0:
      value = fitted(value, _cuts(leaf, aval.shape, aval.dtype, kept, lambda leaf, axis: False), 'a leaf')
    out.append(value.array)
  return [array if isinstance(array, jax.Array) else jnp.asarray(array) for array in out]


def refusal(programs: Sequence[Program], kept: Kept, zeros: Zeros) -> str:
  """Tells why programs cannot do without what is gone; '' where all can."""
  for program in programs:
    shapes = [
      jax.ShapeDtypeStruct(aval.shape if leaf is None else cut_shape(aval.shape, leaf, kept), aval.dtype)
      for leaf, aval in zip(program.ins, program.jaxpr.in_avals, strict=True)
    ]
    try:
      jax.eval_shape(lambda arrays, program=program: replay(program, arrays, kept, zeros), shapes)
    except CannotCutError as error:
      return str(error)
  return ''
