"""Does a ranking by features find the network that fine-tunes best? Six small sets, six candidates.

  python experiments/bench/ranking.py --out=runs/ranking.jsonl
  python experiments/bench/ranking.py --out=runs/ranking.jsonl --sets=digits,faces --steps=60 --seeds=1   # a short form

Candidates: MobileNetV2, EfficientNet-Lite1 and -Lite2 with published weights, jaxlite's ResNet-20 of Fashion-MNIST and
small CNN of the digits (both trained here first), and MobileNetV2 with drawn weights as a control. Each set is split
into training (at most 500, a tenth of it validation) and test; scores see the training examples alone. 'fine-tuned' is
the test accuracy after `--steps` of 16 examples by the recipe of `jl.finetune` at a rate of 1e-4, from the solved head,
a mean over seeds. A ranking holds where its first candidate is the best by fine-tuning or lies within the best one's
95 % interval. What a score costs are the features of the training examples and all four scores of `jl.finetuning.rank`
with their intervals, in processor time; beside it stand the steps alone, without compiling and evaluation, of a run as
long as `jl.finetune` takes where nobody says. The crops of textures and photographs overlap between training and test,
and digits is what one candidate was trained on: these rows are easy. Every finished line is kept in `--out`, and the
same command goes on where it was stopped.
"""

from __future__ import annotations

import collections
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import transfer_data
from absl import app, flags

import jaxlite as jl
from jaxlite.config.schema import OptimConfig
from jaxlite.finetuning import Start, backbone, choose, fit_probe, recipe, resized, with_head
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
flags.DEFINE_integer('tests', 300, 'to test on, at most')
flags.DEFINE_integer('steps', 80, 'of a fine-tuning')
flags.DEFINE_integer('seeds', 3, 'fine-tunings behind each mean')
flags.DEFINE_integer('epochs', 3, 'that the ResNet-20 sees of Fashion-MNIST')
flags.DEFINE_string('method', 'full', 'of the fine-tuning')
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


BATCH, PART = 16, 50  # examples of a step, and of a pass forward
CLASSES = 10  # outputs of every head: those of sets with fewer stay at a logit that no example has
OURS = ('resnet20_fashion', 'cnn_digits')  # small: pictures as they are
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
  train, test = order[:most], order[most : most + FLAGS.tests]
  return jl.data.from_arrays((inputs[train], labels[train]), 0.1, (inputs[test], labels[test]), name=name)


def common(data: Any) -> Any:
  """The set as float pictures of `--size`, which the networks of photographs take without resizing: one program then
  serves all sets."""
  side = FLAGS.size

  def brought(split: Any) -> Any:
    pictures = jnp.asarray(split.inputs, jnp.float32)
    pictures = jnp.repeat(pictures, 3, 3) if pictures.shape[3] == 1 else pictures
    if pictures.shape[1:3] != (side, side):
      pictures = jax.image.resize(pictures, (len(pictures), side, side, 3), 'linear')
    return split._replace(inputs=np.asarray(pictures))

  return data._replace(train=brought(data.train), test=brought(data.test))


class Tuner:
  """One candidate, and the programs that fine-tune it: each is compiled once."""

  def __init__(self, name: str, network: Any):
    self.name, self.network = name, network
    self.made: dict[Any, Any] = {}

  def programs(self, inputs: np.ndarray) -> Any:
    """Of pictures of one size: the backbone, what gives features, and the step by the recipe of `jl.finetune`."""
    if inputs.shape[1:] not in self.made:
      found = backbone(self.network, inputs[:2])
      ready = with_head(found, CLASSES)
      choice = choose(FLAGS.examples, CLASSES, 1, method=FLAGS.method)
      options = OptimConfig(lr=1e-4)  # above its default for everything: a short run is to move the network
      made = recipe(Start(ready, found, choice, None, ()), FLAGS.steps, optim_config=options)
      give = jax.jit(lambda p, s, x: found.model.apply(p, s, x, train=False, key=None)[0])
      self.made[inputs.shape[1:]] = found, give, jl.train_step(ready, jl.cross_entropy, made)
    return self.made[inputs.shape[1:]]

  def tuned(self, data: Any, seeds: range) -> dict[str, Any]:
    """The test accuracies of fine-tunings from the solved head, the scores, and what each took of the processor."""
    train, test = data.train, data.test
    found, give, step = self.programs(train.inputs)
    np.asarray(give(found.params, found.model_state, jl.data.batch_at(train, PART, 0, 0)['inputs']))  # compiled
    began = time.process_time()
    parts = [give(found.params, found.model_state, batch['inputs']) for batch in jl.data.eval_batches(train, PART)]
    features = np.concatenate([np.asarray(part) for part in parts])[: len(train.labels)]
    there = int(train.labels.max()) + 1
    scores = {name: score(features, train.labels, classes=there) for name, score in SCORES.items()}
    told = {f'{name}_{kind}': getattr(one, kind) for name, one in scores.items() for kind in ('value', 'low', 'high')}
    told['scoring'] = time.process_time() - began
    accuracies, marks = [], []
    for seed in seeds:
      head = fit_probe(features, train.labels, CLASSES, seed=seed)
      begun = with_head(found, CLASSES, kernel=head.kernel, bias=head.bias)
      first = jl.data.batch_at(train, BATCH, seed, 0)
      state = step.init(jax.random.key(seed), first, begun.params, begun.model_state)
      for number in range(FLAGS.steps):
        began = time.process_time()
        state, metrics = step.step(state, jl.data.batch_at(train, BATCH, seed, number))
        float(metrics['task'])
        marks.append(time.process_time() - began)
      right = [
        ((np.asarray(step.eval(state, batch)[0]).argmax(1) == batch['labels']) * batch['weight']).sum()
        for batch in jl.data.eval_batches(test, PART)
      ]
      accuracies.append(float(sum(right) / len(test.labels)))
    return {**told, 'accuracies': accuracies, 'step': float(np.median(marks))}


