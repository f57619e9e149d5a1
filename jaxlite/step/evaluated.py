"""The compiled program that a run evaluates by: one for each form of the metrics, whoever asks for it first."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite.graph.init_numpy import on_host
from jaxlite.step.state import TrainState


@functools.lru_cache(maxsize=8)
def began(init: Any) -> Any:
  """The running metrics before the first batch: a few zeros, for which nothing is to be compiled.

  Args:
    init: of a `Metrics`.
  """
  return on_host(init)


@functools.lru_cache(maxsize=8)
def evaluated(evaluate_batch: Any, update: Any, keep: Any) -> Any:
  """One compiled program: forward, loss, the running metrics, and what is kept of each example.

  Args:
    evaluate_batch: a `Train.eval`.
    update, keep: of a `Metrics`.

  Returns:
    (running metrics, state, batch) -> (running metrics, what is kept); donates the metrics.
  """

  def add(total: Any, state: TrainState, batch: Any) -> Any:
    outputs, terms = evaluate_batch(state, batch)
    total = update(total, outputs, batch, jnp.asarray(terms['task']))
    if keep is None:
      return total, None
    return total, {**keep(outputs, batch), 'weight': batch['weight']}

  return jax.jit(add, donate_argnums=0)
