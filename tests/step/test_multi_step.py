"""Laws of several steps per dispatch: the same bits however a run is cut, and never where they would not be."""

import functools
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import trees
from jaxlite.data import Split, batches_at
from jaxlite.models import MLP
from jaxlite.run import loop
from jaxlite.step import multi_step
from loops import evidence, run
from networks import convnet

RNG = np.random.default_rng(0)
SPLIT = Split(RNG.normal(size=(100, 6)).astype(np.float32), RNG.integers(0, 3, 100).astype(np.int32))


def batches(at, count):
  return batches_at(SPLIT, 8, 0, at, count)


def everything():
  """A recipe whose parts draw, count, mask, average and look at the step."""
  rate = jl.optim.warmup_cosine(1e-2, 30, warmup_steps=3)
  hooks = jl.average(0.9), jl.fake_quant(), jl.optim.label_smoothing(0.1), jl.accumulate(2), jl.optim.l2(1e-3)
  return jl.chain(*hooks, optax.clip_by_global_norm(1.0), optax.adam(rate), jl.prune(0.5, begin=2, end=9, every=3))


def start(recipe, model=None):
  return begun(jl.train_step(model or jl.from_linen(MLP((16,), classes=3)), jl.cross_entropy, recipe))


def begun(train):
  return train, train.init(jax.random.key(0), row(batches(0, 1), 0))


RECIPES = {'all': everything, 'sgd': lambda: jl.chain(optax.sgd(0.1, momentum=0.9))}


@functools.cache
def made(name):
  """One step of each recipe, traced once for all tests; a state of it is each test's own."""
  return start(RECIPES[name]())[0]


@functools.cache
def looped(name):
  """The state after twelve single steps, and their losses."""
  train, state = begun(made(name))
  losses = []
  for step in range(12):
    state, metrics = train.step(state, row(batches(step, 1), 0))
    losses.append(float(metrics['loss']))
  return state, losses


def row(tree, i):
  return jax.tree.map(lambda leaf: leaf[i], tree)


def same(one, other):
  for path, a, b in zip(trees.paths(one), jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=path)


@pytest.mark.sampled(2)
@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize('cuts', [[12], [1] * 12, [5, 1, 6], [2, 3, 7]], ids=str)
def test_a_run_is_the_same_however_it_is_cut(cuts, recipe):
  state, losses = looped(recipe)
  train, other = begun(made(recipe))
  several, found, at = multi_step.several(train.step), [], 0
  for count in cuts:
    other, metrics = several(other, multi_step.stacked(batches(at, count), 12), count)
    found.append((metrics, count))
    at += count
  same(state, other)
  assert [terms['loss'] for terms in multi_step.fetched(found)] == losses


def test_metrics_that_wait_long_come_to_the_host_and_are_the_same():
  pending, wanted = [], []
  for i in range(2_500):
    one = np.float32(i) / 3
    multi_step.keep(pending, {'loss': jnp.asarray(one), 'more': np.array([2.0 * i])}, 1)
    wanted.append({'loss': float(one), 'more': 2.0 * i})
    if i % 5 == 0:
      multi_step.keep(pending, {'loss': jnp.array([one, -one, 0]), 'more': np.array([1.0, 2.0])}, 2)
      wanted += [{'loss': float(one), 'more': 1.0}, {'loss': -float(one), 'more': 2.0}]
    assert sum(isinstance(terms['loss'], jax.Array) for terms, _ in pending[-3_000:-1_000]) == 0
  assert multi_step.fetched(pending) == wanted


def test_several_steps_are_one_program_whatever_their_number():
  traces = []

  def apply(params, x):
    traces.append(x.shape)
    return x @ params['w']

  train, state = start(jl.chain(optax.sgd(0.1)), jl.from_function(apply, {'w': jnp.zeros((6, 3))}))
  several = multi_step.several(train.step)
  state, _ = several(state, batches(0, 5), 5)
  traces.clear()
  for count in (1, 2, 5):
    state, _ = several(state, multi_step.stacked(batches(0, count), 5), count)
  assert not traces
  assert int(state.step) == 13


def test_the_state_is_donated_and_its_constants_are_not():
  train, state = start(jl.chain(jl.freeze('dense1'), optax.sgd(0.1)))
  multi_step.several(train.step)(state, batches(0, 2), 2)
  assert state.params['dense2']['kernel'].is_deleted()
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((state.const, state.key)))


def chosen(train, state, wanted=0, **room):
  first, _ = train.step(state, row(batches(0, 1), 0))
  given = multi_step.Room(**{'at': 1, 'next': 30, 'gap': 40, 'left': 10**6, **room})
  return multi_step.choose(train.step, first, batches, given, wanted)


def test_the_steps_that_are_taken_in_choosing_are_steps_of_the_run():
  train, ends = made('all'), {}
  for wanted in (0, 1, 7):  # found by trial, single steps, a number that was asked for
    state, taken, _ = chosen(*begun(train), wanted)
    ends[wanted] = state, [terms['loss'] for terms in multi_step.fetched([(one, 1) for one in taken])]
  _, other = begun(train)
  losses, compared = [], set()
  for step in range(max(int(state.step) for state, _ in ends.values())):
    other, metrics = train.step(other, row(batches(step, 1), 0))
    losses.append(float(metrics['loss']))
    for wanted, (state, found) in ends.items():
      if int(state.step) == step + 1:
        same(state, other)
        assert found == losses[1:]
        compared.add(wanted)
  assert compared == set(ends)


