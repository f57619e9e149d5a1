"""A list of operations as an ONNX file (opset 19), which ONNX Runtime, OpenVINO, browsers and phones read.

Convolutions stand channels first there: a value is kept as it was computed and turned only where somebody needs it
otherwise. The package `onnx` writes the bytes; what each operation becomes is decided here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlite import errors
from jaxlite.deployment import agreement
from jaxlite.deployment.onnx import gelu as onnx_gelu
from jaxlite.deployment.onnx import norms as onnx_norms
from jaxlite.deployment.onnx import quantized as onnx_quantized
from jaxlite.deployment.onnx import words
from jaxlite.deployment.onnx.writer import Writer
from jaxlite.deployment.operations import Batch, Graph
from jaxlite.host.files import write_bytes
from jaxlite.version import __version__

OPSET = 19
_BATCH = 'batch'  # the open axis


def onnx_bytes(graph: Graph, *, about: Mapping[str, str] | None = None) -> bytes:
  """Returns a graph as the bytes of an ONNX model.

  Args:
    graph: of `patterns.recognized`.
    about: what its metadata says, by key: class names, units, versions.

  Returns:
    A model with an open first axis, 'batch', whose inputs and outputs are named as in the graph.

  Raises:
    ImportError: the package onnx is missing.
    ValueError: an operation that ONNX has no word for.
  """
  errors.need('an ONNX file', 'onnx')
  import onnx

  graph = onnx_gelu.with_gelu(onnx_norms.with_norms(graph))
  newer = any(one.kind == onnx_gelu.KIND for one in graph.operations)
  shifted = onnx_quantized.shifted(graph)
  writer = Writer(graph, onnx.helper, onnx.numpy_helper, [], {}, {}, {}, [0], shifted)
  for name in graph.inputs:
    writer.forms[name] = {(): _moved(writer, name, 128, np.uint8) if name in shifted else name}
  for one in graph.operations:
    words.write(writer, one)
  outputs = []
  for name in graph.outputs:
    outputs.append(f'output/{name}' if len(graph.outputs) > 1 else 'output')
    outputs[-1] += f'.{len(outputs)}' if outputs[-1] in outputs[:-1] else ''  # one value that is given twice
    value = writer.whole(name)  # of a constant a row for each example
    writer.node('Identity', [_moved(writer, value, -128, np.int8) if name in shifted else value], outputs[-1])

  def described(name: str, value: str) -> Any:
    shape, dtype = graph.values[value]
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    return onnx.helper.make_tensor_value_info(name, kind, [_BATCH if isinstance(n, Batch) else n for n in shape])

  body = onnx.helper.make_graph(
    writer.nodes,
    'network',
    [described(name, name) for name in graph.inputs],
    [described(name, value) for name, value in zip(outputs, graph.outputs, strict=True)],
    list(writer.initializers.values()),
  )
  model = onnx.helper.make_model(
    body,
    opset_imports=[onnx.helper.make_opsetid('', onnx_gelu.OPSET if newer else OPSET)],
    producer_name='jaxlite',
    producer_version=__version__,
    ir_version=9,
  )
  onnx.helper.set_model_props(model, dict(about or {}))
  try:
    onnx.checker.check_model(model, full_check=True)
  except Exception as error:  # of ONNX, whose classes have no common one
    told = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise ValueError(f'ONNX refuses this network: {told[:300]}') from None
  return model.SerializeToString(deterministic=True)


def _moved(writer: Writer, name: str, by: int, dtype: Any) -> str:
  """Between int8 at the ends and uint8 inside."""
  kinds = [writer.helper.np_dtype_to_tensor_dtype(np.dtype(one)) for one in (np.int32, dtype)]
  wide = writer.node('Cast', [name], to=kinds[0])
  return writer.node('Cast', [writer.node('Add', [wide, writer.array(np.int32(by), 'shift')])], to=kinds[1])


def write_onnx(
  graph: Graph,
  path: str | os.PathLike[str],
  examples: Mapping[str, np.ndarray],
  *,
  about: Mapping[str, str] | None = None,
) -> float:
  """Writes an ONNX file, lets ONNX Runtime answer from it, and keeps it only where the answers are right.

  Args:
    graph: of `patterns.recognized`.
    path: the file.
    examples: real inputs by name, [N, ...].
    about: see `onnx_bytes`.

  Returns:
    The largest difference from the reference: of floats in units of the outputs, of integers in steps of their grid.

  Raises:
    ImportError: onnx or onnxruntime is missing.
    ValueError: an operation without a word, or answers that differ by more than float32's rounding, or of integers by
      more than `agreement.STEPS`; then no file is there.
  """
  errors.need('an ONNX file', 'onnx', 'onnxruntime')
  import onnxruntime

  from jaxlite.deployment.operations import reference

  data = onnx_bytes(graph, about=about)
  try:
    session = onnxruntime.InferenceSession(data, providers=['CPUExecutionProvider'])
  except Exception as error:  # its own classes, which it does not export
    raise ValueError(f'ONNX Runtime cannot run this network: {str(error).splitlines()[0]}') from None
  given = {name: np.asarray(array, graph.values[name].dtype) for name, array in examples.items()}
  answers = session.run(None, given)
  wanted = reference.run(graph, given)
  wanted = wanted if isinstance(wanted, tuple) else (wanted,)
  steps = [agreement.step_of(graph, name) for name in graph.outputs] if onnx_quantized.is_quantized(graph) else None
  apart, why = agreement.apart(answers, wanted, steps)
  if why:
    raise ValueError(f'ONNX Runtime answers otherwise than the network, {why}: no file is written')
  write_bytes(Path(path), data)
  return apart
