"""A length of training in a unit that a person thinks in. Standard library only."""

from __future__ import annotations

import dataclasses
import fractions
import math
import numbers
from typing import Any

from jaxlite.errors import ConfigError

UNITS = ('steps', 'epochs', 'examples', 'percent')


@dataclasses.dataclass
class Duration:
  """A length of training in exactly one unit.

  Attributes:
    steps: optimizer steps.
    epochs: passes over the training split; a fraction is allowed.
    examples: training examples.
    percent: of the whole run, 0 to 100.

  Raises:
    ConfigError: none or several units, a negative or unreadable amount.

  >>> Duration(epochs=1.5).to_steps(steps_per_epoch=5, batch_size=32)
  8
  >>> Duration(percent=5).to_steps(steps_per_epoch=5, batch_size=32, total_steps=30)
  2
  """

  steps: int | None = None
  epochs: float | None = None
  examples: int | None = None
  percent: float | None = None

  def __post_init__(self) -> None:
    self.given()

  def given(self) -> tuple[str, int | float]:
    """Returns (unit, amount). Fields may be assigned after construction, so they are checked here again.

    >>> Duration(steps=3).given()
    ('steps', 3)
    """
    given = [(unit, getattr(self, unit)) for unit in UNITS if getattr(self, unit) is not None]
    if len(given) != 1:
      got = ', '.join(f'{unit}={amount!r}' for unit, amount in given) or 'none'
      raise ConfigError(f'a duration has exactly one of {", ".join(UNITS)}; got {got}')
    unit, amount = given[0]
    kind: Any = numbers.Integral if unit in ('steps', 'examples') else numbers.Real
    if isinstance(amount, bool) or not isinstance(amount, kind):
      raise ConfigError(
        f'{unit} of a duration is {"an int" if kind is numbers.Integral else "a number"}; got {amount!r}'
      )
    if not (math.isfinite(amount) and amount >= 0):
      raise ConfigError(f'a duration is finite and at least 0; got {unit}={amount!r}')
    if unit == 'percent' and amount > 100:
      raise ConfigError(f'percent of a duration is at most 100; got {amount!r}')
    return unit, amount

  def to_steps(self, *, steps_per_epoch: int, batch_size: int, total_steps: int | None = None) -> int:
    """Returns the duration in optimizer steps, rounded up: at least 1 unless it is 0.

    Args:
      steps_per_epoch: optimizer steps in one pass over the training split.
      batch_size: examples per step.
      total_steps: the whole run's steps; needed for percent only.

    Returns:
      The number of steps.

    Raises:
      ConfigError: percent without total_steps, or a size below 1.
    """
    unit, amount = self.given()
    if min(steps_per_epoch, batch_size) < 1:
      raise ConfigError(
        f'steps per epoch and batch size are at least 1; got {steps_per_epoch} and {batch_size}: is the split empty?'
      )
    if unit == 'percent' and total_steps is None:
      raise ConfigError(
        f'percent is of the whole run, whose length is not known here; got {self}: give steps or epochs'
      )
    # As written, not as stored: 10 % of 30 is 3 whatever binary fraction 0.1 is.
    exact = fractions.Fraction(str(amount))
    scale: dict[str, int | fractions.Fraction] = {
      'steps': 1,
      'epochs': steps_per_epoch,
      'examples': fractions.Fraction(1, batch_size),
      'percent': fractions.Fraction(total_steps or 0, 100),
    }
    return math.ceil(exact * scale[unit])

  def __str__(self) -> str:
    unit, amount = self.given()
    amount = int(amount) if amount == int(amount) else amount
    if unit == 'percent':
      return f'{amount} % of the run'
    return f'{amount} {unit[:-1] if amount == 1 else unit}'
