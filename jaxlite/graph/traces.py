"""The programs of a Model at whole shapes: traced once for what they are asked, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlite import trees
from jaxlite.contract import TAPS, Model
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
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), (params, state))
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

    found = self._traced(('apply', train), apply, (shapes, *shapes_of((inputs, key, step))), self._apply_outs)
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
    found = self._traced(('after',), after, (own or self.shapes, *shapes_of((step,))), self._of_state)
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


def shapes_of(tree: Any) -> Any:
  """Returns a tree with shapes and dtypes in place of its arrays."""
  return jax.tree.map(
    lambda leaf: (
      leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
    ),
    tree,
  )
