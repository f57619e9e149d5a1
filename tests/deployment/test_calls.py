"""A portable program asks XLA for nothing but what stands on a list: a stranger's folder runs no stranger's code."""

import functools
import hashlib
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export, lax

import jaxlite as jl
from jaxlite.deployment import calls, opening, stablehlo
from jaxlite.host.sealed import write_sealed
from jaxlite.version import __version__

X = np.random.default_rng(0).normal(size=(4, 6, 6)).astype(np.float32)
SHAPE = jax.ShapeDtypeStruct


def network(apply):
  model = jl.from_function(apply, {'w': jnp.eye(6) + 0.1})
  return jl.Network(model, *model.init(jax.random.key(0), X))


HONEST = {
  'solve': lambda p, x: jnp.linalg.solve(p['w'], x),
  'cholesky': lambda p, x: jnp.linalg.cholesky(x @ jnp.swapaxes(x, 1, 2) + p['w'] @ p['w'].T),
  'eigh': lambda p, x: jnp.linalg.eigh(x + jnp.swapaxes(x, 1, 2) + p['w'] + p['w'].T)[0],
  'svd': lambda p, x: jnp.linalg.svd(x @ p['w'])[1],
  'qr': lambda p, x: jnp.linalg.qr(x @ p['w'])[1],
  'slogdet': lambda p, x: jnp.linalg.slogdet(x @ p['w'])[1],
  'top_k': lambda p, x: lax.top_k(x @ p['w'], 2)[0],
  'sort': lambda p, x: jnp.sort(x @ p['w']),
  'fft': lambda p, x: jnp.abs(jnp.fft.rfft(x @ p['w'])),
  'noise': lambda p, x: x @ p['w'] + jax.random.normal(jax.random.key(0), (6,)),
  'scan': lambda p, x: lax.scan(lambda h, row: (h @ p['w'] + row, h), x[:, 0], jnp.swapaxes(x, 0, 1))[0],
}


LINEAR = ('solve', 'cholesky', 'eigh', 'svd', 'qr', 'slogdet')


@pytest.mark.unoptimized
@pytest.mark.parametrize(
  'names', [LINEAR, [name for name in HONEST if name not in LINEAR]], ids=['linear algebra', 'others']
)
def test_what_a_run_writes_is_run(names, tmp_path):
  def everything(p, x):
    return jnp.concatenate([HONEST[name](p, x).reshape(len(x), -1) for name in names], axis=1)

  values = network(everything)
  assert stablehlo.save_program(tmp_path, values.model, jl.chain(optax.sgd(0.1)), values, X) == ''
  loaded = stablehlo.load_program(tmp_path, values.params, values.model_state)
  np.testing.assert_allclose(loaded.predict(X), values.predict(X), rtol=1e-5, atol=1e-5)


@functools.cache
def _honest():
  """The two files of a plain product, planted once: {name: bytes}, values."""
  with tempfile.TemporaryDirectory() as folder:
    values = planted(Path(folder), lambda leaves, x: x @ leaves[0], 'none')
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}, values


def planted_product(folder):
  """As `planted`, of a plain product."""
  files, values = _honest()
  for name, data in files.items():
    (folder / name).write_bytes(data)
  return values


def planted(folder, fn, target):
  """A folder whose program is a stranger's, sealed anew: its hashes say nothing against it."""
  values = network(lambda p, x: x @ p['w'])
  assert stablehlo.save_program(folder, values.model, jl.chain(optax.sgd(0.1)), values, X) == ''
  about = json.loads((folder / 'program.json').read_text())
  del about['sha256']
  leaves = [SHAPE((6, 6), np.float32) for _ in about['arrays']]
  checks = [export.DisabledSafetyCheck.custom_call(target)]
  whole = lambda leaves, x: (fn(leaves, x), [])  # noqa: E731  # outputs, and no value of its own that is computed
  program = export.export(jax.jit(whole), disabled_checks=checks)(leaves, SHAPE(X.shape, X.dtype))
  data = bytes(program.serialize())
  (folder / 'program.bin').write_bytes(data)
  write_sealed(folder / 'program.json', {**about, 'program': hashlib.sha256(data).hexdigest(), 'batch': 4})
  return values


def called(target, **attributes):
  return lambda leaves, x: jax.ffi.ffi_call(target, SHAPE(x.shape, x.dtype))(x, leaves[0], **attributes)


