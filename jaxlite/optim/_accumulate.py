"""Gradient accumulation: k micro-batches inside one optimizer step, for a batch that does not fit in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite.contract import Account, Batch, Grad, Hook, Params, State, Terms, join_const, split_const, stream
from jaxlite.errors import whole
from jaxlite.tasks import running
from jaxlite.tasks.company import in_parts
from jaxlite.tasks.lift import examples_in


def accumulate(micro_batches: int, *, name: str = 'accumulate') -> Hook:
  """Takes the gradient of a batch in several micro-batches, as if it were taken at once.

  Each micro-batch counts by its share of the batch's total weight, so padding changes nothing; batch statistics
  are threaded through; schedules and counts see one optimizer step; no accumulator enters a checkpoint. Sums are
  kept in at least float32. What has no examples (`batch['shared']`, see `jaxlite.tasks.lift.examples_in`) goes to
  each micro-batch whole. Inside a trace it is a scan. Called with concrete arrays it dispatches one compiled
  micro-step k times with a donated accumulator: `train_step` does so on a CPU where the model convolves, since
  XLA:CPU runs a convolution inside a scan many times slower. Both give the same numbers, up to rounding where
  convolutions take other forms in a loop (`jl.for_cpu`).

  A loss of your own that compares the examples of a batch with each other (contrastive, ranking, Cox's) compares
  those of one micro-batch. That is another loss than the whole batch's, and a warning says so; it is found by trying
  the loss on a few random rows, whole and in halves.

  Args:
    micro_batches: k; the batch size is a multiple of it.
    name: the hook's name.

  Returns:
    A Hook on the gradient.

  Raises:
    ValueError: k under 1; at trace time, a batch that k does not divide, or a loss that is a scalar.

  >>> accumulate(4).name
  'accumulate'
  """
  micro_batches = whole(micro_batches, 'accumulate: micro_batches', least=1)

  def grad(inner: Grad) -> Grad:
    if micro_batches == 1:
      return inner
    one: Callable[..., Any] = functools.partial(micro_step, inner, micro_batches)
    dispatched = jax.jit(one, donate_argnums=0)

    def accumulated(params: Params, state: State, batch: Batch, key: Any, step: Any) -> Any:
      state, const = split_const(state)
      fixed = (params, const, dict(batch), key, step)
      sums = jax.tree.map(lambda leaf: jnp.zeros_like(running.widened(leaf)), params)
      if _traced(fixed):
        turn = lambda carry, i: _as_scan(one(*carry, i, *fixed))  # noqa: E731
        (sums, state), terms = jax.lax.scan(turn, (sums, state), jnp.arange(micro_batches))
        terms = [jax.tree.map(lambda values, i=i: values[i], terms) for i in range(micro_batches)]
      else:
        terms = []
        for i in range(micro_batches):
          sums, state, term = dispatched(sums, state, jnp.int32(i), *fixed)
          terms.append(term)
      # One after the other in both forms: a reduction may add in another order, and resume is bit for bit.
      total = functools.reduce(lambda one, other: jax.tree.map(jnp.add, one, other), terms)
      grads = jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), sums, params)
      return grads, join_const(state, const), total

    return accumulated

  told = Account(f'each step, in {micro_batches} micro-batches')
  return Hook(name, grad=grad, account=lambda *_: told, dispatches=micro_batches > 1)


def micro_step(
  inner: Grad, k: int, sums: Params, state: State, i: Any, params: Params, const: Any, batch: Any, key: Any, step: Any
) -> tuple[Params, State, Terms]:
  """Adds the gradient of micro-batch `i`, weighted by its share, to the running sums."""
  micro, share = _micro_batch(batch, k, i)
  with in_parts():
    grads, full, terms = inner(params, join_const(state, const), micro, stream(key, 'micro_batch', i), step)
  sums = jax.tree.map(lambda total, grad: total + running.widened(grad) * _like(share, total), sums, grads)
  return sums, split_const(full)[0], jax.tree.map(lambda term: running.widened(term) * _like(share, term), terms)


def _like(share: jax.Array, leaf: Any) -> jax.Array:
  return share.astype(running.widened(leaf).dtype)


def _as_scan(result: tuple[Params, State, Terms]) -> Any:
  sums, state, terms = result
  return (sums, state), terms


def _micro_batch(batch: Any, k: int, i: Any) -> tuple[Any, jax.Array]:
  """Returns rows i*B/k to (i+1)*B/k of every leaf that has examples, and their share of the batch's total weight."""
  size, has = examples_in(batch)
  if size % k:
    raise ValueError(f'accumulate: a batch of {size} does not split into {k} equal parts: use a multiple of {k}')

  def rows(leaf: Any, per_example: bool) -> Any:
    return jax.lax.dynamic_slice_in_dim(leaf, i * (size // k), size // k) if per_example else leaf

  micro = jax.tree.map(rows, batch, has)
  if 'weight' not in batch:  # a part of a batch always has one: a loss that hides its examples is told
    return {**micro, 'weight': jnp.ones(size // k, jnp.float32)}, jnp.asarray(1 / k)
  total = jnp.sum(batch['weight'].astype(float))
  part = jnp.sum(micro['weight'].astype(float))
  return micro, jnp.where(total != 0, part / jnp.where(total != 0, total, 1), 1 / k)


def _traced(tree: Any) -> bool:
  return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
