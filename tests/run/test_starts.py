"""What a run costs before and after its steps: no program but its own, no walk of the collector over what it makes."""

from __future__ import annotations

import gc
import re

import jax
import numpy as np
import optax
import pytest

import jaxlite as jl
from tests import loops

pytestmark = pytest.mark.unoptimized
COMPILED = '/jax/core/compile/backend_compile_duration'


def model(traced=None):
  rng = np.random.default_rng(0)
  params = {'w0': rng.normal(size=(6, 6)).astype(np.float32), 'w1': rng.normal(size=(6, 3)).astype(np.float32)}

  def apply(params, x):
    if traced is not None:
      traced.append(gc.isenabled())
    return jax.nn.relu(x @ params['w0']) @ params['w1']

  return jl.from_function(apply, params)


def pruned(config, total):
  return jl.chain(jl.fake_quant(), optax.adam(1e-2), jl.prune(0.5, end=4, every=2))


def test_a_run_compiles_its_step_and_its_evaluation_and_nothing_else(tmp_path):
  jax.clear_caches()  # else what an earlier test compiled would not count
  compiled, net = [], model()

  def listen(event, duration, *, fun_name='', **_):
    if event == COMPILED:
      compiled.append(fun_name)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    loops.run(tmp_path / 'run', pruned, model=net, machine__steps_per_dispatch=1)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  own = 'whole|add|stage'  # the step, evaluation with its metrics, a key
  assert not [one for one in compiled if not re.search(own, one)]


def test_the_collector_waits_while_a_run_traces(tmp_path):
  traced = []
  loops.run(tmp_path / 'run', pruned, model=model(traced))
  assert len(traced) > 3
  assert not any(traced[1:])  # the first look at a model, before there is a run, is its adapter's
  assert gc.isenabled()
