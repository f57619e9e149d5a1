"""The text of a C99 file: steps as functions, constants as arrays, static memory, and what it says of itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlite.deployment.c import arena as c_arena
from jaxlite.deployment.c import convolutions as c_convolutions
from jaxlite.deployment.c import kernels as c_kernels
from jaxlite.deployment.c import moves as c_moves
from jaxlite.deployment.c import products as c_products
from jaxlite.deployment.c import reductions as c_reductions
from jaxlite.deployment.c import scalars as c_scalars
from jaxlite.deployment.c import steps as c_steps
from jaxlite.deployment.c.steps import Builder
from jaxlite.deployment.c.text import comment, name_of, numbers, string, text_constant, type_of
from jaxlite.deployment.operations import Graph, pruned, sized
from jaxlite.version import __version__

_PRODUCTS = {
  'dense': c_products.dense,
  'quantized_dense': c_products.quantized_dense,
  'dot_general': c_products.dot_general,
  'quantized_dot': c_products.quantized_dot,
  'conv': c_convolutions.conv,
  'quantized_conv': c_convolutions.quantized_conv,
}
RULES = {
  **dict.fromkeys(c_scalars.RULES, c_steps.each),
  **c_moves.RULES,
  **c_reductions.RULES,
  **_PRODUCTS,
}

# What arithmetic needs, each written where it is used.
_HELPERS = {
  '@_product(': """/* One product, rounded once, also where floats are computed wider. */
static inline float @_product(float a, float b) {
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD == 0
  return a * b;
#else
  volatile float product = a * b;
  return product;
#endif
}""",
  '@_known(': """/* Zero in place of NaN. */
static inline float @_known(float x) { return x != x ? 0.0f : x; }""",
  '@_nearest(': """/* The nearest whole number from low to high, ties to even. Both bounds are whole and small, so
   rounding comes last: added to 1.5 * 2^23, a float has no room for a fraction. */
static inline int32_t @_nearest(float x, float low, float high) {
  x = x < low ? low : x;
  x = x > high ? high : x;
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD == 0
  return (int32_t)((x + 12582912.0f) - 12582912.0f);
#else
  return (int32_t)rintf(x);
#endif
}""",
}


class Dumped(NamedTuple):
  """A value that the hook sees, in order: its name, dtype and shape for one example."""

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]


class Source(NamedTuple):
  """A C file.

  Attributes:
    name: what every name in it begins with.
    text: the file.
    header: what other files need to know of it.
    memory: bytes of static memory, beside the constants.
    constants: bytes of constants.
    seen: the values that the macro NAME_SEEN sees, in order.
  """

  name: str
  text: str
  header: str
  memory: int
  constants: int
  seen: tuple[Dumped, ...]


def c_source(graph: Graph, name: str = 'network', *, about: Mapping[str, str | Sequence[str]] | None = None) -> Source:
  """Writes a graph as one C99 file that depends on the standard library alone.

  Args:
    graph: of `patterns.recognized`, of floats or of integers.
    name: what the names in it begin with; made one that C takes.
    about: texts, or several, that stand in it by key: class names, units, versions.

  Returns:
    The Source.

  Raises:
    ValueError: an operation or a dtype without a rule, or sums of integers that may leave int32.

  >>> import numpy as np
  >>> from jaxlite.deployment.operations.lowering import lower
  >>> from jaxlite.deployment.operations.patterns import recognized
  >>> source = c_source(recognized(lower(lambda p, x: x @ p, np.eye(3, dtype='float32'), np.ones((1, 3), 'float32'))))
  >>> source.memory, source.constants
  (0, 36)
  """
  prefix = name_of(name)
  graph = pruned(graph)
  b = steps_of(graph)
  inputs, outputs, located = _ends(b)
  arena = c_arena.plan(b.steps, b.buffers, {*b.constants, *located})
  functions, calls, seen = _functions(b, arena, located)
  code = '\n\n'.join(functions)
  used = {*re.findall(r'\b\w+\b|@_\w+', '\n'.join(line for line in calls.splitlines() if line.startswith('  @_f')))}
  arrays, constants = [], 0
  for index, (buffer, array) in enumerate(b.constants.items()):
    if f'@_c{index}' not in used:
      continue
    constants += array.nbytes
    kind = type_of(array.dtype, buffer)
    entries = numbers(array) if array.size else '0'
    arrays.append(f'static const {kind} @_c{index}[{max(1, array.size)}] = {{\n{entries}\n}};')
  memory = sum(arena.sizes.values())
  space = [
    f'static {c_arena.UNITS[kind][0]} @_{kind}[{size // c_arena.UNITS[kind][1]}];' for kind, size in arena.sizes.items()
  ]
  helpers = _helpers(code)
  taken = {'predict', 'predict_many', *re.findall(r'@_(\w+)', '\n'.join([*space, *arrays, *helpers, code]))}
  head, declared, defined = _told(graph, prefix, inputs, outputs, memory, constants, about or {}, taken)
  arguments = ', '.join(
    [*(f'const {kind} *{one}' for one, kind, _ in inputs), *(f'{kind} *{one}' for one, kind, _ in outputs)]
  )
  predict = f'void @_predict({arguments})'
  many = f'void @_predict_many({arguments}, long count)'
  moved = ', '.join(f'{one} + at * {size}' for one, _, size in (*inputs, *outputs))
  unused = [f'  (void){one};' for one, _, _ in (*inputs, *outputs) if one not in used]
  text = '\n\n'.join(
    filter(
      None,
      [
        head,
        '#include <float.h>\n#include <math.h>\n#include <stddef.h>\n#include <stdint.h>',
        _GUARD,
        '\n'.join([*declared, f'{predict};', f'{many};']),
        '\n'.join(defined),
        '\n'.join(space),
        *arrays,
        *helpers,
        code,
        '\n'.join([f'{predict} {{', *unused, calls, '}']) if calls or unused else f'{predict} {{}}',
        f'{many} {{\n  for (long at = 0; at < count; ++at) @_predict({moved});\n}}\n',
      ],
    )
  )
  macro = f'{prefix.upper()}_H'
  header = [head, f'#ifndef {macro}', f'#define {macro}', '#ifdef __cplusplus', 'extern "C" {', '#endif', *declared]
  header += [f'{predict};', f'{many};', '#ifdef __cplusplus', '}', '#endif', '#endif\n']
  return Source(
    prefix, text.replace('@_', f'{prefix}_'), '\n'.join(header).replace('@_', f'{prefix}_'), memory, constants, seen
  )


_GUARD = """#if defined(__FAST_MATH__)
#error "compile without -ffast-math: NaN and the order of roundings are part of what this file computes"
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif
#ifndef @_SEEN /* (name, pointer, bytes) of each value once it is computed, for whoever wants to look */
#define @_SEEN(value, pointer, bytes) ((void)0)
#endif"""


