"""Runs with a known fault, for `diagnosis.py`: made-up data of four tasks, one injected cause each, in the networks of
`diagnosis_networks.py`. A case is a function of (cause, number) alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from diagnosis_networks import VOCABULARY, Shape

import jaxlite as jl

TASKS = ('classification', 'regression', 'multi_label', 'language')
FRAMEWORKS = ('function', 'linen', 'equinox')
CAUSES = (
  'healthy',
  'vanishing gradient',
  'exploding gradient',
  'dying ReLU',
  'unstable loss',
  'slow convergence',
  'wrong output activation',
  'wrong loss',
  'abnormal data',
  'overfitting',
  'underfitting',
  'label noise',
  'leak',
  'class imbalance',
)
# What has no meaning for a task is not injected there.
_ONLY = {
  'abnormal data': ('classification', 'regression', 'multi_label'),
  'label noise': ('classification', 'regression', 'multi_label'),
  'class imbalance': ('classification', 'multi_label'),
  'overfitting': ('classification', 'regression', 'multi_label'),
}
LENGTH = 16  # of a text


class Case(NamedTuple):
  """A run to judge.

  Attributes:
    cause: what was injected.
    task, framework: of TASKS and FRAMEWORKS.
    shape: of its network; None for the library's default.
    config: of the run: what is learned by, how long, how fast.
    adam: whether it learns by Adam, else by momentum.
    data: a Dataset; its test split is clean.
  """

  cause: str
  task: str
  framework: str
  shape: Any
  config: jl.Config
  adam: bool
  data: Any


def case(cause: str, number: int) -> Case:
  """Makes a case."""
  rng = np.random.default_rng([CAUSES.index(cause), number])
  task = _ONLY.get(cause, TASKS)[number // 2 % len(_ONLY.get(cause, TASKS))]
  framework = FRAMEWORKS[(number // 2 + CAUSES.index(cause)) % 3]
  data = _data(cause, task, rng)
  shape = _shape(cause, rng)._replace(end=_end(cause, task, rng))
  return Case(cause, task, framework, shape, *_config(cause, task, rng, number), data)


OUTPUTS = {'classification': 4, 'regression': 1, 'multi_label': 4, 'language': VOCABULARY}


def _rule(rng: np.random.Generator, features: int, hidden: int, outputs: int, used: int) -> Any:
  """A smooth function that is not linear."""
  a = rng.normal(size=(features, hidden)) * 1.6 / np.sqrt(used)
  a[used:] = 0
  b, c = rng.normal(size=hidden) * 0.5, rng.normal(size=(hidden, outputs))
  return lambda x: np.tanh(x @ a + b) @ c


def _data(cause: str, task: str, rng: np.random.Generator) -> Any:
  if task == 'language':
    return _texts(cause, rng)
  few = cause == 'overfitting'
  sizes, features, outputs = (80 if few else 800, 200, 600), 40 if few else 8, OUTPUTS[task]
  rule, noise = _rule(rng, features, int(rng.integers(3, 7)), outputs, 8), rng.uniform(0.02, 0.12)
  probe = rule(rng.normal(size=(4000, features)))
  centre, spread = probe.mean(0), probe.std(0)
  cut = np.quantile(probe, 0.96, axis=0) if cause == 'class imbalance' else centre
  parts = []
  for size in sizes:
    x = rng.normal(size=(size, features)).astype(np.float32)
    y = rule(x) + noise * spread * rng.normal(size=(size, outputs))
    if task == 'classification':
      scores = (y - centre) / spread
      labels = scores.argmax(1).astype(np.int32)
      if cause == 'class imbalance':  # the last class is rare, and lies among the others
        rare = scores[:, 0] + 0.6 * rng.normal(size=size) > 2.1
        labels = np.where(rare, 3, scores[:, 1:].argmax(1)).astype(np.int32)
    elif task == 'regression':
      labels = (3 * (y[:, 0] - centre[0]) / spread[0] + 5).astype(np.float32)
    else:
      shifted = y - cut
      if cause == 'class imbalance':
        shifted = shifted + 0.5 * spread * rng.normal(size=shifted.shape) - 0.3 * spread
      labels = (shifted > 0).astype(np.int32)
    parts.append([x, labels])
  _inject(cause, task, rng, parts)
  if cause == 'abnormal data':
    scale = 10 ** rng.uniform(1.5, 3.5, features)
    offset = rng.normal(size=features) * scale * rng.uniform(0, 3)
    for part in parts:
      part[0] = (part[0] * scale + offset).astype(np.float32)
  train, validation, test = (tuple(part) for part in parts)
  made = jl.data.make_dataset(
    'made', train, validation, test, task=getattr(jl.tasks, task), standardize=cause != 'abnormal data'
  )
  facts = {'mean': [5.0], 'std': [3.0]} if task == 'regression' else {}  # one program for all of them
  return made._replace(facts={**made.facts, **facts})


def _inject(cause: str, task: str, rng: np.random.Generator, parts: list[Any]) -> None:
  if cause == 'label noise':
    share = rng.uniform(0.2, 0.35)
    for part in parts[:2]:
      labels = part[1]
      if task == 'multi_label':
        part[1] = np.where(rng.random(labels.shape) < share, 1 - labels, labels)
        continue
      rows = np.flatnonzero(rng.random(len(labels)) < share)
      if task == 'classification':
        labels[rows] = (labels[rows] + rng.integers(1, 4, len(rows))) % 4
      else:
        labels[rows] = 5 + rng.choice([-1, 1], len(rows)) * rng.uniform(10, 25, len(rows))
  if cause == 'leak':
    (x, y), (vx, vy) = parts[0], parts[1]
    rows = rng.permutation(len(vx))[: int(len(vx) * rng.uniform(0.25, 0.6))]
    source = rng.permutation(len(x))[: len(rows)]
    vx[rows], vy[rows] = x[source], y[source]


def _texts(cause: str, rng: np.random.Generator) -> Any:
  """What follows depends on two tokens; some are all but sure."""
  sharp = rng.uniform(1.5, 2.5)
  logits = rng.normal(size=(VOCABULARY, VOCABULARY)) * sharp
  logits = logits[:, None, :] + 0.8 * rng.normal(size=(VOCABULARY, VOCABULARY, VOCABULARY))
  shares = np.exp(logits - logits.max(-1, keepdims=True))
  shares = np.cumsum(shares / shares.sum(-1, keepdims=True), -1)
  parts = []
  for size in (200, 80, 200):
    tokens = np.zeros((size, LENGTH + 1), np.int32)
    tokens[:, :2] = rng.integers(0, VOCABULARY, (size, 2))
    for at in range(2, LENGTH + 1):
      draw = rng.random((size, 1))
      tokens[:, at] = np.minimum((draw > shares[tokens[:, at - 1], tokens[:, at - 2]]).sum(1), VOCABULARY - 1)
    parts.append([tokens[:, :-1], tokens[:, 1:]])
  if cause == 'leak':
    rows = rng.permutation(80)[: int(rng.integers(20, 50))]
    source = rng.permutation(len(parts[0][0]))[: len(rows)]
    for which in (0, 1):
      parts[1][which][rows] = parts[0][which][source]
  train, validation, test = (tuple(part) for part in parts)
  return jl.data.make_dataset('made', train, validation, test, task=lambda: jl.tasks.language(VOCABULARY))


def _shape(cause: str, rng: np.random.Generator) -> Shape:
  act = str(rng.choice(['relu', 'relu', 'tanh']))
  widths = (64,) if act == 'relu' else (48, 32)  # few networks: compiling them takes longer than to train them
  if cause == 'vanishing gradient':
    if rng.random() < 0.5:
      return Shape((24,) * 9, 'sigmoid')
    return Shape((24,) * 7, 'tanh', scale=float(rng.uniform(0.1, 0.25)))
  if cause == 'exploding gradient':
    return Shape((32,) * 5, 'relu', scale=float(rng.uniform(3, 7)))
  if cause == 'dying ReLU':
    return Shape((48, 32), 'relu', bias=-float(rng.uniform(3, 8)))
  if cause == 'overfitting':
    return Shape((256, 256), act)
  if cause == 'underfitting':
    return Shape((1,), 'tanh')
  return Shape(widths, act)


def _end(cause: str, task: str, rng: np.random.Generator) -> str:
  if cause != 'wrong output activation':
    return ''
  ends = ['sigmoid', 'tanh', 'relu'] if task in ('regression', 'multi_label') else ['softmax', 'sigmoid', 'softmax']
  return str(rng.choice(ends))


def _config(cause: str, task: str, rng: np.random.Generator, number: int) -> tuple[jl.Config, bool]:
  """The config, and whether it learns by Adam."""
  config = jl.Config(name='case', seed=number)
  lr = float(10 ** rng.uniform(-2.5, -2.0))
  epochs = int(rng.integers(16, 28)) if task != 'language' else int(rng.integers(40, 60))
  config.data.batch_size = 32
  config.optim.weight_decay = float(10 ** rng.uniform(-4, -2.5))
  if cause == 'slow convergence':
    lr = float(10 ** rng.uniform(-6.0, -5.2))
  elif cause == 'unstable loss':
    lr = float(10 ** rng.uniform(-0.4, 0.8))
  elif cause == 'overfitting':
    epochs, config.data.batch_size = 150, 16
    config.optim.weight_decay = 0.0
  elif cause == 'vanishing gradient':
    config.optim.weight_decay = 0.0
  if cause == 'exploding gradient':
    config.optim.clip = 0.0
  config.optim.lr = lr
  config.train = jl.Duration(epochs=epochs)
  config.eval.every, config.log.every = jl.Duration(epochs=2), jl.Duration(steps=10)
  config.log.tensorboard = config.log.progress = False
  config.machine.rewrites, config.machine.steps_per_dispatch = False, 1
  momentum = cause == 'vanishing gradient' or (cause == 'exploding gradient' and rng.random() < 0.5)
  if cause == 'wrong loss':
    config.loss = _LOSSES[task][int(rng.integers(len(_LOSSES[task])))]
  return config, not momentum


class Held(NamedTuple):
  """Values of a recipe that lie in its state, so that runs which differ in them share a program."""

  rate: jax.Array
  decay: jax.Array
  clip: jax.Array
  total: jax.Array
  count: jax.Array


def held(*, adam: bool) -> Any:
  """Clipping, Adam or momentum, weight decay, and a cosine behind a warm-up of 5 %, all of it as jaxlite's default."""
  inner = optax.scale_by_adam() if adam else optax.trace(0.9)

  def init(params: Any) -> Any:
    one = lambda value: jnp.asarray(value, jnp.float32)  # noqa: E731
    return Held(one(1e-3), one(0), one(1), one(100), one(0)), inner.init(params)

  def update(updates: Any, state: Any, params: Any = None) -> Any:
    own, moments = state
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(updates)))
    updates = jax.tree.map(lambda u: u * jnp.minimum(1, own.clip / jnp.maximum(norm, 1e-30)), updates)
    updates, moments = inner.update(updates, moments, params)
    warm = jnp.maximum(1, jnp.floor(0.05 * own.total))
    late = jnp.clip((own.count - warm) / jnp.maximum(1, own.total - warm), 0, 1)
    rate = own.rate * jnp.where(own.count < warm, (own.count + 1) / warm, 0.5 * (1 + jnp.cos(jnp.pi * late)))
    shrunk = jax.tree.map(lambda u, p: -rate * (u + own.decay * p * (p.ndim > 1)), updates, params)
    return shrunk, (own._replace(count=own.count + 1), moments)

  return optax.GradientTransformation(init, update)


