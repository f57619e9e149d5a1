"""What holds for every test: caches of the user are left alone and shared within one session, and what is quick."""

import gc
import os
import signal
import sys
import tempfile
from pathlib import Path

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

# A shell that starts this in its background has it ignore Ctrl-C, and every process that a test would end that way too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).parent
# The inner loop: of each room what is tested within seconds and imports little. Names of files below tests/.
QUICK = (
  *('test_contract', 'test_imports', 'test_surface', 'test_trees', 'config/*', 'report/test_report'),
  *('deployment/test_engine', 'deployment/test_inventory', 'deployment/test_linalg', 'deployment/test_pa[ct]*'),
  *('checkpoint/test_roundtrip', 'data/test_[abcdefipst]*', 'distillation/test_divergences', 'graph/test_[pw]*'),
  *(
    'host/test_files',
    'host/test_gc_pause',
    'host/test_preempt',
    'models/test_models_norm',
    'models/test_embedding_bag',
  ),
  *('optim/test_phases', 'optim/test_plateau', 'optim/test_schedules', 'optim/test_averages', 'pruning/test_prune'),
  *(
    'pruning/test_scores',
    'pruning/test_threshold',
    'quantization/test_quantize',
    'quantization/test_quantize_oracles',
  ),
  *('run/test_records', 'run/test_workdir', 'run/test_loop_refusals', 'step/test_warm_up', 'step/test_platforms'),
  *('tasks/test_losses', 'tasks/test_ranking', 'tasks/test_tasks', 'step/test_train_step', 'models/test_embedding_bag'),
)
MOST_RESIDENT = 3 << 30  # bytes
_SLOWER = ('data/test_sources.py',)
# What starts processes or compiles long: begun first, so that no worker is left alone with one of them at the end.
FIRST = (
  'laws/test_resume',
  'test_readme',
  'test_wheel',
  'run/test_launch',
  'host/test_hardware',
  'pruning/test_sharded',
)


def _quick() -> set[Path]:
  return {path for name in QUICK for path in HERE.glob(f'{name}.py')} - {HERE / name for name in _SLOWER}


def pytest_configure(config: pytest.Config) -> None:
  """With `-m quick` leaves the other files unread: importing them all takes longer than the tests."""
  if config.option.markexpr == 'quick':
    quick = _quick()
    others = [str(path) for path in HERE.rglob('test_*.py') if path not in quick]
    config.option.ignore = [*(config.option.ignore or ()), *others, str(HERE.parent / 'jaxlite')]


@pytest.hookimpl(wrapper=True)
def pytest_collection():
  """Python's collector leaves alone what importing makes, which stays to the end, and comes less often afterwards: it
  took a tenth of the processor."""
  gc.disable()
  try:
    return (yield)
  finally:
    gc.enable()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.hookimpl(tryfirst=True)  # before marks select
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  first = {HERE / f'{name}.py' for name in FIRST}
  items.sort(key=lambda item: item.path not in first)
  _thin(items)
  quick = _quick()
  for item in items:
    if not isinstance(item, pytest.Function):  # an example of a docstring
      item.add_marker('unoptimized')
    if item.path in quick and item.get_closest_marker('slow') is None:
      item.add_marker('quick')


def _thin(items: list[pytest.Item]) -> None:
  """Of a test that is marked `sampled(n)`, n cases that lie evenly among all are run each time; the others are slow."""
  cases: dict[tuple[Path, str], list[pytest.Item]] = {}
  for item in items:
    if item.get_closest_marker('sampled') is not None:
      cases.setdefault((item.path, item.nodeid.split('[')[0]), []).append(item)
  for found in cases.values():
    last, most = len(found) - 1, found[0].get_closest_marker('sampled').args[0]
    kept = {round(last * place / max(1, most - 1)) for place in range(most)}
    for place, item in enumerate(found):
      if place not in kept:
        item.add_marker('slow')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
  """Compiles in a third of the time where a test says that this will do, also what its fixtures train. Bits and speed
  are judged of programs as users get them."""
  mark = item.get_closest_marker('unoptimized')
  if mark is None or mark.args == (False,):  # a test in a file that is marked
    return (yield)
  import unoptimized

  with unoptimized.compiling():
    return (yield)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
  """Compiled programs are kept for good: between two files a worker that has grown large lets go of them."""
  if nextitem is None or nextitem.path == item.path or 'jax' not in sys.modules:
    return
  if _resident() > MOST_RESIDENT:
    sys.modules['jax'].clear_caches()
    gc.collect()


def _resident() -> int:
  """Bytes of this process that are in memory; 0 where the system does not tell."""
  try:
    with open('/proc/self/statm') as file:
      return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
  except OSError:
    return 0
