"""Laws of the list of operations in a run's folder: exports need no model code, and damage is never believed."""

import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.deployment.operations import listing, reference
from jaxlite.deployment.operations.listing import FILE, graph_of
from jaxlite.host.sealed import RUN, read_sealed, write_sealed
from loops import X, run

pytestmark = pytest.mark.unoptimized

PICTURES = np.random.default_rng(1).integers(0, 256, (60, 6, 6, 1)).astype(np.uint8)
LABELS = np.arange(60) % 3


def few_bits(config, total):
  return jl.chain(jl.fake_quant(), optax.adam(0.05))


class Convolved(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))
    return nn.Dense(3)(x.reshape(x.shape[0], -1))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('listing') / 'run'
  run(folder, few_bits, model=Convolved(), data=(PICTURES, LABELS), steps=4)
  return folder


@pytest.fixture
def copied(finished, tmp_path):
  shutil.copytree(finished, tmp_path / 'run')
  return tmp_path / 'run'


def same(graph, folder, inputs, rounding=1e-5):
  want = np.asarray(jl.load(folder).predict(inputs))
  np.testing.assert_allclose(reference.run(graph, inputs), want, rtol=rounding, atol=rounding)


def test_it_predicts_from_raw_inputs_as_the_run_does_without_the_model(finished):
  graph = graph_of(finished)
  assert str(graph.values['input']) == 'uint8[B,6,6,1]'
  assert [one.kind for one in graph.operations][:3] == ['convert_element_type', 'sub', 'div']  # standardized inside
  same(graph, finished, PICTURES)
  assert len(graph_of(finished, 'latest').operations) == len(graph.operations)


@pytest.mark.slow
def test_an_average_and_masks_are_merged(tmp_path):
  def recipe(config, total):
    return jl.chain(jl.average(0.5), optax.adam(0.05), jl.prune(0.5, begin=1, end=3, every=1))

  run(tmp_path, recipe, steps=6)
  graph = graph_of(tmp_path)
  same(graph, tmp_path, X)
  (weight,) = [array for array in graph.constants.values() if array.shape == (6, 3)]
  assert np.count_nonzero(weight) == 9


