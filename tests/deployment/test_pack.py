"""Laws of the packed file: it gives back every bit, is small, is the same from C and from NumPy, needs no JAX, and of
what a stranger hands over it believes nothing."""

import base64
import json
import lzma
import os
import pathlib
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest

import random_graphs
from jaxlite import tasks
from jaxlite.deployment.metadata import about_of, packed_about
from jaxlite.deployment.operations import Batch, Graph, Value, reference
from jaxlite.deployment.packed import arrays as packed_arrays
from jaxlite.deployment.packed import entropy
from jaxlite.deployment.packed import file as pack
from jaxlite.deployment.packed import operations as packed_graph
from jaxlite.deployment.packed import words as packed_words
from jaxlite.deployment.packed.labels import labels_of
from jaxlite.deployment.packed.scales import scaled
from jaxlite.deployment.packed.values import Models, Place

KINDS = sorted(reference.RULES)


def same_array(one, other):
  assert one.dtype == other.dtype
  assert one.shape == other.shape
  assert one.tobytes() == other.tobytes()


def same_graph(one, other):
  """Equal but for the names that the file drops."""
  names = dict(zip(one.inputs, other.inputs, strict=True))
  for first, second in zip(one.operations, other.operations, strict=True):
    assert (first.kind, len(first.inputs)) == (second.kind, len(second.inputs))
    assert repr(dict(first.attributes)) == repr(dict(second.attributes))
    for mine, theirs in zip(first.inputs + first.outputs, second.inputs + second.outputs, strict=True):
      assert names.setdefault(mine, theirs) == theirs
  assert (one.inputs, one.outputs) == (other.inputs, other.outputs)
  unread = [name for name in one.constants if name not in names]
  names |= dict(zip(unread, [name for name in other.constants if name not in names.values()], strict=True))
  assert len(set(names.values())) == len(names)
  for mine, theirs in names.items():
    assert one.values[mine] == other.values[theirs]
  for mine, array in one.constants.items():
    same_array(array, other.constants[names[mine]])


def check_round_trips(count, seed):
  rng = np.random.default_rng(seed)
  for index in range(count):
    graph = random_graphs.graph(rng, KINDS)
    about = {'class_names': ['a', 'b'], 'more': [random_graphs.attribute(rng), {'x': b'\0\1'}]}
    data = pack.pack(graph, about, names=bool(index % 2))
    again, told = pack.unpack(data)
    assert repr(told) == repr(about)
    same_graph(graph, again)
    if index % 2:
      assert again.operations == graph.operations or 'nan' in repr(graph.operations)
      assert {*again.constants} == {*graph.constants}


def test_every_bit_of_a_random_graph_comes_back():
  check_round_trips(50, seed=0)


@pytest.mark.slow
def test_every_bit_of_a_thousand_random_graphs_comes_back():
  check_round_trips(1_000, seed=1)


def arrays_alone(arrays, source=None, shapes=()):
  """Writes arrays and returns their parts; with parts, reads them."""
  words, plain = packed_words.Writer(), bytearray()
  out = packed_arrays.Output(words, entropy.encoder(0), plain, Models())
  for one in arrays:
    packed_arrays.write(out, one, Place())
  parts = bytes(words.data), entropy.finish(out.stream), bytes(plain)
  told = packed_words.Reader(parts[0])
  all_told = [packed_arrays.read_told(told, one.dtype, one.shape) for one in arrays]
  back = packed_arrays.Input(entropy.decoder(parts[1]), packed_words.Reader(parts[2]), Models())
  for one, how in zip(arrays, all_told, strict=True):
    same_array(one, packed_arrays.read(back, how, Place()))
  return sum(map(len, parts))


