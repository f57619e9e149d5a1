"""What one equation computes: its kind, its FLOPs, and whether a compiler merges it with its neighbours."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from jaxlite.graph.contractions import OTHER_CONTRACTIONS, SPARSE, flops_of

KINDS = (
  'products',
  'small products',
  'convolutions',
  'depthwise',
  'elementwise',
  'transcendental',
  'reductions',
  'movement',
  'random',
  'linear algebra',
)
SMALL = 2 * 128 * 256 * 256  # FLOPs of one product up to which it is a small one


class Work(NamedTuple):
  """Of one equation, once.

  Attributes:
    kind: one of KINDS; '' for what costs nothing of its own.
    flops: floating-point operations; of integers as well.
    transcendentals: exponentials, logarithms, roots and their like, and of dear ones (sines, powers, gamma functions)
      as many as take as long; they are no FLOPs.
    padded: FLOPs with those that multiply padding, which kernels do not leave out; else `flops`.
    sides: of a product (batch, m, k, n); of a convolution (groups, positions, summed, channels, places of its window,
      1 where channels lie apart and else 0, axes of its window, zeros and entries for each entry of what it slides
      over, 1 where its window has more places than its result and else 0); of a sliding window (places, 1 or 0
      likewise, entries that lie side by side, 1 where windows overlap); of another reduction (how many results lie
      side by side, entries).
    fused: it is computed where its result is read.
    known: what it computes is known; else its bytes alone count.
  """

  kind: str
  flops: float = 0.0
  transcendentals: float = 0.0
  padded: float = 0.0
  sides: tuple[int, ...] = ()
  fused: bool = False
  known: bool = True


def _words(text: str) -> frozenset[str]:
  return frozenset(text.split())


# Of no cost: another name, shape or promise for the same bytes, or a value that is made where it is read.
_FREE = _words(
  """
  reshape squeeze expand_dims broadcast_in_dim iota stop_gradient name optimization_barrier
  sharding_constraint copy copy_p pvary pcast random_wrap random_unwrap random_clone bitcast_convert_type
  create_token mesh_cast reshard layout_constraint axis_index platform_index broadcast pbroadcast full empty empty2
  real imag device_put broadcast_to zeros_like pin unpin tie dce_sink after_all to_edtype from_edtype empty_ref free_ref
  create_linear vary_unreduced_cast_p reduced_vary_cast_p preduced
  """
)
_TRANSCENDENTAL = _words(
  """
  exp exp2 expm1 log log1p logistic tanh sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh pow sqrt
  rsqrt cbrt erf erfc erf_inv lgamma digamma polygamma igamma igammac regularized_incomplete_beta bessel_i0e
  bessel_i1e random_gamma_grad zeta igamma_grad_a
  """
)
# Of those that XLA for CPU computes otherwise than by a short polynomial: as many exponentials as one takes.
_DEAR = {
  **dict.fromkeys(('sin', 'cos'), 9.0),
  **dict.fromkeys(('tan', 'asin', 'atan', 'atan2', 'cbrt', 'lgamma', 'digamma'), 20.0),
  **dict.fromkeys(('sinh', 'asinh', 'acosh', 'atanh', 'erf_inv', 'bessel_i0e', 'bessel_i1e'), 4.0),
  **dict.fromkeys(('polygamma', 'zeta', 'igamma', 'igammac', 'igamma_grad_a', 'random_gamma_grad'), 100.0),
  **{'pow': 9.0, 'acos': 35.0, 'rem': 25.0, 'regularized_incomplete_beta': 500.0},
}
_REDUCTIONS = _words(
  'reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin reduce'
)
_REDUCTIONS |= {'reduce'}
_CUMULATIVE = _words('cumsum cumprod cummax cummin cumlogsumexp')
_WINDOWS = _words(
  """
  reduce_window_sum reduce_window_max reduce_window_min reduce_window reduce_window_prod
  select_and_scatter_add select_and_gather_add select_and_scatter
  """
)
_ELEMENTWISE = _words(
  """
  add sub mul div rem max min neg sign abs floor ceil round is_finite and or xor not eq ne lt le gt ge eq_to le_to lt_to
  shift_left shift_right_logical shift_right_arithmetic nextafter population_count clz square add_any mul_add copysign
  conj complex reduce_precision select_and_add clamp select_n select population_count mulhi
  """
)
_MOVED_IN_PASSING = _words('transpose rev slice pad concatenate dynamic_slice convert_element_type stack unstack tile')
_MOVED = _words(
  """
  gather sort top_k approx_top_k dynamic_update_slice scatter scatter-add scatter_add scatter-mul scatter_mul
  scatter-min scatter_min scatter-max scatter_max scatter-apply psum psum_invariant pmax pmin all_gather
  all_to_all ppermute reduce_scatter all_gather_invariant pmax_invariant pmin_invariant split
  get swap addupdate new_ref freeze accum_grad_in_ref lu_pivots_to_permutation ragged_all_to_all unreduced_psum
  unreduced_reduce_scatter scatter-sub
  """
)
# FLOPs of linear algebra over the last two axes, as LAPACK's handbook counts them: (rows, columns) ->.
_LINEAR = {
  'cholesky': lambda m, n: n**3 / 3,
  'lu': lambda m, n: 2 * m * n * min(m, n) - (m + n) * min(m, n) ** 2 + 2 * min(m, n) ** 3 / 3,
  'geqrf': lambda m, n: 2 * m * min(m, n) ** 2 - 2 * min(m, n) ** 3 / 3,
  'geqp3': lambda m, n: 2 * m * min(m, n) ** 2 - 2 * min(m, n) ** 3 / 3,
  'qr': lambda m, n: 4 * m * min(m, n) ** 2 - 4 * min(m, n) ** 3 / 3,
  'householder_product': lambda m, n: 2 * m * min(m, n) ** 2 - 2 * min(m, n) ** 3 / 3,
  'ormqr': lambda m, n: 4 * m * n * min(m, n),
  'eigh': lambda m, n: 9 * n**3,
  'eig': lambda m, n: 25 * n**3,
  'schur': lambda m, n: 25 * n**3,
  'hessenberg': lambda m, n: 10 * n**3 / 3,
  'tridiagonal': lambda m, n: 4 * n**3 / 3,
  'cholesky_update': lambda m, n: 4 * n**2,
  'symmetric_product': lambda m, n: 2 * m**2 * n,
  'svd': lambda m, n: 4 * m * n * min(m, n) + 8 * min(m, n) ** 3,
}
_RANDOM = 60  # integer operations of one 32-bit word of threefry: 20 rounds of a pair, and the keys between them

_GENERATED = 400  # of these that take as long as one word of XLA's own generator


def is_of_generator(eqn: Any) -> bool:
  """Tells whether random bits are of XLA's own generator (keys of 'rbg'), and not of threefry.

  Args:
    eqn: that draws them.

  >>> import jax
  >>> draw = jax.make_jaxpr(lambda key: jax.random.bits(key))(jax.random.key(0, impl='rbg'))
  >>> [is_of_generator(eqn) for eqn in draw.eqns if eqn.primitive.name == 'random_bits']
  [True]
  """
  return 'rbg' in str(eqn.invars[0].aval.dtype) or eqn.primitive.name.startswith('rng_')


def work_of(eqn: Any) -> Work:
  """Returns what an equation without bodies computes.

  Args:
    eqn: of a jaxpr.

  >>> import jax
  >>> (eqn,) = jax.make_jaxpr(jax.lax.tanh)(jax.numpy.ones((3, 5))).eqns
  >>> work_of(eqn).kind, work_of(eqn).transcendentals
  ('transcendental', 15.0)
  """
  name = eqn.primitive.name
  out = float(_size(eqn.outvars[0])) if eqn.outvars else 0.0
  taken = float(_size(eqn.invars[0])) if eqn.invars else 0.0
  if name in SPARSE:  # rows are gathered, scaled and scattered
    return Work('movement', float(flops_of(eqn)))
  if name == 'dot_general' or name in OTHER_CONTRACTIONS:
    return _product(eqn)
  if name == 'conv_general_dilated':
    return _convolution(eqn)
  if name in _FREE or (name == 'convert_element_type' and eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype):
    return Work('', fused=True)
  if name in _TRANSCENDENTAL:
    return Work('transcendental', 0.0, out * _DEAR.get(name, 1.0), fused=True)
  if name == 'rem' and np.issubdtype(eqn.outvars[0].aval.dtype, np.floating):
    return Work('transcendental', 0.0, out * _DEAR[name], fused=True)
  if name in _MOVED_IN_PASSING:
    return Work('movement', 0.0, fused=True)
  if name in _REDUCTIONS and taken == out and name.startswith('reduce_'):  # over axes of length 1: another shape
    return Work('', fused=True)
  if name in _REDUCTIONS:
    whole = max(taken - out, 0.0)
    return Work('reductions', whole * (2 if name.startswith('arg') else 1), padded=whole, sides=(_row(eqn), int(taken)))
  if name in _CUMULATIVE:
    return Work('reductions', max(taken - 1, 0.0) * max(1.0, math.log2(max(2.0, _along(eqn)))))
  if name in _WINDOWS:
    return Work('reductions', (taken if 'scatter' in name else out) * max(_window(eqn) - 1, 1), sides=_sliding(eqn))
  if name in ('random_bits', 'threefry2x32', 'rng_bit_generator', 'rng_uniform'):
    each = _GENERATED if is_of_generator(eqn) else _RANDOM
    return Work('random', each * sum(_size(var) for var in eqn.outvars))
  if name in ('random_fold_in', 'random_split', 'random_seed'):
    return Work('random', _RANDOM * 2 * out)
  if name in ('sort', 'top_k', 'approx_top_k'):
    most = eqn.params['k'] if name == 'top_k' else _along(eqn)
    return Work('movement', taken * len(eqn.invars) * math.log2(max(2.0, most)))
  if name in _MOVED:
    added = name.startswith('scatter') and name != 'scatter'
    return Work('movement', float(_size(eqn.invars[-1])) if added else 0.0)
  if name == 'fft':
    lengths = eqn.params['fft_lengths']
    return Work('linear algebra', 5 * max(taken, out) * math.log2(max(2, math.prod(lengths))))
  if name == 'triangular_solve':
    return Work('linear algebra', _batch(eqn.invars[1].aval.shape) * _solved(eqn))
  if name in ('tridiagonal_solve',):
    return Work('linear algebra', 8 * out)
  if name in _LINEAR:
    shape = eqn.invars[0].aval.shape
    return Work('linear algebra', _batch(shape) * float(_LINEAR[name](*shape[-2:])))
  if name in ('ffi_call', 'jaxlite'):
    return _kernel(eqn)
  if name == 'integer_pow':
    power = abs(eqn.params['y'])
    return Work('elementwise', out * max(0, power.bit_length() - 1 + power.bit_count() - 1), fused=True)
  if name in _ELEMENTWISE:
    return Work('elementwise', out * (2 if name == 'clamp' else 1), fused=True)
  return Work('movement', known=name in _MOVED)


def _product(eqn: Any) -> Work:
  flops = float(flops_of(eqn))
  name, lhs = eqn.primitive.name, eqn.invars[0].aval
  if name != 'dot_general':
    return Work('products' if flops > SMALL else 'small products', flops, padded=flops * _groups(eqn))
  (summed, _), (batch, _) = eqn.params['dimension_numbers']
  inner, many = (math.prod(lhs.shape[axis] for axis in axes) for axes in (summed, batch))
  rows = lhs.size // max(1, inner * many)
  columns = math.prod(eqn.outvars[0].aval.shape) // max(1, rows * many)
  return Work(
    'products' if flops > SMALL * max(1, many) else 'small products', flops, 0.0, flops, (many, rows, inner, columns)
  )


def _groups(eqn: Any) -> int:
  """How many times XLA computes a ragged product: it multiplies all rows by each group's matrix, and picks."""
  if not eqn.primitive.name.startswith('ragged_dot'):
    return 1
  ragged = eqn.params.get('ragged_dot_dimension_numbers')
  axes = ragged.rhs_group_dimensions if ragged is not None else (0,)
  return math.prod(eqn.invars[1].aval.shape[axis] for axis in axes)  # of a gradient of weights FLOPs are those of all


