"""Laws of the page: one file that asks for nothing, told to everybody, in which no user's word is markup."""

import dataclasses
import json
import re

import numpy as np
import pytest

import sample_runs as samples
from jaxlite.report import folder_page, markup, style
from jaxlite.report.html_page import Table, html
from jaxlite.report.page import write
from jaxlite.report.pictures import png
from jaxlite.report.points import Points
from pages import check, shown

HOSTILE = [
  '<script>alert(1)</script>',
  '"><img src=x onerror=1>',
  "' onload='x",
  '&lt;b&gt;',
  '</style>',
  '\x00\ud800',
  '‮ab',
]


def run_folder(folder, name='student', **more):
  return samples.write_run(folder, samples.result(name, samples.answers(400, 0.9, 1), **more))


@pytest.fixture(scope='module')
def few(tmp_path_factory):
  root = tmp_path_factory.mktemp('few')
  for index, name in enumerate(('teacher', 'student', 'alone')):
    made = samples.result(name, samples.answers(400, 0.95 - index / 50, index), zero=0.9 * (index > 0), seed=index)
    samples.write_run(root / name, made, config={**samples.CONFIG, 'optim': {'lr': index}})
  samples.write_run(root / 'killed', samples.result('killed', [True]), points=samples.history(80), finished=False)
  return root


def test_a_page_of_one_run_has_every_section_and_every_number(tmp_path):
  run_folder(tmp_path / 'run', names=['cat', 'dog'] * 5)
  page = check(folder_page.write(tmp_path / 'run').read_text())
  headings = re.findall(r'<h2 id="[^"]+">(.*?)</h2>', (tmp_path / 'run' / 'report.html').read_text())
  assert headings == [
    'Results', 'Curves', 'On the test split', 'Worst mistakes', 'Sparsity and bits by layer', 'What each part did',
    'Forecast and actual', 'What the verdict rests on', 'Made by',
  ]  # fmt: skip
  text = ' '.join(page.text)
  for words in (
    'Verdict:',
    '95 % interval',
    'conv1/kernel',
    '20 updates; masks drawn 20 times',
    'a processor',
    'jax 0.10.2',
  ):
    assert words in text
  assert 'python launch.py --workdir=runs/student' in text
  assert '"lr": 0.001' in text
  assert len(page.all('img')) == 12
  assert 'expected calibration error 0.0' in text


def test_what_is_asked_for_first_stands_first(tmp_path):
  run_folder(tmp_path / 'run')
  files = {'format': 'onnx', 'bytes': 2, 'arithmetic': 'int8', 'score': 0.9, 'memory': 5}
  files['latency'] = {'1': [0.5, 0.75], '32': [2.5, 3.5]}
  other = {**files, 'format': 'pack', 'latency': {'1': [0.25, 0.5]}}
  (tmp_path / 'run' / 'deployed').mkdir()
  (tmp_path / 'run' / 'deployed' / 'deployed.json').write_text(json.dumps({'written': [files, other]}))
  text = check(shown(tmp_path / 'run')).text
  place = next(index for index, word in enumerate(text) if word.startswith('test accuracy, '))
  assert text[place + 1].endswith(' %')
  assert {'bytes packed', 'times smaller than float32'} <= set(text[place : text.index('Results')])
  assert text.index('ms at batch 32') == text.index('ms at batch 1') + 1
  row = text.index('pack', text.index('ms at batch 1'))
  assert text[row + 4 : row + 6] == ['0.25 / 0.5', '-']


def test_runs_side_by_side_are_compared_and_the_unfinished_is_told(few):
  page = check(folder_page.write(few).read_text())
  text = ' '.join(page.text)
  assert 'exact test of McNemar' in text
  assert 'stopped before its end' in text
  assert '4 runs: 3 finished, 1 stopped before its end' in text
  assert 'On the line' in text  # bytes against accuracy
  assert (few / 'report.md').read_text().count('McNemar') == 1


