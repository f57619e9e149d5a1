"""Low rank beside other parts: every permitted order gives what a model with the merge written in gives."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.contract import CONST
from jaxlite.optim import dora, lora, qlora

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)
BASE = {
  'a': {'w': RNG.normal(size=(20, 16)).astype(np.float32) / 4, 'b': RNG.normal(size=16).astype(np.float32) / 8},
  'c': {'w': RNG.normal(size=(16, 5)).astype(np.float32) / 4, 'b': RNG.normal(size=5).astype(np.float32) / 8},
}
X = jnp.asarray(RNG.normal(size=(8, 20)), jnp.float32)
BATCH = {'inputs': X, 'labels': jnp.arange(8) % 5, 'weight': jnp.ones(8).at[3].set(0)}
KEY, STEPS = jax.random.key(0), 6


def forward(p, x):
  return jax.nn.relu(x @ p['a']['w'] + p['a']['b']) @ p['c']['w'] + p['c']['b']


def teacher():
  return jl.Network(jl.from_function(forward, BASE), jax.tree.map(lambda leaf: jnp.asarray(leaf) * 1.5, BASE), {})


PARTS = {
  'fake_quant': lambda: jl.fake_quant(),
  'lsq': lambda: jl.lsq(4),
  'distill': lambda: jl.distill(teacher(), temperature=2.0),
  'hint': lambda: jl.hint(teacher(), {'a/w': 'a/w'}, project=False),
  'accumulate': lambda: jl.accumulate(2),
  'average': lambda: jl.average(0.9),
  'label_smoothing': lambda: jl.optim.label_smoothing(0.1),
  'sam': lambda: jl.optim.sam(0.05),
  'remat': lambda: jl.optim.remat(2),
}


def merged(learned):
  """The base with its products, as a person writes it."""
  add = lambda layer, own: {**layer, 'w': layer['w'] + 1.5 * own['w']['a'] @ own['w']['b']}  # noqa: E731
  return {layer: add(BASE[layer], learned[layer]) for layer in BASE}


def trained(model, parts, params=None):
  """(train, the values that it begins with, its last state, the losses of each step)."""
  train = jl.train_step(model, jl.cross_entropy, jl.chain(*parts, optax.sgd(0.1)))
  state = train.init(KEY, BATCH, params)
  begun, losses = jax.tree.map(np.array, state.params), []
  for _ in range(STEPS):
    state, metrics = train.step(state, BATCH)
    losses.append({name: float(value) for name, value in metrics.items()})
  return train, begun, state, losses


@pytest.mark.sampled(6)
@pytest.mark.parametrize('outside', [False, True], ids=['lora first', 'lora last'])
@pytest.mark.parametrize('name', PARTS)
def test_both_orders_give_what_the_merge_written_in_gives(name, outside):
  hook = lora(2, 3.0)
  train, begun, state, losses = trained(
    jl.from_function(forward, BASE), [PARTS[name](), hook] if outside else [hook, PARTS[name]()]
  )
  written = jl.from_function(lambda own, x: forward(merged(own), x), begun['jl.lora'])
  if name == 'hint':  # a tap is named after the weight, which the written one has not
    assert losses[0]['hint'] > losses[-1]['hint']
    return
  reference, _, other, expected = trained(written, [PARTS[name]()])
  for one, two in zip(losses, expected, strict=True):
    assert one == pytest.approx(two, abs=2e-5)
  for one, two in zip(
    jax.tree.leaves(state.params['jl.lora']),
    jax.tree.leaves({layer: other.params[layer] for layer in BASE}),
    strict=True,
  ):
    np.testing.assert_allclose(one, two, atol=1e-4)
  found = np.asarray(train.eval(state, BATCH)[0])
  if not (name == 'average' and not outside):  # an average of merged weights is another one than of factors
    np.testing.assert_allclose(found, reference.eval(other, BATCH)[0], atol=1e-4)
  exported, _ = train.model.export(state.params, {**state.model_state, CONST: state.const})
  assert jax.tree.structure(exported) == jax.tree.structure(BASE)
  if name not in ('fake_quant', 'lsq'):
    np.testing.assert_allclose(found, forward(exported, X), atol=1e-5)


def masks():
  return jl.pruning.straight_through(0.75, allocate=jl.pruning.uniform)


@pytest.mark.sampled(1)
@pytest.mark.parametrize('low_rank', [lora, dora, functools.partial(qlora, quantize='^a/w')])
def test_what_masks_stands_after_and_masks_the_merged_weight(low_rank):
  hook = low_rank(2)
  train, _, state, _ = trained(jl.from_function(forward, BASE), [hook, masks(), jl.fake_quant()])
  exported, _ = train.model.export(state.params, {**state.model_state, CONST: state.const})
  assert [int((exported[layer]['w'] != 0).sum()) for layer in BASE] == [80, 20], hook.name


def test_what_masks_finds_no_weight_before_low_rank():
  with pytest.raises(ValueError, match='straight finds no weight'):
    trained(jl.from_function(forward, BASE), [masks(), lora(2)])


@pytest.mark.parametrize('part', [lambda: jl.prune(0.5), lambda: jl.optim.l2(1e-3)], ids=['prune', 'l2'])
def test_update_parts_on_weights_find_none_among_the_frozen(part):
  train = jl.train_step(jl.from_function(forward, BASE), jl.cross_entropy, jl.chain(lora(2), optax.sgd(0.1), part()))
  with pytest.raises(ValueError, match='finds no weight'):
    train.init(KEY, BATCH)


def test_freeze_and_low_rank_share_a_model_in_both_orders():
  for parts in (
    [lora(2, select='^a/w$'), jl.freeze('^c')],
    [jl.freeze('^c'), lora(2, select='^a/w$', train='^c')],
    [lora(2, select='^a/w$', name='one'), lora(2, select='^c/w$', name='two', train='^[ac]/b|^a/w')],
  ):
    train, _, state, losses = trained(jl.from_function(forward, BASE), parts)
    exported, _ = train.model.export(state.params, {**state.model_state, CONST: state.const})
    np.testing.assert_array_equal(exported['c']['b'], BASE['c']['b'])
    assert losses[-1]['task'] < losses[0]['task']
  with pytest.raises(ValueError, match='matches no parameter'):
    trained(jl.from_function(forward, BASE), [jl.freeze('^c'), lora(2)])


def test_the_average_of_merged_weights_is_that_of_the_merged_weights():
  hook = lora(2)
  train = jl.train_step(
    jl.from_function(forward, BASE), jl.cross_entropy, jl.chain(hook, jl.average(0.5, warmup=False), optax.sgd(0.1))
  )
  state = train.init(KEY, BATCH)
  mean = BASE['a']['w']
  for _ in range(STEPS):
    state, _ = train.step(state, BATCH)
    own = state.params['jl.lora']['a']['w']
    mean = 0.5 * mean + 0.5 * (BASE['a']['w'] + own['a'] @ own['b'])
  exported, _ = train.model.export(state.params, {**state.model_state, CONST: state.const})
  np.testing.assert_allclose(exported['a']['w'], mean, atol=1e-5)


PROGRAM = """
import hashlib, sys
import jax, jax.numpy as jnp, optax
import jaxlite as jl
from jaxlite.graph import canonical
from networks import convnet
hook = {'lora': jl.optim.lora, 'dora': jl.optim.dora, 'qlora': jl.optim.qlora}[sys.argv[1]]
train = jl.train_step(convnet(), jl.cross_entropy, jl.chain(hook(1), optax.adam(1e-3)))
batch = {'inputs': jnp.ones((4, 4, 4, 1)), 'labels': jnp.zeros(4, int)}
state = jax.eval_shape(train.init, jax.random.key(0), batch)
text = canonical.text(train.programs.jaxpr(state, batch)[0])
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_the_program_is_the_same_whatever_the_hash_seed():
  """A run that goes on in another process would be refused as another program's."""
  here = Path(__file__).parents[1]
  told = set()
  for seed in '13':
    env = {**os.environ, 'PYTHONHASHSEED': seed, 'PYTHONPATH': os.pathsep.join((str(here), str(here.parent)))}
    done = subprocess.run([sys.executable, '-c', PROGRAM, 'dora'], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told.add(done.stdout.strip())
  assert len(told) == 1
