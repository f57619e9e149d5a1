"""The notebook is true: its cells run from top to bottom, it changes no JAX, and whatever stops it, it goes on."""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import unoptimized
from jaxlite.run.watch import Preempted

ROOT = Path(__file__).parents[1]
FILE = ROOT / 'experiments' / 'colab.ipynb'
NOTEBOOK = json.loads(FILE.read_text())
CODE = [cell['source'] for cell in NOTEBOOK['cells'] if cell['cell_type'] == 'code']
CODE = [''.join(source) for source in CODE]
SETTINGS, INSTALL, FOLDER = CODE[:3]


def defined(source, until, **given):
  """What a cell defines above the line where it begins to act."""
  namespace = dict(given)
  exec(compile(source.split(until)[0], 'cell', 'exec'), namespace)
  return namespace


def short(source, folder):
  """A cell, of the settings in their short form and with this folder."""
  return source.replace('SHORT = False', 'SHORT = True').replace("FOLDER = ''", f'FOLDER = {str(folder)!r}')


def test_it_is_a_notebook_without_outputs_that_names_nobodys_machine():
  assert (NOTEBOOK['nbformat'], NOTEBOOK['nbformat_minor']) == (4, 5)
  assert NOTEBOOK['metadata']['kernelspec']['name'] == 'python3'
  names = [cell['id'] for cell in NOTEBOOK['cells']]
  assert len(set(names)) == len(names)
  for cell in NOTEBOOK['cells']:
    source = ''.join(cell['source'])
    assert source == source.strip()
    assert not re.search(r'/(home|root|tmp|work|Users)/', source), source
    if cell['cell_type'] == 'code':
      assert max(map(len, source.splitlines())) <= 120, source
      assert cell['outputs'] == []
      assert cell['execution_count'] is None
      compile(source, cell['id'], 'exec')  # plain Python: no magic, no shell
    else:
      assert cell['cell_type'] == 'markdown'
      assert cell.keys() == {'cell_type', 'id', 'metadata', 'source'}
  for target in re.findall(r'\]\(([^)\s]+)\)', FILE.read_text()):
    assert (FILE.parent / target).exists(), target


def test_what_it_installs_beside_is_what_the_package_asks_for():
  asked = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['dependencies']
  cell = defined(INSTALL, 'before, extra', SOURCE='')
  for name in ('jax', 'numpy'):
    assert f'{name}{cell["NEEDS"][name]}' in asked
  assert cell['NEEDS']['jaxlib'] == cell['NEEDS']['jax']
  assert {'jax', 'jaxlib', 'numpy'} <= cell['found']().keys()


KEPT = {
  'a CPU': {'jax': '0.10.2', 'jaxlib': '0.10.2', 'numpy': '2.4.6'},
  'a GPU': {
    'jax': '0.11.0',
    'jaxlib': '0.11.0',
    'numpy': '2.0.2',
    'jax-cuda12-plugin': '0.11.0',
    'jax-cuda12-pjrt': '0.11.0',
  },
  'a TPU': {'jax': '0.12.0', 'jaxlib': '0.12.0', 'numpy': '2.1.0', 'libtpu': '0.0.30'},
  'a build of their own': {'jax': '0.11.1.dev20261101', 'jaxlib': '0.11.1+cuda12.local', 'numpy': '2.3.0'},
  'nothing': {},
}


@pytest.mark.parametrize('name', KEPT)
def test_what_is_installed_is_pinned(name):
  cell = defined(INSTALL, 'before, extra', SOURCE='')
  assert cell['constraints'](KEPT[name], cell['NEEDS'], '') == [f'{n}=={v}' for n, v in sorted(KEPT[name].items())]


