"""A run tried in a process of its own, so that memory which does not suffice ends that process and nothing else.

  python -m jaxlite.run.trial QUESTION ANSWER

QUESTION and ANSWER are files of JSON. `asked` writes the first and reads the second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlite import errors
from jaxlite.config import command_line
from jaxlite.config.schema import Config
from jaxlite.config.schema import smoke as shrink
from jaxlite.host import stacks, waiting
from jaxlite.run import again

MARGIN = 0.92  # of a limit: in what a trial has to do; of some 40 that came through a trial in 0.95, one died
_STILL = 180.0  # seconds without computing after which a trial is taken to hang
_SPANS = 4  # between points of a trial: from so many on the fastest quarter tells its step
_SEEN = 0.02  # seconds between two points: times are kept to a thousandth, which is a twentieth of it
_SECONDS, _LEAST, _MOST = 3.0, 6, 400  # a trial lasts about so long, and so many steps


class Source(NamedTuple):
  """Where a config comes from, so that another process can make the same.

  Attributes:
    path: the experiment file.
    pairs: fields set on the command line.
    root: where experiment files are looked for too.
    smoke: whether the run is shrunk to seconds.
    workdir: the experiment's folder.
  """

  path: str
  pairs: command_line.Pairs
  root: str
  smoke: bool
  workdir: str


class Died(Exception):  # noqa: N818 - an answer, not an error
  """The process ended before it answered.

  Attributes:
    stepped: whether it had taken a step by then.
  """

  def __init__(self, said: str, stepped: bool = False):
    """Args: the last that it said, and whether it had taken a step."""
    super().__init__(said)
    self.stepped = stepped


def asked(source: Source, run: str, what: str, **more: Any) -> dict[str, Any]:
  """Asks a question in a process of its own.

  Args:
    source: of the config.
    run: of an experiment of several; '' for the only one.
    what: 'outlook', 'trial' or 'compile'.
    **more: JSON values that the question takes.

  Returns:
    The answer.

  Raises:
    Died: there is none: the process was killed, or ended by itself.
    ValueError: what the config cannot be, as this process would have said it.
  """
  with tempfile.TemporaryDirectory(prefix='jaxlite-trial-') as place:
    question, answer, said = (pathlib.Path(place, name) for name in ('question.json', 'answer.json', 'said.txt'))
    question.write_text(json.dumps({'source': source._asdict(), 'run': run, 'what': what, 'place': place, **more}))
    package = str(pathlib.Path(errors.__file__).resolve().parents[1])
    known = os.environ.get('PYTHONPATH')
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([package, *([known] if known else [])])}
    command = [sys.executable, '-m', 'jaxlite.run.trial', str(question), str(answer)]
    with said.open('w') as out:
      process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, text=True)
      try:
        code = waiting.ended(process, _STILL)
      finally:
        if process.poll() is None:
          process.kill()
          process.wait()
    text = said.read_text(errors='replace')
    stepped = re.search(r'^(memory: |step \d+/)', text, re.MULTILINE) is not None
    if code is None:  # without memory for a thread, say, what waits for that thread waits on
      raise Died(f'it stood still for {_STILL:.0f} s', stepped)
    if code == 2 and any(word in text for word in again.NO_MEMORY):  # said in a line, and no fault of the config
      raise Died(_last(text), stepped)
    if code == 2 and text.rstrip().split('\n')[-1].startswith('error: '):
      raise ValueError(text.rstrip().split('\n')[-1].removeprefix('error: '))
    if code or not answer.is_file():
      raise Died(_last(text) or f'ended by signal {-code}', stepped)
    return json.loads(answer.read_text())


def _last(text: str) -> str:
  lines = [line.strip() for line in text.split('\n') if line.strip()]
  telling = [line for line in lines if any(word in line for word in again.NO_MEMORY)]
  return (telling or lines or [''])[-1][:200]


def main(question: str, answer: str) -> None:
  """Answers a question.

  Args:
    question: a file of JSON, as `asked` writes it.
    answer: the file to write.
  """
  given = json.loads(pathlib.Path(question).read_text())
  try:
    with stacks.small():
      found = _answer(given)
  except Exception as error:
    message = errors.one_line(error)
    if again.is_memory(error):
      again.leave(error, message)
    if message is None:
      raise
    command_line.fail(message)
  pathlib.Path(answer).write_text(json.dumps(found))


def _answer(given: dict[str, Any]) -> dict[str, Any]:
  source = Source(**given['source'])
  from jaxlite.run import planning

  config = made(source, given['run'])
  with planning.ground(source_config(source), source.workdir, given['run']) as folder:
    if given['what'] == 'outlook':
      return planning.outlook(config, folder)
    place, margin = pathlib.Path(given['place'], 'run'), given.get('margin', MARGIN)
    return tried(config, folder, place, given['fields'], given['step'], given['what'], margin)


def source_config(source: Source) -> Config:
  """Returns the config of a whole experiment."""
  pairs = [(path, value) for path, value in source.pairs]
  return command_line.load(source.path, pairs, pathlib.Path(source.root))


def made(source: Source, run: str) -> Config:
  """Returns the config of one run."""
  config = source_config(source)
  one = dataclasses.replace(config.runs[run](config), name=run) if run else config
  return dataclasses.replace(shrink(one) if source.smoke else one, runs={})


def tried(
  config: Config,
  folder: pathlib.Path,
  place: pathlib.Path,
  fields: dict[str, Any],
  step: float | None,
  what: str,
  margin: float,
) -> dict[str, Any]:
  """Runs a changed run for some steps, with evaluation, checkpoint, test and report; or compiles its step alone.

  Args:
    config: of the run as it is.
    folder: of the run, or its stand-in: where its teacher lies beside.
    place: of the trial.
    fields: of the config that are changed.
    step: seconds that a step is forecast to take; None where that is not known.
    what: 'trial', or 'compile'.
    margin: the part of each limit that the trial may use.

  Returns:
    'peak': bytes of resident memory at the most; 'step': seconds; of a trial 'share', of a limit of the process that
    it came to, which may count far more than what is resident.
  """
  from jaxlite.host import compile_cache
  from jaxlite.host.machine import status
  from jaxlite.planning.edits import edited
  from jaxlite.run import loop, planning
  from jaxlite.run.records import read_records
  from jaxlite.run.setup import prepare

  config = edited(planning.placed(config, folder), {**fields, 'machine.force': True})
  if what == 'compile':
    if config.machine.compile_cache:
      compile_cache.enable()
    setup = prepare(config, folder)
    setup.train.programs.compile(setup.abstract, setup.first_batch)
    return {'peak': status('VmHWM'), 'step': None}
  _narrow(margin)
  steps = _LEAST if step is None else max(_LEAST, min(_MOST, math.ceil(_SECONDS / max(step, 1e-6))))
  loop.train_varied(config, place, command='', say=print, only=steps)
  points = [point for point in read_records(place) if point['kind'] == 'train']
  return {'peak': status('VmHWM'), 'step': _pace(points, config.data.batch_size), 'share': _share()}


def _pace(points: Sequence[dict[str, Any]], batch_size: int) -> float | None:
  """Returns the seconds of a step in an undisturbed quarter of a trial: others on the machine only make it slower.

  Where the clock was set back meanwhile, or a step is too short for it, the trial's mean.

  >>> _pace([{'step': i, 'time': i / 10 + (i > 4), 'examples_per_second': 1.0} for i in range(2, 9)], 32)
  0.1
  >>> _pace([{'step': i, 'time': i / 1000, 'examples_per_second': 64_000.0} for i in range(2, 9)], 32)
  0.0005
  >>> _pace([{'step': i, 'time': 5.0 if i < 6 else 2.0, 'examples_per_second': 64.0} for i in range(2, 9)], 32)
  0.5
  """
  pairs = list(itertools.pairwise(points))
  spans = sorted((b['time'] - a['time']) / (b['step'] - a['step']) for a, b in pairs)
  if len(spans) >= _SPANS and min(b['time'] - a['time'] for a, b in pairs) >= _SEEN:
    return round(spans[len(spans) // 4], 6)
  rate = points[-1]['examples_per_second'] if points else None
  return batch_size / rate if rate else None


def _share() -> float:
  """What this process came to of the limits of its data segment and of its address space: the larger share."""
  try:
    import resource
  except ImportError:  # Windows
    return 0.0
  from jaxlite.host.machine import status

  space = status('VmPeak')
  data = space - status('VmSize') + status('VmData')  # whose own peak is not kept: what is unmapped is mostly of it
  known = ((data, resource.RLIMIT_DATA), (space, resource.RLIMIT_AS))
  soft = [(used, resource.getrlimit(one)[0]) for used, one in known]
  return max((used / limit for used, limit in soft if limit not in (resource.RLIM_INFINITY, 0)), default=0.0)


def _narrow(margin: float) -> None:
  """Takes a part of each limit away, where this system has such."""
  try:
    import resource
  except ImportError:  # Windows
    return
  for one in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
    soft, hard = resource.getrlimit(one)
    if soft != resource.RLIM_INFINITY:
      with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(one, (int(soft * margin), hard))


if __name__ == '__main__':
  main(*sys.argv[1:])
