"""`load`: prepared once, whole after any accident, without TensorFlow, and every failure one line with its fix."""

import hashlib
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxlite.data import builders, cache, idx, load


def sibling(name):
  """Another test file of this folder: pytest's importlib mode keeps folders off sys.path."""
  spec = importlib.util.spec_from_file_location(name, pathlib.Path(__file__).with_name(f'{name}.py'))
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


write_set = sibling('test_idx').write_set
REAL = not idx.missing(idx.DEBIAN)  # Debian's files are on this machine


def one_line(caught):
  return '\n' not in str(caught.value)


# digits


def test_digits_are_scikit_learns_in_fixed_stratified_splits(prepared):
  data = load('digits', directory=str(prepared))
  raw = load_digits()
  pictures = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]
  wanted = sorted((picture.tobytes(), label) for picture, label in zip(pictures, raw.target, strict=True))
  got = [
    (picture.tobytes(), label)
    for split in (data.train, data.validation, data.test)
    for picture, label in zip(split.inputs, split.labels, strict=True)
  ]
  assert sorted(got) == wanted
  assert [len(split.labels) for split in (data.train, data.validation, data.test)] == [1293, 144, 360]
  assert np.abs(np.bincount(data.test.labels) - np.bincount(raw.target) * 360 / 1797).max() < 1
  assert (data.name, data.classes, data.class_names) == ('digits', 10, tuple('0123456789'))
  assert data.train.inputs.dtype == np.uint8
  assert data.train.inputs.max() == 255
  assert data.fingerprint.startswith('acbb09adcff8c2cf')


def test_the_seed_and_the_fraction_move_validation_and_never_test(prepared):
  one, other = load('digits', directory=str(prepared)), load('digits', directory=str(prepared), validation=0.3, seed=5)
  np.testing.assert_array_equal(one.test.inputs, other.test.inputs)
  assert len(other.validation.labels) == round(0.3 * 1437)
  assert one.fingerprint != other.fingerprint
  assert load('digits', directory=str(prepared)).fingerprint == one.fingerprint


