"""What checkpoints cost a run: the same run with one each epoch and with none but the last, A, B, A, B.

  python experiments/bench/checkpointing.py --rounds=5

Fashion-MNIST at batch 128, nothing evaluated on the way, so that the saves are the only difference. Prints seconds
and the ratio with over without (median, minimum and maximum over the rounds). Nothing here is asserted. On two shared
CPU cores, `--rounds=4 --epochs=6 --network=lenet300`, where an epoch is shortest: 1.017 (0.946 to 1.090).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

import jaxlite as jl
from jaxlite import data as datasets

FLAGS = flags.FLAGS
flags.DEFINE_integer('rounds', 5, 'alternations')
flags.DEFINE_integer('epochs', 4, 'length of a run')
flags.DEFINE_string('network', 'cnn', 'cnn or lenet300')


def experiment() -> Any:
  """The config of experiments/fashion_mnist.py, shortened, its runs set aside."""
  path = Path(__file__).parents[1] / 'fashion_mnist.py'
  spec = importlib.util.spec_from_file_location('fashion_mnist', path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # dataclasses look their module up
  spec.loader.exec_module(module)
  config = module.get_config()
  config.network, config.runs, config.train = FLAGS.network, {}, jl.Duration(epochs=FLAGS.epochs)
  config.data.validation, config.log.progress = 0.0, False
  return config


def main(_: list[str]) -> None:
  """Times both forms in turn; the first pair, in which programs are compiled, is left out."""
  config = experiment()
  data = datasets.load('fashion_mnist', validation=0.0)
  forms = {'each epoch': jl.Duration(epochs=1), 'last only': jl.Duration(epochs=FLAGS.epochs)}
  times: dict[str, list[float]] = {name: [] for name in forms}
  for turn in range(FLAGS.rounds + 1):
    for name, every in forms.items():
      this = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, every=every))
      with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        result = jl.train(this, folder, data=data, say=lambda line: None)
        if turn:
          times[name].append(time.perf_counter() - began)
          print(f'{name:12} {times[name][-1]:7.2f} s, training {result.seconds:7.2f} s', flush=True)
      jax.clear_caches()
  ratio = np.array(times['each epoch']) / np.array(times['last only'])
  print(f'{FLAGS.network}, {FLAGS.epochs} epochs: {np.median(ratio):.3f} ({ratio.min():.3f} to {ratio.max():.3f})')


if __name__ == '__main__':
  app.run(main)
