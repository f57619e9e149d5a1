"""A leaf between the tree and the disk: its entry in the manifest, its copy at a save, its values at a restore.

Orbax keeps a leaf as the array it is, where it can. It has no array for an empty leaf, a typed key, or a dtype that
few readers know (int4, float6): an empty leaf is its entry alone, a key is stored as its data, small integers as
int8 or uint8 of the same values, other dtypes as their bytes. A leaf split over devices is copied and kept shard
by shard, unless its dtype has no array. `snapshot` is the only part of a save that the training loop waits for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.checkpoint import hashing, regions

_NATIVE = frozenset(
  [
    *(f'{kind}{bits}' for kind in ('int', 'uint') for bits in (8, 16, 32, 64)),
    *('bool', 'float16', 'bfloat16', 'float32', 'float64', 'complex64', 'complex128'),
    *(f'float8_{form}' for form in ('e4m3fn', 'e4m3fnuz', 'e4m3b11fnuz', 'e5m2', 'e5m2fnuz')),
  ]
)


_PLAIN = (bool, int, float, complex, np.generic)


class Leaf(NamedTuple):
  """What a checkpoint says of one leaf.

  Attributes:
    path: its path in the tree.
    name: the name of its Orbax array, see `names.orbax_names`.
    dtype: its dtype's name, `key<...>` for a typed key.
    shape: its shape.
    impl: how a typed key is built ('threefry2x32'); empty for any other leaf.
    stored: the dtype of its Orbax array; empty where the leaf is and there is no array.
  """

  path: str
  name: str
  dtype: str
  shape: tuple[int, ...]
  impl: str
  stored: str

  def __str__(self) -> str:
    return spell(self.dtype, self.shape)

  @property
  def stored_shape(self) -> tuple[int, ...]:
    """The shape of its Orbax array: keys have their words, and bytes their place in a number, as a last axis."""
    if self.impl:
      return *self.shape, *_words(self.impl)
    if self.stored in ('', self.dtype) or _is_small_integer(self.dtype):
      return self.shape
    return *self.shape, jnp.dtype(self.dtype).itemsize


def check_leaf(leaf: Leaf) -> None:
  """Raises TypeError or ValueError where an entry names no array that there could be."""
  words = (leaf.path, leaf.name, leaf.dtype, leaf.impl, leaf.stored)
  if not all(isinstance(word, str) for word in words) or not all(
    type(size) is int and size >= 0 for size in leaf.shape
  ):
    raise TypeError
  if leaf.stored not in ('', *_NATIVE) or (not leaf.stored) != (0 in leaf.shape):
    raise ValueError
  if not leaf.impl:
    jnp.dtype(leaf.dtype)
  _ = leaf.stored_shape  # it asks for the words of a key


@functools.cache
def _words(impl: str) -> tuple[int, ...]:
  return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=impl))).shape


class Snapshot(NamedTuple):
  """A copy of a state, ready to be written.

  Attributes:
    leaves: one entry per leaf, in the order they were given.
    arrays: what Orbax is given, by path: NumPy, and a jax.Array in host memory for a leaf split over devices.
  """

  leaves: list[Leaf]
  arrays: dict[str, np.ndarray | jax.Array]

  def hashes(self) -> dict[str, dict[str, str]]:
    """Returns the hash of every leaf by path and region; equal to `hashing.hashes` where nothing is sharded."""
    return {
      leaf.path: hashes_of(leaf, regions.parts(self.arrays[leaf.path]) if leaf.stored else {regions.WHOLE: b''})
      for leaf in self.leaves
    }


def spell(dtype: Any, shape: Iterable[int]) -> str:
  """Writes an array's type the way people read it.

  >>> spell('float32', (3, 4))
  'float32[3,4]'
  """
  return f'{dtype}[{",".join(map(str, shape))}]'


def by_path(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a pytree by path, in JAX's order.

  >>> by_path({'a': ('x', 'y')})
  {'a/0': 'x', 'a/1': 'y'}
  """
  names, leaves, _ = trees.flatten(tree)
  return dict(zip(names, leaves, strict=True))


def as_array(leaf: Any) -> Any:
  """Returns a plain number (Flax's TrainState begins with a step of one) as an array without axes, else the leaf.

  A whole number gets the dtype that a compiled step makes of it, so that the states before and after one are alike.

  >>> as_array(3).dtype, as_array(0.1).dtype, as_array('x')
  (dtype('int32'), dtype('float64'), 'x')
  """
  if isinstance(leaf, int) and not isinstance(leaf, bool):
    short = jnp.dtype(jax.dtypes.canonicalize_dtype(np.int64))
    return np.asarray(leaf, short if abs(leaf) <= np.iinfo(short).max else np.int64)
  return np.asarray(leaf) if isinstance(leaf, _PLAIN) else leaf


