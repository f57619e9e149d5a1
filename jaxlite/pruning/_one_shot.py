"""One-shot pruning of a trained network: weights and masks in one call, by any score."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxlite import trees
from jaxlite.pruning import _masks as masking
from jaxlite.pruning._allocate import Allocate, erk
from jaxlite.pruning._choose_masks import (
  Structures,
  Target,
  draw,
  leaves_at,
  lowest,
  refuse_negative,
  scores_of,
  targets,
)
from jaxlite.pruning._mask_state import laid_out, layouts_in
from jaxlite.pruning._selection import maskable
from jaxlite.pruning._statistics import Calibration
from jaxlite.pruning._structure import element
from jaxlite.pruning.scores import Score, magnitude, wanda
from jaxlite.pruning.sparsity_schedules import share_of


def sparsify(
  params: Any,
  sparsity: float,
  *,
  score: Score = magnitude,
  context: Any = None,
  structure: Structures = element,
  allocate: Allocate = erk,
  select: trees.Rule = None,
  packed: bool = False,
) -> tuple[Any, Any]:
  """Zeroes the weights that matter least, at once.

  Args:
    params: any pytree of arrays.
    sparsity: the share of the selected weights that becomes zero, in [0, 1).
    score: (params, context) -> tree like params, non-negative: the largest live.
    context: what the score reads; a `Calibration` also tells which leaves are weights and how their axes lie.
    structure: `element`, `channel()`, `n_m(2, 4)`, ...; or {regular expression on paths: structure}.
    allocate: `erk`, `uniform`, `global_()`; or {regular expression on paths: sparsity}.
    select: a rule on paths; None takes the calibration's weights, without one by shape and name.
    packed: give the masks as bits.

  Returns:
    (params with exact zeros, masks: a tree like params with None where nothing is pruned). `hold(masks)` keeps them
    in fine-tuning.

  Raises:
    ValueError: a sparsity outside [0, 1), no weight selected, a rule that matches nothing, scores below 0; `wanda` for
      a weight of whose inputs the calibration knows nothing.

  >>> import jax.numpy as jnp
  >>> params, masks = sparsify({'w': jnp.array([[1.0, 4.0], [3.0, 2.0]]), 'b': jnp.ones(2)}, 0.5)
  >>> params['w'].tolist(), masks['b']
  ([[0.0, 4.0], [3.0, 0.0]], None)
  """
  goals = goals_of(params, sparsity, context, structure, allocate, select, what='sparsify')
  if score is wanda and isinstance(context, Calibration):
    for path, why in context.layouts.skipped:
      if path in goals:
        raise ValueError(f'wanda knows nothing of the inputs of {path!r}: {why}; select= leaves it out')

  @jax.jit
  def drawn(params: Any, context: Any) -> Any:
    scores = scores_of(score, params, context, goals, what='sparsify')
    return draw(goals, scores), lowest(scores)

  found, least = drawn(params, context)
  refuse_negative(least, 'sparsify')
  return masking.applied(params, laid_out(found, params, False)), laid_out(found, params, packed)


def goals_of(
  params: Any,
  sparsity: float,
  context: Any,
  structure: Structures,
  allocate: Allocate,
  select: trees.Rule,
  *,
  what: str,
) -> dict[str, Target]:
  """Decides what each leaf becomes; a `Calibration` knows the weights and their axes."""
  sparsity = share_of(sparsity, what)
  for path, leaf in trees.by_path(params).items():
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int | complex):
      raise TypeError(f'{what} takes arrays; {path!r} is {type(leaf).__name__}: filter the module, eqx.is_array')
  known = context.layouts if isinstance(context, Calibration) else None
  chosen, layouts = maskable(params, select, known, what=what)
  return targets(leaves_at(params, chosen), layouts_in(layouts), sparsity, structure, allocate, what=what)
