"""Weights in PyTorch's convention fill a network of every framework, square kernels too: the outputs are the same."""

import os

os.environ['KERAS_BACKEND'] = 'jax'  # before anybody imports it

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxlite as jl
import weight_files
from jaxlite.finetuning import WeightsError, load_weights, read
from jaxlite.host.safetensors_file import write_safetensors
from one_network import INPUTS, MODELS, Linen, expected, keras_net, plain, torch_arrays

pytestmark = pytest.mark.unoptimized

ROLES = {'kernel': 'weight', 'bias': 'bias'}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'model.safetensors'
  write_safetensors(path, torch_arrays(), {'format': 'pt'})
  return path


@pytest.mark.parametrize('name', MODELS)
def test_a_network_of_any_framework_computes_what_the_file_says(name, saved):
  make, rules = MODELS[name]
  module, wanted = make(), expected(torch_arrays(), INPUTS)
  loaded = load_weights(module, saved, INPUTS, rules=rules)
  np.testing.assert_allclose(loaded.network.predict(INPUTS), wanted, rtol=2e-4, atol=2e-4)
  assert len(loaded.report.matched) == 11
  assert not loaded.report.new
  assert loaded.report.left_out == ('norm.num_batches_tracked',)
  turned = [path for path in loaded.report.transposed if 'square' in path]
  assert bool(turned) == (name not in ('equinox', 'function')), 'a square kernel is turned where its program says so'
  values, before, _ = loaded.give_back()  # the framework's own object
  if name == 'nnx':
    nnx.update(module, values)
    module.eval()
  own = {
    'nnx': lambda x: module(x),
    'equinox': lambda x: jax.vmap(values)(x),
    'linen': lambda x: module.apply(values, x),
    'keras': lambda x: values(x, training=False),
    'haiku': lambda x: module.apply(values, None, x),
    'function': lambda x: plain(values, x),
  }[name]
  np.testing.assert_allclose(jax.jit(own)(before(INPUTS)), wanted, rtol=2e-4, atol=2e-4)


def test_a_head_of_other_classes_is_refused_by_name_and_new_on_request(saved):
  module = Linen(classes=7)
  with pytest.raises(WeightsError, match=r"head/kernel \[4, 7\] \(in the file \[3, 4\]\).*head='new'"):
    load_weights(module, saved, INPUTS)
  loaded = load_weights(module, saved, INPUTS, head='new')
  assert loaded.report.left_out[:2] == ('head.bias', 'head.weight')
  assert loaded.report.new == ('head/bias', 'head/kernel')
  born = module.init(jax.random.key(0), INPUTS)['params']['head']['kernel']
  assert loaded.network.params['head']['kernel'].shape == born.shape
  assert np.abs(loaded.network.params['head']['kernel']).sum() > 0
  np.testing.assert_array_equal(loaded.network.params['square']['kernel'], torch_arrays()['square.weight'].T)


def test_weights_of_another_architecture_are_refused_with_what_to_write(saved):
  class Other(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(nn.Dense(8)(x.reshape(len(x), -1)))

  with pytest.raises(WeightsError, match=r'4 missing: Dense_0/bias.*11 left over: conv\.bias') as error:
    load_weights(Other(), saved, INPUTS)
  assert '\n' not in str(error.value)


def test_a_rule_that_matches_nothing_and_a_missing_array_are_errors(saved, tmp_path):
  with pytest.raises(ValueError, match=r"rules: '\^hed' matches nothing.*nearest: head"):
    load_weights(Linen(), saved, INPUTS, rules={'^hed': None})
  arrays = torch_arrays()
  del arrays['square.bias']
  write_safetensors(tmp_path / 'less.safetensors', arrays, {'format': 'pt'})
  with pytest.raises(WeightsError, match='1 missing: square/bias'):
    load_weights(Linen(), tmp_path / 'less.safetensors', INPUTS)
  loaded = load_weights(Linen(), tmp_path / 'less.safetensors', INPUTS, new='square/bias$')
  assert loaded.report.new == ('square/bias',)


def test_what_is_saved_of_a_model_fills_it_again_whatever_its_kernels_are(tmp_path):
  params = {'mix': np.arange(9, dtype=np.float32).reshape(3, 3)}
  write_safetensors(tmp_path / 'own.safetensors', params)
  for function in (lambda p, x: x @ p['mix'], lambda p, x: x @ p['mix'].T):
    loaded = load_weights((function, {'mix': jnp.zeros((3, 3))}), tmp_path / 'own.safetensors', np.ones((1, 3)))
    np.testing.assert_array_equal(loaded.network.params['mix'], params['mix'])


def test_dtypes_are_the_models_or_kept_and_what_cannot_be_held_is_refused(tmp_path):
  module, x = nn.Dense(2), np.ones((1, 3), np.float32)
  arrays = {'kernel': np.full((3, 2), 1e5), 'bias': np.zeros(2, np.float16)}
  np.savez(tmp_path / 'w.npz', **arrays)
  loaded = load_weights(module, tmp_path / 'w.npz', x)
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded.network.params)} == {jnp.dtype('float32')}
  assert loaded.report.cast == ('bias', 'kernel')
  assert load_weights(module, tmp_path / 'w.npz', x, dtype='stored').network.params['bias'].dtype == jnp.float16
  with pytest.raises(WeightsError, match="'kernel' has 6 entries that float16 cannot hold"):
    load_weights(module, tmp_path / 'w.npz', x, dtype=jnp.float16)
  with pytest.raises(WeightsError, match="dtype of floating numbers, 'float16'; got 'flaot16'"):
    load_weights(module, tmp_path / 'w.npz', x, dtype='flaot16')


