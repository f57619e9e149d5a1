"""A pytree of arrays as a few plain byte arrays and a table, and back.

A checkpoint stores bytes, not the tree: whatever JAX can hold (typed keys, bfloat16, int4, 0-d and empty
arrays, keys with '/' in them) comes back bit for bit, leaves are found by path whatever container held them,
and a state of hundreds of small leaves costs no more than its bytes. `pack` is the only part of a save that
the training loop waits for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.checkpoint import hashing

_ALIGN = 64  # bytes: every dtype can then be viewed in place

Structure = Any  # JSON: {'dict': [[key, child]...]}, {'list': [...]}, {'tuple': [...]}, a leaf's path, or None


class Leaf(NamedTuple):
  """Where a leaf lies in the packed bytes and what it must be.

  Attributes:
    path: its path in the tree.
    dtype: its dtype's name, `key<...>` for a typed key.
    shape: its shape.
    group: the byte array that holds it: one for each top-level name, so that a part can be read alone.
    offset: its first byte there.
    nbytes: its length in bytes.
    impl: how a typed key is built ('threefry2x32'); empty for any other leaf.
  """

  path: str
  dtype: str
  shape: tuple[int, ...]
  group: str
  offset: int
  nbytes: int
  impl: str

  def __str__(self) -> str:
    return spell(self.dtype, self.shape)


class Packed(NamedTuple):
  """A packed pytree.

  Attributes:
    groups: {name: uint8[n]}.
    leaves: one entry a leaf, in the order they were given.
  """

  groups: dict[str, np.ndarray]
  leaves: list[Leaf]


def spell(dtype: Any, shape: Iterable[int]) -> str:
  """Writes an array's type the way people read it.

  >>> spell('float32', (3, 4))
  'float32[3,4]'
  """
  return f'{dtype}[{",".join(map(str, shape))}]'


def pack(arrays: Mapping[str, Any]) -> Packed:
  """Copies arrays to the host, as bytes; afterwards they may be donated.

  Args:
    arrays: JAX arrays, NumPy arrays and typed keys by path (`by_path` makes it of a pytree).

  Returns:
    The Packed arrays.

  Raises:
    TypeError: a leaf is no array of numbers, was donated, or is not wholly known to this process.

  >>> import jax, numpy as np
  >>> packed = pack(by_path({'params': {'w': np.ones((2, 2), np.float32)}, 'key': jax.random.key(0)}))
  >>> [f'{leaf.path} {leaf}' for leaf in packed.leaves]
  ['key key<fry>[]', 'params/w float32[2,2]']
  """
  for name, array in arrays.items():
    _check(name, array)
  for array in arrays.values():
    if isinstance(array, jax.Array) and not hashing.is_key(array):
      array.copy_to_host_async()  # all transfers start before the first is waited for
  leaves, hosts, sizes = [], [], {}
  for name, array in arrays.items():
    host = hashing.to_host(array)
    group = name.split('/')[0]
    offset = sizes.get(group, 0)
    sizes[group] = offset + _padded(host.nbytes)
    impl = str(jax.random.key_impl(array)) if hashing.is_key(array) else ''
    leaves.append(Leaf(name, hashing.dtype_name(array), tuple(array.shape), group, offset, host.nbytes, impl))
    hosts.append(host)
  groups = {group: np.zeros(size, np.uint8) for group, size in sizes.items()}
  for leaf, host in zip(leaves, hosts, strict=True):
    _slice(groups, leaf)[:] = host.reshape(-1).view(np.uint8)
  return Packed(groups, leaves)


def by_path(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a pytree by path, in JAX's order.

  >>> by_path({'a': (1, 2)})
  {'a/0': 1, 'a/1': 2}
  """
  names, leaves, _ = trees.flatten(tree)
  return dict(zip(names, leaves, strict=True))


