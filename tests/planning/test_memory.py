"""The memory of a run before its first step: what it is made of, its bound, and a real process that stays below it."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.host import allocator
from jaxlite.planning import calibration, memory, programs
from jaxlite.planning.job import Job, Splits
from jaxlite.planning.sizes import Process, process, sizes
from networks import convnet

MIB = 1 << 20
HERE = Process(100 * MIB, 120 * MIB, 230 * MIB, 150 * MIB, 1500 * MIB)


@pytest.fixture(autouse=True)
def _nothing_learned(tmp_path, monkeypatch):
  """What other tests' runs have taught this machine changes no forecast here."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))


def job(*parts, batch=32, convolves=False, evaluation=64):
  weights = {'a': np.ones((64, 128), np.float32), 'b': np.ones((128, 4), np.float32)}
  dense = jl.from_function(lambda p, x: jnp.tanh(x.reshape(len(x), -1) @ p['a']) @ p['b'], weights)
  model, shape, classes = (convnet(), (4, 4, 1), 3) if convolves else (dense, (64,), 4)
  inputs, labels = np.ones((batch, *shape), np.float32), np.zeros(batch, np.int32)
  one = {'inputs': inputs, 'labels': labels, 'weight': np.ones(batch, np.float32)}
  train = jl.train_step(model, jl.cross_entropy, jl.chain(*parts, optax.adam(1e-3)), rewrites=False)
  abstract = jax.eval_shape(train.init, jax.random.key(0), one)
  metric = jl.tasks.classification(classes).metrics({'classes': classes, 'class_names': list('abcd')[:classes]})
  splits = Splits(1000, 100, 100, 1000)
  return Job(train, abstract, one, evaluation, splits, 100, 10, 50, 50, True, False, False, 'classification', metric)


def told(*args, **kwargs):
  return sizes(programs.traced(job(*args, **kwargs)))


def test_more_batch_never_takes_less_memory():
  found = [memory.forecast(told(batch=batch), HERE, 'traced', 'cold') for batch in (2, 32, 33, 2048, 131072)]
  peaks = [one.peak for one in found]
  assert peaks == sorted(peaks)
  assert peaks[-1] > peaks[0] + 10 * MIB
  assert [one.upper for one in found] == sorted(one.upper for one in found)


def test_a_frozen_leaf_holds_no_moment():
  plain, frozen = told(), told(jl.freeze('a'))
  assert plain.optimizer - frozen.optimizer == 2 * 64 * 128 * 4
  assert plain.parameters - frozen.parameters == frozen.constants - plain.constants == 64 * 128 * 4


def test_an_average_is_state_and_so_is_what_it_takes():
  assert told(jl.average(0.9)).state - told().state >= (64 * 128 + 128 * 4) * 4


def test_micro_batches_take_less_whether_they_are_scanned_or_dispatched():
  scanned = told(jl.accumulate(16), batch=8192)
  assert scanned.step < told(batch=8192).step / 4
  dispatched = told(jl.accumulate(16), batch=8192, convolves=True)
  assert dispatched.step < told(batch=8192, convolves=True).step / 4


def test_evaluation_is_as_large_as_its_batch_or_its_split():
  found = [told(evaluation=examples).evaluation_batch for examples in (10, 100, 1000)]
  assert found[0] * 10 == found[1] == found[2]


@pytest.mark.parametrize('basis', ['traced', 'planned', 'compiled'])
@pytest.mark.parametrize('cache', ['cold', 'warm'])
def test_parts_sum_up_to_the_peak_and_stages_stand_in_their_order(basis, cache):
  found = memory.forecast(told(batch=4096), HERE, basis, cache)
  assert tuple(found.stages) == memory.STAGES
  assert sum(found.parts.values()) == found.peak == max(found.stages.values())
  assert min(found.parts.values()) >= 0
  assert found.raw <= found.upper
  assert found.data_segment > HERE.data_segment
  assert found.address_space > HERE.address_space
  assert found.kept == 0


def test_what_an_earlier_run_freed_serves_the_next_and_its_libraries_are_in():
  held = told(batch=256)
  fresh = memory.forecast(held, HERE, 'traced', 'cold')
  used = HERE._replace(anonymous=HERE.anonymous + 300 * MIB, files=220 * MIB, free=300 * MIB)
  later = memory.forecast(held, used, 'traced', 'cold')
  assert used.anonymous + used.files <= later.peak
  assert later.peak < fresh.peak + 300 * MIB - 150 * MIB  # what it freed is taken first
  full = memory.forecast(held, used._replace(free=0), 'traced', 'cold')
  assert full.peak > later.peak
  for one in (fresh, later, full):
    assert sum(one.parts.values()) == one.peak
    assert min(one.parts.values()) >= 0


def test_what_a_machine_has_taught_never_tells_less_than_is_held(monkeypatch):
  held, used = told(), HERE._replace(anonymous=400 * MIB, files=220 * MIB, free=300 * MIB)
  low = calibration.Correction(0.5, 0.1, 9)
  monkeypatch.setattr(calibration, 'correction', lambda *_, **__: low)
  found = memory.forecast(held, used, 'traced', 'cold')
  assert used.anonymous + used.files <= found.peak <= found.upper
  assert sum(found.parts.values()) == found.peak


