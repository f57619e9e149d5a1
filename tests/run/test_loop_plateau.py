"""A plateau follows the loop's validation metric, and goes on from where it was."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import checkpoint, trees
from jaxlite.optim._plateau import observe_score, plateau
from jaxlite.run import loop
from loops import evidence, points, run

pytestmark = pytest.mark.unoptimized


def recipe(config, total):
  """Learns for six steps, then unlearns, by less and less."""
  return jl.chain(optax.sgd(lambda count: jnp.where(count < 6, 0.5, -2.0)), plateau(0.5, patience=0))


def kept(folder):
  found = checkpoint.load_arrays(folder / 'checkpoints', ('opt_state',), which='latest').state
  return {path.split('/')[-1]: np.asarray(leaf) for path, leaf in trees.by_path(found).items()}


def heard(folder, metric):
  """What a plateau would be that hears each validation point of a run once."""
  state = plateau(0.5, patience=0).init({})
  for point in points(folder):
    if point['kind'] == 'validation':
      state = observe_score(state, -point[metric] if metric == 'loss' else point[metric])
  return state


@pytest.mark.parametrize('metric', ['accuracy', 'loss'])
def test_it_hears_every_validation_once(metric, tmp_path):
  run(tmp_path / 'run', recipe, eval__metric=metric)
  found, wanted = kept(tmp_path / 'run'), heard(tmp_path / 'run', metric)
  assert found['observed'] == wanted.observed == 6
  assert found['scale'] == wanted.scale < 1
  assert found['best'] == wanted.best


def test_after_a_crash_it_goes_on_from_where_it_was(tmp_path, monkeypatch):
  run(tmp_path / 'straight', recipe)
  one, several = loop.datasets.batch_at, loop.datasets.batches_at

  def batch_at(split, size, seed, at):
    if at == 9:
      raise MemoryError('the machine is gone')
    return one(split, size, seed, at)

  def batches_at(split, size, seed, at, count):  # of steps in one dispatch, where that was the faster way
    if at <= 9 < at + count:
      raise MemoryError('the machine is gone')
    return several(split, size, seed, at, count)

  with monkeypatch.context() as patch:
    patch.setattr(loop.datasets, 'batch_at', batch_at)
    patch.setattr(loop.datasets, 'batches_at', batches_at)
    with pytest.raises(MemoryError):
      run(tmp_path / 'crashed', recipe)
  run(tmp_path / 'crashed', recipe)
  assert kept(tmp_path / 'crashed')['scale'] < 1
  assert evidence(tmp_path / 'crashed') == evidence(tmp_path / 'straight')
