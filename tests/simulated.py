"""Programs on several devices that are only simulated, each in a process of its own."""

import os
import subprocess
import sys
import textwrap

import unoptimized


def sound_on(count, source):
  """Runs a program on several devices; its only line has to be 'sound' and the count that JAX gives.

  Compiled without XLA's optimizations: what is split over devices is compared up to rounding.
  """
  flags = unoptimized.environment(f'--xla_force_host_platform_device_count={count}')
  environment = {**os.environ, **flags, 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-W', 'error', '-c', textwrap.dedent(source)]
  done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
  assert done.stdout.strip() == f'sound {count}', done.stderr[-3000:]
