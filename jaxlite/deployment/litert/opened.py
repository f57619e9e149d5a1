"""One LiteRT model for every batch size, out of two that were converted at a batch size each.

A converter knows one size; what of its result grows with the batch is what differs between two. Sizes become open
there, and floats stand at the ends: a converter takes the first grid for the input itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_ANY = -1  # a size that is open
_LONGEST = 6  # axes of what is added
_SPREAD = (
  *('ADD', 'SUB', 'MUL', 'DIV', 'MAXIMUM', 'MINIMUM', 'POW', 'SQUARED_DIFFERENCE', 'SELECT_V2', 'FLOOR_DIV'),
  *('EQUAL', 'NOT_EQUAL', 'LESS', 'LESS_EQUAL', 'GREATER', 'GREATER_EQUAL', 'LOGICAL_AND', 'LOGICAL_OR'),
)  # operands with an axis of one entry reach any size


def opened(schema: Any, one: Any, other: Any, sizes: tuple[int, int]) -> Any:
  """Returns a model whose batch is open.

  Args:
    schema: the module of LiteRT's classes.
    one: a model at the first batch size; it is changed.
    other: at the second.
    sizes: both.

  Raises:
    ValueError: something differs that has no open form.
  """
  if len(one.subgraphs) != 1 or len(other.subgraphs) != 1:
    raise ValueError('LiteRT has this network with a loop inside, as it has sorting; what is written holds none')
  for model in (one, other):
    _repeat_by_adding(schema, model)
  (a,), (b,) = one.subgraphs, other.subgraphs
  ends = {int(index) for index in a.outputs}
  kinds = names_of(schema)
  if [*_steps(one)] != [*_steps(other)] or len(a.tensors) != len(b.tensors):
    raise ValueError('LiteRT computes this network otherwise for each batch size')
  readers: dict[int, list[tuple[int, int]]] = {}
  for index, operator in enumerate(a.operators):
    for place, tensor in enumerate(operator.inputs):
      readers.setdefault(tensor, []).append((index, place))
  for index, (tensor, twin) in enumerate(zip(a.tensors, b.tensors, strict=True)):
    data, there = (model.buffers[each.buffer].data for model, each in ((one, tensor), (other, twin)))
    reads = [(kinds[one.operatorCodes[a.operators[step].opcodeIndex].builtinCode], step, place)
             for step, place in readers.get(index, ())]  # fmt: skip
    if data is None:
      _open_shape(tensor, twin, sizes)
    elif len(data) != len(there) or not np.array_equal(data, there):
      if index in ends:
        raise ValueError('LiteRT has no open batch in an answer that depends on no input')
      one.buffers.append(schema.BufferT())
      tensor.buffer = len(one.buffers) - 1  # another may share the old one
      one.buffers[-1].data = _open_constant(schema, a, tensor, twin, data, there, reads)
  return one


def _repeat_by_adding(schema: Any, model: Any) -> None:
  """Repeats a value along axes by adding nothing that is as long there: BROADCAST_TO is told every size, the batch's
  too, where a sum finds it by itself."""
  (graph,), types = model.subgraphs, schema.TensorType
  zeros = {types.FLOAT32: np.float32(-0.0), types.INT32: np.int32(0), types.INT64: np.int64(0), types.BOOL: np.False_}
  kinds = names_of(schema)
  for operator in graph.operators:
    if kinds[model.operatorCodes[operator.opcodeIndex].builtinCode] != 'BROADCAST_TO':
      continue
    x, out = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
    sizes = [*out.shape]
    before = [1] * (len(sizes) - len(x.shape)) + [*x.shape]
    if x.type not in zeros or len(sizes) > _LONGEST or model.buffers[x.buffer].data is not None:
      continue
    row = np.full([1 if old == size else size for old, size in zip(before, sizes, strict=True)], zeros[x.type])
    nothing = schema.TensorT()
    nothing.shape, nothing.name, nothing.hasRank, nothing.type = (
      [*row.shape],
      f'nothing_{operator.outputs[0]}',
      True,
      x.type,
    )
    model.buffers.append(schema.BufferT())
    nothing.buffer, model.buffers[-1].data = len(model.buffers) - 1, row.view(np.uint8).reshape(-1)
    graph.tensors.append(nothing)
    kind, told = ('LOGICAL_OR', 'LogicalOrOptions') if x.type == types.BOOL else ('ADD', 'AddOptions')
    operator.opcodeIndex, operator.inputs = _code(schema, model, kind), [operator.inputs[0], len(graph.tensors) - 1]
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, told)
    operator.builtinOptions = getattr(schema, f'{told}T')()


def names_of(schema: Any) -> dict[int, str]:
  """The names of LiteRT's operators by number."""
  return {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}


