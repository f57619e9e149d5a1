"""Damaged, truncated and hostile files of weights, each by its number: the same number is the same file for ever."""

import io
import json
import pickle
import random
import struct
import zipfile

import numpy as np

import weight_files as files
from torch_damages import HUGE, NAMES, Case, bad_pickle, bad_tensor, runs_code


def make(number, canary):
  """The file of a number. `canary` is the path that a file which is run would write."""
  rng = random.Random(number)
  maker = MAKERS[number % len(MAKERS)]
  return maker(rng, str(canary))


def _valid(rng):
  """A sound file of some format, and how many of its first bytes are structure."""
  kind = rng.choice(('torch', 'legacy', 'safetensors', 'gguf', 'npz', 'msgpack', 'h5', 'deflated'))
  arrays = files.sample(rng.randrange(100))
  if kind in ('torch', 'deflated'):
    data = files.torch_zip(*files.described(arrays), packed=kind == 'deflated')
  elif kind == 'legacy':
    data = files.legacy_of(arrays)
  elif kind == 'safetensors':
    data = files.safetensors(*files.safe_parts(arrays))
  elif kind == 'gguf':
    data = files.gguf_sample(rng.randrange(100))[0]
  elif kind == 'npz':
    out = io.BytesIO()
    rng.choice((np.savez, np.savez_compressed))(out, **arrays)
    data = out.getvalue()
  elif kind == 'msgpack':
    data = _msgpack({name: array for name, array in arrays.items() if array.dtype != bool})
  else:
    data = _h5(lambda file: [file.create_dataset(name, data=array) for name, array in arrays.items()])
  return kind, data


def cut_off(rng, canary):
  kind, data = _valid(rng)
  return Case(f'{kind} cut off', data[: rng.randrange(1, len(data))])


def flipped(rng, canary):
  kind, data = _valid(rng)
  made = bytearray(data)
  for _ in range(rng.choice((1, 1, 2, 8, 64))):
    made[rng.randrange(min(len(made), rng.choice((64, 400, len(made)))))] ^= 1 << rng.randrange(8)
  return Case(f'{kind} with flipped bits', bytes(made), sure=False)


def noisy(rng, canary):
  kind, data = _valid(rng)
  start = rng.randrange(8, len(data))
  return Case(f'{kind} and then noise', data[:start] + rng.randbytes(rng.randrange(1, 500)), sure=False)


def longer(rng, canary):
  kind = rng.choice(('legacy', 'safetensors', 'msgpack'))
  while True:
    found, data = _valid(rng)
    if found == kind:
      return Case(f'{kind} with more behind it', data + rng.randbytes(rng.randrange(1, 100)))


def bad_safetensors(rng, canary):
  good = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}
  body, big = b'\0' * 8, rng.choice(HUGE)
  shapes = ([3], [-2], [2.0], [True, 2], [big], [1] * 99, 'ab', None, [[2]], [0, big, big])
  ends = ([0, 9], [1, 9], [8, 0], [-8, 0], [0], [0, big], ['0', 8], None, [0.0, 8])
  tables = [
    {'w': {**good, 'dtype': rng.choice(('F4', 'Q8', '', 5, None, 'float32'))}},
    {
      'w': {
        **good,
        'shape': rng.choice(shapes),
      }
    },
    {
      'w': {
        **good,
        'data_offsets': rng.choice(ends),
      }
    },
    {'w': good, 'x': good},
    {'w': good, 'x': {**good, 'data_offsets': [4, 12]}},
    {'w': {**good, 'data_offsets': [4, 12]}},
    {rng.choice(NAMES): good},
    {'w': rng.choice((None, [], 'x', {}, {**good, 'more': 1}, {'dtype': 'F32'}))},
    {'__metadata__': rng.choice(({'a': 1}, [], 'x', 5)), 'w': good},
    {'w': {'dtype': 'F32', 'shape': [1 << 30, 1 << 30], 'data_offsets': [0, 1 << 62]}},
  ]
  made = files.safetensors(rng.choice(tables), body)
  raw = [
    b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    b'{"w":' + b'[' * rng.choice((100, 100_000)) + b']' * 100 + b'}',
    b'{"w":' + b'[{},' * 200_000 + b'{}' + b']' * 200_000 + b'}',
    b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    b'{"w":{"dtype":"F32","shape":[' + b'9' * 5000 + b'],"data_offsets":[0,8]}}',
    b'{"w":NaN}',
    b'{' + b' ' * 50,
    b'{"w":\xff\xfe}',
    b'{}' + b'x' * 20,
  ]
  choice = rng.randrange(4)
  if choice == 0:
    made = files.safetensors(rng.choice(raw), body)
  elif choice == 1:
    size = rng.choice((0, 1, 9, 1 << 30, (1 << 39), 200_000_000))
    made = struct.pack('<Q', size) + b'{"w":{}}' + body
  return Case('safetensors with a table that is none', made)


