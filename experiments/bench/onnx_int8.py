"""Networks of few bits in ONNX Runtime: the time of their integers beside that of floats, and whether they agree.

  python experiments/bench/onnx_int8.py --workdir=runs/onnx_int8 --networks=mlp,cnn,resnet8,depthwise,vit

Each network trains on the digits with fake quantization and is written twice: its list of operations in floats, and as
integers. Files take turns in one process, two threads, batch by batch, so that what else the machine does meets both;
shown are the fastest and the median call. Agreement is counted on the test split: examples whose largest output is that
of the run's own program, and the largest distance from the rules of the integers in steps of the last grid.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string('workdir', 'runs/onnx_int8', 'where the runs are kept')
flags.DEFINE_list('networks', ['mlp', 'cnn', 'resnet8', 'depthwise', 'vit'], 'which')
flags.DEFINE_list('batches', ['1', '32'], 'sizes that are timed')
flags.DEFINE_integer('epochs', 10, 'of training')
flags.DEFINE_float('seconds', 2.0, 'of timing, for each size')
flags.DEFINE_bool('every', False, 'also quantize where ranges are missing, such as before additions')


def trained(name: str, folder: Path) -> Any:
  """Trains where that was not done before; returns the list of operations."""
  import optax

  import jaxlite as jl
  from jaxlite import models
  from jaxlite.deployment.operations.listing import graph_of

  networks = {
    'mlp': lambda: models.MLP((256, 128)),
    'cnn': models.SmallCNN,
    'resnet8': models.ResNet8,
    'resnet20': models.ResNet20,
    'depthwise': models.DepthwiseCNN,
    'vit': models.ViT,
  }
  config = jl.Config(name=name, train=jl.Duration(epochs=FLAGS.epochs))
  config.recipe = lambda config, total: jl.chain(jl.fake_quant(), optax.adam(optax.cosine_decay_schedule(2e-3, total)))
  config.data.source = 'digits'
  jl.train(config, folder, model=networks[name](), say=lambda line: None)
  return graph_of(folder)


def timed(sessions: dict[str, Any], rows: np.ndarray, seconds: float) -> dict[str, np.ndarray]:
  """Milliseconds of each call, the sessions in turn."""
  found: dict[str, list[float]] = {name: [] for name in sessions}
  for session in sessions.values():
    for _ in range(5):
      session.run(None, {'input': rows})
  end = time.perf_counter() + seconds
  while time.perf_counter() < end:
    for name, session in sessions.items():
      began = time.perf_counter()
      session.run(None, {'input': rows})
      found[name].append(1e3 * (time.perf_counter() - began))
  return {name: np.array(each) for name, each in found.items()}


def main(_: Any) -> None:
  import onnxruntime

  import jaxlite as jl
  from jaxlite.deployment import agreement
  from jaxlite.deployment.integers.conversion import quantized
  from jaxlite.deployment.onnx.file import onnx_bytes
  from jaxlite.deployment.operations import reference
  from jaxlite.deployment.operations.patterns import recognized

  data = jl.data.load('digits')
  inputs = data.test.inputs
  print('| network | batch | float32, ms min/p50 | int8, ms min/p50 | int8 / float32 | bytes | same | steps |')
  print('|---|--:|--:|--:|--:|--:|--:|--:|')
  for name in FLAGS.networks:
    folder = Path(FLAGS.workdir, name)
    graph = trained(name, folder)
    whole = quantized(graph, {'input': data.train.inputs[:512]}, every=FLAGS.every)
    files = {'float32': onnx_bytes(recognized(graph)), 'int8': onnx_bytes(whole)}
    sessions = {}
    for kind, file in files.items():
      options = onnxruntime.SessionOptions()
      options.intra_op_num_threads = 2
      sessions[kind] = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    answers = sessions['int8'].run(None, {'input': inputs})[0]
    same = agreement.same_largest(answers, np.asarray(jl.load(folder).predict(inputs)))
    step = agreement.step_of(whole, whole.outputs[0])
    apart, _ = agreement.apart([answers[:64]], [reference.run(whole, inputs[:64])], [step])
    size = len(files['int8']) / len(files['float32'])
    for batch in map(int, FLAGS.batches):
      each = timed(sessions, np.ascontiguousarray(np.resize(inputs, (batch, *inputs.shape[1:]))), FLAGS.seconds)
      cells = [f'{ms.min():.3f} / {np.median(ms):.3f}' for ms in (each['float32'], each['int8'])]
      ratio = f'{each["int8"].min() / each["float32"].min():.2f}'
      print(f'| {name} | {batch} | {" | ".join(cells)} | {ratio} | {size:.2f} | {same:.2%} | {apart:.2g} |', flush=True)


if __name__ == '__main__':
  app.run(main)
