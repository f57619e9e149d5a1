"""A run's folder: its config, whether it is finished, the evidence it leaves, and using what it made.

`config.json` is what the run began with, `result.json` is there once it is done, `program.bin` and `checkpoints/`
are what `load` needs, `list.json` is what exports are written from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxlite.checkpoint import Checkpoints
from jaxlite.config import serialize
from jaxlite.config.schema import Config
from jaxlite.config.serialize import FORMAT, as_saved, compare, to_dict
from jaxlite.contract import Hook, Network, Side, join_const
from jaxlite.deployment import stablehlo
from jaxlite.deployment.operations import listing
from jaxlite.deployment.run_id import run_of
from jaxlite.errors import ConfigError
from jaxlite.host.files import read_file, read_json, write_text
from jaxlite.host.gc_pause import paused
from jaxlite.host.sealed import RUN, Damaged, read_sealed, write_sealed
from jaxlite.quantization import weight_bits
from jaxlite.report import page
from jaxlite.report.result import Result, from_json, to_json
from jaxlite.run import aiming, foreseen, identity, records
from jaxlite.run.evaluation import meaning
from jaxlite.run.foreseen import Start
from jaxlite.run.identity import Identity
from jaxlite.run.record import Record, recorded
from jaxlite.run.setup import REDUCE, REMAT, REWRITES, Setup
from jaxlite.tasks.figures import lacking
from jaxlite.tasks.task import Figure
from jaxlite.version import __version__

_DECIDED = ('start', 'patience', 'target', 'precision', 'recall')  # what of `eval` a result depends on
_CONFIG, _TASK, _FAILED = 'config.json', 'task.json', 'failed.json'

Say = Callable[[str], None]
_T = TypeVar('_T')


def opened(folder: Path, config: Config, say: Callable[[str], None]) -> Record | None:
  """Tells whether a folder holds a run, and that it is this config's; changes nothing.

  Args:
    folder: exists.
    config: what is to be run there.
    say: is given a line for each difference that is allowed.

  Returns:
    What the run's newest checkpoint remembers. None where there is none: until then a run that failed may be mended
    and started again.

  Raises:
    ConfigError: the folder belongs to a run with another config.
  """
  if (record := remembered(folder)) is None:
    return None
  differences = _read_as(record.began['config'], config, compare)
  if differences.refused:
    raise ConfigError(
      f'{folder} holds a run with another config ({"; ".join(differences.refused)}): give another workdir, '
      'move the old run aside with fresh=True, or take the change back'
    )
  for line in differences.allowed:
    say(f'config: {line}')
  if record.rewrites and text(folder / REWRITES) != record.rewrites:  # before the forms are read from it
    say(f'{folder / REWRITES} is missing or damaged: written again from the checkpoint')
    write_text(folder / REWRITES, record.rewrites)
  for name in _damaged(folder, record):
    say(f'{folder / name} is missing or damaged, which costs nothing: a checkpoint and the code of now make it again')
  return record


def remembered(folder: Path) -> Record | None:
  """Returns what the newest checkpoint of a folder remembers, the config with it; None where there is no checkpoint."""
  run = run_of(folder)
  with Checkpoints(folder / 'checkpoints', run=run) as saves:
    if saves.latest_step() is None:
      return None
    record = recorded({'run': run, **(saves.loop() or {})})
  record.began['config'] = record.began.get('config') or _read_config(folder / _CONFIG)
  return record


def as_trained(record: Record, config: Config, say: Say) -> Config:
  """Returns a config with the values that a run was trained with, whatever the config of now says; that is said."""
  saved = record.began['config']
  for line in _read_as(saved, config, compare).refused:
    say(f'config: {line}: taken as saved')
  return _read_as(saved, config, serialize.as_trained)


def _damaged(folder: Path, record: Record) -> list[str]:
  """Which of the files that say what a run is are not as its checkpoint knows them."""
  found = []
  if 'programs' in record.began and text(folder / _CONFIG) != _config_text(record.began['config'], record.run):
    found.append(_CONFIG)
  try:
    read_sealed(folder / _TASK, record.run)
  except Damaged:
    found.append(_TASK)
  return found


def verify(setup: Setup, folder: Path, record: Record, again: Callable[[Config], Setup], say: Say) -> Identity:
  """Makes sure that a run's code and data are those that it began with.

  Args:
    setup: of now.
    folder: the run's.
    record: as `opened` gave it.
    again: makes a Setup of another config with the data of `setup`.
    say: is given a line on what may differ and does.

  Returns:
    The Identity of `setup`.

  Raises:
    ConfigError: another program, or other data.
  """
  now = identity.identify(setup)
  if 'programs' not in record.began:
    say('note: this run was begun by an older jaxlite, which kept no text of its program: taken for the code of now')
    return now
  before = _read_as(record.began['config'], setup.config, as_saved)
  same = to_dict(before) == now.began['config']
  began = now if same else identity.identify(again(before))
  if identity.check(folder, record.began, began, say) and is_finished(folder):
    identity.write(folder, began)
  if not is_finished(folder) or record.began['config']['train'] != now.began['config']['train']:
    _tell_rounding(record.began['config'].get('machine', {}), now.began['config']['machine'], say)
  return now


def _tell_rounding(before: Mapping[str, Any], now: Mapping[str, Any], say: Say) -> None:
  """Says which of the fields that may change in a run, and that round or draw differently, did."""
  for name in ('micro_batches', 'remat', 'rewrites'):
    if name in before and before[name] != now[name]:
      say(f'note: machine.{name} was {before[name]}, now {now[name]}: the run goes on, but not bit for bit')


def reported(setup: Setup, folder: Path, record: Record, say: Say) -> Result | None:
  """Returns the Result of a run that is finished, which is said; None when there is something to do.

  Files of the folder that are damaged are told and written again, from the checkpoint and from the code of now.
  """
  if not is_finished(folder) or record.began['config']['train'] != to_dict(setup.config)['train']:
    return None
  try:
    result = from_json(read_file(folder / 'result.json').decode(), record.run)
  except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
    say(f'{folder / "result.json"} is damaged ({error}): the run is tested again')
    return None
  _mend(setup, folder, record, result, say)
  try:
    result.history = records.read_records(folder)
  except ValueError as error:
    say(f'note: the history of this run is lost ({error})')
  say(f'this run is finished: reported from {folder}, nothing is trained (to train anew: fresh=True)')
  before, now = record.began['config'].get('eval', {}), to_dict(setup.config.eval)
  late = [f'eval.{name}' for name in _DECIDED if name in before and before[name] != now[name]]
  if late:
    say(f'note: {" and ".join(late)} had a say while it was trained and tested, and as set now changes nothing here')
  return result


def _mend(setup: Setup, folder: Path, record: Record, result: Result, say: Say) -> None:
  damaged = _damaged(folder, record)
  if _CONFIG in damaged:
    write_text(folder / _CONFIG, _config_text(record.began['config'], record.run))
  if _TASK in damaged:
    _write_meaning(folder, record.run, meaning(setup.data, result.facts))
  write_program(setup, folder, record.run, say)
  if record.log:
    records.mend(folder, record.log_bytes, record.log, say)


@paused()
def write_program(setup: Setup, folder: Path, run: str, say: Say, *, anew: bool = False) -> None:
  """Writes the forward, that `jaxlite.load` predicts by and exports are written from, where it is missing or damaged,
  or `anew` in any case."""
  damage = '' if anew else stablehlo.program_damage(folder, run)
  unlisted = '' if anew else listing.list_damage(folder, run)
  if not (damage or unlisted or anew):
    return
  shapes = setup.abstract
  values = Network(setup.train.model, shapes.params, join_const(shapes.model_state, shapes.const))
  given = (folder, setup.train.model, setup.recipe, values, setup.first_batch['inputs'])
  if damage or anew:
    reason = stablehlo.save_program(*given, _made(setup, values), run=run)
    if reason:
      say(f'warning: jaxlite.load will not be able to predict; the model cannot be written ({reason})')
    elif damage:
      say(f'{folder / "program.bin"} or its program.json is missing or damaged: written again')
  if unlisted or anew:
    try:
      listing.save_list(*given, run=run)  # whether there is one is asked and told when it is deployed
    except OSError as error:
      if anew:
        raise
      say(f'{folder / listing.FILE} cannot be written ({error.strerror or error}), which only exports need')
    else:
      if not anew:
        say(f'{folder / listing.FILE} is missing or damaged: written again')


def _made(setup: Setup, values: Network) -> dict[str, Any]:
  """What whoever opens the network must know: which one it is, what the run put around it, and what else is there."""
  made: dict[str, Any] = {'version': __version__, 'around': list(setup.around)}
  if REDUCE in setup.around and setup.data.reduction is not None:
    made['reduced'] = setup.data.reduction.leaf
  unchanged = Hook._field_defaults['model']
  hooks = [part for part in setup.recipe.parts if isinstance(part, Hook) and part.model is not unchanged]
  network = setup.network.apply
  loaded = hasattr(network, 'around')  # with whatever was around it
  known = (*setup.around, REMAT)
  made['plain'] = not loaded and all(isinstance(part, Side) or part.name in known for part in hooks)
  if not made['plain']:
    bits = weight_bits(setup.train.model, values.params, values.model_state, setup.first_batch['inputs'])
    made['quantized'] = bool(bits)
  described = getattr(network, 'made_of', None)
  if (module := getattr(network, 'module', None)) is not None:
    from jaxlite.models.saved import described as describe  # Flax, which is there where a module of it is

    described = describe(module)
  return {**made, 'network': described} if described else made


def begin(folder: Path, run: str, config: Config, began: Identity, about: dict[str, Any]) -> None:
  """Makes a folder this run's own, and says there what it runs and what its inputs and outputs mean."""
  _write_meaning(folder, run, about)
  identity.write(folder, began)
  write_text(folder / _CONFIG, _config_text(to_dict(config), run))
  for name in ('result.json', _FAILED):  # a longer run is not finished any more
    (folder / name).unlink(missing_ok=True)


