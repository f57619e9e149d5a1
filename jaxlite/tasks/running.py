"""Running values: in which dtype they are kept, how averages move, and what an average of a model holds and gives back.

Whatever is summed or averaged over steps (accumulated gradients, averages of weights, statistics) is kept in at least
float32, since bfloat16 stands still where a step is small; float64 and complex numbers stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees

STATISTICS = 'jl.statistics'  # beside averaged params: the averages of the network's own statistics, by path


def widened(leaf: Any) -> jax.Array:
  """Returns an array in the dtype that its running values are kept in: at least float32, wider and complex as it is.

  >>> widened(jnp.ones(2, 'bfloat16')).dtype, widened(jnp.ones(2, 'complex64')).dtype
  (dtype('float32'), dtype('complex64'))
  """
  leaf = jnp.asarray(leaf)
  narrow = (
    jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 2
  )  # float8 and less: no rule promotes them
  return leaf.astype(np.float32 if narrow else jnp.promote_types(leaf.dtype, np.float32))


def moved(running: Any, new: Any, kept: Any) -> Any:
  """Moves a running average toward new values; it stays in its own dtype, which `widened` made.

  Args:
    running: a pytree of arrays.
    new: likewise; a leaf that is no number with fractions (a count, a key) is taken as it is.
    kept: the share of the old average kept, in [0, 1].

  >>> moved({'w': widened(jnp.ones(1, 'bfloat16'))}, {'w': jnp.zeros(1, 'bfloat16')}, 0.999)['w'].tolist()
  [0.9990000128746033]
  """

  def move(old: Any, leaf: Any) -> Any:
    if not jnp.issubdtype(leaf.dtype, np.inexact):
      return leaf
    return (old + (1 - kept) * (leaf.astype(old.dtype) - old)).astype(old.dtype)

  return jax.tree.map(move, running, new)


def with_statistics(params: Mapping[str, Any], model_state: Mapping[str, Any]) -> Any:
  """Returns what an average follows: the params and the network's own statistics, none of counts, keys and hooks.

  >>> with_statistics({'w': 1.0}, {'stats': {'mean': np.ones(1), 'count': np.ones(1, int)}, 'jl.x': np.ones(1)})
  {'w': 1.0, 'jl.statistics': {'stats/mean': array([1.])}}
  """
  leaves = trees.by_path({name: value for name, value in model_state.items() if not trees.is_extra(name)})
  own = {path: leaf for path, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, np.inexact)}
  return {**params, STATISTICS: own} if own else params


def read_average(means: Any, params: Any, model_state: Any) -> tuple[Any, Any]:
  """Returns params and model_state with averages in place, in their own dtypes; a param that is zero stays zero.

  >>> means = {'w': np.ones(2), 'jl.statistics': {'stats/mean': np.full(1, 3.0)}}
  >>> read_average(means, {'w': jnp.array([5.0, 0.0])}, {'stats': {'mean': np.zeros(1)}})
  ({'w': Array([1., 0.], dtype=float32)}, {'stats': {'mean': array([3.])}})
  """
  own = means[STATISTICS] if isinstance(means, Mapping) and STATISTICS in means else {}
  means = {name: value for name, value in means.items() if name != STATISTICS} if own else means

  def weight(mean: Any, live: Any) -> Any:
    return jnp.where(live == 0, live, mean.astype(live.dtype))

  def statistic(path: str, live: Any) -> Any:
    return own[path].astype(live.dtype) if path in own else live

  return jax.tree.map(weight, means, params), trees.map_with_path(statistic, model_state) if own else model_state
