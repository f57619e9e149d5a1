"""Fewer features on the device, as part of the model: an affine map that does not learn, before the network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import CONST, Hook, Model, Params, State, drop_extras, with_const

REDUCTION = 'reduction'  # the map's name among constants, and so in reports


def project(weight: Any, mean: Any = None, *, leaf: str = '', name: str = 'reduce') -> Hook:
  """Gives the model `(inputs - mean) @ weight` in place of its inputs, which are flattened.

  `jl.data.reduce` finds such a map for a data set. It is a constant: no gradient, no moments, in every export.

  Args:
    weight: float[features, components].
    mean: float[features], or None for no mean.
    leaf: path of the inputs' leaf, '' where they are one array; other leaves stay as they are.
    name: the hook's name.

  Returns:
    A Hook on the model; the network behind it sees float32[B, components].

  Raises:
    ValueError: values that are not finite, a mean of another length; at init, inputs of another size, or without the
      leaf.

  >>> base = Model(lambda key, x: ({}, {}), lambda p, s, x, **_: (x, s))
  >>> model = project([[1.0], [2.0]], [1.0, 1.0]).model(base)
  >>> params, state = model.init(None, jnp.ones((1, 2)))
  >>> model.apply(params, state, jnp.array([[2.0, 3.0]]), train=False, key=None)[0].tolist()
  [[5.0]]
  """
  own = {REDUCTION: np.asarray(weight, np.float32)}
  if mean is not None:
    own['mean'] = np.asarray(mean, np.float32)
  if own[REDUCTION].ndim != 2 or (mean is not None and own['mean'].shape != own[REDUCTION].shape[:1]):
    shapes = ' and '.join(f'{list(value.shape)}' for value in own.values())
    raise ValueError(f'{name}: weight is [features, components] and mean [features]; got {shapes}')
  if not all(np.isfinite(value).all() for value in own.values()):
    raise ValueError(f'{name}: weight and mean are finite; some value is not')

  def mapped(state: State, inputs: Any) -> Any:
    paths, leaves, treedef = trees.flatten(inputs)
    if leaf not in paths:
      raise ValueError(f'{name}: the inputs have no leaf {leaf!r}, they are {", ".join(paths) or "nothing"}')
    place, held = paths.index(leaf), state[CONST][name]
    leaves[place] = _mapped(leaves[place], held[REDUCTION], held.get('mean'), name)
    return treedef.unflatten(leaves)

  def model(inner: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      constants = jax.tree.map(jnp.asarray, own)
      params, state = inner.init(key, mapped(with_const({}, name, constants), inputs))
      if name in state.get(CONST, {}):
        raise ValueError(f'{name}: this model reduces its inputs already, as a loaded network does: leave it out')
      return params, with_const(state, name, constants)

    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      return inner.apply(params, state, mapped(state, inputs), train=train, key=key, step=step)

    def export(params: Params, state: State) -> tuple[Params, State]:
      params, stripped = inner.export(params, drop_extras(state, name))
      return params, with_const(stripped, name, state[CONST][name])

    return Model(init, apply, inner.after, export)

  return Hook(name, model=model)


def _mapped(leaf: Any, weight: Any, mean: Any, name: str) -> Any:
  flat = leaf.reshape(leaf.shape[0], -1).astype(jnp.float32)
  if flat.shape[1] != weight.shape[0]:
    raise ValueError(f'{name}: examples have {weight.shape[0]} features; got {flat.shape[1]}, {list(leaf.shape)}')
  flat = flat if mean is None else flat - mean[None]
  return jnp.dot(flat, weight, precision=jax.lax.Precision.HIGHEST)  # TF32 would round what was fitted in float64
