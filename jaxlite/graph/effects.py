"""What a function changes beside its results, and a trace would lose: refused aloud, whatever framework wrote it.

A function is traced on copies of its arguments: a module that counts, or moves its batch statistics, moves those of the
copy, and what the trace put into an object of outside is no number once it has ended. Both are found by looking at
arrays before and after the call.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite import trees
from jaxlite.errors import arrays
from jaxlite.graph import walk

_ROADS = (
  'pass what changes and return it (nnx.split, nnx.merge), take an adapter (jl.from_nnx and its like), or call the '
  'network in evaluation mode'
)
_MOST = 2_500  # objects looked at around a function, the nearest first: 20,000 took 0.4 s of each trace
_MOST_HELD = 20_000  # for a program that is compiled anyway
_OPAQUE = (str, bytes, bytearray, int, float, complex, bool, type(None), type, types.ModuleType, types.CodeType)


def without_effects(fn: Callable[..., Any], what: str) -> Callable[..., Any]:
  """Returns the function, raising where a call changes arrays that it was given, or that it holds from outside.

  It is for calls inside a trace, on arguments that were unpacked for it: a change that is not returned would be lost.
  What a call computes once and keeps outside (tables of numbers) is no such change, nor is what it takes out of its
  arguments. Objects of outside get their own arrays back before it raises.

  Args:
    fn: any function of pytrees.
    what: names the asking part in an error.

  Returns:
    A function of the same arguments.

  Raises:
    ValueError: when called, naming the first array that was changed and where what changes is to go.

  >>> def counts(held, x):
  ...   held['calls'] = held['calls'] + 1
  ...   return x
  >>> without_effects(counts, 'this')({'calls': jax.numpy.zeros(())}, 1.0)
  Traceback (most recent call last):
    ...
  ValueError: this works on a copy of its arguments, so what a call changes in them is lost; this one changed 1 array: \
