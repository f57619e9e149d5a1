"""Regression: one number per example, or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.contract import CONST, Hook, Model, Params, State, drop_extras, with_const
from jaxlite.tasks import figures
from jaxlite.tasks.labels import as_array, far_out, names_of, stated
from jaxlite.tasks.metrics import Metrics, means
from jaxlite.tasks.task import Answers, Facts, Figure, Task

_LOSSES: dict[str, Callable[[jax.Array], jax.Array]] = {'mse': jnp.square, 'mae': jnp.abs}
_SHOWN = 1000  # points of a picture
_BASE = means()


def regression(
  target_names: Sequence[str] | None = None,
  loss: str | Callable[[jax.Array], jax.Array] = 'mse',
  standardize: bool = True,
) -> Task:
  """Learns numbers; the model returns float[B], float[B, 1] or float[B, targets].

  The network learns targets of mean 0 and standard deviation 1. A hook turns its outputs into the labels' units, so
  that predictions, metrics and an exported model are in units; the loss is taken of (outputs - labels) / std. That
  difference is exact where the two are near, so a mean far above the spread costs no more than float32 labels do.

  Args:
    target_names: one name per target; None numbers them.
    loss: 'mse', 'mae', or a function of the residuals (predicted minus true, in standard deviations where
      `standardize` is on), float[B, targets] -> float[B, targets]; its mean over targets is the example's loss.
    standardize: False leaves targets as they are.

  Returns:
    The Task. Labels are float[N] or float[N, targets]; integers count as numbers. Facts: 'targets', 'target_names',
    'mean', 'std', 'axes', 'loss'. Metrics: 'mae', 'rmse' and 'r2' in units, over targets their mean, and 'loss'. The
    best model is that of the lowest 'rmse'.

  Raises:
    ValueError: from `check`, labels that are not finite numbers or that float32 cannot tell apart; from the loss,
      outputs of another shape than the labels; from `facts`, not one name per target.

  >>> task = regression()
  >>> labels = task.check([10.0, 30.0], 'train')
  >>> facts = task.facts(labels, {})
  >>> facts['mean'], facts['std'], task.loss(facts)(jnp.array([[10.0], [40.0]]), {'labels': labels}).tolist()
  ([20.0], [10.0], [0.0, 1.0])
  """
  if isinstance(loss, str) and loss not in _LOSSES:
    raise ValueError(f"the loss of a regression is 'mse', 'mae' or a function of the residuals; got {loss!r}")

  def facts(labels: np.ndarray, given: Mapping[str, Any]) -> Facts:
    columns = labels.reshape(len(labels), -1).astype(np.float64)
    names = names_of(stated(given, target_names=target_names), 'target_names') or _numbered(columns.shape[1])
    if len(names) != columns.shape[1]:
      raise ValueError(f'every target has one name; got {len(names)} names for {columns.shape[1]}: fix target_names')
    mean, std = columns.mean(axis=0), columns.std(axis=0)
    constant = std <= np.finfo(np.float32).eps * np.abs(columns).max(axis=0, initial=0)
    std = np.where(constant, 1.0, std)
    if not standardize:
      mean, std = np.zeros_like(mean), np.ones_like(std)
    return {
      'targets': len(names),
      'target_names': names,
      'mean': [float(np.float32(value)) for value in mean],
      'std': [float(np.float32(value)) for value in std],
      'axes': labels.ndim,
      'standardize': standardize,
      'loss': loss if isinstance(loss, str) else getattr(loss, '__name__', 'function'),
    }

  return Task(
    'regression',
    loss=lambda facts: _loss(facts, _LOSSES[loss] if isinstance(loss, str) else loss),
    metrics=_metrics,
    score='rmse',
    distribution=False,
    falls=('loss', 'mae', 'rmse', 'nan_outputs'),
    check=_check,
    facts=facts,
    check_facts=_check_facts,
    notes=_notes,
    hook=lambda facts: units(facts['mean'], facts['std']) if facts['standardize'] else None,
    answer=_answer,
    answers=_answers,
    rows=(
      ('test RMSE', 'rmse', '{:.4g}'),
      ('MAE', 'mae', '{:.4g}'),
      ('R2', 'r2', '{:.4f}'),
      ('loss', 'loss', '{:.4f}'),
      ('test outputs that are NaN', 'nan_outputs', '{:g}'),
    ),
    curve=('Validation RMSE', 'rmse', '{:.4g}'),
    tables=_tables,
    figures=_figures,
  )


def units(mean: Sequence[float], std: Sequence[float], *, name: str = 'units') -> Hook:
  """Turns a model's standardized outputs into the units of its targets: outputs * std + mean.

  Args:
    mean: float[targets].
    std: float[targets], positive.
    name: the hook's name.

  Returns:
    A Hook on the model, to stand innermost. Outputs are float[B], float[B, 1] or float[B, targets] and at least
    float32; `export` keeps the statistics, since a deployed model needs them.

  Raises:
    ValueError: a standard deviation that is not positive or a statistic that is not finite; outputs of another shape.

  >>> base = Model(lambda key, x: ({}, {}), lambda p, s, x, **_: (x, s))
  >>> model = units([10.0], [2.0]).model(base)
  >>> params, state = model.init(None, jnp.ones(2))
  >>> model.apply(params, state, jnp.array([0.0, 1.0]), train=False, key=None)[0].tolist()
  [10.0, 12.0]
  """
  means_, stds = np.asarray(mean, np.float32), np.asarray(std, np.float32)
  if not (np.isfinite(means_).all() and np.isfinite(stds).all() and (stds > 0).all()):
    raise ValueError(f'units: statistics are finite and std positive; got mean={mean}, std={std}')

  def model(inner: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      params, state = inner.init(key, inputs)
      return params, with_const(state, name, {'mean': jnp.asarray(means_), 'std': jnp.asarray(stds)})

    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      outputs, after = inner.apply(params, state, inputs, train=train, key=key, step=step)
      columns, own = _columns(outputs, len(means_)), state[CONST][name]
      columns = columns.astype(jnp.promote_types(columns.dtype, jnp.float32))
      return (columns * own['std'][None] + own['mean'][None]).reshape(outputs.shape), after

    def export(params: Params, state: State) -> tuple[Params, State]:
      params, stripped = inner.export(params, drop_extras(state, name))
      return params, with_const(stripped, name, state[CONST][name])

    return Model(init, apply, inner.after, export)

  return Hook(name, model=model)


def _numbered(targets: int) -> list[str]:
  return ['target'] if targets == 1 else [f'target {index}' for index in range(targets)]


def _columns(outputs: Any, targets: int) -> Any:
  """Outputs as [B, targets]: [B] against [B, 1] would broadcast to [B, B] and say nothing."""
  shape: Any = getattr(outputs, 'shape', None)
  fits = shape is not None and ((len(shape) == 1 and targets == 1) or (len(shape) == 2 and shape[1] == targets))
  if not fits or not jnp.issubdtype(outputs.dtype, jnp.floating):
    wanted = 'float[B] or float[B, 1]' if targets == 1 else f'float[B, {targets}]'
    got = f'{outputs.dtype}{list(shape)}' if shape is not None else type(outputs).__name__
    raise ValueError(f'a model of {targets} target{"s"[: targets - 1]} returns {wanted}; got {got}: fix its last layer')
  return outputs.reshape(shape[0], targets)


def _pair(outputs: Any, batch: Mapping[str, Any], facts: Facts) -> tuple[jax.Array, jax.Array]:
  outputs = _columns(outputs, facts['targets'])
  labels = jnp.asarray(batch['labels'])
  size, targets = outputs.shape
  if labels.shape != (size, targets) and not (targets == 1 and labels.shape == (size,)):
    wanted = f'[{size}] or [{size}, 1]' if targets == 1 else f'[{size}, {targets}]'
    raise ValueError(f'labels are float{wanted} for outputs {list(outputs.shape)}; got {list(labels.shape)}')
  return outputs, labels.reshape(size, targets).astype(jnp.promote_types(outputs.dtype, jnp.float32))


def _loss(facts: Facts, each: Callable[[jax.Array], jax.Array]) -> Callable[[Any, Mapping[str, Any]], jax.Array]:
  std = np.asarray(facts['std'], np.float32)

  def loss(outputs: Any, batch: Mapping[str, Any]) -> jax.Array:
    outputs, labels = _pair(outputs, batch, facts)
    values = each((outputs - labels) / std[None])
    if values.shape != labels.shape:
      raise ValueError(f"a regression's loss gives float{list(labels.shape)} of residuals; got {list(values.shape)}")
    return jnp.mean(values, axis=1)

  return loss


def _metrics(facts: Facts) -> Metrics:
  def keep(outputs: Any, batch: Mapping[str, Any]) -> Any:
    outputs, labels = _pair(outputs, batch, facts)
    return {'outputs': outputs, 'labels': labels, 'weight': batch.get('weight', jnp.ones(len(labels)))}

  def compute(state: Any, kept: Mapping[str, Any]) -> dict[str, Any]:
    values = _BASE.compute(state)
    weight = np.asarray(kept['weight'], np.float64)
    used = weight > 0
    weight = weight[used]
    predicted, true = (np.asarray(kept[name])[used].astype(np.float64) for name in ('outputs', 'labels'))
    with np.errstate(all='ignore'):
      each = _scores(predicted, true, weight)
    found = {name: float(np.mean(value)) for name, value in each.items()} | values
    if nan := weight[np.isnan(predicted).any(axis=1)].sum():
      found['nan_outputs'] = float(nan)
    some = np.round(np.linspace(0, len(true) - 1, min(_SHOWN, len(true)))).astype(int)
    arrays = {f'{name}_each': value for name, value in each.items()}
    return {**found, **arrays, 'true': true[some], 'predicted': predicted[some]}

  return Metrics(('mae', 'rmse', 'r2', 'loss'), _BASE.init, _BASE.update, compute, keep)


def _scores(predicted: np.ndarray, true: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
  """float64[targets] each; R2 by scikit-learn's conventions for labels that do not vary."""
  share = (weight / weight.sum())[:, None]
  squares = np.sum(share * (predicted - true) ** 2, axis=0)
  spread = np.sum(share * (true - np.sum(share * true, axis=0)) ** 2, axis=0)
  constant = (true == true[:1]).all(axis=0)
  r2 = np.where(constant, np.where(squares == 0, 1.0, 0.0 * squares), 1 - squares / spread)
  return {
    'mae': np.sum(share * np.abs(predicted - true), axis=0),
    'rmse': np.sqrt(squares),
    'r2': r2 if len(true) > 1 else np.full_like(r2, np.nan),
  }


