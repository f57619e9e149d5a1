"""Haiku: a function, its parameters named after the modules that it calls."""

from __future__ import annotations

from typing import Any

from jaxlite import errors, trees
from jaxlite.adapters import common
from jaxlite.contract import Model, Params, State


def from_haiku(fn: Any, params: Any = None, state: Any = None, *, train_arg: Any = ...) -> Model:
  """Makes a Model of a Haiku function.

  Params are nested by the parts of Haiku's module names ('mlp/~/linear_0/w'); Haiku's state is
  `model_state['state']`, as it is.

  Args:
    fn: what `hk.transform` or `hk.transform_with_state` returned, or the plain function that they take. It is
      called as `fn(inputs)`.
    params: start values, as Haiku's `init` returns them; what is missing is initialized.
    state: start values of the state, likewise.
    train_arg: as in `from_linen`.

  Returns:
    The Model. `init(key, inputs)` gives Haiku's own initial values for that key.

  Raises:
    TypeError: not a Haiku function.
    ValueError: at `init`, a start value that the function does not have, or of another shape.

  >>> import haiku as hk, jax, jax.numpy as jnp
  >>> model = from_haiku(lambda x: hk.nets.MLP([4, 2])(x))
  >>> trees.paths(model.init(jax.random.key(0), jnp.ones((1, 3)))[0])[:2]
  ['mlp/~/linear_0/b', 'mlp/~/linear_0/w']
  """
  errors.need('from_haiku', 'haiku')
  import haiku as hk

  if isinstance(fn, hk.Transformed):
    fn = hk.with_empty_state(fn)
  elif not isinstance(fn, hk.TransformedWithState):
    if isinstance(fn, tuple | type) or not callable(fn):
      raise TypeError(f'from_haiku takes a function, or what hk.transform returned; got {common.kind_of(fn)}')
    fn = hk.transform_with_state(fn)
  if 'rng' not in common.parameters_of(fn.apply):
    raise TypeError('from_haiku takes what hk.transform returned, before hk.without_apply_rng: leave that out')
  mode = common.mode_of(fn.apply, train_arg)

  def born(key: Any, inputs: Any) -> dict[str, Any]:
    params, state = fn.init(key, inputs, **mode(True))  # Haiku's moving averages have no value before training
    return {'params': common.nested(params), 'state': common.plain(state)}

  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    given = {'params': common.nested(params or {}), 'state': common.plain(state or {})}
    values = common.start_values(given, born, key, inputs, 'from_haiku')
    return values['params'], {'state': values['state']} if values['state'] else {}

  def forward(params: Params, state: State, inputs: Any, train: bool, key: Any) -> tuple[Any, State]:
    outputs, new = fn.apply(to_haiku(params), state.get('state', {}), key, inputs, **mode(train))
    return outputs, {'state': common.plain(new)} if state else state

  return common.build(init, forward)


def to_haiku(params: Params) -> dict[str, dict[str, Any]]:
  """Returns params as Haiku has them: by the module's name, then by their own."""
  modules: dict[str, dict[str, Any]] = {}
  for name, leaf in trees.by_path(params).items():
    owner, _, own = name.rpartition('/')
    modules.setdefault(owner, {})[own] = leaf
  return modules
