"""The canonical text of a traced program: what it computes, without what it is called.

Two programs have one text when they have the same equations on the same shapes, with the same literals and captured
arrays, wired alike. Names of functions and variables, addresses, debug information and what is only called while
tracing leave no mark, so the text is the same in every process. A newer JAX may trace the same code to another text.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.graph.walk import opened

# Parameters of equations that change nothing of what is computed, or are only called while tracing.
_NAMELESS = frozenset(
  [
    'name',
    'debug_info',
    'debug',
    'inline',
    'keep_unused',
    'donated_invars',
    'ctx_mesh',
    'compiler_options_kvs',
    'in_layouts',
    'out_layouts',
    'jvp_jaxpr_fun',
    'jvp_jaxpr_thunk',
    'fwd_jaxpr_thunk',
    'bwd',
    'out_trees',
    'effects',
    'fun',
    'callback',
    'computation',  # of a reduction, whose jaxpr says it
  ]
)
_ADDRESS = re.compile(r'\b0x[0-9a-fA-F]+')
_MARKS = re.compile(r'%\d+|@[0-9a-f]+')  # which variable, which body: what moves along when an equation is put in
_MOST = 2000  # lines that differ which are still aligned; beyond, they are shown from the first


def text(jaxpr: Any) -> str:
  """Returns the canonical text of a jaxpr, a line an equation, bodies before those that call them.

  Args:
    jaxpr: closed, as `jax.make_jaxpr` gives it.

  >>> one = text(jax.make_jaxpr(lambda x: 2 * x)(1.0))
  >>> print(one)
  in float32[]
  %1:float32[] = mul 2.0:float32[] %0
  out %1
  >>> renamed = jax.make_jaxpr(lambda weight: 2 * weight)(1.0)
  >>> text(renamed) == one, text(jax.make_jaxpr(lambda x: 3 * x)(1.0)) == one
  (True, False)
  """
  writer = Writer()
  lines = writer.lines(*opened(jaxpr))
  return '\n'.join([*writer.sections, *lines])


def differences(before: str, after: str, most: int = 3) -> list[str]:
  """Returns what differs between two texts, an equation or two a line.

  Args:
    before: the one text.
    after: the other.
    most: how many differences to show; a last line tells how many more there are.

  Returns:
    At least one line where the texts differ, none where they are equal.

  >>> differences('a = mul 2.0 %0', 'a = mul 3.0 %0')
  ['`a = mul 2.0 _` is now `a = mul 3.0 _`']
  """
  if before == after:
    return []
  old, new = before.split('\n'), after.split('\n')
  plain_old, plain_new = _plain(old), _plain(new)
  if plain_old == plain_new:  # the same equations, wired in another way
    pairs = [(a, b) for a, b in zip(old, new, strict=True) if _without_bodies(a) != _without_bodies(b)]
    return _cut([f'`{a}` is now `{b}`' for a, b in pairs or [(old[-1], new[-1])]], most)
  start = 0
  while start < min(len(plain_old), len(plain_new)) and plain_old[start] == plain_new[start]:
    start += 1
  end = 0
  while end < min(len(plain_old), len(plain_new)) - start and plain_old[-1 - end] == plain_new[-1 - end]:
    end += 1
  a, b = plain_old[start : len(plain_old) - end], plain_new[start : len(plain_new) - end]
  if len(a) + len(b) > _MOST:
    return _cut(_changed(a, b), most)
  found = []
  for kind, i, j, k, n in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
    if kind != 'equal':
      found += _changed(a[i:j], b[k:n])
  return _cut(found, most)


def _changed(old: list[str], new: list[str]) -> list[str]:
  pairs = list(zip(old, new, strict=False))
  gone, come = old[len(pairs) :], new[len(pairs) :]
  return [
    *(f'`{a}` is now `{b}`' for a, b in pairs if a != b),
    *(f'`{line}` is gone' for line in gone),
    *(f'`{line}` is new' for line in come),
  ]


def _cut(found: list[str], most: int) -> list[str]:
  return found if len(found) <= most else [*found[:most], f'and {len(found) - most} more']


def _plain(lines: list[str]) -> list[str]:
  return [_MARKS.sub('_', line) for line in lines]


def _without_bodies(line: str) -> str:
  return re.sub(r'@[0-9a-f]+', '@', line)


class Writer:
  """Writes jaxprs; a body that occurs several times is written once and called by the hash of its text."""

  def __init__(self) -> None:
    self.sections: list[str] = []
    self._known: dict[int, tuple[Any, str]] = {}  # by identity; holds what it names, so that no id comes again
    self._written: set[str] = set()
    self._arrays: dict[int, tuple[Any, str]] = {}

  def lines(self, jaxpr: Any, consts: tuple[Any, ...]) -> list[str]:
    names: dict[Any, str] = {}

    def bind(var: Any) -> str:
      names[var] = f'%{len(names)}'
      return f'{names[var]}:{_aval(var.aval)}'

    def read(atom: Any) -> str:
      if not hasattr(atom, 'val'):
        return names[atom]
      return f'{self.array(atom.val)}:{_aval(atom.aval)}'

    lines = []
    for var, value in zip(jaxpr.constvars, consts, strict=False):
      names[var] = f'%{len(names)}'
      lines.append(f'const {_aval(var.aval)} {self.array(value)}')
    for var in jaxpr.constvars[len(consts) :]:
      lines.append(f'const {bind(var).split(":", 1)[1]}')
    lines.append(f'in {" ".join(bind(var).split(":", 1)[1] for var in jaxpr.invars)}'.rstrip())
    for eqn in jaxpr.eqns:
      operands = ''.join(f' {read(atom)}' for atom in eqn.invars)
      results = ' '.join(bind(var) for var in eqn.outvars)
      lines.append(f'{results} = {eqn.primitive.name}{operands}{self.params(eqn)}')
    lines.append(f'out {" ".join(read(atom) for atom in jaxpr.outvars)}'.rstrip())
    return lines

  def params(self, eqn: Any) -> str:
    """Returns what an equation's parameters say of what it computes; bodies by hash."""
    says = (item for item in sorted(eqn.params.items()) if _says_something(*item))
    return ''.join(f' {key}={self._value(value)}' for key, value in says)

  def _body(self, jaxpr: Any) -> str:
    known = self._known.get(id(jaxpr))
    if known is None:
      lines = self.lines(*opened(jaxpr))
      name = hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]
      if name not in self._written:
        self._written.add(name)
        self.sections += [f'body @{name}', *lines]
      known = self._known[id(jaxpr)] = (jaxpr, f'@{name}')
    return known[1]

  def array(self, value: Any) -> str:
    """A number as it is, an array by its hash."""
    for plain in (bool, int, float, complex):
      if isinstance(value, plain):
        return repr(plain(value))  # JAX has kinds of numbers of its own
    if not hasattr(value, 'dtype'):
      return self._value(value)
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
      return f'{value.dtype}{self.array(jax.random.key_data(value))}'
    if np.ndim(value) == 0:
      return repr(np.asarray(value).item())
    known = self._arrays.get(id(value))
    if known is None:
      array = np.ascontiguousarray(value)
      digest = hashlib.sha256(f'{array.dtype}{array.shape}'.encode())
      digest.update(array.reshape(-1).view(np.uint8))
      known = self._arrays[id(value)] = (value, f'#{digest.hexdigest()[:16]}')
    return known[1]

  def _value(self, value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
      return repr(value)
    if hasattr(value, 'eqns') or hasattr(getattr(value, 'jaxpr', None), 'eqns'):
      return self._body(value)
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
      return jnp.dtype(value).name
    if isinstance(value, enum.Enum):
      return value.name
    if isinstance(value, np.ndarray | np.generic | jax.Array):
      return self.array(value)
    if isinstance(value, tuple | list):
      return f'({",".join(map(self._value, value))})'
    if isinstance(value, frozenset | set):
      return f'{{{",".join(sorted(map(self._value, value)))}}}'
    if isinstance(value, Mapping):
      return f'{{{",".join(f"{key}:{self._value(one)}" for key, one in sorted(value.items(), key=str))}}}'
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
      fields = (field.name for field in dataclasses.fields(value) if field.name not in _NAMELESS)
      return f'{type(value).__name__}({",".join(self._value(getattr(value, name)) for name in fields)})'
    if isinstance(value, jax.tree_util.PyTreeDef):
      return ''
    if callable(value):  # a function says nothing but its name
      return type(value).__name__
    return _ADDRESS.sub('', repr(value))


def _says_something(key: str, value: Any) -> bool:
  return not (key in _NAMELESS or value is None or isinstance(value, jax.tree_util.PyTreeDef) or _left_open(value))


def _left_open(value: Any) -> bool:
  """Shardings that nobody has asked for, one an operand."""
  return isinstance(value, tuple) and all(type(one).__name__ == 'UnspecifiedValue' for one in value) and value != ()


def _aval(aval: Any) -> str:
  if not hasattr(aval, 'shape'):
    return _ADDRESS.sub('', str(aval))
  return f'{_dtype(aval.dtype)}[{",".join(map(str, aval.shape))}]'


_dtype = functools.lru_cache(64)(str)  # NumPy makes up the name of a dtype anew each time