def _check(values: Any, where: str) -> np.ndarray:
  array = as_array(values, f'labels of {where}')
  if array.ndim not in (1, 2) or 0 in array.shape[1:]:
    raise ValueError(f'labels are [N] or [N, targets]; {where} has {list(array.shape)}: give each example its numbers')
  if array.dtype.kind not in 'biuf':
    raise ValueError(f'labels of a regression are numbers; {where} has {array.dtype}: convert them with .astype(float)')
  with np.errstate(over='ignore', invalid='ignore'):
    narrow = array.astype(np.float32)
  if not np.isfinite(narrow).all():
    place = [int(index) for index in np.argwhere(~np.isfinite(narrow))[0]]
    at = place[0] if array.ndim == 1 else place
    raise ValueError(
      f'labels are finite as float32; {where} has {array[tuple(place)]} at {at}: drop example {place[0]} or rescale'
    )
  if narrow.size and array.dtype.itemsize > 2 and array.dtype != np.float32:
    lost = np.abs(array.astype(np.float64) - narrow.astype(np.float64)).max(axis=0)
    spread = array.astype(np.float64).std(axis=0)
    if np.any((lost > 0.1 * spread) & (spread > 0)):
      raise ValueError(
        f'float32 holds 7 digits, and labels of {where} differ in later ones: subtract a constant that all share'
      )
  return narrow


