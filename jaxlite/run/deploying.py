"""Writing what a run trained for other runtimes, tried on the data that its config names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlite.checkpoint import Checkpoints
from jaxlite.config.schema import Config, validate
from jaxlite.deployment.deploy import deploy
from jaxlite.deployment.run_id import run_of
from jaxlite.deployment.sheet import Report
from jaxlite.host.files import expanded
from jaxlite.run import folder as run_folder
from jaxlite.run.setup import dataset_of


def deploy_run(
  config: Config, workdir: str | Path, *, data: Any = None, say: Callable[[str], None] = print, **options: Any
) -> Report:
  """Deploys a finished run.

  Args:
    config: of the run.
    workdir: its folder.
    data: as `jaxlite.train` takes it.
    say: prints a line.
    **options: as `jaxlite.deploy` takes them.

  Raises:
    ValueError: there is no run, it is not finished, its config or its data are others.
  """
  validate(config)
  folder = expanded(workdir).absolute()
  before = run_folder.opened(folder, config, say) if (folder / 'checkpoints').is_dir() else None
  if before is None:
    raise ValueError(f'{folder} holds no run to deploy: train first, with --mode=train')
  found = dataset_of(config, data)
  with Checkpoints(folder / 'checkpoints', run=run_of(folder)) as saves:
    began = (saves.loop() or {}).get('data')
  if found.fingerprint != began:
    raise ValueError('the data differ from those this run was trained on: bring them back to deploy it')
  task = None if config.task is None else found.task
  return deploy(folder, examples=found, task=task, say=say, **options)
