"""A data set out of a person's own arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlite.data import splits
from jaxlite.data.dataset import Dataset, Pair, as_pair, check_split, make_dataset


def from_arrays(
  train: Pair,
  validation: Pair | float | None = None,
  test: Pair | float | None = None,
  *,
  name: str = 'arrays',
  classes: int | None = None,
  class_names: Sequence[str] | None = None,
  feature_names: Sequence[str] = (),
  notes: Sequence[str] = (),
  seed: int = 0,
) -> Dataset:
  """Makes a Dataset of arrays; splits that are not given are carved from train, seeded and stratified.

  Args:
    train: (inputs [N, ...], labels [N]); NumPy, JAX or anything that NumPy reads. Images are [N, H, W, C].
    validation: a pair, or the fraction of `train` to carve; None carves a tenth, 0 holds nothing out.
    test: a pair or a fraction; None carves a tenth.
    name: what the data are called.
    classes: how many classes; None takes the largest label and one.
    class_names: one name a class; None numbers them.
    feature_names: one name a feature of a table.
    notes: lines to hand on.
    seed: of the carving.

  Returns:
    The Dataset. Both fractions are of `train` as it was given.

  Raises:
    ValueError: something is wrong with the data; the message says in which split, and the fix.

  >>> import numpy as np
  >>> data = from_arrays((np.zeros((100, 8, 8, 1), np.uint8), np.arange(100) % 10), test=0.2)
  >>> [len(split.labels) for split in (data.train, data.validation, data.test)]
  [70, 10, 20]
  """
  pair = check_split(*as_pair(train, 'train'), 'train')
  total = len(pair.labels)
  carved: dict[str, Any] = {'test': test, 'validation': validation}  # in this order: test never depends on validation
  for where, given in carved.items():
    if where == 'validation' and isinstance(given, int | float) and given == 0:
      carved[where] = None
    elif given is None or not isinstance(given, tuple | list):
      count = splits.share(0.1 if given is None else given, total, where)
      kept, taken = splits.carve(pair.labels, count, seed, where)
      carved[where] = (pair.inputs[taken], pair.labels[taken])
      pair = pair._replace(inputs=pair.inputs[kept], labels=np.ascontiguousarray(pair.labels[kept]))
  return make_dataset(
    name,
    tuple(pair),
    carved['validation'],
    carved['test'],
    classes=classes,
    class_names=class_names,
    feature_names=feature_names,
    notes=notes,
  )
