"""How much each of the things that a run's memory depends on adds to it, measured; see `memory.forecast`.

Written by

  python experiments/bench/forecast_memory.py fit --results=FILE

from runs that `measure` made, those of the calibration alone. Linux, x86-64, glibc, 2 cores.
"""

TABLE = {
  'compiled': {
    'cold': {
      'checkpoint': {'live': 1.214, 'one': 27710000.0, 'step': 0.142},
      'evaluation': {'evaluation': 0.6216, 'live': 2.844, 'one': 16040000.0, 'step': 0.9446},
      'report': {'evaluation': 0.05916, 'live': 2.796, 'one': 69360000.0, 'step': 0.04136},
      'steps': {'batch': 8.421, 'live': 1.123, 'one': 12720000.0, 'step': 1.154},
    },
    'warm': {
      'checkpoint': {'live': 1.214, 'one': 27710000.0, 'step': 0.142},
      'evaluation': {'evaluation': 0.6216, 'live': 2.844, 'one': 16040000.0, 'step': 0.9446},
      'report': {'evaluation': 0.05916, 'live': 2.796, 'one': 69360000.0, 'step': 0.04136},
      'steps': {'batch': 8.421, 'live': 1.123, 'one': 12720000.0, 'step': 1.154},
    },
  },
  'traced': {
    'cold': {
      'checkpoint': {'equations': 120200.0, 'first': 81410000.0, 'live': 3.247},
      'compile': {'equations': 96180.0, 'first': 58090000.0, 'live': 1.733, 'step': 0.02562},
      'evaluation': {
        'equations': 53490.0,
        'evaluation': 3.976,
        'first': 90750000.0,
        'live': 4.393,
        'one': 17350000.0,
        'step': 0.7932,
      },
      'report': {'equations': 79730.0, 'evaluation': 2.144, 'first': 86530000.0, 'live': 4.43, 'one': 57490000.0},
      'steps': {'batch': 10.33, 'equations': 99410.0, 'first': 70620000.0, 'live': 3.144, 'step': 1.046},
    },
    'warm': {
      'checkpoint': {'equations': 60100.0, 'first': 40700000.0, 'live': 3.247},
      'compile': {'equations': 48090.0, 'first': 29040000.0, 'live': 1.733, 'step': 0.02562},
      'evaluation': {
        'equations': 26740.0,
        'evaluation': 3.976,
        'first': 45380000.0,
        'live': 4.393,
        'one': 17350000.0,
        'step': 0.7932,
      },
      'report': {'equations': 39860.0, 'evaluation': 2.144, 'first': 43260000.0, 'live': 4.43, 'one': 57490000.0},
      'steps': {'batch': 10.33, 'equations': 49700.0, 'first': 35310000.0, 'live': 3.144, 'step': 1.046},
    },
  },
}
FILES = {
  'checkpoint': 190906368,
  'compile': 167440384,
  'evaluation': 191016960,
  'report': 198440960,
  'steps': 190906368,
}
SPREAD = {'traced': 0.1, 'planned': 0.08, 'compiled': 0.04}
DATA_SEGMENT = (100663296, 1.3)
ADDRESS_SPACE = (268435456, 1.3)
