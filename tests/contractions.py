"""Matrix products as equations, for tests of what stands in for them."""

import jax
import numpy as np
from jax import lax


def product_of(fn, *operands):
  """The only `dot_general` of a function."""
  jaxpr = jax.make_jaxpr(fn)(*operands).jaxpr
  (eqn,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == 'dot_general']
  return eqn


def random_contraction(rng):
  """Random axes in random order: shared, summed and free ones, some of one entry. Most lie together, some do not."""
  shared, summed, left, right = (int(n) for n in (rng.integers(0, 3), rng.integers(1, 3), *rng.integers(0, 3, 2)))
  letters = iter('abcdefghijkl')
  groups = [''.join(next(letters) for _ in range(count)) for count in (shared, summed, left, right)]
  sizes = {letter: int(rng.integers(1, 6)) for group in groups for letter in group}
  order = [groups[0], groups[1], groups[2]], [groups[0], groups[1], groups[3]]
  names = []
  for parts in order:
    if rng.random() < 0.7:
      mixed = [parts[index] for index in rng.permutation(3)]
      names.append(''.join(mixed))
    else:
      names.append(''.join(rng.permutation(list(''.join(parts)))))
  spec = [[names[side].index(letter) for letter in groups[part]] for part in (1, 0) for side in (0, 1)]
  arrays = [rng.normal(size=[sizes[letter] for letter in name]).astype(np.float32) for name in names]
  numbers = ((spec[0], spec[1]), (spec[2], spec[3]))
  free = [''.join(letter for letter in name if letter not in groups[0] + groups[1]) for name in names]
  want = np.einsum(f'{names[0]},{names[1]}->{groups[0]}{free[0]}{free[1]}', *(x.astype(np.float64) for x in arrays))
  return lambda x, y: lax.dot_general(x, y, numbers), arrays, want
