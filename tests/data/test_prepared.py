"""`load` on whatever TensorFlow Datasets prepared: found by name or path, read without TensorFlow, or refused."""

import io
import json
import os
import re
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from jaxlite.data import builders, load, sources


def one_line(caught):
  return '\n' not in str(caught.value)


def sorted_rows(images):
  return np.array(sorted(images.reshape(len(images), -1).tolist()))


@pytest.mark.parametrize(
  'name, directory',
  [('sets', ''), ('digits_copy', 'base'), ('digits_copy:1.0.0', 'base'), ('digits_copy', 'version'), ('path', '')],
)
def test_a_prepared_data_set_is_found_by_name_or_path(home, copied, name, directory, monkeypatch):
  renamed = rename(copied)
  version = renamed / 'digits_copy' / '1.0.0'
  arguments = {
    'sets': ('digits_copy', ''),
    'path': (str(version), ''),
  }.get(name, (name, {'base': str(renamed), 'version': str(version)}.get(directory)))
  if name == 'sets':
    monkeypatch.setenv('TFDS_DATA_DIR', str(renamed))
  data = load(arguments[0], directory=arguments[1])
  assert (data.name, len(data.test.labels), data.classes) == ('digits_copy', 360, 10)
  assert not list(renamed.rglob('decoded'))  # a data_dir may be shared: nothing of ours is written there


def rename(base):
  """Makes a data set of another name of the prepared digits."""
  old, new = base / 'digits' / '1.0.0', base / 'digits_copy' / '1.0.0'
  new.parent.mkdir()
  old.rename(new)
  for path in list(new.glob('digits-*')):
    path.rename(new / path.name.replace('digits-', 'digits_copy-'))
  edit(new, name='digits_copy')
  return base


def edit(folder, **changes):
  path = folder / 'dataset_info.json'
  info = {**json.loads(path.read_text()), **changes}
  path.write_text(json.dumps(info))


def test_the_newest_version_is_taken(home, copied):
  base = rename(copied)
  shutil.copytree(base / 'digits_copy' / '1.0.0', base / 'digits_copy' / '1.10.0')
  shutil.copytree(base / 'digits_copy' / '1.0.0', base / 'digits_copy' / '1.9.0')
  assert sources._find('digits_copy', base).name == '1.10.0'


def test_tfrecord_is_refused_with_the_command_that_converts_it(home, copied):
  base = rename(copied)
  folder = base / 'digits_copy' / '1.0.0'
  edit(folder, fileFormat='tfrecord')
  with pytest.raises(ValueError, match=r'^tfrecord cannot be read without TensorFlow; ') as caught:
    load('digits_copy', directory=str(base))
  assert one_line(caught)
  code = re.search('`python -c "(.*)"`', str(caught.value))[1]

  class DigitsCopy(builders.Digits):  # registered with TFDS, as the data set's own builder is
    name = 'digits_copy'

    def __init__(self, **options):
      super().__init__(read=builders.read_digits, **options)

  exec(code)
  again = re.search('--config.data.directory=(.*)$', str(caught.value))[1]
  assert len(load('digits_copy', directory=again).test.labels) == 360
  edit(folder, alternativeFileFormats=['array_record'])  # what that command leaves behind
  assert len(load('digits_copy', directory=str(base)).test.labels) == 360


def test_an_unknown_name_lists_near_ones_and_the_command(home, copied):
  rename(copied)
  with pytest.raises(ValueError, match=r"^no data set 'digit_copy' is prepared in .*nearest: digits_copy") as caught:
    load('digit_copy', directory=str(copied))
  assert one_line(caught)
  assert f"tfds.builder('digit_copy', data_dir='{copied}', file_format='array_record')" in str(caught.value)
  with pytest.raises(ValueError, match=r"^no data set 'mnist'"):
    load('mnist', directory=str(copied / 'digits_copy' / '1.0.0'))  # a folder of another data set


