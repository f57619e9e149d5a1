"""From where on something counts as there. Chosen on one half of constructed runs, `experiments/bench/diagnosis.py`."""

from __future__ import annotations

LEAST_POINTS = 4  # of a curve; fewer say nothing of its form
LEAST_VALIDATION = 30  # examples; of fewer, chance alone moves a score by more than what is asked

RISE = 0.25  # of validation loss above its best, as a share of what was gained by then: overfitting
GAP = 0.5  # (validation - training) / validation loss, both in evaluation mode
FALLING = 0.12  # of all progress, made in the last quarter of the run: it was still learning
ROUGH = 0.35  # deviation of the training loss from point to point, in units of its logarithm
BLOWN = 3.0  # times the loss at the start
LEARNED = 0.05  # of the loss that knowing nothing has: less was gained than this, so nothing was learned
