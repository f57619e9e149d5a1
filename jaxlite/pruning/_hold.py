"""Holding given masks: what a one-shot method pruned stays exactly zero in fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlite import trees
from jaxlite.contract import Last
from jaxlite.graph import sharding
from jaxlite.pruning import _masks as masking
from jaxlite.pruning._choose_masks import leaves_at
from jaxlite.pruning._mask_state import CHECK, PruneState, hold_at_zero, looked, start
from jaxlite.pruning._sharded import on_any_mesh


def hold(masks: Any, *, packed: bool = False) -> Last:
  """Keeps every weight that `masks` call dead at exactly zero; from its first update on, if it was not.

  Args:
    masks: what `sparsify` or `sparsegpt` gave: a tree like the params with None where nothing is pruned, or a dict
      of masks by path. Params may hold more than the masks know.
    packed: keep a mask as bits, 1/32 of float32 weights.

  Returns:
    An Optax transformation (a `Last`).

  Raises:
    ValueError: at init, a mask of no parameter, or of another shape.

  >>> import optax
  >>> tx = optax.chain(optax.sgd(0.5), hold({'w': jnp.array([True, False])}))
  >>> params = {'w': jnp.ones(2), 'b': jnp.ones(2)}
  >>> updates, _ = tx.update({'w': jnp.ones(2), 'b': jnp.ones(2)}, tx.init(params), params)
  >>> optax.apply_updates(params, updates)['w'].tolist()
  [0.5, 0.0]
  """

  # What lies on an explicit mesh could not be read where `init` is traced.
  masks = jax.tree.map(lambda mask: np.asarray(mask) if sharding.on_explicit_mesh(mask) else mask, masks)

  def init(params: Any, weights: Mapping[str, Any] | None = None) -> PruneState:
    del weights
    given = masking.by_path(masks, params, what='hold')
    names = trees.paths(given)
    leaves = leaves_at(params, names)
    dense = {path: masking.unpack(mask, np.shape(leaves[path])) for path, mask in leaves_at(given, names).items()}
    size = sum(mask.size for mask in dense.values())
    dead = size - sum((jnp.sum(mask, dtype=jnp.int32) for mask in dense.values()), jnp.int32(0))
    sparsity = dead.astype(jnp.float32) / max(size, 1)
    return start(params, dense, packed=packed)._replace(sparsity=sparsity, reached=jnp.ones((), bool))

  def update(updates: Any, state: PruneState, params: Any = None, **_: Any) -> tuple[Any, PruneState]:
    if params is None:
      raise ValueError('hold needs the weights to mask them: call update(grads, state, params)')
    # The first weights to come in are the user's, and need not be masked yet.
    look = (state.count == 1) | ((state.count > 0) & (state.count % CHECK == 0))
    broken = looked(state, params, look)[1]
    state = state._replace(count=optax.safe_increment(state.count), broken=broken)
    return hold_at_zero(updates, params, state.masks), state

  return on_any_mesh(init, update, 'hold')
