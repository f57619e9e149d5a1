"""What an operation does to one entry, as an expression of C99.

Whole numbers wrap around by way of unsigned ones, so that nothing is left to the compiler; comparisons are written such
that a NaN stays one, as in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.c.text import number, type_of
from jaxlite.deployment.integers import rules as integer_rules
from jaxlite.deployment.operations.edges import to_even


class Expression(NamedTuple):
  """A template over the operands {0}, {1}, ... and whether every machine gives the same bits for it."""

  text: str
  exact: bool = True


_Dtypes = Sequence[np.dtype[Any]]
_Rule = Callable[[_Dtypes, np.dtype[Any], Mapping[str, Any]], Expression]

# Of one float32, by the standard library's function of the same name.
_MATH = 'exp exp2 log log1p expm1 cbrt tanh sin cos tan sinh cosh asin acos atan erf erfc'
_COMPARE = {'eq': '==', 'ne': '!=', 'lt': '<', 'le': '<=', 'gt': '>', 'ge': '>='}
_BITS = {'and': '&', 'or': '|', 'xor': '^'}
_SIGNS = {'add': '+', 'sub': '-', 'mul': '*'}


def floating(dtype: np.dtype[Any]) -> bool:
  return bool(np.issubdtype(dtype, np.floating))


def end(dtype: np.dtype[Any]) -> str:
  """What names of the mathematical functions end in."""
  return 'f' if dtype == np.float32 else ''


def wrapped(text: str, dtype: np.dtype[Any]) -> str:
  """A sum, difference or product of whole numbers, computed without a sign and brought back."""
  wide = 'uint64_t' if dtype.itemsize == 8 else 'uint32_t'
  kind = type_of(dtype, text)
  return f'({kind})({text.replace("{0}", f"({wide}){{0}}").replace("{1}", f"({wide}){{1}}")})'


def _sign(kind: str) -> _Rule:
  def rule(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
    if out == np.bool_:
      return Expression('({0} | {1})' if kind == 'add' else '({0} & {1})')
    text = f'{{0}} {_SIGNS[kind]} {{1}}'
    return Expression(f'({text})' if floating(out) else wrapped(text, out))

  return rule


def _math(name: str) -> _Rule:
  def rule(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
    if not floating(out):
      raise ValueError(f'{name} of {out.name} has no rule in a C99 file: compute it in float32')
    return Expression(f'{name}{end(out)}({{0}})', exact=False)

  return rule


def _same(text: str) -> _Rule:
  return lambda dtypes, out, told: Expression(text)


def _power(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  times = told['y']
  if not floating(out):
    if times < 0:
      raise ValueError('a negative power of whole numbers has no rule in a C99 file: compute it in float32')
    text = ' * '.join(['{0}'] * times) if times else '1'
    return Expression(wrapped(text, out))
  if abs(times) > 8:
    return Expression(f'pow{end(out)}({{0}}, {number(times, out)})', exact=False)
  product = ' * '.join(['{0}'] * abs(times)) if times else number(1, out)
  return Expression(f'({product})' if times >= 0 else f'({number(1, out)} / ({product}))', exact=times in (0, 1, 2, -1))


def _pow(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  if not floating(out):
    raise ValueError('a power of whole numbers has no rule in a C99 file: compute it in float32')
  c = type_of(out, 'pow')
  return Expression(f'pow{end(out)}(({c}){{0}}, ({c}){{1}})', exact=False)


def _div(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  if floating(out):
    return Expression('({0} / {1})')
  kind = type_of(out, 'div')
  if out.kind == 'u':
    return Expression(f'({{1}} == 0 ? ({kind})-1 : ({kind})({{0}} / {{1}}))')
  wide = 'uint64_t' if out.itemsize == 8 else 'uint32_t'
  safe = f'{{1}} == -1 ? ({kind})(0u - ({wide}){{0}}) : ({kind})({{0}} / {{1}})'  # the least by -1 would not fit
  return Expression(f'({{1}} == 0 ? ({kind})-1 : {safe})')


def _rem(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  if floating(out):
    return Expression(f'fmod{end(out)}({{0}}, {{1}})')
  kind = type_of(out, 'rem')
  left = f'({kind})({{0}} % {{1}})'
  if out.kind != 'u':
    left = f'({{1}} == -1 ? ({kind})0 : {left})'
  return Expression(f'({{1}} == 0 ? {{0}} : {left})')


def largest(a: str, b: str, dtype: np.dtype[Any], sign: str = '>') -> str:
  """The larger of two (the smaller with '<'), a NaN where there is one."""
  nan = f' || {a} != {a}' if floating(dtype) else ''
  return f'({a} {sign} {b}{nan} ? {a} : {b})'


def _round(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  even = to_even(told['rounding_method'])
  return Expression(f'{"rint" if even else "round"}{end(out)}({{0}})') if floating(out) else Expression('{0}')


def _abs(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  if floating(out):
    return Expression(f'fabs{end(out)}({{0}})')
  if out.kind in 'bu':
    return Expression('{0}')
  wide = 'uint64_t' if out.itemsize == 8 else 'uint32_t'
  return Expression(f'({{0}} < 0 ? ({type_of(out, "abs")})(0u - ({wide}){{0}}) : {{0}})')


def _signum(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  if floating(out):
    kind = type_of(out, 'sign')
    return Expression(f'({{0}} != {{0}} ? {{0}} : ({kind})(({{0}} > 0) - ({{0}} < 0)))')
  return Expression(f'({type_of(out, "sign")})(({{0}} > 0) - ({{0}} < 0))' if out.kind == 'i' else '({0} != 0)')


def _neg(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  wide = 'uint64_t' if out.itemsize == 8 else 'uint32_t'
  return Expression('(-{0})' if floating(out) else f'({type_of(out, "neg")})(0u - ({wide}){{0}})')


def _not(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  return Expression('(!{0})' if out == np.bool_ else f'({type_of(out, "not")})(~{{0}})')


def cast(source: np.dtype[Any], out: np.dtype[Any], text: str = '{0}') -> str:
  """A conversion: what a whole number cannot hold becomes the nearest that it can, a NaN becomes 0, as in XLA."""
  kind = type_of(out, 'a conversion')
  if source == out:
    return text
  if out == np.bool_:
    return f'({text} != 0)'
  if floating(source) and not floating(out):
    info, suffix = np.iinfo(out), source
    low, above = number(float(info.min), suffix), number(float(info.max) + 1 if info.bits < 64 else 2.0**63, suffix)
    if info.bits == 64 and info.min == 0:
      above = number(2.0**64, suffix)
    most, least = number(info.max, out), number(info.min, out)
    inside = f'{text} >= {above} ? {most} : {text} <= {low} ? {least} : ({kind}){text}'
    return f'({text} != {text} ? 0 : {inside})'
  return f'({kind}){text}'


def _select(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  text = f'{{{len(dtypes) - 1}}}'
  for index in reversed(range(1, len(dtypes) - 1)):
    text = f'({{0}} == {index - 1} ? {{{index}}} : {text})'
  return Expression(text)


def _clip(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  low, high = number(told['low'], out), number(told['high'], out)
  return Expression(f'({{0}} < {low} ? {low} : {{0}} > {high} ? {high} : {{0}})')


def _clamp(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  return Expression(largest(largest('{1}', '{0}', out), '{2}', out, '<'))


def _logistic(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  one = number(1, out)
  return Expression(f'({one} / ({one} + exp{end(out)}(-{{0}})))', exact=False)


# --- quantized values -------------------------------------------------------------------------------------------------


def grid(told: Mapping[str, Any], name: str = 'zero_point') -> int:
  """A zero point that an int8 grid can have.

  Raises:
    ValueError: it is another.
  """
  point = told.get(name, 0)
  if int(point) != point or not -128 <= point <= 127:
    raise ValueError(f'a zero point is a whole number from -128 to 127; got {name}={point}')
  return int(point)


def edges(told: Mapping[str, Any], name: str) -> tuple[str, str, int]:
  """What bounds a value before its zero point is added, and that.

  Raises:
    ValueError: bounds that int8 does not hold.
  """
  point, low, high = grid(told, name), told.get('low', -128), told.get('high', 127)
  if not -128 <= low <= high <= 127 or int(low) != low or int(high) != high:
    raise ValueError(f'bounds of an int8 value are whole numbers from -128 to 127; got {low} and {high}')
  return number(low - point, 'float32'), number(high - point, 'float32'), point


def whole(operand: str, point: int) -> str:
  """A stored value without its zero point, as int32."""
  return f'((int32_t){operand} - {point})' if point > 0 else f'((int32_t){operand} + {-point})'


def leaving(total: str, factor: str, told: Mapping[str, Any]) -> str:
  """What leaves a sum: `integer_rules.leaves`."""
  if told.get('y_scale') is None:
    return f'@_product((float){total}, {factor})'
  low, high, point = edges(told, 'y_zero_point')
  return f'(int8_t)(@_nearest(@_product((float){total}, {factor}), {low}, {high}) + {point})'


def _quantize(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  low, high, point = edges(told, 'zero_point')
  inverse = number(np.float32(1) / np.float32(told['scale']), 'float32')
  x = '{0}' if dtypes[0] == np.float32 else '(float){0}'
  return Expression(f'(int8_t)(@_nearest(@_known(@_product({x}, {inverse})), {low}, {high}) + {point})')


def _dequantize(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  if len(dtypes) == 2:
    return Expression('@_product((float){0}, {1})')
  scale = number(np.float32(told['scale']), 'float32')
  return Expression(f'@_product((float){whole("{0}", grid(told))}, {scale})')


def _requantize(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  factor = integer_rules.multiplier(told['x_scale'], 1.0, told['y_scale'])
  return Expression(leaving(whole('{0}', grid(told, 'x_zero_point')), number(factor, 'float32'), told))


def _quantized_add(dtypes: _Dtypes, out: np.dtype[Any], told: Mapping[str, Any]) -> Expression:
  a, b, factor = integer_rules.add_factors(told['a_scale'], told['b_scale'], told['y_scale'])
  left, right = whole('{0}', grid(told, 'a_zero_point')), whole('{1}', grid(told, 'b_zero_point'))
  return Expression(leaving(f'({left} * {a} + {right} * {b})', number(factor, 'float32'), told))


RULES: dict[str, _Rule] = {
  **{kind: _sign(kind) for kind in _SIGNS},
  **{kind: _math(kind) for kind in _MATH.split()},
  **{kind: _same(f'({{0}} {sign} {{1}})') for kind, sign in (_COMPARE | _BITS).items()},
  'max': lambda dtypes, out, told: Expression(largest('{0}', '{1}', out)),
  'min': lambda dtypes, out, told: Expression(largest('{0}', '{1}', out, '<')),
  'neg': _neg,
  'abs': _abs,
  'sign': _signum,
  'not': _not,
  'floor': lambda dtypes, out, told: Expression(f'floor{end(out)}({{0}})'),
  'ceil': lambda dtypes, out, told: Expression(f'ceil{end(out)}({{0}})'),
  'sqrt': lambda dtypes, out, told: Expression(f'sqrt{end(out)}({{0}})'),
  'rsqrt': lambda dtypes, out, told: Expression(f'({number(1, out)} / sqrt{end(out)}({{0}}))'),
  'square': lambda dtypes, out, told: Expression('({0} * {0})' if floating(out) else wrapped('{0} * {0}', out)),
  'atan2': lambda dtypes, out, told: Expression(f'atan2{end(out)}({{0}}, {{1}})', exact=False),
  'pow': _pow,
  'rem': _rem,
  'div': _div,
  'round': _round,
  'integer_pow': _power,
  'logistic': _logistic,
  'is_finite': lambda dtypes, out, told: Expression('(isfinite({0}) != 0)'),
  'convert_element_type': lambda dtypes, out, told: Expression(cast(dtypes[0], out)),
  'select_n': _select,
  'clamp': _clamp,
  'relu': lambda dtypes, out, told: Expression('{0}' if out.kind in 'bu' else '({0} < 0 ? 0 : {0})'),
  'clip': _clip,
  'quantize': _quantize,
  'dequantize': _dequantize,
  'requantize': _requantize,
  'quantized_add': _quantized_add,
}
