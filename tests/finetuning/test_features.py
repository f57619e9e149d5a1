"""Cached features: the network's own, in bounded memory, kept by content, resumable, verified when read."""

import functools
import json
import os
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
from jaxlite.data import Split
from jaxlite.finetuning import backbone, cached_features, feature_data, features, fit_probe

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(23, 3)).astype(np.float32), (np.arange(23) % 2).astype(np.int32)
A = RNG.normal(size=(3, 4)).astype(np.float32)


@functools.cache
def found(scale=1.0, fn=jnp.tanh):
  params = {'a': jnp.asarray(A) * scale, 'b': jnp.ones((4, 2))}
  return backbone((lambda p, x: fn(x @ p['a']) @ p['b'], params), X)


def split():
  return Split(X, Y)


def kept(folder):
  return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_they_are_the_networks_own_and_read_the_second_time(tmp_path, monkeypatch):
  first = cached_features(found(), split(), tmp_path, batch_size=5)
  np.testing.assert_allclose(first[:, 0], np.tanh(X @ A), atol=1e-6)
  monkeypatch.setattr(features._Maker, 'compute', lambda *_: pytest.fail('computed again'))
  second = cached_features(found(), split(), tmp_path, batch_size=5)
  np.testing.assert_array_equal(first, second)
  assert isinstance(second, np.memmap)
  assert not second.flags.writeable


def test_another_weight_program_example_or_view_is_another_name(tmp_path):
  def shown(key, batch):
    del key
    return {**batch, 'inputs': -batch['inputs']}

  for one, data, views in (
    (found(), split(), [None]),
    (found(2.0), split(), [None]),
    (found(), Split(X + 1, Y), [None]),
    (found(), split(), [None, shown]),
  ):
    cached_features(one, data, tmp_path, views=views)
  assert len(kept(tmp_path)) == 4


def test_views_are_features_of_what_is_shown(tmp_path):
  def shown(key, batch):
    del key
    return {**batch, 'inputs': -batch['inputs']}

  both = cached_features(found(), split(), tmp_path, views=[None, shown], batch_size=4)
  np.testing.assert_allclose(both[:, 1], -both[:, 0], atol=1e-6)
  data = jl.data.from_arrays((X, Y))
  made = feature_data(found(), data, tmp_path, views=[None, shown])
  batch = jl.data.batch_at(made.train, 8, seed=0, step=0)
  assert batch['inputs'].shape == (8, 4)
  assert made.test.inputs.shape == (len(data.test.labels), 4)
  assert made.fingerprint != data.fingerprint


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
  'harm', ['flipped', *(pytest.param(one, marks=SLOW) for one in ('cut', 'gone', 'other proof'))]
)
def test_what_is_damaged_is_made_again(tmp_path, harm):
  first = np.array(cached_features(found(), split(), tmp_path))
  (folder,) = [tmp_path / name for name in kept(tmp_path)]
  path = folder / 'features.npy'
  data = path.read_bytes()
  if harm == 'flipped':
    path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
  elif harm == 'cut':
    path.write_bytes(data[:-8])
  elif harm == 'gone':
    path.unlink()
  else:
    (folder / 'proof.json').write_text('[]')
  np.testing.assert_array_equal(cached_features(found(), split(), tmp_path), first)


def test_a_piece_that_was_noted_and_is_not_so_is_computed_again(tmp_path, monkeypatch):
  whole = np.array(cached_features(found(), split(), tmp_path / 'whole', batch_size=5))
  compute, calls = features._Maker.compute, []

  def killed(self, piece):
    if len(calls) == 3:
      raise KeyboardInterrupt
    calls.append(piece)
    return compute(self, piece)

  monkeypatch.setattr(features._Maker, 'compute', killed)
  with pytest.raises(KeyboardInterrupt):
    cached_features(found(), split(), tmp_path, batch_size=5)
  (part,) = tmp_path.glob('.*.part')
  notes = part / 'pieces.jsonl'
  lines = notes.read_text().splitlines()
  number, _ = json.loads(lines[1])
  notes.write_text('\n'.join([lines[0], json.dumps([number, 'other']), lines[2]]) + '\n[2, "ab')  # torn, and wrong
  again = []
  monkeypatch.setattr(features._Maker, 'compute', lambda self, piece: again.append(piece) or compute(self, piece))
  np.testing.assert_array_equal(cached_features(found(), split(), tmp_path, batch_size=5), whole)
  assert again == [(0, 5), (0, 15), (0, 20)]


