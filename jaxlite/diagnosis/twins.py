"""Examples whose inputs are equal: within training, and between training and what is held out (a leak)."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np

_PIECE = 1024  # examples that are hashed at once


class Twins(NamedTuple):
  """Examples whose inputs are equal.

  Attributes:
    between: share of the examples of a held-out split that training has too; the larger, of several.
    within: share of training examples that another one of them equals.
    rows: of training, those that a held-out split has too.
  """

  between: float
  within: float
  rows: np.ndarray


def twins(train: Any, others: list[Any]) -> Twins:
  """Finds equal inputs by hash.

  Args:
    train: inputs.
    others: inputs of the splits that are held out.

  >>> found = twins(np.array([[1.0], [2.0], [2.0]]), [np.array([[1.0], [3.0]])])
  >>> found.between, round(found.within, 2), found.rows.tolist()
  (0.5, 0.33, [0])
  """
  own = digests(train)
  held = [digests(inputs) for inputs in others]
  known, seen = set(own), {one for part in held for one in part}
  between = max((sum(one in known for one in part) / max(1, len(part)) for part in held), default=0.0)
  rows = np.array([row for row, one in enumerate(own) if one in seen], int)
  return Twins(between, 1 - len(known) / max(1, len(own)), rows)


def digests(inputs: Any) -> list[bytes]:
  """Returns a hash of each example's inputs."""
  leaves = jax.tree.leaves(inputs)
  found = []
  for start in range(0, len(leaves[0]) if leaves else 0, _PIECE):  # what lies in files is not read at once
    parts = [np.ascontiguousarray(leaf[start : start + _PIECE]) for leaf in leaves]
    for row in range(len(parts[0])):
      told = hashlib.blake2b(digest_size=16)
      for part in parts:
        told.update(part[row])
      found.append(told.digest())
  return found
