"""What quality must find is put there: twins within and between splits, near twins, outliers, constants, gaps."""

import numpy as np
import pytest
from PIL import Image

import pictured
from jaxlite.data import from_arrays, quality


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('JAXLITE_DATA', str(tmp_path_factory.mktemp('home')))


def test_a_folder_tells_its_twins_and_its_broken_files(tmp_path):
  for split, seed in (('train', 0), ('val', 1), ('test', 2)):
    pictured.write(tmp_path / split, 30, seed=seed, height=40, width=40)
  clean = quality(tmp_path, progress=False)
  assert (clean.twins, clean.near, clean.missing) == ((), (), ())
  assert clean.counts['test'] == {'c0': 15, 'c1': 15}
  image = Image.open(tmp_path / 'train/c0/000.png')
  image.save(tmp_path / 'test/c0/seen.png')  # the same pixels
  image.resize((30, 30)).save(tmp_path / 'test/c1/again.jpg', quality=60)  # nearly, under another label
  Image.new('RGB', (40, 40), (9, 9, 9)).save(tmp_path / 'val/c0/blank.png')
  (tmp_path / 'train/c1/broken.png').write_bytes(b'no picture')
  found = quality(tmp_path, progress=False)
  named = [tuple(found.files[split][row] for split, row in twin[:2]) for twin in found.twins]
  assert named == [('train/c0/000.png', 'test/c0/seen.png')]
  near = {found.files[split][row] for twin in found.near for split, row in twin[:2]}
  assert 'test/c1/again.jpg' in near
  assert any(not twin.same_label for twin in found.near)
  assert [(found.files[split][row], why) for (split, row), why in found.outliers] == [
    ('val/c0/blank.png', 'one color, 9')
  ]
  assert any('broken.png is no picture' in note for note in found.notes)
  shown = str(found)
  assert 'train/c0/000.png = test/c0/seen.png' in shown
  assert 'c0' in shown


def test_features_tell_what_never_changes_and_what_lies_far_off():
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(60, 3)).astype(np.float32)
  inputs[:, 1] = 4
  inputs[5, 0] = 500
  inputs[9] = inputs[8]
  found = quality(from_arrays((inputs, np.arange(60) % 2), validation=0, test=0.1))
  assert found.constant == ('feature 1',)
  assert len(found.twins) == 1
  assert not found.twins[0].same_label
  assert ['feature 0 is 500' in why for _, why in found.outliers] == [True]
  assert '1 constant feature: feature 1' in str(found)


def test_a_table_tells_its_gaps():
  table = {'a': [1.0, None, 3.0, 1.0], 'b': ['x'] * 4, 'kind': ['p', 'q', None, 'p']}
  found = quality(table, 'kind')
  assert found.missing == (("cells of 'a'", 1), ("labels ('kind')", 1))
  assert found.constant == ('b',)
  assert [twin[:2] for twin in found.twins] == [(('rows', 0), ('rows', 3))]
  with pytest.raises(ValueError, match='nearest: kind'):
    quality(table, 'kid')


def test_a_smooth_set_is_not_called_twins():
  rng = np.random.default_rng(0)
  images = np.stack([pictured.texture(rng, 32, 32) for _ in range(200)])
  found = quality(from_arrays((images, np.arange(200) % 2)))
  assert (found.twins, found.near) == ((), ())
