"""Jobs by chance, each under a limit: what `tests/run/test_fit.py` and `experiments/bench/forecast_fit.py` fit."""

import random


def random_job(seed):
  """A job by chance, and a limit of its data segment in MiB."""
  rng = random.Random(seed)
  job = {
    'kind': rng.choice(['function', 'function', 'linen', 'dropout', 'statistics']),
    'width': rng.choice([64, 128, 256, 512]),
    'depth': rng.choice([1, 2, 4, 8]),
    'batch': rng.choice([64, 1024, 4096, 8192]),
    'evaluation': rng.choice([512, 2048, 8192]),
    'features': rng.choice([8, 64, 256]),
    'examples': 20_000,
    'steps': 4,
    'seed': seed,
  }
  return job, rng.choice([560, 640, 760, 900])
