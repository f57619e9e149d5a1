"""Whether every runtime computes the same integers, image by image, from Fashion-MNIST's 10,000 for testing.

  python experiments/bench/agreement.py [--networks=mlp,cnn] [--images=10000] [--levels=-O0,-O3]
  python experiments/bench/agreement.py --levels=-O0:500,-O3 --eager=500   # what is slow, on the first 500 images
  python experiments/bench/agreement.py --keep=runs/agreement --minutes=4   # again until the table stands

Each network trains briefly with `fake_quant(every=True)` on a part of the training set: agreement is judged, not
accuracy. Its integers are then computed by JAX compiled and operation by operation, from the packed file as it is read
back, and by the C file at each level of optimization: counted is every integer of every layer that differs from those
of compiled JAX, over all images. The answers of fake quantization itself, compiled, are compared to the last bit.
ONNX Runtime, and LiteRT where it is installed, are judged by their largest output, ties going to the first; OpenVINO,
which reads the ONNX file by the interpreter of `--openvino_python`, also by the steps of the output's grid. With
`--keep` what was trained and every thousand images that were judged stay in a folder, and a killed run goes on there.
"""

from __future__ import annotations

import functools
import gzip
import json
import subprocess
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
flags.DEFINE_string('keep', '', 'a folder where a killed run goes on')
flags.DEFINE_float('minutes', float('inf'), 'after which it ends, with --keep: the same command goes on')
flags.DEFINE_string('openvino_python', '', 'the interpreter that has OpenVINO')
flags.DEFINE_bool('openvino_floats', False, 'with OpenVINO, leave out its low-precision transformation')
flags.DEFINE_string('out', '', 'a file that gets the table as JSON too')

_AT_ONCE = 500
_BEGAN = time.perf_counter()
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


def trained(model: Any, images: np.ndarray, labels: np.ndarray, kept: Path | None, batch: int = 100) -> tuple[Any, Any]:
  """Returns a network's forward and its values, after one pass over the images; `kept` has them from then on."""
  import jax
  import optax

  import jaxlite as jl
  from jaxlite.contract import join_const

  steps = len(images) // batch
  recipe = jl.chain(jl.fake_quant(every=True), optax.adam(optax.cosine_decay_schedule(2e-3, steps)))
  train = jl.train_step(jl.adapt(model), jl.tasks.cross_entropy, recipe)
  first = {'inputs': images[:batch], 'labels': labels[:batch]}
  state = train.init(jax.random.key(0), first)
  if kept is None or not kept.exists():
    for index in range(steps):
      rows = slice(index * batch, (index + 1) * batch)
      state, _ = train.step(state, {'inputs': images[rows], 'labels': labels[rows]})

  def forward(known: Any, inputs: Any) -> Any:
    return train.model.apply(*known, inputs, train=False, key=None)[0]

  known = jax.device_get((state.params, join_const(state.model_state, state.const)))
  if kept is not None:
    leaves, structure = jax.tree.flatten(known)
    if not kept.exists():
      write_whole(kept, lambda file: np.savez(file, *leaves))
    with np.load(kept) as held:
      known = jax.tree.unflatten(structure, [held[f'arr_{index}'] for index in range(len(leaves))])
  return forward, known


def write_whole(path: Path, write: Callable[[Any], None]) -> None:
  """Writes a file that a killed process leaves either whole or not there."""
  aside = path.with_suffix('.part')
  with open(aside, 'wb') as file:
    write(file)
  aside.replace(path)


