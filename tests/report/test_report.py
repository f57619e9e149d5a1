"""Laws of the report: what it counts, that both tables say the same, and pictures that show what is there."""

import dataclasses
import math
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import scipy.stats
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from jaxlite.deployment.inventory import Layer, stored_bytes
from jaxlite.host import machine
from jaxlite.report import figures, page, svg, tables
from jaxlite.report.result import Result, from_json, to_json
from jaxlite.tasks import classification


def _history(steps=200):
  points = []
  for step in range(10, steps + 1, 10):
    points.append({'kind': 'train', 'step': step, 'time': 0.0, 'loss': 2 / step, 'lr': 1 / step})
    if step % 40 == 0:
      points.append({'kind': 'validation', 'step': step, 'time': 0.0, 'loss': 3 / step, 'accuracy': 1 - 1 / step})
  return points


def _result(name='student', mistakes=2, nonzero=9):
  confusion = np.diag([20.0, 30.0, 10.0])
  confusion[1, 2], confusion[1, 1] = mistakes, 30 - mistakes
  metrics = {'accuracy': np.trace(confusion) / confusion.sum(), 'loss': 0.0625, 'top2_accuracy': 1.0}
  metrics |= {f'{a}_{b}': 0.5 for a in ('precision', 'recall', 'f1') for b in ('micro', 'macro', 'weighted')}
  layers = [Layer('dense/kernel', 90, nonzero, 8, True, 3), Layer('dense/bias', 10, 10, 32, False)]
  task, facts = classification(), {'classes': 3, 'class_names': ['a', 'b', 'c'], 'top': (2,)}
  result = Result(
    name, metrics, layers, 12.34, _history(), task.name, facts, [list(row) for row in task.rows], list(task.curve),
    60, 'accuracy', {'confusion': confusion.tolist()}, command='python launch.py', versions={'jax': '0'},
  )  # fmt: skip
  result.machine = {'cores': '2'}
  result.tables = task.tables({**metrics, 'confusion': confusion}, facts)
  return result


def test_stored_bytes_are_those_of_arrays_that_are_really_packed():
  random = np.random.default_rng(0)
  for _ in range(200):
    size = int(random.integers(1, 300))
    values = random.integers(-127, 128, size=size, dtype=np.int8) * (random.random(size) < random.random())
    sparse = values[values != 0].nbytes + np.packbits(values != 0).nbytes
    found = stored_bytes(size, int((values != 0).sum()), 8)
    assert found == min(sparse, values.astype(np.int8).nbytes)
    assert stored_bytes(size, size, 32, scales=2) == np.zeros(size, np.float32).nbytes + 8


def test_sparsity_and_bits_are_of_weights_and_bytes_of_everything():
  result = _result()
  assert result.parameters == 100
  assert result.sparsity == 0.9
  assert result.bits == '8'
  assert result.bytes == (9 + 12 + 3 * 4) + 40
  assert Result('x', {}).sparsity == Result('x', {}).bytes == 0


def test_the_interval_is_wilsons():
  for mistakes in (0, 1, 7, 30):
    result = _result(mistakes=mistakes)
    low, high = scipy.stats.binomtest(60 - mistakes, 60).proportion_ci(method='wilson')
    cells = dict(row for row in tables.rows([result]))
    assert cells['  95 % interval'] == f'{100 * low:.1f} to {100 * high:.1f} %'


def test_terminal_and_markdown_say_the_same():
  results = [_result('teacher', 0, 90), _result('student', 3, 9), Result('bare', {'accuracy': 0.5}, seconds=1)]
  cells = tables.rows(results)
  plain = [re.split(r' {2,}', line.strip()) for line in tables.table(results).splitlines()]
  lines = tables.markdown(cells).splitlines()
  marked = [[cell.strip() for cell in line.strip('|').split('|')] for index, line in enumerate(lines) if index != 1]
  assert plain[0] == ['teacher', 'student', 'bare']
  assert plain[1:] == [[cell.strip() for cell in row] for row in cells[1:]] == marked[1:]
  widths = {len(line) for line in tables.table(results).splitlines()}
  assert len(widths) == 1  # right-aligned: every line ends where the last column does
  assert len({len(line) for line in lines}) == 1


