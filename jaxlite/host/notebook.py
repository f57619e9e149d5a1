"""Notebooks: whether a stream leads to one, and a bar in it that is drawn over in place."""

from __future__ import annotations

import html
import secrets
import sys
from typing import Any, TextIO


def in_notebook(out: TextIO) -> bool:
  """Tells whether a stream leads to a notebook: IPython's kernel puts one of its own in the place of `sys.stdout`.

  >>> in_notebook(sys.stdout)
  False
  """
  return 'ipykernel' in sys.modules and type(out).__module__.split('.')[0] == 'ipykernel'


def bar() -> Bar | None:
  """Returns a bar for the cell that runs now; None where no kernel of IPython's shows one."""
  try:
    from IPython import get_ipython
    from IPython.display import display, update_display  # noqa: F401 - both are needed
  except ImportError:
    return None
  return Bar() if getattr(get_ipython(), 'kernel', None) is not None else None


class Bar:
  """One output of a cell, of which the last state alone is kept: a saved notebook does not hold each redraw."""

  def __init__(self) -> None:
    """Shows nothing yet."""
    self._id = ''

  def draw(self, text: str, share: float | None = None) -> None:
    """Puts a text, and how far it is, in the place of what stood there.

    Args:
      text: one line.
      share: of all that is done, 0 to 1; None for no bar.
    """
    from IPython.display import display, update_display

    told = f'<span style="font-family:monospace">{html.escape(text)}</span>'
    if share is not None:
      told = f'<progress value="{share:.4f}" max="1" aria-label="steps" style="width:16em"></progress> {told}'
    shown: dict[str, Any] = {'text/plain': text, 'text/html': told}
    if not self._id:
      if not text:
        return
      self._id = secrets.token_hex(8)
      display(shown, raw=True, display_id=self._id)
    else:
      update_display(shown, raw=True, display_id=self._id)
