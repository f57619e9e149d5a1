"""A network linearized at its weights: what some examples give, and how that moves with a sample of the weights.

The gradients of all outputs by all weights would fill the memory many times. So a sample of coordinates is kept, each
drawn with a probability that grows with its gradient, and counted by one over it: sums over coordinates are right in
the mean whatever an optimizer does to each coordinate by itself, Adam as well as SGD. Small leaves, and small networks
(a head on fixed features), are kept whole: then nothing is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.cpu.replace import for_cpu

_FLOOR = 0.05  # of the mean chance: what these examples do not move others may
_SMALL = 256  # entries, up to which a leaf is kept whole
_MOSTLY = 0.5  # of a leaf, from which on it is kept whole
_TRIES = 16  # gradients by which chances are chosen
_AT_ONCE = 8_000_000  # numbers: gradients of several outputs at once are no larger


class Coordinates(NamedTuple):
  """A sample of the entries of a tree of parameters, leaf by leaf.

  Attributes:
    paths: of the leaves.
    shapes: of the leaves.
    index: for each leaf int64[n] into its flat entries, rising; None is the whole leaf.
    counts: float32[S], for how many entries each counts, 1 and more.
    treedef: of the parameters.
  """

  paths: tuple[str, ...]
  shapes: tuple[tuple[int, ...], ...]
  index: tuple[np.ndarray | None, ...]
  counts: np.ndarray
  treedef: Any

  @property
  def sizes(self) -> tuple[int, ...]:
    """Entries that are kept of each leaf."""
    pairs = zip(self.index, self.shapes, strict=True)
    return tuple(math.prod(shape) if index is None else len(index) for index, shape in pairs)

  @property
  def whole(self) -> bool:
    """Whether every entry is kept."""
    return all(index is None for index in self.index)

  def of(self, tree: Any) -> np.ndarray:
    """Returns float32[S], the entries that are kept of a tree like the parameters."""
    leaves = [np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)]
    picked = [leaf if index is None else leaf[index] for leaf, index in zip(leaves, self.index, strict=True)]
    return np.concatenate(picked).astype(np.float32)

  def placed(self, params: Any, moved: np.ndarray) -> Any:
    """Returns parameters of which those leaves that are kept whole have moved, float32[S]; all others are as they
    were."""
    leaves, at = [], 0
    for leaf, index, size in zip(jax.tree.leaves(params), self.index, self.sizes, strict=True):
      by = jnp.asarray(moved[at : at + size].reshape(np.shape(leaf))).astype(leaf.dtype) if index is None else None
      leaves.append(leaf if by is None else leaf + by)
      at += size
    return jax.tree.unflatten(self.treedef, leaves)

  def half(self, which: int) -> tuple[np.ndarray, Coordinates]:
    """Returns positions in [S] of one half of what was drawn, 0 or 1, with all that is whole; and these Coordinates."""
    at, kept, index, counts, shift = 0, [], [], [], which
    for own, size in zip(self.index, self.sizes, strict=True):
      chosen = np.arange(size) if own is None else np.arange(size)[shift % 2 :: 2]
      shift += 0 if own is None else size
      kept.append(at + chosen)
      index.append(None if own is None else own[chosen])
      counts.append(self.counts[at + chosen] * (1 if own is None else size / max(1, len(chosen))))
      at += size
    return np.concatenate(kept), self._replace(index=tuple(index), counts=np.concatenate(counts).astype(np.float32))


class Linearized(NamedTuple):
  """What some examples give, and how it moves with the parameters.

  Attributes:
    outputs: float32[N, C], at the start.
    columns: int32[N, k], the outputs of each example whose gradients are kept.
    gradients: float32[N, k, S], of these by the coordinates.
    coordinates: which entries these are.
    start: float32[S], the parameters there.
    shape: of one example's outputs, () for a number.
  """

  outputs: np.ndarray
  columns: np.ndarray
  gradients: np.ndarray
  coordinates: Coordinates
  start: np.ndarray
  shape: tuple[int, ...]

  def some(self, rows: np.ndarray) -> Linearized:
    """Returns the same of some examples, by their positions."""
    return self._replace(outputs=self.outputs[rows], columns=self.columns[rows], gradients=self.gradients[rows])

  def halved(self, which: int) -> Linearized:
    """Returns the same on one half of the coordinates that were drawn, 0 or 1."""
    kept, coordinates = self.coordinates.half(which)
    return self._replace(gradients=self.gradients[..., kept], coordinates=coordinates, start=self.start[kept])


Forward = Callable[[Any, Any, Any], Any]  # (params, model_state, inputs [1, ...]) -> outputs [1, ...]
Pull = Callable[[Any, Any, np.ndarray], tuple[np.ndarray, Any]]


def pulling(forward: Forward, params: Any, state: Any, outputs: int) -> tuple[Pull, int]:
  """Returns what gives one example's outputs and the gradients of some weighted sums of them.

  Args:
    forward: the network, as in evaluation.
    params, state: its values; only the sizes of the first matter.
    outputs: how many an example has.

  Returns:
    (params, inputs [1, ...], float32[m, C]) -> (float32[C], a tree like the parameters of [m, ...]), and m.
  """
  size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))
  together = max(1, min(outputs, _AT_ONCE // max(1, size)))

  def run(params: Any, state: Any, inputs: Any, sums: jax.Array) -> tuple[jax.Array, Any]:
    out, pull = jax.vjp(lambda some: forward(some, state, inputs).reshape(-1), params)
    sums = sums.astype(out.dtype)
    found = jax.tree.map(lambda leaf: leaf[None], pull(sums[0])[0]) if together == 1 else jax.vmap(pull)(sums)[0]
    return out.astype(jnp.float32), found

  program = for_cpu(run)

  def pull(params: Any, inputs: Any, sums: np.ndarray) -> tuple[np.ndarray, Any]:
    out, found = program(params, state, inputs, jnp.asarray(sums, jnp.float32))
    return np.asarray(out), found

  return pull, together


def choose(
  pull: Pull, together: int, params: Any, examples: list[Any], outputs: int, most: int, seed: int
) -> tuple[Coordinates, float]:
  """Draws coordinates: each leaf whole where they all are few, else by chances that grow with their gradients.

  Of all entries, the share that lies in leaves without any gradient is given beside them; 0 where all are kept.

  Args:
    pull, together: as `pulling` gives them.
    params: the parameters.
    examples: inputs [1, ...] of some.
    outputs: how many an example has.
    most: coordinates, about.
    seed: of the draw.
  """
  paths, leaves, treedef = trees.flatten(params)
  shapes = tuple(tuple(np.shape(leaf)) for leaf in leaves)
  sizes = [math.prod(shape) for shape in shapes]
  everything = Coordinates(tuple(paths), shapes, (None,) * len(paths), np.ones(sum(sizes), np.float32), treedef)
  if sum(sizes) <= most:
    return everything, 0.0
  rng = np.random.default_rng(seed)
  squares = [np.zeros(size, np.float32) for size in sizes]
  for turn in range(_TRIES):  # the mean square of a sum with signs at random is the sum of the squares
    signs = np.sign(rng.random((together, outputs)) - 0.5)
    found = jax.tree.leaves(pull(params, examples[turn % len(examples)], signs)[1])
    for one, leaf in zip(squares, found, strict=True):
      one += np.mean(np.square(np.asarray(leaf, np.float32)), axis=0).reshape(-1)
  drawn = [place for place, size in enumerate(sizes) if size > _SMALL]
  kept = sum(sizes) - sum(sizes[place] for place in drawn)
  rms = [np.sqrt(squares[place]) for place in drawn]
  floor = _FLOOR * float(sum(one.sum() for one in rms)) / sum(one.size for one in rms)
  chances = _scaled([one + max(floor, 1e-30) for one in rms], max(1, most - kept))
  index: list[np.ndarray | None] = [None] * len(sizes)
  counts = [np.ones(size, np.float32) for size in sizes]
  for place, chance in zip(drawn, chances, strict=True):
    if chance.mean() > _MOSTLY:  # so that it can be moved as a whole (`Coordinates.placed`)
      continue
    chosen = np.flatnonzero(rng.random(len(chance)) < chance)
    index[place], counts[place] = chosen, (1 / chance[chosen]).astype(np.float32)
  still = sum(one.size for one in squares if not one.any()) / sum(sizes)
  return everything._replace(index=tuple(index), counts=np.concatenate(counts)), still


def _scaled(sizes: list[np.ndarray], wanted: float) -> list[np.ndarray]:
  """Chances, at most 1, that are as these numbers and sum to what is wanted."""
  low, high = 0.0, wanted / min(float(one[one > 0].min()) for one in sizes)
  for _ in range(60):
    middle = (low + high) / 2
    total = sum(float(np.minimum(1, middle * one).sum()) for one in sizes)
    low, high = (middle, high) if total < wanted else (low, middle)
  return [np.minimum(1, high * one) for one in sizes]


def linearize(
  pull: Pull,
  together: int,
  params: Any,
  coordinates: Coordinates,
  examples: list[Any],
  columns: np.ndarray,
  shape: tuple[int, ...],
) -> Linearized:
  """Takes the gradients of some outputs of each example.

  Args:
    pull, together: as `pulling` gives them.
    params: the parameters.
    coordinates: whose entries are kept.
    examples: inputs [1, ...] of each.
    columns: int32[N, k], which outputs of each.
    shape: of one example's outputs.
  """
  outputs = math.prod(shape)
  kept = np.empty((*columns.shape, len(coordinates.counts)), np.float32)
  values = np.empty((len(examples), outputs), np.float32)
  for number, inputs in enumerate(examples):
    for first in range(0, columns.shape[1], together):
      chosen = columns[number, first : first + together]
      sums = np.zeros((together, outputs), np.float32)
      sums[np.arange(len(chosen)), chosen] = 1
      values[number], found = pull(params, inputs, sums)
      leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(found)]
      for place in range(len(chosen)):
        kept[number, first + place] = coordinates.of([leaf[place] for leaf in leaves])
  return Linearized(values, columns, kept, coordinates, coordinates.of(params), shape)
