"""A zero in an array is a zero in what is multiplied, or the array is not masked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.graph import provenance, zeros

pytestmark = pytest.mark.unoptimized

EYE, BAND = jnp.eye(6, 5), jnp.tril(jnp.ones((6, 5)))


def standardized(w):
  return (w - w.mean(0)) / (w.std(0) + 1e-5)


@jax.custom_jvp
def hard(w):
  return jnp.clip(w, -1, 1)


hard.defjvp(lambda primals, tangents: (hard(*primals), tangents[0]))

KEEPS = {
  'tanh': jnp.tanh,
  'square': jnp.square,
  'its own norm': lambda w: w / (jnp.linalg.norm(w, axis=0) + 1e-6),
  'sign, straight through': lambda w: w + jax.lax.stop_gradient(jnp.sign(w) - w),
  'soft threshold': lambda w: jnp.sign(w) * jnp.maximum(jnp.abs(w) - 0.1, 0.0),
  'hard threshold': lambda w: jnp.where(jnp.abs(w) > 0.3, w, 0.0),
  'a mask': lambda w: jnp.where(BAND > 0, w, 0.0) * BAND,
  'few bits': lambda w: jnp.clip(jnp.round(w / jnp.abs(w).max() * 7), -7, 7) * jnp.abs(w).max() / 7,
  'few bits and a zero point': lambda w: jnp.clip(jnp.round(w * 7) + 8, 0, 15) - 8,
  'expm1 spelled out': lambda w: jnp.exp(w) - 1,
  'a body': jax.jit(lambda w: jax.lax.cond(True, jnp.tanh, jnp.sin, w)),
  'a custom rule': hard,
  'moved': lambda w: jnp.concatenate([w[3:], w[:3]])[::-1].T.reshape(6, 5).astype(jnp.bfloat16).astype(jnp.float32),
  'a power': lambda w: w**3,
}
FILLS = {
  'exp': jnp.exp,
  'softplus': jax.nn.softplus,
  'sigmoid': jax.nn.sigmoid,
  'softmax': lambda w: jax.nn.softmax(w, axis=0),
  'standardized': standardized,
  'an identity beside it': lambda w: w + EYE,
  'one less': lambda w: 1 - w,
  'a floor': lambda w: jnp.clip(w, 0.1, 1.0),
  'two values': lambda w: jnp.where(w >= 0, 1.0, -1.0),
  'a body': jax.jit(lambda w: jax.lax.cond(False, jnp.tanh, jnp.cos, w)),
  'its inverse': lambda w: 1 / w,
}
CASES = [pytest.param(form, True, id=name) for name, form in KEEPS.items()]
CASES += [pytest.param(form, False, id=f'{name}, fills') for name, form in FILLS.items()]


def found(form, *, vmapped=False):
  def forward(w, x):
    return x @ form(w)

  w, x = jnp.ones((6, 5)), jnp.ones((2, 6))
  forward, w = (jax.vmap(forward, (0, None)), jnp.ones((3, 6, 5))) if vmapped else (forward, w)
  closed = jax.make_jaxpr(forward)(w, x)
  tags = [provenance.weight('w'), provenance.DATA]
  return zeros.filled(closed, provenance.read(closed, tags), tags)


@pytest.mark.parametrize('form, keeps', CASES)
def test_what_is_found_is_what_the_numbers_say(form, keeps):
  draw = np.random.default_rng(0)
  w = draw.normal(size=(6, 5)).astype(np.float32) * (draw.random((6, 5)) < 0.5)
  with np.errstate(all='ignore'):
    share = float(np.mean(np.asarray(form(jnp.asarray(w))) == 0))
  assert (share >= np.mean(w == 0)) == keeps  # the oracle: what is multiplied is as sparse as the array
  assert (found(form) == {}) == keeps
  assert (found(form, vmapped=True) == {}) == keeps


def test_layers_in_a_scan_are_followed():
  def forward(w, x, of):
    return jax.lax.scan(lambda x, one: (jnp.tanh(x @ of(one)), None), x, w)[0]

  args, tags = (jnp.ones((3, 4, 4)), jnp.ones((2, 4))), [provenance.weight('w'), provenance.DATA]
  for of, filled in ((jnp.exp, {'w': 'exp'}), (jnp.tanh, {})):
    closed = jax.make_jaxpr(lambda w, x, of=of: forward(w, x, of))(*args)
    assert zeros.filled(closed, provenance.read(closed, tags), tags) == filled


PARAMS = {'w': jnp.ones((6, 8)) + jnp.arange(8.0), 'v': jnp.ones((8, 4)) + jnp.arange(4.0)}
BATCH = {'inputs': jnp.ones((8, 6)), 'labels': jnp.arange(8) % 4}


class TestParts:
  def model(self):
    return jl.from_function(lambda p, x: jnp.tanh(x @ jnp.exp(p['w'])) @ p['v'], PARAMS)

  @pytest.mark.parametrize(
    'recipe',
    [
      lambda: jl.chain(optax.sgd(0.01), jl.prune(0.5, end=2)),
      lambda: jl.chain(jl.rigl(optax.sgd(0.01), 0.5, end=4, every=2)),
      lambda: jl.chain(jl.pruning.straight_through(0.5), optax.sgd(0.01)),
    ],
    ids=['prune', 'rigl', 'straight_through'],
  )
  def test_what_masks_would_not_take_out_is_left_and_told(self, recipe):
    train = jl.train_step(self.model(), jl.cross_entropy, recipe())
    with pytest.warns(UserWarning, match="'w' is not masked: a zero in it is none in what is multiplied \\('exp'"):
      state = train.init(jax.random.key(0), BATCH)
    for _ in range(4):
      state, _ = train.step(state, BATCH)
    params, _ = train.model.export(state.params, state.model_state)
    assert (params['w'] != 0).all()
    assert (params['v'] == 0).any()

  def test_a_rule_that_names_it_is_refused(self):
    train = jl.train_step(self.model(), jl.cross_entropy, jl.chain(optax.sgd(0.01), jl.prune(0.5, end=2, select='w')))
    with pytest.raises(ValueError, match="prune: masking 'w' would not take it out"):
      train.init(jax.random.key(0), BATCH)

  def test_so_it_is_at_once(self):
    statistics = jl.pruning.gather_statistics(self.model(), PARAMS, batches=[BATCH])
    with pytest.warns(UserWarning, match="'w' is not masked"):
      params, masks = jl.pruning.sparsify(PARAMS, 0.5, context=statistics)
    assert masks['w'] is None
    assert (params['v'] == 0).mean() == 0.5

  def test_the_ledger_tells(self):
    train = jl.train_step(self.model(), jl.cross_entropy, jl.chain(optax.sgd(0.01), jl.prune(0.5, end=2)))
    with pytest.warns(UserWarning, match='not masked'):
      state = train.init(jax.random.key(0), BATCH)
    account = jl.trees.able(state.opt_state, 'account')
    assert any("'w' is not masked" in one.account(state.params).left for one in account)


@pytest.mark.parametrize('form', ['tanh', 'square', 'a power', 'sign, straight through', 'a mask', 'few bits'])
def test_corrections_are_made_where_a_multiple_is_multiplied(form):
  """SparseGPT's corrections hold for a leaf that is multiplied as it is, or scaled; of a curve they would be wrong."""
  draw = np.random.default_rng(1)
  params = {'w': jnp.asarray(draw.normal(size=(6, 5)), jnp.float32)}
  batch = {'inputs': jnp.asarray(draw.normal(size=(32, 6)), jnp.float32)}
  context = jl.pruning.gather_statistics(lambda p, x: x @ KEEPS[form](p['w']), params, batches=[batch])
  if form in ('a mask', 'few bits'):
    assert (jl.pruning.sparsegpt(params, context, 0.5)[0]['w'] == 0).sum() == 15
    return
  with pytest.raises(ValueError, match="of 'w' that is no multiple"):
    jl.pruning.sparsegpt(params, context, 0.5)
  assert (jl.pruning.sparsify(params, 0.5, context=context)[0]['w'] == 0).sum() == 15
