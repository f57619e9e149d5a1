"""What every kind of distillation shares: what a teacher may be, how it runs, how a divergence is called.

A teacher runs in evaluation mode, behind barriers that keep XLA from fusing it with its surroundings, so that its
outputs are bit-equal to its own. Its arrays come as an argument and get no gradient.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp

from jaxlite.contract import APART, TAPS, Context, Model, Network
from jaxlite.distillation._dist import dist
from jaxlite.distillation._dkd import dkd
from jaxlite.distillation._kd import check_classes, kd
from jaxlite.errors import nearest, number
from jaxlite.graph.effects import without_effects
from jaxlite.tasks.lift import weighted_mean

Teacher = Network | Callable[[Any], jax.Array] | str
Divergence = Callable[..., jax.Array]  # (student, teacher, and any of temperature=, labels=, weight=) -> float[B]
Share = float | Callable[[Any], Any]

_KEYWORDS = ('temperature', 'labels', 'weight')


def is_network(teacher: Any) -> TypeGuard[Network]:
  """Tells whether a teacher brings arrays of its own."""
  return all(hasattr(teacher, field) for field in Network._fields)


def check_teacher(teacher: Any, what: str) -> None:
  """Raises TypeError where a teacher is nothing that can teach.

  >>> check_teacher(3, 'distill')
  Traceback (most recent call last):
    ...
  TypeError: distill: a teacher is a Network (see jaxlite.load), a function or the name of logits in the batch; got int
  """
  if isinstance(teacher, Model):
    raise TypeError(
      f'{what}: a teacher is a Network; this is a Model, which has no weights of its own: jaxlite.Network(model, '
      'params, model_state)'
    )
  if is_network(teacher) or callable(teacher) or isinstance(teacher, str):
    return
  if hasattr(teacher, 'shape'):
    raise TypeError(
      f'{what}: an array of logits belongs to its examples: put it into the batch, '
      "jaxlite.data.attach(data, logits=array), and name it here: 'logits'"
    )
  raise TypeError(
    f'{what}: a teacher is a Network (see jaxlite.load), a function or the name of logits in the batch; got '
    f'{type(teacher).__name__}'
  )


def share_of(alpha: Share, what: str) -> Share:
  """Returns alpha, a plain number or a schedule; raises ValueError where it is no share. What a schedule gives is its
  own affair."""
  alpha = alpha if callable(alpha) else number(alpha, f'{what}: alpha')
  if not callable(alpha) and not 0 <= alpha <= 1:
    raise ValueError(f"{what}: alpha is the teacher's share of the loss, in [0, 1]; got {alpha}")
  return alpha


def brought(model: Callable[[Model], Model], who: Sequence[Any]) -> Callable[[Model], Model]:
  """Returns a hook's `model`, which says which networks it runs: whoever has the data looks whether they fit."""
  model.networks = tuple(one for one in who if is_network(one))  # type: ignore[attr-defined]
  return model


def values_of(teacher: Teacher) -> dict[str, Any]:
  """Returns the arrays that a teacher brings: constants of the step."""
  return {'params': teacher.params, 'model_state': teacher.model_state} if is_network(teacher) else {}


def run(teacher: Teacher, values: dict[str, Any], inputs: Any) -> Any:
  """Returns a teacher's outputs for one batch, bit-equal to its own.

  Args:
    teacher: a Network or a function.
    values: what `values_of` gave, as an argument of the program.
    inputs: one batch, [B, ...].
  """

  return apart(lambda values, inputs: forward(teacher, values, inputs), values, inputs)


def forward(teacher: Any, values: dict[str, Any], inputs: Any) -> Any:
  """Returns a teacher's outputs, as in evaluation."""
  if not values:
    return _called(teacher, inputs)
  return teacher.model.apply(values['params'], values['model_state'], inputs, train=False, key=None)[0]


