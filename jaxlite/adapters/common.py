"""What every adapter owes to the contract, whatever its framework.

`build` adds to a framework's own init and forward: hooks' entries (`jl.*`) are kept from the framework, `init`
returns copies, `apply` returns a `model_state` of exactly the structure, shapes and dtypes that it was given.
The rest: start values, pytrees as nested dicts and back, how a forward is told that it trains.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import Model, Params, State, stream
from jaxlite.errors import nearest
from jaxlite.graph.init_numpy import copied, on_host

# How frameworks tell a forward that it trains; False where the flag means the opposite.
MODES = {
  'train': True,
  'training': True,
  'is_training': True,
  'deterministic': False,
  'use_running_average': False,
  'inference': False,
}
TRANSIENT = ('intermediates', 'perturbations')  # collections of what one Linen forward leaves behind

Forward = Callable[[Params, State, Any, bool, Any], tuple[Any, State]]


def build(init: Callable[..., tuple[Params, State]], forward: Forward) -> Model:
  """Adds to a framework's own init and forward what all of them owe to the contract."""

  def owned_init(key: Any, inputs: Any) -> tuple[Params, State]:
    params, model_state = init(key, inputs)
    taken = [name for name in {**params, **model_state} if trees.is_extra(name)]
    if taken:
      raise ValueError(f"names that begin with 'jl.' belong to hooks; a network holds {taken[0]!r}: rename it")
    trees.check_distinct(params, 'params')  # before the copy, which would hide it
    return owned(params), owned(model_state)  # copies: the step donates them, and the user's arrays live on

  def apply(
    params: Params, model_state: State, inputs: Any, *, train: bool, key: Any, step: Any = None
  ) -> tuple[Any, State]:
    params, own = _without_extras(params), _without_extras(model_state)
    drawn = stream(key, 'model', step)
    if drawn is None and not train:
      drawn = jax.random.key(0)  # evaluation is repeatable, also of modules that split a key and never use it
    try:
      outputs, new = forward(params, own, inputs, train, drawn)
    except Exception as error:
      if drawn is None and _runs(forward, params, own, inputs):
        raise ValueError(
          'a model that draws random numbers in training needs a key; got key=None: pass key=, the root key'
        ) from error
      raise
    return outputs, {**model_state, **_settle(new, own)} if train else model_state

  return Model(on_host(owned_init, unread=(1,)), apply)


def _runs(forward: Forward, params: Params, model_state: State, inputs: Any) -> bool:
  """Tells whether a training forward that failed without a key works with one."""
  try:
    jax.eval_shape(lambda p, s, x: forward(p, s, x, True, jax.random.key(0)), params, model_state, inputs)
  except Exception:
    return False
  return True


def _without_extras(tree: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in tree.items() if not trees.is_extra(name)}


def _settle(new: State, old: State) -> State:
  """Gives new state the dtypes of the old, so that a step is traced once and a scan can carry it."""
  if jax.tree.structure(new) != jax.tree.structure(old):
    changed = sorted(set(trees.paths(new)) ^ set(trees.paths(old)))
    raise ValueError(f'a forward keeps the structure of model_state; {changed} came or went: create them in init')

  def like(path: str, was: Any, now: Any) -> Any:
    was, now = jnp.asarray(was), jnp.asarray(now)
    if was.shape != now.shape:
      raise ValueError(f'a forward keeps the shapes of model_state; {path!r} went from {was.shape} to {now.shape}')
    return now if was.aval == now.aval else now.astype(was.dtype)

  return trees.map_with_path(like, old, new)


def owned(tree: Any) -> Any:
  """Copies every leaf into a JAX array of its own, never weakly typed."""

  def copy(path: str, leaf: Any) -> jax.Array:
    try:
      array = jnp.asarray(leaf)
    except (TypeError, ValueError):
      raise TypeError(f'a model holds arrays; {path!r} is {kind_of(leaf)}: keep it out of the parameters') from None
    return copied(array)

  return trees.map_with_path(copy, tree)


