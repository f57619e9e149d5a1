"""What goes into a checkpoint comes out: bit for bit, by path, onto any number of devices, or not at all."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax.training import train_state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as orbax

from jaxlite.checkpoint import CheckpointMismatch, Checkpoints, fingerprint, load_arrays
from jaxlite.checkpoint.hashing import hashes
from jaxlite.pruning import prune


class Inner(NamedTuple):
  count: jax.Array
  trace: dict


def everything() -> dict:
  params = {
    'conv1': {'kernel': jnp.arange(81.0).reshape(3, 3, 3, 3), 'bias': jnp.zeros(3, jnp.bfloat16)},
    'mlp/~/linear_0': {'w.x%2F': jnp.ones((2, 2), jnp.float16), '': jnp.ones(1)},
    'ints': {7: jnp.float32(-0.0), 10: jnp.float32(jnp.nan), -1: jnp.ones((2, 3))},
  }
  tx = optax.chain(
    optax.masked(optax.adamw(1e-3), lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
    optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9),
    optax.MultiSteps(optax.identity(), 2),
  )
  return {
    'step': jnp.int32(3),
    'key': jax.random.key(0),
    'keys': {'rbg': jax.random.key(1, impl='rbg'), 'many': jax.random.split(jax.random.key(2), 3)},
    'raw': jax.random.PRNGKey(5),
    'params': params,
    'opt_state': tx.init(params),
    'inner': Inner(jnp.uint32(2**32 - 1), {'a': None, 'b': (), 'c': [jnp.zeros((0, 4)), (jnp.ones(0, jnp.int8),)]}),
    'odd': {
      'int4': jnp.arange(-8, 8, dtype=jnp.int4),
      'uint4': jnp.arange(16, dtype=jnp.uint4),
      'float8': jnp.ones(3, jnp.float8_e4m3fn),
      'bool': jnp.array([True, False]),
      'complex': jnp.complex64(1 - 2j),
      'host': np.arange(3, dtype=np.int64),
      'big-endian': np.arange(3, dtype='>f4'),
      'strided': np.arange(12.0)[::-3],
      'no keys': jax.random.split(jax.random.key(0), 0),
    },
  }


def abstract(tree):
  return jax.tree.map(lambda x: x if isinstance(x, np.ndarray) else jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def saved(folder: Path, state, **loop) -> None:
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(1, state, loop)


def test_every_leaf_and_node_comes_back_bit_for_bit(tmp_path: Path):
  state = everything()
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(12, state, {'best': -float('inf'), 'nan': float('nan'), 'π/"\n': [1, None, 0.1 + 0.2]})
    back = checkpoints.restore(abstract(state))
  assert back.step == 12
  assert jax.tree.structure(back.state) == jax.tree.structure(state)
  assert hashes(back.state) == hashes(state)
  assert json.dumps(back.loop) == json.dumps(
    {'best': -float('inf'), 'nan': float('nan'), 'π/"\n': [1, None, 0.1 + 0.2]}
  )
  for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(back.state), strict=True):
    assert isinstance(new, np.ndarray) == isinstance(old, np.ndarray)
    assert getattr(new, 'weak_type', False) is False
  assert jax.random.uniform(back.state['keys']['rbg']) == jax.random.uniform(state['keys']['rbg'])


def test_every_bit_pattern_comes_back(tmp_path: Path):
  """NaNs with a payload, negative zeros, dtypes that Orbax has no array for."""
  words, few = np.arange(65536, dtype=np.uint16), np.arange(256, dtype=np.uint8)
  host = {name: words.view(name) for name in ('bfloat16', 'float16')}
  floats = ('float8_e4m3fn', 'float8_e5m2', 'float8_e4m3', 'float8_e8m0fnu', 'float6_e2m3fn')
  host |= {name: few.view(np.dtype(getattr(ml_dtypes, name))) for name in floats}
  host |= {name: few[:16].astype(getattr(ml_dtypes, name)) for name in ('float4_e2m1fn', 'int2', 'uint2', 'int4')}
  host |= {'nan': np.array([0x7FC00001, 0x7F800001, 0xFFC12345, 0x80000000], np.uint32).view(np.float32)}
  host |= {'nan64': np.array([0x7FF0000000000001, 0xFFF8DEAD00000000], np.uint64).view(np.float64)}
  host |= {name + ' 0-d': np.ones((), name) for name in ('bool', 'complex64', 'complex128', 'float64', 'longdouble')}
  host['int4 0-d'] = np.ones((), ml_dtypes.int4)
  foreign = ('float6', 'nan64', 'complex128', 'longdouble')  # to JAX without 64 bits
  device = {name: jnp.asarray(array) for name, array in host.items() if not name.startswith(foreign)}
  state = {'host': host, 'device': device}
  saved(tmp_path, state)
  with Checkpoints(tmp_path) as checkpoints:
    assert hashes(checkpoints.restore(state).state) == hashes(state)


def test_any_name_is_a_name_of_its_own(tmp_path: Path):
  """Orbax joins keys with '.', the store below with '/', and neither takes every character."""
  keys = [
    '',
    '%',
    '.',
    '/',
    '..',
    '%2E',
    'a.b',
    'a/',
    'a/0',
    'é',
    '日本',
    '😀',
    '\ud800',
    '\0',
    '\n',
    ' ',
    '"',
    "'",
    '\\',
  ]
  keys += ['zarr.json', 'c', '_METADATA', 'k' * 300, 'long/' * 20_000]
  tree = {key: np.float32([index]) for index, key in enumerate(keys)}
  tree |= {
    'a': {'b': np.float32([100]), 'c': {'0': np.float32([101])}},
    'deep' * 100: {'deeper' * 999: np.float32([102])},
  }
  tree['list'] = [np.int8([1]), (np.int8([2]), [np.int8([3])]), {}]
  saved(tmp_path, tree)
  with Checkpoints(tmp_path) as checkpoints:
    back = checkpoints.restore(tree).state
  assert jax.tree.structure(back) == jax.tree.structure(tree)
  assert hashes(back) == hashes(tree)
  assert hashes(load_arrays(tmp_path, list(tree), which='latest').state) == hashes(tree)
  assert len(jax.tree.leaves(orbax.load_checkpointables(tmp_path / '00000001')['state'])) == len(jax.tree.leaves(tree))


def test_any_orbax_reader_sees_the_tree(tmp_path: Path):
  params = {'conv.1': {'kernel': jnp.arange(12.0).reshape(3, 4), 'scale': jnp.bfloat16(1.5)}}
  state = {'step': jnp.int32(3), 'params': params, 'key': jax.random.key(7), 'opt': [jnp.ones(2), jnp.zeros((0, 4))]}
  state |= {'int4': jnp.arange(-8, 8, dtype=jnp.int4), 'float4': jnp.arange(3).astype(jnp.float4_e2m1fn)}
  saved(tmp_path, {**state, 'const': {'teacher': {'w': jnp.ones(5)}}}, patience=2)
  folder = tmp_path / '00000001'
  seen = jax.tree.map(
    lambda leaf: (leaf.dtype.name, leaf.shape), orbax.checkpointables_metadata(folder).metadata['state']
  )
  assert seen == {
    'step': ('int32', ()),
    'params': {'conv%2E1': {'kernel': ('float32', (3, 4)), 'scale': ('bfloat16', ())}},
    'key': ('uint32', (2,)),
    'opt': {'0': ('float32', (2,))},
    'int4': ('int8', (16,)),
    'float4': ('uint8', (3, 1)),
  }
  parts = orbax.load_checkpointables(folder)
  values = parts['state']
  assert np.array_equal(values['params']['conv%2E1']['kernel'], np.arange(12.0).reshape(3, 4))
  assert values['params']['conv%2E1']['scale'] == 1.5
  assert np.array_equal(values['key'], jax.random.key_data(state['key']))
  assert np.array_equal(values['int4'], np.arange(-8, 8))
  assert parts['manifest']['content']['loop'] == {'patience': 2}
  [one, _] = sorted(tmp_path.glob('const-*'))
  assert np.array_equal(orbax.load_checkpointables(one)['state']['const']['teacher']['w'], np.ones(5))


_names = st.one_of(st.text('ab/.%~ é', min_size=1, max_size=4), st.integers(-3, 99).map(str))
_arrays = st.tuples(
  st.sampled_from(['float32', 'bfloat16', 'int8', 'uint32', 'bool', 'int4']),
  st.lists(st.integers(0, 3), max_size=3),
  st.integers(0, 2**32 - 1),
).map(lambda t: jnp.asarray(np.random.default_rng(t[2]).integers(0, 2, t[1])).astype(t[0]))
_trees = st.recursive(
  _arrays | st.none() | st.just(()),
  lambda children: st.dictionaries(_names, children, max_size=3) | st.lists(children, max_size=3).map(tuple),
  max_leaves=6,
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=st.dictionaries(_names, _trees, min_size=1, max_size=3))
def test_any_tree_comes_back_or_is_refused_by_name(tree, tmp_path_factory):
  folder = tmp_path_factory.mktemp('any')
  try:
    saved(folder, tree)
  except ValueError as error:  # two leaves of one path ('a/b' beside 'a': 'b'), or no array at all
    if 'path of its own' in str(error) or 'at least one array' in str(error):
      return
    raise
  with Checkpoints(folder) as checkpoints:
    back = checkpoints.restore(abstract(tree))
  assert jax.tree.structure(back.state) == jax.tree.structure(tree)
  assert hashes(back.state) == hashes(tree)
  named = load_arrays(folder, list(tree), which='latest').state
  assert jax.tree.structure(named) == jax.tree.structure(tree)
  assert hashes(named) == hashes(tree)


def test_a_donated_state_does_not_change_its_checkpoint(tmp_path: Path):
  step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
  state = {'w': jnp.zeros(1 << 18), 'step': jnp.int32(0)}
  with Checkpoints(tmp_path, keep=9) as checkpoints:
    for index in range(4):
      checkpoints.save(index, state, {})
      for _ in range(3):  # writes into the donated buffers while the checkpoint is still on its way
        state = step(state)
    for index in range(4):
      back = checkpoints.restore(abstract(state), which=index).state
      assert np.all(np.asarray(back['w']) == 3 * index)


def test_a_restored_state_neither_retraces_nor_is_committed(tmp_path: Path):
  traces = []

  @jax.jit
  def step(state):
    traces.append(1)
    return jax.tree.map(lambda x: x * 2, state)

  state = step({'w': jnp.ones(3), 'b': jnp.bfloat16(1)})
  saved(tmp_path, state)
  with Checkpoints(tmp_path) as checkpoints:
    back = checkpoints.restore(jax.eval_shape(lambda: state)).state
  fresh = step(state)
  count = len(traces)
  again = step(back)
  assert len(traces) == count
  assert fingerprint(again) == fingerprint(fresh)
  assert not back['w'].committed


@pytest.mark.parametrize(
  'change, line',
  [
    (lambda t: t['params']['conv1'].update(kernel=jnp.ones((3, 3, 1, 3))), 'wants float32[3,3,1,3]'),
    (
      lambda t: t['params']['conv1'].update(kernel=jnp.ones((3, 3, 3, 3), jnp.bfloat16)),
      'params/conv1/kernel: checkpoint has float32[3,3,3,3], program wants bfloat16[3,3,3,3]',
    ),
    (lambda t: t['params'].pop('conv1'), 'params/conv1/bias: checkpoint has bfloat16[3], program wants nothing'),
    (lambda t: t['params'].update(new=jnp.ones(2)), 'params/new: checkpoint has nothing, program wants float32[2]'),
    (lambda t: t.update(key=jax.random.key(0, impl='rbg')), 'key: checkpoint has key<fry>[], program wants key<rbg>[]'),
    (lambda t: t['odd'].update(host=3.0), 'odd/host: checkpoint has int64[3], program wants float[]'),
    (lambda t: t.clear(), 'program wants nothing\n  and 42 more'),
  ],
)
def test_a_mismatch_is_told_by_path_and_nothing_falls_back(change, line, tmp_path: Path):
  saved(tmp_path, everything())
  want = everything()
  change(want)
  said = []
  with Checkpoints(tmp_path, log=said.append) as checkpoints, pytest.raises(CheckpointMismatch) as caught:
    checkpoints.restore(want)
  assert line in str(caught.value)
  assert len(str(caught.value).splitlines()) <= 10
  assert not said


def test_a_mismatch_is_found_before_any_array_is_read(tmp_path: Path):
  saved(tmp_path, {'w': jnp.ones(1000)})
  for file in tmp_path.rglob('d/*'):
    if file.stat().st_size > 3000:
      file.write_bytes(b'')
  with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointMismatch, match='float16'):
    checkpoints.restore({'w': jnp.ones(1000, jnp.float16)})


@pytest.mark.parametrize(
  'state, loop, error, words',
  [
    ({'w': jnp.tanh, 'v': jnp.ones(1)}, {}, TypeError, "holds arrays and numbers; 'w' is PjitFunction"),
    ({'a': {'w': 'text'}}, {}, TypeError, "'a/w' is str"),
    ({'w': np.array(['x'])}, {}, TypeError, "'w' is an array of <U1"),
    ({'w': np.array([object()])}, {}, TypeError, 'array of object'),
    ({'w': np.ones(2, 'timedelta64[s]')}, {}, TypeError, "'w' is an array of timedelta64[s]"),
    ({'w': np.ma.masked_less(np.arange(3.0), 1)}, {}, TypeError, "'w' has a mask, which would be lost"),
    ({'a': {'b': jnp.ones(1)}, 'a/b': jnp.ones(1)}, {}, ValueError, "'a/b' names several"),
    ({}, {}, ValueError, 'at least one array'),
    ({'w': jnp.ones(1)}, {'best': np.float32(1)}, TypeError, 'must be JSON'),
    ({'w': jnp.ones(1)}, {'key': {1, 2}}, TypeError, 'must be JSON'),
  ],
)
def test_what_cannot_be_saved_is_refused_in_one_line_and_nothing_is_lost(state, loop, error, words, tmp_path: Path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {'w': jnp.ones(2)}, {})
    with pytest.raises(error) as caught:
      checkpoints.save(2, state, loop)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert checkpoints.latest_step() == 1


def test_plain_numbers_come_back_as_what_the_template_holds(tmp_path: Path):
  state = {'step': 3, 'rate': 0.1, 'on': True, 'scale': np.float32(0.3), 'w': jnp.ones(2)}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {})
    back = checkpoints.restore(state).state
    assert back == {**state, 'w': back['w']}
    assert {name: type(back[name]) for name in state} == {name: type(value) for name, value in state.items()}
    # After a compiled step a count is an array: states of both kinds fit each other.
    counted = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 0, tree))({'step': state['step']})
    checkpoints.save(2, {**state, **counted}, {})
    assert checkpoints.restore(state).state['step'] == 3
    assert checkpoints.restore({**state, **counted}, which=1).state['step'].dtype == counted['step'].dtype
    for wrong in ({**state, 'step': 1.5}, {**state, 'rate': 3}, {**state, 'on': 1}, {**state, 'w': 1.0}):
      with pytest.raises(CheckpointMismatch):
        checkpoints.restore(wrong, which=1)


def test_a_number_that_gives_way_to_other_dtypes_still_does(tmp_path: Path):
  state = {'t': jnp.asarray(-0.0), 'scale': jnp.full(3, 0.3), 'n': jnp.asarray(2), 'w': jnp.ones(2)}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {})
    for template in (state, jax.eval_shape(lambda: state)):
      back = checkpoints.restore(template).state
      assert hashes(back) == hashes(state)
      assert {name: leaf.weak_type for name, leaf in back.items()} == {'t': True, 'scale': True, 'n': True, 'w': False}
      assert (jnp.ones(3, jnp.bfloat16) * back['scale']).dtype == jnp.bfloat16


def test_flax_train_state_is_saved_as_it_is_made_and_as_it_trains(tmp_path: Path):
  params = {'kernel': jnp.arange(1.0, 9.0).reshape(2, 4), 'bias': jnp.ones(4)}
  tx = optax.chain(optax.adam(0.1), prune(0.5, end=4, every=2))
  fresh = train_state.TrainState.create(apply_fn=None, params=params, tx=tx)
  step = jax.jit(lambda state: state.apply_gradients(grads=state.params))
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(0, fresh, {})
    trained = step(step(step(checkpoints.restore(fresh).state)))
    checkpoints.save(3, trained, {})
    back = step(checkpoints.restore(fresh).state)
  assert fingerprint(jax.tree.map(jnp.asarray, back)) == fingerprint(step(trained))
  assert int((back.params['kernel'] == 0).sum()) > 0


def test_a_donated_array_is_named(tmp_path: Path):
  w = jnp.ones(4)
  jax.jit(lambda x: x + 1, donate_argnums=0)(w)
  with Checkpoints(tmp_path) as checkpoints, pytest.raises(TypeError, match="'w' was donated"):
    checkpoints.save(1, {'w': w}, {})


def test_64_bits_are_never_narrowed_silently(tmp_path: Path):
  saved(tmp_path, {'w': np.arange(3.0)})
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore({'w': np.zeros(3)}).state['w'].dtype == np.float64
    with pytest.raises(ValueError, match='jax_enable_x64'):
      checkpoints.restore({'w': jax.ShapeDtypeStruct((3,), np.float64)})


def test_a_list_for_a_tuple_or_a_namedtuple_for_a_dict_is_no_mismatch(tmp_path: Path):
  saved(tmp_path, {'inner': Inner(jnp.int32(1), {'a': [jnp.ones(2)]})})
  with Checkpoints(tmp_path) as checkpoints:
    back = checkpoints.restore({'inner': {'count': jnp.int32(0), 'trace': {'a': (jnp.zeros(2),)}}}).state
  assert back['inner']['trace']['a'][0].sum() == 2


def test_parts_load_without_a_template_or_the_optimizer(tmp_path: Path):
  state = everything()
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {**state, 'const': {'teacher': {'w': jnp.ones(5)}}}, {'note': 1}, metric=0.1)
  back = load_arrays(tmp_path, ['params', 'const'])
  assert set(back.state) == {'params', 'const'}
  assert hashes(back.state['params']) == hashes(state['params'])
  assert list(back.state['params']['mlp/~/linear_0']) == ['', 'w.x%2F']
  assert list(back.state['params']['ints']) == [-1, 7, 10]
  assert back.state['const']['teacher']['w'].sum() == 5
  assert back.loop == {'note': 1}
  inner = load_arrays(tmp_path, ['inner']).state['inner']
  assert inner['trace']['a'] is None
  assert inner['trace']['b'] == ()
  assert inner['trace']['c'][0].shape == (0, 4)
  with pytest.raises(ValueError, match=r"no part 'parms'; it has: .*params"):
    load_arrays(tmp_path, ['parms'])
  assert load_arrays(tmp_path / 'nothing here') is None
