"""Whether a runtime answers as the network does: floats up to rounding, integers to the last one.

What jaxlite itself runs (pack, C, JAX) follows one rule for integers and is held to equality. Runtimes of others round
ties their own way and may put a scale elsewhere, so of theirs the largest output counts.

That is promised where nothing but integers stands between input and outputs (`in_integers`). Norms, softmax and GELU
are floats between integers. Given its operands each integer is the rule's there too, but from end to end nobody can
promise it: a compiler sums in an order of its own and contracts a product with a sum, a library has an exp of its own,
and a last bit just beside half a step turns one rounding, which later layers carry on. There the first outputs may lie
`STEPS` steps apart, and the largest output has to be the same for `SHARE` of the examples. Every product that leaves a
sum of integers is rounded before a float meets it, in fake quantization and here, so that XLA compiles both alike: how
often the two still differ under jit is measured in `experiments/README.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlite.deployment.operations import Graph, Operation

# Float sums have an order, and exp or tanh an approximation, of each runtime's own: no two give the same bits.
ROUNDING = 1e-4  # of float32 through a network, relative to 1 + |value|
LEAST = (
  0.01  # the 1, of outputs that are all smaller: they are held to what they are, and to what is summed before them
)
UNITS = 4.0  # of the outputs' own rounding, where that is coarser: float16, bfloat16
STEPS = 8.0  # of the last grid, between two runtimes that round the same integers at ties of their own
SHARE = 0.999  # of the examples whose largest output has to be the same
FEW = 0.9999  # likewise, of a network of at most _FEW contractions and no sums of branches: little adds up there
_FEW = 4

_BRANCHES = ('quantized_add', 'quantized_dot')
_MOVES = ('reshape', 'transpose', 'squeeze', 'broadcast_in_dim', 'slice', 'concatenate', 'pad', 'rev', 'max_pool')
_WHOLE = ('quantize', 'dequantize', 'requantize', 'relu', 'clip', 'take', 'reduce_window_max', *_MOVES)


def apart(
  answers: Sequence[np.ndarray], wanted: Sequence[np.ndarray], steps: Sequence[float | None] | None = None
) -> tuple[float, str]:
  """Returns how far answers lie apart, and why that is too far; '' where it is not.

  Args:
    answers: of a runtime, one array [N, ...] for each output.
    wanted: of the network.
    steps: of integers: the size of a step of each output, None where it has none; then only the largest output counts.
      None: floats.

  >>> apart([np.array([1.0, 2.0])], [np.array([1.0, 2.5])])
  (0.5, 'by up to 0.5')
  >>> apart([np.array([[1.0, 2.0]])], [np.array([[1.0, 2.5]])], [0.25])
  (2.0, '')
  >>> apart([np.array([2.004], 'float16')], [np.array([2.0], 'float16')])[1]
  ''
  >>> apart([np.array([2.004])], [np.array([2.0])])[1]
  'by up to 0.004'
  >>> apart([np.array([0.0])], [np.array([2e-5])])[1], apart([np.array([20_001])], [np.array([20_000])])[1]
  ('by up to 2e-05', 'by up to 1')
  """
  if len(answers) != len(wanted):
    return np.inf, f'with {len(answers)} outputs where it has {len(wanted)}'
  worst, why = 0.0, ''
  for answer, want, step in zip(answers, wanted, steps or [None] * len(wanted), strict=True):
    if answer.shape != want.shape:
      return np.inf, f'with a shape of {list(answer.shape)} where it has {list(want.shape)}'
    one, other = _real(answer), _real(want)
    both = np.isfinite(one) & np.isfinite(other)
    same = np.array_equal(np.where(both, 0, one), np.where(both, 0, other), equal_nan=True)
    far = np.abs(one - other, where=both, out=np.zeros_like(one))
    most = float(far.max(initial=0.0)) / (step or 1.0)
    worst = max(worst, most)
    if not same:
      why = why or 'in which values are infinite or none'
    elif steps is None:
      if not (far <= _allowed(np.abs(other, where=both, out=np.zeros_like(one)), want.dtype)).all():
        why = why or f'by up to {far.max():.3g}'
    elif step is not None and most > STEPS:
      why = why or f'by up to {most:.3g} steps of its last grid'
    else:
      why = why or argmax_apart([answer], [want], SHARE)
  return worst, why


def argmax_apart(answers: Sequence[np.ndarray], wanted: Sequence[np.ndarray], share: float) -> str:
  """Returns why the largest outputs differ too often; '' where they do not. One example of few may always differ.

  >>> argmax_apart([np.array([[1.0, 2.0]] * 3)], [np.array([[2.0, 1.0]] * 3)], 0.999)
  'in the largest output of 100.00% of the examples'
  """
  for answer, want in zip(answers, wanted, strict=True):
    same = same_largest(answer.astype(np.float64), want.astype(np.float64))
    if round((1 - same) * len(want)) > max(1, round((1 - share) * len(want))):
      return f'in the largest output of {1 - same:.2%} of the examples'
  return ''


def share_of(graph: Graph) -> float:
  """Returns the share of examples of which another runtime has to name the same largest output.

  Args:
    graph: of integers.
  """
  contractions = [one for one in graph.operations if one.kind in ('quantized_dense', 'quantized_conv')]
  branches = any(one.kind in _BRANCHES for one in graph.operations)
  return FEW if len(contractions) <= _FEW and not branches and in_integers(graph) else SHARE


def in_integers(graph: Graph) -> bool:
  """Tells whether nothing of a list is computed in floats but one product of each sum, which is the same everywhere.

  Args:
    graph: of integers.

  >>> in_integers(Graph((), (), (Operation('quantized_dense', (), (), {}), Operation('exp', (), (), {})), {}, {}))
  False
  """
  return all(one.kind in _WHOLE or one.kind.startswith('quantized_') for one in graph.operations)


def has_integers(graph: Graph) -> bool:
  """Tells whether anything of a list is computed in integers; of weights alone in few bits nothing is.

  >>> has_integers(Graph((), (), (Operation('dequantize', (), (), {}), Operation('dense', (), (), {})), {}, {}))
  False
  """
  return any(one.kind == 'quantize' or one.kind.startswith('quantized_') for one in graph.operations)


def unequal(answers: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> str:
  """Returns why answers are not the same to the last bit; '' where they are.

  >>> unequal([np.float32([1.0, 2.0])], [np.float32([1.0, 2.5])])
  'in 1 of 2 values, which integers alone decide'
  """
  for answer, want in zip(answers, wanted, strict=True):
    if answer.shape != want.shape:
      return f'with a shape of {list(answer.shape)} where it has {list(want.shape)}'
    count = int((answer != want).sum())
    if count:
      return f'in {count:,} of {want.size:,} values, which integers alone decide'
  return ''


def _allowed(sizes: np.ndarray, dtype: np.dtype) -> Any:
  """How far an answer may lie from each of these, by rounding."""
  if not jnp.issubdtype(dtype, jnp.inexact):
    return 0.0
  coarse = UNITS * float(jnp.finfo(dtype).eps)
  unit = 1.0 if coarse > ROUNDING else min(1.0, max(LEAST, float(sizes.max(initial=0.0))))
  return max(ROUNDING, coarse) * (unit + sizes)


def _real(array: np.ndarray) -> np.ndarray:
  """As float64; of complex numbers both parts."""
  if array.dtype.kind == 'c':
    return np.stack([array.real, array.imag], -1).astype(np.float64)
  return array.astype(np.float64)


def same_largest(one: np.ndarray, other: np.ndarray) -> float:
  """Returns the share of examples, or of their places, whose largest output is the same; 1 where there is one output.

  Outputs that are as large as the largest are all the largest.

  >>> same_largest(np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([[0.0, 2.0], [0.0, 1.0]]))
  0.5
  """
  if one.ndim < 2 or one.shape[-1] < 2 or not one.size:
    return 1.0
  first = one.argmax(-1)
  chosen = np.take_along_axis(other, first[..., None], -1)[..., 0]
  return float(np.mean((chosen == other.max(-1)) | (first == other.argmax(-1))))  # the latter of what is no number


def step_of(graph: Graph, name: str) -> float | None:
  """Returns how much the smallest change of an integer changes an output; None where it is no grid's.

  Of the floats that leave a layer of integers it is what one step of its input changes by the largest weight.
  """
  made: dict[str, Operation] = {output: one for one in graph.operations for output in one.outputs}
  while (one := made.get(name)) is not None and one.kind in _MOVES:
    name = one.inputs[0]
  if one is None:
    return None
  told: Any = one.attributes
  if one.kind == 'dequantize' and len(one.inputs) == 1:
    return float(told.get('scale', 1.0))
  if one.kind in ('quantize', 'requantize') or told.get('y_scale') is not None:
    return 1.0  # the integers themselves
  if one.kind in ('quantized_dense', 'quantized_conv'):
    weight, scales = (graph.constants[each].astype(np.float64) for each in one.inputs[1:3])
    axis = 0 if one.kind == 'quantized_conv' else 1
    largest = np.abs(weight).max(tuple(each for each in range(weight.ndim) if each != axis), initial=0.0)
    return float(told['x_scale'] * (largest * scales).max(initial=0.0)) or None
  if one.kind == 'quantized_dot':
    return float(told['a_scale'] * told['b_scale'] * 127)
  return float(told['x_scale']) if one.kind == 'quantized_mean' else None


def far(answers: Sequence[np.ndarray], wanted: Sequence[np.ndarray], share: float) -> str:
  """Returns why answers lie too far apart on average, as a share of the outputs' spread; '' where they do not.

  >>> far([np.array([0.0, 1.0])], [np.array([0.0, 1.001])], 0.01)
  ''
  """
  for answer, want in zip(answers, wanted, strict=True):
    one, other = _real(answer), _real(want)
    both = np.isfinite(one) & np.isfinite(other)
    if not both.any():
      continue
    mean, spread = float(np.abs(one - other)[both].mean()), float(np.ptp(other[both]))
    if mean > share * spread:
      return f'on average by {mean:.3g} where its answers span {spread:.3g}'
  return ''
