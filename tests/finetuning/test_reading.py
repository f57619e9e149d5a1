"""Each format gives the arrays that were written, lazily, bit for bit, and says what it is."""

import numpy as np

from jaxlite.deployment.safetensors_file import write_safetensors
from jaxlite.finetuning import read


def test_safetensors_written_by_ourselves_come_back(tmp_path):
  path = tmp_path / 'a.safetensors'
  arrays = {'w': np.arange(6, dtype=np.float32).reshape(2, 3), 'n': np.array(True), 'empty': np.zeros((0, 4), np.int8)}
  write_safetensors(path, arrays)
  held = read(path)
  assert held.form == 'safetensors'
  for name, array in arrays.items():
    assert held.dtype(name) == array.dtype
    np.testing.assert_array_equal(held[name], array)


def test_npz_packed_or_not_come_back(tmp_path):
  arrays = {'a/w': np.asfortranarray(np.arange(6.0).reshape(2, 3)), 'b': np.arange(4, dtype='>i4'), 'c': np.array(2.5)}
  for save in (np.savez, np.savez_compressed):
    save(tmp_path / 'a.npz', **arrays)
    held = read(tmp_path / 'a.npz')
    for name, array in arrays.items():
      assert held[name].dtype.isnative
      np.testing.assert_array_equal(held[name], array)
