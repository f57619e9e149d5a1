"""Parameter paths, and which parameters are weights.

Everything that names a leaf of a pytree lives here: how a path is written, what a weight looks like when only
arrays are seen; how a rule selects stands in `picking.py`. Works on any pytree (Linen dict, NNX State, Equinox module,
list, tuple), so nothing here may import a neural-network framework.
"""

from __future__ import annotations

import collections
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxlite.errors import nearest as nearest
from jaxlite.picking import Rule as Rule
from jaxlite.picking import select as select
from jaxlite.picking import shown

# As frameworks and people write them: `bias_n` and `bias_ih` of a GRU, `ln1`, `ln_f`, `bn2`, `norm_1`, `LayerNorm_0`.
_NOT_A_WEIGHT = re.compile(r'(^|_)(bias|b|scale|gain|gamma|beta|offset|shift)(_?[a-z]{0,2}\d*)?$', re.IGNORECASE)
_SHORT = re.compile(r'(^|_)b\d*$', re.IGNORECASE)  # of the above: also what a matrix is called, beside a
_NORM = re.compile(r'(norm|(^|_)(ln|bn|gn))(_?(\d+|[a-z]|out|in|final|pre|post))?$', re.IGNORECASE)
# Swin's `relative_position_bias_table`, T5's `relative_attention_bias`, `rel_pos_h`: looked up, as the others are.
_POSITION = re.compile(
  r'(^|_)(wpe|pos(ition)?s?(al)?)($|_?emb|_?enc|_?table|\d)|(^|_)rel(ative)?_?(pos|attention_bias|bias)', re.IGNORECASE
)


def path_string(key_path: Sequence[Any]) -> str:
  """Writes a JAX key path as bare names joined by '/'.

  Args:
    key_path: keys as `jax.tree_util.tree_flatten_with_path` gives them.

  Returns:
    The path in the framework's own names. `paths` leaves the `.value` of an NNX Variable out of them.

  >>> import jax
  >>> [(path, _)] = jax.tree_util.tree_flatten_with_path({'a': [0.0]})[0]
  >>> path_string(path)
  'a/0'
  """
  return '/'.join(map(_key_name, key_path))


def keyed(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], list[Any], Any]:
  """Flattens a tree into key paths, leaves and its treedef; the `.value` of an NNX Variable, and nobody else's, is
  left out.

  >>> list(map(path_string, keyed({'a': [0.0], 'b': 1.0})[0]))
  ['a/0', 'b']
  """
  pairs, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
  keys = [key_path for key_path, _ in pairs]
  if any(key_path and getattr(key_path[-1], 'name', None) in ('value', 'raw_value') for key_path in keys):
    boxes = lambda node: is_variable(node) or (is_leaf is not None and is_leaf(node))  # noqa: E731
    found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=boxes)[0]
    variables = {key_path for key_path, node in found if is_variable(node)}
    keys = [key_path[:-1] if key_path[:-1] in variables else key_path for key_path in keys]
  return keys, [leaf for _, leaf in pairs], treedef


def _named(tree: Any) -> tuple[list[str], list[Any], Any]:
  keys, leaves, treedef = keyed(tree)
  return list(map(path_string, keys)), leaves, treedef


def is_variable(node: Any) -> bool:
  """Whether a node is Flax NNX's box around an array, told without an import of Flax.

  >>> is_variable(3)
  False
  """
  return any(one.__name__ == 'Variable' and one.__module__.startswith('flax.nnx') for one in type(node).__mro__)


def _key_name(key: Any) -> str:
  for attribute in ('key', 'idx', 'name'):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


def flatten(tree: Any) -> tuple[list[str], list[Any], Any]:
  """Flattens a pytree into paths, leaves and its treedef.

  Args:
    tree: any pytree.

  Returns:
    (paths, leaves, treedef), in JAX's own leaf order.

  Raises:
    ValueError: two leaves share one path.

  >>> flatten({'b': 2, 'a': (0, 1)})[:2]
  (['a/0', 'a/1', 'b'], [0, 1, 2])
  """
  names, leaves, treedef = _named(tree)
  doubled = [name for name, count in collections.Counter(names).items() if count > 1]
  if doubled:
    raise ValueError(f'every leaf needs a path of its own; {doubled[0]!r} names several: rename one of them')
  return names, leaves, treedef


def paths(tree: Any) -> list[str]:
  """Returns the path of every leaf, in JAX's leaf order.

  >>> paths({'dense': {'kernel': 1.0, 'bias': 0.0}})
  ['dense/bias', 'dense/kernel']
  """
  return flatten(tree)[0]


def by_path(tree: Any) -> dict[str, Any]:
  """Returns every leaf by its path.

  >>> by_path({'dense': {'kernel': 1.0}})
  {'dense/kernel': 1.0}
  """
  names, leaves, _ = flatten(tree)
  return dict(zip(names, leaves, strict=True))