def steps_of(graph: Graph) -> Builder:
  """Returns the steps of a graph.

  Raises:
    ValueError: see `c_source`.
  """
  b = c_steps.builder(graph)
  for operation in graph.operations:
    one = c_steps.told_at_one(operation)
    rule = RULES.get(one.kind)
    if rule is None:
      raise ValueError(
        f'a C99 file is made of operations that it has a rule for; {one.kind} ({one.outputs[0]}) is none'
      )
    for name in (*one.inputs, *one.outputs):
      type_of(b.dtype(name), name)
    if one.kind == 'dequantize' and all(name in graph.constants for name in one.inputs):
      b.made[one.outputs[0]] = one
    else:
      rule(b, one)
  return b


def _ends(b: Builder) -> tuple[list[tuple[str, str, int]], list[tuple[str, str, int]], dict[str, str]]:
  """Inputs and outputs as (parameter, C type, entries), and the buffers that lie there."""
  located: dict[str, str] = {}
  inputs, outputs = [], []
  for name in b.graph.inputs:
    parameter = name_of(name)
    parameter = parameter if parameter.startswith('input') else f'input_{parameter}'
    while parameter.upper() in {one.upper() for one in located.values()}:  # macros have their names in capitals
      parameter += '_'
    located[b.views[name].buffer] = parameter
    inputs.append((parameter, type_of(b.dtype(name), name), math.prod(b.shape(name))))
  for index, name in enumerate(b.graph.outputs):
    parameter = 'output' if len(b.graph.outputs) == 1 else f'output{index}'
    while parameter in located.values():
      parameter += '_'
    view, size = b.view(name), math.prod(b.shape(name))
    made = view.buffer in {step.output for step in b.steps}
    if (
      not (made and view.contiguous and view.offset == 0)
      or view.buffer in located
      or b.buffers[view.buffer].size != size
    ):
      view = c_steps.copied(b, view, f'the result {name}', 'result')
    located[view.buffer] = parameter
    outputs.append((parameter, type_of(b.dtype(name), name), size))
  return inputs, outputs, located


