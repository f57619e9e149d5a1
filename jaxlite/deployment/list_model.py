"""The list of operations in a run's folder as a Model of the arrays of its checkpoint: a program whose equations are
seen, whatever framework the network was written in and whatever hooks stood around it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlite import trees
from jaxlite.contract import POINT, Model, Params, State
from jaxlite.deployment.load import Held
from jaxlite.deployment.operations import listing
from jaxlite.deployment.running.program import batch_of, checked, computed, value_of

# What a list does to params alone, and which is gone once values are in it (`operations.folding`).
_OF_PARAMS = {
  'bitcast_convert_type': lambda x, *, new_dtype: lax.bitcast_convert_type(x, jnp.dtype(new_dtype)),
  'shift_left': lax.shift_left,
  'shift_right_logical': lax.shift_right_logical,
  'shift_right_arithmetic': lax.shift_right_arithmetic,
  'nextafter': lax.nextafter,
}


def list_model(held: Held, outputs: Any) -> tuple[Model, Params, State]:
  """Returns a run's network as a Model, with its values.

  Args:
    held: what was read of the run.
    outputs: the structure of the network's outputs.

  Raises:
    ValueError: there is no list; the message says why.
  """
  graph, known = listing.open_list(held)
  split = {name: _split(path) for name, path in known.items()}
  own: dict[str, dict[str, Any]] = {'params': {}, 'model_state': {}}
  for name, (kind, rest) in split.items():
    own[kind][rest] = jnp.asarray(held.values[known[name]])

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    del train, key, step
    paths, leaves, _ = trees.flatten(inputs)
    given = {f'input/{path}' if path else 'input': leaf for path, leaf in zip(paths, leaves, strict=True)}
    values: dict[str, Any] = checked(graph, given)
    batch, here = batch_of(graph, values), {'params': params, 'model_state': state}
    values.update((name, here[kind][rest]) for name, (kind, rest) in split.items())
    for one in graph.operations:
      if one.kind in _OF_PARAMS:
        (name,) = one.outputs
        operands = (value_of(graph, each, values, batch) for each in one.inputs)
        values[name] = _OF_PARAMS[one.kind](*operands, **one.attributes)
      else:
        values.update(computed(graph, one, values, batch))
    return jax.tree.unflatten(outputs, [value_of(graph, name, values, batch) for name in graph.outputs]), state

  params, state = own['params'], own['model_state']
  return Model(lambda key, inputs: (params, state), apply), params, state


def _split(path: str) -> tuple[str, str]:
  """(params or model_state, the path in it): the point at which params are read is what they are where none train."""
  kind, _, rest = path.partition('/')
  return 'params' if rest.startswith(f'{POINT}/') else kind, rest
