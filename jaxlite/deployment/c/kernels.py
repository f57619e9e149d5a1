"""The inner loops of contractions in C: rows of entries side by side times weights, summed for several outputs at once.

They are what gcc and clang turn into the machine's own products: floats side by side over outputs, whose order of sums
stays; integers along the depth of a row.
"""

from __future__ import annotations

TILE = 16  # outputs whose float weights stand together


def rows_function(size: int, kind: str) -> str:
  """Returns the C function of `size` outputs of each row: 'f' float, 'd' double, 'q' float with int8 weights."""
  c, w = ('double', 'double') if kind == 'd' else ('float', 'int8_t' if kind == 'q' else 'float')
  scale = f'const {c} *restrict scale, ' if kind == 'q' else ''
  factor = ' * scale[o]' if kind == 'q' else ''

  def block(rows: int) -> list[str]:
    names = [f's{index}' for index in range(rows)]
    return [
      *(f'const {c} *restrict x{index} = x + (r + {index}) * x_step;' for index in range(rows)),
      f'{c} {", ".join(f"{name}[{size}]" for name in names)};',
      f'for (long o = 0; o < {size}; ++o) {" = ".join(f"{name}[o]" for name in names)} = 0;',
      'for (long k = 0; k < depth; ++k)',
      f'  for (long o = 0; o < {size}; ++o) {{',
      f'    const {c} v = ({c})w[k * {size} + o];',
      *(f'    {name}[o] += x{index}[k] * v;' for index, name in enumerate(names)),
      '  }',
      f'for (long o = 0; o < {size}; ++o) {{',
      f'  const {c} more = bias ? bias[o] : 0;',
      *(f'  y[(r + {index}) * y_step + o] = {name}[o]{factor} + more;' for index, name in enumerate(names)),
      '}',
    ]

  lines = [
    f'static void @_rows{size}{kind}(const {c} *restrict x, long x_step, const {w} *restrict w, const {c} *bias,',
    f'    {scale}{c} *restrict y, long y_step, long rows, long depth) {{',
    '  const long whole = rows - rows % 4;',  # so that gcc sees what is left, and warns of no loop without end
    '  for (long r = 0; r < whole; r += 4) {',
    *('    ' + line for line in block(4)),
    '  }',
    '  for (long r = whole; r < rows; ++r) {',
    *('    ' + line for line in block(1)),
    '  }',
    '}',
  ]
  return '\n'.join(lines)


def sums_function(outputs: int) -> str:
  """Returns the C function of sums of int8 weights, for as many outputs at once, of rows in pairs."""

  def block(rows: int) -> list[str]:
    names = [[f's{row}{output}' for output in range(outputs)] for row in range(rows)]
    joins = [
      f'{names[row][output]} += (int32_t)x{row}[k] * w{output}[k];' for output in range(outputs) for row in range(rows)
    ]
    stores = [
      f'y[{row} * width + {output}] = {names[row][output]};' for row in range(rows) for output in range(outputs)
    ]
    return [
      *(f'const int16_t *restrict x{row} = x + (r + {row}) * depth;' for row in range(rows)),
      'for (long b = 0; b < blocks; ++b) {',
      *(f'  const int8_t *restrict w{output} = w + (b * {outputs} + {output}) * depth;' for output in range(outputs)),
      f'  int32_t {", ".join(f"{name} = 0" for row in names for name in row)};',
      '  for (long k = 0; k < depth; ++k) {',
      *('    ' + join for join in joins),
      '  }',
      f'  int32_t *restrict y = sums + r * width + b * {outputs};',
      *('  ' + store for store in stores),
      '}',
    ]

  lines = [
    f'/* Sums of rows times the int8 weights of {outputs} outputs at once; those of the next row are `width` apart. */',
    f'static void @_sums{outputs}(const int16_t *restrict x, const int8_t *restrict w, int32_t *restrict sums,',
    '    long rows, long depth, long blocks, long width) {',
    '  const long pairs = rows / 2;',
    '  for (long pair = 0; pair < pairs; ++pair) {',
    '    const long r = pair * 2;',
    *('    ' + line for line in block(2)),
    '  }',
    '  if (rows % 2 != 0) {',
    '    const long r = rows - 1;',
    *('    ' + line for line in block(1)),
    '  }',
    '}',
  ]
  return '\n'.join(lines)


def sums_calls(x: str, w: str, y: str, rows: str, depth: int, width: int) -> list[str]:
  """Calls that fill sums [rows, width] at `y`: four outputs at once, then the rest."""
  fours = width // 4
  lines = [f'@_sums4({x}, {w}, {y}, {rows}, {depth}, {fours}, {width});'] if fours else []
  if width % 4:
    whole = fours * 4
    lines.append(f'@_sums{width % 4}({x}, {w} + {whole * depth}, {y} + {whole}, {rows}, {depth}, 1, {width});')
  return lines