def fail(folder: Path, run: str, step: int, where: str) -> None:
  """Keeps that a run ended on a number that is not finite, for who asks later what went wrong."""
  write_text(folder / _FAILED, json.dumps({RUN: run, 'step': step, 'where': where}) + '\n')


def failure(folder: Path, run: str) -> dict[str, Any] | None:
  """Returns what `fail` kept of this run; None where it kept nothing, or where nobody can read it."""
  try:
    found = read_json(folder / _FAILED)
    return found if isinstance(found, dict) and found.get(RUN) == run else None
  except (OSError, ValueError):
    return None


def keep(setup: Setup, folder: Path, began: Identity, record: Record, say: Say) -> None:
  """Looks at a save whether what the run has written is still there, and writes it again where it is not."""
  missing = [name for name in (_CONFIG, _TASK, identity.FILE) if not (folder / name).exists()]
  if record.rewrites and not (folder / REWRITES).exists():
    missing.append(REWRITES)
  if missing:
    say(f'{" and ".join(missing)} of {folder} is gone, though the run is under way: written again')
    folder.mkdir(parents=True, exist_ok=True)
    begin(folder, record.run, setup.config, began, meaning(setup.data, setup.data.facts))
    if record.rewrites:
      write_text(folder / REWRITES, record.rewrites)
    write_program(setup, folder, record.run, say)


