"""Augmentations against NumPy oracles: exact where they are deterministic, by their distribution where not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite import contract
from jaxlite.optim._augment import augment, crop, cutout, flip, mixup, shift

pytestmark = pytest.mark.unoptimized

ALL = {
  'flip': flip(),
  'shift': shift(2),
  'crop': crop(2),
  'cutout': cutout(3),
  'mixup': mixup(0.4, 5),
}
GEOMETRIC = [name for name in ALL if name != 'mixup']


def batch_of(count, height=8, width=7, channels=2, dtype=np.uint8, seed=0):
  rng = np.random.default_rng(seed)
  return {
    'inputs': rng.integers(1, 256, (count, height, width, channels)).astype(dtype),
    'labels': rng.integers(0, 5, count).astype(np.int32),
    'weight': np.ones(count, np.float32),
    'index': np.arange(count),
  }


def inputs_of(fn, key, batch):
  return np.asarray(jax.jit(fn)(jax.random.key(key), batch)['inputs'])


def shifted(image, down, right, fill=0):
  """NumPy oracle: moves an image, filling what comes in."""
  out = np.empty_like(image)
  out[:] = fill
  height, width = image.shape[:2]
  rows, columns = slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0))
  from_rows, from_columns = slice(max(-down, 0), height - max(down, 0)), slice(max(-right, 0), width - max(right, 0))
  out[rows, columns] = image[from_rows, from_columns]
  return out


@pytest.mark.sampled(5)
@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('dtype', [np.uint8, np.float32, jnp.bfloat16])
def test_shape_dtype_and_the_rest_of_the_batch_are_kept(name, dtype):
  batch = batch_of(6, dtype=dtype)
  out = jax.jit(ALL[name])(jax.random.key(0), batch)
  assert set(out) == set(batch)
  assert out['inputs'].shape == batch['inputs'].shape
  assert out['inputs'].dtype == (np.float32 if name == 'mixup' else dtype)
  np.testing.assert_array_equal(out['index'], batch['index'])
  np.testing.assert_array_equal(out['weight'], batch['weight'])
  if name != 'mixup':
    np.testing.assert_array_equal(out['labels'], batch['labels'])


@pytest.mark.parametrize('name', ALL)
def test_an_empty_batch_passes(name):
  batch = batch_of(0)
  out = jax.jit(ALL[name])(jax.random.key(0), batch)
  assert out['inputs'].shape == (0, 8, 7, 2)


@pytest.mark.parametrize('fn', [flip(), shift(0), crop(0), cutout(1), mixup(1.0, 5)])
def test_one_pixel_images_pass(fn):
  batch = batch_of(4, 1, 1, 1)
  out = inputs_of(fn, 0, batch)
  assert out.shape == (4, 1, 1, 1)
  assert np.isfinite(out).all()


@pytest.mark.parametrize('name', ALL)
def test_deterministic_in_the_key_and_different_between_keys_and_examples(name):
  one = batch_of(1)['inputs']
  batch = {**batch_of(64), 'inputs': np.repeat(one, 64, axis=0)}
  if name == 'mixup':  # identical pictures blend to themselves
    batch = batch_of(64)
  first = inputs_of(ALL[name], 0, batch)
  np.testing.assert_array_equal(first, inputs_of(ALL[name], 0, batch))
  assert (first != inputs_of(ALL[name], 1, batch)).any()
  assert len({image.tobytes() for image in first}) > 1


@pytest.mark.sampled(2)
@pytest.mark.unoptimized(False)
@pytest.mark.parametrize('name', ALL)
def test_scan_and_vmap_equal_the_loop(name):
  fn = ALL[name]
  batches = jax.tree.map(lambda *leaves: np.stack(leaves), *[batch_of(5, seed=seed) for seed in range(3)])
  keys = jax.random.split(jax.random.key(3), 3)
  once = jax.jit(fn)
  loop = [once(keys[i], jax.tree.map(lambda leaf, i=i: leaf[i], batches)) for i in range(3)]
  scanned = jax.jit(lambda: jax.lax.scan(lambda carry, item: (carry, fn(*item)), 0, (keys, batches))[1])()
  mapped = jax.jit(jax.vmap(fn))(keys, batches)
  for key in batches:
    for got in (scanned[key], mapped[key]):
      wanted = np.stack([out[key] for out in loop])
      np.testing.assert_allclose(got, wanted, rtol=1e-6 if name == 'mixup' else 0)


@pytest.mark.parametrize('name', ALL)
def test_no_work_is_left_on_the_host(name):
  text = jax.jit(ALL[name]).lower(jax.random.key(0), batch_of(4)).as_text()
  assert 'callback' not in text


SHAPES = [(1, 1), (5, 2), (4, 9)]


def over_keys(fn, batch, keys=50):
  """One compiled call for many keys; [keys, B, H, W, C]."""
  return np.asarray(jax.jit(jax.vmap(fn, (0, None)))(jax.random.split(jax.random.key(0), keys), batch)['inputs'])


# flip


@pytest.mark.parametrize('height, width', SHAPES)
@pytest.mark.parametrize('probability', [0.5, 1.0])
def test_flipping_twice_changes_nothing(height, width, probability):
  batch, fn = batch_of(6, height, width), flip(probability=probability)
  twice = over_keys(lambda key, batch: fn(key, fn(key, batch)), batch)  # one key flips the same images back
  assert (twice == batch['inputs']).all()


@pytest.mark.parametrize('height, width', SHAPES)
def test_a_flip_mirrors_left_to_right_or_does_nothing(height, width):
  batch = batch_of(6, height, width)
  assert (over_keys(flip(probability=1.0), batch) == batch['inputs'][:, :, ::-1]).all()
  out = over_keys(flip(), batch)
  axes = (2, 3, 4)
  assert ((out == batch['inputs']).all(axes) | (out == batch['inputs'][:, :, ::-1]).all(axes)).all()


@pytest.mark.parametrize('probability', [0.0, 0.2, 0.5, 1.0])
def test_the_share_of_flips_is_the_probability(probability):
  batch = {'inputs': np.tile(np.array([1, 2], np.uint8).reshape(1, 1, 2, 1), (20_000, 1, 1, 1))}
  share = (inputs_of(flip(probability=probability), 0, batch)[:, 0, 0, 0] == 2).mean()
  assert abs(share - probability) <= 5 * np.sqrt(probability * (1 - probability) / 20_000)


# shift and crop


@pytest.mark.parametrize('height, width', SHAPES)
@pytest.mark.parametrize('fill', [0.0, [7.0, -9.0]])
def test_every_shift_is_a_numpy_shift_within_reach(height, width, fill):
  batch = batch_of(4, height, width, dtype=np.float32)
  for pixels in {0, min(height, width, 4) - 1}:
    moves = [(down, right) for down in range(-pixels, pixels + 1) for right in range(-pixels, pixels + 1)]
    allowed = [{shifted(image, *move, fill).tobytes() for move in moves} for image in batch['inputs']]
    for out in over_keys(shift(pixels, fill=fill), batch):
      assert all(image.tobytes() in known for image, known in zip(out, allowed, strict=True))


def test_every_move_is_equally_likely():
  image = np.zeros((1, 5, 5, 1), np.uint8)
  image[0, 2, 2] = 1
  out = inputs_of(shift(2), 0, {'inputs': np.repeat(image, 25_000, axis=0)})
  share = out.mean(0)[..., 0]  # where the bright pixel went
  assert np.abs(share - 1 / 25).max() < 5 * np.sqrt(1 / 25 / 25_000)


@pytest.mark.parametrize('height, width', SHAPES)
def test_every_crop_is_a_window_of_the_mirrored_image(height, width):
  batch, padding = batch_of(4, height, width), min(height, width, 4) - 1
  allowed = []
  for image in batch['inputs']:
    padded = np.pad(image, [(padding, padding), (padding, padding), (0, 0)], mode='reflect')
    windows = np.lib.stride_tricks.sliding_window_view(padded, image.shape)
    allowed.append({window.tobytes() for window in windows.reshape(-1, *image.shape)})
  for out in over_keys(crop(padding), batch):
    assert all(image.tobytes() in known for image, known in zip(out, allowed, strict=True))


def test_no_reach_is_the_identity():
  batch = batch_of(4)
  for fn in (shift(0), crop(0), flip(probability=0.0)):
    np.testing.assert_array_equal(inputs_of(fn, 0, batch), batch['inputs'])


# cutout


@pytest.mark.parametrize('height, width', SHAPES)
def test_cutout_blanks_one_rectangle_and_nothing_else(height, width):
  batch = batch_of(4, height, width)  # no pixel is 0
  for size in {1, min(3, height, width)}:
    out = over_keys(cutout(size), batch)
    blank = (out == 0).all(-1)
    rows, columns = blank.any(3), blank.any(2)
    np.testing.assert_array_equal(blank, rows[..., :, None] & columns[..., None, :])
    for line in (rows, columns):
      assert (np.abs(np.diff(np.pad(line, [(0, 0), (0, 0), (1, 1)]).astype(int))).sum(-1) == 2).all()  # one stretch
      assert (line.sum(-1) <= size).all()
      assert (line.sum(-1) >= (size + 1) // 2).all()
    kept = np.broadcast_to(batch['inputs'], out.shape)
    np.testing.assert_array_equal(out[~blank], kept[~blank])


def test_cutout_reaches_every_pixel_as_often_as_its_neighbors_allow():
  batch = {'inputs': np.ones((20_000, 6, 6, 1), np.float32)}
  share = 1 - inputs_of(cutout(3), 0, batch).mean(0)[..., 0]
  along = np.array([2, 3, 3, 3, 3, 2]) / 6  # a border pixel has a neighbor less to be cut out with
  assert np.abs(share - along[:, None] * along[None]).max() < 5 * np.sqrt(0.25 / 20_000)


def test_fill_is_a_number_or_one_a_channel():
  batch = batch_of(3, channels=3)
  out = inputs_of(cutout(7, fill=[10.4, 200, 0]), 0, {**batch, 'inputs': np.full((3, 7, 7, 3), 77, np.uint8)})
  changed = out[(out != 77).any(-1)]
  assert np.unique(changed, axis=0).tolist() == [[10, 200, 0]]
  out = inputs_of(shift(6, fill=np.float32(0.5)), 0, {**batch, 'inputs': np.ones((9, 7, 7, 3), np.float32)})
  assert set(np.unique(out)) == {0.5, 1.0}


# mixup


@pytest.mark.parametrize('alpha', [0.05, 0.4, 5.0])
@pytest.mark.parametrize('count', [0, 1, 2, 11])
def test_mixup_is_a_convex_combination_of_two_real_examples(count, alpha):
  """Each example carries its own one-hot row, so the blend reads off who was blended, and by how much."""
  fn, rng = jax.jit(mixup(alpha, max(count, 1))), np.random.default_rng(count)
  for padded in [*range(count + 1)] * 4:
    weight = np.ones(count, np.float32)
    weight[rng.permutation(count)[:padded]] = 0  # padding anywhere
    batch = {'inputs': np.eye(count, dtype=np.uint8) * 200, 'labels': np.arange(count), 'weight': weight}
    out = fn(jax.random.key(rng.integers(1000)), batch)
    inputs, labels = np.asarray(out['inputs']), np.asarray(out['labels'])
    assert inputs.dtype == labels.dtype == np.float32
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-6)
    assert (labels >= 0).all()
    share, real = labels[:, :count], weight > 0
    np.testing.assert_allclose(inputs, share * 200, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(out['weight'], weight)
    assert (np.diag(share)[real] >= 0.5 - 1e-6).all()
    np.testing.assert_array_equal(share[~real], np.eye(count)[~real])  # padding is blended with nothing
    assert not share[np.ix_(real, ~real)].any()  # and nothing with padding
    assert ((share > 0).sum(-1) <= 2).all()


def test_each_real_example_gives_to_one_and_takes_from_another():
  count = 16
  batch = {'inputs': np.eye(count, dtype=np.float32), 'labels': np.arange(count)}
  fn = jax.jit(mixup(50.0, count))
  for key in range(20):
    share = np.asarray(fn(jax.random.key(key), batch)['labels'])
    given = (share > 0) & ~np.eye(count, dtype=bool)
    assert (given.sum(0) == 1).all()
    assert (given.sum(1) == 1).all()


@pytest.mark.parametrize('alpha', [0.05, 0.2, 1.0, 4.0])
def test_the_shares_follow_beta(alpha):
  count = 20_000
  batch = {'inputs': np.arange(count, dtype=np.float32)[:, None], 'labels': np.arange(count) % 2}
  out = jax.jit(mixup(alpha, 2))(jax.random.key(0), batch)
  lesser = np.asarray(out['labels']).min(-1)
  drawn = np.random.default_rng(0).beta(alpha, alpha, count)
  wanted = np.minimum(drawn, 1 - drawn)
  # A partner of the same class hides the share, so only shares that are seen are compared.
  blended, wanted = lesser[lesser > 1e-3], wanted[wanted > 1e-3]
  for level in (0.25, 0.5, 0.75):
    assert abs(np.quantile(blended, level) - np.quantile(wanted, level)) < 0.02


def test_importance_weights_are_blended_as_the_labels_are():
  batch = {'inputs': np.zeros((2, 1)), 'labels': np.array([0, 1]), 'weight': np.array([1.0, 3.0], np.float32)}
  out = jax.jit(mixup(1.0, 2))(jax.random.key(1), batch)
  np.testing.assert_allclose(out['weight'], out['labels'] @ np.array([1.0, 3.0]), rtol=1e-6)


def test_soft_labels_blend_again():
  batch = batch_of(8)
  fn = mixup(1.0, 5)
  out = jax.jit(lambda batch: fn(jax.random.key(1), fn(jax.random.key(0), batch)))(batch)
  np.testing.assert_allclose(out['labels'].sum(-1), 1, rtol=1e-6)


# wrong use


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: flip(probability=1.5), r'^a probability is 0 to 1; flip got 1.5'),
    (lambda: flip(probability=float('nan')), r'^a probability is 0 to 1'),
    (lambda: shift(-1), r'^shift is a whole number, at least 0; got -1'),
    (lambda: shift(1.5), r'^shift is a whole number'),
    (lambda: crop(True), r'^crop is a whole number'),
    (lambda: cutout(0), r'^cutout is a whole number, at least 1; got 0'),
    (lambda: mixup(0, 3), r'^mixup draws from Beta\(alpha, alpha\) with alpha above 0; got 0'),
    (lambda: mixup(float('nan'), 3), r'^mixup draws from Beta'),
    (lambda: mixup(0.2, 0), r'^mixup: classes is a whole number, at least 1'),
    (lambda: augment(), r'^augment needs a function at least'),
    (lambda: augment(flip(), 3), r'^augment takes functions \(key, batch\) -> batch; argument 1 is int'),
  ],
)
def test_a_bad_argument_is_named(make, message):
  with pytest.raises((ValueError, TypeError), match=message):
    make()


@pytest.mark.parametrize('name', GEOMETRIC)
def test_what_is_no_image_is_refused(name):
  with pytest.raises(ValueError, match=rf'^{name} works on images \[B, H, W, C\]; inputs are \[3, 4\]'):
    ALL[name](jax.random.key(0), {'inputs': np.ones((3, 4))})


@pytest.mark.parametrize('fn', [shift(4), crop(4), cutout(5)])
def test_reaching_beyond_the_image_is_refused(fn):
  with pytest.raises(ValueError, match=r'stays within the image; it reaches 4 pixels of \[4, 9\]'):
    fn(jax.random.key(0), batch_of(2, 4, 9))


@pytest.mark.parametrize('fill, message', [([1, 2, 3], 'one per channel'), (-1, '0 to 255'), (256, '0 to 255')])
def test_a_fill_that_does_not_fit_is_refused(fill, message):
  for fn in (cutout(2, fill=fill), shift(2, fill=fill)):
    with pytest.raises(ValueError, match=message):
      fn(jax.random.key(0), batch_of(2))


def test_a_missing_entry_is_named():
  with pytest.raises(ValueError, match=r"^flip needs 'inputs' in the batch; it has labels"):
    flip()(jax.random.key(0), {'labels': np.zeros(3)})
  with pytest.raises(ValueError, match=r"^mixup needs 'labels' in the batch; it has inputs"):
    mixup(0.2, 3)(jax.random.key(0), {'inputs': np.zeros((3, 1))})


def test_labels_of_neither_kind_are_refused():
  for labels in (np.zeros(8, np.float32), np.zeros((8, 4), np.float32), np.zeros((8, 5), np.int32)):
    with pytest.raises(ValueError, match=r'^mixup takes labels int \[B\] or float \[B, 5\]'):
      mixup(0.2, 5)(jax.random.key(0), {**batch_of(8), 'labels': labels})


# the hook


def seen_by(hook, batch, key, step):
  """What the inner gradient is given."""
  seen = []

  def inner(params, model_state, batch, key, step):
    seen.append((batch, key, step))
    return {}, {}, {}

  hook.grad(inner)({}, {}, batch, key, step)
  return seen[0]


def test_the_hook_applies_each_function_with_a_stream_of_its_own():
  batch, key = batch_of(8), jax.random.key(5)
  hook = augment(flip(), flip(), name='mine')
  got, got_key, got_step = seen_by(hook, batch, key, 7)
  wanted = flip()(contract.stream(key, 'mine/1', 7), flip()(contract.stream(key, 'mine/0', 7), batch))
  jax.tree.map(np.testing.assert_array_equal, got, wanted)
  assert got_key is key
  assert got_step == 7
  other = seen_by(hook, batch, key, 8)[0]
  assert (np.asarray(other['inputs']) != np.asarray(got['inputs'])).any()


def test_the_hook_stands_in_a_chain_and_leaves_model_and_loss_alone():
  hook = augment(flip())
  assert hook.model is contract.Hook('x').model
  assert hook.loss is contract.Hook('x').loss
  assert contract.chain(hook).parts == (hook,)
  with pytest.raises(ValueError, match=r"'augment' stands twice"):
    contract.chain(augment(flip()), augment(shift(1)))


def test_the_hook_names_a_function_that_returns_no_batch_and_a_missing_key():
  with pytest.raises(TypeError, match=r'^augment: function 1 returns a batch, a dict with inputs; got NoneType'):
    seen_by(augment(flip(), lambda key, batch: None), batch_of(2), jax.random.key(0), 0)
  with pytest.raises(ValueError, match=r'^augment draws at random and got no key'):
    seen_by(augment(flip()), batch_of(2), None, 0)


def test_the_hook_traces_with_step_and_key_as_arguments():
  hook, batch = augment(flip(), cutout(2)), batch_of(8)

  @jax.jit
  def run(batch, key, step):
    return hook.grad(lambda params, state, batch, key, step: (batch, state, {}))({}, {}, batch, key, step)[0]

  one, other = (run(batch, jax.random.key(0), step) for step in (jnp.int32(3), jnp.int32(4)))
  assert (np.asarray(one['inputs']) != np.asarray(other['inputs'])).any()
  eager = seen_by(hook, batch, jax.random.key(0), 3)[0]
  np.testing.assert_array_equal(one['inputs'], eager['inputs'])
