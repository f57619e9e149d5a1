"""How much each of the things that a run's memory depends on adds to it, measured; see `memory.forecast`.

Written by

  python experiments/bench/forecast_memory.py fit --results=FILE

from runs that `measure` made, those of the calibration alone. Linux, x86-64, glibc, 2 cores.
"""

TABLE: dict = {}
FILES: dict = {}
SPREAD: dict = {}

DATA_SEGMENT = (0, 1.0)
ADDRESS_SPACE = (0, 1.0)
