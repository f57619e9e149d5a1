"""What holds for every test: caches of the user are left alone, and shared within one session."""

import os
import tempfile

# Before anything reads it, in this process and in those that tests start: compiled programs go to a folder of this
# session, so that the same program is compiled once and nobody's cache is touched.
_CACHE = tempfile.TemporaryDirectory(prefix='jaxlite-cache-')
os.environ['XDG_CACHE_HOME'] = _CACHE.name
# Keras reads both when it is first imported; it would write a file into the user's home.
os.environ['KERAS_BACKEND'], os.environ['KERAS_HOME'] = 'jax', _CACHE.name
