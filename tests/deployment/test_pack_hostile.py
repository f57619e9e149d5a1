"""A packed file from untrusted hands: damaged, cut short, hostile, of nothing: refused in a line and within bounds."""

import pathlib
import subprocess
import sys
import textwrap
import tracemalloc
import zlib

import numpy as np
import pytest

import random_graphs
from jaxlite.deployment.operations import Batch, Graph, Operation, Value, reference
from jaxlite.deployment.packed import file as pack
from jaxlite.deployment.packed import words as packed_words

KINDS = sorted(reference.RULES)


LIMIT = 1 << 22


def sealed(body):
  return body + zlib.crc32(body).to_bytes(4, 'little')


def handed_over(data):
  """Reads what a stranger hands over: an Unreadable in one line, or a graph, and no more memory than was said."""
  tracemalloc.reset_peak()
  before = tracemalloc.get_traced_memory()[0]
  try:
    pack.unpack(data, limit=LIMIT)
    fine, told = True, ''
  except packed_words.Unreadable as error:
    fine, told = False, str(error)
  assert '\n' not in told
  assert len(told) < 400
  assert tracemalloc.get_traced_memory()[1] - before < LIMIT + (64 << 20)
  return fine


def parts(data):
  """The words as they are, the stream and the rest of a file."""
  head = packed_words.Reader(data[4:-4])
  size, told, stream = (head.number() for _ in range(3))
  words = pack._spelled(head.take(told), size)
  return words, head.take(stream), head.take(len(head.data) - head.at)


def check_damaged(count, seed):
  rng = np.random.default_rng(seed)
  files = [pack.pack(random_graphs.graph(rng, KINDS), {'names': ['a', 'b']}, names=bool(i % 2)) for i in range(20)]
  files.append(
    pack.pack(
      random_graphs.dense_graph(
        random_graphs.sparse(rng, 50, 40), random_graphs.sparse(rng, 40, 30).astype(np.float32) * np.float32(0.1)
      )
    )
  )
  tracemalloc.start()
  try:
    for index in range(count):
      data = bytearray(files[rng.integers(len(files))])
      if index % 4 == 0:
        data = data[: rng.integers(len(data))]
      for _ in range(int(rng.integers(1, 4)) if index % 4 else 0):
        at = int(rng.integers(len(data) - 4))
        data[at] ^= 1 << rng.integers(8) if rng.random() < 0.5 else int(rng.integers(1, 256))
      damaged = bytes(data) not in files
      assert not (handed_over(bytes(data)) and damaged)
      if index % 4:
        handed_over(sealed(bytes(data[:-4])))  # whoever damaged it wrote a new checksum
      if index % 4 == 1:  # or knows the format, and changes what it says
        words, *rest = parts(files[rng.integers(len(files))])
        words = bytearray(words)
        for _ in range(int(rng.integers(1, 4))):
          words[rng.integers(len(words))] = (0, 1, 127, 255, int(rng.integers(256)))[rng.integers(5)]
        handed_over(filed(bytes(words), *rest))
  finally:
    tracemalloc.stop()


def test_what_is_damaged_or_cut_short_is_refused_and_bounded():
  check_damaged(300, seed=0)


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_refused_and_bounded():
  check_damaged(10_000, seed=1)


def filed(words, stream=b'', plain=b''):
  """A file of any words, with a right checksum."""
  told, head = pack._packed_words(words), packed_words.Writer()
  for number in (len(words), len(told), len(stream)):
    head.number(number)
  return sealed(b'JLP\1' + head.data + told + stream + plain)


def spelled(*pieces):
  words = packed_words.Writer()
  for piece in pieces:
    words.text(piece) if isinstance(piece, str) else words.number(piece)
  return bytes(words.data)


