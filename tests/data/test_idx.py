"""The idx reader, and the proof that files are the published ones, on files made here."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from jaxlite.data import idx


def encode(array):
  return bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape) + array.tobytes()


def published(array, file):
  """As the original files are: gzip with a name and a time in the header."""
  plain = gzip.compress(encode(array), mtime=0)
  name = file.name.removesuffix('.gz').encode()
  return b'\x1f\x8b\x08\x08' + struct.pack('<I', file.time) + b'\0\3' + name + b'\0' + plain[10:]


def stripped(data, file):
  """As Debian's are: the same, neither name nor time."""
  return b'\x1f\x8b\x08\0\0\0\0\0\0\3' + data[10 + len(file.name.removesuffix('.gz')) + 1 :]


def write_set(folder, *, strip=False, count=12):
  """Writes four synthetic files; returns their arrays and the checksums of the published form."""
  rng, arrays, checksums = np.random.default_rng(0), {}, {}
  for where, files in idx.FILES.items():
    images, labels = rng.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)
    arrays[where] = (images[..., None], labels)
    for file, array in zip(files, (images, labels), strict=True):
      data = published(array, file)
      checksums[file.name] = hashlib.sha256(data).hexdigest()
      (folder / file.name).write_bytes(stripped(data, file) if strip else data)
  return arrays, checksums


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)))
def test_parse_inverts_encode(array):
  np.testing.assert_array_equal(idx.parse(gzip.compress(encode(array)), 'it'), array)


GOOD = encode(np.arange(6, dtype=np.uint8).reshape(2, 3))
DAMAGED = {
  'no gzip': (GOOD, 'is no gzip file, or damaged'),
  'empty': (b'', '^an idx file of bytes starts with'),
  'cut gzip': (gzip.compress(GOOD)[:-9], 'is no gzip file, or damaged'),
  'flipped bit': (gzip.compress(GOOD)[:-6] + b'\xff' + gzip.compress(GOOD)[-5:], 'is no gzip file, or damaged'),
  'short': (gzip.compress(GOOD[:-1]), r'promises \[2, 3\] bytes and holds 5'),
  'long': (gzip.compress(GOOD + b'1'), r'promises \[2, 3\] bytes and holds 7'),
  'of floats': (gzip.compress(b'\0\0\x0d' + GOOD[3:]), r'^an idx file of bytes starts with .* \[0, 0, 13, 2\]'),
  'cut shape': (gzip.compress(GOOD[:9]), '^an idx file of bytes starts with'),
  'something else': (gzip.compress(b'hello there'), '^an idx file of bytes starts with'),
}


@pytest.mark.parametrize('case', DAMAGED)
def test_a_damaged_file_is_one_line(case):
  data, message = DAMAGED[case]
  with pytest.raises(ValueError, match=message) as caught:
    idx.parse(data, 'it')
  assert '\n' not in str(caught.value)
  assert 'get it again' in str(caught.value)


@pytest.mark.parametrize('strip', [False, True])
def test_published_files_and_stripped_ones_are_genuine(tmp_path, strip):
  arrays, checksums = write_set(tmp_path, strip=strip)
  assert idx.missing(str(tmp_path)) == []
  found = idx.read_verified(str(tmp_path), checksums)
  for where, (images, labels) in arrays.items():
    np.testing.assert_array_equal(found[where][0], images)
    np.testing.assert_array_equal(found[where][1], labels)


@pytest.mark.parametrize('strip', [False, True])
@pytest.mark.parametrize('name', [file.name for files in idx.FILES.values() for file in files])
def test_one_changed_byte_names_the_file(tmp_path, name, strip):
  _, checksums = write_set(tmp_path, strip=strip)
  data = bytearray((tmp_path / name).read_bytes())
  data[len(data) // 2] ^= 1
  (tmp_path / name).write_bytes(data)
  with pytest.raises(
    ValueError, match=f'{name} is not the published file: its sha256 is [0-9a-f]{{64}}, not'
  ) as caught:
    idx.read_verified(str(tmp_path), checksums)
  assert '\n' not in str(caught.value)


def test_missing_files_are_named(tmp_path):
  _, checksums = write_set(tmp_path)
  (tmp_path / 'train-labels-idx1-ubyte.gz').unlink()
  assert idx.missing(str(tmp_path)) == ['train-labels-idx1-ubyte.gz']
  with pytest.raises(ValueError, match=r'^cannot read .*train-labels-idx1-ubyte.gz: No such file'):
    idx.read_verified(str(tmp_path), checksums)


def test_images_and_labels_must_fit(tmp_path):
  _, checksums = write_set(tmp_path)
  images, labels = idx.FILES['train']
  for file, array in ((images, np.zeros((3, 28, 28), np.uint8)), (labels, np.zeros(4, np.uint8))):
    data = published(array, file)
    checksums[file.name] = hashlib.sha256(data).hexdigest()
    (tmp_path / file.name).write_bytes(data)
  with pytest.raises(
    ValueError, match=r'^train needs images \[N, H, W\] and labels \[N\]; got \(3, 28, 28\) and \(4,\)'
  ):
    idx.read_verified(str(tmp_path), checksums)