def _steps(model: Any) -> Any:
  for operator in model.subgraphs[0].operators:
    code = model.operatorCodes[operator.opcodeIndex]
    yield code.builtinCode, code.customCode, [*operator.inputs], [*operator.outputs]


def _open_shape(tensor: Any, twin: Any, sizes: tuple[int, int]) -> None:
  shape, there = (
    [*(tensor.shape if tensor.shape is not None else ())],
    [*(twin.shape if twin.shape is not None else ())],
  )
  if len(shape) != len(there):
    raise ValueError('LiteRT computes this network otherwise for each batch size')
  if shape == there:
    return
  tensor.shapeSignature = [_ANY if size != other else size for size, other in zip(shape, there, strict=True)]
  tensor.shape = [
    size if size == other else _share(size, other, sizes) for size, other in zip(shape, there, strict=True)
  ]


def _share(size: int, other: int, sizes: tuple[int, int]) -> int:
  """How many entries there are for one example."""
  times = size // sizes[0]
  if (times * sizes[0], times * sizes[1]) != (size, other):
    raise ValueError(f'a size of this network is {size} at batch {sizes[0]} and {other} at {sizes[1]}: no multiple')
  return times


def _open_constant(
  schema: Any, graph: Any, tensor: Any, twin: Any, data: Any, there: Any, reads: Sequence[tuple[str, int, int]]
) -> np.ndarray:
  """The bytes of a constant for any batch size."""
  types = {schema.TensorType.INT32: np.int32, schema.TensorType.INT64: np.int64}
  kinds = {kind for kind, *_ in reads}
  shape, other = [*tensor.shape], [*twin.shape]
  if shape != other:  # spread along the batch, for operators that spread by themselves
    axes = [axis for axis, (size, wide) in enumerate(zip(shape, other, strict=True)) if size != wide]
    rows = np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.uint8).reshape(*shape, -1)
    for axis in axes:
      first = rows.take([0], axis)
      if not (rows == first).all():
        break
      rows = first
    else:
      if kinds and kinds <= {*_SPREAD}:
        tensor.shape, tensor.shapeSignature = [*rows.shape[:-1]], None
        return np.ascontiguousarray(rows).reshape(-1)
    raise ValueError(f'LiteRT has no open batch where {", ".join(sorted(kinds))} reads an array that grows with it')
  if tensor.type not in types:
    raise ValueError(f'LiteRT has no open batch where a number that {", ".join(sorted(kinds))} reads grows with it')
  numbers, grown = (np.asarray(one, np.uint8).view(types[tensor.type]).copy() for one in (data, there))
  differ = np.flatnonzero(numbers != grown)
  for kind, step, place in reads:
    operator = graph.operators[step]
    if kind == 'RESHAPE' and place == 1 and len(differ) == 1:
      numbers[differ] = _ANY
      if operator.builtinOptions is not None and operator.builtinOptions.newShape is not None:
        operator.builtinOptions.newShape = numbers.tolist()
    elif kind == 'SLICE' and place == 2:
      numbers[differ] = _ANY  # to the end, from where it begins
    elif kind == 'STRIDED_SLICE' and place == 2:
      for axis in differ:
        operator.builtinOptions.endMask |= 1 << int(axis)
    else:
      raise ValueError(f'LiteRT has no open batch in {kind}')
  return numbers.view(np.uint8)


