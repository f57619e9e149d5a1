"""The live page: it follows the runs, reads alone, answers this machine alone, shows nothing but itself, and ends."""

import contextlib
import http.client
import json
import os
import socket
import sys
import threading
import time

import pytest

import sample_runs as samples
from jaxlite.report import live
from pages import Page


def make(folder, *, going=True, points=None):
  samples.write_run(folder, samples.result('run', [True]), points=points or samples.history(80), finished=False)
  if going:
    lock = {'pid': os.getpid(), 'host': socket.gethostname(), 'since': 'now'}
    (folder / '.lock').write_text(json.dumps(lock))
  return folder


@contextlib.contextmanager
def served(folder, **more):
  told, stop, ended = [], threading.Event(), []
  thread = threading.Thread(
    target=lambda: ended.append(live.serve(folder, say=told.append, stop=stop, **more)), daemon=True
  )
  thread.start()
  while not told:
    time.sleep(0.01)
    assert thread.is_alive()
  port = int(told[0].split('127.0.0.1:')[1].split('/')[0])
  try:
    yield port, thread, told
  finally:
    stop.set()
    thread.join(10)
  assert ended == [port]


def ask(port, path='/', method='GET', host=None, raw=False):
  link = http.client.HTTPConnection('127.0.0.1', port, timeout=10)
  with contextlib.closing(link):
    link.putrequest(method, path, skip_host=True)
    if host != '':
      link.putheader('Host', host or f'127.0.0.1:{port}')
    link.endheaders()
    answer = link.getresponse()
    return answer.status, answer.read().decode(), dict(answer.getheaders())


def test_it_serves_one_page_to_this_machine_and_reads_alone(tmp_path):
  make(tmp_path / 'run')
  (tmp_path / 'secret.txt').write_text('secret')
  before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob('*')}
  with served(tmp_path / 'run') as (port, _, _):
    status, text, headers = ask(port)
    assert status == 200
    page = Page(text)
    assert 'Under way' in ' '.join(page.text)
    assert page.all('progress')[0]['value'] == '80'
    assert len(page.all('script')) == 1
    assert "connect-src 'self'" in headers['Content-Security-Policy']
    assert headers['Cache-Control'] == 'no-store'
    assert headers['X-Content-Type-Options'] == 'nosniff'
    assert ask(port, method='HEAD')[:2] == (200, '')
    for path in (
      '/metrics.jsonl',
      '/../secret.txt',
      '//etc/passwd',
      '/%2e%2e/secret.txt',
      '/run/config.json',
      '/?',
      '*',
    ):
      status, text, _ = ask(port, path)
      assert status == 404
      assert 'secret' not in text
    for host in ('example.org', f'evil.example:{port}', '', '127.0.0.1', f'127.0.0.1:{port}.example.org'):
      assert ask(port, host=host)[0] == 421
    assert ask(port, host=f'localhost:{port}')[0] == 200
    for method in ('POST', 'PUT', 'DELETE', 'OPTIONS'):
      assert ask(port, method=method)[0] == 501
    with pytest.raises(ValueError, match=f'port {port} of 127.0.0.1 cannot be had'):
      live.serve(tmp_path / 'run', port)
    if sys.platform == 'linux':  # where all of 127.0.0.0/8 is this machine: bound to every address it would answer
      with pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.2', port), 5)
  assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob('*')} == before


def test_it_follows_a_run_and_ends_with_it(tmp_path, monkeypatch):
  monkeypatch.setattr(live, '_FRESH', 0.0)
  monkeypatch.setattr(live, '_SHARE', 0.0)
  monkeypatch.setattr(live, '_ENDED', 0.2)
  folder = make(tmp_path / 'run')
  with served(folder) as (port, thread, told):
    state = json.loads(ask(port, '/state')[1])
    assert state['under_way']
    assert state == json.loads(ask(port, '/state')[1])
    with (folder / 'metrics.jsonl').open('a') as file:
      file.write('{"kind": "train", "step": 99, "time": 0, "loss": 0.5}\n')
    assert 'at step 99 of 400' in ask(port)[1]
    assert json.loads(ask(port, '/state')[1])['state'] != state['state']
    (folder / '.lock').write_text('')  # as a run leaves it
    thread.join(10)
    assert not thread.is_alive()
  assert told[-1].startswith('nothing is under way any more')


def test_what_is_not_under_way_is_shown_until_somebody_ends_it(tmp_path, monkeypatch):
  monkeypatch.setattr(live, '_ENDED', 0.0)
  make(tmp_path / 'run', going=False)
  with served(tmp_path) as (port, thread, _):
    time.sleep(1.2)
    assert thread.is_alive()
    assert 'Stopped before its end' in ask(port)[1]


def test_a_folder_that_is_empty_or_goes_away_is_a_page_too(tmp_path, monkeypatch):
  monkeypatch.setattr(live, '_FRESH', 0.0)
  (tmp_path / 'runs').mkdir()
  with served(tmp_path / 'runs') as (port, _, _):
    assert 'No run lies in this folder' in ask(port)[1]
    (tmp_path / 'runs').rmdir()
    assert ask(port)[0] == 200
  with pytest.raises(ValueError, match='is not there'):
    live.serve(tmp_path / 'runs')
