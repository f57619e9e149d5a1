"""Workers of one study that are killed at random moments: each trial is there once, and ends as if nothing had been."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
import warnings
from pathlib import Path

import pytest

from studies import check, killed, trials_of

pytestmark = pytest.mark.unoptimized


def attempts_in_optuna(address, trials):
  """Optuna's own view: an attempt a trial, killed ones FAIL, each trial's last one as the ledger has it."""
  optuna = pytest.importorskip('optuna')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    storage = optuna.storages.RDBStorage(address)
    try:
      names = [one.study_name for one in storage.get_all_studies()]
      assert len(names) == 1
      rows = optuna.load_study(study_name=names[0], storage=storage).trials
    finally:
      storage.remove_session()
      storage.engine.dispose()
  assert {one.state.name for one in rows} <= {'COMPLETE', 'PRUNED', 'FAIL'}
  last = {}
  for one in rows:
    if 'trial' in one.user_attrs:
      last[one.user_attrs['trial']] = one
  assert {number: one.state.name.lower() for number, one in last.items()} == {one.number: one.state for one in trials}
  ended = [one.user_attrs['trial'] for one in rows if one.state.name != 'FAIL']
  assert sorted(ended) == sorted(one.number for one in trials)  # each ended once
  for one in trials:
    assert last[one.number].params['seed'] == one.given['seed']


def test_two_workers_of_which_one_is_killed_do_each_trial_once_and_to_the_same_bits(tmp_path):
  study = tmp_path / 'study'
  sent = killed(study, 5, 'random', workers=2, kills=1, seed=1)
  found = check(study, 5, tmp_path / 'aside', compared=2)
  assert sent == 1
  attempts_in_optuna(f'sqlite:///{study / "study.db"}', found)


@pytest.mark.slow
def test_two_hundred_trials_by_four_workers_under_kills(tmp_path):
  study = tmp_path / 'study'
  sent = killed(study, 200, 'tpe', workers=4, kills=40, seed=2)
  found = check(study, 200, tmp_path / 'aside', compared=200)
  assert sent == 40
  assert sum(one.attempts > 1 for one in found) > 5
  attempts_in_optuna(f'sqlite:///{study / "study.db"}', found)


@contextlib.contextmanager
def postgres(folder):
  """Debian's PostgreSQL on loopback, as its own user where we are root, which it refuses to run as."""
  places = [*Path('/usr/lib/postgresql').glob('*/bin'), Path(shutil.which('initdb') or '/none').parent]
  programs = next((place for place in places if (place / 'initdb').exists()), None)
  if programs is None:
    pytest.skip('no PostgreSQL is installed here (apt install postgresql): workers on a server are not tried')
  pytest.importorskip('psycopg', reason='psycopg is not installed: workers on a server are not tried')
  owner = []
  if os.geteuid() == 0:
    try:
      user = pwd.getpwnam('postgres')
    except KeyError:
      pytest.skip('PostgreSQL does not run as root, and there is no user postgres: workers on a server are not tried')
    owner = ['setpriv', f'--reuid={user.pw_uid}', f'--regid={user.pw_gid}', '--clear-groups']
  place = Path('/tmp', f'jaxlite-pg-{os.getpid()}-{folder.name[-8:]}')
  shutil.rmtree(place, ignore_errors=True)
  place.mkdir()
  if owner:
    os.chown(place, user.pw_uid, user.pw_gid)
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  said = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.STDOUT, 'cwd': place}
  subprocess.run([*owner, programs / 'initdb', '-D', place / 'data', '-A', 'trust', '-U', 'me'], check=True, **said)
  words = ['-D', place / 'data', '-p', str(port), '-h', '127.0.0.1', '-k', place, '-c', 'fsync=off']
  server = subprocess.Popen([*owner, programs / 'postgres', *words], **said)
  try:
    for _ in range(100):
      with socket.socket() as ask:
        if ask.connect_ex(('127.0.0.1', port)) == 0:
          break
      time.sleep(0.1)
    time.sleep(1)
    yield f'postgresql://me:secret@127.0.0.1:{port}/postgres', server
  finally:
    server.send_signal(signal.SIGINT)  # with clients that are still there
    server.wait(timeout=60)
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize('trials, kills', [(200, 40)])
def test_the_same_on_postgresql(tmp_path, trials, kills):
  with postgres(tmp_path) as (address, server):
    study = tmp_path / 'study'
    sent = killed(study, trials, 'tpe', workers=4, kills=kills, seed=3, storage=address)
    found = check(study, trials, tmp_path / 'aside', compared=40, storage=address)
    assert sent == kills
    attempts_in_optuna(address.replace('postgresql://', 'postgresql+psycopg://'), found)
    assert 'secret' not in (study / 'study.json').read_text()
    server.send_signal(signal.SIGINT)  # with clients that are still there
    server.wait(timeout=60)
    with pytest.raises(ValueError, match='cannot be reached') as error:
      trials_of(study, address)
    assert 'secret' not in str(error.value)
