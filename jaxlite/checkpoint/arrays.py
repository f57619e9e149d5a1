"""Parts of a checkpoint without the program that made it: what a prediction, a teacher or a look at a run needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from jaxlite.checkpoint.checkpoints import Checkpoints, Restored


def load_arrays(
  directory: str | os.PathLike[str],
  names: Sequence[str] = ('params', 'model_state', 'const'),
  *,
  which: str | int = 'best',
  keep: Callable[[str], bool] | None = None,
  run: str | None = None,
  log: Callable[[str], Any] = print,
) -> Restored | None:
  """Loads parts of a checkpoint without a template: what a prediction needs, and no optimizer state.

  Args:
    directory: the folder of checkpoints; nothing in it is changed.
    names: top-level names of the saved state.
    which: 'latest', 'best' (largest metric, else the latest) or a step.
    keep: (path) -> whether a leaf is loaded; entries of dicts that are left without one are left out. None loads all.
    run: the id of the run that they must be of; None: of any.
    log: is given one line for each damaged checkpoint passed over.

  Returns:
    Restored, with `state` a dict by name. Dicts, lists, tuples and None come back as they were, other nodes
    (NamedTuples, custom classes) as dicts by field; leaves are JAX arrays on the default device. None when
    nothing was ever saved.

  Raises:
    ValueError: the saved state has no such name.
    CheckpointError: there are checkpoints and none is sound, or none of that step, or an older or newer format.

  >>> import tempfile, jax.numpy as jnp
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   with Checkpoints(folder) as checkpoints:
  ...     checkpoints.save(1, {'params': {'layers': [jnp.ones(2)]}, 'opt_state': jnp.ones(9)}, {})
  ...   load_arrays(folder, ['params'], which='latest').state
  {'params': {'layers': [Array([1., 1.], dtype=float32)]}}
  """
  with Checkpoints(directory, run=run, log=log) as checkpoints:
    return checkpoints.load(names, which=which, keep=keep)