def test_an_empty_folder_has_a_page_and_a_missing_one_a_line(tmp_path):
  assert 'No run lies in this folder' in ' '.join(check(folder_page.write(tmp_path).read_text()).text)
  assert 'No run lies in this folder' in (tmp_path / 'report.md').read_text()
  with pytest.raises(ValueError, match='is not there: name one with --workdir'):
    folder_page.write(tmp_path / 'none')
  with pytest.raises(ValueError, match='is a file'):
    folder_page.write(tmp_path / 'report.html')


def test_a_page_is_the_same_twice_and_a_report_of_a_run_is_that_of_its_folder(tmp_path):
  run_folder(tmp_path / 'run')
  first = folder_page.write(tmp_path / 'run').read_bytes()
  assert folder_page.write(tmp_path / 'run').read_bytes() == first
  made = dataclasses.replace(samples.result('student', samples.answers(400, 0.9, 1)), history=samples.history())
  write([made], tmp_path / 'run')  # as a run does at its end
  assert (tmp_path / 'run' / 'report.html').read_bytes() == first


def test_what_users_write_is_text(tmp_path):
  names = [f'{word} {index}' for index, word in enumerate(HOSTILE)]
  made = samples.result(HOSTILE[0], samples.answers(400, 0.8, 1), classes=len(names), names=names)
  made.notes, made.command, made.machine = HOSTILE, HOSTILE[1], {HOSTILE[2]: HOSTILE[4]}
  made.layers = [layer._replace(path=word) for layer, word in zip(made.layers, HOSTILE, strict=False)]
  made.rows[0][0] = HOSTILE[1]
  made.parts = [HOSTILE[:4]]
  made.mistakes = [{'true': HOSTILE[0], 'picture': 'data:image/png;base64,"><script>'}, {'inputs': HOSTILE[4]}]
  points = [{**point, HOSTILE[0]: 0.5} for point in samples.history(40)]
  samples.write_run(tmp_path / 'a' / "x'><b>", made, points=points, config={'name': HOSTILE[0], HOSTILE[1]: HOSTILE[2]})
  samples.write_run(tmp_path / 'a' / 'other', samples.result(HOSTILE[1], samples.answers(400, 0.9, 1)))
  for folder in (tmp_path / 'a', tmp_path / 'a' / "x'><b>"):
    tables = [Table(HOSTILE[0], [HOSTILE[:2], [HOSTILE[3], HOSTILE[4]]], HOSTILE)]
    page = check(shown(folder, HOSTILE[2] + HOSTILE[0], tables))
    text = ''.join(page.text)
    for word in (HOSTILE[0], HOSTILE[1], HOSTILE[3], HOSTILE[4]):
      assert word in text
    assert not page.all('b')
  folder_page.write(tmp_path / 'a')  # and report.md can be written


def luminance(color):
  channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
  linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
  return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(one, other):
  low, high = sorted((luminance(one), luminance(other)))
  return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize('colors', [style.LIGHT, style.DARK], ids=['light', 'dark'])
def test_text_can_be_read_and_lines_be_seen_in_both_schemes(colors):
  assert contrast('#000000', '#ffffff') == pytest.approx(21)
  for name in style.ON_GROUND:
    assert min(contrast(colors[name], colors[ground]) for ground in ('ground', 'raised')) >= 4.5, name
  for name in style.CELLS:
    assert contrast(colors['ink'], colors[name]) >= 4.5, name
  for index in range(style.LINES):
    assert contrast(colors[f'c{index}'], colors['ground']) >= 3, index
  assert contrast(colors['soft'], colors['ground']) >= 4.5  # 0 in a confusion matrix, text of a picture


def test_the_style_takes_text_colors_from_the_tables_alone():
  bare = re.sub(r'--\w+: #\w{6};', '', style.CSS)
  assert not re.search(r'#[0-9a-fA-F]{3,8}\b|rgb|hsl', bare)
  assert set(re.findall(r'[^-]color: var\(--(\w+)\)', bare)) <= {'ink', *style.ON_GROUND}
  assert style.LIGHT.keys() == style.DARK.keys()