def snapshot(arrays: Mapping[str, Any], names: Mapping[str, str]) -> Snapshot:
  """Copies arrays to the host; afterwards they may be donated.

  Args:
    arrays: JAX arrays, NumPy arrays and typed keys by path (`by_path` makes it of a pytree).
    names: the Orbax name of each, by path.

  Returns:
    The Snapshot.

  Raises:
    TypeError: a leaf is no array of numbers, was donated, or is not wholly known to this process.

  >>> import jax, numpy as np
  >>> tree = {'key': jax.random.key(0), 'w': np.ones((2, 2), np.float32)}
  >>> [f'{leaf.path} {leaf}' for leaf in snapshot(tree, {'key': 'key', 'w': 'w'}).leaves]
  ['key key<fry>[]', 'w float32[2,2]']
  """
  for path, array in arrays.items():
    _check(path, array)
  for array in arrays.values():
    if isinstance(array, jax.Array) and not hashing.is_key(array) and not regions.is_sharded(array):
      array.copy_to_host_async()  # all transfers start before the first is waited for
  leaves, copies = [], {}
  for path, array in arrays.items():
    is_key = hashing.is_key(array)
    dtype = hashing.dtype_name(array)
    impl = str(jax.random.key_impl(array)) if is_key else ''
    stored = '' if not array.size else 'uint32' if is_key else _stored(dtype)
    if stored:
      copies[path] = _copy(jax.random.key_data(array) if is_key else array, stored)
    leaves.append(Leaf(path, names[path], dtype, tuple(array.shape), impl, stored))
  return Snapshot(leaves, copies)


def _check(path: str, array: Any) -> None:
  if not isinstance(array, jax.Array | np.ndarray):
    raise TypeError(f'a checkpoint holds arrays and numbers; {path!r} is {type(array).__name__}: leave it out')
  if isinstance(array, jax.Array) and array.is_deleted():
    raise TypeError(f'a checkpoint needs live arrays; {path!r} was donated: save the state that the step returned')
  if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
    raise TypeError(f'a checkpoint needs whole arrays; {path!r} is spread over processes: replicate it first')
  if isinstance(array, np.ma.MaskedArray):
    raise TypeError(f'a checkpoint holds numbers; {path!r} has a mask, which would be lost: save its data and its mask')
  small = array.dtype.type.__module__ == 'ml_dtypes'  # of which JAX knows some as numbers, later ones more
  number = jnp.issubdtype(array.dtype, np.number) and array.dtype.type is not np.timedelta64  # to NumPy whole numbers
  if not (small or hashing.is_key(array) or number or array.dtype == np.bool_):
    raise TypeError(f'a checkpoint holds numbers; {path!r} is an array of {array.dtype}: leave it out of the state')


def _stored(dtype: str) -> str:
  if dtype in _NATIVE:
    return dtype
  return {'i': 'int8', 'u': 'uint8'}[dtype[0]] if _is_small_integer(dtype) else 'uint8'


def _is_small_integer(dtype: str) -> bool:
  return dtype not in _NATIVE and dtype.startswith(('int', 'uint'))


def _copy(array: np.ndarray | jax.Array, stored: str) -> np.ndarray | jax.Array:
  """A copy of an array on the host, in the dtype that is stored."""
  if regions.is_sharded(array) and hashing.dtype_name(array) == stored:
    kinds = {memory.kind for memory in next(iter(array.sharding.device_set)).addressable_memories()}
    kind = 'pinned_host' if 'pinned_host' in kinds else array.sharding.memory_kind
    return jax.device_put(array, array.sharding.with_memory_kind(kind), may_alias=False)
  shared = isinstance(array, np.ndarray) or any(device.platform == 'cpu' for device in array.devices())
  host = np.asarray(array)  # on CPU it shares the array's buffer, elsewhere it is a copy already
  host = np.array(host, dtype=host.dtype.newbyteorder('='), order='C', copy=True if shared else None)
  if host.dtype.name == stored:
    # The store refuses a byte that is neither 0 nor 1.
    return host if stored != 'bool' else np.asarray(host.view(np.uint8) != 0)
  if _is_small_integer(host.dtype.name):
    return host.astype(stored)
  return host.reshape(*host.shape, 1).view(stored).reshape(*host.shape, -1)


def hashes_of(leaf: Leaf, found: Mapping[str, Any]) -> dict[str, str]:
  """Returns the hash of each region of a leaf.

  Args:
    leaf: its entry.
    found: what is stored of it, by region.

  Returns:
    {region: sha256}.
  """
  digests = {}
  for region, values in found.items():
    data = values if isinstance(values, bytes) else np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    path = f'{leaf.path}[{region}]' if region else leaf.path
    digests[region] = hashing.leaf_hash(path, leaf.dtype, regions.shape(region, leaf.shape), data)
  return digests


