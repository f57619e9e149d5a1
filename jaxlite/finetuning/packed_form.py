"""Our own packed files: the constants of the network's list of operations, by the names that the file keeps."""

from __future__ import annotations

import numpy as np

from jaxlite.deployment.packed.file import unpack
from jaxlite.deployment.packed.words import Unreadable
from jaxlite.finetuning.weights import Asker, Weights, stored


def is_packed(data: np.ndarray) -> bool:
  """Tells by the first bytes."""
  return bytes(data[:3]) == b'JLP'


def read_packed(data: np.ndarray, where: str) -> Weights:
  """Reads the arrays of a packed network: those that are stored, integers where it computes in integers.

  Raises:
    WeightsError: it is damaged, cut short or too large.
  """
  asker = Asker(where, 'packed file')
  try:
    graph, about = unpack(bytes(data))
  except Unreadable as error:
    raise asker.refuse(str(error).rpartition(': ')[2]) from None
  held = {asker.name(name): stored(np.asarray(array)) for name, array in graph.constants.items()}
  if not held:
    raise asker.refuse('it holds no arrays')
  return Weights(held, where=where, form='packed', layout='jax', about=about)
