"""What a call promises itself of a limit: waited for where it is large and comes back, and not for long."""

import sys
import time

import numpy as np
import pytest

from jaxlite.host.promised import Promised, data

MIB = 1 << 20


def test_calls_that_are_too_quick_to_take_much_are_not_waited_for():
  quick, slow = Promised(), Promised()
  for _ in range(9):
    quick.returned()
    slow.returned()
    time.sleep(1e-3)
    quick.returned()
  assert (quick.matters, slow.matters) == (False, True)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='counts as Linux does')
def test_what_never_comes_back_is_waited_for_once_and_briefly():
  promised = Promised()
  promised.returned()
  before = data()
  held = np.ones(64 * MIB, np.uint8)
  assert data() - before >= held.nbytes
  times = []
  for _ in range(2):
    began = time.monotonic()
    promised.returned()
    times.append(time.monotonic() - began)
  assert times[0] >= 0.05
  assert times[1] < 0.05
