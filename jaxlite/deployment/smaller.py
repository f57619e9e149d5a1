"""A network cut down to a budget before it is written: what is removed, and what that costs on a person's own data.

The network of a run is there as its list of operations, weights open, whatever framework it was written in; that list
is a program like any other, in which units are found, scored by their weights and removed (`shrink`). How much goes is
found by halving: each trial is counted, or written and measured, as it will be.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import Model, Network, Params, State
from jaxlite.deployment.list_model import list_model
from jaxlite.deployment.operations import listing
from jaxlite.deployment.sealed_values import own_name
from jaxlite.deployment.sheet import Cut, said
from jaxlite.deployment.shrink import Shrunk, ways
from jaxlite.deployment.subject import Subject

Measure = Callable[[Subject], dict[str, float]]  # only what the budget names


def within(
  subject: Subject, budget: Mapping[str, float], measure: Measure, say: Callable[[str], None]
) -> tuple[Subject, Cut | None]:
  """Returns the network, cut where it does not meet a budget.

  Args:
    subject: what is deployed.
    budget: at most so much of each.
    measure: of a network, what the budget names.
    say: prints a line.

  Raises:
    ValueError: nothing of it can be removed; no width meets the budget, and the nearest is told.
  """
  before = measure(subject)
  if _meets(before, budget):
    return subject, None
  over = ', '.join(f'{name} {said(name, before[name])} of {said(name, most)}' for name, most in budget.items())
  say(f'over the budget ({over}): removing units')
  nearest, refusal = None, ''
  for multiple in (8, 1):  # widths of whole vectors, and any where these do not reach
    try:
      model, params, state = _traceable(subject)
      found = ways(model, params, state, subject_inputs(subject), multiple=multiple, key=jax.random.key(0))
    except ValueError as error:
      refusal = str(error)
      continue
    by = 'flops' if {*budget} & {'flops', 'macs', 'latency'} else 'parameters'
    points = list(found.path.walk(by))
    least = _candidate(subject, found.make(points[-1]))
    nearest = measure(least[0])
    if not _meets(nearest, budget):
      continue
    return _search(subject, points, found.make, (*least, nearest), budget, measure, before)
  if nearest is None:
    raise ValueError(f'the budget is not met ({over}), and nothing can be removed: {refusal}')
  told = ', '.join(f'{name}={said(name, most)}' for name, most in budget.items())
  near = ', '.join(f'{name}={said(name, nearest[name])}' for name in budget)
  raise ValueError(f'the budget {told} cannot be met: the nearest is {near}, with one unit of each group left')


def _search(
  subject: Subject,
  points: Sequence[Sequence[int]],
  make: Callable[[Sequence[int]], Shrunk],
  least: tuple[Subject, Shrunk, dict[str, float]],
  budget: Mapping[str, float],
  measure: Measure,
  before: Mapping[str, float],
) -> tuple[Subject, Cut]:
  low, high, (best, small, after) = 0, len(points) - 1, least
  while high - low > 1:
    middle = (low + high) // 2
    tried, cut = _candidate(subject, make(points[middle]))
    found = measure(tried)
    if _meets(found, budget):
      high, best, small, after = middle, tried, cut, found
    else:
      low = middle
  groups = tuple(str(one) for one in small.groups if one.kept < one.units)
  return best, Cut(groups, {name: before[name] for name in budget}, {name: after[name] for name in budget})


def _meets(found: Mapping[str, float], budget: Mapping[str, float]) -> bool:
  return all(found[name] <= most for name, most in budget.items())


def subject_inputs(subject: Subject) -> Any:
  """Returns the shapes of two examples."""
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape[1:]), leaf.dtype), subject.inputs)


def _candidate(subject: Subject, small: Shrunk) -> tuple[Subject, Shrunk]:
  network = subject.network._replace(model=small.model, params=small.params, model_state=small.model_state)
  graph, why = None, ''
  try:
    graph = listing.network_graph(network, subject_inputs(subject))
  except ValueError as error:
    why = str(error)
  return subject._replace(network=network, graph=graph, why=why, arrays=_own_values(subject, small)), small


def _own_values(subject: Subject, small: Shrunk) -> dict[str, Any]:
  """The bare network's own values, cut as the leaves are that they come of: frozen and averaged ones bear other names,
  and of what is merged the one that ends alike tells."""
  leaves = {**trees.by_path(small.params), **trees.by_path(small.model_state)}
  sources: Mapping[str, Any] = {} if subject.held is None else subject.held.stored.about.get('own') or {}
  come = {own_name(name): source for name, source in sources.items()}

  def cut(name: str, array: Any) -> Any:
    source, bare = come.get(name, name), name.removeprefix('params/')
    for one in (source.partition('/')[2] if isinstance(source, str) else '', name, bare):
      if one in leaves:
        return small.cut({one: array})[one]
    found = []
    for one, left in leaves.items():
      if one.endswith(f'/{bare}'):
        with contextlib.suppress(ValueError):  # of another shape
          tried = small.cut({one: array})[one]
          found += [tried] if tried.shape == left.shape else []
    if not found and isinstance(source, int):
      raise ValueError(f'{name} is computed of what was trained, and how it is cut is not known: give model=')
    if any(not np.array_equal(one, found[0], equal_nan=True) for one in found[1:]):
      raise ValueError(f'{name} may be cut as several leaves are that end alike: give model=')
    return found[0] if found else array

  return {name: cut(name, array) for name, array in subject.arrays.items()}


def _traceable(subject: Subject) -> tuple[Model, Params, State]:
  """The network as a program whose equations are seen."""
  network = subject.network
  if not getattr(network.model.apply, 'sealed', False):
    return network.model, network.params, network.model_state
  if subject.held is None:
    raise ValueError('what was loaded without its model is a compiled program: deploy the folder of its run')
  outputs = jax.tree.structure(jax.eval_shape(_forward(subject.network), subject_inputs(subject)))
  return list_model(subject.held, outputs)


def _forward(network: Network) -> Callable[[Any], Any]:
  return lambda inputs: network.model.apply(network.params, network.model_state, inputs, train=False, key=None)[0]


def seconds(subject: Subject) -> float:
  """Measures a call with one example: the median of 30 after 3, of one compiled program on this machine."""
  return call_seconds(subject.network, subject.inputs)


def call_seconds(network: Network, inputs: Any) -> float:
  """As `seconds`, of a network and inputs [N, ...] of which the first is taken."""
  one = jax.tree.map(lambda leaf: jnp.asarray(leaf[:1]), inputs)
  apply, values = network.model.apply, (network.params, network.model_state)
  run = getattr(apply, 'compiled', jax.jit)(lambda *given: apply(*given, train=False, key=None)[0])
  times = []
  for _ in range(33):
    begin = time.perf_counter()
    jax.block_until_ready(run(*values, one))
    times.append(time.perf_counter() - begin)
  return float(np.median(times[3:]))


def file_bytes(write: Callable[[Path], Any]) -> int | None:
  """Returns the bytes of a file that is written aside and thrown away; None where it cannot be written."""
  with tempfile.TemporaryDirectory(prefix='jaxlite-size-') as folder:
    path = Path(folder, 'file')
    try:
      write(path)
    except (ValueError, ImportError):
      return None
    return os.path.getsize(path)