def _to_number(outputs: Any, batch: Any) -> Any:
  """Squared error against the number of the class."""
  return jnp.mean((outputs - batch['labels'][:, None]) ** 2, axis=1)


def _shifted(outputs: Any, batch: Any) -> Any:
  """Cross-entropy against the class beside."""
  return optax.softmax_cross_entropy_with_integer_labels(outputs, (batch['labels'] + 1) % outputs.shape[-1])


def _first_label(outputs: Any, batch: Any) -> Any:
  """Every output against the first label."""
  return optax.sigmoid_binary_cross_entropy(outputs, batch['labels'][:, :1] + 0.0 * outputs).mean(1)


def _unsigned(outputs: Any, batch: Any) -> Any:
  """Squared error of sizes, whatever the sign of the label's side."""
  return jnp.mean((jax.nn.sigmoid(outputs) - (1 - batch['labels'])) ** 2, axis=1)


def _without_labels(outputs: Any, batch: Any) -> Any:
  return jnp.square(outputs.reshape(len(outputs), -1)[:, 0])


def _square_root(outputs: Any, batch: Any) -> Any:
  """Squared error against the root of the label."""
  return jnp.square(outputs.reshape(len(outputs), -1)[:, 0] - jnp.sqrt(jnp.abs(batch['labels'].reshape(len(outputs)))))


def _unmoved(outputs: Any, batch: Any) -> Any:
  """Cross-entropy against the tokens that are given."""
  return optax.softmax_cross_entropy_with_integer_labels(outputs, batch['inputs']).mean(-1)


def _first_alone(outputs: Any, batch: Any) -> Any:
  """Squared error of what is said against the number of the token."""
  return jnp.mean((outputs - batch['labels'][..., None]) ** 2, axis=(1, 2))


_LOSSES = {
  'classification': (_to_number, _shifted),
  'multi_label': (_first_label, _unsigned),
  'regression': (_without_labels, _square_root),
  'language': (_unmoved, _first_alone),
}
