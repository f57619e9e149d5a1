"""What holds for every test: caches of the user are left alone, and shared within one session."""

import os
import tempfile

import pytest

# Before anything reads it, in this process and in those that tests start: compiled programs go to a folder of this
# session, so that the same program is compiled once and nobody's cache is touched. Workers of xdist share that of the
# process that started them.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _CACHE = tempfile.TemporaryDirectory(prefix='jaxlite-cache-')
  os.environ['XDG_CACHE_HOME'] = _CACHE.name
  # JAX's own cache, without a limit: with one it reads the whole folder for every program that it writes.
  os.environ['JAX_COMPILATION_CACHE_DIR'] = os.path.join(_CACHE.name, 'programs')
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
  # Keras reads both when it is first imported; it would write a file into the user's home.
  os.environ['KERAS_BACKEND'], os.environ['KERAS_HOME'] = 'jax', _CACHE.name


@pytest.fixture(autouse=True)
def _unoptimized(request: pytest.FixtureRequest):
  """Has XLA leave its optimizations out where a test says that it may: half of the time that a program takes to
  compile. Bits and speed are judged of programs as users get them."""
  if request.node.get_closest_marker('unoptimized') is None:
    yield
    return
  import jax

  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
