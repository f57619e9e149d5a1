"""What a portable program may ask for: operations of StableHLO, and functions outside of it that stand on a list.

A program is data that a run left, perhaps a stranger's, and XLA runs whatever it calls by name: a callback into Python
at an address that the program says, a kernel that trusts what it is told. So before it is run each of its operations
is looked at.
"""

from __future__ import annotations

import re

from jax.extend.mlir import ir
from jax.interpreters import mlir

# Of custom calls those for which JAX keeps a meaning from version to version: linear algebra, random bits, kernels for
# accelerators, notes to the compiler. None calls back into the process, and none of jaxlite's own is ever written.
_CALLS = re.compile(
  r'lapack_[sdcz][a-z]+_ffi|(cu|hip)(solver|sparse|blas)_[a-z0-9]+_ffi|(cu|hip)_(threefry2x32_ffi'
  r'|lu_pivots_to_permutation)|Eigh|Qr|ProductOfElementaryHouseholderReflectors|LuDecomposition|ApproxTopK'
  r'|tpu_custom_call|mosaic_gpu_v2|AllocateBuffer|Sharding|SPMDFullToShardShape|SPMDShardToFullShape'
  r'|annotate_device_placement|shape_assertion|stablehlo\.dynamic_(approx_top_k|reduce_window|rng_bit_generator|top_k)'
)
_DIALECTS = ('builtin', 'func', 'stablehlo', 'chlo', 'sdy', 'mhlo', 'shape', 'tensor', 'arith')
_HOST = ('stablehlo.infeed', 'stablehlo.outfeed', 'stablehlo.send', 'stablehlo.recv')  # they wait for somebody else
_CALL = 'custom_call'


def refused(text: str) -> str:
  """Returns what a program asks for that is not run, in a few words; '' where there is nothing.

  Args:
    text: of the program, as `jax.export.Exported.mlir_module` gives it.

  Raises:
    ValueError: it is no program.

  >>> refused('func.func public @main(%x: tensor<2xf32>) -> tensor<2xf32> { return %x : tensor<2xf32> }')
  ''
  """
  found: set[str] = set()

  def look(op: ir.Operation) -> ir.WalkResult:
    name = op.operation.name
    if name.rpartition('.')[2] == _CALL:
      target = ir.StringAttr(op.operation.attributes['call_target_name']).value
      if not _CALLS.fullmatch(target):
        found.add(f'a call of {target[:80]!r}')
    elif name in _HOST or name.partition('.')[0] not in _DIALECTS:
      found.add(name)
    return ir.WalkResult.ADVANCE

  with mlir.make_ir_context():
    try:
      ir.Module.parse(text).operation.walk(look)
    except (ir.MLIRError, KeyError, UnicodeError) as error:
      raise ValueError(f'it cannot be read ({type(error).__name__})') from None
  return ', '.join(sorted(found))
