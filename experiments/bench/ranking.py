"""Does a ranking by features find the network that fine-tunes best? Six small sets, six candidates.

  python experiments/bench/ranking.py --out=runs/ranking.jsonl
  python experiments/bench/ranking.py --out=runs/ranking.jsonl --sets=digits,faces --steps=60 --seeds=1   # a short form

Candidates: MobileNetV2, EfficientNet-Lite1 and -Lite2 with published weights, jaxlite's ResNet-20 of Fashion-MNIST and
small CNN of the digits (both trained here first), and MobileNetV2 with drawn weights as a control. Each set is split
into training (at most 500, a tenth of it validation) and test; scores see the training examples alone. 'fine-tuned' is
the test accuracy of `jl.finetune` with `--method` and `--steps`, a mean over seeds. A ranking holds where its first
candidate is the best by fine-tuning or lies within the best one's 95 % interval. The crops of textures and photographs
overlap between training and test, and digits is what one candidate was trained on: these rows are easy. Every finished
line is kept in `--out`, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import transfer_data
from absl import app, flags

import jaxlite as jl
from jaxlite.finetuning import rank, resized
from jaxlite.finetuning.scores import wilson
from jaxlite.models import ResNet20, SmallCNN

FLAGS = flags.FLAGS
flags.DEFINE_string('out', 'runs/ranking.jsonl', 'where finished lines are kept')
flags.DEFINE_string('workdir', 'runs/ranking', 'where networks, features and runs are kept')
flags.DEFINE_list('sets', [], 'some of the sets; none is all')
flags.DEFINE_list('candidates', [], 'some of the candidates; none is all')
flags.DEFINE_integer('size', 96, 'pixels on a side for the networks of photographs')
flags.DEFINE_integer('examples', 500, 'to train on')
flags.DEFINE_integer('steps', 80, 'of a fine-tuning')
flags.DEFINE_integer('seeds', 3, 'fine-tunings behind each mean')
flags.DEFINE_integer('epochs', 3, 'that the ResNet-20 sees of Fashion-MNIST')
flags.DEFINE_string('method', 'full', 'of the fine-tuning')
flags.DEFINE_bool('scores_alone', False, 'fine-tune nothing')


def ours(name: str, module: Any, load: Any, epochs: int, shape: tuple[int, ...]) -> jl.Network:
  """A network of jaxlite's own, trained here once, which takes pictures of any size."""
  folder = Path(FLAGS.workdir, name)
  config = jl.Config(name=name, train=jl.Duration(epochs=epochs))
  config.log.every = config.eval.every = config.checkpoint.every = jl.Duration(percent=50)
  jl.train(config, folder, model=module, data=load())
  return resized(jl.load(folder, model=module), shape)


def grey(count: int) -> Any:
  """Fashion-MNIST as pictures with a channel."""
  inputs, labels = transfer_data.fashion(count)
  return jl.data.from_arrays((inputs.reshape(*inputs.shape[:3], 1), labels))


CANDIDATES = {
  'mobilenet_v2': lambda: transfer_data.pretrained('mobilenet_v2', FLAGS.size),
  'efficientnet_lite1': lambda: transfer_data.pretrained('efficientnet_lite1', FLAGS.size),
  'efficientnet_lite2': lambda: transfer_data.pretrained('efficientnet_lite2', FLAGS.size),
  'resnet20_fashion': lambda: ours('resnet20_fashion', ResNet20(), lambda: grey(20_000), FLAGS.epochs, (28, 28, 1)),
  'cnn_digits': lambda: ours(
    'cnn_digits', SmallCNN(), lambda: jl.data.from_arrays(transfer_data.digits()), 20, (8, 8, 1)
  ),
  'random': lambda: transfer_data.pretrained('mobilenet_v2', FLAGS.size, trained=False),
}


@functools.lru_cache(maxsize=1)
def data_of(name: str) -> Any:
  """A set, split once: at most `--examples` to train on."""
  inputs, labels = transfer_data.sets(FLAGS.size)[name]()
  inputs = inputs if inputs.ndim == 4 else inputs[..., None]
  order = np.random.default_rng(0).permutation(len(labels))
  most = min(FLAGS.examples, int(0.7 * len(labels)))
  train, test = order[:most], order[most : most + 300]
  return jl.data.from_arrays((inputs[train], labels[train]), 0.1, (inputs[test], labels[test]), name=name)


def main(_: list[str]) -> None:
  """Fills what is missing and prints a table a set."""
  path = Path(FLAGS.out)
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

  def keep(line: dict[str, Any]) -> None:
    lines.append(line)
    with open(path, 'a', encoding='utf-8') as file:
      file.write(json.dumps(line) + '\n')

  names = FLAGS.candidates or list(CANDIDATES)
  networks = {name: CANDIDATES[name]() for name in names}
  held = []
  for which in FLAGS.sets or list(transfer_data.sets(FLAGS.size)):
    data = data_of(which)
    for name in names:
      for seed in range(0 if FLAGS.scores_alone else FLAGS.seeds):
        key = {'set': which, 'candidate': name, 'seed': seed, 'steps': FLAGS.steps, 'method': FLAGS.method}
        if any(key.items() <= line.items() for line in lines):
          continue
        began = time.perf_counter()
        result = jl.finetune(
          networks[name], data, Path(FLAGS.workdir, which, f'{name}-{FLAGS.method}-{FLAGS.steps}-{seed}'),
          method=FLAGS.method, seed=seed, train=jl.Duration(steps=FLAGS.steps), features=f'{FLAGS.workdir}/features',
        )  # fmt: skip
        keep({**key, 'accuracy': result.metrics['accuracy'], 'seconds': time.perf_counter() - began})
        jax.clear_caches()
    truth = {}
    for name in names:
      some = [line for line in lines if line['set'] == which and line['candidate'] == name]
      some = [line for line in some if line['steps'] == FLAGS.steps and line['method'] == FLAGS.method]
      if some:
        truth[name] = float(np.mean([line['accuracy'] for line in some]))
    ranking = rank(networks, data, truth=truth or None, examples=FLAGS.examples, folder=f'{FLAGS.workdir}/features')
    print(f'\n{which}: {len(data.train.labels)} to train on, {len(data.test.labels)} to test\n{ranking}')
    if truth:
      best = max(truth, key=lambda name: truth[name])
      low, _ = wilson(round(truth[best] * len(data.test.labels)), len(data.test.labels))
      held.append(truth[ranking.best] >= low)
      spent = [line['seconds'] for line in lines if line['set'] == which and line['steps'] == FLAGS.steps]
      scored = [row.seconds + sum(one.seconds for one in row.scores.values()) for row in ranking.rows]
      print(
        f'best by fine-tuning: {best}; first by the ranking: {ranking.best}, {"within" if held[-1] else "below"} its '
        f'interval; scores took {max(scored):.1f} s a candidate, fine-tuning {np.mean(spent):.1f} s'
      )
  if held:
    print(f'\nthe ranking holds on {sum(held)} of {len(held)} sets')


if __name__ == '__main__':
  app.run(main)