def test_what_rounds_differently_in_one_program_is_not_taken_up():
  train, state = start(jl.chain(optax.sgd(0.1)))

  def step(state, batch):
    state, metrics = train.step(state, batch)
    inside = isinstance(state.step, jax.core.Tracer)
    return state, {**metrics, 'loss': metrics['loss'] * (1 + 2**-23 * inside)}

  _, _, pace = chosen(train._replace(step=step), state, 5)
  assert (pace.steps, pace.run) == (1, None)
  assert 'round differently' in pace.why


@pytest.mark.parametrize(
  'wanted, room, steps, why',
  [
    (1, {}, 1, 'machine.steps_per_dispatch'),
    (0, {'gap': 1}, 1, 'each is logged'),
    (0, {'left': 20, 'compiling': 1e3}, 1, 'over before one more program'),
    (7, {}, 7, 'us alone'),
    (70, {}, 40, 'us alone'),  # never past a point of the run
    (7, {'next': 9}, 7, 'us alone'),
  ],
)
def test_the_reason_is_told(wanted, room, steps, why):
  train, state = start(jl.chain(optax.sgd(0.1)))
  _, _, pace = chosen(train, state, wanted, **room)
  assert pace.steps == steps
  assert why in pace.why


def test_never_around_a_convolution_on_cpu():
  split = Split(RNG.normal(size=(50, 4, 4, 1)).astype(np.float32), RNG.integers(0, 3, 50).astype(np.int32))
  train = jl.train_step(convnet(), jl.cross_entropy, jl.chain(optax.sgd(0.1)))
  ahead = lambda at, count: batches_at(split, 8, 0, at, count)  # noqa: E731
  state = train.init(jax.random.key(0), row(ahead(0, 1), 0))
  _, _, pace = multi_step.choose(train.step, state, ahead, multi_step.Room(0, 30, 40, 10**6), 7)
  assert (pace.steps, pace.run) == (1, None)
  assert 'convolves' in pace.why


# --- the loop -----------------------------------------------------------------------------------------------------

POINTS = {'log__every': jl.Duration(steps=6), 'eval__every': jl.Duration(steps=9), 'checkpoint__every': jl.Duration(4)}


@pytest.fixture(scope='module')
def single(tmp_path_factory):
  """What a run of single steps leaves: whatever its dispatches, a run has to leave that."""
  folder = tmp_path_factory.mktemp('single') / 'run'
  trained(folder, 1)
  return evidence(folder)


def trained(folder, steps_per_dispatch, **fields):
  said = []
  run(folder, steps=30, machine__steps_per_dispatch=steps_per_dispatch, say=said.append, **POINTS, **fields)
  return [line for line in said if line.startswith('steps per dispatch')]


def test_a_run_leaves_the_same_evidence_whatever_its_dispatches(single, tmp_path):
  for steps in (0, 3, 50):
    (line,) = trained(tmp_path / str(steps), steps)
    assert evidence(tmp_path / str(steps)) == single
    assert steps == 0 or line.startswith(f'steps per dispatch: {min(steps, 4)} (')


@pytest.mark.sampled(1)
@pytest.mark.parametrize('how', ['crash', 'signal'])
@pytest.mark.parametrize('dispatched', [1, 4])
def test_a_run_that_stops_in_a_dispatch_ends_as_if_it_had_not(dispatched, how, single, tmp_path, monkeypatch):
  real, calls = multi_step.several, iter(range(1, 99))

  def several(step):
    inner = real(step)

    def run(state, batches, count):
      if next(calls) == 3 + dispatched:  # three are for choosing
        if how == 'crash':
          raise MemoryError('the machine is gone')
        signal.raise_signal(signal.SIGTERM)
      return inner(state, batches, count)

    return run

  with monkeypatch.context() as patch:
    patch.setattr(multi_step, 'several', several)
    with pytest.raises(MemoryError if how == 'crash' else loop.Preempted):
      trained(tmp_path / 'stopped', 3)
  trained(tmp_path / 'stopped', 3)
  assert evidence(tmp_path / 'stopped') == single


def test_a_resume_may_change_its_mind(single, tmp_path):
  run(tmp_path / 'other', steps=18, machine__steps_per_dispatch=3, **POINTS)
  trained(tmp_path / 'other', 2)
  assert evidence(tmp_path / 'other') == single


@pytest.mark.parametrize('model', [None, convnet()], ids=['dense', 'convolution'])
def test_no_batch_is_no_step_and_batches_of_unequal_number_are_told(model):
  train = jl.train_step(model or jl.from_linen(MLP((16,), classes=3)), jl.cross_entropy, jl.chain(optax.sgd(0.1)))
  shape = (4, 4, 1) if model else (6,)
  inputs, labels = np.zeros((3, 8, *shape), np.float32), np.zeros((3, 8), np.int32)
  state = train.init(jax.random.key(0), {'inputs': inputs[0], 'labels': labels[0]})
  with pytest.raises(ValueError, match=r'one k for all; got .*labels \[2, 8\]'):
    train.steps(state, {'inputs': inputs, 'labels': labels[:2]})
  after, metrics = train.steps(state, {'inputs': inputs[:0], 'labels': labels[:0]})
  assert metrics['loss'].shape == (0,)
  assert int(after.step) == 0
