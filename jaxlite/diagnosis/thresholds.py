"""From where on something counts as there. Chosen on one half of constructed runs, `experiments/bench/diagnosis.py`."""

from __future__ import annotations

LEAST_POINTS = 4  # of a curve; fewer say nothing of its form
LEAST_VALIDATION = 30  # examples; of fewer, chance alone moves a score by more than what is asked

# Of curves alone.
RISE = 0.25  # of validation loss above its best, as a share of what was gained by then
FALLING = 0.12  # of all progress, made in the last quarter of the run: it was still learning
ROUGH = 0.35  # deviation of the training loss from point to point, in units of its logarithm
BLOWN = 3.0  # times the loss at the start
LEARNED = 0.05  # of the loss that knowing nothing has: less was gained than this, so nothing was learned

# Of data and program.
OUTSIDE = 0.02  # of the labels, that outputs cannot reach
WRONG_LOSS = 0.3  # of the score that the task's own loss gains on free outputs, lost by the run's
UNSCALED = 8.0  # deviations or offsets of a feature, as the first layer gets it
LEAK = 0.05  # of held-out examples, that training has too
WRONG_LABELS = 0.05  # of the examples that are called with most confidence, beyond two standard errors
RARE = 6.0  # times as many of the most frequent class as of the rarest
MISSED = 0.7  # of the rarest class is found: less
SHIFT = 0.25  # distance of distributions, beyond chance

# Of the start and the way.
BLOWN_START = 8.0  # times the loss of who knows nothing
PULL = 1e3  # between the layers that move the loss most and least
SPREAD = 5e-3  # deviation from example to example, of a layer that still tells them apart
DEAD = 0.6  # of a layer's units
SATURATED = 0.8  # of a layer's values
RAISED = 0.25  # of the steps make the loss of their own batch larger
JUMP = 0.04  # |update| / |weight| of a step: more
RISEN = 1.5  # times the loss at the start and of knowing nothing, while steps are taken again
CARRIED = 20.0  # times their size, that the weights moved: more
MOVED = 0.05  # of the size of the weights
UNCHANGED = 0.5  # of weights in few bits that an update leaves as they were

# Of fit.
SHORT = 0.15  # of what the yardstick gains over knowing nothing, that the model lacks
GAP = 0.5  # (validation - training) / validation loss, both in evaluation mode
APART = 0.25  # of the error of guessing, between training and validation, beyond two standard errors