def _check(name: str, array: Any) -> None:
  if not isinstance(array, jax.Array | np.ndarray):
    raise TypeError(f'a checkpoint holds arrays; {name!r} is {type(array).__name__}: wrap it in jnp.asarray')
  if isinstance(array, jax.Array) and array.is_deleted():
    raise TypeError(f'a checkpoint needs live arrays; {name!r} was donated: save the state that the step returned')
  if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
    raise TypeError(f'a checkpoint needs whole arrays; {name!r} is spread over processes: replicate it first')
  if not (hashing.is_key(array) or jnp.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
    raise TypeError(f'a checkpoint holds numbers; {name!r} is an array of {array.dtype}: leave it out of the state')


def _padded(nbytes: int) -> int:
  return max(1, -(-nbytes // _ALIGN)) * _ALIGN  # never 0: Orbax refuses an empty array


def _slice(groups: Mapping[str, np.ndarray], leaf: Leaf) -> np.ndarray:
  return groups[leaf.group][leaf.offset : leaf.offset + leaf.nbytes]


def leaf_hashes(groups: Mapping[str, np.ndarray], leaves: Iterable[Leaf]) -> dict[str, str]:
  """Returns the hash of each leaf from the packed bytes, equal to `hashing.hashes` of the tree.

  >>> import numpy as np
  >>> tree = {'w': np.arange(3)}
  >>> leaf_hashes(*pack(tree)) == hashing.hashes(tree)
  True
  """
  return {leaf.path: hashing.leaf_hash(leaf.path, leaf.dtype, leaf.shape, _slice(groups, leaf)) for leaf in leaves}


def values(groups: Mapping[str, np.ndarray], leaf: Leaf) -> np.ndarray:
  """Returns a leaf's values as a NumPy view of the packed bytes; a typed key's as its data.

  >>> import numpy as np
  >>> packed = pack({'w': np.arange(3)})
  >>> values(packed.groups, packed.leaves[0])
  array([0, 1, 2])
  """
  data = _slice(groups, leaf)
  if not leaf.impl:
    return data.view(jnp.dtype(leaf.dtype)).reshape(leaf.shape)
  impl = leaf.impl
  words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=impl))).shape
  return data.view(np.uint32).reshape(*leaf.shape, *words)


def unpack(groups: Mapping[str, np.ndarray], leaves: Iterable[Leaf], template: Any) -> Any:
  """Rebuilds a pytree in the structure, and on the devices, of a template.

  Args:
    groups: the packed bytes.
    leaves: their table; it must fit the template (see `differences`).
    template: a pytree of arrays or `jax.ShapeDtypeStruct`. A leaf goes to its template's sharding where that
      has one, to the default device otherwise, and stays NumPy where the template is.

  Returns:
    A pytree of the template's structure.

  Raises:
    ValueError: a 64-bit leaf while JAX holds 32 bits.

  >>> import jax, numpy as np
  >>> tree = {'w': np.arange(3, dtype=np.int8), 'none': None}
  >>> unpack(*pack(by_path(tree)), jax.eval_shape(lambda: tree))
  {'none': None, 'w': Array([0, 1, 2], dtype=int8)}
  """
  table = {leaf.path: leaf for leaf in leaves}
  names, wanted, treedef = trees.flatten(template)

  def restored(leaf: Leaf, want: Any) -> Any:
    if isinstance(want, np.ndarray):
      return values(groups, leaf).copy()
    # Arrays that nobody placed stay uncommitted, as a fresh init leaves them: a committed one would retrace.
    return to_device(groups, leaf, want.sharding if getattr(want, 'committed', True) else None)

  return treedef.unflatten(restored(table[name], want) for name, want in zip(names, wanted, strict=True))


def to_device(groups: Mapping[str, np.ndarray], leaf: Leaf, sharding: Any = None) -> jax.Array:
  """Returns a leaf as a JAX array with memory of its own, where `sharding` says.

  Args:
    groups: the packed bytes.
    leaf: its entry in the table.
    sharding: a `jax.sharding.Sharding`; None is the default device, uncommitted.

  Returns:
    The array, or typed key.

  Raises:
    ValueError: a 64-bit leaf while JAX holds 32 bits.

  >>> import numpy as np
  >>> packed = pack({'w': np.arange(3, dtype=np.uint8)})
  >>> to_device(packed.groups, packed.leaves[0])
  Array([0, 1, 2], dtype=uint8)
  """
  host = values(groups, leaf)
  if leaf.impl:
    key = jax.random.wrap_key_data(jnp.asarray(host), impl=leaf.impl)
    return key if sharding is None else jax.device_put(key, sharding)
  array = jax.device_put(host, sharding, may_alias=False)
  if array.dtype != host.dtype:
    raise ValueError(f'{leaf.path!r} is {leaf.dtype} and JAX would hold {array.dtype}: set jax_enable_x64')
  return array


