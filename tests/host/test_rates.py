"""Rates: what is timed is the work that it is said to be, and what is kept comes back or is measured again."""

import contextlib
import json
import math
import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlite.host import limits, measure, rates
from jaxlite.host.sealed import sealed_text, write_sealed

KEPT = rates.Rates(
  {'float32': 2e11, 'int8': 3e11}, {'float32': 1e11}, {'float32': 5e10}, 1e9, 4e10, 2e10, 5e8, 1e-5,
  rates.Rates({'float32': 1e11}, {'float32': 6e10}, {}, 1e9, 2e10, 1e10, 2e8, 2e-5, None, {}, 0.5),
  {'random': 1e8}, 0.5, ('a line',),
)  # fmt: skip


@pytest.fixture
def kept(tmp_path, monkeypatch):
  """The file of this machine's rates, with KEPT in it."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  path = rates.rates_file()
  path.parent.mkdir(parents=True)
  write_sealed(path, {**rates._plain(KEPT), 'form': rates._FORM})
  return path


def test_what_is_kept_is_not_measured_again(kept):
  before, start = kept.read_bytes(), time.process_time()
  said = []
  assert rates.known_rates() == KEPT
  assert rates.rates(said.append) == KEPT
  assert (kept.read_bytes(), said) == (before, [])
  assert time.process_time() - start < 0.5


def test_nothing_is_measured_where_nothing_is_kept(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert rates.known_rates() is None
  assert list(tmp_path.iterdir()) == []


def test_importing_it_loads_no_jax():
  program = 'import sys, jaxlite.host.rates; assert not {"jax", "numpy"} & set(sys.modules)'
  subprocess.run([sys.executable, '-c', program], check=True, timeout=60)


@pytest.mark.parametrize(
  'damage',
  ['', '{', '[]', 'null', '{"form": 1}', sealed_text({'form': 1}), sealed_text({**rates._plain(KEPT), 'form': 0})],
)
def test_damage_is_not_believed(damage, kept):
  kept.write_text(damage)
  assert rates.known_rates() is None


def test_a_digit_that_flipped_is_not_believed(kept):
  kept.write_text(kept.read_text().replace('200000000000.0', '300000000000.0'))
  assert rates.known_rates() is None


def test_a_folder_in_its_place_is_not_believed(kept):
  kept.unlink()
  kept.mkdir()
  assert rates.known_rates() is None


@pytest.mark.parametrize('bad', [0, -1.0, math.nan, math.inf, True, '1e9', None])
@pytest.mark.parametrize('where', ['depthwise', 'products'])
def test_a_rate_is_a_number_above_0(bad, where):
  content = rates._plain(KEPT)
  content[where] = {'float32': bad} if where == 'products' else bad
  with pytest.raises(ValueError):
    rates.rates_of(content)


JSON = st.recursive(
  st.none() | st.booleans() | st.floats() | st.text(max_size=5),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
  max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(rates.Rates._fields), value=JSON)
def test_garbage_in_a_field_is_an_error_and_nothing_else(name, value):
  with contextlib.suppress(ValueError):
    found = rates.rates_of({**rates._plain(KEPT), name: value})
    assert all(rate > 0 for rate in (*found.products.values(), found.memory, found.dispatch))


def test_another_processor_core_count_or_flag_is_another_file(monkeypatch):
  here = rates.rates_file()
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=false')
  flagged = rates.rates_file()
  monkeypatch.setattr(rates, 'allowed_cores', lambda: 96)
  assert len({here, flagged, rates.rates_file()}) == 3
  assert jax.lib.__version__ in here.name


@pytest.mark.parametrize('name', ['products float32', 'small_products float32', 'convolutions float32', 'depthwise'])
def test_the_work_is_what_xla_counts(name):
  timed = measure.programs(1 << 20)[name]
  function, arguments = timed.build()
  found = jax.jit(function).lower(*arguments).cost_analysis()
  assert timed.work == pytest.approx((found[0] if isinstance(found, list) else found)['flops'], rel=0.15)


def test_bytes_are_those_that_a_pass_reads_and_writes():
  for name, passes in (('memory', 1), ('elementwise', 16)):
    timed = measure.programs(1 << 22)[name]
    function, arguments = timed.build()
    out = function(*arguments)
    assert timed.work == passes * (arguments[0].nbytes + out.nbytes)


def test_a_process_of_its_own_measures_what_numpy_reaches_too():
  """The rate of products on one core lies within a factor of ten of NumPy's, however busy the machine is."""
  names = ['products float32', 'dispatch', 'memory', 'fresh']
  together, alone = rates._answer({'names': names, 'budget': 0.03, 'most_bytes': 4 << 20, 'alone': True})
  assert set(together) >= {'products float32', 'dispatch', 'memory'}
  a = np.ones((512, 512), np.float32)
  best = math.inf
  for _ in range(5):
    start = time.thread_time()
    a @ a
    best = min(best, time.thread_time() - start)
  if sys.platform.startswith('linux'):
    assert 0.1 < alone['products float32'] / (2 * 512**3 / best) < 30
    assert all(together[name] >= 0.99 * alone[name] for name in ('products float32', 'memory'))
  assert 1e-7 < together['dispatch'] < 1e-2


