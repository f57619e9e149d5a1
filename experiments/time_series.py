"""Time series: four data sets of the UCR and UEA archives, a small convolutional network beside what is published.

  pip install --no-deps 'aeon>=1.6,<2'
  python experiments/time_series.py --workdir=runs/time_series --peer_python=PATH

Outlines of a hand, power demand by the hour, arrowheads, and vowels of nine speakers (twelve cepstral coefficients of
recorded speech), in the archive's own splits of 36 to 270 series for training. The network is the FCN of Wang et al.
at three eighths of its width; it is trained in float32, and once more with four weights in five zero and the rest in 8
bits. As in the published review nothing is held out; its runs end at the step of the least training loss, ours at the
last. Beside it stand that review's FCN, which trained for 2,000 epochs, and two methods of aeon run here, in the Python
that `--peer_python` names: MiniRocket, and one neighbor by dynamic time warping.

References:
  Wang, Yan and Oates, Time Series Classification from Scratch with Deep Neural Networks, 2016,
  https://arxiv.org/abs/1611.06455
  Ismail Fawaz et al., Deep learning for time series classification: a review, 2019, https://arxiv.org/abs/1809.04356;
  the figures are those of its repository, https://github.com/hfawaz/dl-4-tsc: mean (standard deviation) of ten runs.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from bench import series_data
from bench.task_tables import difference, shown

import jaxlite as jl
from jaxlite.models.norm import BatchNorm

FLAGS = flags.FLAGS
flags.DEFINE_string('workdir', 'runs/time_series', 'where finished runs and the table are kept')
flags.DEFINE_list('only', [], 'data sets by name; all when empty')
flags.DEFINE_integer('seeds', 5, 'runs behind each mean', lower_bound=1)
flags.DEFINE_string('peer_python', '', 'a Python that has aeon with all it needs')
flags.DEFINE_bool('smoke', False, 'made waves, one seed, two epochs: to see that it runs')


class FCN(nn.Module):
  """Three convolutions over time with batch norm and ReLU, the mean over time, and a dense layer.

  float32[B, classes] of [B, T, C]. With one channel and the widths below 37,730 parameters and 2 classes.
  """

  classes: int
  widths: Sequence[int] = (48, 96, 48)

  @nn.compact
  def __call__(self, x: Any, train: bool = False) -> jax.Array:
    x = jnp.asarray(x, jnp.float32)
    for index, (width, size) in enumerate(zip(self.widths, (8, 5, 3), strict=True), 1):
      x = nn.Conv(width, (size,), use_bias=False, name=f'conv{index}')(x)
      x = nn.relu(BatchNorm(use_running_average=not train, name=f'norm{index}')(x))
    return nn.Dense(self.classes, name='head')(x.mean(axis=1))


class Row(NamedTuple):
  """One data set.

  Attributes:
    title: how the table calls it.
    epochs: of batches of 16.
    published: of the review's FCN, in percent.
  """

  title: str
  epochs: int
  published: str


ROWS = {
  'GunPoint': Row('GunPoint: a hand draws or points', 150, '100.0 (0.0)'),
  'ItalyPowerDemand': Row('ItalyPowerDemand: winter or summer', 120, '96.1 (0.3)'),
  'ArrowHead': Row('ArrowHead: three kinds', 120, '84.3 (1.5)'),
  'JapaneseVowels': Row('JapaneseVowels: nine speakers', 40, '99.3 (0.2)'),
}
MADE = {'made': Row('made waves', 2, 'none')}
FORMS = ('float32', '80 % zeros, 8 bits')


def recipe(config: jl.Config, total_steps: int, compressed: bool) -> jl.Recipe:
  """AdamW on a warm-up cosine; 8 bits from the middle on, zeros before that."""
  parts: list[Any] = [jl.fake_quant(8, begin=total_steps // 2)] if compressed else []
  parts += [optax.clip_by_global_norm(1.0), optax.adamw(jl.optim.warmup_cosine(3e-3, total_steps), weight_decay=1e-3)]
  if compressed:
    parts.append(jl.prune(0.8, begin=total_steps // 10, end=total_steps // 2, every=max(1, total_steps // 50)))
  return jl.chain(*parts)


def trained(name: str, series: series_data.Series, form: str, seed: int, folder: Path) -> dict[str, Any]:
  """One run, scored by the packed file that it is deployed as."""
  row = (MADE | ROWS)[name]
  data = jl.data.from_arrays(series.train, 0, series.test, class_names=series.classes, name=name, seed=seed)
  config = jl.Config(name=name, seed=seed, train=jl.Duration(epochs=row.epochs))
  config.recipe = functools.partial(recipe, compressed=form != FORMS[0])
  config.data.batch_size, config.eval.batch_size = 16, 128
  config.checkpoint.every = config.log.every = jl.Duration(percent=100)
  config.log.tensorboard = config.log.progress = False
  shutil.rmtree(folder, ignore_errors=True)
  network = FCN(len(series.classes), (8, 8, 8) if FLAGS.smoke else FCN.widths)
  result = jl.train(config, folder, model=network, data=data, say=lambda line: None)
  report = jl.deploy(folder, 'pack', examples=series.test, seconds=0.0, say=lambda line: None)
  shutil.rmtree(folder)
  (file,) = report.written
  return {'score': 100 * file.score, 'bytes': file.bytes, 'seconds': result.seconds, 'same': file.same}


def asked(series: series_data.Series, seeds: Sequence[int], folder: Path) -> dict[str, Any]:
  """What aeon says, scored here."""
  path = folder / 'data.npz'
  np.savez(path, train_x=series.train[0], train_y=series.train[1], test_x=series.test[0])
  spec = json.dumps({'data': str(path), 'seeds': list(seeds)})
  script = Path(__file__).parent / 'bench' / 'series_peer.py'
  own = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}  # its packages, not ours
  done = subprocess.run([FLAGS.peer_python, str(script), spec], stdout=subprocess.PIPE, text=True, check=True, env=own)
  path.unlink()
  told = json.loads(done.stdout)
  score = lambda labels: 100 * float(np.mean(np.array(labels) == series.test[1]))  # noqa: E731
  return {name: {'score': score(one['labels']), 'seconds': one['seconds']} for name, one in told.items()}


def kept(path: Path, make: Any) -> dict[str, Any]:
  """What was found, made once."""
  if not path.exists():
    found = make()
    scratch = path.with_suffix('.part')
    scratch.write_text(json.dumps(found))
    scratch.rename(path)
  return json.loads(path.read_text())


def line(name: str, folder: Path, seeds: Sequence[int]) -> str:
  """A row of the table."""
  series, row = series_data.made() if name == 'made' else series_data.read(name), (MADE | ROWS)[name]
  runs = {
    form: [
      kept(folder / f'{name}-{at}-{seed}.json', functools.partial(trained, name, series, form, seed, folder / 'run'))
      for seed in seeds
    ]
    for at, form in enumerate(FORMS)
  }
  scores = {form: [run['score'] for run in found] for form, found in runs.items()}
  cells = [f'{row.title} ({len(series.train[1])} + {len(series.test[1]):,})']
  cells += [*(shown(scores[form], '.2f') for form in FORMS), difference(scores[FORMS[1]], scores[FORMS[0]], 1, '.2f')]
  cells += [f'{statistics.median(run["bytes"] for run in runs[form]):,.0f}' for form in FORMS]
  cells.append(f'{statistics.median(run["seconds"] for run in runs[FORMS[0]]):.1f}')
  cells.append(row.published)
  if FLAGS.peer_python:
    peers = kept(folder / f'{name}-aeon.json', functools.partial(asked, series, seeds, folder))
    rocket = [one['score'] for key, one in peers.items() if key.startswith('MiniRocket')]
    cells += [shown(rocket, '.2f'), f'{peers["1-NN, DTW"]["score"]:.2f}']
  else:
    cells += ['not run', 'not run']
  return f'| {" | ".join(cells)} |'


def main(_: list[str]) -> None:
  """Fills, prints and writes the table."""
  names = FLAGS.only or list(MADE if FLAGS.smoke else ROWS)
  if unknown := set(names) - {*ROWS, *MADE}:
    raise app.UsageError(f'--only takes {", ".join(ROWS)}; got {", ".join(sorted(unknown))}')
  folder = Path(FLAGS.workdir).expanduser().absolute() / ('smoke' if FLAGS.smoke else '')
  folder.mkdir(parents=True, exist_ok=True)
  head = ['data (train + test)', *(f'{form}, %' for form in FORMS), 'difference', *(f'bytes, {form}' for form in FORMS)]
  head += ['s to train', 'published FCN, %', 'MiniRocket, %', '1-NN DTW, %']
  lines = [f'| {" | ".join(head)} |', '|---|' + '--:|' * (len(head) - 1)]
  for name in names:
    lines.append(line(name, folder, range(1 if FLAGS.smoke else FLAGS.seeds)))
    print(lines[-1], flush=True)
  (folder / 'time_series.md').write_text('\n'.join(lines) + '\n')
  print('\n'.join(lines))


if __name__ == '__main__':
  app.run(main)