def _check_facts(labels: np.ndarray, facts: Facts, where: str) -> None:
  targets = 1 if labels.ndim == 1 else labels.shape[1]
  if targets != facts['targets'] or labels.ndim != facts['axes']:
    wanted = '[N]' if facts['axes'] == 1 else f'[N, {facts["targets"]}]'
    raise ValueError(f'labels of every split are float{wanted} as those of train; {where} has {list(labels.shape)}')


def _notes(labels: np.ndarray, facts: Facts) -> list[str]:
  columns, notes = labels.reshape(len(labels), -1), []
  for name, column in zip(facts['target_names'], columns.T, strict=True):
    largest, std = np.abs(column).max(initial=0), column.astype(np.float64).std()
    if std <= np.finfo(np.float32).eps * largest:
      notes.append(f'{name} is {column[0]:g} in every example of train: there is nothing to learn')
    elif np.spacing(largest) > 0.01 * std:
      notes.append(
        f'{name} is up to {largest:.3g} and varies by {std:.3g} only: float32 leaves steps of {np.spacing(largest):.2g}'
        ', subtract a constant from it'
      )
  return notes + far_out(columns, facts['target_names'])


def _answer(outputs: np.ndarray, facts: Facts) -> dict[str, Any]:
  outputs = np.asarray(outputs)
  shape = (len(outputs),) if facts['axes'] == 1 else (len(outputs), facts['targets'])
  return {'labels': outputs.reshape(shape)}


