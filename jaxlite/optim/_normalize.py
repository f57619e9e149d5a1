"""Standardizing inputs on the device, as part of the model: what is saved with it is what predicts with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.contract import CONST, Hook, Model, Params, State, drop_extras, with_const


def normalize(mean: Any, std: Any, *, name: str = 'normalize') -> Hook:
  """Subtracts a mean from the inputs and divides by a standard deviation before the model sees them.

  Args:
    mean: float[...], broadcast against one example, in the units of the raw inputs; or a tree like the inputs, with
      None for each leaf that is left as it is (ids, masks). None leaves all inputs as they are.
    std: as `mean`, positive.
    name: the hook's name.

  Returns:
    A Hook on the model. Inputs may be integers, e.g. uint8 images; they become float32. Where `mean` is an array and
    the inputs are a tree, it holds for every leaf that is not bool. `export` keeps the statistics, since a deployed
    model needs them.

  Raises:
    ValueError: a standard deviation that is not positive, a statistic that is not finite, a mean without its std; at
      init, trees that are not like the inputs, or a statistic that is larger than an example.

  >>> import jax, jax.numpy as jnp
  >>> base = Model(lambda key, x: ({}, {}), lambda p, s, x, **_: (x, s))
  >>> model = normalize([2.0], [0.5]).model(base)
  >>> params, state = model.init(None, jnp.ones((1, 1)))
  >>> model.apply(params, state, jnp.array([[3]], jnp.uint8), train=False, key=None)[0].tolist()
  [[2.0]]
  """
  mean, std = _checked(mean, std)
  if not jax.tree.leaves(mean):
    return Hook(name)
  whole = isinstance(mean, np.ndarray)

  def standardize(state: State, inputs: Any) -> Any:
    own = state[CONST][name]
    if whole:
      return jax.tree.map(lambda leaf: _standardized(leaf, own['mean'], own['std']), inputs)
    leaves, treedef = jax.tree.flatten(inputs)
    try:
      means, stds = treedef.flatten_up_to(own['mean']), treedef.flatten_up_to(own['std'])
    except (ValueError, TypeError):
      raise ValueError(
        f'normalize: statistics are an array or a tree like the inputs, {treedef}; got {jax.tree.structure(mean)}'
      ) from None
    return treedef.unflatten(
      [_standardized(leaf, *pair) for leaf, *pair in zip(leaves, means, stds, strict=True)],
    )

  def model(inner: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      constants = {'mean': jax.tree.map(jnp.asarray, mean), 'std': jax.tree.map(jnp.asarray, std)}
      params, state = inner.init(key, standardize(with_const({}, name, constants), inputs))
      if name in state.get(CONST, {}):
        raise ValueError(f'{name}: this model standardizes its inputs already, as a loaded network does: leave it out')
      return params, with_const(state, name, constants)

    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      return inner.apply(params, state, standardize(state, inputs), train=train, key=key, step=step)

    def export(params: Params, state: State) -> tuple[Params, State]:
      params, stripped = inner.export(params, drop_extras(state, name))
      return params, with_const(stripped, name, state[CONST][name])

    return Model(init, apply, inner.after, export)

  return Hook(name, model=model)


def _standardized(leaf: Any, mean: Any, std: Any) -> Any:
  if mean is None or leaf.dtype == jnp.bool_:
    return leaf
  mean, std = _of_example(mean, leaf), _of_example(std, leaf)
  return (leaf.astype(jnp.float32) - mean) / std


def _of_example(statistic: Any, leaf: Any) -> Any:
  """A statistic with the rank of the inputs; broadcast against an example, never against the batch."""
  example = tuple(leaf.shape[1:])
  try:
    fits = np.broadcast_shapes(statistic.shape, example) == example
  except ValueError:
    fits = False
  if not fits and statistic.size == 1:  # of inputs [B], written [x]
    statistic, fits = statistic.reshape(()), True
  if not fits:
    raise ValueError(
      f'normalize: a mean and a std are broadcast against one example, {list(example)}; got {list(statistic.shape)}: '
      'leave axes out, or give them length 1'
    )
  return jax.lax.expand_dims(statistic, range(leaf.ndim - statistic.ndim))


def _checked(mean: Any, std: Any) -> tuple[Any, Any]:
  """Returns both as float32: arrays, or trees of arrays and None."""
  mean, std = (
    jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)
    if tree is None or _is_tree(tree)
    else np.asarray(tree, np.float32)
    for tree in (mean, std)
  )
  if jax.tree.structure(mean) != jax.tree.structure(std):
    raise ValueError('normalize: mean and std are alike, None in the same places; got trees that differ')
  for one, other in zip(jax.tree.leaves(mean), jax.tree.leaves(std), strict=True):
    if not (np.isfinite(one).all() and np.isfinite(other).all() and (other > 0).all()):
      raise ValueError(f'normalize: statistics are finite and std positive; got mean={one}, std={other}')
  return mean, std


def _is_tree(values: Any) -> bool:
  """Whether this is a tree of statistics; a list or tuple of numbers is one array."""
  if isinstance(values, tuple | list):
    return any(value is None or getattr(value, 'ndim', 0) > 0 or _is_tree(value) for value in values)
  return isinstance(values, Mapping)