def _convolution(eqn: Any) -> Work:
  spec = eqn.params['dimension_numbers']
  groups = max(eqn.params['feature_group_count'], eqn.params['batch_group_count'])
  padded = float(flops_of(eqn))
  rhs, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
  channels = out[spec.out_spec[1]]
  summed = math.prod(rhs) // max(1, channels)
  alone = eqn.params['feature_group_count'] > 1 and rhs[spec.rhs_spec[1]] == 1
  # The gradient of a depthwise kernel: each channel is a group of the batch, or of features, with one input each.
  alone = alone or (eqn.params['batch_group_count'] > 1 and eqn.params['batch_group_count'] == channels)
  # Of a weight's gradient the result is the window, and what slides over the input is the gradient of the output.
  window, result = (
    math.prod(rhs[axis] for axis in spec.rhs_spec[2:]),
    math.prod(out[axis] for axis in spec.out_spec[2:]),
  )
  places = min(window, result)
  apart = int(len(rhs) - 1 in spec.lhs_spec[2:])  # arrays [B, C, H, W]
  axes, spread = len(rhs) - 2, math.prod(eqn.params['lhs_dilation'])
  shape = (groups, math.prod(out) // max(1, channels), summed, channels, places, apart)
  sides = (*shape, axes, spread, int(window > result))
  flops = float(flops_of(eqn, zeros=False))
  return Work('depthwise' if alone else 'convolutions', flops, 0.0, padded, sides)


def _kernel(eqn: Any) -> Work:
  """Our own compiled kernels say in their description, or in their name, what they multiply."""
  target = str(eqn.params.get('target_name', ''))
  if target.startswith('jaxlite_cpu_direct_'):
    given = dict(eqn.params['attributes'])['spec']
    numbers = [int(one) for one in np.asarray(getattr(given, 'val', given))]
    batch, inputs, outputs, groups = numbers[2:6]
    kernel, result = numbers[9:12], numbers[12:15]
    flops = 2.0 * batch * groups * inputs * outputs * math.prod(kernel) * math.prod(result)
    kind = 'depthwise' if groups > 1 and inputs == 1 else 'convolutions'
    shape = (groups, batch * math.prod(result), inputs * math.prod(kernel), outputs * groups, math.prod(kernel), 0)
    sides = (*shape, 2, 1, 0)
    return Work(kind, flops, 0.0, flops, sides)
  if target.startswith('jaxlite_cpu_onednn_'):
    kind, _, *sizes = target.removeprefix('jaxlite_cpu_onednn_').split('_')[1:]
    parts = [[int(one) for one in part.split('x') if one] for part in sizes]
    if kind in ('matmul', 'turned'):
      many, (rows,), (inner,), (columns,) = math.prod(parts[0]), *parts[1:4]
      flops = 2.0 * many * rows * inner * columns
      small = 'products' if flops > SMALL * max(1, many) else 'small products'
      return Work(small, flops, 0.0, flops, (many, rows, inner, columns))
    (batch,), (inputs,), (outputs,), (groups,) = parts[:4]
    flops = 2.0 * batch * inputs // groups * outputs * math.prod(parts[5]) * math.prod(parts[6])
    places = math.prod(parts[5])
    sides = (groups, batch * math.prod(parts[6]), inputs // groups * places, outputs, places, 0, 2, 1, 0)
    return Work('depthwise' if groups == inputs > 1 else 'convolutions', flops, 0.0, flops, sides)
  return Work('movement', known=False)


def _row(eqn: Any) -> int:
  """How many results lie side by side where rows are summed; 0 where what is summed lies side by side itself."""
  shape, axes = eqn.invars[0].aval.shape, eqn.params.get('axes', eqn.params.get('dimensions', ()))
  last = max(axes, default=-1)
  return math.prod(shape[last + 1 :]) if last + 1 < len(shape) else 0


def _sliding(eqn: Any) -> tuple[int, ...]:
  window = eqn.params.get('window_dimensions', (2,))
  strides, shape = eqn.params.get('window_strides', window), eqn.outvars[0].aval.shape
  apart = bool(window) and window[-1] > 1
  beside = shape[-1] if shape and not apart else 1
  overlap = any(size > step for size, step in zip(window, strides, strict=True))
  return math.prod(window), int(apart), beside, int(overlap)


def _solved(eqn: Any) -> float:
  rows, columns = eqn.invars[1].aval.shape[-2:]
  return float(rows * columns * (rows if eqn.params['left_side'] else columns))


def _size(var: Any) -> int:
  return math.prod(getattr(var.aval, 'shape', ()))


def _along(eqn: Any) -> float:
  shape = eqn.invars[0].aval.shape
  axis = eqn.params.get('dimension', eqn.params.get('axis', -1))
  return float(shape[axis]) if shape else 1.0


def _window(eqn: Any) -> float:
  return float(math.prod(eqn.params.get('window_dimensions', (2,))))


def _batch(shape: tuple[int, ...]) -> int:
  return math.prod(shape[:-2])
