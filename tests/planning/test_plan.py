"""Laws of a plan: one verdict from every limit, never a refusal within the bounds, and changes that are only fields."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxlite as jl
from jaxlite.config.serialize import to_dict
from jaxlite.host.limits import Limits
from jaxlite.planning.duration import Duration, Durations
from jaxlite.planning.edits import edited, flags_of
from jaxlite.planning.memory import Memory
from jaxlite.planning.plan import FITS, TIGHT, TOO_LARGE, Plan, Tried, between, changes, judged, mib, spoken

SIZES = st.integers(1, 10_000)


def memory(peak, upper, data=1, space=1):
  return Memory({'steps': peak}, {'parameters': peak}, peak, upper, data, space, 'traced')


def limits(size, free=10**12, data=None, space=None):
  told = {'resident_memory': size, 'resident_free': free}
  return Limits(size, free, space, data, 'the machine', binds='what is free', **told)


@given(peak=SIZES, more=SIZES, limit=SIZES, free=SIZES, held=SIZES)
def test_the_verdict_says_how_estimate_and_bound_stand_to_the_nearest_limit(peak, more, limit, free, held):
  found = judged(memory(peak, peak + more), limits(limit, free), held)
  least = min(limit, held + free)
  assert found.limit == least
  assert (found.word == FITS) == (peak + more <= least)
  assert (found.word == TOO_LARGE) == (peak > least)
  assert found.dies == (peak - more > least)  # what 95 of 100 runs exceed
  assert found == judged(memory(peak, peak + more), limits(limit, free), held, files=held // 2)
  assert not (found.dies and found.word in (FITS, TIGHT))


@given(data=SIZES, space=SIZES, data_limit=st.none() | SIZES, space_limit=st.none() | SIZES)
def test_each_limit_of_the_process_is_compared_with_what_it_counts(data, space, data_limit, space_limit):
  found = judged(memory(1, 1, data, space), limits(10**9, data=data_limit, space=space_limit), 0)
  asked = [(data, data_limit), (space, space_limit)]
  assert (found.word == FITS) == all(limit is None or upper <= limit for upper, limit in asked)


def test_resident_memory_is_not_compared_with_a_limit_of_the_data_segment():
  """Pages of libraries are resident and not data: 900 of them may be there under a limit of 500."""
  one = limits(500, data=500)._replace(resident_memory=10**9)
  assert judged(memory(900, 950, data=400), one, 0).word == FITS


def test_no_run_is_refused_by_a_limit_of_data_that_pages_of_files_alone_would_pass():
  """What `ulimit -d` counts is at least what is resident and not of files: 800, less 300."""
  one, held = memory(800, 900, data=1500), 400
  assert not judged(one, limits(10**9, data=500), held, files=300).dies
  assert judged(one, limits(10**9, data=300), held, files=300).dies
  assert not judged(one, limits(10**9, data=301), held).dies  # nobody knows how much of it is of files


COUNTS = {'step': 9, 'evaluation': 2, 'checkpoint': 1}
TIMES = Durations(*[Duration(180, 120, 300)] * 6, basis='cost', counts=COUNTS, said=('no input',))


def test_the_line_has_need_bound_limit_and_time_and_the_page_what_is_not_known():
  one = memory(412 << 20, 470 << 20)
  here = limits(1900 << 20)
  plan = Plan('mine', judged(one, here, 0), one, TIMES, here, unknown=('the teacher is not trained',))
  assert plan.line() == 'needs 412 MiB, at most 470 MiB, of 1.9 GiB, about 3.0 min (2.0 min to 5.0 min)'
  page = str(plan)
  for words in (
    'FITS',
    'steps',
    'parameters',
    '9 x step',
    '2 x evaluation',
    'not known: the teacher',
    'not known: no in',
  ):
    assert words in page, words


def test_a_time_in_which_something_is_not_counted_is_told_as_the_least():
  import jax

  from jaxlite.planning.cost import NOT_COUNTED, cost

  loop = jax.make_jaxpr(lambda x: jax.lax.while_loop(lambda c: c.sum() > 1, lambda c: c * 0.5, x))(jax.numpy.ones(3))
  said = cost(loop).said
  assert said
  assert said[0].startswith(NOT_COUNTED)
  for basis, told in (('cost', 'at least 2.0 min (of evaluation: a while loop'), ('probe', 'about 3.0 min')):
    times = TIMES._replace(said=(f'of evaluation: {said[0]}',), basis=basis)
    assert told in Plan('mine', None, None, times, limits(1)).line()


def test_a_plan_of_nothing_says_so_and_invents_nothing():
  plan = Plan('mine', None, None, None, limits(1), unknown=('memory (why)', 'time (why)'))
  assert plan.line() == 'not known'
  assert str(plan).split('\n') == ['mine: not known', '  not known: memory (why)', '  not known: time (why)']


def test_changes_are_shown_against_the_run_as_it_is_and_a_killed_one_as_killed():
  rows = changes([
    Tried('as it is', 'same bits', 600 << 20, 0.1, True, '', 100),
    Tried('4 micro-batches', 'same up to rounding', 400 << 20, 0.12, True, '--config.machine.micro_batches=4'),
    Tried('half the batch', 'another result', None, None, False, '--config.data.batch_size=8'),
    Tried('half as wide', 'another result', None, None, False, '--config.width=8', end='cannot be'),
  ])  # fmt: skip
  assert '10 s' in rows[2]  # 100 steps
  assert '400 MiB (-200 MiB)' in rows[3]
  assert '(x 1.20)' in rows[3]
  assert 'killed' in rows[4]
  assert 'cannot be' in rows[5]
  assert rows[4].split()[-2:] == ['no', '--config.data.batch_size=8']


@pytest.mark.parametrize('seconds', [0.0, 3e-7, 9.96e-6, 9.96e-5, 1e-4, 0.5, 59.9, 60.0, 99.9, 3599, 5400, 1e5, 1e7])
def test_a_time_is_spoken_within_half_of_its_last_digit(seconds):
  value, unit = spoken(seconds).split()
  size = {'us': 1e-6, 'ms': 1e-3, 's': 1.0, 'min': 60.0, 'h': 3600.0, 'days': 86_400.0}[unit]
  digit = 10.0 ** -len(value.partition('.')[2])
  assert abs(float(value) * size - seconds) <= 0.5001 * size * digit


def test_sizes_are_written_in_the_unit_that_a_reader_expects():
  assert [mib(size << 20) for size in (1, 999, 1001, 2048)] == ['1.0 MiB', '999 MiB', '1.0 GiB', '2.0 GiB']
  assert between(Duration(1, 0.5, 2)) == '1.0 s (500 ms to 2.0 s)'


@dataclasses.dataclass(kw_only=True)
class Mine(jl.Config):
  width: int = 3


def test_a_change_is_fields_and_nothing_else_and_its_flags_make_the_same():
  from jaxlite.config.fields import apply_overrides

  fields = {
    'machine.micro_batches': 4,
    'eval.batch_size': 7,
    'machine.keep_memory': False,
    'train.steps': 5,
    'width': 9,
  }
  config = Mine(name='mine')
  before = to_dict(config)
  changed = edited(config, fields)
  assert to_dict(config) == before
  pairs = [word.removeprefix('--config.').split('=') for word in flags_of(fields)]
  assert to_dict(apply_overrides(config, [tuple(pair) for pair in pairs])) == to_dict(changed)
  same = edited(changed, {'width': 3, 'eval.batch_size': 512, 'machine.keep_memory': True, 'machine.micro_batches': 1})
  assert to_dict(dataclasses.replace(same, train=config.train)) == before