def test_a_hundred_runs_are_a_small_page(tmp_path):
  for index in range(100):
    made = samples.result(f'run{index}', samples.answers(200, 0.8 + index / 600, index), seed=index)
    samples.write_run(tmp_path / f'run{index}', made, points=samples.history(400, seed=index))
  text = shown(tmp_path)
  check(text)
  assert len(text) < 600_000
  assert text.index('>run2<') < text.index('>run10<')  # as people count
  assert text.index('Best test accuracy: ') < text.index('>run2<')
  (tmp_path / 'report.json').write_text(json.dumps({'tables': [{'caption': 'Trials', 'cells': [['trial'], ['7']]}]}))
  assert 'Best test accuracy' not in shown(tmp_path)  # validation chose, and test would choose another


def test_a_share_has_no_axis_beyond_a_hundred_percent(tmp_path):
  points = [{**point, 'accuracy': 1.0} if 'accuracy' in point else point for point in samples.history(400)]
  samples.write_run(tmp_path / 'run', samples.result('run', [True]), points=points)
  text = check(shown(tmp_path)).text
  ticks = text[text.index('Validation accuracy, %') :]
  assert '100' in ticks[: ticks.index('optimizer steps')]
  assert not {'102', '102.5', '105', '110', '120', '125'} & set(ticks[: ticks.index('optimizer steps')])


def test_a_million_points_are_a_small_page_that_shows_each_peak():
  steps = np.arange(1, 1_000_001)
  values = 1 / np.sqrt(steps)
  values[654_321] = 77.0
  made = samples.result('long', samples.answers(100, 0.9, 1))
  points = Points()
  points._columns['train', 'loss'] = (steps.astype(float), values)
  points.count = len(steps)
  from jaxlite.report.found import FINISHED, Run

  text = html([Run('long', '', FINISHED, points, made)])
  check(text)
  assert len(text) < 90_000
  drawn = re.search(r'<path class="line thin c0"[^>]* d="M([^"]+)"', text).group(1)
  heights = [float(pair.split()[1]) for pair in drawn.split('L')]
  assert min(heights) < 45
  assert sum(height < 45 for height in heights) == 1


def test_pictures_of_a_task_of_ones_own_stand_in_the_page(tmp_path):
  made = samples.result('own', samples.answers(100, 0.9, 1))
  made.figures = [['mine.png', 'What I drew'], ['confusion.png', 'drawn again here'], ['../up.png', 'not here']]
  folder = samples.write_run(tmp_path / 'run', made)
  for name in ('mine.png', 'confusion.png'):
    (folder / name).write_bytes(png(np.zeros((9, 9, 1), np.uint8)))
  (tmp_path / 'up.png').write_bytes(png(np.zeros((9, 9, 1), np.uint8)))
  page = check(shown(folder))
  assert [attrs['alt'] for attrs in page.all('img') if 'Test example' not in attrs['alt']] == ['What I drew']


def test_tables_of_a_study_stand_in_its_page(tmp_path):
  run_folder(tmp_path / 'trial1')
  study = {'title': 'Rates', 'tables': [{'caption': 'Best trials', 'cells': [['trial', 'lr'], ['1', 0.5], ['2']]}]}
  study['tables'][0]['pictures'] = [['front.png', 'The front'], ['../up.png', 'not here'], ['none.png', 'nor there']]
  (tmp_path / 'front.png').write_bytes(png(np.zeros((9, 9, 3), np.uint8)))
  (tmp_path / 'report.json').write_text(json.dumps(study))
  text = shown(tmp_path)
  assert '<h1>Rates</h1>' in text
  assert 'Best trials' in ' '.join(check(text).text)
  assert text.index('Best trials</h2>') < text.index('Results</h2>')
  assert [one['alt'] for one in check(text).all('img') if 'Test example' not in one['alt']] == ['The front']
  for damage in (
    '{',
    '[]',
    '{"tables": 3}',
    '{"tables": [{"cells": 1}]}',
    '{"tables": [{"caption": "x", "cells": [3]}]}',
  ):
    (tmp_path / 'report.json').write_text(damage)
    assert 'report.json is damaged' in ' '.join(check(shown(tmp_path)).text)


def test_escaping_leaves_nothing_that_is_markup():
  for word in HOSTILE:
    written = markup.escaped(word)
    assert not set('<>"\'') & set(written)
    written.encode()
  assert markup.escaped('a\x00b') == 'a\ufffdb'
