"""The program behind `python launch.py`, `python -m jaxlite` and the command `jaxlite`: flags in, an exit code out.

Nothing here imports JAX before the experiment file does: `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shlex
import sys
import time
from typing import Any

from absl import app, logging
from absl import flags as absl_flags

from jaxlite import errors
from jaxlite.config import command_line
from jaxlite.host import stacks, streams
from jaxlite.run import again

_BEGAN = time.monotonic()
FLAGS = absl_flags.FLAGS
absl_flags.DEFINE_string('config', 'experiments/digits.py', 'the experiment file')
absl_flags.DEFINE_string(
  'workdir', None, "the run's folder (default: runs/<experiment>, of a search runs/<experiment>-tune)"
)
absl_flags.DEFINE_enum(
  'mode',
  'train',
  [
    *('train', 'plan', 'fit', 'tune', 'lr_range', 'batch_size', 'eval', 'diagnose', 'deploy', 'report', 'doctor'),
    'catalogue',
  ],
  'train; tell beforehand what that will need (plan); train in the fastest form that fits into memory (fit); search '
  'for settings (tune); tell the loss by learning rate (lr_range), or which batch sizes fit (batch_size); evaluate '
  'what was trained; say what is wrong with it (diagnose); write it for other runtimes (deploy); show the runs of a '
  'folder on one page (report); tell what this machine offers (doctor), or which pretrained models there are '
  '(catalogue)',
)
absl_flags.DEFINE_string('task', None, 'of --mode=catalogue: photographs, text, audio or tables (default: all)')
absl_flags.DEFINE_integer('batch', None, 'of --mode=catalogue: also what a step of so many pictures costs here')
absl_flags.DEFINE_bool('changes', False, 'of --mode=plan: what to change, each tried for some seconds')
absl_flags.DEFINE_string(
  'elsewhere', None, 'of --mode=plan: the same on another machine: all, a name, or the file in which it keeps its rates'
)
absl_flags.DEFINE_bool('check', False, 'of --mode=plan: forecast and actual of the runs that lie in --workdir')
absl_flags.DEFINE_float('minutes', None, 'of --mode=plan: without an experiment, what can be trained here in this time')
absl_flags.DEFINE_integer('megabytes', None, 'beside --minutes: of memory (default: what this machine allows)')
absl_flags.DEFINE_integer('examples', None, 'beside --minutes: how many there are to train on')
absl_flags.DEFINE_list(
  'shape', None, 'beside --minutes: of one example, 28,28,1 for a picture, 20 for a row of a table'
)
absl_flags.DEFINE_integer('classes', None, 'beside --minutes: how many (default: 10)')
absl_flags.DEFINE_bool('force', False, 'start even where the forecast says that the run would be killed')
absl_flags.DEFINE_float(
  'target',
  None,
  'a value of the metric that picks the best model: when it will be reached, told while it trains; of --mode=plan: a '
  'training loss, told beforehand',
)
absl_flags.DEFINE_string(
  'formats', None, 'of --mode=deploy: pack,c,onnx,litert,stablehlo,safetensors (default: all that can be written here)'
)
absl_flags.DEFINE_string(
  'out',
  None,
  "of --mode=deploy and --mode=report: the folder of the files (default: deployed, in the run's; --workdir)",
)
absl_flags.DEFINE_bool('serve', False, 'of --mode=report: follow runs under way in a browser, on this machine alone')
absl_flags.DEFINE_integer('port', None, 'beside --serve: of 127.0.0.1 (default: one that is free, which is told)')
absl_flags.DEFINE_string('which', None, 'of --mode=deploy: the checkpoint, best (the default), latest or a step')
absl_flags.DEFINE_float('deadline', None, 'of --mode=deploy: milliseconds in which one example is to be answered')
absl_flags.DEFINE_string(
  'budget',
  None,
  'of --mode=deploy: name:number[,name:number] of bytes (of each file that --formats names), parameters, macs, flops, '
  'latency (milliseconds, one example); a network that is over it loses whole neurons, channels and heads. Of '
  "--mode=tune: time in all, over every start, '2 hours' or '10 minutes'",
)
absl_flags.DEFINE_bool('act', False, 'of --mode=diagnose: try what it suggests, over seeds, within --minutes (30)')
absl_flags.DEFINE_string(
  'space',
  None,
  "of --mode=tune: what is searched, 'optim.lr=log(1e-4,1e-1); data.batch_size=choice(32,64)', with the kinds choice, "
  'uniform, log and int (default: SPACE of the experiment file)',
)
absl_flags.DEFINE_integer('trials', None, 'of --mode=tune: how many in all, over every start')
absl_flags.DEFINE_string(
  'method',
  None,
  'of --mode=tune: grid, random, tpe, cmaes or nsga2 (default: tpe where Optuna is installed, else random)',
)
absl_flags.DEFINE_string(
  'stop', None, 'of --mode=tune: how trials are stopped early, median (the default), halving, hyperband or none'
)
absl_flags.DEFINE_string(
  'goals',
  None,
  'of --mode=tune: a validation metric, and beside it bytes, parameters or latency, such as accuracy,bytes',
)
absl_flags.DEFINE_string(
  'limits', None, 'of --mode=tune: at most, name:number[,name:number] of bytes, parameters, latency'
)
absl_flags.DEFINE_list('run', None, 'which of several runs, one or more by name; a search takes one (default: all)')
absl_flags.DEFINE_string('storage', None, "of --mode=tune: a server's address, for workers on several machines")
absl_flags.DEFINE_integer('members', None, 'of --mode=tune: small trials raced in one vmapped step under halving (1)')
absl_flags.DEFINE_integer('workers', None, 'of --mode=tune: processes that share the trials (default: 1)')
absl_flags.DEFINE_bool('worker', False, 'of --mode=tune: one more process for a search that is under way')
absl_flags.DEFINE_bool('smoke', False, 'a run of seconds, in a folder of its own')
absl_flags.DEFINE_bool('fresh', False, 'move the old run aside and start again')
absl_flags.DEFINE_integer(
  'again', None, 'of --mode=train: how often a run that finds no memory begins again from its checkpoint (0; of fit, 3)'
)
absl_flags.DEFINE_bool('traceback', False, 'show where an error comes from')

_USAGE = """Runs an experiment. With no flag at all the main job: a teacher and its small student on handwritten digits.

  {program} --config=experiments/digits.py --workdir=runs/mine --config.optim.lr=0.01 --config.train.epochs=5

