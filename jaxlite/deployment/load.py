"""Gives back what a run made: a network that predicts, without the code that trained it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlite import errors
from jaxlite.checkpoint import load_arrays
from jaxlite.contract import Network, join_const
from jaxlite.deployment import stablehlo


def load(workdir: str | os.PathLike[str], which: str | int = 'best') -> Network:
  """Gives back what a run made, ready to predict, without the code that trained it.

  Args:
    workdir: the run's folder.
    which: 'best' by validation, 'latest', or a step that is kept.

  Returns:
    A Network: `.predict(inputs)` takes raw inputs as in training, [B, ...], and holds the preprocessing. It is
    also what `jl.distill` takes as a teacher.

  Raises:
    FileNotFoundError: no run, or no checkpoint, is there.
    ImportError: Orbax or flatbuffers is not installed.
  """
  errors.need('jaxlite.load', 'orbax.checkpoint', 'flatbuffers')
  folder = Path(workdir)
  inside = [path.parent.name for path in sorted(folder.glob('*/config.json'))]
  if inside and not (folder / 'config.json').exists():
    raise FileNotFoundError(f'{folder} holds several runs: load one of them, {", ".join(inside)}')
  if not (folder / 'checkpoints').is_dir():
    raise FileNotFoundError(f'{folder} holds no checkpoints: give the folder of a run')
  found = load_arrays(folder / 'checkpoints', which=which)
  if found is None:
    raise FileNotFoundError(f'{folder} holds no checkpoint yet: train the run first')
  arrays: Mapping[str, Any] = found.state
  return stablehlo.load_program(folder, arrays['params'], join_const(arrays['model_state'], arrays['const']))