HOSTILE = {
  'huge in all': spelled(0, 1, 2, 2, 1 << 39, 1 << 39, 0, 0, 0, 2),
  'huge and empty': spelled(0, 1, 2, 3, 1 << 39, 1 << 39, 0, 0, 0, 0, 0),
  'empty and wide': spelled(0, 1, 2, 2, 0, 1 << 39, 0, 0, 0, 0) + b'\x09\0',
  'empty and too wide for NumPy': spelled(0, 1, 2, 3, 0, 1 << 39, 1 << 39, 0, 0, 0, 0) + b'\x09\0',
  'many axes': spelled(0, 1, 2, 60, *[1] * 60),
  'a billion constants': spelled(0, 1 << 30),
  'reads what comes later': spelled(0, 0, 1, 'input', 0, 1, 0, 1, 0, 'relu', 1, 1, 0, 0),
  'reads itself': spelled(0, 0, 1, 'input', 0, 1, 0, 1, 0, 'relu', 1, 1, 0, 5),
  'an unknown operation': spelled(0, 0, 1, 'input', 0, 1, 0, 1, 0, 'system', 1, 1, 0, 1),
  'makes nothing': spelled(0, 0, 1, 'input', 0, 1, 0, 1, 0, 'relu', 1, 0, 0, 1),
  'a dtype that is none': spelled(0, 1, 200),
  'a constant larger than its array': spelled(0, 1, 3, 1, 2, 1, 6),
  'a result of nothing': spelled(0, 0, 0, 0, 1, 6, 'y'),
  'ends early': spelled(0, 0, 1),
  'goes on': spelled(0, 0, 0, 0, 0) + b'\x09\0\0\0',
  'a number without end': b'\xff' * 3000,
  'dicts in dicts': spelled(0, 0, 0, 0, 0) + b'\x09\1\0\1a' * 40,
  'zeros of no rows': spelled(0, 1, 2, 1, 100, 0, 0, 0, 3, 9, 1) + b'\x09\0',
  'no stream': spelled(0, 1, 2, 2, 10, 10, 0, 0, 0, 3, 0) + b'\x09\0',
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_words_are_refused_in_a_line(name):
  tracemalloc.start()
  try:
    fine = handed_over(filed(HOSTILE[name]))
  finally:
    tracemalloc.stop()
  assert not fine or name == 'no stream'


def test_what_is_no_packed_file_says_why(tmp_path):
  data = pack.pack(random_graphs.dense_graph(np.eye(3, dtype=np.float32)))
  for given, why in {
    b'': 'does not begin as one does',
    b'PK\3\4 and so on': 'does not begin as one does',
    data[:9]: 'cut short',
    data[:-1]: 'damaged or cut short',
    sealed(data[:3] + b'\3' + data[4:-4]): 'version 3, and this jaxlite reads versions up to 2',
    sealed(data[:-4] + b'more'): 'goes on where it should end',
  }.items():
    with pytest.raises(ValueError, match=why):
      pack.unpack(given)
  with pytest.raises(ValueError, match=r'more than limit=1000'):
    pack.unpack(pack.pack(random_graphs.dense_graph(np.zeros((90, 90), np.int8))), limit=1000)
  (tmp_path / 'net').write_bytes(data[:20])
  with pytest.raises(ValueError, match=r'net is no packed network that can be read: it is damaged or cut short'):
    pack.unpack(tmp_path / 'net')
  with pytest.raises(FileNotFoundError):
    pack.unpack(tmp_path / 'none')


def test_what_cannot_be_packed_is_refused():
  graph = random_graphs.dense_graph(np.eye(3, dtype=np.float32))
  relu = graph.operations[1]
  for broken, why in (
    (graph._replace(operations=(relu._replace(kind='system'),)), 'system is none'),
    (graph._replace(operations=graph.operations[::-1]), 'reads what was made before'),
    (graph._replace(operations=(*graph.operations, relu)), 'made once'),
    (graph._replace(outputs=('nothing',)), 'one of its values'),
    (graph._replace(constants={'w0': np.array(['a'])}), 'is of numbers'),
    (graph._replace(constants={'w0': np.eye(3)}), 'the dtype that its graph says'),
  ):
    with pytest.raises(ValueError, match=why):
      pack.pack(broken)
  for about, why in (({'x': object()}, 'got a object'), ({'x': {1: 2}}, 'are text')):
    with pytest.raises(ValueError, match=why):
      pack.pack(graph, about)
  deep = []
  for _ in range(50):
    deep = [deep]
  with pytest.raises(ValueError, match='at most 32 deep'):
    pack.pack(graph, {'x': deep})


def test_a_network_that_makes_no_sense_is_refused_when_it_is_run():
  graph = random_graphs.dense_graph(np.eye(3, dtype=np.float32))
  wrong = graph._replace(operations=(graph.operations[0]._replace(kind='concatenate'), graph.operations[1]))
  found = pack.unpack(pack.pack(wrong))
  with pytest.raises(ValueError, match='cannot be computed'):
    found.predict(np.ones((2, 3)))
  with pytest.raises(ValueError, match='got an array of shape'):
    pack.unpack(pack.pack(graph)).predict(np.ones((2, 4)))


def test_bfloat16_is_read_where_nobody_has_imported_it_yet(tmp_path):
  x, y = (Value((Batch(), 3), np.dtype(name)) for name in ('float32', random_graphs.EXOTIC[0]))
  narrow = Operation('convert_element_type', ('x',), ('y',), {'new_dtype': 'bfloat16'})
  strange = narrow._replace(outputs=('z',), attributes={'new_dtype': 'f4,(2'})
  graph = Graph(('x',), ('y', 'z'), (narrow, strange), {'x': x, 'y': y, 'z': x}, {})
  pack.write_pack(graph, tmp_path / 'net')
  program = """
    import sys
    from jaxlite.deployment.packed.file import unpack
    graph, _ = unpack(sys.argv[1])
    print(graph.values['y'], graph.values['z'])
  """
  command = [sys.executable, '-c', textwrap.dedent(program), str(tmp_path / 'net')]
  done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=pathlib.Path(__file__).parents[2])
  assert done.stdout.strip() == 'bfloat16[B,3] float32[B,3]', done.stderr
