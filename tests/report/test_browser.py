"""The page as a browser has it: nothing is cut off at any width, in print or by scheme, and nothing is fetched."""

import dataclasses
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

import sample_runs as samples
from jaxlite.report import folder_page
from jaxlite.report.page import write

BROWSER = next(
  filter(None, map(shutil.which, ('chromium-headless-shell', 'chromium', 'chromium-browser', 'google-chrome'))), None
)
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(BROWSER is None, reason='no browser is installed: apt-get install chromium-headless-shell'),
]
# What a page measures of itself, written where the browser's own dump of it shows it.
PROBE = """<script>
addEventListener('load', function () {
  var wide = document.documentElement.clientWidth, out = [], small = [];
  document.querySelectorAll('body *').forEach(function (one) {
    if (one.closest('.scroll') && !one.matches('.scroll') || one.closest('.skip')) return;
    var box = one.getBoundingClientRect();
    if (box.width && (box.right > wide + 1 || box.left < -1)) out.push(one.tagName + one.textContent.slice(0, 40));
    if (one.tagName === 'text' && box.height < 8) small.push(one.textContent);
  });
  document.title = JSON.stringify({out: out.slice(0, 5), small: small.slice(0, 5), wide: wide,
    scroll: document.documentElement.scrollWidth, ready: performance.now(),
    asked: performance.getEntriesByType('resource').map(function (one) { return one.name; }).filter(
      function (name) { return name.slice(0, 5) !== 'data:'; })});
});
</script></body>"""


def browse(path, *words, width=1280, height=900, dark=False):
  scheme = ['--blink-settings=preferredColorScheme=0'] if dark else []
  command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', *scheme]
  command += [f'--window-size={width},{height}', *words, path.as_uri()]
  return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def measured(path, folder, **how):
  """What a copy of the page, free to run a script, finds out about itself."""
  text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', '', path.read_text())
  copy = folder / 'measured.html'
  copy.write_text(text.replace('</body>', PROBE))
  dumped = browse(copy, '--dump-dom', **how).stdout
  return json.loads(html.unescape(re.search(r'<title>(.*?)</title>', dumped, re.DOTALL).group(1)))


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
  root = tmp_path_factory.mktemp('pages')
  names = ['T-shirt', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot']
  made = samples.result('student', samples.answers(2000, 0.93, 1), names=names, zero=0.9)
  samples.write_run(root / 'one', made)
  write([dataclasses.replace(made, history=samples.history())], root / 'one')
  for index in range(100):
    made = samples.result(f'run{index}', samples.answers(500, 0.8 + index / 600, index), zero=index / 100, seed=index)
    samples.write_run(
      root / 'many' / f'run{index}', made, points=samples.history(2000, rate=0.3 + index / 60, seed=index)
    )
  for index, name in enumerate(('teacher', 'student with a rather long name of its own', 'alone')):
    for seed in range(2):
      made = samples.result(
        f'{name}-{seed}', samples.answers(500, 0.95 - index / 50, seed + index), zero=0.9, seed=seed
      )
      config = {**samples.CONFIG, 'optim': {'lr': index}}
      samples.write_run(root / 'few' / f'{index}-{seed}', made, config=config, seed=seed)
  samples.write_run(root / 'classes', samples.result('hundred', samples.answers(3000, 0.8, 1), classes=100))
  (root / 'empty').mkdir()
  return {folder.name: folder_page.write(folder) for folder in root.iterdir()}


@pytest.mark.parametrize('name', ['one', 'few', 'many', 'classes', 'empty'])
@pytest.mark.parametrize('width', [500, 1280])  # a headless window is 500 wide at least
def test_nothing_is_cut_off_and_nothing_is_fetched(pages, tmp_path, name, width):
  found = measured(pages[name], tmp_path, width=width)
  assert found['scroll'] <= found['wide'], found
  assert not found['out'] + found['asked'] + found['small'], found
  assert found['ready'] < 2000


@pytest.mark.parametrize('name', ['one', 'few', 'many'])
def test_nothing_is_cut_off_on_a_phone(pages, tmp_path, name):
  """390 wide, in a frame: no window is that narrow."""
  text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', '', pages[name].read_text())
  (tmp_path / 'inner.html').write_text(
    text.replace('</body>', PROBE.replace('document.title =', 'parent.document.title ='))
  )
  frame = (
    '<!doctype html><title>x</title><body style="margin:0"><iframe src="inner.html" width="390" height="800"></iframe>'
  )
  (tmp_path / 'frame.html').write_text(frame)
  dumped = browse(tmp_path / 'frame.html', '--dump-dom', '--allow-file-access-from-files').stdout
  found = json.loads(html.unescape(re.search(r'<title>(.*?)</title>', dumped, re.DOTALL).group(1)))
  assert found['scroll'] <= found['wide'] <= 390, found
  assert not found['out'] + found['small'], found


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
def test_the_schemes_are_those_that_were_computed(pages, tmp_path, dark):
  browse(pages['one'], f'--screenshot={tmp_path / "shot.png"}', dark=dark)
  with Image.open(tmp_path / 'shot.png') as shot:
    pixels = np.asarray(shot.convert('RGB'))
  corner = pixels[2, 2].tolist()
  assert corner == ([0x14, 0x18, 0x1C] if dark else [255, 255, 255])
  assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_it_prints(pages, tmp_path):
  for name in ('one', 'many'):
    browse(pages[name], f'--print-to-pdf={tmp_path / name}.pdf', '--no-pdf-header-footer')
    data = (tmp_path / f'{name}.pdf').read_bytes()
    assert data.startswith(b'%PDF')
    assert 1 < data.count(b'/Type /Page\n') + data.count(b'/Type /Page ') < 40
