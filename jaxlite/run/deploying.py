"""Writing what a run trained for other runtimes, tried on the data that its config names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlite.config.schema import Config, validate
from jaxlite.deployment.deploy import deploy
from jaxlite.deployment.sheet import Report
from jaxlite.host.files import expanded
from jaxlite.run import folder as run_folder
from jaxlite.run.setup import dataset_of


def deploy_run(
  config: Config, workdir: str | Path, *, data: Any = None, say: Callable[[str], None] = print, **options: Any
) -> Report:
  """Deploys a finished run.

  Args:
    config: of the run; what it says otherwise than when the run began is said, and the run's own is taken.
    workdir: its folder.
    data: as `jaxlite.train` takes it.
    say: prints a line.
    **options: as `jaxlite.deploy` takes them.

  Raises:
    ValueError: there is no run, it is not finished, its data are others.
  """
  validate(config)
  folder = expanded(workdir).absolute()
  record = run_folder.remembered(folder) if (folder / 'checkpoints').is_dir() else None
  if record is None:
    inside = sorted(path.parent.name for path in folder.glob('*/config.json'))
    fix = f'name one of the runs in it, {", ".join(inside)}' if inside else 'train first, with --mode=train'
    raise ValueError(f'{folder} holds no run to deploy: {fix}')
  config = run_folder.as_trained(record, config, say)
  validate(config)
  found = dataset_of(config, data)
  if found.fingerprint != record.data:
    raise ValueError(
      f'the data differ from those this run was trained on: to deploy {folder} bring them back, and give the config '
      'that it was trained with'
    )
  task = None if config.task is None else found.task
  return deploy(folder, examples=found, task=task, say=say, **options)