def differences(leaves: Iterable[Leaf], template: Any) -> list[str]:
  """Lists by path where a packed tree and a template differ in structure, shape or dtype.

  Args:
    leaves: the table of the packed tree.
    template: a pytree of arrays or `jax.ShapeDtypeStruct`.

  Returns:
    One line a difference; none when the template fits.

  >>> import jax, numpy as np
  >>> differences(pack({'w': np.ones((3, 1), np.float32)}).leaves, {'w': jax.ShapeDtypeStruct((3, 3), 'float32')})
  ['w: checkpoint has float32[3,1], program wants float32[3,3]']
  """
  have = {leaf.path: str(leaf) for leaf in leaves}
  want = {name: _spelled(leaf) for name, leaf in by_path(template).items()}
  lines = []
  for name in [*want, *(name for name in have if name not in want)]:
    if have.get(name) != want.get(name):
      lines.append(f'{name}: checkpoint has {have.get(name, "nothing")}, program wants {want.get(name, "nothing")}')
  return lines


def _spelled(leaf: Any) -> str:
  return spell(hashing.dtype_name(leaf) if hasattr(leaf, 'dtype') else type(leaf).__name__, np.shape(leaf))


def structure(tree: Any) -> Structure:
  """Writes the containers of a pytree as JSON; dicts, lists and tuples exactly, any other node as a dict.

  >>> structure({'a': [1.0, None], 'b': ()})
  {'dict': [['a', {'list': ['a/0', None]}], ['b', {'tuple': []}]]}
  """
  names = iter(trees.paths(tree))

  def describe(node: Any) -> Structure:
    if node is None:
      return None
    keyed, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)
    if len(keyed) == 1 and not keyed[0][0]:
      return next(names)
    if type(node) in (list, tuple):
      return {type(node).__name__: [describe(child) for _, child in keyed]}
    return {'dict': [[_name(path[0]), describe(child)] for path, child in keyed]}

  return describe(tree)


def _name(key: Any) -> str | int:
  name = getattr(key, 'key', getattr(key, 'idx', getattr(key, 'name', key)))
  return name if isinstance(name, int) else str(name)


def leaf_paths(shape: Structure) -> list[str]:
  """Returns the paths of the leaves of a `structure`.

  >>> leaf_paths(structure({'a': [1.0, None], 'b': 2.0}))
  ['a/0', 'b']
  """
  if shape is None or isinstance(shape, str):
    return [] if shape is None else [shape]
  [(kind, children)] = shape.items()
  return [path for child in children for path in leaf_paths(child[1] if kind == 'dict' else child)]


def rebuild(shape: Structure, leaves: Mapping[str, Any]) -> Any:
  """Rebuilds a tree from `structure` and its leaves by path.

  >>> rebuild({'dict': [['a', {'list': ['a/0', None]}]]}, {'a/0': 'x'})
  {'a': ['x', None]}
  """
  if shape is None or isinstance(shape, str):
    return None if shape is None else leaves[shape]
  [(kind, children)] = shape.items()
  if kind == 'dict':
    return {name: rebuild(child, leaves) for name, child in children}
  return (list if kind == 'list' else tuple)(rebuild(child, leaves) for child in children)


def group_sizes(leaves: Iterable[Leaf]) -> dict[str, int]:
  """Returns the length in bytes of every group of a table.

  >>> import numpy as np
  >>> group_sizes(pack({'w': np.ones(3)}).leaves)
  {'w': 64}
  """
  sizes: dict[str, int] = {}
  for leaf in leaves:
    sizes[leaf.group] = max(sizes.get(leaf.group, 0), leaf.offset + _padded(leaf.nbytes))
  return sizes
