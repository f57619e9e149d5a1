"""Whether model, loss, task and data fit each other: told before training, in the words of who put them together.

Shapes are enough. Where everything fits, nothing is traced here that the run would not trace anyway; what does not fit
is looked into, since the error that comes first (of a loss, deep in a framework) seldom blames what is wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval

from jaxlite.contract import Model, join_const
from jaxlite.data.dataset import Dataset
from jaxlite.data.decoded import head, is_decoded
from jaxlite.errors import ConfigError, nearest, one_line
from jaxlite.graph.walk import has_primitive
from jaxlite.host.gc_pause import paused
from jaxlite.step.state import TrainState
from jaxlite.step.train_step import Train
from jaxlite.tasks import is_built_in
from jaxlite.tasks.calling import kinds, name_of
from jaxlite.tasks.metrics import Metrics

_JUDGED = 64  # masks, where labels are decoded when they are asked for
_EVALUATED = ('inputs', 'labels', 'weight')  # what a batch of evaluation holds
_CALLS = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')
_SAME = ('convert_element_type', 'reshape', 'squeeze', 'broadcast_in_dim', 'transpose', 'copy', 'optimization_barrier')


def asked(function: Callable[..., Any], field: str, form: str, *args: Any) -> Any:
  """Calls a function of the config.

  Args:
    function: of a user.
    field: of the config that names it.
    form: its arguments, as a person writes them.
    *args: its arguments.

  Raises:
    ConfigError: it takes others.
  """
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError):  # Python cannot tell
    return function(*args)
  try:
    signature.bind(*args)
  except TypeError:
    raise ConfigError(f'{field} is called with {form}; {name_of(function)} takes {signature}') from None
  return function(*args)


@paused()
def begun(built: Train, network: Model, key: jax.Array, batch: Any) -> tuple[Any, TrainState]:
  """Returns the jaxpr of the first state, and its shapes.

  Args:
    built: of the recipe and the network.
    network: without the recipe's hooks.
    key: of the run.
    batch: the first.

  Raises:
    ValueError: the model cannot take the inputs as they lie.
  """
  try:
    jaxpr, state = jax.make_jaxpr(lambda key, batch: built.init(key, batch), return_shape=True)(key, batch)
  except Exception as error:
    _blame_inputs(error, network, batch['inputs'])
    raise
  # As a state begins that is computed: a frozen number of Python's is of float32 there.
  return jaxpr, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


@paused()
def evaluated(built: Train, network: Model, state: TrainState, batch: Any, data: Dataset, metric: Metrics) -> Any:
  """Makes sure that evaluation runs: model, loss and metrics on a batch of these shapes.

  Returns:
    The jaxpr of the evaluation, whose first outputs are the model's.

  Raises:
    ValueError: something does not fit, in one line where it is known what.
  """
  batch = {name: batch[name] for name in _EVALUATED if name in batch}
  try:
    jaxpr, (outputs, terms) = jax.make_jaxpr(built.eval, return_shape=True)(state, batch)
    jax.eval_shape(metric.update, jax.eval_shape(metric.init), outputs, batch, terms['task'])
    if metric.keep is not None:
      jax.eval_shape(metric.keep, outputs, batch)
  except Exception as error:
    _blame_outputs(error, network, _outputs_of(built, network, state, batch), batch, data)
    raise
  return jaxpr


def _outputs_of(built: Train, network: Model, state: TrainState, batch: Any) -> Any:
  """The shapes of what the model returns as evaluated."""

  def forward(state: TrainState, inputs: Any) -> Any:
    full = join_const(state.model_state, state.const)
    return built.model.apply(state.params, full, inputs, train=False, key=None, step=state.step)[0]

  try:
    return jax.eval_shape(forward, state, batch['inputs'])
  except Exception as error:
    _blame_inputs(error, network, batch['inputs'])
    raise


def _blame_inputs(error: Exception, network: Model, inputs: Any) -> None:
  """Raises where it is the form of the inputs that a model fails on; else tells what it was called with."""
  if one_line(error) is not None or runs(network, inputs):  # then it came from a part of the recipe
    return
  if hint := _other_form(network, inputs):
    said = ' '.join(str(error).split()).removesuffix('.')[:200]
    raise ValueError(
      f'the model cannot take a batch of inputs {kinds(inputs)} ({type(error).__name__}: {said}): {hint}'
    ) from error
  error.add_note(f'It came from the model, which was called with a batch of inputs {kinds(inputs)}.')


def _other_form(network: Model, inputs: Any) -> str:
  """How to bring inputs into a form that the network takes, one example for one output; '' where none is known."""
  if not isinstance(inputs, np.ndarray | jax.Array):
    return ''
  forms: list[tuple[str, Any]] = []
  if inputs.ndim == 3:
    forms.append(('pictures have an axis of channels, and these have none: inputs[..., None]', inputs[..., None]))
  if inputs.ndim == 4:
    fix = 'pictures are [N, H, W, channels], and these [N, channels, H, W]: inputs.transpose(0, 2, 3, 1)'
    forms.append((fix, inputs.transpose(0, 2, 3, 1)))
  return next((fix for fix, form in forms if runs(network, form, size=len(inputs))), '')


def runs(network: Model, inputs: Any, size: int | None = None) -> bool:
  """Whether a network takes inputs, and where `size` is given, gives so many outputs."""

  def forward(inputs: Any) -> Any:
    params, state = network.init(jax.random.key(0), inputs)
    return network.apply(params, state, inputs, train=False, key=None)[0]

  try:
    outputs = jax.eval_shape(forward, inputs)
  except Exception:
    return False
  return size is None or all(leaf.shape[:1] == (size,) for leaf in jax.tree.leaves(outputs))


def _blame_outputs(error: Exception, network: Model, outputs: Any, batch: Any, data: Dataset) -> None:
  """Raises what is wrong where outputs fit neither the batch nor the task."""
  size = len(batch['labels'])
  if not hasattr(outputs, 'shape'):
    return
  got = f'the model returns {kinds(outputs)} for a batch of inputs {kinds(batch["inputs"])}'
  if outputs.shape[:1] != (size,):
    hint = _other_form(network, batch['inputs'])
    hint = hint or 'flatten an example with x.reshape(x.shape[0], -1), and wrap a model of one example in jax.vmap'
    raise ValueError(f'{got}, and the first axis of both is that of the examples, {size}: {hint}') from error
  classes = data.facts.get('classes')
  if data.task.name != 'classification' or outputs.ndim != 2 or classes is None or outputs.shape[1] == classes:
    return
  count = outputs.shape[1]
  if count == 1 and classes == 2:
    fix = 'one logit for two classes is task=jl.tasks.binary; here give the last layer 2 outputs'
  elif count == classes - 1 and not (_judged(getattr(data.train, 'labels', np.zeros(1))) == 0).any():
    fix = f'no label is 0 and the largest is {classes - 1}: number the classes from 0 (labels - 1)'
  else:
    fix = f'give its last layer {classes} outputs'
    fix += f', or say that there are {count} classes: task=lambda: jl.tasks.classification({count})' * (count > classes)
  raise ValueError(f'{got}; there are {classes} classes, labels 0 to {classes - 1}: {fix}') from error


def doubts(config: Any, data: Dataset, score: str, jaxpr: Any, batch: Any) -> list[str]:
  """Returns lines on what runs and is hardly meant.

  Args:
    config: of the run.
    data: of the run.
    score: the metric that picks the best model.
    jaxpr: of the evaluation, as `evaluated` gave it.
    batch: of the shapes that were evaluated.
  """
  found: list[str] = []
  picks = len(data.validation.labels) > 0
  labels = getattr(data.train, 'labels', data.validation.labels)
  if picks and len(labels):
    found += data.task.doubts(_judged(labels), data.facts, score)
  found += _never_tested(data)
  if not picks:
    for field, value in (('eval.patience', config.eval.patience), ('eval.metric', config.eval.metric)):
      if value:
        found.append(f'{field} is set to {value!r} and does nothing: no validation split is held out')
    if wanted := data.facts.get('wanted'):
      told = ' and '.join(f'{name} {wish:g}' for name, wish in wanted.items())
      found.append(f'{told} is wanted, and no validation split is held out to choose a threshold by: it stays as it is')
  loss = config.loss or data.task.loss(data.facts)
  ours = (getattr(loss, '__module__', None) or '').startswith('jaxlite.tasks.')
  if ours and is_built_in(data.task) and data.task.name != 'regression':
    end = _ends_in(jaxpr.jaxpr, 0)
    if end:
      found.append(f'the model ends in a {end}, and its loss takes logits and does that itself: leave the {end} out')
  if _draws(jaxpr):
    found.append(
      'the network draws random numbers in evaluation too, the same ones each time: where that is a dropout, it drops '
      'the same units when it is validated, tested and deployed: switch it off there (by an argument `train`)'
    )
  if config.loss is not None and _crosses(config.loss, jaxpr, batch):
    found.append(
      'the loss makes [B, B] of outputs [B, 1] and labels [B], so that every example is measured against every other: '
      'take outputs[:, 0]'
    )
  return found


def _never_tested(data: Dataset) -> list[str]:
  """A line where training has classes that the test split lacks: by scikit-learn's means over the classes that are
  there a model without a mistake has 1, by those over all classes it has not."""
  if not (is_built_in(data.task) and data.task.name == 'classification') or is_decoded(data.test.labels):
    return []
  labels, names = np.unique(_judged(getattr(data.train, 'labels', data.test.labels))), data.facts['class_names']
  lacking = [names[int(index)] for index in np.setdiff1d(labels, np.unique(np.asarray(data.test.labels)))]
  if not lacking:
    return []
  shown = ', '.join(lacking[:4]) + (f' and {len(lacking) - 4} more' if len(lacking) > 4 else '')
  return [f'test has no example of {shown}: in means over classes (macro) each counts as 0']


def _judged(labels: Any) -> np.ndarray:
  """Labels as they are looked at before a run: of those that lie in files the first."""
  return np.asarray(head(labels, _JUDGED)) if is_decoded(labels) else np.asarray(labels)


def _draws(jaxpr: Any) -> bool:
  """Whether what an evaluation gives hangs on a draw: keys that are only split do not count."""
  kept = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))[0]
  return has_primitive(kept, 'random_bits', 'threefry2x32', 'rng_bit_generator', 'rng_uniform')


def _crosses(loss: Callable[..., Any], jaxpr: Any, batch: Any) -> bool:
  """Whether outputs [B, 1] and labels [B] meet in a loss by NumPy's rules, whatever it then makes of [B, B]."""
  labels = batch['labels']
  outputs = jaxpr.out_avals[0] if jaxpr.out_avals else None
  size = len(labels)
  if outputs is None or size < 2 or (outputs.shape, np.shape(labels)) != ((size, 1), (size,)):
    return False
  seen = {'labels': labels, 'weight': batch['weight']}
  try:
    text = str(jax.make_jaxpr(loss)(jax.ShapeDtypeStruct(outputs.shape, outputs.dtype), seen))
  except Exception:  # it reads what else a batch holds
    return False
  return f'[{size},{size}]' in text


