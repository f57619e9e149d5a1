"""What is to be said of Optax's own states, which carry no methods of ours, beside what states tell of themselves.

What they did, whether they left an update out, where a model is to be read, and which of them no train step can serve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlite import trees
from jaxlite.contract import Account, Params
from jaxlite.errors import counted
from jaxlite.tasks import running


def optax_account(state: Any) -> Account | None:
  """Tells what a state without a method `account` shows all the same.

  Args:
    state: one state, not what lies inside it.

  Returns:
    The Account; None where nothing is known of it.

  >>> import jax.numpy as jnp
  >>> tx = optax.apply_if_finite(optax.scale_by_adam(), 3)
  >>> state = tx.init({'w': jnp.ones(2)})
  >>> _, state = tx.update({'w': jnp.array([1.0, jnp.nan])}, state)
  >>> optax_account(state).left
  '1 update was not finite and left out'
  >>> optax_account(state.inner_state).when
  '0 steps'
  """
  tell = _TOLD.get(type(state))
  if tell is not None:
    return tell(state)
  count = getattr(state, 'count', None) if 'count' in getattr(type(state), '_fields', ()) else None
  return None if count is None else Account(counted(int(np.max(count)), 'step'))


def rejected(opt_state: Any) -> jax.Array | None:
  """Tells whether a part left the last update out, as its state says; None where none of them ever does.

  >>> tx = optax.apply_if_finite(optax.sgd(0.1), 3)
  >>> _, state = tx.update({'w': jnp.array([jnp.nan])}, tx.init({'w': jnp.ones(1)}))
  >>> bool(rejected(state)), rejected(optax.sgd(0.1).init({'w': jnp.ones(1)}))
  (True, None)
  """
  said = [node.status().rejected for node in trees.able(opt_state, 'status')]
  said = [one for one in said if one is not False]
  said += [~node.last_finite for node in trees.nodes(opt_state, _is(optax.ApplyIfFiniteState))]
  return jnp.any(jnp.stack(said)) if said else None


def evaluation_point(opt_state: Any, params: Params) -> Params | None:
  """Returns the params that a model is to be read at when it does not train; None where they are the params themselves.

  Args:
    opt_state: the state of the update parts.
    params: those that train. One that is exactly zero (pruned) is exactly zero in what is returned.

  >>> tx = optax.contrib.schedule_free_sgd(1.0, b1=0.5)
  >>> params = {'w': jnp.array([3.0, 0.0])}
  >>> state = tx.init({'w': jnp.array([1.0, 1.0])})
  >>> evaluation_point(state, params)['w'].tolist()
  [5.0, 0.0]
  """
  points = [node.point for node in trees.able(opt_state, 'point')]
  points += [_schedule_free(node) for node in trees.nodes(opt_state, _is(optax.contrib.ScheduleFreeState))]
  if not points:
    return None
  read = params
  for point in points:
    read = point(read)
  return jax.tree.map(lambda own, live: jnp.where(live == 0, live, own).astype(live.dtype), read, params)


def _schedule_free(state: Any) -> Callable[[Params], Params]:
  """Of the leaves that this state has: it may stand inside a mask."""
  others = trees.by_path(state.z)

  def leaf(path: str, live: Any) -> Any:
    if path not in others:
      return live
    return (running.widened(live) - (1.0 - state.b1) * running.widened(others[path])) / state.b1

  return lambda params: trees.map_with_path(leaf, params)


def refuse_unfit(opt_state: Any) -> None:
  """Raises where a part of Optax needs what no train step has, naming what to use.

  Raises:
    ValueError: such a part.
  """
  for kind, why in _UNFIT.items():
    if trees.nodes(opt_state, _is(kind)):
      raise ValueError(why)


def _is(kind: type) -> Callable[[Any], bool]:
  return lambda node: isinstance(node, kind)


_UNFIT: dict[type, str] = {
  optax.MultiStepsState: (
    'optax.MultiSteps hides steps from other parts: take it out and put jl.accumulate(k) in the chain'
  ),
  optax.contrib.DifferentiallyPrivateAggregateState: (
    'optax.contrib.dpsgd asks for the gradient of each example, which no step takes: use it in your own loop, with '
    'jax.vmap(jax.grad(...))'
  ),
  optax.LookaheadState: (
    'optax.lookahead trains pairs of params, which no model takes: use its fast optimizer alone, with jl.average() for '
    'the slow ones'
  ),
  optax.contrib.SAMState: (
    'optax.contrib.sam spreads its passes over several steps and batches: use its optimizer alone, with '
    'jl.optim.sam(rho)'
  ),
  optax.contrib.HutchinsonState: (
    'optax.contrib.sophia asks for obj_fn, second derivatives of a loss that hooks have a say in: use optax.adamw, or '
    'optax.lbfgs'
  ),
}


def _injected(state: Any) -> Account:
  rate = state.hyperparams.get('learning_rate')
  return Account(counted(int(np.max(state.count)), 'step'), '' if rate is None else _rate(rate))


def _searched(state: Any) -> Account:
  return Account(touched=_rate(state.learning_rate))


def _rate(rate: Any) -> str:
  return f'the learning rate was {float(np.mean(rate)):g} at the end'


def _finite(state: Any) -> Account:
  bad = int(np.max(state.total_notfinite))
  were = 'was' if bad == 1 else 'were'
  return Account(left=f'{counted(bad, "update")} {were} not finite and left out' if bad else '')


def _zeroed(state: Any) -> Account:
  bad = sum(int(np.any(found)) for found in jax.tree.leaves(state.found_nan))
  return Account(left=f'NaN was set to zero in {counted(bad, "array")} at the last step' if bad else '')


def _fallen(state: Any) -> Account:
  return Account(touched=f'updates are multiplied by {float(np.mean(state.scale)):g} at the end')


_TOLD: dict[type, Callable[[Any], Account]] = {
  optax.ApplyIfFiniteState: _finite,
  optax.InjectHyperparamsState: _injected,
  optax.InjectStatefulHyperparamsState: _injected,
  optax.ScaleByBacktrackingLinesearchState: _searched,
  optax.ScaleByZoomLinesearchState: _searched,
  optax.ZeroNansState: _zeroed,
  optax.contrib.ReduceLROnPlateauState: _fallen,
}
