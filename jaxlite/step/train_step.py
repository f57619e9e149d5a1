"""The train step: what is computed, as pure functions. Knows the contract and nothing of frameworks or files.

Read top to bottom: how a state begins, the update, evaluation; the gradient is `gradient.py`. Which compiled programs
run these functions, and how their arrays are donated, is `programs.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlite.adapters import adapt
from jaxlite.contract import (
  POINT,
  Batch,
  Context,
  Grad,
  Loss,
  Model,
  Network,
  Params,
  Recipe,
  Selective,
  State,
  Terms,
  join_const,
  split_const,
)
from jaxlite.graph import alike
from jaxlite.graph.init_numpy import copied, on_host
from jaxlite.graph.model import weights_of
from jaxlite.optim import evaluation_point, refuse_unfit, rejected
from jaxlite.step.gradient import (
  check_given,
  first_values,
  forward_of,
  gradient_of,
  no_gradient_of,
  value_of,
  watched_gradient_of,
)
from jaxlite.step.programs import Programs, PureStep, programs_of
from jaxlite.step.state import HEALTH, TrainState, health, inputs_of, refuse_empty
from jaxlite.tasks.lift import lift_loss


class Train(NamedTuple):
  """The functions of a training run.

  Attributes:
    init: (key, batch, params=None, model_state=None) -> TrainState.
    step: (state, batch) -> (state, metrics). Donates the state but for its key and constants; metrics are scalars on
      the device: 'loss' and each of its terms.
    steps: (state, batches) -> (state, metrics), several steps per dispatch; leaves are [k, B, ...] and [k].
    eval: (state, batch) -> (outputs, {'task': loss}), as deployed: no dropout, averages in place of live weights.
    model: the Model wrapped in the recipe's hooks.
    programs: what `jaxlite.train` compiles ahead and tunes; a loop of your own needs none of it.
  """

  init: Callable[..., TrainState]
  step: Callable[[TrainState, Batch], tuple[TrainState, Terms]]
  steps: Callable[[TrainState, Batch], tuple[TrainState, Terms]]
  eval: Callable[[TrainState, Batch], tuple[Any, Terms]]
  model: Model
  programs: Programs


def train_step(
  model: Model | Network,
  loss: Callable[[Any, Batch], jax.Array],
  recipe: Recipe,
  *,
  rewrites: bool | Mapping[str, str] = True,
) -> Train:
  """Builds the functions that train a model by a recipe.

  Args:
    model: from an adapter; or a Network, whose values are the start.
    loss: (outputs, batch) -> float[B]; or a scalar, where examples have no weight and are not accumulated.
    recipe: from `jl.chain`; it holds an optimizer.
    rewrites: whether the programs for CPU take faster forms of pools and convolutions (see `for_cpu`): by shape, or
      as these choices say. Programs for other platforms are what they are without.

  Returns:
    A Train.

  Raises:
    ValueError: the recipe updates nothing; at init, a part that matches no parameter, an aliased leaf, one that cannot
      learn, or a part of Optax that no step can serve; at the first step, a scalar loss where shares are
      needed, a batch without an example.

  >>> import jax, jax.numpy as jnp, optax
  >>> import jaxlite as jl
  >>> model = jl.from_function(lambda p, x: x @ p['w'], {'w': jnp.zeros((3, 2))})
  >>> train = train_step(model, jl.cross_entropy, jl.chain(optax.sgd(0.1)))
  >>> batch = {'inputs': jnp.ones((4, 3)), 'labels': jnp.zeros(4, int)}
  >>> state = train.init(jax.random.key(0), batch)
  >>> state, metrics = train.step(state, batch)
  >>> int(state.step), round(float(metrics['loss']), 3)
  (1, 0.693)
  """
  if not isinstance(recipe, Recipe):
    raise TypeError(f'train_step takes a recipe from jl.chain(...); got {type(recipe).__name__}')
  model = adapt(model) if isinstance(model, Network) else model
  if not isinstance(model, Model):
    raise TypeError(f'train_step takes a Model; got {type(model).__name__}: jaxlite.adapt(network) makes one')
  if not any(isinstance(part, optax.GradientTransformation) for part in recipe.parts):
    raise ValueError('the recipe holds no optimizer, so nothing would learn: add one, e.g. optax.adam(1e-3)')
  wrapped = _read_at_point(recipe.model(model))
  terms = recipe.loss(lift_loss(loss))
  inner = gradient_of(wrapped, terms)
  once = recipe.grad(inner) is inner  # one forward and one backward pass: no hook on the gradient
  value = value_of(recipe.grad(no_gradient_of(forward_of(wrapped, terms))))
  update = _update_of(wrapped, recipe.tx, value, looked=once)
  step = _step_of(watched_gradient_of(wrapped, terms) if once else recipe.grad(inner), update)
  programs = programs_of(
    PureStep(recipe, wrapped, inner, update, step, _evaluation_of(wrapped, lift_loss(loss))), rewrites
  )
  return Train(_init_of(model, recipe), programs.step, programs.steps, programs.eval, wrapped, programs)


def _init_of(model: Model, recipe: Recipe) -> Callable[..., TrainState]:
  """How a state begins: (key, batch, params=None, model_state=None) -> TrainState."""

  def init(key: jax.Array, batch: Batch, params: Params | None = None, model_state: State | None = None) -> TrainState:
    check_given(key, params)
    return begun(key, inputs_of(batch), params, model_state)

  @functools.partial(on_host, unread=(1,))
  def begun(key: jax.Array, inputs: Any, params: Params | None, model_state: State | None) -> TrainState:
    params, state = first_values(model, recipe, key, inputs, params, model_state)
    state, const = split_const({**state, HEALTH: jnp.full(2, -1, jnp.int32)})
    params = jax.tree.map(copied, params)  # a step donates its state: the user's arrays live on
    selects = any(isinstance(part, Selective) for part in recipe.parts)
    weights = weights_of(model, key, inputs) if selects else None
    opt_state = on_host(lambda params: recipe.tx.init(params, weights))(params)
    refuse_unfit(opt_state)
    point = evaluation_point(opt_state, params)
    state = state if point is None else {**state, POINT: point}
    live = jax.tree.map(copied, (state, opt_state))
    return TrainState(jnp.int32(0), copied(key), params, *live, const or {})

  return init


def _step_of(gradient: Grad, update: Callable[..., Any]) -> Callable[..., Any]:
  """One optimizer step: (live, fixed, batch) -> (live, metrics), as `PureStep` says."""

  def whole(live: TrainState, fixed: Any, batch: Batch) -> tuple[TrainState, Terms]:
    refuse_empty(inputs_of(batch))  # before a hook cuts the batch up
    key, const = fixed
    grads, state, terms = gradient(live.params, join_const(live.model_state, const), batch, key, live.step)
    return update(live, fixed, grads, split_const(state)[0], terms, (batch, live.model_state))

  return whole


def _update_of(
  model: Model, tx: optax.GradientTransformationExtraArgs, value: Callable[..., jax.Array], *, looked: bool
) -> Callable[..., Any]:
  """What follows the gradient: (live, fixed, grads, model_state, terms, asked) -> (live, metrics).

  `looked`: whether the gradient has looked for the first failure (`watched_gradient_of`).
  """

  def update(
    live: TrainState, fixed: Any, grads: Params, state: State, terms: Terms, asked: tuple[Batch, State]
  ) -> tuple[TrainState, Terms]:
    key, const = fixed
    batch, before = asked
    total = functools.reduce(jnp.add, terms.values())
    looking = None
    if not looked:
      looking, record = health(state[HEALTH], total, live.params, live.step)
      state = {**state, HEALTH: record}
    value_fn = lambda params: value(params, join_const(before, const), batch, key, live.step)  # noqa: E731
    extra = {'value': total, 'grad': grads, 'value_fn': value_fn}
    if POINT in before:
      extra['point'] = before[POINT]
    updates, opt_state = tx.update(grads, live.opt_state, live.params, **extra)
    if looking is not None:
      updates = alike.following(looking, updates)  # params are written when they have been read
    params = optax.apply_updates(live.params, updates)
    step = live.step + 1
    point = evaluation_point(opt_state, params)
    state = state if point is None else {**state, POINT: point}
    state = split_const(model.after(params if point is None else point, join_const(state, const), step))[0]
    if (bad := rejected(opt_state)) is not None:  # what a forward left that nobody trusts goes with it
      leaves = jax.tree.leaves(params)
      bad &= alike.first(lambda entries: ~jnp.isfinite(entries), leaves) == len(leaves)
      state = jax.tree.map(lambda old, new: jnp.where(bad, old, new), before, state)
    metrics = terms if len(terms) == 1 else {'loss': total, **terms}
    return TrainState(step, None, params, state, opt_state, None), metrics

  return update


def _read_at_point(model: Model) -> Model:
  """Reads a model at the point that an update part keeps in its state, where it does not train."""

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    seen = params if train else state.get(POINT, params)
    return model.apply(seen, state, inputs, train=train, key=key, step=step)

  def export(params: Params, state: State) -> tuple[Params, State]:
    seen = state.get(POINT, params)
    # What the step notes for itself is no part of what a framework's own `apply` takes.
    return model.export(seen, {name: value for name, value in state.items() if name not in (POINT, HEALTH)})

  return model._replace(apply=apply, export=export)


def _evaluation_of(model: Model, loss: Loss) -> Callable[..., Any]:
  """The forward as deployed, with the user's loss alone: (params, model_state, const, step, batch) -> ..."""

  def evaluated(params: Params, state: State, const: Any, step: Any, batch: Batch) -> tuple[Any, Terms]:
    state = join_const(state, const)
    outputs, _ = model.apply(params, state, inputs_of(batch), train=False, key=None, step=step)
    return outputs, loss(Context(outputs, batch, params, state, None, step))

  return evaluated
