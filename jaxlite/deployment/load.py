"""Gives back what a run made: a network that predicts, without the code that trained it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxlite import errors, tasks
from jaxlite.checkpoint import load_arrays
from jaxlite.contract import CONST, Network, join_const
from jaxlite.deployment import stablehlo
from jaxlite.deployment.run_id import run_of
from jaxlite.host.files import expanded
from jaxlite.host.sealed import Damaged, read_sealed
from jaxlite.tasks.task import Task


def load(workdir: str | os.PathLike[str], which: str | int = 'best', *, task: Task | None = None) -> Network:
  """Gives back what a run made, ready to predict, without the code that trained it.

  Args:
    workdir: the run's folder.
    which: 'best' by validation, 'latest', or a step that is kept.
    task: the run's own task, where it is none of jaxlite's: it says what outputs mean.

  Returns:
    A Network: `.predict(inputs)` takes raw inputs as in training, arrays [B, ...] or what the data set was made of
    (a table's rows, texts), and holds the preprocessing; `.predict_labels` and `.predict_proba` answer in the task's
    terms. It is also what `jl.distill` takes as a teacher.

  Raises:
    FileNotFoundError: no run, or no checkpoint, is there.
    ImportError: Orbax or flatbuffers is not installed.
  """
  errors.need('jaxlite.load', 'orbax.checkpoint', 'flatbuffers')
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
  full = join_const(arrays['model_state'], arrays['const'])
  network = stablehlo.load_program(folder, arrays['params'], full, run=run)
  return network._replace(**_meaning(folder, run, task))


def _meaning(folder: Path, run: str, given: Task | None) -> dict[str, Any]:
  """How raw inputs become arrays and outputs answers, as the run wrote it down; what is missing is said, and None."""
  path = folder / 'task.json'
  again = 'train the run again to write it anew (a finished one is not trained)'
  if not os.path.lexists(path):
    print(f'{path} is missing, so inputs are arrays and outputs are the raw ones: {again}')
    return {}
  encode, task = None, given
  try:
    saved = read_sealed(path, run)
    name, facts, encoder = saved['task'], saved['facts'], saved['encoder']
    if given is None and saved.get('built_in'):
      task = tasks.named(name, facts)
    if encoder is not None:
      from jaxlite.data.encoders import load_encoder

      encode = load_encoder(encoder)
  except (Damaged, LookupError, TypeError, ValueError, AttributeError) as error:  # whatever a stranger wrote there
    why = f'{error} is missing' if isinstance(error, KeyError) else str(error).partition('\n')[0]
    raise ValueError(f'{path} is damaged ({why}): {again}, or delete it to predict raw outputs without it') from None
  if given is not None and given.name != name:
    raise ValueError(f'this run learned the task {name}; got task={given.name}: leave it out, or give the run its own')
  if task is None:
    return {'encode': encode}
  answer = functools.partial(task.answer, facts=facts)
  return {'encode': encode, 'answer': answer if given is not None else functools.partial(_answered, path, answer)}


def _answered(path: Path, answer: Callable[[Any], dict[str, Any]], outputs: Any) -> dict[str, Any]:
  try:
    return answer(outputs)
  except (LookupError, TypeError, AttributeError) as error:
    raise ValueError(f'{path} does not fit what the model gives ({type(error).__name__}: {error})') from None