def _answers(kept: Mapping[str, Any], facts: Facts) -> Answers:
  predicted, true = (np.asarray(kept[name], np.float64) for name in ('outputs', 'labels'))
  with np.errstate(all='ignore'):
    off = np.abs(predicted - true) / np.asarray(facts['std'], np.float64)  # targets have units of their own
  names = facts['target_names']

  def listed(row: np.ndarray) -> str:
    return ', '.join(f'{name} {value:.4g}' for name, value in zip(names[:4], row, strict=False))

  def told(index: int) -> dict[str, str]:
    return {'true': listed(true[index]), 'predicted': listed(predicted[index])}

  return Answers(off.max(axis=1), None, None, told)


def _tables(values: Mapping[str, Any], facts: Facts) -> list[list[list[str]]]:
  if facts['targets'] == 1 or 'rmse_each' not in values:
    return []
  each = zip(facts['target_names'], *(values[f'{name}_each'] for name in ('mae', 'rmse', 'r2')), strict=True)
  return [[['target', 'MAE', 'RMSE', 'R2'], *([name, f'{a:.4g}', f'{b:.4g}', f'{c:.4f}'] for name, a, b, c in each)]]


def _figures(values: Mapping[str, Any], facts: Facts, title: str) -> list[Figure]:
  made = []
  for index, name in enumerate(facts['target_names'][:8] if 'true' in values else ()):
    true, predicted = (np.asarray(values[of])[:, index] for of in ('true', 'predicted'))
    words = f'RMSE {values["rmse_each"][index]:.4g}, R2 {values["r2_each"][index]:.4f}'
    slug = 'predicted' if facts['targets'] == 1 else f'predicted-{index}'
    shown = title if facts['targets'] == 1 else f'{title}: {name}'

    def draw(true: Any = true, predicted: Any = predicted, shown: str = shown, words: str = words) -> Any:
      return figures.against_truth(true, predicted, shown, words)

    made.append(Figure(slug, f'Predicted over true values of {shown} on the test split, and the residuals', draw))
  return made
