"""Rules that pick names: regular expressions, several of them, or predicates; whatever is none is refused aloud."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from jaxlite.errors import nearest

Rule = None | str | re.Pattern[str] | Sequence[str | re.Pattern[str]] | Callable[[str], bool]


def select(names: Iterable[str], rule: Rule, *, what: str = 'rule') -> frozenset[str]:
  """Returns the paths that a rule picks.

  Args:
    names: the paths to pick from.
    rule: a regular expression searched in each path (anchor it with ^ and $ for a whole path), compiled or not,
      several of them (a path is picked by any), a predicate on the path, or None for every path.
    what: names the asking part in an error.

  Returns:
    The picked paths.

  Raises:
    ValueError: a rule picks nothing; the message lists the nearest paths.
    TypeError: what is no rule, such as a tree of booleans.

  >>> sorted(select(['conv/kernel', 'conv/bias'], 'kernel$'))
  ['conv/kernel']
  """
  names = list(names)
  if rule is None:
    return frozenset(names)
  if callable(rule):
    said = {name: rule(name) for name in names}
    if any(isinstance(one, Mapping) for one in said.values()):
      raise TypeError(
        f'{what}: a predicate takes a path and says whether it is picked; this one gives a tree, as a mask for '
        'optax.masked(part, mask) does'
      )
    picked = frozenset(name for name, one in said.items() if one)
    if not picked:
      raise ValueError(f'{what} picks no parameter; known paths: {shown(names)}')
    return picked
  found: set[str] = set()
  for pattern in _patterns(rule, what):
    try:
      matched = [name for name in names if re.search(pattern, name)]
    except re.error as error:
      raise ValueError(f'{what} {pattern!r} is no regular expression: {error}') from None
    if not matched:
      written = _written(pattern)
      raise ValueError(f'{what} {written!r} matches no parameter; nearest paths: {nearest(written, names)}')
    found.update(matched)
  return frozenset(found)


def _patterns(rule: Any, what: str) -> list[str | re.Pattern[str]]:
  """The regular expressions of a rule. Whatever else is iterated would pick by accident: the keys of a mask, say."""
  if isinstance(rule, Mapping):
    raise TypeError(
      f'{what} is a regular expression on paths, several, or a predicate; got a {type(rule).__name__}: a tree of '
      'booleans goes to optax.masked(part, tree)'
    )
  several = not isinstance(rule, str | re.Pattern) and isinstance(rule, Iterable)
  patterns = list(rule) if several else [rule]
  if not all(isinstance(one, str | re.Pattern) for one in patterns):
    raise TypeError(f'{what} is a regular expression on paths, several, or a predicate; got {rule!r}')
  if not patterns:
    raise ValueError(f'{what} is empty, so it picks no parameter: give a regular expression, or leave the part out')
  return patterns


def _written(pattern: str | re.Pattern[str]) -> str:
  return pattern if isinstance(pattern, str) else pattern.pattern


def shown(names: Sequence[str], limit: int = 8) -> str:
  """Returns names for an error message, the first few of many.

  >>> shown(['a', 'b', 'c'], limit=2), shown([])
  ('a, b and 1 more', 'none')
  """
  more = f' and {len(names) - limit} more' if len(names) > limit else ''
  return (', '.join(names[:limit]) + more) or 'none'


def owned(paths: Iterable[str], names: Collection[str]) -> dict[str, str]:
  """Tells of which name each path of another tree is, such as of which parameter a moment is.

  By the whole branch that it stands in, since an end of a path may be another's name (Adam's `mu/w` where a layer is
  called `mu`), and as long a name as all of that branch have.

  Args:
    paths: of any tree.
    names: paths of the params, say; '' is that of a bare leaf.

  Returns:
    The names by path, of those that are of one.

  >>> owned(['0/count', '0/mu/mu/w', '0/mu/w'], ['w', 'mu/w'])
  {'0/mu/mu/w': 'mu/w', '0/mu/w': 'w'}
  """
  found: dict[str, str] = {}

  def walk(depth: int, rows: list[tuple[str, ...]]) -> None:
    ends = next((start for start in range(depth + 1) if all('/'.join(row[start:]) in names for row in rows)), None)
    if ends is not None:
      found.update(('/'.join(row), '/'.join(row[ends:])) for row in rows)
      return
    branches: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
      if depth < len(row):
        branches.setdefault(row[depth], []).append(row)
    for several in branches.values():
      walk(depth + 1, several)

  walk(0, [tuple(path.split('/')) for path in paths])
  return found
