"""The way back: what was trained goes into its own framework's module again, with what stands before and after it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxlite import trees
from jaxlite.adapters import common
from jaxlite.adapters.equinox import to_equinox
from jaxlite.adapters.haiku import to_haiku
from jaxlite.adapters.keras import assign
from jaxlite.adapters.nnx import to_nnx
from jaxlite.contract import CONST, Hook, Model, Network, State
from jaxlite.optim import normalize, project
from jaxlite.tasks import units

_HEALTH = 'jl.health'  # of a state that a step has trained: nothing of the network's
_OWN = ('keras',)  # owners of constants that adapters keep, not hooks


class GivenBack(NamedTuple):
  """A network in its own framework: `after(module(before(inputs)))` is what it predicts.

  Attributes:
    values: what the framework takes: Linen's variables, the State for `nnx.update`, an Equinox module (and its state),
      Haiku's params (and state), the params of a function (and its state); of Keras the model itself, written to.
    before: raw inputs, as a user has them -> what the module takes: encoded, standardized and
      reduced as in training.
    after: the module's outputs -> the network's: those of a regression in the units of its targets.
  """

  values: Any
  before: Callable[[Any], Any]
  after: Callable[[Any], Any]


def give_back(network: Network, module: Any) -> GivenBack:
  """Gives a network's values back to the module that they came from, in its own framework's form.

  A module alone knows nothing of how its inputs were encoded and standardized: `before` and `after` come with the
  values, and without them it computes nonsense.

  Args:
    network: of bare values: what `jaxlite.load(workdir, model=module)` gives, pruned or trained on where you like. One
      that is quantized has no place in a float module.
    module: what was trained, in the form that `adapt` takes: a Linen, NNX or Equinox module, (Equinox module, state),
      a Haiku transform, a Keras model, (function, params). Its own values do not matter. It is left as it is, but for a
      Keras model, which holds its values itself.

  Returns:
    A GivenBack: (values, before, after).

  Raises:
    TypeError: none of these.
    ValueError: the network holds what a module has no place for, or values of another module.

  >>> import flax.linen as nn, jax, jax.numpy as jnp
  >>> from jaxlite.adapters import from_linen
  >>> module, inputs = nn.Dense(2), jnp.ones((1, 3))
  >>> model = from_linen(module)
  >>> network = Network(model, *model.init(jax.random.key(0), inputs))
  >>> values, before, after = give_back(network, module)
  >>> bool((after(module.apply(values, before(inputs))) == network.predict(inputs)).all())
  True
  """
  const = network.model_state.get(CONST, {})
  params = network.params
  state = {name: one for name, one in network.model_state.items() if not trees.is_extra(name)}
  added = [
    name for name in (*params, *network.model_state) if trees.is_extra(name) and name not in (CONST, 'jl.health')
  ]
  added += [f'{CONST}/{owner}' for owner in const if owner not in (*_OWN, 'normalize', 'reduce', 'units')]
  if added:
    raise ValueError(
      f'a module holds its own values alone; this network has {added[0]!r} of a part of its recipe too: load the run '
      'with model= and without what quantizes it'
    )
  if 'keras' in const:  # frozen variables: of a network that was filled anew, they are others than the model's
    state = {**state, 'state': trees.merge(state.get('state', {}), const['keras'])}
  checked = getattr(network.model.apply, 'checked', lambda inputs: inputs)
  leaf = getattr(network.model.apply, 'reduced', '')
  standardized = _applied('normalize', normalize, const)
  reduced = _applied('reduce', lambda reduction, mean=None: project(reduction, mean, leaf=leaf), const)

  def before(inputs: Any) -> Any:
    return reduced(standardized(checked(inputs if network.encode is None else network.encode(inputs))))

  return GivenBack(_values(module, params, state), before, _applied('units', units, const))


def _applied(name: str, hook: Callable[..., Hook], const: State) -> Callable[[Any], Any]:
  """What a hook of constants does to the value that goes through it."""
  if name not in const:
    return lambda value: value
  whole = Model(lambda key, inputs: ({}, {}), lambda params, state, value, **_: (value, state))
  model = hook(**const[name]).model(whole)
  return lambda value: model.apply({}, {CONST: {name: const[name]}}, value, train=False, key=None)[0]


def _values(module: Any, params: Any, state: State) -> Any:
  linen, nnx, eqx, hk = (sys.modules.get(name) for name in ('flax.linen', 'flax.nnx', 'equinox', 'haiku'))
  if linen and isinstance(module, linen.Module):
    return {'params': params, **state}
  if nnx and isinstance(module, nnx.Module):
    return to_nnx(module, params, state)
  if hk and isinstance(module, hk.Transformed):
    return to_haiku(params)
  if hk and isinstance(module, hk.TransformedWithState):
    return to_haiku(params), state.get('state', {})
  keras = getattr(sys.modules.get('keras'), 'Layer', None)
  if keras and isinstance(module, keras):
    assign(module, params, state)
    return module
  pair = module if type(module) is tuple and len(module) == 2 else (module, None)
  if eqx and isinstance(pair[0], eqx.Module):
    node, carried = to_equinox(*pair, params, state)
    return node if pair[1] is None else (node, carried)
  if pair[1] is not None and callable(pair[0]):
    values = common.restore(common.taken_back(pair[1], params), params)
    return (values, state['state']) if 'state' in state else values
  raise TypeError(
    'values go back to a Linen, NNX or Equinox module, a Haiku transform, a Keras model, or (function, params); got '
    f'{common.kind_of(module)}: give the module itself'
  )
