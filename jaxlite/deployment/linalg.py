"""Calls of linear algebra in a compiled program: whether their arrays have the sizes that LAPACK takes them to have.

The functions that jaxlib calls take their sizes from one array and read and write the others: a program in which these
are smaller, which JAX never makes, ends the process. Sizes are known once a program is compiled for one batch size.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Shape = tuple[int, ...]
MARK = 'lapack_'  # in the text of a program that calls it
_LINE = re.compile(r' = (.*?) custom-call\(.*custom_call_target="(lapack_[sdcz]([a-z]+)_ffi)"(.*)')
_ARRAY = re.compile(r'\b[a-z]+[0-9]*\[([0-9,]*)\]')
_FLAG = re.compile(r'\b(mode|side)\W+(\d+)')


def check_sizes(lowered: Any) -> None:
  """Raises ValueError where a program, as `jax.stages.Lowered`, calls LAPACK with arrays that do not fit each other."""
  if target := other_sizes(lowered.compile().as_text()):
    raise ValueError(f'it calls {target} with arrays of other sizes than JAX ever does, so a stranger made it')


def other_sizes(text: str) -> str:
  """Returns the name of a call of LAPACK whose arrays do not fit each other; '' where there is none.

  Args:
    text: of a compiled program, as `jax.stages.Compiled.as_text` gives it.

  >>> line = '%a = (f32[3,3]{0,1}, s32[3]{0}, s32[]) custom-call(%b), custom_call_target="lapack_sgetrf_ffi", '
  >>> other_sizes(line + 'operand_layout_constraints={f32[3,3]{0,1}}, api_version=API_VERSION_TYPED_FFI')
  ''
  >>> other_sizes(line + 'operand_layout_constraints={f32[9,9]{0,1}}, api_version=API_VERSION_TYPED_FFI')
  'lapack_sgetrf_ffi'
  """
  for results, target, kind, rest in _LINE.findall(text):
    _, _, constraints = rest.partition('operand_layout_constraints={')
    operands = _shapes(constraints.partition('}}')[0])
    flags = {name: chr(int(value)) for name, value in _FLAG.findall(rest)}
    if not _fits(kind, operands, _shapes(results), flags):
      return target
  return ''


def _shapes(text: str) -> list[Shape]:
  return [tuple(int(size) for size in sizes.split(',') if size) for sizes in _ARRAY.findall(text)]


def _fits(kind: str, operands: list[Shape], results: list[Shape], flags: dict[str, str]) -> bool:
  if not operands or (kind != 'gtsv' and len(operands[0]) < 2):
    return False
  first = operands[0]
  if kind == 'gtsv':
    bands, right = operands[:3], operands[3:]
    one = len(right) == 1 and len(set(bands)) == 1 and right[0][:-1] == bands[0]
    return one and results == [*bands, *right, bands[0][:-1]]
  *batch, rows, columns = first
  info, less = tuple(batch), min(rows, columns)
  if kind in ('orgqr', 'ungqr'):
    count = operands[1][-1] if len(operands) == 2 and operands[1] else rows + 1
    return operands[1] == (*batch, count) and rows >= columns >= count and results == [first]
  if kind == 'trsm':
    if len(operands) != 2 or len(operands[1]) != len(first) or rows != columns:
      return False
    along = operands[1][-2 if flags.get('side') == 'L' else -1]
    return operands[1][:-2] == info and rows == along and results == [operands[1]]
  if kind == 'gesdd':
    full, thin = [(rows, rows), (columns, columns)], [(rows, less), (less, columns)]
    allowed = {'A': [full], 'S': [thin], 'N': [full, thin]}.get(flags.get('mode', ''), [])
    return any(results == [first, (*batch, less), (*batch, *u), (*batch, *v), info] for u, v in allowed)
  wanted = _RESULTS.get(kind)
  if wanted is None or len(operands) != 1 or (kind not in ('getrf', 'geqrf') and rows != columns):
    return False
  return results in [[shape(first, info, less) for shape in one] for one in wanted]


def _same(first: Shape, info: Shape, less: int) -> Shape:
  return first


def _info(first: Shape, info: Shape, less: int) -> Shape:
  return info


def _each(first: Shape, info: Shape, less: int) -> Shape:
  return *info, less


def _between(first: Shape, info: Shape, less: int) -> Shape:
  return *info, max(0, less - 1)


_RESULTS: dict[str, list[list[Callable[[Shape, Shape, int], Shape]]]] = {
  'potrf': [[_same, _info]],
  'getrf': [[_same, _each, _info]],
  'geqrf': [[_same, _each]],
  'syevd': [[_same, _each, _info]],
  'heevd': [[_same, _each, _info]],
  'geev': [[_each, _each, _same, _same, _info], [_each, _same, _same, _info]],
  'gees': [[_same, _same, _each, _each, _info, _info], [_same, _same, _each, _info, _info]],
  'gehrd': [[_same, _between, _info]],
  'sytrd': [[_same, _each, _between, _between, _info]],
  'hetrd': [[_same, _each, _between, _between, _info]],
}
