"""SparseGPT: one-shot pruning that lets the weights that live make up for those that die.

Done once, after training, in NumPy and double precision on the host: a Cholesky factor of an ill-conditioned matrix
decides which weights die. The work is O(K^3) for a weight that sums over K inputs, plus O(K^2) for each output.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.errors import number, whole
from jaxlite.pruning._allocate import Allocate, erk
from jaxlite.pruning._choose_masks import Structures, Target, draw, leaves_at
from jaxlite.pruning._mask_state import laid_out
from jaxlite.pruning._one_shot import goals_of
from jaxlite.pruning._statistics import Calibration
from jaxlite.pruning._structure import element, is_element


def sparsegpt(
  params: Any,
  context: Calibration,
  sparsity: float,
  *,
  structure: Structures = element,
  allocate: Allocate = erk,
  select: trees.Rule = None,
  damping: float = 0.01,
  block: int = 128,
  packed: bool = False,
) -> tuple[Any, Any]:
  """Zeroes weights one input at a time, each time correcting the inputs still to come for the error made.

  A leaf on whose calibration inputs pruning by magnitude changes the outputs less is pruned by magnitude.

  Args:
    params: pytree of arrays.
    context: of `gather_statistics`, with Gram matrices.
    sparsity: the share of the selected weights that becomes zero, in [0, 1).
    structure: `element` or `n_m(n, m)`; or {regular expression on paths: structure}.
    allocate: `erk`, `uniform`, or {regular expression on paths: sparsity}.
    select: a rule on paths; None takes the calibration's weights.
    damping: added to a Gram matrix's diagonal, as a share of its mean.
    block: inputs whose dead weights are chosen together; a multiple of m for N:M.
    packed: give the masks as bits.

  Returns:
    (params with exact zeros and corrected weights, masks: a tree like params with None where nothing is pruned).

  Raises:
    ValueError: no Gram matrix for a selected weight, one of which a curve is multiplied, a structure that is
      neither, a share outside its range.

  References:
    Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, 2023,
    https://arxiv.org/abs/2301.00774

  >>> from jaxlite.pruning._statistics import gather_statistics
  >>> params = {'w': jnp.array([[1.0], [1.1]])}
  >>> same = {'inputs': jnp.array([[1.0, 1.0], [2.0, 2.0]])}  # two inputs that are always equal
  >>> context = gather_statistics(lambda p, x: x @ p['w'], params, batches=[same])
  >>> [round(w, 1) for w in sparsegpt(params, context, 0.5)[0]['w'][:, 0].tolist()]  # one does the work of both
  [0.0, 2.1]
  """
  if not isinstance(context, Calibration):
    raise ValueError(
      f'sparsegpt reads Gram matrices: pass context=gather_statistics(...); got {type(context).__name__}'
    )
  damping, block = number(damping, 'sparsegpt: damping'), whole(block, 'sparsegpt: block', least=1)
  if not (damping > 0 and math.isfinite(damping)):
    raise ValueError(f'sparsegpt: damping is above 0 and finite; got damping={damping}')
  if context.norms and not context.grams:
    raise ValueError(
      'sparsegpt reads Gram matrices, and the calibration holds none: gather_statistics(..., grams=True)'
    )
  skipped, bent = dict(context.layouts.skipped), dict(context.layouts.bent)
  goals = goals_of(params, sparsity, context, structure, allocate, select, what='sparsegpt')
  weights, masks = leaves_at(params, goals), {}
  for path, goal in goals.items():
    if path not in context.grams:
      why = skipped.get(path, 'gather_statistics(grams=True) over the weights records them')
      raise ValueError(f'sparsegpt finds no Gram matrix of the inputs of {path!r}: {why}; select= leaves it out')
    if path in bent:
      raise ValueError(
        f'sparsegpt corrects weights for what is multiplied, and of {path!r} that is no multiple ({bent[path]!r} '
        'stands between): sparsify prunes it, select= leaves it out'
      )
    weights[path], masks[path] = _pruned(path, weights[path], np.asarray(context.grams[path]), goal, damping, block)
  return trees.map_with_path(lambda path, leaf: weights.get(path, leaf), params), laid_out(masks, params, packed)


def _pruned(path: str, leaf: Any, grams: np.ndarray, goal: Target, damping: float, block: int) -> tuple[Any, Any]:
  """One leaf, as a stack of [outputs, K] matrices."""
  layout, shape = goal.layout, goal.shape
  stack = layout.stack(len(shape))
  order = (*stack, *layout.outputs, *layout.summed)
  moved = np.transpose(np.asarray(leaf, np.float64), order)
  inputs = grams.shape[-1]
  if len(grams) == 1 and goal.layers > 1:  # declared to be layers, over shared inputs
    grams = np.repeat(grams, goal.layers, axis=0)
  # A group of a convolution holds the outputs next to each other, so one reshape serves stacks and groups.
  dense = moved.reshape(grams.shape[0], -1, inputs)
  pattern = goal.structure.pattern
  if pattern is None and not is_element(goal.structure):
    raise ValueError(f'sparsegpt prunes single weights or N:M; {path!r} asks for {goal.structure.describe}')
  pruned, live = dense.copy(), np.ones(dense.shape, bool)
  for index, gram in enumerate(grams):
    live[index] = _prune_matrix(pruned[index], gram.astype(np.float64), goal.sparsity, pattern, damping, block)
  # Going once through the inputs is greedy: where they hardly go together, magnitude may do better.
  by_size = np.asarray(draw({path: goal}, {path: jnp.abs(jnp.asarray(leaf))})[path])
  by_size = np.transpose(by_size, order).reshape(dense.shape)
  plain = np.where(by_size, dense, 0)
  if _error(plain - dense, grams) < _error(pruned - dense, grams):
    pruned, live = plain, by_size
  back = tuple(order.index(axis) for axis in range(len(shape)))
  restore = lambda array: jnp.asarray(np.transpose(array.reshape(moved.shape), back))  # noqa: E731
  mask = restore(live)
  return jnp.where(mask, restore(pruned.astype(np.float32)), 0).astype(leaf.dtype), mask


def _error(change: np.ndarray, grams: np.ndarray) -> float:
  """The squared change of the outputs over all that was calibrated on, change float64[S, outputs, K]."""
  return float(sum(np.sum((one @ gram.astype(np.float64)) * one) for one, gram in zip(change, grams, strict=True)))


def _prune_matrix(
  weight: np.ndarray, gram: np.ndarray, sparsity: float, pattern: tuple[int, int] | None, damping: float, block: int
) -> np.ndarray:
  """Prunes float64[outputs, K] in place and returns which weights live."""
  outputs, inputs = weight.shape
  gram = gram.copy()
  silent = np.diag(gram) == 0  # an input that was always zero: its weights matter to nothing
  gram[silent, silent] = 1
  gram[np.diag_indices(inputs)] += damping * np.mean(np.diag(gram))
  # Row j of the upper factor of the inverse is what remains of it once the inputs before j are fixed.
  factor = np.linalg.cholesky(np.linalg.inv(gram)).T
  live = np.ones((outputs, inputs), bool)
  step = block if pattern is None else max(block // pattern[1], 1) * pattern[1]
  died = 0
  for start in range(0, inputs, step):
    stop = min(start + step, inputs)
    errors = np.zeros((outputs, stop - start))
    if pattern is None:
      # Rounded over all blocks so far: the total is met to the weight.
      due = round(outputs * stop * sparsity) - died if stop < inputs else round(outputs * inputs * sparsity) - died
      live[:, start:stop] = _keep(_cost(weight, factor, silent, start, stop), due)
      died += due
    for column in range(start, stop):
      if pattern is not None and (column - start) % pattern[1] == 0:
        end = min(column + pattern[1], inputs)
        room = math.ceil((end - column) * pattern[0] / pattern[1])
        cost = _cost(weight, factor, silent, column, end)
        ranks = np.argsort(np.argsort(-cost, axis=1, kind='stable'), axis=1, kind='stable')
        live[:, column:end] = ranks < room
      error = np.where(live[:, column], 0, weight[:, column]) / factor[column, column]
      weight[:, column:stop] -= np.outer(error, factor[column, column:stop])
      errors[:, column - start] = error
    weight[:, stop:] -= errors @ factor[start:stop, stop:]
  weight[~live] = 0
  return live


def _cost(weight: np.ndarray, factor: np.ndarray, silent: np.ndarray, start: int, stop: int) -> np.ndarray:
  """How much the outputs change without each weight, the others making up for it."""
  cost = weight[:, start:stop] ** 2 / np.diag(factor)[start:stop] ** 2
  return np.where(silent[start:stop], 0.0, cost)


def _keep(cost: np.ndarray, dead: int) -> np.ndarray:
  """Marks all but the `dead` cheapest; of equal ones the first live."""
  live = np.zeros(cost.size, bool)
  live[np.argsort(-cost.ravel(), kind='stable')[: cost.size - dead]] = True
  return live.reshape(cost.shape)
