"""A run's folder: its config, whether it is finished, the evidence it leaves, and using what it made.

`config.json` is what the run began with, `result.json` is there once it is done, `program.bin` and `checkpoints/`
are what `load` needs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlite import packages, program, report, trees
from jaxlite.checkpoint import Checkpoints, load_arrays, lock
from jaxlite.config import Config, ConfigError, compare, to_dict
from jaxlite.contract import CONST, Network, Params, State
from jaxlite.graph.layouts import Layout
from jaxlite.transforms.quantize import weight_bits

_FORMAT = 1


def settle(folder: Path, config: Config, say: Callable[[str], None]) -> report.Result | None:
  """Tells whether a folder is this config's, and finished; changes nothing.

  Args:
    folder: exists.
    config: what is to be run there.
    say: is given a line for each difference that is allowed.

  Returns:
    The Result of a run that is already finished; None when there is something to do.

  Raises:
    ConfigError: the folder belongs to a run with another config.
  """
  done = folder / 'result.json'
  if is_begun(folder):  # until its first checkpoint a run that failed may be mended and started again
    saved = match(folder, config, say)
    if done.exists() and saved['train'] == to_dict(config)['train']:
      return _read_result(done)
  return None


def begin(folder: Path, config: Config) -> None:
  """Makes a folder this config's own."""
  write_text(folder / 'config.json', json.dumps({'format': _FORMAT, 'config': to_dict(config)}, indent=1) + '\n')
  (folder / 'result.json').unlink(missing_ok=True)  # a longer run is not finished any more


def is_begun(folder: Path) -> bool:
  """Tells whether a folder holds a checkpoint."""
  with Checkpoints(folder / 'checkpoints') as saves:
    return saves.latest_step() is not None


def match(folder: Path, config: Config, say: Callable[[str], None]) -> dict[str, Any]:
  """Returns the config that a run began with, as saved; says what differs.

  Raises:
    ConfigError: another config than this one, in a field that may not change.
  """
  saved = _read_config(folder / 'config.json')
  differences = compare(saved, config)
  if differences.refused:
    raise ConfigError(
      f'{folder} holds a run with another config ({"; ".join(differences.refused)}): give another --workdir, '
      'move the old run aside with --fresh, or take the change back'
    )
  for line in differences.allowed:
    say(f'config: {line}')
  return saved


def finish(folder: Path, result: report.Result) -> None:
  """Writes the report, then the mark that the run is done."""
  report.write([result], folder)
  write_text(folder / 'result.json', report.to_json(result) + '\n')


def set_aside(folder: Path) -> Path | None:
  """Renames a run's folder out of the way.

  Returns:
    The new name; None where there was nothing.

  Raises:
    WorkdirError: another process is at work in it.
  """
  if not folder.exists():
    return None
  with lock(folder):
    number = 1
    while (aside := folder.with_name(f'{folder.name}.old{number}')).exists():
      number += 1
    folder.rename(aside)
  return aside


def layers(
  model: Any, params: Params, state: State, inputs: Any, weights: Mapping[str, Layout | None]
) -> list[report.Layer]:
  """Counts what a trained model consists of: every array, as it would be stored.

  Args:
    model: the Model wrapped in its hooks.
    params: its params.
    state: its state, constants among it.
    inputs: one batch.
    weights: what enters a contraction, with the layout of its axes.
  """
  bits = weight_bits(model, params, state, inputs)
  exported, _ = model.export(params, state)
  names, leaves, _ = trees.flatten(exported)
  found = []
  for path, leaf in zip(names, leaves, strict=True):
    values = np.asarray(leaf)
    quantized = path in bits
    found.append(
      report.Layer(
        path=path,
        size=values.size,
        nonzero=int(np.count_nonzero(values)),
        bits=bits.get(path, 8 * values.dtype.itemsize),
        weight=path in weights,
        scales=_channels(values.shape, weights.get(path)) if quantized else 0,
      )
    )
  return found


def _channels(shape: tuple[int, ...], layout: Layout | None) -> int:
  """How many scales a quantized weight has: one for each output, of each weight that is stacked in it."""
  if layout is None:  # its axes are mixed on the way: as most frameworks lay them
    return shape[-1] if shape else 1
  return math.prod(size for axis, size in enumerate(shape) if axis not in layout.summed)


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
  packages.need('jaxlite.load', 'orbax.checkpoint', 'flatbuffers')
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
  return program.load_program(folder, arrays['params'], {**arrays['model_state'], CONST: arrays['const']})


def write_text(path: Path, text: str) -> None:
  """Writes a small file so that a kill leaves the old one or the new one."""
  part = path.with_name(f'.{path.name}.part')
  part.write_text(text)
  os.replace(part, path)


def _read_config(path: Path) -> dict[str, Any]:
  try:
    saved = json.loads(path.read_text())
    if saved['format'] == _FORMAT:
      return saved['config']
  except (ValueError, KeyError, TypeError, OSError):
    raise ConfigError(f'{path} is missing or damaged: restore it, or move the run aside with --fresh') from None
  raise ConfigError(f'{path} has format {saved["format"]}, this jaxlite reads {_FORMAT}: use a newer jaxlite')


def _read_result(path: Path) -> report.Result:
  try:
    return report.from_json(path.read_text())
  except (ValueError, KeyError, TypeError):
    raise ConfigError(f'{path} is damaged: delete it, and the same command tests the run again') from None
