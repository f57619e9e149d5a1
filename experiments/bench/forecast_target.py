"""How well the step at which a run reaches a target is told from a part of its learning curve.

    python experiments/bench/forecast_target.py --out=FILE

Short real runs over five tasks (digits, tables, text, regression, synthetic), each another network, rate, batch or
optimizer; the metric is measured 60 times a run. A target is the best value seen by 40, 60 or 80 % of the run, where it
was not reached in the part that is known; the truth is the first step that reaches it. Beside it stand two rules of
thumb: the straight line through the last points, and the middle of what is left. Curves of runs of the same task with
another form are the earlier ones. Then the same of targets that no run reached: better than its best by a tenth of all
that it gained. The constants of `planning/target.py` were chosen on seeds 0 and 1; others, with other widths and rates
and first values, are held out. A file that exists is gone on with.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxlite as jl
from jaxlite.planning.target import reach

POINTS = 60
KNOWN = (0.2, 0.4)
TARGETS = (0.4, 0.6, 0.8)


def digits() -> Any:
  from sklearn.datasets import load_digits

  found = load_digits()
  return (found.data / 16).astype('f4'), found.target, 'accuracy'


def tables() -> Any:
  from sklearn.datasets import fetch_california_housing, load_breast_cancer, make_classification  # noqa: F401

  x, y = make_classification(4000, 30, n_informative=14, n_redundant=6, n_classes=4, class_sep=0.8, random_state=0)
  return x.astype('f4'), y, 'accuracy'


def text() -> Any:
  """The next character of this library's own licence and sources, from the sixteen before it."""
  root = Path(jl.__file__).parent
  words = ''.join(path.read_text() for path in sorted(root.glob('*.py')))[:60_000]
  letters = sorted(set(words))
  ids = np.array([letters.index(one) for one in words])
  rows = np.lib.stride_tricks.sliding_window_view(ids, 17)[::7]
  return rows[:, :16].astype('i4'), rows[:, 16], 'accuracy'


def regression() -> Any:
  from sklearn.datasets import make_friedman1

  x, y = make_friedman1(4000, 12, noise=1.0, random_state=0)
  return x.astype('f4'), ((y - y.mean()) / y.std()).astype('f4'), 'error'


def synthetic() -> Any:
  """Two spirals in the plane, turned by what a third column says."""
  rng = np.random.default_rng(0)
  y = rng.integers(0, 2, 4000)
  turn, radius = rng.uniform(0, 1, 4000), rng.uniform(0.2, 1, 4000)
  angle = 7 * radius + np.pi * y + turn
  x = np.stack([radius * np.cos(angle), radius * np.sin(angle), turn], 1) + 0.03 * rng.normal(size=(4000, 3))
  return x.astype('f4'), y, 'accuracy'


TASKS = {one.__name__: one for one in (digits, tables, text, regression, synthetic)}
OPTIMIZERS = {
  'adam': optax.adam,
  'adamw': optax.adamw,
  'sgd': lambda rate: optax.sgd(10 * rate, momentum=0.9),
  'cosine': lambda rate: optax.adam(optax.cosine_decay_schedule(3 * rate, STEPS)),
}
STEPS = 1500
# (width, depth, optimizer, rate, batch)
FORMS = [
  (32, 1, 'adam', 1e-3, 64),
  (64, 2, 'adamw', 1e-3, 64),
  (64, 2, 'sgd', 1e-3, 64),
  (128, 2, 'cosine', 1e-3, 128),
  (32, 3, 'adam', 3e-4, 32),
  (256, 1, 'adam', 1e-4, 128),
  (128, 3, 'sgd', 3e-4, 32),
  (64, 1, 'cosine', 3e-4, 64),
]


