"""Scores: how much a weight matters. Plain functions of (params, context) that return a tree like params.

The largest live. Those that need more than the weights read it from the context that `calibrate` gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite import trees
from jaxlite.contract import stream
from jaxlite.graph.inputs import Calibration

Score = Callable[[Any, Any], Any]


def magnitude(params: Any, context: Any = None) -> Any:
  """Scores a weight by |w|.

  >>> magnitude({'w': jnp.array([-2.0, 1.0])})['w'].tolist()
  [2.0, 1.0]
  """
  del context
  return jax.tree.map(jnp.abs, params)


def snip(params: Any, context: Calibration) -> Any:
  """Scores a weight by |w * dL/dw|: to first order, how much the loss changes without it.

  Args:
    params: pytree of arrays.
    context: of `calibrate(..., loss=...)`.

  Raises:
    ValueError: the context holds no gradients.

  References:
    Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity, 2018,
    https://arxiv.org/abs/1810.02340
  """
  gradients = _gradients(context, 'snip')
  return jax.tree.map(lambda weight, gradient: jnp.abs(weight * gradient), params, gradients)


def wanda(params: Any, context: Calibration) -> Any:
  """Scores a weight by |w| times the L2 norm of the input that it multiplies.

  As published it is used with `structure=per_output()`, or N:M. A leaf whose inputs are not known (a bias) is scored
  by |w|.

  Args:
    params: pytree of arrays.
    context: of `calibrate`.

  References:
    Sun et al., A Simple and Effective Pruning Approach for Large Language Models, 2023,
    https://arxiv.org/abs/2306.11695
  """
  if not isinstance(context, Calibration):
    raise ValueError(f'wanda reads the norms of inputs: pass context=calibrate(...); got {type(context).__name__}')

  def score(path: str, weight: jax.Array) -> jax.Array:
    norm = context.norms.get(path)
    return jnp.abs(weight) if norm is None else jnp.abs(weight) * norm

  return trees.map_with_path(score, params)


def random(seed: int = 0) -> Score:
  """Returns a score that draws at random, another one for each leaf: the baseline of every comparison.

  >>> params = {'a': jnp.zeros(3), 'b': jnp.zeros(3)}
  >>> scores = random(1)(params, None)
  >>> bool((scores['a'] == scores['b']).any())
  False
  """

  def score(params: Any, context: Any = None) -> Any:
    del context
    return trees.map_with_path(lambda path, leaf: jax.random.uniform(named_key(seed, path), leaf.shape), params)

  return score


def named_key(seed: int, name: str) -> jax.Array:
  """Returns the key of a named draw outside a Model, where there is no root key."""
  return stream(jax.random.key(seed), name)


def _gradients(context: Any, what: str) -> Any:
  gradients = getattr(context, 'gradients', None)
  if gradients is None:
    raise ValueError(f'{what} reads gradients: pass context=calibrate(..., loss=...)')
  return gradients
