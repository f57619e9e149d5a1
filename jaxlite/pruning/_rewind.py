"""Iterative pruning with rewinding: masks of trained weights, laid on weights from early in training."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxlite import trees
from jaxlite.errors import number, whole
from jaxlite.pruning import _masks as masking
from jaxlite.pruning._allocate import Allocate, erk
from jaxlite.pruning._choose_masks import Structures
from jaxlite.pruning._one_shot import sparsify
from jaxlite.pruning._structure import element
from jaxlite.pruning.scores import Score, magnitude


def rewind(
  trained: Any,
  early: Any,
  sparsity: float,
  *,
  score: Score = magnitude,
  context: Any = None,
  structure: Structures = element,
  allocate: Allocate = erk,
  select: trees.Rule = None,
) -> tuple[Any, Any]:
  """Draws masks from trained weights and goes back to early ones: a ticket to train again with `hold(masks)`.

  One round. Between rounds train from the returned params with `hold` and raise the sparsity, as `rounds` says: a
  weight that is zero in `trained` scores zero, so what died stays dead.

  Args:
    trained: the weights at the end of training.
    early: the weights of a checkpoint early in it, the same tree.
    sparsity: the share of the selected weights that is zero after this round.
    score: as in `sparsify`, of the trained weights.
    context: what the score reads.
    structure: as in `sparsify`.
    allocate: as in `sparsify`.
    select: a rule on paths; None takes the weights.

  Returns:
    (early weights with exact zeros, masks).

  Raises:
    ValueError: the two trees differ; otherwise as `sparsify`.

  References:
    Frankle and Carbin, The Lottery Ticket Hypothesis, 2018, https://arxiv.org/abs/1803.03635
    Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2019,
    https://arxiv.org/abs/1912.05671

  >>> early, trained = {'w': jnp.array([[5.0, 6.0], [7.0, 8.0]])}, {'w': jnp.array([[9.0, 0.1], [0.2, 9.0]])}
  >>> rewind(trained, early, 0.5)[0]['w'].tolist()
  [[5.0, 0.0], [0.0, 8.0]]
  """
  if jax.tree.structure(trained) != jax.tree.structure(early):
    odd = sorted({*trees.paths(trained)} ^ {*trees.paths(early)})
    raise ValueError(f'rewind takes two states of one network; {odd or "their containers"} differ: give both params')
  _, masks = sparsify(
    trained, sparsity, score=score, context=context, structure=structure, allocate=allocate, select=select
  )
  return masking.applied(jax.tree.map(jnp.asarray, early), masks), masks


def rounds(sparsity: float, count: int) -> list[float]:
  """Returns the sparsity after each round when every round removes the same share of what lives.

  Args:
    sparsity: after the last round, in [0, 1).
    count: rounds, at least 1.

  >>> [round(share, 3) for share in rounds(0.875, 3)]
  [0.5, 0.75, 0.875]
  """
  sparsity, count = number(sparsity, 'rounds: sparsity'), whole(count, 'rounds: count', least=1)
  if not 0 <= sparsity < 1:
    raise ValueError(f'rounds: sparsity lies in [0, 1); got {sparsity}')
  return [1 - (1 - sparsity) ** (done / count) for done in range(1, count)] + [sparsity]