def is_finished(folder: Path) -> bool:
  """Tells whether a folder holds the result of a run."""
  return (folder / 'result.json').exists()


@paused()
def finish(
  setup: Setup,
  folder: Path,
  run: str,
  result: Result,
  figures: Sequence[Figure],
  about: dict[str, Any],
  foresight: tuple[Start | None, aiming.Aim],
  say: Say,
) -> None:
  """Writes the report and its pictures, compares what was expected with what came, then marks the run as done."""
  _draw(folder, result, figures, say)
  start, aim = foresight
  if start is not None:
    result.forecast = foreseen.ended(start, run, say)  # what draws takes memory too
    aiming.keep(setup, folder, run)
  if met := aim.outcome():
    result.forecast['target'] = met
    say(aiming.told(met))
  _write_meaning(folder, run, about)
  page.write([result], folder)
  write_text(folder / 'result.json', to_json(result, run))


def _draw(folder: Path, result: Result, figures: Sequence[Figure], say: Say) -> None:
  """Writes the pictures that a task draws. What cannot be drawn is told, and costs no run its result."""
  if why := lacking():
    result.figures = []
    say(f'note: report.md has no pictures, and report.html those that it draws itself: {why}')
    return
  from jaxlite.report.figures import save  # matplotlib, which nothing else of a run needs

  for figure in figures:
    try:
      save(figure.draw(), folder / f'{figure.slug}.png')
    except OSError:  # the disk's, not the picture's
      raise
    except Exception as error:  # of a task of somebody's own
      told = f'{type(error).__name__}: {" ".join(str(error).split())[:160]}'
      note = f'the picture {figure.slug!r} of the task {result.task!r} could not be drawn ({told})'
      result.figures = [one for one in result.figures if one[0] != f'{figure.slug}.png']
      result.notes = [*result.notes, note]
      say(f'note: {note}')


def _write_meaning(folder: Path, run: str, about: dict[str, Any]) -> None:
  write_sealed(folder / _TASK, {'format': FORMAT, RUN: run, **about})


def _read_config(path: Path) -> dict[str, Any]:
  try:
    saved = read_json(path)
    if saved['format'] == FORMAT:
      return saved['config']
  except (ValueError, KeyError, TypeError, OSError):
    raise ConfigError(f'{path} is missing or damaged: restore it, or move the run aside with fresh=True') from None
  raise ConfigError(f'{path} has format {saved["format"]}, this jaxlite reads {FORMAT}: use a newer jaxlite')


def _read_as(saved: Any, config: Config, read: Callable[[Any, Config], _T]) -> _T:
  try:
    return read(saved, config)
  except (TypeError, LookupError, AttributeError, ValueError):
    raise ConfigError(
      'the config that the run was saved with has another shape than was ever written: put back a copy, or start again '
      'with fresh=True'
    ) from None


def _config_text(config: dict[str, Any], run: str) -> str:
  return json.dumps({'format': FORMAT, **({RUN: run} if run else {}), 'config': config}, indent=1) + '\n'


def text(path: Path) -> str | None:
  """Returns what a file says; None where it cannot be read."""
  try:
    return read_file(path).decode()
  except (OSError, ValueError):
    return None
