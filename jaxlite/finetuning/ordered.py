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

  Args:
    held: the file.
    renamed: names after rules, each with its name in the file.
    found: what names paired.
    wanted: paths of the model.
    order: the place of each leaf among those that the program reads.

  Raises:
    WeightsError: the file keeps no order of definition, and its names tell none.
  """
  used = set(found.values())
  theirs = _modules([name for name in renamed if name not in used and not names.is_counter(name)])
  ours = _modules([path for path in wanted if path not in found])
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
  return pairs


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