HOSTILE = {
  'xla_ffi_python_cpu_callback': called('xla_ffi_python_cpu_callback', index=np.uint64(7)),
  'xla_ffi_partitioned_python_cpu_callback': called('xla_ffi_partitioned_python_cpu_callback', index=np.uint64(7)),
  'xla_python_cpu_callback': called('xla_python_cpu_callback'),
  'jaxlite_cpu_direct_1': called('jaxlite_cpu_direct_1', spec=np.zeros(39, np.int64)),
  'tf.call_tf_function': called('tf.call_tf_function'),
  'lapack_sgetrf_ffi ': called('lapack_sgetrf_ffi '),
  'in a loop': lambda leaves, x: lax.fori_loop(0, 3, lambda i, y: called('xla_python_cpu_callback')(leaves, y), x),
  'in a branch': lambda leaves, x: lax.cond(
    x.sum() > 0, lambda: called('xla_python_cpu_callback')(leaves, x), lambda: x
  ),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_what_stands_on_no_list_is_not_run(name, tmp_path):
  values = planted(tmp_path, HOSTILE[name], name if name[:2] != 'in' else 'xla_python_cpu_callback')
  with pytest.raises(ValueError, match=r'^[^\n]*program\.bin is not run: it asks for a call of [^\n]*$'):
    stablehlo.load_program(tmp_path, values.params, values.model_state)


def test_a_program_that_waits_for_others_is_not_run():
  text = """module @wait { func.func public @main(%x: tensor<2xf32>) -> tensor<2xf32> {
    %token = stablehlo.create_token : !stablehlo.token
    %y:2 = "stablehlo.infeed"(%token) {infeed_config = "", layout = [[0]]}
      : (!stablehlo.token) -> (tensor<2xf32>, !stablehlo.token)
    return %y#0 : tensor<2xf32> } }"""
  assert calls.refused(text) == 'stablehlo.infeed'
  with pytest.raises(ValueError, match='cannot be read'):
    calls.refused('no program')


def test_a_model_that_calls_what_stands_on_no_list_is_told_when_it_is_written(tmp_path):
  callback = lambda p, x: jax.pure_callback(lambda x: np.asarray(x), SHAPE(x.shape, x.dtype), x) @ p['w']  # noqa: E731
  values = network(callback)
  reason = stablehlo.save_program(tmp_path, values.model, jl.chain(optax.sgd(0.1)), values, X)
  assert reason
  assert '\n' not in reason


@pytest.mark.parametrize('arrays', [['w'], [3], 'w', None, {}])
@pytest.mark.parametrize('field', ['arrays', 'inputs', 'batch'])
def test_what_is_said_of_a_program_has_one_shape(field, arrays, tmp_path):
  values = planted_product(tmp_path)
  about = json.loads((tmp_path / 'program.json').read_text())
  del about['sha256']
  if (field, arrays) == ('batch', None):
    return
  write_sealed(tmp_path / 'program.json', {**about, field: arrays})
  with pytest.raises(ValueError, match=r'^[^\n]*(damaged|two runs)[^\n]*$'):
    stablehlo.load_program(tmp_path, values.params, values.model_state)


WRONG = {
  'own': [3, 'params/w', [], {'params/w': True}, {'params/w': None}, {'params/w': 'params/v'}, {'params/w': 1},
          {'params/w': -1}, {'params/w': 0.0}, {'other': 'params/w'}],
  'made': [3, None, 'w', {'around': 'normalize'}, {'around': [3]}, {'around': None}, {'version': 3}, {'plain': 'yes'},
           {'quantized': None}, {'network': 'MLP'}, {'network': {'network': ['MLP'], 'fields': {}}},
           {'network': {'network': 'MLP'}}, {'network': {'network': 'MLP', 'fields': [1]}}],
}  # fmt: skip


@pytest.mark.parametrize('field', WRONG)
def test_what_is_said_of_the_network_inside_has_one_shape(field, tmp_path):
  values = planted_product(tmp_path)
  about = json.loads((tmp_path / 'program.json').read_text())
  del about['sha256']
  assert about['own'] == {'params/w': 'params/w'}
  without = {name: value for name, value in about.items() if name != field}
  deep = '[' * 900 + ']' * 900
  for told in ({**about, field: one} for one in (*WRONG[field], json.loads(deep))):
    write_sealed(tmp_path / 'program.json', told)
    with pytest.raises(ValueError, match=r'^[^\n]*damaged[^\n]*$'):
      stablehlo.load_program(tmp_path, values.params, values.model_state)
  write_sealed(tmp_path / 'program.json', without)
  with pytest.raises(ValueError, match=rf"damaged \('{field}' is missing\)"):
    stablehlo.load_program(tmp_path, values.params, values.model_state)


def test_a_program_gives_the_results_that_are_said_of_it(tmp_path):
  values = planted_product(tmp_path)
  about = json.loads((tmp_path / 'program.json').read_text())
  del about['sha256']
  write_sealed(tmp_path / 'program.json', {**about, 'own': {'params/w': 0}})  # a value that it does not compute
  with pytest.raises(ValueError, match=r'^[^\n]*program\.bin gives other results than its program\.json says[^\n]*$'):
    stablehlo.load_program(tmp_path, values.params, values.model_state)


FIELDS = [{}, {'widths': 'ab', 'classes': 3}, {'widths': [5, {}], 'classes': 3}, {'widths': [-1], 'classes': 3},
          {'widths': [], 'classes': None}, {'widths': [9], 'classes': 3, 'dtype': 'none'}, {'parent': 3},
          {'widths': [json.loads('[' * 900 + ']' * 900)], 'classes': 3}]  # fmt: skip


@pytest.mark.parametrize('fields', FIELDS)
def test_a_network_that_is_named_wrongly_costs_one_line_or_nothing(fields, tmp_path):
  values = planted_product(tmp_path)
  about = json.loads((tmp_path / 'program.json').read_text())
  del about['sha256']
  made = {'version': __version__, 'around': [], 'plain': True, 'network': {'network': 'MLP', 'fields': fields}}
  write_sealed(tmp_path / 'program.json', {**about, 'made': made})
  stored = stablehlo.read_program(tmp_path)
  network = opening.reopened(stored, {'params/w': values.params['w']}, None, {})
  if network is None:  # sealed: what was stored predicts
    return
  with pytest.raises(ValueError, match=r'program\.json names a network that does not run') as error:
    network.predict(X)
  assert '\n' not in str(error.value)


def test_a_program_of_other_arrays_than_it_says_is_one_line(tmp_path):
  values = planted(tmp_path, lambda leaves, x: x @ leaves[0], 'none')
  other = {'w': jnp.ones((7, 6))}
  with pytest.raises(ValueError, match=r'program\.bin cannot be run on these arrays') as error:
    stablehlo.load_program(tmp_path, other, values.model_state).predict(X)
  assert '\n' not in str(error.value)
