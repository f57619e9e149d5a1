"""Carving one split out of another: seeded and stratified, so that small classes stay in both."""

from __future__ import annotations

import zlib

import numpy as np

from jaxlite.errors import whole


def carve(labels: np.ndarray, count: int, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Takes about `count` examples, each class by its share.

  Args:
    labels: int [N], the groups whose shares are kept; all alike draws at random.
    count: how many to take.
    seed: not negative.
    name: what is carved; splits of different names are drawn independently.

  Returns:
    (kept, taken): ascending int64 indices, disjoint, together all. Of a class with n examples, n * count / N
    are taken, rounded up or down, and never the last one: a class stays learnable.

  Raises:
    ValueError: nothing, or everything, would be taken.

  >>> kept, taken = carve(np.array([0, 0, 0, 0, 1, 1]), 3, seed=0, name='test')
  >>> len(kept), np.bincount(np.array([0, 0, 0, 0, 1, 1])[taken]).tolist()
  (3, [2, 1])
  """
  seed = whole(seed, 'seed', least=0)
  total = len(labels)
  if not 0 < count < total:
    raise ValueError(f'a split takes some examples and leaves some; {name} takes {count} of {total}: change it')
  _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
  quota = sizes * count // total
  remainder = sizes * count % total
  quota[np.argsort(-remainder, kind='stable')[: count - quota.sum()]] += 1  # largest remainders first
  quota = np.minimum(quota, sizes - 1)
  if not quota.sum():
    raise ValueError(
      f'{name} would be empty: every class has one example of {total}: give more data, or say task=jl.tasks.regression '
      'where labels are quantities'
    )
  shuffled = np.random.default_rng((seed, zlib.crc32(name.encode()))).permutation(total)
  grouped = shuffled[np.argsort(group[shuffled], kind='stable')]  # class by class, shuffled within each
  rank = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  chosen = rank < np.repeat(quota, sizes)
  return np.sort(grouped[~chosen]), np.sort(grouped[chosen])


def share(fraction: float, total: int, name: str) -> int:
  """Returns how many of `total` examples a fraction means, at least one.

  >>> share(0.1, 25, 'validation')
  2
  """
  if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
    raise ValueError(f'{name} is a fraction between 0 and 1 or a pair (inputs, labels); got {fraction!r}: try 0.1')
  return max(1, round(fraction * total))
