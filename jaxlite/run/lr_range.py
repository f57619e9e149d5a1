"""Which learning rate: the loss that short runs come to, over rates from far too small to far too large.

Each rate gets a whole run of some steps, with the recipe as it is, its warm-up and schedule over that length, from the
same first values and over the same batches. So it holds for any recipe that reads `config.optim.lr`, and what it tells
is that field's value. Where the recipe takes it, the rate is an argument of one compiled step.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite import data as datasets
from jaxlite.config.duration import Duration
from jaxlite.config.schema import Config, validate
from jaxlite.errors import ConfigError, number, whole
from jaxlite.graph.init_numpy import on_host
from jaxlite.host import streams
from jaxlite.host.files import write_bytes
from jaxlite.run.setup import Setup, prepare, rerated
from jaxlite.run.workdir import check_workdir
from jaxlite.tasks.figures import lacking

_LOW, _HIGH = 1e-6, 10.0
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_WORSE = 4.0  # times the loss at the start: from there on a rate is taken to diverge
_NEAR = 0.05  # of the fall of the loss: rates that come so near to the best are as good

Step = Callable[[Any, Any, float], tuple[Any, Any]]


class RateRange(NamedTuple):
  """What a learning-rate range test found. `print` shows its table.

  Attributes:
    rates: float[N], of `config.optim.lr`.
    losses: float[N], the mean over the last quarter of a short run with each; infinity where it diverged.
    start: the loss before the first step.
    suggested: a rate for the run; None where no rate lowered the loss.
    steps: of each short run.
    notes: what a person should read.
  """

  rates: tuple[float, ...]
  losses: tuple[float, ...]
  start: float
  suggested: float | None
  steps: int
  notes: tuple[str, ...]

  def __str__(self) -> str:
    rows = [f'{rate:>10.3g}  {_said(loss):>10}{self._mark(rate)}' for rate, loss in self._rows()]
    found = (
      'no rate lowered the loss' if self.suggested is None else f'suggested: --config.optim.lr={self.suggested:.2g}'
    )
    title = f'loss after {self.steps} steps at each rate, {self.start:.4g} before'
    return '\n'.join([title, f'{"optim.lr":>10}  {"loss":>10}', *rows, found, *(f'note: {one}' for one in self.notes)])

  def __repr__(self) -> str:
    return str(self)

  def _rows(self) -> list[tuple[float, float]]:
    return list(zip(self.rates, self.losses, strict=True))

  def _mark(self, rate: float) -> str:
    near = self.suggested is not None and min(self.rates, key=lambda one: abs(math.log(one / self.suggested))) == rate
    return '  <-' if near else ''


def _said(loss: float) -> str:
  return f'{loss:.4g}' if math.isfinite(loss) else 'diverged'


def lr_range(
  config: Config,
  workdir: str | Path | None = None,
  *,
  model: Any = None,
  data: Any = None,
  low: float = _LOW,
  high: float = _HIGH,
  points: int = 15,
  steps: int = 40,
  say: Callable[[str], None] = print,
) -> RateRange:
  """Tries learning rates on short runs and suggests one; trains nothing else, and leaves every run as it was.

  Args:
    config: of the run; `optim.lr` is what is tried.
    workdir: where the picture goes, 'lr_range.png'; None draws none.
    model, data: as `jl.train` takes them.
    low, high: the first and the last rate, equal ratios between them.
    points: how many, at least 5.
    steps: of each short run, at least 8; all of them together cost `points * steps`.
    say: prints a line.

  Returns:
    The RateRange. Short runs like larger rates than long ones: of those that are as good as the best, the smallest is
    suggested.

  Raises:
    ConfigError: rates the wrong way round, or a recipe that does not read `optim.lr`.

  References:
    Smith, Cyclical Learning Rates for Training Neural Networks, 2017, https://arxiv.org/abs/1506.01186

  >>> import numpy as np
  >>> import jaxlite as jl
  >>> rng = np.random.default_rng(0)
  >>> x = rng.normal(size=(200, 4)).astype(np.float32)
  >>> found = lr_range(jl.Config(name='x'), data=(x, (x[:, 0] > 0).astype(int)), points=5, steps=8, say=str)
  >>> len(found.losses)
  5
  """
  validate(config)
  say = streams.steady(say)
  points, steps = whole(points, 'points', least=5), whole(steps, 'steps', least=8)
  low, high = number(low, 'low'), number(high, 'high')
  if not _LEAST <= low < high <= _MOST:
    raise ConfigError(f'rates go from low to high, above 0 and as float32 has them; got {low!r} and {high!r}')
  folder = check_workdir(workdir) if workdir is not None else None
  short = dataclasses.replace(config, train=Duration(steps=steps), runs={})
  setup = prepare(short, folder or Path('.'), model, data)
  if 'optim.lr' not in setup.reads.paths:
    raise ConfigError('the recipe does not read config.optim.lr, which is what a range test tries: let it')
  rates = [float(one) for one in np.geomspace(low, high, points)]
  say(f'learning-rate range test: {points} short runs of {steps} steps')
  losses, start = _tried(setup, rates, steps)
  suggested, notes = suggestion(rates, losses, start)
  found = RateRange(tuple(rates), tuple(losses), start, suggested, steps, tuple(notes))
  if folder is not None and (why := lacking()):
    say(f'note: lr_range.png was not drawn: {why}')
  elif folder is not None:
    held = io.BytesIO()
    _drawn(found, config.name).savefig(held, format='png', dpi=110)
    write_bytes(folder / 'lr_range.png', held.getvalue())
  return found


def _tried(setup: Setup, rates: Sequence[float], steps: int) -> tuple[list[float], float]:
  """The loss that each rate comes to, and the one before."""
  config, start, losses = setup.config, math.nan, []
  step = _step_of(setup)
  for rate in rates:
    state, seen = setup.train.init(on_host(lambda: jax.random.key(config.seed))(), setup.first_batch), []
    for at in range(steps):
      batch = datasets.batch_at(setup.data.train, config.data.batch_size, config.seed, at)
      state, terms = step(state, batch, rate)
      seen.append(float(terms['loss'] if 'loss' in terms else next(iter(terms.values()))))
      if diverged := not math.isfinite(seen[-1]) or seen[-1] > _WORSE * abs(seen[0]) + 1:
        break
    start = seen[0] if math.isnan(start) else start
    losses.append(math.inf if diverged else float(np.mean(seen[-max(2, steps // 4) :])))
  return losses, start


def _step_of(setup: Setup) -> Step:
  """(state, batch, rate) -> (state, metrics): one program for all rates where the recipe takes a traced one."""

  def at(rate: Any) -> Any:
    return rerated(setup, dataclasses.replace(setup.config, optim=dataclasses.replace(setup.config.optim, lr=rate)))

  traced = jax.jit(lambda state, batch, rate: at(rate).step(state, batch))
  try:
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), setup.first_batch)
    jax.eval_shape(traced, setup.abstract, shapes, jax.ShapeDtypeStruct((), np.float32))
  except Exception:  # it compares the rate, or takes a step in several programs: each rate has its own then
    steps = functools.lru_cache(maxsize=1)(lambda rate: at(rate).step)
    return lambda state, batch, rate: steps(rate)(state, batch)
  return lambda state, batch, rate: traced(state, batch, np.float32(rate))


def suggestion(rates: Sequence[float], losses: Sequence[float], start: float) -> tuple[float | None, list[str]]:
  """Returns the smallest rate that comes as near to the lowest loss as makes no difference, and what to be told of it.

  Args:
    rates: rising.
    losses: one each; infinity where it diverged.
    start: the loss before.

  >>> suggestion([0.001, 0.01, 0.1, 1.0], [2.0, 1.0, 0.98, float('inf')], 2.3)
  (0.01, [])
  """
  finite = [loss for loss in losses if math.isfinite(loss)]
  if not finite or not min(finite) < start:
    return None, ['look at the data and the model: with no rate does the loss fall within so few steps']
  best = min(finite)
  enough = best + _NEAR * (start - best)
  place = next(place for place, loss in enumerate(losses) if loss <= enough)
  notes = []
  if losses.index(best) == len(losses) - 1:
    notes.append('the loss still falls at the largest rate: try larger ones (high)')
  if place == 0:
    notes.append('the smallest rate is as good as any: try smaller ones (low)')
  return rates[place], notes


def _drawn(found: RateRange, name: str) -> Any:
  from jaxlite.tasks.figures import COLORS, SOFT, dress, figure, label_axes, set_title

  made = figure(6.5, 4)
  axes = made.add_subplot()
  kept = [(rate, loss) for rate, loss in found._rows() if math.isfinite(loss)]
  if kept:
    axes.plot(*zip(*kept, strict=True), color=COLORS[0], marker='.')
  axes.axhline(found.start, color=SOFT, linewidth=0.8, linestyle=':')
  if found.suggested is not None:
    axes.axvline(found.suggested, color=COLORS[1], linewidth=1.2)
  axes.set_xscale('log')
  axes.set_xlim(found.rates[0], found.rates[-1])
  dress(axes, name)
  mark = '' if found.suggested is None else f'; orange: {found.suggested:.2g}, which is suggested'
  set_title(axes, f'{name}: learning-rate range test', f'loss after {found.steps} steps; dotted: before{mark}')
  label_axes(axes, 'optim.lr', 'training loss')
  return made
