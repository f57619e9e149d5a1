"""Whether a C file computes what its graph says: compiled, run in a process of its own, and compared.

Each operation is judged on what C itself gave it, so that a rounding before a quantizer, which may move an integer by a
whole step, hides nothing and blames nobody: integers must be equal, floats must differ by float32's rounding alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.answer import ended
from jaxlite.deployment.c.source import Source
from jaxlite.deployment.c.text import TYPES
from jaxlite.deployment.operations import Graph, Operation, pruned, reference, sized
from jaxlite.deployment.operations.given import check_kind

FLAGS = ('-std=c99', '-O3')
_SECONDS = 300
_ROUNDING = 1e-5  # of what is added up, or of the largest entry
_WITHIN = 1e-4  # of a result, from end to end
_LOOKED_AT = 4  # examples of which every value is compared


def _names(text: str) -> frozenset[str]:
  return frozenset(text.split())


# Of these, a rounding of the operand may become a whole step.
_STEPS = _names('quantize round floor ceil sign argmax argmin sort')
_SUMS = _names('dense conv dot_general reduce_sum reduce_window_sum mean cumsum add sub')
# What gives the same bits everywhere.
_EXACT = _names("""
  add sub mul div max min neg abs relu clip clamp select_n square sqrt convert_element_type reshape squeeze transpose
  broadcast_in_dim concatenate slice pad rev take gather dynamic_slice max_pool reduce_window_max reduce_max reduce_min
  quantize dequantize requantize quantized_dense quantized_conv quantized_dot quantized_add quantized_mean round floor
  ceil sign eq ne lt le gt ge and or xor not is_finite
