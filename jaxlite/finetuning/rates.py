"""Rates by depth: lower layers learn slower, or begin later. Depth is the order in which a program uses its weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlite import trees
from jaxlite.contract import Account
from jaxlite.errors import counted, whole


def depths(order: Sequence[str], paths: Sequence[str]) -> dict[str, float]:
  """Returns how deep each parameter lies: 0 for the first weight of a program, 1 for what is behind the last.

  Args:
    order: paths of the backbone's weights as the program uses them (`Backbone.order`).
    paths: of all parameters. A bias, a norm, an embedding lies where the weight does that shares most of its path; what
      is beside none (the new head, what hooks added) is 1.

  >>> depths(['a/kernel', 'b/kernel'], ['a/bias', 'a/kernel', 'b/kernel', 'head/kernel'])
  {'a/bias': 0.0, 'a/kernel': 0.0, 'b/kernel': 0.5, 'head/kernel': 1.0}
  """
  place = {path: index for index, path in enumerate(order)}
  parts = {path: path.split('/') for path in order}

  def of(path: str) -> float:
    if path in place:
      return place[path] / len(order)
    own = path.split('/')
    shared = {one: _shared(own, those) for one, those in parts.items()}
    most = max(shared.values(), default=0)
    if trees.is_extra(path) or path.startswith('head/'):
      return 1.0
    if not most:
      return 0.0  # beside no weight: an embedding, a class token, which stand before the first
    return min(place[one] for one in order if shared[one] == most) / len(order)

  return {path: of(path) for path in paths}


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
  return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


class RatesState(NamedTuple):
  """State of `rates_by_depth`.

  Attributes:
    rates: float32[] for each parameter.
  """

  rates: Any

  def account(self, params: Any) -> Account:
    """Tells the smallest and the largest rate."""
    found = [float(np.min(np.asarray(one))) for one in jax.tree.leaves(self.rates)]
    return Account(touched=f'{counted(len(found), "array")} at {min(found):.3g} to {max(found):.3g} of the rate')


def rates_by_depth(order: Sequence[str], ratio: float) -> optax.GradientTransformation:
  """Scales updates by depth: of the first layer by `ratio`, of the head by 1, geometrically between.

  A decay of d a layer over L layers is `ratio=d**L`. It belongs behind the optimizer, which may be any.

  Args:
    order: paths of weights as the program uses them (`Backbone.order`).
    ratio: of the first layer's rate to the head's, in (0, 1].

  Returns:
    An Optax transformation.

  Raises:
    ValueError: a ratio outside (0, 1]; at init, no parameter that the order names.

  References:
    Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, 2018,
    https://arxiv.org/abs/1801.06146

  >>> tx = rates_by_depth(['a', 'b'], 0.25)
  >>> params = {'a': jnp.ones(1), 'b': jnp.ones(1), 'head': {'bias': jnp.ones(1)}}
  >>> jax.tree.map(float, tx.init(params).rates)
  {'a': 0.25, 'b': 0.5, 'head': {'bias': 1.0}}
  """
  if not 0 < ratio <= 1:
    raise ValueError(f'the ratio of the first rate to the last is in (0, 1]; got {ratio}')

  def init(params: Any) -> RatesState:
    known = _known(order, params, 'rates_by_depth')
    found = trees.map_with_path(lambda path, leaf: jnp.float32(ratio ** (1 - known[path])), params)
    return RatesState(found)

  def update(updates: Any, state: RatesState, params: Any = None) -> tuple[Any, RatesState]:
    del params
    return jax.tree.map(lambda u, rate: u * rate.astype(u.dtype), updates, state.rates), state

  return optax.GradientTransformation(init, update)


class ThawState(NamedTuple):
  """State of `thaw`.

  Attributes:
    count: int32[], updates done.
    begins: int32[] for each parameter: the update from which on it learns.
  """

  count: jax.Array  # type: ignore[assignment]  # tuples have a method of this name
  begins: Any

  def account(self, params: Any) -> Account:
    """Tells when layers began to learn, and which never did."""
    names, leaves, _ = trees.flatten(self.begins)
    starts = sorted({int(np.min(np.asarray(one))) for one in leaves})
    never = [
      name for name, one in zip(names, leaves, strict=True) if int(np.min(np.asarray(one))) >= np.min(self.count)
    ]
    return Account(
      when=', '.join(f'from step {one}' for one in starts[:6]), left=f'{len(never)} arrays never began' if never else ''
    )


def thaw(order: Sequence[str], phases: int, steps: int) -> optax.GradientTransformation:
  """Lets layers begin to learn one group after the other, the last first: gradual unfreezing within one run.

  Updates of a parameter are exactly 0 before its time. It comes last, after weight decay and the rate; moments before
  it are gathered all along, and so gradients are computed all along. Where that is too dear, `jl.optim.unfreezing`
  trains in phases, each a program of its own.

  Args:
    order: paths of weights as the program uses them.
    phases: how many; in the first the head alone learns, in the last everything.
    steps: how long each phase is, but for the last.

  Returns:
    An Optax transformation.

  References:
    Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, 2018,
    https://arxiv.org/abs/1801.06146

  >>> tx = thaw(['a', 'b'], 3, 10)
  >>> params = {'a': jnp.ones(1), 'b': jnp.ones(1), 'head': {'bias': jnp.ones(1)}}
  >>> jax.tree.map(int, tx.init(params).begins)
  {'a': 20, 'b': 10, 'head': {'bias': 0}}
  """
  phases, steps = whole(phases, 'phases', least=2), whole(steps, 'steps', least=1)

  def init(params: Any) -> ThawState:
    known = _known(order, params, 'thaw')

    def begins(path: str, leaf: Any) -> jax.Array:
      del leaf
      if known[path] >= 1:
        return jnp.int32(0)
      return jnp.int32(steps * (phases - 1 - int(known[path] * (phases - 1))))

    return ThawState(jnp.zeros((), jnp.int32), trees.map_with_path(begins, params))

  def update(updates: Any, state: ThawState, params: Any = None) -> tuple[Any, ThawState]:
    del params
    held = jax.tree.map(lambda u, at: jnp.where(state.count >= at, u, jnp.zeros_like(u)), updates, state.begins)
    return held, ThawState(optax.safe_increment(state.count), state.begins)

  return optax.GradientTransformation(init, update)


def _known(order: Sequence[str], params: Any, what: str) -> dict[str, float]:
  paths = trees.paths(params)
  if not set(order) & set(paths):
    raise ValueError(
      f'{what} takes the paths of weights, {", ".join(list(order)[:3])}; none is a parameter here: {paths[:3]}'
    )
  return depths(order, paths)
