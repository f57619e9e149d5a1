"""What this machine is, in plain words: what a run may use, what makes it slow, and what is wrong with its JAX."""

from __future__ import annotations

from collections.abc import Callable


def doctor(say: Callable[[str], None] = print, workdir: str = '.', anew: bool = False) -> None:
  """Prints what this machine offers a run, what is missing for speed, and known faults of the installed JAX.

  Args:
    say: takes each line.
    workdir: the folder whose disk a run would write to.
    anew: whether rates are measured although there are kept ones.
  """
  raise NotImplementedError