@pytest.mark.slow
def test_a_killed_process_is_gone_on_from(tmp_path):
  script = textwrap.dedent("""
    import sys, time, numpy as np, jax.numpy as jnp
    from jaxlite.data import Split
    from jaxlite.finetuning import backbone, cached_features, features
    x = np.arange(600, dtype=np.float32).reshape(200, 3) / 600
    params = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 2))}
    found = backbone((lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], params), x)
    compute = features._Maker.compute
    def slow(self, piece):
      print('piece', flush=True)
      time.sleep(float(sys.argv[2]))
      return compute(self, piece)
    features._Maker.compute = slow
    cached_features(found, Split(x, np.zeros(200, np.int32)), sys.argv[1], batch_size=10)
  """)
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-c', script, str(tmp_path)]
  process = subprocess.Popen([*command, '0.2'], stdout=subprocess.PIPE, text=True, env=environment)
  for _ in range(6):
    process.stdout.readline()
  process.send_signal(signal.SIGKILL)
  process.communicate()
  done = subprocess.run([*command, '0'], capture_output=True, text=True, env=environment, check=True)
  assert 0 < done.stdout.count('piece') <= 15


@pytest.mark.parametrize(
  'change,told',
  [
    ('nan', 'example 7 gives nan at 0'),
    ('shape', r'keeps the shape of inputs'),
    ('labels', r'keeps the labels'),
    ('folder', 'cannot keep features in'),
  ],
)
def test_what_cannot_be_kept_is_told(tmp_path, change, told):
  data, views, folder = split(), [None], tmp_path
  if change == 'nan':
    bad = X.copy()
    bad[7] = np.nan
    data = Split(bad, Y)
  elif change == 'shape':
    views = [lambda key, batch: {**batch, 'inputs': batch['inputs'][:, :2]}]
  elif change == 'labels':
    views = [lambda key, batch: {**batch, 'labels': 1 - batch['labels']}]
  else:
    folder = tmp_path / 'file'
    folder.write_text('')
  with pytest.raises(ValueError, match=told):
    cached_features(found(), data, folder, views=views)


def test_a_head_solved_on_them_is_that_of_the_whole(tmp_path):
  shown = cached_features(found(), split(), tmp_path)
  one, other = fit_probe(shown[:, 0], Y, 2), fit_probe(np.tanh(X @ A), Y, 2)
  assert one.strength == other.strength
  np.testing.assert_allclose(one.kernel, other.kernel, atol=1e-3)


def test_a_folder_of_pictures_gives_what_its_arrays_give(tmp_path):
  from PIL import Image

  rng = np.random.default_rng(0)
  for kind in ('cats', 'dogs'):
    (tmp_path / 'data' / kind).mkdir(parents=True)
    for number in range(10):
      Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / 'data' / kind / f'{number}.png')
  data = jl.data.pictures(tmp_path / 'data', size=8)
  held = Split(np.asarray(data.train.inputs), data.train.labels)
  params = {'a': jnp.asarray(rng.normal(size=(192, 4)), jnp.float32), 'b': jnp.ones((4, 2))}
  net = (lambda p, x: jnp.tanh(x.reshape(len(x), -1) / 255.0 @ p['a']) @ p['b'], params)
  one = backbone(net, held.inputs)
  lazy = cached_features(one, data.train, tmp_path / 'features', batch_size=6)
  np.testing.assert_array_equal(lazy, cached_features(one, held, tmp_path / 'other', batch_size=6))
  assert kept(tmp_path / 'features') == kept(tmp_path / 'other')
