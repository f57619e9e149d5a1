"""How much each of the things that a run's memory depends on adds to it, measured; see `memory.forecast`.

Written by

  python experiments/bench/forecast_memory.py fit --results=FILE

from runs that `measure` made, those of the calibration alone. Linux, x86-64, glibc, 2 cores.
"""

TABLE = {
  'compiled': {
    'cold': {
      'checkpoint': {'equations': 4564.0, 'live': 1.367, 'one': 28060000.0, 'step': 0.05837},
      'evaluation': {'evaluation': 1.0, 'live': 3.917, 'one': 15790000.0, 'step': 0.3596},
      'report': {'equations': 11560.0, 'evaluation': 0.845, 'live': 2.585, 'one': 69010000.0},
      'steps': {'batch': 6.621, 'equations': 18480.0, 'live': 1.246, 'one': 3144000.0, 'step': 1.0},
    },
    'warm': {
      'checkpoint': {'equations': 2282.0, 'live': 1.367, 'one': 28060000.0, 'step': 0.05837},
      'evaluation': {'evaluation': 1.0, 'live': 3.917, 'one': 15790000.0, 'step': 0.3596},
      'report': {'equations': 5780.0, 'evaluation': 0.845, 'live': 2.585, 'one': 69010000.0},
      'steps': {'batch': 6.621, 'equations': 9240.0, 'live': 1.246, 'one': 3144000.0, 'step': 1.0},
    },
  },
  'traced': {
    'cold': {
      'checkpoint': {'equations': 77100.0, 'first': 52290000.0, 'live': 3.736, 'one': 49880000.0},
      'compile': {'equations': 70080.0, 'first': 25110000.0, 'live': 2.345, 'one': 44480000.0},
      'evaluation': {
        'equations': 61960.0,
        'evaluation': 1.0,
        'first': 59390000.0,
        'live': 6.337,
        'one': 41420000.0,
        'step': 0.2397,
      },
      'report': {'equations': 104900.0, 'evaluation': 0.1466, 'first': 50460000.0, 'live': 4.879, 'one': 81170000.0},
      'steps': {
        'batch': 4.515,
        'equations': 82710.0,
        'first': 51540000.0,
        'live': 3.451,
        'one': 32620000.0,
        'step': 1.0,
      },
    },
    'warm': {
      'checkpoint': {'equations': 38550.0, 'first': 26140000.0, 'live': 3.736, 'one': 49880000.0},
      'compile': {'equations': 35040.0, 'first': 12560000.0, 'live': 2.345, 'one': 44480000.0},
      'evaluation': {
        'equations': 30980.0,
        'evaluation': 1.0,
        'first': 29700000.0,
        'live': 6.337,
        'one': 41420000.0,
        'step': 0.2397,
      },
      'report': {'equations': 52450.0, 'evaluation': 0.1466, 'first': 25230000.0, 'live': 4.879, 'one': 81170000.0},
      'steps': {
        'batch': 4.515,
        'equations': 41360.0,
        'first': 25770000.0,
        'live': 3.451,
        'one': 32620000.0,
        'step': 1.0,
      },
    },
  },
}
FILES = {
  'checkpoint': 191885312,
  'compile': 169613312,
  'evaluation': 191899648,
  'report': 199088128,
  'steps': 191885312,
}
SPREAD = {'traced': 0.09, 'planned': 0.08, 'compiled': 0.05}
DATA_SEGMENT = (100663296, 1.3)
ADDRESS_SPACE = (268435456, 1.3)