def test_a_result_survives_json():
  result = _result()
  result.metrics['loss'] = np.float32(0.25)
  result.evidence['confusion'] = np.asarray(result.evidence['confusion'])
  back = from_json(to_json(result))
  assert tables.rows([back]) == tables.rows([result])
  assert back.layers == result.layers
  assert back.history == []  # it stays in metrics.jsonl, and is kept once
  result.metrics['loss'] = math.nan
  assert math.isnan(from_json(to_json(result)).metrics['loss'])


def test_a_report_is_whole_and_the_same_twice(tmp_path):
  before = dict(matplotlib.rcParams)
  files = []
  for folder in (tmp_path / 'one', tmp_path / 'two'):
    folder.mkdir()
    drawn = _result()
    drawn.figures = [['roc.png', 'A picture that the task drew in the run']]
    path = page.write([_result('teacher', 0, 90), drawn], folder, ['', 'student'])
    text = path.read_text()
    assert '](student/roc.png)' in text
    pictures = [file for file in re.findall(r'\]\((.*?\.png)\)', text) if '/' not in file]
    assert sorted(pictures) == sorted(file.name for file in folder.glob('*.png'))
    assert {file.name for file in folder.iterdir()} == {*pictures, 'report.md', 'report.html'}
    files.append({file.name: file.read_bytes() for file in folder.iterdir()})
  assert files[0] == files[1]
  assert {'curves.png', 'sparsity.png'} <= files[0].keys()
  assert dict(matplotlib.rcParams) == before
  for row in tables.rows([_result('teacher', 0, 90), _result()]):
    assert all(cell.strip() in text for cell in row)
  for words in ('python launch.py', 'jax 0', 'cores 2', tables.PACKED, 'dense/kernel'):
    assert words in text
  assert text.count('Command') == 1  # shared facts are said once


def test_pyplot_and_its_windows_stay_out():
  code = (
    'import sys, tempfile\nfrom jaxlite.report import page\nfrom jaxlite.report.result import Result\n'
    "assert 'matplotlib' not in sys.modules\n"
    "page.write([Result('x', {'accuracy': 1.0}, tables=[[['a', 'b'], ['c', 'd']]])], tempfile.mkdtemp())\n"
    "assert 'matplotlib.pyplot' not in sys.modules and 'jax' not in sys.modules\n"
  )
  subprocess.run([sys.executable, '-W', 'error', '-c', code], check=True)


def _orange(path):
  with Image.open(path) as image:
    pixels = np.asarray(image.convert('RGB')).astype(int)
  return int(((pixels[..., 0] - pixels[..., 2]) > 20).sum())


def test_one_mistake_in_sixty_can_be_seen_and_none_leaves_no_trace(tmp_path):
  for mistakes in (0, 1):
    matrix = np.asarray(_result(mistakes=mistakes).evidence['confusion'])
    figures.save(figures.confusion(matrix, [], 'x'), tmp_path / 'x.png')
    assert (_orange(tmp_path / 'x.png') > 1000) is bool(mistakes)


def test_a_picture_is_drawn_once_and_is_what_savefig_draws(tmp_path):
  drawn = []

  class Counted(Line2D):
    def draw(self, renderer):
      drawn.append(renderer)
      super().draw(renderer)

  picture = figures.curves({'run': _history()})
  picture.axes[0].add_line(Counted([0, 200], [0, 1]))
  before = picture.dpi
  figures.save(picture, tmp_path / 'one.png')
  assert len(drawn) == 1
  assert picture.dpi == before
  picture.savefig(tmp_path / 'other.png', dpi=160, facecolor='white')
  assert (tmp_path / 'one.png').read_bytes() == (tmp_path / 'other.png').read_bytes()
  own = Figure(facecolor='black')  # a person's, on a canvas of its own
  own.savefig(tmp_path / 'own.png', dpi=160, facecolor='white')
  figures.save(own, tmp_path / 'saved.png')
  assert (tmp_path / 'saved.png').read_bytes() == (tmp_path / 'own.png').read_bytes()


def test_bars_are_as_long_as_what_is_left():
  layers = [Layer('a', 100, 25), Layer('b', 10, 10), Layer('c', 8, 0)]
  axes = figures.sparsity({'run': layers}).axes[0]
  assert [bar.get_width() for bar in axes.patches] == [100, 100, 100, 25, 100, 0]
  assert figures.sparsity({'run': [Layer('a', 4, 4)]}) is None
  assert figures.sparsity({}) is None