""")


class Ran(NamedTuple):
  """What a compiled file gave: results [N, ...] by name, and every value of the first examples, by name, each."""

  results: tuple[np.ndarray, ...]
  seen: tuple[dict[str, np.ndarray], ...]


def run(
  source: Source,
  graph: Graph,
  examples: Mapping[str, np.ndarray],
  command: Sequence[str],
  *,
  look: int = 0,
  folder: Path | None = None,
) -> Ran:
  """Compiles a file with a main around it and lets that answer.

  Args:
    source: the file.
    graph: that it was made of.
    examples: inputs by name, [N, ...].
    command: the compiler and its flags.
    look: of how many examples every value is to be seen.
    folder: to work in; None is one that is removed.

  Raises:
    ValueError: it does not compile, or ends badly.
  """
  with tempfile.TemporaryDirectory(prefix='jaxlite-c-') as scratch:
    where = folder or Path(scratch)
    (where / f'{source.name}.c').write_text(source.text)
    (where / 'main.c').write_text(main_text(source, graph, look))
    program = where / 'main'
    status, _, errors = _done([*command, str(where / 'main.c'), '-o', str(program), '-lm'], b'')
    if status:
      told = errors.decode(errors='replace').strip().splitlines() or ['nothing is told']
      line = next((one for one in told if 'error' in one), told[0])
      raise ValueError(f'the C compiler {command[0]} refuses what was written: {line.strip()[:300]}')
    for name in graph.inputs:
      check_kind(name, examples[name], graph.values[name].dtype)
    arrays = [np.ascontiguousarray(examples[name], graph.values[name].dtype) for name in graph.inputs]
    count = len(arrays[0])
    data = b''.join(array[index].tobytes() for index in range(count) for array in arrays)
    status, results, errors = _done([str(program), str(count)], data)
  if status:
    told = errors.decode(errors='replace').strip().splitlines() or [f'its status is {status}']
    raise ValueError(f'the compiled network ended badly: {told[0][:300]}')
  return _parsed(source, graph, results, count, min(look, count))


def _done(command: Sequence[str], data: bytes) -> tuple[int, bytes, bytes]:
  try:
    return ended(command, _SECONDS, data)
  except OSError as error:
    raise ValueError(f'{command[0]} cannot be run ({error.strerror or error})') from None


def main_text(source: Source, graph: Graph, look: int) -> str:
  """Returns a main that reads examples from its input and writes what the network computes."""
  name = source.name
  sides = []
  for values, writable in ((graph.inputs, True), (graph.outputs, False)):
    for index, value in enumerate(values):
      size = _bytes(graph, value)
      sides.append((f'{"in" if writable else "out"}{index}', graph.values[value].dtype, max(1, size), size))
  arrays = [f'static {TYPES[dtype.name]} {one}[{-(-room // dtype.itemsize)}];' for one, dtype, room, _ in sides]
  reads = [f'    if (fread({one}, 1, {size}, stdin) != {size}) return 2;' for one, _, _, size in sides if one[0] == 'i']
  writes = [
    f'    if (fwrite({one}, 1, {size}, stdout) != {size}) return 3;' for one, _, _, size in sides if one[0] == 'o'
  ]
  return '\n'.join(
    [
      '#include <stdio.h>',
      '#include <stdlib.h>',
      '#ifdef _WIN32',
      '#include <fcntl.h>',
      '#include <io.h>',
      '#endif',
      'static int looking;',
      f'#define {name}_SEEN(value, pointer, bytes) (looking ? (void)fwrite(pointer, 1, bytes, stdout) : (void)0)',
      f'#include "{name}.c"',
      *arrays,
      'int main(int count, char **words) {',
      '  const long examples = count > 1 ? atol(words[1]) : 0;',
      '#ifdef _WIN32',
      '  _setmode(_fileno(stdin), _O_BINARY);',
      '  _setmode(_fileno(stdout), _O_BINARY);',
      '#endif',
      '  for (long at = 0; at < examples; ++at) {',
      *reads,
      f'    looking = at < {look};',
      f'    {name}_predict({", ".join(one for one, *_ in sides)});',
      *writes,
      '  }',
      '  return fflush(stdout) != 0;',
      '}\n',
    ]
  )


def _bytes(graph: Graph, name: str) -> int:
  value = graph.values[name]
  return int(np.prod(sized(value.shape, 1), dtype=np.int64)) * value.dtype.itemsize


def _parsed(source: Source, graph: Graph, data: bytes, count: int, look: int) -> Ran:
  at = 0

  def array(dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    nonlocal at
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if at + size > len(data):
      raise ValueError('the compiled network wrote less than it computes')
    found = np.frombuffer(data[at : at + size], dtype).reshape(shape)
    at += size
    return found

  seen: list[dict[str, np.ndarray]] = []
  results: list[list[np.ndarray]] = [[] for _ in graph.outputs]
  for index in range(count):
    if index < look:
      seen.append({one.name: array(one.dtype, one.shape) for one in source.seen})
    for place, name in enumerate(graph.outputs):
      results[place].append(array(graph.values[name].dtype, sized(graph.values[name].shape, 1)))
  if at != len(data):
    raise ValueError('the compiled network wrote more than it computes')
  empty = [np.zeros(sized(graph.values[name].shape, 0), graph.values[name].dtype) for name in graph.outputs]
  return Ran(tuple(np.concatenate(one) if one else none for one, none in zip(results, empty, strict=True)), tuple(seen))


def verify(source: Source, graph: Graph, examples: Mapping[str, np.ndarray], command: Sequence[str]) -> float:
  """Compares a file with the reference.

  Args:
    source: the file.
    graph: that it was made of.
    examples: real inputs by name, [N, ...].
    command: the compiler and its flags.

  Returns:
    The largest difference of a result from the reference, in units of the outputs.

  Raises:
    ValueError: it does not compile, an integer differs, or a float by more than rounding.
  """
  graph = pruned(graph)
  for name in graph.inputs:
    check_kind(name, examples[name], graph.values[name].dtype)
  given = {name: np.asarray(examples[name], graph.values[name].dtype) for name in graph.inputs}
  wanted = reference.run(graph, given)  # which also looks at the shapes of what is given
  wanted = wanted if isinstance(wanted, tuple) else (wanted,)
  ran = run(source, graph, given, command, look=_LOOKED_AT)
  for index, seen in enumerate(ran.seen):
    _check_each(graph, {name: array[index : index + 1] for name, array in given.items()}, seen)
  loose, worst = _loose(graph), 0.0
  for name, got, want in zip(graph.outputs, ran.results, wanted, strict=True):
    apart = _apart(got, want)
    allowed = 0.0 if np.issubdtype(want.dtype, np.integer) else _WITHIN * (1 + np.abs(want.astype(np.float64)))
    if got.shape != want.shape or (name not in loose and not (apart <= np.nan_to_num(allowed, posinf=0.0)).all()):
      raise ValueError(
        f'the compiled network answers otherwise than the network, by up to {apart.max(initial=0):.3g}: no file is '
        'written'
      )
    worst = max(worst, float(apart.max(initial=0)))
  return worst


def _apart(got: np.ndarray, want: np.ndarray) -> np.ndarray:
  """Differences; none where both are NaN, or the same infinity."""
  if got.shape != want.shape:
    return np.array(np.inf)
  with np.errstate(all='ignore'):
    apart = np.abs(got.astype(np.float64) - want.astype(np.float64))
  same = (got == want) | ((got != got) & (want != want))
  return np.where(same, 0.0, np.nan_to_num(apart, nan=np.inf))


def _check_each(graph: Graph, given: Mapping[str, np.ndarray], seen: Mapping[str, np.ndarray]) -> None:
  """Raises where an operation gives otherwise than by its meaning on the operands that C had."""
  values: dict[str, np.ndarray] = dict(given)
  for name, array in graph.constants.items():
    values[name] = np.broadcast_to(array, sized(graph.values[name].shape, 1))
  scale: dict[str, float] = {}  # of what was computed on the way to a value that nobody sees
  for one in graph.operations:
    operands = [values[name] for name in one.inputs]
    (name,) = one.outputs
    want = reference.computed(graph, one, operands, 1)
    values[name] = want
    scale[name] = max([_largest(want), *(scale.get(each, 0.0) for each in one.inputs if each not in seen)])
    if name not in seen:
      continue
    values[name] = seen[name]
    apart = _apart(seen[name], want)
    if np.issubdtype(want.dtype, np.inexact):
      allowed = np.float64(_ROUNDING * max(scale[name], _magnitude(graph, one, operands)))
    else:
      allowed = np.float64(0)
    if not (apart <= allowed).all():
      place = tuple(int(index) for index in np.unravel_index(np.argmax(apart), apart.shape)) if apart.ndim else ()
      got, right = (array[place] if array.shape == apart.shape else array.shape for array in (seen[name], want))
      raise ValueError(
        f'in C, {one.kind} ({name}) gives {got} at {list(place)} where its meaning is {right}: no file is written'
      )


def _largest(array: np.ndarray) -> float:
  if array.dtype == np.bool_ or not array.size:
    return 0.0
  wide = np.abs(array.astype(np.float64))
  return float(wide[np.isfinite(wide)].max(initial=0.0))


def _magnitude(graph: Graph, one: Operation, operands: Sequence[np.ndarray]) -> float:
  """The largest that is added up: of sums the absolute terms, of others the operands."""
  if one.kind in _SUMS:
    return _largest(reference.computed(graph, one, [np.abs(operand) for operand in operands], 1))
  return 0.0


def _loose(graph: Graph) -> set[str]:
  """Values that a rounding in front of a step may change by more than rounding."""
  rounded: set[str] = set()
  loose: set[str] = set()
  for one in graph.operations:
    moved = rounded.intersection(one.inputs)
    out = graph.values[one.outputs[0]].dtype
    floats = np.issubdtype(out, np.floating)
    if loose.intersection(one.inputs) or (moved and (one.kind in _STEPS or not floats)):
      loose.update(one.outputs)
    if moved or (floats and one.kind not in _EXACT):
      rounded.update(one.outputs)
  return loose