REFUSED = {
  'an old JAX': ({'jax': '0.7.2', 'jaxlib': '0.7.2', 'numpy': '2.0.2'}, '[cuda12]', 'jax[cuda12]>=0.10.1,<0.13'),
  'a JAX of the future': ({'jax': '0.13.0', 'jaxlib': '0.13.0', 'numpy': '2.0.2'}, '[tpu]', 'jax[tpu]>=0.10.1,<0.13'),
  'half of an old one': ({'jax': '0.10.2', 'jaxlib': '0.9.0', 'numpy': '2.0.2'}, '', 'jax>=0.10.1,<0.13'),
  'an old NumPy': ({'jax': '0.10.2', 'jaxlib': '0.10.2', 'numpy': '1.26.4'}, '', 'numpy>=2,<3'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_a_jax_that_cannot_work_is_refused_with_the_fix(name):
  have, extra, fix = REFUSED[name]
  cell = defined(INSTALL, 'before, extra', SOURCE='')
  with pytest.raises(RuntimeError, match=re.escape(f'%pip install --upgrade "{fix}"')) as caught:
    cell['constraints'](have, cell['NEEDS'], extra)
  assert 'Nothing was changed' in str(caught.value)


def test_it_installs_what_lies_near_or_says_that_nothing_does(tmp_path, monkeypatch):
  cell = defined(INSTALL, 'before, extra', SOURCE='')
  monkeypatch.chdir(ROOT / 'experiments')
  assert cell['source']() == str(ROOT)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(RuntimeError, match='upload'):
    cell['source']()
  (tmp_path / 'jaxlite-0.2.0-py3-none-any.whl').touch()
  assert cell['source']().endswith('any.whl')
  assert defined(INSTALL, 'before, extra', SOURCE='git+https://example.org/x')['source']().startswith('git+')


@pytest.mark.parametrize('loose', ['no', 'empty', 'dead'])
def test_in_colab_it_mounts_the_drive_anew_where_it_came_loose(loose, tmp_path, monkeypatch):
  asked, drive = [], tmp_path / 'drive'
  drive.mkdir()
  (drive / 'MyDrive').mkdir() if loose == 'no' else None

  class Drive:
    @staticmethod
    def mount(place, force_remount=False):
      asked.append((place, force_remount))

  class Colab:
    drive = Drive

  monkeypatch.setitem(sys.modules, 'google.colab', Colab)
  monkeypatch.setattr(os.path, 'ismount', lambda path: True)
  real = os.listdir

  def listdir(path='.'):
    if str(path) == str(drive) and loose == 'dead':
      raise OSError(107, 'Transport endpoint is not connected')
    return real(path)

  monkeypatch.setattr(os, 'listdir', listdir)
  cell = FOLDER.replace("'/content/drive'", repr(str(drive)))
  namespace = defined(cell, 'HOME = ', FOLDER='', pathlib=__import__('pathlib'), os=os)
  assert namespace['kept_in']() == drive / 'MyDrive' / 'jaxlite'
  assert asked == [(str(drive), loose != 'no')]


def in_a_plain_process(cells, folder):
  """Runs cells in Python as it is, in their short form and with small networks; returns what they print."""
  program = '\n'.join(short(source, folder / 'runs') for source in cells)
  for size, smaller in (('(64, 128)', '(4, 8)'), ('(32, 64)', '(2, 4)'), ('hidden=128', 'hidden=16')):
    assert program.count(size) == 1
    program = program.replace(size, smaller)
  (folder / 'cells.py').write_text(program)
  environment = {**os.environ, **unoptimized.environment(), 'MPLBACKEND': 'agg', 'PYTHONPATH': str(ROOT)}
  words = [sys.executable, str(folder / 'cells.py')]
  done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=environment, cwd=folder, check=False)
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_the_cells_up_to_the_student_run_in_a_plain_process(tmp_path):
  cells = CODE[: next(i for i, source in enumerate(CODE) if source.startswith('small ='))]
  made = "print('the student is made of', *(getattr(part, 'name', '') for part in recipe(student, 100).parts))"
  said = in_a_plain_process([*cells, made], tmp_path)
  assert re.search(r'teacher: needs .* MiB', said)
  assert re.search(r'the student is made of .*average.*fake_quant.*distill', said)


@pytest.mark.slow
def test_all_cells_run_in_a_plain_process_in_their_short_form(tmp_path):
  said = in_a_plain_process(CODE, tmp_path)
  assert re.search(r'\d+ of 360 right, from .*runs/short/student/deployed', said)


def test_a_run_that_was_stopped_is_one_line_in_a_notebook():
  stopped = Preempted('stopped by a signal at step 3 of 9; saved: run the same command to go on')
  said = ['Stopped by a signal at step 3 of 9; saved: run this cell again to go on.']
  assert stopped._render_traceback_() == said


# What follows needs a kernel.


class Kernel:
  """A kernel that runs cells one by one, as a person would."""

  def __init__(self, folder):
    from jupyter_client.manager import start_new_kernel

    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYDEVD_DISABLE_FILE_VALIDATION': '1'}
    environment.pop('MPLBACKEND', None)
    self.manager, self.client = start_new_kernel(cwd=str(folder), env=environment, startup_timeout=120)

  def run(self, source, seen=lambda text: None):
    """Runs a cell; tells `seen` each text that it prints. Returns (all its text, how it ended)."""
    asked, text = self.client.execute(source), ''
    while True:
      message = self.client.get_iopub_msg(timeout=300)
      if message['parent_header'].get('msg_id') != asked:
        continue
      kind, content = message['msg_type'], message['content']
      if kind == 'stream':
        text += content['text']
        seen(content['text'])
      if kind == 'error':
        return text, content
      if kind == 'status' and content['execution_state'] == 'idle':
        return text, None

  def kill(self):
    os.kill(self.manager.provisioner.pid, 9)

  def close(self):
    self.client.stop_channels()
    self.manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom_in_a_fresh_kernel_within_five_minutes(tmp_path):
  nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
  pytest.importorskip('ipykernel')
  notebook = nbformat.read(FILE, as_version=4)
  nbformat.validate(notebook)
  notebook.cells[2].source = notebook.cells[2].source.replace("FOLDER = ''", f'FOLDER = {str(tmp_path / "runs")!r}')
  environment = {name: value for name, value in os.environ.items() if name != 'MPLBACKEND'}
  environment |= {'PYTHONPATH': str(ROOT), 'XDG_CACHE_HOME': str(tmp_path / 'cache')}  # nothing is compiled yet
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  began = time.monotonic()
  nbclient.NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(tmp_path)}}).execute(
    env=environment
  )
  took = time.monotonic() - began
  print(f'the notebook took {took:.0f} s')
  outputs = [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs]
  text = ''.join(output.text for output in outputs if output.output_type == 'stream' and output.name == 'stdout')
  assert 'every bit of both runs is equal' in text
  assert 'resumed at step' in text
  assert sum('image/png' in output.get('data', {}) for output in outputs) == 3
  assert not [output.text for output in outputs if output.output_type == 'stream' and output.name == 'stderr']
  bars = [output for output in outputs if '<progress' in output.get('data', {}).get('text/html', '')]
  assert not bars  # they have ended
  assert '\r' not in text
  assert len(text) < 30_000
  assert took < 300


