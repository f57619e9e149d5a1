"""Accelerators: what a driver says is read whatever its form, and one that stands idle is said."""

from types import SimpleNamespace

import jax
import pytest

from jaxlite.host import accelerators, machine

CPU = jax.devices()[0].platform == 'cpu'


@pytest.mark.parametrize(
  'table, found',
  [
    ('', []),
    ('Tesla T4, 15360, 14000\n', [('Tesla T4', 15360 << 20, 14000 << 20)]),
    ('A, with comma, 10, 5\nB, 20, 20', [('A, with comma', 10 << 20, 5 << 20), ('B', 20 << 20, 20 << 20)]),
    ('Orin, [N/A], [N/A]', [('Orin', None, None)]),
    ('NVIDIA-SMI has failed because it could not talk to the driver', []),
    (', , \n,,\n\x00', []),
  ],
)
def test_what_the_driver_prints(table, found):
  rows = list(accelerators._rows(table))
  assert [(one.kind, one.memory, one.free) for one in rows] == found
  assert not any(one.used_by_jax for one in rows)


@pytest.mark.parametrize(
  'stats, found',
  [
    ({'bytes_limit': 100, 'bytes_in_use': 30}, (100, 70)),
    ({'bytes_limit': 100}, (100, 100)),
    ({'bytes_limit': 100, 'bytes_in_use': 300}, (100, 0)),
    ({}, (None, None)),
    (None, (None, None)),
  ],
)
def test_what_a_device_says_of_its_memory(stats, found):
  assert accelerators._memory(SimpleNamespace(memory_stats=lambda: stats)) == found


def test_a_device_that_says_nothing():
  def refuses():
    raise RuntimeError('not implemented on this platform')

  assert accelerators._memory(SimpleNamespace(memory_stats=refuses)) == (None, None)
  assert accelerators._memory(SimpleNamespace()) == (None, None)


@pytest.mark.skipif(not CPU, reason='an accelerator is used')
@pytest.mark.parametrize('sign, what', [('nvidia0', 'an NVIDIA GPU'), ('kfd', 'an AMD GPU'), ('accel3', 'a TPU')])
def test_one_that_stands_idle(sign, what, tmp_path):
  assert accelerators.idle(tmp_path) is None
  assert accelerators.idle(tmp_path / 'missing') is None
  (tmp_path / sign).touch()
  line = accelerators.idle(tmp_path)
  assert line.startswith(f'{what} is present but JAX does not see it')
  assert 'pip install' in line


@pytest.mark.skipif(not CPU, reason='an accelerator is used')
def test_a_cpu_is_none():
  assert all(not one.used_by_jax for one in accelerators.accelerators())


def test_a_jax_that_compiles_nothing_is_told():
  said = []
  jax.config.update('jax_disable_jit', True)
  try:
    machine.print_device(said.append)
  finally:
    jax.config.update('jax_disable_jit', False)
  assert sum('JAX_DISABLE_JIT is set' in line for line in said) == 1
  machine.print_device(said.append)
  assert sum('JAX_DISABLE_JIT is set' in line for line in said) == 1


def test_devices_that_stand_idle_beside_the_one_of_a_run_are_told(monkeypatch):
  for count, told in ((8, '7 stand idle'), (2, '1 stands idle'), (1, '')):
    said = []
    monkeypatch.setattr(jax, 'local_device_count', lambda count=count: count)
    machine.print_device(said.append)
    assert [told in line for line in said if 'computes on one device' in line] == [True] * bool(told)
