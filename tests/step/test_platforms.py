"""Train steps for GPU and TPU, read without one: none of what is for CPU, and all that makes them fast."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.models import ResNet8, SmallCNN
from jaxlite.step.multi_step import several

BATCH = {'inputs': np.ones((8, 16, 16, 3), np.float32), 'labels': np.zeros(8, np.int32)}
NETWORKS = {'cnn': SmallCNN((8, 8), hidden=8, dtype=jnp.bfloat16), 'resnet': ResNet8(dtype=jnp.bfloat16)}


def lowered(name, platform, steps=1):
  recipe = jl.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3), jl.prune(0.5, end=10))
  train = jl.train_step(jl.from_linen(NETWORKS[name]), jl.cross_entropy, recipe)
  state = jax.eval_shape(lambda: train.init(jax.random.key(0), BATCH))
  live, fixed = state._replace(key=None, const=None), (state.key, state.const)

  def step(live, fixed, batch):
    state = live._replace(key=fixed[0], const=fixed[1])
    if steps > 1:
      state, metrics = several(train.step)(state, jax.tree.map(lambda leaf: jnp.stack([leaf] * steps), batch), steps)
    else:
      state, metrics = train.step(state, batch)
    return state._replace(key=None, const=None), metrics

  exported = jax.export.export(jax.jit(step, donate_argnums=0), platforms=[platform])(live, fixed, BATCH)
  return exported.mlir_module(), live


@pytest.mark.parametrize(
  'name, platform',
  [
    ('cnn', 'cuda'),
    ('cnn', 'tpu'),
    pytest.param('resnet', 'cuda', marks=pytest.mark.slow),
    pytest.param('resnet', 'tpu', marks=pytest.mark.slow),
  ],
)
def test_a_step_holds_nothing_for_cpu_gives_its_state_away_and_never_asks_the_host(name, platform):
  text, live = lowered(name, platform)
  assert 'jaxlite_cpu' not in text
  assert not re.search('callback|onednn|infeed|outfeed|send_to_host', text)
  donated = len(re.findall(r'tf\.aliasing_output|jax\.buffer_donor', text))
  assert donated == len(jax.tree.leaves(live))
  convolutions = re.findall(r'stablehlo\.convolution.*?: \((.*?)\) ->', text)
  assert convolutions
  assert all('bf16' in operands for operands in convolutions)
  assert all('f32' not in operands.replace('bf16', '') for operands in convolutions)


def test_several_steps_are_one_program_with_a_loop_around_convolutions_too():
  text, live = lowered('cnn', 'cuda', steps=4)
  assert 'stablehlo.while' in text
  assert 'jaxlite_cpu' not in text
  assert len(re.findall(r'tf\.aliasing_output|jax\.buffer_donor', text)) == len(jax.tree.leaves(live))
