"""Several steps per dispatch: how many, chosen by trying, and never at the price of a bit.

A step of a small model takes less time than sending it off. So the loop may send several at once: one compiled program
that is given a stack of batches and how many of them to take, whatever lies between two points where somebody looks. It
is taken up only after it has given, on steps of this very run, every bit that single steps gave, so a run does not
depend on where it was cut. Not on CPU where the step convolves: there a convolution inside a loop is many times slower.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.graph.init_numpy import copied
from jaxlite.graph.walk import has_primitive
from jaxlite.step.programs import on_cpu
from jaxlite.step.state import TrainState
from jaxlite.step.under_way import MANY

LATENCY_SECONDS = 0.05  # of a dispatch: a signal waits for it
STACK_BYTES = 16 << 20  # of the batches of a dispatch; those of the next are gathered meanwhile
SLOW_SECONDS = 0.005  # a step this long hides what its dispatch costs
TRIED = 16  # steps that are timed and compared
WORTH = 0.9  # what is not a tenth faster is left alone
_WAITING = 1_000  # metrics that stay on the device, where each takes some 5 KB

Step = Callable[[TrainState, Any], tuple[TrainState, Any]]
Batches = Callable[[int, int], Any]


class Pace(NamedTuple):
  """How a run's steps are sent off.

  Attributes:
    steps: at most so many at once; 1 for each on its own.
    why: the reason, for a person.
    run: (state, batches, count) -> (state, metrics), the first `count` of the stacked batches [steps, B, ...]; metrics
      are [steps], zero past `count`. Donates the state as a step does. None where `steps` is 1.
  """

  steps: int
  why: str
  run: Callable[..., tuple[TrainState, Any]] | None = None


def several(step: Step) -> Callable[..., tuple[TrainState, Any]]:
  """Returns one program for any number of steps: (state, batches, count) -> (state, metrics).

  Args:
    step: a train step, (state, batch) -> (state, metrics).

  >>> add = lambda state, batch: (state._replace(params=state.params + batch), {'loss': batch})
  >>> state = TrainState(0, None, jnp.zeros(()), {}, (), None)
  >>> state, metrics = several(add)(state, jnp.array([1.0, 2.0, 4.0]), 2)
  >>> state.params.tolist(), metrics['loss'].tolist()
  (3.0, [1.0, 2.0, 0.0])
  """

  def loop(live: TrainState, fixed: Any, batches: Any, count: Any) -> tuple[TrainState, Any]:
    def one(live: TrainState, i: Any) -> tuple[TrainState, Any]:
      batch = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), batches)
      state, metrics = step(live._replace(key=fixed[0], const=fixed[1]), batch)
      return state._replace(key=None, const=None), metrics

    def turn(i: Any, carry: Any) -> Any:
      live, metrics = one(carry[0], i)
      put = lambda into, value: jax.lax.dynamic_update_index_in_dim(into, value, i, 0)  # noqa: E731
      return live, jax.tree.map(put, carry[1], metrics)

    most = jax.tree.leaves(batches)[0].shape[0]
    shapes = jax.eval_shape(one, live, jnp.int32(0))[1]
    metrics = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, count, turn, (live, metrics))  # an open bound: one program, whatever the count

  compiled = jax.jit(loop, donate_argnums=0)

  def run(state: TrainState, batches: Any, count: int) -> tuple[TrainState, Any]:
    fixed = state.key, state.const
    live, metrics = compiled(state._replace(key=None, const=None), fixed, batches, np.int32(count))
    return live._replace(key=fixed[0], const=fixed[1]), metrics

  return run


def resumed(step: Step, steps: int, gap: int, wanted: int) -> Pace | None:
  """Returns the Pace that a run has chosen before; None where it still has to, or the config has changed its mind."""
  if not steps or wanted not in (0, steps):
    return None
  most = min(steps, gap)
  return Pace(most, 'as this run began', several(step) if most > 1 else None)


def least(gap: int) -> int:
  """Returns how many free steps it takes to choose, where at most `gap` lie between two points."""
  return max(2, min(TRIED + 1, gap - 1))


class Room(NamedTuple):
  """Where a run stands when it chooses, in steps.

  Attributes:
    at: done.
    next: until the next point where somebody looks: no more are taken in choosing.
    gap: the most that lie between two such points.
    left: until the end of the run, which a compilation has to pay for itself in.
    compiling: seconds that one more program may take: those of the first step's.
  """

  at: int
  next: int
  gap: int
  left: int
  compiling: float = 0.0


def choose(
  step: Step, state: TrainState, batches_at: Batches, room: Room, wanted: int = 0
) -> tuple[TrainState, list[Any], Pace]:
  """Takes some steps of a run one by one and, where it may pay, once more in one dispatch; compares, and decides.

  Args:
    step: the train step, compiled.
    state: where the run stands; donated.
    batches_at: (the first step, how many) -> their batches, stacked.
    room: where the run stands.
    wanted: steps per dispatch, as the config says; 0 chooses by time.

  Returns:
    (state, the metrics of each step taken, the Pace).
  """
  batch = _row(batches_at(room.at, 1), 0)
  each = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(batch))
  most = min(wanted or room.gap, room.gap, max(1, STACK_BYTES // max(1, each)))
  if wanted == 1:
    return state, [], Pace(1, 'as machine.steps_per_dispatch says')
  if most < 2:
    return state, [], Pace(1, 'each is logged, evaluated or saved' if room.gap < 2 else 'a stack of batches is too big')

  jax.block_until_ready(state)
  taken: list[Any] = []
  alone = math.inf
  tries = 1 if wanted else max(1, min(3, room.next - 1))  # one may be slow by chance
  while alone > SLOW_SECONDS and len(taken) < tries:
    began = time.perf_counter()
    state, one = jax.block_until_ready(step(state, _row(batches_at(room.at + len(taken), 1), 0)))
    alone = min(alone, time.perf_counter() - began)
    taken.append(one)
  if not wanted and alone > SLOW_SECONDS:
    return state, taken, Pace(1, f'one takes {1e3 * alone:.0f} ms, beside which a dispatch is nothing')
  if on_cpu(state, batch) and has_primitive(jax.make_jaxpr(step)(state, batch), 'conv_general_dilated'):
    return state, taken, Pace(1, 'the step convolves, which is slow in a loop on CPU')
  at, count = room.at + len(taken), min(TRIED, room.next - len(taken), most)
  if count < 1:
    return state, taken, Pace(1, 'no two lie between where the run stands and the next point')

  before, metrics, began = jax.block_until_ready(_copied(state)), [], time.perf_counter()
  for i in range(count):
    state, one = step(state, _row(batches_at(at + i, 1), 0))
    metrics.append(one)
  jax.block_until_ready(state)
  alone = (time.perf_counter() - began) / count
  taken += metrics
  if not wanted:
    if alone * room.left < room.compiling:
      return state, taken, Pace(1, f'the {room.left} left are over before one more program is compiled')
    most = max(2, min(most, round(LATENCY_SECONDS / alone)))
    count = min(count, most)

  run = several(step)
  again, found = run(_copied(before), stacked(batches_at(at, count), most), count)
  for i in range(count, len(metrics)):  # those that do not fit are taken alone here too
    again, _ = step(again, _row(batches_at(at + i, 1), 0))
  if not (_same(again, state) and all(_same(_row(found, i), metrics[i]) for i in range(count))):
    return state, taken, Pace(1, 'several in one program round differently')
  together, many = math.inf, count if wanted else most  # a full one: fewer would not pay for their dispatch
  for start in (_copied(before), before):
    jax.block_until_ready(start)
    began = time.perf_counter()
    jax.block_until_ready(run(start, stacked(batches_at(at, many), most), many))
    together = min(together, (time.perf_counter() - began) / many)
  told = f'{1e6 * together:.0f} us each, {1e6 * alone:.0f} us alone'
  if not wanted and together > WORTH * alone:
    return state, taken, Pace(1, told)
  return state, taken, Pace(most, told, run)


def stacked(batches: Any, most: int) -> Any:
  """Returns [count, ...] leaves as [most, ...], zeros past `count`: the shape that a program was compiled for."""

  def fill(leaf: Any) -> np.ndarray:
    if len(leaf) == most:
      return leaf
    full = np.zeros((most, *leaf.shape[1:]), leaf.dtype)
    full[: len(leaf)] = leaf
    return full

  return jax.tree.map(fill, batches)


def keep(pending: list[tuple[Any, int]], terms: Any, count: int) -> None:
  """Appends the metrics of some steps to those that wait for the next point of the record.

  They stay on the device, so that nobody waits for them; of a run that writes points seldom those of long ago come to
  the host, where a number takes a tenth of the memory.

  Args:
    pending: (metrics, how many steps) in a row; is added to.
    terms: metrics of several steps or one, by name.
    count: how many steps.
  """
  pending.append((terms, count))
  if len(pending) < _WAITING or not isinstance(next(iter(pending[-_WAITING][0].values())), jax.Array):
    return
  block = slice(-_WAITING, -MANY)  # not the newest, which may be under way
  values = jax.device_get([terms for terms, _ in pending[block]])
  sizes = [count for _, count in pending[block]]
  pending[block] = [
    ({name: np.ravel(one)[0].item() for name, one in terms.items()} if count == 1 else terms, count)
    for terms, count in zip(values, sizes, strict=True)
  ]


def fetched(pending: list[tuple[Any, int]]) -> list[dict[str, float]]:
  """Returns the metrics of each step as plain numbers: of (metrics of several steps or one, how many) in a row."""
  found = []
  values = jax.device_get([terms for terms, _ in pending])
  for terms, (_, count) in zip(values, pending, strict=True):
    columns = [np.ravel(value)[:count].tolist() for value in terms.values()]
    found += [dict(zip(terms, row, strict=True)) for row in zip(*columns, strict=True)]
  return found


def _copied(state: TrainState) -> TrainState:
  """Of what a step donates; a teacher is not copied."""
  live = jax.tree.map(copied, state._replace(key=None, const=None))
  return live._replace(key=state.key, const=state.const)


def _row(tree: Any, i: int) -> Any:
  return jax.tree.map(lambda leaf: leaf[i], tree)


def _same(one: Any, other: Any) -> bool:
  """Bit for bit; a NaN equals itself."""
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return all(_bytes(a) == _bytes(b) for a, b in pairs)


def _bytes(leaf: Any) -> bytes:
  keys = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  return np.asarray(jax.random.key_data(leaf) if keys else leaf).tobytes()
