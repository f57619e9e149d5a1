"""What program.json says of a stored program, and whether it has the shape that a run gives it.

Beside the arrays that the program reads stands how the values of a checkpoint become those of the bare network
(`Model.export`: averages taken, masks merged, what hooks added left out): most are leaves of the checkpoint by another
name, and what is computed is a second result of the same program. So a network is opened (`opening.py`) without the
recipe that trained it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlite import trees
from jaxlite.contract import CONST, Model
from jaxlite.host.sealed import Damaged


class Own(NamedTuple):
  """How the bare network's own values come of those that are served.

  Attributes:
    sources: of each own value, by path, the served one that it is, or its place among `merged`; None where
      `Model.export` cannot be read.
    merged: served values -> those that are computed.
  """

  sources: dict[str, str | int] | None
  merged: Callable[[dict[str, Any]], list[Any]]


def own_of(model: Model, served: dict[str, Any]) -> Own:
  """Reads `Model.export`.

  Args:
    model: wrapped in its hooks.
    served: params and model_state that prediction needs; shapes are enough.
  """

  def exported(served: dict[str, Any]) -> dict[str, Any]:
    params, state = model.export(served['params'], served['model_state'])
    state = {name: value for name, value in state.items() if name == CONST or not trees.is_extra(name)}
    return {'params': params, 'model_state': state}

  try:
    jaxpr, shapes = jax.make_jaxpr(exported, return_shape=True)(served)
  except Exception:  # a hook of one's own, which computes with NumPy, say
    return Own(None, lambda served: [])
  given = dict(zip(jaxpr.jaxpr.invars, trees.paths(served), strict=True))
  names = trees.paths(shapes)
  computed = [
    name for name, var in zip(names, jaxpr.jaxpr.outvars, strict=True) if hasattr(var, 'val') or var not in given
  ]

  def merged(served: dict[str, Any]) -> list[Any]:
    if not computed:
      return []
    found = trees.by_path(exported(served))
    return [found[name] for name in computed]

  sources: dict[str, str | int] = {
    name: computed.index(name) if name in computed else given[var]
    for name, var in zip(names, jaxpr.jaxpr.outvars, strict=True)
  }
  return Own(sources, merged)


def check_about(about: dict[str, Any]) -> None:
  """Raises Damaged where what is said of a program has another shape than was ever written."""
  arrays, inputs, batch = about.get('arrays'), about.get('inputs'), about.get('batch')
  if not isinstance(arrays, list) or not all(isinstance(name, str) for name in arrays):
    raise Damaged('it does not name its arrays')
  if 'batch' not in about or not (batch is None or (type(batch) is int and batch > 0)):
    raise Damaged('its batch size is none')
  try:
    sizes = [size for one in inputs or () for size in one['shape']]
    known = [jnp.dtype(str(one['dtype'])) for one in inputs or ()]
  except (TypeError, KeyError, AttributeError, ValueError, SyntaxError, RecursionError):  # of a dtype: any of them
    raise Damaged('it does not name its inputs') from None
  if not known or not all(type(size) is int and size >= 0 for size in sizes):
    raise Damaged('it does not name its inputs')
  if ('own' in about) != ('made' in about):  # older versions wrote neither
    raise Damaged(f'{"made" if "own" in about else "own"!r} is missing')
  if 'own' in about:
    _check_own(about['own'], arrays)
    _check_made(about['made'])


def check_results(about: dict[str, Any], tree: Any) -> bool:
  """Tells whether a program gives the results that are said of it.

  Args:
    about: as `check_about` found it sound.
    tree: the structure of the program's results.
  """
  if 'own' not in about:
    return True  # outputs alone
  results = jax.tree.unflatten(tree, range(tree.num_leaves))
  merged = {one for one in (about['own'] or {}).values() if isinstance(one, int)}
  return type(results) is tuple and len(results) == 2 and type(results[1]) is list and len(results[1]) == len(merged)


def _check_own(own: Any, arrays: list[str]) -> None:
  if own is None:
    return
  if not isinstance(own, dict) or not all(type(one) in (int, str) for one in own.values()):
    raise Damaged('it does not say where the values of the network come from')
  known = set(arrays)
  if lost := [one for one in own.values() if isinstance(one, str) and one not in known]:
    raise Damaged(f'the network has {lost[0][:80]!r}, which is none of its arrays')
  places = {one for one in own.values() if isinstance(one, int)}
  if places != set(range(len(places))):
    raise Damaged('the computed values of the network are not counted from 0')
  if strange := [name for name in own if not name.startswith(('params/', 'model_state/'))]:
    raise Damaged(f'the network has {strange[0][:80]!r}, which is neither a parameter nor a state')


def _check_made(made: Any) -> None:
  if not isinstance(made, dict):
    raise Damaged('it does not say how its model was made')
  around = made.get('around', [])
  if not isinstance(around, list) or not all(isinstance(name, str) for name in around):
    raise Damaged('it does not name what stands around its model')
  for name, kind in (('version', str), ('plain', bool), ('quantized', bool)):
    if not isinstance(made.get(name, kind()), kind):
      raise Damaged(f'its {name!r} is no {kind.__name__}')
  network = made.get('network')
  if network is None:
    return
  if not isinstance(network, dict) or not isinstance(network.get('network'), str):
    raise Damaged('it does not name its network')
  if not isinstance(network.get('fields'), dict):
    raise Damaged('it does not name the fields of its network')
