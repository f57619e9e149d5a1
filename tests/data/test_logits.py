"""Cached logits: those of the very picture in the batch, computed once, and never those of other data or teachers."""

import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import trees
from jaxlite.contract import Network
from jaxlite.data import batch_at, from_arrays, logits
from jaxlite.data.logits import cache_logits
from jaxlite.distillation._distill import distill
from jaxlite.distillation._kd import kd
from jaxlite.host import compile_cache

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (43, 6, 6, 1)).astype(np.uint8)
LABELS = RNG.integers(0, 3, 43)


def data(images=IMAGES, labels=LABELS):
  return from_arrays((images, labels), (images[:5], labels[:5]), (images[:5], labels[:5]), classes=3)


def dense(params, x):
  return x.astype(jnp.float32).reshape(len(x), -1) / 255 @ params['w']


def teacher(seed=1, fn=dense):
  w = np.random.default_rng(seed).normal(size=(36, 3)).astype(np.float32)
  model = jl.from_function(fn, {'w': w})
  return Network(model, *model.init(jax.random.key(0), IMAGES[:1]))


@pytest.fixture(autouse=True, scope='module')
def _compiled_once():
  """Many cases draw the same views for the same teacher: the session's compile cache knows their programs."""
  compile_cache.enable()


@pytest.fixture
def forbid(monkeypatch):
  """From the call on, a teacher that runs is a failure."""

  def call():
    def fail(*_):
      raise AssertionError('the teacher ran')

    monkeypatch.setattr(logits, '_fill', fail)

  return call


@pytest.mark.unoptimized(False)  # bits are judged
def test_the_batch_holds_the_teachers_own_logits(tmp_path):
  own = teacher()
  taught = cache_logits(own, data(), tmp_path, batch_size=16)
  for step in range(8):
    batch = batch_at(taught.train, 7, 0, step)
    assert batch['logits'].dtype == np.float32
    np.testing.assert_allclose(batch['logits'], own.predict(batch['inputs']), rtol=1e-5, atol=1e-6)
    assert batch['inputs'].dtype == np.uint8
  whole = taught.train.columns['logits'][:16, 0]
  np.testing.assert_array_equal(whole, own.predict(IMAGES[:16]))


@pytest.mark.unoptimized(False)  # bits are judged
@pytest.mark.parametrize(
  'views', [[jl.optim.shift(2), jl.optim.shift(2)], [None, jl.optim.shift(1), jl.optim.mixup(1.0, 3)]], ids=len
)
def test_logits_belong_to_exactly_the_view_in_the_batch(views, tmp_path):
  own, plain = teacher(), data()
  taught = cache_logits(own, plain, tmp_path, views=views, batch_size=16)
  kinds = set()
  for step in range(20):
    batch = batch_at(taught.train, 16, 3, step)
    np.testing.assert_allclose(batch['logits'], own.predict(batch['inputs']), rtol=1e-4, atol=1e-5)
    assert batch['labels'].shape == ((16, 3) if len(views) == 3 else (16,))
    kinds |= {image.tobytes() for image in batch['inputs']}
  assert len(kinds) > 1.5 * len(plain.train.labels)  # more pictures than examples
  stored = taught.train.columns['inputs']
  assert stored.shape == (43, len(views), 6, 6, 1)
  assert stored.dtype == (np.float32 if len(views) == 3 else np.uint8)
  if views[0] is None:
    np.testing.assert_array_equal(stored[:, 0], plain.train.inputs)
    labels = taught.train.columns['labels']
    np.testing.assert_array_equal(labels[:, 0], np.eye(3)[LABELS])
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-6)
    assert ((labels[:, 2] > 0.01).sum(-1) == 2).any()  # blended
  else:
    assert (stored[:, 0] != stored[:, 1]).any()


@pytest.mark.unoptimized(False)  # bits are judged
def test_the_second_call_runs_no_teacher_and_gives_the_same(tmp_path, forbid):
  views = [None, jl.optim.shift(1)]
  first = cache_logits(teacher(), data(), tmp_path, views=views, batch_size=16)
  forbid()
  again = cache_logits(teacher(), data(), tmp_path, views=[None, jl.optim.shift(1)], batch_size=16, name='taught')
  assert again.fingerprint != data().fingerprint
  for name in ('inputs', 'labels'):
    np.testing.assert_array_equal(first.train.columns[name], again.train.columns[name])
  np.testing.assert_array_equal(first.train.columns['logits'], again.train.columns['taught'])


