"""The formats that a network is written in: who writes each, which runtime answers from it, how a person loads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

from jaxlite import errors
from jaxlite.cpu.kernels.compiler import compiler
from jaxlite.deployment.c.file import write_c
from jaxlite.deployment.litert.file import litert_bytes
from jaxlite.deployment.metadata import packed_about
from jaxlite.deployment.onnx.file import onnx_bytes
from jaxlite.deployment.operations import Graph
from jaxlite.deployment.operations.patterns import recognized
from jaxlite.deployment.packed.file import read_pack, write_pack
from jaxlite.deployment.running.program import program as program_of
from jaxlite.deployment.running.runner import runner
from jaxlite.deployment.subject import Subject
from jaxlite.host import machine
from jaxlite.host.files import write_bytes
from jaxlite.host.safetensors_file import write_safetensors

_COMPILED = 270  # bytes that gcc takes for one number of an array: 1.1 GB for 4,194,304 of them


class Format(NamedTuple):
  """A kind of file.

  Attributes:
    file: its name.
    needs: packages of its writer and its runtime.
    write: (subject, graph of integers or None, path) -> None; raises ValueError where it cannot.
    runtime: as `answer.py` knows it; '' where the file holds values and no program.
    listed: whether it is written from the list of operations.
    snippet: how a person loads it.
  """

  file: str
  needs: tuple[str, ...]
  write: Callable[[Subject, Graph | None, Path], Any]
  runtime: str
  listed: bool
  snippet: str


def _onnx(subject: Subject, integers: Graph | None, path: Path) -> None:
  assert subject.graph is not None
  write_bytes(path, onnx_bytes(integers or recognized(subject.graph), about=subject.about))


def _litert(subject: Subject, integers: Graph | None, path: Path) -> None:
  assert subject.graph is not None
  write_bytes(path, litert_bytes(integers or recognized(subject.graph), about=subject.about))


def _stablehlo(subject: Subject, integers: Graph | None, path: Path) -> None:
  """The run's own program, its values inside; floats in any case."""
  del integers
  network, names = subject.network, list(subject.named())
  treedef = jax.tree.structure(subject.inputs)

  def forward(given: Any) -> Any:
    leaves = [given] if len(names) == 1 else [given[name] for name in names]
    return network.model.apply(network.params, network.model_state, treedef.unflatten(leaves), train=False, key=None)[0]

  try:
    program = _exported(forward, subject)
  except ValueError:  # it computes with its batch size, which the list has open
    if subject.graph is None:
      raise
    program = _exported(program_of(recognized(subject.graph)), subject)
  write_bytes(path, bytes(program.serialize()))


def _exported(forward: Callable[[Any], Any], subject: Subject) -> Any:
  """A function of one array, or of arrays by name, for any batch size and platform."""
  (size,) = export.symbolic_shape('batch')
  shapes = {name: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype) for name, leaf in subject.named().items()}
  given = shapes if len(shapes) > 1 else next(iter(shapes.values()))
  try:
    return export.export(jax.jit(forward), platforms=('cpu', 'cuda', 'rocm', 'tpu'))(given)
  except Exception as error:  # of JAX, which has no common class for what cannot be exported
    told = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise ValueError(f'JAX cannot export it with an open batch ({told[:300]})') from None


def _safetensors(subject: Subject, integers: Graph | None, path: Path) -> None:
  """The values, by the names of the framework, joined by dots."""
  del integers
  arrays: dict[str, np.ndarray] = {}
  for name, value in plain(subject).items():
    dotted = name.replace('/', '.')
    if dotted in arrays:
      raise ValueError(f'values are named by their paths joined by dots, and two are {dotted!r}: rename one of them')
    arrays[dotted] = np.asarray(value)
  write_safetensors(path, arrays, subject.about)


def plain(subject: Subject) -> dict[str, Any]:
  """Returns the values that are numbers: a random key is none."""
  return {
    name: value for name, value in subject.arrays.items() if not jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended)
  }


def _pack(subject: Subject, integers: Graph | None, path: Path) -> None:
  assert subject.graph is not None
  write_pack(integers or recognized(subject.graph), path, packed_about(subject.about))


