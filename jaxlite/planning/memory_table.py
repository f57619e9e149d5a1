"""How much each of the things that a run's memory depends on adds to it, measured; see `memory.forecast`.

Written by

  python experiments/bench/forecast_memory.py fit --results=FILE

from the 12 runs of its calibration that `measure` had made. Linux, x86-64, glibc, 2 cores; what a warm compile cache
leaves of 'first' and 'equations' is taken to be half.
"""

TABLE = {
  'compiled': {
    'cold': {
      'checkpoint': {'equations': 4270.0, 'live': 1.362, 'one': 28090000.0, 'step': 0.06277},
      'evaluation': {'evaluation': 1.0, 'live': 3.998, 'one': 15240000.0, 'step': 0.3398},
      'report': {'equations': 20590.0, 'evaluation': 0.6478, 'live': 2.619, 'one': 62900000.0},
      'steps': {'batch': 8.403, 'equations': 20310.0, 'live': 1.337, 'step': 1.0},
    },
    'warm': {
      'checkpoint': {'equations': 2135.0, 'live': 1.362, 'one': 28090000.0, 'step': 0.06277},
      'evaluation': {'evaluation': 1.0, 'live': 3.998, 'one': 15240000.0, 'step': 0.3398},
      'report': {'equations': 10300.0, 'evaluation': 0.6478, 'live': 2.619, 'one': 62900000.0},
      'steps': {'batch': 8.403, 'equations': 10160.0, 'live': 1.337, 'step': 1.0},
    },
  },
  'traced': {
    'cold': {
      'checkpoint': {'equations': 77100.0, 'first': 52340000.0, 'live': 3.736, 'one': 49750000.0},
      'compile': {'equations': 70080.0, 'first': 25140000.0, 'live': 2.345, 'one': 47750000.0},
      'evaluation': {
        'equations': 65210.0,
        'evaluation': 1.0,
        'first': 64350000.0,
        'live': 6.39,
        'one': 33950000.0,
        'step': 0.2255,
      },
      'report': {'equations': 107100.0, 'evaluation': 0.08528, 'first': 50680000.0, 'live': 4.885, 'one': 79290000.0},
      'steps': {
        'batch': 3.948,
        'equations': 85180.0,
        'first': 59090000.0,
        'live': 3.472,
        'one': 23530000.0,
        'step': 1.0,
      },
    },
    'warm': {
      'checkpoint': {'equations': 38550.0, 'first': 26170000.0, 'live': 3.736, 'one': 49750000.0},
      'compile': {'equations': 35040.0, 'first': 12570000.0, 'live': 2.345, 'one': 47750000.0},
      'evaluation': {
        'equations': 32600.0,
        'evaluation': 1.0,
        'first': 32180000.0,
        'live': 6.39,
        'one': 33950000.0,
        'step': 0.2255,
      },
      'report': {'equations': 53550.0, 'evaluation': 0.08528, 'first': 25340000.0, 'live': 4.885, 'one': 79290000.0},
      'steps': {
        'batch': 3.948,
        'equations': 42590.0,
        'first': 29540000.0,
        'live': 3.472,
        'one': 23530000.0,
        'step': 1.0,
      },
    },
  },
}
FILES = {
  'checkpoint': 191969280,
  'compile': 166311936,
  'evaluation': 192098304,
  'report': 199530496,
  'steps': 191969280,
}
SPREAD = {'compiled': 0.064, 'planned': 0.0976, 'traced': 0.0976}
DATA_SEGMENT = (40000000, 1.2, 0.08)
ADDRESS_SPACE = (135759709, 1.089, 0.05)
