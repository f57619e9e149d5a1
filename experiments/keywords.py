"""Keywords in sound, by the rules of MLPerf Tiny: its network, quantized without training, one example at a time.

  apt-get install espeak-ng
  python experiments/keywords.py --workdir=runs/keywords

The benchmark's own data, Speech Commands, are in no package; the words here are spoken by a synthesizer, with voices in
the test that training never heard (`bench/keyword_data.py`). So **no accuracy here may be set beside the benchmark's**
(its target is 90 %, its reference reaches about 92 %, both on recordings): what can be compared is the rest. The
network is its DS-CNN (64 filters) on 49 frames of 10 features; ours are logarithms of mel bands where its are ten
cepstra of 40 bands, and our mean runs over the whole map where its pool leaves a row out. Trained in float32, then
quantized with some validation examples, as its closed division demands, and deployed as LiteRT, ONNX and a packed file.
Beside it a support vector machine of scikit-learn on the same features. The best epoch by validation meets the test.

References:
  Banbury et al., MLPerf Tiny Benchmark, 2021, https://arxiv.org/abs/2106.07597; the reference's accuracy, and its file
  of 53,936 bytes, are those of https://github.com/mlcommons/tiny, benchmark/training/keyword_spotting
  Zhang et al., Hello Edge: Keyword Spotting on Microcontrollers, 2017, https://arxiv.org/abs/1711.07128
"""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from bench import keyword_data
from bench.task_tables import difference, shown

import jaxlite as jl
from jaxlite.deployment import formats
from jaxlite.models.norm import BatchNorm

FLAGS = flags.FLAGS
flags.DEFINE_string('workdir', 'runs/keywords', 'where sounds, finished runs and the table are kept')
flags.DEFINE_integer('seeds', 5, 'runs behind each mean', lower_bound=1)
flags.DEFINE_integer('epochs', 10, 'of each run', lower_bound=1)
flags.DEFINE_bool('smoke', False, 'two hums, one seed, two epochs, a narrow network: to see that it runs')

COUNTS = {'train': 150, 'val': 30, 'test': 60}  # of each of twelve classes


class DSCNN(nn.Module):
  """MLPerf Tiny's keyword network: a convolution, four depthwise-separable ones, the mean, and a dense layer.

  float32[B, classes] of [B, 49, 10, 1]. With 64 filters and 12 classes 22,604 parameters and those of batch norm.
  """

  classes: int
  filters: int = 64

  @nn.compact
  def __call__(self, x: Any, train: bool = False) -> jax.Array:
    def normed(x: jax.Array, name: str) -> jax.Array:
      return nn.relu(BatchNorm(use_running_average=not train, name=name)(x))

    x = normed(nn.Conv(self.filters, (10, 4), strides=2, name='stem')(jnp.asarray(x, jnp.float32)), 'stem_norm')
    x = nn.Dropout(0.2, deterministic=not train)(x)
    for at in range(1, 5):
      x = nn.Conv(self.filters, (3, 3), feature_group_count=self.filters, name=f'depthwise{at}')(x)
      x = normed(x, f'depthwise{at}_norm')
      x = normed(nn.Conv(self.filters, (1, 1), name=f'pointwise{at}')(x), f'pointwise{at}_norm')
    x = nn.Dropout(0.4, deterministic=not train)(x)
    return nn.Dense(self.classes, name='head')(x.mean(axis=(1, 2)))


