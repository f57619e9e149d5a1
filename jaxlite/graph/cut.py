"""Values of which some entries were cut out, and what is known of the entries that are gone.

A cut value stands for a whole one: along some axes it holds the kept entries only. Of those that are gone it is known
that they are all one number (zero, where the weights that made them are), that they are all alike along the axis and
what they are, or nothing. So a sum over a cut axis can still be what the whole program would have summed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class CannotCutError(ValueError):
  """A program in which entries cannot be left out; the message names the equation and says why."""


class Same(NamedTuple):
  """Entries that are all this one number.

  Attributes:
    value: a NumPy scalar.
  """

  value: Any


class Cut(NamedTuple):
  """What is left along an axis.

  Attributes:
    kept: the entries that are left, ascending.
    size: of the whole axis.
    gone: what the others are: `Same`, an array of length 1 along the axis that stands for each, or None, not known.
  """

  kept: tuple[int, ...]
  size: int
  gone: Any = None

  @property
  def count(self) -> int:
    """How many entries are gone."""
    return self.size - len(self.kept)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Value:
  """An array, cut along some axes.

  Attributes:
    array: what is left.
    cuts: by axis.
    alike: the axes along which a whole value does not change (it was broadcast there).
    level: the number that a whole value is everywhere, where it is known.
  """

  array: Any
  cuts: Mapping[int, Cut] = dataclasses.field(default_factory=dict)
  alike: frozenset[int] = frozenset()
  level: Any = None

  @property
  def shape(self) -> tuple[int, ...]:
    """Of what is left."""
    return tuple(jnp.shape(self.array))

  def gone(self, axis: int) -> Any:
    """What the entries are that another value lacks along this axis: as in a Cut."""
    if axis in self.cuts:
      return self.cuts[axis].gone
    if self.level is not None:
      return Same(self.level)
    if not self.cuts and (axis in self.alike or self.shape[axis] == 1):
      return self.array if self.shape[axis] == 1 else lax.slice_in_dim(self.array, 0, 1, axis=axis)
    return None

  def tree_flatten(self) -> tuple[Any, Any]:
    """As JAX asks of a pytree: arrays are leaves, what is cut is structure."""
    arrays, static = [self.array], []
    for axis, cut in sorted(self.cuts.items()):
      is_array = cut.gone is not None and not isinstance(cut.gone, Same)
      arrays += [cut.gone] if is_array else []
      static.append((axis, cut._replace(gone='array' if is_array else cut.gone)))
    return arrays, (tuple(static), self.alike, self.level)

  @classmethod
  def tree_unflatten(cls, aux: Any, children: Sequence[Any]) -> Value:
    """The inverse."""
    array, *rest = children
    left = iter(rest)
    static, alike, level = aux
    cuts = {axis: cut._replace(gone=next(left)) if cut.gone == 'array' else cut for axis, cut in static}
    return cls(array, cuts, alike, level)


def is_zero(gone: Any) -> bool:
  """Tells whether what is gone is known to be zero.

  >>> is_zero(Same(np.float32(0))), is_zero(None)
  (True, False)
  """
  return isinstance(gone, Same) and not gone.value


def is_known(gone: Any) -> bool:
  """Tells whether anything is known of what is gone."""
  return gone is not None


def number(array: Any) -> Any:
  """The NumPy scalar that an array holds, where it is a plain number that is known now; else None."""
  if (
    isinstance(array, jax.core.Tracer) or np.ndim(array) or not isinstance(array, np.ndarray | np.generic | int | float)
  ):
    return None
  value = np.asarray(array)[()]
  return None if value != value else value


def full_size(value: Value, axis: int) -> int:
  """Returns the length of an axis of the whole value."""
  return value.cuts[axis].size if axis in value.cuts else value.shape[axis]


def take(value: Value, axis: int, cut: Cut, eqn: Any) -> Value:
  """Returns a value cut along one more axis like another one.

  Args:
    value: whole along the axis, or holding there at least what the other does.
    axis: of the value.
    cut: of the other value.
    eqn: that brings them together, for the error.

  Raises:
    CannotCutError: it keeps other entries.
  """
  own = value.cuts.get(axis)
  if own is not None and own.kept == cut.kept:
    return value
  if own is not None:  # cut further
    place = {entry: index for index, entry in enumerate(own.kept)}
    if not place.keys() >= set(cut.kept):
      raise cannot(eqn, 'its operands keep different entries of one axis')
    array, gone = kept_of(value.array, axis, tuple(place[entry] for entry in cut.kept)), None
  else:
    array, gone = kept_of(value.array, axis, cut.kept), value.gone(axis)
  cuts = {one: _less(old, axis) for one, old in value.cuts.items()}
  return Value(array, {**cuts, axis: Cut(cut.kept, cut.size, gone)}, value.alike, None)


def _less(cut: Cut, axis: int) -> Cut:
  """A cut of a value that was cut along another axis too: an array in place of what is gone is no longer kept."""
  return cut if isinstance(cut.gone, Same) else cut._replace(gone=None)


def kept_of(array: Any, axis: int, kept: Sequence[int]) -> Any:
  """Returns the kept entries of a whole array.

  >>> kept_of(np.arange(4), 0, (1, 2)).tolist()
  [1, 2]
  """
  if not kept or kept[-1] - kept[0] == len(kept) - 1:
    start = kept[0] if kept else 0
    if isinstance(array, np.ndarray):
      return array[(slice(None),) * axis + (slice(start, start + len(kept)),)]
    return lax.slice_in_dim(array, start, start + len(kept), axis=axis)
  if isinstance(array, np.ndarray):
    return np.take(array, np.asarray(kept), axis=axis)
  return jnp.take(array, np.asarray(kept), axis=axis, unique_indices=True, indices_are_sorted=True, mode='clip')


def gone_array(value: Value, axis: int) -> Any:
  """Returns what stands for the entries that are gone, as an array of length 1 along the axis; None where unknown."""
  gone = value.gone(axis)
  if isinstance(gone, Same):
    shape = tuple(1 if one == axis else size for one, size in enumerate(value.shape))
    return jnp.full(shape, gone.value, value.array.dtype)
  return gone


def forgetting(value: Value) -> Value:
  """Returns a value that knows of what is gone only where it is one number."""
  cuts = {axis: cut if isinstance(cut.gone, Same) else cut._replace(gone=None) for axis, cut in value.cuts.items()}
  return Value(value.array, cuts)


def joined(one: Mapping[int, Cut], other: Mapping[int, Cut], eqn: Any) -> dict[int, Cut]:
  """Returns the cuts of a value that is one or the other; what is gone is known where both say one number."""
  cuts = {}
  for axis in sorted({*one, *other}):
    first, second = one.get(axis), other.get(axis)
    if first is not None and second is not None and first.kept != second.kept:
      raise cannot(eqn, 'what it carries keeps other entries later on')
    cut = first if first is not None else second
    assert cut is not None
    agreed = first is not None and second is not None and isinstance(first.gone, Same) and first.gone == second.gone
    cuts[axis] = cut if agreed else cut._replace(gone=None)
  return cuts


def fitted(value: Value, cuts: Mapping[int, Cut], eqn: Any) -> Value:
  """Returns a value with exactly these cuts, of which it may know more."""
  for axis, cut in cuts.items():
    value = take(value, axis, cut, eqn)
  if set(value.cuts) != set(cuts):
    raise cannot(eqn, 'its parts are cut along different axes')
  return Value(value.array, dict(cuts))


def cannot(eqn: Any, why: str) -> CannotCutError:
  """Returns the error that names an equation.

  Args:
    eqn: the equation, or a name.
    why: what is wrong.
  """
  if isinstance(eqn, str):
    return CannotCutError(f'{eqn}: {why}')
  return CannotCutError(f'{named(eqn)}: {why}')


def named(eqn: Any) -> str:
  """Returns how an equation is called in reports: its primitive, its shapes and where it stands."""
  shapes = ', '.join(_typed(atom.aval) for atom in eqn.invars)
  scope = str(eqn.source_info.name_stack)
  return f'{eqn.primitive.name}({shapes}){f" in {scope}" if scope else ""}'


def _typed(aval: Any) -> str:
  return f'{getattr(aval, "dtype", "?")}{list(getattr(aval, "shape", ()))}'


# --- elementwise ---------------------------------------------------------------------------------------------------

ELEMENTWISE = frozenset(
  """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp conj complex
  convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac
  imag integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min mul name ne neg nextafter not or
  polygamma population_count pow real reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic
  shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh to_edtype xor pvary pcast""".split()  # noqa: SIM905 - a list of a hundred lines is not read
)


def bind(eqn: Any, operands: Sequence[Any], **changed: Any) -> list[Any]:
  """Binds an equation's primitive to other operands, with some parameters changed."""
  out = eqn.primitive.bind(*operands, **{**eqn.primitive.get_bind_params(eqn.params), **changed})
  return list(out) if eqn.primitive.multiple_results else [out]


