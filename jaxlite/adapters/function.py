"""Plain JAX: a function of parameters and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxlite.adapters import common
from jaxlite.contract import Model, Params, State
from jaxlite.graph.effects import without_effects


def from_function(apply: Callable[..., Any], params: Any, model_state: Any = None, *, train_arg: Any = ...) -> Model:
  """Makes a Model of a plain JAX function and its parameters.

  Args:
    apply: (params, inputs) -> outputs, with any of the keyword arguments `train` (or another name that
      `from_linen` knows), `key` and `state`; with `state` it returns (outputs, state).
    params: any pytree of arrays; or a constructor, `key -> params` or `(key, inputs) -> params`. The Model's
      params are nested dicts named by path, with bare indices; `apply` gets the pytree that it expects. A
      constructor that reads inputs returns nested dicts.
    model_state: start value of `state`, any pytree. Without it, a constructor returns (params, state).
    train_arg: as in `from_linen`.

  Returns:
    The Model.

  Raises:
    TypeError: `model_state` for a function without `state`, or params that are no arrays.
    ValueError: at `init`, two parameters that are one array.

  >>> import jax, jax.numpy as jnp
  >>> model = from_function(lambda layers, x: x @ layers[0], [jnp.ones((3, 2))])
  >>> params, model_state = model.init(jax.random.key(0), jnp.ones((1, 3)))
  >>> params['0'].shape, model_state
  ((3, 2), {})
  """
  if not callable(apply):
    raise TypeError(f'from_function takes a function (params, inputs) -> outputs, got {common.kind_of(apply)}')
  pure = without_effects(apply, 'from_function')
  accepted = common.parameters_of(apply)
  mode, stateful = common.mode_of(apply, train_arg), 'state' in accepted
  if model_state is not None and not stateful:
    raise TypeError('model_state is for a function with an argument named state; this one has none: add it')
  made = callable(params) and jax.tree_util.treedef_is_leaf(jax.tree.structure(params))
  reads_inputs = made and len(common.parameters_of(params)) > 1

  def values(key: Any, inputs: Any) -> tuple[Any, Any]:
    found = params if not made else params(key, inputs) if reads_inputs else params(key)
    return found if made and stateful and model_state is None else (found, model_state)

  layout = None
  if not reads_inputs:
    layout = common.layout_of((jax.eval_shape(values, jax.random.key(0), None) if made else values(None, None))[0])

  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    found, state = values(key, inputs)
    nested = common.nested(found)
    if layout is None and jax.tree.structure(nested) != jax.tree.structure(found):
      raise TypeError('a constructor that reads inputs returns nested dicts with string keys; got another pytree')
    return nested, {'state': {} if state is None else state} if stateful else {}

  def forward(params: Params, state: State, inputs: Any, train: bool, key: Any) -> tuple[Any, State]:
    given = {**mode(train), **({'key': key} if 'key' in accepted else {})}
    params = params if layout is None else common.restore(layout, params)
    if not stateful:
      return pure(params, inputs, **given), state
    pair = pure(params, inputs, state=state['state'], **given)
    if not isinstance(pair, tuple) or len(pair) != 2:
      raise TypeError(f'a function that takes state returns (outputs, state); this one returned {common.kind_of(pair)}')
    return pair[0], {'state': pair[1]}

  return common.build(init, forward)
