"""Whole networks of integers on a CPU: their time beside that of our own floats and of ONNX Runtime's int8.

  python experiments/bench/integers.py [--networks=cnn,resnet20] [--batches=32,1] [--rounds=7] [--quantile=0.5]

Each network takes a few steps with fake quantization on noise: times do not hang on what it learned. Two processes hold
it, one with JAX (floats in the faster forms of `jl.for_cpu`, integers by `running.runner`), one with ONNX Runtime and
the same integers in QDQ form. In each round each of the three is called for a piece of time, one after the other, so
that each call follows one of its own kind. Shown are medians over the rounds of each round's quantile (the median; on a
busy machine the quickest tenth says more of the code), and ratios, round by round, with the least and the largest.
"""

from __future__ import annotations

import functools
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
flags.DEFINE_integer('rounds', 7, 'of three pieces each')
flags.DEFINE_float('seconds', 1.0, 'of a piece')
flags.DEFINE_float('quantile', 0.5, 'of the calls of a piece')
flags.DEFINE_string('worker', '', 'jax or onnx: times what it is asked for, line by line')
flags.DEFINE_string('folder', '', 'of the worker: where the network is')

_SHAPE = (28, 28, 1)


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


def timed(call: Callable[[], Any]) -> float:
  """Milliseconds of a call, of those of a piece of time the quantile that is wanted."""
  for _ in range(3):
    call()
  found, end = [], time.perf_counter() + FLAGS.seconds
  while (began := time.perf_counter()) < end:
    call()
    found.append(1e3 * (time.perf_counter() - began))
  return float(np.quantile(found, FLAGS.quantile))


def work() -> None:
  """What a process does: of each line that it reads, a kind and a batch size, it writes the time."""
  folder = Path(FLAGS.folder)
  x = np.random.default_rng(1).normal(size=(64, *_SHAPE)).astype(np.float32)
  if FLAGS.worker == 'onnx':
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(folder / 'net.onnx', options, providers=['CPUExecutionProvider'])
    given = {size: x[:size] for size in map(int, FLAGS.batches)}
    calls = {'onnx': lambda size: session.run(None, {'input': given[size]})}
  else:
    import jax

    import jaxlite as jl
    from jaxlite.deployment.onnx.file import onnx_bytes
    from jaxlite.deployment.running.runner import runner

    floats, graph = built(FLAGS.networks[0])
    (folder / 'net.onnx').write_bytes(onnx_bytes(graph))
    on_device = {size: jax.device_put(x[:size]) for size in map(int, FLAGS.batches)}
    run = {'float': jax.jit(jl.for_cpu(floats)), 'int': jax.jit(runner(graph))}
    calls = {
      name: lambda size, fn=fn: fn(on_device[size]).block_until_ready()  # type: ignore[misc]
      for name, fn in run.items()
    }
  print('ready', flush=True)
  for line in sys.stdin:
    kind, size = line.split()
    print(timed(functools.partial(calls[kind], int(size))), flush=True)


class Worker:
  """A process that times one network."""

  def __init__(self, kind: str, name: str, folder: str):
    command = [sys.executable, __file__, f'--worker={kind}', f'--networks={name}', f'--folder={folder}']
    command += [f'--batches={",".join(FLAGS.batches)}', f'--seconds={FLAGS.seconds}', f'--quantile={FLAGS.quantile}']
    self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self.answer()

  def answer(self) -> str:
    line = self.process.stdout.readline()  # type: ignore[union-attr]
    if not line:
      raise RuntimeError(f'a worker ended with {self.process.wait()}')
    return line

  def ask(self, kind: str, size: str) -> float:
    self.process.stdin.write(f'{kind} {size}\n')  # type: ignore[union-attr]
    self.process.stdin.flush()  # type: ignore[union-attr]
    return float(self.answer())

  def end(self) -> None:
    self.process.communicate()


def ratio(one: list[float], other: list[float]) -> str:
  """Median, least and largest of a ratio, round by round."""
  each = [a / b for a, b in zip(one, other, strict=True)]
  return f'{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})'


def main(_: Any) -> None:
  if FLAGS.worker:
    work()
    return
  print('| network | batch | float32, ms | int8, ms | float32 / int8 | ONNX Runtime int8, ms | ONNX Runtime / ours |')
  print('|---|--:|--:|--:|--:|--:|--:|', flush=True)
  for name in FLAGS.networks:
    with tempfile.TemporaryDirectory() as folder:
      ours = Worker('jax', name, folder)  # writes the file that the other reads
      asked = {'float': ours, 'int': ours, 'onnx': Worker('onnx', name, folder)}
      for size in FLAGS.batches:
        rounds = [{kind: worker.ask(kind, size) for kind, worker in asked.items()} for _ in range(FLAGS.rounds)]
        found = {kind: [one[kind] for one in rounds] for kind in asked}
        show(name, size, found)
      for worker in (ours, asked['onnx']):
        worker.end()


def show(name: str, size: str, found: dict[str, list[float]]) -> None:
  """Prints a row."""
  middle = {kind: statistics.median(each) for kind, each in found.items()}
  print(
    f'| {name} | {size} | {middle["float"]:.3f} | {middle["int"]:.3f} | {ratio(found["float"], found["int"])} | '
    f'{middle["onnx"]:.3f} | {ratio(found["onnx"], found["int"])} |',
    flush=True,
  )


if __name__ == '__main__':
  app.run(main)
