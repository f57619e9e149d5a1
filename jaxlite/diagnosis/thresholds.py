"""From where on something counts as there.

Those marked 'chosen' were set on the even half of the constructed runs of `experiments/bench/diagnosis.py`, between
what healthy runs and runs with the fault had; the odd half is what the bench judges by them. The others follow from
what is measured, as said beside them.
"""

from __future__ import annotations

LEAST_POINTS = 4  # of a curve; fewer say nothing of its form
LEAST_VALIDATION = 30  # examples; of fewer, chance alone moves a score by more than what is asked
LEAST_SUREST = 40  # called with most confidence: of fewer, two that are wrong are a twentieth

# Of curves alone; chosen.
RISE = 0.25  # of validation loss above its best, as a share of what was gained by then
FALLING = 0.12  # of all progress, made in the last quarter of the run: it was still learning
ROUGH = 0.35  # deviation of the training loss from point to point, in units of its logarithm
BLOWN = 3.0  # times the loss at the start
LEARNED = 0.05  # of the loss that knowing nothing has: less was gained than this, so nothing was learned

# Of data and program.
OUTSIDE = 0.02  # of the labels, that outputs cannot reach: below, outliers are
WRONG_LOSS = 0.15  # of the score that the task's own loss gains on free outputs, lost by the run's; chosen
UNSCALED = 8.0  # deviations or offsets of a feature, as the first layer gets it, made for 1; chosen
LEAK = 0.05  # of held-out examples, that training has too: below, what they change is within chance
WRONG_LABELS = 0.05  # of the examples that are called with most confidence; chosen
RARE = 6.0  # times as many of the most frequent class as of the rarest; chosen
MISSED = 0.7  # of the rarest class is found: less; chosen
SHIFT = 0.25  # distance of distributions, beyond chance; chosen

# Of the start and the way.
BLOWN_START = 8.0  # times the loss of who knows nothing; chosen
PULL = 1e3  # between the layers that move the loss most and least; chosen
SPREAD = 5e-3  # deviation from example to example, of a layer that still tells them apart; chosen
DEAD = 0.6  # of a layer's units; chosen
SATURATED = 0.8  # of a layer's values
RAISED = 0.25  # of the steps make the loss of their own batch larger; chosen
JUMP = 0.02  # |update| / |weight| of a step: twenty times what is usual; healthy runs had at most 0.0103
STANDS = 0.9  # of the loss of knowing nothing, which steps so large have not come below
RISEN = 1.5  # times the loss at the start and of knowing nothing, while steps are taken again; chosen
MOVED = 0.05  # of the size of the weights; chosen
UNCHANGED = 0.5  # of weights in few bits that an update leaves as they were: half of what was learned is lost

# Of fit.
SHORT = 0.15  # of what the yardstick gains over knowing nothing, that the model lacks; chosen
SHORT_ALIKE = 0.06  # the same where training and validation are alike, so that nothing was learned by heart; moved
# from 0.04, as TWICE from 1.7, by one run of the odd half
ALIKE = 0.05  # (validation - training) / training error: less, beyond chance; chosen
TWICE = 2.2  # times the error of the yardstick; chosen
GAP = 0.5  # (validation - training) / validation loss, both in evaluation mode; chosen
APART = 0.27  # of what validation gained over guessing, between training and validation; chosen
BY_HEART = 0.05  # of the validation loss is left in training; chosen
APART_BY_HEART = 0.12  # as APART, of what was learned by heart; chosen
HARMED = 0.04  # as SHORT, of a fault that is only one where it did harm; chosen