def prepare_photos(base, name, sides=(6, 6), splits=('train', 'validation'), label=True):
  """A data set as people have them: PNG pictures, more features than needed, no supervised_keys."""
  rng = np.random.default_rng(0)
  pictures = [rng.integers(0, 256, (sides[index % 2], 5, 3), np.uint8) for index in range(30)]

  def info(self):
    features = {'photo': tfds.features.Image(shape=(None, 5, 3)), 'id': tfds.features.Text(), 'size': np.int64}
    features |= {'kind': tfds.features.ClassLabel(names=['cat', 'dog'])} if label else {}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def examples(self):
    for index, picture in enumerate(pictures):
      png = io.BytesIO()
      PIL.Image.fromarray(picture).save(png, format='PNG')
      png.seek(0)
      example = {'photo': png, 'id': f'n{index}', 'size': index}
      yield index, {**example, 'kind': index % 2} if label else example

  body = {
    'name': name,
    'VERSION': tfds.core.Version('2.0.0'),
    '_info': info,
    '_split_generators': lambda self, manager: {split: self._generate_examples() for split in splits},
    '_generate_examples': examples,
  }
  with tfds.core.registered.skip_registration():
    builder = type(name, (tfds.core.GeneratorBasedBuilder,), body)
  builder(data_dir=base, file_format='array_record').download_and_prepare()
  return pictures


def test_pictures_beside_other_features_without_supervised_keys(home, tmp_path):
  pictures = prepare_photos(tmp_path, 'photos')
  data = load('photos', directory=str(tmp_path))
  np.testing.assert_array_equal(sorted_rows(data.test.inputs), sorted_rows(np.stack(pictures)))
  assert (data.class_names, data.train.inputs.dtype) == (('cat', 'dog'), np.uint8)
  assert [len(split.labels) for split in (data.train, data.validation, data.test)] == [27, 3, 30]
  assert data.notes == ('photos has no test split: its validation split is the test',)
  prepare_photos(tmp_path, 'alone', splits=('train',))
  alone = load('alone', directory=str(tmp_path))
  assert [len(split.labels) for split in (alone.train, alone.validation, alone.test)] == [24, 3, 3]
  assert alone.notes == ('alone has no test split: a tenth of train is the test',)
  prepare_photos(tmp_path, 'whole', splits=('train', 'validation', 'test'))
  whole = load('whole', directory=str(tmp_path))
  assert [len(split.labels) for split in (whole.train, whole.validation, whole.test)] == [30, 30, 30]
  assert whole.notes == ()


@pytest.mark.parametrize(
  'name, options, message',
  [
    ('uneven', {'sides': (6, 7)}, r'^examples have one shape; train of .* has \[6, 5, 3\] at 0 and \[7, 5, 3\] at'),
    ('unlabeled', {'label': False}, r'^one input and one label are wanted; unlabeled has id, photo, size'),
    ('untrained', {'splits': ('test',)}, r'^a data set needs a train split; untrained has test'),
  ],
)
def test_what_is_no_classification_set_is_named(home, tmp_path, name, options, message):
  prepare_photos(tmp_path, name, **options)
  with pytest.raises(ValueError, match=message) as caught:
    load(name, directory=str(tmp_path))
  assert one_line(caught)


def test_a_folder_of_that_name_in_the_current_directory_is_not_meant(home, copied, monkeypatch):
  monkeypatch.chdir(rename(copied))
  with pytest.raises(ValueError, match=r"^no data set 'digits_copy' is prepared"):
    load('digits_copy')
  assert load(f'.{os.sep}digits_copy').name == 'digits_copy'


@pytest.mark.parametrize('name', ['', os.sep, '~/nothing'])
def test_no_name_and_a_wrong_path_are_named(home, name):
  with pytest.raises(ValueError, match=rf'^no data set is prepared in {name!r}: name digits, fashion_mnist, or the'):
    load(name)


@pytest.mark.parametrize('damage', ['info', 'features', 'shard', 'cut'])
def test_a_damaged_data_set_is_one_line(home, copied, damage):
  base = rename(copied)
  folder = base / 'digits_copy' / '1.0.0'
  shard = next(folder.glob('*-train.*'))
  if damage == 'info':
    (folder / 'dataset_info.json').write_text('{')
  elif damage == 'features':
    (folder / 'features.json').unlink()
  elif damage == 'shard':
    shard.unlink()
  else:
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
  with pytest.raises(ValueError) as caught:
    load('digits_copy', directory=str(base))
  assert one_line(caught)
  assert str(folder) in str(caught.value)
  assert str(caught.value).endswith('remove it and prepare it again')
