"""Whether every runtime computes the same integers, image by image, from Fashion-MNIST's 10,000 for testing.

  python experiments/bench/agreement.py [--networks=mlp,cnn] [--images=10000] [--levels=-O0,-O3]
  python experiments/bench/agreement.py --levels=-O0:500,-O3 --eager=500   # what is slow, on the first 500 images

Each network trains briefly with `fake_quant(every=True)` on a part of the training set: agreement is judged, not
accuracy. Its integers are then computed by JAX compiled and operation by operation, from the packed file as it is read
back, and by the C file at each level of optimization: counted is every integer of every layer that differs from those
of compiled JAX, over all images. The answers of fake quantization itself, compiled, are compared to the last bit.
ONNX Runtime, and LiteRT where it is installed, are judged by their largest output, ties going to the first.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list('networks', ['mlp', 'cnn', 'resnet20', 'depthwise', 'vit'], 'which')
flags.DEFINE_integer('images', 10_000, 'for testing')
flags.DEFINE_integer('examples', 20_000, 'for training, one epoch')
flags.DEFINE_list('levels', ['-O0', '-O3'], 'of the C compiler; -O0:500 is judged on the first 500 images')
flags.DEFINE_integer('eager', 10_000, 'images that are computed operation by operation')
flags.DEFINE_string('data', '/usr/share/datasets/fashion-mnist', 'folder of the data set')
flags.DEFINE_string('out', '', 'a file that gets the table as JSON too')

_AT_ONCE = 1000
_MOST = 1 << 29  # bytes of what a C program tells at once


def networks() -> dict[str, Callable[[], Any]]:
  """Returns what makes each network."""
  from jaxlite import models

  return {
    'mlp': lambda: models.MLP((300, 100)),
    'cnn': models.SmallCNN,
    'resnet20': models.ResNet20,
    'depthwise': models.DepthwiseCNN,
    'vit': models.ViT,
  }


def trained(model: Any, images: np.ndarray, labels: np.ndarray, batch: int = 100) -> tuple[Any, Any]:
  """Returns a network's forward and its values, after one pass over the images."""
  import jax
  import optax

  import jaxlite as jl
  from jaxlite.contract import join_const

  steps = len(images) // batch
  recipe = jl.chain(jl.fake_quant(every=True), optax.adam(optax.cosine_decay_schedule(2e-3, steps)))
  train = jl.train_step(jl.adapt(model), jl.tasks.cross_entropy, recipe)
  first = {'inputs': images[:batch], 'labels': labels[:batch]}
  state = train.init(jax.random.key(0), first)
  for index in range(steps):
    rows = slice(index * batch, (index + 1) * batch)
    state, _ = train.step(state, {'inputs': images[rows], 'labels': labels[rows]})

  def forward(known: Any, inputs: Any) -> Any:
    return train.model.apply(*known, inputs, train=False, key=None)[0]

  return forward, jax.device_get((state.params, join_const(state.model_state, state.const)))


def parts(images: np.ndarray) -> Iterator[np.ndarray]:
  """Yields images by the hundreds."""
  for start in range(0, len(images), _AT_ONCE):
    yield images[start : start + _AT_ONCE]


