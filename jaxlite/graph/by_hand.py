"""Contractions that a program writes out, as a product and a sum: read for what they are, never rewritten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxlite.graph import covers as covering
from jaxlite.graph.plan import Site, Tag

KIND = 'reduce_sum'


def follow(eqn: Any, found: Any, products: dict[Any, Any]) -> None:
  """Notes what is known of a product, by its result; a cast passes it on.

  Args:
    eqn: the equation at hand.
    found: what is known of it, where it is a product.
    products: grows.
  """
  if eqn.primitive.name == 'mul':
    products[eqn.outvars[0]] = found
  elif eqn.primitive.name == 'convert_element_type' and not hasattr(eqn.invars[0], 'val') and eqn.invars[0] in products:
    products[eqn.outvars[0]] = products[eqn.invars[0]]


def shared(product: Any, side: int, over: Sequence[int]) -> tuple[int, ...]:
  """Returns the axes of a product's weight that data run along too and that are not summed over: no outputs.

  Args:
    product: the equation.
    side: which of its operands is the weight.
    over: the axes that are summed over.
  """
  data = product.invars[1 - side].aval.shape
  return tuple(
    axis for axis in range(len(product.outvars[0].aval.shape)) if axis not in over and data[axis : axis + 1] != (1,)
  )


def summed(eqn: Any, product: Any, given: Sequence[Tag], place: Any) -> Site | None:
  """A contraction written as a product and a sum, `(x[:, :, None] * w).sum(1)`: it stays what it is.

  The outputs are where the data had to be stretched; without any, the leaf only scales what is summed.

  Args:
    eqn: the sum.
    product: the equation whose result it sums.
    given: the tags of that one's operands; one of them is data.
    place: where both stand.

  Returns:
    Its Site, None where it is none.
  """
  if given[0].data == given[1].data:
    return None
  side = 0 if given[1].data else 1
  tag, shape, data = given[side], eqn.invars[0].aval.shape, product.invars[1 - side].aval.shape
  over = tuple(axis for axis in eqn.params['axes'] if len(data) == len(shape) and data[axis] == shape[axis])
  weights = covering.judged(tag.covers, shape, over, shared(product, side, over), strict=True) if over else frozenset()
  if not weights:
    return None
  return Site(
    name='',
    kind=KIND,
    side=side,
    why_not='it is a product that is summed by hand: write it as x @ w',
    stack=tuple(sorted(tag.varies)),
    lengths=tuple(place.lengths[depth] for depth in sorted(tag.varies)),
    flops=2 * math.prod(shape) * place.trips,
    shape=shape,
    summed=over,
    paths=tag.paths,
    weights=weights,
    custom=place.custom,
    weighs=True,
    shards=tag.shards,
  )
