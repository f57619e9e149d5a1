"""Python's garbage collector, held back while a program is traced.

Tracing builds hundreds of thousands of objects that live on, and the collector walks all there are again and again:
of the warm first step of a ResNet20, 1.81 s of CPU and 1.92 s without this (means of five runs in turn of
`experiments/bench/startup.py --cases=resnet20`, one of them with `gc.disable` doing nothing). Whatever is freed by
counting references is not kept waiting.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_inside: list[bool] = []  # one for each that is in such a block, in any thread


@contextlib.contextmanager
def paused() -> Iterator[None]:
  """Holds the collector back inside a `with` block or a decorated function; leaves it as it was found.

  >>> with paused():
  ...   gc.isenabled()
  False
  """
  with _lock:
    _inside.append(not _inside and gc.isenabled())  # the first to come knows how it was
    gc.disable()
  try:
    yield
  finally:
    with _lock:
      if len(_inside) > 1:
        _inside.pop()  # of those in it, whichever: the last to go leaves it as the first found it
      elif _inside.pop():
        gc.enable()
