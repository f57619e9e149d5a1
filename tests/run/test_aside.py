"""Laws of `--fresh`: an old run is moved aside, and nothing else is."""

import pathlib

import pytest

from jaxlite.run.aside import set_aside
from jaxlite.run.workdir import WorkdirError


def contents(folder):
  return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


@pytest.fixture
def project(tmp_path):
  """Somebody's folder, with an old run somewhere in it."""
  folder = tmp_path / 'project'
  (folder / 'deep' / 'run' / 'checkpoints').mkdir(parents=True)
  (folder / 'code.py').write_text('mine')
  return folder


def test_a_run_several_runs_and_nothing_are_moved_aside(project):
  for folder in (project / 'deep', project / 'deep'):
    assert set_aside(folder).name.startswith('deep.old')
    (project / 'deep' / 'run' / 'checkpoints').mkdir(parents=True)
  assert set_aside(project / 'deep' / 'run') == project / 'deep' / 'run.old1'
  assert set_aside(project / 'nothing') is None
  (project / 'empty').mkdir()
  assert set_aside(project / 'empty') == project / 'empty.old1'


@pytest.mark.parametrize('where', ['a project', 'the folder that one stands in', 'a folder above it', 'a home'])
def test_a_folder_that_is_not_for_runs_alone_stays_where_it_is(where, project, monkeypatch):
  """`--workdir=. --fresh` renamed a whole project."""
  folder = project
  if where != 'a project':
    (project / 'checkpoints').mkdir()  # it is a run too
  if where == 'the folder that one stands in':
    monkeypatch.chdir(project)
    folder = pathlib.Path('.')
  elif where == 'a folder above it':
    monkeypatch.chdir(project / 'deep')
  elif where == 'a home':
    monkeypatch.setenv('HOME', str(project / 'deep'))
  before = contents(project)
  with pytest.raises(WorkdirError, match=r'fresh=True moves an old run aside, and .*another workdir') as caught:
    set_aside(folder)
  assert '\n' not in str(caught.value)
  assert contents(project) == before
