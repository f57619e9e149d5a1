"""Training for bits on real data: a file many times smaller, read and scored by a process that has no JAX."""

import json
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import jaxlite as jl
from jaxlite import trees
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from jaxlite.deployment.packed import file as pack
from jaxlite.models import MLP, LeNet5, LeNet300
from jaxlite.quantization import few_bits

READER = """
import json, sys
import numpy as np
from jaxlite.deployment.packed.file import unpack
network, pictures = unpack(sys.argv[1]), np.load(sys.argv[2])
found = [network.predict(pictures[at : at + 500]).argmax(-1) for at in range(0, len(pictures), 500)]
print(json.dumps([np.concatenate(found).tolist(), 'jax' in sys.modules]))
"""


def rates(total, weights, steps):
  """Adam with a rate for weights, which are counted in steps, and one for the steps themselves."""

  def which(params):
    return trees.map_with_path(lambda path, _: 'steps' if path.startswith('jl.') else 'weights', params)

  falling = lambda rate: optax.adam(optax.cosine_decay_schedule(rate, total))  # noqa: E731
  return optax.partition({'weights': falling(weights), 'steps': falling(steps)}, which)


def trained(model, recipe, data, steps, params=None, many=50):
  train = jl.train_step(model, jl.cross_entropy, recipe)
  batches = lambda step: jl.data.batches_at(data.train, 128, 0, step, many)  # noqa: E731
  state = train.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], batches(0)), params)
  for step in range(0, steps, many):
    state, _ = train.steps(state, batches(step))
  return train.model.export(state.params, jl.contract.join_const(state.model_state, state.const))


def smaller(network, data, folder, worth, dense, few, every, moves=(0.02, 2e-3)):
  """Trains dense, then for bits; returns how many times smaller the file is, and what was right of both networks."""
  model = jl.optim.normalize(data.mean, data.std).model(jl.adapt(network))
  params, _ = trained(model, jl.chain(optax.adam(optax.cosine_decay_schedule(2e-3, dense))), data, dense)
  hook = few_bits(worth, ramp=int(0.4 * few), every=every, select='.*')
  small, state = trained(model, jl.chain(hook, rates(few, *moves)), data, few, params)

  def forward(known, inputs):
    return model.apply(*known, inputs, train=False, key=None)[0]

  path, pictures, labels = folder / 'small.jlp', data.test.inputs, data.test.labels
  size = pack.write_pack(recognized(lower(forward, (small, state), pictures[:1])), path)
  np.save(folder / 'pictures.npy', pictures)
  command = [sys.executable, '-c', READER, str(path), str(folder / 'pictures.npy')]
  found, imported = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
  assert not imported
  expected = [jl.Network(model, one, state).predict(pictures).argmax(-1) for one in (params, small)]
  assert np.mean(found == np.asarray(expected[1])) > 0.999  # sums in another order
  floats = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
  return floats / size, np.asarray(expected[0]) == labels, np.array(found) == labels


@pytest.mark.unoptimized
def test_digits_trained_for_bits_lose_nothing_that_shows_and_the_file_says_the_same_without_jax(tmp_path):
  digits = load_digits()
  data = jl.data.from_arrays((digits.images.astype(np.uint8)[..., None], digits.target), test=0.25)
  times, before, after = smaller(MLP((128, 64)), data, tmp_path, 5e-5, 300, 600, 20, (0.04, 4e-3))
  assert before.mean() > 0.96
  assert times > 30
  assert after.mean() > before.mean() - 2 * np.sqrt(0.02 * 0.98 / len(after))  # two deviations of such a share


@pytest.mark.slow
@pytest.mark.parametrize(
  ('network', 'times', 'dense', 'few'), [(LeNet300(), 40, 2500, 4500), (LeNet5(relu=True), 39, 1300, 2200)]
)
def test_a_lenet_is_as_many_times_smaller_as_deep_compression_makes_it(network, times, dense, few, tmp_path):
  """Deep Compression's 40 and 39 (Han, Mao and Dally 2016) are of MNIST; here on Fashion-MNIST, which is harder."""
  data = jl.data.load('fashion_mnist', validation=5000 / 60_000)
  found, before, after = smaller(network, data, tmp_path, 2e-6, dense, few, 430)
  assert before.mean() > 0.88
  assert found > times
  assert after.mean() > before.mean() - 0.003
