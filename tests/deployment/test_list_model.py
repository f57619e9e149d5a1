"""A network that was loaded without its code convolves on a CPU by the kernels of evaluation, or as it was compiled."""

import gc
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.contract import _predictor
from jaxlite.cpu.replace import MARK
from jaxlite.deployment import list_model, smaller, stablehlo
from jaxlite.deployment.held import read_run
from jaxlite.host.sealed import read_sealed, write_sealed

pytestmark = pytest.mark.unoptimized
PICTURES = np.random.default_rng(0).normal(size=(40, 12, 12, 4)).astype(np.float32)


class Own(nn.Module):
  """A network that no folder can name: two convolutions, a batch norm and a scale, which is one number."""

  @nn.compact
  def __call__(self, x, train: bool = False):
    x = nn.Conv(8, (3, 3), strides=2)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    x = nn.Conv(8, (3, 3))(x).mean((1, 2))
    return nn.Dense(2)(x) * self.param('scale', lambda key: jnp.float32(1.5))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  place = tmp_path_factory.mktemp('run')
  recipe = lambda config, total_steps: jl.chain(optax.sgd(0.1))  # noqa: E731
  config = jl.Config(name='own', recipe=recipe, train=jl.Duration(steps=2))
  config.data.batch_size = 8
  jl.train(config, place, model=Own(), data=(PICTURES, np.arange(40) % 2))
  return place


def sealed(place):
  held = read_run(place)
  return held, stablehlo.sealed_network(held.stored, held.params, held.model_state)


def counted(network, monkeypatch):
  """How often the compiled program is called while a network predicts, and what it predicts."""
  calls, run = [], stablehlo._called
  monkeypatch.setattr(stablehlo, '_called', lambda *given: calls.append(1) or run(*given))
  return np.asarray(network.predict(PICTURES)), len(calls)


def test_a_loaded_network_answers_by_its_list(folder, monkeypatch):
  network = jl.load(folder)
  wanted = np.asarray(sealed(folder)[1].predict(PICTURES))
  found = np.asarray(network.predict(PICTURES))
  np.testing.assert_allclose(found, wanted, atol=1e-5)
  np.testing.assert_allclose(jax.jit(network.predict)(PICTURES), wanted, atol=1e-5)
  again, calls = counted(network, monkeypatch)
  assert calls == 0
  assert np.array_equal(again, found)
  double = network._replace(params=jax.tree.map(lambda leaf: 2 * leaf, network.params))
  assert not np.allclose(double.predict(PICTURES), found)  # values are those of now
  with pytest.raises(ValueError, match=r'float32\[B, 12, 12, 4\]'):
    network.predict(PICTURES[0])
  assert network.predict(PICTURES[:0]).shape == (0, 2)


def test_values_of_now_are_read_numbers_too_and_others_go_to_the_program(folder):
  network, program = jl.load(folder), sealed(folder)[1]
  before = network.predict(PICTURES)
  for change in (
    lambda p: {**p, 'scale': 2 * p['scale']},
    lambda p: {**p, 'Dense_0': jax.tree.map(jnp.negative, p['Dense_0'])},
  ):
    found, wanted = (one._replace(params=change(one.params)).predict(PICTURES) for one in (network, program))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not np.allclose(found, before)
  np.testing.assert_array_equal(network.predict(PICTURES), before)
  for wrong in (lambda leaf: leaf[..., :1], lambda leaf: leaf.astype(jnp.bfloat16)):
    kernel = wrong(network.params['Conv_0']['kernel'])
    with pytest.raises(ValueError, match=r'program\.bin cannot be run on these arrays'):
      network._replace(params={**network.params, 'Conv_0': {'bias': jnp.zeros(8), 'kernel': kernel}}).predict(PICTURES)


def test_a_network_that_predicted_and_is_gone_keeps_no_weights(folder):
  network = jl.load(folder)
  network.predict(PICTURES)
  leaf = weakref.ref(network.params['Conv_0']['kernel'])
  del network
  gc.collect()
  assert leaf() is None


def test_what_the_list_runs_are_the_kernels_of_evaluation(folder):
  network = jl.load(folder)
  opened = list_model.list_model(sealed(folder)[0], jax.tree.structure(0))
  given = (*opened[1:], PICTURES)
  from jaxlite.cpu.replace import exchanged

  text = exchanged(lambda *given: opened[0].apply(*given, train=False, key=None)[0]).lower(*given).as_text()
  assert MARK in text
  assert callable(_predictor(network.model.apply))


@pytest.mark.parametrize('how', ['missing', 'broken', 'another'])
def test_a_list_that_is_not_the_network_is_not_believed(folder, how, tmp_path, monkeypatch):
  import shutil

  place = shutil.copytree(folder, tmp_path / 'run')
  path = place / 'list.json'
  if how == 'missing':
    path.unlink()
  elif how == 'broken':
    path.write_bytes(path.read_bytes()[:-9])
  else:  # sealed anew, so that only what it computes can tell
    told = read_sealed(path, read_run(place).run)
    kinds = [one for one in told['list']['operations'] if one[0] == 'max'] if 'operations' in told['list'] else []
    assert kinds, told['list'].keys()
    kinds[0][0] = 'min'
    write_sealed(path, told, indent=None)
  wanted = np.asarray(sealed(place)[1].predict(PICTURES))
  found, calls = counted(jl.load(place), monkeypatch)
  assert calls
  assert np.array_equal(found, wanted)


def test_what_is_deployed_is_timed_as_it_predicts(folder):
  held, network = sealed(folder)
  for one in (network, jl.load(folder)):
    assert 0 < smaller.call_seconds(one, PICTURES) < 1
  model = list_model.list_model(held, jax.tree.structure(0))[0]
  assert model.apply.compiled is jl.load(folder, model=Own()).model.apply.compiled
