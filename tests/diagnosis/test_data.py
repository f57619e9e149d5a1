"""What is said of data agrees with oracles: refitting, SciPy's tests, counting by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxlite as jl
from jaxlite.config.schema import RepairConfig
from jaxlite.diagnosis import distributions, label_noise, reference, repairs, twins

pytestmark = pytest.mark.unoptimized

RNG = lambda seed=0: np.random.default_rng(seed)  # noqa: E731


def test_a_training_example_is_judged_by_a_fit_without_it():
  """In closed form: as if each of them had been left out and the rest fitted anew."""
  x, targets = RNG().normal(size=(30, 4)), RNG(1).normal(size=(30, 2))
  found = reference._fitted(x, x[:1], targets)[0]
  wide = np.concatenate([x, np.ones((30, 1))], 1)
  best = None
  for ridge in reference._RIDGES:
    eye = (ridge + 1e-8 * np.linalg.eigvalsh(wide.T @ wide).max()) * np.eye(5)
    rows = []
    for row in range(30):
      keep = np.arange(30) != row
      gram = wide[keep].T @ wide[keep] + eye
      rows.append(wide[row] @ np.linalg.solve(gram, wide[keep].T @ targets[keep]))
    error = np.mean((np.array(rows) - targets) ** 2)
    best = (error, np.array(rows)) if best is None or error < best[0] else best
  np.testing.assert_allclose(found, best[1], atol=1e-6)


def test_wrong_labels_show_and_overlap_does_not():
  x = RNG().normal(size=(500, 3))
  clean = (x[:, 0] > 0).astype(np.int32)
  overlap = (x[:, 0] + RNG(1).normal(size=500) > 0).astype(np.int32)
  wrong = np.where(RNG(2).random(500) < 0.2, 1 - clean, clean)
  shares = []
  for labels in (clean, overlap, wrong):
    found = reference.reference('classification', {'classes': 2}, (x, labels), (x[:0], labels[:0]))
    shares.append(label_noise.noise(found).share)
  assert shares[0] < 0.01
  assert shares[1] == 0
  assert 0.1 < shares[2] < 0.3
  rows = label_noise.doubtful(reference.reference('classification', {'classes': 2}, (x, wrong), (x[:0], wrong[:0])))
  flipped = np.flatnonzero(wrong != clean)
  assert len(set(rows) & set(flipped)) > 0.7 * len(flipped)
  assert len(set(rows) - set(flipped)) < 0.1 * len(rows)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_twins_are_counted_as_by_hand(seed):
  rng = RNG(seed)
  train, held = rng.integers(0, 6, (12, 1)), rng.integers(0, 9, (7, 1))
  found = twins.twins(train, [held])
  known, seen = train[:, 0].tolist(), held[:, 0].tolist()
  assert found.between == pytest.approx(np.mean([one in known for one in seen]))
  assert found.rows.tolist() == [row for row, one in enumerate(known) if one in seen]
  assert found.within == pytest.approx(1 - len(set(known)) / 12)


def test_shift_is_the_distance_of_scipy_less_chance():
  one, two = RNG(0).normal(size=(400, 3)), RNG(1).normal(size=(300, 3))
  assert distributions.shift(one, two) == 0
  two[:, 1] += 2
  largest = max(scipy.stats.ks_2samp(one[:, c], two[:, c]).statistic for c in range(3))
  found = distributions.shift(one, two)
  assert largest - 0.2 < found < largest


def made(weight=None):
  x = RNG().normal(size=(60, 3)).astype(np.float32) * [1, 100, 10_000]
  y = np.where(np.arange(60) < 54, 0, 1).astype(np.int32)
  train = (x, y) if weight is None else (x, y, weight)
  held = np.concatenate([x[:5], RNG(1).normal(size=(15, 3)).astype(np.float32)]), np.arange(20) % 2
  return jl.data.make_dataset('made', train, held, (held[0][5:], held[1][5:]), standardize=False)


def test_repairs_of_data():
  data = made()
  assert repairs.of_data(RepairConfig(), data) is data
  scaled = repairs.of_data(RepairConfig(scale=True), data)
  np.testing.assert_allclose(np.std(scaled.train.inputs / scaled.std, axis=0), 1, rtol=1e-4)
  clean = repairs.of_data(RepairConfig(leaks=True), data)
  assert np.flatnonzero(clean.train.weight == 0).tolist() == [0, 1, 2, 3, 4]
  assert '5 training examples' in clean.notes[-1]
  even = repairs.of_data(RepairConfig(balance=True), made(np.full(60, 2.0)))
  shares = even.train.weight[54:].sum() / even.train.weight[:54].sum()
  assert shares == pytest.approx((6 / 54) ** 0.5)
  assert data.train.weight is None


def test_a_rate_that_a_recipe_has_written_down_is_scaled():
  grads, params = {'w': jnp.ones((3, 2))}, {'w': jnp.full((3, 2), 0.5)}
  for maker in (optax.sgd, optax.adamw):
    scaled = repairs.of_recipe(RepairConfig(rate=0.25), jl.chain(maker(0.4))).tx
    wanted = maker(0.1)
    one, two = (tx.update(grads, tx.init(params), params)[0] for tx in (scaled, wanted))
    np.testing.assert_allclose(one['w'], two['w'], rtol=1e-6)
  pruned = jl.chain(optax.sgd(0.1), jl.prune(sparsity=0.5, begin=0, end=1))
  parts = repairs.of_recipe(RepairConfig(rate=0.5, clip=1.0), pruned).parts
  assert len(parts) == 4
  assert parts[-1] is pruned.parts[-1]
  assert repairs.of_recipe(RepairConfig(), pruned) is pruned
  with pytest.raises(ValueError, match='owns its optimizer'):
    repairs.of_recipe(RepairConfig(rate=0.5), jl.chain(jl.rigl(optax.sgd(0.1), sparsity=0.5, every=2, end=4)))


def test_a_start_gives_every_layer_deviation_one():
  rng = RNG()
  params = {f'l{i}': {'w': (30.0 * rng.normal(size=(8, 8))).astype(np.float32), 'b': np.full(8, -9, np.float32)}
            for i in range(4)}  # fmt: skip
  model = jl.from_function(lambda p, x: _deep(p, x)[-1], params)
  train = jl.train_step(model, jl.cross_entropy, jl.chain(optax.sgd(0.1)))
  batch = {'inputs': rng.normal(size=(64, 8)).astype(np.float32), 'labels': np.arange(64) % 8}
  state = repairs.started(train, train.init(jax.random.key(0), batch), batch)
  for layer in _deep(jax.device_get(state.params), batch['inputs']):
    assert float(np.sqrt(np.var(layer, 0).mean())) == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(np.mean(layer, 0), 0, atol=1e-3)


def _deep(p, x):
  layers = []
  for i in range(4):
    layers.append(x @ p[f'l{i}']['w'] + p[f'l{i}']['b'])
    x = jnp.tanh(layers[-1])
  return layers


def test_a_label_far_out_in_another_batch_makes_no_start_explode(tmp_path):
  """What knowing nothing costs is asked of training, not of one batch that may lack what sets the scale."""
  x = RNG().normal(size=(300, 6)).astype(np.float32)
  y = x[:, 0].copy()
  y[299] = 1e4
  data = jl.data.make_dataset('far', (x, y), (x[:60], y[:60]), (x[:60], y[:60]), task=jl.tasks.regression)
  start = {'w': RNG(1).normal(size=(6, 1)).astype(np.float32)}
  config = jl.Config(name='x', recipe=lambda config, total: jl.chain(optax.sgd(1e-3)), train=jl.Duration(steps=8))
  config.log.progress = config.log.tensorboard = config.machine.rewrites = False
  config.data.batch_size = 20
  how = {'model': (lambda p, x: x @ p['w'], start), 'data': data, 'say': lambda line: None}
  jl.train(config, tmp_path, **how)
  found = {one.name: one for one in jl.diagnose(tmp_path, config, seconds=0.0, **how).findings}
  assert not found['exploding gradient'].present, found['exploding gradient']
