"""Laws of what a deployment says of itself: what is multiplied, how much of it, on how many examples; and of what it
starts, which ends."""

import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxlite as jl
from jaxlite import trees
from jaxlite.contract import join_const
from jaxlite.deployment import answer, subject
from jaxlite.deployment.accounting import costs
from jaxlite.deployment.integers.conversion import quantized
from jaxlite.deployment.operations import reference
from jaxlite.deployment.operations.folding import folded
from jaxlite.deployment.operations.listing import network_graph
from jaxlite.deployment.operations.lowering import lower, lower_open
from jaxlite.deployment.operations.patterns import recognized
from jaxlite.host.safetensors_file import read_safetensors
from loops import X, Y

pytestmark = pytest.mark.unoptimized
QUICK = {'batches': (), 'seconds': 0.01, 'say': lambda line: None}
DRAW = np.random.default_rng(3).normal
WEIGHTS = {name: DRAW(size=shape).astype(np.float32) for name, shape in (('a', (6, 8)), ('b', (8,)), ('c', (8, 3)))}


def dense(p, x):
  return jax.nn.relu(x @ p['a'] + p['b']) @ p['c']


def trained(*parts, steps=2):
  """A network as a loop of one's own has it: the model with its hooks, and all values."""
  train = jl.train_step(jl.from_function(dense, WEIGHTS), jl.cross_entropy, jl.chain(*parts, optax.adam(1e-2)))
  batch = {'inputs': X, 'labels': Y}
  state = train.init(jax.random.key(0), batch)
  for _ in range(steps):
    state, _ = train.step(state, batch)
  return jl.Network(train.model, state.params, join_const(state.model_state, state.const))


def test_weights_alone_in_few_bits_multiply_floats(tmp_path):
  kinds = ('c', 'onnx')
  report = jl.deploy(trained(jl.fake_quant(bits=(8, None))), kinds, out=tmp_path, examples=X, **QUICK)
  assert [(one.arithmetic, one.why) for one in report.written] == [('float32', '')] * 2
  assert all(one.apart < 1e-5 for one in report.written)  # ONNX Runtime would round the inputs, too
  assert {one.why_float for one in report.costs.layers} == {'only its weights have few bits'}
  assert b'static const int8_t' in (tmp_path / 'network.c').read_bytes()


def test_integers_say_that_they_hold_no_nan(tmp_path):
  network = trained(jl.fake_quant(bits=8))
  report = jl.deploy(network, 'safetensors', out=tmp_path, examples=X, **QUICK)
  assert any('integers hold no NaN' in note for note in report.notes)
  odd = X.copy()
  odd[0, 0] = np.nan
  graph = quantized(network_graph(network, X[:2]))
  np.testing.assert_array_equal(reference.run(graph, odd), reference.run(graph, np.nan_to_num(odd)))


def test_a_class_is_no_arithmetic_and_floats_are_not_quantized_in_silence(tmp_path):
  model = jl.from_function(lambda p, x: dense(p, x).argmax(-1), WEIGHTS)
  report = jl.deploy(jl.Network(model, WEIGHTS, {}), 'onnx', out=tmp_path, examples=X, every=True, **QUICK)
  assert report.written[0].arithmetic == 'float32'
  assert 'every=True goes on from what training quantized, and no activation was' in report.notes[0]


def test_what_a_hook_added_is_merged_into_the_values_and_not_counted(tmp_path):
  network = trained(jl.optim.lora(rank=2))
  report = jl.deploy(network, 'safetensors', out=tmp_path, examples=X, **QUICK)
  held, _ = read_safetensors(tmp_path / 'network.safetensors')
  assert set(held) == {'params.a', 'params.b', 'params.c'}
  found = dense({name.removeprefix('params.'): value for name, value in held.items()}, X)
  np.testing.assert_allclose(found, network.predict(X), rtol=1e-4, atol=1e-5)
  assert report.costs.parameters == sum(value.size for value in WEIGHTS.values())


def test_zeros_between_entries_are_not_multiplied():
  """Of a transposed convolution whose windows do not meet each input entry meets each entry of the kernel once."""
  kernel = DRAW(size=(2, 2, 3, 5)).astype(np.float32)
  x = DRAW(size=(1, 7, 6, 3)).astype(np.float32)
  graph = recognized(lower(lambda p, x: lax.conv_transpose(x, p, (2, 2), 'VALID'), kernel, x))
  assert graph.operations[0].attributes['input_dilation'] == (2, 2)
  assert costs(graph).macs == 7 * 6 * kernel.size


