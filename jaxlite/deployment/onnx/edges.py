"""Where ONNX leaves an answer open, or loses what is small: conversions, whole numbers by 0, log(1 + x), exp(x) - 1."""

from __future__ import annotations

import numpy as np

from jaxlite.deployment.onnx.writer import Writer
from jaxlite.deployment.operations import Operation


def cast(w: Writer, one: Operation, operands: list[str]) -> str:
  source, dtype = (w.graph.values[name].dtype for name in (one.inputs[0], one.outputs[0]))
  to = w.helper.np_dtype_to_tensor_dtype(dtype)
  if source not in (np.float32, np.float64) or dtype.kind not in 'iu':
    return w.node('Cast', operands, to=to)
  info = np.iinfo(dtype)  # what it does not hold is left open there: the nearest, and 0 for a NaN, as everywhere else
  most = source.type(info.max)
  most = np.nextafter(most, source.type(0)) if float(most) > info.max else most
  x = w.node('Where', [w.node('IsNaN', operands), w.number(0, one.inputs[0]), *operands])
  edges = [w.number(float(edge), one.inputs[0]) for edge in (info.min, most)]
  whole = w.node('Cast', [w.node('Clip', [x, *edges])], to=to)
  if most == info.max or dtype.kind == 'u':
    return whole
  beyond = w.node('Greater', [x, edges[1]])
  return w.node('Where', [beyond, w.array(np.array(info.max, dtype), 'number'), whole])


def log1p(w: Writer, one: Operation, operands: list[str]) -> str:
  """log(1 + x) with what 1 + x lost of a small x put back (Kahan): u = 1 + x, log(u) * x / (u - 1)."""
  (x,), number = operands, w.number(1.0, one.inputs[0])
  u = w.node('Add', [x, number])
  log, less = w.node('Log', [u]), w.node('Sub', [u, number])
  exact = w.node('Mul', [log, w.node('Div', [x, less])])
  return _where_exact(w, one, log, less, exact, x)


def expm1(w: Writer, one: Operation, operands: list[str]) -> str:
  """exp(x) - 1, likewise: u = exp(x), (u - 1) * x / log(u)."""
  (x,), number = operands, w.number(1.0, one.inputs[0])
  u = w.node('Exp', [x])
  log, less = w.node('Log', [u]), w.node('Sub', [u, number])
  exact = w.node('Mul', [less, w.node('Div', [x, log])])
  return _where_exact(w, one, less, less, exact, x)


def _where_exact(w: Writer, one: Operation, plain: str, less: str, exact: str, x: str) -> str:
  """What is exact between -1/2 and 1/2 of `less`, which loses nothing beyond; x itself where `less` is 0."""
  near = w.node('Less', [w.node('Abs', [less]), w.number(0.5, one.inputs[0])])
  nothing = w.node('Equal', [less, w.number(0.0, one.inputs[0])])
  return w.node('Where', [nothing, x, w.node('Where', [near, exact, plain])])


def divided(w: Writer, one: Operation, operands: list[str]) -> str:
  """Whole numbers by 0 are -1, and the least by -1 itself, as everywhere else: a processor ends the program there."""
  x, y = operands
  if _fits(w, one):
    return w.node('Div', operands)
  none, safe = _safe(w, one, y)
  found, dtype = w.node('Div', [x, safe]), w.graph.values[one.inputs[0]].dtype
  if dtype.kind == 'u':
    return w.node('Where', [none, w.number(np.iinfo(dtype).max, one.inputs[0]), found])
  back = w.node('Equal', [y, w.number(-1, one.inputs[1])])
  found = w.node('Where', [back, w.node('Sub', [w.number(0, one.inputs[0]), x]), found])
  return w.node('Where', [none, w.number(-1, one.inputs[0]), found])


def rest(w: Writer, one: Operation, operands: list[str]) -> str:
  """What is left of a division; of whole numbers by 0 what was divided."""
  x, y = operands
  if _fits(w, one):
    return w.node('Mod', operands, fmod=1)
  none, safe = _safe(w, one, y)
  return w.node('Where', [none, x, w.node('Mod', [x, safe], fmod=1)])


def _fits(w: Writer, one: Operation) -> bool:
  """Whether a processor divides by this: by floats, and by whole numbers that are known to be neither 0 nor -1."""
  known = w.graph.constants.get(one.inputs[1])
  return w.graph.values[one.inputs[0]].dtype.kind not in 'iu' or (
    known is not None and not np.isin(known, (0, -1)).any()
  )


def _safe(w: Writer, one: Operation, y: str) -> tuple[str, str]:
  """Where a divisor is 0, and the divisor with 1 in place of what a processor does not divide by."""
  none = w.node('Equal', [y, w.number(0, one.inputs[1])])
  bad = none
  if w.graph.values[one.inputs[0]].dtype.kind == 'i':
    bad = w.node('Or', [none, w.node('Equal', [y, w.number(-1, one.inputs[1])])])
  return none, w.node('Where', [bad, w.number(1, one.inputs[1]), y])
