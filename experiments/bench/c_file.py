"""A C99 file beside JAX and ONNX Runtime: time of one example, bytes of constants and of static memory.

  python experiments/bench/c_file.py [--flags '-O3 -march=native'] [--networks mlp,lenet,...]

Times are of the processor, of all threads, least of seven rounds: what others do on the machine hardly changes them.
JAX and ONNX Runtime answer one example at a time, ONNX Runtime by one thread. 'integers' is the list of the network
with fake quantization.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import jaxlite as jl
from jaxlite import models
from jaxlite.cpu.kernels.compiler import compiler
from jaxlite.deployment.c.source import Source, c_source
from jaxlite.deployment.integers.conversion import quantized
from jaxlite.deployment.operations import Graph
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized

_ROUNDS = 7
_SECONDS = 0.1  # of each round

NETWORKS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
  'mlp': (lambda: models.MLP((300, 100)), (28, 28, 1)),
  'lenet': (models.LeNet5, (28, 28, 1)),
  'small cnn': (models.SmallCNN, (28, 28, 1)),
  'depthwise': (models.DepthwiseCNN, (28, 28, 1)),
  'resnet8': (models.ResNet8, (28, 28, 1)),
  'vit': (lambda: models.ViT(patch=4, width=64, layers=4, heads=4), (28, 28, 1)),
}


def timed(work: Callable[[], Any]) -> float:
  """Returns milliseconds of the processor for a call, least of some rounds."""
  work()
  began = time.process_time()
  work()
  times = max(1, round(_SECONDS / max(1e-6, time.process_time() - began)))
  found = []
  for _ in range(_ROUNDS):
    began = time.process_time()
    for _ in range(times):
      work()
    found.append((time.process_time() - began) / times)
  return min(found) * 1e3


def timed_c(source: Source, example: np.ndarray, flags: str) -> float:
  """Returns milliseconds of the processor for an example in C."""
  name = source.name
  main = f"""#include <stdio.h>
#include <time.h>
#include "{name}.c"
static float input[{name.upper()}_INPUT_SIZE], output[{name.upper()}_OUTPUT_SIZE];
int main(void) {{
  if (fread(input, sizeof *input, {name.upper()}_INPUT_SIZE, stdin) != {name.upper()}_INPUT_SIZE) return 1;
  long times = 1;
  double least = 1e9;
  for (int round = 0; round < {_ROUNDS + 1}; ++round) {{
    const clock_t began = clock();
    for (long at = 0; at < times; ++at) {name}_predict(input, output);
    const double each = (double)(clock() - began) / CLOCKS_PER_SEC / (double)times;
    if (round == 0) times = (long)({_SECONDS} / (each > 1e-6 ? each : 1e-6)) + 1;
    else if (each < least) least = each;
  }}
  printf("%.6f %g\\n", least * 1e3, output[0]);
  return 0;
}}
"""
  with tempfile.TemporaryDirectory() as folder:
    where = Path(folder)
    (where / f'{name}.c').write_text(source.text)
    (where / 'main.c').write_text(main)
    command = [str(compiler()), '-std=c99', *flags.split(), 'main.c', '-o', 'main', '-lm']
    subprocess.run(command, cwd=where, check=True)
    done = subprocess.run([where / 'main'], input=example.astype(np.float32).tobytes(), capture_output=True, check=True)
  return float(done.stdout.split()[0])


def timed_onnx(graph: Graph, example: np.ndarray) -> float:
  """Returns milliseconds of the processor for an example in ONNX Runtime; NaN without it."""
  if any(importlib.util.find_spec(one) is None for one in ('onnx', 'onnxruntime')):
    return float('nan')
  import onnxruntime

  from jaxlite.deployment.onnx.file import onnx_bytes

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = 1
  session = onnxruntime.InferenceSession(onnx_bytes(graph), options, providers=['CPUExecutionProvider'])
  return timed(lambda: session.run(None, {'input': example}))


def integer_graph(network: Any, inputs: np.ndarray) -> Graph:
  """The list of a network trained for a step with fake quantization, in integers throughout."""
  train = jl.train_step(jl.adapt(network), jl.cross_entropy, jl.chain(jl.fake_quant(), optax.sgd(0.01)))
  batch = {'inputs': inputs, 'labels': np.arange(len(inputs)) % 10}
  state, _ = train.step(train.init(jax.random.key(0), batch), batch)
  model_state = {**state.model_state, **({'jl.const': state.const} if state.const else {})}
  known = (state.params, model_state)
  graph = lower(lambda known, x: train.model.apply(*known, x, train=False, key=None)[0], known, inputs)
  return quantized(graph, {'input': inputs}, every=True)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--flags', default='-O3 -march=native')
  parser.add_argument('--networks', default=','.join(NETWORKS))
  args = parser.parse_args()
  rng = np.random.default_rng(0)
  print(f'| ms of the processor, one example, {args.flags} | JAX | ONNX Runtime | C | C, integers | bytes of each |')
  print('|---|--:|--:|--:|--:|---|')
  for name in args.networks.split(','):
    make, shape = NETWORKS[name]
    inputs = rng.normal(size=(32, *shape)).astype(np.float32)
    model = jl.adapt(make())
    known = model.init(jax.random.key(0), inputs[:1])

    def apply(known: Any, x: Any, model: Any = model) -> Any:
      return model.apply(*known, x, train=False, key=None)[0]

    graph = recognized(lower(apply, known, inputs))
    compiled, one = jax.jit(apply), jax.device_put(inputs[:1])
    figures = [timed(lambda: jax.block_until_ready(compiled(known, one))), timed_onnx(graph, inputs[:1])]  # noqa: B023
    source = c_source(graph, 'net')
    figures.append(timed_c(source, inputs[0], args.flags))
    whole = integer_graph(make(), inputs)
    sizes = f'{source.constants:,} and {source.memory:,}'
    if whole is None:
      figures.append(float('nan'))
    else:
      source = c_source(whole, 'net')
      figures.append(timed_c(source, inputs[0], args.flags))
      sizes += f'; {source.constants:,} and {source.memory:,}'
    print(f'| {name} | {" | ".join(f"{figure:.3f}" for figure in figures)} | {sizes} |', flush=True)


if __name__ == '__main__':
  main()
