"""Whatever happens to the files, a load is equal or says that it went back; the last good one is never lost."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.checkpoint import CheckpointError, Checkpoints, fingerprint, load_arrays

ROOT = str(Path(__file__).resolve().parents[2])
TEACHER = {'w': np.arange(1000, dtype=np.float32)}


def state_at(step: int) -> dict:
  return {
    'step': np.full((), step, np.int32),
    'key': jax.random.key(0),
    'params': {
      'w': np.random.default_rng(step).normal(size=(40, 50)).astype(np.float32),
      'b': np.full(7, step, jnp.bfloat16),
    },
    'const': TEACHER,
  }


def save_two(folder: Path) -> None:
  with Checkpoints(folder) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, state_at(step), {'step': step}, metric=step)


def load(folder: Path, which='latest') -> tuple[int, list[str]]:
  """The step that was restored, verified to be that step's state, and what was said."""
  said: list[str] = []
  with Checkpoints(folder, log=said.append) as checkpoints:
    back = checkpoints.restore(state_at(0), which=which)
  assert back.loop == {'step': back.step}
  assert fingerprint(back.state) == fingerprint(state_at(back.step))
  return back.step, said


def check_fallback(folder: Path, where: str) -> None:
  step, said = load(folder)
  assert step == 2 or (step == 1 and any('damaged' in line for line in said)), f'{where}: {step} {said}'
  assert all(len(line.splitlines()) == 1 for line in said)
  if said:
    assert '00000002' in said[0] or 'const-' in said[0]