def test_a_warm_cache_never_takes_more():
  held = told(batch=256)
  for basis in ('traced', 'planned', 'compiled'):
    cold, warm = (memory.forecast(held, HERE, basis, cache) for cache in ('cold', 'warm'))
    assert all(warm.stages[stage] <= cold.stages[stage] for stage in memory.STAGES)


def test_what_stays_mapped_is_told_where_there_is_room_and_is_off_where_there_is_none():
  held = told()
  bare = memory.forecast(held, HERE, 'traced', 'cold')
  rich, poor = (memory.forecast(held, HERE, 'traced', 'cold', room) for room in (100 << 30, bare.upper // 2))
  assert rich.kept == allocator.most_kept(bare.upper, 90 << 30) - bare.upper > bare.upper
  assert (poor.kept, rich.upper) == (0, bare.upper)
  assert any('too little room' in note for note in poor.notes)
  assert not any('too little room' in note for note in (*rich.notes, *bare.notes))


def test_without_the_kernels_tables_something_is_told_all_the_same(monkeypatch):
  from jaxlite.planning import sizes as module

  monkeypatch.setattr(module, 'status', lambda name: 0)
  seen = process()
  assert seen.anonymous == seen.peak > 0
  assert memory.forecast(told(), seen, 'traced', 'cold').upper > seen.peak


def test_a_compiled_step_is_told_from_its_program_and_not_compiled_again():
  one = job(batch=4096)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(listen := lambda event, *_, **__: compiled.append(event))
  found = memory.compiled(one)
  count = sum(event.endswith('backend_compile_duration') for event in compiled)
  assert (found.basis, count) == ('compiled', 1)
  state = one.train.init(jax.random.key(0), one.batch)
  compiled.clear()
  jax.block_until_ready(one.train.step(state, one.batch))
  jax.monitoring.unregister_event_duration_listener(listen)
  assert not [event for event in compiled if event.endswith('backend_compile_duration')]


def test_several_programs_a_step_are_told_from_the_jaxpr_and_that_is_said():
  found = memory.compiled(job(jl.accumulate(4), batch=64, convolves=True))
  assert found.basis == 'traced'
  assert any('several programs' in note for note in found.notes)


PROGRAM = """
import json, pathlib, sys
import numpy as np
import jaxlite as jl
from jaxlite.host.machine import status
from jaxlite.models import MLP
from jaxlite.planning import memory
from jaxlite.run.foreseen import job_of
from jaxlite.run.setup import prepare
data = jl.data.from_arrays((np.random.default_rng(0).normal(size=(6000, 100)).astype('f'), np.arange(6000) % 10))
machine = jl.config.schema.MachineConfig(keep_memory=False, compile_cache=False)
batch = jl.config.schema.DataConfig(batch_size=4096)
config = jl.Config(name='x', train=jl.Duration(steps=3), machine=machine, data=batch)
folder = pathlib.Path(sys.argv[1])
before = status('VmRSS')
told = memory.traced(job_of(prepare(config, folder / 'none', MLP((512, 512)), data)))
jl.train(config, folder / 'run', model=MLP((512, 512)), data=data, say=lambda line: None)
print(json.dumps([before, told.peak, told.upper, status('VmHWM'), told.data_segment, status('VmData')]))
"""


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='only Linux tells a peak')
def test_a_run_stays_below_its_bound(tmp_path):
  clean = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
  run = subprocess.run(
    [sys.executable, '-c', PROGRAM, str(tmp_path)], capture_output=True, text=True, env=clean, timeout=300
  )
  assert run.returncode == 0, run.stderr[-2000:]
  before, peak, upper, actual, segment, data = json.loads(run.stdout.splitlines()[-1])
  assert before < actual <= upper
  assert abs(peak - actual) <= 0.25 * (actual - before)
  assert data <= segment


@pytest.mark.parametrize('basis', ['traced', 'planned', 'compiled'])
def test_a_large_state_counts_by_its_copies_and_a_larger_one_never_less(basis):
  """Copies of small arrays leave pieces behind; of large ones there are two at once, and the step beside them."""
  small = told()
  grown = [small._replace(parameters=size * MIB, optimizer=2 * size * MIB) for size in (1, 8, 12, 16, 256, 1024)]
  found = [memory.forecast(one, HERE, basis, 'cold') for one in grown]
  peaks = [one.peak for one in found]
  assert peaks == sorted(peaks)
  copies = (peaks[-1] - peaks[-2]) / (3 * 768 * MIB)
  held = 1 if basis == 'compiled' else 2  # the process that has compiled its step holds one already
  assert held - 0.1 < copies < held + 0.6
  assert all(sum(one.parts.values()) == one.peak for one in found)


def test_what_small_runs_came_to_says_little_of_a_large_one(tmp_path):
  """Twelve runs a quarter smaller than told: the next small one is told less, one twice as large hardly."""
  small = told()
  large = small._replace(parameters=200 * MIB)
  before = [memory.forecast(one, HERE, 'traced', 'cold') for one in (small, large)]
  for run in range(12):
    raw = before[0].raw
    calibration.add([calibration.Outcome(memory.QUANTITY, 'traced', raw, 0.75 * raw, memory.likeness(raw), str(run))])
  after = [memory.forecast(one, HERE, 'traced', 'cold') for one in (small, large)]
  assert after[0].peak < 0.85 * before[0].peak
  assert after[1].peak > 0.93 * before[1].peak
