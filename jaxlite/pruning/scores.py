"""Scores: how much a weight matters. Plain functions of (params, context) that return a tree like params.

The largest live. Those that need more than the weights read it from the context that `gather_statistics` gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import Model, stream
from jaxlite.graph.effects import without_effects
from jaxlite.pruning._statistics import Calibration
from jaxlite.tasks import running

Score = Callable[[Any, Any], Any]


def magnitude(params: Any, context: Any = None) -> Any:
  """Scores a weight by |w|.

  >>> magnitude({'w': jnp.array([-2.0, 1.0])})['w'].tolist()
  [2.0, 1.0]
  """
  del context
  return jax.tree.map(_size, params)


def snip(params: Any, context: Calibration) -> Any:
  """Scores a weight by |w * dL/dw|: to first order, how much the loss changes without it; its saliency.

  Args:
    params: pytree of arrays.
    context: of `gather_statistics(..., loss=...)`.

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
    context: of `gather_statistics`.

  References:
    Sun et al., A Simple and Effective Pruning Approach for Large Language Models, 2023,
    https://arxiv.org/abs/2306.11695
  """
  if not isinstance(context, Calibration):
    raise ValueError(
      f'wanda reads the norms of inputs: pass context=gather_statistics(...); got {type(context).__name__}'
    )

  def score(path: str, weight: jax.Array) -> jax.Array:
    norm = context.norms.get(path)
    return _size(weight) if norm is None else jnp.abs(running.widened(weight)) * norm

  return trees.map_with_path(score, params)


def synflow(model: Model | Callable[[Any, Any], Any], inputs: Any) -> Score:
  """Returns a score that reads no data: how much of the flow through the network passes a weight.

  Every weight is taken by its size, an example of ones runs through, and |w| times the derivative of the outputs' sum
  is the score. In a network of linear layers and ReLUs without biases the scores of each layer have one sum, so that
  under one threshold for all (`global_(normalize=False)`) no layer dies while others hold more, if pruning goes in many
  small steps: `prune(0.99, end=100, every=1, score=synflow(...), allocate=global_(normalize=False))`.

  Args:
    model: a Model, run as in evaluation, its model_state being the context; or a function (params, inputs) -> outputs.
    inputs: one batch, for its shapes alone.

  Returns:
    A Score.

  References:
    Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, 2020,
    https://arxiv.org/abs/2006.05467

  >>> score = synflow(lambda p, x: x @ p['w'] @ p['v'], jnp.zeros((8, 1)))
  >>> found = score({'w': jnp.array([[-2.0, 1.0]]), 'v': jnp.array([[1.0], [-4.0]])}, None)
  >>> found['w'].tolist(), found['v'].tolist()
  ([[2.0, 4.0]], [[2.0], [4.0]])
  """
  if not callable(model) and not isinstance(model, Model):
    raise TypeError(f'synflow takes a Model or a function (params, inputs) -> outputs; got {type(model).__name__}')
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *jnp.shape(leaf)[1:]), jnp.result_type(leaf)), inputs)

  def score(params: Any, context: Any = None) -> Any:
    def flow(sizes: Any) -> Any:
      ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
      if isinstance(model, Model):
        outputs = model.apply(sizes, {} if context is None else context, ones, train=False, key=None)[0]
      else:
        outputs = without_effects(model, 'synflow')(sizes, ones)
      return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(outputs))

    sizes = jax.tree.map(jnp.abs, params)
    return jax.tree.map(lambda size, slope: jnp.abs(size * slope), sizes, jax.grad(flow)(sizes))

  return score


def gradient_flow(objective: Callable[[Any], jax.Array], params: Any) -> Any:
  """Returns H g, the context of `grasp`: how the squared norm of the gradient changes with each weight, halved.

  Args:
    objective: params -> scalar loss, on the batches that count, in float: few bits have no second derivatives.
    params: pytree of arrays.

  Returns:
    A tree like params.

  >>> gradient_flow(lambda w: (w**3).sum() / 3, jnp.array([1.0, 2.0])).tolist()  # g = w^2, H = 2w
  [2.0, 16.0]
  """
  slope = jax.grad(objective)
  return jax.jvp(slope, (params,), (slope(params),))[1]


def grasp(params: Any, context: Any) -> Any:
  """Scores a weight by w * (H g): to first order, how much gradient flow is lost without it.

  The product has a sign, and a weight whose loss would help the flow goes first; so all scores are lifted by the
  least of them, which keeps their order. As published it is used once, before training, with
  `allocate=global_(normalize=False)`.

  Args:
    params: pytree of arrays.
    context: of `gradient_flow`, a tree like params.

  Raises:
    ValueError: the context is no such tree.

  References:
    Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow, 2020,
    https://arxiv.org/abs/2002.07376

  >>> grasp({'w': jnp.array([1.0, -2.0])}, {'w': jnp.array([3.0, 1.0])})['w'].tolist()
  [5.0, 0.0]
  """
  if jax.tree.structure(context) != jax.tree.structure(params):
    raise ValueError('grasp reads H g, a tree like params: pass context=gradient_flow(objective, params)')
  kept = jax.tree.map(lambda weight, flow: weight * flow, params, context)
  least = jnp.min(jnp.stack([jnp.min(leaf, initial=0.0) for leaf in jax.tree.leaves(kept)]))
  return jax.tree.map(lambda one: one - least.astype(one.dtype), kept)


def random(seed: int = 0) -> Score:
  """Returns a score that draws at random, another one for each leaf: the baseline of every comparison.

  >>> params = {'a': jnp.zeros(3), 'b': jnp.zeros(3)}
  >>> scores = random(1)(params, None)
  >>> bool((scores['a'] == scores['b']).any())
  False
  """

  def score(params: Any, context: Any = None) -> Any:
    del context
    return trees.map_with_path(lambda path, leaf: jax.random.uniform(named_key(seed, path), jnp.shape(leaf)), params)

  return score


def named_key(seed: int, name: str) -> jax.Array:
  """Returns the key of a named draw outside a Model, where there is no root key."""
  return stream(jax.random.key(seed), name)


def _size(leaf: Any) -> Any:
  """|leaf|; what has no size (a key among the params) stays as it is, as no rule picks it."""
  return jnp.abs(leaf) if jnp.issubdtype(jnp.result_type(leaf), np.number) else leaf


def _gradients(context: Any, what: str) -> Any:
  gradients = getattr(context, 'gradients', None)
  if gradients is None:
    raise ValueError(f'{what} reads gradients: pass context=gather_statistics(..., loss=...)')
  return gradients
