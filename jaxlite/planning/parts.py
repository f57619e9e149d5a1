"""What each part of a recipe adds to the cost of a step: the step with it, less the step without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from jaxlite.contract import Hook, Model, Recipe, chain
from jaxlite.graph.init_numpy import on_host
from jaxlite.planning.cost import Cost, cost
from jaxlite.report.ledger import name_of
from jaxlite.step.train_step import train_step


class Added(NamedTuple):
  """What one part adds.

  Attributes:
    part: its name; 'the model' for the step without any part.
    flops, bytes: in one step; below 0 for a part that saves some (frozen weights have no gradient).
    state: bytes of params and state that it adds.
    why_not: why it cannot be told apart; '' where it can.
  """

  part: str
  flops: float
  bytes: float
  state: float
  why_not: str = ''


def added(model: Model, loss: Callable[..., Any], recipe: Recipe, batch: Any) -> list[Added]:
  """Returns what the model costs, and what each part of a recipe adds, in the recipe's order.

  A part is left out, and the step traced again; nothing is compiled or run. What two parts cost only together (a part
  that works on what another made) is counted at both. Of a schedule that acts now and then the dearest step counts.

  Args:
    model: without hooks.
    loss: as `train_step` takes it.
    recipe: the parts.
    batch: one batch, arrays [B, ...] or their shapes.

  >>> import jax.numpy as jnp
  >>> import jaxlite as jl
  >>> model = jl.from_function(lambda p, x: x @ p['w'], {'w': jnp.zeros((3, 2))})
  >>> batch = {'inputs': jnp.ones((4, 3)), 'labels': jnp.zeros(4, int)}
  >>> [one.part for one in added(model, jl.cross_entropy, jl.chain(optax.sgd(0.1)), batch)]
  ['the model', 'optax.chain']
  """
  whole, held, params = _cost(model, loss, recipe.parts, batch)
  found = []
  for index, part in enumerate(recipe.parts):
    name = _name(part, params)
    rest = (*recipe.parts[:index], *recipe.parts[index + 1 :])
    try:
      less, without, _ = _cost(model, loss, rest, batch)
    except Exception as error:  # a part that others stand on: whatever they raise, they cannot do without it
      found.append(Added(name, 0.0, 0.0, 0.0, f'the others do not stand without it ({type(error).__name__})'))
      continue
    found.append(Added(name, whole.flops - less.flops, whole.bytes - less.bytes, held - without))
  bare, size, _ = _cost(model, loss, (), batch)
  return [Added('the model', bare.flops, bare.bytes, size), *found]


def _name(part: Any, params: Any) -> str:
  if isinstance(part, Hook):
    return part.name
  try:
    return name_of(part, jax.eval_shape(part.init, params))
  except Exception:  # its state asks for more than params
    return name_of(part, None)


def _cost(model: Model, loss: Callable[..., Any], parts: tuple[Any, ...], batch: Any) -> tuple[Cost, float, Any]:
  """Of a step with these parts, the bytes of its state, and its params. Without an update, gradients are added."""
  if not any(isinstance(part, optax.GradientTransformation) for part in parts):
    parts = (*parts, optax.identity())
  train = train_step(model, loss, chain(*parts), rewrites=False)
  key = on_host(lambda: jax.random.key(0))()
  state = jax.eval_shape(lambda key, batch: train.init(key, batch), key, batch)
  step = train.programs.jaxpr(state, batch)[0]
  leaves = jax.tree.leaves((state.params, state.model_state, state.opt_state, state.const))
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
  return cost(step, recomputes=jax.default_backend() != 'cpu'), float(size), state.params
