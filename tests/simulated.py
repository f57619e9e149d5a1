"""Programs on several devices that are only simulated, each in a process of its own."""

import os
import subprocess
import sys
import textwrap


def sound_on_four_devices(source):
  """Runs a program on four devices; its last line has to be 'sound 4', with the count that JAX gives."""
  environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-W', 'error', '-c', textwrap.dedent(source)]
  done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
  assert done.stdout.strip() == 'sound 4', done.stderr[-3000:]
