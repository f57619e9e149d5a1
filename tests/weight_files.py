"""Files of weights as other programs write them, byte by byte, so that tests need none of those programs."""

import io
import json
import struct
import zipfile

import ml_dtypes
import numpy as np

STORAGES = {
  **{'float32': 'FloatStorage', 'float64': 'DoubleStorage', 'float16': 'HalfStorage', 'bfloat16': 'BFloat16Storage'},
  **{'int64': 'LongStorage', 'int32': 'IntStorage', 'int16': 'ShortStorage', 'int8': 'CharStorage'},
  **{'uint8': 'ByteStorage', 'bool': 'BoolStorage'},
}
KINDS = {'float32': 'F32', 'float16': 'F16', 'int64': 'I64', 'bool': 'BOOL'}


def sample(seed=0):
  """Arrays of several dtypes and layouts."""
  rng = np.random.default_rng(seed)
  return {
    'conv.weight': rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
    'fc.weight': np.asfortranarray(rng.normal(size=(5, 4)).astype(np.float32)),
    'fc.bias': rng.normal(size=5).astype(np.float16),
    'norm.count': np.array(7, np.int64),
    'mask': rng.random((2, 3)) > 0.5,
  }


# Pickle, instruction by instruction.


def text(value):
  data = value.encode('utf-8', 'surrogatepass')
  return b'X' + struct.pack('<I', len(data)) + data


