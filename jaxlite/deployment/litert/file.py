"""A list of operations as a LiteRT file (TensorFlow Lite's format), which phones, microcontrollers and browsers read.

Our list becomes StableHLO with its own grids marked, and LiteRT's converter puts layers of integers together from it:
without TensorFlow and without another calibration. What has no grid on both sides of a layer stays float there: layers
that give float outputs, norms, softmax; `layers` tells which.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlite import errors
from jaxlite.deployment import agreement
from jaxlite.deployment.litert import opened
from jaxlite.deployment.litert.grids import KINDS, grids, separate
from jaxlite.deployment.litert.marked import stablehlo
from jaxlite.deployment.operations import Graph
from jaxlite.host.files import write_bytes

_SIGNATURE = 'serving_default'
_BATCHES = (3, 5)  # at which it is converted; what differs grows with the batch
_CONTRACTIONS = ('FULLY_CONNECTED', 'CONV_2D', 'DEPTHWISE_CONV_2D', 'BATCH_MATMUL', 'TRANSPOSE_CONV', 'CONV_3D')


def litert_bytes(graph: Graph, *, about: Mapping[str, str] | None = None) -> bytes:
  """Returns a graph as the bytes of a LiteRT model.

  Args:
    graph: of floats (`patterns.recognized`) or of integers (`integers.quantized`).
    about: what its metadata says, by key: class names, units, versions.

  Returns:
    A model with an open first axis, whose signature names inputs as in the graph and outputs 'output', or 'output0',
    'output1', ... where there are several.

  Raises:
    ImportError: the package litert-converter is missing.
    ValueError: an operation that LiteRT has no word for, outputs that are stored integers, or a batch that cannot be
      open there.
  """
  errors.need('a LiteRT file', 'litert_converter')
  graph = separate(graph)
  stored = [name for name in graph.outputs if name in grids(graph)]
  if stored:
    raise ValueError(f'LiteRT is written with floats at the end; {stored[0]} is stored as integers: dequantize it')
  from litert_converter import schema_py_generated as schema

  one, other = (opened.parsed(schema, _converted(graph, batch)) for batch in _BATCHES)
  model = opened.opened(schema, one, other, _BATCHES)
  opened.with_float_ends(schema, model, [graph.values[name].dtype for name in graph.inputs])
  opened.told(schema, model, about or {})
  model.description = 'jaxlite'
  return opened.written(schema, model)


def _converted(graph: Graph, batch: int) -> bytes:
  """A model at one batch size, as the converter makes it."""
  from litert_converter import converter_api_ext as converter
  from litert_converter.mlir import ir, passmanager

  text = stablehlo(graph, batch)
  context = ir.Context()
  converter.prepare_mlir_context(context)
  count = len(graph.outputs)
  outputs = ['output'] if count == 1 else [f'output{index}' for index in range(count)]
  config = converter.ConvertToTFLConfig()
  config.canonicalizing_inf_as_min_max_float = False  # an infinity is no large number
  config.qdq_conversion_mode = 'STATIC' if any(one.kind in KINDS for one in graph.operations) else 'NONE'
  try:
    with context:
      module = ir.Module.parse(text)
      converter.set_signature(module.operation, _SIGNATURE, list(graph.inputs), outputs)
      converter.run_convert_to_tfl_passes(module, passmanager.PassManager(), config)
      return converter.export_flatbuffer_to_bytes(module.operation)
  except Exception as error:  # MLIR's own classes, and what the converter raises
    told = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    raise ValueError(f'LiteRT cannot express this network: {told[0].strip()[:300]}') from None


def layers(data: bytes) -> dict[str, int]:
  """Returns how many contractions of each kind a model has, with the dtype in which they multiply.

  Args:
    data: of `litert_bytes`.

  Returns:
    Counts by, for example, 'CONV_2D int8' and 'FULLY_CONNECTED float32'.

  Raises:
    ImportError: the package litert-converter is missing.
  """
  errors.need('what a LiteRT file computes', 'litert_converter')
  from litert_converter import schema_py_generated as schema

  model = opened.parsed(schema, data)
  names, (graph,) = opened.names_of(schema), model.subgraphs
  dtypes = {number: name.lower() for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
  found: collections.Counter[str] = collections.Counter()
  for operator in graph.operators:
    kind = names[model.operatorCodes[operator.opcodeIndex].builtinCode]
    if kind in _CONTRACTIONS:
      first = operator.inputs[2 if kind == 'TRANSPOSE_CONV' else 0]
      found[f'{kind} {dtypes[graph.tensors[first].type]}'] += 1
  return dict(found)


def answers(data: bytes, inputs: Mapping[str, np.ndarray], threads: int = 1) -> list[np.ndarray]:
  """Returns what LiteRT's interpreter answers.

  Args:
    data: of `litert_bytes`.
    inputs: by name, [N, ...].
    threads: that it uses.

  Raises:
    ImportError: the package ai-edge-litert is missing.
  """
  errors.need('answers of a LiteRT file', 'ai_edge_litert')
  from ai_edge_litert.interpreter import Interpreter

  runner = Interpreter(model_content=data, num_threads=threads).get_signature_runner()
  found: dict[str, Any] = runner(**inputs)
  return [found[name] for name in sorted(found, key=lambda name: int(name.removeprefix('output') or 0))]


def write_litert(
  graph: Graph,
  path: str | os.PathLike[str],
  examples: Mapping[str, np.ndarray],
  *,
  about: Mapping[str, str] | None = None,
) -> float:
  """Writes a LiteRT file, lets LiteRT answer from it, and keeps it only where the answers are right.

  Args:
    graph: of floats or of integers.
    path: the file.
    examples: real inputs by name, [N, ...].
    about: see `litert_bytes`.

  Returns:
    The largest difference from the reference: of floats in units of the outputs, of integers in steps of their grid.

  Raises:
    ImportError: litert-converter or ai-edge-litert is missing.
    ValueError: as of `litert_bytes`, or answers that differ by more than float32's rounding, or of integers by more
      than `agreement.STEPS`; then no file is there.
  """
  errors.need('a LiteRT file', 'litert_converter', 'ai_edge_litert')
  from jaxlite.deployment.operations import reference

  data = litert_bytes(graph, about=about)
  given = {name: np.asarray(array, graph.values[name].dtype) for name, array in examples.items()}
  try:
    found = answers(data, given)
  except (RuntimeError, ValueError) as error:
    raise ValueError(f'LiteRT cannot run this network: {str(error).splitlines()[0][:300]}') from None
  wanted = reference.run(graph, given)
  wanted = wanted if isinstance(wanted, tuple) else (wanted,)
  integers = any(one.kind in KINDS for one in graph.operations)
  steps = [agreement.step_of(graph, name) for name in graph.outputs] if integers else None
  apart, why = agreement.apart(found, wanted, steps)
  if why:
    raise ValueError(f'LiteRT answers otherwise than the network, {why}: no file is written')
  write_bytes(Path(path), data)
  return apart
