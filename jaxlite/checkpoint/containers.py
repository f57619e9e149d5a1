"""The containers of a pytree as JSON, so that parts of a state load without a template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxlite import trees

Structure = Any  # JSON: {'dict': [[key, child]...]}, {'list': [...]}, {'tuple': [...]}, a leaf's path, or None


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


def pruned(shape: Structure, keep: Callable[[str], bool]) -> Structure:
  """Returns a `structure` without the dict entries of which no leaf is kept.

  >>> pruned(structure({'a': {'x': 1.0, 'y': 2.0}, 'b': 3.0}), lambda path: path == 'a/x')
  {'dict': [['a', {'dict': [['x', 'a/x']]}]]}
  """
  if not isinstance(shape, dict):
    return shape
  [(kind, children)] = shape.items()
  if kind != 'dict':
    return {kind: [pruned(child, keep) for child in children]}
  kept = [[name, child] for name, child in children if not leaf_paths(child) or any(map(keep, leaf_paths(child)))]
  return {'dict': [[name, pruned(child, keep)] for name, child in kept]}


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
