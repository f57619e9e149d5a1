"""C files compiled once, and a clean way back where they cannot be."""

import os

import pytest

from jaxlite.cpu.kernels import compiler

NAMES = {'handlers': False, 'direct': True}  # tuned for the processor or not


def needed():
  """Where there is a compiler, a file that does not compile is a mistake, not a reason to skip."""
  if compiler.compiler() is None:
    pytest.skip('this machine has no C compiler')


@pytest.mark.parametrize('name', NAMES)
def test_a_file_is_compiled_once(name, tmp_path, monkeypatch):
  needed()
  first = compiler.built(name, tmp_path, tuned=NAMES[name])
  assert first
  monkeypatch.setenv('PATH', '')
  assert compiler.built(name, tmp_path, tuned=NAMES[name]) == first
  assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_what_is_tuned_belongs_to_a_processor_and_what_is_not_to_all_of_a_kind(tmp_path, monkeypatch):
  needed()
  for name, tuned in NAMES.items():
    found = set()
    for flags in ('flags : a', 'flags : b'):
      monkeypatch.setattr(compiler, 'abilities', lambda flags=flags: flags)
      found.add(compiler.built(name, tmp_path, tuned=tuned))
    assert len(found) == 1 + tuned


def fake(folder, text):
  compiler = folder / 'compiler'
  compiler.write_text(text)
  compiler.chmod(0o755)
  return str(compiler)


@pytest.mark.parametrize('name', NAMES)
def test_without_a_compiler_or_with_a_broken_one_there_is_none_and_no_leavings(name, tmp_path, monkeypatch):
  cache = tmp_path / 'cache'
  monkeypatch.setenv('CC', fake(tmp_path, '#!/bin/sh\nexit 1\n'))
  assert compiler.built(name, cache, tuned=NAMES[name]) is None
  assert list(cache.iterdir()) == []
  monkeypatch.delenv('CC')
  monkeypatch.setenv('PATH', str(tmp_path))
  assert compiler.built(name, cache, tuned=NAMES[name]) is None


def test_a_compiler_that_knows_no_tuning_is_asked_without(tmp_path, monkeypatch):
  needed()
  refuse = 'for one; do case "$one" in -m*) exit 1;; esac; done'
  refuse = f'#!/bin/sh\n{refuse}\nexec {compiler.compiler()} "$@"\n'
  monkeypatch.setenv('CC', fake(tmp_path, refuse))
  assert compiler.built('direct', tmp_path / 'cache', tuned=True)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
  (tmp_path / 'file').write_text('')
  assert compiler.built('handlers', tmp_path / 'file' / 'folder') is None


def test_what_was_compiled_but_cannot_be_loaded_is_no_error(tmp_path, monkeypatch):
  monkeypatch.setenv('CC', fake(tmp_path, '#!/bin/sh\nfor last; do :; done\necho no library > "$last"\n'))
  assert compiler.load('handlers', folder=tmp_path / 'handlers') is None
  assert os.listdir(tmp_path / 'handlers')