def agreement(
  name: str, model: Any, train: Any, test: np.ndarray, labels: np.ndarray, levels: list[str], eager: int
) -> dict:
  """Returns one row: what differs, of how many.

  Args:
    name: of the network.
    model: it.
    train: (images, labels).
    test: images [N, 28, 28, 1].
    labels: of them.
    levels: of the C compiler, each with its number of images where it is not all: '-O0:500'.
    eager: images that are computed operation by operation.
  """
  import jax

  from jaxlite.deployment.agreement import in_integers
  from jaxlite.deployment.c import check as c_check
  from jaxlite.deployment.c.source import c_source
  from jaxlite.deployment.integers.conversion import quantized
  from jaxlite.deployment.operations.lowering import lower
  from jaxlite.deployment.packed.file import pack, unpack
  from jaxlite.deployment.running.program import traced

  forward, known = trained(model, *train)
  graph = quantized(lower(forward, known, test[:1]))
  whole = [one.outputs[0] for one in graph.operations if graph.values[one.outputs[0]].dtype == np.int8]
  back = unpack(pack(graph, names=True)).graph
  fake, ours, theirs = (jax.jit(fn) for fn in (forward, lambda x: traced(graph, x), lambda x: traced(back, x)))
  source = c_source(graph)
  row: dict[str, Any] = {
    'network': name,
    'in integers': in_integers(graph),
    'integers': 0,
    'right': 0,
    'images': len(test),
  }
  row |= dict.fromkeys(
    ('answers otherwise than fake quantization', 'eager', 'unpacked', *(f'C {one}' for one in levels)), 0
  )
  answers = []
  done = 0
  for images in parts(test):
    values = {one: np.asarray(array) for one, array in ours(images).items() if one in {*whole, *graph.outputs}}
    answers.append(values[graph.outputs[0]])
    row['integers'] += sum(values[one].size for one in whole)
    row['answers otherwise than fake quantization'] += int(
      (np.asarray(fake(known, images)) != answers[-1]).any(-1).sum()
    )
    others = {'unpacked': theirs(images)}
    if done < eager:
      others['eager'] = traced(graph, images[: eager - done])
    for what, found in others.items():
      told = {one: np.asarray(found[one]) for one in whole}
      row[what] += sum(int((one != values[name][: len(one)]).sum()) for name, one in told.items())
    for level in levels:
      how, _, most = level.partition(':')
      few = images[: max(0, int(most or len(test)) - done)]
      if len(few):
        row[f'C {level}'] += sum(_apart(c_check, source, graph, few, values, whole, ['cc', '-std=c99', how]))
    done += len(images)
    print(f'{name}: {done:,} images, {time.process_time():.0f} s', file=sys.stderr, flush=True)
  best = np.concatenate(answers).argmax(-1)
  row['right'] = int((best == labels).sum())
  row |= _runtimes(graph, test, best)
  return row


def _apart(
  c_check: Any, source: Any, graph: Any, images: Any, values: Any, whole: list[str], command: list[str]
) -> Iterator[int]:
  """How many integers a C file computes otherwise."""
  each = sum(array.nbytes for array in values.values()) // len(images)
  most = max(1, _MOST // max(1, 6 * each))
  for start in range(0, len(images), most):
    few = images[start : start + most]
    ran = c_check.run(source, graph, {graph.inputs[0]: few}, command, look=len(few))
    for index, seen in enumerate(ran.seen):
      yield sum(
        int((seen[one].reshape(-1) != values[one][start + index].reshape(-1)).sum()) for one in whole if one in seen
      )


def _runtimes(graph: Any, test: np.ndarray, best: np.ndarray) -> dict[str, int]:
  """How many images other runtimes name another class of."""
  from jaxlite.deployment import formats, trial
  from jaxlite.deployment.litert.file import litert_bytes
  from jaxlite.deployment.onnx.file import onnx_bytes

  found = {}
  with tempfile.TemporaryDirectory() as folder:
    for kind, write in (('onnx', onnx_bytes), ('litert', litert_bytes)):
      if formats.missing(kind):
        print(formats.missing(kind), file=sys.stderr)
        continue
      path = Path(folder, kind)
      path.write_bytes(write(graph))
      answer = trial.ask(kind, path, {graph.inputs[0]: test}, batches=(), seconds=0.0).outputs['0']
      found[kind] = int((answer.argmax(-1) != best).sum())
  return found


def read(folder: str, part: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns images [N, 28, 28, 1] from 0 to 1 and labels of the four published files."""
  with gzip.open(Path(folder, f'{part}-images-idx3-ubyte.gz')) as file:
    pixels = np.frombuffer(file.read(), np.uint8, offset=16)
  with gzip.open(Path(folder, f'{part}-labels-idx1-ubyte.gz')) as file:
    labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int32)
  return pixels.reshape(-1, 28, 28, 1).astype(np.float32) * np.float32(1 / 255), labels


def table(rows: list[dict[str, Any]]) -> str:
  """Returns the rows as Markdown."""
  names = list(dict.fromkeys(name for row in rows for name in row if name != 'in integers'))
  lines = ['| ' + ' | '.join(names) + ' |', '|' + '--|' + '--:|' * (len(names) - 1)]
  for row in rows:
    told = [row.get(name, '-') for name in names]
    lines.append('| ' + ' | '.join(f'{one:,}' if isinstance(one, int) else str(one) for one in told) + ' |')
  return '\n'.join(lines)


def main(_: list[str]) -> None:
  """Prints the table."""
  sets = {part: read(FLAGS.data, part) for part in ('train', 't10k')}
  rows = []
  for name in FLAGS.networks:
    train = tuple(array[: FLAGS.examples] for array in sets['train'])
    test = tuple(array[: FLAGS.images] for array in sets['t10k'])
    rows.append(agreement(name, networks()[name](), train, *test, FLAGS.levels, FLAGS.eager))
    print(table(rows), flush=True)
  if FLAGS.out:
    Path(FLAGS.out).write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