def run(code, **environment):
  return subprocess.Popen(
    [sys.executable, '-W', 'error', '-c', code],
    env={**os.environ, **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


LOAD = "import jaxlite.data; print(jaxlite.data.load('digits').fingerprint)"


def test_two_processes_prepare_at_once_without_tensorflow_and_without_a_word(tmp_path):
  code = f"import sys; {LOAD}; assert 'tensorflow_datasets' in sys.modules; assert 'tensorflow' not in sys.modules"
  runs = [run(code, JAXLITE_DATA=str(tmp_path)) for _ in range(2)]
  outputs = [process.communicate(timeout=120) for process in runs]
  assert [process.returncode for process in runs] == [0, 0], outputs
  assert outputs[0] == outputs[1]
  assert re.fullmatch(r'[0-9a-f]{64}\n', outputs[0][0])
  assert outputs[0][1] == ''  # warnings are errors, and TFDS's talk is kept off
  assert not list(tmp_path.glob('.preparing-*'))


def test_a_killed_prepare_leaves_nothing_that_looks_prepared(tmp_path, prepared):
  wanted = load('digits', directory=str(prepared)).fingerprint
  slow = (
    'import time, jaxlite.data; from jaxlite.data import builders\n'
    'def examples(self, images, labels):\n'
    '  for i in range(1000):\n'
    '    yield i, {"image": images[i], "label": int(labels[i])}\n'
    '    if i == 500: time.sleep(60)\n'
    'builders.Digits._generate_examples = examples\n'
    "jaxlite.data.load('digits')"
  )
  process = run(slow, JAXLITE_DATA=str(tmp_path))
  deadline = time.time() + 60
  while not list(tmp_path.glob('.preparing-*/*')) and time.time() < deadline:
    time.sleep(0.05)
  process.kill()
  process.communicate()
  left = list(tmp_path.glob('.preparing-*'))
  assert left
  assert load('digits', directory=str(tmp_path)).fingerprint == wanted
  assert left[0].exists()  # young: it might be another process's
  os.utime(left[0], (1, 1))
  with cache.scratch(tmp_path):
    assert not left[0].exists()


def test_a_second_start_imports_neither_tfds_nor_scikit_learn(prepared):
  heavy = ('tensorflow', 'tensorflow_datasets', 'sklearn')
  code = f'import sys; {LOAD}; print([name for name in {heavy} if name in sys.modules])'
  output, errors = run(code, JAXLITE_DATA=str(prepared)).communicate(timeout=60)
  assert output.endswith('[]\n'), errors


def decoded_file(root):
  return next(root.glob('decoded/*/train.inputs.npy'))


@pytest.mark.parametrize('damage', ['flip', 'cut', 'remove', 'garbage'])
def test_damaged_decoded_arrays_are_made_again(prepared, tmp_path, damage):
  root = tmp_path / 'root'
  shutil.copytree(prepared / 'digits', root / 'digits')
  wanted = load('digits', directory=str(root)).fingerprint
  path = decoded_file(root)
  data = bytearray(path.read_bytes())
  data[1000] ^= 4
  contents = {'flip': data, 'cut': data[:-5], 'garbage': b'no array'}
  path.unlink()
  if damage in contents:
    path.write_bytes(contents[damage])
  assert load('digits', directory=str(root)).fingerprint == wanted
  assert decoded_file(root).exists()


def test_a_folder_that_cannot_be_written_is_one_line_with_the_way_out(tmp_path, monkeypatch):
  blocked = tmp_path / 'file'
  blocked.write_text('')
  monkeypatch.setenv('JAXLITE_DATA', str(blocked / 'under'))
  with pytest.raises(
    ValueError, match=r'^cannot keep prepared data in .*: set JAXLITE_DATA to another folder'
  ) as caught:
    load('digits')
  assert one_line(caught)


def test_the_cache_follows_the_environment(monkeypatch):
  monkeypatch.setenv('JAXLITE_DATA', '~/mine')
  assert cache.root() == pathlib.Path('~/mine').expanduser()
  monkeypatch.delenv('JAXLITE_DATA')
  monkeypatch.setenv('XDG_CACHE_HOME', os.sep + 'shared')
  assert cache.root() == pathlib.Path(os.sep, 'shared', 'jaxlite')
  monkeypatch.delenv('XDG_CACHE_HOME')
  assert cache.root() == pathlib.Path('~/.cache/jaxlite').expanduser()


# Fashion-MNIST


def test_missing_files_say_how_to_get_them(home, tmp_path, monkeypatch):
  monkeypatch.setattr(idx, 'DEBIAN', str(tmp_path / 'none'))
  for directory in ('', str(tmp_path)):
    with pytest.raises(ValueError, match=r'^fashion_mnist needs its four files; .*--config.data.directory') as caught:
      load('fashion_mnist', directory=directory)
    assert 'apt-get install dataset-fashion-mnist' in str(caught.value)
    assert one_line(caught)
    assert 'train-images-idx3-ubyte.gz' in str(caught.value)


def test_other_files_of_the_same_names_are_refused_by_name(home, tmp_path):
  write_set(tmp_path)
  with pytest.raises(
    ValueError, match=r'train-images-idx3-ubyte.gz is not the published file: its sha256 is'
  ) as caught:
    load('fashion_mnist', directory=str(tmp_path))
  assert one_line(caught)
  assert not (home / 'fashion_mnist').exists()


@pytest.mark.parametrize('strip', [False, True])
def test_the_four_files_become_the_data_set(home, tmp_path, monkeypatch, strip):
  """Synthetic files, whose checksums stand in for the published ones in this test only."""
  folder = tmp_path / 'files'
  folder.mkdir()
  arrays, checksums = write_set(folder, strip=strip, count=40)
  monkeypatch.setattr(builders, 'fashion_checksums', lambda: checksums)
  data = load('fashion_mnist', directory=str(folder))
  np.testing.assert_array_equal(sorted_rows(data.test.inputs), sorted_rows(arrays['test'][0]))
  assert len(data.train.labels) + len(data.validation.labels) == 40
  assert data.class_names[9] == 'Ankle boot'
  assert data.train.inputs.dtype == np.uint8
  monkeypatch.setattr(idx, 'DEBIAN', str(tmp_path / 'none'))
  assert load('fashion_mnist').fingerprint == data.fingerprint  # prepared: the files are needed no more
  (folder / 'train-labels-idx1-ubyte.gz').write_bytes(b'other')
  with pytest.raises(ValueError, match=r'train-labels-idx1-ubyte.gz is not the published file'):
    load('fashion_mnist', directory=str(folder))  # asked for, hence looked at


def sorted_rows(images):
  return np.array(sorted(images.reshape(len(images), -1).tolist()))


def test_tfds_has_the_checksum_of_each_file_on_record():
  checksums = builders.fashion_checksums()
  assert set(checksums) == {file.name for files in idx.FILES.values() for file in files}
  assert all(re.fullmatch('[0-9a-f]{64}', checksum) for checksum in checksums.values())


@pytest.mark.slow
def test_the_real_fashion_mnist(home):
  """Runs where Debian's package is installed; elsewhere it holds that the error says how to get it."""
  if not REAL:
    with pytest.raises(ValueError, match=r'apt-get install dataset-fashion-mnist'):
      load('fashion_mnist')
    return
  start = time.process_time()  # of the processor, not the wall: the machine may be shared
  data = load('fashion_mnist')
  made = time.process_time()
  again = load('fashion_mnist')
  assert time.process_time() - made < 3
  assert made - start < 15
  assert again.fingerprint == data.fingerprint == '70e243cefcac379ee744ae77b952f811e22c4abfe468eb10ec8ac6d04b86f6b1'
  assert np.bincount(data.test.labels).tolist() == [1000] * 10
  assert np.bincount(data.validation.labels).tolist() == [600] * 10


@pytest.mark.parametrize('where', list(idx.FILES))
def test_debians_files_are_genuine_where_they_are_installed(where):
  """The short form of the slow test: the smallest files, against TFDS's own record."""
  file = idx.FILES[where][1]
  path = os.path.join(idx.DEBIAN, file.name)
  if not REAL:
    assert file.name in idx.missing(idx.DEBIAN)
    return
  labels = idx._read(path, file, builders.fashion_checksums()[file.name])
  assert len(set(np.bincount(labels))) == 1
  assert hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest() != builders.fashion_checksums()[file.name]


def test_a_tfds_that_does_not_load_is_told_in_one_line(tmp_path):
  """Its metadata's wheels want a newer protobuf than they ask for; TFDS logs that, and lacks `core` afterwards."""
  metadata = tmp_path / 'shadow' / 'tensorflow_metadata'
  metadata.mkdir(parents=True)
  (metadata / '__init__.py').write_text("raise ImportError('cannot import name runtime_version\\nsecond line')")
  code = f"import jaxlite as jl\ntry:\n  jl.data.load('digits', directory={str(tmp_path / 'data')!r})\n"
  code += 'except ImportError as error:\n  print(error)'
  paths = [str(metadata.parent), str(pathlib.Path(__file__).parents[2]), os.environ.get('PYTHONPATH', '')]
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths))}
  ran = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True)
  assert ran.stdout == (
    'digits needs tensorflow_datasets, which is installed and does not load (ImportError: cannot import name '
    'runtime_version): a package that it builds on is too old or too new; pip install --upgrade tensorflow-datasets '
    'tensorflow-metadata protobuf\n'
  )
  assert 'Traceback' not in ran.stderr
