"""What is made ready for the first step: compiled once, in another thread, and no error is lost."""

import contextlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.step import warm_up
from networks import convnet

BATCH = {'inputs': np.ones((4, 4, 4, 1), np.float32), 'labels': np.arange(4) % 2}


@contextlib.contextmanager
def compilations():
  """Counts the programs that are compiled inside."""
  found = []

  def listen(event, _, **__):
    if event.endswith('backend_compile_duration'):
      found.append(threading.current_thread().name)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def training(*parts):
  train = jl.train_step(convnet(), jl.cross_entropy, jl.chain(*parts, optax.adam(1e-3)))
  return train, train.init(jax.random.key(0), BATCH)


def test_the_step_is_compiled_in_the_background_and_not_again():
  train, state = training()
  with compilations() as found:
    with warm_up.compiling(train, state, BATCH, steps=1) as took:
      pass
    assert len(found) == 1
    assert found[0].startswith('jaxlite-compile')
    assert took.seconds > 0
    train.step(state, BATCH)
    assert len(found) == 1


def test_nothing_is_compiled_where_no_step_is_left():
  train, state = training()
  with compilations() as found, warm_up.compiling(train, state, BATCH, steps=0):
    pass
  assert found == []


def test_a_step_of_several_programs_is_left_to_the_first_step():
  train, state = training(jl.accumulate(2))
  with warm_up.compiling(train, state, BATCH, steps=1):
    pass
  assert int(train.step(state, BATCH)[0].step) == 1


def test_what_cannot_be_compiled_is_told_by_the_first_step():
  def broken(outputs, batch):
    if threading.current_thread() is not threading.main_thread():
      raise ValueError('not here')
    raise ValueError('the loss is broken')

  train = jl.train_step(convnet(), broken, jl.chain(optax.sgd(0.1)))
  state = train.init(jax.random.key(0), BATCH)
  with warm_up.compiling(train, state, BATCH, steps=1) as took:
    pass
  assert took.seconds == 0
  with pytest.raises(ValueError, match='the loss is broken'):
    train.step(state, BATCH)


def test_compiling_runs_nothing_and_takes_no_array():
  train, state = training()
  train.programs.compile(state, BATCH)
  assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(state))
  assert int(state.step) == 0
  assert jnp.isfinite(train.step(state, BATCH)[1]['loss'])