class Judge:
  """One network, and how all that computes it compares on some images.

  Args:
    model: the network.
    train: (images, labels).
    levels: of the C compiler, each with its number of images where it is not all: '-O0:500'.
    eager: images that are computed operation by operation.
    kept: a file that keeps what was trained, or None.
  """

  def __init__(self, model: Any, train: Any, levels: list[str], eager: int, kept: Path | None) -> None:
    import jax

    from jaxlite.deployment.c.source import c_source
    from jaxlite.deployment.integers.conversion import quantized
    from jaxlite.deployment.operations.lowering import lower
    from jaxlite.deployment.packed.file import pack, unpack
    from jaxlite.deployment.running.program import traced

    forward, self.known = trained(model, *train, kept)
    self.graph = quantized(lower(forward, self.known, train[0][:1]))
    self.whole = [one.outputs[0] for one in self.graph.operations if self.graph.values[one.outputs[0]].dtype == np.int8]
    back = unpack(pack(self.graph, names=True)).graph
    mine = {*self.whole, *self.graph.outputs}  # were the floats between given too, XLA would compile other sums of them

    def seen(graph: Any) -> Callable[[Any], dict[str, Any]]:
      return lambda x: {name: array for name, array in traced(graph, x).items() if name in mine}

    self.fake, self.ours = jax.jit(forward), jax.jit(seen(self.graph))
    self.unpacked, self.plain = jax.jit(seen(back)), seen(self.graph)
    self.source, self.levels, self.eager = c_source(self.graph), levels, eager

  def works(self, images: int) -> Iterator[tuple[str, int]]:
    """Yields what is compared and on how many of the images: 'all', and what is slow."""
    yield 'all', images
    yield 'eager', min(self.eager, images)
    for level in self.levels:
      yield f'C {level}', min(int(level.partition(':')[2] or images), images)

  def compared(self, what: str, images: np.ndarray) -> tuple[dict[str, int], np.ndarray]:
    """Returns how many integers differ from compiled JAX's, and its answers; of 'all' also whose answers do.

    Args:
      what: as `works` names it.
      images: some of them.
    """
    from jaxlite.deployment.c import check as c_check

    values = {one: np.asarray(array) for one, array in self.ours(images).items()}
    answers = values[self.graph.outputs[0]]
    if what.startswith('C '):
      command = ['cc', '-std=c99', what.removeprefix('C ').partition(':')[0]]
      return {what: sum(_apart(c_check, self.source, self.graph, images, values, self.whole, command))}, answers
    found = (self.plain if what == 'eager' else self.unpacked)(images)
    row = {'unpacked' if what == 'all' else what: sum(int((found[one] != values[one]).sum()) for one in self.whole)}
    if what == 'all':
      row['integers'] = sum(values[one].size for one in self.whole)
      fake = np.asarray(self.fake(self.known, images))
      row['answers otherwise than fake quantization'] = int((fake != answers).any(-1).sum())
    return row, answers


def agreement(
  name: str,
  judge: Callable[[], Judge],
  test: np.ndarray,
  labels: np.ndarray,
  keep: Path | None = None,
  until: float = float('inf'),
  python: str = '',
  floats: bool = False,
) -> dict | None:
  """Returns one row: what differs, of how many; None where the time was over.

  Args:
    name: of the network.
    judge: makes what compares.
    test: images [N, 28, 28, 1].
    labels: of them.
    keep: a folder of what was found already, or None.
    until: when no further images are taken up, by `time.perf_counter`.
    python: the interpreter that has OpenVINO, '' for none.
  """
  from jaxlite.deployment.agreement import in_integers

  one, answers = judge(), []
  row: dict[str, Any] = {'network': name, 'in integers': in_integers(one.graph), 'right': 0, 'images': len(test)}
  row |= dict.fromkeys(('integers', 'answers otherwise than fake quantization', 'unpacked'), 0)
  for what, most in one.works(len(test)):
    for start in range(0, most, _AT_ONCE):
      images = test[start : min(start + _AT_ONCE, most)]
      kept = keep and keep / f'{name}{what}-{start}.npz'
      if kept is None or not kept.exists():
        if time.perf_counter() > until:
          return None
        counts, told = one.compared(what, images)
        seconds = f'{time.process_time():.0f} s'
        print(f'{name}, {what}: {start + len(images):,} images, {seconds}', file=sys.stderr, flush=True)
        if kept:
          write_whole(kept, functools.partial(np.savez, answers=told, counts=json.dumps(counts)))
      else:
        with np.load(kept) as held:
          counts, told = json.loads(str(held['counts'])), held['answers']
      if what == 'all':
        answers.append(told)
      for each, count in counts.items():
        row[each] = row.get(each, 0) + count
  ours = np.concatenate(answers)
  row['right'] = int((ours.argmax(-1) == labels).sum())
  return row | _runtimes(one.graph, test, ours.argmax(-1)) | openvino(one.graph, test, labels, ours, python, floats)


