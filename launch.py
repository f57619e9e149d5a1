"""Runs an experiment. With no flag at all: the main job, a teacher and its small student on handwritten digits.

  python launch.py --config=experiments/digits.py --workdir=runs/mine --config.optim.lr=0.01 --config.train.epochs=5

The same command again resumes what was interrupted. Exit codes: 0 done, 2 a mistake to mend, 75 interrupted and saved.
"""

import pathlib
import shlex
import sys

from absl import app, logging
from absl import flags as absl_flags

from jaxlite import errors
from jaxlite.config import command_line

ROOT = pathlib.Path(__file__).resolve().parent
FLAGS = absl_flags.FLAGS
absl_flags.DEFINE_string('config', 'experiments/digits.py', 'the experiment file')
absl_flags.DEFINE_string('workdir', None, "the run's folder (default: runs/<experiment>)")
absl_flags.DEFINE_enum('mode', 'train', ['train', 'eval'], 'train, or evaluate what was trained')
absl_flags.DEFINE_bool('smoke', False, 'a run of seconds, in a folder of its own')
absl_flags.DEFINE_bool('fresh', False, 'move the old run aside and start again')
absl_flags.DEFINE_bool('traceback', False, 'show where an error comes from')


def main(pairs):
  """Loads the experiment, sets the fields given on the command line, and runs it."""
  logging.set_verbosity(logging.WARNING)  # other libraries' chatter would tear the progress bar
  try:
    config = command_line.load(FLAGS.config, pairs, ROOT)
    from jaxlite.run import experiment  # JAX comes with it: a mistake above is answered before that

    workdir = FLAGS.workdir or str(pathlib.Path('runs', pathlib.Path(FLAGS.config).stem))
    command = shlex.join(['python', pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
    return experiment.run(config, workdir, mode=FLAGS.mode, fresh=FLAGS.fresh, smoke=FLAGS.smoke, command=command)
  except Exception as error:
    message = errors.one_line(error)
    if message is None or FLAGS.traceback:
      raise
    command_line.fail(message)


if __name__ == '__main__':
  app.run(main, flags_parser=lambda argv: command_line.parse(argv, FLAGS, __doc__))
