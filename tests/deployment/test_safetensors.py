"""Laws of safetensors files: the format's own reader finds every bit, and what is no such file is refused."""

import contextlib

import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
from jaxlite.host.safetensors_file import read_safetensors, safetensors_bytes, write_safetensors

ARRAYS = {
  'a.kernel': np.arange(6, dtype=np.float32).reshape(2, 3),
  'odd': np.array([1, 2, 3], np.int8),
  'scalar': np.float64(2.5),
  'none': np.zeros((0, 4), np.float16),
  'special': np.array([np.nan, -0.0, np.inf], np.float32),
  'brain': np.asarray(jnp.arange(5, dtype=jnp.bfloat16)),
  'flags': np.array([True, False]),
  'turned': np.arange(6, dtype=np.float32).reshape(2, 3).T,
}


def test_its_own_reader_and_ours_find_every_bit(tmp_path):
  from safetensors import safe_open
  from safetensors.flax import load_file

  write_safetensors(tmp_path / 'x.safetensors', ARRAYS, {'class_names': '["a"]'})
  theirs = load_file(tmp_path / 'x.safetensors')
  ours, about = read_safetensors(tmp_path / 'x.safetensors')
  with safe_open(tmp_path / 'x.safetensors', 'numpy') as file:
    assert file.metadata() == about == {'class_names': '["a"]'}
  assert set(theirs) == set(ours) == set(ARRAYS)
  for name, array in ARRAYS.items():
    assert ours[name].shape == np.shape(array)
    assert ours[name].tobytes() == np.ascontiguousarray(array).tobytes()
    if array.dtype != np.float64:  # JAX makes float32 of it
      assert np.asarray(theirs[name]).tobytes() == np.ascontiguousarray(array).tobytes()


def test_what_is_damaged_is_refused():
  data = safetensors_bytes(ARRAYS)
  size = 8 + int.from_bytes(data[:8], 'little')
  for cut in (0, 5, 40, size, len(data) - 1):
    with pytest.raises(ValueError, match='no safetensors file'):
      read_safetensors(data[:cut])
  with pytest.raises(ValueError, match='left over'):
    read_safetensors(data + b'x')
  for at in range(8, size, 7):  # another table: read otherwise, or refused
    with contextlib.suppress(ValueError):
      read_safetensors(data[:at] + bytes([data[at] ^ 5]) + data[at + 1 :])


def test_a_dtype_without_a_word_is_told():
  with pytest.raises(ValueError, match=r"no word for complex64, the dtype of 'z'"):
    safetensors_bytes({'z': np.zeros(2, np.complex64)})


def test_two_values_that_would_have_one_name_are_refused(tmp_path):
  params = {'a': {'b': np.ones((3, 2), np.float32)}, 'a.b': np.ones(2, np.float32)}
  network = jl.Network(jl.from_function(lambda p, x: x @ p['a']['b'] + p['a.b'], params), params, {})
  with pytest.raises(ValueError, match=r"two are 'params\.a\.b': rename one of them"):
    jl.deploy(network, 'safetensors', out=tmp_path, examples=np.ones((4, 3), np.float32), say=lambda line: None)
