"""Laws of adapter files: kilobytes, the same bits again, the base that they were trained on and no other one."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.host.safetensors_file import read_safetensors, write_safetensors
from jaxlite.optim import dora, load_adapter, lora, qlora, save_adapter

pytestmark = pytest.mark.unoptimized
X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 20)), jnp.float32)
BATCH = {'inputs': X, 'labels': jnp.arange(8) % 5}


def values(seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: (rng.normal(size=shape) / 4).astype(np.float32)  # noqa: E731
  return {'a': {'w': draw(20, 64), 'b': draw(64)}, 'layers': draw(3, 64, 64), 'c': {'w': draw(64, 5), 'b': draw(5)}}


def forward(p, x):
  x = jax.nn.relu(x @ p['a']['w'] + p['a']['b'])
  x = jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p['layers'])[0]
  return x @ p['c']['w'] + p['c']['b']


def trained(hook, steps=3, seed=0):
  train = jl.train_step(jl.from_function(forward, values(seed)), jl.cross_entropy, jl.chain(hook, optax.adam(1e-2)))
  state = train.init(jax.random.key(0), BATCH)
  for _ in range(steps):
    state, _ = train.step(state, BATCH)
  return train, state


@functools.cache
def begun():
  """A state with factors of rank 2 that no step has met; what a test trains on is its own."""
  return trained(lora(2), 0)[1]


def outputs(train, state):
  return np.asarray(train.eval(state, BATCH)[0])


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  'make',
  [lambda: lora(2, train='^c/'), lambda: dora(2, 3.0), lambda: qlora(2, group=16)],
  ids=['lora', 'dora', 'qlora'],
)
def test_an_adapter_loads_onto_its_base_bit_for_bit(make, tmp_path):
  train, state = trained(make())
  size = save_adapter(tmp_path / 'one.safetensors', state)
  assert (
    size
    == (tmp_path / 'one.safetensors').stat().st_size
    < 12_000
    < sum(leaf.nbytes for leaf in jax.tree.leaves(values()))
  )
  again, fresh = trained(make(), steps=0)
  assert not np.array_equal(outputs(again, fresh), outputs(train, state))
  loaded = load_adapter(tmp_path / 'one.safetensors', fresh)
  np.testing.assert_array_equal(outputs(again, loaded), outputs(train, state))
  loaded, _ = again.step(loaded, BATCH)  # it trains on: nothing of it is donated twice
  assert int(loaded.step) == 1


def test_another_base_is_refused_and_named(tmp_path):
  state = begun()
  save_adapter(tmp_path / 'one', state)
  _, other = trained(lora(2), 0, seed=1)
  with pytest.raises(ValueError, match=r"5 of 5|'a/b'"):
    load_adapter(tmp_path / 'one', other)
  assert (
    load_adapter(tmp_path / 'one', other, other_base=True).params['jl.lora'].keys() == state.params['jl.lora'].keys()
  )
  changed = values()
  changed['c']['b'][0] = np.nextafter(changed['c']['b'][0], 9)  # a single bit
  model = lora(2).model(jl.from_function(forward, changed))
  with pytest.raises(ValueError, match=r"1 frozen array of 5 is not the same, first 'c/b'"):
    load_adapter(tmp_path / 'one', model.init(jax.random.key(0), X))
  _, other = trained(qlora(2, name='lora'), 0)
  with pytest.raises(ValueError, match='kept in other bits'):
    load_adapter(tmp_path / 'one', other)


@pytest.mark.parametrize(
  ('hook', 'says'),
  [
    (lambda: lora(3), 'rank 2'),
    (lambda: lora(2, 9), 'scale 1.0'),
    (lambda: dora(2, name='lora'), 'magnitude False'),
    (lambda: lora(2, rules={'^layers': None}), 'here stands nothing'),
    (lambda: lora(2, train='^a/b'), 'frozen array|missing from the adapter'),
    (lambda: jl.freeze('^a'), 'what lora, dora or qlora learned'),
  ],
)
def test_other_rules_are_refused(hook, says, tmp_path):
  save_adapter(tmp_path / 'one', begun())
  with pytest.raises(ValueError, match=says):
    load_adapter(tmp_path / 'one', trained(hook(), 0)[1])


def test_damaged_files_and_other_files_are_refused(tmp_path):
  state = begun()
  save_adapter(tmp_path / 'one', state)
  data = (tmp_path / 'one').read_bytes()
  (tmp_path / 'cut').write_bytes(data[:-5])
  with pytest.raises(ValueError, match='cut is no whole safetensors file'):
    load_adapter(tmp_path / 'cut', state)
  arrays, about = read_safetensors(data)
  write_safetensors(tmp_path / 'other', arrays, {'format': 'pt'})
  with pytest.raises(ValueError, match='no adapter of jaxlite'):
    load_adapter(tmp_path / 'other', state)
  write_safetensors(tmp_path / 'table', arrays, {**about, 'base': '[1'})
  with pytest.raises(ValueError, match='damaged'):
    load_adapter(tmp_path / 'table', state)
  write_safetensors(tmp_path / 'less', {name: arrays[name] for name in list(arrays)[1:]}, about)
  with pytest.raises(ValueError, match='missing from the adapter'):
    load_adapter(tmp_path / 'less', state)
  wrong = {**arrays, 'learned/a/w/a': arrays['learned/a/w/a'][:-1]}
  write_safetensors(tmp_path / 'shape', wrong, about)
  with pytest.raises(ValueError, match='in the adapter'):
    load_adapter(tmp_path / 'shape', state)
  with pytest.raises(FileNotFoundError):
    load_adapter(tmp_path / 'none', state)


def test_what_an_adapter_would_lack_is_refused(tmp_path):
  train = jl.train_step(
    jl.from_function(forward, values()), jl.cross_entropy, jl.chain(jl.average(0.9), lora(2), optax.adam(1e-2))
  )
  with pytest.raises(ValueError, match=r"'jl.average' holds arrays too"):
    save_adapter(tmp_path / 'one', train.init(jax.random.key(0), BATCH))


def test_an_adapter_as_peft_writes_it_gives_its_product(tmp_path):
  """PEFT keeps A as [rank, inputs], B as [outputs, rank], and alpha apart."""
  rng = np.random.default_rng(3)
  model = lora(2, 5.0).model(jl.from_function(forward, values()))
  params, state = model.init(jax.random.key(0), X)
  arrays, sizes = {}, {'a': (20, 64), 'layers.0': (64, 64), 'layers.1': (64, 64), 'layers.2': (64, 64), 'c': (64, 5)}
  for module, (inputs, outputs_) in sizes.items():
    arrays[f'base_model.model.{module}.lora_A.weight'] = rng.normal(size=(2, inputs)).astype(np.float32)
    arrays[f'base_model.model.{module}.lora_B.weight'] = rng.normal(size=(outputs_, 2)).astype(np.float32)
  write_safetensors(tmp_path / 'adapter_model.safetensors', arrays, {'format': 'pt'})
  (tmp_path / 'adapter_config.json').write_text(json.dumps({'r': 2, 'lora_alpha': 16, 'peft_type': 'LORA'}))
  names = {'a/w': 'a', 'layers': 'layers.{}', 'c/w': 'c'}
  params, state = load_adapter(tmp_path, (params, state), peft=names)
  merged, _ = model.export(params, state)
  for module, found, first in (
    ('a', merged['a']['w'], values()['a']['w']),
    ('layers.1', merged['layers'][1], values()['layers'][1]),
  ):
    a, b = (arrays[f'base_model.model.{module}.lora_{side}.weight'] for side in 'AB')
    np.testing.assert_allclose(found, first + 8 * (b @ a).T, rtol=1e-5, atol=1e-5)
  with pytest.raises(ValueError, match='of every adapted leaf'):
    load_adapter(tmp_path, (params, state), peft={'a/w': 'a'})
  config = {'r': 2, 'lora_alpha': 16}
  for change, told in (
    ({'r': 4}, 'its rank is 4; beside .* stands 2: give that rank'),
    ({'r': None}, "has no number 'r': it is no adapter of low rank"),
    ({'init_lora_weights': 'pissa_niter_4'}, "init_lora_weights='pissa_niter_4', which changes the base"),
  ):
    (tmp_path / 'adapter_config.json').write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=told):
      load_adapter(tmp_path, (params, state), peft=names)
  load_adapter(tmp_path, (params, state), peft=names, other_base=True)