def map_with_path(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
  """Maps `fn(path, leaf, *other_leaves)` over a pytree.

  >>> map_with_path(lambda path, leaf: path, {'a': 1, 'b': [2]})
  {'a': 'a', 'b': ['b/0']}
  """
  names, leaves, treedef = _named(tree)
  others = [treedef.flatten_up_to(one) for one in rest]
  return treedef.unflatten(fn(*each) for each in zip(names, leaves, *others, strict=True))


def looks_like_weight(path: str, leaf: Any) -> bool:
  """Tells whether an array looks like a weight matrix or kernel when nothing but arrays is seen.

  Args:
    path: the leaf's path.
    leaf: an array, float[...].

  Returns:
    True for a floating or complex leaf with at least two axes longer than 1 whose name is no bias, scale, norm or
    position, nor its parents' a norm or a position, and that no hook added (`jl.*`).

  >>> import numpy as np
  >>> looks_like_weight('dense/kernel', np.zeros((3, 4))), looks_like_weight('conv/bias', np.zeros((8, 1, 1)))
  (True, False)
  """
  if is_extra(path) or not _is_matrix(np.shape(leaf)):
    return False
  if not jax.numpy.issubdtype(jax.numpy.result_type(leaf), np.inexact):
    return False
  *parents, name = re.split('[/.]', path)  # PyTorch's own names, flat: 'encoder.pos_embedding'
  beside = any(pattern.search(part) for pattern in (_NORM, _POSITION) for part in [*parents, name])
  return not beside and not _NOT_A_WEIGHT.search(name)


def is_extra(path: str) -> bool:
  """Tells whether a hook added this leaf to the params (`jl.<name>/...`): default selections skip it.

  So it is where a loop keeps its params beside others, as in `(tree, {'jl.hint': ...})`.

  >>> is_extra('jl.hint/projector'), is_extra('1/jl.hint/projector'), is_extra('dense/kernel')
  (True, True, False)
  """
  return path.startswith('jl.') or '/jl.' in path


def weight_paths(params: Any, rule: Rule, weights: Iterable[str] | None, *, what: str) -> frozenset[str]:
  """Decides which leaves of `params` a part works on: by rule, else by the model's jaxpr, else by shape.

  Args:
    params: any pytree of arrays.
    rule: the user's rule, or None for the weights.
    weights: paths that enter a contraction, as `train_step` finds them; None in a foreign loop.
    what: names the part in an error.

  Returns:
    The chosen paths.

  Raises:
    ValueError: nothing is chosen.

  >>> import numpy as np
  >>> weight_paths({'w': np.ones((2, 2)), 'b': np.ones(2)}, None, None, what='prune')
  frozenset({'w'})
  """
  names, leaves, _ = flatten(params)
  if rule is not None:
    named = select([name for name in names if not is_extra(name)], rule, what=f'{what}: rule')
    _refuse_no_numbers({name: leaf for name, leaf in zip(names, leaves, strict=True) if name in named}, what)
    return named
  if weights is None:
    chosen = frozenset(name for name, leaf in zip(names, leaves, strict=True) if looks_like_weight(name, leaf))
  else:
    chosen = frozenset(weights) & frozenset(name for name in names if not is_extra(name))
  if not chosen:
    if type(params).__name__ == '_ParamsPlaceholder':
      raise ValueError(
        f'{what} goes by its weights, and optax.tree_utils.tree_map_params hands it none: map over its state by paths, '
        'jax.tree_util.tree_map_with_path'
      )
    raise ValueError(f'{what} finds no weight among the parameters ({shown(names)}): name them with a rule')
  if weights is None:
    _tell_passed_over({name: np.shape(leaf) for name, leaf in zip(names, leaves, strict=True)}, chosen, what)
  return chosen


def _refuse_no_numbers(chosen: Mapping[str, Any], what: str) -> None:
  for path, leaf in chosen.items():
    dtype = getattr(leaf, 'dtype', None)
    if dtype is not None and not jax.numpy.issubdtype(dtype, np.number):
      raise ValueError(
        f'{what} works on arrays of numbers; its rule picks {path!r}, {dtype}{list(leaf.shape)}: narrow it'
      )


def _tell_passed_over(shapes: Mapping[str, tuple[int, ...]], chosen: frozenset[str], what: str) -> None:
  """Warns of a matrix that goes by the short name of a bias: of a stack of biases, a weight beside it has the axes."""

  def stacks(name: str) -> bool:
    within, shape = name.rpartition('/')[0], shapes[name]
    near = [shapes[other] for other in chosen if other.rpartition('/')[0] == within]
    return any(len(one) > len(shape) and all(axis in iter_ for axis in shape) for one in near for iter_ in [iter(one)])

  left = [name for name in shapes if _SHORT.search(name.rpartition('/')[2]) and _is_matrix(shapes[name])]
  if left := [name for name in left if name not in chosen and not is_extra(name) and not stacks(name)]:
    warnings.warn(
      f'{what} sees arrays and no program here, and takes {left[0]!r}, {list(shapes[left[0]])}'
      f'{f" and {len(left) - 1} more" if len(left) > 1 else ""}, for a bias by its name: name the weights with a rule, '
      'or hand over what the program says, jl.step.told',
      stacklevel=5,
    )


def _is_matrix(shape: tuple[int, ...]) -> bool:
  return sum(size > 1 for size in shape) >= 2


def check_distinct(tree: Any, what: str) -> None:
  """Raises when one array stands at two paths: donated twice, or trained as if it were two.

  Args:
    tree: any pytree.
    what: names the tree in the error.

  Raises:
    ValueError: an aliased leaf, or two leaves of one path.
  """
  names, leaves, _ = flatten(tree)
  seen: dict[int, str] = {}
  for name, leaf in zip(names, leaves, strict=True):
    if isinstance(leaf, jax.Array | np.ndarray):
      if id(leaf) in seen:
        raise ValueError(
          f'{what}: {seen[id(leaf)]!r} and {name!r} are one array; keep a single leaf and use it twice in the model'
        )
      seen[id(leaf)] = name


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Builds nested dicts from '/'-joined paths.

  Raises:
    ValueError: a path names both a leaf and a group.

  >>> nest({'a/b': 1, 'a/c': 2})
  {'a': {'b': 1, 'c': 2}}
  """
  tree: dict[str, Any] = {}
  groups = {path[:end] for path in flat for end, letter in enumerate(path) if letter == '/'}
  for path, leaf in flat.items():
    if path in groups:
      raise ValueError(f'a path names a leaf or a group, not both; {path!r} names both: rename one')
    *parents, name = path.split('/')
    node = tree
    for part in parents:
      node = node.setdefault(part, {})
    node[name] = leaf
  return tree


def split(tree: Mapping[str, Any], chosen: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits a nested dict into the chosen leaves and the rest; `merge` is its inverse.

  >>> split({'a': {'w': 1, 'b': 2}}, ['a/w'])
  ({'a': {'w': 1}}, {'a': {'b': 2}})
  """
  chosen = frozenset(chosen)

  def walk(node: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    one, other = {}, {}
    for name, value in node.items():  # key by key: a framework's own name may hold a '/'
      path = f'{prefix}{name}'
      if isinstance(value, Mapping):
        inside, outside = walk(value, f'{path}/')
        one.update({name: inside} if inside else {})
        other.update({name: outside} if outside or not inside else {})
      else:
        inside, outside = _holes(value, path, chosen), _holes(value, path, chosen, invert=True)
        one.update({name: inside} if jax.tree.leaves(inside) else {})
        other.update({name: outside} if jax.tree.leaves(outside) else {})
    return one, other

  return walk(tree, '')


def _holes(value: Any, path: str, chosen: frozenset[str], invert: bool = False) -> Any:
  """A list or tuple keeps its form: None stands where a leaf went to the other side."""

  names, leaves, treedef = _named(value)
  whole = (f'{path}/{name}' if name else path for name in names)
  return treedef.unflatten(
    leaf if (name in chosen) is not invert else None for name, leaf in zip(whole, leaves, strict=True)
  )


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
  """Merges two nested dicts with disjoint leaves.

  >>> merge({'a': {'w': 1}}, {'a': {'b': 2}})
  {'a': {'w': 1, 'b': 2}}
  """
  merged = dict(one)
  for name, value in other.items():
    if name not in merged:
      merged[name] = value
    elif isinstance(value, Mapping):
      merged[name] = merge(merged[name], value)
    else:
      fill = lambda mine, theirs: theirs if mine is None else mine  # noqa: E731
      merged[name] = jax.tree.map(fill, merged[name], value, is_leaf=lambda node: node is None)
  return merged


def able(tree: Any, method: str) -> list[Any]:
  """Returns every node of a pytree whose type has a method of this name, outermost first, also those inside others.

  >>> from typing import NamedTuple
  >>> class Count(NamedTuple):
  ...   n: int
  ...   def double(self):
  ...     return 2 * self.n
  >>> [node.double() for node in able({'a': (Count(3), 4)}, 'double')]
  [6]
  """
  return nodes(tree, lambda node: callable(getattr(type(node), method, None)))


def nodes(tree: Any, wanted: Callable[[Any], bool]) -> list[Any]:
  """Returns every node of a pytree that a predicate picks, outermost first, also those inside others.

  >>> nodes({'a': (1, (2,))}, lambda node: isinstance(node, tuple))
  [(1, (2,)), (2,)]
  """
  inside = jax.tree.leaves(tree, is_leaf=lambda node: node is not tree and wanted(node))
  found = [tree] if wanted(tree) else []
  return found + [one for node in inside if node is not tree and wanted(node) for one in nodes(node, wanted)]


def find(tree: Any, kind: type) -> list[Any]:
  """Returns every node of a given NamedTuple type inside a pytree, outermost first.

  >>> from typing import NamedTuple
  >>> class Count(NamedTuple):
  ...   n: int
  >>> find(({'a': Count(3)},), Count)
  [Count(n=3)]
  """
  nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind))
  return [node for node in nodes if isinstance(node, kind)]
