"""A network over its budget is cut before it is written, whoever made it; what cannot be met says the nearest."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.deployment.deploy import REPORT
from jaxlite.host.safetensors_file import read_safetensors
from loops import X, Y, run
from networks import FRAMEWORKS, dense

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)
QUICK = {'batches': (1,), 'seconds': 0.01, 'say': lambda line: None, 'examples': (X, Y)}
WEIGHTS = [RNG.normal(size=size).astype(np.float32) for size in ((6, 32), (32,), (32, 3), (3,))]


def few_bits(config, total):
  return jl.chain(jl.fake_quant(), optax.adam(0.05))


def network():
  def fn(p, x):
    return jax.nn.relu(x @ p['a'] + p['b']) @ p['c'] + p['d']

  params = dict(zip('abcd', map(jnp.asarray, WEIGHTS), strict=True))
  return jl.Network(jl.from_function(fn, params), {**params}, {})


@pytest.mark.parametrize(
  'framework', ['nnx', *(pytest.param(one, marks=pytest.mark.slow) for one in FRAMEWORKS if one != 'nnx')]
)
def test_a_run_of_every_framework_is_cut_to_the_bytes_of_its_files(framework, tmp_path):
  run(tmp_path, model=dense(framework, WEIGHTS)[0], steps=2)
  report = jl.deploy(tmp_path, ('pack', 'safetensors'), budget='bytes:1100', **QUICK)
  assert not any(one.why for one in report.written), report
  sizes = [os.path.getsize(one.path) for one in report.written]
  assert max(sizes) <= 1100
  assert report.cut.after['bytes'] == max(sizes)
  assert report.cut.before['bytes'] > 1100
  arrays, _ = read_safetensors(tmp_path / 'deployed' / 'network.safetensors')
  own = [array for name, array in arrays.items() if name.startswith('params.')]
  hidden = (sum(array.size for array in own) - 3) // 10
  assert hidden % 8 == 0
  assert 0 < hidden < 32
  found = json.loads((tmp_path / 'deployed' / REPORT).read_text())['cut']
  assert found['groups'][0].startswith(f'{hidden} of 32')
  outputs = np.asarray(jl.load(tmp_path).predict(X))
  assert found['score'] == pytest.approx(np.mean(outputs.argmax(1) == Y))
  assert f'{report.score:.4f} after' in str(report)


@pytest.mark.slow
def test_few_bits_stay_few_and_what_goes_has_the_smallest_weights(tmp_path):
  run(tmp_path, few_bits, model=jl.models.MLP((32,), classes=3), steps=4)
  whole = jl.deploy(tmp_path, 'pack', **QUICK).written[0].bytes
  report = jl.deploy(tmp_path, 'pack', budget={'bytes': whole - 1, 'parameters': 250}, **QUICK)
  assert report.written[0].arithmetic == 'int8'
  assert report.written[0].bytes < whole
  assert report.costs.parameters == 243
  assert report.cut.before == {'bytes': whole, 'parameters': 323}


def test_a_network_loses_its_smallest_units_and_the_cut_is_exact(tmp_path):
  one = network()
  report = jl.deploy(one, 'safetensors', out=tmp_path, budget={'flops': 2 * 9 * 16}, **QUICK)
  worth = np.abs(WEIGHTS[0]).sum(0) + np.abs(WEIGHTS[1]) + np.abs(WEIGHTS[2]).sum(1)
  left = np.sort(np.argsort(-worth)[:16])
  arrays, _ = read_safetensors(tmp_path / 'network.safetensors')
  np.testing.assert_array_equal(arrays['params.a'], WEIGHTS[0][:, left])
  assert report.cut.before == {'flops': 2 * 9 * 32}
  assert jl.deploy(one, 'safetensors', out=tmp_path, budget={'latency': 1e5}, **QUICK).cut is None


PARTS = {
  'frozen': lambda config, total: jl.chain(jl.freeze('^a$'), optax.adam(0.05)),
  'merged': lambda config, total: jl.chain(jl.optim.lora(2), optax.adam(0.05)),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', PARTS)
def test_the_values_are_those_of_the_program_that_was_cut(name, tmp_path):
  one = network()
  run(tmp_path, PARTS[name], model=one.model, steps=3)
  jl.deploy(tmp_path, ('pack', 'safetensors'), budget={'parameters': 200}, **QUICK)
  held, _ = read_safetensors(tmp_path / 'deployed' / 'network.safetensors')
  x = (X - held['normalize.mean']) / held['normalize.std']
  own = {name: held[f'params.{name}'] for name in 'abcd'}
  found = jl.unpack(tmp_path / 'deployed' / 'network.jlp').predict(X)
  wanted = one.model.apply(own, {}, x, train=False, key=None)[0]
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_met_says_the_nearest(tmp_path):
  for budget, words in (
    ({'parameters': 12}, r'parameters=12 cannot be met: the nearest is parameters=13'),
    ({'latency': 1e-9}, r'latency=1e-09 ms cannot be met: the nearest is latency=.* ms'),
    ({'bytes': 20}, r'bytes=20 cannot be met: the nearest is bytes=\d+'),
  ):
    with pytest.raises(ValueError, match=words):
      jl.deploy(network(), 'safetensors', out=tmp_path, budget=budget, **QUICK)
  assert not (tmp_path / 'network.safetensors').exists()
