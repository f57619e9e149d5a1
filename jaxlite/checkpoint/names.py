"""The name under which Orbax keeps each leaf: the keys of the tree, escaped so that no two leaves share one.

Orbax joins the keys of a tree with '.', so that {'x.y': a} and {'x': {'y': b}} are one array to it; the store below
joins with '/'. Both characters are escaped in a key, and what is left is the tree that any Orbax reader shows.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

from jaxlite import trees

_LONGEST = 1000  # characters; the store refuses names beyond 64 KiB


def orbax_names(tree: Any) -> dict[str, str]:
  """Returns the Orbax name of every leaf by path.

  Args:
    tree: any pytree.

  Returns:
    {path: name}; a name is keys joined by '.', where '%', '.', '/' and what cannot be printed are percent-encoded,
    an empty key is '%', and a name too long ends in the hash of its path.

  Raises:
    ValueError: two leaves share a path, or a leaf is named as a container is.

  >>> orbax_names({'params': {'conv.1': {'w': 1.0}, 'mlp/~/out': [2.0]}})
  {'params/conv.1/w': 'params.conv%2E1.w', 'params/mlp/~/out/0': 'params.mlp%2F~%2Fout.0'}
  """
  found = {}
  for path, key_path in zip(trees.paths(tree), trees.keyed(tree)[0], strict=True):
    keys = [trees.path_string([key]) for key in key_path]
    name = '.'.join(map(_escaped, keys or ['']))
    if len(name) > _LONGEST:
      name = f'{name[:200]}%{hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:32]}'
    found[path] = name
  containers: set[str] = set()
  for name in found.values():
    while (name := name.rpartition('.')[0]) and name not in containers:
      containers.add(name)
  for path, name in found.items():
    if name in containers:
      raise ValueError(f'every leaf needs a name of its own; {path!r} names an array and a container: rename one')
  return found


@functools.lru_cache(4096)  # each save asks for the same keys
def _escaped(key: str) -> str:
  if not key:
    return '%'
  return ''.join(
    letter
    if letter.isprintable() and letter not in '%./'
    else ''.join(f'%{byte:02X}' for byte in letter.encode('utf-8', 'surrogatepass'))
    for letter in key
  )


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the nested dicts that names stand for.

  >>> nest({'a.b': 1, 'a.c': 2, 'd': 3})
  {'a': {'b': 1, 'c': 2}, 'd': 3}
  """
  tree: dict[str, Any] = {}
  for name, value in named.items():
    *outer, last = name.split('.')
    node = tree
    for key in outer:
      node = node.setdefault(key, {})
    node[last] = value
  return tree
