"""Folders for the tests of data sources: a cache of their own, and digits prepared once."""

import shutil

import pytest

from jaxlite.data import load


@pytest.fixture(scope='session')
def prepared(tmp_path_factory):
  """A folder where digits stand prepared and decoded; tests that write copy it."""
  root = tmp_path_factory.mktemp('cache')
  load('digits', directory=str(root))
  return root


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXLITE_DATA', str(tmp_path / 'home'))
  monkeypatch.delenv('TFDS_DATA_DIR', raising=False)
  return tmp_path / 'home'


@pytest.fixture
def copied(prepared, tmp_path):
  """The prepared digits, without what was decoded, as another TFDS data_dir."""
  base = tmp_path / 'tfds'
  shutil.copytree(prepared / 'digits', base / 'digits')
  return base
