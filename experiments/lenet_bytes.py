"""How few bytes hold LeNet-300-100 and LeNet-5 on Fashion-MNIST: trained for bits, packed, and scored from the file by
another process that has no JAX.

  python experiments/lenet_bytes.py --network=lenet300 --worth=2.1e-6,3.5e-6 --workdir=runs/lenet_bytes
  python experiments/lenet_bytes.py --draw --workdir=runs/lenet_bytes

A teacher, trained once, says what it thinks of each training picture as it is, in three shifted and in three mixed
copies. Every student learns from these: the dense network of a seed, and the network of few bits that starts from it,
for as many epochs each. With `--haar` its first layer reads the sums and differences of each 2x2 pixels in place of the
pixels: the same function of the same start, whose weights cost fewer bits.
Choices are made on the last 5,000 training pictures (`--tune` scores nothing else); the test split is scored once for
each file. Whatever is finished is kept in the workdir, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import itertools
import json
import lzma
import operator
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from bench.task_tables import interval

import jaxlite as jl
from jaxlite import trees
from jaxlite.deployment.operations import Graph
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from jaxlite.deployment.packed.file import packed_bytes, write_pack
from jaxlite.deployment.packed.scales import scaled
from jaxlite.deployment.unit_order import sort_units
from jaxlite.host.files import whole_file
from jaxlite.models import LeNet5, LeNet300, SmallCNN
from jaxlite.quantization import clustered, few_bits

BATCH = 128
DISPATCH = 43  # steps at once, a tenth of an epoch
NETWORKS = {
  'lenet300': LeNet300(),
  'lenet5': LeNet5(relu=True),
  'cnn': SmallCNN((16, 32, 64)),
  'wide': SmallCNN((32, 64, 128)),
}
PARAMETERS = {'lenet300': 266_610, 'lenet5': 431_080, 'cnn': 98_442, 'wide': 241_546}
TAUGHT = 12  # epochs of the teacher
COARSE = 1.5  # what divides the sums: they vary more than the differences, so their weights want finer steps
RATES = {'lenet300': 1e-3, 'lenet5': 1.5e-3, 'cnn': 2e-3, 'wide': 2e-3}  # of dense networks
FLAGS = flags.FLAGS
flags.DEFINE_enum('network', 'lenet300', list(NETWORKS), 'what is trained')
flags.DEFINE_list(
  'worth', ['2.1e-6', '3.5e-6'], 'loss for each bit; from 0.5 on, zeros of clustered weights; or nothing'
)
flags.DEFINE_integer('epochs', 60, 'of training for bits, and of the dense network before it')
flags.DEFINE_list('seeds', ['0', '1', '2', '3', '4'], 'runs')
flags.DEFINE_string('workdir', 'runs/lenet_bytes', 'where finished runs are kept')
flags.DEFINE_string('tune', '', 'a name for a try: validation alone is scored')
flags.DEFINE_list('rates', ['0.02', '2e-3'], 'learning rates: of weights, in steps, and of steps')
flags.DEFINE_float('step', 2.0, 'the first step, in deviations')
flags.DEFINE_string('teacher', '', 'folder of a finished run that teaches; without one, a teacher is trained')
flags.DEFINE_string('start', '', 'folder of a finished run whose network is made small; without one, it is trained')
flags.DEFINE_bool('haar', False, 'of lenet300: its first layer is stored in the basis of Haar, not of pixels')
flags.DEFINE_bool('draw', False, 'draw what is finished, and print its table')

READER = """
import json, sys
import numpy as np
from jaxlite.deployment.packed.file import unpack
network, held = unpack(sys.argv[1]), np.load(sys.argv[2])
parts = range(0, len(held['labels']), 500)
right = [network.predict(held['inputs'][at : at + 500]).argmax(-1) == held['labels'][at : at + 500] for at in parts]
assert 'jax' not in sys.modules
print(json.dumps(float(np.concatenate(right).mean())))
"""


def main(_: list[str]) -> None:
  folder = Path(FLAGS.workdir)
  if FLAGS.draw:
    return draw(folder)
  bench, rates = Bench(folder), tuple(map(float, FLAGS.rates))
  seeds = [int(seed) for seed in FLAGS.seeds]
  for seed in seeds:
    bench.dense(FLAGS.network, FLAGS.epochs, seed)
    for worth in map(float, FLAGS.worth):
      bench.file(FLAGS.network, worth, FLAGS.epochs, seed, rates, FLAGS.step, FLAGS.tune)
  return None


class Bench:
  """Data, teacher, and what is finished, in one folder."""

  def __init__(self, folder: Path):
    self.folder = folder
    folder.mkdir(parents=True, exist_ok=True)
    taught = folder / 'teacher.txt'
    if taught.exists() and taught.read_text() != FLAGS.teacher:
      raise ValueError(
        f'{folder} holds what {taught.read_text() or "a teacher of its own"} taught: take another --workdir'
      )
    taught.write_text(FLAGS.teacher)
    whole = jl.data.load('fashion_mnist', validation=0)
    images, labels = whole.train.inputs, whole.train.labels
    self.data = jl.data.from_arrays(
      (images[:-5000], labels[:-5000]), (images[-5000:], labels[-5000:]), (whole.test.inputs, whole.test.labels)
    )
    self.each = jl.data.steps_per_epoch(self.data.train, BATCH)
    self.normal = jl.optim.normalize(self.data.mean, self.data.std)

  def model(self, network: Any) -> jl.Model:
    return self.normal.model(jl.adapt(network))

  def keep(self, result: Mapping[str, Any]) -> None:
    with (self.folder / 'results.jsonl').open('a') as file:
      file.write(json.dumps(result) + '\n')
    print(json.dumps(result), flush=True)

  def trained(
    self, name: str, model: jl.Model, recipe: jl.Recipe, data: jl.data.Dataset, epochs: int, seed: int, params: Any
  ) -> jl.Network:
    """Trains for some epochs and gives back the network with its hooks; a run that was cut goes on, to the same end."""
    train, path = jl.train_step(model, jl.cross_entropy, recipe), self.folder / f'{name}.part'
    began = time.process_time()
    batches = lambda step: jl.data.batches_at(data.train, BATCH, seed, step, DISPATCH)  # noqa: E731
    state = train.init(jax.random.key(seed), jax.tree.map(lambda leaf: leaf[0], batches(0)), params)
    if path.exists():
      state = load(path, state._replace(key=None))._replace(key=state.key)
    for step in range(int(state.step), epochs * self.each, DISPATCH):
      state, metrics = train.steps(state, batches(step))
      if step // DISPATCH % 20 == 19:
        save(path, state._replace(key=None))
        told = {name: round(float(value[-1]), 4) for name, value in metrics.items()}
        print(f'  epoch {step // self.each}, {time.process_time() - began:.0f} s: {told}', flush=True)
    path.unlink(missing_ok=True)
    return jl.Network(train.model, state.params, jl.contract.join_const(state.model_state, state.const))

  def teacher(self) -> jl.Network:
    """The network of a finished run; or a small CNN, trained here, that sees each picture twice, once mirrored."""
    if FLAGS.teacher:
      return jl.load(FLAGS.teacher)
    model, path = self.model(SmallCNN(dropout=0.4)), self.folder / 'teacher.npz'
    params, state = model.init(jax.random.key(0), self.data.train.inputs[:1])
    if not path.exists():
      recipe = jl.chain(
        jl.augment(jl.optim.flip(), jl.optim.shift(1)), jl.average(0.998), adamw(2e-3, TAUGHT * self.each, decay=0.02)
      )
      found = self.trained('teacher', model, recipe, self.data, TAUGHT, 0, params)
      save(path, found.model.export(found.params, found.model_state)[0])
      found = jl.Network(model, load(path, params), state)
      self.keep({'network': 'teacher', 'validation': accuracy(twice(found), self.data.validation)})
    return twice(jl.Network(self.model(SmallCNN()), load(path, params), state))

  def taught(self) -> jl.data.Dataset:
    views = [None, *3 * [jl.optim.shift(1)], *3 * [blended]]
    return jl.data.cache_logits(self.teacher(), self.data, self.folder / 'logits', views=views)

  def dense(self, name: str, epochs: int, seed: int) -> jl.Network:
    """The network of float32 that the teacher taught; or that of a finished run."""
    model, path = self.model(NETWORKS[name]), self.folder / f'{name}-{epochs}-{seed}.npz'
    params, state = model.init(jax.random.key(seed), self.data.train.inputs[:1])
    if FLAGS.start:
      found = jl.load(FLAGS.start)
    else:
      if not path.exists():
        recipe = jl.chain(jl.distill('logits', temperature=2.0), adamw(RATES[name], epochs * self.each))
        save(path, self.trained(path.stem, model, recipe, self.taught(), epochs, seed, params).params)
      found = jl.Network(model, load(path, params), state)
    about = {'network': name, 'dense': True, 'epochs': epochs, 'seed': seed, 'start': FLAGS.start}
    if not any(about.items() <= one.items() for one in results(self.folder)):
      scores = {which: accuracy(found, getattr(self.data, which)) for which in ('validation', 'test')}
      self.keep({**about, 'bytes': 4 * PARAMETERS[name], **scores})
    return found

  def file(
    self, name: str, worth: float, epochs: int, seed: int, rates: tuple[float, ...], step: float, tried: str
  ) -> None:
    """Trains for bits from the dense network, packs, and has the file scored."""
    about = {'network': name, 'worth': worth, 'epochs': epochs, 'rates': rates, 'step': step, 'seed': seed}
    about = {**json.loads(json.dumps(about)), 'start': FLAGS.start, 'tried': tried, 'haar': FLAGS.haar}
    if any(about.items() <= one.items() for one in results(self.folder)):
      return
    start, total = self.dense(name, epochs, seed), epochs * self.each
    start = self.in_haar(start, NETWORKS[name]) if FLAGS.haar else start
    moves = '-'.join([*filter(None, [Path(FLAGS.start).name]), *(f'{one:g}' for one in (worth, epochs, *rates, step))])
    moves += '-haar' * FLAGS.haar
    kept, path = (self.folder / f'{name}-{moves}-{seed}{end}' for end in ('.npz', f'{tried}.jlp'))
    if not kept.exists():
      hooks, tx = squeezed(worth, total, self.each, rates, step) if worth < 0.5 else clusters(worth, total)
      recipe = jl.chain(*hooks, jl.distill('logits', temperature=2.0), *tx)
      found = self.trained(kept.stem, start.model, recipe, self.taught(), epochs, seed, start.params)
      save(kept, found.model.export(found.params, found.model_state)[0])
    params, pictures = load(kept, start.params), self.data.train.inputs[:2]
    small = without_dead(start.model, params, start.model_state, pictures)
    in_order = sort_units(small.model, small.params, small.model_state, pictures, key=jax.random.key(0))
    graph, ordered = listed(small, pictures), listed(in_order, pictures)
    size, unsorted = write_pack(ordered, path), packed_bytes(graph)
    assert os.path.getsize(path) == size
    scores = {one: self.scored(path, one) for one in (['validation'] if tried else ['validation', 'test'])}
    self.keep({**about, 'bytes': size, **scores, 'unsorted': unsorted, **others(graph.constants.values())})

  def in_haar(self, start: jl.Network, network: Any) -> jl.Network:
    """The same function, whose first layer reads `haar`."""
    model = jl.adapt(network)
    first = min(start.params)
    basis = np.asarray(haar(jnp.eye(784).reshape(-1, 28, 28)), np.float64).reshape(784, 784)
    kernel = np.linalg.solve(basis, start.params[first]['kernel']).astype(np.float32)
    params = {**start.params, first: {**start.params[first], 'kernel': kernel}}

    def apply(params: Any, state: Any, inputs: Any, **how: Any) -> Any:
      return model.apply(params, state, haar(inputs), **how)

    made = jl.Network(self.normal.model(model._replace(apply=apply)), params, start.model_state)
    pictures = self.data.train.inputs[:64]
    np.testing.assert_allclose(made.predict(pictures), start.predict(pictures), atol=1e-2)
    return made

  def scored(self, path: Path, which: str) -> float:
    """Accuracy in percent, as another process finds it that has only the file."""
    split, pictures = getattr(self.data, which), self.folder / f'{which}.npz'
    if not pictures.exists():
      np.savez(pictures, inputs=split.inputs, labels=split.labels)
    command = [sys.executable, '-c', READER, str(path), str(pictures)]
    return 100 * json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def results(folder: Path) -> list[dict[str, Any]]:
  path = folder / 'results.jsonl'
  return [{'haar': False, **json.loads(line)} for line in path.read_text().splitlines()] if path.exists() else []


def draw(folder: Path) -> None:
  """Prints a table of what is finished, and draws accuracy against bytes."""
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(8, 5), layout='constrained')
  done = [one for one in results(folder) if 'test' in one]
  dense = {(one['network'], one['epochs'], one['seed']): one['test'] for one in done if one.get('dense')}
  print('| network | recipe | seeds | bytes | times smaller | test, % | lost, points |\n|---|---|--:|--:|--:|--:|--:|')
  for index, name in enumerate(NETWORKS):
    mine = [one for one in done if one['network'] == name and not one.get('dense')]
    for epochs in sorted({length for network, length, _ in dense if network == name}):
      known = [score for (network, length, _), score in dense.items() if (network, length) == (name, epochs)]
      print(f'| {name} | dense, {epochs} epochs | {len(known)} | {4 * PARAMETERS[name]:,} | 1 | {mean_of(known)} | |')
      axes.axhline(np.mean(known), color=f'C{index}', linestyle=':', linewidth=1)
    way = operator.itemgetter('worth', 'epochs', 'step', 'haar')
    for worth, epochs, step, turned in sorted(set(map(way, mine))):
      runs = [one for one in mine if way(one) == (worth, epochs, step, turned)]
      size = np.mean([one['bytes'] for one in runs])
      lost = mean_of([dense[name, epochs, one['seed']] - one['test'] for one in runs])
      what = f'few_bits({worth:g}, step={step:g})' if worth < 0.5 else f'{worth:.0%} zeros, 16 values'
      what += ', in the basis of Haar' * turned
      test = mean_of([one['test'] for one in runs])
      times = 4 * PARAMETERS[name] / size
      print(f'| {name} | {what}, {epochs} epochs | {len(runs)} | {size:,.0f} | {times:.0f} | {test} | {lost} |')
    for what, mark, some in (
      ('few bits', 'o', [one for one in mine if one['worth'] < 0.5]),
      ('clustered', 's', [one for one in mine if one['worth'] >= 0.5]),
    ):
      if some:
        places = [[one[axis] for one in some] for axis in ('bytes', 'test')]
        axes.scatter(*places, 16, f'C{index}', marker=mark, label=f'{name}, {what}')
  title = 'Fashion-MNIST: accuracy against bytes; dotted: dense, in float32'
  axes.set(xscale='log', xlabel='bytes of the file', ylabel='test accuracy, %', title=title)
  axes.legend()
  figure.savefig(folder / 'bytes.png', dpi=130)


def mean_of(values: Sequence[float]) -> str:
  """The mean with its 95 % interval."""
  return f'{np.mean(values):.2f}' + (f' ± {interval(values):.2f}' if len(values) > 1 else '')


def adamw(rate: float, total: int, decay: float = 0.0) -> optax.GradientTransformation:
  schedule = optax.warmup_cosine_decay_schedule(0.0, rate, 200, total, 1e-3 * rate)
  return optax.adamw(schedule, weight_decay=decay)


def squeezed(worth: float, total: int, each: int, rates: tuple[float, ...], step: float) -> tuple[list[Any], list[Any]]:
  """Few bits, biases too: a rate for weights, which are counted in steps, and one for the steps."""

  def which(params: Any) -> Any:
    return trees.map_with_path(lambda path, _: 'steps' if path.startswith('jl.') else 'weights', params)

  hook = few_bits(worth, ramp=int(0.4 * total), every=each, step=step, select='.*')
  return [hook], [optax.partition({'weights': adamw(rates[0], total), 'steps': adamw(rates[1], total)}, which)]


def clusters(sparsity: float, total: int) -> tuple[list[Any], list[Any]]:
  """As in Deep Compression: pruned by magnitude, and 16 values an array."""
  pruned = jl.prune(sparsity, begin=0, end=total // 2, every=200, allocate=jl.pruning.erk)
  return [clustered(16)], [adamw(5e-4, total), pruned]


def blended(key: Any, batch: Any) -> Any:
  """Mixup in whole gray levels."""
  batch = jl.optim.mixup(1.0, 10)(key, batch)
  return {**batch, 'inputs': jnp.round(batch['inputs']).astype(jnp.uint8)}


def twice(network: jl.Network) -> jl.Network:
  """A network that sees each picture as it is and mirrored."""

  def apply(params: Any, state: Any, inputs: Any, **how: Any) -> Any:
    first, last = (network.model.apply(params, state, one, **how)[0] for one in (inputs, inputs[:, :, ::-1]))
    return (first + last) / 2, state

  return network._replace(model=network.model._replace(apply=apply))


def without_dead(model: jl.Model, params: Any, state: Any, inputs: Any) -> jl.Network:
  """Removes units that reach nothing, or that nothing reaches and whose bias a ReLU makes zero; exact."""
  while True:
    layers = sorted(params)
    for one, after in itertools.pairwise(layers):  # (inputs, outputs) or [h, w, inputs, outputs]
      kernel, bias = params[one]['kernel'], params[one]['bias']
      quiet = (kernel.reshape(-1, kernel.shape[-1]) == 0).all(0) & (bias <= 0)
      params[one]['bias'] = np.where(quiet, 0, bias).astype(bias.dtype)
      reads = params[after]['kernel']
      if reads.ndim == kernel.ndim:
        params[after]['kernel'] = np.where(quiet[:, None], 0, reads).astype(reads.dtype)
    try:
      small = jl.shrink(model, params, state, inputs, multiple=1, key=jax.random.key(0))  # of a network with dropout
    except ValueError:
      return jl.Network(model, params, state)
    model, params, state = small.model, jax.device_get(small.params), small.model_state


def haar(pictures: jax.Array) -> jax.Array:
  """Half of the sums and differences of each 2x2 pixels, one kind after the other: [B, 28, 28] -> [B, 28, 28]."""
  rows = pictures[:, 0::2] + pictures[:, 1::2], pictures[:, 0::2] - pictures[:, 1::2]
  sums = [(one[:, :, 0::2] + one[:, :, 1::2]) / 2 for one in rows]
  differences = [(one[:, :, 0::2] - one[:, :, 1::2]) / 2 for one in rows]
  return jnp.concatenate([sums[0] / COARSE, sums[1], *differences], axis=1).reshape(pictures.shape)


def listed(network: jl.Network, inputs: Any) -> Graph:
  """A network as its file is written from it."""

  def forward(known: Any, inputs: Any) -> Any:
    return network.model.apply(*known, inputs, train=False, key=None)[0]

  return recognized(lower(forward, (network.params, network.model_state), inputs[:1]))


def accuracy(network: jl.Network, split: Any) -> float:
  return 100 * float((np.argmax(network.predict(split.inputs), -1) == split.labels).mean())


def save(path: Path, params: Any) -> None:
  with whole_file(path) as scratch, scratch.open('wb') as file:
    np.savez(file, *map(np.asarray, jax.tree.leaves(params)))


def load(path: Path, like: Any) -> Any:
  with np.load(path) as held:
    return jax.tree.unflatten(jax.tree.structure(like), [held[f'arr_{at}'] for at in range(len(held.files))])


def others(arrays: Iterable[np.ndarray]) -> dict[str, int]:
  """Bytes that other coders make of the whole numbers of all weights."""
  grids = [scaled(array.reshape(-1, array.shape[-1])) for array in arrays if array.ndim > 1]
  wholes = [grid.numbers.astype(np.int8) for grid in grids if grid is not None]
  raw, bits = b''.join(whole.tobytes() for whole in wholes), 0.0
  for whole in wholes:
    _, counts = np.unique(whole, return_counts=True)
    bits -= float((counts * np.log2(counts / counts.sum())).sum())
  packed = lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)
  return {'order 0': round(bits / 8), 'lzma': len(packed), 'zlib': len(zlib.compress(raw, 9))}


if __name__ == '__main__':
  app.run(main)