def _called(teacher: Any, inputs: Any) -> Any:
  """Calls a teacher that is a function of the inputs; a module that is no such function is told what to do."""
  try:
    return without_effects(teacher, 'distillation')(inputs)
  except Exception as error:
    kind = next((base.__module__ for base in type(teacher).__mro__ if base.__module__.split('.')[0] in _MODULES), '')
    if not kind and isinstance(error, jax.errors.TracerArrayConversionError):
      raise ValueError(
        'a teacher runs inside of the compiled step, so it computes with jax.numpy; this one makes NumPy arrays of its '
        'inputs, as scikit-learn does: compute its logits before, put them into the batch, '
        "jaxlite.data.attach(data, logits=array), and name them: 'logits'"
      ) from error
    if not kind:
      raise
    fix = next(fix for name, fix in _MODULES.items() if kind.startswith(name))
    said = ' '.join(str(error).split())[:120]
    raise ValueError(
      f'a teacher is a function of inputs alone, in evaluation mode; {type(teacher).__name__} as it is raises '
      f'{type(error).__name__} ({said}): {fix}'
    ) from error


# How a module of a framework becomes a function of inputs alone; the more special name first.
_MODULES = {
  'flax.nnx': 'call its .eval() first, which turns dropout and batch statistics off',
  'flax': 'it has no weights of its own: lambda x: module.apply(variables, x), with whatever turns training off',
  'equinox': 'equinox.nn.inference_mode(module), and jax.vmap where it takes one example',
  'keras': 'lambda x: model(x, training=False)',
  'haiku': 'lambda x: transformed.apply(params, None, x)',
}


def apart(forward: Callable[..., Any], *args: Any) -> Any:
  """Runs a function so that XLA fuses nothing across its edge, and no gradient crosses it."""
  args = jax.lax.stop_gradient(jax.lax.optimization_barrier(args))
  with jax.named_scope(APART):
    return jax.lax.stop_gradient(jax.lax.optimization_barrier(forward(*args)))


def found(context: Context, name: str, what: str) -> jax.Array:
  """Returns logits that another part left as a tap, or that came with the batch.

  Args:
    context: of the loss.
    name: of the tap or of the batch's column.
    what: names the asking part in an error.

  Raises:
    ValueError: there is nothing of that name.
  """
  taps = context.model_state.get(TAPS, {})
  if name in taps:
    return taps[name]
  if name in context.batch:
    return jax.lax.stop_gradient(jnp.asarray(context.batch[name]))
  known = [*context.batch, *taps]
  if '/' in name and not name.startswith(('teacher/', 'hint/', 'self_distill/')):
    raise ValueError(
      f'{what}: {name!r} names logits in the batch, and there are none; for the folder of a run: jaxlite.load({name!r})'
    )
  raise ValueError(
    f'{what}: neither the batch nor a tap holds {name!r}; nearest: {nearest(name, known)}: attach it with '
    'jaxlite.data.cache_logits or jaxlite.data.attach'
  )


def soft_mean(logits: list[jax.Array], shares: list[float], temperature: float) -> jax.Array:
  """Returns logits whose softened probabilities are the mean of several teachers' softened probabilities.

  Args:
    logits: a teacher each, float[..., classes]; one alone is given back as it is.
    shares: a teacher each, summing to 1.
    temperature: softens.

  Returns:
    float32[..., classes].

  >>> two = [jnp.array([0.0, 0.0]), jnp.log(jnp.array([0.9, 0.1]))]
  >>> [round(float(p), 4) for p in jax.nn.softmax(soft_mean(two, [0.5, 0.5], 1.0))]
  [0.7, 0.3]
  """
  if len(logits) == 1:
    return logits[0]
  for one in logits[1:]:
    check_classes(one, logits[0])  # two shapes might broadcast
  weighed = [
    jax.nn.log_softmax(one.astype(jnp.float32) / temperature) + math.log(share)
    for one, share in zip(logits, shares, strict=True)
  ]
  return temperature * functools.reduce(jnp.logaddexp, weighed)


def own_temperature(loss: Divergence) -> float:
  """Returns the temperature at which a divergence softens when none is given: its default, or 1."""
  parameter = _parameters(loss).get('temperature')
  default = None if parameter is None else parameter.default
  single = isinstance(default, int | float) or getattr(default, 'shape', None) == ()
  return number(default, 'temperature') if single else 1.0