def _ends_in(jaxpr: Any, index: int) -> str:
  """'softmax' or 'sigmoid' where an output of a program is one, else ''."""
  at = _made_by(jaxpr, index)
  if at is None:
    return ''
  if at[1].primitive.name == 'logistic':
    return 'sigmoid'
  if at[1].primitive.name == 'div':
    above = _back(at[0], at[1].invars[0])
    if above is not None and above[1].primitive.name == 'exp':
      return 'softmax'
  return ''


def _made_by(jaxpr: Any, index: int) -> Any:
  return _back(jaxpr, jaxpr.outvars[index])


def _back(jaxpr: Any, var: Any) -> Any:
  """(the program, the equation) that makes a variable, past what only changes its form; None for an argument."""
  for eqn in reversed(jaxpr.eqns):
    if var not in eqn.outvars:
      continue
    inner = next((eqn.params[name] for name in _CALLS if name in eqn.params), None)
    if inner is not None and hasattr(inner := getattr(inner, 'jaxpr', inner), 'eqns'):
      return _made_by(inner, eqn.outvars.index(var)) if len(inner.outvars) == len(eqn.outvars) else None
    if eqn.primitive.name in _SAME:
      return _back(jaxpr, eqn.invars[eqn.outvars.index(var)])
    return jaxpr, eqn
  return None


def no_metric(asked: str, score: str, names: Any) -> ValueError:
  """The error for a metric that is not measured.

  Args:
    asked: who asked for it.
    score: its name.
    names: what is measured.
  """
  bare = score.removeprefix('val_').removeprefix('validation_')
  if bare in names:
    fix = f'the metrics are those of the validation split: {bare!r}'
  elif 'auc' in bare.lower() and not any('auc' in name for name in names):
    fix = "ROC-AUC is measured where the task is jl.tasks.binary ('roc_auc') or multi_label ('roc_auc_macro')"
  else:
    fix = f'nearest: {nearest(bare, names)}'
  return ValueError(f'{asked} is one of the metrics; got {score!r}; {fix}')
