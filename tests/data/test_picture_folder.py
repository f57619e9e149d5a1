"""A folder of pictures: the same batches however they are kept and by however many threads; nothing wrong is silent."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

import jaxlite as jl
import pictured
from jaxlite.data import batch_at, batches_at, eval_batches, pictures
from jaxlite.data.batches import _FORESEEN
from jaxlite.data.standardize import channel_stats
from jaxlite.run import loop
from loops import config_of, leaves, points

FAST = {'size': (12, 16), 'progress': False}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return pictured.write(tmp_path_factory.mktemp('pictures') / 'set', 60)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXLITE_DATA', str(tmp_path / 'home'))


def copy(folder, tmp_path):
  return shutil.copytree(folder, tmp_path / 'copy')


def test_batches_are_equal_however_pictures_are_kept_and_by_however_many_threads(folder):
  plain = pictures(folder, keep='memory', **FAST)
  assert isinstance(plain.train.inputs, np.ndarray)
  assert len(pictures(folder, **FAST).train.inputs) == 48  # 'auto'
  for keep, threads, ahead in (('folder', 1, 0), ('folder', 2, 1 << 26), ('folder', 4, 1500), ('pixels', 4, 1 << 26)):
    other = pictures(folder, keep=keep, threads=threads, ahead=ahead, **FAST)
    assert other.fingerprint == plain.fingerprint
    for step in (0, 1, 2, 3, 9, 8, 40):  # in order, and not
      for a, b in (
        (batch_at(plain.train, 10, 3, step), batch_at(other.train, 10, 3, step)),
        (batches_at(plain.train, 10, 3, step, 3), batches_at(other.train, 10, 3, step, 3)),
      ):
        assert {name: value.tobytes() for name, value in a.items()} == {name: b[name].tobytes() for name in a}
    for a, b in zip(eval_batches(plain.test, 4), eval_batches(other.test, 4), strict=True):
      np.testing.assert_array_equal(a['inputs'], b['inputs'])


def test_scaled_jpegs_take_less_and_differ_little(folder):
  plain, small = pictures(folder, **FAST), pictures(folder, keep='jpeg', **FAST)
  a, b = (batch_at(data.train, 48, 0, 0)['inputs'].astype(int) for data in (plain, small))
  assert 0 < np.abs(a - b).mean() < 4
  assert small.fingerprint != plain.fingerprint


def test_decoding_leads_the_step_by_two_batches_at_most(folder):
  for ahead in (0, 1 << 26):
    data = pictures(folder, keep='folder', ahead=ahead, **FAST)
    base = data.train.inputs.base
    for step in range(4):
      batch_at(data.train, 10, 0, step)
    assert 40 <= base.made <= 40 + (_FORESEEN * 10 if ahead else 0)
  assert base.held_bytes == 60 * 12 * 16 * 3  # all, as there are fewer than the bound


def test_statistics_are_those_of_every_training_pixel(folder):
  data = pictures(folder, **FAST)
  for got, want in zip((data.mean, data.std), channel_stats(np.asarray(data.train.inputs)), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_folders_of_splits_are_the_splits(folder, tmp_path):
  root = tmp_path / 'split'
  for split, first in (('train', 0), ('val', 1), ('test', 2)):
    pictured.write(root / split, 12, seed=first)
  data = pictures(root, **FAST)
  assert [len(part.labels) for part in (data.train, data.validation, data.test)] == [12, 12, 12]
  assert data.files['validation'][0] == 'val/c0/000.png'
  shutil.rmtree(root / 'test')
  data = pictures(root, **FAST)
  assert [len(part.labels) for part in (data.train, data.validation, data.test)] == [11, 1, 12]
  assert 'its validation split is the test' in data.notes[0]
  shutil.copy(root / 'train/c0/000.png', root / 'val/c0/seen.png')
  assert any('1 file in two splits, byte for byte' in note for note in pictures(root, **FAST).notes)
  (root / 'train/c2').mkdir()
  (root / 'val/c2').mkdir()
  shutil.copy(root / 'train/c0/000.png', root / 'val/c2/new.png')
  os.rmdir(root / 'train/c2')
  with pytest.raises(ValueError, match=r"training has every class; .*val has 'c2'"):
    pictures(root, **FAST)


def test_hidden_files_are_passed_over_and_links_followed(folder, tmp_path):
  root = copy(folder, tmp_path)
  for name in ('.DS_Store', 'Thumbs.db', '._000.png'):
    (root / 'c0' / name).write_bytes(b'x')
  (root / '.git').mkdir()
  (root / 'c1' / 'notes.txt').write_text('x')
  assert any('1 file in' in note and 'c1/notes.txt' in note for note in pictures(root, **FAST).notes)
  (root / 'c1' / 'notes.txt').unlink()
  assert pictures(root, **FAST).fingerprint == pictures(folder, **FAST).fingerprint
  os.symlink(folder / 'c1', root / 'c3')
  assert pictures(root, **FAST).class_names == ('c0', 'c1', 'c3')
  os.symlink(root, root / 'c3' / 'around')
  try:
    with pytest.raises(ValueError, match='links lead in a circle'):
      pictures(root, **FAST)
  finally:
    (folder / 'c1' / 'around').unlink()


def spoil(root, how):
  if how == 'empty class':
    (root / 'c2').mkdir()
  elif how == 'no pictures':
    (root / 'c2').mkdir()
    (root / 'c2' / 'list.csv').write_text('x')
  elif how == 'loose':
    shutil.copy(root / 'c0' / '000.png', root / 'stray.png')
  elif how == 'one class':
    shutil.rmtree(root / 'c1')
  elif how == 'nothing':
    for name in ('c0', 'c1'):
      shutil.rmtree(root / name)
  elif how == 'beside splits':
    (root / 'train').mkdir()
  elif how == 'corrupt':
    path = root / 'c1' / '001.png'
    path.write_bytes(path.read_bytes()[:-30])
  elif how == 'leads nowhere':
    os.symlink(root / 'gone.png', root / 'c1' / 'link.png')


@pytest.mark.parametrize(
  'how, said',
  [
    ('empty class', 'every class has a picture at least; .*c2 is empty'),
    ('no pictures', "c2 is empty; its 1 file are none by their names, such as 'list.csv'"),
    ('loose', "1 picture beside them, such as 'stray.png'"),
    ('one class', "two classes at least .* has the folder 'c0' alone"),
    ('nothing', 'has no folder in it'),
    ('beside splits', "also has 'c0'"),
    ('corrupt', r'1 of 60 cannot: .*c1/001.png is damaged .*broken='),
    ('leads nowhere', r'1 of 61 cannot: .*c1/link.png cannot be read: No such file'),
  ],
)
def test_a_folder_that_is_wrong_says_where(folder, tmp_path, how, said):
  root = copy(folder, tmp_path)
  spoil(root, how)
  with pytest.raises(ValueError, match=said) as caught:
    pictures(root, **FAST)
  assert '\n' not in str(caught.value)


def test_broken_files_are_left_out_on_request_and_told(folder, tmp_path):
  root = copy(folder, tmp_path)
  spoil(root, 'corrupt')
  data = pictures(root, broken='skip', **FAST)
  assert sum(len(part.labels) for part in (data.train, data.validation, data.test)) == 59
  assert any(note.startswith('1 picture left out') and '001.png is damaged' in note for note in data.notes)
  for path in (root / 'c1').iterdir():
    path.write_bytes(b'')
  with pytest.raises(ValueError, match="'c1' has none for training"):
    pictures(root, broken='skip', **FAST)


def test_several_sizes_need_one_to_be_asked_for(folder, tmp_path):
  root = copy(folder, tmp_path)
  assert pictures(root, progress=False).train.inputs.shape[1:] == (20, 24, 3)
  Image.new('RGB', (5, 7)).save(root / 'c0' / 'odd.png')
  with pytest.raises(ValueError, match=r'2 sizes .* 20 x 24 \(.*\) and 7 x 5 \(c0/odd.png\): give size='):
    pictures(root, progress=False)


def test_mixed_modes_are_told(folder, tmp_path):
  root = copy(folder, tmp_path)
  for number, mode in enumerate(('L', 'P', 'RGBA')):
    Image.open(root / 'c0' / '000.png').convert(mode).save(root / 'c0' / f'mode{number}.png')
  notes = pictures(root, **FAST).notes
  assert '1 gray, 1 of a palette, 1 with alpha: all become RGB, laid on 255' in notes[0]


def test_a_picture_that_stands_in_two_classes_is_told(folder, tmp_path):
  root = copy(folder, tmp_path)
  assert not [note for note in pictures(root, **FAST).notes if 'several labels' in note]
  shutil.copy(root / 'c0' / '000.png', root / 'c1' / 'again.png')
  [note] = [note for note in pictures(root, **FAST).notes if 'several labels' in note]
  assert note == '1 file with several labels, such as c0/000.png = c1/again.png: nothing tells them apart'


def test_colors_without_transparency_are_laid_on_nothing(folder, tmp_path):
  from PIL import ImageCms

  root = copy(folder, tmp_path)
  to_lab = ImageCms.buildTransform(ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), 'RGB', 'LAB')
  ImageCms.applyTransform(Image.open(root / 'c0' / '000.png').convert('RGB'), to_lab).save(root / 'c0' / 'lab.tif')
  assert pictures(root, **FAST).notes[0].endswith('1 LAB: all become RGB')


def test_labels_may_stand_in_a_table(folder, tmp_path):
  age = {'label': 'age', 'task': jl.tasks.regression, **FAST}
  files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*.png'))
  table = {'file': files, 'age': [float(place) for place in range(60)]}
  data = pictures(folder, labels=table, **age)
  assert data.train.labels[0] == files.index(data.files['train'][0])
  with pytest.raises(
    ValueError, match=r"every picture has a label; 1 of 60 pictures have no row, such as 'c1/059.png'"
  ):
    pictures(folder, labels={name: values[:-1] for name, values in table.items()}, **age)
  for wrong, said in (
    ({'file': [*files, 'c0/none.png'], 'age': range(61)}, "1 row do not, such as 'c0/none.png'"),
    ({'file': [files[0], *files], 'age': range(61)}, "'c0/000.png' has several"),
    ({'path': files, 'age': range(60)}, "it lacks 'file'"),
    ({'file': files, 'age': [*range(59), None]}, "'age' has none in row 59"),
  ):
    with pytest.raises(ValueError, match=said):
      pictures(folder, labels=wrong, **age)


def test_a_file_that_changes_under_a_run_is_noticed(folder, tmp_path):
  root = copy(folder, tmp_path)
  data = pictures(root, keep='folder', ahead=0, **FAST)
  path = root / data.files['train'][0]
  row = int(np.flatnonzero(np.arange(len(data.train.labels)) == 0)[0])
  Image.new('RGB', (24, 20)).save(path)
  with pytest.raises(ValueError, match='has changed since the data were made'):
    data.train.inputs.take([row], axis=0)
  assert pictures(root, **FAST).fingerprint != data.fingerprint


def test_a_run_reads_pictures_resumes_and_answers_for_files(folder, tmp_path, monkeypatch):
  """Stopped by a signal in the middle, it ends with the bits of a run that holds all pictures in memory."""

  def model():
    return lambda p, x: x.reshape(x.shape[0], -1) @ p['w'], {'w': np.zeros((12 * 16 * 3, 2), np.float32)}

  def train(where, data):
    return jl.train(config_of(), where, model=model(), data=data, say=lambda line: None)

  real, seen = loop.evaluate, []

  def evaluate(*words):
    seen.append(words)
    if len(seen) == 3:
      signal.raise_signal(signal.SIGTERM)
    return real(*words)

  train(tmp_path / 'memory', pictures(folder, keep='memory', **FAST))
  monkeypatch.setattr(loop, 'evaluate', evaluate)
  with pytest.raises(loop.Preempted, match='stopped by a signal at step'):
    train(tmp_path / 'folder', pictures(folder, keep='folder', threads=2, **FAST))
  result = train(tmp_path / 'folder', pictures(folder, keep='pixels', threads=3, **FAST))
  assert leaves(tmp_path / 'folder') == leaves(tmp_path / 'memory')
  assert points(tmp_path / 'folder') == points(tmp_path / 'memory')
  assert result.metrics['accuracy'] > 0.8
  network = jl.load(tmp_path / 'folder')
  paths = [str(folder / 'c0/000.png'), folder / 'c1/001.png']
  assert network.predict_labels(paths).tolist() == ['c0', 'c1']
  assert json.loads(network.encode.to_json())['size'] == [12, 16]