def test_a_dot_is_the_step_that_was_tested_and_nothing_else():
  history = [{'kind': 'train', 'step': 9, 'loss': 2.0}, {'kind': 'validation', 'step': 4, 'loss': 1.0, 'accuracy': 0.5}]
  history.append({'kind': 'validation', 'step': 8, 'loss': 1.0, 'accuracy': 0.6})
  loss, accuracy = figures.curves({'run': history}, {'run': 8}).axes
  assert [line.get_marker() for line in loss.lines] == ['_', 'None']
  assert [(line.get_marker(), *line.get_xdata()) for line in accuracy.lines][1:] == [('o', 8.0)]
  line = svg.Line('run, training', np.array([9.0]), np.array([2.0]), 0, 'thin')
  assert '<circle' not in svg.chart('Loss', [line], 'steps')
  assert '<circle' in svg.chart('Loss', [line._replace(kind='')], 'steps')


def test_curves_show_the_points_that_are_numbers():
  history = [*_history(), {'kind': 'train', 'step': 210, 'loss': math.nan}, {'kind': 'validation', 'step': 5}]
  loss, accuracy, rate = figures.curves({'run': history}).axes
  steps = [point['step'] for point in history if point['kind'] == 'train'][:-1]
  assert loss.lines[0].get_xdata().tolist() == steps
  assert max(accuracy.lines[0].get_ydata()) == 100 * (1 - 1 / 200)
  assert rate.get_title(loc='left') == 'Learning rate'
  assert figures.curves({'run': []}) is None
  assert figures.curves({'run': [{'kind': 'train', 'step': 1, 'loss': math.inf}]}) is None


@pytest.mark.parametrize('classes', [2, 3, 21, 60])
def test_odd_names_and_sizes_draw_without_a_warning(tmp_path, classes):
  confusion = np.full((classes, classes), 0.5)
  confusion[0] = 0
  names = (['$5 $', '_{x}|', 'コート', 'a very long name that must be cut', ''] * classes)[:classes]
  task, facts = classification(), {'classes': classes, 'class_names': names, 'top': ()}
  history = [{'kind': 'validation', 'step': 1, 'accuracy': 0.0, 'loss': 0.0}]
  result = Result('r$un_|', {'accuracy': math.nan}, [Layer('x' * 60, 0, 0), Layer('y', 3, 0)], history=history)
  result.tables = task.tables({'confusion': confusion}, facts)
  path = page.write([result], tmp_path)
  for picture in task.figures({'confusion': confusion}, facts, 'r$un_|'):
    figures.save(picture.draw(), tmp_path / f'{picture.slug}.png')
  for file in tmp_path.glob('*.png'):
    with Image.open(file) as image:
      assert min(image.size) > 150
  cells = [re.sub(r'\\\|', '', line).count('|') for line in path.read_text().splitlines() if line.startswith('|')]
  assert set(cells) <= {3, 5, 6, 7}  # a bar in a name opens no column: runs, averages, classes, layers


def test_misuse_is_one_line(tmp_path):
  for results in ([], [_result(), _result()], [_result('a b'), _result('a-b')]):
    with pytest.raises(ValueError, match='name of its own'):
      page.write(results, tmp_path)
  assert not list(tmp_path.iterdir())


def test_facts_name_what_the_numbers_depend_on():
  versions = machine.versions()
  assert {'python', 'jax', 'jaxlib', 'numpy'} <= versions.keys()
  facts = machine.machine()
  assert all(isinstance(value, str) and value for value in facts.values())
  assert int(facts['cores']) >= 1


def test_a_result_at_the_end_of_a_cell_is_its_table_however_long_its_history():
  result = Result('mine', {'accuracy': 0.5}, seconds=3, rows=[['test accuracy', 'accuracy', 'percent']])
  long = dataclasses.replace(result, history=[{'kind': 'train', 'step': step} for step in range(1000)])
  assert repr(long) == tables.table([result])
  assert len(repr(long).splitlines()) == 3


def test_names_are_no_markup_in_markdown():
  cells = tables.markdown([['', 'F1'], ['<b>x</b>', '1'], ['*s*', '2'], ['`dense/*`', '3'], ['a < b &amp; c', '4']])
  assert re.findall(r'^\| (.*?) +\|', cells, re.M)[1:] == [
    r'\<b>x\</b>', r'\*s\*', '`dense/*`', r'a \< b \&amp; c',
  ]  # fmt: skip