def compares_classes(loss: Divergence) -> bool:
  """Tells whether a divergence is one of ours that reads its arrays as logits over classes."""
  return getattr(loss, 'func', loss) in (kd, dkd, dist)  # of a partial, what it calls


def temperature_of(loss: Divergence, temperature: float | None, what: str) -> float | None:
  """Returns a temperature as a plain number; raises where a divergence cannot be called, or takes none and is given
  one."""
  if not callable(loss):
    raise TypeError(f'{what}: loss is a function (student, teacher) -> float[B], such as kd; got {type(loss).__name__}')
  if temperature is None:
    return None
  temperature = number(temperature, f'{what}: temperature')
  if not temperature > 0:
    raise ValueError(f'{what}: temperature is positive; got {temperature}')
  if 'temperature' not in _parameters(loss):
    raise ValueError(f'{what}: this loss takes no temperature; got temperature={temperature}: leave it out')
  return temperature


def term(
  loss: Divergence,
  student: jax.Array,
  teacher: jax.Array,
  context: Context,
  what: str,
  temperature: float | None = None,
) -> jax.Array:
  """Returns the weighted mean of a divergence over the batch.

  Where it gives one value a position and labels have one too (-1 where there is none), an example's is the mean over
  its labeled positions.

  Args:
    loss: (student, teacher, and those of temperature=, labels=, weight= that it names) -> float[B, ...], or a
      scalar that is taken as it is: where examples have a weight, only of a loss that names weight=.
    student: logits or features, float[B, ...].
    teacher: likewise.
    context: of the loss.
    what: names the asking part in an error.
    temperature: None leaves it to the loss.

  Returns:
    float[].

  Raises:
    ValueError: it needs labels and the batch has none; it gives no value an example.
  """
  for who, array in (('the student', student), ('the teacher', teacher)):
    if not hasattr(array, 'shape') or not jnp.issubdtype(array.dtype, jnp.floating):
      got = f'{array.dtype}{list(array.shape)}' if hasattr(array, 'shape') else type(array).__name__
      raise ValueError(f'{what} compares float arrays, such as logits; {who} gives {got}: return them alone')
  weight = context.batch.get('weight')
  offered = {'temperature': temperature, 'labels': context.batch.get('labels'), 'weight': weight}
  given = {}
  for name, parameter in _parameters(loss).items():
    if name in _KEYWORDS and offered[name] is not None:
      given[name] = offered[name]
    elif name == 'labels' and parameter.default is inspect.Parameter.empty:
      raise ValueError(f"{what}: this loss needs the batch's labels; it has {', '.join(context.batch)}")
  values = jnp.asarray(loss(student, teacher, **given))
  if values.ndim == 0 and (weight is None or 'weight' in given):
    return values
  if values.ndim == 0:
    raise ValueError(
      f'{what}: where examples count by their weight, a loss gives one value each, float[{student.shape[0]}], or takes '
      'weight= itself; got a scalar: leave its mean out'
    )
  if values.shape[0] != student.shape[0]:
    raise ValueError(f'{what}: a loss gives one value per example, float[{student.shape[0]}]; got {list(values.shape)}')
  return weighted_mean(_mean_of_each(values, context.batch.get('labels')), weight)


def _mean_of_each(values: jax.Array, labels: Any) -> jax.Array:
  """The mean of each example, float[B]; where positions have labels over the labeled ones, as the task's loss is."""
  if values.ndim > 1 and getattr(labels, 'shape', ()) == values.shape and jnp.issubdtype(labels.dtype, jnp.integer):
    labeled, axes = labels >= 0, tuple(range(1, values.ndim))
    count = jnp.sum(labeled, axis=axes, dtype=jnp.int32).astype(values.dtype)
    return jnp.sum(jnp.where(labeled, values, 0), axis=axes) / jnp.maximum(count, 1)
  return jnp.mean(values.reshape(len(values), -1), axis=1)


def _parameters(loss: Divergence) -> dict[str, inspect.Parameter]:
  try:
    return dict(inspect.signature(loss).parameters)
  except (TypeError, ValueError):  # a compiled function that Python cannot look into
    return {}
