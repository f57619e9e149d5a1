"""The account of a run agrees with what can be counted in it, and tells what did not happen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.contract import Network
from jaxlite.distillation._hint import hint
from jaxlite.distillation._self_distill import self_distill
from jaxlite.optim._proximal import l1_proximal
from jaxlite.optim._swa import swa
from jaxlite.report import ledger, page
from jaxlite.report.result import Result, from_json, to_json

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
BATCH = {'inputs': jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32), 'labels': jnp.asarray(RNG.integers(0, 3, 8))}


def network():
  """A dense layer, attention over nothing (two activations multiplied), a dense layer."""

  def apply(p, x):
    x = jnp.tanh(x @ p['a']['w'] + p['a']['b'])
    return ((x @ x.T) @ x) @ p['c']['w']

  params = {'a': {'w': RNG.normal(size=(6, 4)), 'b': np.zeros(4)}, 'c': {'w': RNG.normal(size=(4, 3))}}
  return jl.from_function(apply, jax.tree.map(lambda leaf: (leaf / 3).astype(np.float32), params))


def run(*recipe, steps=6):
  net = network()
  recipe = jl.chain(*recipe)
  train = jl.train_step(net, jl.cross_entropy, recipe)
  state = train.init(jax.random.key(0), BATCH)
  history = []
  for step in range(steps):
    state, metrics = train.step(state, BATCH)
    history.append({'kind': 'train', 'step': step + 1, **{name: float(value) for name, value in metrics.items()}})
  rows = ledger.account(recipe, net, train.model, state, BATCH['inputs'], history)
  assert len(rows) == len(recipe.parts)
  return {row.part: row for row in rows}, state, history


def test_a_whole_recipe_accounts_for_itself(tmp_path):
  net = network()
  teacher = Network(net, *net.init(jax.random.key(0), BATCH['inputs']))
  found, state, history = run(
    jl.accumulate(2),
    jl.freeze('a/b'),
    jl.average(0.9),
    jl.fake_quant(),
    hint(teacher, {'a/w': 'a/w'}),
    jl.distill(teacher),
    jl.optim.label_smoothing(0.1),
    optax.clip_by_global_norm(1.0),
    jl.optim.l2(1e-3, select='c/w'),
    optax.adam(1e-2),
    jl.prune(0.75, begin=1, end=4, every=1),
  )
  zeros = sum(int((np.asarray(state.params[name]['w']) == 0).sum()) for name in ('a', 'c'))
  assert found['prune'].when == '6 updates; masks drawn 4 times, last at update 4'
  assert found['prune'].touched == f'2 arrays: a/w, c/w; {zeros} of 36 weights are zero'
  assert zeros == 27
  assert found['prune'].left == ''
  assert found['freeze'].touched == 'held still 1 array: a/b'
  assert found['l2'].touched == '1 array: c/w'
  assert found['fake_quant'].touched == '2 arrays: a/w, c/w in 8 bits'
  assert found['fake_quant'].left.count('both operands are activations') == 2
  assert found['average'].touched.startswith('keeps ')
  assert found['accumulate'].when == 'each step, in 2 micro-batches'
  assert found['ScaleByAdam'].when == '6 steps'
  assert found['clip_by_global_norm'].when == '6 steps'
  for name in ('distill', 'hint', 'label_smoothing'):
    first, last = f'{history[0][name]:.4g} by step 1', f'{history[-1][name]:.4g} by 6'
    assert f'its term went from {first} to {last}' in found[name].touched, name
  assert '40 values of its teacher' in found['distill'].touched
  assert 'learned 2 arrays' in found['hint'].touched

  result = Result('mine', {'accuracy': 0.5}, parts=[list(row) for row in found.values()])
  assert from_json(to_json(result)) == result
  text = page.write([result], tmp_path).read_text()
  assert '### What each part did' in text
  for row in found.values():
    assert f'| {row.part} ' in text
  assert 'What each part did' not in page.write([Result('bare', {'accuracy': 0.5})], tmp_path).read_text()


def test_masks_that_move_and_masks_that_are_a_view_are_told():
  found, state, _ = run(jl.pruning.straight_through(0.5, begin=2), jl.rigl(optax.adam(1e-2), 0.5, end=6, every=2))
  masks = state.model_state['jl.straight'].masks
  dead = sum(int((~np.asarray(mask)).sum()) for mask in masks.values())
  assert found['straight'].touched == f'2 arrays: a/w, c/w; {dead} of 36 weights are masked'
  assert dead == 18
  (moving,) = (row for name, row in found.items() if name != 'straight')
  assert moving.when == '6 updates; masks drawn 2 times, last at update 4'  # not at 0, where they are fresh
  found, state, _ = run(jl.pruning.straight_through(0.5, begin=50), jl.rigl(optax.adam(1e-2), 0.5, end=0))
  assert found['straight'].left == 'it masked nothing: its begin was not reached'
  assert any(row.when == '6 updates; masks never drawn anew' for row in found.values())


def test_what_did_not_happen_is_told():
  found, _, _ = run(
    swa(begin=100), jl.Hook('nothing'), self_distill(), optax.adam(1e-2), jl.prune(0.9, begin=2, end=50)
  )
  assert found['swa'].left == 'it averaged nothing: its begin was not reached'
  assert found['nothing'].left == 'it changes nothing'
  assert found['prune'].left.startswith('its target was not reached: masks stand at sparsity 0.')
  assert found['self_distill'].touched.startswith('keeps 3 arrays')
  found, _, _ = run(optax.chain(jl.prune(0.5), optax.adam(1e-2)), steps=20)
  (row,) = found.values()
  assert 'written to after it' in row.left
  found, _, _ = run(swa(begin=2), optax.adam(1e-2), l1_proximal(0.1, 1e-2))
  assert found['swa'].when == '5 sets of weights averaged'
  assert found['l1_proximal'].when == '6 updates'


def test_what_optax_alone_knows_is_told_too():
  found, _, _ = run(
    optax.inject_hyperparams(optax.sgd)(0.25),
    optax.apply_if_finite(optax.scale_by_adam(), 3),
    optax.contrib.reduce_on_plateau(),
    optax.scale(jnp.nan),
    optax.apply_if_finite(optax.scale_by_schedule(lambda count: 1.0), 100),
    steps=2,
  )
  first = found['inject_hyperparams']
  assert (first.when, first.touched) == ('2 steps', 'the learning rate was 0.25 at the end')
  assert found['apply_if_finite'].left == '2 updates were not finite and left out'
  assert found['reduce_on_plateau'].touched == 'updates are multiplied by 1 at the end'
