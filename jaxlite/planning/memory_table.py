"""How much each of the things that a run's memory depends on adds to it, measured; see `memory.forecast`.

Written by

  python experiments/bench/forecast_memory.py fit --results=FILE

from the runs of its calibration that `measure --calibration` had made; 'beyond', of states of more than 32 MiB, by
`fit --large` from those that `measure --large` had made. Linux, x86-64, glibc, 2 cores.
"""

TABLE = {
  'compiled': {
    'cold': {
      'checkpoint': {'beyond': 0.9632, 'equations': 2663.0, 'live': 1.501, 'one': 23330000.0},
      'evaluation': {'beyond': 0.2073, 'evaluation': 1.0, 'live': 3.637, 'one': 16470000.0, 'step': 0.1832},
      'report': {'beyond': 1.518, 'live': 2.152, 'one': 74300000.0},
      'steps': {'batch': 5.117, 'beyond': 0.9774, 'live': 1.309, 'one': 12130000.0, 'step': 1.0},
    },
    'warm': {
      'checkpoint': {'beyond': 0.9632, 'equations': 0.0, 'live': 1.501, 'one': 23330000.0},
      'evaluation': {'beyond': 0.2073, 'evaluation': 1.0, 'live': 3.637, 'one': 16470000.0, 'step': 0.1832},
      'report': {'beyond': 1.518, 'live': 2.152, 'one': 74300000.0},
      'steps': {'batch': 5.117, 'beyond': 0.9774, 'live': 1.309, 'one': 12130000.0, 'step': 1.0},
    },
  },
  'traced': {
    'cold': {
      'checkpoint': {'beyond': 1.887, 'live': 3.152, 'one': 49750000.0, 'root': 4232000.0},
      'compile': {'beyond': 2.1, 'live': 1.64, 'one': 29580000.0, 'root': 3987000.0, 'step': 0.02055},
      'evaluation': {
        'beyond': 1.106,
        'evaluation': 1.256,
        'live': 5.001,
        'one': 67680000.0,
        'root': 3062000.0,
        'step': 0.2927,
      },
      'report': {'beyond': 2.286, 'live': 3.796, 'one': 104900000.0, 'root': 4002000.0},
      'steps': {'batch': 2.945, 'beyond': 1.959, 'live': 2.81, 'one': 30400000.0, 'root': 4399000.0, 'step': 1.066},
    },
    'warm': {
      'checkpoint': {'beyond': 1.887, 'live': 3.152, 'one': 62190000.0, 'root': 1058000.0},
      'compile': {'beyond': 2.1, 'live': 1.64, 'one': 29580000.0, 'root': 498400.0, 'step': 0.02055},
      'evaluation': {
        'beyond': 1.106,
        'evaluation': 1.256,
        'live': 5.001,
        'one': 67680000.0,
        'root': 76550.0,
        'step': 0.2927,
      },
      'report': {'beyond': 2.286, 'live': 3.796, 'one': 131100000.0, 'root': 800400.0},
      'steps': {'batch': 2.945, 'beyond': 1.959, 'live': 2.81, 'one': 30400000.0, 'root': 1540000.0, 'step': 1.066},
    },
  },
}
FILES = {
  'checkpoint': 203829248,
  'compile': 183488512,
  'evaluation': 204099584,
  'report': 211804160,
  'steps': 203829248,
}
SPREAD = {'compiled': 0.0914, 'planned': 0.1089, 'traced': 0.1081}
DATA_SEGMENT = (135219079, 1.103, 0.0907)
ADDRESS_SPACE = (170028600, 1.022, 0.03)