def with_float_ends(schema: Any, model: Any, wanted: Sequence[np.dtype[Any]]) -> Any:
  """Returns a model that takes and gives floats where the converter has grids at its ends.

  Args:
    schema: the module of LiteRT's classes.
    model: it is changed.
    wanted: dtypes of its inputs.
  """
  (graph,) = model.subgraphs
  small = schema.TensorType.INT8
  for index, dtype in {int(index): dtype for index, dtype in zip(graph.inputs, wanted, strict=True)}.items():
    if graph.tensors[index].type == small and dtype != np.int8:
      free = _free(schema, graph, index)
      graph.operators.insert(0, _step(schema, model, 'QUANTIZE', free, index))
      graph.inputs = [free if old == index else old for old in graph.inputs]
      _point(model, 'inputs', index, free)
  for index in dict.fromkeys(int(index) for index in graph.outputs):
    if graph.tensors[index].type == small and graph.tensors[index].quantization.scale is not None:
      free = _free(schema, graph, index)
      graph.operators.append(_step(schema, model, 'DEQUANTIZE', index, free))
      graph.outputs = [free if old == index else old for old in graph.outputs]
      _point(model, 'outputs', index, free)
  return model


def _free(schema: Any, graph: Any, index: int) -> int:
  """A new float of the shape of a tensor, which takes its name."""
  tensor, free = graph.tensors[index], schema.TensorT()
  free.shape, free.shapeSignature, free.name, free.hasRank = tensor.shape, tensor.shapeSignature, tensor.name, True
  free.type, free.buffer = schema.TensorType.FLOAT32, 0
  tensor.name = f'{tensor.name.decode() if isinstance(tensor.name, bytes) else tensor.name}_quantized'
  graph.tensors.append(free)
  return len(graph.tensors) - 1


def _step(schema: Any, model: Any, kind: str, source: int, to: int) -> Any:
  step = schema.OperatorT()
  step.opcodeIndex, step.inputs, step.outputs = _code(schema, model, kind), [source], [to]
  return step


def _point(model: Any, end: str, index: int, free: int) -> None:
  """A signature names another tensor."""
  for signature in model.signatureDefs or ():
    for told in getattr(signature, end):
      told.tensorIndex = free if told.tensorIndex == index else told.tensorIndex


def _code(schema: Any, model: Any, kind: str) -> int:
  number = getattr(schema.BuiltinOperator, kind)
  for index, code in enumerate(model.operatorCodes):
    if code.builtinCode == number:
      return index
  code = schema.OperatorCodeT()
  code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
  model.operatorCodes.append(code)
  return len(model.operatorCodes) - 1


def told(schema: Any, model: Any, about: Mapping[str, str]) -> None:
  """Adds metadata to a model, an entry for each key."""
  model.metadata = [*(model.metadata or ())]
  for key, text in about.items():
    model.buffers.append(schema.BufferT())
    model.buffers[-1].data = np.frombuffer(text.encode(), np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = key, len(model.buffers) - 1
    model.metadata.append(entry)


def parsed(schema: Any, data: bytes) -> Any:
  """The bytes of a model as objects."""
  return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))


def written(schema: Any, model: Any) -> bytes:
  """Objects as bytes; arrays begin at multiples of 16, as LiteRT reads them in place."""
  import flatbuffers

  class Aligned:
    def __init__(self, data: Any) -> None:
      self.data = data

    def Pack(self, builder: Any) -> int:  # noqa: N802, the name that the classes of a schema have
      vector = None
      if self.data is not None and len(self.data):
        builder.Prep(16, len(self.data))
        vector = builder.CreateByteVector(np.asarray(self.data, np.uint8).tobytes())
      schema.BufferStart(builder)
      if vector is not None:
        schema.BufferAddData(builder, vector)
      return schema.BufferEnd(builder)

  model.buffers = [Aligned(each.data) for each in model.buffers]
  builder = flatbuffers.Builder(1024)
  builder.Finish(model.Pack(builder), file_identifier=b'TFL3')
  return bytes(builder.Output())
