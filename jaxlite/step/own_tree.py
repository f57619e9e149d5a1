"""Params in the tree of a framework's own optimizer (an NNX State, an Equinox module), and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxlite import trees
from jaxlite.contract import Params


def named(tree: Any) -> tuple[Params, Callable[[Params], Any]]:
  """Turns params in any tree into those of a Model, by their paths.

  Args:
    tree: params as a Model has them; another pytree of the same paths; or the pair of such a tree and what hooks
      learn, {'jl.x': ...}, which may itself be wrapped (an NNX State of the pair).

  Returns:
    (params, back): nested dicts, and what turns a tree like them into one like `tree`.

  >>> params, back = named([{'w': 1.0}, {'w': 2.0}])
  >>> params, back({'0': {'w': 3.0}, '1': {'w': 4.0}})
  ({'0': {'w': 1.0}, '1': {'w': 2.0}}, [{'w': 3.0}, {'w': 4.0}])
  """
  if _is_plain(tree):
    return tree, lambda params: params
  places, leaves, treedef = _places(tree)
  params: Params = {}
  for place, leaf in zip(places, leaves, strict=True):
    node = params
    for name in place[:-1]:
      node = node.setdefault(name, {})
    node[place[-1]] = leaf

  def back(params: Params) -> Any:
    return treedef.unflatten([_at(params, place) for place in places])

  return params, back


def own_names(tree: Any) -> dict[str, str]:
  """Returns {path in a Model's params: path in this tree}.

  >>> own_names(({'w': 1.0}, {'jl.lsq': {'w': 2.0}}))
  {'w': '0/w', 'jl.lsq/w': '1/jl.lsq/w'}
  """
  return {'/'.join(place): path for place, path in zip(_places(tree)[0], trees.paths(tree), strict=True)}


def _places(tree: Any) -> tuple[list[tuple[str, ...]], list[Any], Any]:
  """For each leaf the keys that lead to it in a Model's params."""
  key_paths, leaves, treedef = trees.keyed(tree)
  keys = [_keys(key_path) for key_path in key_paths]
  beside = [names[0] == '1' and _is_extra(names[1:]) for names in keys]
  pair = any(beside) and all(own or names[0] == '0' for own, names in zip(beside, keys, strict=True))
  return [_place(names[pair:]) for names in keys], leaves, treedef


def _keys(key_path: Sequence[Any]) -> list[str]:
  return [trees.path_string((key,)) for key in key_path] or ['value']


def _place(names: list[str]) -> tuple[str, ...]:
  # What a hook keeps has sites for keys ('layers/0/kernel'); a framework's names may be paths (Haiku's).
  return tuple(names) if _is_extra(names) else tuple('/'.join(names).split('/'))


def _is_extra(names: Sequence[str]) -> bool:
  return bool(names) and trees.is_extra(names[0])


def _at(params: Mapping[str, Any], place: Sequence[str]) -> Any:
  node: Any = params
  for name in place:
    node = node[name]
  return node


def _is_plain(tree: Any) -> bool:
  """Tells whether a tree is nested dicts already, as adapters make them."""
  if type(tree) is not dict or not all(type(name) is str for name in tree):
    return False
  own = {name: node for name, node in tree.items() if not trees.is_extra(name)}
  return all('/' not in name and (jax.tree_util.all_leaves([node]) or _is_plain(node)) for name, node in own.items())
