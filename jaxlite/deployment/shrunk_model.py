"""The Model of a smaller network: the original's functions, traced at whole shapes and run on what is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import picking, trees
from jaxlite.contract import CONST, Model, Params, State
from jaxlite.graph import shrunk
from jaxlite.graph.coupled import Program
from jaxlite.graph.init_numpy import copied
from jaxlite.graph.traces import Traces
from jaxlite.step.state import TrainState

# What a loaded network knows of itself that is as true of a smaller one: which programs it predicts by, and its inputs.
_STAYS = ('compiled', 'around', 'checked', 'input_shapes', 'reduced')


def smaller(model: Model, traces: Traces, kept: shrunk.Kept, zeros: shrunk.Zeros) -> Model:
  """Returns the Model of what is left of a model.

  Args:
    model: the whole one.
    traces: its programs.
    kept: what the leaves keep.
    zeros: of which leaves what is gone counts as zero.
  """

  def replayed(found: tuple[Program, Any], *args: Any) -> Any:
    program, structure = found
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(args)]
    return jax.tree.unflatten(structure, shrunk.replay(program, leaves, kept, zeros))

  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    leaves = jax.tree.leaves(model.init(key, inputs))
    return traces.unflatten([shrunk.cut_leaf(leaf, index, kept) for index, leaf in enumerate(leaves)])

  def own(params: Params, state: State) -> tuple[Any, Any, Any]:
    """What the network knows of, and what hooks have added."""
    first, more = _apart(params, traces.shapes[0])
    second, rest = _apart(state, traces.shapes[1])
    del more
    _check((first, second), traces, kept)
    return (first, second), traces.typed(first, second), rest

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    values, shapes, rest = own(params, state)
    outputs, new = replayed(traces.forward(inputs, train, key, step, shapes), values, inputs, key, step)
    return outputs, _joined(rest, new)

  def after(params: Params, state: State, step: Any) -> State:
    values, shapes, rest = own(params, state)
    new = replayed(traces.after(step, shapes), values, step)
    return _joined(rest, new)

  def export(params: Params, state: State) -> tuple[Params, State]:
    values, shapes, _ = own(params, state)
    return replayed(traces.export(shapes), values)

  for name in _STAYS:
    if hasattr(model.apply, name):
      setattr(apply, name, getattr(model.apply, name))
  return Model(init, apply, after, export)


def _apart(tree: Any, known: Any) -> tuple[Any, dict[str, Any]]:
  if not isinstance(tree, dict) or not isinstance(known, dict):
    return tree, {}
  mine = {name: tree[name] for name in known if name in tree}
  more = {name: value for name, value in tree.items() if name not in known}
  if CONST in mine:  # of several owners: its own, and a teacher's
    mine[CONST], others = _apart(mine[CONST], known[CONST])
    more |= {CONST: others} if others else {}
  return mine, more


def _joined(rest: dict[str, Any], new: State) -> State:
  both = {**rest, **new}
  if CONST in rest and CONST in new:
    both[CONST] = {**rest[CONST], **new[CONST]}
  return both


def _check(values: Any, traces: Traces, kept: shrunk.Kept) -> None:
  if jax.tree.structure(values) != jax.tree.structure(traces.shapes):
    raise ValueError('a shrunk model takes the params and model_state that shrink gave, or their like')
  paths = trees.paths(values[0]) + trees.paths(values[1])
  wholes = jax.tree.leaves(traces.shapes)
  for index, (path, leaf, whole) in enumerate(zip(paths, jax.tree.leaves(values), wholes, strict=True)):
    wanted = shrunk.cut_shape(whole.shape, index, kept)
    if tuple(jnp.shape(leaf)) != wanted:
      raise ValueError(
        f'a shrunk model takes smaller arrays: {path!r} is {list(wanted)}, got {list(jnp.shape(leaf))}: cut them first'
      )


def cutter(names: Sequence[str], shapes: Sequence[Sequence[int]], kept: shrunk.Kept) -> Callable[[Any], Any]:
  """Returns what cuts a tree that holds arrays shaped like leaves, under their paths.

  Args:
    names: the paths of the leaves.
    shapes: their shapes.
    kept: what they keep.
  """
  place = {name: index for index, name in enumerate(names)}
  touched = {leaf for leaf, _ in kept}

  def one(index: int | None, path: str, leaf: Any) -> Any:
    if index is None or index not in touched:
      return _apart_from(leaf)
    shape, whole = tuple(np.shape(leaf)), tuple(shapes[index])
    if shape == whole:
      return shrunk.cut_leaf(jnp.asarray(leaf), index, kept)
    if math.prod(shape) <= 1:
      return _apart_from(leaf)
    if jnp.result_type(leaf) == jnp.uint8 and shape == (-(-math.prod(whole) // 8),):  # a mask, eight weights a byte
      bits = np.unpackbits(np.asarray(leaf))[: math.prod(whole)].reshape(whole)
      return jnp.packbits(jnp.asarray(shrunk.cut_leaf(bits, index, kept)).reshape(-1))
    raise ValueError(
      f'cut: {path!r} is {list(shape)}, where its parameter was {list(whole)}: what it keeps of each weight is not '
      'known, so make this state anew from the smaller params'
    )

  named = {(names[leaf], axis): entries for (leaf, axis), entries in kept.items()}

  def whole(node: Any) -> bool:
    return callable(getattr(type(node), 'shrunk', None))

  def cut(tree: Any) -> Any:  # what knows units by itself cuts itself
    if isinstance(tree, TrainState) and tree.const:  # which lie beside the model_state, named as if in it
      return cut(tree._replace(const={}))._replace(const=cut({CONST: tree.const})[CONST])
    told = jax.tree.map(lambda node: node.shrunk(named) if whole(node) else node, tree, is_leaf=whole)
    paths, leaves, treedef = trees.flatten(told)
    found = _matched(paths, place)
    return treedef.unflatten(one(found.get(path), path, leaf) for path, leaf in zip(paths, leaves, strict=True))

  return cut


def _matched(paths: Sequence[str], place: Mapping[str, int]) -> dict[str, int]:
  """Which leaf each path is of, as `picking.owned` tells it.

  Args:
    paths: of any tree.
    place: the leaves by their names.

  Returns:
    The leaves by path, of those that are one's. What is constant is so under its whole name alone: a teacher's weights
    have the names of their student's.

  >>> _matched(['0/mu/mu/w', '0/mu/w', 'jl.const/distill/w'], {'w': 0, 'mu/w': 1})
  {'0/mu/mu/w': 1, '0/mu/w': 0}
  """
  found: dict[str, int] = {}
  rest = []
  for path in paths:
    row = path.split('/')
    if CONST not in row:
      rest.append(path)
    elif (name := '/'.join(row[row.index(CONST) :])) in place:
      found[path] = place[name]
  return {**found, **{path: place[name] for path, name in picking.owned(rest, place).items()}}


def _apart_from(leaf: Any) -> Any:
  """An array of its own: a step that donates the whole state would take it along."""
  return copied(leaf) if isinstance(leaf, jax.Array) else leaf
