"""Does a ranking by features find the network that fine-tunes best? Six small sets, six candidates.

  python experiments/bench/ranking.py --out=runs/ranking.jsonl
  python experiments/bench/ranking.py --out=runs/ranking.jsonl --sets=digits,faces --steps=60 --seeds=1   # a short form

Candidates: MobileNetV2, EfficientNet-Lite1 and -Lite2 with published weights, jaxlite's ResNet-20 of Fashion-MNIST and
small CNN of the digits (both trained here first), and MobileNetV2 with drawn weights as a control. Each set is split
into training (at most 500, a tenth of it validation) and test; scores see the training examples alone. 'fine-tuned' is
the test accuracy after `--steps` of the recipe of `jl.finetune`, from the solved head, a mean over seeds. A ranking
holds where its first candidate is the best by fine-tuning or lies within the best one's 95 % interval. What a score
costs are features that nobody has kept, and all four scores with their intervals, in processor time; beside it stand
the steps alone, without compiling and evaluation, of a run as long as `jl.finetune` takes where nobody says. The crops
of textures and photographs overlap between training and test, and digits is what one candidate was trained on: these
rows are easy. Every finished line is kept in `--out`, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import transfer_data
from absl import app, flags

import jaxlite as jl
from jaxlite.config.schema import OptimConfig
from jaxlite.finetuning import backbone, begin, cached_features, rank, recipe, resized
from jaxlite.finetuning.choice import steps_for
from jaxlite.finetuning.ranking import SCORES
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
flags.DEFINE_float('minutes', 0, 'stop after the line that is finished then, with code 75; the same command goes on')


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


def spent(work: Any, *given: Any) -> tuple[Any, dict[str, float]]:
  """What a function gives, and the seconds of clock and processor that it took."""
  clock, processor = time.perf_counter(), time.process_time()
  found = work(*given)
  return found, {'seconds': time.perf_counter() - clock, 'processor': time.process_time() - processor}


def tuned(network: Any, data: Any, seed: int) -> tuple[float, float]:
  """The test accuracy of one fine-tuning, and the seconds of processor of one of its steps."""
  begun = begin(network, data, method=FLAGS.method, folder=f'{FLAGS.workdir}/features', seed=seed)
  options = OptimConfig(lr=3e-5 if FLAGS.method == 'full' else 1e-4)
  train = jl.train_step(begun.network, jl.cross_entropy, recipe(begun, FLAGS.steps, optim_config=options))
  state = train.init(jax.random.key(seed), jl.data.batch_at(data.train, 32, seed, 0))
  marks = []
  for step in range(FLAGS.steps):
    state, metrics = train.step(state, jl.data.batch_at(data.train, 32, seed, step))
    float(metrics['task'])
    marks.append(time.process_time())
  right = [
    ((np.asarray(train.eval(state, batch)[0]).argmax(1) == batch['labels']) * batch['weight']).sum()
    for batch in jl.data.eval_batches(data.test, 100)
  ]
  return float(sum(right) / len(data.test.labels)), (marks[-1] - marks[0]) / max(1, len(marks) - 1)


def scored(networks: dict[str, Any], data: Any, truth: dict[str, float]) -> tuple[Any, dict[str, float]]:
  """The ranking, and what each candidate's scores took of the processor."""
  marks, seconds = [time.process_time()], {}

  def told(line: str) -> None:
    name = line.split(':')[0]
    if name in networks:
      marks.append(time.process_time())
      seconds[name] = marks[-1] - marks[-2]

  folder = f'{FLAGS.workdir}/features'
  return rank(networks, data, truth=truth or None, examples=FLAGS.examples, folder=folder, say=told), seconds


def main(_: list[str]) -> None:
  """Fills what is missing, and prints a table a set and one of all sets."""
  path, began = Path(FLAGS.out), time.monotonic()
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

  def of(key: dict[str, Any]) -> list[dict[str, Any]]:
    return [line for line in lines if key.items() <= line.items()]

  def keep(line: dict[str, Any]) -> None:
    lines.append(line)
    with open(path, 'a', encoding='utf-8') as file:
      file.write(json.dumps(line) + '\n')
    if FLAGS.minutes and time.monotonic() - began > 60 * FLAGS.minutes:
      raise SystemExit(75)

  jax.config.update('jax_compilation_cache_dir', str(Path(FLAGS.workdir, 'programs').absolute()))
  names = FLAGS.candidates or list(CANDIDATES)
  networks = {name: CANDIDATES[name]() for name in names}
  held, rows = [], []
  for which in FLAGS.sets or list(transfer_data.sets(FLAGS.size)):
    data, truth = data_of(which), {}
    for name in names:
      key = {'set': which, 'candidate': name, 'what': 'features'}
      if not of(key):
        found = backbone(networks[name], data.train.inputs[:2])
        with tempfile.TemporaryDirectory() as cold:
          keep({**key, **spent(cached_features, found, data.train, cold)[1]})
      key = {'set': which, 'candidate': name, 'steps': FLAGS.steps, 'method': FLAGS.method}
      for seed in range(0 if FLAGS.scores_alone else FLAGS.seeds):
        if not of({**key, 'seed': seed}):
          (accuracy, step), took = spent(tuned, networks[name], data, seed)
          keep({**key, 'seed': seed, 'accuracy': accuracy, 'step': step, **took})
          print(f'{which}, {name}: {100 * accuracy:.1f} %, {took["processor"]:.0f} s of processor', flush=True)
          jax.clear_caches()
      if some := of(key):
        truth[name] = float(np.mean([line['accuracy'] for line in some]))
    ranking, scoring = scored(networks, data, truth)
    print(f'\n{which}: {len(data.train.labels)} to train on, {len(data.test.labels)} to test\n{ranking}', flush=True)
    if truth:
      best = max(truth, key=lambda name: truth[name])
      low, _ = wilson(round(truth[best] * len(data.test.labels)), len(data.test.labels))
      held.append(truth[ranking.best] >= low)
      shares = []
      for name in names:
        features = of({'set': which, 'candidate': name, 'what': 'features'})[0]['processor']
        runs = of({'set': which, 'candidate': name, 'steps': FLAGS.steps, 'method': FLAGS.method})
        steps = steps_for(len(data.train.labels), 32)
        shares.append((features + scoring[name]) / (steps * np.mean([line['step'] for line in runs])))
      taus = ' | '.join(f'{ranking.tau[one]:.2f}' if one in ranking.tau else '' for one in SCORES)
      rows.append(
        f'| {which} | {best} {100 * truth[best]:.1f} (from {100 * low:.1f}) | {ranking.best} '
        f'{100 * truth[ranking.best]:.1f} | {"yes" if held[-1] else "no"} | {taus} | '
        f'{min(shares):.2f} to {max(shares):.2f} |'
      )
  if held:
    taus = ' | '.join(f'tau {name}' for name in SCORES)
    print(
      f'\n| set | best by fine-tuning, % | first by the ranking, % | holds | {taus} | scores by fine-tuning, time |'
    )
    print('|---|---|---|---|' + '--:|' * (len(SCORES) + 1) + '\n' + '\n'.join(rows))
    print(f'\nthe ranking holds on {sum(held)} of {len(held)} sets')


if __name__ == '__main__':
  app.run(main)
