"""Flax NNX: a module holds its values, shares them, and is either in training or in evaluation."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite import errors, trees
from jaxlite.adapters import common
from jaxlite.adapters._serialized import serializable
from jaxlite.contract import Model, Params, State, stream


def from_nnx(module: Any, *, train_arg: Any = ...) -> Model:
  """Makes a Model of a Flax NNX module.

  Float `nnx.Param`s are trained, under their own names ('layers/0/kernel'); all other variables and arrays are
  `model_state['state']`. The key of every stored `Rngs` is made anew from the step's key at each forward, and
  `train()` or `eval()` is in force. A module shared by two parents is one set of parameters.

  Args:
    module: an `nnx.Module`, left as it is; or a constructor, `rngs -> nnx.Module`.
    train_arg: as in `from_linen`. An argument `rngs` of `__call__` gets an `nnx.Rngs`.

  Returns:
    The Model. From an instance, `init` gives copies of its values as they are now.

  Raises:
    TypeError: neither a module nor a constructor of one.
    ValueError: at `init`, two parameters that are one array.

  >>> import jax, jax.numpy as jnp
  >>> from flax import nnx
  >>> model = from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
  >>> sorted(model.init(jax.random.key(0), jnp.ones((1, 3)))[0])
  ['bias', 'kernel']
  """
  errors.need('from_nnx', 'flax')
  from flax import nnx

  serializable()

  def construct(key: Any) -> Any:
    rngs = nnx.Rngs(key)
    signed = module.__init__ if isinstance(module, type) else module  # NNX's metaclass hides a class's own signature
    return module(rngs=rngs) if 'rngs' in common.parameters_of(signed) else module(rngs)

  value = functools.partial(_value, nnx)

  def values(node: Any, where: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    found = dict(nnx.to_flat_state(nnx.state(node)))
    return {name: value(found[path]) for name, path in where.items()}

  live = isinstance(module, nnx.Module)
  if not live and not callable(module):
    raise TypeError(f'from_nnx takes an nnx.Module or a constructor of one, got {common.kind_of(module)}')
  probe = nnx.clone(module) if live else nnx.eval_shape(lambda: construct(jax.random.key(0)))
  if not isinstance(probe, nnx.Module):
    raise TypeError(f'from_nnx takes a constructor of an nnx.Module; it returned {common.kind_of(probe)}')
  nnx.pop(probe, nnx.Intermediate)  # what an earlier forward left
  at = {'params': {}, 'state': {}, 'keys': {}, 'counts': {}}  # group -> name -> NNX's own path
  for path, leaf in nnx.to_flat_state(nnx.state(probe)):
    trained = isinstance(leaf, nnx.Param) and all(map(common.is_inexact, jax.tree.leaves(value(leaf))))
    kinds = {'keys': isinstance(leaf, nnx.RngKey), 'counts': isinstance(leaf, nnx.RngCount), 'params': trained}
    at[next((kind for kind, found in kinds.items() if found), 'state')]['/'.join(map(str, path))] = path
  layouts = {group: common.layout_of(values(probe, at[group])) for group in ('params', 'state')}
  streams = {name: key.shape for name, key in values(probe, at['keys']).items()}
  counts = values(probe, at['counts'])
  start = (values(module, at['params']), values(module, at['state'])) if live else None
  call = type(probe).__call__
  mode, takes_rngs = common.mode_of(call, train_arg), 'rngs' in common.parameters_of(call)
  graphs = {}
  for train in (True, False):
    probe.train() if train else probe.eval()
    graphs[train] = nnx.graphdef(probe)

  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    del inputs
    node = None if live else construct(key)  # not jitted: an array that stands at two places must show
    params, state = start or (values(node, at['params']), values(node, at['state']))
    return common.nested(params), {'state': common.nested(state)} if state else {}

  def forward(params: Params, state: State, inputs: Any, train: bool, key: Any) -> tuple[Any, State]:
    known = {**common.restore(layouts['params'], params), **common.restore(layouts['state'], state.get('state', {}))}
    if key is not None and not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
      key = jax.random.wrap_key_data(key)
    for name, shape in streams.items():  # without a key the stream is empty, and drawing from it an error
      own = stream(key, name)
      known[name] = jax.random.split(own, shape) if shape and own is not None else own
    known |= {name: jnp.zeros(count.shape, count.dtype) for name, count in counts.items()}
    where = {name: path for group in at.values() for name, path in group.items()}
    node = nnx.merge(graphs[train], nnx.from_flat_state({where[name]: leaf for name, leaf in known.items()}))
    rngs = {'rngs': nnx.Rngs() if key is None else nnx.Rngs(key)} if takes_rngs else {}
    outputs = node(inputs, **mode(train), **rngs)
    return outputs, {'state': common.nested(values(node, at['state']))} if train and state else state

  return common.build(init, forward)


def to_nnx(module: Any, params: Params, model_state: State) -> Any:
  """Returns values that came from an NNX module as the `nnx.State` that `nnx.update(module, state)` takes."""
  from flax import nnx

  if not isinstance(module, nnx.Module):
    raise TypeError(f'an nnx.Module takes values back; got {common.kind_of(module)}')
  probe = nnx.clone(module)
  nnx.pop(probe, nnx.Intermediate)
  leaves = {path: leaf for path, leaf in nnx.to_flat_state(nnx.state(probe)) if not _is_random(nnx, leaf)}
  held = {'/'.join(map(str, path)): _value(nnx, leaf) for path, leaf in leaves.items()}
  given = trees.merge(params, model_state.get('state', {}))
  found = common.restore(common.taken_back(held, given), given)
  return nnx.from_flat_state(
    {
      path: leaf.replace(found[name]) if isinstance(leaf, nnx.Variable) else found[name]
      for (path, leaf), name in zip(leaves.items(), held, strict=True)
    }
  )


def _is_random(nnx: Any, leaf: Any) -> bool:
  return isinstance(leaf, nnx.RngKey | nnx.RngCount)


def _value(nnx: Any, leaf: Any) -> Any:
  return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
