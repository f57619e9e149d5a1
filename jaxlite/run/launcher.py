"""The program behind `python launch.py`, `python -m jaxlite` and the command `jaxlite`: flags in, an exit code out.

Nothing here imports JAX before the experiment file does: `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import pathlib
import shlex
import sys

from absl import app, logging
from absl import flags as absl_flags

from jaxlite import errors
from jaxlite.config import command_line

FLAGS = absl_flags.FLAGS
absl_flags.DEFINE_string('config', 'experiments/digits.py', 'the experiment file')
absl_flags.DEFINE_string('workdir', None, "the run's folder (default: runs/<experiment>)")
absl_flags.DEFINE_enum(
  'mode', 'train', ['train', 'eval', 'deploy'], 'train, evaluate what was trained, or write it for other runtimes'
)
absl_flags.DEFINE_string(
  'formats', None, 'of --mode=deploy: pack,c,onnx,litert,stablehlo,safetensors (default: all that can be written here)'
)
absl_flags.DEFINE_string('out', None, "of --mode=deploy: the folder of the files (default: deployed, in the run's)")
absl_flags.DEFINE_string('which', None, 'of --mode=deploy: the checkpoint, best (the default), latest or a step')
absl_flags.DEFINE_float('deadline', None, 'of --mode=deploy: milliseconds in which one example is to be answered')
absl_flags.DEFINE_string(
  'budget',
  None,
  'of --mode=deploy: name:number[,name:number] of bytes (of each file that --formats names), parameters, macs, flops, '
  'latency (milliseconds, one example); a network that is over it loses whole neurons, channels and heads',
)
absl_flags.DEFINE_bool('smoke', False, 'a run of seconds, in a folder of its own')
absl_flags.DEFINE_bool('fresh', False, 'move the old run aside and start again')
absl_flags.DEFINE_bool('traceback', False, 'show where an error comes from')

_USAGE = """Runs an experiment. With no flag at all the main job: a teacher and its small student on handwritten digits.

  {program} --config=experiments/digits.py --workdir=runs/mine --config.optim.lr=0.01 --config.train.epochs=5

The same command again resumes what was interrupted. Exit codes: 0 done, 2 a mistake to mend, 75 interrupted and saved.
"""


def main(program: str = 'jaxlite', root: pathlib.Path | None = None) -> None:
  """Runs the experiment that the command line names, and leaves the process with its exit code.

  Args:
    program: what the user typed to get here, for the usage and the report.
    root: where experiment files are looked for when they are not found from the current folder; None: the package,
      whose `experiments/digits.py` is there in every install.
  """
  where = root or pathlib.Path(__file__).resolve().parents[1]

  def run(pairs: command_line.Pairs) -> int:
    logging.set_verbosity(logging.WARNING)  # other libraries' chatter would tear the progress bar
    try:
      config = command_line.load(FLAGS.config, pairs, where)
      from jaxlite.run import experiment  # JAX comes with it: a mistake above is answered before that

      workdir = FLAGS.workdir or str(pathlib.Path('runs', pathlib.Path(FLAGS.config).stem))
      command = ' '.join([program, shlex.join(sys.argv[1:])]).strip()
      which = int(FLAGS.which) if (FLAGS.which or '').isdecimal() else FLAGS.which
      asked = {'formats': FLAGS.formats, 'out': FLAGS.out, 'which': which, 'deadline': FLAGS.deadline}
      asked |= {'budget': FLAGS.budget}
      given = {name: value for name, value in asked.items() if value is not None}
      if given and FLAGS.mode != 'deploy':
        raise errors.ConfigError(f'--{next(iter(given))} goes with --mode=deploy; got --mode={FLAGS.mode}')
      how = {'mode': FLAGS.mode, 'fresh': FLAGS.fresh, 'smoke': FLAGS.smoke, 'command': command, 'deploying': given}
      return experiment.run(config, workdir, **how)
    except Exception as error:
      message = errors.one_line(error)
      if message is None or FLAGS.traceback:
        raise
      command_line.fail(errors.as_flags(message))

  usage = _USAGE.format(program=program)
  app.run(run, flags_parser=lambda argv: command_line.parse(argv, FLAGS, usage, __name__))
