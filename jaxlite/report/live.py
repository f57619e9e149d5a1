"""The page of a run under way, on loopback: `--mode=report --serve`.

A process of its own reads the run's files and never writes or locks any: the run does not know that it is watched, and
its steps are as fast as before. The page is made when a browser asks for it, at most once a second, from what was added
since. Nothing but the page is served: a path is compared with a short list, and none becomes a file's name. The page
asks for nothing beyond itself, and only a request that was meant for this address is answered, so that a web page
elsewhere cannot read it under another name (DNS rebinding).
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlite.errors import ConfigError
from jaxlite.report.folder_page import gathered, is_empty, opened
from jaxlite.report.found import alive, folders_of_runs
from jaxlite.report.html_page import body
from jaxlite.report.markup import page
from jaxlite.report.points import Points

HOST = '127.0.0.1'
_FRESH = 1.0  # seconds that a page is kept, at least
_SHARE = 20  # times as long as it took to make: a twentieth of a core at most
_LOOKS = 5.0  # seconds between two looks for new runs
_ENDED = 3.0  # seconds between the end of the runs and that of the server: a browser asks once more
_SCRIPT = """
(function () {
  var seen = document.querySelector('main').dataset.state, line = document.getElementById('live');
  function ask() {
    fetch('/state').then(function (answer) { return answer.json(); }).then(function (now) {
      if (now.state === seen) return again(now);
      return fetch('/').then(function (answer) { return answer.text(); }).then(function (text) {
        var other = new DOMParser().parseFromString(text, 'text/html');
        var open = [].map.call(document.querySelectorAll('details'), function (one) { return one.open; });
        document.querySelector('header').innerHTML = other.querySelector('header').innerHTML;
        document.querySelector('main').innerHTML = other.querySelector('main').innerHTML;
        [].forEach.call(document.querySelectorAll('details'), function (one, i) { one.open = !!open[i]; });
        line = document.getElementById('live');
        seen = now.state;
        again(now);
      });
    }).catch(function () { line.textContent = 'This page is no longer being updated: the server has ended.'; });
  }
  function again(now) {
    line.textContent = now.under_way ? 'This page follows the runs.' : 'Nothing is under way.';
    setTimeout(ask, 2000);
  }
  setTimeout(ask, 2000);
})();
""".strip()
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
POLICY = (
  f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{_HASH}'; connect-src 'self'; "
  "base-uri 'none'; form-action 'none'"
)


class Live:
  """What is served: the page of a folder, made anew when somebody asks and something was added.

  Attributes:
    folder: of the runs.
  """

  def __init__(self, folder: Path, title: str = ''):
    """Begins.

    Args:
      folder: an existing one.
      title: of the page.
    """
    self.folder, self._title = folder, title
    self._lock = threading.Lock()
    self._kept: dict[str, Points] = {}
    self._until = 0.0  # the page is good until then
    self._page, self._state = b'', ''
    self._folders: list[Path] = []
    self._looked = -math.inf

  def now(self) -> tuple[bytes, str]:
    """Returns the page, and what tells it from an older one."""
    with self._lock:
      if (began := time.monotonic()) >= self._until:
        self._make()
        took = time.monotonic() - began
        self._until = began + max(_FRESH, _SHARE * took)
      return self._page, self._state

  def under_way(self) -> bool:
    """Tells whether a process is at work on one of the runs, or on all of them."""
    if time.monotonic() - self._looked > _LOOKS:
      self._folders, self._looked = [self.folder, *folders_of_runs(self.folder)[0]], time.monotonic()
    return any(alive(folder) for folder in self._folders)

  def _make(self) -> None:
    runs, title, tables, told = gathered(self.folder, self._title, (), self._kept)
    header, main = body(runs, title, tables=tables, told=told)
    state = hashlib.sha256(f'{header}{main}'.encode('utf-8', 'replace')).hexdigest()[:16]
    if state == self._state:
      return
    header += '<p class="soft" id="live" role="status">This page follows the runs.</p>'
    made = page(title, header, main, script=_SCRIPT, policy=POLICY)
    made = made.replace('<main id="main"', f'<main id="main" data-state="{state}"', 1)
    self._page, self._state = made.encode('utf-8', 'replace'), state


def handler(live: Live, names: set[str]) -> type[http.server.BaseHTTPRequestHandler]:
  """Returns what answers: the page at '/', whether it is new at '/state', nothing else.

  Args:
    live: what is served.
    names: hosts that a request may be meant for, 'host:port'.
  """

  class Handler(http.server.BaseHTTPRequestHandler):
    server_version, sys_version = 'jaxlite', ''
    timeout = 10

    def do_GET(self) -> None:
      self._answer(whole=True)

    def do_HEAD(self) -> None:
      self._answer(whole=False)

    def _answer(self, *, whole: bool) -> None:
      if self.headers.get('Host', '') not in names:
        self.send_error(421, 'This page is asked for by its own address')
        return
      if self.path not in ('/', '/state'):
        self.send_error(404, 'There is one page, at /')
        return
      made, state = live.now()
      kind, data = 'text/html; charset=utf-8', made
      if self.path == '/state':
        kind, data = 'application/json', json.dumps({'state': state, 'under_way': live.under_way()}).encode()
      self.send_response(200)
      self.send_header('Content-Type', kind)
      self.send_header('Content-Length', str(len(data)))
      self.send_header('Content-Security-Policy', POLICY)
      for name, value in (
        ('Cache-Control', 'no-store'),
        ('X-Content-Type-Options', 'nosniff'),
        ('Referrer-Policy', 'no-referrer'),
        ('Cross-Origin-Resource-Policy', 'same-origin'),
      ):
        self.send_header(name, value)
      self.end_headers()
      if whole:
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
      """Says nothing: a terminal belongs to whoever started this."""

  return Handler


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  allow_reuse_address = os.name != 'nt'  # there it would let two have one port

  def handle_error(self, request: Any, client_address: Any) -> None:
    """A browser that went away is no error."""


def serve(
  folder: str | os.PathLike[str],
  port: int = 0,
  *,
  title: str = '',
  forever: bool = False,
  say: Callable[[str], None] = print,
  stop: threading.Event | None = None,
) -> int:
  """Shows the page of the runs in a folder while they are under way, on this machine alone.

  Args:
    folder: of a run, or of several; it may still be empty.
    port: on 127.0.0.1; 0 takes a free one, and the address is told.
    title: of the page.
    forever: also goes on when all runs have ended, until it is interrupted.
    say: prints a line.
    stop: ends it from outside.

  Returns:
    The port.

  Raises:
    ConfigError: there is no such folder, or the port is taken.
  """
  root = opened(folder)
  live = Live(root, title)
  names: set[str] = set()
  try:
    server = _Server((HOST, port), handler(live, names))
  except (OSError, OverflowError) as error:
    why = getattr(error, 'strerror', None) or error
    raise ConfigError(f'port {port} of {HOST} cannot be had ({why}): leave --port out for a free one') from None
  taken = int(server.server_address[1])
  names |= {f'{host}:{taken}' for host in (HOST, 'localhost')} | ({HOST, 'localhost'} if taken == 80 else set())
  stop = stop or threading.Event()
  with server:
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.1}, daemon=True)
    thread.start()
    try:  # from the first line on: who reads it may press Ctrl-C
      say(f'live: http://{HOST}:{taken}/ shows {root}; nobody but this machine can open it, Ctrl-C ends it')
      if is_empty(root):
        say('no run lies there yet: the page shows one when it begins')
      _watch(live, forever, stop)
      if not stop.is_set():
        say('nothing is under way any more: --mode=report writes the page as a file')
    except KeyboardInterrupt:
      say('ended')
    finally:
      server.shutdown()
      thread.join()
  return taken


def _watch(live: Live, forever: bool, stop: threading.Event) -> None:
  """Waits until runs that were under way have ended; looks at their locks alone."""
  seen, ended = live.under_way(), None
  while not stop.wait(0.5):
    if live.under_way():
      seen, ended = True, None
    elif seen and not forever:
      ended = ended or time.monotonic()
      if time.monotonic() - ended > _ENDED:
        return