def number(value):
  data = value.to_bytes((value.bit_length() + 8) // 8, 'little', signed=True)
  return b'\x8a' + bytes([len(data)]) + data


def several(*parts):
  return b'(' + b''.join(parts) + b't'


def numbers(values):
  return several(*map(number, values))


def named(module, name):
  return b'c' + f'{module}\n{name}\n'.encode()


def storage(key, kind, size):
  return several(text('storage'), named('torch', kind), text(key), text('cpu'), number(size)) + b'Q'


def tensor(key, kind, size, offset, shape, stride, flags=()):
  given = (storage(key, kind, size), number(offset), numbers(shape), numbers(stride), b'\x89')
  about = [b'}(' + b''.join(text(flag) + b'\x88' for flag in flags) + b'u'] if flags else []
  hooks = named('collections', 'OrderedDict') + b')R'
  return named('torch._utils', '_rebuild_tensor_v2') + several(*given, hooks, *about) + b'R'


def table(entries):
  """A pickled OrderedDict of pickled values by name."""
  pairs = b''.join(text(name) + value for name, value in entries.items())
  return b'\x80\x02' + named('collections', 'OrderedDict') + b')R(' + pairs + b'u.'


def described(arrays):
  """(pickled tensors by name, bytes of storages by key)."""
  entries, held = {}, {}
  for place, (name, array) in enumerate(arrays.items()):
    flat = array.reshape(-1, order='A')
    held[str(place)] = flat.tobytes()
    stride = [one // array.itemsize for one in array.strides]
    kind = STORAGES[str(array.dtype)]
    entries[name] = tensor(str(place), kind, array.size, 0, array.shape, stride)
  return entries, held


def torch_zip(entries, held, packed=False, extra=()):
  out = io.BytesIO()
  kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
  with zipfile.ZipFile(out, 'w', kind) as archive:
    archive.writestr('archive/data.pkl', entries if isinstance(entries, bytes) else table(entries))
    archive.writestr('archive/byteorder', b'little')
    for key, data in held.items():
      archive.writestr(f'archive/data/{key}', data)
    for name, data in extra:
      archive.writestr(name, data)
  return out.getvalue()


def torch_legacy(entries, held, sizes=None):
  magic = b'\x80\x02' + number(0x1950A86A20F9469CFC6C) + b'.'
  system = b'\x80\x02}(' + text('protocol_version') + number(1001) + text('little_endian') + b'\x88u.'
  keys = b'\x80\x02](' + b''.join(map(text, held)) + b'e.'
  parts = [magic, b'\x80\x02M\xe9\x03.', system, entries if isinstance(entries, bytes) else table(entries), keys]
  for key, data in held.items():
    parts += [struct.pack('<q', (sizes or {}).get(key, len(data) // 4)), data]
  return b''.join(parts)


def legacy_of(arrays):
  entries, held = described(arrays)
  sizes = {str(place): array.size for place, array in enumerate(arrays.values())}
  return torch_legacy(entries, held, sizes)


def safetensors(header, body):
  head = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(head)) + head + body


def safe_parts(arrays):
  header, body = {}, b''
  for name, array in arrays.items():
    data = np.ascontiguousarray(array).tobytes()
    ends = [len(body), len(body) + len(data)]
    header[name] = {'dtype': KINDS[str(array.dtype)], 'shape': list(array.shape), 'data_offsets': ends}
    body += data
  return header, body


# GGUF.


def gguf_text(value):
  data = value if isinstance(value, bytes) else value.encode()
  return struct.pack('<Q', len(data)) + data


def gguf_entry(name, sizes, kind, start):
  return (
    gguf_text(name)
    + struct.pack('<I', len(sizes))
    + struct.pack(f'<{len(sizes)}Q', *sizes)
    + struct.pack('<IQ', kind, start)
  )


def gguf(pairs=(), entries=(), body=b'', version=3, counts=None):
  many = counts or (len(entries), len(pairs))
  head = b'GGUF' + struct.pack('<IQQ', version, *many) + b''.join(pairs) + b''.join(entries)
  return head + b'\0' * (-len(head) % 32) + body


def gguf_pair(key, kind, data):
  return gguf_text(key) + struct.pack('<I', kind) + data


def quantized(kind, rng, blocks=4):
  """(bytes, float32 values) of blocks, from the format's own words: a scale, an offset, and whole numbers."""
  scale = rng.normal(size=blocks).astype(np.float16)
  least = rng.normal(size=blocks).astype(np.float16)
  d, m = scale.astype(np.float32)[:, None], least.astype(np.float32)[:, None]
  if kind == 8:
    q = rng.integers(-128, 128, (blocks, 32)).astype(np.int8)
    return b''.join(s.tobytes() + row.tobytes() for s, row in zip(scale, q, strict=True)), d * q
  bits = 5 if kind in (6, 7) else 4
  q = rng.integers(0, 1 << bits, (blocks, 32))
  parts = []
  for s, low, row in zip(scale, least, q, strict=True):
    part = s.tobytes() + (low.tobytes() if kind in (3, 7) else b'')
    if bits == 5:
      part += sum(int(one >> 4) << place for place, one in enumerate(row)).to_bytes(4, 'little')
    part += bytes(int((row[place] & 15) | (row[place + 16] & 15) << 4) for place in range(16))
    parts.append(part)
  values = d * q + m if kind in (3, 7) else d * (q - (1 << (bits - 1)))
  return b''.join(parts), values.astype(np.float32)


def gguf_sample(seed=0):
  """(a small model, its arrays by name)."""
  rng = np.random.default_rng(seed)
  entries, body, arrays = [], b'', {}
  for name, kind in (('q4_0', 2), ('q4_1', 3), ('q5_0', 6), ('q5_1', 7), ('q8_0', 8)):
    data, values = quantized(kind, rng)
    entries.append(gguf_entry(name, (64, 2), kind, len(body)))
    body += data + b'\0' * (-len(data) % 32)
    arrays[name] = values.reshape(2, 64)
  for name, kind, dtype in (('f32', 0, np.float32), ('f16', 1, np.float16), ('bf16', 30, ml_dtypes.bfloat16)):
    array = rng.normal(size=(3, 4)).astype(dtype)
    entries.append(gguf_entry(name, (4, 3), kind, len(body)))
    body += array.tobytes() + b'\0' * (-array.nbytes % 32)
    arrays[name] = array
  pairs = [
    gguf_pair('general.name', 8, gguf_text('small')),
    gguf_pair('tokenizer.ggml.tokens', 9, struct.pack('<IQ', 8, 3) + b''.join(map(gguf_text, ('a', 'é', 'ab')))),
    gguf_pair('tokenizer.ggml.scores', 9, struct.pack('<IQ', 6, 2) + struct.pack('<2f', 0.5, -1.0)),
    gguf_pair('llama.block_count', 4, struct.pack('<I', 2)),
  ]
  return gguf(pairs, entries, body), arrays
