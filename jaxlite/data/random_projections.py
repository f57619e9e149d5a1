"""Random projections: fewer features that keep distances, without looking at the data; and how well they keep them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxlite.data.projection import Projection, blocks_of, whole_components
from jaxlite.errors import whole

_KINDS = ('gaussian', 'sparse')


def random_projection(
  inputs: Any, components: int | None = None, *, kind: str = 'gaussian', error: float = 0.1, seed: int = 0
) -> Projection:
  """Draws a map onto fewer features that keeps all distances between rows about as they are.

  Args:
    inputs: floats or uint8 [N, ...], flattened, or a function () -> such arrays; its shape and N are all that is used.
    components: how many, up to the features; None takes what `johnson_lindenstrauss` says for `error`.
    kind: 'gaussian'; or 'sparse', with one entry in the root of the features that is not zero, which packs small.
    error: of squared distances, in (0, 1), where `components` is None.
    seed: of the draw.

  Returns:
    The Projection. Its note tells the error that holds for N rows with so many components.

  Raises:
    ValueError: more components than features; ids, NaN, examples of several shapes.

  References:
    Li, Hastie and Church, Very sparse random projections, 2006, https://doi.org/10.1145/1150402.1150436
    Dasgupta and Gupta, An elementary proof of a theorem of Johnson and Lindenstrauss, 2003,
    https://doi.org/10.1002/rsa.10073

  >>> found = random_projection(np.ones((5, 100)), 20)
  >>> found.weight.shape, found.notes
  ((100, 20), ('for 5 rows 20 components hold no bound below 1 on squared distances',))
  """
  if kind not in _KINDS:
    raise ValueError(f'random_projection: kind is one of {", ".join(_KINDS)}; got {kind!r}')
  blocks, shape = blocks_of(inputs)
  features, rows = int(np.prod(shape)), sum(len(block) for block in blocks())
  if rows < 2:
    raise ValueError(f'random_projection keeps distances between rows, of which it takes two at least; got {rows}')
  if components is None:
    components = johnson_lindenstrauss(rows, error)
    if components > features:
      raise ValueError(
        f'random_projection: {rows} rows within {error:g} of their squared distances take {components} components, and '
        f'there are {features} features: take a larger error, a number of components, or pca'
      )
  count = whole_components(components, features, 'random_projection')
  rng = np.random.default_rng(whole(seed, 'seed', least=0))
  if kind == 'gaussian':
    weight = rng.standard_normal((features, count)) / math.sqrt(count)
  else:
    density = 1 / math.sqrt(features)
    drawn = rng.random((features, count))
    weight = np.where(drawn < density, np.where(drawn < density / 2, -1.0, 1.0), 0.0) / math.sqrt(density * count)
  bound = distance_error(rows, count)
  if bound is None:
    note = f'for {rows} rows {count} components hold no bound below 1 on squared distances'
  else:
    note = f'for {rows} rows {count} components can keep every squared distance within {bound:.2f} of itself'
  return Projection(f'{kind} random projection', weight.astype(np.float32), None, shape, notes=(note,))


def johnson_lindenstrauss(rows: int, error: float) -> int:
  """Returns how many components keep every squared distance between rows within a share of itself.

  Args:
    rows: N, at least 2.
    error: the share, in (0, 1).

  References:
    Dasgupta and Gupta, An elementary proof of a theorem of Johnson and Lindenstrauss, 2003,
    https://doi.org/10.1002/rsa.10073

  >>> johnson_lindenstrauss(1000, 0.5), johnson_lindenstrauss(1000, 0.1)
  (331, 5920)
  """
  if not 0 < error < 1:
    raise ValueError(f'an error of distances is in (0, 1); got {error!r}')
  return int(4 * math.log(whole(rows, 'rows', least=2)) / (error**2 / 2 - error**3 / 3))


def distance_error(rows: int, components: int) -> float | None:
  """Returns the smallest error that `components` are enough for, None where no error below 1 is.

  >>> round(distance_error(1000, 331), 2)
  0.5
  """
  low, high = 0.0, 1 - 1e-12
  if johnson_lindenstrauss(rows, high) > components:
    return None
  for _ in range(60):
    middle = (low + high) / 2
    low, high = (low, middle) if johnson_lindenstrauss(rows, middle) <= components else (middle, high)
  return high
