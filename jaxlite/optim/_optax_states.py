"""What is to be said of Optax's own states, which carry no methods of ours: one table, and the count that most keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from jaxlite.contract import Account
from jaxlite.errors import counted


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
