"""Runs an experiment. With no flag at all: the main job, a teacher and its small student on handwritten digits.

  python launch.py --config=experiments/digits.py --workdir=runs/mine --config.optim.lr=0.01 --config.train.epochs=5

The same command again resumes what was interrupted. Exit codes: 0 done, 2 a mistake to mend, 75 interrupted and saved.
"""

import pathlib

from jaxlite.run import launcher

if __name__ == '__main__':
  launcher.main('python launch.py', pathlib.Path(__file__).resolve().parent)
