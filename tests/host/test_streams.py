"""Lines about a run go where there is somebody to take them, and never into its files."""

import io
import os
import pathlib
import subprocess
import sys

import pytest

from jaxlite.host import streams

ROOT = pathlib.Path(__file__).resolve().parents[2]

# What a program does that logs at C level while it has files open.
PROGRAM = """
import os, sys
from jaxlite.host import streams
streams.open_standard()
files = [open(f'{sys.argv[1]}/{i}', 'w') for i in range(3)]
print('a line'); print('a line', file=sys.stderr); streams.show('a line')
for number in (1, 2):
  os.write(number, b'what C++ code logs')
for file in files:
  file.write('whole'); file.close()
os.execv('/bin/sh', ['sh', '-c', f'test -e /dev/fd/0 && echo well && echo well >&2 && echo whole > {sys.argv[1]}/3'])
"""


@pytest.mark.skipif(os.name == 'nt', reason='a shell closes the streams')
def test_what_is_logged_to_closed_streams_is_written_into_no_file(tmp_path):
  """Whose starter closed all three: the files that a run opens would be number 0, 1 and 2."""
  words = [sys.executable, '-c', PROGRAM, str(tmp_path)]
  closed = ['/bin/sh', '-c', '"$@" <&- >&- 2>&-', 'sh', *words]
  done = subprocess.run(closed, env={**os.environ, 'PYTHONPATH': str(ROOT)}, check=False)
  assert done.returncode == 0
  assert [path.read_text().strip() for path in sorted(tmp_path.iterdir())] == ['whole'] * 4


def test_a_line_is_said_as_far_as_an_encoding_can(monkeypatch):
  for encoding, shown in (('ascii', b'runs/\\xfc \\u6f22\n'), ('utf-8', 'runs/\u00fc \u6f22\n'.encode())):
    bytes_ = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(bytes_, encoding=encoding))
    streams.show('runs/\u00fc \u6f22')
    assert bytes_.getvalue() == shown


def test_a_process_without_an_output_says_nothing(monkeypatch):
  monkeypatch.setattr(sys, 'stdout', None)
  streams.steady(print)('a line')
  streams.show('a line')


def test_a_device_that_is_not_there_is_one_line():
  """`JAX_PLATFORMS=cuda` without a GPU: JAX says it by an assertion without a word."""
  program = (
    'import jax\nfrom jaxlite import errors\ntry:\n  jax.devices()\nexcept Exception as e:\n  print(errors.one_line(e))'
  )
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cuda'}
  done = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True, check=True)
  assert done.stdout.startswith('JAX finds no device of JAX_PLATFORMS=cuda here (')
  assert done.stdout.count('\n') == 1
