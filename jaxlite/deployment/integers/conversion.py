"""The integer graph: a fake-quantized network in the operations of `rules`, and what of it stays float.

References:
  Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
  2018, https://arxiv.org/abs/1712.05877
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite import trees
from jaxlite.deployment.integers import missing
from jaxlite.deployment.integers.fusing import fused
from jaxlite.deployment.integers.points import floating, pointed
from jaxlite.deployment.operations import Graph, Operation, patterns, pruned
from jaxlite.deployment.running.program import traced
from jaxlite.quantization import Calibrate, Histogram, by_min_max, histogram, merge_histograms

# What multiplies and sums, or could do so in integers.
_KERNELS = ('dense', 'conv', 'dot_general', 'conv_general_dilated', 'add', 'mean', 'softmax')


def quantized(
  graph: Graph,
  examples: Any = None,
  *,
  every: bool = False,
  bits: int = 8,
  calibrate: Calibrate | None = None,
) -> Graph:
  """Turns the list of a fake-quantized network into one of integers.

  Its points (`fake_quant`, `lsq`, `ptq`, `quantize(ranges=)`) become grids of int8, the contractions between them sums
  of integers with scales, batch norm and bias folded in, and what is exact on int8 (pools, moves, clips, tables) is
  done there. Fake quantization scales, adds the bias and scales again; here a sum is scaled once, so that a value may
  lie one step of its grid away.

  Args:
    graph: of `lowering.lower`, of the network as it predicts; not `recognized`, which multiplies scales into weights.
    examples: inputs [B, ...] such as will be met, arrays by name, a batch with 'inputs', or an iterable of these;
      needed where `every` finds a value without a range.
    every: also quantize both operands of additions, what a mean, norm or softmax reads of a contraction, and products
      of activations, so that all between stays int8. Results stay float.
    bits: of the points that `every` adds, 2 to 8.
    calibrate: how their ranges are found: `by_min_max()` (the default), `by_percentile(percent)` or `by_mse()`.

  Returns:
    The Graph, for `reference.run` and `program.program`.

  Raises:
    ValueError: nothing in it is quantized; ranges that are missing or were never seen; scales that are not finite; a
      sum that may reach 2^31.

  >>> import jax.numpy as jnp
  >>> from jaxlite.deployment.operations.lowering import lower
  >>> from jaxlite.quantization import quantize
  >>> spans = {'w': (jnp.float32(-1), jnp.float32(1))}
  >>> dense = quantize(lambda p, x: jnp.maximum(x @ p['w'] + p['b'], 0), ranges=spans)
  >>> known = {'w': jnp.array([[0.5], [-1.0]]), 'b': jnp.ones(1)}
  >>> [one.kind for one in quantized(lower(dense, known, jnp.ones((1, 2)))).operations]
  ['quantize', 'quantized_dense', 'relu']
  """
  if isinstance(bits, bool) or bits not in range(2, 9):
    raise ValueError(f'bits are a whole number from 2 to 8, got {bits!r}')
  rounds = any(one.kind == 'round' for one in graph.operations)
  graph = patterns.completed(pointed(patterns.contracted(graph)))
  if every:
    tell = None if examples is None else functools.partial(_ranges, examples=examples, calibrate=calibrate, bits=bits)
    graph = missing.completed(graph, tell, bits)
  result = _narrowed(fused(graph))
  if any(one.kind.startswith('quantized_') or _packs(one, result) for one in result.operations):
    return result
  if rounds:
    raise ValueError(
      'this list has points of quantization and no whole weights: give the list of lower, before recognized, which '
      'multiplies scales into weights'
    )
  raise ValueError(
    'nothing in this list is quantized: train with fake_quant or lsq, or call ptq, and lower the network as it predicts'
  )


def _narrowed(graph: Graph) -> Graph:
  """The list with numbers that no contraction took in as wide as what they are multiplied with or added to."""
  values, constants = dict(graph.values), dict(graph.constants)
  for one in graph.operations:
    for name in one.inputs if one.kind in ('mul', 'add') and values[one.outputs[0]].dtype == np.float32 else ():
      if name in constants and constants[name].dtype == np.float64:
        constants[name] = constants[name].astype(np.float32)
        values[name] = values[name]._replace(dtype=np.dtype(np.float32))
  return graph._replace(values=values, constants=constants)


def _packs(one: Operation, graph: Graph) -> bool:
  return one.kind == 'dequantize' and one.inputs[0] in graph.constants


# --- ranges -----------------------------------------------------------------------------------------------------------


def _ranges(
  graph: Graph, names: tuple[str, ...], *, examples: Any, calibrate: Calibrate | None, bits: int
) -> dict[str, tuple[float, float]]:
  plain = pruned(floating(graph)._replace(outputs=names))
  plain = plain._replace(inputs=tuple(name for name in graph.inputs if name in plain.values))
  collect = jax.jit(lambda inputs: {name: histogram(array) for name, array in _traced(plain, inputs, names).items()})
  seen: dict[str, Histogram] = {}
  for batch in batches(graph, examples):
    for name, new in collect(batch).items():
      new = jax.tree.map(np.asarray, new)._replace(counts=np.asarray(new.counts, np.int64))
      seen[name] = merge_histograms(seen[name], new) if name in seen else new
  if not seen:
    raise ValueError('no example was given: ranges need a few hundred such as will be met')
  choose = calibrate or by_min_max()
  found = {}
  for name, one in seen.items():
    low, high = float(one.span[0]), float(one.span[1])
    found[name] = choose(one, bits) if low <= high else (low, high)
  return found


def _traced(graph: Graph, inputs: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
  values = traced(graph, inputs)
  return {name: values[name] for name in names}


def batches(graph: Graph, examples: Any) -> Iterable[dict[str, Any]]:
  """Yields examples as arrays by the names of a graph's inputs.

  Args:
    graph: any.
    examples: as in `quantized`.

  Raises:
    ValueError: inputs of other names.
  """
  if isinstance(examples, Mapping) or hasattr(examples, 'shape'):
    examples = [examples]
  for batch in examples:
    if isinstance(batch, Mapping) and {*batch} != {*graph.inputs} and 'inputs' in batch:
      batch = batch['inputs']
    if not (isinstance(batch, Mapping) and {*batch} == {*graph.inputs}):
      paths, leaves, _ = trees.flatten(batch)
      batch = {f'input/{path}' if path else 'input': leaf for path, leaf in zip(paths, leaves, strict=True)}
    if {*batch} != {*graph.inputs}:
      raise ValueError(f'examples are the inputs {", ".join(graph.inputs)}; got {", ".join(map(str, batch))}')
    yield batch


# --- what became of each layer ----------------------------------------------------------------------------------------


class Layer(NamedTuple):
  """One operation that multiplies or sums, and what it is made of.

  Attributes:
    name: its weight's, or its result's where it has none.
    kernel: the kind of its operation.
    weight_bits: of its whole weights; None where it has none.
    result: 'int8' or 'float32'.
    why: why it, or its result, stays float; '' where nothing does.
  """

  name: str
  kernel: str
  weight_bits: int | None
  result: str
  why: str


def layers(graph: Graph) -> tuple[Layer, ...]:
  """Tells of every contraction, addition, mean and softmax of a list how it is computed, and why not in integers.

  Args:
    graph: of `quantized`.

  >>> import jax.numpy as jnp
  >>> from jaxlite.deployment.operations.lowering import lower
  >>> from jaxlite.quantization import quantize
  >>> dense = quantize(lambda p, x: x @ p['w'], ranges={'w': (jnp.float32(-1), jnp.float32(1))})
  >>> for layer in layers(quantized(lower(dense, {'w': jnp.ones((2, 2))}, jnp.ones((1, 2))))):
  ...   print(layer.kernel, layer.weight_bits, layer.result, layer.why)
  quantized_dense 8 float32 a result of the network
  """
  makers = {name: one for one in graph.operations for name in one.outputs}
  reading: dict[str, list[str]] = {}
  for one in graph.operations:
    for name in one.inputs:
      reading.setdefault(name, []).append(one.kind)
  told = []
  for one in graph.operations:
    if not one.kind.startswith('quantized_') and one.kind not in _KERNELS:
      continue
    value = graph.values[one.outputs[0]]
    if value.dtype.name != 'int8' and not np.issubdtype(value.dtype, np.floating):
      continue
    weight = _weight(graph, makers, one)
    name = weight.rstrip('_') if weight else one.outputs[0]
    whole = graph.constants.get(weight) if weight else None
    bits = _bits(whole) if whole is not None and whole.dtype == np.int8 else None
    why = _why(graph, makers, one, reading.get(one.outputs[0], []))
    told.append(Layer(name, one.kind, bits, value.dtype.name, why))
  return tuple(told)


def _weight(graph: Graph, makers: Mapping[str, Operation], one: Operation) -> str:
  if one.kind.removeprefix('quantized_') not in ('dense', 'conv'):
    return ''
  name = one.inputs[1]
  maker = makers.get(name)
  return maker.inputs[0] if maker is not None and maker.kind == 'dequantize' else name


def _bits(whole: np.ndarray) -> int:
  """Those that hold whole numbers on the narrow range, but for a power of two that all are multiples of."""
  size = np.abs(whole.astype(np.int64)).reshape(-1)
  shared = int(np.gcd.reduce(size, initial=0))
  return max(2, 1 + (int(size.max(initial=0)) // max(1, shared & -shared)).bit_length())


def _why(graph: Graph, makers: Mapping[str, Operation], one: Operation, reading: list[str]) -> str:
  if graph.values[one.outputs[0]].dtype == np.int8:
    return ''
  if one.outputs[0] in graph.outputs:
    after = 'a result of the network'
  else:
    after = f'its result is read by {", ".join(sorted(set(reading)))}, as a float'
  if one.kind.startswith('quantized_'):
    return after
  if one.kind == 'softmax':
    return 'softmax is computed in floats'
  if one.kind in ('dense', 'conv'):
    packed = _weight(graph, makers, one) != one.inputs[1]
    return 'its input has no range: weights alone are integers' if packed else 'its weights are floats'
  if one.kind in ('dot_general', 'conv_general_dilated'):
    return 'a product of values without ranges'
  return 'what it reads has no range' if one.kind == 'mean' else 'its operands or its result have no range'
