"""A process that computes is waited for, one that stands still is not."""

import subprocess
import sys
import time

import pytest

from jaxlite.host import waiting

BUSY = 'import time\nend = time.monotonic() + 3\nwhile time.monotonic() < end: pass\nraise SystemExit(7)'


@pytest.mark.skipif(waiting.processor_seconds(1) is None, reason='this system keeps no /proc')
def test_what_computes_is_waited_for_and_what_sleeps_is_left():
  assert waiting.ended(subprocess.Popen([sys.executable, '-c', BUSY]), 0.5) == 7
  with subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']) as asleep:
    began = time.monotonic()
    assert waiting.ended(asleep, 1.0) is None
    assert time.monotonic() - began < 20
    asleep.kill()