def start_values(given: Any, born: Callable[..., Any], key: Any, inputs: Any, what: str) -> Any:
  """Takes the given start values, and those of the framework's own init for what is missing."""
  born = jax.jit(born)  # traced once for both uses
  wanted = jax.eval_shape(born, key, inputs)
  shapes = trees.by_path(wanted)
  found = trees.by_path(given)
  found = {path: leaf for path, leaf in found.items() if path.split('/')[0] not in TRANSIENT}
  for path, leaf in found.items():
    if path not in shapes:
      raise ValueError(
        f'{what}: a start value must be one of the model; {path!r} is none; nearest: {nearest(path, shapes)}'
      )
    if np.shape(leaf) != shapes[path].shape:
      raise ValueError(f'{what}: {path!r} has shape {shapes[path].shape}, its start value {np.shape(leaf)}')
  if shapes.keys() == found.keys():
    return trees.map_with_path(lambda path, _: found[path], wanted)
  return trees.map_with_path(lambda path, leaf: found.get(path, leaf), born(key, inputs))


class Layout(NamedTuple):
  """How a pytree was before it became nested dicts."""

  names: tuple[str, ...]
  treedef: Any


def layout_of(tree: Any) -> Layout:
  """Reads the layout of a pytree; the path of a bare leaf is 'value'."""
  names, _, treedef = trees.flatten(tree)
  return Layout(tuple(name or 'value' for name in names), treedef)


def nested(tree: Any) -> dict[str, Any]:
  """Turns a pytree into nested dicts named by its paths.

  >>> nested([{'w': 1}, 2])
  {'0': {'w': 1}, '1': 2}
  """
  names = layout_of(tree).names
  return trees.nest(dict(zip(names, jax.tree.leaves(tree), strict=True)))


def restore(layout: Layout, nested: Mapping[str, Any]) -> Any:
  """Turns nested dicts back into the pytree of `layout`; what it does not name is left out."""
  found = trees.by_path(nested)
  absent = [name for name in layout.names if name not in found]
  if absent:
    raise ValueError(f'a forward needs every leaf that init gave; {absent} are missing: init this model')
  return layout.treedef.unflatten([found[name] for name in layout.names])


def taken_back(held: Any, given: Mapping[str, Any]) -> Layout:
  """Returns the layout of what a module holds, where the given values are exactly those of it.

  Raises:
    ValueError: a value is missing, unknown or of another shape.
  """
  layout = layout_of(held)
  shapes = dict(zip(layout.names, map(np.shape, jax.tree.leaves(held)), strict=True))
  values = trees.by_path(given)
  for name in (*shapes, *values):
    if name not in values or name not in shapes:
      who, other = ('the network', values) if name not in values else ('this module', shapes)
      raise ValueError(
        f'a module takes back its own values; {who} has no {name!r}; nearest: {nearest(name, other)}: give the module '
        'that was trained'
      )
    if np.shape(values[name]) != shapes[name]:
      got, wanted = list(np.shape(values[name])), list(shapes[name])
      raise ValueError(f'a module takes back its own values; {name!r} is {got} in the network and {wanted} in it')
  return layout


def plain(tree: Any) -> Any:
  """Turns every mapping inside nested mappings (a Flax FrozenDict, say) into a dict."""
  return {name: plain(value) for name, value in tree.items()} if isinstance(tree, Mapping) else tree


def is_array(leaf: Any) -> bool:
  """Tells whether a leaf is an array, or the shape of one."""
  return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def is_inexact(leaf: Any) -> bool:
  """Tells whether a leaf is an array that can be trained."""
  return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def kind_of(thing: Any) -> str:
  """Names, for an error, what was got."""
  return f'the class {thing.__name__}: give an instance' if isinstance(thing, type) else type(thing).__name__


def parameters_of(fn: Any) -> Mapping[str, inspect.Parameter]:
  """Returns the named parameters of a callable, none where Python cannot tell."""
  try:
    parameters = inspect.signature(fn).parameters
  except (TypeError, ValueError):
    return {}
  return {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def mode_of(fn: Any, train_arg: Any, known: Any = tuple(MODES)) -> Callable[[bool], dict[str, bool]]:
  """Returns train -> the keyword arguments by which `fn` is told."""
  if train_arg is ...:
    names = [name for name in parameters_of(fn) if name in known]
  else:
    names = [] if train_arg is None else [train_arg]
  return lambda train: {name: train is MODES.get(name, True) for name in names}
