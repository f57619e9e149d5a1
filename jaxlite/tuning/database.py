"""A database that several workers share: a file of SQLite on one machine, or PostgreSQL by its address.

Texts are SQL that both understand, values by name. A lock stands beside it that the system lets go of when a process
dies: SQLite's own is taken anew by each statement, and fails where several wait long.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from jaxlite.errors import ConfigError, need

_WAIT = 300.0  # seconds for the lock: nobody holds it for more than one
# Of a session on a server: a machine that lost its power keeps no lock for hours, and nobody waits for one for ever.
_SESSION = ('tcp_keepalives_idle = 20', 'tcp_keepalives_interval = 5', 'tcp_keepalives_count = 4')
_SESSION += (f"lock_timeout = '{_WAIT:.0f}s'",)


class StorageError(ConfigError):
  """A study's database cannot be reached, or is gone."""


def shown(address: str | Path) -> str:
  """Returns an address without its password.

  >>> shown('postgresql://me:secret@host/tuning')
  'postgresql://me:***@host/tuning'
  """
  return re.sub(r'(://[^:/@]*):[^@]*@', r'\1:***@', str(address))


class Database:
  """A connection to a file of SQLite or to a server, and the lock on it.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   one = Database(Path(folder) / 'a.db')
  ...   with one.locked():
  ...     _ = one.execute('create table t (x integer)'), one.execute('insert into t values (:x)', x=3)
  ...   rows = one.execute('select x from t')[0]
  ...   one.close()
  >>> rows
  [(3,)]
  """

  def __init__(self, address: str | Path, *, make: bool = True):
    """Opens it.

    Args:
      address: a Path of a file, or 'postgresql://user:password@host:port/name'.
      make: whether a file may be made where there is none.

    Raises:
      StorageError: it cannot be reached.
    """
    self.address, self.is_file = address, isinstance(address, Path)
    self._turn = threading.RLock()
    self._depth = 0
    self._engine: Any = None
    self._holder: Any = None
    if isinstance(address, Path):
      if not (make or address.is_file()):
        raise StorageError(f'the storage {address} is gone: put it back, or start anew with fresh=True')
      self._lock = filelock.FileLock(address.with_suffix('.lock'), timeout=_WAIT, thread_local=False)
    with self._said():
      if isinstance(address, Path):
        self._connection = sqlite3.connect(address, timeout=_WAIT, isolation_level=None, check_same_thread=False)
        try:
          # A commit waits for no disk: a kill loses nothing by it, a power cut the last seconds and never the file.
          self._connection.execute('pragma journal_mode = wal').fetchall()
          self._connection.execute('pragma synchronous = normal')
          self._connection.execute('select count(*) from sqlite_master').fetchall()
          self._file = _file(address)
        except sqlite3.Error:  # damaged, or no database
          self._connection.close()
          raise
      else:
        need('a study on a server', 'optuna', 'psycopg')
        import sqlalchemy

        driver = re.sub(r'^postgres(ql)?://', 'postgresql+psycopg://', str(address))
        self._engine = sqlalchemy.create_engine(driver, isolation_level='AUTOCOMMIT', pool_pre_ping=True)
        self._connection = None
        try:
          self.execute('select 1')
        except BaseException:
          self._engine.dispose()
          raise

  @property
  def url(self) -> str:
    """Its address as Optuna and SQLAlchemy take it."""
    if self.is_file:
      return f'sqlite:///{self.address}'
    return re.sub(r'^postgres(ql)?://', 'postgresql+psycopg://', str(self.address))

  def execute(self, text: str, **values: Any) -> tuple[list[Any], int]:
    """Runs a statement; returns its rows, and how many it changed.

    Raises:
      StorageError: the database cannot be reached.
    """
    names = set(re.findall(r':(\w+)', text))
    values = {name: value for name, value in values.items() if name in names}
    with self._said(), self._turn:
      if self.is_file:
        if _file(Path(self.address)) != self._file:  # what is written into a removed file is lost without a word
          raise FileNotFoundError(f'{self.address} is not the file that was opened')
        done = self._connection.execute(text, values)
        return done.fetchall(), done.rowcount
      import sqlalchemy

      with self._engine.connect() as connection:
        done = connection.execute(sqlalchemy.text(text), values)
        rows = [tuple(row) for row in done.fetchall()] if done.returns_rows else []
        return rows, done.rowcount

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps others out, in other threads and processes, while the context lasts; may be entered again within it."""
    with self._turn:
      if self._depth == 0:
        self._take()
      self._depth += 1
      try:
        yield
      finally:
        self._depth -= 1
        if self._depth == 0:
          self._let_go()

  def _take(self) -> None:
    with self._said():
      if self.is_file:
        try:
          self._lock.acquire()
        except filelock.Timeout:
          raise StorageError(
            f'{self._lock.lock_file} is held by another worker for {_WAIT:.0f} s: end that one, it hangs'
          ) from None
        return
      import sqlalchemy

      holder = self._engine.connect()
      try:
        for setting in _SESSION:
          holder.execute(sqlalchemy.text(f'set {setting}'))
        holder.execute(sqlalchemy.text(f'select pg_advisory_lock({zlib.crc32(b"jaxlite.tuning")})'))
      except BaseException:
        holder.close()
        raise
      self._holder = holder

  def _let_go(self) -> None:
    if self.is_file:
      self._lock.release()
      return
    holder, self._holder = self._holder, None
    with self._said():
      import sqlalchemy

      try:
        holder.execute(sqlalchemy.text(f'select pg_advisory_unlock({zlib.crc32(b"jaxlite.tuning")})'))
      finally:
        holder.close()

  def now(self) -> float:
    """Returns the time by the clock that all who use the database share."""
    if self.is_file:
      return time.time()
    return float(self.execute('select extract(epoch from clock_timestamp())')[0][0][0])

  def close(self) -> None:
    """Closes the connection."""
    if self._connection is not None:
      self._connection.close()
    if self._engine is not None:
      self._engine.dispose()

  @contextlib.contextmanager
  def _said(self) -> Iterator[None]:
    """Turns what a driver raises into one line."""
    try:
      yield
    except (StorageError, ImportError):
      raise
    except Exception as error:
      if not _is_of_storage(error):
        raise
      raise unreachable(self.address, error) from error


def unreachable(address: str | Path, error: Exception) -> StorageError:
  """Returns the one line for what a driver raised."""
  why = str(getattr(error, 'orig', None) or error).strip().split('\n')[0][:160]
  fix = 'make room' if re.search(r'full|no space|quota', why, re.IGNORECASE) else 'bring it back'
  return StorageError(
    f'the storage {shown(address)} cannot be reached ({why}): what is trained is safe in the folders of the trials; '
    f'{fix} and run the same again'
  )


def _file(path: Path) -> tuple[int, int]:
  """Which file a path names."""
  found = path.stat()
  return found.st_dev, found.st_ino


def _is_of_storage(error: Exception) -> bool:
  if isinstance(error, OSError | sqlite3.Error):
    return True
  return type(error).__module__.split('.')[0] in ('sqlalchemy', 'psycopg')


def of_storage(error: BaseException | None) -> Exception | None:
  """Returns what a database raised, of whatever another library made of it; None where none did."""
  while error is not None:
    if isinstance(error, Exception) and _is_of_storage(error):
      return error
    error = error.__cause__
  return None