def test_each_kind_of_array_is_recognized_and_small():
  rng = np.random.default_rng(0)
  real = rng.normal(size=(80, 60)).astype(np.float32)
  zero = rng.random((80, 60)) < 0.9
  whole = np.where(zero, 0, np.rint(real * 3)).astype(np.int8)
  scales = rng.random(60).astype(np.float32)
  many = real.size
  bits = zero.size * -(0.1 * np.log2(0.1) + 0.9 * np.log2(0.9)) / 8  # where the zeros are
  limits = {
    'nothing but one value': (np.full((1000, 1000), 1.5, np.float32), 6),
    'few whole numbers': (whole, bits + 0.1 * many * 3 / 8 + 90),
    'whole numbers times scales': (whole * scales, bits + 0.1 * many * 3 / 8 + 90 + 4 * 60),
    'a codebook': (np.float32([-0.7, 0, 0.1, 0.33])[rng.integers(0, 4, (80, 60))], 1.15 * many / 4 + 30),
    'pruned floats': (np.where(zero, 0, real), bits + 0.1 * many * 4),
    'whole numbers as floats': (whole.astype(np.float32), bits + 0.1 * many * 3 / 8 + 90),
    'floats': (real, 3.75 * many),
    'few and far between': (np.int32([-900, 0, 14, 100_000])[rng.integers(0, 4, (80, 60))], 1.15 * many / 4 + 30),
    'counted': (np.arange(10_000, dtype=np.int32), 4000),
  }
  for name, (one, limit) in limits.items():
    assert arrays_alone([one]) < limit, name


def test_scales_are_found_to_the_last_bit_or_not_at_all():
  rng = np.random.default_rng(0)
  for most in (1, 7, 127):
    whole = rng.integers(-most, most + 1, (200, 30)).astype(np.float32)
    whole[0] = most
    scales = np.exp(rng.normal(size=30) * 5).astype(np.float32)
    found = scaled(whole * scales)
    assert found is not None
    np.testing.assert_array_equal((found.numbers * found.scales.astype(np.float64)).astype(np.float32), whole * scales)
    assert np.abs(found.numbers).max() <= most
    assert scaled(whole * scales + np.float32(1e-3) * rng.normal(size=whole.shape).astype(np.float32)) is None
  negative = np.float32([[-0.0, 0.0], [0.25, -0.5]])
  assert scaled(negative).shifted
  arrays_alone([np.tile(negative, (20, 20))])
  assert scaled(np.float32([[np.nan, 1], [1, 2]])) is None


def test_c_and_numpy_give_the_same_bytes(monkeypatch):
  if entropy._native() is None:
    pytest.skip('no C compiler')
  rng = np.random.default_rng(3)
  big = np.where(rng.random((90, 50)) < 0.8, 0, np.rint(rng.normal(size=(90, 50)) * 20)).astype(np.int32)
  big[0, :2] = 2**31 - 1, -(2**31)
  arrays = [random_graphs.array(rng, 100) for _ in range(6)]
  arrays += [big, rng.integers(-3, 4, (30, 40)).astype(np.int8), rng.normal(size=(9, 50)).astype(np.float32)]
  values = {f'c{i}': Value(one.shape, one.dtype) for i, one in enumerate(arrays)}
  graph = Graph((), ('c0',), (), values, dict(zip(values, arrays, strict=True)))
  native = pack.pack(graph)
  monkeypatch.setattr(entropy, '_native', lambda: None)
  assert pack.pack(graph) == native
  same_graph(graph, pack.unpack(native).graph)


def test_counts_that_are_halved_are_halved_alike(monkeypatch):
  """One context that is met thousands of times at once, and one that never ends."""
  if entropy._native() is None:
    pytest.skip('no C compiler')
  values = np.random.default_rng(0).integers(0, 2, 6_000)
  nothing, before = np.zeros((2, 6_000), np.int64), np.full((2, 6_000), -1)
  found = []
  for native in (entropy._native(), None):
    monkeypatch.setattr(entropy, '_native', lambda native=native: native)
    c = entropy.encoder(4_000)
    entropy.symbols(c, values.copy(), entropy.symbols_model(), 64, entropy.NUMBERS, nothing, nothing, before)
    found.append(entropy.finish(c))
  assert found[0] == found[1]


def order_0(array):
  _, counts = np.unique(array, return_counts=True)
  return -(counts * np.log2(counts / counts.sum())).sum() / 8


def test_weights_with_alive_rows_take_less_than_their_entropy_lzma_and_zlib():
  rng = np.random.default_rng(0)
  first, second = random_graphs.sparse(rng, 400, 120), random_graphs.sparse(rng, 120, 60)
  size = pack.packed_bytes(random_graphs.dense_graph(first, second))
  raw = first.tobytes() + second.tobytes()
  assert size < 0.85 * (order_0(first) + order_0(second))
  assert size < 0.8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
  assert size < 0.7 * len(zlib.compress(raw, 9))


