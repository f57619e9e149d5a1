"""How few bytes hold LeNet-300-100 on Fashion-MNIST: trained for bits, packed, and scored from the file by another
process that has no JAX.

  python experiments/lenet_bytes.py --worth=2.5e-6,4e-6 --epochs=60 --seeds=5

For each worth of a bit: bytes of the file, how many times it is smaller than float32, what zlib, LZMA and the order-0
entropy make of the same whole numbers, and the test accuracy beside that of the dense network of the same seed and
epochs, with the mean of the paired differences and its 95 % interval. Validation is not used to choose anything here.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import pathlib
import subprocess
import sys
import zlib

import jax
import numpy as np
import optax

import jaxlite as jl
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from jaxlite.deployment.packed import file as pack
from jaxlite.deployment.packed.scales import scaled
from jaxlite.models import LeNet300
from jaxlite.quantization import few_bits

FLOAT_BYTES = 4 * 266_610
READER = """
import json, sys
import numpy as np
from jaxlite.deployment.packed.file import unpack
network, held = unpack(sys.argv[1]), np.load(sys.argv[2])
right = network.predict(held['inputs']).argmax(-1) == held['labels']
assert 'jax' not in sys.modules
print(json.dumps(float(right.mean())))
"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
  parser.add_argument('--worth', default='2.5e-6,4e-6', help='loss for each bit, one or several')
  parser.add_argument('--epochs', type=int, default=60)
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--workdir', default='runs/lenet_bytes')
  given = parser.parse_args()
  folder = pathlib.Path(given.workdir)
  folder.mkdir(parents=True, exist_ok=True)
  data = jl.data.load('fashion_mnist', validation=0.05)
  train, test = (pictures(one) for one in (data.train, data.test))
  np.savez(folder / 'test.npz', **test)
  worths = [0.0, *map(float, given.worth.split(','))]
  found = {
    worth: [one_file(worth, given.epochs, seed, train, folder) for seed in range(given.seeds)] for worth in worths
  }
  dense = np.array([one['accuracy'] for one in found.pop(0.0)])
  print(f'dense, {FLOAT_BYTES:,} bytes as float32: {100 * dense.mean():.2f} %')
  for worth, runs in found.items():
    mean = {name: np.mean([one[name] for one in runs]) for name in runs[0]}
    lost = 100 * (dense - np.array([one['accuracy'] for one in runs]))
    wide = 1.96 * lost.std(ddof=1) / np.sqrt(len(lost)) if len(lost) > 1 else float('nan')
    print(
      f'worth {worth:g}: {mean["bytes"]:,.0f} bytes ({FLOAT_BYTES / mean["bytes"]:.0f} times smaller), '
      f'{100 * mean["accuracy"]:.2f} %, lost {lost.mean():.2f} ± {wide:.2f}; whole numbers alone: order 0 '
      f'{mean["order 0"]:,.0f}, LZMA {mean["lzma"]:,.0f}, zlib {mean["zlib"]:,.0f}'
    )


def pictures(split: jl.data.Split) -> dict[str, np.ndarray]:
  inputs = (np.asarray(split.inputs, np.float32) / 255 - 0.286) / 0.353
  return {'inputs': inputs, 'labels': np.asarray(split.labels).astype(np.int32)}


def one_file(
  worth: float, epochs: int, seed: int, data: dict[str, np.ndarray], folder: pathlib.Path
) -> dict[str, float]:
  """Trains, packs, and has the file scored; a worth of 0 is the dense network, without a grid."""
  size, batch = len(data['labels']), 128
  each = size // batch
  total = epochs * each
  rate = optax.warmup_cosine_decay_schedule(0.0, 1.5e-3, 200, total, 1.5e-6)
  parts = [few_bits(worth, ramp=int(0.4 * total), every=each)] if worth else []
  model = jl.adapt(LeNet300())
  step = jl.train_step(model, jl.cross_entropy, jl.chain(*parts, optax.adam(rate)))
  pick = lambda places: {name: values[places] for name, values in data.items()}  # noqa: E731
  state = step.init(jax.random.key(seed), pick(np.arange(batch)))
  rng = np.random.default_rng(seed)
  for _ in range(epochs):
    order = rng.permutation(size)
    for index in range(each):
      state, _ = step.step(state, pick(order[index * batch : (index + 1) * batch]))
  params, kept = step.model.export(state.params, state.model_state)
  forward = lambda known, x: model.apply(*known, x, train=False, key=None)[0]  # noqa: E731
  graph = recognized(lower(forward, (params, kept), data['inputs'][:1]))
  path = folder / f'{worth:g}-{seed}.jlp'
  found: dict[str, float] = {'bytes': pack.write_pack(graph, path)}
  done = subprocess.run(
    [sys.executable, '-c', READER, str(path), str(folder / 'test.npz')], capture_output=True, text=True, check=True
  )
  assert os.path.getsize(path) == found['bytes']
  found['accuracy'] = json.loads(done.stdout)
  return found | (others(graph.constants.values()) if worth else {})


def others(arrays: object) -> dict[str, float]:
  """What other coders make of the whole numbers of all weights."""
  grids = [scaled(array.reshape(len(array), -1)) for array in arrays if array.ndim > 1]  # type: ignore[attr-defined]
  wholes = [grid.numbers.astype(np.int8) for grid in grids if grid is not None]
  raw = b''.join(whole.tobytes() for whole in wholes)
  bits = 0.0
  for whole in wholes:
    _, counts = np.unique(whole, return_counts=True)
    bits -= float((counts * np.log2(counts / counts.sum())).sum())
  return {
    'order 0': bits / 8,
    'lzma': len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)),
    'zlib': len(zlib.compress(raw, 9)),
  }


if __name__ == '__main__':
  main()
