"""Answers from a file that left jaxlite, in a process of its own: run by its path, so that jaxlite is not imported.

  python answer.py KIND FILE IN.npz OUT.npz

KIND is the runtime: 'onnx', 'litert', 'stablehlo', 'c', 'safetensors', or 'module:NAME:FUNCTION', a function
(path) -> (inputs by name) -> outputs. IN holds 'inputs/<name>' [N, ...], as bytes where 'kinds/<name>' names a dtype
that NumPy lacks; what is timed, and for how long, in 'batches' and 'seconds'. OUT gets 'output/<index>', times in
seconds by batch size and the largest memory of this process in bytes.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

_COMPILES = 300  # seconds at most

Answer = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def main(kind: str, path: str, given: str, to: str) -> None:
  """Answers every example, and measures."""
  with np.load(given) as held:
    inputs = {name.removeprefix('inputs/'): held[name] for name in held.files if name.startswith('inputs/')}
    kinds = [name.removeprefix('kinds/') for name in held.files if name.startswith('kinds/')]
    inputs |= {name: _viewed(inputs[name], str(held[f'kinds/{name}'])) for name in kinds}
    batches, seconds, most = held['batches'].tolist(), float(held['seconds']), int(held['most'])
    threads, command = int(held['threads']), held['command'].tolist()
    ends = [held[name] for name in sorted(held.files) if name.startswith('ends/')]
  if kind == 'safetensors':
    return np.savez(to, **{f'output/{name}': _plain(array) for name, array in _arrays(path).items()})
  answer = _c(path, command, list(inputs), ends) if kind == 'c' else _opened(kind, path, threads)
  count = len(next(iter(inputs.values())))
  parts = [
    answer({name: array[start : start + most] for name, array in inputs.items()}) for start in range(0, count, most)
  ]
  found = {f'output/{index}': _plain(np.concatenate(each)) for index, each in enumerate(zip(*parts, strict=True))}
  for size in batches:
    rows = {name: np.ascontiguousarray(np.resize(array, (size, *array.shape[1:]))) for name, array in inputs.items()}
    found[f'seconds/{size}'] = np.array(_timed(answer, rows, seconds))
  found['memory'] = np.array(_memory())
  return np.savez(to, **found)


def _timed(answer: Answer, rows: dict[str, np.ndarray], seconds: float) -> list[float]:
  """How long each call takes: at least 10 calls, then until the time is over."""
  for _ in range(3):
    answer(rows)
  found: list[float] = []
  end = time.perf_counter() + seconds
  while len(found) < 10 or (time.perf_counter() < end and len(found) < 10_000):
    began = time.perf_counter()
    answer(rows)
    found.append(time.perf_counter() - began)
  return found


def _memory() -> int:
  try:  # of this program alone; what the kernel tells of a process counts the one that started it
    with open('/proc/self/status') as file:
      return next(int(line.split()[1]) * 1024 for line in file if line.startswith('VmHWM'))
  except (OSError, StopIteration):
    pass
  try:
    import resource
  except ImportError:  # Windows
    return 0
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def _opened(kind: str, path: str, threads: int) -> Answer:
  if kind == 'onnx':
    return _onnx(path, threads)
  if kind == 'litert':
    return _litert(path, threads)
  if kind == 'stablehlo':
    return _stablehlo(path)
  _, module, function = kind.split(':')
  return getattr(importlib.import_module(module), function)(path)


def _onnx(path: str, threads: int) -> Answer:
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads
  session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
  return lambda inputs: session.run(None, inputs)


def _litert(path: str, threads: int) -> Answer:
  from ai_edge_litert.interpreter import Interpreter

  run = Interpreter(path, num_threads=threads or None).get_signature_runner()

  def answer(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    found = run(**inputs)
    return [found[name] for name in sorted(found, key=lambda name: int(name.removeprefix('output') or 0))]

  return answer


def _c(path: str, command: list[str], names: list[str], ends: list[np.ndarray]) -> Answer:
  """A C file, compiled: NAME_predict_many(inputs..., outputs..., how many). `ends` are outputs of one example."""
  import ctypes
  import tempfile
  from pathlib import Path

  with tempfile.TemporaryDirectory(prefix='jaxlite-c-') as folder:
    made = str(Path(folder, 'network.so'))
    status, _, told = ended([*command, '-std=c99', '-O3', '-shared', '-fPIC', path, '-o', made, '-lm'], _COMPILES)
    if status:
      lines = told.decode(errors='replace').strip().splitlines() or [f'its status is {status}']
      raise ValueError(f'{command[0]}: {next((one for one in lines if "error" in one), lines[0])}')
    library = ctypes.CDLL(made)
  predict = library[f'{Path(path).stem}_predict_many']
  predict.restype = None

  def answer(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    given = [np.ascontiguousarray(inputs[name]) for name in names]
    count = len(given[0])
    found = [np.empty((count, *end.shape[1:]), end.dtype) for end in ends]
    predict(*(ctypes.c_void_p(array.ctypes.data) for array in (*given, *found)), ctypes.c_long(count))
    return found

  return answer


def ended(command: Sequence[str], seconds: float, data: bytes = b'') -> tuple[int, bytes, bytes]:
  """Runs a command to its end; where it comes to none, what it started ends with it: a compiler is several processes.

  Args:
    command: the program and its words.
    seconds: that it may take.
    data: what it reads.

  Returns:
    Its status, and what it wrote as results and as errors.

  Raises:
    ValueError: it takes longer.
    OSError: it cannot be run.
  """
  import os
  import signal
  import subprocess

  pipe = subprocess.PIPE
  with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as child:
    try:
      results, errors = child.communicate(data, timeout=seconds)
    except BaseException as error:
      if hasattr(os, 'killpg'):
        os.killpg(child.pid, signal.SIGKILL)
      child.kill()
      if isinstance(error, subprocess.TimeoutExpired):
        raise ValueError(f'{command[0]} took over {seconds:g} s and was ended') from None
      raise
  return child.returncode, results, errors


def _stablehlo(path: str) -> Answer:
  import jax
  from jax import export

  with open(path, 'rb') as file:
    program = export.deserialize(bytearray(file.read()))
  call = jax.jit(program.call)

  def answer(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    given = inputs if len(inputs) > 1 else next(iter(inputs.values()))
    return [np.asarray(one) for one in jax.tree.leaves(call(given))]

  return answer


def _arrays(path: str) -> dict[str, np.ndarray]:
  import ml_dtypes  # noqa: F401  (safetensors asks NumPy for bfloat16 by its name)
  from safetensors.numpy import load_file

  return load_file(path)


def _viewed(array: np.ndarray, kind: str) -> np.ndarray:
  """Bytes in a dtype that NumPy's files do not know."""
  import ml_dtypes

  return array.view(getattr(ml_dtypes, kind))


def _plain(array: np.ndarray) -> np.ndarray:
  """In a dtype that NumPy's files know: float32 holds every bfloat16, float8 and int4."""
  return array.astype(np.float32) if array.dtype.isbuiltin == 2 else array


if __name__ == '__main__':
  main(*sys.argv[1:])
  assert 'jaxlite' not in sys.modules or sys.argv[1].startswith('module:')
