"""Clustered weights: each array has few different values, which learn."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxlite import trees
from jaxlite.contract import Hook, Model, Params, State, reparam
from jaxlite.errors import check_dict, number
from jaxlite.graph.model import _layouts

_MOST = 256  # values: what `deployment.packed` keeps a codebook of


def clustered(count: int = 16, *, select: trees.Rule = None, name: str = 'clusters') -> Hook:
  """Trains weights of which each array has at most `count` different values, zero among them.

  The forward sees the nearest value in place of each weight. Weights learn as if they were seen themselves (straight
  through), so that one may move to another cluster; the values, `params['jl.<name>'] = {path: float32[count - 1]}`,
  learn by the sum of their members' gradients, and begin evenly spread from the smallest weight to the largest. Zero is
  no parameter: what is pruned stays zero. Layers that one array stacks share its values.
  `deployment.packed` writes exported weights as a codebook and indices.

  Args:
    count: different values of an array, 2 to 256.
    select: a rule on paths; None takes the weights that the model's program shows.
    name: of the hook.

  Returns:
    A Hook on the model.

  Raises:
    ValueError: `count` outside its range; at init, no weight selected.

  References:
    Han, Mao and Dally, Deep Compression, 2016, https://arxiv.org/abs/1510.00149

  >>> def apply(p, s, x, *, train, key, step=None):
  ...   return x @ p['w'], s
  >>> base = Model(lambda key, x: ({'w': jnp.array([[1.0, -0.1], [3.2, -1.0]])}, {}), apply)
  >>> model = clustered(3).model(base)
  >>> params, state = model.init(jax.random.key(0), jnp.ones((1, 2)))
  >>> params['jl.clusters']['w'].tolist(), model.export(params, state)[0]['w'].round(1).tolist()
  ([-1.0, 3.200000047683716], [[0.0, 0.0], [3.200000047683716, -1.0]])
  """
  count = count if isinstance(count, bool) else number(count, f'{name}: count')
  if isinstance(count, bool) or count not in range(2, _MOST + 1):
    raise ValueError(f'{name}: count is a whole number from 2 to {_MOST}, got {count!r}')
  slot = f'jl.{name}'

  def model(inner: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      params, state = inner.init(key, inputs)
      check_dict(params, name)
      chosen = trees.weight_paths(params, select, _layouts(inner, params, state, inputs, key), what=name)
      leaves = {path: leaf for path, leaf in trees.by_path(params).items() if path in chosen}
      return {**params, slot: {path: _spread(leaf, count - 1) for path, leaf in leaves.items()}}, state

    def view(params: Params, state: State, **_: Any) -> Params:
      values = params[slot]
      seen = trees.map_with_path(lambda path, leaf: nearest(leaf, values[path]) if path in values else leaf, params)
      return {**seen, slot: values}

    return reparam(inner, name, lambda key, params, state: (params, state), view)._replace(init=init)

  return Hook(name, model=model)


def _spread(leaf: jax.Array, count: int) -> jax.Array:
  low, high = jnp.min(leaf).astype(jnp.float32), jnp.max(leaf).astype(jnp.float32)
  if count == 1:  # beside zero
    return jnp.where(-low > high, low, high)[None]
  return jnp.linspace(low, high, count, dtype=jnp.float32)


def nearest(leaf: jax.Array, values: jax.Array) -> jax.Array:
  """Returns the nearest of some values, or zero, in place of each weight, in the weights' dtype.

  Args:
    leaf: float[...]; its gradient is that of what is returned.
    values: float32[n], in any order; each has the sum of its members' gradients.

  >>> nearest(jnp.array([0.1, 0.6, -1.1]), jnp.array([1.0, -1.0])).tolist()
  [0.0, 1.0, -1.0]
  """
  all_ = jnp.sort(jnp.concatenate([jnp.zeros(1, jnp.float32), values.astype(jnp.float32)]))
  between = jax.lax.stop_gradient((all_[1:] + all_[:-1]) / 2)
  which = _above(jax.lax.stop_gradient(leaf).astype(jnp.float32), between)
  return all_[which].astype(leaf.dtype) + (leaf - jax.lax.stop_gradient(leaf))


def _above(leaf: jax.Array, between: jax.Array) -> jax.Array:
  """Returns how many of some borders, ascending, each weight is above: int32[...].

  A search by halves, each written out: of a loop, as `jnp.searchsorted` has it, no list of operations knows.
  """
  halves = between.shape[0].bit_length()
  borders = jnp.concatenate([between, jnp.full(2**halves - 1 - between.shape[0], jnp.inf, between.dtype)])
  which = jnp.zeros(leaf.shape, jnp.int32)
  for half in range(halves - 1, -1, -1):
    further = leaf > jnp.take(borders, which + (2**half - 1), mode='clip')
    which = which + further.astype(jnp.int32) * 2**half
  return which