def main(_: list[str]) -> None:
  """Fills what is missing, candidate by candidate and then set by set, and prints the table."""
  path, began = Path(FLAGS.out), time.monotonic()
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

  def of(key: dict[str, Any]) -> list[dict[str, Any]]:
    return [line for line in lines if key.items() <= line.items()]

  def keep(line: dict[str, Any]) -> None:
    lines.append(line)
    print(json.dumps(line), flush=True)
    with open(path, 'a', encoding='utf-8') as file:
      file.write(json.dumps(line) + '\n')
    if FLAGS.minutes and time.monotonic() - began > 60 * FLAGS.minutes:
      raise SystemExit(75)

  jax.config.update('jax_compilation_cache_dir', str(Path(FLAGS.workdir, 'programs').absolute()))
  names = FLAGS.candidates or list(CANDIDATES)
  wanted = FLAGS.sets or list(transfer_data.sets(FLAGS.size))
  how = {'steps': FLAGS.steps, 'method': FLAGS.method, 'examples': FLAGS.examples, 'seeds': FLAGS.seeds}
  for name in names:
    missing = [one for one in wanted if not of({'set': one, 'candidate': name, **how})]
    tuner = Tuner(name, CANDIDATES[name]()) if missing else None
    for one in missing if tuner is not None else ():
      data = data_of(one) if name in OURS else common(data_of(one))
      keep({'set': one, 'candidate': name, **how, **tuner.tuned(data, range(FLAGS.seeds))})
  print(table(wanted, names, lambda one, name: of({'set': one, 'candidate': name, **how})[0]))


def table(wanted: list[str], names: list[str], of: Any) -> str:
  """One row a set: who is the best by fine-tuning, whom each score puts first, how the orders agree, and the cost."""
  from scipy import stats

  held, rows = collections.Counter(), []
  for one in wanted:
    test = len(data_of(one).test.labels)
    scores = {name: of(one, name) for name in names}
    truth = {name: float(np.mean(scores[name]['accuracies'])) for name in names}
    best = max(truth, key=truth.__getitem__)
    low, _ = wilson(round(truth[best] * test), test)
    cells = []
    for by in SCORES:
      values = {name: scores[name][f'{by}_value'] for name in names}
      first = max(values, key=values.__getitem__)
      tau = stats.weightedtau([values[name] for name in names], [truth[name] for name in names]).statistic
      held[by] += truth[first] >= low
      cells.append(f'{first} {100 * truth[first]:.1f}{"" if truth[first] >= low else " (no)"}, {tau:.2f}')
    steps = steps_for(len(data_of(one).train.labels), BATCH)
    shares = [scores[name]['scoring'] / (steps * scores[name]['step']) for name in names if name not in OURS]
    every = ' '.join(f'{100 * truth[name]:.0f}' for name in names)
    rows.append(
      f'| {one} | {every} | {best} {100 * truth[best]:.1f} (from {100 * low:.1f}) | {" | ".join(cells)} | '
      + (f'{min(shares):.2f} to {max(shares):.2f} |' if shares else ' |')
    )
  head = f'| set | fine-tuned, %: {", ".join(names)} | best | ' + ' | '.join(f'first by {by}, tau' for by in SCORES)
  lines = [f'{head} | a score by the steps of a fine-tuning |', '|---|---|---|' + '---|' * len(SCORES) + '--:|', *rows]
  told = ', '.join(f'{by} {count}' for by, count in held.items())
  return '\n'.join([*lines, f'the first is the best, or within its interval, in so many of {len(wanted)} sets: {told}'])


if __name__ == '__main__':
  app.run(main)