def _c(subject: Subject, integers: Graph | None, path: Path) -> None:
  assert subject.graph is not None
  count = sum(array.size for array in (integers or subject.graph).constants.values())
  if (need := count * _COMPILED) > (free := machine.available()):
    raise ValueError(
      f'a C compiler takes about {need / 1e9:.1f} GB of memory for {count:,} constants, and {free / 1e9:.1f} GB are '
      'free here: write it where there is more, or leave c out'
    )
  few = {name: array[:64] for name, array in subject.named().items()}
  write_c(integers or recognized(subject.graph), path, few, about=subject.about)


def packed(path: str) -> Callable[[Any], list[np.ndarray]]:
  """Opens a packed file for `answer.py`, compiled."""
  run = jax.jit(runner(read_pack(path).graph))

  def answer(inputs: Any) -> list[np.ndarray]:
    found = run(inputs)
    return [np.asarray(one) for one in (found if isinstance(found, tuple) else (found,))]

  return answer


FORMATS = {
  'pack': Format(
    'network.jlp',
    (),
    _pack,
    'module:jaxlite.deployment.formats:packed',
    True,
    """from jaxlite.deployment.packed.file import read_pack  # NumPy, no JAX
network = read_pack('network.jlp')
outputs = network.predict(inputs)  # raw, as in training
print(network.about)  # class names, versions""",
  ),
  'c': Format(
    'network.c',
    (),
    _c,
    'c',
    True,
    """/* cc -std=c99 -O3 main.c network.c -lm; the head of network.c says shapes and the memory that it takes */
void network_predict(const float *input, float *output); /* one example; the types are those of its head */
int main(void) {
  static float input[INPUT_VALUES], output[OUTPUT_VALUES];
  network_predict(input, output);
  return 0;
}""",
  ),
  'onnx': Format(
    'network.onnx',
    ('onnx', 'onnxruntime'),
    _onnx,
    'onnx',
    True,
    """import numpy as np, onnxruntime
session = onnxruntime.InferenceSession('network.onnx')
inputs = {one.name: ... for one in session.get_inputs()}  # raw, as in training: arrays [N, ...]
outputs = session.run(None, inputs)[0]
print(session.get_modelmeta().custom_metadata_map)  # class names, versions""",
  ),
  'litert': Format(
    'network.tflite',
    ('litert_converter', 'ai_edge_litert'),
    _litert,
    'litert',
    True,
    """from ai_edge_litert.interpreter import Interpreter
run = Interpreter('network.tflite').get_signature_runner()  # any batch size; the first call of each prepares it
inputs = {name: ... for name in run.get_input_details()}  # raw, as in training: arrays [N, ...]
outputs = run(**inputs)['output']""",
  ),
  'stablehlo': Format(
    'network.stablehlo',
    ('flatbuffers',),
    _stablehlo,
    'stablehlo',
    False,
    """import jax
from jax import export
with open('network.stablehlo', 'rb') as file:
  program = export.deserialize(bytearray(file.read()))
outputs = jax.jit(program.call)(inputs)  # raw, as in training: one array [N, ...], of several a dict by name""",
  ),
  'safetensors': Format(
    'network.safetensors',
    ('safetensors',),
    _safetensors,
    '',
    False,
    """from flax.traverse_util import unflatten_dict
from safetensors.flax import load_file
variables = unflatten_dict(load_file('network.safetensors'), sep='.')  # 'params' and collections of state
normalize = variables.pop('normalize', {'mean': 0.0, 'std': 1.0})  # what inputs were standardized by
inputs = (inputs - normalize['mean']) / normalize['std']
if reduce := variables.pop('reduce', None):  # of a run that brought them to fewer features
  inputs = (inputs.reshape(len(inputs), -1) - reduce.get('mean', 0.0)) @ reduce['reduction']
outputs = module.apply(variables, inputs)  # of Flax Linen
# Other frameworks: jl.give_back(module, jl.load(workdir, model=module))""",
  ),
}


def missing(name: str) -> str:
  """Returns what a format lacks here and how that is had, in a line; '' where it lacks nothing."""
  one = FORMATS[name]
  try:
    errors.need(f'the format {name}', *one.needs)
  except ImportError as error:
    return str(error)
  if one.runtime == 'c' and compiler() is None:
    return f'the format {name} needs a C compiler to be tried: install gcc or clang, or name yours in $CC'
  return ''