def bad_gguf(rng, canary):
  big, text = rng.choice(HUGE), files.gguf_text
  entry = files.gguf_entry('w', (32,), 8, 0)
  body = b'\0' * 64
  listed = lambda kind, count: struct.pack('<IQ', kind, count)  # noqa: E731
  deep = listed(9, 1) * rng.choice((5, 5000)) + listed(4, 0)
  made = [
    files.gguf(entries=[entry], body=body, counts=(big, 0)),
    files.gguf(entries=[entry], body=body, counts=(1, big)),
    files.gguf(entries=[entry], body=body, version=rng.choice((0, 1, 4, 0x03000000, 1 << 31))),
    files.gguf(entries=[entry, entry], body=body),
    files.gguf(entries=[entry, files.gguf_entry('x', (32,), 8, 32)], body=b'\0' * 128),
    files.gguf(entries=[files.gguf_entry('w', (32,), 8, rng.choice((32, 64, 1, big // 32 * 32)))], body=body[:34]),
    files.gguf(entries=[files.gguf_entry('w', (rng.choice((33, 1, big)),), 8, 0)], body=body),
    files.gguf(entries=[files.gguf_entry('w', (32, big, big), 0, 0)], body=body),
    files.gguf(entries=[files.gguf_entry('w', (1,) * 9, 0, 0)], body=body),
    files.gguf(entries=[files.gguf_entry('w', (32,), rng.choice((12, 14, 4, 5, 99, 1 << 31)), 0)], body=body),
    files.gguf(entries=[files.gguf_entry(rng.choice(NAMES[:2] + NAMES[2:]), (32,), 8, 0)], body=body),
    files.gguf([files.gguf_pair('k', 8, struct.pack('<Q', big))], [entry], body),
    files.gguf([files.gguf_pair('k', 9, listed(rng.choice((4, 8, 9, 10)), big))], [entry], body),
    files.gguf([files.gguf_pair('k', 9, deep)], [entry], body),
    files.gguf([files.gguf_pair('k', rng.choice((13, 99, 1 << 31)), b'\0' * 8)], [entry], body),
    files.gguf([files.gguf_pair('k', 4, b'\0' * 4)] * 2, [entry], body),
    files.gguf([files.gguf_pair('k', 8, text(b'\xff\xfe'))], [entry], body),
    files.gguf(
      [files.gguf_pair('general.alignment', 4, struct.pack('<I', rng.choice((0, 3, 1 << 30))))], [entry], body
    ),
    files.gguf([files.gguf_pair('general.alignment', 8, text('32'))], [entry], body),
    b'GGUF' + struct.pack('<IQQ', 3, 1, 0) + struct.pack('<Q', 1) + b'w' + struct.pack('<I', 1 << 31),
  ]
  return Case('GGUF with a head that is none', rng.choice(made))


def _zip(members, packed=True):
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
    for name, data in members:
      archive.writestr(name, data)
  return out.getvalue()


def bad_zip(rng, canary):
  one = files.table({'w': files.tensor('0', 'FloatStorage', 6, 0, (2, 3), (3, 1))})
  members = [('archive/data.pkl', one), ('archive/data/0', bytes(24))]
  wrong = rng.randrange(9)
  if wrong == 0:  # a bomb: 64 MiB of zeros in 64 KiB, and told to be weights
    count = 16 << 20
    one = files.table({'w': files.tensor('0', 'FloatStorage', count, 0, (count,), (1,))})
    return Case('a zip bomb', _zip([('archive/data.pkl', one), ('archive/data/0', bytes(count * 4))]))
  if wrong == 1:
    data = bytearray(_zip(members))
    at = data.rindex(b'PK\x01\x02')  # the last member's entry in the directory
    struct.pack_into('<I', data, at + 24, rng.choice((23, 25, 1 << 20, 0xFFFFFFF0)))
    return Case('a zip that says another size', bytes(data))
  if wrong == 2:
    data = bytearray(_zip(members, packed=False))
    at = data.rindex(b'PK\x01\x02')
    struct.pack_into('<I', data, at + 42, 0)  # its bytes are the first member's, too
    return Case('a zip whose members share bytes', bytes(data))
  if wrong == 3:
    data = bytearray(_zip(members))
    for mark, place in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
      at = data.find(mark)
      data[at + place] |= 1
    return Case('an encrypted zip', bytes(data))
  if wrong == 4:
    data = bytearray(_zip(members))
    at = data.index(b'PK\x01\x02')
    struct.pack_into('<H', data, at + 10, rng.choice((1, 12, 14, 99)))
    return Case('a zip of another method', bytes(data))
  if wrong == 5:
    data = _zip(members)
    end = data.rindex(b'PK\x05\x06')
    start = rng.randrange(0, end)
    return Case('a zip without a directory', data[:start] + data[start + 1 :])
  if wrong == 6:
    return Case('a zip of two tables', _zip([*members, ('other/data.pkl', one)]))
  if wrong == 7:
    return Case('a zip of nothing', _zip([(rng.choice(('a.txt', 'data.pkl', '../x.npy')), b'hello')]))
  return Case('a zip without its storage', _zip(members[:1]))


def bad_npz(rng, canary):
  class Evil:
    def __reduce__(self):
      return (open, (canary, 'w'))

  big = rng.choice(HUGE)
  head = lambda text, version=1: (  # noqa: E731
    b'\x93NUMPY' + bytes([version, 0]) + struct.pack('<H', len(text)) + text.encode('latin1')
  )
  plain = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
  out = io.BytesIO()
  np.lib.format.write_array(out, np.array([Evil()], dtype=object), allow_pickle=True)
  pickled = out.getvalue()
  texts = [
    f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({big}, {big}), }}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '<U4', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '|V2', 'fortran_order': False, 'shape': (4,), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }",
    f"{{'descr': __import__('os').system('echo x > {canary}'), 'fortran_order': False, 'shape': (2,), }}",
    "{'descr': '<f4', 'shape': (2,), }",
    '(' * 500,
    plain[:20],
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }",
  ]
  members = [
    ('w.npy', rng.choice((pickled, pickle.dumps(1), b'', head(plain, 9) + bytes(8), head(' ' * 20_000) + bytes(8)))),
    ('w.npy', head(rng.choice(texts)) + bytes(8)),
    ('w.npy', head(plain) + bytes(rng.choice((7, 9, 0)))),
    ('\x1b.npy', head(plain) + bytes(8)),
  ]
  return Case('npz with an array that is none', _zip([rng.choice(members)], packed=rng.random() < 0.5))


def _packed(value):
  """MessagePack of what Flax writes."""
  if isinstance(value, dict):
    return b'\xdf' + struct.pack('>I', len(value)) + b''.join(_packed(k) + _packed(v) for k, v in value.items())
  if isinstance(value, tuple | list):
    return b'\xdd' + struct.pack('>I', len(value)) + b''.join(map(_packed, value))
  if isinstance(value, str):
    return b'\xdb' + struct.pack('>I', len(value.encode())) + value.encode()
  if isinstance(value, bytes):
    return b'\xc6' + struct.pack('>I', len(value)) + value
  return b'\xd3' + struct.pack('>q', value)


def _extended(shape, dtype, data):
  inner = _packed((tuple(shape), dtype, data))
  return b'\xc9' + struct.pack('>Ib', len(inner), 1) + inner


def _msgpack(arrays):
  pairs = b''.join(_packed(name) + _extended(a.shape, str(a.dtype), a.tobytes()) for name, a in arrays.items())
  return b'\xdf' + struct.pack('>I', len(arrays)) + pairs


def bad_msgpack(rng, canary):
  good, big = _extended((2,), 'float32', bytes(8)), rng.choice(HUGE)
  one = lambda value, name='w': b'\x81' + _packed(name) + value  # noqa: E731
  made = [
    one(_extended((3,), 'float32', bytes(8))),
    one(_extended((big, big), 'float32', bytes(8))),
    one(_extended((-2,), 'float32', bytes(8))),
    one(_extended((2,), rng.choice(('object', 'O', '<U4', 'nonsense')), bytes(8))),
    one(good, rng.choice(NAMES[:1] + NAMES[1:4])),
    b'\x82' + (_packed('w') + good) * 2,
    one(b'\x81\xa1a' * rng.choice((100, 100_000)) + b'\xc0'),
    one(b'\x91' * rng.choice((100, 100_000)) + b'\xc0'),
    b'\xdf\xff\xff\xff\xff' + _packed('w') + good,
    one(b'\xdd\xff\xff\xff\xff' + good),
    one(b'\xc6\xff\xff\xff\xff' + good),
    one(b'\xc1'),
    one(_packed(5)),
    b'\x81\xc0' + good,
    one(b'\xc9\xff\xff\xff\x7f\x01' + good),
  ]
  return Case('msgpack with a value that is none', rng.choice(made))


def _h5(write):
  import h5py

  out = io.BytesIO()
  with h5py.File(out, 'w') as file:
    write(file)
  return out.getvalue()


def bad_h5(rng, canary):
  import h5py

  def loop(file):
    file.create_group('a')['b'] = file

  def virtual(file):
    layout = h5py.VirtualLayout((4,), 'f4')
    layout[:] = h5py.VirtualSource('/etc/passwd', 'x', (4,))
    file.create_virtual_dataset('w', layout)

  writes = {
    'a link to another file': lambda file: file.__setitem__('w', h5py.ExternalLink('/etc/passwd', '/x')),
    'a soft link': lambda file: file.__setitem__('w', h5py.SoftLink('/nowhere')),
    'values in another file': lambda file: file.create_dataset('w', (16,), 'u1', external=[('/etc/passwd', 0, 16)]),
    'values of other files': virtual,
    'a loop': loop,
    'values that it never had': lambda file: file.create_dataset('w', (1 << 20, 1 << 20), 'f4', chunks=(1024, 1024)),
    'texts': lambda file: file.create_dataset('w', data=['a', 'b']),
    'records': lambda file: file.create_dataset('w', data=np.zeros(2, [('a', 'f4')])),
    'nothing': lambda file: file.create_group('a'),
    'a bomb': lambda file: file.create_dataset(
      'w', data=np.zeros(24 << 20, 'f4'), compression='gzip', chunks=(1 << 22,)
    ),
    'another filter': lambda file: file.create_dataset('w', data=np.zeros(64, 'f4'), compression='lzf'),
    'no values': lambda file: file.create_dataset('w', data=h5py.Empty('f4')),
  }
  name = rng.choice(sorted(writes))
  return Case(f'HDF5 with {name}', _h5(writes[name]), suffix='.h5')


def bad_index(rng, canary):
  """An archive with shards and an index that lies."""
  header, body = files.safe_parts({'w': np.ones(2, np.float32)})
  shard = files.safetensors(header, body)
  maps = [
    {'weight_map': {'w': '../model.safetensors'}},
    {'weight_map': {'w': '/etc/passwd'}},
    {'weight_map': {'w': 'absent.safetensors'}},
    {'weight_map': {'x': 's.safetensors'}},
    {'weight_map': {}},
    {'weight_map': []},
    {'weight_map': {'w': 5}},
    {},
    [],
    {'weight_map': {'w': 's.safetensors', rng.choice(NAMES): 's.safetensors'}},
  ]
  texts = [b'{"weight_map": {"w": "s.safetensors", "w": "s.safetensors"}}', b'{', b'[' * 100_000, b'\xff']
  index = rng.choice(texts) if rng.random() < 0.3 else json.dumps(rng.choice(maps)).encode()
  return Case('an index of shards that lies', _zip([('m.safetensors.index.json', index), ('s.safetensors', shard)]))


MAKERS = (
  *(cut_off, flipped, runs_code, bad_pickle, bad_tensor, bad_safetensors, bad_gguf, bad_zip, bad_npz, bad_msgpack),
  *(bad_h5, bad_index, cut_off, noisy, runs_code, longer),
)
