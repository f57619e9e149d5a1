"""Input: whether it ever leads. Batches gathered at once against an example at a time, and augmentation's price.

  python experiments/bench/pipelines.py [--short]

Three tables. Pictures per second of `batch_at` at 28x28, against a pipeline that fetches, converts and stacks one
example at a time, as loaders that are handed single examples do (once as lean as it can be, once with a Python iterator
between the stages). What `batch_at` takes of a CNN's train step, and what is left of it when another thread gathers
ahead. What each augmentation adds to the step. JAX and NumPy in one process, in turns; CPU seconds beside the clock's,
since other work on the machine disturbs them less.
"""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Callable, Iterator

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_bool('short', False, 'fewer turns')
flags.DEFINE_multi_enum(
  'tables', ['pipelines', 'input', 'augmentation'], ['pipelines', 'input', 'augmentation'], 'which of the three'
)
BATCH, COUNT = 128, 60_000


def turns(forms: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
  """Calls each form once in each round; returns by name [rounds, 2]: seconds and CPU seconds."""
  found: dict[str, list[list[float]]] = {name: [] for name in forms}
  for turn in range(-1, rounds):  # the first is not counted
    for name, form in forms.items():
      began = time.perf_counter(), time.process_time()
      form()
      if turn >= 0:
        found[name].append([time.perf_counter() - began[0], time.process_time() - began[1]])
  return {name: np.array(times) for name, times in found.items()}


def pipelines(rounds: int) -> None:
  """Pictures per second, one core."""
  from jaxlite.data import Split, batch_at

  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (COUNT, 28, 28, 1), np.uint8)
  split = Split(images, rng.integers(0, 10, COUNT).astype(np.int32))
  steps = 20

  def at_once() -> None:
    for step in range(steps):
      batch_at(split, BATCH, 0, step)

  def one_by_one() -> None:
    order = np.random.default_rng(0).permutation(COUNT)
    for step in range(steps):
      rows = order[step * BATCH : (step + 1) * BATCH]
      examples = [(np.asarray(split.inputs[row], np.float32) / 255, split.labels[row]) for row in rows]
      {'inputs': np.stack([image for image, _ in examples]), 'labels': np.array([label for _, label in examples])}

  def fetched(rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for row in rows:
      yield {'inputs': split.inputs[row], 'labels': split.labels[row]}

  def mapped(examples: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    for example in examples:
      yield {**example, 'inputs': example['inputs'].astype(np.float32) / 255}

  def staged() -> None:
    order = np.random.default_rng(0).permutation(COUNT)
    examples = mapped(fetched(order))
    for _ in range(steps):
      whole = [next(examples) for _ in range(BATCH)]
      {name: np.stack([example[name] for example in whole]) for name in whole[0]}

  found = turns({'batch_at': at_once, 'one by one': one_by_one, 'one by one, staged': staged}, rounds)
  print(f'{"28x28, batch 128":32} {"pictures a CPU second":>22} {"batch_at is faster by":>22} (min to max)')
  for name, times in found.items():
    ratio = times[:, 1] / found['batch_at'][:, 1]
    rate = steps * BATCH / np.median(times[:, 1])
    print(f'{name:32} {rate:22,.0f} {np.median(ratio):22.1f} ({ratio.min():.1f} to {ratio.max():.1f})')


def within_a_step(rounds: int) -> None:
  """What input and augmentation add to the small CNN's step."""
  import jax
  import optax

  import jaxlite as jl
  from jaxlite.data import Split, batch_at
  from jaxlite.models import SmallCNN

  rng = np.random.default_rng(0)
  split = Split(rng.integers(0, 256, (COUNT, 28, 28, 1), np.uint8), rng.integers(0, 10, COUNT).astype(np.int32))
  fixed, steps = batch_at(split, BATCH, 0, 0), 5

  def built(*augmentations: object) -> list:
    parts = [jl.augment(*augmentations)] if augmentations else []
    recipe = jl.chain(*parts, jl.optim.normalize(np.float32([73]), np.float32([90])), optax.adamw(1e-3))
    train = jl.train_step(jl.from_linen(SmallCNN()), jl.cross_entropy, recipe)
    return [train, train.init(jax.random.key(0), fixed)]

  def runner(built: list, batch_of: Callable[[int], dict]) -> Callable[[], None]:
    def run() -> None:
      train, state = built
      for step in range(steps):
        state, _ = train.step(state, batch_of(step))
      built[1] = jax.block_until_ready(state)

    return run

  def ahead(built: list) -> Callable[[], None]:
    def run() -> None:
      train, state = built
      following = pool.submit(batch_at, split, BATCH, 0, 0)
      for step in range(steps):
        batch, following = following.result(), pool.submit(batch_at, split, BATCH, 0, step + 1)
        state, _ = train.step(state, batch)
      built[1] = jax.block_until_ready(state)

    return run

  if 'input' in FLAGS.tables:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      forms = {
        'one batch again and again': runner(built(), lambda _: fixed),
        'batch_at': runner(built(), lambda step: batch_at(split, BATCH, 0, step)),
        'batch_at on another thread': ahead(built()),
      }
      show('the step of the small CNN', turns(forms, rounds), steps)
  if 'augmentation' not in FLAGS.tables:
    return
  augmentations = {
    'none': (),
    'flip': (jl.optim.flip(),),
    'shift(1)': (jl.optim.shift(1),),
    'crop(2)': (jl.optim.crop(2),),
    'cutout(8)': (jl.optim.cutout(8),),
    'mixup(0.2)': (jl.optim.mixup(0.2, 10),),
    'cutmix(1.0)': (jl.optim.cutmix(1.0, 10),),
    'flip, shift(1)': (jl.optim.flip(), jl.optim.shift(1)),
  }
  forms = {name: runner(built(*parts), lambda _: fixed) for name, parts in augmentations.items()}
  show('augmentation within it', turns(forms, rounds), steps)


def show(title: str, found: dict[str, np.ndarray], steps: int) -> None:
  """Prints milliseconds per step and ratios to the first form, on the clock and in CPU seconds."""
  print(f'\n{title:32} {"ms":>7} {"ratio (min to max)":>22} {"CPU ms":>8} {"ratio (min to max)":>22}')
  first = next(iter(found.values()))
  for name, times in found.items():
    cells = []
    for column in (0, 1):
      ratio = times[:, column] / first[:, column]
      cells.append(1e3 * np.median(times[:, column]) / steps)
      cells.append(f'{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})')
    print('{:32} {:7.1f} {:>22} {:8.1f} {:>22}'.format(name, *cells))


def main(_: list[str]) -> None:
  """Prints the tables."""
  rounds = 5 if FLAGS.short else 21
  if 'pipelines' in FLAGS.tables:
    pipelines(rounds)
  within_a_step(rounds)
  print(f'load of the machine: {os.getloadavg()[0]:.1f}')


if __name__ == '__main__':
  app.run(main)
