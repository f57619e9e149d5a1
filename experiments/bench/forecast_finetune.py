"""At which step fine-tuning reaches a training loss: told beforehand from the linearized network, and what came.

  python experiments/bench/forecast_finetune.py --out=runs/forecast_finetune.jsonl
  python experiments/bench/forecast_finetune.py --out=FILE --cases=pictures-full,text-head-sgd --seeds=1

Digits: a small CNN learns 0 to 4, and then 400 of 5 to 9. Pictures: Debian's stamps at 96 pixels
(`transfer_data.py`), MobileNetV2 with torchvision's weights. Text: BBC news, MiniLM, 200 texts. A case trains its
recipe for so many steps and looks at the loss of all training examples every few of them; targets are the losses that
it had at 40 and at 80 % of the run, for the first time. Then, knowing nothing of that, the step is told as by
`jl.plan(..., target=)`. 'head' trains a linear head on fixed features; 'full', 'last' and 'lora' are those of
`jl.finetune`, 'bare' has the head begin at 0, 'sgd' is momentum SGD on everything. Finished lines are kept in `--out`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import transfer_data
from absl import app, flags

import jaxlite as jl
from jaxlite import models
from jaxlite.data import Split
from jaxlite.data.encoders import TextEncoder
from jaxlite.finetuning import backbone, cached_features
from jaxlite.planning.outputs import UnpredictableError
from jaxlite.run.finetune import ready
from jaxlite.run.loss_forecast import time_to_loss
from jaxlite.run.setup import Setup, prepare

FLAGS = flags.FLAGS
flags.DEFINE_string('out', 'runs/forecast_finetune.jsonl', 'where finished lines are kept')
flags.DEFINE_string('features', 'runs/features', 'where features are kept')
flags.DEFINE_list('cases', [], 'some of the cases; none is all')
flags.DEFINE_integer('seeds', 1, 'draws of splits, first values and order')
flags.DEFINE_list('parts', ['0.4', '0.8'], 'of the run, whose losses are the targets')


def head(features: np.ndarray, labels: np.ndarray, make: Callable[[], Any], seed: int, steps: int) -> Setup:
  """A linear head on fixed features, drawn small."""
  classes, width = int(labels.max()) + 1, features.shape[1]
  draw = np.random.default_rng(seed).normal(size=(width, classes)) / width
  params = {'kernel': jnp.asarray(draw, jnp.float32), 'bias': jnp.zeros(classes)}
  model = jl.from_function(lambda p, x: x @ p['kernel'] + p['bias'], params)
  config = jl.Config(name='head', train=jl.Duration(steps=steps), seed=seed, recipe=lambda c, t: jl.chain(make()))
  config.data.batch_size = 32
  data = jl.data.from_arrays((features, labels), 0.1, standardize=False, seed=seed)
  return prepared(config, model, data)


def prepared(config: Any, model: Any, data: Any, read: Any = ()) -> Setup:
  with tempfile.TemporaryDirectory() as folder:
    return prepare(config, Path(folder), model, data, read)


@functools.lru_cache(maxsize=2)
def pictures(seed: int) -> Any:
  return transfer_data.photographs(96, seed)


def tuned(method: str, steps: int, seed: int, *, solve: bool = True, lr: float, make: Any = None) -> Setup:
  """MobileNetV2 on the stamps by a method of `jl.finetune`, or by an optimizer of its own."""
  config = jl.FineTune(name='x', method=method, solve=solve, seed=seed, train=jl.Duration(steps=steps))
  config.features, config.data.batch_size, config.optim.lr = FLAGS.features, 32, lr
  ready_config, network, data, read = ready(config, transfer_data.pretrained('mobilenet_v2', 96), pictures(seed), print)
  return prepared(_with(ready_config, make), network, data, read)


@functools.lru_cache(maxsize=1)
def news() -> tuple[Any, np.ndarray, Any]:
  """200 texts of up to 48 tokens, their classes, the model."""
  texts, names = transfer_data.news()
  rows = np.random.default_rng(0).permutation(len(texts))[:200]
  kinds = sorted(set(names))
  labels = np.array([kinds.index(names[row]) for row in rows], np.int32)
  whole = jl.finetuning.pretrained_text(transfer_data.weights_of('all_minilm_l6_v2', 'model.zip'), length=48)
  return TextEncoder(whole.tokenizer, 48).encode([texts[row] for row in rows])[0], labels, whole.network


def text_head(make: Callable[[], Any], seed: int, steps: int) -> Setup:
  inputs, labels, network = news()
  found = backbone(network, {name: one[:2] for name, one in inputs.items()}, head='outputs')
  shown = np.asarray(cached_features(found, Split(inputs, labels), FLAGS.features)[:, 0])
  return head(shown, labels, make, seed, steps)


def picture_head(make: Callable[[], Any], seed: int, steps: int) -> Setup:
  data = pictures(seed).train
  found = backbone(transfer_data.pretrained('mobilenet_v2', 96), data.inputs[:2])
  return head(np.asarray(cached_features(found, data, FLAGS.features)[:, 0]), data.labels, make, seed, steps)


def text_full(seed: int, steps: int) -> Setup:
  """All of MiniLM and a head that was solved."""
  inputs, labels, network = news()
  data = jl.data.from_arrays((inputs, labels), 0.1, seed=seed)
  config = jl.FineTune(name='x', method='full', head='outputs', words='no', seed=seed, train=jl.Duration(steps=steps))
  config.features, config.data.batch_size, config.optim.lr = FLAGS.features, 16, 3e-5
  return prepared(*_of(ready(config, network._replace(encode=None), data, print)))


@functools.lru_cache(maxsize=2)
def digits_network(seed: int) -> Any:
  """A small CNN that has learned the digits 0 to 4, in a few seconds; it takes pictures of 0 .. 255."""
  inputs, labels = transfer_data.digits()
  rows = labels < 5
  config = jl.Config(name='digits', train=jl.Duration(epochs=10), seed=seed)
  config.log.progress = False
  with tempfile.TemporaryDirectory() as folder:
    jl.train(config, folder, model=models.SmallCNN(classes=5), data=(inputs[rows], labels[rows]), say=lambda line: None)
    return jl.load(folder, model=models.SmallCNN(classes=5))


def digits(method: str, seed: int, *, lr: float, solve: bool = True, make: Any = None, rank: int = 8) -> Setup:
  """That network on 400 digits of 5 to 9."""
  inputs, labels = transfer_data.digits()
  rows = np.random.default_rng(seed).permutation(np.flatnonzero(labels > 4))[:400]
  config = jl.FineTune(name='x', method=method, solve=solve, seed=seed, rank=rank, train=jl.Duration(steps=80))
  config.features, config.data.batch_size, config.optim.lr = FLAGS.features, 32, lr
  begun = ready(config, digits_network(seed), (inputs[rows], labels[rows] - 5), print)
  return prepared(_with(begun[0], make), *begun[1:])


def _with(config: Any, make: Any) -> Any:
  """The config with an optimizer of its own for everything."""
  if make is None:
    return config
  kept = jl.finetuning.as_evaluated()
  return dataclasses.replace(config, recipe=lambda c, t: jl.chain(kept, make()))


def _of(made: Any) -> tuple[Any, Any, Any, Any]:
  return made


CASES: dict[str, tuple[Callable[[int], Setup], int]] = {  # what makes it, and steps between looks at the loss
  'pictures-head-sgd': (lambda seed: picture_head(lambda: optax.sgd(0.03, momentum=0.9), seed, 200), 4),
  'pictures-head-adam': (lambda seed: picture_head(lambda: optax.adam(1e-3), seed, 100), 2),
  'text-head-sgd': (lambda seed: text_head(lambda: optax.sgd(0.5, momentum=0.9), seed, 300), 5),
  'text-head-adam': (lambda seed: text_head(lambda: optax.adam(3e-3), seed, 300), 5),
  'digits-full': (lambda seed: digits('full', seed, lr=1e-4), 4),
  'digits-bare': (lambda seed: digits('full', seed, lr=1e-3, solve=False), 4),
  'digits-last': (lambda seed: digits('last', seed, lr=1e-3, solve=False), 4),
  'digits-lora': (lambda seed: digits('lora', seed, lr=3e-3, solve=False, rank=4), 4),
  'digits-sgd': (lambda seed: digits('full', seed, lr=1, make=lambda: optax.sgd(0.01, momentum=0.9), solve=False), 4),
  'pictures-full': (lambda seed: tuned('full', 40, seed, lr=3e-5), 5),
  'pictures-last': (lambda seed: tuned('last', 40, seed, lr=1e-4), 5),
  'pictures-bare': (lambda seed: tuned('full', 40, seed, solve=False, lr=3e-4), 5),
  'pictures-sgd': (lambda seed: tuned('full', 40, seed, lr=1, make=lambda: optax.sgd(1e-3, momentum=0.9)), 5),
  'text-full': (lambda seed: text_full(seed, 40), 5),
}


def trained(setup: Setup, look: int) -> tuple[np.ndarray, np.ndarray]:
  """Steps, and the loss of all training examples after them."""
  train, data, size = setup.train, setup.data.train, setup.config.data.batch_size

  def loss(state: Any) -> float:
    found = [
      (float(train.eval(state, batch)[1]['task']), float(batch['weight'].sum()))
      for batch in jl.data.eval_batches(data, 64)
    ]
    return float(np.average([one for one, _ in found], weights=[count for _, count in found]))

  state = train.init(jax.random.key(setup.config.seed), setup.first_batch)
  steps, losses = [0], [loss(state)]
  for step in range(setup.plan.total):
    state, _ = train.step(state, jl.data.batch_at(data, size, setup.config.seed, step))
    if (step + 1) % look == 0:
      steps.append(step + 1)
      losses.append(loss(state))
  return np.array(steps), np.array(losses)


def first(steps: np.ndarray, losses: np.ndarray, target: float) -> float:
  """The step at which a loss is first at a target, between two looks where it is."""
  at = int(np.flatnonzero(losses <= target)[0])
  before, after = losses[at - 1], losses[at]
  return float(steps[at - 1] + (before - target) / (before - after) * (steps[at] - steps[at - 1]))


def main(_: list[str]) -> None:
  """Fills what is missing, and prints the table."""
  path = Path(FLAGS.out)
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

  def keep(line: dict[str, Any]) -> dict[str, Any]:
    lines.append(line)
    print(json.dumps(line), flush=True)
    with open(path, 'a', encoding='utf-8') as file:
      file.write(json.dumps(line) + '\n')
    return line

  for seed, case in itertools.product(range(FLAGS.seeds), FLAGS.cases or list(CASES)):
    kept = [one for one in lines if one['case'] == case and one['seed'] == seed]
    missing = [part for part in map(float, FLAGS.parts) if not any(one.get('part') == part for one in kept)]
    if not missing:
      continue
    (make, look), known = CASES[case], [one for one in kept if 'losses' in one]
    setup = make(seed)
    if not known:
      began = time.process_time()
      steps, losses = trained(setup, look)
      spent = {'trained': time.process_time() - began, 'total': setup.plan.total}
      known = [keep({'case': case, 'seed': seed, 'steps': steps.tolist(), 'losses': losses.tolist(), **spent})]
    for part in missing:
      keep({'case': case, 'seed': seed, 'part': part, **judged(setup, known[0], part)})
    jax.clear_caches()
  for one in lines:
    if 'refused' in one:
      print(f'{one["case"]}: not told: {one["refused"]}')
  lines = [one for one in lines if 'told' in one]
  print('\n| case | targets | steps | told | median error | worst | 80 % interval holds | cost, of its training |')
  print('|---|--:|--:|--:|--:|--:|--:|--:|')
  for case in dict.fromkeys(one['case'] for one in lines):
    print(row(case, [one for one in lines if one['case'] == case]))
  print(row('all', lines))


def judged(setup: Setup, known: dict[str, Any], part: float) -> dict[str, Any]:
  """Tells one target of a run whose losses are known; nothing where they had not fallen by then."""
  steps, losses = np.array(known['steps']), np.array(known['losses'])
  target = float(losses[: 1 + int(part * (len(steps) - 1))].min())
  if target >= losses[0]:
    return {}
  began = time.process_time()
  try:
    told = time_to_loss(setup, target)
  except UnpredictableError as error:
    return {'target': target, 'refused': str(error)}
  spent = {'processor': time.process_time() - began, 'trained': known['trained'], 'total': known['total']}
  reach = told.reach
  found = {'told': min(reach.step, 1e9), 'low': min(reach.low, 1e9), 'high': min(reach.high, 1e9), 'share': reach.share}
  return {'target': target, 'true': first(steps, losses, target), **found, **spent, 'by': ' '.join(told.told)}


def row(name: str, lines: list[dict[str, Any]]) -> str:
  """One row of the table; what is not expected within the run is off by as much as there is."""
  off = np.array([abs(min(one['told'], one['total']) / one['true'] - 1) for one in lines])
  held = sum(one['low'] <= one['true'] <= one['high'] for one in lines)
  cost = np.median([one['processor'] / one['trained'] for one in lines])
  steps, told = (' '.join(f'{one[what]:.0f}' for one in lines[:6]) for what in ('true', 'told'))
  return (
    f'| {name} | {len(lines)} | {steps} | {told} | {100 * np.median(off):.0f} % | {100 * off.max():.0f} % | '
    f'{held} of {len(lines)} | {cost:.2f} |'
  )


if __name__ == '__main__':
  app.run(main)