calls of argument 0: pass what changes and return it (nnx.split, nnx.merge), take an adapter (jl.from_nnx and its \
like), or call the network in evaluation mode
  """

  @functools.wraps(fn)
  def run(*args: Any, **kwargs: Any) -> Any:
    leaves, treedef = jax.tree.flatten((args, kwargs))
    given = _by_path(args, kwargs)
    opaque = [leaf for leaf in leaves if not is_array(leaf)]
    around = _around(fn, opaque)
    try:
      results = fn(*args, **kwargs)
    except Exception as error:
      if type(error).__name__ == 'TraceContextError':  # Flax's own: an object made outside of this trace was written to
        raise ValueError(
          f'{what} traces its function, which wrote to a module that it holds from outside: {_ROADS}'
        ) from error
      raise
    _refuse_leaks(fn, opaque, around, what)
    returned = {id(leaf) for leaf in jax.tree.leaves(results)}
    changed = [
      where
      for where, leaf in _by_path(args, kwargs).items()
      if given.get(where) is not leaf and is_array(leaf) and id(leaf) not in returned
    ]
    if changed:  # transforms of NNX write back all of a module, also what they left as it was
      changed = _truly(fn, leaves, treedef, changed)
    if changed:
      owner = changed[0][0]
      raise ValueError(
        f'{what} works on a copy of its arguments, so what a call changes in them is lost; this one changed '
        f'{arrays(path for one, path in changed if one == owner)} of argument {owner}: {_ROADS}'
      )
    return results

  return run


def is_array(leaf: Any) -> bool:
  """Tells whether a leaf is an array, a traced one, or the shape of one."""
  return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _by_path(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[tuple[Any, str], Any]:
  """Every leaf by (its argument, its path)."""
  found = {}
  for owner, arg in (*enumerate(args), *kwargs.items()):
    for key_path, leaf in zip(*trees.keyed(arg, _gone)[:2], strict=True):
      found[owner, trees.path_string(key_path)] = leaf
  return found


def _gone(node: Any) -> bool:
  """Tells whether a node gave its values on and holds none any more (a state that may be used once)."""
  try:
    jax.tree.flatten(node, is_leaf=lambda below: below is not node)
  except Exception:
    return True
  return False


def _truly(fn: Callable[..., Any], leaves: list[Any], treedef: Any, changed: list[Any]) -> list[Any]:
  """Which of these leaves are no longer the values that came in, as the program tells."""
  known = [leaf for leaf in leaves if is_array(leaf)]

  def ends(given: list[Any]) -> list[Any]:
    rest = iter(given)
    args, kwargs = jax.tree.unflatten(treedef, [next(rest) if is_array(leaf) else leaf for leaf in leaves])
    before = _by_path(args, kwargs)
    fn(*args, **kwargs)
    after = _by_path(args, kwargs)
    come = [where in before for where in changed]
    return [(after[where], before[where]) for where, was in zip(changed, come, strict=True) if was and where in after]

  came = _by_path(*jax.tree.unflatten(treedef, leaves))
  both = [where for where in changed if where in came]
  jaxpr = jax.make_jaxpr(ends)([jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for leaf in known]).jaxpr
  now, was = jaxpr.outvars[::2], jaxpr.outvars[1::2]
  same = {where for where, one, other in zip(both, now, was, strict=False) if _source(jaxpr, one) is other}
  return [where for where in changed if where not in same]


def _source(jaxpr: Any, atom: Any) -> Any:
  """The input that a value is, handed on by calls and never computed with; the value itself where it is another."""
  made = {id(out): (eqn, place) for eqn in jaxpr.eqns for place, out in enumerate(eqn.outvars)}
  while id(atom) in made:
    eqn, place = made[id(atom)]
    if eqn.primitive.name not in walk.CALLS:
      return atom
    body = walk.opened(eqn.params[walk.CALLS[eqn.primitive.name]])[0]
    inner = _source(body, body.outvars[place])
    if inner not in body.invars:
      return atom
    atom = eqn.invars[body.invars.index(inner)]
  return atom


# --- what a function holds from outside ----------------------------------------------------------------------------


class _Place(NamedTuple):
  """Where an array was found.

  Attributes:
    path: from the function, in names.
    leaf: the array.
    put: value -> None, writes there; None where nothing can.
    drop: () -> None, empties the place; likewise.
  """

  path: str
  leaf: Any
  put: Callable[[Any], None] | None
  drop: Callable[[], None] | None


class Outside:
  """Arrays that a function reaches, kept alive; equal to another only where it is of the very same arrays."""

  def __init__(self, found: Sequence[Any]) -> None:
    self.found = tuple(found)
    self._ids = tuple(map(id, self.found))

  def __hash__(self) -> int:
    return hash(self._ids)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Outside) and self._ids == other._ids


def outside(fn: Callable[..., Any]) -> Outside:
  """Returns the arrays that a function holds from outside: what a program that was compiled of it holds fast.

  Another array in a place is seen; what is written into a NumPy array is not.

  >>> held = {'w': jax.numpy.ones(2)}
  >>> fn = lambda x: x * held['w']
  >>> before = outside(fn)
  >>> held['w'] = jax.numpy.zeros(2)
  >>> outside(fn) == before, outside(fn) == outside(fn)
  (False, True)
  """
  return Outside([place.leaf for place in _around(fn, (), most=_MOST_HELD).values()])


def _around(fn: Any, opaque: Sequence[Any], most: int = _MOST) -> dict[tuple[int, Any], _Place]:
  """Every array that a function can reach, by (holder, key).

  That is what it holds (cells, defaults, the globals that it names), what stands in objects there, and the same of the
  functions and methods that it finds on this way, as far as a person wrote them.
  """
  own = _globals_of(fn)
  queue: list[tuple[str, Any]] = [('', one) for one in (fn, type(fn).__dict__.get('__call__'), *opaque)]
  seen, found = set(), {}
  kept = []  # alive as long as their ids stand for them
  for path, node in queue:  # grows while it is read: the nearest come first
    if id(node) in seen or len(seen) > most:
      continue
    seen.add(id(node))
    kept.append(node)
    with contextlib.suppress(Exception):  # proxies of nothing, tables that another thread changes: passed over
      for key, name, value, put, drop in _children(node, own):
        below = f'{path}/{name}' if path and name else path or name
        if isinstance(value, jax.Array | np.ndarray):
          found[id(node), key] = _Place(below, value, put, drop)
        elif (not isinstance(value, _OPAQUE) and not is_array(value)) or (isinstance(value, type) and _written(value)):
          queue.append((below, value))
  return found


def _refuse_leaks(fn: Any, opaque: Sequence[Any], before: Mapping[Any, _Place], what: str) -> None:
  """Raises where a traced value was left outside, putting back what stood there."""
  held = {id(place.leaf) for place in before.values()}
  after = _around(fn, opaque).items()
  leaked = {where: one for where, one in after if isinstance(one.leaf, jax.core.Tracer) and id(one.leaf) not in held}
  for where, place in reversed(leaked.items()):  # what was appended last goes first
    if where in before and place.put is not None:
      place.put(before[where].leaf)
    elif where not in before and place.drop is not None:
      place.drop()
  if leaked:
    raise ValueError(
      f'{what} traces its function, so what a call writes outside is no number when it has ended; this one wrote to '
      f'{arrays(one.path for one in leaked.values())}: {_ROADS}'
    )


def _children(node: Any, own: Mapping[str, Any] | None) -> Iterator[tuple[Any, str, Any, Any, Any]]:
  """What an object holds: (key, name, value, put, drop) of each."""
  if isinstance(node, dict):
    for key, value in itertools.islice(node.items(), _MOST):
      yield ('item', key), str(key), value, functools.partial(node.__setitem__, key), functools.partial(node.pop, key)
  elif isinstance(node, list):
    for index, value in enumerate(itertools.islice(node, _MOST)):
      put, drop = functools.partial(node.__setitem__, index), functools.partial(node.pop, index)
      yield ('item', index), str(index), value, put, drop
  elif isinstance(node, tuple | set | frozenset):
    for index, value in enumerate(itertools.islice(node, _MOST)):
      yield ('item', index), str(index), value, None, None
  elif isinstance(node, types.MethodType):
    yield ('self',), '', node.__self__, None, None
    yield ('func',), '', node.__func__, None, None
  elif isinstance(node, functools.partial):
    yield ('fn',), '', node.func, None, None
    yield ('args',), '', node.args, None, None
    yield ('keywords',), '', node.keywords, None, None
  elif isinstance(node, types.FunctionType):
    yield from _held(node, own)
    yield ('attributes',), '', node.__dict__, None, None
    return  # its slots lead to everything that its module and Python hold
  elif isinstance(node, type):
    yield from _methods(node)
    return
  elif (type(node).__module__ or '').split('.')[0] in ('jax', 'jaxlib'):
    yield ('wrapped',), '', getattr(node, '__wrapped__', None), None, None
    return
  yield from _attributes(node)
  if _written(type(node)):
    yield from _methods(type(node))


def _held(fn: Any, own: Mapping[str, Any] | None) -> Iterator[tuple[Any, str, Any, Any, Any]]:
  for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
    try:
      yield ('cell', name), name, cell.cell_contents, functools.partial(setattr, cell, 'cell_contents'), None
    except ValueError:  # not bound yet
      continue
  yield ('defaults',), '', fn.__defaults__, None, None
  yield ('kwdefaults',), '', fn.__kwdefaults__, None, None
  names = fn.__globals__
  if names is own or not _installed(names.get('__name__')):  # what packages call among themselves is their own affair
    for name in _names(fn.__code__):
      if name in names:
        put, drop = functools.partial(names.__setitem__, name), functools.partial(names.pop, name)
        yield ('global', name), name, names[name], put, drop


def _methods(kind: type) -> Iterator[tuple[Any, str, Any, Any, Any]]:
  for one in filter(_written, kind.__mro__):
    for name, value in list(vars(one).items()):
      method = value.fget if isinstance(value, property) else getattr(value, '__func__', value)
      if isinstance(method, types.FunctionType):
        yield ('method', one, name), '', method, None, None


def _written(kind: type) -> bool:
  """Tells whether a class is a person's, and no package's."""
  return not _installed(kind.__module__)


@functools.lru_cache(maxsize=1024)
def _installed(module: str | None) -> bool:
  root = (module or '').partition('.')[0]
  if root == '__main__':  # a script or a notebook, whoever started it
    return False
  file = getattr(sys.modules.get(module or ''), '__file__', None) or ''
  known = {*sys.stdlib_module_names, __name__.partition('.')[0]}
  return root in known or 'site-packages' in file or 'dist-packages' in file


def _names(code: Any) -> set[str]:
  inner = (one for one in code.co_consts if isinstance(one, types.CodeType))
  return set(code.co_names).union(*map(_names, inner))


def _attributes(node: Any) -> Iterator[tuple[Any, str, Any, Any, Any]]:
  held = getattr(node, '__dict__', None)
  if isinstance(held, dict):
    for name, value in list(held.items()):
      put, drop = functools.partial(held.__setitem__, name), functools.partial(held.pop, name)
      yield ('attribute', name), _shown(str(name)), value, put, drop
  for name, member in _slots(type(node)):
    try:
      value = member.__get__(node)
    except AttributeError:  # empty
      continue
    put = functools.partial(member.__set__, node)
    yield ('slot', name), _shown(name), value, put, functools.partial(member.__delete__, node)


@functools.lru_cache(maxsize=1024)
def _slots(kind: type) -> list[tuple[str, Any]]:
  every = (item for one in kind.__mro__ for item in vars(one).items())
  return [(name, member) for name, member in every if isinstance(member, types.MemberDescriptorType)]


def _shown(name: str) -> str:
  """An attribute's name in a path; '' for Python's own and for where a variable of a framework keeps its array."""
  return '' if name.startswith('__') or name in ('value', '_value', 'raw_value', '_raw_value') else name


def _globals_of(fn: Any) -> Mapping[str, Any] | None:
  while isinstance(fn, functools.partial) or hasattr(fn, '__wrapped__'):
    fn = fn.func if isinstance(fn, functools.partial) else fn.__wrapped__
  fn = getattr(fn, '__func__', fn)
  return getattr(fn, '__globals__', None) or getattr(type(fn).__call__, '__globals__', None)
