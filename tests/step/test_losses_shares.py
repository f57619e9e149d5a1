"""Losses that count each example by its share, and running values that lose nothing: against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.contract import CONST, Context
from jaxlite.tasks.lift import examples_in, lift_loss, weighted_mean

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(8, 3)).astype(np.float32), RNG.integers(0, 3, 8)
BATCH = {'inputs': jnp.asarray(LOGITS), 'labels': jnp.asarray(LABELS)}
MODEL = jl.from_function(lambda p, x: x @ p['w'], {'w': jnp.eye(3)})


def log_softmax(logits):
  logits = np.float64(logits)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def mean_loss(outputs, batch):
  return jl.cross_entropy(outputs, batch).mean()


# --- scalars ---


@pytest.mark.parametrize(
  ('parts', 'batch'),
  [
    ([], {**BATCH, 'weight': jnp.ones(8)}),
    ([], {**BATCH, 'weight': jnp.asarray([1.0] * 5 + [0] * 3)}),
    ([jl.accumulate(2)], BATCH),
    ([jl.optim.sam(), jl.accumulate(2)], BATCH),
  ],
  ids=['weights', 'padding', 'accumulate', 'sam'],
)
def test_a_scalar_loss_is_refused_where_shares_are_needed(parts, batch):
  train = jl.train_step(MODEL, mean_loss, jl.chain(*parts, optax.sgd(0.1)))
  state = train.init(jax.random.key(0), batch)
  with pytest.raises(
    ValueError, match=r'one value per example, float\[\d\], where .* got a scalar: leave its mean out'
  ):
    train.step(state, batch)
  if 'weight' in batch:
    with pytest.raises(ValueError, match='got a scalar: leave its mean out'):
      train.eval(state, batch)


def test_a_scalar_loss_of_a_whole_batch_is_taken_as_it_is():
  train = jl.train_step(MODEL, mean_loss, jl.chain(optax.sgd(0.1)))
  state = train.init(jax.random.key(0), BATCH)
  wanted = -log_softmax(LOGITS)[np.arange(8), LABELS].mean()
  np.testing.assert_allclose(train.eval(state, BATCH)[1]['task'], wanted, rtol=1e-6)


def test_a_scalar_divergence_is_refused_where_examples_have_weights():
  teacher = jl.Network(MODEL, *MODEL.init(jax.random.key(1), BATCH['inputs']))
  hook = jl.distill(teacher, loss=lambda student, teacher: jnp.mean((student - teacher) ** 2))
  train = jl.train_step(MODEL, jl.cross_entropy, jl.chain(hook, optax.sgd(0.1)))
  batch = {**BATCH, 'weight': jnp.ones(8)}
  with pytest.raises(ValueError, match=r'distill: .*takes weight= itself; got a scalar: leave its mean out'):
    train.step(train.init(jax.random.key(0), batch), batch)


def test_the_mean_of_half_precision_losses_is_exact_to_float32():
  values, weight = jnp.full(301, 1.0, jnp.bfloat16), jnp.ones(301)
  values = values.at[0].set(2.0)
  for found in (weighted_mean(values, weight), weighted_mean(values, None)):
    np.testing.assert_allclose(found, 302 / 301, rtol=1e-6)


# --- label smoothing ---


def smoothed(loss, amount=0.1, labels=LABELS, logits=LOGITS):
  context = Context(jnp.asarray(logits), {'labels': jnp.asarray(labels)}, {}, {}, None, 0)
  return lambda logits: sum(
    jl.optim.label_smoothing(amount).loss(lift_loss(loss))(context._replace(outputs=logits)).values()
  )


def by_class(outputs, batch):
  """As a person writes it who knows only whole labels."""
  log_p, weights = jax.nn.log_softmax(outputs), jnp.asarray([1.0, 2.0, 5.0])
  return -log_p[jnp.arange(len(outputs)), batch['labels']] * weights[batch['labels']]


@pytest.mark.parametrize('loss', [jl.tasks.weighted_cross_entropy([1.0, 2.0, 5.0]), by_class])
def test_label_smoothing_goes_through_the_users_loss(loss):
  weights = np.array([1.0, 2.0, 5.0])
  soft = (0.9 * np.eye(3)[LABELS] + 0.1 / 3) * weights
  total = smoothed(loss)
  value, grad = jax.value_and_grad(total)(jnp.asarray(LOGITS))
  np.testing.assert_allclose(value, -(soft * log_softmax(LOGITS)).sum(1).mean(), rtol=1e-5)
  p = np.exp(log_softmax(LOGITS))
  np.testing.assert_allclose(grad, (soft.sum(1, keepdims=True) * p - soft) / 8, rtol=1e-4, atol=1e-6)


def test_label_smoothing_leaves_other_terms_and_labels_alone():
  teacher = jl.Network(MODEL, *MODEL.init(jax.random.key(1), BATCH['inputs']))
  seen = []

  def divergence(student, teacher, labels):
    seen.append(labels.dtype)
    return jnp.sum((student - teacher) ** 2, 1)

  hook = jl.distill(teacher, loss=divergence, alpha=0.5)
  train = jl.train_step(MODEL, by_class, jl.chain(jl.optim.label_smoothing(0.2), hook, optax.sgd(0.1)))
  _, metrics = train.step(train.init(jax.random.key(0), BATCH), BATCH)
  assert all(jnp.issubdtype(dtype, jnp.integer) for dtype in seen)
  np.testing.assert_allclose(
    metrics['task'] + metrics['label_smoothing'], 0.5 * smoothed(by_class, 0.2)(LOGITS), rtol=1e-5
  )


@pytest.mark.parametrize(
  ('outputs', 'words'),
  [(jnp.ones(8), r'works on logits, float\[B, ..., classes\]'), (jnp.ones((8, 300)), 'takes labels as a distribution')],
)
def test_label_smoothing_refuses_what_it_cannot_mix(outputs, words):
  whole = lambda outputs, batch: outputs[jnp.arange(8), batch['labels']] if outputs.ndim == 2 else outputs  # noqa: E731
  with pytest.raises(ValueError, match=words):
    smoothed(whole)(outputs)


# --- dtypes ---


def test_accumulated_gradients_of_half_precision_weights_do_not_stand_still():
  """256 gradients of 1 and then of 1/256 of it: in bfloat16 a running sum stands still."""
  k = 256
  x = np.full((k, 2), 1.0, np.float32) + RNG.normal(size=(k, 2)).astype(np.float32) * 0.1
  model = jl.from_function(lambda p, x: x.astype(jnp.bfloat16) @ p['w'], {'w': jnp.ones((2, 1), jnp.bfloat16)})
  batch = {'inputs': jnp.asarray(x), 'labels': jnp.zeros(k)}
  loss = lambda outputs, batch: outputs[:, 0].astype(jnp.float32)  # noqa: E731
  train = jl.train_step(model, loss, jl.chain(jl.accumulate(k), optax.sgd(1.0)))
  state = train.init(jax.random.key(0), batch)
  new, metrics = train.step(state, batch)
  wanted = np.float64(jnp.asarray(x).astype(jnp.bfloat16)).mean(0)
  np.testing.assert_allclose(1 - np.float64(new.params['w'][:, 0]), wanted, atol=2**-8)
  assert new.params['w'].dtype == jnp.bfloat16
  assert metrics['task'].dtype == jnp.float32


def test_running_averages_keep_small_steps_complex_parts_and_double_precision():
  values = {'half': jnp.full(2, 1.0, jnp.bfloat16), 'complex': jnp.full(2, 1 + 1j, jnp.complex64)}
  later = {'half': jnp.full(2, 2.0, jnp.bfloat16), 'complex': jnp.full(2, 2 - 3j, jnp.complex64)}
  for hook, first in ((jl.average(0.999, warmup=False), 0), (jl.distillation.self_distill(0.999), 10_000)):
    slot = f'jl.{hook.name}'
    model = hook.model(jl.Model(lambda key, inputs: (values, {}), lambda p, s, x, **_: (x, s)))
    _, state = model.init(jax.random.key(0), None)
    after = jax.jit(model.after)
    for step in range(1, 101):
      state = after(later, state, first + step)
    share = 1 - 0.999**100
    np.testing.assert_allclose(state[slot]['half'], np.full(2, 1 + share), rtol=1e-4)
    np.testing.assert_allclose(state[slot]['complex'], np.full(2, 1 + 1j + share * (1 - 4j)), rtol=1e-4)
  with jax.enable_x64(True):
    wide = {'w': jnp.full(2, 1.0, jnp.float64)}
    model = jl.average(0.9, warmup=False).model(jl.Model(lambda key, x: (wide, {}), lambda p, s, x, **_: (x, s)))
    _, state = model.init(jax.random.key(0), None)
    state = model.after({'w': jnp.full(2, 1 + 1e-12)}, state, 1)
    np.testing.assert_allclose(state['jl.average']['w'] - 1, np.full(2, 1e-13), rtol=1e-2)
    updates, _ = (tx := jl.optim.l2(0.1)).update({'w': jnp.zeros((2, 2))}, tx.init({'w': jnp.ones((2, 2))}), wide)
    np.testing.assert_allclose(updates['w'][0], 0.1, rtol=1e-15)
    logits = np.float64(RNG.normal(size=(8, 3)))
    soft = 0.9 * np.eye(3)[LABELS] + 0.1 / 3
    wanted = -(soft * log_softmax(logits)).sum(1).mean()
    np.testing.assert_allclose(smoothed(jl.cross_entropy, logits=logits)(jnp.asarray(logits)), wanted, rtol=1e-14)


def test_quantized_weights_leave_double_precision_activations_as_they_are():
  with jax.enable_x64(True):
    x, w = RNG.normal(size=(4, 5)), RNG.normal(size=(5, 3))
    model = jl.from_function(lambda p, x: x @ p['w'], {'w': jnp.asarray(w)})
    train = jl.train_step(model, jl.cross_entropy, jl.chain(jl.fake_quant(bits=(4, None)), optax.sgd(0.0)))
    batch = {'inputs': jnp.asarray(x), 'labels': jnp.zeros(4, int)}
    found = train.eval(train.init(jax.random.key(0), batch), batch)[0]
    scale = np.abs(w).astype(np.float32).max(0) * np.float32(1 / 7)
    np.testing.assert_allclose(found, x @ np.round(w / scale) * np.float64(scale), rtol=1e-12)


@pytest.mark.parametrize('leaf', [jnp.arange(3), jnp.array([True, False, True])], ids=['integers', 'booleans'])
def test_a_leaf_that_cannot_learn_is_told_and_may_be_frozen(leaf):
  model = jl.from_function(lambda p, x: (x * p['mask']) @ p['w'], {'w': jnp.eye(3), 'mask': leaf})
  train = jl.train_step(model, jl.cross_entropy, jl.chain(optax.adam(0.1)))
  with pytest.raises(ValueError, match=r"parameters are what learns.* 'mask' is .*jl.freeze\('\^mask\$'\)"):
    train.init(jax.random.key(0), BATCH)
  train = jl.train_step(model, jl.cross_entropy, jl.chain(jl.freeze('^mask$'), optax.adam(0.1)))
  state, _ = train.step(train.init(jax.random.key(0), BATCH), BATCH)
  np.testing.assert_array_equal(state.const['freeze']['mask'], leaf)


def test_sam_ascends_along_the_conjugate_of_a_complex_gradient():
  bowl = lambda params: jnp.sum(jnp.abs(params['w']) ** 2)  # noqa: E731
  seen = []

  def inner(params, state, batch, key, step):
    seen.append(params['w'])
    return jax.grad(bowl)(params), state, {'task': bowl(params)}

  start = {'w': jnp.array([3 + 4j], jnp.complex64)}
  jl.optim.sam(0.5).grad(inner)(start, {}, {}, None, 0)
  np.testing.assert_allclose(seen[1], [(3 + 4j) * 1.1], rtol=1e-6)  # farther up, in its own direction


# --- which leaves have examples ---


def test_accumulation_takes_apart_only_what_has_examples():
  def loss(outputs, batch):
    return jl.cross_entropy(outputs, batch) * batch['class_weight'][batch['labels']] * batch['scale']

  batch = {**BATCH, 'class_weight': jnp.arange(1.0, 11.0), 'scale': jnp.float32(2.0)}
  shared = {**BATCH, 'shared': {'w': jnp.arange(1.0, 9.0)}}
  under = lambda outputs, batch: jl.cross_entropy(outputs, batch) * batch['shared']['w'][batch['labels']]  # noqa: E731
  for fn, given in ((loss, batch), (under, shared)):
    found = []
    for parts in ([], [jl.accumulate(4)]):
      train = jl.train_step(MODEL, fn, jl.chain(*parts, optax.sgd(0.1)))
      state, metrics = train.step(train.init(jax.random.key(0), given), given)
      found.append((np.asarray(metrics['loss']), np.asarray(state.params['w'])))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-6)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-5, atol=1e-7)


def test_a_batch_whose_parts_do_not_match_is_refused():
  with pytest.raises(ValueError, match=r"'labels' is 7 rows beside 8: put .* under batch\['shared'\]"):
    examples_in({**BATCH, 'labels': jnp.zeros(7, int)})
  with pytest.raises(ValueError, match="'weight' is a scalar beside 8"):
    examples_in({**BATCH, 'weight': jnp.ones(())})
  with pytest.raises(ValueError, match="a batch holds arrays; 'name' holds a str: leave it out"):
    examples_in({**BATCH, 'name': 'a.png'})


# --- averages and statistics ---


def normed(params, state, inputs, *, train, key, step=None):
  x = inputs @ params['w']
  if not train:
    return (x - state['stats']['mean']) / jnp.sqrt(state['stats']['var'] + 1e-5), state
  stats = {'mean': 0.5 * (state['stats']['mean'] + x.mean(0)), 'var': 0.5 * (state['stats']['var'] + x.var(0))}
  counted = {**stats, 'seen': state['stats']['seen'] + 1}
  return (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5), {**state, 'stats': counted}


@pytest.mark.parametrize('hook', [jl.average(0.6, warmup=False), jl.optim.swa(1)], ids=['average', 'swa'])
def test_an_average_of_weights_is_read_with_the_average_of_their_statistics(hook):
  start = {'stats': {'mean': jnp.zeros(3), 'var': jnp.ones(3), 'seen': jnp.int32(0)}}
  model = jl.Model(lambda key, x: ({'w': jnp.eye(3) + 0.1}, start), normed)
  train = jl.train_step(model, jl.cross_entropy, jl.chain(hook, optax.sgd(1.0)))
  state = train.init(jax.random.key(0), BATCH)
  w, mean, var = np.float64(np.eye(3) + 0.1), np.zeros(3), np.ones(3)
  sums = []
  for seed in range(5):
    batch = {**BATCH, 'inputs': jnp.asarray(np.random.default_rng(seed).normal(size=(8, 3)).astype(np.float32))}
    state, _ = train.step(state, batch)
    live = [np.float64(leaf) for leaf in (state.params['w'], *(state.model_state['stats'][k] for k in ('mean', 'var')))]
    if hook.name == 'average':
      w, mean, var = (0.6 * old + 0.4 * new for old, new in zip((w, mean, var), live, strict=True))
    else:
      sums.append(live)
      w, mean, var = (np.mean(one, axis=0) for one in zip(*sums, strict=True))
  wanted = (LOGITS @ w - mean) / np.sqrt(var + 1e-5)
  np.testing.assert_allclose(train.eval(state, BATCH)[0], wanted, rtol=1e-4, atol=1e-5)
  assert int(state.model_state['stats']['seen']) == 5
  params, stripped = train.model.export(state.params, {**state.model_state, CONST: state.const})
  np.testing.assert_allclose(stripped['stats']['var'], var, rtol=1e-5)
  np.testing.assert_allclose(params['w'], w, rtol=1e-5, atol=1e-6)
  assert f'jl.{hook.name}' not in stripped


# --- what a batch and a loss may be ---


@pytest.mark.parametrize('parts', [[], [jl.accumulate(2)]], ids=['whole', 'parts'])
def test_a_weight_below_zero_counts_as_numpy_counts_it_and_one_that_is_nan_is_seen(parts):
  train = jl.train_step(MODEL, jl.cross_entropy, jl.chain(*parts, optax.sgd(0.1)))
  losses = -log_softmax(LOGITS)[np.arange(8), LABELS]
  weight = np.array([2.0, -0.5, 0, 1, 1, -0.25, 3, 0])  # events of a simulation, say
  for given, wanted in ((weight, np.average(losses, weights=weight)), (np.where(weight == 3, np.nan, weight), np.nan)):
    batch = {**BATCH, 'weight': jnp.float32(given)}
    _, terms = train.step(train.init(jax.random.key(0), batch), batch)
    np.testing.assert_allclose(terms['loss'], wanted, rtol=1e-5)


def test_what_would_silently_teach_nothing_is_refused():
  def mistakes(outputs, batch):
    return outputs.argmax(-1) != batch['labels']

  def step(loss=jl.cross_entropy, model=MODEL, **extra):
    train = jl.train_step(model, loss, jl.chain(optax.sgd(0.1)))
    return train.step(train.init(jax.random.key(0), BATCH), {**BATCH, **extra})

  with pytest.raises(TypeError, match=r'^a loss .* has a gradient; mistakes returns bool\[8\], which has none: '):
    step(mistakes)
  with pytest.raises(ValueError, match=r'^a batch holds arrays; its .weight. is a list: '):
    step(weight=[1.0] * 8)
  one = jl.from_function(lambda p, x: x @ p['w'], {'w': jnp.ones((3, 1))})
  with pytest.raises(ValueError, match=r'^a classifier .* two classes or more; got float32\[8, 1\], [^\n]*binary'):
    step(model=one)


def test_parts_run_where_somebody_forbids_implicit_broadcasts_promotions_and_transfers():
  """In a code base with these switches a part that leans on NumPy's rules could not be used; the numbers are alike."""
  pictures, classes = jax.random.normal(jax.random.key(1), (8, 6, 6, 2)), jnp.arange(8) % 3
  batch = {'inputs': pictures, 'labels': classes, 'weight': jnp.ones(8)}
  model = jl.from_function(lambda p, x: x.reshape(x.shape[0], -1) @ p['w'], {'w': jnp.ones((72, 3)) / 72})
  loss = jl.tasks.weighted_cross_entropy([1.0, 2.0, 1.0])
  whole, boxes = lambda x: x[:, 0, 0, :1] * jnp.ones((1, 3)), [jl.optim.flip(), jl.optim.shift(1), jl.optim.cutout(2)]
  parts = [
    jl.augment(*boxes, jl.optim.cutmix(1.0, 3)),
    jl.distill(whole),
    jl.fake_quant(),
    jl.average(0.9),
    jl.accumulate(2),
  ]

  def losses():
    update = optax.stateless(lambda grads, _: jax.tree.map(lambda grad: jnp.float32(-0.1) * grad, grads))
    train = jl.train_step(model, loss, jl.chain(*parts, jl.optim.l2(1e-3), update, jl.prune(0.5, end=2, every=1)))
    state, found = train.init(jax.random.key(0), batch), []
    with jax.transfer_guard('disallow'):
      for _ in range(3):
        state, terms = train.step(state, batch)
        found.append(terms['loss'])
      return [*found, *jax.tree.leaves(train.eval(state, batch)[1])]

  with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
    found = losses()
  np.testing.assert_array_equal(found, losses())