def elementwise(eqn: Any, values: Sequence[Value], **changed: Any) -> list[Value]:
  """Runs an equation that computes each entry from the entries at its place."""
  rank = eqn.outvars[0].aval.ndim
  values = together(eqn, values, rank)
  cuts = {axis: cut for value in values if len(value.shape) == rank for axis, cut in value.cuts.items()}
  (array,) = bind(eqn, [value.array for value in values], **changed)
  wide = [value for value in values if len(value.shape) == rank]
  alike = frozenset(a for a in range(rank) if all(a in one.alike or one.level is not None for one in wide))
  if not cuts:
    level = None
    if all(value.level is not None for value in values):
      level = _of_numbers(eqn, [value.level for value in values])
    return [Value(array, {}, alike, level)]
  found = {axis: cut._replace(gone=_gone(eqn, values, axis, rank, len(cuts) == 1)) for axis, cut in cuts.items()}
  return [Value(array, found, alike - set(cuts))]


def together(eqn: Any, values: Sequence[Value], rank: int) -> list[Value]:
  """Returns operands of one shape with the cuts of all of them."""
  cuts: dict[int, Cut] = {}
  for value in values:
    if len(value.shape) == rank:
      for axis, cut in value.cuts.items():
        left = cuts.setdefault(axis, cut)
        if left.kept != cut.kept:  # zeros were put beside what one of them lost
          both = set(left.kept) & set(cut.kept)
          cuts[axis] = Cut(tuple(sorted(both)), cut.size)
    elif value.cuts:
      raise cannot(eqn, 'an operand of another rank is cut')
  out = []
  for value in values:
    if len(value.shape) == rank:
      for axis, cut in cuts.items():
        if axis in value.cuts or value.shape[axis] != 1 or cut.size == 1:  # a length of 1 is stretched
          value = take(value, axis, cut, eqn)
    out.append(value)
  return out


