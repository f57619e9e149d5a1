"""Hints: a student's inner activations follow its teacher's, through a learned projection where widths differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite.contract import (
  CONST,
  TAPS,
  Context,
  Loss,
  Model,
  Params,
  Side,
  State,
  Terms,
  drop_extras,
  stream,
  with_const,
  with_tap,
)
from jaxlite.distillation import _teachers as teachers
from jaxlite.distillation._teachers import Divergence, Teacher
from jaxlite.errors import number
from jaxlite.graph import taps
from jaxlite.graph.model import model_tags


def mean_squared(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Returns the mean squared difference of two features, an example each.

  Args:
    student: float[B, ...].
    teacher: float[B, ...].

  Returns:
    float32[B].

  Raises:
    ValueError: the shapes differ.

  References:
    Romero et al., FitNets: Hints for Thin Deep Nets, 2014, https://arxiv.org/abs/1412.6550 (there half the sum).

  >>> mean_squared(jnp.zeros((1, 2)), jnp.array([[3.0, 4.0]])).tolist()
  [12.5]
  """
  student, teacher = jnp.asarray(student), jnp.asarray(teacher)
  if student.shape != teacher.shape:
    raise ValueError(
      f'features are of one shape; the student gives {list(student.shape)}, the teacher {list(teacher.shape)}: tap '
      'layers of one resolution, and let project=True bring the channels together'
    )
  difference = student.astype(jnp.float32) - teacher.astype(jnp.float32)
  return jnp.mean(jnp.square(difference), axis=tuple(range(1, difference.ndim)))


