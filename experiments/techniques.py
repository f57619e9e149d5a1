"""What each technique is worth on Fashion-MNIST, several seeds, one table.

  python experiments/techniques.py --workdir=runs/techniques

Every row gets the same budget, the baselines too: two tries on seed 0, of which the better on the validation split is
taken; then every seed trains with it, and its last model meets the test split once. A try is a learning rate; of
post-training quantization, which trains nothing, a way to calibrate. Rows that are done are kept in the workdir, so
the same command goes on where it was stopped. `--only` takes rows by a regular expression.

The difference to a baseline is that of the same seeds, pair by pair, with its 95 % interval; where that holds zero, the
table says that no difference is shown.

Sparsity and bits are asked of LeNet-300-100. Distilled students are a convolutional network of 6,594 parameters, their
teacher (seed 0) one of 206,922. A row's program is compiled once: the learning rate lies in the optimizer's state.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from bench.technique_tables import narrow, shown, wide

import jaxlite as jl
from jaxlite import data as datasets
from jaxlite.models import LeNet300
from jaxlite.pruning import rounds

FLAGS = flags.FLAGS
flags.DEFINE_string('workdir', 'runs/techniques', 'where finished rows are kept')
flags.DEFINE_integer('seeds', 5, 'runs behind each mean')
flags.DEFINE_integer('epochs', 3, 'length of a run')
flags.DEFINE_list('rates', ['2e-3', '5e-3'], 'learning rates that every row may choose from')
flags.DEFINE_string('only', '', 'rows whose name this regular expression finds')
BATCH, PIECES = 128, 5  # batch size; dispatches per run

Course = Callable[..., jl.Network]  # (rate, seed, start=None) -> what it has become


class Convs(nn.Module):
  """Convolutions with strides and two dense layers: without pools, which cost a CPU more than the rest."""

  features: Sequence[int]
  hidden: int
  size: int = 3
  stride: int = 2

  @nn.compact
  def __call__(self, x: Any) -> jax.Array:
    x = jnp.asarray(x, jnp.float32)[..., None]
    for index, features in enumerate(self.features, 1):
      x = nn.relu(nn.Conv(features, (self.size,) * 2, strides=self.stride, name=f'conv{index}')(x))
    x = nn.relu(nn.Dense(self.hidden, name='dense1')(x.reshape(len(x), -1)))
    return nn.Dense(10, name='dense2')(x)


STUDENT, TEACHER = Convs((8,), 16, size=4, stride=4), Convs((16, 32), 128)  # both see 7x7 positions in the end


class Row(NamedTuple):
  """One technique.

  Attributes:
    name: in the table.
    run: (a try, seed) -> Network.
    against: names of rows before it, its baselines.
    tries: by name; None is the learning rates.
    one: whether seed 0 is enough (a teacher).
    keep: whether other rows start from its models.
  """

  name: str
  run: Callable[[Any, int], jl.Network]
  against: tuple[str, ...] = ('dense',)
  tries: dict[str, Any] | None = None
  one: bool = False
  keep: bool = False


class Bench:
  """Data, and the models that other rows start from or learn from."""

  def __init__(self, folder: Path):
    self.folder = folder
    self.data = datasets.load('fashion_mnist', validation=0.1, seed=0)
    self.steps = FLAGS.epochs * datasets.steps_per_epoch(self.data.train, BATCH)
    self.normalize = jl.optim.normalize(self.data.mean, self.data.std)

  def kept(self, name: str, module: nn.Module, seed: int) -> jl.Network:
    """A model that a row kept, with its standardization."""
    model = self.normalize.model(jl.from_linen(module))
    params, state = model.init(jax.random.key(0), self.data.train.inputs[:2])
    with np.load(self.folder / f'{name}-{seed}.npz') as values:
      flat, treedef = jax.tree.flatten(params)
      return jl.Network(model, jax.tree.unflatten(treedef, [values[str(i)] for i in range(len(flat))]), state)

  def dense(self, seed: int) -> jl.Network:
    return self.kept('dense', LeNet300(), seed)

  def teacher(self) -> jl.Network:
    return self.kept('teacher', TEACHER, 0)

  @functools.cached_property
  def taught(self) -> datasets.Dataset:
    """The data with the teacher's logits."""
    return datasets.cache_logits(self.teacher(), self.data, self.folder / 'logits')

  def calibration(self) -> Iterator[dict[str, np.ndarray]]:
    """Ten batches of training data."""
    return (datasets.batch_at(self.data.train, BATCH, 0, step) for step in range(10))

  def accuracy(self, network: jl.Network, split: Any) -> float:
    """In percent."""
    blocks = [slice(i, i + 1000) for i in range(0, len(split.labels), 1000)]
    right = [np.argmax(network.predict(split.inputs[block]), axis=1) == split.labels[block] for block in blocks]
    return 100 * float(np.mean(np.concatenate(right)))

  def course(
    self,
    recipe: Callable[[int], jl.Recipe],
    module: nn.Module | None = None,
    *,
    taught: bool = False,
    share: float = 1.0,
  ) -> Course:
    """Returns one way to train, compiled at most once.

    Args:
      recipe: total steps -> Recipe.
      module: LeNet-300-100 when None.
      taught: whether batches bring the teacher's logits.
      share: of a run's length.
    """

    @functools.cache
    def made() -> tuple[jl.step.Train, Any, int]:
      data = self.taught if taught else self.data
      piece = round(self.steps * share) // PIECES  # pieces of one length: another would be another program
      recipes = jl.chain(self.normalize, recipe(PIECES * piece))
      return jl.train_step(jl.from_linen(module or LeNet300()), jl.cross_entropy, recipes), data.train, piece

    def run(rate: float, seed: int, start: Any = None) -> jl.Network:
      train, split, piece = made()
      state = train.init(jax.random.key(seed), datasets.batch_at(split, BATCH, seed, 0), params=start)
      at_rate = optax.tree_utils.tree_set(state.opt_state, step_size=np.float32(rate))
      state = state._replace(opt_state=at_rate)
      for begin in range(0, PIECES * piece, piece):
        batches = [datasets.batch_at(split, BATCH, seed, step) for step in range(begin, begin + piece)]
        state, _ = train.steps(state, {name: np.stack([batch[name] for batch in batches]) for name in batches[0]})
      return jl.Network(train.model, state.params, {**state.model_state, 'jl.const': state.const})

    return run