def test_reading_knows_shapes_before_it_reads(saved):
  held = read(saved)
  assert held.shape('conv.weight') == (4, 4, 3, 3)
  assert held['conv.weight'].base is not None  # a view of the file
  assert not held['conv.weight'].flags.writeable


@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')  # Keras's own, of its variables
def test_keras_files_fill_keras_and_others(tmp_path):
  net = keras_net()
  rng = np.random.default_rng(5)
  net.set_weights([rng.random(size=one.shape).astype(np.float32) + 0.1 for one in net.weights])
  net.save_weights(tmp_path / 'a.weights.h5')
  net.save(tmp_path / 'a.keras')
  wanted = np.asarray(net(INPUTS, training=False))
  for name in ('a.weights.h5', 'a.keras'):
    held = read(tmp_path / name)
    assert set(held.about['names'].values()) == {'conv', 'depth', 'norm', 'square', 'head'}
    for module in (keras_net(), Linen()):
      loaded = load_weights(module, held, INPUTS)
      np.testing.assert_allclose(loaded.network.predict(INPUTS), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_own_runs_fill_the_same_model_and_a_model_with_another_head(tmp_path):
  config = jl.Config(name='x', recipe=lambda config, total: jl.chain(optax.adam(1e-2)), train=jl.Duration(steps=2))
  config.eval.every = config.checkpoint.every = jl.Duration(steps=2)
  config.data.batch_size = 8
  data = (np.random.default_rng(0).normal(size=(40, 6, 6, 4)).astype(np.float32), np.arange(40) % 3)
  jl.train(config, tmp_path / 'run', model=Linen(), data=data)
  held = read(tmp_path / 'run')
  assert held.form == 'run'
  trained = jl.load(tmp_path / 'run', model=Linen())
  loaded = load_weights(Linen(), held, INPUTS)
  np.testing.assert_array_equal(loaded.network.params['head']['kernel'], trained.params['head']['kernel'])
  assert loaded.report.matched
  assert not loaded.report.transposed
  other = load_weights(Linen(classes=9), held, INPUTS, head='new')
  assert other.network.predict(INPUTS).shape == (2, 9)


def test_a_network_is_filled_and_what_is_new_keeps_its_own_values(saved):
  first = load_weights(Linen(), saved, INPUTS).network
  start = first._replace(params=jax.tree.map(lambda leaf: leaf + 1, first.params))
  loaded = load_weights(start, saved, INPUTS, new='^square/')
  np.testing.assert_array_equal(loaded.network.params['square']['bias'], start.params['square']['bias'])
  np.testing.assert_array_equal(loaded.network.params['conv']['bias'], first.params['conv']['bias'])


def test_the_report_is_read_by_people(saved):
  told = str(load_weights(Linen(classes=9), saved, INPUTS, head='new').report)
  assert '9 matched, 3 transposed, 2 new, 3 left out' in told
  assert "new: head='new' (2 arrays)" in told
  assert 'square.weight [4, 4] -> square/kernel' in told


def test_what_is_asked_wrongly_is_told(saved):
  with pytest.raises(TypeError, match='inputs is one batch of arrays'):
    load_weights(Linen(), saved, (2, 6, 6, 4))
  with pytest.raises(ValueError, match='rules are expressions'):
    load_weights(Linen(), saved, INPUTS, rules={'^a': 5})
  with pytest.raises(ValueError, match="match is 'names' or 'order'"):
    load_weights(Linen(), saved, INPUTS, match='shape')
  with pytest.raises(ValueError, match=r"transforms 'hed' matches no parameter; nearest paths: head"):
    load_weights(Linen(), saved, INPUTS, transforms={'hed': (1, 0)})
  with pytest.raises(TypeError, match='a model is a Model, a Linen'):
    load_weights({'w': np.ones(3)}, saved, INPUTS)


def test_a_new_head_takes_no_table_along_that_it_is_tied_to():
  class Tied(nn.Module):
    @nn.compact
    def __call__(self, ids):
      table = nn.Embed(7, 4, name='table')
      return table.attend(nn.Dense(4, name='dense')(table(ids)))

  ids = jnp.zeros((1, 3), int)
  held = Tied().init(jax.random.key(1), ids)['params']
  with pytest.raises(WeightsError, match="head='new' would begin 'table/embedding' anew, which is a looked-up table"):
    load_weights(Tied(), held, ids, head='new')
  assert load_weights(Tied(), held, ids, new='^table').report.new == ('table/embedding',)


def test_layers_that_the_model_stacks_and_scales_apart_are_told():
  class Stacks(nn.Module):
    @nn.compact
    def __call__(self, x):
      cut = nn.scan(
        lambda one, x, _: (one(x), None), variable_axes={'params': 0}, split_rngs={'params': True}, length=2
      )
      return cut(nn.Dense(3, name='layer'), x, None)[0]

  x = np.ones((1, 3), np.float32)
  held = read(
    {f'layer.{one}.{role}': np.ones((3, 3)[: 1 + (role == 'weight')]) for one in '01' for role in ROLES.values()}
  )
  with pytest.raises(WeightsError) as error:
    load_weights(Stacks(), held, x)
  assert "'layer/kernel': np.stack([read(...)[f'layer.{i}.weight'] for i in range(2)])}), each" in str(error.value)
  kernels = {f'layer/{role}': np.stack([held[f'layer.{i}.{own}'] for i in range(2)]) for role, own in ROLES.items()}
  loaded = load_weights(Stacks(), held.beside(kernels).only('layer/'), x)
  assert loaded.network.predict(x).tolist() == [[13.0] * 3]
  eight = {'weight': np.ones((2, 3), 'float8_e4m3fn'), 'weight_scale': np.ones(1), 'bias': np.ones(2)}
  with pytest.raises(
    WeightsError, match=r"'float32'\) \* read\(...\)\['weight_scale'\]}\), as weights of float8_e4m3fn"
  ):
    load_weights(nn.Dense(2), eight, x, layout='torch')


def test_entries_that_are_not_finite_are_told(tmp_path):
  np.savez(tmp_path / 'w.npz', kernel=np.full((3, 2), np.nan, np.float32), bias=np.zeros(2, np.float32))
  report = load_weights(nn.Dense(2), tmp_path / 'w.npz', np.ones((1, 3), np.float32)).report
  assert [row.path for row in report.rows if 'not finite' in row.how] == ['kernel']


def test_frozen_variables_of_keras_are_filled_and_given_back(saved):
  net = keras_net()
  net.get_layer('conv').trainable = False
  loaded = load_weights(net, saved, INPUTS)
  wanted = expected(torch_arrays(), INPUTS)
  np.testing.assert_allclose(loaded.network.predict(INPUTS), wanted, rtol=2e-4, atol=2e-4)
  loaded.give_back()
  np.testing.assert_allclose(jax.jit(lambda x: net(x, training=False))(INPUTS), wanted, rtol=2e-4, atol=2e-4)


def test_of_a_checkpoint_of_training_the_part_that_fits_is_named(tmp_path):
  """A model beside its optimizer, and a loss beside a model: the fix is the model's name, whatever else is there."""
  arrays = {'fc.weight': np.ones((2, 3), np.float32), 'fc.bias': np.zeros(2, np.float32)}
  entries, held = weight_files.described(arrays)
  table = weight_files.table(entries)[2:-1]
  fn = lambda p, x: x @ p['fc']['kernel'] + p['fc']['bias']  # noqa: E731
  model = (fn, {'fc': {'kernel': jnp.ones((3, 2)), 'bias': jnp.zeros(2)}})
  for name, beside in (
    ('optimizer', weight_files.table({'state': entries['fc.bias']})[2:-1]),
    ('loss', entries['fc.bias']),
  ):
    path = tmp_path / f'{name}.pth'
    path.write_bytes(weight_files.torch_zip({'model': table, name: beside}, held))
    with pytest.raises(WeightsError, match=r"1 left over: .*or key='model' for a part of a checkpoint$"):
      load_weights(model, path, np.ones((1, 3), np.float32))
    found = load_weights(model, read(path, key='model'), np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(found.network.predict(np.ones((1, 3), np.float32)), [[3.0, 3.0]])


@pytest.mark.parametrize('kind', [np.asarray, jnp.asarray])
def test_arrays_in_hand_are_weights_too(saved, kind):
  wanted = load_weights(Linen(), saved, INPUTS).network
  held = {name: kind(array) for name, array in torch_arrays().items()}
  loaded = load_weights(Linen(), held, INPUTS)
  again = load_weights(Linen(), {**loaded.network.params, **loaded.network.model_state}, INPUTS)  # its own tree
  jax.tree.map(np.testing.assert_array_equal, loaded.network.params, wanted.params)
  jax.tree.map(np.testing.assert_array_equal, again.network.params, wanted.params)
  for wrong in (
    {},
    {'a': [1.0]},
    {'a': 'text'},
    {'a': np.array([object()])},
    {'a': {'b': np.ones(1)}, 'a/b': np.ones(1)},
  ):
    with pytest.raises(WeightsError, match='weights are arrays'):
      read(wrong)
  permuted = {'blk.0.attn_q.weight': np.ones((4, 4), np.float32)}  # out of a GGUF file, whose facts a dict forgets
  with pytest.raises(WeightsError, match='permutes its rows'):
    load_weights(nn.Dense(4, use_bias=False), permuted, jnp.ones((1, 4)), rules={'blk.*': 'kernel'})


class Tied(nn.Module):
  @nn.compact
  def __call__(self, tokens):
    return nn.Dense(11, use_bias=False, name='lm_head')(nn.Embed(11, 8, name='embed')(tokens))


def test_what_to_write_is_told_where_habits_differ(tmp_path):
  tokens, table = jnp.zeros((1, 2), jnp.int32), np.arange(88, dtype=np.float32).reshape(11, 8)
  write_safetensors(tmp_path / 'tied', {'embed.weight': table})
  with pytest.raises(
    WeightsError, match=r"beside\(\{'lm_head.weight': read\(...\)\['embed.weight'\]\}\) where the file"
  ):
    load_weights(Tied(), tmp_path / 'tied', tokens)
  held = read(tmp_path / 'tied')
  loaded = load_weights(Tied(), held.beside({'lm_head.weight': held['embed.weight']}), tokens)
  np.testing.assert_array_equal(loaded.network.params['lm_head']['kernel'], table.T)
  with pytest.raises(
    WeightsError, match=r"transforms=\{'embed/embedding': \(1, 0\)\} where it alone lies the other way"
  ):
    load_weights(Tied(), {'embed.weight': table.T, 'lm_head.weight': table}, tokens)
  with pytest.raises(
    WeightsError, match=r'lm_head/kernel \[8, 11\] \(in the file \[8, 11\], read as \[out, in\]\).*\(0, 1\)'
  ):
    load_weights(Tied(), {'embed.weight': table, 'lm_head.weight': table.T}, tokens)
  twice = {f'{which}.{name}.weight': table for which in ('model', 'ema') for name in ('embed', 'lm_head')}
  with pytest.raises(WeightsError, match=r"rules=\{'\^ema\[./\]': None\} where 'model' and 'ema' hold"):
    load_weights(Tied(), twice, tokens)
  assert load_weights(Tied(), twice, tokens, rules={'^ema[./]': None}).report.left_out
