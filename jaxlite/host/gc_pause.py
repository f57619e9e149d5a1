"""Python's garbage collector, held back while a program is traced.

Tracing builds hundreds of thousands of objects that live on, and the collector walks all there are again and again:
of the warm first step of a ResNet20, 1.81 s of CPU and 1.92 s without this (means of five runs in turn of
`experiments/bench/startup.py --cases=resnet20`, one of them with `gc.disable` doing nothing). Whatever is freed by
counting references is not kept waiting.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
  """Holds the collector back inside a `with` block or a decorated function; leaves it as it was found.

  >>> with paused():
  ...   gc.isenabled()
  False
  """
  was = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was:
      gc.enable()