def test_signs_that_agree_with_those_around_them_take_fewer_bits():
  rng = np.random.default_rng(0)
  field = rng.normal(size=(20, 20, 60))  # pixels of a picture, and units
  for axis in (0, 1):
    field = field + np.roll(field, 1, axis) + np.roll(field, -1, axis)
  smooth = np.where(np.abs(field) > np.quantile(np.abs(field), 0.8), np.sign(field), 0).reshape(400, 60).astype(np.int8)
  mixed = smooth * rng.choice(np.int8([-1, 1]), smooth.shape)
  sizes = [pack.packed_bytes(random_graphs.dense_graph(one)) for one in (smooth, mixed)]
  assert sizes[0] < sizes[1] - 0.4 * np.count_nonzero(smooth) / 8


def test_what_a_layer_keeps_tells_of_the_next_one():
  rng = np.random.default_rng(0)
  dead = rng.random(200) < 0.7
  first = np.where(dead, 0, random_graphs.sparse(rng, 100, 200, 0.5)).astype(np.int8)
  second = np.where(dead[:, None], 0, rng.integers(-3, 4, (200, 40))).astype(np.int8)[rng.permutation(200).argsort()]
  second[dead] = 0
  linked = pack.packed_bytes(random_graphs.dense_graph(first, second))
  alone = random_graphs.dense_graph(first, second)
  operations = (alone.operations[0], alone.operations[1], alone.operations[2]._replace(inputs=('other', 'w1')))
  apart = alone._replace(
    operations=(*operations, alone.operations[3]),
    inputs=('input', 'other'),
    values={**alone.values, 'other': Value((Batch(), 200), np.dtype('float32'))},
  )
  assert linked < pack.packed_bytes(apart)


def test_operations_take_some_hundred_bytes():
  jax = pytest.importorskip('jax')
  from jaxlite import adapt, models
  from jaxlite.deployment.operations.lowering import lower
  from jaxlite.deployment.operations.patterns import recognized

  model = adapt(models.ResNet8())
  inputs = np.zeros((2, 16, 16, 3), np.float32)
  known = model.init(jax.random.key(0), inputs)
  graph = recognized(lower(lambda known, x: model.apply(*known, x, train=False, key=None)[0], known, inputs))
  words = packed_words.Writer()
  packed_graph.write_graph(words, graph, False)
  assert len(graph.operations) > 20
  assert len(pack._packed_words(bytes(words.data))) < 300
  again = pack.unpack(pack.pack(graph)).graph
  x = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
  np.testing.assert_array_equal(reference.run(again, x), reference.run(graph, x))


def test_every_operation_has_a_word():
  assert {*reference.RULES} <= {*packed_words.VOCABULARY}
  assert len(set(packed_words.VOCABULARY)) == len(packed_words.VOCABULARY)


def test_the_format_is_the_one_that_was_written_before(monkeypatch):
  """What a version wrote once is read for ever; bytes that change without a new version break files that exist."""
  w = np.float32([[0, 0.5, 0, -1.5], [0, 0, 1.0, 0], [-0.5, 0, 0, 0], [0, 0, 0, 2.5], [0.5, 0, 0, 0]] * 3)
  graph = random_graphs.dense_graph(w, (np.arange(8).reshape(4, 2) - 3).astype(np.int8))
  about = {'class_names': ['shirt', 'boot']}
  for native in (entropy._native(), None):
    monkeypatch.setattr(entropy, '_native', lambda native=native: native)
    for version, old in enumerate(map(base64.b64decode, GOLDEN), 1):
      again = pack.unpack(old)
      assert old[3] == version
      same_graph(graph, again.graph)
      assert again.about == about
    assert pack.pack(graph, about) == old
  assert [zlib.crc32(table.tobytes()) for table in entropy.tables()] == TABLES