def adamw(total: int, rate: float = 1.0, decay: float = 1e-4) -> optax.GradientTransformation:
  """AdamW with warm-up and cosine, its peak `rate` times the state's `step_size`."""
  schedule = jl.optim.warmup_cosine(rate, total, warmup_steps=total // 20)
  scaled = optax.inject_hyperparams(optax.scale)(step_size=1.0)
  return optax.chain(optax.adamw(schedule, weight_decay=decay), scaled)


def own_steps(total: int) -> optax.GradientTransformation:
  """A tenth of the rate, and no weight decay, for LSQ's steps."""
  label = lambda params: {name: 'steps' if name == 'jl.lsq' else 'rest' for name in params}  # noqa: E731
  return optax.partition({'steps': adamw(total, 0.1, decay=0.0), 'rest': adamw(total)}, label)


def rows(bench: Bench) -> Iterator[Row]:
  """All techniques; first those that others start from or learn from."""
  yield Row('dense', bench.course(lambda total: jl.chain(adamw(total))), against=(), keep=True)
  yield Row('teacher', bench.course(lambda total: jl.chain(adamw(total)), TEACHER), against=(), one=True, keep=True)
  for share in (0.9, 0.95, 0.98):
    for name, run in sparse(bench, share):
      yield Row(f'{100 * share:.0f} % {name}', run)
  seldom = bench.course(
    lambda total: jl.chain(jl.pruning.straight_through(0.9, **span(total), allocate=jl.pruning.uniform), adamw(total))
  )
  yield Row('90 % straight-through, uniform, masks drawn each 50 steps', seldom)
  for bits in (8, 4, 2):
    yield from few_bits(bench, bits)
  alone = bench.course(lambda total: jl.chain(adamw(total)), STUDENT)
  yield Row('student alone', alone, against=('teacher',))
  for name, run in distilled(bench).items():
    yield Row(f'student {name}', run, against=('student alone',))
  yield from compressed(bench)


def span(total: int) -> dict[str, int]:
  """When a gradual schedule acts."""
  return {'begin': total // 10, 'end': total * 7 // 10, 'every': 50}


def sparse(bench: Bench, share: float) -> Iterator[tuple[str, Course]]:
  """Dynamics of sparse training, each at the share of zeros, by how layers share it."""

  def course(parts: Callable[[int], tuple[Any, ...]]) -> Course:
    return bench.course(lambda total: jl.chain(*parts(total)))

  ways = {'uniform': jl.pruning.uniform, 'ERK': jl.pruning.erk, 'global': jl.pruning.global_(floor=0.01)}
  for name, way in ways.items():
    gradual = functools.partial(jl.prune, share, allocate=way)
    yield f'gradual magnitude, {name}', course(lambda total, of=gradual: (adamw(total), of(**span(total))))
  for name, of in (('RigL', jl.rigl), ('SET', jl.pruning.set_)):
    moving = functools.partial(of, sparsity=share, every=50, allocate=jl.pruning.erk)
    yield f'{name}, ERK', course(lambda total, of=moving: (of(adamw(total), end=total * 3 // 4),))
  for name in ('uniform', 'ERK'):
    seen = functools.partial(jl.pruning.straight_through, share, allocate=ways[name])
    yield f'straight-through, {name}', course(lambda total, of=seen: (of(**span(total) | {'every': 1}), adamw(total)))
  for name in ('uniform', 'ERK'):
    yield f'at once, from the dense model, {name}', rounded(bench, [share], ways[name], early=False)
  for name in ('uniform', 'ERK'):
    yield f'two rounds, rewound to the start, {name}', rounded(bench, rounds(share, 2), ways[name], early=True)


def rounded(bench: Bench, shares: Sequence[float], way: Any, *, early: bool) -> Course:
  """Prunes the dense model and trains in full, as many times as there are shares; `early` is the lottery ticket."""

  parts = [functools.partial(jl.prune, share, allocate=way) for share in shares]  # after `rewind` they find its zeros
  courses = [bench.course(lambda total, of=of: jl.chain(adamw(total), of())) for of in parts]

  def run(rate: float, seed: int) -> jl.Network:
    network = bench.dense(seed)
    first = datasets.batch_at(bench.data.train, BATCH, seed, 0)
    plain = jl.train_step(jl.from_linen(LeNet300()), jl.cross_entropy, jl.chain(bench.normalize, optax.sgd(1.0)))
    start = plain.init(jax.random.key(seed), first).params
    for share, course in zip(shares, courses, strict=True):
      back = jl.pruning.rewind(network.params, start, share, allocate=way)[0] if early else network.params
      network = course(rate, seed, back)
    return network

  return run


def few_bits(bench: Bench, bits: int) -> Iterator[Row]:
  """After training, and in it."""
  ways = {'percentile': jl.quantization.by_percentile(), 'squared error': jl.quantization.by_mse()}

  def after(way: Any, seed: int, clip: bool = False) -> jl.Network:
    return jl.ptq(bench.dense(seed), bench.calibration(), bits=bits, calibrate=way, clip=clip)

  yield Row(f'{bits} bits PTQ', after, tries=ways)
  yield Row(f'{bits} bits PTQ, weights clipped', functools.partial(after, clip=True), tries=ways)
  yield Row(f'{bits} bits QAT', bench.course(lambda total: jl.chain(jl.fake_quant(bits), adamw(total))))
  yield Row(f'{bits} bits LSQ', bench.course(lambda total: jl.chain(jl.lsq(bits), own_steps(total))))


def distilled(bench: Bench) -> dict[str, Course]:
  """Ways to learn from a teacher."""

  def by_logits(loss: Any) -> Course:
    return bench.course(lambda total: jl.chain(jl.distill('logits', loss=loss), adamw(total)), STUDENT, taught=True)

  def by_features(**how: Any) -> Course:
    pairs = {'conv1/kernel': 'conv2/kernel'}
    return bench.course(lambda total: jl.chain(jl.hint(bench.teacher(), pairs, **how), adamw(total)), STUDENT)

  return {
    'KD': by_logits(jl.distillation.kd),
    'DKD': by_logits(jl.distillation.dkd),
    'DIST': by_logits(jl.distillation.dist),
    'RKD': by_logits(jl.distillation.rkd),
    'FitNet hint': by_features(),
    'attention transfer': by_features(loss=jl.distillation.attention_transfer, project=False, scale=1e3),
    'mean teacher': bench.course(lambda total: jl.chain(jl.distillation.self_distill(), adamw(total)), STUDENT),
  }


def compressed(bench: Bench) -> Iterator[Row]:
  """All three on LeNet-300-100: distilled by the teacher, 95 % zero, 4 bits."""

  def parts(total: int, *, kd: bool = False, sparse: Any = None, bits: bool = False) -> jl.Recipe:
    quantized = [jl.fake_quant(4)] if bits else []
    teacher = [jl.distill('logits')] if kd else []
    when = {'gradually': [span(total)], 'held': [{}], None: []}[sparse]
    return jl.chain(
      *quantized, *teacher, adamw(total), *(jl.prune(0.95, **one, allocate=jl.pruning.erk) for one in when)
    )

  def course(share: float = 1.0, **which: Any) -> Course:
    return bench.course(lambda total: parts(total, **which), taught=which.get('kd', False), share=share)

  def in_turn(share: float) -> Course:
    stages = [course(share, kd=True), course(share, sparse='gradually'), course(share, sparse='held', bits=True)]

    def run(rate: float, seed: int) -> jl.Network:
      network = stages[0](rate, seed)
      for stage in stages[1:]:
        network = stage(rate, seed, network.params)
      return network

    return run

  sparse = course(kd=True, sparse='gradually')
  names = [f'LeNet KD, then 95 %, then 4 bits, {length}' for length in ('a third each', 'in full each')]
  last, chain = 'LeNet KD with 95 %, then 4 bits PTQ', course(kd=True, sparse='gradually', bits=True)
  yield Row('LeNet KD', course(kd=True))
  yield Row(names[0], in_turn(1 / 3))
  yield Row(names[1], in_turn(1.0))
  yield Row(last, lambda rate, seed: jl.ptq(sparse(rate, seed), bench.calibration(), bits=4, clip=True))
  yield Row('LeNet KD, 95 %, 4 bits in one chain', chain, ('dense', *names, last))


def score(bench: Bench, row: Row) -> dict[str, Any]:
  """Chooses a try on validation, then trains every seed; kept in the workdir."""
  name = re.sub('[^a-zA-Z0-9]+', '-', row.name)
  path = bench.folder / f'{name}.json'
  if path.exists():
    return json.loads(path.read_text())
  tries = row.tries or {rate: float(rate) for rate in FLAGS.rates}
  first, tried = None, {}
  for label, value in tries.items():
    network = row.run(value, 0)
    tried[label] = bench.accuracy(network, bench.data.validation)
    if tried[label] == max(tried.values()):
      first, chosen = network, label
  found = []
  for seed in range(1 if row.one else FLAGS.seeds):
    network = row.run(tries[chosen], seed) if seed else first
    found.append(bench.accuracy(network, bench.data.test))
    if row.keep:
      leaves = jax.tree.leaves(network.params)
      np.savez(bench.folder / f'{name}-{seed}.npz', **{str(i): leaf for i, leaf in enumerate(leaves)})
  result = {'name': row.name, 'chosen': chosen, 'validation': tried, 'test': found}
  path.write_text(json.dumps(result))
  return result


def main(_: list[str]) -> None:
  """Fills and prints the table."""
  folder = Path(FLAGS.workdir)
  folder.mkdir(parents=True, exist_ok=True)
  bench, found = Bench(folder), {}
  for row in rows(bench):
    if row.keep or re.search(FLAGS.only, row.name):
      result = score(bench, row)
      found[row.name] = row, result['test']
      print(f'{row.name}: {shown(result["test"])}, {result["chosen"]}', file=sys.stderr, flush=True)
  print(f'Test accuracy in percent, {FLAGS.seeds} seeds, {FLAGS.epochs} epochs; in brackets the difference to dense.')
  sparse, few = ('90 %', '95 %', '98 %'), ('8 bits', '4 bits', '2 bits')
  others = {name: value for name, value in found.items() if not name.startswith((*sparse, *few))}
  for lines in (wide(found, sparse), wide(found, few), narrow(others)):
    print('', *lines, sep='\n')


if __name__ == '__main__':
  app.run(main)
