"""How much each of the things that a run's memory depends on adds to it, measured; see `memory.forecast`.

Written by

  python experiments/bench/forecast_memory.py fit --results=FILE

from the runs of its calibration that `measure --calibration` had made. Linux, x86-64, glibc, 2 cores.
"""

TABLE = {
  'compiled': {
    'cold': {
      'checkpoint': {'equations': 2173.0, 'live': 1.415, 'one': 24540000.0},
      'evaluation': {'evaluation': 1.0, 'live': 3.517, 'one': 18970000.0, 'step': 0.1869},
      'report': {'live': 2.031, 'one': 76820000.0},
      'steps': {'batch': 6.939, 'live': 1.223, 'one': 11610000.0, 'step': 1.002},
    },
    'warm': {
      'checkpoint': {'equations': 0.0, 'live': 1.415, 'one': 61350000.0},
      'evaluation': {'evaluation': 1.0, 'live': 3.517, 'one': 37940000.0, 'step': 0.1869},
      'report': {'live': 2.031, 'one': 115200000.0},
      'steps': {'batch': 6.939, 'live': 1.223, 'one': 29020000.0, 'step': 1.002},
    },
  },
  'traced': {
    'cold': {
      'checkpoint': {'equations': 17240.0, 'live': 2.962, 'one': 84700000.0, 'root': 2622000.0},
      'compile': {'equations': 4860.0, 'live': 1.566, 'one': 44170000.0, 'root': 3427000.0, 'step': 0.02594},
      'evaluation': {'evaluation': 1.638, 'live': 4.488, 'one': 112100000.0, 'root': 1685000.0, 'step': 0.3496},
      'report': {'evaluation': 0.2802, 'live': 3.543, 'one': 133200000.0, 'root': 3155000.0},
      'steps': {'batch': 1.461, 'live': 2.483, 'one': 50650000.0, 'root': 3880000.0, 'step': 1.115},
    },
    'warm': {
      'checkpoint': {'equations': 3017.0, 'live': 2.962, 'one': 84700000.0, 'root': 458900.0},
      'compile': {'equations': 364.5, 'live': 1.566, 'one': 44170000.0, 'root': 257000.0, 'step': 0.02594},
      'evaluation': {'evaluation': 1.638, 'live': 4.488, 'one': 112100000.0, 'root': 0.0, 'step': 0.3496},
      'report': {'evaluation': 0.2802, 'live': 3.543, 'one': 133200000.0, 'root': 473300.0},
      'steps': {'batch': 1.461, 'live': 2.483, 'one': 50650000.0, 'root': 1067000.0, 'step': 1.115},
    },
  },
}
FILES = {
  'checkpoint': 203911168,
  'compile': 183418880,
  'evaluation': 204062720,
  'report': 211890176,
  'steps': 203911168,
}
SPREAD = {'compiled': 0.0906, 'planned': 0.0904, 'traced': 0.1177}
DATA_SEGMENT = (134783302, 1.104, 0.1033)
ADDRESS_SPACE = (158783188, 1.048, 0.0435)
