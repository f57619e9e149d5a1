"""A run elsewhere: a roofline that holds by hand, a range that is honest, and data that are checked."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlite.host import rates
from jaxlite.host.sealed import write_sealed
from jaxlite.planning import elsewhere, machines
from jaxlite.planning.elsewhere import Run, scaled

HERE = rates.Rates(
  {'float32': 2e11, 'bfloat16': 1e11}, {'float32': 1e11}, {'float32': 5e10}, 1e9, 4e10, 2e10, 5e8, 1e-5
)
RUN = Run(flops=1e10, bytes=1e8, step=0.1, steps=10_000)  # a step takes twice what the roofline says here
GPU = machines.Machine('a GPU', 8, {'float32': 1e13}, 16 << 30, 3e11, 0.5, 'its maker', 'gpu')
CPU = machines.Machine('a CPU', 8, {'float32': 1e12}, 16 << 30, 1e11, None, 'its maker', 'cpu')


def test_by_hand():
  found = scaled(RUN, HERE, GPU)
  worst, best = elsewhere.EFFICIENCY['gpu']
  assert found.low == pytest.approx(10_000 * 1e10 / 1e13 / best)
  assert found.high == pytest.approx(10_000 * 1e10 / 1e13 / worst)
  assert found.seconds == pytest.approx(math.sqrt(found.low * found.high))
  assert found.price == (pytest.approx(0.5 * found.low / 3600), pytest.approx(0.5 * found.high / 3600))
  assert (found.bound, found.fits) == ('FLOPs', None)
  assert found.said[0] == 'extrapolated: its maker'
  assert '10% to 60%' in found.said[1]


def test_another_cpu_may_be_as_far_from_its_roofline_as_this_one():
  found = scaled(RUN, HERE, CPU)
  worst, best = elsewhere.EFFICIENCY['cpu']
  assert (found.low, found.high) == (pytest.approx(100 / best), pytest.approx(100 * 2 / worst))
  slower = scaled(RUN._replace(step=100.0), HERE, CPU)
  assert slower.high == pytest.approx(100 * elsewhere._CARRIED / worst)


def test_what_bounds_it():
  assert scaled(RUN._replace(bytes=1e11), HERE, GPU).bound == 'memory'
  assert scaled(RUN._replace(kernels=100_000), HERE, GPU).bound == 'starting kernels'
  waiting = scaled(RUN._replace(input=1.0), HERE, GPU)
  assert waiting.bound == 'input'
  assert waiting.low == waiting.high == pytest.approx(10_000)


def test_evaluation_goes_with_the_step_and_the_rest_does_not():
  one = scaled(RUN, HERE, GPU)
  more = scaled(RUN._replace(evaluation=500.0, once=60.0), HERE, GPU)
  assert more.seconds - one.seconds == pytest.approx(60 + 500 * one.seconds / 10_000 / 0.1)


def test_memory_that_is_not_enough_is_said():
  found = scaled(RUN._replace(memory=17 << 30), HERE, GPU)
  assert found.fits is False
  assert found.line() == 'a GPU: does not fit its 16 GiB'
  assert scaled(RUN._replace(memory=1 << 30), HERE, GPU).fits is True


def test_a_precision_or_a_bandwidth_that_is_not_known_is_said():
  found = scaled(RUN._replace(precision='int8'), HERE, GPU._replace(bandwidth=0))
  assert any('no rate for int8' in line for line in found.said)
  assert any('bandwidth of a GPU is not known' in line for line in found.said)


@given(
  flops=st.floats(1e3, 1e15), moved=st.floats(1e3, 1e13), step=st.floats(1e-5, 1e3), kernels=st.integers(0, 10_000),
  waiting=st.floats(0, 1), machine=st.sampled_from(machines.MACHINES),
)  # fmt: skip
def test_a_range_holds_its_middle_and_more_work_takes_no_less(flops, moved, step, kernels, waiting, machine):
  run = Run(flops, moved, step, 100, waiting, 5.0, 3.0, kernels)
  found = scaled(run, HERE, machine)
  assert 0 < found.low <= found.seconds <= found.high < math.inf
  # evaluation is a share of a step's time here: without it, since a slower step here makes that share smaller
  more = scaled(run._replace(flops=2 * flops, evaluation=0.0), HERE, machine)
  assert more.low >= scaled(run._replace(evaluation=0.0), HERE, machine).low
  assert 'extrapolated' in found.line()
  assert (found.price is None) == (machine.price is None)


@pytest.mark.parametrize('field', ['flops', 'bytes', 'step', 'steps'])
@pytest.mark.parametrize('value', [0, -1, math.nan])
def test_a_run_without_work_is_refused(field, value):
  with pytest.raises(ValueError, match='a run to extrapolate has'):
    scaled(RUN._replace(**{field: value}), HERE, GPU)


def test_every_machine_of_the_table_is_described_as_one_must_be():
  for machine in machines.MACHINES:
    again = machines.described(machine._asdict())
    assert again == machine
    assert machine.source.startswith('https://')
  names = [machine.name for machine in machines.MACHINES]
  assert len(set(names)) == len(names)


def test_published_figures():
  """As the sources say."""
  by_name = {machine.name: machine for machine in machines.MACHINES}
  t4, v5e = by_name['free notebook, T4'], by_name['free notebook, TPU v5e-1']
  assert (t4.flops['float32'], t4.flops['int8'], t4.price) == (8.1e12, 130e12, 0)
  assert (v5e.flops['bfloat16'], v5e.memory, v5e.bandwidth) == (197e12, 16 * 10**9, 819e9)
  assert by_name['A100 40 GB'].flops['bfloat16'] / by_name['A100 40 GB'].flops['float32'] == 16
  assert by_name['Raspberry Pi 5, 8 GB'].flops['float32'] == 153.6e9


@pytest.mark.parametrize(
  'content, said',
  [
    ({}, 'flops of float32 is a number above 0; got None'),
    ({'flops': {'bfloat16': 1e12}, 'memory': 1}, "name 'float32'"),
    ({'flops': 1e12}, 'memory is a number above 0; got None'),
    ({'flops': -1, 'memory': 1}, 'flops of float32'),
    ({'flops': True, 'memory': 1}, 'flops of float32'),
    ({'flops': 1e12, 'memory': math.inf}, 'memory'),
    ({'flops': 1e12, 'memory': 1, 'kind': 'quantum'}, 'is one of cpu, gpu, tpu'),
    ({'flop': 1e12, 'memory': 1}, "no 'flop'; near it: flops"),
    ({'flops': 1e12, 'memory': 1, 'price': 'free'}, 'price'),
  ],
)
def test_a_description_that_is_none(content, said):
  with pytest.raises(ValueError, match=said) as raised:
    machines.described(content)
  assert '\n' not in str(raised.value)


def test_a_name_that_is_not_in_the_table_has_neighbors():
  with pytest.raises(ValueError, match='free notebook, T4'):
    machines.machine_named('T4 free notebook')


def test_another_machines_file(tmp_path):
  about = {'name': 'a laptop', 'cores': 8, 'memory': 8 << 30, 'kind': 'cpu'}
  write_sealed(tmp_path / 'theirs.json', {**rates._plain(HERE), 'form': 1, 'machine': about})
  found = elsewhere.machine_in(tmp_path / 'theirs.json')
  assert (found.name, found.cores, found.memory, found.measured) == ('a laptop', 8, 8 << 30, True)
  there = scaled(RUN, HERE, found)
  worst, best = elsewhere.MEASURED
  assert there.low == pytest.approx(500 / best)
  assert there.high == pytest.approx(1000 / worst)  # as far from its roofline as here
  assert there.low <= 1000 <= there.high  # what it takes here, since it is the same machine


@pytest.mark.parametrize('content', [{}, {'form': 1}, {**rates._plain(HERE), 'machine': {'kind': 'x'}}, {'machine': 3}])
def test_a_file_that_holds_no_machine(content, tmp_path):
  write_sealed(tmp_path / 'theirs.json', content)
  with pytest.raises(ValueError, match='holds no rates of a machine'):
    elsewhere.machine_in(tmp_path / 'theirs.json')
  with pytest.raises(ValueError, match='holds no rates of a machine'):
    elsewhere.machine_in(tmp_path / 'missing.json')
