"""Few batches wait in memory while a loop runs ahead of the device; nothing else is different."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.step import under_way
from jaxlite.step.under_way import few_under_way

AHEAD = """
import resource
import jax, jax.numpy as jnp, numpy as np, optax
import jaxlite as jl

model = jl.from_function(lambda p, x: x.reshape(len(x), -1)[:, :800] @ p['w'] @ p['w'] @ p['w'][:, :10],
                         {'w': jnp.ones((800, 800)) / 800})
train = jl.train_step(model, jl.cross_entropy, jl.chain(optax.sgd(0.1)))
draw = lambda: {'inputs': np.ones((512, 5000), np.float32), 'labels': np.zeros(512, int)}  # 10 MB
state = train.init(jax.random.key(0), draw())
for i in range(40):
  state, metrics = train.step(state, draw())
  if i == 1:
    jax.block_until_ready(metrics)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
jax.block_until_ready(metrics)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def recipe_of():
  model = jl.from_function(lambda p, x: x @ p['w'], {'w': jnp.zeros((3, 2))})
  return jl.train_step(model, jl.cross_entropy, jl.chain(optax.sgd(0.1)))


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='counts as Linux does')
def test_a_loop_that_runs_ahead_holds_few_batches():
  """Forty batches of 10 MB, each of which takes the device longer than making the next: unbounded, 200 MB wait."""
  ran = subprocess.run(
    [sys.executable, '-c', AHEAD], capture_output=True, text=True, check=True, env=dict(os.environ), timeout=300
  )
  assert int(ran.stdout) < 70  # MiB


def test_at_most_so_many_are_under_way_by_their_bytes():
  """An array says when it is waited for; as many wait as fit into the bytes, two at the least."""
  waited = []

  class Dispatched:
    def __init__(self, at):
      self.at = at

    def is_deleted(self):
      return self.at == 1  # somebody donated it: it is not asked

    def block_until_ready(self):
      waited.append(self.at)

  sent = under_way.collections.deque(map(Dispatched, range(4)))
  under_way._wait(sent, 1)
  assert (waited, [one.at for one in sent]) == ([0, 2], [3])


def test_nothing_is_held_back_while_it_is_traced():
  train = recipe_of()
  batch = {'inputs': jnp.ones((4, 3)), 'labels': jnp.zeros(4, int)}
  with jax.checking_leaks():
    state = train.init(jax.random.key(0), batch)
    scanned = jax.jit(lambda state: jax.lax.scan(lambda s, _: train.step(s, batch), state, length=3))
    first, terms = scanned(state)
  state = train.init(jax.random.key(0), batch)
  for i in range(3):
    state, metrics = train.step(state, batch)
    np.testing.assert_allclose(terms['loss'][i], metrics['loss'], rtol=1e-6)
  np.testing.assert_allclose(first.params['w'], state.params['w'], rtol=1e-6)


def test_metrics_may_be_donated_or_absent():
  step = few_under_way(jax.jit(lambda state, batch: (state + batch.sum(), {'loss': state})))
  away = jax.jit(lambda loss: loss + 1, donate_argnums=0)
  state = jnp.zeros(())
  for _ in range(5):
    state, metrics = step(state, jnp.ones(3 << 20))
    away(metrics['loss'])
  assert float(state) == 5 * (3 << 20)
  bare = few_under_way(lambda state, batch: (state, {}))
  assert [bare(1, jnp.ones(3 << 20))[0] for _ in range(3)] == [1, 1, 1]


ALONE = """
import resource
import jax, jax.numpy as jnp, numpy as np, optax
import jaxlite as jl
from jaxlite.host.promised import data

model = jl.from_function(lambda p, x: jnp.tanh(jnp.tanh(x @ p['a']) @ p['b']) @ p['a'][:, :10],
                         {'a': jnp.ones((512, 512)) / 512, 'b': jnp.ones((512, 512)) / 512})
train = jl.train_step(model, jl.cross_entropy, jl.chain(optax.sgd(0.1)))
batch = {'inputs': jnp.ones((8192, 512)), 'labels': jnp.zeros(8192, int)}
state = train.init(jax.random.key(0), batch)
size = jax.jit(train.step).lower(state, batch).compile().memory_analysis().temp_size_in_bytes
assert size > 32 << 20
small = {name: leaf[:16] for name, leaf in batch.items()}
resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, resource.RLIM_INFINITY))  # with room for all
for one in [*16 * [small], batch, batch]:  # what is quick of few examples is not of many
  state, metrics = train.step(state, one)
  jax.block_until_ready((state.params, metrics))
import time
time.sleep(0.2)
resource.setrlimit(resource.RLIMIT_DATA, (data() + size * 8 // 5, resource.RLIM_INFINITY))
for _ in range(12):
  state, metrics = train.step(state, batch)
print(bool(jnp.isfinite(metrics['loss'])))
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='counts as Linux does')
def test_a_limit_with_room_for_one_step_suffices_for_a_loop_that_never_looks():
  ran = subprocess.run([sys.executable, '-c', ALONE], capture_output=True, text=True, check=False, timeout=300)
  assert ran.stdout == 'True\n', ran.stderr[-500:]
