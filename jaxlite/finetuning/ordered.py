"""Modules that no name pairs, by order: that of definition in the file, and of use in the model's program."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from jaxlite.finetuning import names
from jaxlite.finetuning.weights import Weights, WeightsError

_IN_ORDER = ('torch', 'npz', 'gguf', 'arrays')  # the others sort names


def by_order_of_definition(
  held: Weights, renamed: Mapping[str, str], found: Mapping[str, str], wanted: Sequence[str], order: Mapping[str, int]
) -> dict[str, str]:
  """Returns the array's name by path of modules that no name pairs, in the file's order and the program's.

  Modules that names pair by their numbers alone are among them where numbers do not go on to the others: `fc1` of a
  file that counts from 1 is no `fc1` of a model that counts from 0.

  Args:
    held: the file.
    renamed: names after rules, each with its name in the file.
    found: what names paired.
    wanted: paths of the model.
    order: the place of each leaf among those that the program reads.

  Raises:
    WeightsError: the file keeps no order of definition, and its names tell none; names and order contradict each other.
  """
  numbered = _numbered(renamed, found, wanted)
  used = {name for path, name in found.items() if path not in numbered}
  theirs = _modules([name for name in renamed if name not in used and not names.is_counter(name)])
  ours = _modules([path for path in wanted if path not in found or path in numbered])
  last = len(order)
  kinds: dict[tuple[str, ...], list[list[dict[str, str]]]] = {}
  for side, modules in enumerate((theirs, ours)):
    for module in modules.values():
      kinds.setdefault(tuple(sorted(module)), [[], []])[side].append(module)
  pairs: dict[str, str] = {}
  for one, other in kinds.values():
    if len(one) != len(other):
      continue
    if len(one) > 1 and held.form not in _IN_ORDER:
      one = _by_number(one, held)
    ranked = sorted(other, key=lambda module: min(order.get(path, last) for path in module.values()))
    for source, module in zip(one, ranked, strict=True):
      pairs |= {path: source[role] for role, path in module.items()}
    _refuse_contradictions(held, found, one, ranked)
  return pairs


def _numbered(renamed: Mapping[str, str], found: Mapping[str, str], wanted: Sequence[str]) -> frozenset[str]:
  """The paths that names pair, of kinds in which names leave modules of the same words but for numbers over."""
  taken = set(found.values())
  theirs = _modules([name for name in renamed if not names.is_counter(name)])
  ours = _modules(wanted)
  over = [
    {(_words(key), tuple(sorted(module))) for key, module in modules.items() if not taken.intersection(module.values())}
    for modules, taken in ((theirs, taken), (ours, set(found)))
  ]
  several = sum(not taken.intersection(module.values()) for module in theirs.values()) > 1
  kind_of = {name: (_words(key), tuple(sorted(module))) for key, module in theirs.items() for name in module.values()}
  kind_at = {path: (_words(key), tuple(sorted(module))) for key, module in ours.items() for path in module.values()}

  def contested(path: str, name: str) -> bool:
    both = kind_of.get(name) in over[0], kind_at.get(path) in over[1]
    return all(both) or (several and any(both))

  return frozenset(path for path, name in found.items() if contested(path, name))


def _refuse_contradictions(
  held: Weights, found: Mapping[str, str], one: Sequence[dict[str, str]], other: Sequence[dict[str, str]]
) -> None:
  """Raises where names pair a module otherwise than order does, and it is not that one's numbers begin elsewhere."""
  rising = [_rising([names.key_of(min(module.values())).module for module in side]) for side in (one, other)]
  for source, module in zip(one, other, strict=True):
    for role, path in module.items():
      named, ordered = found.get(path, source[role]), source[role]
      words = [_words(names.key_of(name).module) for name in (named, ordered, path)]
      shifted = words[0] == words[1] and words[1] in rising[0] and words[2] in rising[1]
      if named != ordered and not shifted:
        raise WeightsError(f'{held.where}: by name {path!r} is {named!r} and by order {ordered!r}: say which by rules=')


def _rising(keys: Sequence[tuple[str, ...]]) -> set[tuple[str, ...]]:
  """The words of modules whose numbers rise in this order."""
  groups: dict[tuple[str, ...], list[list[int]]] = {}
  for key in keys:
    groups.setdefault(_words(key), []).append(_numbers(key))
  return {words for words, numbers in groups.items() if numbers == sorted(numbers)}


def _words(module: Sequence[str]) -> tuple[str, ...]:
  return tuple(word for word in module if not word.isdigit())


def _numbers(module: Sequence[str]) -> list[int]:
  return [int(word) for word in module if word.isdigit()]


def _by_number(modules: list[dict[str, str]], held: Weights) -> list[dict[str, str]]:
  """Modules of a file that sorts its names (`layer.10` before `layer.2`), by the numbers in them.

  Raises:
    WeightsError: their names differ in more than numbers, so that nothing tells which was defined first.
  """
  named = {min(module.values()).replace('.', '/').rpartition('/')[0]: module for module in modules}
  if len({re.sub(r'_?\d+', '', name) for name in named}) > 1:
    shown = ', '.join(list(named)[:2])
    raise WeightsError(
      f"{held.where}: match='order' follows the order of definition, which {held.form} files do not keep: they sort "
      f'names, and {shown}, ... differ in more than numbers: give rules='
    )
  return [named[name] for name in sorted(named, key=lambda name: [int(number) for number in re.findall(r'\d+', name)])]


def _modules(paths: Sequence[str]) -> dict[tuple[str, ...], dict[str, str]]:
  """Names by module and role."""
  found: dict[tuple[str, ...], dict[str, str]] = {}
  for path in paths:
    key = names.key_of(path)
    found.setdefault(key.module, {})[key.role] = path
  return found
