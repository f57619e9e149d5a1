"""Sharpness-aware minimization: the gradient is taken where the loss near the weights is worst."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite.contract import Batch, Grad, Hook, Params, State
from jaxlite.errors import number
from jaxlite.tasks import running


def sam(rho: float = 0.05, *, name: str = 'sam') -> Hook:
  """Takes the gradient at `weights + rho * gradient / |gradient|`, and applies it to the weights themselves.

  Two passes per step over the same batch with the same draws (dropout, augmentation). Batch statistics and the
  metrics are those of the first pass, at the weights; the second leaves no trace but its gradient. Left of
  `accumulate` one ascent is made for the whole batch; right of it one for each micro-batch, as in the paper's
  distributed runs.

  Args:
    rho: length of the ascent in parameter space, above 0; the norm is over all parameters at once.
    name: the hook's name.

  Returns:
    A Hook on the gradient.

  Raises:
    ValueError: rho is not above 0 or not finite.

  References:
    Foret, Kleiner, Mobahi and Neyshabur, Sharpness-Aware Minimization for Efficiently Improving Generalization,
    2020, https://arxiv.org/abs/2010.01412

  >>> def bowl(params, state, batch, key, step):
  ...   return {'w': 2 * params['w']}, state, {'task': params['w'] ** 2}
  >>> grads, _, terms = sam(0.5).grad(bowl)({'w': jnp.float32(3)}, {}, {}, None, 0)
  >>> float(grads['w']), float(terms['task'])
  (7.0, 9.0)
  """
  rho = number(rho, 'sam: rho')
  if not (rho > 0 and math.isfinite(rho)):
    raise ValueError(f'sam: rho is the length of the ascent, above 0; got {rho}: try 0.05')

  def grad(inner: Grad) -> Grad:
    def sharpest(params: Params, state: State, batch: Batch, key: Any, step: Any) -> Any:
      grads, new_state, terms = inner(params, state, batch, key, step)
      return inner(_ascend(params, grads, rho), state, batch, key, step)[0], new_state, terms

    return sharpest

  return Hook(name, grad=grad)


@jax.jit  # one dispatch where `accumulate` calls from outside a trace
def _ascend(params: Params, grads: Params, rho: float) -> Params:
  squares = [jnp.sum(jnp.square(jnp.abs(running.widened(leaf)))) for leaf in jax.tree.leaves(grads)]
  norm = jnp.sqrt(sum(squares, jnp.float32(0)))
  length = jnp.where(norm > 0, rho / jnp.where(norm > 0, norm, 1), 0)  # at a stationary point there is no way up
  # Of a complex weight the way up is the conjugate of what jax.grad gives.
  ascend = lambda w, g: (running.widened(w) + length * jnp.conj(running.widened(g))).astype(w.dtype)  # noqa: E731
  return jax.tree.map(ascend, params, grads)