def _functions(
  b: Builder, arena: c_arena.Arena, located: Mapping[str, str]
) -> tuple[list[str], str, tuple[Dumped, ...]]:
  """The functions of steps, equal ones once; the calls; and the values that the hook sees."""
  numbered = {buffer: index for index, buffer in enumerate(b.constants)}

  def pointer(buffer: str, offset: int) -> str:
    kind = type_of(b.buffers[buffer].dtype, buffer)
    more = f' + {offset}' if offset else ''
    if buffer in numbered:
      return f'@_c{numbered[buffer]}{more}'
    if buffer in located:
      return f'{located[buffer]}{more}'
    if b.buffers[buffer].size == 0 or arena.kinds[buffer] not in arena.sizes:
      return 'NULL'
    place, array = arena.places[buffer], arena.kinds[buffer]
    start = place.start // place.unit
    text = f'@_{array} + {start}' if start else f'@_{array}'
    if c_arena.UNITS[array][0] == kind:
      total = start + offset
      return f'@_{array} + {total}' if total else f'@_{array}'
    return f'({kind} *)({text}){more}'

  known: dict[tuple[str, str], str] = {}
  texts, calls, seen = [], [], []
  for step in b.steps:
    body, parameters, arguments = step.body, [], []
    if not body:
      continue
    for index, (name, offset) in enumerate(step.inputs):
      if arena.over.get(step.output) == index:
        body = re.sub(rf'\ba{index}\b', 'out', body)
        continue
      if re.search(rf'\ba{index}\b', body):
        parameters.append(f'const {type_of(b.buffers[name].dtype, name)} *restrict a{index}')
        arguments.append(pointer(name, offset))
    parameters.append(f'{type_of(b.buffers[step.output].dtype, step.output)} *restrict out')
    arguments.append(pointer(step.output, 0))
    for index, name in enumerate(step.scratch):
      parameters.append(f'{type_of(b.buffers[name].dtype, name)} *restrict s{index}')
      arguments.append(pointer(name, 0))
    key = (', '.join(parameters), body)
    if key not in known:
      known[key] = f'@_f{len(known)}'
      lines = '\n'.join('  ' + line for line in body.splitlines())
      texts.append(f'static void {known[key]}({key[0]}) {{\n{lines}\n}}')
    calls.append('  ' + comment(step.note, '  '))
    calls.append(f'  {known[key]}({", ".join(arguments)});')
    if step.value:
      buffer = b.buffers[step.output]
      size = buffer.size * buffer.dtype.itemsize
      calls.append(f'  @_SEEN({string(step.value)}, {arguments[len(parameters) - len(step.scratch) - 1]}, {size});')
      seen.append(Dumped(step.value, buffer.dtype, b.shape(step.value)))
  return texts, '\n'.join(calls), tuple(seen)


def _helpers(code: str) -> list[str]:
  """What the functions call, and what that calls, in an order in which C may read it."""
  rows = sorted(set(re.findall(r'@_rows(\d+)([fdq])\(', code)), key=lambda one: (one[1], int(one[0])))
  found = [text for mark, text in _HELPERS.items() if mark in code]
  found += [c_kernels.sums_function(int(size)) for size in sorted(set(re.findall(r'@_sums(\d)\(', code)))]
  return found + [c_kernels.rows_function(int(size), kind) for size, kind in rows]


def _told(
  graph: Graph,
  prefix: str,
  inputs: Sequence[tuple[str, str, int]],
  outputs: Sequence[tuple[str, str, int]],
  memory: int,
  constants: int,
  about: Mapping[str, str | Sequence[str]],
  taken: set[str],
) -> tuple[str, list[str], list[str]]:
  """The comment at the head of the file, its declarations, and its definitions."""
  lines = [f'{prefix}: a network as one C99 file, written by jaxlite {__version__}.', '']
  macros = []
  for names, ends in ((graph.inputs, inputs), (graph.outputs, outputs)):
    for name, (parameter, kind, size) in zip(names, ends, strict=True):
      shape = list(sized(graph.values[name].shape, 1)[1:])
      lines.append(f'{parameter}: {kind}[{size}], one example of shape {shape} in C order')
      macros.append(f'#define {prefix.upper()}_{parameter.upper()}_SIZE {size}L')
      macros.append(f'#define {prefix.upper()}_{parameter.upper()}_SHAPE {{{", ".join(map(str, shape)) or 1}}}')
  macros += [f'#define {prefix.upper()}_MEMORY {memory}L', f'#define {prefix.upper()}_CONSTANTS {constants}L']
  lines += [
    '',
    f'Static memory: {memory:,} bytes; constants: {constants:,} bytes; nothing is allocated, and the stack holds a few',
    'hundred bytes. Calls share that memory: one at a time. Arrays that are given do not overlap.',
    'Compile with -O3 -std=c99, which rounds a product before it is added to; link with -lm.',
    '',
  ]
  declared, defined = [*macros], []
  for key, value in {'version': __version__, **about}.items():
    texts = [str(one) for one in value] if isinstance(value, list | tuple) else str(value)
    lines.append(f'{key}: {texts if isinstance(texts, str) else ", ".join(texts)}')
    if name_of(key) in taken:
      raise ValueError(f'{name_of(key)} is a name in a C99 file already: call the text {key!r} otherwise')
    taken.add(name_of(key))
    one, other = text_constant(f'@_{name_of(key)}', texts)
    declared.append(one)
    defined.append(other)
  return comment('\n'.join(lines)), declared, defined
