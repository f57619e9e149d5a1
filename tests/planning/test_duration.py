"""How long a run takes: laws of what is told from its cost, and from a little of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.host.rates import Rates
from jaxlite.planning import calibration, duration, probing, speed
from jaxlite.planning.cost import cost
from jaxlite.planning.job import Job, Splits
from jaxlite.tasks.metrics import Metrics

KINDS = {'float32': 1e11, 'bfloat16': 1e11, 'int8': 2e11}
RATES = Rates(KINDS, KINDS, KINDS, 1e9, 5e10, 1e10, 1e9, 5e-6)
COUNTED = Metrics(
  names=('right',),
  init=lambda: jnp.zeros(()),
  update=lambda state, outputs, batch, loss: state + (outputs.argmax(-1) == batch['labels']).sum(),
  compute=lambda state: {'right': float(state)},
)


def job_of(width=32, batch=16, total=1_000, recipe=None, **changed):
  rng = np.random.default_rng(0)
  params = {'one': rng.normal(size=(8, width)).astype('f4'), 'two': rng.normal(size=(width, 4)).astype('f4')}
  model = jl.from_function(lambda p, x: jax.nn.relu(x @ p['one']) @ p['two'], jax.tree.map(jnp.asarray, params))
  train = jl.train_step(model, jl.cross_entropy, recipe or jl.chain(optax.adam(1e-3)))
  made = {
    'inputs': rng.normal(size=(batch, 8)).astype('f4'), 'labels': rng.integers(0, 4, batch),
    'weight': np.ones(batch, 'f4'),
  }  # fmt: skip
  abstract = jax.eval_shape(lambda: train.init(jax.random.key(0), made))
  job = Job(train, abstract, made, 64, Splits(1_000, 200, 200, 0), total, 50, 100, 500, True, False, True, 'x', COUNTED)
  return job._replace(**changed)


def told(job, rates=RATES, among=(), crowd=2.0):
  return duration.forecast(job, rates, among=among, crowd=crowd)


def test_a_forecast_is_ordered_finite_and_says_its_basis():
  found = told(job_of())
  assert found.basis == 'cost'
  for one in (found.compile, found.step, found.evaluation, found.checkpoint, found.input, found.total, found.rest):
    assert 0 < one.low < one.seconds < one.high < math.inf
  assert found.counts == {'step': 1_000, 'evaluation': 10, 'checkpoint': 2 + 4}


def test_the_total_is_the_sum_of_what_the_run_does():
  found = told(job_of())
  parts = (
    found.compile.seconds + found.rest.seconds
    + sum(found.counts[name] * getattr(found, name).seconds for name in ('step', 'evaluation', 'checkpoint'))
  )  # fmt: skip
  assert found.total.seconds == pytest.approx(parts)


@pytest.mark.slow
def test_what_a_machine_takes_at_first_is_a_part_of_the_run():
  found = told(job_of())
  late = duration.begun(found, 10.0)
  moved = late.total.seconds - found.total.seconds
  assert 0 < moved < 10  # something of a start is in every forecast
  for one, other in ((found.total, late.total), (found.rest, late.rest)):
    assert [b - a for a, b in zip(one, other, strict=True)] == pytest.approx([moved] * 3)
  assert late.raw['total'] - found.raw['total'] == pytest.approx(moved)  # what is learned from
  assert duration.begun(found, 0.1) == found


def test_longer_wider_and_slower_take_longer():
  base = told(job_of(width=512))
  assert told(job_of(width=512, total=9_000)).total.seconds > base.total.seconds
  assert told(job_of(width=2_048)).step.seconds > base.step.seconds
  assert told(job_of(width=512, batch=256)).step.seconds > base.step.seconds
  slow = {name: value / 10 for name, value in KINDS.items()}
  rates = RATES._replace(products=slow, small_products=slow, elementwise=5e9, memory=1e9)
  wide = job_of(width=4_096, batch=512)
  assert told(wide, rates).step.seconds > 3 * told(wide).step.seconds
  assert (
    told(job_of(width=4_096, batch=512), crowd=0.5).step.seconds > told(job_of(width=4_096, batch=512)).step.seconds
  )


def test_a_tiny_step_is_told_as_one_of_several_that_are_sent_at_once():
  """Types that are converted are no convolution."""
  job = job_of(recipe=jl.chain(optax.adam(1e-3), optax.ema(0.9)))
  assert told(job).step.seconds < duration._ALONE
  assert told(job._replace(log=1)).step.seconds > duration._ALONE


def test_what_is_left_of_the_cores_is_said():
  assert any('leave about 0.5' in line for line in told(job_of(), crowd=0.5).said)
  assert not any('cores' in line for line in told(job_of(), crowd=float(duration.machine.cores())).said)


def test_the_length_of_a_run_does_not_change_its_step():
  assert told(job_of(total=10)).step == told(job_of(total=10_000)).step


def test_what_makes_a_batch_takes_its_time_at_every_step():
  plain, made = told(job_of()), told(job_of(making=0.05))
  assert made.step.seconds == pytest.approx(plain.step.seconds + 0.05)
  assert made.input.seconds > 0.05 > plain.input.seconds


def test_no_validation_is_never_evaluated():
  found = told(job_of(splits=Splits(1_000, 0, 200, 0)))
  assert found.counts['evaluation'] == 0
  assert math.isfinite(found.total.seconds)


def test_a_loop_takes_as_many_times_its_body():
  once = cost(jax.make_jaxpr(lambda x: jnp.tanh(x @ x))(jnp.ones((64, 64))))
  scan = cost(
    jax.make_jaxpr(lambda x: jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, length=50)[0])(jnp.ones((64, 64)))
  )
  each, all_of = (speed.spent(one.operations, RATES, 2).processor for one in (once, scan))
  assert all_of == pytest.approx(50 * each, rel=1e-6)


def test_cores_are_never_more_than_there_are():
  program = cost(jax.make_jaxpr(lambda x: x @ x)(jnp.ones((1024, 1024))))
  for cores in (1, 2, 8):
    found = speed.spent(program.operations, RATES, cores)
    assert found.wall <= found.processor <= cores * found.wall * (1 + 1e-9)


def test_what_was_learned_of_steps_moves_them_and_the_total():
  job = job_of(total=200_000)
  before = told(job)
  actual = {'step': 3 * before.raw['step']}
  seen = [one for i in range(20) for one in duration.outcomes(before, actual, f'run {i}')]
  after = told(job, among=seen)
  assert after.step.seconds == pytest.approx(3 * before.step.seconds, rel=0.2)
  assert after.step.high / after.step.low < before.step.high / before.step.low
  assert after.total.seconds > before.total.seconds
  assert after.raw['step'] == before.raw['step']  # what is kept is never corrected: else learning would chase itself


def test_learning_from_itself_settles():
  job, kept = job_of(total=200_000), []
  truth = 2.2 * told(job).raw['total']
  for i in range(30):
    kept += duration.outcomes(told(job, among=kept), {'total': truth}, f'run {i}')
  assert told(job, among=kept).total.seconds == pytest.approx(truth, rel=0.12)


def test_what_is_no_duration_teaches_nothing():
  found = told(job_of())
  assert duration.outcomes(found, {'total': 0.0, 'step': math.nan, 'compile': math.inf, 'unknown': 1.0}) == []


def test_outcomes_can_be_kept(tmp_path):
  assert calibration.add(duration.outcomes(told(job_of()), {'total': 9.0}, 'run'), tmp_path)
  assert calibration.outcomes(tmp_path)[0].actual == 9.0


def test_a_probe_tells_a_run_like_itself():
  """Probe and run alternate; a run is a few hundred steps in the same process."""
  job = job_of(width=256, batch=64)
  found = duration.probed(job, 1.5, among=())
  assert found.basis == 'probe'
  assert any('probed for' in line for line in found.said)
  for one in (found.compile, found.step, found.evaluation, found.checkpoint, found.total):
    assert 0 < one.low < one.seconds < one.high < math.inf
  assert found.processor > 0


def test_a_probe_changes_nothing_of_the_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  job = job_of()
  before = {name: np.array(value) for name, value in job.batch.items()}
  probing.measured(job, 0.6, lambda line: None)
  assert list(tmp_path.iterdir()) == []
  for name, value in before.items():
    assert (job.batch[name] == value).all()
