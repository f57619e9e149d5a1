"""The Model of a smaller network: the original's functions, traced at whole shapes and run on what is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import TAPS, Model, Params, State
from jaxlite.graph import shrunk
from jaxlite.graph.coupled import Program

_MOST = 32  # programs that are kept traced


class Traces(NamedTuple):
  """The programs of a model at whole shapes.

  Attributes:
    model: the original.
    shapes: of (params, model_state), whole.
    known: programs by what they were traced for.
    programs: those that the groups were found in.
  """

  model: Model
  shapes: tuple[Any, Any]
  known: dict[Any, Any]
  programs: list[Program]

  @classmethod
  def of(cls, model: Model, params: Any, state: Any) -> Traces:
    """Of a model with its whole values."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), (params, state))
    return cls(model, shapes, {}, [])

  def unflatten(self, leaves: Sequence[Any]) -> Any:
    """Returns (params, model_state) of leaves."""
    return jax.tree.unflatten(jax.tree.structure(self.shapes), leaves)

  def typed(self, params: Any, state: Any) -> tuple[Any, Any]:
    """The whole shapes, in the types that these have."""
    return jax.tree.map(lambda shape, leaf: jax.ShapeDtypeStruct(shape.shape, leaf.dtype), self.shapes, (params, state))

  def forward(self, inputs: Any, train: bool, key: Any, step: Any, own: Any = None) -> tuple[Program, Any]:
    """Returns the program of `apply` and the structure of its results."""
    shapes = self.shapes if own is None else own

    def apply(own: Any, inputs: Any, key: Any, step: Any) -> Any:
      return self.model.apply(*own, inputs, train=train, key=key, step=step)

    found = self._traced(('apply', train), apply, (shapes, *_shapes((inputs, key, step))), self._apply_outs)
    if own is None:
      self.programs.append(found[0])
    return found

  def _apply_outs(self, results: Any) -> list[int | None]:
    outputs, state = results
    return [None] * len(jax.tree.leaves(outputs)) + self._of_state(state)

  def _of_state(self, state: Any) -> list[int | None]:
    first = len(jax.tree.leaves(self.shapes[0]))
    place = {path: first + index for index, path in enumerate(trees.paths(self.shapes[1]))}
    return [place.get(path, -1 if path.startswith(f'{TAPS}/') else None) for path in trees.paths(state)]

  def after(self, step: Any = None, own: Any = None) -> tuple[Program, Any]:
    """Likewise of `after`."""

    def after(own: Any, step: Any) -> Any:
      return self.model.after(*own, step)

    step = jax.ShapeDtypeStruct((), jnp.int32) if step is None else step
    found = self._traced(('after',), after, (own or self.shapes, *_shapes((step,))), self._of_state)
    if own is None:
      self.programs.append(found[0])
    return found

  def export(self, own: Any) -> tuple[Program, Any]:
    """Likewise of `export`."""
    return self._traced(
      ('export',),
      lambda own: self.model.export(*own),
      (own,),
      lambda results: [-1] * len(jax.tree.leaves(results)),
    )

  def _traced(self, name: Any, fn: Any, args: Any, outs: Any) -> tuple[Program, Any]:
    leaves, treedef = jax.tree.flatten(args)
    at = (name, treedef, tuple((leaf.shape, leaf.dtype, getattr(leaf, 'weak_type', False)) for leaf in leaves))
    if at in self.known:
      return self.known[at]
    jaxpr, results = jax.make_jaxpr(fn, return_shape=True)(*args)
    own = len(jax.tree.leaves(args[0]))
    ins = tuple(index if index < own else None for index in range(len(leaves)))
    found = Program(jaxpr, ins, tuple(outs(results))), jax.tree.structure(results)
    if not any(isinstance(const, jax.core.Tracer) for const in jaxpr.consts):  # a tracer is gone with its trace
      if len(self.known) >= _MOST:
        self.known.pop(next(iter(self.known)))
      self.known[at] = found
    return found


def _shapes(tree: Any) -> Any:
  return jax.tree.map(
    lambda leaf: (
      leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
    ),
    tree,
  )


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
    return outputs, {**rest, **new} if rest else new

  def after(params: Params, state: State, step: Any) -> State:
    values, shapes, rest = own(params, state)
    new = replayed(traces.after(step, shapes), values, step)
    return {**rest, **new} if rest else new

  def export(params: Params, state: State) -> tuple[Params, State]:
    values, shapes, _ = own(params, state)
    return replayed(traces.export(shapes), values)

  return Model(init, apply, after, export)


def _apart(tree: Any, known: Any) -> tuple[Any, dict[str, Any]]:
  if not isinstance(tree, dict) or not isinstance(known, dict):
    return tree, {}
  mine = {name: tree[name] for name in known if name in tree}
  return mine, {name: value for name, value in tree.items() if name not in known}


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

  def of(path: str) -> int | None:
    parts = path.split('/')
    for start in range(len(parts)):
      if '/'.join(parts[start:]) in place:
        return place['/'.join(parts[start:])]
    return None

  def one(path: str, leaf: Any) -> Any:
    index = of(path)
    if index is None or index not in touched:
      return leaf
    shape, whole = tuple(np.shape(leaf)), tuple(shapes[index])
    if shape == whole:
      return shrunk.cut_leaf(jnp.asarray(leaf), index, kept)
    if math.prod(shape) <= 1:
      return leaf
    if jnp.result_type(leaf) == jnp.uint8 and shape == (-(-math.prod(whole) // 8),):  # a mask, eight weights a byte
      bits = np.unpackbits(np.asarray(leaf))[: math.prod(whole)].reshape(whole)
      return jnp.packbits(jnp.asarray(shrunk.cut_leaf(bits, index, kept)).reshape(-1))
    raise ValueError(
      f'cut: {path!r} is {list(shape)}, where its parameter was {list(whole)}: what it keeps of each weight is not '
      'known, so make this state anew from the smaller params'
    )

  return lambda tree: trees.map_with_path(one, tree)
