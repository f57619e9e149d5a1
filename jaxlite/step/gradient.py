"""What a step begins from and differentiates: first values, and one forward and backward pass, wrapped in hooks.

The train step is built of these, and so is `wrap`, which hands them to a loop of somebody else's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite import trees
from jaxlite.contract import TAPS, Batch, Context, Grad, Loss, Model, Params, Recipe, State, Terms, stream
from jaxlite.graph import alike
from jaxlite.step.state import HEALTH, health, inputs_of, refuse_empty


def check_given(key: Any, params: Params | None) -> None:
  """Raises where a state cannot begin from what a person gave; before any trace, which would hide it."""
  if not jnp.issubdtype(getattr(key, 'dtype', jnp.float32), jax.dtypes.prng_key):
    raise ValueError(f'init takes a typed key: pass jax.random.key(seed); got {type(key).__name__}')
  if params is not None:
    trees.check_distinct(params, 'the parameters')


def first_values(
  model: Model, recipe: Recipe, key: jax.Array, inputs: Any, params: Params | None, model_state: State | None
) -> tuple[Params, State]:
  """Returns what training starts from, with what the hooks of a recipe add.

  Args:
    model: without hooks.
    recipe: its hooks wrap the model.
    key: the root key of the run.
    inputs: one batch, [B, ...].
    params: start values in place of the model's own.
    model_state: likewise, with `params`.

  Raises:
    ValueError: an aliased leaf, one that cannot learn, or nothing that learns.
  """
  start = model if params is None else model._replace(init=_given(model, params, model_state))
  params, state = recipe.model(start).init(stream(key, 'init'), inputs)
  trees.check_distinct(params, 'the parameters')
  _check_learnable(params)
  return params, state


def meshed(fn: Callable[..., Any]) -> Callable[..., Any]:
  """The same function, whose error on a mesh of explicit axes says what to write: JAX names a product in a model."""

  @functools.wraps(fn)
  def run(*args: Any) -> Any:
    try:
      return fn(*args)
    except Exception as error:
      if type(error).__name__ == 'ShardingTypeError':
        error.add_note(
          'The batch or the state lies on a mesh of explicit axes, which jax.make_mesh makes unless it is told: with '
          'axis_types=(jax.sharding.AxisType.Auto,) for each of its axes the compiler finds the shardings in between.'
        )
      raise

  return run


def gradient_of(model: Model, loss: Loss) -> Grad:
  """The innermost Grad: one forward and one backward pass."""
  forward = forward_of(model, loss)

  def gradient(*args: Any) -> tuple[Params, State, Terms]:
    grads, (new_state, terms) = jax.grad(forward, has_aux=True)(*args)
    return grads, new_state, terms

  return gradient


def watched_gradient_of(model: Model, loss: Loss) -> Grad:
  """As `gradient_of`, with the look for the first failure (`state.health`) between the two passes.

  So everything that comes of a gradient is made after the look, and may be written over what it reads: an order that
  costs one number, where `alike.following` costs an operation for each leaf.
  """
  forward = forward_of(model, loss)

  def gradient(params: Params, state: State, batch: Batch, key: Any, step: Any) -> tuple[Params, State, Terms]:
    asked = lambda params: forward(params, state, batch, key, step)  # noqa: E731
    total, pull, (new_state, terms) = jax.vjp(asked, params, has_aux=True)
    if not jnp.issubdtype(total.dtype, jnp.floating):
      jax.grad(asked, has_aux=True)(params)  # says what is wrong
    looking, record = health(state[HEALTH], total, params, step)
    (grads,) = pull(alike.following(looking, jnp.ones_like(total)))
    return grads, {**new_state, HEALTH: record}, terms

  return gradient


def forward_of(model: Model, loss: Loss) -> Callable[..., Any]:
  """(params, model_state, batch, key, step) -> (what is minimized, (model_state, terms))."""

  def forward(params: Params, state: State, batch: Batch, key: Any, step: Any) -> Any:
    refuse_empty(inputs_of(batch))
    outputs, new_state = model.apply(params, state, inputs_of(batch), train=True, key=key, step=step)
    terms = loss(Context(outputs, batch, params, new_state, key, step))
    for name, term in terms.items():
      if jnp.ndim(term):
        raise ValueError(
          f'the terms of a loss are single numbers, and their sum is minimized; {name!r} is {jnp.result_type(term)}'
          f'{list(jnp.shape(term))}: take a mean, and let a schedule (alpha=) give one number'
        )
    new_state = {name: value for name, value in new_state.items() if name != TAPS}
    return functools.reduce(jnp.add, terms.values()), (new_state, terms)

  return forward


def no_gradient_of(forward: Callable[..., Any]) -> Grad:
  """As the gradient, without its backward pass: what hooks on the gradient are given when only the value is asked."""

  def no_gradient(params: Params, *args: Any) -> tuple[Params, State, Terms]:
    return jax.tree.map(jnp.zeros_like, params), *forward(params, *args)[1]

  return no_gradient


def value_of(gradient: Grad) -> Callable[..., jax.Array]:
  """(params, model_state, batch, key, step) -> what is minimized, over the same micro-batches, with the same draws."""

  def value(*args: Any) -> jax.Array:
    return functools.reduce(jnp.add, gradient(*args)[2].values())

  return value


def _given(model: Model, params: Params, model_state: State | None) -> Callable[..., Any]:
  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    if model_state is not None:
      return params, model_state
    state: State = jax.eval_shape(model.init, key, inputs)[1]
    return params, model.init(key, inputs)[1] if jax.tree.leaves(state) else state  # nothing is drawn for nothing

  return init


def _check_learnable(params: Params) -> None:
  leaves = trees.by_path(params)
  if not leaves:
    raise ValueError(
      'a model has a parameter that learns; this one has none: leave one out of jl.freeze, or unfreeze it'
    )
  for path, leaf in leaves.items():
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
      raise ValueError(
        f'parameters are what learns, arrays of floats; {path!r} is {leaf.dtype}{list(jnp.shape(leaf))}: keep it in '
        f"the model's state, or take it out with jl.freeze('^{path}$')"
      )