def flip_bits(folder: Path, count: int, seed: int) -> None:
  save_two(folder)
  draw = random.Random(seed)
  files = sorted(path for path in folder.rglob('*') if path.is_file() and '00000001' not in str(path))
  files = [path for path in files if path.stat().st_size]
  for _ in range(count):
    path = draw.choice(files)
    clean = path.read_bytes()
    bit = draw.randrange(8 * len(clean))
    dirty = bytearray(clean)
    dirty[bit // 8] ^= 1 << bit % 8
    path.write_bytes(dirty)
    check_fallback(folder, f'{path} bit {bit}')
    parts = load_arrays(folder, ['params', 'const'], which='latest', log=lambda line: None)
    assert fingerprint(parts.state['params']) == fingerprint(state_at(parts.step)['params'])
    assert fingerprint(parts.state['const']) == fingerprint(TEACHER)
    path.write_bytes(clean)
  assert load(folder) == (2, [])


def test_a_flipped_bit_anywhere_is_harmless_or_falls_back(tmp_path: Path):
  flip_bits(tmp_path, 25, seed=0)


@pytest.mark.slow
def test_600_flipped_bits(tmp_path: Path):
  flip_bits(tmp_path, 600, seed=1)


def test_a_flipped_bit_in_every_array_is_found(tmp_path: Path):
  """The law cannot hold by luck: data files are hit, and noticed."""
  save_two(tmp_path)
  weights = state_at(2)['params']['w']
  needle = weights.tobytes()
  [path] = [path for path in (tmp_path / '00000002').rglob('d/*') if needle[:64] in path.read_bytes()]
  data = bytearray(path.read_bytes())
  data[data.index(needle) + 4000] ^= 1
  path.write_bytes(data)
  step, said = load(tmp_path)
  assert step == 1
  assert "1 of 4 leaves are damaged, first 'params/w' has another hash than was written" in said[0]


def test_exchanged_leaves_are_found(tmp_path: Path):
  state = {'a': np.arange(300), 'b': np.ones(300, np.int64), 'c': np.zeros(3, np.int8)}
  with Checkpoints(tmp_path / 'one') as one, Checkpoints(tmp_path / 'two') as two:
    one.save(1, state, {})
    two.save(1, {**state, 'a': state['b'], 'b': state['a']}, {})
  shutil.rmtree(tmp_path / 'one' / '00000001' / 'state')
  shutil.copytree(tmp_path / 'two' / '00000001' / 'state', tmp_path / 'one' / '00000001' / 'state')
  words = "2 of 3 leaves are damaged, first 'a' has another hash than was written"
  with Checkpoints(tmp_path / 'one') as one, pytest.raises(CheckpointError, match=words):
    one.restore(state)
  assert load_arrays(tmp_path / 'one', ['c'], which='latest').state['c'].sum() == 0  # what is sound is still there


@pytest.mark.parametrize('harm', ['truncate', 'empty', 'garbage', 'unlink', 'longer'])
def test_any_harm_to_any_file_falls_back(harm: str, tmp_path: Path):
  save_two(tmp_path)
  relative = [path.relative_to(tmp_path) for path in tmp_path.rglob('*') if path.is_file()]
  for name in relative:
    if '00000002' not in str(name):
      continue
    path = tmp_path / name
    clean = path.read_bytes()
    if harm == 'unlink':
      path.unlink()
    else:
      path.write_bytes(
        {
          'truncate': clean[: len(clean) // 2],
          'empty': b'',
          'garbage': random.Random(0).randbytes(len(clean)),
          'longer': clean + b'x',
        }[harm]
      )
    check_fallback(tmp_path, f'{harm} {name}')
    path.write_bytes(clean)


def test_missing_directories_and_files_in_their_place_fall_back(tmp_path: Path):
  save_two(tmp_path)
  copy = tmp_path.with_name('copy')
  shutil.copytree(tmp_path, copy)
  for directory in [path for path in (tmp_path / '00000002').rglob('*') if path.is_dir()]:
    if directory.exists():
      shutil.rmtree(directory)
      check_fallback(tmp_path, str(directory))
      shutil.rmtree(tmp_path / '00000002')
      shutil.copytree(copy / '00000002', tmp_path / '00000002')
  shutil.rmtree(tmp_path / '00000002')
  (tmp_path / '00000002').write_text('no folder')
  check_fallback(tmp_path, 'file')
  (tmp_path / '00000002').unlink()
  (tmp_path / '00000002').mkdir()
  check_fallback(tmp_path, 'empty folder')
  with Checkpoints(tmp_path, log=print) as checkpoints:  # and the damaged one can be saved again
    assert checkpoints.restore(state_at(0)).step == 1
    checkpoints.save(2, state_at(2), {'step': 2})
  assert load(tmp_path) == (2, [])


def test_constants_are_stored_once_and_survive_the_loss_of_a_copy(tmp_path: Path):
  save_two(tmp_path)
  one, two = sorted(tmp_path.glob('const-*'))
  before = {path: path.stat().st_mtime_ns for path in tmp_path.glob('const-*/*')}
  with Checkpoints(tmp_path) as checkpoints:
    state = checkpoints.restore(state_at(0)).state
    for step in range(3, 6):
      checkpoints.save(step, {**state_at(step), 'const': state['const']}, {'step': step})
  assert {path: path.stat().st_mtime_ns for path in tmp_path.glob('const-*/*')} == before
  needle = TEACHER['w'].tobytes()[100:200]
  for path in one.rglob('d/*'):
    path.write_bytes(path.read_bytes().replace(needle, needle[::-1]))
  step, said = load(tmp_path)
  assert step == 5
  assert 'taking the other copy' in said[0]
  save_again: list[str] = []
  with Checkpoints(tmp_path, log=save_again.append) as checkpoints:
    checkpoints.save(6, state_at(6), {'step': 6})
  assert 'writing them again' in save_again[0]
  assert load(tmp_path) == (6, [])
  for path in (one, two):
    shutil.rmtree(path)
  with pytest.raises(CheckpointError, match='no copy of its constants is sound'):
    load(tmp_path)


def test_constants_that_no_checkpoint_needs_go(tmp_path: Path):
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    for step in range(3):
      checkpoints.save(step, {'w': jnp.ones(1), 'const': {'teacher': jnp.full(3, step)}}, {}, wait=True)
      assert len(list(tmp_path.glob('const-*'))) == 2
    checkpoints.save(3, {'w': jnp.ones(1), 'const': {}}, {}, wait=True)
    assert not list(tmp_path.glob('const-*'))


def test_when_nothing_is_sound_the_error_lists_what_was_tried(tmp_path: Path):
  save_two(tmp_path)
  for file in tmp_path.rglob('manifest/*.json'):
    file.write_text('{}')
  with pytest.raises(CheckpointError) as caught:
    load(tmp_path)
  assert '00000002 (' in str(caught.value)
  assert '00000001 (' in str(caught.value)
  assert 'no format number' in str(caught.value)
  assert len(str(caught.value).splitlines()) == 1


def test_a_newer_format_is_refused_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
  with monkeypatch.context() as patch:
    patch.setattr('jaxlite.checkpoint.manifest.FORMAT', 3)
    save_two(tmp_path)
  refusal = 'has format 3, this jaxlite reads 2: install a newer jaxlite'
  with pytest.raises(CheckpointError, match=refusal):
    load(tmp_path)


def test_an_older_format_is_refused_and_told_how_to_go_on(tmp_path: Path):
  """The envelope of format 1, as jaxlite 0.1 wrote it: the arrays beside it do not matter."""
  content = {'step': 7, 'metric': None, 'loop': {}, 'const': None, 'structure': {'dict': [['w', 'w']]}}
  content['leaves'] = [['w', 'float32', [2], 'w', 0, 8, '', 64 * '0']]
  digest = hashlib.sha256(json.dumps([1, content], sort_keys=True).encode()).hexdigest()
  (tmp_path / '00000007' / 'manifest').mkdir(parents=True)
  file = tmp_path / '00000007' / 'manifest' / 'data.json'
  file.write_text(json.dumps({'format': 1, 'sha256': digest, 'content': content}))
  state = {'w': jnp.zeros(2)}
  refusal = 'has format 1, this jaxlite reads 2: finish that run with jaxlite 0.1, which reads it, or start again'
  with Checkpoints(tmp_path) as checkpoints:
    for refused in (
      lambda: checkpoints.restore(state),
      lambda: checkpoints.best_step(),
      lambda: load_arrays(tmp_path, ['w']),
      lambda: checkpoints.save(8, state, {}, wait=True),
    ):
      with pytest.raises(CheckpointError, match=refusal) as caught:
        refused()
      assert len(str(caught.value).splitlines()) == 1
  assert os.listdir(tmp_path) == ['00000007']


_SAVER = """
import sys
sys.path.insert(0, sys.argv[2])
from test_damage import state_at
from jaxlite.checkpoint import Checkpoints
with Checkpoints(sys.argv[1], log=lambda line: print('said', line, flush=True)) as checkpoints:
  back = checkpoints.restore(state_at(0))
  step = back.step if back else 0
  print('resumed', step, flush=True)
  while True:
    step += 1
    checkpoints.save(step, state_at(step), {'step': step})
    print('saving', step, flush=True)
"""


def kill_at_random(folder: Path, count: int, seed: int) -> None:
  draw = random.Random(seed)
  last = 0
  for _ in range(count):
    with subprocess.Popen(
      [sys.executable, '-c', _SAVER, str(folder), str(Path(__file__).parent)],
      env={**os.environ, 'PYTHONPATH': ROOT, 'JAX_PLATFORMS': 'cpu'},
      stdout=subprocess.PIPE,
      text=True,
    ) as process:
      assert process.stdout.readline() == f'resumed {last}\n'  # what the test itself found after the last kill
      for _ in range(draw.randrange(2, 5)):
        saving = int(process.stdout.readline().split()[1])
      time.sleep(draw.uniform(0, 0.06))  # about as long as a save
      process.send_signal(signal.SIGKILL)
    resumed, said = load(folder)
    assert not said  # a kill leaves nothing half-written under a checkpoint's name
    assert resumed >= saving - 1 > last  # all but the one under way had been waited for
    last = resumed


def test_kill_9_while_saving_leaves_the_one_before(tmp_path: Path):
  kill_at_random(tmp_path, 4, seed=0)


@pytest.mark.slow
def test_200_kills_while_saving(tmp_path: Path):
  kill_at_random(tmp_path, 200, seed=1)


_FULL = """
import resource, sys, numpy as np
from jaxlite.checkpoint import Checkpoints, CheckpointError
limit = int(sys.argv[2])
state = lambda n: {'w': list(np.random.default_rng(n).integers(0, 255, (20, n // 20), dtype=np.uint8))}
with Checkpoints(sys.argv[1]) as checkpoints:
  checkpoints.save(1, state(100_000), {}, wait=True)
  if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
  checkpoints.save(2, state(3_000_000), {})
  try:
    checkpoints.save(3, state(20), {}, wait=True)
  except CheckpointError as error:
    print(error)
  checkpoints.save(4, state(1_000), {})
"""


def run_full(folder: Path, limit: int) -> list[str]:
  done = subprocess.run(
    [sys.executable, '-W', 'error', '-c', _FULL, str(folder), str(limit)],
    env={**os.environ, 'PYTHONPATH': ROOT, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert not done.stderr.strip()
  return done.stdout.splitlines()


def test_a_file_size_limit_ends_in_one_line_and_the_last_good_one_loads(tmp_path: Path):
  [line] = run_full(tmp_path, 1_000_000)
  assert 'checkpoint of step 2 could not be written' in line
  assert 'File too large' in line
  assert 'the checkpoint of step 1 is still good' in line
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step() == 4
    checkpoints.restore({'w': [np.zeros(50, np.uint8)] * 20})


def test_a_full_disk_ends_in_one_line_and_the_last_good_one_loads(tmp_path: Path):
  disk = tmp_path / 'disk'
  disk.mkdir()
  mounted = shutil.which('mount') and subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(disk)], capture_output=True, check=False
  )
  if not mounted or mounted.returncode:
    pytest.skip('needs the right to mount a tmpfs')
  try:
    [line] = run_full(disk / 'checkpoints', 0)
    assert 'No space left on device' in line
    assert 'the checkpoint of step 1 is still good' in line
    assert sorted(os.listdir(disk / 'checkpoints')) == ['00000001', '00000004']  # the broken one made room again
  finally:
    subprocess.run(['umount', str(disk)], check=True)


def test_an_error_in_the_loop_is_not_hidden_by_a_failed_save(tmp_path: Path):
  (tmp_path / 'file').write_text('')
  said = []

  def run() -> None:
    with Checkpoints(tmp_path / 'file' / 'no', log=said.append) as checkpoints:
      checkpoints.save(1, {'w': jnp.ones(1)}, {})
      raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    run()
  assert 'could not be written' in said[0]
  with pytest.raises(CheckpointError, match='there is none before it'), Checkpoints(tmp_path / 'file' / 'no') as again:
    again.save(1, {'w': jnp.ones(1)}, {})


def test_leftovers_of_a_killed_save_go_and_foreign_files_stay(tmp_path: Path):
  ours = ['00000003.orbax-checkpoint-tmp', '00000004.2.orbax-checkpoint-tmp-17', 'const-0123456789abcdef.deleted']
  foreign = ['notes.orbax-checkpoint-tmp', 'const-mine', '3', 'keep.deleted']
  for name in ours + foreign:
    (tmp_path / name).mkdir()
    (tmp_path / name / 'file').write_text('x')
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step() is None
    assert checkpoints.restore({'w': jnp.ones(1)}) is None
    assert set(os.listdir(tmp_path)) == set(ours + foreign)  # a reader removes nothing
    checkpoints.save(3, {'w': jnp.ones(1)}, {}, wait=True)
  assert set(os.listdir(tmp_path)) == {*foreign, '00000003'}


def test_a_program_that_ends_without_close_is_told_what_it_lost(tmp_path: Path):
  script = """
import sys, numpy as np
from jaxlite.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {'w': np.ones(3)}, {}, wait=True)
checkpoints.save(2, {'w': np.ones(300_000)}, {})
"""
  done = subprocess.run(
    [sys.executable, '-c', script, str(tmp_path)],
    env={**os.environ, 'PYTHONPATH': ROOT, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=True,
  )
  with Checkpoints(tmp_path) as checkpoints:
    latest = checkpoints.restore({'w': np.zeros(300_000)}) if checkpoints.latest_step() == 2 else None
  assert latest is not None or 'close the Checkpoints before the program ends' in done.stdout
