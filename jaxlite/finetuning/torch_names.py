"""The words that a pickle of tensors may use, and what stands for what they describe. Nothing here is called."""

from __future__ import annotations

from typing import Any, NamedTuple


class Global(NamedTuple):
  """A name that a pickle mentions, from the list of those that describe data."""

  module: str
  name: str


class Storage(NamedTuple):
  """Where numbers lie: `(kind, key, entries)` of a persistent id."""

  kind: str
  key: str
  size: int


class Tensor(NamedTuple):
  """A tensor as it is described; nothing of it is checked yet."""

  storage: Storage
  offset: Any
  shape: Any
  stride: Any
  kind: str | None = None  # a dtype of its own, where the storage has none


class Inert:
  """Something that is no tensor and that nobody needs: a namespace of arguments, a NumPy scalar."""


STORAGES = {
  **{'FloatStorage': 'float32', 'DoubleStorage': 'float64', 'HalfStorage': 'float16', 'BFloat16Storage': 'bfloat16'},
  **{'LongStorage': 'int64', 'IntStorage': 'int32', 'ShortStorage': 'int16', 'CharStorage': 'int8'},
  **{'ByteStorage': 'uint8', 'BoolStorage': 'bool', 'UntypedStorage': ''},
  **{'ComplexFloatStorage': 'complex64', 'ComplexDoubleStorage': 'complex128'},
}
DTYPES = (
  *('float16', 'float32', 'float64', 'bfloat16', 'bool', 'int8', 'uint8', 'int16', 'int32', 'int64'),
  *('uint16', 'uint32', 'uint64', 'complex64', 'complex128', 'float8_e4m3fn', 'float8_e5m2'),
  *('float8_e4m3fnuz', 'float8_e5m2fnuz', 'float', 'double', 'half', 'long', 'int', 'short'),
)
ALIASES = {'float': 'float32', 'double': 'float64', 'half': 'float16', 'long': 'int64', 'int': 'int32'}
ALIASES |= {'short': 'int16'}
_REBUILD = (
  *('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_tensor_v3', '_rebuild_parameter'),
  '_rebuild_parameter_with_state',
)
INERT = {
  *(('argparse', 'Namespace'), ('numpy.core.multiarray', 'scalar'), ('numpy._core.multiarray', 'scalar')),
  *(('numpy', 'dtype'), ('torch', 'device'), ('_codecs', 'encode'), ('torch.serialization', '_get_layout')),
}
CONTAINERS = {('collections', 'OrderedDict'), ('collections', 'defaultdict'), ('torch', 'Size')}
CONTAINERS |= {('builtins', 'set'), ('__builtin__', 'set'), ('builtins', 'dict'), ('builtins', 'list')}
CONTAINERS |= {('__builtin__', 'dict'), ('__builtin__', 'list'), ('collections', 'Counter')}


def known(module: str, name: str) -> bool:
  """Tells whether a pickle of weights may mention a name."""
  if (module, name) in INERT | CONTAINERS:
    return True
  if module in ('torch', 'torch.cuda') and name in STORAGES:
    return True
  if module == 'torch.storage' and name in ('UntypedStorage', '_UntypedStorage'):
    return True
  if module == 'torch' and name in DTYPES:
    return True
  return module == 'torch._utils' and name in _REBUILD