def _apart(
  c_check: Any, source: Any, graph: Any, images: Any, values: Any, whole: list[str], command: list[str]
) -> Iterator[int]:
  """How many integers a C file computes otherwise."""
  each = sum(array.nbytes for array in values.values()) // max(1, len(images))
  most = max(1, _MOST // max(1, 6 * each))
  for start in range(0, len(images), most):
    few = images[start : start + most]
    ran = c_check.run(source, graph, {graph.inputs[0]: few}, command, look=len(few))
    for index, seen in enumerate(ran.seen):
      mine = {name: _of_one(graph, name, values[name], start + index) for name in whole if name in seen}
      yield sum(int((seen[name].reshape(-1) != array.reshape(-1)).sum()) for name, array in mine.items())


def _of_one(graph: Any, name: str, array: np.ndarray, index: int) -> np.ndarray:
  """What a value of all images holds for one: some rows of the axis that grows with them, whichever it is."""
  from jaxlite.deployment.operations import Batch

  for axis, size in enumerate(graph.values[name].shape):
    if isinstance(size, Batch):
      return array.take(range(index * size.times, (index + 1) * size.times), axis)
  return array


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


def openvino(
  graph: Any, test: np.ndarray, labels: np.ndarray, ours: np.ndarray, python: str, floats: bool = False
) -> dict[str, Any]:
  """How many images OpenVINO names another class of, how many it names rightly, and how many steps it is away.

  Args:
    graph: of integers.
    test: images.
    labels: of them.
    ours: the answers of compiled JAX.
    python: the interpreter that has it, '' for none.
    floats: whether it leaves out its low-precision transformation.
  """
  from jaxlite.deployment.agreement import step_of
  from jaxlite.deployment.onnx.file import onnx_bytes

  if not python:
    return {}
  with tempfile.TemporaryDirectory() as folder:
    file, given, to = (Path(folder, name) for name in ('network.onnx', 'in.npy', 'out.npy'))
    file.write_bytes(onnx_bytes(graph))
    np.save(given, test)
    worker = Path(__file__).with_name('openvino_answers.py')
    how = ['floats'] if floats else []
    subprocess.run([python, str(worker), str(file), str(given), str(to), *how], check=True)
    answers = np.load(to)
  steps = np.abs(answers - ours).max(-1) / step_of(graph, graph.outputs[0])
  return {
    'openvino': int((answers.argmax(-1) != ours.argmax(-1)).sum()),
    'openvino right': int((answers.argmax(-1) == labels).sum()),
    'openvino steps, most': round(float(steps.max()), 2),
    'openvino steps, 99 %': round(float(np.quantile(steps, 0.99)), 2),
  }


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


def _folder(keep: str) -> Path | None:
  """Of what is kept by one set of settings: those of another are refused."""
  if not keep:
    return None
  told = json.dumps({name: FLAGS[name].value for name in ('images', 'examples', 'levels', 'eager')})
  settings = Path(keep, 'settings.json')
  settings.parent.mkdir(parents=True, exist_ok=True)
  if settings.exists() and settings.read_text() != told:
    raise ValueError(f'{keep} holds what {settings.read_text()} found: give another folder for {told}')
  settings.write_text(told)
  import jax

  jax.config.update('jax_compilation_cache_dir', str(settings.parent / 'programs'))
  return settings.parent


def main(_: list[str]) -> None:
  """Prints the table."""
  sets = {part: read(FLAGS.data, part) for part in ('train', 't10k')}
  train = tuple(array[: FLAGS.examples] for array in sets['train'])
  test = tuple(array[: FLAGS.images] for array in sets['t10k'])
  keep = _folder(FLAGS.keep)
  rows = []
  for name in FLAGS.networks:
    kept = keep and keep / f'{name}.npz'
    judge = functools.partial(Judge, networks()[name](), train, FLAGS.levels, FLAGS.eager, kept)
    row = agreement(name, judge, *test, keep, _BEGAN + 60 * FLAGS.minutes, FLAGS.openvino_python, FLAGS.openvino_floats)
    if row is None:
      print(f'{name}: {FLAGS.minutes:g} minutes are over; the same command goes on')
      return
    rows.append(row)
    print(table(rows), flush=True)
  if FLAGS.out:
    Path(FLAGS.out).write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