def trained(data: Any, seed: int, folder: Path) -> dict[str, Any]:
  """One run: float32, then 8 bits, scored by the files."""
  config = jl.Config(name='keywords', seed=seed, train=jl.Duration(epochs=2 if FLAGS.smoke else FLAGS.epochs))
  config.data.batch_size, config.optim.lr = 100 if not FLAGS.smoke else 8, 3e-3
  config.eval.batch_size = 120
  config.log.tensorboard = config.log.progress = False
  shutil.rmtree(folder, ignore_errors=True)
  network = DSCNN(len(data.class_names), 8 if FLAGS.smoke else 64)
  result = jl.train(config, folder, model=network, data=data, say=lambda line: None)
  told: dict[str, Any] = {'float': 100 * result.metrics['accuracy'], 'seconds': result.seconds}
  loaded = jl.load(folder, model=network)
  integers = jl.ptq(loaded, [data.validation.inputs[:100]], every=True)
  names = tuple(name for name in ('pack', 'litert', 'onnx') if not formats.missing(name))
  if FLAGS.smoke:
    names = ('pack',)
  report = jl.deploy(
    integers,
    names,
    out=folder / 'files',
    task=data.task,
    examples=(data.test.inputs, data.test.labels),
    seconds=0.0 if FLAGS.smoke else 1.0,
    say=lambda line: None,
  )
  for row in report.written:
    if row.why:
      raise RuntimeError(f'{row.format} was not written: {row.why}')
    told[row.format] = {'score': 100 * row.score, 'bytes': row.bytes, 'latency': list(row.latency[1])}
  shutil.rmtree(folder)
  return told


def machine(data: Any) -> float:
  """A support vector machine on the same features, with scikit-learn's own settings."""
  from sklearn.svm import SVC

  flat = lambda split: np.asarray(split.inputs).reshape(len(split.labels), -1)  # noqa: E731
  mean, std = flat(data.train).mean(0), flat(data.train).std(0)
  model = SVC().fit((flat(data.train) - mean) / std, data.train.labels)
  return 100 * float(model.score((flat(data.test) - mean) / std, data.test.labels))


def main(_: list[str]) -> None:
  """Makes the sounds, trains, prints and writes the table."""
  folder = Path(FLAGS.workdir).expanduser().absolute() / ('smoke' if FLAGS.smoke else '')
  folder.mkdir(parents=True, exist_ok=True)
  place = folder / 'sounds'
  keyword_data.tones(place) if FLAGS.smoke else keyword_data.write(place, COUNTS)
  data = jl.data.sounds(
    place, 1.0, rate=keyword_data.RATE, bands=10, frame=480, hop=320, low=20.0, high=4000.0, progress=False
  )
  runs = []
  for seed in range(1 if FLAGS.smoke else FLAGS.seeds):
    path = folder / f'{seed}.json'
    if not path.exists():
      found = trained(data, seed, folder / 'run')
      scratch = path.with_suffix('.part')
      scratch.write_text(json.dumps(found))
      scratch.rename(path)
    runs.append(json.loads(path.read_text()))
    print(f'seed {seed}: {runs[-1]}', flush=True)
  floats, vectors = [run['float'] for run in runs], machine(data)
  lines = [
    '| network | test accuracy, % | against float32 | bytes | ms an example, median and 99 % |',
    '|---|--:|---|--:|--:|',
  ]
  lines.append(f'| support vector machine of scikit-learn | {vectors:.2f} | | | |')
  lines.append(f'| DS-CNN, float32 | {shown(floats, ".2f")} | | | |')
  for name in [name for name in ('litert', 'onnx', 'pack') if name in runs[0]]:
    scores = [run[name]['score'] for run in runs]
    size = statistics.median(run[name]['bytes'] for run in runs)
    latency = ', '.join(f'{statistics.median(run[name]["latency"][at] for run in runs):.3f}' for at in (0, 1))
    apart = difference(scores, floats, 1, '.2f')
    lines.append(f'| DS-CNN, 8 bits, {name} | {shown(scores, ".2f")} | {apart} | {size:,.0f} | {latency} |')
  train, test = len(data.train.labels), len(data.test.labels)
  seconds = statistics.median(run['seconds'] for run in runs)
  lines += ['', f'{train:,} sounds to train on, {test:,} to test; {len(runs)} seeds, {seconds:.1f} s each.']
  (folder / 'keywords.md').write_text('\n'.join(lines) + '\n')
  print('\n'.join(lines))


if __name__ == '__main__':
  app.run(main)
