"""Laws of what is around a run: signals, readers that go, links, disks: the run is saved, or told in one line."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys

import pytest

import jaxlite as jl
from jaxlite import errors
from jaxlite.host import files, preempt
from jaxlite.run import experiment, loop, records
from jaxlite.run.workdir import WorkdirError, check_workdir, lock
from loops import X, Y, config_of, linear, run


@pytest.mark.parametrize('name', ['SIGHUP', 'SIGUSR1', 'SIGUSR2', 'SIGXCPU'])
def test_a_terminal_that_hangs_up_and_a_clusters_notice_save_the_run(name):
  number = getattr(signal, name)
  before = signal.signal(number, signal.SIG_DFL)  # these tests may be run by nohup
  try:
    with preempt.guard() as guard:
      signal.raise_signal(number)
      assert guard.requested
    signal.signal(number, signal.SIG_IGN)  # as nohup does
    with preempt.guard() as guard:
      signal.raise_signal(number)
      assert not guard.requested
  finally:
    signal.signal(number, before)


def test_a_reader_that_goes_does_not_end_the_run(tmp_path):
  script = (
    "import sys; sys.path.insert(0, 'tests')\n"
    'from loops import config_of, linear, X, Y\nimport jaxlite as jl\n'
    f'jl.train(config_of(steps=4), {str(tmp_path / "piped")!r}, model=linear(), data=(X, Y))\n'
    "print('the end')\n"
  )
  read, write = os.pipe()
  with subprocess.Popen(
    [sys.executable, '-c', script], stdout=write, stderr=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': os.getcwd()}
  ) as process:
    os.close(write)
    os.close(read)
    _, said = process.communicate(timeout=100)
  assert process.returncode == 0, said
  assert jl.load(tmp_path / 'piped').predict(X).shape == (90, 3)


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='this system has no disk that is always full')
def test_a_log_on_a_full_disk_does_not_end_the_run():
  script = (
    'import sys\nfrom jaxlite.host.streams import steady\n'
    "for _ in range(3):\n  steady(print)('a line')\nprint('the end', file=sys.stderr)\n"
  )
  with open('/dev/full', 'w') as full:
    done = subprocess.run([sys.executable, '-c', script], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
  assert (done.returncode, done.stderr) == (0, 'the end\n')


def test_no_link_in_a_workdir_is_followed(tmp_path):
  treasure = tmp_path / 'treasure'
  treasure.write_text('precious')
  folder = tmp_path / 'run'
  folder.mkdir()
  (folder / '.lock').symlink_to(treasure)
  with pytest.raises(WorkdirError, match=r'\.lock cannot be opened'), lock(folder):
    pass
  (folder / '.lock').unlink()
  (folder / 'metrics.jsonl').symlink_to(treasure)
  with pytest.raises(OSError, match=r'metrics\.jsonl'):
    records.Records(folder, length=0, tensorboard=False)
  (folder / 'metrics.jsonl').unlink()
  events = tmp_path / 'events'
  events.mkdir()
  (events / 'events.out.tfevents.1').write_text('precious')
  (folder / 'tensorboard').symlink_to(events)
  with pytest.raises(ValueError, match='is a link'):
    records.Records(folder, length=0)
  assert treasure.read_text() == (events / 'events.out.tfevents.1').read_text() == 'precious'


def test_a_workdir_that_is_a_link_stays_on_its_disk(tmp_path):
  disk = tmp_path / 'disk' / 'runs'
  disk.mkdir(parents=True)
  (tmp_path / 'run').symlink_to(disk)
  run(tmp_path / 'run', steps=2)
  run(tmp_path / 'run', steps=2, fresh=True)
  assert (tmp_path / 'run').is_symlink()
  assert (disk / 'result.json').exists()
  assert (tmp_path / 'disk' / 'runs.old1' / 'result.json').exists()


def test_a_full_disk_is_told_with_the_file_and_the_fix(tmp_path, monkeypatch):
  def full(self, data):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(files.Path, 'write_bytes', full)
    with pytest.raises(OSError, match=r'config\.json') as caught:
      files.write_text(tmp_path / 'config.json', 'text')
  assert 'config.json' in errors.one_line(caught.value)
  assert 'make room' in errors.one_line(caught.value)


def test_a_user_without_a_home_has_a_cache_and_gets_one_line_for_a_workdir_there(monkeypatch, tmp_path):
  def nobody(path):
    raise RuntimeError('Could not determine home directory.')

  for name in ('XDG_CACHE_HOME', 'JAXLITE_DATA', 'TFDS_DATA_DIR'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(files.Path, 'expanduser', nobody)
  assert '~' not in str(files.user_cache())
  with pytest.raises(WorkdirError, match='another workdir'):
    check_workdir('~/run')
  monkeypatch.chdir(tmp_path)
  asked = {
    'load': lambda: jl.load('~/run'),
    'evaluate': lambda: loop.evaluate_run(config_of(), '~/run'),
    'experiment': lambda: experiment.run(config_of(), '~/run'),
    'data': lambda: jl.data.load('digits', directory='~/data'),
    'prepared data': lambda: jl.data.load('mnist'),
    'fashion': lambda: jl.data.load('fashion_mnist', directory='~/data'),
    'logits': lambda: jl.data.cache_logits(lambda x: x[:, :3], jl.data.from_arrays((X, Y)), '~/logits'),
  }
  for name, ask in asked.items():
    with pytest.raises(ValueError, match=r"home in '~/\w+' is not known here: set HOME") as caught:
      ask()
    assert errors.one_line(caught.value), name
  assert not list(tmp_path.iterdir())  # above all no folder named ~


def test_a_finished_run_in_a_read_only_folder_is_reported(tmp_path, monkeypatch, capsys):
  first = run(tmp_path, steps=2)
  config = config_of(steps=2, model=lambda config: linear(), data__load=lambda config: jl.data.from_arrays((X, Y)))
  several = dataclasses.replace(config, runs={'a': lambda config: config})
  experiment.run(several, tmp_path / 'several')

  def refuses(workdir):
    raise WorkdirError(f'the workdir {workdir} cannot be written (Read-only file system): give another workdir')

  monkeypatch.setattr(loop, 'check_workdir', refuses)
  monkeypatch.setattr(loop, 'lock', None)  # there is nothing to lock
  said = []
  assert run(tmp_path, steps=2, say=said.append) == first
  assert any(line.startswith('this run is finished') for line in said)
  monkeypatch.setenv('HOME', str(tmp_path.parent))
  assert run(f'~/{tmp_path.name}', steps=2) == first
  with pytest.raises(WorkdirError, match='Read-only'):
    run(tmp_path, steps=4)
  monkeypatch.setattr(experiment, 'check_workdir', refuses)  # the launcher's way to it
  monkeypatch.setattr(experiment, 'lock', None)
  capsys.readouterr()
  assert experiment.run(several, tmp_path / 'several') == 0
  assert 'this run is finished' in capsys.readouterr().out
  with pytest.raises(WorkdirError, match='Read-only'):
    experiment.run(config, tmp_path / 'nothing')
