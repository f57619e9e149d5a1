"""`--mode=report` as a person meets it: a page of any folder, within a second, without JAX; a live one that ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

import sample_runs as samples

REPORT = """
import sys
from jaxlite.run import launcher
sys.argv = ['jaxlite', '--mode=report', *sys.argv[1:]]
try:
  launcher.main()
finally:
  print('jax' in sys.modules, 'orbax' in sys.modules)
"""


def asked(*words):
  return subprocess.run([sys.executable, '-c', REPORT, *words], capture_output=True, text=True, check=False)


def interrupted(process):
  """Ends a process as Ctrl-C does, and in any case, and returns its exit code."""
  process.send_signal(signal.SIGINT)
  try:
    return process.wait(10)
  finally:
    process.kill()


def test_it_writes_the_page_of_a_folder_without_jax(tmp_path):
  samples.write_run(tmp_path / 'runs' / 'one', samples.result('one', samples.answers(100, 0.9, 1)))
  done = asked(f'--workdir={tmp_path / "runs"}', f'--out={tmp_path / "out"}')
  assert done.returncode == 0, done.stderr
  path, loaded = done.stdout.splitlines()
  assert path == str(tmp_path / 'out' / 'report.html')
  assert loaded == 'False False'
  assert {'report.html', 'report.md', 'curves.png'} <= {file.name for file in (tmp_path / 'out').iterdir()}
  assert [file.name for file in (tmp_path / 'runs').iterdir()] == ['one']


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    (['--workdir={}/none'], 'is not there: name one with --workdir'),
    (['--workdir={}', '--port=1'], '--port goes with --serve'),
    (['--workdir={}', '--serve', '--out=x'], '--out is for files, and --serve writes none'),
    (['--workdir={}', '--config.seed=1'], 'fields of a config change nothing'),
    (['--workdir={}', '--fresh'], '--fresh moves an old run aside'),
  ],
  ids=lambda case: case[-1] if isinstance(case, list) else '',
)
def test_a_mistake_is_one_line(tmp_path, words, said):
  done = asked(*(word.format(tmp_path) for word in words))
  assert done.returncode == 2
  assert done.stderr.count('\n') == 1
  assert said in done.stderr


def test_of_an_empty_folder_both_say_so(tmp_path):
  done = asked(f'--workdir={tmp_path}')
  assert done.returncode == 0
  assert f'note: no run lies in {tmp_path}, and the page says so' in done.stderr
  words = [sys.executable, '-c', REPORT, f'--workdir={tmp_path}', '--serve']
  with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout.readline().startswith('live: http://127.0.0.1:')
    assert process.stdout.readline() == 'no run lies there yet: the page shows one when it begins\n'
    assert interrupted(process) == 0


def test_the_live_page_tells_its_address_and_ends_when_interrupted(tmp_path):
  folder = samples.write_run(tmp_path / 'run', samples.result('run', [True]), finished=False)
  (folder / '.lock').write_text(json.dumps({'pid': os.getpid(), 'host': socket.gethostname(), 'since': ''}))
  words = [sys.executable, '-c', REPORT, f'--workdir={folder}', '--serve']
  with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
    address = process.stdout.readline().split()[1]
    assert address.startswith('http://127.0.0.1:')
    with urllib.request.urlopen(address, timeout=10) as page:
      assert b'Under way' in page.read()
    assert interrupted(process) == 0
    assert process.stdout.readline() == 'ended\n'
