"""Flax Linen: a module holds no values; its variables are collections."""

from __future__ import annotations

from typing import Any

import jax

from jaxlite import errors, trees
from jaxlite.adapters import common
from jaxlite.adapters._serialized import serializable
from jaxlite.contract import Model, Params, State


def from_linen(module: Any, variables: Any = None, *, train_arg: Any = ...) -> Model:
  """Makes a Model of a Flax Linen module.

  Every collection but `params` becomes a collection of `model_state`. What `sow` leaves is dropped. Boxes of
  `nn.with_partitioning` are opened. One key serves every stream of random numbers, whatever its name.

  Args:
    module: an `nn.Module` instance, bound or not. It is called as `module(inputs)`.
    variables: start values, e.g. `{'params': ..., 'batch_stats': ...}`; what is missing is initialized.
    train_arg: name of the argument of `__call__` that tells training from evaluation, None for none. By
      default `train`, `training`, `is_training`, `deterministic` and `use_running_average` are recognized.

  Returns:
    The Model. `init(key, inputs)` gives Linen's own initial values for that key.

  Raises:
    TypeError: not a Linen module.
    ValueError: at `init`, a start value that the module does not have, or of another shape.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> model = from_linen(nn.Dense(2))
  >>> params, model_state = model.init(jax.random.key(0), jnp.ones((1, 3)))
  >>> sorted(params), model_state
  (['bias', 'kernel'], {})
  """
  errors.need('from_linen', 'flax')
  from flax import errors as flax_errors
  from flax import linen as nn

  serializable()

  if not isinstance(module, nn.Module):
    raise TypeError(f'from_linen takes an instance of flax.linen.Module, got {common.kind_of(module)}')
  if module.scope is not None:
    module, bound = module.unbind()
    variables = bound if variables is None else variables
  mode = common.mode_of(type(module).__call__, train_arg)

  def born(key: Any, inputs: Any) -> dict[str, Any]:
    values = common.plain(nn.unbox(module.init({'params': key}, inputs, **mode(True))))
    if mode(True) != mode(False):  # a collection may be born in one of the two only
      values = trees.merge(common.plain(nn.unbox(module.init({'params': key}, inputs, **mode(False)))), values)
    values = {name: value for name, value in values.items() if name not in common.TRANSIENT}
    names = [name for name in values if name != 'params']
    if not any(isinstance(node, tuple) for node in jax.tree.leaves(values, is_leaf=lambda x: isinstance(x, tuple))):
      return values

    def again(values: Any, key: Any, inputs: Any) -> Any:
      return module.apply(values, inputs, rngs={'params': key}, mutable=names, **mode(True))[1]

    # `sow` appends to a tuple at every call: a collection that grows is what a forward leaves, not state.
    grown = common.plain(nn.unbox(jax.eval_shape(again, values, key, inputs)))
    sown = {name for name in names if jax.tree.structure(grown[name]) != jax.tree.structure(values[name])}
    return {name: value for name, value in values.items() if name not in sown}

  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    given = common.plain(nn.unbox(variables or {}))
    values = common.start_values(given, born, key, inputs, 'from_linen')
    return values.pop('params', {}), values

  def forward(params: Params, state: State, inputs: Any, train: bool, key: Any) -> tuple[Any, State]:
    rngs = {} if key is None else {'params': key}  # the stream that Linen falls back to for every other name
    given = {'params': params, **state}
    if not (train and state):
      try:
        return module.apply(given, inputs, rngs=rngs, **mode(train)), state
      except flax_errors.ModifyScopeVariableError:
        pass  # it writes in evaluation too; what it writes is not kept
    outputs, new = module.apply(given, inputs, rngs=rngs, mutable=list(state), **mode(train))
    return outputs, {name: common.plain(nn.unbox(new[name])) for name in state}

  model = common.build(init, forward)
  model.apply.module = module  # type: ignore[attr-defined]  # so that a run can say what it is made of
  return model