THREADS = """
import hashlib, threading
from jaxlite.host import measure

ready, done, data = threading.Barrier(3), threading.Event(), b'x' * 20_000_000

def work():
  hashlib.sha256(data).digest()
  ready.wait()
  done.wait()  # alive until it was asked

threads = [threading.Thread(target=work) for _ in range(2)]
busiest, whole = measure.by_the_busiest(), measure.by_the_process()
for thread in threads:
  thread.start()
ready.wait(timeout=60)
print(busiest() / whole())
done.set()
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='a clock for each thread')
def test_what_two_threads_do_together_takes_as_long_as_the_busier():
  """However many other processes want the cores: the clock of each thread stands still meanwhile."""
  done = subprocess.run([sys.executable, '-c', THREADS], capture_output=True, text=True, check=True)
  assert 0.4 < float(done.stdout) < 0.75


def test_the_threads_of_a_process_go_back_to_all_cores():
  program = (
    'import os, threading\nfrom jaxlite.host import measure\ncores = measure._cores()\nevent = threading.Event()\n'
    'threading.Thread(target=event.wait).start()\n'
    'def all_of_them(): return [os.sched_getaffinity(int(one)) for one in os.listdir("/proc/self/task")]\n'
    'with measure._moved(cores):\n  assert all(one == {max(cores)} for one in all_of_them())\n'
    'assert len(all_of_them()) == 2 and all(one == cores for one in all_of_them())\nevent.set()'
  )
  if sys.platform.startswith('linux'):
    subprocess.run([sys.executable, '-c', program], check=True, timeout=60)


def test_a_process_that_cannot_measure_is_no_error(tmp_path, monkeypatch):
  asked = {'names': ['dispatch'], 'budget': 0.01, 'most_bytes': 1 << 20}
  for program in ('exit 3', 'echo "rates: {"', 'echo "rates: 5"', 'kill -9 $$'):
    broken = tmp_path / 'python'
    broken.write_text(f'#!/bin/sh\n{program}\n')
    broken.chmod(0o700)
    monkeypatch.setattr(rates.sys, 'executable', str(broken))
    assert rates._answer(asked) is None


def test_a_device_that_can_do_nothing_is_an_error_in_one_line():
  with pytest.raises(RuntimeError, match=r'^rates could not be measured: depthwise, .* did not run on this device$'):
    rates._filled(({'products float32': 1.0}, None), [])


def test_too_little_memory_is_refused_before_it_kills(monkeypatch):
  little = limits.limits()._replace(free=50 << 20, resident_free=50 << 20)
  monkeypatch.setattr(rates, 'limits', lambda: little)
  with pytest.raises(RuntimeError, match=r'^rates could not be measured: 50 MiB are free, and it takes 200$'):
    rates._measured()


def test_a_ulimit_is_for_each_process_anew(monkeypatch):
  found = limits.limits()._replace(free=10 << 20, resident_free=4 << 30, data_segment=900 << 20)
  monkeypatch.setattr(rates, 'limits', lambda: found)
  assert rates._rooms() == (10 << 20, 900 << 20)
  monkeypatch.setattr(rates, 'limits', lambda: found._replace(memory=0, free=0))
  assert min(rates._rooms()) > 1 << 36


def test_rates_of_a_busy_machine_say_so_and_are_measured_again_when_it_is_quieter(kept, monkeypatch):
  busy = KEPT._replace(load=4.0)
  write_sealed(kept, {**rates._plain(busy), 'form': rates._FORM})
  asked = []
  monkeypatch.setattr(rates, '_measured', lambda also='': asked.append(1) or KEPT)
  monkeypatch.setattr(rates, '_load', lambda: 3.5)
  assert rates.rates() == busy
  assert not asked
  monkeypatch.setattr(rates, '_load', lambda: 0.2)
  assert rates.rates() == KEPT
  assert rates.known_rates() == KEPT
  assert len(asked) == 1


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write everywhere')
def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
  tmp_path.chmod(0o500)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(rates, '_measured', lambda also='': KEPT)
  said = []
  assert rates.rates(said.append) == KEPT
  assert 'not kept' in said[-1]


PROGRAM = """
import json, resource, time
import jax
jax.devices()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from jaxlite.host import rates
found = rates.rates(lambda line: None)
children = resource.getrusage(resource.RUSAGE_CHILDREN)
took = children.ru_utime + children.ru_stime
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([rates._plain(found), rates._plain(rates.known_rates()), took, grown]))
"""


@pytest.mark.slow
def test_all_of_it(tmp_path):
  """The whole measurement: every rate there, kept as it is, and no memory of the caller's taken."""
  environment = {**os.environ, 'XDG_CACHE_HOME': str(tmp_path)}
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM], capture_output=True, text=True, check=True, env=environment, timeout=300
  )
  found, again, took, grown = json.loads(done.stdout.splitlines()[-1])
  print(f'{took:.1f} s', json.dumps(found, indent=1))
  assert found == again
  assert set(found['products']) == {'float32', 'bfloat16', 'int8'}
  assert set(found['more']) >= set(rates.UNITS) - {'fresh'}
  assert grown < 60 * 1024  # KiB
  if rates.allowed_cores() > 1:
    assert found['one_core']['products']['float32'] < 3 * found['products']['float32']
