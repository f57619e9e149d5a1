"""What a run's folder holds of its network, read and not yet run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxlite import trees
from jaxlite.checkpoint import load_arrays
from jaxlite.contract import CONST, join_const
from jaxlite.deployment import stablehlo
from jaxlite.deployment.run_id import run_of
from jaxlite.host.files import expanded


class Held(NamedTuple):
  """What a run's folder holds of its network.

  Attributes:
    folder: of the run.
    run: its id.
    stored: the forward that it wrote.
    params, model_state: of a checkpoint, constants under 'jl.const'.
    values: the same by path.
    step: of the checkpoint.
  """

  folder: Path
  run: str
  stored: stablehlo.Stored
  params: Any
  model_state: Any
  values: Mapping[str, Any]
  step: int


def read_run(workdir: str | os.PathLike[str], which: str | int = 'best') -> Held:
  """Reads a run's forward and a checkpoint, and runs nothing of them.

  Args:
    workdir: the run's folder.
    which: as for `jl.load`.

  Raises:
    FileNotFoundError: no run, or no checkpoint, is there.
    ValueError: a file is damaged.
  """
  folder = expanded(workdir)
  inside = [path.parent.name for path in sorted(folder.glob('*/config.json'))]
  if inside and not (folder / 'config.json').exists():
    raise FileNotFoundError(f'{folder} holds several runs: load one of them, {", ".join(inside)}')
  if not (folder / 'checkpoints').is_dir():
    raise FileNotFoundError(f'{folder} holds no checkpoints: give the folder of a run')
  run = run_of(folder)
  served = stablehlo.served_arrays(folder, run)

  def keep(path: str) -> bool:  # a teacher's arrays serve training alone
    part, _, rest = path.partition('/')
    return part != 'const' or not served or f'model_state/{CONST}/{rest}' in served

  found = load_arrays(folder / 'checkpoints', which=which, keep=keep, run=run)
  if found is None:
    raise FileNotFoundError(f'{folder} holds no checkpoint yet: train the run first')
  arrays: Mapping[str, Any] = found.state
  stored = stablehlo.read_program(folder, run=run)
  params, state = arrays['params'], join_const(arrays['model_state'], arrays['const'])
  values = trees.by_path({'params': params, 'model_state': state})
  stablehlo.check_held(stored, values)
  return Held(folder, run, stored, params, state, values, found.step)