def test_a_second_teacher_sees_the_same_views_or_is_refused(tmp_path):
  given = {'folder': tmp_path, 'views': [None, jl.optim.shift(1)], 'batch_size': 16}
  one, two = teacher(1), teacher(2)
  both = cache_logits(two, cache_logits(one, data(), **given), name='second', **given)
  batch = batch_at(both.train, 16, 0, 3)
  for own, name in ((one, 'logits'), (two, 'second')):
    np.testing.assert_allclose(batch[name], own.predict(batch['inputs']), rtol=1e-4, atol=1e-5)
  for other in ({'views': [None]}, {'seed': 1}, {'views': [None, jl.optim.shift(2)]}):
    with pytest.raises(ValueError, match='other views than this teacher saw'):
      cache_logits(two, cache_logits(one, data(), **given), name='second', **{**given, **other})


ANOTHER = {
  'data': lambda: {'data': data(np.where(np.arange(43)[:, None, None, None] == 3, 255 - IMAGES, IMAGES))},
  'labels': lambda: {'data': data(labels=(LABELS + 1) % 3)},
  'weights': lambda: {'teacher': teacher(2)},
  'program': lambda: {'teacher': teacher(fn=lambda p, x: 2 * dense(p, x))},
  'views': lambda: {'views': [jl.optim.shift(2)]},
  'seed': lambda: {'seed': 1, 'views': [jl.optim.shift(1)]},
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize('what', ANOTHER)
def test_another_of_anything_is_written_beside(what, tmp_path):
  given = {'teacher': teacher(), 'data': data(), 'folder': tmp_path, 'batch_size': 43, 'views': [jl.optim.shift(1)]}
  first = cache_logits(**given)
  other = cache_logits(**{**given, **ANOTHER[what]()})
  assert len(list(tmp_path.iterdir())) == 2
  assert first.fingerprint != other.fingerprint


def test_a_function_teaches_and_what_it_closes_over_is_part_of_it(tmp_path, forbid):
  w = np.random.default_rng(0).normal(size=(36, 3)).astype(np.float32)
  cache_logits(lambda x: dense({'w': w}, x), data(), tmp_path)
  assert len(list(tmp_path.iterdir())) == 1
  other = w.copy()
  other[20, 1] += 1
  cache_logits(lambda x: dense({'w': other}, x), data(), tmp_path)
  assert len(list(tmp_path.iterdir())) == 2
  forbid()
  cache_logits(lambda x: dense({'w': w}, x), data(), tmp_path)


def test_a_kill_or_damage_at_any_place_is_seen_and_mended(tmp_path, monkeypatch):
  given = {
    'teacher': teacher(),
    'data': data(),
    'folder': tmp_path,
    'views': [None, jl.optim.shift(1)],
    'batch_size': 16,
  }
  fill = logits._fill

  def killed(arrays, *rest):
    fill(arrays, *rest)
    raise KeyboardInterrupt

  monkeypatch.setattr(logits, '_fill', killed)
  with pytest.raises(KeyboardInterrupt):
    cache_logits(**given)
  assert not [path for path in tmp_path.iterdir() if not path.name.startswith('.')]
  monkeypatch.setattr(logits, '_fill', fill)
  first = {name: np.array(column) for name, column in cache_logits(**given).train.columns.items()}
  (kept,) = tmp_path.iterdir()
  for damage in ('cut', 'flip', 'unlink', 'proof', 'json'):
    path = kept / ('proof.json' if damage in ('proof', 'json') else 'inputs.npy' if damage == 'cut' else 'logits.npy')
    raw = bytearray(path.read_bytes())
    if damage in ('unlink', 'proof'):
      path.unlink()
    else:
      raw[-1] ^= 1
      path.write_bytes(raw if damage == 'flip' else raw[: len(raw) // 2])
    mended = cache_logits(**given).train.columns
    for name, column in first.items():
      np.testing.assert_array_equal(mended[name], column, err_msg=damage)
  assert set(json.loads((kept / 'proof.json').read_text())) == {'logits', 'inputs', 'labels'}


def test_another_process_finds_what_this_one_has_kept(tmp_path):
  code = """
    import jax, jax.numpy as jnp, numpy as np, jaxlite as jl
    from jaxlite.data import from_arrays
    from jaxlite.data.logits import cache_logits
    def net(p, x):
      return jax.nn.gelu(x.astype(jnp.float32).reshape(len(x), -1) @ p['w'])
    images = np.arange(20 * 36, dtype=np.uint8).reshape(20, 6, 6, 1)
    data = from_arrays((images, np.arange(20) % 3))
    model = jl.from_function(net, {'w': np.ones((36, 3), np.float32)})
    own = jl.Network(model, *model.init(jax.random.key(0), images))
    cache_logits(own, data, FOLDER, views=[jl.optim.flip()])
  """
  code = textwrap.dedent(code).replace('FOLDER', repr(str(tmp_path)))
  exec(compile(code, 'kept', 'exec'), {})
  (kept,) = tmp_path.iterdir()
  written = (kept / 'logits.npy').stat().st_mtime_ns
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert [path.name for path in tmp_path.iterdir()] == [kept.name]
  assert (kept / 'logits.npy').stat().st_mtime_ns == written


def test_a_student_learns_from_what_is_kept(tmp_path):
  own = teacher()
  taught = cache_logits(own, data(), tmp_path, views=[None, jl.optim.shift(1)])
  part = distill('logits', temperature=2.0, alpha=0.7)
  model = jl.from_function(dense, {'w': np.zeros((36, 3), np.float32)})
  train = jl.train_step(model, jl.cross_entropy, jl.chain(jl.accumulate(2), part, optax.adam(0.01)))
  state = train.init(jax.random.key(0), batch_at(taught.train, 8, 0, 0))
  assert 'logits' not in str(trees.paths(state.const))
  oracle = jax.jit(lambda params, x, taught: kd(dense(params, x), taught, temperature=2.0))
  terms = []
  for step in range(40):
    batch = batch_at(taught.train, 8, 0, step)
    wanted = oracle(state.params, batch['inputs'], batch['logits'])
    weight = batch['weight']
    state, metrics = train.step(state, batch)
    terms.append(float(metrics['distill']))
    np.testing.assert_allclose(terms[-1], 0.7 * np.sum(wanted * weight) / weight.sum(), rtol=1e-4)
  assert np.mean(terms[-6:]) < 0.5 * np.mean(terms[:6])


@pytest.mark.parametrize(
  'given, kind, message',
  [
    (
      {'teacher': lambda x: jnp.ones((len(x), 4))},
      ValueError,
      r'of the 3 classes, \[43, 3\]; this one gives \[43, 4\]',
    ),
    ({'teacher': lambda x: jnp.full((len(x), 3), jnp.nan)}, ValueError, 'training example 0 gives NaN'),
    ({'teacher': 3}, TypeError, 'a teacher is a Network'),
    ({'teacher': 'logits'}, TypeError, 'got a name'),
    ({'views': []}, ValueError, 'one at least'),
    ({'views': ['flip']}, ValueError, 'views are functions'),
    ({'views': [lambda key, batch: {**batch, 'inputs': batch['inputs'][:, :3]}]}, ValueError, 'view 0 makes it'),
    ({'views': [lambda key, batch: batch['inputs']]}, TypeError, 'view 0 returns ShapeDtypeStruct'),
    ({'batch_size': 0}, ValueError, 'at least 1'),
    ({'folder': '/dev/null/nowhere'}, ValueError, 'cannot keep logits in /dev/null'),
  ],
)
def test_mistakes_are_told_in_one_line(given, kind, message, tmp_path):
  with pytest.raises(kind, match=message) as raised:
    cache_logits(**{'teacher': teacher(), 'data': data(), 'folder': tmp_path, **given})
  assert '\n' not in str(raised.value)
  assert not list(tmp_path.iterdir())


def test_a_teacher_of_a_tree_with_weights_and_of_positions(tmp_path):
  ids = RNG.integers(0, 5, (20, 4))
  tree = {'ids': ids, 'x': RNG.normal(size=(20, 4)).astype(np.float32)}
  plain = from_arrays((tree, ids % 3, np.arange(1, 21)), task=jl.tasks.segmentation(3))

  def shows(inputs):
    return inputs['x'][..., None] + jax.nn.one_hot(inputs['ids'], 3)

  taught = cache_logits(shows, plain, tmp_path, batch_size=7)
  for step in range(4):
    batch, was = batch_at(taught.train, 5, 0, step), batch_at(plain.train, 5, 0, step)
    np.testing.assert_allclose(batch['logits'], shows(batch['inputs']), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, {name: batch[name] for name in was}, was)
  with pytest.raises(ValueError, match='views show one array with one class an example'):
    cache_logits(shows, plain, tmp_path, views=[lambda key, batch: batch])
  with pytest.raises(ValueError, match=r'of the 3 classes, \[16, 4, 3\]; this one gives \[16, 4\]'):
    cache_logits(lambda inputs: inputs['x'], plain, tmp_path)
