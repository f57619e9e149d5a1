"""The bare network's own values out of a run's folder, by the names that its framework gives them."""

from __future__ import annotations

from typing import Any

from jaxlite import trees
from jaxlite.contract import CONST
from jaxlite.deployment.held import Held


def own_arrays(held: Held) -> dict[str, Any]:
  """Returns parameters and collections of state without what hooks added; statistics of standardized inputs stay.

  Names are paths joined by '/': 'params/dense1/kernel', 'batch_stats/bn1/mean', 'normalize/mean'.
  """
  own = held.stored.own(held.values)
  if own is None:
    own = {name: value for name, value in held.values.items() if not _is_hooks(name)}
  return {own_name(name): value for name, value in own.items()}


def own_name(path: str) -> str:
  """Returns the name of an own value by its path in a checkpoint.

  >>> own_name('params/dense1/kernel'), own_name('model_state/batch_stats/bn1/mean')
  ('params/dense1/kernel', 'batch_stats/bn1/mean')
  """
  kind, _, rest = path.partition('/')
  return path if kind == 'params' else rest.removeprefix(f'{CONST}/')


def _is_hooks(name: str) -> bool:
  kind, _, rest = name.partition('/')
  return trees.is_extra(rest) and not (kind == 'model_state' and rest.startswith(f'{CONST}/'))
