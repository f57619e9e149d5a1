"""When the loss of the training examples comes below a target, told before a step is trained.

A network that was pretrained moves little when it is fine-tuned, so it is nearly linear in its weights there. Its
outputs on some examples and their gradients are taken once (`linearized`), and the recipe's own optimizer is run on
these (`linear_course`), which costs no pass through the network. Few examples stand for all: what half of them would
have told says where all of them lead, and how sure that is. What cannot be told so is refused: a network that looks at
its whole batch, an optimizer that does not treat each weight by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.data.batches import batches_at
from jaxlite.data.dataset import Split
from jaxlite.errors import counted
from jaxlite.planning import linear_course, linearized
from jaxlite.planning.outputs import Outputs, Subject, UnpredictableError, columns
from jaxlite.planning.target import NEVER, Reach

_NUMBERS = 32_000_000  # gradients that are kept, float32
_COORDINATES = 60_000  # of the weights, at most
_LEAST = 16_000  # likewise
_ROWS, _CHEAP_ROWS = 640, 1_500  # outputs of examples whose gradients are taken
_CHEAP = 500_000  # weights, up to which more gradients are taken
_HARDLY_PULLED = 0.03  # of the pull of losses, on outputs that are left out
_COLUMNS = 8  # outputs of an example
_POOL = 512  # examples among which those are chosen
_POINTS = 100  # of a course
_STEPS = 3_000  # at most, that are simulated
_APART = 0.15  # of an optimizer's updates, where a leaf's rest is one entry
# Measured: the standard deviation of log(truth / told) that is left where nothing is drawn, by bench/forecast_finetune.
_OFF, _OFF_LINEAR = 0.2, 0.02
_OFF_DRAWN = 0.05  # at least, where something is drawn
_TIMES, _NEAR = 3, 0.1  # that the way is halved again, at most; of the step
_LOOKED = 8  # examples
_LINEAR = 0.02  # of the change of outputs, up to which a network is linear in its weights
_QUANTILE = 1.2816  # of a normal: 80 of 100 lie within
_STILL = 0.3  # of the weights, in leaves without a gradient
_MISSING = 0.05  # of the pull of losses on outputs: what is beyond those looked at is told
_GROWN = 3.0  # times the loss at the start
_HARDLY = 0.1  # the share of futures in which a target is reached that the linearized network does not reach


class TimeToLoss(NamedTuple):
  """When the training loss is expected at a target.

  Attributes:
    target: the loss.
    begins: the loss before the first step.
    reach: the step, its interval, and how likely it is at all within the run.
    curve: (steps, losses) as they are expected.
    seconds: it took to tell.
    told: what it was told from, and what is not known, a line each.
  """

  target: float
  begins: float
  reach: Reach
  curve: tuple[tuple[int, ...], tuple[float, ...]]
  seconds: float
  told: tuple[str, ...]

  def __str__(self) -> str:
    return f'training loss {self.target:g} (at the start {self.begins:.4g}): {self.reach}'


def time_to_loss(
  subject: Subject, target: float, *, examples: int = 0, coordinates: int = 0, say: Callable[[str], None] | None = None
) -> TimeToLoss:
  """Tells at which step the loss of the training examples comes to a target.

  Args:
    subject: what is trained.
    target: a loss, as the task has it: the mean over examples.
    examples: how many stand for all; 0 chooses, all where the weights are few.
    coordinates: how many weights stand for all, about; 0 chooses.
    say: prints a line where it takes long.

  Returns:
    The TimeToLoss.

  Raises:
    ValueError: a target that is no number.
    UnpredictableError: it cannot be told by a linearized network, and why.

  References:
    Zancato et al., Predicting Training Time Without Training, 2020, https://arxiv.org/abs/2008.12478
  """
  if not math.isfinite(target):
    raise ValueError(f'a target is a number; got {target}')
  began = time.perf_counter()
  forward = Outputs(subject)
  pool = _pool(subject, examples)
  values = forward.values(pool)
  losses = forward.losses(values, pool)
  begins = float(np.average(losses, weights=_own(subject, pool)))
  if not math.isfinite(begins):
    raise UnpredictableError(f'the loss before the first step is {begins}: jl.diagnose looks for the cause')
  if begins <= target:
    found = Reach(0.0, 0.0, 0.0, 1.0, True)
    return TimeToLoss(target, begins, found, ((0,), (begins,)), time.perf_counter() - began, ())
  told = forward.doubts(pool)
  pulls = forward.by_output(pool, values)
  amounts = _amounts(subject, pulls, examples, coordinates)
  count = len(subject.train.labels)
  sample = np.sort(pool[_spread(losses, amounts.examples)]) if amounts.examples < count else np.arange(count)
  near = _Linear(subject, forward, sample, pulls[np.searchsorted(pool, sample)], amounts, say)
  steps = min(subject.total, _STEPS)
  run = lambda found, batch: _run(subject, found, batch, target, steps)  # noqa: E731
  found, main = near.found, run(near.found, near.batch)
  linear = near.found.coordinates.whole and near.is_linear(main.moved)
  for _ in range(0 if linear else _TIMES):  # gradients midway tell more than those at the start
    before = main.reached(target)
    found = near.midway(main.moved)
    main = run(found, near.batch)
    if not found.coordinates.whole or (before < math.inf and abs(main.reached(target) - before) <= _NEAR * before):
      break
  reached = main.reached(target)
  if not math.isfinite(reached) and steps < subject.total:
    raise UnpredictableError(f'it is not there within the first {steps:,} steps, and no more were looked at')
  shift, squares = 0.0, (_OFF_LINEAR if linear else _OFF) ** 2
  if math.isfinite(reached) and 8 <= len(sample) < count:
    halves = [run(found.some(half), _rows(near.batch, half)) for half in _halves(losses, pool, sample)]
    shift, spread = _from_halves(reached, halves, target, len(sample), count, subject.total)
    squares += spread**2
  if math.isfinite(reached) and not found.coordinates.whole:
    halves = [run(found.halved(which), near.batch) for which in (0, 1)]
    squares += _from_halves(reached, halves, target, 1, 1, subject.total)[1] ** 2
  told = [_basis(len(sample), count, len(found.start), near.size, linear), *near.told, *told]
  if not main.losses[-1] <= max(_GROWN * begins, target):  # NaN too
    told.append('so the loss grows without bound: the rate is too high, or the network is far from linear')
  curve = tuple(map(int, main.steps)), tuple(map(float, main.losses))
  reach = _reach(reached, shift, math.sqrt(squares), subject.total)
  return TimeToLoss(target, begins, reach, curve, time.perf_counter() - began, tuple(told))


class _Amounts(NamedTuple):
  """How many examples, outputs of each, and coordinates are looked at."""

  examples: int
  outputs: int
  coordinates: int


def _amounts(subject: Subject, pulls: np.ndarray, examples: int, coordinates: int) -> _Amounts:
  """Everything where that is little. Else outputs are left out first, of those that losses hardly pull at, and then
  weights: a sample of these is right in the mean, while few examples are learned sooner than many, above all from a
  head that was solved on all."""
  count, size, every = len(subject.train.labels), _size(subject), pulls.shape[1]
  wide = min(every, _COLUMNS)
  if size > _COORDINATES or count * wide * size > _NUMBERS:
    wide = next((k for k in range(min(2, wide), wide) if columns(pulls, k)[1] <= _HARDLY_PULLED), wide)
  most = max(8, (_CHEAP_ROWS if size <= _CHEAP else _ROWS) // wide)
  few = min(
    count, examples or (count if count * wide * size <= _NUMBERS and size <= _COORDINATES else most), len(pulls)
  )
  kept = min(size, coordinates or max(_LEAST, min(_COORDINATES, _NUMBERS // (few * wide))))
  return _Amounts(few, wide, kept)


def _pool(subject: Subject, few: int) -> np.ndarray:
  """The examples among which some are chosen: all, where all may be taken."""
  count = len(subject.train.labels)
  if count <= _POOL or (not few and _size(subject) * count <= _NUMBERS and _size(subject) <= _COORDINATES):
    return np.arange(count)
  return np.sort(np.random.default_rng((subject.seed, count)).permutation(count)[:_POOL])


class _Linear:
  """The network linearized at its weights, and looked at elsewhere."""

  def __init__(
    self, subject: Subject, forward: Outputs, sample: np.ndarray, pulls: np.ndarray, amounts: _Amounts, say: Any
  ):
    self.subject, self.forward, self.size = subject, forward, _size(subject)
    self.columns, missing = columns(pulls, amounts.outputs)
    self.told = (
      [f'{100 * missing:.0f} % of the errors are in outputs beyond the {amounts.outputs} largest of each example']
      if missing > _MISSING
      else []
    )
    outputs = max(1, math.prod(forward.shape))
    self.pull, self.together = linearized.pulling(forward.evaluated, subject.params, subject.model_state, outputs)
    self.one = [subject.train.take(np.array([row]))['inputs'] for row in sample]
    self.batch = subject.train.take(sample)
    picked, still = linearized.choose(
      self.pull, self.together, subject.params, self.one, outputs, amounts.coordinates, subject.seed
    )
    if still > _STILL:
      raise UnpredictableError(
        f'{100 * still:.0f} % of the weights move nothing where training begins (what follows them is 0: a head, a '
        'factor of a low rank), so nothing is seen of them there: of jl.finetune solve=True begins with a solved head'
      )
    off = linear_course.apart(picked, subject.tx, subject.weights, subject.params, self._gradients(pulls))
    if off > _APART:
      raise UnpredictableError(
        f'the optimizer does not treat each weight by itself (on a sample of them its updates are {100 * off:.0f} % '
        'off), as SGD, momentum, Adam, RMSprop and Lion do: take one of these, or watch the run itself with --target'
      )
    if say is not None:
      say(f'linearizing at {counted(len(sample), "example")} and {len(picked.counts):,} of {self.size:,} weights')
    self.found = self._at(subject.params, picked, np.arange(len(sample)))

  def _at(self, params: Any, picked: linearized.Coordinates, rows: np.ndarray) -> linearized.Linearized:
    shown = [self.one[row] for row in rows]
    return linearized.linearize(self.pull, self.together, params, picked, shown, self.columns[rows], self.forward.shape)

  def _gradients(self, pulls: np.ndarray) -> list[Any]:
    """Gradients of the loss on two batches, for the comparison of optimizers."""
    found = []
    for first in (0, 1):
      total = None
      for row in np.arange(len(pulls))[first::2][:_LOOKED]:
        sums = np.zeros((self.together, pulls.shape[1]), np.float32)
        sums[0] = pulls[row]
        grads = jax.tree.map(lambda leaf: leaf[0], self.pull(self.subject.params, self.one[row], sums)[1])
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
      found += [] if total is None else [total]
    return found

  def midway(self, moved: np.ndarray) -> linearized.Linearized:
    """The same with gradients where leaves that are kept whole are halfway to their end, float32[S]."""
    there = self.found.coordinates.placed(self.subject.params, moved / 2)
    again = self._at(there, self.found.coordinates, np.arange(len(self.one)))
    return self.found._replace(gradients=again.gradients)

  def is_linear(self, moved: np.ndarray) -> bool:
    """Whether the network and its gradients are, where training ended, what the linearized one says."""
    found = self.found
    few = np.unique(np.linspace(0, len(self.one) - 1, min(len(self.one), _LOOKED)).astype(int))
    again = self._at(found.coordinates.placed(self.subject.params, moved), found.coordinates, few)
    told = np.array(found.outputs[few])
    change = np.einsum('bks,s->bk', found.gradients[few], moved * found.coordinates.counts)
    np.put_along_axis(told, found.columns[few], np.take_along_axis(told, found.columns[few], 1) + change, 1)
    pairs = (
      (again.outputs - told, again.outputs - found.outputs[few]),
      (again.gradients - found.gradients[few], found.gradients[few]),
    )
    return all(float(np.square(off).sum()) <= _LINEAR**2 * float(np.square(size).sum()) for off, size in pairs)


def _size(subject: Subject) -> int:
  return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(subject.params))


def _basis(examples: int, count: int, kept: int, size: int, linear: bool) -> str:
  which = f'all {count:,} examples' if examples == count else f'{examples} of {count:,} examples'
  by = 'all weights' if kept == size else f'{kept:,} of {size:,} weights'
  if linear:
    return f'told from {which} and {by}, in which the network is linear'
  return f'told from {which} and {by}, as if the network were linear in them'


def _own(subject: Subject, rows: np.ndarray) -> np.ndarray | None:
  return None if subject.train.weight is None else np.asarray(subject.train.weight)[rows]


def _rows(batch: Any, rows: np.ndarray) -> Any:
  return jax.tree.map(lambda leaf: leaf[rows], batch)


def _spread(losses: np.ndarray, few: int) -> np.ndarray:
  """Positions of some examples whose losses are spread as those of all."""
  order = np.argsort(losses, kind='stable')
  return order[np.floor((np.arange(few) + 0.5) * len(order) / few).astype(int)]


def _halves(losses: np.ndarray, pool: np.ndarray, sample: np.ndarray) -> list[np.ndarray]:
  """Positions in a sample of every other example by its loss."""
  known = dict(zip(pool.tolist(), losses.tolist(), strict=True))
  order = np.argsort([known[row] for row in sample.tolist()], kind='stable')
  turn = np.arange(len(order)) // 2 % 2 ^ np.arange(len(order)) % 2  # 0 1 1 0: neither half has the lower ones
  return [np.sort(order[turn == which]) for which in (0, 1)]


def _run(subject: Subject, found: linearized.Linearized, batch: Any, target: float, steps: int) -> linear_course.Course:
  """Trains a linearized network in the run's own batches, where all examples are there, else in batches like them."""
  here = len(found.outputs)
  size = min(subject.batch_size, here)
  index = Split(np.arange(here, dtype=np.int32)[:, None], np.zeros(here, np.int32))
  drawn = batches_at(index, size, subject.seed, 0, steps)
  every = max(1, steps // _POINTS)
  rows, shares = drawn['inputs'][..., 0], drawn['weight']
  return linear_course.course(
    found, subject.tx, subject.weights, subject.loss, batch, rows, shares, every=every, target=target
  )


def _from_halves(
  reached: float, halves: list[linear_course.Course], target: float, kept: int, count: int, total: int
) -> tuple[float, float]:
  """(what to add to the logarithm of the step for all examples, the standard deviation of that), from what each half
  of what was kept tells: what is off by few examples is off by twice as much with half of them."""
  logs = [math.log(max(1.0, min(one.reached(target), 2.0 * total))) for one in halves]
  now = math.log(max(1.0, reached))
  shift = (now - sum(logs) / len(logs)) * (1 - kept / count)
  spread = abs(logs[0] - logs[1]) / 2 * math.sqrt(1 - kept / count if count > 1 else 1)
  return float(np.clip(shift, -0.7, 0.7)), math.hypot(spread, shift / 2, _OFF_DRAWN)


def _reach(step: float, shift: float, wide: float, total: int) -> Reach:
  if not math.isfinite(step):
    return NEVER._replace(share=_HARDLY)
  middle = math.log(max(step, 0.5)) + shift
  share = 0.5 * math.erfc(-(math.log(total) - middle) / wide / math.sqrt(2))
  low, high = (math.exp(middle + sign * _QUANTILE * wide) for sign in (-1, 1))
  return Reach(math.exp(middle), low, high, share)
