"""What a Model's arguments are to a reader of its program: which leaf is a weight, which a constant, which data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite import trees
from jaxlite.contract import (
  CONST,
  Model,
  Params,
  State,
)
from jaxlite.graph.feeds import Leaf
from jaxlite.graph.layouts import Leaves, model_layouts
from jaxlite.graph.provenance import CONSTANT, DATA, Tag, weight

KEPT_AS = ('jl.q', 'jl.scale')  # what a constant is kept as that holds a weight in few bits: integers, and their scales


def model_tags(params: Params, model_state: State, inputs: Any, key: Any, step: Any) -> list[Tag]:
  """Tags the leaves of `(params, model_state, inputs, key, step)`, in JAX's leaf order.

  Weights are the parameters, what is frozen under `jl.const`, and every leaf of a hook's collection whose path
  inside it is a weight's (averages, masks): each under the weight's own path, so that a live, a frozen and an
  averaged weight have one name. What else hooks keep is constant, and so is the step: a weight that a schedule
  scales is a weight. Inputs, batch statistics and the key (noise is no weight) are data.

  >>> tags = model_tags({'w': 1.0}, {'jl.const': {'freeze': {'v': 2.0}}, 'stats': 3.0}, 4.0, None, 0)
  >>> [sorted(tag.paths) or tag.data for tag in tags]
  [['w'], ['v'], True, True, False]
  """
  known = trees.paths(params)
  tags = [weight(path) for path in known]
  tags += _state_tags(trees.paths(model_state), frozenset(known))
  tags += [DATA] * len(jax.tree.leaves((inputs, key)))
  return tags + [CONSTANT] * len(jax.tree.leaves(step))


def model_leaves(params: Params, model_state: State, inputs: Any, key: Any, step: Any) -> list[Leaf]:
  """Says what each leaf of `(params, model_state, inputs, key, step)` is, in the same words in every pass.

  >>> model_leaves({'w': 1.0}, {'stats': 3.0}, 4.0, None, 0)[::2]
  [Leaf(name=('weight', 'w')), Leaf(name=('input', ''))]
  """
  tags = model_tags(params, model_state, inputs, key, step)
  kinds = ('weight', 'state', 'input', 'key', 'step')
  places = [
    (kind, jax.tree_util.keystr(path))
    for kind, tree in zip(kinds, (params, model_state, inputs, key, step), strict=True)
    for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
  ]
  return [
    Leaf(('weight', '+'.join(sorted(tag.paths))) if tag.paths else place)
    for tag, place in zip(tags, places, strict=True)
  ]


def _state_tags(paths: Sequence[str], params: frozenset[str]) -> list[Tag]:
  frozen = {path: path.split('/', 2)[2] for path in paths if path.startswith(f'{CONST}/') and path.count('/') > 1}
  known = params | set(frozen.values())

  def tag(path: str) -> Tag:
    inside = path.partition('/')[2]
    if path in frozen:
      leaf, _, kept_as = frozen[path].rpartition('/')
      return weight(frozen[path]) if kept_as not in KEPT_AS else weight(leaf) if kept_as == KEPT_AS[0] else CONSTANT
    if trees.is_extra(path):
      return weight(inside) if inside in known else CONSTANT
    return DATA

  return [tag(path) for path in paths]


def model_weights(model: Model, params: Params, model_state: State, inputs: Any, key: Any = None) -> frozenset[str]:
  """Finds a Model's weights: the leaves of `params` that enter a contraction with an activation in training.

  Args:
    model: any Model, wrapped or bare.
    params: arrays or ShapeDtypeStructs.
    model_state: likewise.
    inputs: one batch, likewise.
    key: the root key or None.

  Returns:
    Paths of `params`.

  >>> import jax.numpy as jnp
  >>> def apply(p, s, x, *, train, key, step=None):
  ...   return x @ (p['w'] * s['jl.ste']['w']) + p['b'], s
  >>> params, state = {'w': jnp.ones((2, 3)), 'b': jnp.ones(3)}, {'jl.ste': {'w': jnp.ones((2, 3))}}
  >>> model_weights(Model(init=None, apply=apply), params, state, jnp.ones((1, 2)))
  frozenset({'w'})
  """
  return frozenset(_layouts(model, params, model_state, inputs, key))


class Weights(Leaves):
  """Layouts of weights by path, with the model that they were read off: whoever needs more reads it there.

  Attributes:
    program: (model, inputs, key), without hooks.
    names: of the model's paths in a framework's own tree; None where they are the same.
  """

  program: tuple[Model, Any, Any]
  names: Mapping[str, str] | None = None


def weights_of(model: Model, key: jax.Array, inputs: Any) -> Weights:
  """Returns the parameters that enter a contraction and the layouts of their axes, read off a model's program.

  Args:
    model: a Model, without hooks.
    key: a typed key.
    inputs: one batch, [B, ...].
  """
  params, state = jax.eval_shape(model.init, key, inputs)
  known = _layouts(model, params, state, inputs, key)
  found = Weights(known)
  found.filled = known.filled
  found.program = (model, inputs, key)
  return found


def _layouts(model: Model, params: Params, state: State, inputs: Any, key: Any) -> Leaves:
  """The one answer to which leaves of `params` are weights, and how their axes lie."""

  def forward(params: Params, state: State, inputs: Any, key: Any, step: Any) -> Any:
    return model.apply(params, state, inputs, train=True, key=key, step=step)[0]

  args = (params, state, inputs, key, jax.ShapeDtypeStruct((), jnp.int32))
  own = frozenset(trees.paths(params))
  known = model_layouts(forward, model_tags(*args), *args)
  found = Leaves({path: layout for path, layout in known.items() if path in own})
  found.filled = known.filled
  return found
