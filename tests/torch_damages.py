"""PyTorch's files of weights, damaged or hostile, in both forms: pickles that run code or never end, and tensors that
are none. `weight_damages` draws them by number."""

import struct

import weight_files as files

HUGE = (1 << 40, (1 << 47) - 1, 1 << 62, (1 << 63) - 1)
NAMES = ('', 'a\nb', 'a\0b', '\u202eevil', 'x' * 2000, '\x1b[31m', '\x7f')


class Case:
  """One file: `name` says what was done, `data` is the file, `sure` whether every reader can tell."""

  def __init__(self, name, data, sure=True, suffix='.bin'):
    self.name, self.data, self.sure, self.suffix = name, data, sure, suffix


def _either(rng, entries, held):
  write = rng.choice((files.torch_zip, files.torch_legacy))
  return write(entries, held)


def runs_code(rng, canary):
  write = f"open({canary!r}, 'w').write('x')"
  calls = [
    ('os', 'system', f'echo x > {canary}'),
    ('posix', 'system', f'echo x > {canary}'),
    ('builtins', 'exec', write),
  ]
  calls += [
    ('builtins', 'eval', write),
    ('subprocess', 'getoutput', f'echo x > {canary}'),
    ('builtins', 'open', canary),
  ]
  calls += [('torch.serialization', 'load', canary), ('importlib', 'import_module', 'antigravity')]
  calls += [
    ('numpy.testing._private.utils', 'runstring', write),
    ('pickle', 'loads', write),
    ('pathlib', 'Path', canary),
  ]
  calls += [
    ('torch._utils', '_rebuild_tensor_v2.__globals__', write),
    ('torch', 'load', canary),
    ('__builtin__', 'eval', write),
  ]
  module, name, given = rng.choice(calls)
  text = files.text(given)
  call = rng.choice(
    (
      files.named(module, name) + b'(' + text + b'tR',
      files.text(module) + files.text(name) + b'\x93(' + text + b'tR',
      b'(' + text + f'i{module}\n{name}\n'.encode(),
      b'(' + files.named(module, name) + text + b'o',
      files.named(module, name) + b'(' + text + b't}\x92',
      files.named(module, name) + b'(' + text + b't\x81',
      files.named('collections', 'OrderedDict')
      + b')R'
      + files.named(module, name)
      + b'b'
      + files.named(module, name)
      + b')R',
      b'\x82\x01' + text,
    )
  )
  one = files.tensor('0', 'FloatStorage', 2, 0, (2,), (1,))
  shape = rng.choice(('value', 'before', 'bare', 'key'))
  if shape == 'bare':
    return Case('a bare pickle with code', b'\x80\x02' + call + b'.', suffix='.pkl')
  if shape == 'key':
    body = b'\x80\x02}(' + call + files.number(1) + b'u.'
  elif shape == 'before':
    body = b'\x80\x02' + call + b'0' + files.table({'w': one})[2:]
  else:
    body = files.table({'w': one, 'x': call})
  return Case(f'torch with code ({module}.{name})', _either(rng, body, {'0': b'\0' * 8}))


def _deep(value, depth, rng):
  return rng.choice((b']' * depth + value + b'a' * depth, value + b'\x85' * depth))


def bad_pickle(rng, canary):
  one = files.tensor('0', 'FloatStorage', 2, 0, (2,), (1,))
  laughs = b']q\x00' + b''.join(
    b']' + b'h' + bytes([n]) * 1 + b'a' + b'h' + bytes([n]) + b'aq' + bytes([n + 1]) for n in range(40)
  )
  bodies = {
    'a cycle': b'\x80\x02}q\x00(' + files.text('a') + b'h\x00' + files.text('w') + one + b'u.',
    'deep': b'\x80\x02}('
    + files.text('w')
    + one
    + files.text('d')
    + _deep(one, rng.choice((200, 50_000)), rng)
    + b'u.',
    'laughs': b'\x80\x02}(' + files.text('w') + one + files.text('d') + laughs + b'u.',
    'a memo out of reach': b'\x80\x02}r\xff\xff\xff\xff' + b'j\xfe\xff\xff\xff.',
    'a huge text': b'\x80\x02X\xff\xff\xff\x7f' + b'a' * 9 + b'.',
    'huge bytes': b'\x80\x04\x8e' + struct.pack('<Q', rng.choice(HUGE)) + b'a.',
    'a huge number': b'\x80\x02\x8b\xff\xff\xff\x7f.',
    'a long number': b'\x80\x02L' + b'9' * rng.choice((30, 400, 5000)) + b'L\n.',
    'nothing to take': b'\x80\x02'
    + rng.choice((b'a', b's', b'u', b't', b'R', b'Q', b'b', b'\x85', b'0', b'h\x00'))
    + b'.',
    'no end': files.table({'w': one})[:-1],
    'a name twice': b'\x80\x02}(' + (files.text('w') + one) * 2 + b'u.',
    'an odd table': b'\x80\x02}(' + files.text('w') + b'u.',
    'a list for a key': b'\x80\x02}(]' + one + b'u.',
    'an unknown instruction': b'\x80\x02' + bytes([rng.choice((0xFE, 0x00, 0x21, 0x97, 0x98, 0x83, 0x84))]) + b'.',
    'a new protocol': b'\x80\x09N.',
    'no tensor': b'\x80\x02}(' + files.text('a') + files.number(1) + b'u.',
    'a bad name': files.table({rng.choice(NAMES): one}),
    'text of noise': b'\x80\x02X\x04\x00\x00\x00\xff\xfe\xfd\xfc.',
    'two values': b'\x80\x02' + one + one + b'.',
    'a mark': b'\x80\x02(.',
  }
  name = rng.choice(sorted(bodies))
  return Case(f'torch, {name}', _either(rng, bodies[name], {'0': b'\0' * 8}))


def bad_tensor(rng, canary):
  kind, size, offset, shape, stride, key = 'FloatStorage', 6, 0, (2, 3), (3, 1), '0'
  wrong = rng.randrange(12)
  big = rng.choice(HUGE)
  if wrong == 0:
    stride = rng.choice(((-3, 1), (3, -1), (-1, -1)))
  elif wrong == 1:
    offset = rng.choice((1, 6, -1, big, -big))
  elif wrong == 2:
    shape, stride = (big, big), rng.choice(((0, 0), (1, 1)))
  elif wrong == 3:
    stride = rng.choice(((3,), (3, 1, 1), (), (big, 1)))
  elif wrong == 4:
    shape, stride = (1,) * 70, (1,) * 70
  elif wrong == 5:
    key = rng.choice(('1', '../0', '/etc/passwd', ''))
  elif wrong == 6:
    size = rng.choice((7, 5, 0, big, -1))
  elif wrong == 7:
    kind = rng.choice(('DoubleStorage', 'HalfStorage', 'QInt8Storage', 'load', 'FakeStorage'))
  elif wrong == 8:
    shape, stride = (1 << 20, 1 << 12), (0, 0)  # 16 GiB of one number
  elif wrong == 9:
    shape = (-2, 3)
  elif wrong == 10:
    shape = (3, 3)
  else:
    entries = {f'w{n}': files.tensor('0', 'FloatStorage', 6, 0, (1 << 16,), (0,)) for n in range(500)}
    return Case('torch, many large views of one number', _either(rng, entries, {'0': b'\0' * 24}))
  entries = {'w': files.tensor(key, kind, size, offset, shape, stride)}
  return Case(f'torch, a tensor that is none ({wrong})', _either(rng, entries, {'0': b'\0' * 24}))