def _gone(eqn: Any, values: Sequence[Value], axis: int, rank: int, alone: bool) -> Any:
  """What an elementwise equation makes of the entries that are gone."""
  name = eqn.primitive.name
  gone = [value.gone(axis) if len(value.shape) == rank else _scalar(value) for value in values]
  if name in ('mul', 'and') and any(is_zero(one) for one in gone):
    return Same(np.zeros((), eqn.outvars[0].aval.dtype)[()])  # by what is finite
  if name == 'div' and is_zero(gone[0]) and not is_zero(gone[1]):
    return Same(np.zeros((), eqn.outvars[0].aval.dtype)[()])
  if name == 'select_n' and isinstance(gone[0], Same):  # it is known which: zeros stay zeros, say
    return gone[1 + int(gone[0].value)] if alone or isinstance(gone[1 + int(gone[0].value)], Same) else None
  if (
    name == 'select_n' and all(isinstance(one, Same) for one in gone[1:]) and len({one.value for one in gone[1:]}) == 1
  ):
    return gone[1]
  if all(isinstance(one, Same) for one in gone):
    result = _of_numbers(eqn, [one.value for one in gone])
    return None if result is None else Same(result)
  if not alone or any(one is None for one in gone):
    return None
  operands = [
    one if not isinstance(one, Same) else gone_array(value, axis) if len(value.shape) == rank else value.array
    for one, value in zip(gone, values, strict=True)
  ]
  return bind(eqn, operands)[0]


def _scalar(value: Value) -> Any:
  return Same(value.level) if value.level is not None else value.array


def _of_numbers(eqn: Any, numbers: Sequence[Any]) -> Any:
  """Computes with numbers now; None where the result is none."""
  params = tuple(sorted((name, value) for name, value in eqn.params.items() if _plain(value)))
  dtypes = tuple(str(atom.aval.dtype) for atom in eqn.invars)
  if len(params) < len(eqn.params):
    return None
  return _computed(eqn.primitive, params, tuple(numbers), dtypes)


def _plain(value: Any) -> bool:
  return value is None or isinstance(value, bool | int | float | str | np.dtype | tuple)


@functools.lru_cache(maxsize=4096)
def _computed(primitive: Any, params: Any, numbers: Any, dtypes: Any) -> Any:
  with jax.ensure_compile_time_eval():
    operands = [jnp.asarray(one, dtype) for one, dtype in zip(numbers, dtypes, strict=True)]
    result = np.asarray(primitive.bind(*operands, **dict(params)))[()]
  return None if result != result else result


Rule = Callable[[Any, list[Value]], list[Value]]
