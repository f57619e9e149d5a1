"""What `Checkpoints` is given: folders of any name hold what can be read back, or are refused; numbers are numbers."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.checkpoint import Checkpoints, load_arrays
from jaxlite.checkpoint.hashing import hashes


@pytest.mark.parametrize('name', ['run[1]', 'a*b', 'lr=[0.1]?', 'gs:'])
def test_a_folder_whose_name_reads_like_a_pattern_holds_what_was_saved(name, tmp_path: Path):
  folder = tmp_path / name / 'checkpoints'
  state = {'w': jnp.arange(3.0), 'const': {'t': jnp.ones(2)}}
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(1, state, {})
  with Checkpoints(folder) as checkpoints:
    assert hashes(checkpoints.restore(state).state) == hashes(state)
  assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize('name', ['gs://bucket/run', 'a\\b'])
def test_a_folder_that_cannot_hold_checkpoints_is_refused(name, tmp_path: Path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for use in (Checkpoints, load_arrays):
    with pytest.raises(ValueError, match='kept in a local folder'):
      use(name)
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
  'act, words',
  [
    (lambda c: c.save(1.7, {'w': jnp.ones(1)}, {}), 'the step of a checkpoint is a whole number'),
    (lambda c: c.save(True, {'w': jnp.ones(1)}, {}), 'the step of a checkpoint'),
    (lambda c: c.save(1, {'w': jnp.ones(1)}, {}, metric='0.3'), 'the metric of a checkpoint is a number'),
    (lambda c: c.save(1, {'w': jnp.ones(1)}, {}, metric=jnp.ones(2)), 'the metric of a checkpoint is a number'),
    (lambda c: Checkpoints(c.directory, keep=1.5), 'keep, how many checkpoints are kept, is a whole number'),
    (lambda c: Checkpoints(c.directory, keep='2'), 'keep, how many'),
  ],
)
def test_a_step_a_metric_and_a_count_are_numbers(act, words, tmp_path: Path):
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises((ValueError, TypeError)) as caught:
      act(checkpoints)
    assert words in str(caught.value)
    assert '\n' not in str(caught.value)
    assert checkpoints.latest_step() is None
    checkpoints.save(np.int64(3), {'w': jnp.ones(1)}, {})
    assert checkpoints.restore({'w': jnp.ones(1)}, which=np.int32(3)).step == 3
