"""Whole networks of integers on a CPU: their time beside that of our own floats and of ONNX Runtime's int8.

  python experiments/bench/integers.py [--networks=cnn,resnet20] [--batches=32,1] [--rounds=7]

Each network takes a few steps with fake quantization on noise: times do not hang on what it learned. In each round a
process of JAX times its floats (in the faster forms of `jl.for_cpu`) and its integers (`running.runner`) in pieces of a
tenth of a second in turn, then a process of ONNX Runtime times the same integers in QDQ form. Shown are medians over the rounds, each round's own being
that of its calls, and ratios of the two processes' medians, round by round, with the least and the largest.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list('networks', ['lenet300', 'cnn', 'depthwise', 'resnet20', 'vit'], 'which')
flags.DEFINE_list('batches', ['32', '1'], 'sizes that are timed')
flags.DEFINE_integer('rounds', 7, 'of two processes each')
flags.DEFINE_float('seconds', 1.0, 'of timing, for each of both')
flags.DEFINE_string('worker', '', 'jax or onnx: times a network that is there, for the rounds')
flags.DEFINE_string('folder', '', 'of the worker: where the network is')

_SHAPE = (28, 28, 1)
_PIECE = 0.1  # seconds


def built(name: str) -> tuple[Any, Any]:
  """Returns a network as a function of its inputs in floats, and its list of integers."""
  import jax
  import optax

  import jaxlite as jl
  from jaxlite import models
  from jaxlite.deployment.integers.conversion import quantized
  from jaxlite.deployment.operations.lowering import lower

  networks: dict[str, Callable[[], Any]] = {
    'lenet300': models.LeNet300,
    'lenet5': models.LeNet5,
    'cnn': models.SmallCNN,
    'depthwise': models.DepthwiseCNN,
    'resnet20': models.ResNet20,
    'vit': models.ViT,
  }
  x = np.random.default_rng(0).normal(size=(32, *_SHAPE)).astype(np.float32)
  batch = {'inputs': x, 'labels': np.arange(32) % 10}
  model = jl.adapt(networks[name]())
  train = jl.train_step(model, jl.tasks.cross_entropy, jl.chain(jl.fake_quant(), optax.adam(1e-3)))
  state = train.init(jax.random.key(0), batch)
  for _ in range(3):
    state, _ = train.step(state, batch)
  values = {'params': state.params, 'state': state.model_state}

  def fake(values: Any, x: Any) -> Any:
    return train.model.apply(values['params'], values['state'], x, train=False, key=None)[0]

  plain = {kind: {key: one for key, one in values[kind].items() if not key.startswith('jl.')} for kind in values}

  def floats(x: Any) -> Any:
    return model.apply(plain['params'], plain['state'], x, train=False, key=None)[0]

  return floats, quantized(lower(fake, values, x), x, every=name != 'vit')


def timed(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
  """Median milliseconds of calls, of pieces of a tenth of a second in turn: each call follows one of its own kind."""
  found: dict[str, list[float]] = {name: [] for name in calls}
  for call in calls.values():
    for _ in range(3):
      call()
  end = time.perf_counter() + FLAGS.seconds * len(calls)
  while time.perf_counter() < end:
    for name, call in calls.items():
      call()
      piece = time.perf_counter() + _PIECE
      while (began := time.perf_counter()) < piece:
        call()
        found[name].append(1e3 * (time.perf_counter() - began))
  return {name: statistics.median(each) for name, each in found.items()}


def work() -> None:
  """What a process of a round does."""
  folder, rows = Path(FLAGS.folder), {}
  x = np.random.default_rng(1).normal(size=(64, *_SHAPE)).astype(np.float32)
  if FLAGS.worker == 'onnx':
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(folder / 'net.onnx', options, providers=['CPUExecutionProvider'])
    for size in map(int, FLAGS.batches):
      rows[size] = timed({'onnx': lambda given=x[:size]: session.run(None, {'input': given})})
  else:
    import jax

    import jaxlite as jl
    from jaxlite.deployment.running.runner import runner

    floats, graph = built(FLAGS.networks[0])
    run = {'float': jax.jit(jl.for_cpu(floats)), 'int': jax.jit(runner(graph))}
    for size in map(int, FLAGS.batches):
      given = jax.device_put(x[:size])
      calls = {name: lambda fn=fn, given=given: fn(given).block_until_ready() for name, fn in run.items()}
      rows[size] = timed(calls)
  print(json.dumps(rows))


def answered(kind: str, name: str, folder: str) -> dict[str, dict[str, float]]:
  """One process of a round, its medians by batch size."""
  command = [sys.executable, __file__, f'--worker={kind}', f'--networks={name}', f'--folder={folder}']
  command += [f'--batches={",".join(FLAGS.batches)}', f'--seconds={FLAGS.seconds}']
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise RuntimeError(done.stderr[-2000:])
  return json.loads(done.stdout.splitlines()[-1])


def ratio(one: list[float], other: list[float]) -> str:
  """Median, least and largest of a ratio, round by round."""
  each = [a / b for a, b in zip(one, other, strict=True)]
  return f'{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})'


def main(_: Any) -> None:
  if FLAGS.worker:
    work()
    return
  from jaxlite.deployment.onnx.file import onnx_bytes

  print('| network | batch | float32, ms | int8, ms | float32 / int8 | ONNX Runtime int8, ms | ONNX Runtime / ours |')
  print('|---|--:|--:|--:|--:|--:|--:|')
  for name in FLAGS.networks:
    with tempfile.TemporaryDirectory() as folder:
      (Path(folder) / 'net.onnx').write_bytes(onnx_bytes(built(name)[1]))
      rounds = [{kind: answered(kind, name, folder) for kind in ('jax', 'onnx')} for _ in range(FLAGS.rounds)]
    for size in FLAGS.batches:
      found = {
        kind: [one['onnx' if kind == 'onnx' else 'jax'][size][kind] for one in rounds]
        for kind in ('float', 'int', 'onnx')
      }
      middle = {kind: statistics.median(each) for kind, each in found.items()}
      print(
        f'| {name} | {size} | {middle["float"]:.3f} | {middle["int"]:.3f} | {ratio(found["float"], found["int"])} | '
        f'{middle["onnx"]:.3f} | {ratio(found["onnx"], found["int"])} |',
        flush=True,
      )


if __name__ == '__main__':
  app.run(main)
