"""Standardising inputs on the device, as part of the model: what is saved with it is what predicts with it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.contract import CONST, Hook, Model, Params, State, drop_extras, with_const


def normalize(mean: Any, std: Any, *, name: str = 'normalize') -> Hook:
  """Subtracts a mean from the inputs and divides by a standard deviation before the model sees them.

  Args:
    mean: float[...], broadcast against one example, in the units of the raw inputs.
    std: float[...], positive.
    name: the hook's name.

  Returns:
    A Hook on the model. Inputs may be integers, e.g. uint8 images; they become float32. Other pytrees than
    an array are normalised leaf by leaf. `export` keeps the statistics, since a deployed model needs them.

  Raises:
    ValueError: a standard deviation that is not positive, or a statistic that is not finite.

  >>> import jax, jax.numpy as jnp
  >>> base = Model(lambda key, x: ({}, {}), lambda p, s, x, **_: (x, s))
  >>> model = normalize([2.0], [0.5]).model(base)
  >>> params, state = model.init(None, jnp.ones((1, 1)))
  >>> model.apply(params, state, jnp.array([[3]], jnp.uint8), train=False, key=None)[0].tolist()
  [[2.0]]
  """
  mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
  if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
    raise ValueError(f'normalize: statistics are finite and std positive; got mean={mean}, std={std}')

  def standardise(state: State, inputs: Any) -> Any:
    own = state[CONST][name]
    return jax.tree.map(lambda leaf: (leaf.astype(jnp.float32) - own['mean']) / own['std'], inputs)

  def model(inner: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      constants = {'mean': jnp.asarray(mean), 'std': jnp.asarray(std)}
      params, state = inner.init(key, standardise(with_const({}, name, constants), inputs))
      return params, with_const(state, name, constants)

    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      return inner.apply(params, state, standardise(state, inputs), train=train, key=key, step=step)

    def export(params: Params, state: State) -> tuple[Params, State]:
      params, stripped = inner.export(params, drop_extras(state, name))
      return params, with_const(stripped, name, state[CONST][name])

    return Model(init, apply, inner.after, export)

  return Hook(name, model=model)