def hint(
  teacher: Teacher,
  pairs: Mapping[str, str],
  *,
  scale: float = 1.0,
  loss: Divergence = mean_squared,
  project: bool = True,
  name: str = 'hint',
) -> Side:
  """Adds a term that draws activations of the student to activations of its teacher.

  A tap is the name of a `jax.ad_checkpoint.checkpoint_name`, or, without touching the model, the path of a weight:
  the output of the contraction that consumes it (see `jaxlite.graph.taps.tapped`). Features come to the loss as
  float[B, positions..., channels] whatever the framework's layout; of a named value the last axis is the channels.
  Inside a scan layers are paired one by one. The teacher runs as in `distill`, once: its outputs are left as the
  tap '<name>/logits', which `distill('<name>/logits')` takes as its teacher.

  Args:
    teacher: a Network, or a function from inputs to outputs. Of a run, `jaxlite.load(workdir, model=...)`: one that
      was loaded without its model shows nothing of its inside.
    pairs: {the student's tap: the teacher's tap}.
    scale: of the term: the mean over pairs, layers and examples.
    loss: (student, teacher) -> float[B], of features: `mean_squared`, `attention_transfer`, `rkd` or your own.
    project: learn a dense map of the student's channels to the teacher's, with a bias, in params['jl.<name>'], one
      a layer; it goes on export. False takes the features as they are.
    name: the hook's name.

  Returns:
    A Hook.

  Raises:
    ValueError: scale not positive, no pair; at init, a tap that matches nothing or several values; at trace time,
      features that the loss cannot compare.
    TypeError: the teacher is none of these.

  References:
    Romero et al., FitNets: Hints for Thin Deep Nets, 2014, https://arxiv.org/abs/1412.6550

  >>> hint(lambda x: x, {'dense/kernel': 'hidden'}).name
  'hint'
  """
  teachers.check_teacher(teacher, name)
  teachers.temperature_of(loss, None, name)
  if isinstance(teacher, str):
    raise TypeError(f'{name}: hints come from inside a teacher, so it must run: give a Network or a function')
  if not isinstance(pairs, Mapping) or not pairs:
    raise ValueError(f"{name}: pairs are {{the student's tap: the teacher's tap}}, one at least; got {pairs!r}")
  scale = number(scale, f'{name}: scale')
  if not scale > 0:
    raise ValueError(f'{name}: scale is positive; got {scale}')
  entry = f'jl.{name}'
  wanted = list(dict.fromkeys(pairs.values()))

  def taught(values: Any, inputs: Any) -> tuple[Any, dict[str, jax.Array]]:
    def forward(params: Params, state: State, inputs: Any, key: Any, step: Any) -> Any:
      del key, step
      return teachers.forward(teacher, {'params': params, 'model_state': state} if values else {}, inputs)

    def tapped(*args: Any) -> Any:
      return _with_features(forward, args, model_tags(*args), wanted, f'{name}, teacher')

    return teachers.apart(tapped, values.get('params', {}), values.get('model_state', {}), inputs, None, None)

  def learned(inner: Model, params: Params, state: State, inputs: Any, key: Any, step: Any) -> Any:
    def forward(params: Params, state: State, inputs: Any, key: Any, step: Any) -> Any:
      return inner.apply(params, state, inputs, train=True, key=key, step=step)

    args = (drop_extras(params, name), state, inputs, key, step)
    return _with_features(forward, args, model_tags(*args), list(pairs), f'{name}, student')

  def compare(student: jax.Array, teacher: jax.Array, where: tuple[str, str], context: Context) -> Any:
    if len(student) != len(teacher):
      raise ValueError(f'{_said(name, where)}: layers are paired one by one; got {len(student)} and {len(teacher)}')
    terms = []
    for one, other in zip(student, teacher, strict=True):
      try:
        terms.append(teachers.term(loss, one, other, context, name))
      except ValueError as error:
        raise ValueError(f'{_said(name, where)}: {error}') from None
    return sum(terms) / len(terms)

  def total(learned: Any, left: Mapping[str, Any], context: Context) -> Any:
    terms = []
    for where in pairs.items():
      student, teacher = left[f'{name}/student/{where[0]}'], left[f'{name}/teacher/{where[1]}']
      if project:
        student = _projected(learned[where[0]], student)
      terms.append(compare(student, teacher, where, context))
    return scale * sum(terms) / len(terms)

  def leave(features: tuple[dict[str, jax.Array], dict[str, jax.Array]]) -> dict[str, jax.Array]:
    sides = zip(('student', 'teacher'), features, strict=True)
    return {f'{name}/{side}/{tap}': value for side, some in sides for tap, value in some.items()}

  def model(inner: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      params, state = inner.init(key, inputs)
      state = with_const(state, name, teachers.values_of(teacher))

      def both(params: Params, state: State, inputs: Any) -> Any:
        _, given = taught(state[CONST][name], inputs)
        _, own = learned(inner, params, state, inputs, jax.random.key(0), jnp.int32(0))
        return own, given

      own, given = jax.eval_shape(both, params, state, inputs)
      if not project:
        return params, state
      made = {one: _projector(stream(key, f'{name}/{one}'), own[one], given[other]) for one, other in pairs.items()}
      return {**params, entry: made}, state

    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      if not train:
        return inner.apply(drop_extras(params, name), state, inputs, train=False, key=key, step=step)
      logits, given = taught(state[CONST][name], inputs)
      (outputs, state), own = learned(inner, params, state, inputs, key, step)
      for tap, value in {f'{name}/logits': logits, **leave((own, given))}.items():
        state = with_tap(state, tap, value)
      return outputs, state

    def after(params: Params, state: State, step: Any) -> State:
      return inner.after(drop_extras(params, name), state, step)

    def export(params: Params, state: State) -> tuple[Params, State]:
      return inner.export(drop_extras(params, name), drop_extras(state, name))

    return Model(init, apply, after, export)

  def add(inner: Loss) -> Loss:
    def terms(context: Context) -> Terms:
      return {**inner(context), name: total(context.params.get(entry), context.model_state[TAPS], context)}

    return terms

  return Side(name, model=teachers.brought(model, [teacher]), loss=add, reads=True)


def _with_features(
  forward: Callable[..., Any], args: tuple[Any, ...], tags: Any, names: list[str], what: str
) -> tuple[Any, dict[str, jax.Array]]:
  """Runs a forward of (params, state, inputs, key, step), giving features [layers, B, positions..., channels] too."""
  params, state, inputs, *rest = args
  examples = next(jnp.shape(leaf)[0] for leaf in jax.tree.leaves(inputs) if jnp.ndim(leaf))
  larger = jax.tree.map(_doubled, inputs)
  program = taps.read(forward, args, tags, names, what=what)
  doubled = taps.read(forward, (params, state, larger, *rest), tags, names, what=what)
  results, values = program.run(jax.tree.leaves(args))
  return results, {
    tap: taps.as_features(value, program.taps[tap], doubled.taps[tap], examples, what) for tap, value in values.items()
  }


def _doubled(leaf: Any) -> jax.ShapeDtypeStruct:
  """Twice as many examples; a number beside them (a scale) stays one."""
  shape = jnp.shape(leaf)
  return jax.ShapeDtypeStruct((2 * shape[0], *shape[1:]) if shape else (), jnp.result_type(leaf))


def _projector(key: Any, student: Any, teacher: Any) -> dict[str, jax.Array]:
  layers, own, given = student.shape[0], student.shape[-1], teacher.shape[-1]
  kernel = jax.random.normal(key, (layers, own, given), jnp.float32) / jnp.sqrt(max(own, 1))
  return {'kernel': kernel, 'bias': jnp.zeros((layers, given), jnp.float32)}


def _projected(projector: Mapping[str, jax.Array], features: jax.Array) -> jax.Array:
  flat = features.astype(jnp.float32).reshape(len(features), -1, features.shape[-1])
  flat = jnp.einsum('lnc,lcd->lnd', flat, projector['kernel']) + projector['bias'][:, None]
  return flat.reshape(*features.shape[:-1], flat.shape[-1])


def _said(name: str, where: tuple[str, str]) -> str:
  return f'{name}, {where[0]!r} to {where[1]!r}'
