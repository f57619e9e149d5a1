"""What one state of a run shows on a few batches: gradients by layer, noise, units, scales."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import Model, join_const
from jaxlite.data import batches
from jaxlite.data.dataset import Dataset
from jaxlite.diagnosis import watch
from jaxlite.step.gradient import gradient_of
from jaxlite.step.state import TrainState
from jaxlite.step.train_step import Train
from jaxlite.tasks.lift import lift_loss
from jaxlite.tasks.metrics import Metrics

LOOKS = 3  # batches at which gradients and units are looked at


class Subject(NamedTuple):
  """What is measured: a run as it was built, and its states.

  Attributes:
    train: its step, evaluation and wrapped model.
    network: its model without the recipe's hooks.
    recipe: of the run.
    loss: of the config, or None where it is the task's.
    data: of the run.
    metric: what is evaluated.
    score: the metric that picks the best model.
    batch_size: of a step.
    seed: of the batches.
    total: steps of the run.
    start: the state that it began with.
    end: the state to judge.
  """

  train: Train
  network: Model
  recipe: Any
  loss: Callable[..., Any] | None
  data: Dataset
  metric: Metrics
  score: str
  batch_size: int
  seed: int
  total: int
  start: TrainState
  end: TrainState


class Layer(NamedTuple):
  """One contraction with weights. `pull` is the norm of the gradient times that of the weights: what a relative change
  of the layer does to the loss, which is equal over the layers of a well-scaled network."""

  name: str
  pull: float
  gradient: float
  weight: float
  input: float
  output: float
  spread: float


class Look(NamedTuple):
  """What one state shows.

  Attributes:
    loss: of the batches that were looked at, in training mode.
    layers: in program order.
    gradient: the global norm, of the mean over batches.
    noise_scale: tr(cov) / |g|^2, in examples: batches far smaller are mostly noise (McCandlish et al. 2018,
      https://arxiv.org/abs/1812.06162).
    dead: by place, the share of the units whose value differs over examples that no example makes positive: what a
      mask has cut off from its inputs is not dead, and counts as no unit.
    saturated: by place, the share of values at an end of their range.
  """

  loss: float
  layers: tuple[Layer, ...]
  gradient: float
  noise_scale: float
  dead: dict[str, float]
  saturated: dict[str, float]


class Looker:
  """The one program that looks at a state."""

  def __init__(self, subject: Subject, like: Looker | None = None):
    """Traces the program; of a run of the same programs, `like`, it is taken over."""
    self.gradient: Any
    self.watched: watch.Watched
    self.program: Any
    self.value: Any
    self.inside: int
    self.subject = subject
    self.batches = [self.batch(step) for step in range(LOOKS)]
    if like is not None:
      self.gradient, self.watched, self.program, self.value = like.gradient, like.watched, like.program, like.value
      self.inside = like.inside
      return
    model, data = subject.train.model, subject.data
    loss = subject.loss or data.task.loss(data.facts)
    gradient = self.gradient = gradient_of(model, subject.recipe.loss(lift_loss(loss)))
    state = subject.start
    full = join_const(state.model_state, state.const)

    def forward(params: Any, full: Any, key: Any, step: Any, inputs: Any) -> Any:
      return model.apply(params, full, inputs, train=True, key=key, step=step)[0]

    seen = self.watched = watch.watched(forward, state.params, full, state.key, state.step, self.batches[0]['inputs'])
    self.inside = seen.inside

    def traced(params: Any, full: Any, batch: Any, key: Any, step: Any) -> Any:
      grads, _, terms = gradient(params, full, batch, key, step)
      return sum(terms.values()), grads, seen.run(params, full, key, step, batch['inputs'])[1]

    self.program = jax.jit(traced)
    self.value = jax.jit(lambda *given: sum(gradient(*given)[2].values()))

  def batch(self, step: int) -> Any:
    return batches.batch_at(self.subject.data.train, self.subject.batch_size, self.subject.seed, step)

  def look(self, state: TrainState) -> Look:
    full = join_const(state.model_state, state.const)
    losses, seen, squares = [], [], []
    total: Any = None
    for step, batch in enumerate(self.batches):
      loss, grads, stats = self.program(state.params, full, batch, state.key, jnp.int32(step))
      losses.append(float(loss))
      seen.append(jax.device_get(stats))
      squares.append(_square(grads))
      total = grads if total is None else _added(total, grads)
    mean = _divided(total, len(self.batches))
    big, small = _square(mean), float(np.mean(squares))
    count = len(self.batches)
    noise = (small - big) * count / (count - 1)  # of one batch
    signal = big - noise / count
    norms = {path: _norm(leaf) for path, leaf in trees.by_path(mean).items()}
    sizes = {path: _norm(leaf) for path, leaf in trees.by_path(state.params).items()}
    layers, dead, saturated = [], {}, {}
    for site, stats in zip(self.watched.sites, watch.merged(self.watched.sites, seen), strict=True):
      if site.kind == 'relu':
        if math.isfinite(stats['dead']):
          dead[site.name] = stats['dead']
      elif site.kind in ('sigmoid', 'tanh'):
        saturated[site.name] = stats['saturated']
      else:
        own = site.name.split(' and ')
        gradient = float(np.sqrt(sum(norms[path] ** 2 for path in own))) if set(own) <= set(norms) else math.nan
        weight = float(np.sqrt(sum(sizes.get(path, 0.0) ** 2 for path in own)))
        layers.append(Layer(site.name, gradient * weight, gradient, weight, **stats))
    return Look(
      float(np.mean(losses)),
      tuple(layers),
      float(np.sqrt(big)),
      0.0 if noise <= 0 else float(self.subject.batch_size * noise / signal) if signal > 0 else math.inf,
      dead,
      saturated,
    )


@jax.jit
def _squares(tree: Any) -> Any:
  return sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree))


_added = jax.jit(lambda one, other: jax.tree.map(jnp.add, one, other))
_divided = jax.jit(lambda tree, by: jax.tree.map(lambda leaf: leaf / by, tree))


def _norm(leaf: Any) -> float:
  return float(np.linalg.norm(np.asarray(leaf, np.float32)))


def _square(tree: Any) -> float:
  return float(_squares(tree))
