"""A program as a compiler sees it before it fuses: calls opened, what is computed twice merged, what nobody reads left
out. Loops and branches stay, each with its bodies."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.graph import sharding, walk
from jaxlite.graph.plan import Plan


class Node(NamedTuple):
  """One equation in its place.

  Attributes:
    eqn: it.
    reads: the values that it takes, by number; a literal's is negative.
    writes: those that it gives.
    layer: the weight that it multiplies, by path; '' for none, or where nobody asked.
    plans: of its bodies, where a plan of the program was given.
    copies: how many devices do it, each with its own part.
  """

  eqn: Any
  reads: tuple[int, ...]
  writes: tuple[int, ...]
  layer: str = ''
  plans: tuple[Plan, ...] = ()
  copies: int = 1


class Flat(NamedTuple):
  """A body without calls.

  Attributes:
    nodes: in order.
    inputs, outputs: values, by number.
    literals: what a negative number stands for.
  """

  nodes: tuple[Node, ...]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  literals: dict[int, Any]


class _Book:
  """What flattening keeps: numbers of values and of literals, and what was computed before."""

  def __init__(self, recomputes: bool):
    self.recomputes = recomputes
    self.nodes: list[Node] = []
    self.seen: dict[Hashable, tuple[int, ...]] = {}
    self.by_literal: dict[Hashable, int] = {}
    self.literals: dict[int, Any] = {}
    self.count = 0
    self.scopes = 0

  def new(self) -> int:
    self.count += 1
    return self.count

  def literal(self, atom: Any) -> int:
    value = atom.val
    written = repr(value) if isinstance(value, int | float | bool | complex) else np.asarray(value).tobytes()
    key = (walk.form(atom.aval), written)
    if key not in self.by_literal:
      self.by_literal[key] = -1 - len(self.by_literal)
      self.literals[self.by_literal[key]] = atom.val
    return self.by_literal[key]


def flat(jaxpr: Any, plan: Plan | None = None, *, recomputes: bool = True) -> Flat:
  """Opens the calls of a program.

  Args:
    jaxpr: open or closed.
    plan: of it, as `graph.provenance.read` gives it: nodes then know their layers.
    recomputes: whether what `jax.checkpoint` asks to compute once more is; a compiler may merge it with the first.

  >>> import jax
  >>> inner = jax.jit(lambda x: jax.numpy.sin(x) + jax.numpy.sin(x))
  >>> [node.eqn.primitive.name for node in flat(jax.make_jaxpr(lambda x: inner(x) * 2)(1.0)).nodes]
  ['sin', 'add', 'mul']
  """
  bare, _ = walk.opened(jaxpr)
  book = _Book(recomputes)
  inputs = [book.new() for _ in bare.invars]
  outputs = _open(bare, inputs, plan, book, 1, 0)
  return Flat(_alive(book.nodes, outputs), tuple(inputs), tuple(outputs), book.literals)


def _open(bare: Any, given: Sequence[int], plan: Plan | None, book: _Book, copies: int, scope: int) -> list[int]:
  env: dict[Any, int] = dict(zip(bare.invars, given, strict=True))
  for var in bare.constvars:
    env[var] = book.new()

  def number(atom: Any) -> int:
    return book.literal(atom) if hasattr(atom, 'val') else env[atom]

  for index, eqn in enumerate(bare.eqns):
    name = eqn.primitive.name
    reads = tuple(number(atom) for atom in eqn.invars)
    plans = plan.inner.get(index, ()) if plan is not None else ()
    body = eqn.params.get(walk.CALLS[name]) if name in walk.CALLS else None
    if body is not None and len(walk.opened(body)[0].invars) == len(reads):
      times = copies * (sharding.devices(eqn) if name == 'shard_map' else 1)
      inside = scope
      if book.recomputes and eqn.params.get('differentiated') and eqn.params.get('prevent_cse'):
        book.scopes += 1
        inside = book.scopes
      writes = tuple(_open(walk.opened(body)[0], reads, plans[0] if plans else None, book, times, inside))
    else:
      layer = plan.sites[index].name if plan is not None and index in plan.sites else ''
      key = _key(eqn, reads, copies, scope)
      known = book.seen.get(key) if key is not None else None
      writes = known or tuple(book.new() for _ in eqn.outvars)
      if known is None:
        book.nodes.append(Node(eqn, reads, writes, layer, tuple(plans), copies))
        if key is not None:
          book.seen[key] = writes
    env.update(zip(eqn.outvars, writes, strict=True))
  return [number(atom) for atom in bare.outvars]


def _key(eqn: Any, reads: tuple[int, ...], copies: int, scope: int) -> Hashable | None:
  """What makes two equations one; None where they never are: they have effects, or bodies."""
  if eqn.effects or walk.bodies(eqn):
    return None
  key = (eqn.primitive, tuple(sorted((name, _frozen(value)) for name, value in eqn.params.items())), reads, copies)
  shapes = tuple(walk.form(var.aval) for var in eqn.outvars)
  try:
    hash(key)
  except TypeError:
    return None
  return (*key, shapes, scope)


def _frozen(value: Any) -> str:
  return repr(value) if isinstance(value, int | float | str | bool | tuple | list | type(None)) else str(value)


def _alive(nodes: Sequence[Node], outputs: Sequence[int]) -> tuple[Node, ...]:
  wanted, kept = set(outputs), []
  for node in reversed(nodes):
    if node.eqn.effects or any(value in wanted for value in node.writes):
      kept.append(node)
      wanted.update(node.reads)
  return tuple(reversed(kept))
