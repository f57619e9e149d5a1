"""A run can do without pictures: where matplotlib is missing, or a task's own picture fails, the rest stands."""

import dataclasses
import sys

import jax.numpy as jnp
import pytest

import jaxlite as jl
import tunable
from jaxlite.report import folder_page
from jaxlite.tasks import Figure
from jaxlite.tasks.figures import lacking

pytestmark = pytest.mark.unoptimized

MISSING = 'matplotlib is not installed: pip install matplotlib'


@pytest.fixture
def no_matplotlib(monkeypatch):
  """As Python finds it where it was never installed."""
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  monkeypatch.delitem(sys.modules, 'jaxlite.report.figures', raising=False)


def test_a_run_and_a_study_end_without_matplotlib(tmp_path, no_matplotlib):
  said = []
  given = {'model': tunable.network(), 'data': tunable.data(), 'say': said.append}
  result = jl.train(tunable.config(4), tmp_path / 'run', **given)
  assert sum(MISSING in line for line in said) == 1
  assert result.metrics
  assert not result.figures
  assert not list((tmp_path / 'run').glob('*.png'))
  told = (tmp_path / 'run' / 'report.md').read_text()
  assert MISSING in told
  assert '![' not in told
  assert '<svg' in (tmp_path / 'run' / 'report.html').read_text()
  assert 'Confusion matrix' in (tmp_path / 'run' / 'report.html').read_text()
  assert MISSING in folder_page.write(tmp_path / 'run').with_name('report.md').read_text()
  space = {'seed': jl.tuning.integer(0, 9)}
  found = jl.tune(tunable.config(4), tmp_path / 'study', space, method='random', trials=1, stop='none', **given)
  assert found.best is not None
  assert f'no pictures were drawn: {MISSING}' in (tmp_path / 'study' / 'report.md').read_text()
  assert MISSING in folder_page.write(tmp_path / 'study').read_text()


def test_a_damaged_matplotlib_is_told_from_a_missing_one(monkeypatch):
  class Damaged:
    def find_spec(self, name, path=None, target=None):
      if name.startswith('matplotlib'):
        raise ImportError('libfreetype.so.6: cannot open\nshared object file')

  for name in [name for name in sys.modules if name.split('.')[0] == 'matplotlib']:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setattr(sys, 'meta_path', [Damaged(), *sys.meta_path])
  assert lacking() == (
    'matplotlib cannot be imported (libfreetype.so.6: cannot open shared object file): '
    'pip install --force-reinstall matplotlib'
  )


def test_a_picture_that_fails_costs_no_run_its_result(tmp_path):
  def broken(values, facts, title):
    return [Figure('mine', 'what I drew', lambda: jnp.zeros(3)), *own.figures(values, facts, title)]

  own, said = jl.tasks.classification(), []
  data = tunable.data()._replace(task=own._replace(figures=broken))
  config = dataclasses.replace(tunable.config(4))
  result = jl.train(config, tmp_path, model=tunable.network(), data=data, say=said.append)
  (line,) = [line for line in said if "the picture 'mine'" in line]
  assert 'AttributeError' in line
  assert [file for file, _ in result.figures] == ['confusion.png']
  assert any("the picture 'mine'" in note for note in result.notes)
  assert (tmp_path / 'confusion.png').is_file()
  assert 'could not be drawn' in (tmp_path / 'report.html').read_text()
