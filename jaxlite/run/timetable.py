"""When the loop does what: the points of a run at which it logs, evaluates and saves."""

from __future__ import annotations

from typing import NamedTuple


class Plan(NamedTuple):
  """The durations of a run, in steps: how long it is, and how often somebody looks.

  >>> plan = Plan(total=20, epoch=5, log=4, evaluate=6, checkpoint=10)
  >>> plan.due(8, plan.log), plan.free(8), plan.gap
  (True, 2, 4)
  """

  total: int
  epoch: int
  log: int
  evaluate: int
  checkpoint: int

  def due(self, step: int, every: int) -> bool:
    """Tells whether something that is done every so many steps is due after this step: at the end it always is."""
    return step > 0 and (step % every == 0 or step == self.total)

  def free(self, step: int) -> int:
    """Returns how many steps may follow this one before anything is due."""
    return min(self.total - step, *(every - step % every for every in (self.log, self.evaluate, self.checkpoint)))

  @property
  def gap(self) -> int:
    """The most steps that ever lie between two points where something is due."""
    return min(self.total, self.log, self.evaluate, self.checkpoint)
