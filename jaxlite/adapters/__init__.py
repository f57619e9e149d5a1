"""Adapters: a network of any framework becomes a `contract.Model`. Nothing above this room knows a framework.

Each adapter answers four questions for its framework: which arrays are trained (`params`), which are not
(`model_state`), how training is told from evaluation, and where random numbers come from. A framework is
imported when its adapter is called, never before."""

from __future__ import annotations

import sys
from typing import Any

from jaxlite.adapters import common
from jaxlite.adapters._give_back import GivenBack, give_back
from jaxlite.adapters.equinox import from_equinox
from jaxlite.adapters.function import from_function
from jaxlite.adapters.haiku import from_haiku
from jaxlite.adapters.keras import from_keras
from jaxlite.adapters.linen import from_linen
from jaxlite.adapters.nnx import from_nnx
from jaxlite.contract import Model, Network, Params, State

__all__ = [
  'GivenBack',
  'adapt',
  'from_equinox',
  'from_function',
  'from_haiku',
  'from_keras',
  'from_linen',
  'from_nnx',
  'give_back',
]


def adapt(model: Any) -> Model:
  """Picks the adapter for a network of any framework, importing none.

  Args:
    model: a Model; a Network, whose values are the start and whose inputs are raw; a Linen, NNX or Equinox module;
      (Equinox module, its `eqx.nn.State`); what `hk.transform` returned; a Keras model or layer; or (function, params)
      as `from_function` takes them.

  Returns:
    The Model.

  Raises:
    TypeError: none of these.

  >>> import jax.numpy as jnp
  >>> type(adapt((lambda p, x: x @ p['w'], {'w': jnp.ones((2, 2))}))).__name__
  'Model'
  """
  if isinstance(model, Model):
    return model
  if isinstance(model, Network):
    return _started(model)
  # A module of a framework that was never imported cannot stand here, so sys.modules is enough.
  linen, nnx, eqx, hk = (sys.modules.get(name) for name in ('flax.linen', 'flax.nnx', 'equinox', 'haiku'))
  if linen and isinstance(model, linen.Module):
    return from_linen(model)
  if nnx and isinstance(model, nnx.Module):
    return from_nnx(model)
  if eqx and isinstance(model, eqx.Module):
    return from_equinox(model)
  if hk and isinstance(model, hk.Transformed | hk.TransformedWithState):
    return from_haiku(model)
  keras = getattr(sys.modules.get('keras'), 'Layer', None)
  if keras and isinstance(model, keras):
    return from_keras(model)
  if type(model) is tuple and len(model) == 2:
    if eqx and isinstance(model[0], eqx.Module) and isinstance(model[1], eqx.nn.State):
      return from_equinox(*model)
    if callable(model[0]):
      return from_function(*model)
  if callable(model) and not isinstance(model, type):
    raise TypeError(
      f'a model of a function is (function, params), function(params, inputs) -> outputs; got {common.kind_of(model)} '
      'alone: its parameters are what is to learn'
    )
  raise TypeError(
    'a model is a Model, a Linen, NNX or Equinox module, a Haiku transform, a Keras model, or (function, params); got '
    f'{common.kind_of(model)}: call from_nnx, from_equinox, from_haiku or from_function on a constructor'
  )


def _started(network: Network) -> Model:
  """The Model of a Network, begun with its values, which may be others than those that it was loaded with."""
  model = network.model

  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    del key, inputs
    return network.params, network.model_state

  def apply(*args: Any, **kwargs: Any) -> Any:
    return model.apply(*args, **kwargs)

  vars(apply).update({'around': (), **vars(model.apply)})  # what is known of it, and that nobody standardizes for it
  return model._replace(init=init, apply=apply)
