"""Equinox: a module is a pytree, and acts on one example."""

from __future__ import annotations

from inspect import Parameter
from typing import Any

import jax

from jaxlite import errors, trees
from jaxlite.adapters import common
from jaxlite.contract import Model, Params, State

# Not `deterministic`: some of Equinox's own layers still take it, with a deprecation warning.
_MODES = ('train', 'training', 'is_training', 'inference')


def from_equinox(
  module: Any,
  state: Any = None,
  *,
  frozen: trees.Rule = None,
  batched: bool = False,
  axis_name: str = 'batch',
  train_arg: Any = ...,
) -> Model:
  """Makes a Model of an Equinox module.

  Float arrays are trained; integer and bool arrays are `model_state['buffers']`. Equinox marks no float buffer:
  name those in `frozen`, or weight decay will move them. What `eqx.nn.State` holds is `model_state['state']`.
  A module acts on one example, so it is mapped over the batch, with a key for each example.

  Args:
    module: an `eqx.Module`, called as `module(x)` with those of `key=`, `state=` that it takes; or a
      constructor, `key -> module`.
    state: the `eqx.nn.State` that `eqx.nn.make_with_state` took out of an instance.
    frozen: a rule on paths (see `trees.select`): float arrays that are no parameters.
    batched: the module takes the whole batch, [B, ...]; it is not mapped.
    axis_name: name of the mapped axis, as batch normalization was told it.
    train_arg: as in `from_linen`; beside it, `eqx.nn.inference_mode` is set at each forward.

  Returns:
    The Model. From an instance, `init` gives copies of its values.

  Raises:
    TypeError: neither a module nor a constructor of one.
    ValueError: `frozen` matches nothing, or state was taken out and not given; at `init`, two parameters that
      are one array.

  >>> import equinox as eqx, jax, jax.numpy as jnp
  >>> model = from_equinox(eqx.nn.Linear(3, 2, key=jax.random.key(0)))
  >>> params, model_state = model.init(jax.random.key(1), jnp.ones((5, 3)))
  >>> model.apply(params, model_state, jnp.ones((5, 3)), train=False, key=None)[0].shape
  (5, 2)
  """
  errors.need('from_equinox', 'equinox')
  import equinox as eqx

  live = isinstance(module, eqx.Module)
  if not live and not callable(module):
    raise TypeError(f'from_equinox takes an eqx.Module or a constructor of one, got {common.kind_of(module)}')
  make = eqx.nn.make_with_state((lambda key: module) if live else module)

  def pair(key: Any) -> tuple[Any, Any]:
    return make(key) if state is None else (module, state)

  try:
    start = pair(None) if live else None
  except ValueError:
    raise ValueError(
      'from_equinox needs the state that eqx.nn.make_with_state took out of this module: give it as state='
    ) from None
  node, carried = start or eqx.filter_eval_shape(pair, jax.random.key(0))
  if not callable(node):
    raise TypeError(f'from_equinox takes an eqx.Module with a __call__; got {common.kind_of(node)}')
  arrays, static = eqx.partition(node, common.is_array)
  layout, held = common.layout_of(arrays), common.layout_of(carried)
  floats = [name for name, leaf in zip(layout.names, jax.tree.leaves(arrays), strict=True) if common.is_inexact(leaf)]
  trained = frozenset(floats) - (
    trees.select(floats, frozen, what='from_equinox: frozen') if frozen not in (None, (), []) else frozenset()
  )
  call = type(node).__call__
  accepted = common.parameters_of(call)
  mode = common.mode_of(call, train_arg, _MODES)
  stateful = 'state' in accepted and (bool(held.names) or accepted['state'].default is Parameter.empty)
  if held.names and not stateful:
    raise ValueError('a module that holds state takes it as an argument named state; its __call__ has none: add it')

  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    del inputs
    node, carried = start or pair(key)  # not jitted: an array that stands at two places must show
    params, buffers = trees.split(common.nested(eqx.filter(node, common.is_array)), trained)
    groups = {'buffers': buffers, 'state': common.nested(carried)}
    return params, {name: group for name, group in groups.items() if group}

  def forward(params: Params, state: State, inputs: Any, train: bool, key: Any) -> tuple[Any, State]:
    node = eqx.combine(common.restore(layout, trees.merge(params, state.get('buffers', {}))), static)
    node = eqx.nn.inference_mode(node, value=not train)

    def one(x: Any, key: Any, carried: Any) -> tuple[Any, Any]:
      given = {**mode(train), **({'key': key} if 'key' in accepted else {})}
      return node(x, state=carried, **given) if stateful else (node(x, **given), carried)

    carried = common.restore(held, state.get('state', {}))
    if batched:
      outputs, carried = one(inputs, key, carried)
    else:
      keys = jax.random.split(key, len(jax.tree.leaves(inputs)[0])) if key is not None and 'key' in accepted else None
      outputs, carried = jax.vmap(one, (0, 0, None), (0, None), axis_name=axis_name)(inputs, keys, carried)
    return outputs, {**state, 'state': common.nested(carried)} if stateful and held.names else state

  return common.build(init, forward)


def to_equinox(module: Any, state: Any, params: Params, model_state: State) -> tuple[Any, Any]:
  """Returns (module, state) that hold values which came from them; what has no arrays is as it was."""
  import equinox as eqx

  arrays, static = eqx.partition(module, common.is_array)
  given = trees.merge(params, model_state.get('buffers', {}))
  node = eqx.combine(common.restore(common.taken_back(arrays, given), given), static)
  held = model_state.get('state', {})
  return node, None if state is None else common.restore(common.taken_back(state, held), held)