DAMAGES = {
  'flipped': lambda data: data[:400] + bytes([data[400] ^ 1]) + data[401:],
  'cut': lambda data: data[: len(data) // 2],
  'empty': lambda data: b'',
  'deleted': lambda data: None,
  'of another shape': lambda data: b'[1, 2]',
  'too deep': lambda data: b'[' * 200_000,
}


@pytest.mark.parametrize('how', DAMAGES)
def test_what_is_damaged_is_not_believed_and_made_again_where_the_code_is(how, finished, copied):
  data = DAMAGES[how]((copied / FILE).read_bytes())
  (copied / FILE).unlink()
  if data is not None:
    (copied / FILE).write_bytes(data)
  with pytest.raises(ValueError, match=r'list of operations \(.*\): give model=') as caught:
    graph_of(copied)
  assert '\n' not in str(caught.value)
  if how != 'flipped':
    return
  same(graph_of(copied, model=Convolved(), recipe=few_bits(None, 4)), copied, PICTURES, 1e-4)
  said = []
  run(copied, few_bits, model=Convolved(), data=(PICTURES, LABELS), steps=4, say=said.append)
  assert any(FILE in line and 'written again' in line for line in said), said
  assert (copied / FILE).read_bytes() == (finished / FILE).read_bytes()


def test_a_list_of_another_run_is_refused(copied):
  write_sealed(copied / FILE, {**read_sealed(copied / FILE), RUN: 'another'}, indent=None)
  with pytest.raises(ValueError, match='it is of another run'):
    graph_of(copied)


def test_why_there_is_none_is_kept_and_told(tmp_path):
  params = {'w': np.zeros((6, 3), np.float32)}

  def apply(p, x):
    return x @ p['w'] + jnp.fft.rfft(x)[:, :3].real

  run(tmp_path, model=(apply, params), steps=2)
  assert 'why' in read_sealed(tmp_path / FILE)
  with pytest.raises(ValueError, match=r'real at .* is none.*: the formats that need no list are'):
    graph_of(tmp_path)
  assert jl.load(tmp_path).predict(X).shape == (90, 3)


@pytest.mark.slow
def test_a_reference_network_needs_no_list(tmp_path):
  run(tmp_path, model=jl.models.MLP((4,), classes=3), steps=2)
  (tmp_path / FILE).unlink()
  same(graph_of(tmp_path), tmp_path, X)


def hostile(told):
  """Lists that no run writes, each sealed with a right hash."""
  size, first = told['list'], told['list']['operations'][0]
  constant = next(iter(size['constants']))
  yield 'an operation that is none', {**size, 'operations': [['exec', *first[1:]], *size['operations'][1:]]}
  yield 'a cycle', {**size, 'operations': [[first[0], [first[2][0]], first[2], first[3]], *size['operations'][1:]]}
  yield 'twice', {**size, 'operations': [first, *size['operations']]}
  yield 'huge', {**size, 'values': {**size['values'], first[2][0]: ['float32', [{'B': 1}, 2**40]]}}
  yield 'negative', {**size, 'values': {**size['values'], first[2][0]: ['float32', [-1]]}}
  yield 'a strange dtype', {**size, 'values': {**size['values'], first[2][0]: ['O', [1]]}}
  yield 'a version', {**size, 'version': 99}
  yield 'no result', {**size, 'outputs': ['nothing']}
  yield 'a long constant', {**size, 'constants': {**size['constants'], constant: ['float32', [10**12], 'AAAA']}}
  yield 'no base64', {**size, 'constants': {**size['constants'], constant: ['float32', [1], '<>']}}
  yield (
    'a deep attribute',
    {
      **size,
      'operations': [[*first[:3], {'axis': json.loads('[' * 50 + ']' * 50)}], *size['operations'][1:]],
    },
  )
  yield 'no table', []
  yield 'nothing', None


def test_what_a_stranger_wrote_is_refused_in_a_line(copied):
  told = read_sealed(copied / FILE)
  count = 0
  for _, made in hostile(told):
    write_sealed(copied / FILE, {**told, 'list': made}, indent=None)
    with pytest.raises(ValueError, match='its operations are none that a run writes') as caught:
      graph_of(copied)
    assert '\n' not in str(caught.value)
    count += 1
  assert count == 13


def test_attributes_that_do_not_fit_are_refused_when_values_are_put_in(copied):
  told = read_sealed(copied / FILE)
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(15):
    made = json.loads(json.dumps(told))
    operations = [one for one in made['list']['operations'] if one[3]]
    one = operations[rng.integers(len(operations))]
    key = list(one[3])[rng.integers(len(one[3]))]
    one[3][key] = [[], [[7]], 10**9, -1, 'x', {'B': 3}][rng.integers(6)]
    write_sealed(copied / FILE, made, indent=None)
    try:
      reference.run(graph_of(copied), PICTURES[:2])
    except (ValueError, TypeError, LookupError, AssertionError):
      refused += 1
  assert refused > 3


def test_a_large_array_that_a_model_captures_is_told(tmp_path, monkeypatch):
  monkeypatch.setattr(listing, '_MOST_CAPTURED', 100)
  table = jnp.arange(60.0).reshape(6, 10)
  model = jl.from_function(lambda p, x: x @ table @ p, np.zeros((10, 2), np.float32))
  values = jl.Network(model, *model.init(jax.random.key(0), X))
  why = listing.save_list(tmp_path, model, jl.chain(optax.sgd(0.1)), values, X, run='r')
  assert 'captures 240 bytes' in why
  assert read_sealed(tmp_path / FILE) == {RUN: 'r', 'why': why}


def test_a_folder_without_a_run_is_told(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no checkpoints'):
    graph_of(tmp_path)
