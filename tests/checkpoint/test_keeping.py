"""Which checkpoints are kept, which is found, and what a save costs the run."""

import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.checkpoint import CheckpointError, Checkpoints
from jaxlite.checkpoint.manifest import Damaged
from jaxlite.checkpoint.order import first_sound

WANT = {'w': jax.ShapeDtypeStruct((), jnp.float32)}


def save(checkpoints: Checkpoints, step: int, value: float | None = None, metric: float | None = None) -> None:
  checkpoints.save(step, {'w': jnp.float32(step if value is None else value)}, {'step': step}, metric=metric, wait=True)


def steps(folder: Path) -> list[int]:
  return sorted(int(name.split('.')[0]) for name in os.listdir(folder) if name[0].isdigit())


@pytest.mark.parametrize(
  'keep, metrics, kept, best',
  [
    (2, [None, None, None, None], [3, 4], None),
    (1, [0.5, 0.9, 0.7, 0.8], [2, 4], 2),
    (1, [0.9, 0.9, 0.9], [1, 3], 1),  # a tie does not move the best
    (2, [float('nan'), 0.1, None, None, None], [2, 4, 5], 2),
    (2, [-3.0, -1.0, -2.0], [2, 3], 2),
    (9, [1.0, 2.0], [1, 2], 2),
  ],
)
def test_the_latest_and_the_best_stay(keep, metrics, kept, best, tmp_path: Path):
  with Checkpoints(tmp_path, keep=keep) as checkpoints:
    for step, metric in enumerate(metrics, 1):
      save(checkpoints, step, metric=metric)
  assert steps(tmp_path) == kept
  with Checkpoints(tmp_path, keep=keep) as again:  # and a new process knows them
    assert again.latest_step() == len(metrics)
    assert again.best_step() == best
    if best:
      assert again.restore(WANT, which='best').step == best
    save(again, 99)
    assert again.best_step() == best


def test_best_without_a_metric_is_the_latest_and_is_said(tmp_path: Path):
  said: list[str] = []
  with Checkpoints(tmp_path, log=said.append) as checkpoints:
    save(checkpoints, 1)
    save(checkpoints, 2)
    assert checkpoints.restore(WANT, which='best').step == 2
  assert 'no checkpoint' in said[0]
  assert 'has a metric' in said[0]


def test_a_step_saved_again_is_the_newer_one(tmp_path: Path):
  with Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 5, 1.0)
    save(checkpoints, 5, 2.0)
    save(checkpoints, 5, 3.0)
    assert checkpoints.restore(WANT).state['w'] == 3
  assert steps(tmp_path) == [5]
  with Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 5, 4.0)
    assert checkpoints.restore(WANT, which=5).state['w'] == 4
  assert steps(tmp_path) == [5]


def test_a_save_ends_the_future_that_stood_there(tmp_path: Path):
  with Checkpoints(tmp_path, keep=3) as checkpoints:
    for step in (1, 2, 3):
      save(checkpoints, step, metric=step)
    assert checkpoints.restore(WANT, which=1).step == 1
    save(checkpoints, 2, 20.0, metric=0.5)
    assert checkpoints.latest_step() == 2
    assert checkpoints.restore(WANT).state['w'] == 20
    assert checkpoints.best_step() == 1
  assert steps(tmp_path) == [1, 2]


def test_which_names_latest_best_or_a_step_that_is_there(tmp_path: Path):
  with Checkpoints(tmp_path, keep=5) as checkpoints:
    assert checkpoints.restore(WANT, which=3) is None
    save(checkpoints, 10)
    save(checkpoints, 123_456_789)
    assert checkpoints.restore(WANT, which=10).step == 10
    assert checkpoints.restore(WANT).step == 123_456_789
    with pytest.raises(CheckpointError, match=r'no checkpoint of step 3 in .*; there are: \[10, 123456789\]'):
      checkpoints.restore(WANT, which=3)
    for wrong in ('newest', True, 1.5, None):
      with pytest.raises(ValueError, match="'latest', 'best' or a step"):
        checkpoints.restore(WANT, which=wrong)
    with pytest.raises(ValueError, match='at least 0'):
      save(checkpoints, -1)
  with pytest.raises(ValueError, match='at least 1; got 0'):
    Checkpoints(tmp_path, keep=0)