GOLDEN = (
  'SkxQAUwqDZf/RrbClLGhLXQTYW/UdO3LTUbEiyuCrev2/Jye6MH0negB60nYXTmJJZzG7dq3FKSjUGnYngl+AAAA/f7/AAECAwTEtMc8',
  'SkxQAkwqDJf/RrbClLGhLXQTYW/UdO3LTUbEiyuCrev2/Jye6MH0negB60nYXTmJJZzF2c6soMWcmVIeSH4AAAD9/v8AAQIDBIcMGYc=',
)
TABLES = [1882841652, 414336265]


def test_another_process_reads_and_predicts_without_jax(tmp_path):
  rng = np.random.default_rng(0)
  graph = random_graphs.dense_graph(
    random_graphs.sparse(rng, 60, 30).astype(np.float32), rng.normal(size=(30, 5)).astype(np.float32)
  )
  x = rng.normal(size=(4, 60)).astype(np.float32)
  size = pack.write_pack(graph, tmp_path / 'net.jlp', {'class_names': list('abcde')})
  assert size == (tmp_path / 'net.jlp').stat().st_size == pack.packed_bytes(graph, {'class_names': list('abcde')})
  program = """
    import json, sys
    from jaxlite.deployment.packed.file import pack, read_pack
    found = read_pack(sys.argv[1])
    x = json.loads(sys.argv[2])
    assert pack(*found) == open(sys.argv[1], 'rb').read()
    print(json.dumps([found.predict(x).tolist(), found.predict_labels(x).tolist()]))
    assert not {'jax', 'optax', 'ml_dtypes'} & {*sys.modules}
  """
  for without in ('0', '1'):
    done = subprocess.run(
      [sys.executable, '-c', textwrap.dedent(program), str(tmp_path / 'net.jlp'), json.dumps(x.tolist())],
      capture_output=True,
      text=True,
      check=False,
      env={**os.environ, 'JAXLITE_NO_COMPILER': without},
      cwd=pathlib.Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    wanted = reference.run(graph, x)
    assert json.loads(done.stdout) == [wanted.tolist(), [list('abcde')[at] for at in wanted.argmax(-1)]]


# --- from a stranger's hands ---------------------------------------------------------------------------------------


ANSWERED = {
  'classes': (tasks.classification(class_names=['a', 'b', 'c']), [0, 1, 2], (9, 3)),
  'numbered classes': (tasks.classification(3), [0, 1, 2], (9, 3)),
  'two classes by a logit': (tasks.binary(class_names=['ham', 'spam']), [0, 1], (9,)),
  'the other of two': (tasks.binary('ham', ['ham', 'spam']), [0, 1], (9, 1)),
  'two classes by two': (tasks.binary(), [0, 1], (9, 2)),
  'several labels': (tasks.multi_label(['x', 'y', 'z'], threshold=0.7), [[0, 1, 1]], (9, 3)),
  'a number': (tasks.regression(), [1.0, 2.5], (9, 1)),
  'pixels': (tasks.segmentation(class_names=['sky', 'sea']), [[0, 1]], (9, 4, 2)),
  'words': (tasks.sequence_labels(class_names=['other', 'name']), [[0, 1]], (9, 4, 2)),
}


@pytest.mark.parametrize('name', ANSWERED)
def test_a_file_calls_an_answer_what_its_task_calls_it(name):
  task, labels, shape = ANSWERED[name]
  facts = task.facts(task.check(np.asarray(labels), 'train'), {})
  facts |= {'threshold': 0.3} if task.name == 'binary' else {}  # as a run decides it
  outputs = np.random.default_rng(0).normal(size=shape, scale=4).astype(np.float32)
  about = packed_about(about_of('run', 1, task.name, facts, encoder=None))
  found, wanted = labels_of(outputs, about), task.answer(outputs, facts)['labels']
  assert [str(one) for one in found] == [str(one) for one in wanted]
  assert len({str(one) for one in found}) > 1


def test_outputs_whose_meaning_nobody_says_have_no_labels():
  two = np.ones((4, 2), np.float32)
  for outputs, about in (
    (two[:, 0], {}),
    (two, {'task': 'mine'}),
    (two, {'class_names': ['a', 'b', 'c']}),
    ((two,), {}),
  ):
    with pytest.raises(ValueError, match='use predict'):
      labels_of(outputs, about)