@pytest.mark.slow
def test_an_interrupt_and_a_killed_kernel_change_no_bit(tmp_path):
  pytest.importorskip('ipykernel')
  pytest.importorskip('jupyter_client')
  cells = CODE[: next(i for i, source in enumerate(CODE) if source.startswith('small =')) + 1]
  teach, learn = len(cells) - 2, len(cells) - 1

  def of(folder):
    return [short(source, folder).replace('epochs=2 if SHORT', 'epochs=12 if SHORT') for source in cells]

  digest = (
    "[jl.checkpoint.fingerprint(jl.checkpoint.load_arrays(HOME / name / 'checkpoints', ('params', 'opt_state', 'key', "
    "'step', 'model_state'), which='latest').state) for name in ('teacher', 'student')], taught.metrics, small.metrics"
  )
  kernel = Kernel(tmp_path)
  try:
    for source in of(tmp_path / 'straight'):
      assert kernel.run(source)[1] is None
    straight = kernel.run(f'print({digest})')[0]
  finally:
    kernel.close()

  kernel = Kernel(tmp_path)
  try:
    stopped = of(tmp_path / 'stopped')
    for source in stopped[:teach]:
      assert kernel.run(source)[1] is None

    def interrupts(text):
      if re.search(r'^step \d+', text, re.MULTILINE) and not done:
        done.append(kernel.manager.interrupt_kernel())

    done = []
    _, error = kernel.run(stopped[teach], interrupts)
    assert error['ename'] == 'Preempted'
    said = '\n'.join(error['traceback'])
    assert re.fullmatch(r'Stopped by a signal at step \d+ of \d+; saved: run this cell again to go on\.', said), said
    text, error = kernel.run(stopped[teach])
    assert error is None
    assert 'resumed at step' in text

    def kills(text):
      points.extend(re.findall(r'^step \d+', text, re.MULTILINE))
      if len(points) >= 4:  # the first checkpoints are written
        kernel.kill()
        raise ConnectionError

    points = []
    with pytest.raises(ConnectionError):
      kernel.run(stopped[learn], kills)
  finally:
    kernel.close()

  kernel = Kernel(tmp_path)
  try:
    texts = []
    for source in stopped:
      text, error = kernel.run(source)
      assert error is None, error
      texts.append(text)
    assert 'this run is finished' in texts[teach]
    assert 'resumed at step' in texts[learn]
    assert kernel.run(f'print({digest})')[0] == straight
  finally:
    kernel.close()


@pytest.mark.slow
def test_pip_changes_no_jax_under_the_constraints_and_would_without(tmp_path):
  cell = defined(INSTALL, 'before, extra', SOURCE='')
  keep = cell['constraints'](cell['found'](), cell['NEEDS'], '')
  (tmp_path / 'constraints.txt').write_text('\n'.join(keep))
  dry = [sys.executable, '-m', 'pip', 'install', '--dry-run', '--no-index', '--no-build-isolation', '--quiet']
  dry += ['--report', str(tmp_path / 'report.json'), '--constraint', str(tmp_path / 'constraints.txt')]

  def planned(where):
    done = subprocess.run([*dry, str(where)], capture_output=True, text=True, timeout=300)
    if done.returncode:
      return done.stderr
    return [one['metadata']['name'] for one in json.loads((tmp_path / 'report.json').read_text())['install']]

  assert planned(ROOT) in ([], ['jaxlite'])
  other = tmp_path / 'other'  # a package that wants another JAX: pip may not have it
  other.mkdir()
  (other / 'pyproject.toml').write_text('[project]\nname = "other"\nversion = "1"\ndependencies = ["jax<0.5"]\n')
  assert 'ResolutionImpossible' in planned(other)
  with pytest.raises(RuntimeError, match=r'(?s)changed nothing.*The user requested \(constraint\) jax=='):
    cell['pip'](['--no-index', '--no-build-isolation', '--dry-run', str(other)], keep)