WRONG = {
  'other features': X[:, :5],
  'one example': X[0],
  'a list of examples': list(X[:3]),
  'two arrays, which are inputs and labels': ((X, X), X),
}


@pytest.mark.parametrize('name', WRONG)
def test_examples_that_the_network_does_not_take_are_told_in_a_line(name, tmp_path):
  network = jl.Network(jl.from_function(dense, WEIGHTS), WEIGHTS, {})
  with pytest.raises(ValueError, match=r'takes no examples of .*: examples are inputs \[N') as caught:
    jl.deploy(network, 'pack', out=tmp_path / 'out', examples=WRONG[name], **QUICK)
  assert '\n' not in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_answers_that_take_much_memory_are_tried_on_fewer_examples_and_that_is_told(tmp_path, monkeypatch):
  monkeypatch.setattr(subject, '_MOST_BYTES', 10 * 3 * 4)
  network = jl.Network(jl.from_function(dense, WEIGHTS), WEIGHTS, {})
  report = jl.deploy(network, 'safetensors', out=tmp_path, examples=(X, Y), task=jl.tasks.classification(3), **QUICK)
  assert report.examples == 10
  assert 'tried on the first 10 of 90 examples: the answers to one take 12 bytes' in report.notes
  assert report.score == pytest.approx(np.mean(np.argmax(dense(WEIGHTS, X[:10]), -1) == Y[:10]))


def test_a_list_runs_on_some_examples_at_a_time():
  def both(p, d):
    return dense(p, d['x']), d['n'] + 1

  # Of whole numbers, whose sums are exact in any order: a row computed apart is that row to the bit.
  whole = {name: np.round(4 * one) for name, one in WEIGHTS.items()}
  graph = recognized(lower(both, whole, {'n': jnp.zeros((2,), int), 'x': X[:2]}))
  given = {'input/n': np.arange(90, dtype=np.int32), 'input/x': np.round(4 * X)}
  for most in (1, 7, 89, 90, 500):
    for got, want in zip(reference.run_in_parts(graph, given, most), reference.run(graph, given), strict=True):
      np.testing.assert_array_equal(got, want)
  for bad in ({**given, 'input/n': given['input/n'][:80]}, {'input/x': X}):
    with pytest.raises(ValueError, match=r'(one batch size|takes the inputs)'):
      reference.run_in_parts(graph, bad, 7)


def test_what_no_compiler_has_memory_for_is_not_given_to_one(tmp_path, monkeypatch):
  monkeypatch.setattr('jaxlite.host.machine.available', lambda: 10_000)
  network = jl.Network(jl.from_function(dense, WEIGHTS), WEIGHTS, {})
  report = jl.deploy(network, ('safetensors', 'c'), out=tmp_path, examples=X, **QUICK)
  assert not report.written[0].why
  assert 'a C compiler takes about 0.0 GB of memory for 81 constants' in report.written[1].why


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='no list of processes here')
def test_a_compiler_that_takes_too_long_ends_with_what_it_started(tmp_path):
  command = ['sh', '-c', f'sleep 60 & echo $! > {tmp_path}/pid; wait']
  began = time.monotonic()
  with pytest.raises(ValueError, match=r'sh took over 0\.5 s and was ended'):
    answer.ended(command, 0.5)
  assert time.monotonic() - began < 20
  child = Path('/proc', (tmp_path / 'pid').read_text().strip(), 'stat')
  end = time.monotonic() + 10
  while child.exists() and child.read_text().split()[2] != 'Z' and time.monotonic() < end:
    time.sleep(0.02)
  assert not child.exists() or child.read_text().split()[2] == 'Z'


def test_a_layer_of_few_bits_bears_the_name_of_its_weight():
  """Whichever way its rounded values came: of a run's list, which has them open, or of a network's."""
  network = trained(jl.fake_quant())
  values = {'params': network.params, 'model_state': network.model_state}

  def forward(values, x):
    return network.model.apply(values['params'], values['model_state'], x, train=False, key=None)[0]

  opened, known = lower_open(forward, values, X[:2])
  held = trees.by_path(values)
  of_run = folded(opened, {name: np.asarray(held[path]) for name, path in known.items()})
  for graph, names in ((of_run, ['params/a', 'params/c']), (network_graph(network, X[:2]), ['0/a', '0/c'])):
    assert [one.name.strip('_') for one in costs(quantized(graph)).layers] == names


def test_complex_numbers_are_no_steps_of_a_grid():
  graph = lower(lambda p, x: jnp.abs(x @ p * 1j + 2j), np.full((3, 2), 0.5, np.float32), np.ones((2, 3), np.float32))
  with pytest.raises(ValueError, match='nothing in this list is quantized'):
    quantized(graph)
