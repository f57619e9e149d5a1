"""Which leaves a part may mask: the weights, less those whose zeros are no zeros where they are multiplied."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from jaxlite import trees
from jaxlite.graph.layouts import Layouts
from jaxlite.graph.zeros import told


def maskable(
  params: Any, select: trees.Rule, weights: Mapping[str, Any] | Layouts | None, *, what: str
) -> tuple[frozenset[str], Layouts | None]:
  """Decides what a part masks, and what its state must remember of the axes.

  Args:
    params: any pytree of arrays.
    select: the user's rule, or None for the weights.
    weights: their layouts, read off the program; None in a foreign loop, where names and shapes have to do.
    what: names the part in an error.

  Returns:
    The chosen paths and their Layouts, which also tell what was left out; None where nothing is known.

  Raises:
    ValueError: nothing is chosen, or a rule names a leaf that masks would not take out of its product.

  >>> import numpy as np
  >>> maskable({'w': np.ones((2, 2)), 'b': np.ones(2)}, None, None, what='prune')
  (frozenset({'w'}), None)
  """
  known: Mapping[str, Any] | None
  if isinstance(weights, Layouts):
    known, filled = weights.by_path(), dict(weights.filled)
  else:
    known, filled = weights, dict(getattr(weights, 'filled', {}))
  chosen = trees.weight_paths(params, select, known, what=what)
  out = sorted(chosen & filled.keys())
  if out and (select is not None or len(out) == len(chosen)):
    raise ValueError(
      f'{what}: masking {out[0]!r} would not take it out: {told(filled[out[0]])}; leave it out with select=, or let '
      'the network multiply a weight that is zero where the array is'
    )
  chosen -= frozenset(out)
  if not isinstance(known, Mapping):
    return chosen, None
  without = tuple((path, filled[path]) for path in out)
  layouts = Layouts(tuple((path, known.get(path)) for path in sorted(chosen)), filled=without)
  if without:
    warnings.warn(f'{what}: {left_out(layouts)}; select= names what is to be masked', stacklevel=3)
  return chosen, layouts


def left_out(layouts: Layouts | None) -> str:
  """Tells for the ledger which weights are not masked, and why; '' where all are.

  >>> left_out(Layouts(filled=(('w', 'exp'),)))
  "'w' is not masked: a zero in it is none in what is multiplied ('exp' stands between)"
  """
  if layouts is None or not layouts.filled:
    return ''
  (path, why), more = layouts.filled[0], len(layouts.filled) - 1
  return f'{path!r}{f" and {more} more" if more else ""} {"are" if more else "is"} not masked: {told(why)}'
