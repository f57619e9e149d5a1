"""What the doctor says: plain words from given facts, and faults that are tried out, with advice that helps."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.host import rates
from jaxlite.host.limits import Cores, Limits
from jaxlite.host.sealed import write_sealed
from jaxlite.planning import doctor, probes

GIB = 1 << 30
KEPT = rates.Rates(
  {'float32': 2e11, 'bfloat16': 1e11, 'int8': 3e11}, {'float32': 1e11, 'bfloat16': 5e10, 'int8': 1e11},
  {'float32': 5e10}, 1e9, 4e10, 2e10, 5e8, 1e-5,
  rates.Rates({'float32': 1e11}, {'float32': 6e10}, {}, 1e9, 2e10, 1e10, 2e8, 2e-5),
)  # fmt: skip
FREE = Limits(
  8 * GIB, 6 * GIB, None, None, 'what the machine has', (), 'what no process uses', 8 * GIB, 0, 8 * GIB, 6 * GIB
)


def test_memory_in_plain_words():
  assert doctor.memory_lines(FREE, GIB) == [
    'memory: 8.0 GiB in all (what the machine has), 6.0 GiB free now (what no process uses)',
    '  swap: none',
  ]


def test_a_limit_says_whose_it_is_and_what_the_machine_has():
  what = 'memory.max of the control group /job'
  found = FREE._replace(memory=2 * GIB, free=0, reason=what, binds=what, warnings=('it is full',), swap=GIB)
  lines = doctor.memory_lines(found._replace(resident_memory=2 * GIB, resident_free=0), 100 << 20)
  assert lines[0] == f'memory: 2.0 GiB in all ({what}), 0 MiB free now ({what})'
  assert '  the machine has 8.0 GiB' in lines
  assert '  other processes hold about 1.9 GiB: what they take more, a run cannot have' in lines
  assert lines[-1] == '  warning: it is full'
  assert any('many times slower' in line for line in lines)


def test_limits_of_the_process_are_named():
  lines = doctor.memory_lines(FREE._replace(data_segment=GIB, address_space=GIB), GIB)
  assert '  `ulimit -d` is 1.0 GiB' in lines
  assert any('1.5 GiB of address space' in line for line in lines)


def test_a_system_that_tells_nothing():
  found = Limits(0, 0, None, None, 'this system tells no limit', ('this system does not tell',))
  assert doctor.memory_lines(found, 0) == ['memory: not told by this system', '  warning: this system does not tell']


def test_cores_that_a_quota_takes(monkeypatch):
  quota = Cores(1.5, 8, 64, 'cpu.max of the control group /job')
  monkeypatch.setattr(doctor.limits, 'usable_cores', lambda: quota)
  first, second = doctor.cores_lines()
  assert first == 'cores: 1.5 of 64 (cpu.max of the control group /job)'
  assert '8 threads' in second
  assert f'`taskset -c {min(os.sched_getaffinity(0))}`' in second


def test_which_precisions_pay():
  lines = '\n'.join(doctor.rate_lines(KEPT))
  assert 'bfloat16 100 GFLOP/s, 0.5 times float32: it does not pay in JAX here' in lines
  assert 'int8 300 GFLOP/s, 1.5 times float32: it pays' in lines
  assert 'all of them together are 2.0 times as fast' in lines


def test_disk(tmp_path):
  assert 'free for' in doctor.disk_line(tmp_path / 'not' / 'there')


def test_what_is_missing_is_named(monkeypatch):
  monkeypatch.setenv('PATH', '')
  monkeypatch.delenv('CC', raising=False)
  assert any(line.startswith('a C compiler:') and 'install gcc' in line for line in doctor.lacking())


def test_a_probe_that_cannot_run_says_so(monkeypatch):
  def broken():
    raise RuntimeError('no such operation\non two lines')

  probe = probes.Probe('slow', 'a program', broken, 'wait', 'nobody')
  monkeypatch.setattr(probes, 'PROBES', (probe, probe._replace(run=lambda: '')))
  first, second = probes.findings()
  assert first.symptom == 'could not be tried (RuntimeError)'
  assert second.line() == 'a program: all is well'
  assert probes.findings(('wrong',)) == ()


def test_wrong_values_of_the_installed_version_are_found():
  """What is known of 0.10.2 on x86-64; other versions are compared with NumPy all the same."""
  found = probes.findings(('wrong',))
  assert all(not one.symptom or 'values are wrong' in one.symptom for one in found)
  if jax.lib.__version__ == '0.10.2' and os.uname().machine == 'x86_64' and jax.devices()[0].platform == 'cpu':
    assert found[0].symptom == '96 of 128 values are wrong'
    assert jax.lib.__version__ in found[0].line()
    assert 'concatenate' in found[0].line()


def test_the_advice_for_wrong_values_helps():
  x = np.arange(128, dtype=np.int32).reshape(8, 16)
  got = jax.jit(lambda x: (lambda c: jnp.concatenate([c[:1], c[:-1]])[None])(x + 1))(x)
  assert not probes._wrong(np.asarray(got)[0], np.concatenate([x[:1], x[:-1]]) + 1)


@pytest.mark.slow
def test_the_flag_that_is_advised_helps():
  name, _, value = probes._OFF.partition('=')
  program = 'from jaxlite.planning import probes as p; print(p._summed_products() or "well", p._rank_7() or "well")'
  environment = {**os.environ, name: value, 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True, env=environment)
  assert done.stdout.split() == ['well', 'well']


def test_all_that_it_says(tmp_path, monkeypatch):
  kept = tmp_path / 'rates.json'
  monkeypatch.setattr(rates, 'rates_file', lambda: kept)  # kernels stay where they are: to compile them takes seconds
  write_sealed(rates.rates_file(), {**rates._plain(KEPT), 'form': rates._FORM, 'also': 'jaxlite.planning.reference'})
  monkeypatch.setattr(probes, 'PROBES', [one for one in probes.PROBES if one.kind == 'figures'])
  said = []
  doctor.doctor(said.append, tmp_path)
  for start in (
    'machine: ',
    'cores: ',
    'memory: ',
    'accelerator',
    'disk: ',
    'rates: ',
    'missing for speed',
    'versions: ',
  ):
    assert sum(line.startswith(start) for line in said) == 1, start
  assert 'known faults of jaxlib' in '\n'.join(said)
  assert not any('\n' in line for line in said)


def test_nothing_is_compiled_where_memory_is_short():
  lines = list(doctor._fault_lines(FREE._replace(free=100 << 20)))
  assert lines == ['known faults of jaxlib: not tried, since only 100 MiB are free']


LIMITED = """
import resource, sys
resource.setrlimit(getattr(resource, sys.argv[1]), (int(sys.argv[2]) << 20,) * 2)
from jaxlite.planning.doctor import doctor
doctor()
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='what the limits count is told by Linux')
@pytest.mark.parametrize('name, size', [('DATA', 550), ('DATA', 1200), ('AS', 2000)])
def test_it_comes_to_its_end_under_a_limit(name, size, tmp_path):
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XDG_CACHE_HOME': str(tmp_path)}
  command = [sys.executable, '-c', LIMITED, f'RLIMIT_{name}', str(size)]
  done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
  assert done.returncode == 0, done.stderr[-500:]
  assert 'ulimit' in done.stdout
  assert 'known faults of jaxlib' in done.stdout


@pytest.mark.slow
def test_every_probe_takes_a_second_or_less_of_the_processor_and_none_fails():
  program = (
    'import resource, time\nfrom jaxlite.planning import probes\nfor one in probes.PROBES:\n'
    '  start = time.process_time()\n  symptom = one.run()\n'
    '  print(f"{time.process_time() - start:.2f}", "tried" in symptom, one.about)'
  )
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True, timeout=300)
  for line in done.stdout.splitlines():
    seconds, failed, about = line.split(' ', 2)
    assert float(seconds) < 1.5, about
    assert failed == 'False', about