def test_a_reader_changes_nothing_on_disk(tmp_path: Path):
  with Checkpoints(tmp_path) as checkpoints:
    save(checkpoints, 1)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
  with Checkpoints(tmp_path, log=print) as checkpoints:
    checkpoints.restore(WANT)
    checkpoints.best_step()
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before
  with Checkpoints(tmp_path / 'none') as checkpoints:
    assert checkpoints.restore(WANT) is checkpoints.best_step() is checkpoints.latest_step() is None
  assert not (tmp_path / 'none').exists()


def run_state(parameters: int, leaves: int) -> dict:
  """Parameters and AdamW's two moments, in the given number of leaves each."""
  each = parameters // leaves
  keys = iter(jax.random.split(jax.random.key(0), 3 * leaves))
  tree = {name: [jax.random.normal(next(keys), (each,)) for _ in range(leaves)] for name in ('params', 'mu', 'nu')}
  return jax.block_until_ready({**tree, 'step': jnp.int32(0), 'key': jax.random.key(0)})


def cost(folder: Path, parameters: int, leaves: int, repeats: int) -> tuple[float, float, float]:
  """Median seconds that `save` blocks, that it takes until on disk, and of CPU in all."""
  state = run_state(parameters, leaves)
  times = []
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(0, state, {}, wait=True)  # imports Orbax
    for step in range(1, repeats + 1):
      began, used = time.perf_counter(), time.process_time()
      checkpoints.save(step, state, {})
      blocked = time.perf_counter() - began
      checkpoints.wait()
      times.append((blocked, time.perf_counter() - began, time.process_time() - used))
  return tuple(float(value) for value in np.median(times, axis=0))


def test_cost_of_a_save_is_a_copy_and_little_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
  blocked, _, cpu = cost(tmp_path, 300_000, 50, repeats=7)
  assert blocked < 0.1
  assert cpu < 0.3  # one a second would be a third of a core; it is some 0.1, most of it in Orbax, leaf by leaf


@pytest.mark.slow
def test_cost_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
  for parameters, leaves in ((300_000, 10), (300_000, 150), (300_000, 700), (11_000_000, 150)):
    blocked, whole, cpu = cost(tmp_path / f'{parameters}-{leaves}', parameters, leaves, repeats=9)
    with capsys.disabled():
      print(
        f'\n{parameters:>10} parameters + AdamW, {3 * leaves:>4} leaves: '
        f'blocks {1e3 * blocked:.1f} ms, on disk after {1e3 * whole:.0f} ms, CPU {1e3 * cpu:.0f} ms'
      )
    assert blocked < 0.5


def test_who_reads_beside_a_run_is_not_told_that_what_it_removes_is_damaged(tmp_path: Path):
  """The run has saved anew and removed the one that was being read: nothing is damaged, and the newest is there."""
  said: list[str] = []
  with Checkpoints(tmp_path, keep=1) as run, Checkpoints(tmp_path, log=said.append) as reader:
    save(run, 1)

    def read(entry):
      if entry.step < 3:
        save(run, entry.step + 1)
        run.wait()
        raise Damaged('its files are gone')
      return entry.step

    assert first_sound(tmp_path, 'latest', reader._rank, read, lambda entry: None, said.append) == 3
    assert not said

    def never(entry):
      raise Damaged('of itself')

    with pytest.raises(CheckpointError, match=r'of itself.*put back a copy'):
      first_sound(tmp_path, 'latest', reader._rank, never, lambda entry: None, said.append)
    assert len(said) == 1