def values(leaf: Leaf, found: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns a leaf's values as NumPy, from what is stored of it by region; a typed key's as its data."""
  if not leaf.stored:
    return np.empty(leaf.stored_shape, np.uint32 if leaf.impl else jnp.dtype(leaf.dtype))
  host = regions.join(found, leaf.stored_shape)
  if leaf.impl or leaf.stored == leaf.dtype:
    return host
  if _is_small_integer(leaf.dtype):
    return host.astype(jnp.dtype(leaf.dtype))
  return host.view(jnp.dtype(leaf.dtype)).reshape(leaf.shape)


def restored(leaf: Leaf, found: Mapping[str, np.ndarray], want: Any = None) -> Any:
  """Returns a leaf with memory of its own, where a template's leaf says.

  Args:
    leaf: its entry.
    found: what is stored of it, by region.
    want: an array or `jax.ShapeDtypeStruct`: the leaf goes to its sharding where it has one, to the default device
      otherwise, stays NumPy where it is NumPy and a plain number where it is one. None: the default device.

  Returns:
    The array, or typed key.

  Raises:
    ValueError: a 64-bit leaf while JAX holds 32 bits.

  >>> import numpy as np
  >>> restored(Leaf('w', 'w', 'uint8', (3,), '', 'uint8'), {'': np.arange(3, dtype=np.uint8)})
  Array([0, 1, 2], dtype=uint8)
  """
  if isinstance(want, np.ndarray):
    return values(leaf, found)
  if isinstance(want, _PLAIN):
    return type(want)(values(leaf, found).item())
  # Arrays that nobody placed stay uncommitted, as a fresh init leaves them: a committed one would retrace.
  sharding = want.sharding if want is not None and getattr(want, 'committed', True) else None
  if leaf.impl:
    key = jax.random.wrap_key_data(jnp.asarray(values(leaf, found)), impl=leaf.impl)
    return key if sharding is None else jax.device_put(key, sharding)
  array = None
  if sharding is not None and leaf.stored == leaf.dtype and regions.WHOLE not in found:
    array = regions.place(found, leaf.shape, sharding)
  if array is None:
    array = jax.device_put(values(leaf, found), sharding, may_alias=False)
  if array.dtype != jnp.dtype(leaf.dtype):
    raise ValueError(f'{leaf.path!r} is {leaf.dtype} and JAX would hold {array.dtype}: set jax_enable_x64')
  return _weak(array) if getattr(want, 'weak_type', False) else array


def _weak(array: jax.Array) -> jax.Array:
  """The same values, of a type that gives way to others', as a number that Python brought: else a product with
  bfloat16 would be float32 after a restore."""
  weak = jnp.full(array.shape, array.dtype.type(0).item())
  if weak.dtype != array.dtype:  # 32 bits where JAX holds 64
    return array
  return jax.device_put(weak.at[...].set(array), array.sharding if array.committed else None)


def differences(leaves: Iterable[Leaf], template: Any) -> list[str]:
  """Lists by path where a saved tree and a template differ in structure, shape or dtype.

  Args:
    leaves: the entries of the saved tree.
    template: a pytree of arrays or `jax.ShapeDtypeStruct`.

  Returns:
    One line a difference; none when the template fits.

  >>> import jax
  >>> differences([Leaf('w', 'w', 'float32', (3, 1), '', 'float32')], {'w': jax.ShapeDtypeStruct((3, 3), 'float32')})
  ['w: checkpoint has float32[3,1], program wants float32[3,3]']
  """
  leaves, wanted = list(leaves), by_path(template)
  have = {leaf.path: str(leaf) for leaf in leaves}
  want = {name: _spelled(leaf) for name, leaf in wanted.items()}
  plain = {leaf.path for leaf in leaves if _is_of(wanted.get(leaf.path), leaf)}
  lines = []
  for name in [*want, *(name for name in have if name not in want)]:
    if have.get(name) != want.get(name) and name not in plain:
      lines.append(f'{name}: checkpoint has {have.get(name, "nothing")}, program wants {want.get(name, "nothing")}')
  return lines


def _is_of(want: Any, leaf: Leaf) -> bool:
  """Whether a plain number is wanted and one of its kind is there, of whatever width."""
  if not isinstance(want, _PLAIN) or leaf.shape or leaf.impl:
    return False
  have, kind = jnp.dtype(leaf.dtype).kind, np.asarray(want).dtype.kind
  return have in {'i': 'iu', 'u': 'iu'}.get(kind, kind) or (kind == 'f' and jnp.issubdtype(leaf.dtype, np.floating))


def _spelled(leaf: Any) -> str:
  return spell(hashing.dtype_name(leaf) if hasattr(leaf, 'dtype') else type(leaf).__name__, np.shape(leaf))
