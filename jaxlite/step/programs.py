"""Which compiled programs run the pure step: one a step, several steps in one, or several a step on CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite.contract import (
  CONST,
  Batch,
  Recipe,
)
from jaxlite.cpu.replace import sites
from jaxlite.cpu.site import Site
from jaxlite.step.state import TrainState


def _sites_within(recipe: Recipe, inner: Callable[..., Any], state: TrainState, batch: Batch) -> dict[str, Site]:
  """The sites of a gradient as the recipe's hooks call it, with the shapes that it is given there."""
  found: dict[str, Site] = {}

  def seen(*args: Any) -> Any:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), args)
    found.update(sites(jax.make_jaxpr(inner)(*shapes)))
    return inner(*args)

  full = {**state.model_state, CONST: state.const}
  jax.eval_shape(recipe.grad(seen), state.params, full, batch, state.key, state.step)
  return found


def on_cpu(state: TrainState, batch: Batch) -> bool:
  """Where the arrays of this call lie; False inside a trace, where lowering decides."""
  leaves = jax.tree.leaves((state.step, batch))
  if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
    return False
  return all(device.platform == 'cpu' for device in leaves[0].devices())
