"""A whole split is predicted in batches: the bits of those batches, in the memory of one."""

import os
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
from jaxlite import tasks
from jaxlite.batching import AT_ONCE, in_parts
from jaxlite.data.chosen import Chosen


class Net(nn.Module):
  """A convolution and a dense layer."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(5)(nn.relu(nn.Conv(4, (3, 3))(x)).reshape(len(x), -1))


@pytest.fixture(scope='module')
def network():
  model = jl.from_linen(Net())
  return jl.Network(model, *model.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1))))


def test_many_examples_have_the_bits_of_their_batches(network):
  for count in (AT_ONCE + 1, 2 * AT_ONCE, 3 * AT_ONCE - 7):
    inputs = np.random.default_rng(count).normal(size=(count, 6, 6, 1)).astype(np.float32)
    found = network.predict(inputs)
    assert isinstance(found, jax.Array)
    assert found.shape == (count, 5)
    firsts = [*range(0, count - AT_ONCE, AT_ONCE), count - AT_ONCE]
    for first in firsts[::-1]:  # the last batch begins before the one before it ends, and gives only what is left
      part = network.predict(inputs[first : first + AT_ONCE])
      end = min([first + AT_ONCE, *(other for other in firsts if other > first and other % AT_ONCE == 0)])
      start = first if first % AT_ONCE == 0 else firsts[-2] + AT_ONCE
      assert np.array_equal(found[start:end], part[start - first : end - first])
    whole = jax.jit(lambda x: network.model.apply(network.params, {}, x, train=False, key=None)[0])(inputs)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)


def test_one_program_serves_any_number_of_examples(network):
  sizes = []

  def apply(params, x):
    sizes.append(x.shape[0])
    return x @ params['w']

  model = jl.from_function(apply, {'w': jnp.ones((3, 2))})
  net = jl.Network(model, *model.init(jax.random.key(0), jnp.ones((1, 3))))
  sizes.clear()
  for count in (AT_ONCE, 600, 1_000, 5_000):
    assert net.predict(np.ones((count, 3))).shape == (count, 2)
  assert sizes == [AT_ONCE]


def test_trees_lists_names_and_what_stands_for_an_array(network):
  rows = np.random.default_rng(0).normal(size=(1_300, 3)).astype(np.float32)

  def apply(params, x):
    return {'sum': x['a'] @ params['w'], 'pair': (x['a'][:, 0], x['b'] * 2)}

  model = jl.from_function(apply, {'w': jnp.arange(6.0).reshape(3, 2)})
  given = {'a': Chosen(rows, np.arange(1_299, -1, -1)), 'b': np.arange(1_300)}
  net = jl.Network(model, *model.init(jax.random.key(0), {'a': rows[:1], 'b': given['b'][:1]}))
  found = net.predict(given)
  np.testing.assert_allclose(found['sum'], rows[::-1] @ np.arange(6.0).reshape(3, 2), rtol=1e-5, atol=1e-6)
  assert np.array_equal(found['pair'][0], rows[::-1, 0])
  assert np.array_equal(found['pair'][1], given['b'] * 2)
  few = {'a': Chosen(rows, np.arange(4)), 'b': given['b'][:4]}
  assert net.predict(few)['sum'].shape == (4, 2)


@pytest.mark.parametrize('count', [0, 3, 8_192, 20_001])
def test_answers_come_in_the_order_of_the_examples(count):
  model = jl.from_function(lambda p, x: x * p['one'], {'one': jnp.ones(1)})
  logits = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
  base = jl.Network(model, *model.init(jax.random.key(0), np.ones((1, 3), np.float32)))
  for task, facts in (
    (tasks.classification(), {'class_names': ['a', 'b', 'c']}),
    (tasks.multi_label(), {'names': ['a', 'b', 'c']}),
  ):
    net = base._replace(answer=lambda outputs, task=task, facts=facts: task.answer(outputs, facts))
    wanted = task.answer(logits, facts)
    labels, proba = net.predict_labels(logits), net.predict_proba(logits)
    assert len(labels) == count
    assert list(labels) == list(wanted['labels'])
    assert np.array_equal(proba, wanted['proba'])


def test_what_cannot_be_cut_runs_at_once(network):
  grown = jax.jit(lambda x: network.predict(x).sum())(jnp.ones((AT_ONCE + 5, 6, 6, 1)))
  assert grown.shape == ()
  inputs = np.random.default_rng(0).normal(size=(700, 3)).astype(np.float32)
  for act in (lambda x: x.T, lambda x: x.sum(), lambda x: (x, x[:4]), lambda x: x[None]):  # no result an example
    assert all(map(np.array_equal, jax.tree.leaves(in_parts(act, inputs)), jax.tree.leaves(act(inputs))))
  seen = []
  in_parts(lambda tree: seen.append(tree['a'].shape), {'a': np.ones(3_000), 'b': np.ones(2)})
  in_parts(lambda tree: seen.append(np.shape(tree)), 3.0)
  assert seen == [(3_000,), ()]
  with pytest.raises(ZeroDivisionError):
    in_parts(lambda x: 1 / 0, np.ones(3_000))


def test_memory_does_not_grow_with_the_examples(tmp_path):
  """A hidden layer of 64 KiB an example: 20,000 of them were 1.2 GiB."""
  code = """
    import numpy as np, jax, jax.numpy as jnp, jaxlite as jl
    params = {'a': jnp.ones((4, 16_384)), 'b': jnp.ones((16_384, 2))}
    model = jl.from_function(lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], params)
    net = jl.Network(model, *model.init(jax.random.key(0), jnp.ones((1, 4))))
    memory = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])
    inputs = np.ones((10_000, 4), np.float32)
    np.asarray(net.predict(inputs[:512]))
    before = memory()
    np.asarray(net.predict(inputs))
    print((memory() - before) / 1024)
  """
  if not os.path.exists('/proc/self/status'):
    pytest.skip('memory is read where Linux says it')
  done = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True, check=True)
  assert float(done.stdout) < 150  # MiB; at once it was 640


def test_rows_as_lists_are_one_array():
  rows = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
  assert in_parts(lambda x: x.sum(1), rows, most=2).tolist() == [3.0, 7.0, 11.0]
  pair = [np.ones(3), np.zeros(3)]  # a network of two inputs
  assert in_parts(lambda both: both[0] + both[1], pair, most=2).tolist() == [1.0, 1.0, 1.0]