def network(width: int, depth: int, inputs: np.ndarray, outputs: int, seed: int) -> Any:
  """A perceptron; of tokens, on their embeddings."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / math.sqrt(shape[0]), 'float32')  # noqa: E731
  letters = int(inputs.max()) + 1 if inputs.dtype == 'int32' else 0
  first = 16 * inputs.shape[1] if letters else inputs.shape[1]
  params = {f'w{i}': draw(a, b) for i, (a, b) in enumerate(itertools.pairwise([first, *[width] * depth, outputs]))}
  params |= {f'b{i}': jnp.zeros(len(params[f'w{i}'].T)) for i in range(depth + 1)}
  if letters:
    params['table'] = draw(letters, 16)

  def apply(p: Any, x: Any) -> Any:
    x = p['table'][x].reshape(len(x), -1) if letters else x
    for i in range(depth):
      x = jax.nn.relu(x @ p[f'w{i}'] + p[f'b{i}'])
    return x @ p[f'w{depth}'] + p[f'b{depth}']

  return jl.from_function(apply, params)


def ran(task: str, form: tuple[Any, ...], steps: int, seed: int) -> dict[str, Any]:
  """Trains one run and returns its curve."""
  width, depth, optimizer, rate, batch = form
  inputs, labels, metric = TASKS[task]()
  order = np.random.default_rng(7).permutation(len(inputs))
  inputs, labels = inputs[order], labels[order]
  held = len(inputs) // 4
  outputs = 1 if metric == 'error' else int(labels.max()) + 1
  square = lambda outputs, batch: (outputs[:, 0] - batch['labels']) ** 2  # noqa: E731
  loss = square if metric == 'error' else jl.cross_entropy
  model = network(width, depth, inputs, outputs, seed)
  train = jl.train_step(model, loss, jl.chain(OPTIMIZERS[optimizer](rate)))
  state = train.init(jax.random.key(seed), {'inputs': inputs[:batch], 'labels': labels[:batch]})
  test = {'inputs': inputs[:held], 'labels': labels[:held]}
  rng, gap, curve = np.random.default_rng(seed), steps // POINTS, []
  for point in range(POINTS):
    rows = rng.integers(held, len(inputs), (gap, batch))
    state, _ = train.steps(state, {'inputs': inputs[rows], 'labels': labels[rows]})
    out = np.asarray(train.eval(state, test)[0])
    value = (
      np.mean((out[:, 0] - test['labels']) ** 2) if metric == 'error' else np.mean(out.argmax(1) == test['labels'])
    )
    curve.append((gap * (point + 1), float(value)))
  at, values = zip(*curve, strict=True)
  return {'task': task, 'form': list(form), 'seed': seed, 'metric': metric, 'steps': at, 'values': values}


def straight(at: np.ndarray, seen: np.ndarray, goal: float, total: float) -> float:
  """The rule of thumb: the line through the last half of what is known."""
  half = len(at) // 2
  slope, level = np.polyfit(at[half:], seen[half:], 1)
  return min((goal - level) / slope, total) if slope > 0 else total


def judged(curves: list[dict[str, Any]], known: float) -> list[dict[str, Any]]:
  """Every question about every curve, and its answer."""
  found = []
  for index, one in enumerate(curves):
    better, limit = (-1, 0.0) if one['metric'] == 'error' else (1, 1.0)
    at, values = np.array(one['steps'], float), np.array(one['values'])
    best = np.maximum.accumulate(better * values)
    seen = int(known * len(at))
    earlier = [
      (c['steps'], c['values']) for i, c in enumerate(curves) if c['form'] != one['form'] and c['task'] == one['task']
    ]
    beyond = best[-1] + 0.1 * (best[-1] - best[0])
    for goal in (*(best[int(part * len(at)) - 1] for part in TARGETS), beyond):
      truth = at[int(np.argmax(best >= goal))] if goal <= best[-1] else math.inf
      if goal > (0.0 if better < 0 else limit) or truth <= at[seen - 1]:
        continue
      args = (at[:seen], values[:seen], better * goal, at[-1])
      told = reach(*args, better=better, limit=limit, earlier=earlier)
      alone = reach(*args, better=better, limit=limit)
      line = straight(at[:seen], better * values[:seen], goal, at[-1])
      found.append({
        'task': one['task'], 'run': index, 'truth': truth, 'total': at[-1], 'told': told, 'alone': alone,
        'line': line, 'middle': (at[seen - 1] + at[-1]) / 2,
      })  # fmt: skip
  return found


def shown(found: list[dict[str, Any]], known: float) -> None:
  """Prints errors and coverage, over all and by task."""

  def error(one: dict[str, Any], step: float) -> float:
    return abs(min(step, one['total']) - one['truth']) / one['truth']

  groups = collections.defaultdict(list)
  shares = {name: [one['told'].share for one in found if math.isinf(one['truth']) == beyond]
            for name, beyond in (('reached', False), ('never reached', True))}  # fmt: skip
  level = {beyond: [one['alone'].level is not None for one in found if math.isinf(one['truth']) == beyond]
           for beyond in (False, True)}  # fmt: skip
  found = [one for one in found if math.isfinite(one['truth'])]
  for one in found:
    groups['all'].append(one)
    groups[one['task']].append(one)
  print(f'\nfrom {known:.0%} of the run: median error of the step, and how often the 80 % interval holds it')
  print('| task | runs | questions | told | without earlier runs | straight line | middle | interval | width |')
  print('|---|--:|--:|--:|--:|--:|--:|--:|--:|')
  for name, rows in groups.items():
    errors = [100 * np.median([error(one, step(one)) for one in rows]) for step in (
      lambda one: one['told'].step, lambda one: one['alone'].step, lambda one: one['line'], lambda one: one['middle'],
    )]  # fmt: skip
    held = np.mean([one['told'].low <= one['truth'] <= one['told'].high for one in rows])
    width = np.median([(min(one['told'].high, one['total']) - one['told'].low) / one['total'] for one in rows])
    runs = len({one['run'] for one in rows})
    cells = ' | '.join(f'{one:.0f} %' for one in errors)
    print(f'| {name} | {runs} | {len(rows)} | {cells} | {held:.0%} | {width:.2f} |')
  for name, some in shares.items():
    low, middle, high = np.quantile(some, (0.1, 0.5, 0.9))
    print(
      f'targets {name}: told to be reached in {middle:.0%} of futures (80 of 100: {low:.0%} to {high:.0%}), {len(some)}'
    )
  never, reached = level[True], level[False]
  print('told without earlier runs to level off short of the target: ', end='')
  print(f'{sum(never)} of {len(never)} that are never reached, and {sum(reached)} of {len(reached)} that are')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--out', type=Path, required=True, help='where curves are kept, a line each')
  parser.add_argument('--steps', type=int, default=STEPS)
  parser.add_argument('--seeds', type=int, default=1)
  args = parser.parse_args()
  kept = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
  done = {(one['task'], tuple(one['form']), one['seed']) for one in kept}
  for seed, form, task in itertools.product(range(args.seeds), FORMS, TASKS):
    form = (form[0] + 16 * seed, *form[1:3], form[3] * 0.7**seed, form[4])
    if (task, form, seed) not in done:
      began = time.process_time()
      one = ran(task, form, args.steps, seed)
      print(f'{task} {form}: {one["values"][-1]:.3f}, {time.process_time() - began:.1f} s', file=sys.stderr)
      with args.out.open('a') as file:
        file.write(json.dumps(one) + '\n')
      kept.append(one)
  print(f'{len(kept)} runs over {len({one["task"] for one in kept})} tasks')
  for seeds in sorted({one['seed'] > 1 for one in kept}):
    print(f'\n{"held out: other seeds" if seeds else "seeds 0 and 1, on which constants were chosen"}')
    for known in KNOWN:
      shown(judged([one for one in kept if (one['seed'] > 1) == seeds], known), known)


if __name__ == '__main__':
  main()
