"""Examples that are the same and bear different labels: no model can learn them, and whoever labels them errs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlite.errors import counted


def keys_of(texts: Sequence[str]) -> np.ndarray:
  """Returns a number for each text, uint64[N], the same for the same text."""
  digests = [hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).digest() for text in texts]
  return np.frombuffer(b''.join(digests), np.uint64)


def contradictions(keys: np.ndarray, labels: Any, what: str, names: Sequence[str] | None = None) -> list[str]:
  """Returns a line on examples that stand several times with different labels, or none.

  Args:
    keys: of each example, [N] or uint8[N, bytes of a hash]: equal where the examples are.
    labels: [N, ...].
    what: an example is called.
    names: of the examples; None tells their rows.

  >>> contradictions(keys_of(['good', 'bad', 'good', 'bad']), np.array([1, 0, 0, 0]), 'text')
  ['1 text with several labels, such as that in rows 0 and 2: nothing tells them apart']
  """
  if keys.ndim == 2:
    keys = np.ascontiguousarray(keys[:, :8]).view(np.uint64).ravel()
  values, order = np.asarray(labels), np.argsort(keys, kind='stable')
  again = np.flatnonzero(keys[order][1:] == keys[order][:-1]).tolist()
  differ = [at for at in again if not np.array_equal(values[order[at]], values[order[at + 1]])]
  if not differ:
    return []
  first, other = sorted(order[differ[0] : differ[0] + 2].tolist())
  where = f'that in rows {first} and {other}' if names is None else f'{names[first]} = {names[other]}'
  many = counted(len(set(keys[order[differ]].tolist())), what)
  return [f'{many} with several labels, such as {where}: nothing tells them apart']
