"""Whether a run's batch may be taken in parts: told by trying it, since a loss of one's own may compare examples."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import jax

from jaxlite.contract import chain, join_const
from jaxlite.graph.init_numpy import on_host
from jaxlite.optim import accumulate
from jaxlite.planning.edits import OTHER, ROUNDING, Edit
from jaxlite.planning.flow import size_of
from jaxlite.run.setup import Setup
from jaxlite.step.gradient import gradient_of
from jaxlite.tasks.lift import examples_in, lift_loss

PARTS = 'machine.micro_batches'
_FEW, _NEAR = 8, 1e-5  # examples that are tried; how far gradients may be apart, of the largest entry
_COPIES = 6  # of a state, while that is tried


def parts_agree(setup: Setup) -> bool:
  """Tells whether micro-batches give the gradient of the whole batch, tried on a few examples: not where a loss
  compares the examples of a batch with each other."""
  loss = setup.config.loss or setup.data.task.loss(setup.data.facts)
  inner = gradient_of(setup.train.model, setup.recipe.loss(lift_loss(loss)))
  state = setup.train.init(on_host(lambda: jax.random.key(setup.config.seed))(), setup.first_batch)
  has = examples_in(setup.first_batch)[1]
  few = jax.tree.map(lambda leaf, one: leaf[:_FEW] if one else leaf, dict(setup.first_batch), has)
  found = []
  for recipe in (setup.recipe, chain(setup.recipe, accumulate(2, name=PARTS))):
    full = join_const(state.model_state, state.const)
    with warnings.catch_warnings():
      warnings.filterwarnings('ignore', 'accumulate: what')  # that is what is asked here
      found.append(jax.jit(recipe.grad(inner))(state.params, full, few, state.key, state.step)[0])
  leaves = zip(*map(jax.tree.leaves, found), strict=True)
  apart = [(float(abs(one - other).max()), float(abs(one).max())) for one, other in leaves if one.size]
  return max(one for one, _ in apart) <= _NEAR * max(size for _, size in apart)


def labelled(setup: Setup, edits: Sequence[Edit], room: int) -> list[Edit]:
  """Returns changes of which those that take a batch in parts say what that does to this run's result.

  Args:
    setup: of the run as it is.
    edits: the changes.
    room: bytes of memory that may be taken to try it; where a state takes more, they are left as they are.
  """
  asked = [edit for edit in edits if PARTS in edit.fields and edit.result == ROUNDING]
  size = sum(map(size_of, jax.tree.leaves(setup.abstract)))
  if not asked or _COPIES * size > room or parts_agree(setup):
    return list(edits)
  return [edit._replace(result=OTHER) if edit in asked else edit for edit in edits]