The same command again resumes what was interrupted. Before the first run: --mode=doctor tells what this machine offers,
--mode=plan what the run will need, --mode=fit trains it in the fastest form that fits into memory, and without any code
--mode=plan --minutes=60 --examples=20000 --shape=28,28,1 --classes=10 what can be trained here in an hour. With
--mode=tune --budget='2 hours' --space='optim.lr=log(1e-4,1e-1)' settings are searched for; run again, it goes on.
Exit codes: 0 done, 2 a mistake to mend, 75 interrupted and saved.
"""


def main(program: str = 'jaxlite', root: pathlib.Path | None = None) -> None:
  """Runs the experiment that the command line names, and leaves the process with its exit code.

  Args:
    program: what the user typed to get here, for the usage and the report.
    root: where experiment files are looked for when they are not found from the current folder; None: the package,
      whose `experiments/digits.py` is there in every install.
  """
  where = root or pathlib.Path(__file__).resolve().parents[1]
  streams.open_standard()

  @stacks.small()
  def run(pairs: command_line.Pairs) -> int:
    logging.set_verbosity(logging.WARNING)  # other libraries' chatter would tear the progress bar
    try:
      given = _given(bool(pairs))
      home = str(pathlib.Path('runs', pathlib.Path(FLAGS.config).stem))
      workdir = FLAGS.workdir or (f'{home}-tune' if FLAGS.mode == 'tune' else home)
      if not (
        FLAGS.mode in ('train', 'eval', 'deploy', 'diagnose', 'fit', *_SEARCHES)
        or (given.keys() <= {'changes', 'elsewhere', 'target'} and FLAGS.mode == 'plan')
      ):
        return _without_experiment(workdir, given)
      aimed = FLAGS.target is not None and FLAGS.mode != 'plan'
      pairs = [*pairs, *([('eval.target', str(FLAGS.target))] if aimed else [])]
      config = command_line.load(FLAGS.config, [*pairs, *([('machine.force', 'true')] if FLAGS.force else [])], where)
      from jaxlite.run import experiment  # JAX comes with it: a mistake above is answered before that

      if FLAGS.mode in ('plan', 'fit'):
        from jaxlite.run import asking
        from jaxlite.run.trial import Source

        source = Source(FLAGS.config, pairs, str(where), FLAGS.smoke, f'{workdir}-smoke' if FLAGS.smoke else workdir)
        if FLAGS.mode == 'plan':
          return asking.plan(config, source, **given)
        return asking.fit(config, source, [sys.executable, *sys.orig_argv[1:]], FLAGS.fresh)
      command = ' '.join([program, shlex.join(sys.argv[1:])]).strip()
      if FLAGS.mode in _SEARCHES:
        from jaxlite.run import tune_command

        if FLAGS.mode != 'tune':
          return tune_command.ask(FLAGS.mode, config, workdir, (FLAGS.run or [''])[0])
        declared = command_line.declared(FLAGS.config, 'SPACE', where)
        words = [sys.executable, *sys.orig_argv[1:]]
        given |= {'home': home}
        how = {'fresh': FLAGS.fresh, 'smoke': FLAGS.smoke, 'command': command, 'began': _BEGAN}
        return tune_command.tune(config, workdir, declared, words, **how, **given)
      how = {'mode': FLAGS.mode, 'fresh': FLAGS.fresh, 'smoke': FLAGS.smoke, 'command': command}
      how['only'] = FLAGS.run or ()
      how |= {'diagnosing': given} if FLAGS.mode == 'diagnose' else {'deploying': given}
      return experiment.run(config, workdir, **how)
    except Exception as error:
      message = errors.one_line(error)
      if again.is_memory(error):
        if FLAGS.again:
          again.begin([sys.executable, *sys.orig_argv[1:]], FLAGS.again - 1)
        again.leave(error, None if message is None or FLAGS.traceback else errors.as_flags(message))
      if message is None or FLAGS.traceback:
        raise
      command_line.fail(errors.as_flags(message))

  usage = _USAGE.format(program=program)
  try:
    app.run(run, flags_parser=lambda argv: command_line.parse(argv, FLAGS, usage, __name__))
  except KeyboardInterrupt:  # outside of a run under way, which saves first; Python ends by the signal itself
    if not (FLAGS.is_parsed() and FLAGS.traceback):
      sys.excepthook = _interrupted
    raise


def _interrupted(kind: Any, error: BaseException, trace: Any) -> None:
  """What is printed in the place of a traceback that says nothing."""
  with streams.listening(sys.stderr):
    print('interrupted', file=sys.stderr)


_DEPLOYING = ('formats', 'out', 'which', 'deadline')
_SEARCHES = ('tune', 'lr_range', 'batch_size')
_TUNING = ('space', 'trials', 'method', 'stop', 'goals', 'limits', 'storage', 'members', 'workers', 'worker')
_BUDGET = ('minutes', 'megabytes', 'examples', 'shape', 'classes')
_CATALOGUE = ('task', 'batch')
_REPORTING = ('out', 'serve', 'port')
_PLANNING = ('changes', 'elsewhere', 'check', *_BUDGET)


def _is_given(name: str) -> bool:
  """Whether a flag has a value; 0 is one."""
  return FLAGS[name].value is not None and FLAGS[name].value is not False


def _given(fields: bool) -> dict[str, Any]:
  """The flags that belong to one mode, where they were given.

  Args:
    fields: whether fields of a config were set beside them.

  Raises:
    ConfigError: one that another mode takes, or two that exclude each other.
  """
  mode = FLAGS.mode
  for name in ('workdir', 'out'):
    if FLAGS[name].value == '':  # --workdir=$UNSET: what was meant is not the default
      raise errors.ConfigError(f'--{name} names a folder, and is empty: name one, or leave it out')
  for names, owner in (
    (_DEPLOYING, 'deploy'),
    (_TUNING, 'tune'),
    (_PLANNING, 'plan'),
    (_CATALOGUE, 'catalogue'),
    (('serve', 'port'), 'report'),
  ):
    asked = [name for name in names if _is_given(name) and not (mode == 'report' and name in _REPORTING)]
    if mode == 'diagnose' and asked == ['minutes']:
      if not FLAGS.act:
        raise errors.ConfigError('--minutes is what --act may take: give --act too, or leave it out')
      continue
    if asked and mode != owner:
      raise errors.ConfigError(f'--{asked[0]} goes with --mode={owner}; got --mode={mode}')
  if FLAGS.act and mode != 'diagnose':
    raise errors.ConfigError(f'--act goes with --mode=diagnose; got --mode={mode}')
  if FLAGS.budget is not None and mode not in ('deploy', 'tune'):
    raise errors.ConfigError(f'--budget goes with --mode=deploy and --mode=tune; got --mode={mode}')
  if FLAGS.run is not None and mode not in ('train', 'eval', 'deploy', 'diagnose', *_SEARCHES):
    raise errors.ConfigError(f'--run goes with train, eval, deploy, diagnose and searches; got --mode={mode}')
  if FLAGS.run is not None and not all(FLAGS.run or ['']):
    raise errors.ConfigError('--run names runs, separated by commas; got an empty name: leave it out for all')
  if FLAGS.run is not None and mode in _SEARCHES and len(FLAGS.run) != 1:
    raise errors.ConfigError(f'--run of --mode={mode} names one run; got {",".join(FLAGS.run) or "none"}')
  if FLAGS.again is not None and (mode != 'train' or FLAGS.again < 0):
    raise errors.ConfigError(f'--again is a number from 0, of --mode=train; got {FLAGS.again} and --mode={mode}')
  if FLAGS.force and mode != 'train':
    raise errors.ConfigError(f'--force goes with --mode=train; got --mode={mode}')
  if FLAGS.target is not None and mode not in ('train', 'fit', 'plan'):
    raise errors.ConfigError(f'--target goes with --mode=train, fit and plan; got --mode={mode}')
  if FLAGS.fresh and mode not in ('train', 'fit', 'tune'):
    raise errors.ConfigError(f'--fresh moves an old run aside, and --mode={mode} trains nothing: leave one out')
  if mode == 'report':
    if fields:
      raise errors.ConfigError(
        '--mode=report shows what runs have left: fields of a config change nothing, leave them out'
      )
    found = {name: FLAGS[name].value for name in _REPORTING if _is_given(name)}
    for name, other, why in (('port', 'serve', False), ('out', 'serve', True)):
      if name in found and (other in found) is why:
        told = 'goes with --serve' if not why else 'is for files, and --serve writes none: leave one out'
        raise errors.ConfigError(f'--{name} {told}')
    return found
  if mode == 'deploy':
    which = int(FLAGS.which) if (FLAGS.which or '').isdecimal() else FLAGS.which
    found = {'formats': FLAGS.formats, 'out': FLAGS.out, 'which': which, 'deadline': FLAGS.deadline}
    found |= {'budget': FLAGS.budget}
    return {name: value for name, value in found.items() if value is not None}
  if mode == 'diagnose':
    return {'act': True, 'minutes': 30.0 if FLAGS.minutes is None else FLAGS.minutes} if FLAGS.act else {}
  if mode in ('lr_range', 'batch_size') and FLAGS.smoke:
    raise errors.ConfigError(f'--smoke is a short run, and --mode={mode} trains none: leave it out')
  if mode == 'tune':
    given = {name: FLAGS[name].value for name in (*_TUNING, 'budget') if _is_given(name)}
    return given | ({'run': FLAGS.run[0]} if FLAGS.run else {})
  given = {name: FLAGS[name].value for name in _PLANNING if _is_given(name)}
  budget = [name for name in given if name in _BUDGET]
  alone = budget or 'check' in given
  if budget and 'check' in given:
    raise errors.ConfigError(f'--check looks back and --{budget[0]} ahead: leave one out')
  given |= {'target': FLAGS.target} if FLAGS.target is not None and mode == 'plan' else {}
  for name in ('changes', 'elsewhere', 'target'):
    if alone and name in given:
      raise errors.ConfigError(f'--{name} is of an experiment, --{(budget or ["check"])[0]} is not: leave one out')
  if alone and (fields or FLAGS['config'].present or FLAGS.smoke):
    raise errors.ConfigError(
      f'--{(budget or ["check"])[0]} asks without an experiment: leave --config and its fields out'
    )
  if budget and not {'minutes', 'examples', 'shape'} <= given.keys():
    raise errors.ConfigError(
      'what can be trained is asked by --minutes, --examples and --shape, such as --minutes=60 --examples=20000 '
      f'--shape=28,28,1; got {", ".join(f"--{name}" for name in budget)}'
    )
  return given


def _without_experiment(workdir: str, given: dict[str, Any]) -> int:
  """Answers what no experiment file is needed for."""
  if FLAGS.mode == 'doctor':
    from jaxlite.planning import doctor

    doctor.doctor(streams.show, workdir)
    return 0
  if FLAGS.mode == 'report':
    return _report(f'{workdir}-smoke' if FLAGS.smoke else workdir, **given)
  if FLAGS.mode == 'catalogue':
    from jaxlite.finetuning.known_models import catalogue

    streams.show(catalogue(FLAGS.task or '', batch_size=FLAGS.batch or 0, say=streams.show))
    return 0
  if 'check' in given:
    from jaxlite.run import checking

    streams.show(checking.table(workdir))
    return 0
  from jaxlite.run import asking

  return asking.budget(**{name: given[name] for name in _BUDGET if name in given})


def _report(workdir: str, out: str | None = None, serve: bool = False, port: int | None = None) -> int:
  """Writes the page of a folder, or serves it."""
  if serve:
    from jaxlite.report import live

    with contextlib.suppress(AttributeError, OSError):
      os.nice(10)  # what it follows comes first
    live.serve(workdir, port or 0, say=streams.show)
    return 0
  from jaxlite.report import folder_page

  streams.show(str(folder_page.write(workdir, out)))
  if folder_page.is_empty(workdir):
    print(f'note: no run lies in {workdir}, and the page says so: name another with --workdir', file=sys.stderr)
  return 0
