"""What each technique is worth: LeNet-300-100 on Fashion-MNIST, several seeds, one table.

  python experiments/techniques.py --workdir=runs/techniques --seeds=5 --epochs=5

Every row gets the same budget, the dense network too: each learning rate is tried once on seed 0 and the best on the
validation split is taken; then every seed trains with it and its last model meets the test split once. Rows that are
done are kept in the workdir, so the same command goes on where it was stopped. `--only` takes rows by a regular
expression.

Below, "alone" is a network of 32 hidden units with labels only; the distilled rows are the same network with the dense
row's seed-0 model for a teacher.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import app, flags

import jaxlite as jl
from jaxlite import compile_cache
from jaxlite import data as datasets
from jaxlite.models import MLP, LeNet300

FLAGS = flags.FLAGS
flags.DEFINE_string('workdir', 'runs/techniques', 'where finished rows are kept')
flags.DEFINE_integer('seeds', 5, 'runs behind each mean')
flags.DEFINE_integer('epochs', 5, 'length of a run')
flags.DEFINE_list('rates', ['1e-3', '2e-3'], 'learning rates that every row may choose from')
flags.DEFINE_string('only', '', 'rows whose name this regular expression finds')
BATCH, TOGETHER = 128, 40


class Row(NamedTuple):
  """One technique.

  Attributes:
    name: in the table.
    recipe: (total steps, optimizer) -> Recipe.
    network: () -> a Flax module.
    finish: Network -> Network, what is done after training; None is nothing.
    dense_start: whether it starts from the dense row's model of the same seed, trained on for as long again.
  """

  name: str
  recipe: Callable[[int, Any], jl.Recipe]
  network: Callable[[], Any] = LeNet300
  finish: Callable[[jl.Network], jl.Network] | None = None
  dense_start: bool = False


class Bench:
  """Data, and the dense models that other rows start from or learn from."""

  def __init__(self, folder: Path):
    self.folder = folder
    self.data = datasets.load('fashion_mnist', validation=0.1, seed=0)
    self.steps = FLAGS.epochs * datasets.steps_per_epoch(self.data.train, BATCH)

  def dense(self, seed: int) -> jl.Network:
    """The dense row's model of a seed, as it was kept."""
    module = jl.from_linen(LeNet300())
    params, state = module.init(jax.random.key(0), self.data.train.inputs[:2])
    values = np.load(self.folder / f'dense-{seed}.npz')
    flat, treedef = jax.tree.flatten(params)
    return jl.Network(module, jax.tree.unflatten(treedef, [values[str(i)] for i in range(len(flat))]), state)

  def calibration(self) -> Iterator[dict[str, np.ndarray]]:
    """Ten batches of training data."""
    return (datasets.batch_at(self.data.train, BATCH, 0, step) for step in range(10))

  def train(self, row: Row, rate: float, seed: int) -> jl.Network:
    """One run of a row."""
    optimizer = optax.adamw(jl.warmup_cosine(rate, self.steps, warmup_steps=self.steps // 20), weight_decay=1e-4)
    recipe = jl.chain(jl.normalize(self.data.mean, self.data.std), row.recipe(self.steps, optimizer))
    train = jl.train_step(jl.from_linen(row.network()), jl.cross_entropy, recipe)
    first = datasets.batch_at(self.data.train, BATCH, seed, 0)
    start = self.dense(seed).params if row.dense_start else None
    state = train.init(jax.random.key(seed), first, params=start)
    for begin in range(0, self.steps, TOGETHER):
      batches = [
        datasets.batch_at(self.data.train, BATCH, seed, step)
        for step in range(begin, min(begin + TOGETHER, self.steps))
      ]
      state, _ = train.steps(state, {name: np.stack([batch[name] for batch in batches]) for name in batches[0]})
    const = {**state.model_state, 'jl.const': state.const}
    network = jl.Network(train.model, state.params, const)
    return row.finish(network) if row.finish else network

  def accuracy(self, network: jl.Network, split: Any) -> float:
    """In percent."""
    right = [
      (np.asarray(network.predict(split.inputs[i : i + 1000])).argmax(1) == split.labels[i : i + 1000]).sum()
      for i in range(0, len(split.labels), 1000)
    ]
    return 100 * float(sum(right)) / len(split.labels)


def small() -> MLP:
  """The student of the distilled rows."""
  return MLP((32,))


def rows(bench: Bench) -> Iterator[Row]:
  """All techniques; dense comes first, since others start from it."""
  yield Row('dense', lambda total, optimizer: jl.chain(optimizer))
  for share in (0.9, 0.95, 0.98):
    percent = f'{100 * share:.0f} %'
    for name, recipe in sparse(share).items():
      yield Row(f'{percent} {name}', recipe)
    yield Row(f'{percent} one-shot, then trained on', one_shot(bench, share), dense_start=True)
  for bits in (8, 4, 2):
    yield Row(f'{bits} bits PTQ', lambda total, optimizer: jl.chain(optimizer), finish=to_integers(bench, bits))
    yield Row(f'{bits} bits QAT', lambda total, optimizer, bits=bits: jl.chain(jl.fake_quant(bits), optimizer))
    yield Row(f'{bits} bits LSQ', lambda total, optimizer, bits=bits: jl.chain(jl.lsq(bits), own_steps(optimizer)))
  yield Row('32 units alone', lambda total, optimizer: jl.chain(optimizer), small)
  for name, part in distilled(bench).items():
    yield Row(f'32 units {name}', lambda total, optimizer, part=part: jl.chain(part(), optimizer), small)
  yield Row('chain: KD, 95 %, 4 bits at once', together(bench))
  yield Row('sequence: 95 % with KD, then 4 bits PTQ', in_turn(bench), finish=to_integers(bench, 4))


def sparse(share: float) -> dict[str, Callable[[int, Any], jl.Recipe]]:
  """Dynamics of sparse training, each at the share of zeros."""

  def span(total: int) -> dict[str, int]:
    return {'begin': total // 10, 'end': total * 7 // 10, 'every': 50}

  return {
    'gradual magnitude': lambda total, opt: jl.chain(opt, jl.prune(share, **span(total))),
    'gradual, global': lambda total, opt: jl.chain(
      opt, jl.prune(share, **span(total), allocate=jl.global_(floor=0.01))
    ),
    'RigL': lambda total, opt: jl.chain(jl.rigl(opt, share, end=total * 3 // 4, every=50)),
    'SET': lambda total, opt: jl.chain(jl.set_(opt, share, end=total * 3 // 4, every=50)),
    'straight-through': lambda total, opt: jl.chain(jl.straight_through(share, **span(total)), opt),
  }


def one_shot(bench: Bench, share: float) -> Callable[[int, Any], jl.Recipe]:
  """Masks at the first step."""
  del bench
  return lambda total, optimizer: jl.chain(optimizer, jl.prune(share))


def to_integers(bench: Bench, bits: int) -> Callable[[jl.Network], jl.Network]:
  """Post-training quantization on ten batches."""
  return lambda network: jl.ptq(network, bench.calibration(), bits=bits)


def own_steps(optimizer: Any) -> Any:
  """A tenth of the rate, and no weight decay, for LSQ's steps."""
  slow = optax.chain(optax.adam(1e-4))
  label = lambda params: {name: 'steps' if name == 'jl.lsq' else 'rest' for name in params}  # noqa: E731
  return optax.partition({'steps': slow, 'rest': optimizer}, label)


def distilled(bench: Bench) -> dict[str, Callable[[], Any]]:
  """Ways to learn from the dense model of seed 0."""

  def teacher() -> jl.Network:
    network = bench.dense(0)
    hook = jl.normalize(bench.data.mean, bench.data.std)
    model = hook.model(network.model)
    params, state = model.init(jax.random.key(0), bench.data.train.inputs[:2])
    del params
    return jl.Network(model, network.params, state)

  return {
    'KD': lambda: jl.distill(teacher()),
    'DKD': lambda: jl.distill(teacher(), loss=jl.dkd),
    'DIST': lambda: jl.distill(teacher(), loss=jl.dist),
    'mean teacher': lambda: jl.self_distill(),
  }


def together(bench: Bench) -> Callable[[int, Any], jl.Recipe]:
  """All three at once."""

  def recipe(total: int, optimizer: Any) -> jl.Recipe:
    masks = jl.prune(0.95, begin=total // 10, end=total * 7 // 10, every=50)
    return jl.chain(jl.fake_quant(4), distilled(bench)['KD'](), optimizer, masks)

  return recipe


def in_turn(bench: Bench) -> Callable[[int, Any], jl.Recipe]:
  """The same parts, quantization last and without training."""

  def recipe(total: int, optimizer: Any) -> jl.Recipe:
    masks = jl.prune(0.95, begin=total // 10, end=total * 7 // 10, every=50)
    return jl.chain(distilled(bench)['KD'](), optimizer, masks)

  return recipe


def score(bench: Bench, row: Row) -> dict[str, Any]:
  """Chooses a rate on validation, then trains every seed; kept in the workdir."""
  path = bench.folder / f'{re.sub("[^a-zA-Z0-9]+", "-", row.name)}.json'
  if path.exists():
    return json.loads(path.read_text())
  rates = [float(rate) for rate in FLAGS.rates]
  tried = [bench.accuracy(bench.train(row, rate, 0), bench.data.validation) for rate in rates]
  rate = rates[int(np.argmax(tried))]
  found = []
  for seed in range(FLAGS.seeds):
    network = bench.train(row, rate, seed)
    found.append(bench.accuracy(network, bench.data.test))
    if row.name == 'dense':
      np.savez(
        bench.folder / f'dense-{seed}.npz', **{str(i): leaf for i, leaf in enumerate(jax.tree.leaves(network.params))}
      )
  result = {'name': row.name, 'rate': rate, 'validation': tried, 'test': found}
  path.write_text(json.dumps(result))
  return result


def interval(values: list[float]) -> float:
  """Half of the 95 % interval of a mean, by Student's t."""
  from scipy.stats import t

  if len(values) < 2:
    return math.nan
  return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def main(_: list[str]) -> None:
  """Fills and prints the table."""
  folder = Path(FLAGS.workdir)
  folder.mkdir(parents=True, exist_ok=True)
  print(compile_cache.enable())  # seeds share their programs
  bench, dense = Bench(folder), None
  print(f'| {FLAGS.seeds} seeds, {FLAGS.epochs} epochs | test accuracy | 95 % | against its baseline | rate |')
  print('|---|--:|--:|--:|--:|')
  for row in rows(bench):
    if row.name != 'dense' and not re.search(FLAGS.only, row.name):
      continue
    found = score(bench, row)
    mean = float(np.mean(found['test']))
    if row.name in ('dense', '32 units alone'):
      dense = mean
    print(
      f'| {row.name} | {mean:.2f} | ± {interval(found["test"]):.2f} | {mean - dense:+.2f} | {found["rate"]:g} |',
      flush=True,
    )
    jax.clear_caches()


if __name__ == '__main__':
  app.run(main)
